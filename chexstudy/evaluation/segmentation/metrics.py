"""How well outlines agree with the truth, image by image and over a data set; a missed structure leaves no mean.

Of two masks A and B, Dice is 2 |A and B| / (|A| + |B|) and IoU |A and B| / |A or B|. A boundary is a mask without what
its erosion by the four neighbours leaves. HD95 is the larger of the two 95th percentiles (linear) of the distances from
one boundary to the other (of the conventions in use that of Reinke et al., Nature Methods 2024); surface Dice the share
of both boundaries within a tolerance of the other: 1 % of the image's diagonal and, where the size of a pixel is known,
``surface_dice_2mm``.

- Nothing there and nothing outlined: left out of means and counted.
- Outlined where nothing is, or missed: Dice, IoU and surface Dice are 0, and HD95 is the image's diagonal.

An image of which it is not known where a structure is enters nothing of that structure.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from scipy.ndimage import binary_erosion
from scipy.spatial import KDTree

from chexstudy.errors import StudyError
from chexstudy.evaluation.scores import MACRO, Measured, append_groups
from chexstudy.statistics.bootstrap import count_patients
from chexstudy.statistics.ranking import weighted_median

FOUND, MISSED, FALSE_POSITIVE, BOTH_EMPTY = "found", "missed", "false_positive", "both_empty"
_PERCENT = 95
_TOLERANCE, _TOLERANCE_MM = 0.01, 2  # share of the diagonal, and millimetres
_OF_CASES, _IN_MM, _PIXELS = (
    ("dice", "iou", "surface_dice", "hd95"),
    ("surface_dice_2mm", "hd95_mm"),
    ("overlap", "area"),
)


# --- one image --------------------------------------------------------------------------------------------------------


def measure_case(prediction: np.ndarray, truth: np.ndarray, spacing: float | None = None) -> dict:
    """Agreement of two boolean masks ``(height, width)`` of one size; ``spacing`` is the side of a pixel in mm.

    Gives ``outcome`` (found, missed, false_positive or both_empty), ``dice``, ``iou``, ``hd95`` (in pixels) and
    ``surface_dice``, NaN where both are empty; with a spacing ``hd95_mm`` and ``surface_dice_2mm``; and for pooling
    ``overlap`` and ``area``, the pixels of both and the sum of those of each.
    """
    if prediction.shape != truth.shape:
        raise StudyError(f"a mask of {prediction.shape} has no place on one of {truth.shape}: bring it to that size.")
    predicted, true, overlap = (int(np.count_nonzero(one)) for one in (prediction, truth, prediction & truth))
    area = predicted + true
    diagonal, away = float(np.hypot(*truth.shape)), ()
    if predicted and true:
        away = _measure_distances(prediction, truth)
        outcome, dice, iou = FOUND, 2 * overlap / area, overlap / (area - overlap)
        hd95 = max(float(np.percentile(one, _PERCENT)) for one in away)
    else:
        outcome = MISSED if true else FALSE_POSITIVE if predicted else BOTH_EMPTY
        dice, iou, hd95 = (0.0, 0.0, diagonal) if area else (np.nan,) * 3

    def share_within(tolerance: float) -> float:
        return float(np.mean(np.concatenate(away) <= tolerance)) if away else dice

    case = {"outcome": outcome, "dice": dice, "iou": iou, "hd95": hd95, "overlap": overlap, "area": area}
    case["surface_dice"] = share_within(_TOLERANCE * diagonal)
    if spacing is not None and np.isfinite(spacing):
        case |= {"hd95_mm": hd95 * spacing, "surface_dice_2mm": share_within(_TOLERANCE_MM / spacing)}
    return case


def measure_image(
    predicted: Mapping[str, np.ndarray], truth: Mapping[str, np.ndarray], spacing: float | None = None
) -> dict:
    """`measure_case` of the structures of which an image's truth is known, as a row of a scores table.

    The columns are called ``left lung: dice``; ``image_id`` is the caller's to add.
    """
    return {
        f"{structure}: {name}": value
        for structure, mask in truth.items()
        for name, value in measure_case(predicted[structure], mask, spacing).items()
    }


def _measure_distances(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """From each boundary pixel to the other's boundary, in pixels; both masks hold something."""
    either = first | second
    lines = [np.flatnonzero(either.any(axis=axis)) for axis in (1, 0)]
    box = tuple(slice(line[0], line[-1] + 1) for line in lines)
    ours, theirs = (np.argwhere(mask & ~binary_erosion(mask)) for mask in (first[box], second[box]))
    return KDTree(theirs).query(ours)[0], KDTree(ours).query(theirs)[0]


