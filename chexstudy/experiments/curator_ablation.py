"""What each constant of the curator changes in what it keeps: one constant at a time, all others as published.

There are two kinds of measurement. On *unchanging features*, those of the warm-up that all arms of a seed share, the
curator runs as a stream: every setting of a seed sees the same features in the same order and draws the same chance,
so a difference between two settings is theirs. *Variants* are trained: the curator meets a model that learns from what
it keeps, which is what counts in the end, costs a training each, and is noisier.

What a setting keeps is measured seed by seed (`chexstudy.curation.quality.subset_metrics`, intervals from drawing
patients). Intervals over seeds are Student's: they hold how far warm-up model, order and chance move a measure on this
cohort, seed being paired with seed in differences, and say nothing of other patients.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd
import torch
from scipy.stats import t as student

from chexstudy.cohort.prevalence import TIERS
from chexstudy.curation.online.configuration import RULES, SAMPLERS, CuratorConfig
from chexstudy.curation.online.streaming import curate_stream
from chexstudy.curation.quality.overlap import jaccard
from chexstudy.curation.quality.subset_metrics import ALL, measure_kept
from chexstudy.pretraining.arms.definitions import name_variant
from chexstudy.pretraining.configuration import PretrainingConfig
from chexstudy.pretraining.engine.random_streams import RandomStreams
from chexstudy.pretraining.training.scoring import Scores
from chexstudy.progress import progress
from chexstudy.results import OVER_SEEDS
from chexstudy.runs import Run
from chexstudy.statistics.bootstrap import CONFIDENCE

REFERENCE = "published"
CURATED = "curated"
JACCARD = "jaccard"
RARE_TIER = "tail"
TASK = "ablation_curation"
CAPS = (5, 10, 20)
# The study's size decides these; everything else about the reference is published.
_SIZES = ("prototypes", "central_cap", "budget")
_PROTOTYPES = (2, 6, 12, 24, 48)
_BANDS = ((0.75, 0.95), (0.85, 0.95), (0.95, 0.95), (0.85, 0.90), (0.85, 0.99))
_SUPER_BATCHES = (120, 240, 480, 960, 1920)
_WARM_UPS = (200, 800, 3000)
_LOW_EPSILON = 0.05
# Measures that can exceed one.
_UNBOUNDED = ("enrichment", "coverage_radius")
_IDENTITY = ["setting", "metric", "finding"]


@dataclass(frozen=True)
class Setting:
    """One value of one constant, with all others as in the reference."""

    name: str  # as in the results table; `REFERENCE` for the reference's own value
    factor: str  # what is varied, in words
    value: str  # the value, in words
    # constants of `PretrainingConfig` or `CuratorConfig` that differ from the reference
    changes: Mapping[str, object] = field(default_factory=dict)

    @property
    def arm(self) -> str:
        """The arm that is trained under this setting."""
        return name_variant(CURATED, self.name)

    def apply(self, reference: PretrainingConfig) -> PretrainingConfig:
        """The reference with the changes."""
        return change_constants(reference, self.changes)


def change_constants(config: PretrainingConfig, changes: Mapping[str, object]) -> PretrainingConfig:
    """The configuration with some constants of its own or of its curator changed."""
    return PretrainingConfig.from_dict(config.to_dict() | dict(changes))


def take_reference(config: PretrainingConfig) -> PretrainingConfig:
    """The published curator at the study's sizes: its number of prototypes, cap, super-batch and budget."""
    sizes = {name: getattr(config.curator, name) for name in _SIZES}
    return replace(config, curator=CuratorConfig(**sizes), curation_epochs=1, curation_learning_rate=0.0)


def describe_reference(reference: PretrainingConfig) -> str:
    """The reference in words, for captions."""
    curator = reference.curator
    return (
        f"the published curator with K = {curator.prototypes}, a cap of {curator.central_cap} and super-batches of "
        f"{reference.super_batch:,} pairs"
    )


