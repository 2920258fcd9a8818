"""What a method gains over random at the same cell: means over pools, with intervals, and p values by question.

Every pool has patients of its own, those of its tests among them, and within it choices and trainings are drawn anew.
So the differences of the pools, each a mean over its choices and trainings, are independent, and their spread holds
every source of chance: the interval is Student's t over pools.
"""

from collections.abc import Sequence
from dataclasses import asdict, astuple

import numpy as np
import pandas as pd
from scipy.stats import t as student

from chexstudy.errors import StudyError
from chexstudy.experiments.regimes.design import BASELINE, Cell, Design, Question
from chexstudy.results import write_interval
from chexstudy.statistics.bootstrap import CONFIDENCE
from chexstudy.statistics.multiple_testing import correct_by_holm

MAIN_METHOD, MAIN_METRIC = "filtered_budgeted_half", "zero_shot_auroc_macro"
CELL = list(Cell.__dataclass_fields__)
_CHANCE = ["seed", "choice", "training"]
_ESTIMATE = ("gain", "ci_low", "ci_high", "p", "pools")


def measure_gains(outcomes: pd.DataFrame, metrics: Sequence[str], reference: str = BASELINE) -> pd.DataFrame:
    """Each method minus the reference at the same cell, paired by pool, choice and training.

    Of rows as in `chexstudy.experiments.regimes.bench.read_outcomes`. Gives the cell's columns, ``method``, ``metric``,
    ``value`` and ``reference`` (the means of both), ``gain``, ``ci_low``, ``ci_high``, ``p`` and ``pools``; interval
    and p value are NaN with one pool. A method where the reference was not trained is left out.
    """
    pools = pair_pools(outcomes, metrics, reference)
    rows = [
        dict(zip([*CELL, "method", "metric"], place, strict=True))
        | {"value": own["value"].mean(), "reference": own["other"].mean()}
        | _estimate(own["gain"].to_numpy())
        for place, own in pools.groupby([*CELL, "method", "metric"], sort=False)
    ]
    return pd.DataFrame(rows, columns=[*CELL, "method", "metric", "value", "reference", *_ESTIMATE])


def pair_pools(outcomes: pd.DataFrame, metrics: Sequence[str], reference: str = BASELINE) -> pd.DataFrame:
    """``value`` of each method, ``other`` of the reference and ``gain``, their difference, a row a pool.

    By the cell's columns, ``method``, ``metric`` and ``seed``; means over choices and trainings that both have.
    """
    long = outcomes.melt([*CELL, "method", *_CHANCE], list(metrics), var_name="metric", value_name="value")
    long = long.astype({"value": float})
    other = long[long.method == reference].rename(columns={"value": "other"}).drop(columns="method")
    paired = long[long.method != reference].merge(other, on=[*CELL, "metric", *_CHANCE])
    paired = paired.dropna(subset=["value", "other"])
    pools = paired.groupby([*CELL, "method", "metric", "seed"], sort=False)[["value", "other"]].mean()
    pools["gain"] = pools["value"] - pools["other"]
    return pools


def _estimate(gains: np.ndarray) -> dict[str, float]:
    """Mean, 95 % interval and two-sided p value of independent gains ``(pools,)``."""
    count, mean = len(gains), float(gains.mean())
    if count < 2:
        return dict(zip(_ESTIMATE, (mean, *[np.nan] * 3, count), strict=True))
    error = float(gains.std(ddof=1) / np.sqrt(count))
    reach = float(student.ppf(0.5 + CONFIDENCE / 2, count - 1)) * error
    p = 2 * float(student.sf(abs(mean) / error, count - 1)) if error > 0 else float(mean == 0)
    return dict(zip(_ESTIMATE, (mean, mean - reach, mean + reach, p, count), strict=True))


def correct_gains(gains: pd.DataFrame) -> pd.DataFrame:
    """Rows of `measure_gains` of one question with ``p_holm``, corrected over its cells and methods by metric."""
    tested = gains.dropna(subset=["p"])
    corrected = tested.groupby("metric")["p"].transform(lambda values: correct_by_holm(values.to_numpy()))
    return gains.assign(p_holm=corrected)


def answer_questions(outcomes: pd.DataFrame, design: Design, metrics: Sequence[str]) -> pd.DataFrame:
    """Rows of `correct_gains` of every question that the outcomes can answer, with its name as ``question``."""
    answers = [
        correct_gains(gains).assign(question=question.name)
        for question in design.questions.values()
        if len(gains := measure_gains(take_question(outcomes, question), metrics))
    ]
    if not answers:
        raise StudyError("no method was trained beside a random choice at the same cell: there is no gain to tell.")
    return pd.concat(answers, ignore_index=True)


