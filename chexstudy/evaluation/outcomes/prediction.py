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

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from chexstudy.cohort.table import OUTCOME_PREFIX, YEARS_SUFFIX, outcome_names
from chexstudy.encoders.frozen_features import FrozenFeatures
from chexstudy.errors import StudyError
from chexstudy.evaluation.adaptation.logistic_path import fit_linear_probe
from chexstudy.evaluation.adaptation.run import freeze_arm
from chexstudy.evaluation.context import Evaluation, tell_exposure
from chexstudy.evaluation.outcomes.survival import (
    GROUP_NAMES,
    Censoring,
    brier_score,
    compare_groups,
    concordance,
    dynamic_auroc,
    estimate_survival,
    first_images,
    fit_censoring,
    fit_risk_model,
    group_risk,
    status_at,
    survival_at,
    survival_is_available,
)
from chexstudy.evaluation.scores import Measured, measure_findings, write_scores
from chexstudy.progress import progress
from chexstudy.results import COLUMNS, OVER_SEEDS, validate_results
from chexstudy.runs import Run
from chexstudy.statistics.bootstrap import (
    bootstrap_patients,
    count_scarcer_patients,
    interval,
)

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
    """Predict the outcomes of a cohort from frozen features of one arm and measure it on every test set.

    Args:
        evaluation: the study, its cohort, and how patients are drawn.
        arm: the encoder's name in the results.
        features: of the training, validation and test images, by the seed the encoder was trained with.
        horizons: years at which AUROC and Brier score are taken.

    Returns:
        Rows of the results table, task ``outcome``: ``finding`` is the outcome, ``setting`` one of `SETTINGS`, in a
        paired difference with another as ``reference``. Of an outcome with a time the metrics are ``c_index``
        (Harrell), ``c_index_uno`` and at each horizon ``auroc_5y``, ``brier_5y`` (setting ``no_model``: the training
        split's Kaplan-Meier for everyone) and ``observed_expected_5y``; of any other ``auroc`` and ``auprc``. What
        cannot be evaluated is a row with NaN.
    """
    if any(horizon <= 0 for horizon in horizons):
        raise StudyError(f"a horizon is a number of years above 0, not {min(horizons)}.")
    cohort = evaluation.cohort
    names = outcome_names(cohort)
    data = _Data(evaluation, features, evaluation.test_sets(), _read_truth(evaluation.run), tuple(horizons))
    tables, curves, scores = [], [], {}
    for name in progress(names, len(names), "predicting outcomes"):
        timed = f"{OUTCOME_PREFIX}{name}{YEARS_SUFFIX}" in cohort
        reason = _explain_unlearnable(cohort, name, timed)
        if reason:
            tables.append(_state_not_evaluable(data, name, timed).assign(reason=reason))
            continue
        measured = (_measure_timed if timed else _measure_binary)(data, name)
        tables.append(measured.rows)
        curves += measured.curves
        scores[name] = measured.scores
    _keep(data, arm, scores, curves)
    exposure = tell_exposure(evaluation.run, arm, min(features))
    place = {"study": evaluation.run.study, "arm": arm, "exposure": exposure}
    return validate_results(pd.concat(tables, ignore_index=True).assign(task=TASK, **place))


