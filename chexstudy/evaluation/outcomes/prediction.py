"""What the image tells of what becomes of the patient: the outcomes of the cohort table, read off frozen features.

Every outcome is predicted from the image, from age and sex, and from both; where the truth is known, the true hazard
is the ceiling (``oracle``). An outcome with a time gets a penalised Cox model
(`chexstudy.evaluation.outcomes.survival`), any other the linear probe. Models are fitted on the training split, their
penalties chosen on validation.

All images of a patient take part; the resamples draw patients, and a resample's pairs of images of one patient count
like others. Kaplan-Meier curves take one image a patient, the earliest.

Kept in the study: ``outcomes/<arm>/curves.parquet`` (Kaplan-Meier by risk group), and the scores of all images as those
of findings, tasks ``outcome_<setting>``.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from importlib.util import find_spec

import numpy as np
import pandas as pd

from chexstudy.cohort.table import OUTCOME_PREFIX, YEARS_SUFFIX, outcome_names
from chexstudy.encoders.frozen_features import FrozenFeatures
from chexstudy.errors import StudyError
from chexstudy.evaluation.adaptation.logistic_path import fit_linear_probe
from chexstudy.evaluation.context import EvaluatedModel, Evaluation, add_exposure
from chexstudy.evaluation.outcomes import survival
from chexstudy.evaluation.scores import Measured, measure_findings, write_scores
from chexstudy.progress import progress
from chexstudy.results import COLUMNS, OVER_SEEDS, validate_results
from chexstudy.runs import Run
from chexstudy.statistics.bootstrap import count_scarcer_patients

TASK = "outcome"
AGE_SEX, IMAGE, BOTH, ORACLE = "age_sex", "image", "age_sex_image", "oracle"
SETTINGS = (AGE_SEX, IMAGE, BOTH, ORACLE)
# What the image is worth beside what is known without it, and alone.
COMPARISONS = ((BOTH, AGE_SEX), (IMAGE, AGE_SEX))
HORIZONS = (1.0, 5.0)

_TRUTH = "truth_outcomes.parquet"
_MIDDLE_AGE = 60.0


def evaluate_outcomes(
    evaluation: Evaluation, arm: str, features: Mapping[int, FrozenFeatures], horizons: Sequence[float] = HORIZONS
) -> pd.DataFrame:
    """Predict the outcomes of a cohort from frozen features of one arm, by seed, and measure it on every test set.

    Gives rows of the results table, task ``outcome``: ``finding`` is the outcome, ``setting`` one of `SETTINGS`, in a
    paired difference with another as ``reference``. Of an outcome with a time the metrics are ``c_index`` (Harrell) and
    at each of the ``horizons``, in years, ``auroc_5y`` and ``observed_expected_5y`` (by Kaplan-Meier, over the mean of
    the predicted risks); of any other ``auroc`` and ``auprc``. What cannot be evaluated is a row with NaN.
    """
    if any(horizon <= 0 for horizon in horizons):
        raise StudyError(f"a horizon is a number of years above 0, not {min(horizons)}.")
    run, names, tests = evaluation.run, outcome_names(evaluation.cohort), evaluation.test_sets()
    tables, curves, scores, hazards = [], [], {}, {}
    for name in progress(names, len(names), "predicting outcomes"):
        outcome = _Outcome(name, evaluation.cohort, tuple(horizons))
        reason = outcome.explain_unlearnable()
        scores[name] = {}
        if not reason:
            scores[name], hazards = _predict(outcome, features, tests, _read_truth(run, name))
        for data_set, rows in tests.items():
            known = outcome.status(rows).notna().to_numpy()
            of_set = {key[:2]: one[known] for key, one in scores[name].items() if key[2] == data_set}
            measured = _measure_test_set(evaluation, outcome, rows[known], of_set, hazards, sorted(features))
            place = {"outcome": name, "data_set": data_set}
            tables.append(measured.assign(finding=name, data_set=data_set, reason=reason))
            if outcome.timed and of_set and known.any():
                of_training = {key[:2]: one for key, one in scores[name].items() if key[2] == "train"}
                curves += [one.assign(**place) for one in _draw_curves(outcome, rows[known], of_set, of_training)]
    if curves:
        run.write_table(curves_artifact(arm), pd.concat(curves, ignore_index=True))
    for data_set, rows in tests.items():
        for seed in features:
            for setting in SETTINGS:
                key = seed, setting, data_set
                columns = {name: own[key] for name, own in scores.items() if key in own}
                if columns:
                    place = {"arm": arm, "seed": seed, "task": f"{TASK}_{setting}", "data_set": data_set}
                    write_scores(run, np.column_stack(list(columns.values())), rows.image_id, list(columns), **place)
    rows = pd.concat(tables, ignore_index=True).assign(task=TASK, study=run.study, arm=arm)
    return validate_results(add_exposure(evaluation, rows, min(features)))


def predict_study_outcomes(
    evaluation: Evaluation, arm: str, seeds: Sequence[int], horizons: Sequence[float]
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """`evaluate_outcomes` from the frozen features of one arm, and its curves; both empty where it cannot be."""
    if obstacle := explain_no_outcomes(evaluation.cohort):
        print(f"No outcomes are predicted: {obstacle}.")
        return pd.DataFrame(columns=COLUMNS), pd.DataFrame()
    frozen = {seed: EvaluatedModel(evaluation, arm, seed).freeze(patches=False) for seed in seeds}
    rows = evaluate_outcomes(evaluation, arm, frozen, horizons)
    return rows, evaluation.run.read_table(curves_artifact(arm))


def explain_no_outcomes(cohort: pd.DataFrame) -> str:
    """Why outcomes cannot be predicted at all, as a sentence; empty if they can."""
    if not outcome_names(cohort):
        return "the cohort has no outcomes: add columns such as outcome_death and outcome_death_years to its table"
    if not find_spec("sksurv"):
        return "outcomes need the library scikit-survival: run `pip install 'chexstudy[survival]'`"
    return ""


def curves_artifact(arm: str) -> str:
    """Where Kaplan-Meier curves by risk group are kept.

    Columns: ``outcome, data_set, seed, setting, group, years, survival, ci_low, ci_high, at_risk, n, events,
    log_rank_p``.
    """
    return f"outcomes/{arm}/curves.parquet"


@dataclass(frozen=True)
class _Outcome:
    name: str
    cohort: pd.DataFrame
    horizons: tuple[float, ...]

    @property
    def timed(self) -> bool:
        return f"{OUTCOME_PREFIX}{self.name}{YEARS_SUFFIX}" in self.cohort

    @property
    def metrics(self) -> tuple[str, ...]:
        if not self.timed:
            return ("auroc", "auprc")
        return ("c_index", *(f"{what}_{one:g}y" for one in self.horizons for what in ("auroc", "observed_expected")))

    def status(self, rows: pd.DataFrame) -> pd.Series:
        return rows[f"{OUTCOME_PREFIX}{self.name}"]

    def observe(self, rows: pd.DataFrame) -> tuple[np.ndarray, ...]:
        """Years and events, or without a time labels ``(images, 1)``."""
        if not self.timed:
            return (self.status(rows).to_frame().to_numpy(dtype=float, na_value=np.nan),)
        years = rows[f"{OUTCOME_PREFIX}{self.name}{YEARS_SUFFIX}"]
        return years.to_numpy(dtype=float), self.status(rows).to_numpy(dtype=bool)

    def known(self, split: str) -> pd.DataFrame:
        rows = self.cohort[self.cohort.split == split]
        return rows[self.status(rows).notna()]

    def explain_unlearnable(self) -> str:
        """Why it cannot be learned, in words; empty if it can."""
        for split in ("train", "validate"):
            events = self.status(self.known(split))
            if events.empty:
                return f"known of no image of the split {split}"
            if not events.eq(1).any():
                return f"all {len(events)} in the split {split} are {'censored' if self.timed else '0'}"
            if not self.timed and not events.eq(0).any():
                return f"everybody in the split {split} has it"
        return ""


def _read_truth(run: Run, name: str) -> pd.Series:
    """True log hazards a year by image; empty for real patients."""
    if not run.has(_TRUTH):
        return pd.Series(dtype=float)
    truth = run.read_table(_TRUTH)
    return truth[truth.outcome == name].set_index("image_id").log_hazard


def describe_patients(rows: pd.DataFrame, training: pd.DataFrame) -> np.ndarray:
    """Age in decades, male sex, and whether either is unknown, ``(images, features)``.

    What does not vary in training is left out. An unknown age is the training split's mean, an unknown sex neither.
    """

    def describe(table: pd.DataFrame) -> np.ndarray:
        age = table.age_years.to_numpy(dtype=float, na_value=np.nan)
        male = np.select([table.sex == "M", table.sex == "F"], [1.0, 0.0], 0.5)
        return np.column_stack((age / 10, male, np.isnan(age), table.sex == "unknown")).astype(float)

    own, known = describe(rows), describe(training)
    ages = known[:, 0][~np.isnan(known[:, 0])]
    middle = ages.mean() if len(ages) else _MIDDLE_AGE / 10
    for table in (own, known):
        table[:, 0] = np.where(np.isnan(table[:, 0]), middle, table[:, 0])
    return own[:, known.std(axis=0) > 0]


def _predict(
    outcome: _Outcome, features: Mapping[int, FrozenFeatures], tests: Mapping[str, pd.DataFrame], truth: pd.Series
) -> tuple[dict[tuple[int, str, str], np.ndarray], dict[tuple[int, str], np.ndarray]]:
    """Scores of every image by seed, setting and data set; of the training images, as ``train``, too.

    And by seed and setting the cumulative hazards of an outcome with a time, that of a score of 0 at each horizon.
    """
    training, validation = outcome.known("train"), outcome.known("validate")
    sets, scores, hazards = {**tests, "train": training}, {}, {}
    for seed, frozen in features.items():
        for setting, design in _make_designs(frozen, training).items():
            score, hazards[seed, setting] = _fit(outcome, design, setting, training, validation)
            scores |= {(seed, setting, data_set): score(design(rows)) for data_set, rows in sets.items()}
        for data_set, rows in sets.items() if outcome.timed and training.image_id.isin(truth.index).all() else ():
            if rows.image_id.isin(truth.index).all():
                scores[seed, ORACLE, data_set] = truth[rows.image_id].to_numpy(dtype=float)
                hazards[seed, ORACLE] = np.array(outcome.horizons)
    return scores, hazards


_Design = Callable[[pd.DataFrame], np.ndarray]


def _make_designs(features: FrozenFeatures, training: pd.DataFrame) -> dict[str, _Design]:
    """Setting -> features of rows. Age and sex stand before the image's."""

    def see(rows: pd.DataFrame) -> np.ndarray:
        return features.pooled[features.rows(rows.image_id)].astype(float)

    def know(rows: pd.DataFrame) -> np.ndarray:
        return describe_patients(rows, training)

    if not know(training).shape[1]:
        return {IMAGE: see}
    return {AGE_SEX: know, IMAGE: see, BOTH: lambda rows: np.column_stack((know(rows), see(rows)))}


