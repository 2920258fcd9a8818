"""Label planning of one study, step by step; each step is computed when it is first asked for.

Where no finding has labels enough for a learning curve, every step is None.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, wraps

import numpy as np
import pandas as pd

from chexstudy.encoders.spec import name_encoder
from chexstudy.errors import StudyError
from chexstudy.evaluation.context import EvaluatedModel, Evaluation, tell_exposure
from chexstudy.label_planning.accuracy import (
    EVERY,
    correlate_early,
    judge_early_claim,
    measure_families,
    measure_forecasts,
)
from chexstudy.label_planning.costs import ReadingCost, price_plans
from chexstudy.label_planning.curves import SETTINGS, CurveDesign, count_test_labels, measure_curves, plan_draws
from chexstudy.label_planning.fitting import compare_families
from chexstudy.label_planning.observations import LearningCurve, list_curves
from chexstudy.label_planning.planner import forecast_plateau, infer_by_encoder, plan_labels
from chexstudy.label_planning.posterior import trace_bands
from chexstudy.label_planning.tabulation import tabulate_planning
from chexstudy.progress import progress
from chexstudy.results import COLUMNS, worst_exposure


def _step(compute: Callable) -> cached_property:
    @wraps(compute)
    def guarded(planning):
        return compute(planning) if planning.counts else None

    return cached_property(guarded)


@dataclass(eq=False)
class LabelPlanning:
    """What labels of a study's findings are worth on frozen encoders."""

    evaluation: Evaluation  # the study, its cohort and pixels, resamples, seed and device
    encoders: Sequence[str]  # as in `chexstudy.evaluation.encoders`
    design: CurveDesign  # how the curves are measured
    pool: bool  # infer the curves of all findings of an encoder together
    early: int  # label count the published claim is for
    forecast_from: Sequence[int]  # further label counts to forecast from

    def __post_init__(self):
        if not self.encoders or len(set(self.encoders)) < len(self.encoders):
            raise StudyError("name each encoder once, and at least one.")
        self.run, self.cohort, self.seed = self.evaluation.run, self.evaluation.cohort, self.design.seed
        self.counts, self.refused = plan_draws(self.cohort, self.design)
        if not self.counts:
            print("No finding has labels enough for a learning curve: there is nothing to plan from.")

    def _generator(self) -> np.random.Generator:
        return np.random.default_rng(self.seed)

    @_step
    def features(self) -> dict:
        """Of every image by each encoder, under ``name/seed<k>``."""
        models = [EvaluatedModel(self.evaluation, name, self.seed) for name in self.encoders]
        return {one.name_features(): one.freeze(patches=False) for one in progress(models, label="freezing encoders")}

    @_step
    def table(self) -> pd.DataFrame:
        """The measured curves (`measure_curves`)."""
        return measure_curves(self.run, self.cohort, self.counts, self.features, self.design)

    @_step
    def settings(self) -> pd.DataFrame:
        """Of the heads, and what their choice took."""
        return self.run.read_table(SETTINGS) if len(self.table) else None

    @_step
    def curves(self) -> list[LearningCurve]:
        return list_curves(self.table)

    @_step
    def bands(self) -> pd.DataFrame:
        """The planner's posteriors as lines with 95 % intervals."""
        return trace_bands(infer_by_encoder(self.curves, self.seed, self.pool))

    @_step
    def errors(self) -> pd.DataFrame:
        """Of each family of curves at label counts left out of the fit."""
        return compare_families(self.curves)

    @_step
    def families(self) -> pd.DataFrame:
        return measure_families(self.errors, self._generator(), self.evaluation.resamples)

    def _forecast(self, pool: bool) -> pd.DataFrame:
        return forecast_plateau(self.curves, sorted({self.early, *self.forecast_from}), self.seed, pool)

    @_step
    def forecasts(self) -> pd.DataFrame:
        return self._forecast(self.pool)

    @_step
    def accuracy(self) -> pd.DataFrame:
        """Of the forecasts."""
        return measure_forecasts(self.forecasts, self._generator(), self.evaluation.resamples)

    @_step
    def accuracy_alone(self) -> pd.DataFrame:
        """Of forecasts that take each finding by itself."""
        return measure_forecasts(self._forecast(pool=False), self._generator(), self.evaluation.resamples)

    @_step
    def correlations(self) -> pd.DataFrame:
        """Of what the first labels show with what came of it."""
        return correlate_early(self.forecasts, self.early, self._generator(), self.evaluation.resamples)

    @property
    def claim(self) -> str:
        """What came of the published claim, in a sentence."""
        if not self.counts:
            return "There is no curve to hold the claim against."
        return judge_early_claim(self.accuracy, self.correlations, self.early, self.design.unit)

    def plan(
        self, target: float, reading: ReadingCost, prevalence: pd.DataFrame, population: bool
    ) -> tuple[pd.DataFrame | None, pd.DataFrame | None]:
        """Labels needed for a target AUROC (`plan_labels`), and the same with prices (`price_plans`).

        ``prevalence`` has ``finding, prevalence`` and ``known_train``, its known labels in training. For a population,
        patients at large, the test set's own uncertainty is added.
        """
        if not self.counts:
            return None, None
        of_finding = prevalence.set_index("finding")
        shares, observed = dict(of_finding.prevalence), dict(of_finding.known_train)
        test_counts = count_test_labels(self.cohort, self.counts) if population else None
        plans = plan_labels(self.curves, target, self.seed, self.pool, reading.price(1), shares, test_counts)
        return plans, price_plans(plans, reading, shares, observed)

    def list_rows(self, plans: pd.DataFrame | None) -> pd.DataFrame:
        """All of it as rows of the results table (`tabulate_planning`); none where nothing was measured."""
        if not self.counts:
            return pd.DataFrame(columns=COLUMNS)
        place = self.seed, self.table.data_set.iloc[0]
        exposures = {name_encoder(name): tell_exposure(self.evaluation, name, *place) for name in self.encoders}
        exposures[EVERY] = worst_exposure(exposures.values())
        return tabulate_planning(self.table, self.refused, self.accuracy, self.forecasts, plans, self.errors, exposures)
