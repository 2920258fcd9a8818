"""What each constant of the curator changes in what it keeps: one constant at a time, all others as published.

There are two kinds of measurement. On *unchanging features*, those of the warm-up that all arms of a seed share, the
curator runs as a stream: every setting of a seed sees the same features in the same order and draws the same chance,
so a difference between two settings is theirs. *Variants* are trained: the curator meets a model that learns from what
it keeps, which is what counts in the end, costs a training each, and is noisier.

What a setting keeps is measured seed by seed (`chexstudy.evaluation.kept`, intervals from drawing patients). Intervals
over seeds are Student's: they hold how far warm-up model, order and chance move a measure on this cohort, seed being
paired with seed in differences, and say nothing of other patients.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd
import torch
from scipy.stats import t as student

from chexstudy.curation.budgeted import BLOCK
from chexstudy.curation.configuration import RULES, SAMPLERS, CuratorConfig
from chexstudy.curation.stability import compare_selections, jaccard
from chexstudy.curation.streaming import Stream, curate_stream
from chexstudy.errors import StudyError
from chexstudy.evaluation.arms import Evaluation, evaluate_arms
from chexstudy.evaluation.kept import ALL, measure_kept
from chexstudy.evaluation.results import OVER_SEEDS
from chexstudy.evaluation.scores import MACRO, METRICS, TIERS
from chexstudy.evaluation.statistics import CONFIDENCE
from chexstudy.pretraining.arms import require_current_arm
from chexstudy.pretraining.configuration import PretrainingConfig
from chexstudy.pretraining.scoring import Scores
from chexstudy.pretraining.streams import stream_generator
from chexstudy.progress import progress
from chexstudy.runs import Run

REFERENCE = "published"
JACCARD = "jaccard"
ZERO_SHOT, ZERO_SHOT_DIFFERENCE = "ablation_zero_shot", "ablation_zero_shot_difference"
# The study's size decides these; everything else about the reference is published.
_SIZES = ("prototypes", "central_cap", "budget")
_PROTOTYPES = (2, 6, 12, 24, 48)
_CAPS = (5, 10, 20)
_BANDS = ((0.75, 0.95), (0.85, 0.95), (0.95, 0.95), (0.85, 0.90), (0.85, 0.99))
_SUPER_BATCHES = (120, 240, 480, 960, 1920)
_WARM_UPS = (200, 800, 3000)
_LOW_EPSILON = 0.05
_LAW_PROTOTYPES, _LAW_SUPER_BATCHES = (2, 6, 24), (120, 480, 1920)
_COMPARED_BATCHES = (128, 480, 2048, 8192)
_ARM = "curated."
# Measures that can exceed one.
_UNBOUNDED = ("enrichment", "coverage_radius", "coverage_95")
_IDENTITY = ["setting", "metric", "finding"]


@dataclass(frozen=True)
class Setting:
    """One value of one constant, with all others as in the reference.

    Attributes:
        name: as in the results table; `REFERENCE` for the reference's own value.
        factor: what is varied, in words.
        value: the value, in words.
        changes: constants of `PretrainingConfig` or `CuratorConfig` that differ from the reference.
    """

    name: str
    factor: str
    value: str
    changes: Mapping[str, object] = field(default_factory=dict)

    @property
    def arm(self) -> str:
        """The arm that is trained under this setting."""
        return name_arm(self.name)

    def apply(self, reference: PretrainingConfig) -> PretrainingConfig:
        """The reference with the changes."""
        return PretrainingConfig.from_dict(reference.to_dict() | dict(self.changes))


def name_arm(setting: str) -> str:
    """The arm that is trained under a setting."""
    return f"{_ARM}{setting}"


def take_reference(config: PretrainingConfig) -> PretrainingConfig:
    """The published curator at the study's sizes: its number of prototypes, cap, super-batch and budget."""
    sizes = {name: getattr(config.curator, name) for name in _SIZES}
    return replace(config, curator=CuratorConfig(**sizes), curation_epochs=1, curation_learning_rate=0.0)


# --- what is varied --------------------------------------------------------------------------------------------------


