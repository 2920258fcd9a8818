"""What a curator kept, in numbers: the rare, the redundant, the wrong, and how well the kept cover the rest.

All are properties of a subset, before anything is trained on it. Neighbours are exact
(`chexstudy.vectors.neighbours.nearest_rows`): time grows with the square of the number of pairs, memory linearly.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from chexstudy.cohort.prevalence import TIERS, has_finding_of
from chexstudy.cohort.table import finding_columns, label_matrix
from chexstudy.errors import StudyError
from chexstudy.statistics.bootstrap import LEAST_PATIENTS, RESAMPLES, bootstrap_patients, interval
from chexstudy.statistics.proportions import wilson_interval
from chexstudy.statistics.ranking import macro_mean
from chexstudy.vectors.neighbours import nearest_rows

# k of the coverage, at most one less than there are pairs.
_NEIGHBOURS = 10
ALL = "all"
KEPT_COLUMNS = ("metric", "finding", "value", "ci_low", "ci_high", "n", "positives")
_RARE_TIER = "tail"
# Resampled weights times pairs held as float at once.
_BLOCK = 4_000_000
# A metric, what it is about, and of which pairs ``(pairs,)`` bool which others are counted.
_Share = tuple[str, str, np.ndarray, np.ndarray]


def measure_kept(
    kept: np.ndarray,
    features: np.ndarray,
    labels: pd.DataFrame,
    tiers: Mapping[str, str] | None,
    truth: pd.DataFrame | None,
    patient_ids: Sequence[str],
    generator: np.random.Generator,
    resamples: int = RESAMPLES,
) -> pd.DataFrame:
    """Measure a kept set ``(pairs,)`` bool against all pairs it was chosen from.

    A metric's ``finding`` is a finding, a tier, or ``all``; ``n`` the pairs it is about and ``positives`` those of them
    that count (-1 where nothing is counted):

    - ``keep_ratio``: share of the pairs kept. It was chosen, not estimated, and has no interval.
    - ``recall``: share kept of the pairs with the finding, or with any finding of the tier.
    - ``enrichment``: recall over keep ratio; 1 is chance. Its interval is that of the recall, divided.
    - ``rare_recall`` (tier ``tail``): mean over the findings of the tail of their recall, each counting alike, whereas
      ``recall`` of the tier is ruled by the most common of them. ``n`` and ``positives`` count pairs.
    - ``redundancy``: mean cosine of each kept pair to the kept pair nearest to it. ``n`` counts kept pairs.
    - ``duplicates_removed``: of the near-duplicates (truth's ``duplicate_of``) of which copy or original is kept, the
      share of which only one is: the case stays, its double goes. A random subset with keep ratio p has
      ``(2 - 2p) / (2 - p)``.
    - ``coverage_radius``: the largest Euclidean distance of any pair to the nearest kept one, the objective of k-centre
      (Gonzalez 1985; Sener and Savarese 2018, arXiv 1708.00489, section 4.1).
    - ``knn_coverage``: share of pairs that are kept or have a kept one among their k nearest others. After ``coverage``
      of Naeem et al. (2020, arXiv 2002.09797), with the kept in place of generated samples.
    - ``mismatched_kept``, ``junk_kept``: share kept of the pairs with a wrong report, and without a chest radiograph.

    Intervals of shares are from drawing patients (`chexstudy.statistics.bootstrap`). Where all or none count, no
    resample could differ; the interval is then Wilson's with the number of patients. Distances have none.

    Features ``(pairs, dim)`` are of one encoder for all methods that are compared; labels, of which the finding columns
    are used, and the phantom's truth have one row a pair. Without tiers or truth, what needs them is left out. A
    finding or tier without a pair keeps its row, with NaN. Uncertain and unstated labels count as not present.
    """
    kept = np.asarray(kept)
    features = np.asarray(features, dtype=np.float32)
    _check(kept, features, labels, truth, patient_ids)
    tiers = tiers or {}
    shares = [("recall", name, members, kept) for name, members in _label_groups(labels, tiers).items()]
    shares += _truth_shares(kept, truth) if truth is not None else []
    nearest, _ = nearest_rows(features, features, min(_NEIGHBOURS, len(kept) - 1), without_self=True)
    shares.append(("knn_coverage", ALL, np.ones(len(kept), dtype=bool), kept | kept[nearest].any(axis=1)))
    table, replicates = _measure_shares(shares, bootstrap_patients(patient_ids, resamples, generator), patient_ids)
    ratio = float(kept.mean())
    recall = table[table.metric == "recall"]
    ends = ["value", "ci_low", "ci_high"]
    enrichment = recall.assign(metric="enrichment", **(recall[ends] / ratio))
    whole = [
        ("keep_ratio", ALL, ratio, np.nan, np.nan, len(kept), int(kept.sum())),
        *_measure_distances(kept, features),
    ]
    rare = recall[[tiers.get(name) == _RARE_TIER for name in recall.finding]].index
    if len(rare):
        (tier,) = recall[recall.finding == _RARE_TIER].itertuples()
        whole.append(_mean_recall(table.value[rare], replicates[:, rare], tier))
    return pd.concat([pd.DataFrame(whole, columns=KEPT_COLUMNS), table, enrichment], ignore_index=True)


def _check(kept, features, labels, truth, patient_ids) -> None:
    if kept.ndim != 1 or kept.dtype != bool:
        raise StudyError(f"kept must be one true or false a pair, not {kept.dtype} {kept.shape}.")
    given = {"features": features, "labels": labels, "truth": truth, "patient_ids": patient_ids}
    for name, values in given.items():
        if values is not None and len(values) != len(kept):
            raise StudyError(f"{name} has {len(values)} rows for {len(kept)} pairs: pass one a pair, in their order.")
    if not kept.any():
        raise StudyError("nothing was kept, so there is nothing to measure: choose a larger budget.")
    if len(kept) < 2:
        raise StudyError("coverage needs at least two pairs, not one.")
    if features.ndim != 2 or not np.isfinite(features).all():
        raise StudyError("the features must be (pairs, dim) and finite: embed these pairs again.")
    if truth is not None and "image_id" in labels and list(truth.image_id) != list(labels.image_id):
        raise StudyError("truth and labels list different images, or in another order: bring them into one order.")


def _label_groups(labels: pd.DataFrame, tiers: Mapping[str, str]) -> dict[str, np.ndarray]:
    """The pairs with each finding, and with any finding of each tier."""
    findings = finding_columns(labels)
    if not findings:
        return {}
    groups = dict(zip(findings, (label_matrix(labels, findings) == 1).T, strict=True))
    return groups | {tier: has_finding_of(tier, labels, tiers) for tier in TIERS if tiers}


def _truth_shares(kept: np.ndarray, truth: pd.DataFrame) -> list[_Share]:
    original = pd.Index(truth.image_id).get_indexer(truth.duplicate_of.fillna(""))
    is_copy = original >= 0
    original_kept = np.where(is_copy, kept[original], False)
    return [
        ("duplicates_removed", ALL, is_copy & (kept | original_kept), ~(kept & original_kept)),
        ("mismatched_kept", ALL, truth.mismatched.to_numpy(dtype=bool), kept),
        ("junk_kept", ALL, truth.junk.to_numpy(dtype=bool), kept),
    ]


def _measure_shares(
    shares: list[_Share], weights: np.ndarray, patient_ids: Sequence[str]
) -> tuple[pd.DataFrame, np.ndarray]:
    """A row for each share, and its value in each resample ``(resamples, shares)``."""
    metrics, findings, members, counted = zip(*shares, strict=True)
    members = np.stack(members, axis=1)
    hits = members & np.stack(counted, axis=1)
    replicates = np.empty((len(weights), len(shares)))
    height = max(1, _BLOCK // weights.shape[1])
    with np.errstate(divide="ignore", invalid="ignore"):
        for start in range(0, len(weights), height):
            drawn = weights[start : start + height].astype(np.float64)
            replicates[start : start + height] = (drawn @ hits.astype(float)) / (drawn @ members.astype(float))
        values = hits.sum(axis=0) / members.sum(axis=0)
    patient = np.unique(np.asarray(patient_ids, str), return_inverse=True)[1]
    patients = np.array([len(np.unique(patient[own])) for own in members.T])
    low, high = interval(replicates, patients=patients)
    for place in np.flatnonzero(np.isin(values, (0, 1)) & (patients >= LEAST_PATIENTS)):
        low[place], high[place] = wilson_interval(values[place], patients[place])
    columns = (metrics, findings, values, low, high, members.sum(axis=0), hits.sum(axis=0))
    return pd.DataFrame(dict(zip(KEPT_COLUMNS, columns, strict=True))), replicates


def _mean_recall(values: pd.Series, replicates: np.ndarray, tier) -> tuple:
    """Mean of the recalls of the tier's findings; those without a pair, or not drawn in a resample, do not enter."""
    value, ends = macro_mean(values), (tier.ci_low, tier.ci_high)
    # Where all or none are kept, the tier's own interval is the only one that has a width; and it has one only where
    # its patients are enough.
    if value not in (0, 1) and not np.isnan(tier.ci_low):
        ends = interval(macro_mean(replicates))
    return ("rare_recall", _RARE_TIER, float(value), *map(float, ends), tier.n, tier.positives)


def _measure_distances(kept: np.ndarray, features: np.ndarray) -> list[tuple]:
    chosen = features[kept]
    _, to_kept = nearest_rows(features, chosen, 1)
    # A kept pair is at distance zero from itself; what the search gives for it is rounding.
    radius = np.where(kept, 0.0, to_kept[:, 0].astype(np.float64)).max()
    redundancy = np.nan
    if len(chosen) > 1:
        nearest, _ = nearest_rows(chosen, chosen, 1, without_self=True)
        redundancy = np.einsum("ij,ij->i", chosen, chosen[nearest[:, 0]], dtype=np.float64).mean()
    return [
        ("redundancy", ALL, float(redundancy), np.nan, np.nan, len(chosen), -1),
        ("coverage_radius", ALL, float(radius), np.nan, np.nan, len(kept), -1),
    ]
