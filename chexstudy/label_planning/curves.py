"""Measured learning curves: heads fitted on repeated draws of n labels, judged on patients held out.

What "How many samples to label" (A3) leaves open is a field of `CurveDesign`. Features are standardised and turned to
their principal axes by all training images, which needs no label. A head has one global setting, the strength of its
penalty or its learning rate, chosen for each encoder on the validation split for all findings and label counts
together; these labels are spent besides those of the draws, and ``label_budget/settings.parquet`` says how many.

Kept as ``label_budget/curves.parquet``: ``encoder, seed, finding, data_set, unit, n, positives, patients, draw, auroc,
auprc``, a row a draw; n is the number of labelled images, positives those among them with the finding.
"""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field

import numpy as np
import pandas as pd
from threadpoolctl import threadpool_limits

from chexstudy.cohort.splits import choose_main_test_set, list_test_sets
from chexstudy.cohort.table import NO_FINDING, finding_columns, label_matrix
from chexstudy.encoders.frozen_features import FrozenFeatures
from chexstudy.errors import StudyError
from chexstudy.label_planning.batched_heads import DropoutRecipe, fit_dropout_sets, fit_logistic_sets
from chexstudy.label_planning.draws import ALL, BALANCES, UNITS, count_classes, draw_labels, make_pool, resolve_grid
from chexstudy.label_planning.observations import CURVES, FEWEST_POINTS
from chexstudy.progress import progress
from chexstudy.runs import Run
from chexstudy.statistics.ranking import known_labels, rank_metrics

SETTINGS = "label_budget/settings.parquet"
GRID = (10, 15, 20, 30, 40, 50, 70, 100, 150, 200, 300, 500, 700, 1000, 1500, 2000, ALL)
# Penalties for each feature, and learning rates: what the one global setting of a head is chosen from.
HEADS = {"logistic": (0.01, 0.1, 1.0, 10.0, 100.0), "linear": (1e-3, 3e-3, 1e-2, 3e-2)}
# Large draws differ little, and cost most.
_CHOSEN_UNTIL, _CHOSEN_DRAWS = 500, 3
# A block of sets that stays in a core's cache is fitted three times as fast as one that does not.
_BLOCK_BYTES = 16 * 2**20
_WHOLE = -1


@dataclass(frozen=True)
class CurveDesign:
    """How learning curves are measured."""

    # label counts, whole numbers and ``all``; those that a finding's pool cannot give are left out
    grid: tuple[int | str, ...] = GRID
    draws: int = 20  # repetitions at each count; everything is drawn once
    # unit, balance, nested: as in `chexstudy.label_planning.draws.draw_labels`
    unit: str = "cases"
    balance: str = "natural"
    nested: bool = False
    # Counts of cases in which fewer positives are to be expected are left out. A draw is given one positive at least;
    # where the prevalence would give none, the curve's start is better than labelling such a number of cases would make
    # it, and flat, because more cases bring no second positive. No family of curves fits that. 0 keeps them.
    fewest_positives: float = 1.0
    # ``logistic`` (penalised logistic regression) or ``linear`` (dropout and a linear projection, the paper's)
    head: str = "logistic"
    recipe: DropoutRecipe = field(default_factory=DropoutRecipe)  # the rest of how ``linear`` is trained
    seed: int = 0  # of the draws; all encoders are measured on the same ones

    def __post_init__(self):
        for name, known in (("head", tuple(HEADS)), ("unit", UNITS), ("balance", BALANCES)):
            if getattr(self, name) not in known:
                raise StudyError(
                    f"learning curves know no {name} {getattr(self, name)!r}: choose among {', '.join(known)}."
                )
        if self.draws < 1 or not self.grid:
            raise StudyError("a learning curve needs a grid of label counts and at least one draw at each.")


def choose_test(cohort: pd.DataFrame) -> tuple[str, pd.DataFrame]:
    """Name and rows of the held-out data set (`choose_main_test_set`)."""
    data_sets = list_test_sets(cohort)
    name = choose_main_test_set(data_sets)
    return name, data_sets[name]


def count_test_labels(cohort: pd.DataFrame, findings: Iterable[str]) -> dict[str, tuple[int, int]]:
    """Images with and without each finding in the held-out data set."""
    test = choose_test(cohort)[1]
    return {finding: (int((test[finding] == 1).sum()), int((test[finding] == 0).sum())) for finding in findings}


