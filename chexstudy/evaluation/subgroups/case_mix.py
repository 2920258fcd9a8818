"""Weights that give every group of patients the same mix of findings, so that groups can be compared like with like.

One group may score lower because its cases are harder: more of them have several findings, fewer are healthy. Weighting
by the inverse of the probability of being in the group, given the findings, makes each group's findings look like those
of all groups together (Rosenbaum and Rubin 1983; direct standardisation). What the labels do not say, such as how large
a lesion is, stays as it was.
"""

import numpy as np
from sklearn.linear_model import LogisticRegression

# No image counts for more than ten: weights beyond that rest on a few cases that the model finds out of place.
HEAVIEST = 10.0


def balance_case_mix(members: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Weights of images that make findings as common in each group as in all groups together.

    The weight of an image is the share of its group over the probability of its group given its findings, from a
    logistic regression of group on which findings are present or uncertain (L2-penalised, C = 1), cut at 10. An image
    in two groups counts for the first.
    From members ``(groups, images)`` it gives ``(images,)``, mean 1 within each group; 0 for images in no group.
    """
    inside = np.flatnonzero(members.any(axis=0))
    group = members[:, inside].argmax(axis=0)
    stated = np.concatenate([labels[inside] == 1, labels[inside] == -1], axis=1).astype(float)
    stated = stated[:, stated.std(axis=0) > 0]
    weights = np.zeros(members.shape[1])
    weights[inside] = 1.0
    if len(np.unique(group)) > 1 and stated.shape[1]:
        model = LogisticRegression(max_iter=1000).fit(stated, group)
        chance = model.predict_proba(stated)[np.arange(len(group)), np.searchsorted(model.classes_, group)]
        share = np.bincount(group, minlength=len(members)) / len(group)
        weights[inside] = np.minimum(share[group] / chance, HEAVIEST)
    total = np.where(members, weights, 0.0).sum(axis=1)
    scale = np.divide(members.sum(axis=1), total, out=np.zeros(len(total)), where=total > 0)
    weights[inside] *= scale[group]
    return weights
