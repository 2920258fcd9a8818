"""The audit: which groups of pairs a curator keeps less often than all others, and whether that can be chance.

It says what was kept, not why. Groups overlap and go together (portable views with support devices, age with sex and
disease), so one cause may raise several warnings; a warning is a question to look into, not a proof of unfairness. In
a large cohort differences too small to matter are beyond chance as well: read the ratio beside the p value.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.sparse import csr_array

from chexstudy.cohort.groups import NEAR_DUPLICATE, Group, list_groups, mark_near_duplicates
from chexstudy.cohort.table import NO_FINDING, read_cohort
from chexstudy.curation.records.subsets import read_subset
from chexstudy.errors import StudyError
from chexstudy.runs import Run
from chexstudy.statistics.bootstrap import bootstrap_patients, interval
from chexstudy.statistics.multiple_testing import correct_by_holm
from chexstudy.statistics.proportions import wilson_interval

RESAMPLES = 2000
SIGNIFICANCE = 0.05
# What curation is for: fewer normal radiographs and fewer copies. Dropping more of them is reported, but is no warning.
EXPECTED = (("finding", NO_FINDING), ("duplicate", NEAR_DUPLICATE))
# So many permutations for each group compared let the smallest corrected p value fall to half the level asked for.
_PERMUTATIONS_A_GROUP = 40
# Entries of a block of resamples or permutations that are held at once.
_BLOCK = 40_000_000


@dataclass(frozen=True)
class AuditReport:
    """What an audit found."""

    # One row a group; ``interval`` is ``bootstrap`` or ``wilson``, ``others_rate`` the keep
    # rate of all pairs known to be outside the group, ``ratio`` the keep rate over it, ``like_ratio`` the same among
    # pairs alike in No Finding (Mantel and Haenszel 1959; NaN where that cannot be had), ``dropped_more`` whether the
    # corrected p value is below 0.05, ``warning`` the same for groups that curation is not meant to thin.
    table: pd.DataFrame
    left_out: pd.DataFrame  # ``kind``, ``group`` and ``reason`` of the groups that cannot be compared
    pairs: int  # how many pairs there were to choose from
    patients: int  # theirs
    kept: int  # how many pairs were kept
    permutations: int  # how many the p values rest on


def audit_selection(
    cohort: pd.DataFrame,
    kept: np.ndarray,
    generator: np.random.Generator,
    resamples: int = RESAMPLES,
    truth: pd.DataFrame | None = None,
    features: np.ndarray | None = None,
) -> AuditReport:
    """Compare the keep rate of every group with that of all pairs outside it.

    Groups are those of `chexstudy.cohort.groups.list_groups`; ``kept`` is ``(pairs,)`` bool, in the cohort's order.

    **Interval.** Percentile bootstrap over patients, expanded for few of them (`chexstudy.statistics.bootstrap`). It
    has no width where none or all of a group were kept and is not given below five patients; there Wilson's interval
    stands, with the number of patients as n, which is cautious where a patient has several images.

    **Test.** The null hypothesis is that decisions have nothing to do with the group. Whole patients exchange the
    decisions on their images with patients of as many images: within-patient dependence is kept, and the test is exact
    for groups of any size. Patients who alone have their number of images cannot be exchanged, which costs power and
    not validity. p values are one-sided (kept less often than the others) and corrected over all groups by Holm (1979),
    which holds under any dependence between groups and is somewhat too strict where they overlap: the chance of any
    false ``dropped_more`` is at most 5 %. The test is marginal: nothing is adjusted for other groups. ``like_ratio``
    compares normal radiographs with normal ones and all others with others: where it is near 1, the group was kept
    less often because more of it is normal.

    The cohort is the rows that the curator could choose from, or a table with ``image_id`` and some of their columns:
    groups of absent columns are left out, and without ``patient_id`` every image counts as a patient of its own.
    ``resamples`` are those of the bootstrap and the least number of permutations. Near-duplicates are those of the
    phantom's truth, or without it pairs with exactly the same ``features`` ``(pairs, dim)``.
    """
    if len(cohort) == 0 or resamples < 1:
        raise StudyError("an audit needs at least one pair and one resample: check the split and the resamples.")
    if kept.shape != (len(cohort),):
        raise StudyError(f"{kept.size:,} decisions for {len(cohort):,} images: pass one an image, in their order.")
    if kept.dtype != bool:
        raise StudyError(f"decisions must be true or false for each image, not {kept.dtype}.")
    groups = list_groups(cohort, mark_near_duplicates(cohort, truth, features))
    reasons = [_tell_left_out(group) for group in groups]
    compared = [group for group, reason in zip(groups, reasons, strict=True) if not reason]
    # In a table that does not name patients each image stands for one.
    patient = pd.factorize(cohort.patient_id if "patient_id" in cohort else cohort.image_id)[0]
    permutations = max(resamples, _PERMUTATIONS_A_GROUP * len(compared))
    counts = _Counts(compared, len(cohort))
    (rates,), (others,) = counts.rates(kept[np.newaxis].astype(np.float32))
    replicates, other_replicates = _resample_rates(counts, kept, patient, resamples, generator)
    sides = [(group.members, group.known & ~group.members) for group in compared]
    in_group, outside = (
        np.array([[len(np.unique(patient[rows])) for rows in two] for two in sides], int).reshape(-1, 2).T
    )
    low, high = interval(replicates, patients=in_group)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.where(others > 0, rates / others, np.nan)
        ratios = np.where(other_replicates > 0, replicates / other_replicates, np.nan)
    ratio_low, ratio_high = interval(ratios, patients=np.minimum(in_group, outside))
    by_patients = np.isnan(low) | np.isin(rates, (0, 1))
    for place in np.flatnonzero(by_patients):
        low[place], high[place] = wilson_interval(rates[place], in_group[place])
        ratio_low[place] = ratio_high[place] = np.nan
    p_value = _test_by_permutation(counts, kept, patient, permutations, generator)
    p_holm = correct_by_holm(p_value)
    expected = np.array([(group.kind, group.name) in EXPECTED for group in compared], dtype=bool)
    table = pd.DataFrame(
        {
            "kind": [group.kind for group in compared],
            "group": [group.name for group in compared],
            "n": [int(group.members.sum()) for group in compared],
            "patients": in_group,
            "kept": [int((group.members & kept).sum()) for group in compared],
            "keep_rate": rates,
            "ci_low": low,
            "ci_high": high,
            "interval": np.where(by_patients, "wilson", "bootstrap"),
            "others_rate": others,
            "ratio": ratio,
            "ratio_low": ratio_low,
            "ratio_high": ratio_high,
            "like_ratio": _compare_alike(cohort, kept, compared),
            "p_value": p_value,
            "p_holm": p_holm,
            "dropped_more": p_holm < SIGNIFICANCE,
            "expected": expected,
            "warning": (p_holm < SIGNIFICANCE) & ~expected,
        }
    )
    left_out = [(group.kind, group.name, why) for group, why in zip(groups, reasons, strict=True) if why]
    if truth is None and features is None:
        left_out.append(("duplicate", NEAR_DUPLICATE, "not known without a truth or embeddings"))
    left_out = pd.DataFrame(left_out, columns=["kind", "group", "reason"])
    return AuditReport(table, left_out, len(cohort), int(patient.max()) + 1, int(kept.sum()), permutations)


def audit_arm(run: Run, arm: str, seed: int, resamples: int = RESAMPLES) -> AuditReport:
    """Audit what an arm, or a method (`chexstudy.curation.records.subsets`), kept of a study's training pairs.

    The seed is that of the arm and of the resamples.
    """
    cohort = read_cohort(run.require("cohort.parquet"))
    cohort = cohort[cohort.split == "train"].reset_index(drop=True)
    truth = run.read_table("truth.parquet") if run.has("truth.parquet") else None
    kept = cohort.image_id.isin(read_subset(run, arm, seed).kept.index).to_numpy()
    return audit_selection(cohort, kept, np.random.default_rng(seed), resamples, truth)


def _compare_alike(cohort: pd.DataFrame, kept: np.ndarray, groups: list[Group]) -> np.ndarray:
    """Mantel-Haenszel ratio of keep rates over two strata, No Finding and all else, ``(groups,)``."""
    if NO_FINDING not in cohort:
        return np.full(len(groups), np.nan)
    normal = cohort[NO_FINDING].eq(1).fillna(False).to_numpy(dtype=bool)
    ratios = []
    for group in groups:
        inside = outside = 0.0
        for stratum in (normal, ~normal):
            members, others = group.members & stratum, group.known & ~group.members & stratum
            if members.any() and others.any():
                both = members.sum() + others.sum()
                inside += (members & kept).sum() * others.sum() / both
                outside += (others & kept).sum() * members.sum() / both
        ratios.append(inside / outside if outside > 0 else np.nan)
    return np.array(ratios)


def _tell_left_out(group: Group) -> str:
    """Why a group cannot be compared; empty if it can."""
    if not group.members.any():
        return "no pair is known to be in it"
    return "" if (group.known & ~group.members).any() else "every pair of which it is known is in it"


def describe_audit(report: AuditReport) -> str:
    """The audit in words, then as a table; it names groups and never a pair or a patient."""
    table = report.table
    flagged = table[table.dropped_more].sort_values("ratio")
    lines = [
        f"{report.kept:,} of {report.pairs:,} pairs ({report.kept / report.pairs:.1%}) of {report.patients:,} patients "
        "were kept.",
        f"{len(table)} groups were each compared with all pairs outside them; {int(table.warning.sum()) or 'none'} "
        f"raised a warning: kept less often than chance allows (one-sided test by {report.permutations:,} exchanges of "
        f"decisions between patients, Holm's correction for {len(table)} groups, p < {SIGNIFICANCE}).",
    ]
    for begin, rows in (
        ("Warning", flagged[~flagged.expected]),
        ("As curation is meant to", flagged[flagged.expected]),
    ):
        lines += [f"  {begin}, {_compare(row, report)}" for row in rows.itertuples()]
    lines.append(
        "Groups go together, so one cause may raise several warnings; and a group of few patients may be dropped "
        "without one: look at its interval."
    )
    if len(report.left_out):
        named = "; ".join(f"{row.kind} {row.group} ({row.reason})" for row in report.left_out.itertuples())
        lines.append(f"{len(report.left_out)} not compared: {named}.")
    return "\n".join(lines) + ("\n\n" + _tabulate(table) if len(table) else "")


def _compare(row, report: AuditReport) -> str:
    between = f" (95% interval {row.ratio_low:.2f} to {row.ratio_high:.2f})" if row.ratio_low == row.ratio_low else ""
    # The smallest p value that so many permutations can give is a bound and no estimate.
    least = row.p_value <= 1 / (1 + report.permutations)
    alike = ""
    if row.like_ratio == row.like_ratio:
        alike = f"; among pairs alike in {NO_FINDING}, {row.like_ratio:.2f} times"
    return (
        f"{row.kind} {row.group}: {row.keep_rate:.1%} kept against {row.others_rate:.1%} of the others, "
        f"{row.ratio:.2f} times as often{between}, corrected p {'at most ' if least else ''}{row.p_holm:.3f}{alike}."
    )


def _tabulate(table: pd.DataFrame) -> str:
    shown = pd.DataFrame(
        {
            "group": table.kind + " " + table.group,
            "pairs": [f"{n:,}" for n in table.n],
            "patients": [f"{n:,}" for n in table.patients],
            "kept": [f"{rate:.1%}" for rate in table.keep_rate],
            "95% interval": [f"{low:.1%} to {high:.1%}" for low, high in zip(table.ci_low, table.ci_high, strict=True)],
            "others": [f"{rate:.1%}" for rate in table.others_rate],
            "ratio": [f"{ratio:.2f}" for ratio in table.ratio],
            "alike": ["" if np.isnan(ratio) else f"{ratio:.2f}" for ratio in table.like_ratio],
            "p": [f"{p:.3f}" for p in table.p_holm],
            "": np.select([table.warning, table.dropped_more], ["warning", "as meant"], default=""),
        }
    )
    width = max([len("group"), *shown.group.str.len()])
    shown["group"] = shown.group.str.ljust(width)
    return shown.rename(columns={"group": "group".ljust(width)}).to_string(index=False)


def list_audit(report: AuditReport) -> pd.DataFrame:
    """The audit as rows of the results table, task ``audit``; the caller adds arm, seed and data set.

    ``finding`` is the group, ``group`` its kind. The metrics are ``keep_ratio``, with its interval, and
    ``dropped_more_p``, the corrected p value; keep rates themselves are rows of
    `chexstudy.curation.quality.keep_rates`.
    """
    names = {"group": "finding", "kind": "group", "n": "n", "kept": "positives"}
    shared = report.table[[*names]].rename(columns=names).assign(task="audit", exposure="seen")
    ends = {"ratio": "value", "ratio_low": "ci_low", "ratio_high": "ci_high"}
    ratio = shared.join(report.table[[*ends]].rename(columns=ends)).assign(metric="keep_ratio")
    p_value = shared.assign(metric="dropped_more_p", value=report.table.p_holm, ci_low=np.nan, ci_high=np.nan)
    return pd.concat([ratio, p_value], ignore_index=True)


class _Counts:
    """Sums over the members of all groups, and over those outside them, as products of matrices."""

    def __init__(self, groups: list[Group], pairs: int):
        # Few different sets are known: all pairs, those of known age and so on. Each is summed over once.
        known = list({group.known.tobytes(): group.known for group in groups}.values())
        place = {one.tobytes(): number for number, one in enumerate(known)}
        self.of_known = np.array([place[group.known.tobytes()] for group in groups], dtype=int)
        self.groups = len(groups)
        # Sums of whole numbers below 2**24 are exact in float32.
        self.columns = np.array([*(group.members for group in groups), *known], np.float32).reshape(-1, pairs).T

    def _split(self, sums: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        inside = sums[:, : self.groups].astype(float)
        return inside, sums[:, self.groups :].astype(float)[:, self.of_known] - inside

    def rates(self, kept: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Keep rates inside and outside each group ``(decisions, groups)`` of float32 ``(decisions, pairs)``."""
        sizes = self._split(self.columns.sum(axis=0, dtype=float)[np.newaxis])
        hits = self._split(kept @ self.columns)
        return hits[0] / sizes[0], hits[1] / sizes[1]

    def weighted_rates(self, weights: np.ndarray, hits: np.ndarray, sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The same for patients weighted ``(resamples, patients)``, from their sums ``(patients, columns)``."""
        hits, sizes = self._split(weights @ hits), self._split(weights @ sizes)
        with np.errstate(divide="ignore", invalid="ignore"):
            return tuple(np.where(size > 0, hit / size, np.nan) for hit, size in zip(hits, sizes, strict=True))


def _resample_rates(counts, kept, patient, resamples, generator) -> tuple[np.ndarray, np.ndarray]:
    """Keep rates inside and outside each group in each resample of patients, ``(resamples, groups)`` each."""
    number = patient.max() + 1
    by_patient = csr_array((np.ones(len(kept), np.float32), (patient, np.arange(len(kept)))))
    hits, sizes = by_patient @ (counts.columns * kept[:, np.newaxis]), by_patient @ counts.columns
    width = max(1, _BLOCK // number)
    blocks = []
    for start in range(0, resamples, width):
        drawn = bootstrap_patients(np.arange(number), min(width, resamples - start), generator)
        blocks.append(counts.weighted_rates(drawn.astype(np.float32), hits, sizes))
    return tuple(np.concatenate(side) for side in zip(*blocks, strict=True))


def _test_by_permutation(counts, kept, patient, permutations, generator) -> np.ndarray:
    """One-sided p values ``(groups,)``: how often patients who exchange decisions give so low a difference."""
    rows = np.argsort(patient, kind="stable")
    images = np.bincount(patient)
    first = np.concatenate([[0], np.cumsum(images)[:-1]])
    # Rows of the patients with as many images, (patients, images): whole rows are exchanged.
    strata = [rows[first[images == size][:, np.newaxis] + np.arange(size)] for size in np.unique(images[images > 0])]
    (inside,), (outside,) = counts.rates(kept[np.newaxis].astype(np.float32))
    observed = inside - outside
    as_low = np.zeros(counts.groups, dtype=int)
    width = max(1, _BLOCK // len(kept))
    for start in range(0, permutations, width):
        block = np.empty((min(width, permutations - start), len(kept)), dtype=np.float32)
        for stratum in strata:
            order = np.tile(np.arange(len(stratum), dtype=np.int32), (len(block), 1))
            order = generator.permuted(order, axis=1)
            block[:, stratum.ravel()] = kept[stratum][order].reshape(len(block), -1)
        inside, outside = counts.rates(block)
        # Equal differences may come out unequal by rounding.
        as_low += (inside - outside <= observed + 1e-9).sum(axis=0)
    return (1 + as_low) / (1 + permutations)