def list_settings(reference: PretrainingConfig, pairs: int) -> list[Setting]:
    """The settings measured on unchanging features, factor by factor, the reference's own value among each.

    Args:
        reference: of `take_reference`.
        pairs: training pairs; settings that so few cannot have are left out (more prototypes than a super-batch or the
            warm-up holds; super-batches and warm-ups of more pairs than there are).
    """
    curator, batch = reference.curator, reference.super_batch
    sample = min(curator.warm_up_pairs, pairs)
    counts = [one for one in _join(_PROTOTYPES, curator.prototypes) if one <= min(batch, sample)]
    batches = [one for one in _SUPER_BATCHES if curator.prototypes <= one < pairs]
    warm_ups = [one for one in _WARM_UPS if curator.prototypes <= one < pairs]
    own = (curator.support_quantile, curator.outlier_quantile)
    bands = _BANDS if own in _BANDS else (own, *_BANDS)
    factors: dict[str, list[tuple[str, dict]]] = {
        "Prototypes, K": [(str(one), {"prototypes": one}) for one in counts],
        "Bands, support to outlier": [
            (f"{low:.2f} to {high:.2f}", {"support_quantile": low, "outlier_quantile": high}) for low, high in bands
        ],
        "Outliers": [(one, {"outlier_policy": one}) for one in ("drop", "keep")],
        "Central cap": [(str(one), {"central_cap": one}) for one in _join(_CAPS, curator.central_cap)],
        "Sampler": [(one, {"sampler": one}) for one in SAMPLERS],
        "Prototype update": [
            (f"balanced, \N{GREEK SMALL LETTER EPSILON} {curator.sinkhorn_epsilon:g}", {}),
            (f"balanced, \N{GREEK SMALL LETTER EPSILON} {_LOW_EPSILON:g}", {"sinkhorn_epsilon": _LOW_EPSILON}),
            ("nearest", {"assignment": "nearest"}),
            ("from all pairs", {"update_features": "all"}),
            ("none", {"decay": 1.0}),
        ],
        "First prototypes from": [
            *((f"first {one:,}", {"warm_up_pairs": one}) for one in _join(warm_ups, curator.warm_up_pairs)),
            (f"random {sample:,}", {"warm_up_order": "random"}),
            (f"first {sample:,}, unit norm", {"warm_up_features": "normalised"}),
        ],
        "Super-batch, B": [(f"{one:,}", {"super_batch": one}) for one in _join(batches, batch)],
        "Curation epochs": [(str(one), {"curation_epochs": one}) for one in (1, 2, 3)],
        "Rule": [(one, {"rule": one}) for one in RULES],
    }
    return [
        _make_setting(reference, factor, value, changes)
        for factor, options in factors.items()
        for value, changes in options
    ]


def _join(values: Sequence[int], own: int) -> list[int]:
    return sorted({*values, own})


def _make_setting(reference: PretrainingConfig, factor: str, value: str, changes: dict) -> Setting:
    constants = reference.to_dict() | reference.to_dict()["curator"]
    changes = {name: one for name, one in changes.items() if constants[name] != one}
    return Setting(", ".join(f"{name}={one}" for name, one in changes.items()) or REFERENCE, factor, value, changes)


def list_variants(reference: PretrainingConfig) -> list[Setting]:
    """The settings that are trained, the reference first."""
    slow = reference.learning_rate / 10
    variants = [
        Setting(REFERENCE, "Rule", "published"),
        Setting("budgeted", "Rule", "budgeted", {"rule": "budgeted"}),
        Setting(
            "budgeted_outliers_kept",
            "Rule",
            "budgeted, outliers kept",
            {"rule": "budgeted", "outlier_policy": "keep"},
        ),
        Setting("outliers_kept", "Outliers", "keep", {"outlier_policy": "keep"}),
        Setting("two_epochs", "Curation epochs", "2", {"curation_epochs": 2}),
        Setting("three_epochs", "Curation epochs", "3", {"curation_epochs": 3}),
        Setting("after_step", "Prototypes move", "after the step", {"update_timing": "after_step"}),
    ]
    factor = "Learning-rate schedule"
    if reference.schedule == "published":
        # The published schedule has no rate of its own for curating.
        return [*variants, Setting("schedule_held", factor, "held, then cosine", {"schedule": "hold_then_cosine"})]
    low_rate = {"curation_learning_rate": slow}
    return [
        *variants,
        Setting("low_rate", "Learning rate while curating", f"{slow:g}", low_rate),
        Setting("schedule_published", factor, "published", {"schedule": "published"}),
    ]