def take_near(gains: pd.DataFrame, centre: Cell, *free: str) -> pd.DataFrame:
    """Rows of `answer_questions` whose cells differ from the centre in nothing but what is ``free``.

    What several questions tell stands once, as the first of them has it.
    """
    near = [gains[name] == value for name, value in asdict(centre).items() if name not in free]
    kept = gains[np.logical_and.reduce(near)]
    return kept.drop_duplicates([*CELL, "method", "metric"], ignore_index=True)


def compare_main(outcomes: pd.DataFrame, others: Sequence[str], metrics: Sequence[str]) -> pd.DataFrame:
    """The main method minus each of the others, ``against``, where both were trained; Holm over them by metric."""
    rows = [
        gains[gains.method == MAIN_METHOD].assign(against=other)
        for other in others
        if len(gains := measure_gains(outcomes[outcomes.method.isin([MAIN_METHOD, other])], metrics, other))
    ]
    return correct_gains(pd.concat(rows, ignore_index=True)) if rows else pd.DataFrame()


def tabulate_answer(answers: pd.DataFrame, question: Question, metrics: Sequence[str]) -> pd.DataFrame:
    """Gains that answer one question as text, ``*`` where Holm's p is below 0.05: a row for each method and cell."""
    own = answers[(answers.question == question.name) & answers.metric.isin(metrics)]
    varied = [name for name in CELL if own[name].nunique() > 1]
    words = [
        write_interval(row.gain, row.ci_low, row.ci_high, "+.3f") + " *" * is_resolved(row) for row in own.itertuples()
    ]
    table = own.assign(words=words).pivot_table("words", [*varied, "method", "pools"], "metric", "first", sort=False)
    return table[[name for name in metrics if name in table]].rename_axis(columns=None).reset_index()


def is_resolved(row) -> bool:
    """Whether a gain differs from zero after correction; one pool alone tells nothing."""
    return bool(row.p_holm < 1 - CONFIDENCE)


def take_question(outcomes: pd.DataFrame, question: Question) -> pd.DataFrame:
    """The outcomes that answer a question, of all pools that there are."""
    cells = {astuple(cell) for cell in question.cells}
    asked = [cell in cells for cell in outcomes[CELL].itertuples(index=False, name=None)]
    return outcomes[np.array(asked, dtype=bool) & outcomes.method.isin(question.methods)]


def half_width(gains: pd.DataFrame) -> float:
    """The widest half interval of the main contrast over the cells of its question; infinite with one pool."""
    main = gains[(gains.method == MAIN_METHOD) & (gains.metric == MAIN_METRIC)]
    return float(((main.ci_high - main.ci_low) / 2).fillna(np.inf).max()) if len(main) else np.inf


def split_variance(outcomes: pd.DataFrame, metric: str = MAIN_METRIC, method: str = MAIN_METHOD) -> pd.DataFrame:
    """How much pools, choices within them and trainings within those add to the variance of a gain at one cell.

    Nested analysis of variance of the pools with most choices, and as many trainings of each (Searle, Casella and
    McCulloch 1992, Variance Components, chapter 3); negative estimates are zero. Gives ``source``, ``variance`` and
    ``deviation``, its square root, of one training's gain.
    """
    own, other = (outcomes[outcomes.method == name].set_index(_CHANCE)[metric] for name in (method, BASELINE))
    gain = (own - other).unstack("training").dropna()
    pools = [one.to_numpy(dtype=float) for _, one in gain.groupby("seed")]
    most = max(map(len, pools), default=0)
    gain = np.array([one for one in pools if len(one) == most])
    if min(gain.shape, default=0) < 2 or gain.ndim < 3:
        raise StudyError(
            "sources of chance are told apart from two pools or more with two choices and trainings each: "
            "run `chexstudy regimes sources`."
        )
    _, choices, trainings = gain.shape
    of_choice, of_pool = gain.mean(axis=2), gain.mean(axis=(1, 2))
    within = gain.var(axis=2, ddof=1).mean()
    between = trainings * of_choice.var(axis=1, ddof=1).mean()
    above = trainings * choices * of_pool.var(ddof=1)
    parts = {
        "pool": (above - between) / (trainings * choices),
        "choice": (between - within) / trainings,
        "training": within,
    }
    rows = [(name, max(float(value), 0.0)) for name, value in parts.items()]
    table = pd.DataFrame(rows, columns=["source", "variance"])
    return table.assign(deviation=np.sqrt(table.variance))