def _fit(outcome: _Outcome, design: _Design, setting: str, training: pd.DataFrame, validation: pd.DataFrame):
    """What gives scores ``(images,)`` from features, and the cumulative hazards of a score of 0."""
    data = (design(training), *outcome.observe(training), design(validation), *outcome.observe(validation))
    if outcome.timed:
        unpenalised = 0 if setting == IMAGE else describe_patients(training, training).shape[1]
        model = survival.fit_risk_model(*data, unpenalised)
        return model.score, model.hazard_at(outcome.horizons)
    probe = fit_linear_probe(*data)
    return lambda features: probe.score(features)[:, 0], np.empty(0)


def _measure_test_set(evaluation, outcome: _Outcome, rows, scores, hazards, seeds) -> pd.DataFrame:
    """Every metric of every setting, seed by seed and over seeds, and the paired differences."""
    settings = [one for one in SETTINGS if (seeds[0], one) in scores] or [AGE_SEX, IMAGE, BOTH]
    if not scores or rows.empty:
        named = {"metric": outcome.metrics, "setting": settings, "seed": [*seeds, OVER_SEEDS]}
        table = pd.MultiIndex.from_product(named.values(), names=named).to_frame(index=False)
        counts = {"n": len(rows), "positives": int(outcome.status(rows).eq(1).sum())}
        return table.assign(value=np.nan, ci_low=np.nan, ci_high=np.nan, **counts)
    weights, generator = evaluation.draw_patients(rows)[0], evaluation.generator()
    of_seeds = {one: np.stack([scores[seed, one] for seed in seeds]) for one in settings}
    if outcome.timed:
        # What each metric rests on: whether the event was seen, and whether it had happened by each horizon.
        years, events = outcome.observe(rows)
        by_horizon = [survival.status_at(years, events, horizon) for horizon in outcome.horizons for _ in range(2)]
        labels = pd.DataFrame(dict(zip(outcome.metrics, (events.astype(float), *by_horizon), strict=True)))
        of_mean = np.stack([[hazards[seed, setting] for setting in settings] for seed in seeds])
        measured = _measure_timed(outcome, rows, labels, of_seeds, of_mean, weights)
    else:
        (labels,) = outcome.observe(rows)
        shared = labels, [outcome.name], weights
        measured = {setting: measure_findings(one[..., None], *shared) for setting, one in of_seeds.items()}
    tables = []
    for setting, one in measured.items():
        # Models of one outcome with a time are measured in the same draws of seeds.
        drawn = deepcopy(generator) if outcome.timed else generator
        tables.append(one.each_seed(seeds, drawn).assign(setting=setting))
    for first, second in COMPARISONS:
        if first in measured and second in measured:
            difference = measured[first].minus(measured[second], drawn)
            difference = difference[~difference.metric.str.startswith("observed")]
            tables.append(difference.assign(setting=first, reference=second, seed=OVER_SEEDS))
    table = pd.concat(tables, ignore_index=True)
    if outcome.timed:
        metric = table.metric.str.removesuffix("_difference")
        counts = labels.count(), labels.eq(1).sum()
        return table.assign(n=metric.map(counts[0]), positives=metric.map(counts[1]))
    # One outcome has no mean over outcomes.
    return table[table.finding == outcome.name]