# --- a data set -------------------------------------------------------------------------------------------------------


def measure_structures(
    tables: Sequence[pd.DataFrame],
    rows: pd.DataFrame,
    structures: Sequence[str],
    weights: np.ndarray,
) -> Measured:
    """Means over images by structure, and of these over structures, with replicates that draw patients.

    Args:
        tables: one a seed, of `measure_image`.
        rows: cohort rows of the data set.
        structures: those that get columns; n is 0 and values are NaN where none is known.
        weights: ``(resamples, rows)`` of `bootstrap_patients`.

    Beside the measures of `measure_case` there are ``median_hd95``; ``global_dice``, that of the pixels of all images
    together; ``sensitivity`` and ``missed``, which add up to 1, of the images that show a structure; ``specificity`` of
    those that do not; and ``both_empty``, the share of such images. n is how many images it is known of whether and
    where they show the structure, positives how many do.
    """
    seeds = [_read_cases(table, rows, structures) for table in tables]
    names, once = [*seeds[0]][: -len(_PIXELS)], np.ones((1, len(rows)))
    known, shown = (~np.isnan(seeds[0][name]) for name in ("both_empty", "sensitivity"))
    columns = {"finding": [*structures, MACRO], "n": [*known.sum(axis=0), len(rows)]}
    counted = np.stack([~np.isnan(seeds[0][name]) for name in (*names, "hd95", "both_empty")], axis=1)
    counted = np.concatenate([counted, counted.any(axis=2, keepdims=True)], axis=2)
    metrics = (*names, "median_hd95", "global_dice")
    return Measured(
        metrics,
        pd.DataFrame(columns | {"positives": [*shown.sum(axis=0), -1]}),
        np.concatenate([_average_cases(one, once) for one in seeds]),
        np.stack([_average_cases(one, weights) for one in seeds]),
        count_patients(counted.reshape(len(rows), -1), weights).reshape(counted.shape[1:]),
        (0, np.array([[np.inf if "hd95" in metric else 1] for metric in metrics])),
    )


def _read_cases(table: pd.DataFrame, rows: pd.DataFrame, structures: Sequence[str]) -> dict[str, np.ndarray]:
    """By measure ``(rows, structures)``, NaN where it does not count."""
    lacking = int((~rows.image_id.isin(table.image_id)).sum())
    if lacking:
        raise StudyError(f"a table of outlines lacks {lacking:,} of the images: measure them again.")
    table = table.set_index("image_id").loc[rows.image_id]

    def read(name: str) -> np.ndarray:
        return table.reindex(columns=[f"{structure}: {name}" for structure in structures]).to_numpy()

    in_mm = [name for name in _IN_MM if any(column.endswith(f": {name}") for column in table.columns)]
    cases = {name: read(name).astype(float) for name in (*_OF_CASES, *in_mm)}
    outcomes = read("outcome")
    found, missed, false_positive, both_empty = (outcomes == one for one in (FOUND, MISSED, FALSE_POSITIVE, BOTH_EMPTY))
    shown, known = found | missed, found | missed | false_positive | both_empty
    for name, value, counted in (
        ("sensitivity", found, shown),
        ("missed", missed, shown),
        ("specificity", both_empty, known & ~shown),
        ("both_empty", both_empty, known),
    ):
        cases[name] = np.where(counted, value, np.nan)
    return cases | {name: read(name).astype(float) for name in _PIXELS}


def _average_cases(cases: Mapping[str, np.ndarray], weights: np.ndarray) -> np.ndarray:
    """Metrics of each resample ``(resamples, metrics, structures + 1)``; the last column is the mean of the others."""
    values, weights = np.stack(list(cases.values()), axis=1), weights.astype(float)
    totals = np.tensordot(weights, np.nan_to_num(values), 1)
    drawn = np.tensordot(weights, (~np.isnan(values)).astype(float), 1)
    with np.errstate(invalid="ignore"):
        means, pooled = totals / drawn, 2 * totals[:, -2] / totals[:, -1]
    median = np.stack([weighted_median(column, weights) for column in cases["hd95"].T], axis=1)
    metrics = np.concatenate([means[:, : -len(_PIXELS)], median[:, None], pooled[:, None]], axis=1)
    return append_groups(metrics, {MACRO: list(range(values.shape[2]))})
