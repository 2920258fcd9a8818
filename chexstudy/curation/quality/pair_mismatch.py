"""Image-text mismatch: does a pair lie apart because it is uncommon, or because image and text do not belong together?

A low agreement of image and text alone cannot tell: of a rare disease the encoders know little, so its pairs agree
little as well. Three questions are asked instead, each with the pair's own neighbourhood as the measure:

1. *Does its partner place it as well as others would?* (``mismatch``) An image fits some texts best and all texts by
   some floor; its own text should come near the best. The same is asked of the text, and within each modality: the
   texts of the image's neighbours should say what its text says, the images of the text's neighbours should look like
   its image. What is lost, of what there was to gain, is the regret. A rare pair has little to regret, because nothing
   else fits it either; two ordinary halves that contradict each other lose nearly all.
2. *Does its image lie apart?* (``isolation``) So do images that are no chest radiograph, and rare ones.
3. *Does its text lie apart as well?* With a rare disease it does; beside a hand or a page of noise
   lies an ordinary report. An image is held against its pair only as far as it is more isolated than the text.

A pair is wrong for one reason or the other, so its mismatch score is the larger of the two, not their sum.

Sources: neighbours across modalities for wrong captions, LEMoN (Zhang et al. 2025, ICML, arXiv 2407.18941); agreement
relative to the nearest neighbours', CSLS (Conneau et al. 2018, arXiv 1710.04087). Departures: LEMoN weighs raw
distances by parameters, fitted on labelled errors where there are some; here each distance is placed between a floor
and a ceiling of its own, and nothing is fitted. LEMoN does not ask whether a pair is rare.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from chexstudy.curation.online.decisions import LEDGER_BANDS, MISMATCHED, OUTLIER
from chexstudy.errors import StudyError
from chexstudy.progress import progress
from chexstudy.vectors.neighbours import nearest_rows

NEIGHBOURS = 10
# In robust standard deviations: the customary three for what is unusual, and half of that for what is not.
WRONG_ABOVE, RARE_BELOW = 3.0, 1.5
REVIEW_COLUMNS = ("image_id", "distance", "band", "prototype", "mismatch_score", "mismatch", "isolation", "advice")
_BLOCK_ROWS = 2_048
# What differs by less is rounding of float32.
_SMALLEST_SPREAD = 1e-5


@dataclass(frozen=True)
class MismatchScores:
    """How likely each pair is mismatched, ``(pairs,)`` each; scores are float64, 0 at the median of the pairs.

    ``mismatch`` and ``isolation`` are in robust standard deviations (1.4826 times the median absolute deviation), so
    that a share of wrong pairs does not move the yardstick.
    """

    # the larger of ``mismatch`` and of ``isolation`` less that of the text, where it is positive; high is rather wrong
    score: np.ndarray
    mismatch: np.ndarray  # mean regret of image and text over being paired with each other
    isolation: np.ndarray  # distance of the image to its k-th nearest image
    agreement: np.ndarray  # cosine of image and text, the plain CLIP score (not standardised)


def score_mismatch(features: np.ndarray, neighbours: int = NEIGHBOURS) -> MismatchScores:
    """Score each pair of a set for being wrong rather than rare.

    Let ``v`` be the cosine of one half of a pair to what its partner leads to, ``c`` (ceiling) to what is nearest and
    ``f`` (floor) to all others on average. The regret is ``(c - v) / (c - f)``: 0 if the partner is as good as the
    best, 1 if as good as chance. It is averaged over four such questions, each with the k nearest other pairs:

    ==================  =======================================  ==========================  =====================
    question            ``v``: mean cosine of ...                ``c``: of ...               ``f``: of ...
    ==================  =======================================  ==========================  =====================
    text among texts    text and texts of the image's neighbours  text and its nearest texts  text and all texts
    image among images  image and images of the text's neighbours image and its nearest       image and all images
    image to text       image and its text                       image and its nearest texts  image and all texts
    text to image       text and its image                       text and its nearest images  text and all images
    ==================  =======================================  ==========================  =====================

    ``c - f`` is taken as at least half its median over the pairs, so that a half that nothing is near to cannot turn a
    small loss into a large regret. Of more than k equal texts, which k are the neighbours is arbitrary but fixed. A
    mistake that is made more than k times (``neighbours``) alike is taken for a rare truth.

    The joint features ``(pairs, 2 * dim)`` are of one encoder and best of one state of it: pairs embedded at different
    steps of a training are near each other for that alone. Neighbours are exact
    (`chexstudy.vectors.neighbours.nearest_rows`): time grows with the square of the number of pairs, memory with the
    number.
    """
    image, text = _split_features(np.asarray(features))
    if neighbours < 1 or len(image) < neighbours + 2:
        raise StudyError(
            f"{neighbours} neighbours need at least 1 neighbour and {neighbours + 2} pairs, not {len(image)}: choose "
            "another number of neighbours."
        )
    agreement = np.einsum("ij,ij->i", image, text, dtype=np.float64)
    searches = progress(((image, image), (text, text), (image, text), (text, image)), label="finding neighbours")
    of_image, of_text, image_to_text, text_to_image = (_find_others(*pair, neighbours) for pair in searches)
    regrets = (
        _regret(_mean_cosine(text, of_image[0]), of_text[1].mean(axis=1), _mean_to_others(text, text)),
        _regret(_mean_cosine(image, of_text[0]), of_image[1].mean(axis=1), _mean_to_others(image, image)),
        _regret(agreement, image_to_text[1].mean(axis=1), _mean_to_others(image, text)),
        _regret(agreement, text_to_image[1].mean(axis=1), _mean_to_others(text, image)),
    )
    mismatch = _standardise(np.mean(regrets, axis=0))
    apart = (np.maximum(2 - 2 * one[1][:, -1], 0) for one in (of_image, of_text))
    isolation, text_isolation = (_standardise(np.sqrt(square)) for square in apart)
    score = np.maximum(mismatch, isolation - np.maximum(text_isolation, 0))
    return MismatchScores(score, mismatch, isolation, agreement)


def _split_features(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Image and text embeddings ``(pairs, dim)``, float32 and of unit length, of joint features.

    The inverse of `chexstudy.curation.online.prototypes.join_features`, within the precision the features were kept in.
    """
    if features.ndim != 2 or features.shape[1] % 2:
        raise StudyError(
            f"joint features are {features.shape}, which cannot be halved: pass image and text embeddings side by side."
        )
    halves = np.split(features, 2, axis=1)
    for place, half in enumerate(halves):
        half = np.array(half, dtype=np.float32)
        length = np.linalg.norm(half, axis=1, keepdims=True)
        bad = np.flatnonzero(~(np.isfinite(length) & (length > 0)))
        if len(bad):
            raise StudyError(f"row {bad[0]} of the joint features is zero or not finite: embed these pairs again.")
        halves[place] = half / length
    return tuple(halves)