def list_settings(reference: PretrainingConfig, pairs: int) -> list[Setting]:
    """The settings measured on unchanging features, factor by factor, the reference's own value among each.

    Settings that so few training pairs cannot have are left out (more prototypes than a super-batch or the warm-up
    holds; super-batches and warm-ups of more pairs than there are), and with them factors of which the reference's own
    value alone remains.
    """
    curator, batch = reference.curator, reference.super_batch
    sample = min(curator.warm_up_pairs, pairs)
    counts = [one for one in _join(_PROTOTYPES, curator.prototypes) if one <= min(batch, sample)]
    batches = [one for one in _SUPER_BATCHES if curator.prototypes <= one < pairs]
    warm_ups = [one for one in _WARM_UPS if curator.prototypes <= one < pairs]
    factors: dict[str, list[tuple[str, dict]]] = {
        "Prototypes, K": [(str(one), {"prototypes": one}) for one in counts],
        "Bands, support to outlier": [
            (f"{low:.2f} to {high:.2f}", {"support_quantile": low, "outlier_quantile": high}) for low, high in _BANDS
        ],
        "Outliers": [(one, {"outlier_policy": one}) for one in ("drop", "keep")],
        "Central cap": [(str(one), {"central_cap": one}) for one in _join(CAPS, curator.central_cap)],
        "Sampler": [(one, {"sampler": one}) for one in SAMPLERS],
        "Prototype update": [
            (f"balanced, \N{GREEK SMALL LETTER EPSILON} {curator.sinkhorn_epsilon:g}", {}),
            (f"balanced, \N{GREEK SMALL LETTER EPSILON} {_LOW_EPSILON:g}", {"sinkhorn_epsilon": _LOW_EPSILON}),
            ("nearest", {"assignment": "nearest"}),
            ("from all pairs", {"update_features": "all"}),
            ("none", {"decay": 1.0}),
        ],
        "First prototypes from": [
            *((f"first {min(one, pairs):,}", {"warm_up_pairs": one}) for one in _join(warm_ups, curator.warm_up_pairs)),
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
        if len(options) > 1
    ]


def _join(values: Sequence[int], own: int) -> list[int]:
    return sorted({*values, own})


def _make_setting(reference: PretrainingConfig, factor: str, value: str, changes: dict) -> Setting:
    constants = reference.to_dict() | reference.to_dict()["curator"]
    changes = {name: one for name, one in changes.items() if constants[name] != one}
    return Setting(", ".join(f"{name}={one}" for name, one in changes.items()) or REFERENCE, factor, value, changes)


def curate_features(
    features: np.ndarray, config: PretrainingConfig, seed: int, order_seed: int | None = None
) -> pd.DataFrame:
    """Run the curator over unchanging unit-norm features ``(pairs, dim)``; order and chance depend on the seed alone.

    With several epochs each has an order of its own; else it may be given another seed than chance.
    """
    order = None
    if config.curation_epochs == 1:
        generator = RandomStreams(seed if order_seed is None else order_seed).generator("order")
        order = torch.randperm(len(features), generator=generator).numpy()
    chance = RandomStreams(seed).generator("selection")
    return curate_stream(features, config.curator, chance, config.super_batch, order, config.curation_epochs)


def mark_kept(decisions: pd.DataFrame, pairs: int) -> np.ndarray:
    """Which of the pairs were kept in the last epoch ``(pairs,)``, bool."""
    kept = np.zeros(pairs, dtype=bool)
    kept[decisions.row[decisions.kept & (decisions.epoch == decisions.epoch.max())]] = True
    return kept


@dataclass(frozen=True)
class KeptMeasure:
    """How kept sets are measured, the same for all."""

    training: pd.DataFrame  # training rows of the cohort, in the order of the features
    tiers: Mapping[str, str]  # tier of each finding
    truth: pd.DataFrame | None  # of the phantom, or None
    resamples: int  # bootstrap resamples of patients
    seed: int = 0  # of the resampling; the same patients are drawn for every kept set

    def measure(self, kept: np.ndarray, features: np.ndarray, reference: np.ndarray) -> pd.DataFrame:
        """`measure_kept` without the single findings, and ``jaccard`` with the reference's kept set, both masks."""
        about, generator = (self.training, self.tiers, self.truth), np.random.default_rng(self.seed)
        rows = measure_kept(kept, features, *about, self.training.patient_id, generator, self.resamples)
        rows = rows[rows.finding.isin((ALL, *TIERS))]
        alike = {"metric": JACCARD, "finding": ALL, "value": jaccard(kept, reference), "n": len(kept), "positives": -1}
        return pd.concat([rows, pd.DataFrame([alike])], ignore_index=True)


def measure_settings(
    run: Run, seed: int, settings: Sequence[Setting], reference: PretrainingConfig, scores: Scores, measure: KeptMeasure
) -> pd.DataFrame:
    """What every setting keeps of a seed's unchanging features; kept in ``ablation/seed<k>/settings.parquet``.

    Gives ``setting, seed, metric, finding, value, ci_low, ci_high, n, positives``, each setting once.
    """
    distinct = {setting.name: setting for setting in settings}
    changes = {name: dict(one.changes) for name, one in distinct.items()}
    parameters = {"reference": reference.to_dict(), "settings": changes}

    def compute() -> list[pd.DataFrame]:
        features = scores.features
        baseline = mark_kept(curate_features(features, reference, seed), len(features))
        tables = []
        for name, setting in progress(distinct.items(), len(distinct), f"seed {seed}, settings"):
            kept = mark_kept(curate_features(features, setting.apply(reference), seed), len(features))
            tables.append(measure.measure(kept, features, baseline).assign(setting=name))
        return tables

    return measure_kept_sets(run, "settings", seed, parameters, (), measure, compute)


def measure_kept_sets(
    run: Run,
    name: str,
    seed: int,
    parameters: dict,
    inputs: tuple[str, ...],
    measure: KeptMeasure,
    compute: Callable[[], list[pd.DataFrame]],
) -> pd.DataFrame:
    """The tables that ``compute`` gives as one, kept in ``ablation/seed<k>/<name>.parquet``.

    It depends on parameters and inputs beside cohort, measure and the features of the seed.
    """
    inputs += tuple(f"curation/scoring/seed{seed}/{side}.npy" for side in ("image", "text"))
    inputs += ("cohort.parquet", *(["truth.parquet"] if measure.truth is not None else []))
    parameters |= {"seed": seed, "resamples": measure.resamples, "resampling_seed": measure.seed}

    def put_together() -> list[pd.DataFrame]:
        return [pd.concat(compute(), ignore_index=True).assign(seed=seed)]

    names = [f"ablation/seed{seed}/{name}.parquet"]
    return run.keep_tables(names, parameters, put_together, inputs, seed, by=compute)[0]


def average_seeds(table: pd.DataFrame, by: Sequence[str], value: str = "value") -> pd.DataFrame:
    """Mean over the rows of each group, one a seed, with Student's 95 % interval; none from a single seed.

    Rows without a value do not enter.

    Gives ``by``, the mean under its own name, ``ci_low``, ``ci_high`` and ``seeds``, how many rows entered; and the
    means of ``n`` and ``positives``, as whole numbers, where the table has them.
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


def summarise_settings(rows: pd.DataFrame, identity: Sequence[str] = _IDENTITY) -> pd.DataFrame:
    """Measures over the seeds, under seed -1, by what tells them apart; intervals end where the measure does."""
    table = average_seeds(rows, identity).assign(seed=OVER_SEEDS)
    return table.assign(ci_low=table.ci_low.clip(lower=0.0), ci_high=table.ci_high.clip(upper=_bound(table)))


def _bound(table: pd.DataFrame) -> np.ndarray:
    return np.where(table.metric.isin(_UNBOUNDED), np.inf, 1.0)


def subtract_reference(rows: pd.DataFrame, reference: str = REFERENCE) -> pd.DataFrame:
    """Each setting minus the reference, seed paired with seed, as `average_seeds`; intervals end where it must."""
    keys = ["seed", "metric", "finding"]
    own = rows.loc[rows.setting == reference, [*keys, "value"]]
    paired = rows[rows.setting != reference].merge(own, on=keys, suffixes=("", "_of_reference"))
    table = average_seeds(paired.assign(value=paired.value - paired.value_of_reference), _IDENTITY)
    widest = _bound(table)
    return table.assign(ci_low=table.ci_low.clip(lower=-widest), ci_high=table.ci_high.clip(upper=widest))


def tabulate_settings(
    summary: pd.DataFrame, settings: Sequence[Setting], metrics: Mapping[str, str], pairs: int
) -> pd.DataFrame:
    """The table that `chexstudy.plots.curators` draws: settings in their order, and measures of a finding or tier.

    ``summary`` has a row a measure over seeds; measures without a value anywhere are left out.
    """
    asked = pd.DataFrame(
        [
            (one.name, one.factor, one.value, one.name == REFERENCE, *measure)
            for one in settings
            for measure in metrics.items()
        ],
        columns=["setting", "factor", "shown", "published", "metric", "finding"],
    )
    table = asked.merge(summary, on=_IDENTITY).assign(n=pairs).rename(columns={"value": "measure", "shown": "value"})
    columns = ["factor", "value", "published", "metric", "measure", "ci_low", "ci_high", "seeds", "n"]
    return table.loc[table.groupby("metric").measure.transform("count") > 0, columns].reset_index(drop=True)


def choose_measures(has_truth: bool) -> dict[str, str]:
    """The measures that are shown, and of which finding or tier: those that need the truth only where it is known."""
    measures = {"keep_ratio": ALL, "rare_recall": RARE_TIER, "enrichment": RARE_TIER}
    of_truth, of_features = ("duplicates_removed", "mismatched_kept"), ("redundancy", "knn_coverage")
    return measures | dict.fromkeys(of_truth if has_truth else of_features, ALL)


def rank_factors(table: pd.DataFrame) -> pd.DataFrame:
    """How far each factor (row) of `tabulate_settings` moves each measure (column): its highest minus lowest mean."""
    means = table.groupby(["factor", "metric"], sort=False).measure
    return (means.max() - means.min()).unstack()[list(table.metric.unique())]


def describe_ranking(ranks: pd.DataFrame) -> str:
    """One sentence on `rank_factors`: which factors move the share that is kept most and least."""
    moved = (100 * ranks.keep_ratio.dropna()).sort_values(ascending=False)
    named = [f"{factor} ({points:.1f} points)" for factor, points in moved.items()]
    return f"The keep ratio is moved most by {'; '.join(named[:3])}; least by {'; '.join(named[-3:])}."


def list_results(
    stream: pd.DataFrame, trained: pd.DataFrame, law: pd.DataFrame, stability: pd.DataFrame, data_set: str
) -> pd.DataFrame:
    """Rows of the results table under the task ``ablation_curation``, of each seed and, as seed -1, over seeds.

    From `measure_settings`, where ``setting`` is the constant that is changed; `measure_variants`, as variants of the
    arm; `measure_ratio_law`, as the metric ``full_batch_keep_ratio``, with the number of prototypes as setting, the cap
    as variant and the super-batch as group; and `measure_stability`, as the metric ``stability``, the Jaccard index of
    two kept sets, ``group`` and ``reference``, by the rule (variant) when what is named as setting changes.
    """
    kept = {"metric": "full_batch_keep_ratio", "finding": ALL, "positives": -1}
    places = {"setting": "prototypes", "variant": "central_cap", "group": "super_batch"}
    kept |= {column: name + "=" + law[name].astype(str) for column, name in places.items()}
    law = law.rename(columns={"measure": "value"}).assign(**kept)
    alike = {"metric": "stability", "finding": ALL, "positives": -1}
    sides = {"jaccard": "value", "rule": "variant", "varied": "setting", "first": "group", "second": "reference"}
    stability = stability.rename(columns=sides).assign(**alike)
    trained = pd.concat([trained, summarise_settings(trained)]).rename(columns={"setting": "variant"})
    law_over_seeds = summarise_settings(law, [*places, "metric", "finding"])
    tables = [stream, summarise_settings(stream), trained, law, law_over_seeds, stability]
    rows = pd.concat(tables, ignore_index=True)
    columns = ["variant", "reference", "setting", "group", "seed", "metric", "finding"]
    columns += ["value", "ci_low", "ci_high", "n", "positives"]
    return rows[columns].assign(arm=CURATED, task=TASK, data_set=data_set, exposure="seen")
