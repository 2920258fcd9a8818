"""Where a head looks, and whether it looks at the finding.

A head's attention for a finding is brought to the pixel grid and held against the region where the finding is: the
phantom's true masks, the boxes of NIH's radiologists, or, where findings have no outlines, the lungs.

- pointing game (Zhang et al., "Top-down neural attention by excitation backprop", IJCV 2018): is the maximum of the map
  inside the region? The tolerant game asks for a distance of at most one patch, under which attention cannot aim; the
  original has 15 pixels. Where several pixels share the maximum, the share of them that is inside counts, so a map
  without a maximum scores what chance does.
- mass inside: the share of the map's sum that is inside the region.

Chance for both is the region's share of the image. Two maps that know nothing of the image are measured beside it: a
Gaussian about the centre, and the head's own mean map of the finding over all images of the data set. A head that
beats the second looks at what this image shows, not only at where the finding usually is.
"""

from collections.abc import Mapping, Sequence
from functools import cache

import numpy as np
import pandas as pd
import torch
from scipy.ndimage import distance_transform_edt
from torch import Tensor, nn
from torch.nn import functional as F

from chexstudy.cohort.annotations import FINDING, Regions, read_regions
from chexstudy.cohort.table import NO_FINDING
from chexstudy.encoders.frozen_features import FrozenFeatures
from chexstudy.errors import StudyError
from chexstudy.evaluation.adaptation.glori import square_side
from chexstudy.evaluation.adaptation.recipes import GloriConstants, find_glori
from chexstudy.evaluation.adaptation.run import adapt_arm, load_head
from chexstudy.evaluation.adaptation.training import FittedHead
from chexstudy.evaluation.context import EvaluatedModel, Evaluation, add_exposure
from chexstudy.evaluation.scores import MACRO, Measured
from chexstudy.progress import progress
from chexstudy.results import COLUMNS
from chexstudy.statistics.bootstrap import count_patients
from chexstudy.statistics.ranking import macro_mean

TASK = "attention"
_BATCH = 64
# Standard deviation of the centre map, as a share of the image's side.
_CENTRE_SPREAD = 0.25
_MEASURES = (
    "pointing_game",
    "pointing_game_tolerant",
    "mass_inside",
    "area_inside",
    "area_inside_tolerant",
    "pointing_game_centre",
    "mass_inside_centre",
    "pointing_game_mean_map",
    "mass_inside_mean_map",
)
# Differences are of the same images: their intervals are paired.
_DIFFERENCES = {
    "pointing_game_over_mean_map": ("pointing_game", "pointing_game_mean_map"),
    "mass_inside_over_area": ("mass_inside", "area_inside"),
    "mass_inside_over_mean_map": ("mass_inside", "mass_inside_mean_map"),
}
METRICS = (*_MEASURES, *_DIFFERENCES)


