"""What a curator kept, in numbers: the rare, the redundant, the wrong, and how well the kept cover the rest.

All are properties of a subset, before anything is trained on it. Neighbours are exact
(`chexstudy.vectors.neighbours.nearest_rows`): time grows with the square of the number of pairs, memory linearly.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from chexstudy.cohort.prevalence import TIERS
from chexstudy.cohort.table import NO_FINDING, finding_columns, label_matrix
from chexstudy.errors import StudyError
from chexstudy.statistics.bootstrap import LEAST_PATIENTS, RESAMPLES, bootstrap_patients, interval
from chexstudy.statistics.proportions import wilson_interval
from chexstudy.vectors.neighbours import nearest_rows

# k of the coverage, at most one less than there are pairs.
_NEIGHBOURS = 10
ALL = "all"
KEPT_COLUMNS = ("metric", "finding", "value", "ci_low", "ci_high", "n", "positives")
_RARE_TIER = "tail"
_NO_MEANING = -1
# Resampled weights times pairs held as float at once.
_BLOCK = 4_000_000


@dataclass(frozen=True)
class _Share:
    """A share to be measured: of the pairs in ``members``, how many are ``hits``; pairs may weigh differently."""

    metric: str
    finding: str
    members: np.ndarray
    hits: np.ndarray
    weight: np.ndarray | None = None


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
    """Measure a kept set against all pairs it was chosen from.

    A metric's ``finding`` is a finding, a tier, or ``all``; ``n`` the pairs it is about and ``positives`` those of them
    that count (-1 where nothing is counted):

    - ``keep_ratio``: share of the pairs kept. It was chosen, not estimated, and has no interval.
    - ``recall``: share kept of the pairs with the finding, or with any finding of the tier.
    - ``enrichment``: recall over keep ratio; 1 is chance. Its interval is that of the recall, divided.
    - ``rare_recall`` (tier ``tail``): mean over the findings of the tail of their recall, each counting alike, whereas
      ``recall`` of the tier is ruled by the most common of them. ``n`` and ``positives`` count pairs.
    - ``finding_entropy``: Shannon entropy of the shares that the findings (``No Finding`` among them) have of all
      present labels in the kept set, over the logarithm of the number of findings present in the whole set: 1 where all
      are kept equally often, 0 where one alone is. ``n`` counts kept labels.
    - ``redundancy``: mean cosine of each kept pair to the kept pair nearest to it. ``n`` counts kept pairs.
    - ``duplicates_kept_twice``: share of near-duplicates (truth's ``duplicate_of``) kept beside their original.
    - ``duplicates_removed``: of the near-duplicates of which copy or original is kept, the share of which only one is:
      the case stays, its double goes. A random subset with keep ratio p has ``(2 - 2p) / (2 - p)``.
    - ``coverage_radius``: the largest Euclidean distance of any pair to the nearest kept one, the objective of k-centre
      (Gonzalez 1985; Sener and Savarese 2018, arXiv 1708.00489, section 4.1).
    - ``coverage_95``: the 95th percentile of these distances, which a single odd pair does not set.
    - ``knn_coverage``: share of pairs that are kept or have a kept one among their k nearest others. After ``coverage``
      of Naeem et al. (2020, arXiv 2002.09797), with the kept in place of generated samples.
    - ``knn_coverage_weighted``: the same, each pair weighing as the mean distance to its k nearest others, the inverse
      of its density: sparse regions count by the room they take, not by how few they are.
    - ``mismatched_kept``, ``junk_kept``: share kept of the pairs with a wrong report, and without a chest radiograph.

    Intervals of shares are from drawing patients (`chexstudy.statistics.bootstrap`). Where all or none count, no
    resample could differ; the interval is then Wilson's with the number of patients. Distances and entropies have none.

    Args:
        kept: ``(pairs,)``, bool.
        features: unit-norm ``(pairs, dim)``, of one encoder for all methods that are compared.
        labels: one row a pair in the same order; its finding columns are used (a cohort table may be passed).
            Uncertain and unstated labels count as not present.
        tiers: tier of each finding; None leaves out tiers.
        truth: of the phantom, one row a pair in the same order, with ``image_id, duplicate_of, mismatched, junk``; None
            leaves out what needs it.
        patient_ids: ``(pairs,)``.
        generator: draws patients.
        resamples: number of resamples.

    Returns:
        Table with `KEPT_COLUMNS`, in the order above. A finding or tier without a pair keeps its row, with NaN.
    """
    kept = np.asarray(kept)
    features = np.asarray(features, dtype=np.float32)
    _check(kept, features, labels, truth, patient_ids)
    present = _present_labels(labels)
    tiers = {} if tiers is None else dict(tiers)
    everything = np.ones(len(kept), dtype=bool)
    shares = [_Share("recall", group, members, kept) for group, members in _label_groups(present, tiers).items()]
    rare = [name for name in present if tiers.get(name) == _RARE_TIER]
    shares += _truth_shares(kept, truth) if truth is not None else []
    covered, sparsity = _find_covered(kept, features)
    shares.append(_Share("knn_coverage", ALL, everything, covered))
    shares.append(_Share("knn_coverage_weighted", ALL, everything, covered, sparsity))

    weights = bootstrap_patients(patient_ids, resamples, generator)
    rows, replicates = _measure_shares(shares, weights, np.unique(np.asarray(patient_ids, str), return_inverse=True)[1])
    ratio = float(kept.mean())
    rows.append(_row("keep_ratio", ALL, ratio, n=len(kept), positives=int(kept.sum())))
    rows += [_divide(row, ratio) for row in rows if row["metric"] == "recall"]
    if rare:
        recalls = {row["finding"]: at for at, row in enumerate(rows) if row["metric"] == "recall"}
        of_findings = [recalls[name] for name in rare]
        mean = _mean_recall(
            [rows[at]["value"] for at in of_findings], replicates[:, of_findings], rows[recalls[_RARE_TIER]]
        )
        rows.append(mean)
    if present:
        rows.append(_measure_entropy(kept, present))
    rows += _measure_distances(kept, features)
    order = {name: place for place, name in enumerate(_ORDER)}
    rows.sort(key=lambda row: order[row["metric"]])
    return pd.DataFrame(rows, columns=list(KEPT_COLUMNS))


_ORDER = (
    *("keep_ratio", "recall", "enrichment", "rare_recall", "finding_entropy", "redundancy"),
    *("duplicates_kept_twice", "duplicates_removed", "coverage_radius", "coverage_95"),
    *("knn_coverage", "knn_coverage_weighted", "mismatched_kept", "junk_kept"),
)


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


def _present_labels(labels: pd.DataFrame) -> dict[str, np.ndarray]:
    findings = finding_columns(labels)
    return dict(zip(findings, (label_matrix(labels, findings) == 1).T, strict=True)) if findings else {}


def _label_groups(present: dict[str, np.ndarray], tiers: Mapping[str, str]) -> dict[str, np.ndarray]:
    groups = dict(present)
    for tier in TIERS if tiers and present else ():
        of_tier = [has for name, has in present.items() if name != NO_FINDING and tiers.get(name) == tier]
        groups[tier] = np.any(of_tier, axis=0) if of_tier else np.zeros(len(next(iter(present.values()))), dtype=bool)
    return groups


def _truth_shares(kept: np.ndarray, truth: pd.DataFrame) -> list[_Share]:
    original = pd.Index(truth.image_id).get_indexer(truth.duplicate_of.fillna(""))
    is_copy = original >= 0
    original_kept = np.where(is_copy, kept[original], False)
    both, either = kept & original_kept, kept | original_kept
    return [
        _Share("duplicates_kept_twice", ALL, is_copy, both),
        _Share("duplicates_removed", ALL, is_copy & either, ~both),
        _Share("mismatched_kept", ALL, truth.mismatched.to_numpy(dtype=bool), kept),
        _Share("junk_kept", ALL, truth.junk.to_numpy(dtype=bool), kept),
    ]


def _find_covered(kept: np.ndarray, features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Whether each pair is covered, and the mean distance to its nearest others, ``(pairs,)`` each."""
    neighbours = min(_NEIGHBOURS, len(kept) - 1)
    rows, distances = nearest_rows(features, features, neighbours, without_self=True)
    return kept | kept[rows].any(axis=1), distances.mean(axis=1, dtype=np.float64)


def _measure_shares(shares: list[_Share], weights: np.ndarray, patient: np.ndarray) -> tuple[list[dict], np.ndarray]:
    """A row for each share, and its value in each resample ``(resamples, shares)``."""
    base = np.stack([one.members * (1.0 if one.weight is None else one.weight) for one in shares], axis=1)
    hits = base * np.stack([one.hits for one in shares], axis=1)
    replicates = np.empty((len(weights), len(shares)))
    height = max(1, _BLOCK // weights.shape[1])
    with np.errstate(divide="ignore", invalid="ignore"):
        for start in range(0, len(weights), height):
            drawn = weights[start : start + height].astype(np.float64)
            replicates[start : start + height] = (drawn @ hits) / (drawn @ base)
        values = hits.sum(axis=0) / base.sum(axis=0)
    patients = np.array([len(np.unique(patient[one.members])) for one in shares])
    low, high = interval(replicates, patients=patients)
    rows = []
    for place, one in enumerate(shares):
        ends = low[place], high[place]
        if values[place] in (0.0, 1.0) and patients[place] >= LEAST_PATIENTS:
            ends = wilson_interval(values[place], patients[place])
        count = {"n": int(one.members.sum()), "positives": int((one.members & one.hits).sum())}
        rows.append(_row(one.metric, one.finding, values[place], *ends, **count))
    return rows, replicates


def _mean_recall(values: list[float], replicates: np.ndarray, tier: dict) -> dict:
    """Mean of the recalls of the tier's findings; those without a pair, or not drawn in a resample, do not enter."""
    if tier["n"] == 0:
        return _row("rare_recall", _RARE_TIER, np.nan, n=0, positives=0)
    value = float(np.nanmean(values))
    drawn = ~np.isnan(replicates)
    totals = np.where(drawn, replicates, 0).sum(axis=1)
    means = np.divide(totals, drawn.sum(axis=1), out=np.full(len(drawn), np.nan), where=drawn.any(axis=1))
    # Where all or none are kept, the tier's own interval is the only one that has a width.
    ends = (tier["ci_low"], tier["ci_high"]) if value in (0.0, 1.0) else _ends_of(means, tier)
    return _row("rare_recall", _RARE_TIER, value, *ends, n=tier["n"], positives=tier["positives"])


def _ends_of(replicates: np.ndarray, tier: dict) -> tuple[float, float]:
    # The tier has an interval only where its patients are enough for one.
    if np.isnan(tier["ci_low"]):
        return np.nan, np.nan
    low, high = interval(replicates)
    return float(low), float(high)


def _divide(recall: dict, ratio: float) -> dict:
    return recall | {"metric": "enrichment"} | {name: recall[name] / ratio for name in ("value", "ci_low", "ci_high")}


def _measure_entropy(kept: np.ndarray, present: dict[str, np.ndarray]) -> dict:
    counts = np.array([(has & kept).sum() for has in present.values()], dtype=float)
    possible = sum(bool(has.any()) for has in present.values())
    shares = counts[counts > 0] / counts.sum() if counts.any() else counts[:0]
    value = max(0.0, -(shares * np.log(shares)).sum() / np.log(possible)) if possible > 1 and len(shares) else np.nan
    return _row("finding_entropy", ALL, value, n=int(counts.sum()))


def _measure_distances(kept: np.ndarray, features: np.ndarray) -> list[dict]:
    chosen = features[kept]
    _, to_kept = nearest_rows(features, chosen, 1)
    # A kept pair is at distance zero from itself; what the search gives for it is rounding.
    distance = np.where(kept, 0.0, to_kept[:, 0].astype(np.float64))
    redundancy = np.nan
    if len(chosen) > 1:
        nearest, _ = nearest_rows(chosen, chosen, 1, without_self=True)
        redundancy = float(np.einsum("ij,ij->i", chosen, chosen[nearest[:, 0]], dtype=np.float64).mean())
    return [
        _row("redundancy", ALL, redundancy, n=len(chosen)),
        _row("coverage_radius", ALL, float(distance.max()), n=len(kept)),
        _row("coverage_95", ALL, float(np.quantile(distance, 0.95)), n=len(kept)),
    ]


def _row(metric, finding, value, low=np.nan, high=np.nan, *, n, positives=_NO_MEANING) -> dict:
    row = (metric, finding, float(value), float(low), float(high), n, positives)
    return dict(zip(KEPT_COLUMNS, row, strict=True))