def choose_variants(names: Sequence[str], reference: PretrainingConfig) -> list[Setting]:
    """The named variants, or all; the reference, with which they are compared, is always among them and first.

    Raises:
        StudyError: a variant is unknown.
    """
    known = {variant.name: variant for variant in list_variants(reference)}
    for name in names:
        if name not in known:
            raise StudyError(f"unknown variant {name!r}; there are {', '.join(known)}.")
    return [known[name] for name in dict.fromkeys([REFERENCE, *(names or known)])]


# --- what is kept ----------------------------------------------------------------------------------------------------


def curate_features(
    features: np.ndarray, config: PretrainingConfig, seed: int, order_seed: int | None = None
) -> Stream:
    """Run the curator over unchanging features, in an order and with chance that depend on the seed alone.

    With several epochs each has an order of its own.

    Args:
        features: unit-norm joint features ``(pairs, dim)``.
        config: curator, super-batch and number of curation epochs.
        seed: of the curator's chance.
        order_seed: of the order; the same seed without it.
    """
    order = None
    if config.curation_epochs == 1:
        generator = stream_generator(seed if order_seed is None else order_seed, "order")
        order = torch.randperm(len(features), generator=generator).numpy()
    return curate_stream(
        features,
        config.curator,
        stream_generator(seed, "selection"),
        config.super_batch,
        order,
        config.curation_epochs,
    )


def _mask(stream: Stream, pairs: int) -> np.ndarray:
    kept = np.zeros(pairs, dtype=bool)
    kept[stream.kept] = True
    return kept


@dataclass(frozen=True)
class KeptMeasure:
    """How kept sets are measured, the same for all.

    Attributes:
        training: training rows of the cohort, in the order of the features.
        tiers: tier of each finding.
        truth: of the phantom, or None.
        resamples: bootstrap resamples of patients.
        seed: of the resampling; the same patients are drawn for every kept set.
    """

    training: pd.DataFrame
    tiers: Mapping[str, str]
    truth: pd.DataFrame | None
    resamples: int
    seed: int = 0

    def measure(self, kept: np.ndarray, features: np.ndarray, reference: np.ndarray) -> pd.DataFrame:
        """`measure_kept` without the single findings, and ``jaccard`` with the reference's kept set.

        Args:
            kept: ``(pairs,)``, bool.
            features: ``(pairs, dim)``.
            reference: kept set of the reference ``(pairs,)``, bool.
        """
        rows = measure_kept(
            kept,
            features,
            self.training,
            self.tiers,
            self.truth,
            self.training.patient_id,
            np.random.default_rng(self.seed),
            self.resamples,
        )
        rows = rows[rows.finding.isin((ALL, *TIERS))]
        alike = {"metric": JACCARD, "finding": ALL, "value": jaccard(kept, reference), "n": len(kept), "positives": -1}
        return pd.concat([rows, pd.DataFrame([alike])], ignore_index=True)


def measure_settings(
    run: Run,
    seed: int,
    settings: Sequence[Setting],
    reference: PretrainingConfig,
    scores: Scores,
    measure: KeptMeasure,
) -> pd.DataFrame:
    """What every setting keeps of a seed's unchanging features; kept in ``ablation/seed<k>/settings.parquet``.

    Args:
        run: the study.
        seed: of the features, the order and the curator's chance.
        settings: of `list_settings`.
        reference: what they change.
        scores: the training pairs under the seed's warm-up.
        measure: how kept sets are measured.

    Returns:
        ``setting, seed, metric, finding, value, ci_low, ci_high, n, positives``, each setting once.
    """
    distinct = {setting.name: setting for setting in settings}
    parameters = {
        "reference": reference.to_dict(),
        "settings": {name: dict(one.changes) for name, one in distinct.items()},
    }

    def compute() -> list[pd.DataFrame]:
        features = scores.features
        baseline = _mask(curate_features(features, reference, seed), len(features))
        tables = []
        for name, setting in progress(distinct.items(), len(distinct), f"seed {seed}, settings"):
            kept = _mask(curate_features(features, setting.apply(reference), seed), len(features))
            tables.append(measure.measure(kept, features, baseline).assign(setting=name))
        return tables

    return _read_or_measure(run, f"ablation/seed{seed}/settings.parquet", seed, parameters, (), measure, compute)


