"""The long tail: what curation keeps by prevalence and by density.

A keep rate is the kept share of a group's training images; its enrichment is that rate over the keep rate of all. The
overall rate is set by the method's constants, not found by it, so an enrichment's interval is the keep rate's, divided.
"""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from scipy.stats import rankdata

from chexstudy.cohort.prevalence import TIERS, has_finding_of
from chexstudy.cohort.table import NO_FINDING, finding_columns, label_matrix
from chexstudy.errors import StudyError
from chexstudy.results import OVER_SEEDS
from chexstudy.statistics.proportions import clustered_variance, wilson_interval
from chexstudy.statistics.ranking import known_labels

DENSITY_GROUPS = 10
REPORT_GROUPS = {"written": "written report", "template": "template report", "none": "no report"}
TRUTH_GROUPS = ("near-duplicate", "mismatched", "junk", "sound pair")
KEEP_RATE_COLUMNS = (
    *("group_by", "group", "n", "kept", "keep_rate", "ci_low", "ci_high"),
    *("enrichment", "enrichment_low", "enrichment_high"),
)


def measure_keep_rates(
    cohort: pd.DataFrame,
    kept: Mapping[int, np.ndarray],
    *,
    tiers: Mapping[str, str] | None = None,
    truth: pd.DataFrame | None = None,
    density: Mapping[int, np.ndarray] | None = None,
) -> pd.DataFrame:
    """Keep rate and enrichment of groups of training images by each seed, and by all together as seed -1.

    For all together the decisions are stacked, one an image and seed. The 95 % intervals are Wilson's with an effective
    n: the number of decisions divided by the design effect, which is the clustered variance of the rate over the
    binomial one, at least 1. A patient is one cluster with all images and all seeds, so neither a patient's further
    images nor a further seed that decides alike makes an interval narrower; what the seeds differ in beyond that is
    added, as in two-way clustering (Cameron, Gelbach and Miller 2011). Few seeds show that part only roughly. Where all
    or none are kept the design effect is not defined, and n is the number of patients. Unlike a bootstrap these
    intervals have a width where none of twelve is kept.

    The cohort is all that the curator could choose from; what each seed kept and its density are ``(images,)`` in its
    order. Tiers add groups of images with a finding of each; the phantom's truth adds groups of near-duplicates,
    mismatched and junk pairs; density adds ten groups of equal size from the sparsest (1) to the densest (10).

    Gives one row a group and seed (`KEEP_RATE_COLUMNS` and ``seed``); ``group_by`` is ``all``, ``finding``, ``no
    finding``, ``tier``, ``report``, ``truth`` or ``density``; ``n`` and ``kept`` count images, ``kept`` as the mean
    over the seeds. A group without an image keeps its row, with NaN.
    """
    if len(cohort) == 0:
        raise StudyError("there are no training images to compare the kept with: pass the training rows of the cohort.")
    for one in kept.values():
        if one.shape != (len(cohort),):
            raise StudyError(f"{one.size} decisions for {len(cohort)} images: pass one an image, in their order.")
    groups = {("all", "all"): np.ones(len(cohort), dtype=bool), **_label_groups(cohort, tiers)}
    of_origin = {name: (cohort.report_origin == origin).to_numpy() for origin, name in REPORT_GROUPS.items()}
    groups |= {("report", name): members for name, members in of_origin.items() if members.any()}
    if truth is not None:
        groups |= _truth_groups(cohort, truth)
    patients, tables = pd.factorize(cohort.patient_id)[0], []
    for seed, seeds in {OVER_SEEDS: list(kept), **{one: [one] for one in kept}}.items():
        stacked = np.stack([kept[one] for one in seeds])
        if density is not None:
            groups |= _density_groups(np.stack([density[one] for one in seeds]), stacked.shape)
        own = np.broadcast_to(patients, stacked.shape)
        rows = [
            (*name, *_keep_rate(np.broadcast_to(members, stacked.shape), stacked, own))
            for name, members in groups.items()
        ]
        tables.append(pd.DataFrame(rows, columns=KEEP_RATE_COLUMNS).assign(seed=seed))
    return pd.concat(tables, ignore_index=True)


