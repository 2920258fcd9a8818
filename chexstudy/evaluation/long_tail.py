"""The long tail: what curation keeps by prevalence and by density, and which findings an arm gains on.

A keep rate is the kept share of a group's training images; its enrichment is that rate over the keep rate of all. The
overall rate is set by the method's constants, not found by it, so an enrichment's interval is the keep rate's, divided.
"""

from collections.abc import Collection, Mapping, Sequence

import numpy as np
import pandas as pd
from scipy.stats import norm, rankdata
from sklearn.neighbors import NearestNeighbors

from chexstudy.cohort.table import NO_FINDING, finding_columns, label_matrix
from chexstudy.errors import StudyError
from chexstudy.evaluation.scores import METRICS, TIERS, read_scores, scored_seeds, subtract_scores
from chexstudy.evaluation.statistics import CONFIDENCE, RESAMPLES, bootstrap_patients, interval, known_labels
from chexstudy.runs import Run

# CXR-LT's division: more than 10 % of the images, 1 to 10 %, less than 1 %.
HEAD_ABOVE = 0.10
TAIL_BELOW = 0.01
DENSITY_GROUPS = 10
TREND = "trend"
KEEP_RATE_COLUMNS = (
    "group_by",
    "group",
    "n",
    "patients",
    "kept",
    "keep_rate",
    "ci_low",
    "ci_high",
    "base_share",
    "kept_share",
    "enrichment",
    "enrichment_low",
    "enrichment_high",
)


def measure_prevalence(cohort: pd.DataFrame) -> pd.Series:
    """Share of all images with each finding present; uncertain and unstated labels count as not present.

    Reports seldom state what is absent, so the share among the stated would call rare findings common.
    """
    findings = finding_columns(cohort)
    present = label_matrix(cohort, findings) == 1
    return pd.Series(present.mean(axis=0), index=findings, name="prevalence")