def _measure_timed(outcome: _Outcome, rows, labels, scores, hazards, weights) -> dict[str, Measured]:
    """By setting, from scores ``(seeds, images)`` and hazards ``(seeds, settings, horizons)``."""
    years, events = outcome.observe(rows)
    of_events = survival.weigh_events(*outcome.observe(outcome.known("train")), years, events)

    def measure(models: np.ndarray, of_mean: np.ndarray, weights: np.ndarray | None) -> np.ndarray:
        values = [survival.concordance(years, events, models, weights)]
        risks = -np.expm1(-of_mean * np.exp(models)[..., None])
        drawn = np.ones((1, len(years))) if weights is None else weights
        for place, horizon in enumerate(outcome.horizons):
            values.append(survival.dynamic_auroc(years, events, models, horizon, of_events, weights))
            happened = 1 - np.asarray(survival.survival_at(years, events, horizon, weights))
            expected = drawn @ risks[:, :, place] / drawn.sum(axis=1, keepdims=True)
            values.append(happened[..., None] / (expected[0] if weights is None else expected))
        return np.stack(values, axis=-2)

    # Seeds, (resamples,) metrics, settings.
    of_seeds = list(zip(np.stack(list(scores.values()), axis=-1), hazards, strict=True))
    points, replicates = (np.stack([measure(*one, drawn) for one in of_seeds]) for drawn in (None, weights))
    patients = count_scarcer_patients(labels.to_numpy(), weights)[:, None]
    shared = {"patients": patients, "bounds": (-np.inf, np.inf)}
    columns = pd.DataFrame({"finding": [outcome.name]})
    return {
        setting: Measured(outcome.metrics, columns, points[..., [place]], replicates[..., [place]], **shared)
        for place, setting in enumerate(scores)
    }


def _draw_curves(outcome: _Outcome, rows, scores, of_training) -> Iterator[pd.DataFrame]:
    """Kaplan-Meier by risk group of every model, one image a patient, in training too."""
    training, one = outcome.known("train"), survival.first_images(rows.patient_id, outcome.observe(rows)[0])
    years, events = (values[one] for values in outcome.observe(rows))
    in_training = survival.first_images(training.patient_id, outcome.observe(training)[0])
    for (seed, setting), of_model in scores.items():
        groups = survival.group_risk(of_training[seed, setting][in_training], of_model[one])
        p_value = survival.compare_groups(years, events, groups)
        for place, group in enumerate(survival.GROUP_NAMES):
            members = groups == place
            if members.any():
                curve = survival.estimate_survival(years[members], events[members])
                counts = {"n": int(members.sum()), "events": int(events[members].sum()), "log_rank_p": p_value}
                yield curve.assign(seed=seed, setting=setting, group=group, **counts)