def plan_draws(cohort: pd.DataFrame, design: CurveDesign) -> tuple[dict[str, list[int]], pd.DataFrame]:
    """Which label counts can be drawn for each finding but `No Finding`, and why others cannot.

    Gives label counts by finding, for findings with at least three of them and both classes in the test split; and a
    table ``finding, n, reason``, where n is -1 if the whole finding is left out.
    """
    train, (name, test) = _training(cohort), choose_test(cohort)
    counts, refused = {}, []
    for finding in finding_columns(cohort):
        if finding == NO_FINDING:
            continue
        try:
            pool = make_pool(train, finding)
            for value, which in ((1, "positive"), (0, "negative")):
                if not (test[finding] == value).any():
                    raise StudyError(f"{finding} has no {which} in {name}: no AUROC can be had there.")
        except StudyError as error:
            refused.append((finding, _WHOLE, str(error)))
            continue
        possible = []
        for n in resolve_grid(pool, design.grid, design.unit):
            expected = n * pool.prevalence
            try:
                if design.unit == "cases" and expected < design.fewest_positives:
                    raise StudyError(
                        f"{n:,} cases hold {expected:.2g} positives at the prevalence of {finding}: label more of them."
                    )
                count_classes(pool, n, design.unit, design.balance)
                possible.append(n)
            except StudyError as error:
                refused.append((finding, n, str(error)))
        if len(possible) >= FEWEST_POINTS:
            counts[finding] = possible
        else:
            reason = f"a curve needs {FEWEST_POINTS} label counts, and of {finding} {len(possible)} can be drawn."
            refused.append((finding, _WHOLE, reason))
    return counts, pd.DataFrame(refused, columns=["finding", "n", "reason"])


def _training(cohort: pd.DataFrame) -> pd.DataFrame:
    train = cohort[cohort.split == "train"].reset_index(drop=True)
    if train.empty:
        raise StudyError("the cohort has no training split to draw labels from: give some patients the split `train`.")
    return train


@dataclass(frozen=True)
class _Drawn:
    """All draws of one finding at one label count: ``rows (draws, images)`` of the training split."""

    rows: np.ndarray
    present: np.ndarray
    patients: list[int]


def measure_curves(
    run: Run,
    cohort: pd.DataFrame,
    counts: Mapping[str, list[int]],
    features: Mapping[str, FrozenFeatures],
    design: CurveDesign,
) -> pd.DataFrame:
    """Learning curves (the module's table) of several encoders on the same draws, reused while current.

    Label counts are those of `plan_draws`; frozen features are given by the name of their artifact, such as
    ``curated/seed0``.
    """
    labels = pd.util.hash_pandas_object(cohort[["image_id", "patient_id", "split", *counts]], index=False).to_numpy()
    drawn: dict[str, list[_Drawn]] | None = None
    tables = []
    for name, frozen in features.items():
        artifact = f"label_budget/encoders/{name}.parquet"
        parameters = {"design": asdict(design), "counts": counts, "labels": _hash(labels)}
        parameters["features"] = _hash(_vectors(frozen, cohort))
        if not run.is_current(artifact, run.key(parameters)):
            drawn = drawn or _draw_all(_training(cohort), counts, design)
            run.write_table(artifact, _measure_encoder(name, frozen, cohort, drawn, design))
            run.record(artifact, parameters, seed=design.seed)
        tables.append(run.read_table(artifact))
    table, chosen = pd.concat(tables, ignore_index=True), ["head", "setting", "validation_images"]
    curves = table.drop(columns=chosen)
    run.write_table(CURVES, curves)
    run.write_table(SETTINGS, table[["encoder", "seed", *chosen]].drop_duplicates(ignore_index=True))
    return curves


def _hash(values: np.ndarray) -> str:
    return hashlib.sha256(values.tobytes()).hexdigest()


def _vectors(frozen: FrozenFeatures, rows: pd.DataFrame) -> np.ndarray:
    return frozen.pooled[frozen.rows(rows.image_id)]


def _draw_all(train: pd.DataFrame, counts: Mapping[str, list[int]], design: CurveDesign) -> dict[str, list[_Drawn]]:
    drawn = {}
    for finding in progress(list(counts), label="drawing labels"):
        pool = make_pool(train, finding)
        present = np.zeros(len(train), dtype=bool)
        present[pool.rows] = pool.present
        drawn[finding] = []
        everything = resolve_grid(pool, (ALL,), design.unit)[0]
        for n in counts[finding]:
            # There is one way to draw everything, unless negatives are drawn to go with all positives.
            repeated = design.draws if n < everything or design.balance == "equal" else 1
            kind = {"unit": design.unit, "balance": design.balance, "nested": design.nested}
            draws = [draw_labels(pool, n, number, design.seed, **kind) for number in range(repeated)]
            rows = np.stack([draw.rows for draw in draws])
            drawn[finding].append(_Drawn(rows, present[rows], [draw.patients for draw in draws]))
    return drawn