def review_list(ledger: pd.DataFrame, scores: MismatchScores) -> pd.DataFrame:
    """What a person should look at in a ledger, the highest mismatch scores of its rows first: outliers, and what the
    mismatch filter set aside.

    Of an image considered in several epochs the last row counts. Columns are `REVIEW_COLUMNS`; ``advice`` is ``rather
    wrong`` (score above 3), ``rather rare`` (below 1.5: it lies apart, and nothing speaks against it) or ``unclear``.
    """
    if len(ledger) != len(scores.score):
        raise StudyError(f"{len(scores.score)} mismatch scores for {len(ledger)} rows of the ledger: score these rows.")
    listed = ledger.assign(mismatch_score=scores.score, mismatch=scores.mismatch, isolation=scores.isolation)
    listed = listed.drop_duplicates("image_id", keep="last")
    dubious = listed.band.isin([LEDGER_BANDS[OUTLIER], LEDGER_BANDS[MISMATCHED]])
    listed = listed[dubious].sort_values(["mismatch_score", "image_id"], ascending=[False, True])
    is_wrong, is_rare = listed.mismatch_score > WRONG_ABOVE, listed.mismatch_score < RARE_BELOW
    advice = np.select([is_wrong, is_rare], ["rather wrong", "rather rare"], "unclear")
    return listed.assign(advice=advice.astype(object))[list(REVIEW_COLUMNS)].reset_index(drop=True)


def _find_others(points: np.ndarray, targets: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows of the nearest targets of each point, its own row apart, and cosines to them ``(pairs, count)``."""
    if points is targets:
        rows, distances = nearest_rows(points, targets, count, without_self=True)
        return rows, 1 - distances.astype(np.float64) ** 2 / 2
    rows, distances = nearest_rows(points, targets, count + 1)
    own = rows == np.arange(len(rows))[:, None]
    # Where its own row is not among the nearest, the farthest of them is one too many.
    own[:, -1] |= ~own.any(axis=1)
    return rows[~own].reshape(-1, count), 1 - distances[~own].reshape(-1, count).astype(np.float64) ** 2 / 2


def _mean_cosine(points: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Mean cosine of each point to the points of the given rows ``(pairs, count)``."""
    mean = np.empty(len(points))
    for start in range(0, len(points), _BLOCK_ROWS):
        block = slice(start, start + _BLOCK_ROWS)
        mean[block] = np.einsum("id,id->i", points[block], points[rows[block]].mean(axis=1))
    return mean


def _mean_to_others(points: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Mean cosine of each point to all targets but the one of its own row."""
    to_all = points @ targets.mean(axis=0, dtype=np.float64).astype(np.float32)
    own = np.einsum("ij,ij->i", points, targets, dtype=np.float64)
    return (len(targets) * to_all.astype(np.float64) - own) / (len(targets) - 1)


def _regret(value: np.ndarray, ceiling: np.ndarray, floor: np.ndarray) -> np.ndarray:
    span = ceiling - floor
    return (ceiling - value) / np.maximum(span, max(np.median(span) / 2, _SMALLEST_SPREAD))


def _standardise(values: np.ndarray) -> np.ndarray:
    """Deviation from the median in robust standard deviations; zeros where all values are the same.

    Where more than half of the values are the same the median absolute deviation is zero; the mean absolute deviation,
    times sqrt(pi / 2), takes its place (Iglewicz and Hoaglin 1993, How to Detect and Handle Outliers).
    """
    deviation = values - np.median(values)
    spread = 1.4826 * np.median(np.abs(deviation))
    if spread < _SMALLEST_SPREAD:
        spread = np.sqrt(np.pi / 2) * np.mean(np.abs(deviation))
    return deviation / spread if spread >= _SMALLEST_SPREAD else np.zeros_like(deviation)
