"""p values of two models' difference by exchanging the models, patient by patient."""

from collections.abc import Callable, Sequence

import numpy as np
from scipy.stats import rankdata

from chexstudy.errors import StudyError
from chexstudy.statistics.ranking import auroc, known_labels

PERMUTATIONS = 2000
# Cases times permutations held at once, as signed bytes.
_BLOCK = 40_000_000


def exchange_models(
    labels: np.ndarray,
    first: Sequence[np.ndarray],
    second: Sequence[np.ndarray],
    patient_ids: Sequence,
    generator: np.random.Generator,
    *,
    permutations: int = PERMUTATIONS,
    measure: Callable[[np.ndarray, np.ndarray, np.ndarray | None], np.ndarray] = auroc,
    summarise: Callable[[np.ndarray], np.ndarray] = lambda values: values,
) -> np.ndarray:
    """Two-sided p values of two models' difference, by exchanging their scores patient by patient.

    If the models rank alike, it does not matter which of them gave a patient's scores. So for each permutation a coin
    is tossed for every patient, and the two models' scores of all images of that patient are exchanged or not (Bandos,
    Rockette and Gur 2005, Statistics in Medicine 24: 2873). The test is exact at any number of patients, where DeLong's
    needs many. The scores are turned into their midranks among the cases of a finding first: two models need not score
    on one scale, and neither metric sees more than ranks. With several seeds, the coin decides for all seeds of a
    patient, and what is tested is the mean over these seeds, not over trainings to come.

    Labels ``(cases, findings)`` are 1, 0, -1 or NaN; the scores of each model are one such array a seed. What is tested
    are the values ``(..., findings)`` of the measure, or what ``summarise`` makes of them, for example means over
    findings. The smallest p value is one over one more than the permutations; NaN where a value cannot be had.
    """
    labels = np.asarray(labels, dtype=float)
    if len(first) == 0 or len(first) != len(second):
        raise StudyError(
            f"models are exchanged seed by seed: give both the same seeds, not {len(first)} and {len(second)}."
        )
    if any(np.shape(one) != labels.shape for one in (*first, *second)) or len(patient_ids) != len(labels):
        raise StudyError("labels, scores and patients must be of the same cases and findings to exchange models.")
    if permutations < 1:
        raise StudyError(f"a permutation test needs at least one permutation, not {permutations}.")
    twice = np.concatenate([labels, labels])
    pairs = [
        np.concatenate([_rank_known(labels, one), _rank_known(labels, other)])
        for one, other in zip(first, second, strict=True)
    ]
    patients, patient = np.unique(np.asarray(patient_ids, dtype=str), return_inverse=True)

    def subtract(kept: np.ndarray) -> np.ndarray:
        """The mean difference over seeds ``(permutations, values)`` where the patients ``kept`` are not exchanged."""
        own = np.concatenate([kept, ~kept], axis=1).astype(np.int8)
        return np.mean(
            [summarise(measure(twice, pair, own)) - summarise(measure(twice, pair, 1 - own)) for pair in pairs], axis=0
        )

    observed = subtract(np.ones((1, len(labels)), dtype=bool))[0]
    as_far = np.zeros(len(observed), dtype=int)
    width = max(1, _BLOCK // (2 * len(labels)))
    for start in range(0, permutations, width):
        kept = generator.random((min(width, permutations - start), len(patients))) < 0.5
        # Equal differences may come out unequal by rounding.
        as_far += (np.abs(subtract(kept[:, patient])) >= np.abs(observed) - 1e-12).sum(axis=0)
    return np.where(np.isnan(observed), np.nan, (1 + as_far) / (1 + permutations))


def _rank_known(labels: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Midranks among the cases with a known label, column by column; a column that was not predicted stays NaN."""
    scores = np.asarray(scores)
    ranks = np.zeros(labels.shape)
    for column, known in enumerate(known_labels(labels).T):
        ranks[known, column] = rankdata(scores[known, column], nan_policy="omit")
    return np.where(np.isnan(scores), np.nan, ranks)