def prevalence_tiers(
    prevalence: pd.Series, head: float | None = HEAD_ABOVE, tail: float | None = TAIL_BELOW
) -> pd.Series:
    """Divide findings into ``head``, ``medium`` and ``tail``; ``No Finding`` is in none of them.

    Args:
        prevalence: share of the training images with each finding, indexed by finding.
        head: findings more common than this are head.
        tail: findings rarer than this are tail. With both None the findings are divided into thirds by rank, for
            cohorts in which fixed thresholds would leave a tier empty.

    Returns:
        The tier of each finding, in the order given.

    Raises:
        StudyError: only one threshold is given, they are out of order, or a prevalence is not a share.
    """
    prevalence = prevalence.drop(NO_FINDING, errors="ignore").astype(float)
    if not prevalence.between(0, 1).all():
        raise StudyError("a prevalence is a share from 0 to 1: divide the number of positives by the number of images.")
    if (head is None) != (tail is None) or (head is not None and not 0 <= tail <= head <= 1):
        raise StudyError(f"tiers need two thresholds with 0 <= tail <= head <= 1, or neither, not {tail} and {head}.")
    if head is None:
        rank = (-prevalence).rank(method="first").to_numpy() - 1
        number = (rank * len(TIERS) // max(1, len(prevalence))).astype(int)
    else:
        number = np.select([prevalence > head, prevalence < tail], [0, 2], default=1)
    return pd.Series([TIERS[one] for one in number], index=prevalence.index, name="tier", dtype=object)


def density(features: np.ndarray, neighbours: int = 10) -> np.ndarray:
    """One over the mean Euclidean distance to the nearest neighbours.

    Args:
        features: ``(images, dim)``.
        neighbours: how many; the image itself is not one of them.

    Returns:
        ``(images,)``, per unit of distance; infinite where that many others lie on the same point.

    Raises:
        StudyError: there are not more images than neighbours, or a feature is not finite.
    """
    features = np.asarray(features, dtype=np.float32)
    if len(features) <= neighbours:
        raise StudyError(f"density needs more than {neighbours} images, not {len(features)}: take fewer neighbours.")
    if not np.isfinite(features).all():
        raise StudyError("the features hold values that are not finite: embed these images again.")
    search = NearestNeighbors(n_neighbors=neighbours, algorithm="brute").fit(features)
    distance, _ = search.kneighbors()
    with np.errstate(divide="ignore"):
        return 1 / distance.astype(float).mean(axis=1)


def keep_rates(
    cohort: pd.DataFrame,
    subset_ids: Collection[str],
    *,
    tiers: Mapping[str, str] | None = None,
    truth: pd.DataFrame | None = None,
    density: np.ndarray | None = None,
) -> pd.DataFrame:
    """Keep rate and enrichment of groups of training images, with 95 % intervals.

    Intervals are Wilson's with an effective n: the number of images divided by the design effect, which is the variance
    of the rate between patients over the binomial one, at least 1. Where all or none are kept that ratio is not
    defined, and n is the number of patients. Unlike a bootstrap they have a width where none of twelve is kept.

    Args:
        cohort: the training rows of a cohort table, all that the curator could choose from.
        subset_ids: the ``image_id`` of those kept.
        tiers: tier of each finding; adds groups of images with at least one finding of the tier.
        truth: the phantom's truth with ``image_id, duplicate_of, mismatched, junk``; adds groups of these.
        density: ``(images,)`` in the order of ``cohort``; adds ten groups of equal size from the sparsest (1) to the
            densest (10).

    Returns:
        One row a group (columns `KEEP_RATE_COLUMNS`); ``group_by`` is ``all``, ``finding``, ``no finding``, ``tier``,
        ``report``, ``truth`` or ``density``. A group without an image keeps its row, with NaN.

    Raises:
        StudyError: the cohort is empty, an id was not in it, or truth or density do not cover it.
    """
    if len(cohort) == 0:
        raise StudyError(
            "there are no training images to compare the subset with: pass the training rows of the cohort."
        )
    kept = cohort.image_id.isin(set(subset_ids)).to_numpy()
    if kept.sum() != len(set(subset_ids)):
        strange = sorted(set(subset_ids) - set(cohort.image_id))
        raise StudyError(
            f"{len(strange)} kept image(s) are not among the training images, such as {strange[0]!r}: "
            "pass the subset of this cohort."
        )
    groups = {("all", "all"): np.ones(len(cohort), dtype=bool)}
    groups |= _label_groups(cohort, tiers)
    groups |= {
        ("report", f"{origin} report"): (cohort.report_origin == origin).to_numpy() for origin in _origins(cohort)
    }
    if truth is not None:
        groups |= _truth_groups(cohort, truth)
    if density is not None:
        groups |= _density_groups(cohort, density)
    patients = pd.factorize(cohort.patient_id)[0]
    overall = kept.mean()
    return pd.DataFrame(
        [(*name, *_keep_rate(members, kept, patients, overall)) for name, members in groups.items()],
        columns=KEEP_RATE_COLUMNS,
    )


def list_keep_rates(rates: pd.DataFrame) -> pd.DataFrame:
    """`keep_rates` as rows of the results table: ``finding`` is the group, ``setting`` what it was grouped by.

    The metrics are ``keep_rate`` and ``enrichment``; ``n`` counts the images of the group, ``positives`` the kept ones.
    """
    tables = []
    for metric, low, high in (("keep_rate", "ci_low", "ci_high"), ("enrichment", "enrichment_low", "enrichment_high")):
        columns = {"group": "finding", "group_by": "setting", metric: "value", low: "ci_low", high: "ci_high"}
        table = rates[[*columns, "n", "kept"]].rename(columns={**columns, "kept": "positives"})
        tables.append(table.assign(metric=metric))
    return pd.concat(tables, ignore_index=True)


def _label_groups(cohort, tiers) -> dict[tuple[str, str], np.ndarray]:
    findings = finding_columns(cohort)
    labels = label_matrix(cohort, findings)
    diseases = [position for position, finding in enumerate(findings) if finding != NO_FINDING]
    groups = {("finding", findings[position]): labels[:, position] == 1 for position in diseases}
    if NO_FINDING in findings:
        normal = labels[:, findings.index(NO_FINDING)] == 1
    else:
        normal = ~np.isin(labels, (1, -1)).any(axis=1) & known_labels(labels).any(axis=1)
    groups["no finding", NO_FINDING] = normal
    if tiers is not None:
        for tier in TIERS:
            members = [position for position in diseases if tiers.get(findings[position]) == tier]
            groups["tier", tier] = (labels[:, members] == 1).any(axis=1)
    return groups


def _origins(cohort) -> list[str]:
    return [origin for origin in ("written", "template", "none") if (cohort.report_origin == origin).any()]


def _truth_groups(cohort, truth) -> dict[tuple[str, str], np.ndarray]:
    truth = truth.set_index("image_id")
    absent = cohort.image_id[~cohort.image_id.isin(truth.index)]
    if len(absent):
        raise StudyError(f"the truth lacks image {absent.iloc[0]!r}: it belongs to another cohort.")
    truth = truth.loc[cohort.image_id]
    flags = {
        "near-duplicate": (truth.duplicate_of.fillna("") != "").to_numpy(),
        "mismatched": truth.mismatched.to_numpy(dtype=bool),
        "junk": truth.junk.to_numpy(dtype=bool),
    }
    flags["sound pair"] = ~np.any(list(flags.values()), axis=0)
    return {("truth", name): members for name, members in flags.items()}


def _density_groups(cohort, density) -> dict[tuple[str, str], np.ndarray]:
    if len(density) != len(cohort) or np.isnan(density).any():
        raise StudyError(f"density holds {len(density)} values for {len(cohort)} images: compute it for these images.")
    group = ((rankdata(density, method="ordinal") - 1) * DENSITY_GROUPS // len(cohort)).astype(int)
    return {("density", str(number + 1)): group == number for number in range(DENSITY_GROUPS)}


def _keep_rate(members, kept, patients, overall) -> tuple:
    n, hits = int(members.sum()), int((members & kept).sum())
    share = n / len(members)
    if n == 0:
        return (0, 0, 0, *[np.nan] * 3, share, 0.0 if kept.any() else np.nan, *[np.nan] * 3)
    own_patients = pd.factorize(patients[members])[0]
    count = own_patients.max() + 1
    rate = hits / n
    if 0 < hits < n and count > 1:
        residual = np.bincount(own_patients, weights=kept[members] - rate)
        between = np.sum(residual**2) / n**2 * count / (count - 1)
        effective = n / max(1.0, between / (rate * (1 - rate) / (n - 1)))
    else:
        effective = count
    low, high = wilson_interval(rate, effective)
    relative = [one / overall if overall > 0 else np.nan for one in (rate, low, high)]
    return (n, count, hits, rate, low, high, share, hits / kept.sum() if kept.any() else np.nan, *relative)


def wilson_interval(rate: float, n: float, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Wilson's score interval of a proportion; ``n`` may be an effective number (Wilson 1927)."""
    z = norm.ppf(0.5 + confidence / 2)
    centre = (rate + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * np.sqrt(rate * (1 - rate) / n + z**2 / (4 * n**2))
    return max(0.0, centre - half), min(1.0, centre + half)


def gain_against_prevalence(
    first: Sequence[np.ndarray],
    second: Sequence[np.ndarray],
    labels: np.ndarray,
    patient_ids: Sequence[str],
    prevalence: pd.Series,
    generator: np.random.Generator,
    *,
    metric: str = "auroc",
    tiers: Mapping[str, str] | None = None,
    resamples: int = RESAMPLES,
) -> pd.DataFrame:
    """What one arm gains over another on each finding, beside how common the finding is in training.

    Args:
        first: scores of the arm, one ``(images, findings)`` array a seed.
        second: scores of the baseline, the same seeds.
        labels: ``(images, findings)``, 1, 0, -1 or NaN.
        patient_ids: ``(images,)``.
        prevalence: share of training images with each finding, in the order of the columns.
        generator: draws patients and seeds.
        metric: ``auroc`` or ``auprc``.
        tiers: tier of each finding.
        resamples: number of resamples.

    Returns:
        One row a finding: ``finding, tier, prevalence, value, ci_low, ci_high, n, positives``, in the order given. A
        last row ``trend`` is the least-squares slope of the gain over log10 prevalence, fitted in every resample: below
        zero, the arm gains most on the rare. Findings that cannot be evaluated have NaN and do not enter the trend.

    Raises:
        StudyError: the metric is unknown, or the arms have different numbers of seeds.
    """
    if metric not in METRICS:
        raise StudyError(f"metric must be one of {', '.join(METRICS)}, not {metric!r}.")
    findings = list(prevalence.index)
    weights = bootstrap_patients(patient_ids, resamples, generator)
    difference = subtract_scores(first, second, labels, weights, generator, {})
    row = METRICS.index(metric)
    value, replicates = difference.value[row], difference.replicates[:, row]
    known = known_labels(np.asarray(labels, dtype=float))
    share = prevalence.to_numpy(dtype=float)
    slope = _slopes(share, value[None])[0]
    slope_low, slope_high = interval(_slopes(share, np.where(np.isnan(value), np.nan, replicates)))
    table = pd.DataFrame(
        {
            "finding": findings,
            "tier": [(tiers or {}).get(finding, "") for finding in findings],
            "prevalence": share,
            "value": value,
            "ci_low": difference.ci_low[row],
            "ci_high": difference.ci_high[row],
            "n": known.sum(axis=0),
            "positives": (known & (np.asarray(labels) == 1)).sum(axis=0),
        }
    )
    used = int(np.sum(~np.isnan(value) & (share > 0)))
    trend = {"finding": TREND, "tier": "", "prevalence": np.nan, "value": slope, "n": used, "positives": -1}
    trend |= {"ci_low": float(slope_low), "ci_high": float(slope_high)}
    return pd.concat([table, pd.DataFrame([trend])], ignore_index=True)


def _slopes(prevalence: np.ndarray, gains: np.ndarray) -> np.ndarray:
    """Slope ``(rows,)`` of each row of ``gains (rows, findings)`` over log10 prevalence; NaN with fewer than three."""
    with np.errstate(divide="ignore"):
        decades = np.log10(prevalence)
    usable = ~np.isnan(gains) & np.isfinite(decades)
    count = usable.sum(axis=1)
    decades = np.where(usable, decades, 0.0)
    gains = np.where(usable, gains, 0.0)
    with np.errstate(divide="ignore", invalid="ignore"):
        centred = np.where(usable, decades - decades.sum(axis=1, keepdims=True) / count[:, None], 0.0)
        slope = (centred * gains).sum(axis=1) / (centred**2).sum(axis=1)
    return np.where(count >= 3, slope, np.nan)


def read_gain_against_prevalence(
    run: Run,
    cohort: pd.DataFrame,
    arm: str,
    baseline: str,
    prevalence: pd.Series,
    generator: np.random.Generator,
    *,
    task: str = "zero_shot",
    data_set: str,
    metric: str = "auroc",
    tiers: Mapping[str, str] | None = None,
    resamples: int = RESAMPLES,
) -> tuple[pd.DataFrame, list[int]]:
    """`gain_against_prevalence` from the scores a study has kept, over all seeds that both arms have.

    Args:
        run: the study.
        cohort: the rows of the data set that was scored.
        arm, baseline: the arms.
        prevalence, generator, metric, tiers, resamples: as in `gain_against_prevalence`.
        task, data_set: which scores.

    Returns:
        The table and the seeds.

    Raises:
        StudyError: the arms share no scored seed, or scores lack an image or a finding.
    """
    findings = list(prevalence.index)
    seeds = scored_seeds(run, [arm, baseline], task=task, data_set=data_set)
    first, second = (
        [
            read_scores(run, cohort.image_id, findings, arm=one, seed=seed, task=task, data_set=data_set)
            for seed in seeds
        ]
        for one in (arm, baseline)
    )
    table = gain_against_prevalence(
        first,
        second,
        label_matrix(cohort, findings),
        cohort.patient_id,
        prevalence,
        generator,
        metric=metric,
        tiers=tiers,
        resamples=resamples,
    )
    return table, seeds