def predict_study_outcomes(
    evaluation: Evaluation, arm: str, seeds: Sequence[int], horizons: Sequence[float]
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """`evaluate_outcomes` from the frozen features of one arm, and its curves; both empty where it cannot be."""
    if obstacle := explain_no_outcomes(evaluation.cohort):
        print(f"No outcomes are predicted: {obstacle}.")
        return pd.DataFrame(columns=COLUMNS), pd.DataFrame()
    frozen = {seed: freeze_arm(evaluation, arm, seed, patches=False) for seed in seeds}
    rows = evaluate_outcomes(evaluation, arm, frozen, horizons)
    return rows, evaluation.run.read_table(curves_artifact(arm))


def explain_no_outcomes(cohort: pd.DataFrame) -> str:
    """Why outcomes cannot be predicted at all, as a sentence; empty if they can."""
    if not outcome_names(cohort):
        return "the cohort has no outcomes: add columns such as outcome_death and outcome_death_years to its table"
    if not survival_is_available():
        return "outcomes need the library scikit-survival: run `pip install 'chexstudy[survival]'`"
    return ""


@dataclass(frozen=True)
class _Data:
    """What all outcomes are measured with."""

    evaluation: Evaluation
    features: Mapping[int, FrozenFeatures]
    tests: Mapping[str, pd.DataFrame]
    truth: pd.DataFrame | None
    horizons: tuple[float, ...]

    def known(self, split: str, name: str) -> pd.DataFrame:
        cohort = self.evaluation.cohort
        rows = cohort[cohort.split == split]
        return rows[rows[f"{OUTCOME_PREFIX}{name}"].notna()]

    def weights(self, rows: pd.DataFrame) -> np.ndarray:
        """The same patients for every outcome, seed and setting of a test set, up to those whose outcome is unknown."""
        return bootstrap_patients(rows.patient_id, self.evaluation.resamples, self.evaluation.generator())


@dataclass(frozen=True)
class _Measured:
    """One outcome."""

    rows: pd.DataFrame  # of results
    scores: dict[tuple[int, str, str], np.ndarray]  # (seed, setting, data set) -> score of every test image
    curves: list[pd.DataFrame]


# --- what is there ----------------------------------------------------------------------------------------------------


def _explain_unlearnable(cohort: pd.DataFrame, name: str, timed: bool) -> str:
    """Why an outcome cannot be learned, in words; empty if it can."""
    for split in ("train", "validate"):
        events = cohort.loc[cohort.split == split, f"{OUTCOME_PREFIX}{name}"].dropna()
        if events.empty:
            return f"known of no image of the split {split}"
        if not events.eq(1).any():
            return f"all {len(events)} in the split {split} are {'censored' if timed else '0'}"
        if not timed and not events.eq(0).any():
            return f"everybody in the split {split} has it"
    return ""


def _read_truth(run: Run) -> pd.DataFrame | None:
    """True log hazards a year, one column an outcome, by image; None for real patients."""
    if not run.has(_TRUTH):
        return None
    return run.read_table(_TRUTH).pivot(index="image_id", columns="outcome", values="log_hazard")


def _true_hazard(data: _Data, name: str, rows: pd.DataFrame) -> np.ndarray | None:
    if data.truth is None or name not in data.truth or not rows.image_id.isin(data.truth.index).all():
        return None
    return data.truth.loc[rows.image_id, name].to_numpy(dtype=float)


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


def _make_designs(data: _Data, training: pd.DataFrame, seed: int) -> dict[str, Callable[[pd.DataFrame], np.ndarray]]:
    """Setting -> features of rows. Age and sex stand before the image's."""
    features = data.features[seed]

    def see(rows: pd.DataFrame) -> np.ndarray:
        return features.pooled[features.rows(rows.image_id)].astype(float)

    def know(rows: pd.DataFrame) -> np.ndarray:
        return describe_patients(rows, training)

    if not know(training).shape[1]:
        return {IMAGE: see}
    return {AGE_SEX: know, IMAGE: see, BOTH: lambda rows: np.column_stack((know(rows), see(rows)))}


# --- outcomes with a time ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Predicted:
    """What one model says of one test set."""

    scores: np.ndarray  # (images,)
    risks: np.ndarray  # (images, horizons)
    training_scores: np.ndarray  # (training images,)


def _measure_timed(data: _Data, name: str) -> _Measured:
    column, years_column = f"{OUTCOME_PREFIX}{name}", f"{OUTCOME_PREFIX}{name}{YEARS_SUFFIX}"

    def observe(rows: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
        return rows[years_column].to_numpy(dtype=float), rows[column].to_numpy(dtype=bool)

    training, validation = data.known("train", name), data.known("validate", name)
    censoring = fit_censoring(*observe(training))
    no_model = [1 - survival_at(*observe(training), horizon) for horizon in data.horizons]
    predicted = {}
    for seed in data.features:
        for setting, design in _make_designs(data, training, seed).items():
            if setting == AGE_SEX and seed != min(data.features):
                models = {key: one for key, one in predicted.items() if key[:2] == (min(data.features), AGE_SEX)}
                predicted |= {(seed, *key[1:]): one for key, one in models.items()}
                continue
            first = design(training)
            unpenalised = 0 if setting == IMAGE else describe_patients(training, training).shape[1]
            model = fit_risk_model(first, *observe(training), design(validation), *observe(validation), unpenalised)
            training_scores = model.score(first)
            for data_set, rows in data.tests.items():
                scores = model.score(design(rows))
                risks = np.column_stack([model.predict_risk(scores, horizon) for horizon in data.horizons])
                predicted[seed, setting, data_set] = _Predicted(scores, risks, training_scores)
        for data_set, rows in data.tests.items():
            hazard, of_training = _true_hazard(data, name, rows), _true_hazard(data, name, training)
            if hazard is not None and of_training is not None:
                risks = -np.expm1(-np.exp(hazard)[:, None] * np.array(data.horizons))
                predicted[seed, ORACLE, data_set] = _Predicted(hazard, risks, of_training)
    tables, curves = [], []
    for data_set, rows in data.tests.items():
        known = rows[column].notna().to_numpy()
        years, events = observe(rows[known])
        patients = rows.patient_id[known].to_numpy()
        of_set = {key[:2]: one for key, one in predicted.items() if key[2] == data_set}
        measured = _measure_test_set(data, years, events, rows[known], known, of_set, censoring, no_model)
        tables.append(measured.assign(data_set=data_set, finding=name))
        place = {"outcome": name, "data_set": data_set}
        if not len(years):
            continue
        one = first_images(patients, years)
        # The groups of training have one image a patient, too.
        of_training = first_images(training.patient_id, observe(training)[0])
        for (seed, setting), model in of_set.items():
            groups = group_risk(model.training_scores[of_training], model.scores[known][one])
            curves.append(_draw_curves(years[one], events[one], groups).assign(**place, seed=seed, setting=setting))
    return _Measured(pd.concat(tables), {key: model.scores for key, model in predicted.items()}, curves)


def _measure_test_set(data, years, events, rows, known, predicted, censoring: Censoring, no_model) -> pd.DataFrame:
    """Every metric of every setting, seed by seed and over seeds, and the paired differences."""
    seeds = sorted({seed for seed, _ in predicted})
    settings = [setting for setting in SETTINGS if (seeds[0], setting) in predicted]
    labels = {"c_index": events.astype(float)}
    labels["c_index_uno"] = np.where(years < censoring.last, labels["c_index"], 0.0)
    for horizon in data.horizons:
        labels |= dict.fromkeys(_at_horizon(horizon), status_at(years, events, horizon))
    counts = {metric: (int((~np.isnan(one)).sum()), int((one == 1).sum())) for metric, one in labels.items()}
    counts["c_index"] = counts["c_index_uno"] = (len(years), int(events.sum()))
    if not len(years):
        return _tabulate_nothing([(metric, setting) for metric in labels for setting in settings], seeds)
    weights = data.weights(rows)
    patients = count_scarcer_patients(np.column_stack(list(labels.values())), weights)
    points, replicates = [], []
    for seed in seeds:
        scores = np.column_stack([predicted[seed, setting].scores[known] for setting in settings])
        risks = np.stack([predicted[seed, setting].risks[known] for setting in settings], axis=1)
        points.append(_measure_models(years, events, scores, risks, censoring, data.horizons, None))
        replicates.append(_measure_models(years, events, scores, risks, censoring, data.horizons, weights))
    # Seeds, (resamples,) metrics, settings.
    points, replicates = np.stack(points), np.stack(replicates)
    metrics, generator = list(labels), data.evaluation.generator()

    def measured(places: list[int], models: list[int]) -> Measured:
        return Measured(
            tuple(metrics[place] for place in places),
            pd.DataFrame({"setting": [settings[model] for model in models]}),
            points[:, places][..., models],
            replicates[:, :, places][..., models],
            patients[places, None],
            bounds=(-np.inf, np.inf),
        )

    tables = [measured([*range(len(metrics))], [*range(len(settings))]).each_seed(seeds, generator)]
    ranking = [place for place, metric in enumerate(metrics) if metric.startswith(("c_index", "auroc"))]
    for pair in COMPARISONS:
        if set(pair) <= set(settings):
            first, second = (measured(ranking, [settings.index(setting)]) for setting in pair)
            tables.append(first.minus(second, generator).assign(seed=OVER_SEEDS, reference=pair[1]))
    for horizon, risk in zip(data.horizons, no_model, strict=True):
        metric = _at_horizon(horizon)[1]
        alike = np.full((len(years), 1), risk)
        value = float(brier_score(years, events, alike, horizon, censoring)[0])
        low, high = interval(
            brier_score(years, events, alike, horizon, censoring, weights), patients=patients[[metrics.index(metric)]]
        )
        row = {"metric": metric, "setting": "no_model", "value": value, "ci_low": low[0], "ci_high": high[0]}
        tables.append(pd.DataFrame([row | {"seed": seed} for seed in (*seeds, OVER_SEEDS)]))
    table = pd.concat(tables, ignore_index=True)
    n, positives = zip(*table.metric.str.removesuffix("_difference").map(counts), strict=True)
    return table.assign(n=n, positives=positives)


def _at_horizon(horizon: float) -> tuple[str, str, str]:
    return f"auroc_{horizon:g}y", f"brier_{horizon:g}y", f"observed_expected_{horizon:g}y"


def _measure_models(years, events, scores, risks, censoring, horizons, weights) -> np.ndarray:
    """``(metrics, models)``, with a leading axis of resamples if there are weights."""
    importance = np.where(years < censoring.last, censoring.weigh(years, events) ** 2, 0.0)
    values = [
        concordance(years, events, scores, weights),
        concordance(years, events, scores, weights, importance),
    ]
    for place, horizon in enumerate(horizons):
        at = risks[:, :, place]
        values.append(dynamic_auroc(years, events, scores, horizon, censoring, weights))
        values.append(brier_score(years, events, at, horizon, censoring, weights))
        happened = 1 - np.asarray(survival_at(years, events, horizon, weights))
        drawn = np.ones((1, len(years))) if weights is None else weights
        expected = drawn @ at / drawn.sum(axis=1, keepdims=True)
        values.append(happened[..., None] / (expected[0] if weights is None else expected))
    return np.stack(values, axis=-2)


def _draw_curves(years: np.ndarray, events: np.ndarray, groups: np.ndarray) -> pd.DataFrame:
    p_value = compare_groups(years, events, groups)
    curves = []
    for place, group in enumerate(GROUP_NAMES):
        members = groups == place
        if members.any():
            curve = estimate_survival(years[members], events[members])
            curves.append(curve.assign(group=group, n=int(members.sum()), events=int(events[members].sum())))
    return pd.concat(curves, ignore_index=True).assign(log_rank_p=p_value)


# --- outcomes without a time ------------------------------------------------------------------------------------------


def _measure_binary(data: _Data, name: str) -> _Measured:
    column = f"{OUTCOME_PREFIX}{name}"

    def label(rows: pd.DataFrame) -> np.ndarray:
        return rows[[column]].to_numpy(dtype=float, na_value=np.nan)

    training, validation = data.known("train", name), data.known("validate", name)
    scores = {}
    for seed in data.features:
        for setting, design in _make_designs(data, training, seed).items():
            probe = fit_linear_probe(design(training), label(training), design(validation), label(validation))
            for data_set, rows in data.tests.items():
                scores[seed, setting, data_set] = probe.score(design(rows))[:, 0]
    tables = []
    seeds = sorted(data.features)
    settings = [setting for setting in SETTINGS if any(key[1] == setting for key in scores)]
    for data_set, rows in data.tests.items():
        known = rows[column].notna().to_numpy()
        if not known.any():
            wanted = [(metric, setting) for metric in ("auroc", "auprc") for setting in settings]
            tables.append(_tabulate_nothing(wanted, seeds).assign(finding=name, data_set=data_set))
            continue
        labels, weights = label(rows[known]), data.weights(rows[known])
        generator = data.evaluation.generator()
        measured = {}
        for setting in settings:
            of_seeds = [scores[seed, setting, data_set][known][:, None] for seed in seeds]
            measured[setting] = measure_findings(of_seeds, labels, [name], weights)
            tables.append(measured[setting].each_seed(seeds, generator).assign(setting=setting, data_set=data_set))
        for first, second in COMPARISONS:
            if first in measured and second in measured:
                rows = measured[first].minus(measured[second], generator)
                place = {"setting": first, "reference": second, "seed": OVER_SEEDS, "data_set": data_set}
                tables.append(rows.assign(**place))
    rows = pd.concat(tables, ignore_index=True)
    # One outcome has no mean over outcomes.
    return _Measured(rows[rows.finding == name], scores, [])


# --- rows and artifacts -----------------------------------------------------------------------------------------------


def _state_not_evaluable(data: _Data, name: str, timed: bool) -> pd.DataFrame:
    metrics = ("c_index", "c_index_uno") if timed else ("auroc", "auprc")
    tables = []
    for data_set, rows in data.tests.items():
        events = rows[f"{OUTCOME_PREFIX}{name}"].dropna()
        wanted = [(metric, setting) for metric in metrics for setting in (AGE_SEX, IMAGE, BOTH)]
        table = _tabulate_nothing(wanted, sorted(data.features))
        counts = {"n": len(events), "positives": int(events.eq(1).sum())}
        tables.append(table.assign(**counts, data_set=data_set, finding=name))
    return pd.concat(tables, ignore_index=True)


def _tabulate_nothing(wanted: list[tuple[str, str]], seeds: Sequence[int]) -> pd.DataFrame:
    rows = [(*one, seed) for one in wanted for seed in (*seeds, OVER_SEEDS)]
    nothing = {"value": np.nan, "ci_low": np.nan, "ci_high": np.nan, "n": 0, "positives": 0}
    return pd.DataFrame(rows, columns=["metric", "setting", "seed"]).assign(**nothing)


def _keep(data: _Data, arm: str, scores: dict, curves: list) -> None:
    """Write what figures and later comparisons need; an image that a model was not asked about has NaN."""
    run = data.evaluation.run
    if curves:
        run.write_table(curves_artifact(arm), pd.concat(curves, ignore_index=True))
    for seed in data.features:
        for data_set, rows in data.tests.items():
            for setting in SETTINGS:
                key = seed, setting, data_set
                columns = {name: own[key] for name, own in scores.items() if key in own}
                if columns:
                    place = {"arm": arm, "seed": seed, "task": f"{TASK}_{setting}", "data_set": data_set}
                    values = np.column_stack(list(columns.values()))
                    write_scores(run, values, list(rows.image_id), list(columns), **place)


def curves_artifact(arm: str) -> str:
    """Where Kaplan-Meier curves by risk group are kept.

    Columns: ``outcome, data_set, seed, setting, group, years, survival, ci_low, ci_high, at_risk, n, events,
    log_rank_p``.
    """
    return f"outcomes/{arm}/curves.parquet"