def _measure_encoder(name, frozen, cohort, drawn, design) -> pd.DataFrame:
    encoder, separator, seed = name.rpartition("/seed")
    if not separator or not encoder or not seed.isdigit():
        raise StudyError(f"features of an encoder are named like 'curated/seed0', not {name!r}.")
    train, (data_set, test) = _training(cohort), choose_test(cohort)
    with threadpool_limits(1):
        turn = _PrincipalAxes(_vectors(frozen, train))
        training = turn.apply(_vectors(frozen, train))
        setting, validation_images = _choose_setting(frozen, cohort, turn, training, drawn, design)
        images = turn.apply(_vectors(frozen, test))
        tables = []
        for finding, at_counts in progress(drawn.items(), len(drawn), f"learning curves of {name}"):
            labels = label_matrix(test, [finding])
            for at in at_counts:
                scores = _score_draws(training, at, images, setting, turn.variances, design)
                area, precision = rank_metrics(np.repeat(labels, scores.shape[1], axis=1), scores)
                rows = {"finding": finding, "n": at.rows.shape[1], "positives": at.present.sum(axis=1)}
                rows |= {"patients": at.patients, "draw": np.arange(len(at.rows)), "auroc": area, "auprc": precision}
                tables.append(pd.DataFrame(rows))
    table = pd.concat(tables, ignore_index=True)
    table.insert(0, "encoder", encoder)
    table.insert(1, "seed", int(seed))
    table.insert(3, "data_set", data_set)
    table.insert(4, "unit", design.unit)
    return table.assign(head=design.head, setting=setting, validation_images=validation_images)


class _PrincipalAxes:
    """Standardises features and turns them to the principal axes of the images it is made of: ``(images, dim)``.

    A rotation leaves penalised heads as they are, but along principal axes their curvature is nearly diagonal.
    """

    def __init__(self, features: np.ndarray):
        features = features.astype(float)
        self._mean, spread = features.mean(axis=0), features.std(axis=0)
        self._spread = np.where(spread > 0, spread, 1.0)
        standard = (features - self._mean) / self._spread
        self.variances, self._axes = np.linalg.eigh(standard.T @ standard / len(standard))

    def apply(self, features: np.ndarray) -> np.ndarray:
        """Float32 ``(images, dim)``."""
        return ((features - self._mean) / self._spread @ self._axes).astype(np.float32)


def _choose_setting(frozen, cohort, turn, training, drawn, design) -> tuple[float, int]:
    """The setting with the best mean AUROC on validation over findings and counts, and the images that told it."""
    choices = HEADS[design.head]
    validation = cohort[cohort.split == "validate"].reset_index(drop=True)
    totals, judged, known = np.zeros(len(choices)), 0, np.zeros(len(validation), dtype=bool)
    images = turn.apply(_vectors(frozen, validation)) if len(validation) else None
    for finding in drawn if len(validation) else ():
        labels = label_matrix(validation, [finding])
        use = known_labels(labels[:, 0])
        if len(np.unique(labels[use])) < 2:
            continue
        known |= use
        for at in drawn[finding]:
            draws = _CHOSEN_DRAWS if at.rows.shape[1] <= _CHOSEN_UNTIL else 1
            few = _Drawn(at.rows[:draws], at.present[:draws], at.patients[:draws])
            for number, setting in enumerate(choices):
                scores = _score_draws(training, few, images, setting, turn.variances, design)
                totals[number] += rank_metrics(np.repeat(labels, scores.shape[1], axis=1), scores)[0].mean()
            judged += 1
    # Without a validation split that can tell, the middle of the choices.
    best = int(np.argmax(totals)) if judged else len(choices) // 2
    return float(choices[best]), int(known.sum())


def _score_draws(training, at: _Drawn, images, setting, variances, design) -> np.ndarray:
    """Scores ``(images, draws)`` of one head a draw."""
    count, size = at.rows.shape
    width = max(1, _BLOCK_BYTES // (size * training.shape[1] * training.itemsize))
    scores = np.empty((len(images), count))
    for start in range(0, count, width):
        block = slice(start, start + width)
        chosen, present = training[at.rows[block]], at.present[block]
        if design.head == "logistic":
            coefficients, intercepts = fit_logistic_sets(chosen, present, setting * training.shape[1], variances)
        else:
            coefficients, intercepts = fit_dropout_sets(chosen, present, setting, design.recipe, design.seed)
        scores[:, block] = images @ coefficients.T + intercepts
    return scores