def measure_variants(
    run: Run, seed: int, variants: Sequence[Setting], scores: Scores, measure: KeptMeasure
) -> pd.DataFrame:
    """What every trained variant has kept; kept in ``ablation/seed<k>/variants.parquet``.

    Coverage and redundancy are those under the seed's warm-up, the same model for all variants.

    Args:
        run: the study.
        seed: of the trainings.
        variants: trained ones, the reference first.
        scores: the training pairs under the seed's warm-up.
        measure: how kept sets are measured.

    Raises:
        StudyError: a variant was not trained on the cohort the study has now.
    """
    subsets = {one.name: f"{require_current_arm(run, one.arm, seed)}/subset.parquet" for one in variants}

    def compute() -> list[pd.DataFrame]:
        ids = pd.Index(scores.image_ids)
        kept = {
            name: ids.isin(run.read_table(subset, "07_ablate_curator").image_id) for name, subset in subsets.items()
        }
        baseline = next(iter(kept.values()))
        return [
            measure.measure(own, scores.features, baseline).assign(setting=name)
            for name, own in progress(kept.items(), len(kept), f"seed {seed}, variants")
        ]

    name = f"ablation/seed{seed}/variants.parquet"
    return _read_or_measure(run, name, seed, {"variants": list(subsets)}, tuple(subsets.values()), measure, compute)


def _read_or_measure(
    run: Run,
    name: str,
    seed: int,
    parameters: dict,
    inputs: tuple[str, ...],
    measure: KeptMeasure,
    compute: Callable[[], list[pd.DataFrame]],
) -> pd.DataFrame:
    inputs += tuple(f"curation/scoring/seed{seed}/{side}.npy" for side in ("image", "text"))
    inputs += ("cohort.parquet", *(["truth.parquet"] if measure.truth is not None else []))
    parameters |= {"seed": seed, "resamples": measure.resamples, "resampling_seed": measure.seed}
    if run.is_current(name, run.key(parameters, inputs)):
        return pd.read_parquet(run.path(name))
    table = pd.concat(compute(), ignore_index=True).assign(seed=seed)
    run.write_table(name, table)
    run.record(name, parameters, inputs, seed)
    return table


# --- over seeds ------------------------------------------------------------------------------------------------------


def average_seeds(table: pd.DataFrame, by: Sequence[str], value: str = "value") -> pd.DataFrame:
    """Mean over the rows of each group, one a seed, with Student's 95 % interval; none from a single seed.

    Args:
        table: one row a group and seed.
        by: columns that name a group; groups keep the order in which they come.
        value: the column that is averaged; rows without a value do not enter.

    Returns:
        ``by``, the mean under its own name, ``ci_low``, ``ci_high`` and ``seeds``, how many rows entered; and the means
        of ``n`` and ``positives``, as whole numbers, where the table has them.
    """
    groups = table.groupby(list(by), sort=False, dropna=False)
    means = groups[value].agg(["mean", "std", "count"])
    reach = (
        means["std"] / np.sqrt(means["count"]) * student.ppf(0.5 + CONFIDENCE / 2, (means["count"] - 1).clip(lower=1))
    )
    columns = {value: means["mean"], "ci_low": means["mean"] - reach, "ci_high": means["mean"] + reach}
    columns["seeds"] = means["count"]
    columns |= {name: groups[name].mean().round().astype(int) for name in ("n", "positives") if name in table}
    return pd.DataFrame(columns).reset_index()


