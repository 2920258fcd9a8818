"""How much rather upright an image is than turned, mirrored or negative, learned from a cohort's own images alone.

A linear score of grey levels and edges learns to tell each image from its own 15 other versions: a conditional logit
whose weights turn with the image, cross-fitted by patient, made probabilities of in two parts: polarity and rotation,
which are plain to see, and the mirror image, which is not.
"""

from collections.abc import Iterator

import numpy as np
from PIL import Image
from scipy.optimize import minimize, minimize_scalar
from scipy.special import log_softmax, softmax
from sklearn.model_selection import GroupKFold

from chexstudy.cohort.pixels.turning import KINDS, find_content, turn_back
from chexstudy.progress import progress

FOLDS = 5
_FINE, _SIDE = 64, 16  # pixels a side of what is looked at, and cells a side of what is learned from
_MOST = 2_500  # images of a fit
_PENALTY, _ITERATIONS = 5e-4, 60
_ANYHOW = 0.1  # share of the images that may lie anyhow without a pull on the probabilities
_TURNED, _MIRRORED = 0.02, 0.002  # shares expected before an image is seen, chosen on drawn cohorts

_CELLS = np.arange(3 * _SIDE**2).reshape(3, _SIDE, _SIDE)
# A quarter turn makes edges across of edges down.
_PLACES = np.stack([turn_back(_CELLS[[0, 2, 1]] if place % 2 else _CELLS, KINDS[place]).ravel() for place in range(8)])
_BACK = np.argsort(_PLACES, axis=1)
_SIGNS = np.where(np.arange(_CELLS.size) < _SIDE**2, -1, 1)  # a negative has other grey levels and the same edges


def describe_images(images: np.ndarray) -> np.ndarray:
    """Grey levels by rank, and edges across and down, in 16 x 16 cells of each image without its padding."""
    described = np.empty((len(images), 3, _SIDE, _SIDE), np.float32)
    cell = _FINE // _SIDE

    def pool(fine: np.ndarray) -> np.ndarray:
        return fine.reshape(_SIDE, cell, _SIDE, cell).mean(axis=(1, 3))

    for row in progress(range(len(images)), len(images), "looking how images lie"):
        pixels = images[row]
        small = Image.fromarray(pixels[find_content(pixels)]).resize((_FINE, _FINE), Image.Resampling.BOX)
        levels = np.asarray(small)
        count = np.bincount(levels.ravel(), minlength=256)
        # The middle rank of each level, so that a negative has exactly the opposite ranks.
        ranks = ((np.cumsum(count) - count / 2) / levels.size - 0.5).astype(np.float32)[levels]
        down, across = np.gradient(ranks)
        described[row] = pool(ranks), np.sqrt(pool(across**2)), np.sqrt(pool(down**2))
    described -= described.mean(axis=(2, 3), keepdims=True)
    described /= np.maximum(described.std(axis=(2, 3), keepdims=True), 1e-6) * np.float32(np.sqrt(described[0].size))
    return described.reshape(len(images), -1)


def split_patients(patients: np.ndarray, usable: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Rows to learn from, at most 2,500 of the usable ones, and rows of other patients to judge."""
    generator = np.random.default_rng(0)
    for learned, judged in GroupKFold(FOLDS).split(patients, groups=patients):
        yield np.sort(generator.permutation(learned[usable[learned]])[:_MOST]), judged


def score_versions(
    features: np.ndarray, patients: np.ndarray, sound: np.ndarray, learns: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Scores ``(n, 16)`` of versions, learned or by likeness to the mean image, and the best likeness ``(n,)``."""
    scores, likeness = np.empty((len(features), len(KINDS))), np.empty(len(features))
    for learned, judged in split_patients(patients, sound):
        known = features[learned]
        mean = known.mean(axis=0)
        alike = _score(features[judged], mean / max(np.linalg.norm(mean), 1e-6))
        likeness[judged] = alike.max(axis=1)
        scores[judged] = _score(features[judged], _fit(known)) if learns else alike
    return scores, likeness


def _score(features: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Scores ``(n, 16)`` of all versions: instead of the image, the weights are turned."""
    turned = weights[_BACK]
    return features @ np.concatenate([turned, turned * _SIGNS]).T.astype(np.float32)


def _fit(features: np.ndarray) -> np.ndarray:
    """Weights under which images ``(n, d)`` score higher than their other versions: a penalised conditional logit."""

    def lose(weights: np.ndarray) -> tuple[float, np.ndarray]:
        logs = log_softmax(_score(features, weights).astype(float), axis=1)
        excess = np.exp(logs)
        excess[:, 0] -= 1
        pull = (excess.astype(np.float32).T @ features / len(features)).astype(float)
        slope = sum(
            (positive + negative * _SIGNS)[places]
            for positive, negative, places in zip(pull[:8], pull[8:], _PLACES, strict=True)
        )
        return _PENALTY / 2 * weights @ weights - logs[:, 0].mean(), slope + _PENALTY * weights

    start = np.zeros(features.shape[1])
    return minimize(lose, start, jac=True, method="L-BFGS-B", options={"maxiter": _ITERATIONS}).x


def _part(scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of polarity and rotation, ``(n, 8)``; and of the two mirror images of each ``(n, 8, 2)``."""
    pairs = scores.reshape(-1, 2, 2, 4).swapaxes(2, 3).reshape(-1, 8, 2)
    return np.logaddexp.reduce(pairs, axis=2), pairs


def calibrate_scores(scores: np.ndarray) -> tuple[float, float]:
    """Factors that make probabilities of the two parts of scores ``(n, 16)`` of images of which most are upright."""

    def fit_scale(part: np.ndarray) -> float:
        def lose(logarithm: float) -> float:
            upright = softmax(part * np.exp(logarithm), axis=1)[:, 0]
            return -np.log((1 - _ANYHOW) * upright + _ANYHOW / part.shape[1]).mean()

        return float(np.exp(minimize_scalar(lose, bounds=(-3, 6), method="bounded").x))

    turned, pairs = _part(scores)
    return fit_scale(turned), fit_scale(pairs[:, 0])


def judge_scores(
    scores: np.ndarray, scales: tuple[float, float], sees_mirrors: bool = True
) -> tuple[np.ndarray, np.ndarray]:
    """Of scores ``(n, 16)`` the likeliest place in `KINDS` and its probability, each ``(n,)``."""
    turned, pairs = _part(scores)
    mirrored = _MIRRORED if sees_mirrors else np.finfo(float).tiny
    turned = softmax(scales[0] * turned + np.log([1 - _TURNED] + [_TURNED / 7] * 7), axis=1)
    pairs = softmax(scales[1] * pairs + np.log([1 - mirrored, mirrored]), axis=2)
    both = (turned[..., None] * pairs).reshape(-1, 2, 4, 2).swapaxes(2, 3).reshape(-1, len(KINDS))
    return both.argmax(axis=1), both.max(axis=1)


def turn_scores(scores: np.ndarray, kind: str) -> np.ndarray:
    """The scores ``(n, 16)`` that upright images would have, did they lie as ``kind`` says."""
    place = KINDS.index(kind)
    known = {places.tobytes(): number for number, places in enumerate(_PLACES)}
    plain = np.array([known[places.tobytes()] for places in _BACK[place % 8][_PLACES]])
    return scores[:, np.concatenate([plain, plain + 8] if place < 8 else [plain + 8, plain])]
