"""Measured learning curves: heads fitted on repeated draws of n labels, judged on patients held out.

What "How many samples to label" (A3) leaves open is a field of `CurveDesign`. Features are standardised and turned to
their principal axes by all training images, which needs no label. A head has one global setting, the strength of its
penalty or its learning rate, chosen for each encoder on the validation split for all findings and label counts
together; these labels are spent besides those of the draws, and `read_settings` says how many they are.

Kept as ``label_budget/curves.parquet``: ``encoder, seed, finding, data_set, unit, n, positives, patients, draw, auroc,
auprc``, a row a draw; n is the number of labelled images, positives those among them with the finding.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field

import numpy as np
import pandas as pd
from scipy.stats import t as student
from threadpoolctl import threadpool_limits

from chexstudy.cohort.table import NO_FINDING, finding_columns, label_matrix
from chexstudy.encoders.frozen_features import FrozenFeatures
from chexstudy.errors import StudyError
from chexstudy.label_planning.batched_heads import DropoutRecipe, fit_dropout, fit_logistic
from chexstudy.label_planning.draws import (
    ALL,
    BALANCES,
    UNITS,
    LabelDraw,
    LabelPool,
    count_classes,
    draw_labels,
    make_pool,
    resolve_grid,
)
from chexstudy.label_planning.files import CURVES
from chexstudy.label_planning.observations import FEWEST_POINTS
from chexstudy.progress import progress
from chexstudy.runs import Run
from chexstudy.statistics.bootstrap import CONFIDENCE
from chexstudy.statistics.ranking import known_labels, rank_metrics

TASK = "learning_curve"
SETTINGS = "label_budget/settings.parquet"
GRID = (10, 15, 20, 30, 40, 50, 70, 100, 150, 200, 300, 500, 700, 1000, 1500, 2000, ALL)
# Penalties for each feature, and learning rates: what the one global setting of a head is chosen from.
HEADS = {"logistic": (0.01, 0.1, 1.0, 10.0, 100.0), "linear": (1e-3, 3e-3, 1e-2, 3e-2)}
VECTORS = ("pooled", "cls+mean")
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
    # unit, balance, nested, images_per_patient: as in `chexstudy.label_planning.draws.draw_labels`
    unit: str = "cases"
    balance: str = "natural"
    nested: bool = False
    images_per_patient: int = 0
    # Counts of cases in which fewer positives are to be expected are left out. A draw is given one positive at least;
    # where the prevalence would give none, the curve's start is better than labelling such a number of cases would make
    # it, and flat, because more cases bring no second positive. No family of curves fits that. 0 keeps them.
    fewest_positives: float = 1.0
    # ``logistic`` (penalised logistic regression) or ``linear`` (dropout and a linear projection, the paper's)
    head: str = "logistic"
    # Choices of the head's global setting: of ``logistic`` the penalty over the number of features, of ``linear`` the
    # learning rate. One alone is not chosen but fixed; none stands for the head's own.
    settings: tuple[float, ...] = ()
    # what the head sees: ``pooled``, the encoder's embedding, or ``cls+mean`` of the last blocks
    vectors: str = "pooled"
    recipe: DropoutRecipe = field(default_factory=DropoutRecipe)  # the rest of how ``linear`` is trained
    seed: int = 0  # of the draws; all encoders are measured on the same ones

    def __post_init__(self):
        for name, known in (("head", tuple(HEADS)), ("vectors", VECTORS), ("unit", UNITS), ("balance", BALANCES)):
            if getattr(self, name) not in known:
                raise StudyError(
                    f"learning curves know no {name} {getattr(self, name)!r}: choose among {', '.join(known)}."
                )
        if self.draws < 1 or not self.grid:
            raise StudyError("a learning curve needs a grid of label counts and at least one draw at each.")
        if any(not setting > 0 for setting in self.settings):
            raise StudyError(f"the settings of a head are above 0, not {min(self.settings)}.")

    @property
    def choices(self) -> tuple[float, ...]:
        """What the global setting is chosen from."""
        return tuple(self.settings) or HEADS[self.head]

    def draw(self, pool: LabelPool, n: int, draw: int) -> LabelDraw:
        """One draw of n from a pool."""
        return draw_labels(
            pool, n, draw, self.seed, unit=self.unit, balance=self.balance, nested=self.nested,
            images_per_patient=self.images_per_patient,
        )  # fmt: skip


# --- what can be drawn -----------------------------------------------------------------------------------------------


def choose_test(cohort: pd.DataFrame) -> tuple[str, pd.DataFrame]:
    """Name and rows of the held-out data set: the rare-enriched test where there is one, else the test."""
    for split in ("test_enriched", "test"):
        rows = cohort[cohort.split == split]
        if len(rows):
            sources = sorted(rows.source.unique())
            return f"{sources[0] if len(sources) == 1 else ALL}/{split}", rows.reset_index(drop=True)
    raise StudyError("the cohort has no test split: give some patients the split `test`.")


def plan_draws(
    cohort: pd.DataFrame, design: CurveDesign, findings: Sequence[str] | None = None
) -> tuple[dict[str, list[int]], pd.DataFrame]:
    """Which label counts can be drawn for each finding, and why others cannot.

    Args:
        cohort: the cohort table.
        design: of the curves.
        findings: which; None for all but `No Finding`.

    Returns:
        Label counts by finding, for findings with at least three of them and both classes in the test split; and a
        table ``finding, n, reason``, where n is -1 if the whole finding is left out.
    """
    known = [finding for finding in finding_columns(cohort) if finding != NO_FINDING]
    absent = [finding for finding in findings or () if finding not in finding_columns(cohort)]
    if absent:
        raise StudyError(f"the cohort has no finding {absent[0]!r}: choose among {', '.join(known)}.")
    train, (name, test) = _training(cohort), choose_test(cohort)
    counts, refused = {}, []
    for finding in known if findings is None else findings:
        try:
            pool = make_pool(train, finding)
            _check_test(test, finding, name)
        except StudyError as error:
            refused.append((finding, _WHOLE, str(error)))
            continue
        possible = []
        for n in resolve_grid(pool, design.grid, design.unit):
            expected = n * pool.prevalence
            if design.unit == "cases" and expected < design.fewest_positives:
                reason = (
                    f"{n:,} cases hold {expected:.2g} positives at the prevalence of {finding}: label more of them."
                )
                refused.append((finding, n, reason))
                continue
            try:
                if design.images_per_patient:
                    design.draw(pool, n, 0)
                else:
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


def _check_test(test: pd.DataFrame, finding: str, name: str) -> None:
    labels = label_matrix(test, [finding])[:, 0]
    present = labels[known_labels(labels)] == 1
    if not present.any() or present.all():
        which = "no positive" if not present.any() else "no negative"
        raise StudyError(f"{finding} has {which} in {name}: no AUROC can be had there.")


# --- measuring -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Drawn:
    """All draws of one finding at one label count: ``rows (draws, images)`` of the training split."""

    rows: np.ndarray
    present: np.ndarray
    patients: list[int]


def measure_curves(
    run: Run,
    cohort: pd.DataFrame,
    features: Mapping[str, FrozenFeatures],
    design: CurveDesign | None = None,
    findings: Sequence[str] | None = None,
) -> pd.DataFrame:
    """Learning curves of several encoders on the same draws; kept, encoder by encoder, and reused while current.

    Args:
        run: the study.
        cohort: its cohort table.
        features: frozen features by the name of their artifact, such as ``curated/seed0``.
        design: how the curves are measured.
        findings: which; None for all but `No Finding`. Those that cannot be drawn are left out: `plan_draws`.

    Returns:
        The table of the module's docstring, also kept as ``label_budget/curves.parquet``.
    """
    design = design or CurveDesign()
    counts, refused = plan_draws(cohort, design, findings)
    if not counts:
        reason = f" ({refused.reason.iloc[0].rstrip('.')})" if len(refused) else ""
        raise StudyError(f"no finding has labels enough for a learning curve{reason}: add labelled images.")
    train, (_, test) = _training(cohort), choose_test(cohort)
    shared = set(train.patient_id) & set(test.patient_id)
    if shared:
        raise StudyError(f"{len(shared)} patient(s) are both in training and in test: give a patient one split.")
    drawn: dict[str, list[_Drawn]] | None = None
    tables, settings = [], []
    for name, frozen in features.items():
        artifact = f"label_budget/encoders/{name}.parquet"
        parameters = {"design": asdict(design), "counts": counts, "labels": _hash_labels(cohort, counts)}
        parameters["features"] = _hash_features(frozen, cohort, design)
        if not run.is_current(artifact, run.key(parameters)):
            drawn = drawn or _draw_all(train, counts, design)
            table = _measure_encoder(name, frozen, cohort, drawn, design)
            run.write_table(artifact, table)
            run.record(artifact, parameters, seed=design.seed)
        table = run.read_table(artifact)
        settings.append(table[["encoder", "seed", "head", "setting", "validation_images"]].drop_duplicates())
        tables.append(table.drop(columns=["head", "setting", "validation_images"]))
    curves = pd.concat(tables, ignore_index=True)
    run.write_table(CURVES, curves)
    run.write_table(SETTINGS, pd.concat(settings, ignore_index=True))
    return curves


def read_settings(run: Run) -> pd.DataFrame:
    """Global setting of each encoder and the validation images its choice took: ``setting, validation_images``."""
    return run.read_table(SETTINGS)


def tabulate_curves(curves: pd.DataFrame, refused: pd.DataFrame | None = None) -> pd.DataFrame:
    """Learning curves as rows of the results table, but for study and exposure.

    Args:
        curves: of `measure_curves`.
        refused: of `plan_draws`; findings left out get a row without a value and an n of 0.

    Returns:
        Mean over draws of AUROC and average precision with the t interval of that mean (of the draws alone, not of the
        patients of the test set); ``setting`` is the label count, ``positives`` the mean number of them in a draw.
    """
    place = ["encoder", "seed", "data_set", "finding", "unit", "n"]
    tables = []
    for metric in ("auroc", "auprc"):
        groups = curves.groupby(place)
        table = groups.agg(
            value=(metric, "mean"), spread=(metric, "std"), draws=(metric, "size"), positives=("positives", "mean")
        ).reset_index()
        reach = student.ppf(0.5 + CONFIDENCE / 2, np.maximum(table.draws - 1, 1)) * table.spread / np.sqrt(table.draws)
        table["ci_low"], table["ci_high"] = (table.value - reach).clip(0), (table.value + reach).clip(upper=1)
        counted = table.n if (table.unit == "cases").all() else table.positives.round().astype(int)
        table["setting"] = counted.astype(str) + " " + table.unit
        tables.append(table.assign(metric=metric, positives=table.positives.round().astype(int)))
    rows = pd.concat(tables, ignore_index=True).rename(columns={"encoder": "arm"})
    left_out = [] if refused is None else refused.finding[refused.n == _WHOLE]
    measured = curves[["encoder", "seed", "data_set"]].drop_duplicates()
    for finding in left_out:
        empty = measured.rename(columns={"encoder": "arm"}).assign(finding=finding, metric="auroc", n=0, positives=-1)
        rows = pd.concat([rows, empty.assign(setting="not evaluable")], ignore_index=True)
    columns = ["arm", "seed", "data_set", "finding", "metric", "setting", "value", "ci_low", "ci_high", "n"]
    return rows[[*columns, "positives"]].assign(task=TASK)


def _hash_labels(cohort: pd.DataFrame, counts: Mapping) -> str:
    columns = ["image_id", "patient_id", "split", *counts]
    return hashlib.sha256(pd.util.hash_pandas_object(cohort[columns], index=False).to_numpy().tobytes()).hexdigest()


def _hash_features(frozen: FrozenFeatures, cohort: pd.DataFrame, design: CurveDesign) -> str:
    vectors = _vectors(frozen, cohort.image_id, design)
    return hashlib.sha256(np.ascontiguousarray(vectors).tobytes()).hexdigest()


def _vectors(frozen: FrozenFeatures, image_ids: Sequence[str], design: CurveDesign) -> np.ndarray:
    rows = frozen.rows(image_ids)
    if design.vectors == "pooled":
        return frozen.pooled[rows]
    return np.concatenate([frozen.cls[rows], frozen.mean[rows]], axis=1)


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
            draws = [design.draw(pool, n, number) for number in range(repeated)]
            rows = np.stack([draw.rows for draw in draws])
            drawn[finding].append(_Drawn(rows, present[rows], [draw.patients for draw in draws]))
    return drawn


def _measure_encoder(name, frozen, cohort, drawn, design) -> pd.DataFrame:
    encoder, seed = _split_name(name)
    train, (data_set, test) = _training(cohort), choose_test(cohort)
    with threadpool_limits(1):
        turn = _PrincipalAxes(_vectors(frozen, train.image_id, design))
        training = turn.apply(_vectors(frozen, train.image_id, design))
        setting, validation_images = _choose_setting(frozen, cohort, turn, training, drawn, design)
        images = turn.apply(_vectors(frozen, test.image_id, design))
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
    table.insert(1, "seed", seed)
    table.insert(3, "data_set", data_set)
    table.insert(4, "unit", design.unit)
    return table.assign(head=design.head, setting=setting, validation_images=validation_images)


def _split_name(name: str) -> tuple[str, int]:
    encoder, separator, seed = name.rpartition("/seed")
    if not separator or not encoder or not seed.isdigit():
        raise StudyError(f"features of an encoder are named like 'curated/seed0', not {name!r}.")
    return encoder, int(seed)


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
    choices = design.choices
    validation = cohort[cohort.split == "validate"].reset_index(drop=True)
    if len(choices) == 1:
        return float(choices[0]), 0
    totals, judged, known = np.zeros(len(choices)), 0, np.zeros(len(validation), dtype=bool)
    images = turn.apply(_vectors(frozen, validation.image_id, design)) if len(validation) else None
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
            coefficients, intercepts = fit_logistic(chosen, present, setting * training.shape[1], variances)
        else:
            coefficients, intercepts = fit_dropout(chosen, present, setting, design.recipe, design.seed)
        scores[:, block] = images @ coefficients.T + intercepts
    return scores