def summarise_settings(rows: pd.DataFrame) -> pd.DataFrame:
    """Each measure of each setting over its seeds, under seed -1; intervals end where the measure does.

    Args:
        rows: of `measure_settings` or `measure_variants`, seeds put together.
    """
    table = average_seeds(rows, _IDENTITY).assign(seed=OVER_SEEDS)
    highest = np.where(table.metric.isin(_UNBOUNDED), np.inf, 1.0)
    return table.assign(ci_low=table.ci_low.clip(lower=0.0), ci_high=table.ci_high.clip(upper=highest))


def subtract_reference(rows: pd.DataFrame, reference: str = REFERENCE) -> pd.DataFrame:
    """Each setting minus the reference, seed paired with seed, over the seeds.

    Args:
        rows: of `measure_settings` or `measure_variants`, seeds put together.
        reference: the setting that is subtracted.

    Returns:
        ``setting, metric, finding, value, ci_low, ci_high, seeds, n, positives``.
    """
    keys = ["seed", "metric", "finding"]
    own = rows.loc[rows.setting == reference, [*keys, "value"]]
    paired = rows[rows.setting != reference].merge(own, on=keys, suffixes=("", "_of_reference"))
    return average_seeds(paired.assign(value=paired.value - paired.value_of_reference), _IDENTITY)


def tabulate_settings(
    summary: pd.DataFrame, settings: Sequence[Setting], metrics: Mapping[str, str], pairs: int
) -> pd.DataFrame:
    """The table that `chexstudy.plots.ablation` draws.

    Args:
        summary: rows over seeds with ``setting, metric, finding, value, ci_low, ci_high, seeds``.
        settings: what to show, in this order; those without rows are left out.
        metrics: which measures, and of which finding or tier; those without a value anywhere are left out.
        pairs: what they were chosen from.
    """
    tables = []
    for setting in settings:
        of_setting = summary[summary.setting == setting.name]
        for metric, finding in metrics.items():
            row = of_setting[(of_setting.metric == metric) & (of_setting.finding == finding)]
            place = {"factor": setting.factor, "value": setting.value, "published": setting.name == REFERENCE}
            tables.append(row.rename(columns={"value": "measure"}).assign(**place, n=pairs))
    columns = ["factor", "value", "published", "metric", "measure", "ci_low", "ci_high", "seeds", "n"]
    table = pd.concat(tables, ignore_index=True)[columns]
    return table[table.groupby("metric").measure.transform(lambda values: values.notna().any())].reset_index(drop=True)


def rank_factors(table: pd.DataFrame) -> pd.DataFrame:
    """How far each factor moves each measure: the highest minus the lowest mean among its settings.

    Args:
        table: of `tabulate_settings`.

    Returns:
        One row a factor, one column a measure.
    """
    means = table.groupby(["factor", "metric"], sort=False).measure
    return (means.max() - means.min()).unstack()[list(table.metric.unique())]


# --- the ratio law, and what a kept set depends on -------------------------------------------------------------------


def measure_ratio_law(reference: PretrainingConfig, features: np.ndarray, seed: int) -> pd.DataFrame:
    """The share that the published rule keeps of full super-batches, over prototypes, cap and super-batch.

    The last super-batch of an epoch is left out: it is smaller, and so keeps more.

    Args:
        reference: of `take_reference`.
        features: unit-norm joint features ``(pairs, dim)``.
        seed: of the order and of chance.

    Returns:
        ``prototypes, central_cap, super_batch, measure, n, seed``.
    """
    curator, pairs = reference.curator, len(features)
    batches = [one for one in _LAW_SUPER_BATCHES if one <= pairs] or [min(reference.super_batch, pairs)]
    counts = sorted({*_LAW_PROTOTYPES, curator.prototypes})
    sample = min(curator.warm_up_pairs, pairs)
    grid = [(k, cap, b) for k in counts for cap in _CAPS for b in batches if k <= min(b, sample)]
    rows = []
    for k, cap, batch in progress(grid, label=f"seed {seed}, ratio law"):
        changes = {"prototypes": k, "central_cap": cap, "super_batch": batch}
        decisions = curate_features(features, Setting("", "", "", changes).apply(reference), seed).decisions
        full = decisions[decisions.groupby("step").kept.transform("size") == batch]
        rows.append({**changes, "measure": float(full.kept.mean()), "n": len(full), "seed": seed})
    return pd.DataFrame(rows)