def list_keep_rates(rates: pd.DataFrame) -> pd.DataFrame:
    """`measure_keep_rates` as rows of the results table: ``finding`` is the group, ``group`` what was grouped by.

    The metrics are ``keep_rate`` and ``enrichment``; ``n`` counts the images of the group, ``positives`` the kept ones
    (over several seeds their mean, as a whole number).
    """
    rates = rates.assign(kept=rates.kept.round().astype(int))
    tables = []
    for metric, low, high in (("keep_rate", "ci_low", "ci_high"), ("enrichment", "enrichment_low", "enrichment_high")):
        columns = {"group": "finding", "group_by": "group", metric: "value", low: "ci_low", high: "ci_high"}
        table = rates[[*columns, "n", "kept", "seed"]].rename(columns={**columns, "kept": "positives"})
        tables.append(table.assign(metric=metric))
    return pd.concat(tables, ignore_index=True)


def tabulate_band(rates: pd.DataFrame) -> pd.DataFrame:
    """`measure_keep_rates` of the pairs of a band, over all seeds, most over-represented first, for the eye."""
    names = {"n": "pairs", "kept": "in the band", "enrichment": "over-representation"}
    names |= {"enrichment_low": "95 % from", "enrichment_high": "to"}
    over = rates[rates.seed == OVER_SEEDS].set_index(["group_by", "group"])
    return over[[*names]].rename(columns=names).sort_values("over-representation", ascending=False)


def _label_groups(cohort, tiers) -> dict[tuple[str, str], np.ndarray]:
    findings = finding_columns(cohort)
    if not findings:
        return {}
    labels = label_matrix(cohort, findings)
    groups = {("finding", name): labels[:, place] == 1 for place, name in enumerate(findings)}
    normal = ~np.isin(labels, (1, -1)).any(axis=1) & known_labels(labels).any(axis=1)
    groups["no finding", NO_FINDING] = groups.pop(("finding", NO_FINDING), normal)
    if tiers is not None:
        groups |= {("tier", tier): has_finding_of(tier, cohort, tiers) for tier in TIERS}
    return groups


def _truth_groups(cohort, truth) -> dict[tuple[str, str], np.ndarray]:
    truth = truth.set_index("image_id")
    absent = int((~cohort.image_id.isin(truth.index)).sum())
    if absent:
        raise StudyError(f"the truth lacks {absent:,} of the images: it belongs to another cohort.")
    truth = truth.loc[cohort.image_id]
    flags = [truth.duplicate_of.fillna("") != "", truth.mismatched, truth.junk]
    flags = [flag.to_numpy(dtype=bool) for flag in flags]
    flags.append(~np.any(flags, axis=0))
    return {("truth", name): members for name, members in zip(TRUTH_GROUPS, flags, strict=True)}


def _density_groups(density, shape) -> dict[tuple[str, str], np.ndarray]:
    if density.shape != shape or np.isnan(density).any():
        raise StudyError(f"density is {density.shape} for decisions {shape}: compute it for these images and seeds.")
    rank = rankdata(density, method="ordinal", axis=1) - 1
    group = (rank * DENSITY_GROUPS // shape[1]).astype(int)
    return {("density", str(number + 1)): group == number for number in range(DENSITY_GROUPS)}


def _keep_rate(members, kept, patients) -> tuple:
    seeds, overall = len(kept), kept.mean()
    decisions, hits = int(members.sum()), int((members & kept).sum())
    if decisions == 0:
        return (0, 0.0, *[np.nan] * 6)
    own_patients = pd.factorize(patients[members])[0]
    count = own_patients.max() + 1
    rate = hits / decisions
    if 0 < hits < decisions and count > 1:
        residual = kept[members] - rate
        own_seeds = np.nonzero(members)[0]
        variance = clustered_variance(residual, own_patients)
        if seeds > 1:
            both = clustered_variance(residual, pd.factorize(own_patients * seeds + own_seeds)[0])
            variance += max(0.0, clustered_variance(residual, own_seeds) - both)
        effective = decisions / max(1.0, variance / (rate * (1 - rate) / (decisions - 1)))
    else:
        effective = count
    low, high = wilson_interval(rate, effective)
    relative = [one / overall if overall > 0 else np.nan for one in (rate, low, high)]
    return (round(decisions / seeds), hits / seeds, rate, low, high, *relative)