@torch.no_grad()
def read_attention(
    head: nn.Module, features: FrozenFeatures, image_ids: Sequence[str], images: np.ndarray, findings: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The attention of chosen findings on chosen images, averaged over the head's heads.

    The head has ``attention(batch) -> (batch, heads, findings, tokens)``. Of each case, ``images (cases,)`` is the
    position of its image among ``image_ids``, each once, ``findings (cases,)`` that of its finding among the head's.

    Gives weights ``(cases, tokens)`` float32, and the mean map of every finding over all images ``(findings, tokens)``.
    """
    if not hasattr(head, "attention"):
        raise StudyError(f"a {type(head).__name__} looks at no places: show the attention of a GLoRI head.")
    device = next(head.parameters()).device
    rows = features.rows(image_ids)
    maps, order, total = [], [], 0.0
    starts = range(0, len(rows), _BATCH)
    for start in progress(starts, len(starts), "looking at images"):
        batch = features.read_batch(rows[start : start + _BATCH], device=device)
        weights = head.attention(batch).mean(dim=1).float().cpu().numpy()
        here = np.flatnonzero((images >= start) & (images < start + _BATCH))
        maps.append(weights[images[here] - start, findings[here]])
        order.append(here)
        total = total + weights.sum(axis=0, dtype=float)
    return np.concatenate(maps)[np.argsort(np.concatenate(order))], (total / len(rows)).astype(np.float32)


def spread_map(weights: np.ndarray | Tensor, size: int) -> np.ndarray:
    """Attention over a square grid of patches ``(..., tokens)`` as maps over pixels, float32 ``(..., size, size)``.

    Bilinear between the centres of the patches.
    """
    weights = torch.as_tensor(weights, dtype=torch.float32)
    grid = square_side(weights.shape[-1])
    flat = weights.reshape(-1, 1, grid, grid)
    spread = F.interpolate(flat, (size, size), mode="bilinear", align_corners=False)
    return spread.reshape(*weights.shape[:-1], size, size).numpy()


def centre_map(size: int) -> np.ndarray:
    """A Gaussian about the centre of the image, its standard deviation a quarter of the side: ``(size, size)``."""
    away = (np.arange(size) + 0.5) / size - 0.5
    along = np.exp(-0.5 * (away / _CENTRE_SPREAD) ** 2)
    return np.outer(along, along).astype(np.float32)


def point(values: np.ndarray, mask: np.ndarray) -> float:
    """The share of the map's maxima that are inside the mask: 0 or 1 where the maximum is one pixel."""
    return float(mask[values == values.max()].mean())


def mass_inside(values: np.ndarray, mask: np.ndarray) -> float:
    """The share of a map's sum that is inside a mask."""
    values = np.asarray(values, dtype=float)
    return float(values[mask].sum() / values.sum())


def widen_mask(mask: np.ndarray, distance: float) -> np.ndarray:
    """The mask and all pixels at most so many pixels away from it."""
    return distance_transform_edt(~mask) <= distance


def measure_cases(
    head: nn.Module, features: FrozenFeatures, regions: Regions, rows: pd.DataFrame, findings: Sequence[str]
) -> pd.DataFrame:
    """Every measure of every case, an image and a finding of the head with a region there: ``image_id, finding`` first.

    The mean map is over all ``rows``, those of the cohort in the data set.
    """
    cases = regions.table.reset_index(drop=True)
    images = pd.Index(rows.image_id).get_indexer(cases.image_id)
    numbers = pd.Index(findings).get_indexer(cases.finding)
    maps, mean = read_attention(head, features, rows.image_id, images, numbers)
    usual = cache(lambda number, size: spread_map(mean[number], size))
    measured = []
    for mask, weights, number in zip(cases["mask"], maps, numbers, strict=True):
        size = len(mask)
        near = widen_mask(mask, size / square_side(len(weights)))
        seen, *blind = spread_map(weights, size), centre_map(size), usual(number, size)
        row = [point(seen, mask), point(seen, near), mass_inside(seen, mask), mask.mean(), near.mean()]
        for values in blind:
            row += [point(values, mask), mass_inside(values, mask)]
        measured.append(row)
    table = pd.DataFrame(measured, columns=list(_MEASURES), dtype=float)
    return pd.concat([cases[["image_id", "finding"]], table], axis=1)


def summarise_cases(
    cases: pd.DataFrame, rows: pd.DataFrame, findings: Sequence[str], weights: np.ndarray, kind: str = FINDING
) -> pd.DataFrame:
    """Means of the measures of `measure_cases` by finding and over findings, with intervals that draw patients.

    Gives rows of the results table with ``task, finding, metric, group, value, ci_low, ci_high, n, positives``, the
    group of measures against lungs being ``lungs``. A finding without a case keeps its rows, with value NaN and n 0; in
    those of the macro mean, which is over the findings that have cases, n is the number of cases.
    """
    values = cases[list(_MEASURES)].to_numpy(dtype=float)
    values = np.column_stack([values, *(cases[one] - cases[other] for one, other in _DIFFERENCES.values())]).astype(
        float
    )
    images = pd.Index(rows.image_id).get_indexer(cases.image_id)
    having = np.stack([np.ones(len(cases), dtype=bool), *((cases.finding == name).to_numpy() for name in findings)])
    points, replicates = np.full((len(METRICS), len(findings)), np.nan), []
    for place, own in enumerate(having[1:]):
        if own.any():
            points[:, place] = values[own].mean(axis=0)
        drawn = weights[:, images[own]].astype(float)
        with np.errstate(invalid="ignore"):
            replicates.append(drawn @ values[own] / drawn.sum(axis=1, keepdims=True))
    # A resample without a case of a finding averages the others.
    with_mean = [np.insert(one, 0, macro_mean(one), axis=-1)[None] for one in (points, np.stack(replicates, axis=-1))]
    members = np.zeros((len(rows), len(having)), dtype=bool)
    for place, own in enumerate(having):
        members[images[own], place] = True
    counts = {"n": having.sum(axis=1), "positives": having.sum(axis=1)}
    columns = pd.DataFrame({"finding": [MACRO, *findings], **counts})
    table = Measured(METRICS, columns, *with_mean, count_patients(members, weights)).of_seed(0)
    return table.assign(task=TASK, group="" if kind == FINDING else kind)


def fit_glori(
    evaluation: Evaluation, arm: str, seed: int, names: Sequence[str], glori: GloriConstants
) -> tuple[dict[tuple[str, str], FittedHead], FrozenFeatures | None]:
    """Heads by head and variant, fitted where they are not current, and the features they look at.

    None without labels. A name is that of a plan, such as ``glori_v1.local``.
    """
    if not evaluation.findings:
        return {}, None
    plans = [find_glori(name, glori) for name in names]
    adapt_arm(evaluation, arm, seed, plans)
    heads = {(plan.kind, plan.variant): load_head(evaluation.run, arm, seed, plan.name) for plan in plans}
    return heads, EvaluatedModel(evaluation, arm, seed).freeze(patches=True)


def list_places(evaluation: Evaluation) -> list[str]:
    """The findings that can be somewhere."""
    return [finding for finding in evaluation.findings if finding != NO_FINDING]


def read_study_regions(evaluation: Evaluation) -> dict[str, Regions]:
    """Where findings are, by test set, and in a line each of how many cases that is known; none without labels."""
    regions = {}
    for name, rows in evaluation.test_sets().items() if evaluation.findings else ():
        regions[name] = read_regions(
            evaluation.run, rows, list_places(evaluation), evaluation.store.size, evaluation.store.fit
        )
        print(f"{name}: {regions[name].missing or f'{len(regions[name].table)} cases'}")
    return regions


def measure_attention(
    evaluation: Evaluation,
    heads: Mapping[tuple[str, str], FittedHead],
    features: FrozenFeatures | None,
    regions: Mapping[str, Regions],
    arm: str,
    seed: int,
    findings: Sequence[str] = (),
) -> pd.DataFrame:
    """`summarise_cases` of every head on every test set, as rows of the results table; no head gives no rows.

    Of some ``findings``, or of all that can be somewhere.
    """
    tables, places = [], list(findings) or list_places(evaluation)
    for (head, variant), fitted in heads.items():
        for name, rows in evaluation.test_sets().items():
            cases = measure_cases(fitted.head, features, regions[name], rows, evaluation.findings)
            if findings:
                cases = cases[cases.finding.isin(places)]
            table = summarise_cases(cases, rows, places, evaluation.draw_patients(rows)[0], regions[name].kind)
            tables.append(table.assign(data_set=name, head=head, variant=variant))
    if not tables:
        return pd.DataFrame(columns=COLUMNS)
    return add_exposure(evaluation, pd.concat(tables, ignore_index=True).assign(arm=arm, seed=seed), seed)


def absent_thresholds(scores: np.ndarray, labels: np.ndarray, specificity: float = 0.9) -> np.ndarray:
    """The score that so large a share of the images without a finding stays under: ``(findings,)``, NaN without such.

    Of scores and labels ``(images, findings)`` of the validation split.
    """
    columns = [column[known == 0] for column, known in zip(scores.T, np.asarray(labels).T, strict=True)]
    return np.array([np.quantile(column, specificity) if len(column) else np.nan for column in columns])


def choose_examples(
    rows: pd.DataFrame,
    scores: np.ndarray,
    thresholds: np.ndarray,
    findings: Sequence[str],
    order: Sequence[str],
    count: int,
    among: set[str] | None = None,
) -> pd.DataFrame:
    """Examples by a rule: for one finding after the other, the first image that has it and on which it is detected.

    A finding is detected where its score, of ``(rows, findings)``, is at or above its threshold ``(findings,)``; where
    that is NaN, never. There are at most ``count``, from all images or those ``among`` which to choose.

    Gives ``image_id`` and ``finding``; no image is there twice.
    """
    chosen: list[tuple[str, str]] = []
    for finding in order:
        if len(chosen) == count:
            break
        number = list(findings).index(finding)
        detected = rows[finding].eq(1).fillna(False).to_numpy(dtype=bool) & (scores[:, number] >= thresholds[number])
        taken = {image_id for image_id, _ in chosen}
        for image_id in rows.image_id[detected]:
            if image_id not in taken and (among is None or image_id in among):
                chosen.append((image_id, finding))
                break
    return pd.DataFrame(chosen, columns=["image_id", "finding"])