def measure_stability(reference: PretrainingConfig, features: Mapping[int, np.ndarray]) -> pd.DataFrame:
    """How alike the kept sets of each rule are when only what should not matter changes.

    Args:
        reference: of `take_reference`.
        features: unit-norm joint features ``(pairs, dim)`` of each seed's model.

    Returns:
        One row for every two kept sets: ``rule``; ``varied``: ``super-batch`` (same features, same order), ``order``,
        ``chance`` (the sampler's, the order being the same) or ``seed`` (model, order and chance); ``seed`` (-1 where
        two seeds are compared), ``first``, ``second``, ``n`` pairs, ``jaccard`` and ``jaccard_by_chance``, that of two
        random sets of the same sizes.
    """
    rows = []
    pairs = len(next(iter(features.values())))
    batches = _list_batches(pairs)
    for rule in RULES:
        config = Setting("", "", "", {"rule": rule}).apply(reference)
        own = {}
        for seed, seen in progress(features.items(), len(features), f"{rule} rule, stability"):
            own[seed] = _mask(curate_features(seen, config, seed), pairs)
            by_batch = {
                f"{batch:,}": _mask(curate_features(seen, replace(config, super_batch=batch), seed), pairs)
                for batch in batches
            }
            # Seeds far from those of the study, so that none of its orders is met again.
            reordered = _mask(curate_features(seen, config, seed, order_seed=seed + 1_000_000), pairs)
            redrawn = _mask(curate_features(seen, config, seed + 1_000_000, order_seed=seed), pairs)
            for varied, selections in (
                ("super-batch", by_batch),
                ("order", {"one order": own[seed], "another": reordered}),
                ("chance", {"one draw": own[seed], "another": redrawn}),
            ):
                rows.append(_compare(selections).assign(rule=rule, varied=varied, seed=seed))
        if len(own) > 1:
            named = {f"seed {seed}": kept for seed, kept in own.items()}
            rows.append(_compare(named).assign(rule=rule, varied="seed", seed=OVER_SEEDS))
    return pd.concat(rows, ignore_index=True).assign(n=pairs)


def _list_batches(pairs: int) -> list[int]:
    """Super-batches to compare: the fixed ones, of those at least as large as the cohort the cohort itself."""
    batches = sorted({min(one, pairs) for one in _COMPARED_BATCHES})
    return batches if len(batches) > 1 else sorted({max(BLOCK, pairs // 2 // BLOCK * BLOCK), pairs})


def _compare(selections: Mapping[str, np.ndarray]) -> pd.DataFrame:
    return compare_selections(selections)[["first", "second", "jaccard", "jaccard_by_chance"]]


# --- zero-shot of the trained variants -------------------------------------------------------------------------------


def evaluate_variants(
    evaluation: Evaluation, variants: Sequence[Setting], seeds: Sequence[int], workers: int = 1
) -> pd.DataFrame:
    """Zero-shot classification of trained variants, and of each minus the reference.

    Args:
        evaluation: what to measure with.
        variants: trained ones, the reference first.
        seeds: of the trainings.
        workers: processes; use 1 on a GPU.

    Returns:
        Rows of the results table for means over findings (all, and by tier), under tasks of their own. None where the
        cohort has no labels.
    """
    arms = [variant.arm for variant in variants]
    rows = evaluate_arms(evaluation, arms, seeds, reference=arms[0], workers=workers)
    rows = rows[rows.finding.isin((MACRO, *TIERS))]
    scored = rows[(rows.task == "zero_shot") & rows.metric.isin(METRICS)]
    differences = rows[rows.task == "zero_shot_difference"]
    # There the reference comes first; here it is what the variant is compared with.
    differences = differences.assign(
        arm=differences.arm.str.replace(r"^(.+) - (.+)$", r"\2 - \1", regex=True),
        value=-differences.value,
        ci_low=-differences.ci_high,
        ci_high=-differences.ci_low,
    )
    tasks = [scored.assign(task=ZERO_SHOT), differences.assign(task=ZERO_SHOT_DIFFERENCE)]
    return pd.concat(tasks, ignore_index=True)
