"""Reports written by every generator, arm and seed, beside controls that see less, and what all of them score.

Written reports are kept, a table an arm, seed, generator, control and data set with ``image_id`` and ``report``; they
leave the study in no log, figure or notebook.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import lru_cache

import numpy as np
import pandas as pd

from chexstudy.cohort.table import PHANTOM, label_matrix
from chexstudy.encoders.embeddings import hash_texts
from chexstudy.errors import StudyError
from chexstudy.evaluation.context import EvaluatedModel, Evaluation
from chexstudy.evaluation.encoders import NO_ENCODER, is_arm
from chexstudy.evaluation.report_generation.cases import list_labelled, read_indication
from chexstudy.evaluation.report_generation.controls import (
    COMMONEST,
    ITSELF,
    RANDOM,
    TURNED,
    commonest_report,
    flip_polarity,
    random_reports,
)
from chexstudy.evaluation.report_generation.controls import CONTROLS as TEXT_CONTROLS
from chexstudy.evaluation.report_generation.generators import (
    KINDS,
    LANGUAGE_MODEL,
    Generator,
    GeneratorSettings,
    fit_generator,
    prepare_language_model,
)
from chexstudy.evaluation.report_generation.image_controls import (
    CONTROLS,
    MEAN,
    NO_INDICATION,
    OWN,
    SHUFFLED,
    SHUFFLED_ALIKE,
    ZEROS,
    show_images,
)
from chexstudy.evaluation.report_generation.labeler import label_reports
from chexstudy.evaluation.report_generation.metrics import FOURTEEN, measure_reports, sign_metrics
from chexstudy.evaluation.report_generation.variants import prepare_texts
from chexstudy.evaluation.scores import Measured, scores_artifact
from chexstudy.evaluation.task import Fitted, Task, measure_and_compare, run_tasks
from chexstudy.pretraining.arms.definitions import arm_folder
from chexstudy.results import write_interval

TASK = "report_generation"
DIFFERENCE = "report_generation_difference"
NEAREST, COMPOSITION = "nearest_image", "composition"
_WHOLE = ("all", "chexpert_14", "chexpert_5")
_ENDS = ["value", "ci_low", "ci_high"]
# Its differences tell whether a model reads the image: the mean F1 of findings against the reference reports. Pooled F1
# would not, for in most cohorts a report of nothing is right about many.
JUDGED = {"metric": "macro_f1", "finding": "all", "group": "report"}
BLIND = (MEAN, ZEROS, SHUFFLED, SHUFFLED_ALIKE)
# Of a blind model's score to that of the same model on the images, above which it can hardly be said to read them.
_NEARLY_ALL = 0.95


@dataclass(frozen=True)
class WriteReports(Task):
    """One generator on one model, shown its images or a control; of text controls the model is no encoder."""

    generator: str  # one of `KINDS` or of `TEXT_CONTROLS`
    control: str = OWN  # one of `CONTROLS`
    settings: GeneratorSettings = field(default_factory=GeneratorSettings)

    @property
    def name(self) -> str:
        return ".".join(filter(None, [TASK, self.generator, self.control, name_text(self.settings)]))

    @property
    def place(self) -> dict[str, str]:
        return {"task": TASK, "head": self.generator, "variant": self.control, "setting": name_text(self.settings)}

    def list_parameters(self, evaluation: Evaluation) -> dict:
        settings = asdict(self.settings)
        if self.generator != LANGUAGE_MODEL:
            del settings["plan"]
        told = {"generator": self.generator, "control": self.control, "settings": settings}
        return told | {"cases": hash_texts(evaluation.cohort.image_id), "seed": evaluation.seed}

    def can_score(self, rows: pd.DataFrame) -> bool:
        """Without an indication there is none to remove, and a single patient's images cannot be shuffled."""
        if self.control == NO_INDICATION:
            return any(map(read_indication, rows.report))
        return rows.patient_id.nunique() > 1 or not (self.control.startswith("shuffled") or self.generator == RANDOM)

    def fit(self, arm: EvaluatedModel) -> Fitted:
        """Fit the generator, once for all that it is shown."""
        if self.generator in TEXT_CONTROLS:
            return Fitted(lambda rows: _tabulate(rows, self._write_unseen(arm, rows)))
        generator = _fit(arm, self.generator, self.settings)
        return Fitted(lambda rows: _tabulate(rows, self._write(arm.evaluation, generator, rows)))

    def _write(self, evaluation: Evaluation, generator: Generator, rows: pd.DataFrame) -> list[str]:
        prompts = ["" if self.control == NO_INDICATION else read_indication(report) for report in rows.report]
        shown = show_images(self.control, rows, evaluation.training, evaluation.store, evaluation.generator())
        return generator.generate(rows.image_id.tolist(), prompts, shown)

    def _write_unseen(self, arm: EvaluatedModel, rows: pd.DataFrame) -> list[str]:
        evaluation, own = arm.evaluation, self.list_texts(rows)
        if self.generator == ITSELF:
            return own
        if self.generator == TURNED:
            return flip_polarity(own, label_reports, list_labelled(evaluation) or FOURTEEN)
        training = evaluation.training
        if self.generator == COMMONEST:
            return [commonest_report(self.list_texts(training))] * len(rows)
        drawn = np.random.default_rng((evaluation.seed, arm.seed))
        return random_reports(rows.patient_id, self.list_texts(training), training.patient_id, drawn)

    def list_texts(self, rows: pd.DataFrame) -> list[str]:
        """The text to write of each row of the cohort."""
        return prepare_texts(rows.report, self.settings.sections, self.settings.strip_comparisons)[0]

    def read(self, evaluation: Evaluation, arm: str, seed: int, rows: pd.DataFrame) -> list[str]:
        """The kept reports of one data set, in the order of its rows."""
        name = scores_artifact(arm, seed, self.name, f"{rows.source.iloc[0]}/{rows.split.iloc[0]}")
        return evaluation.run.read_table(name).set_index("image_id").report.loc[rows.image_id].tolist()

    def measure(self, evaluation: Evaluation, rows: pd.DataFrame, scores: Sequence[list[str]]) -> list[Measured]:
        """Words in common with the references, and findings: also against the truth of images that were drawn."""
        findings, (weights, _) = list_labelled(evaluation), evaluation.draw_patients(rows)
        truth = label_matrix(rows, findings) if (rows.source == PHANTOM).all() and findings else None
        return measure_reports(scores, self.list_texts(rows), weights, label_reports, findings, truth)


@lru_cache(maxsize=1)
def _fit(arm: EvaluatedModel, kind: str, settings: GeneratorSettings) -> Generator:
    return fit_generator(kind, arm, arm.evaluation, settings, arm.seed)


def _tabulate(rows: pd.DataFrame, reports: list[str]) -> pd.DataFrame:
    return pd.DataFrame({"image_id": rows.image_id.to_numpy(), "report": reports})


def name_text(settings: GeneratorSettings) -> str:
    """Which text of reports it is, as the results table has it in ``setting``."""
    return f"{settings.sections}{'.stripped' * settings.strip_comparisons}"


# --- writing and measuring -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Writing:
    """What is written: every generator on every model and seed, its images beside the controls, and what sees none."""

    arms: Sequence[str]  # and other encoders, by name
    seeds: Sequence[int]
    generators: Sequence[str]
    controls: Sequence[str] = tuple(CONTROLS)
    settings: GeneratorSettings = field(default_factory=GeneratorSettings)

    def __post_init__(self):
        for what, names, known in (("generator", self.generators, KINDS), ("control", self.controls, CONTROLS)):
            if wrong := [name for name in names if name not in known]:
                raise StudyError(f"there is no {what} {wrong[0]!r}: there are {', '.join(known)}.")

    def list_tasks(self) -> list[WriteReports]:
        """Each generator on its images, then on each control."""
        shown = [(name, control) for name in self.generators for control in (OWN, *self.controls)]
        return [WriteReports(*one, self.settings) for one in shown]


def write_reports(evaluation: Evaluation, writing: Writing, workers: int = 1) -> None:
    """Write and keep all reports; those that are current are left."""
    if LANGUAGE_MODEL in writing.generators and len(evaluation.cohort):
        for seed in writing.seeds:
            # Before the encoders part: all of a seed share it.
            prepare_language_model(evaluation, writing.settings, seed)
    for arms, tasks in _list_work(evaluation, writing):
        run_tasks(evaluation, tasks, arms, writing.seeds, workers)


def measure_written(evaluation: Evaluation, writing: Writing, workers: int = 1) -> pd.DataFrame:
    """What `write_reports` kept, measured and compared, paired by patient and seed.

    Gives rows of the results table. Task ``report_generation``: every generator (``head``), control (``variant``),
    seed and test set, see `measure_reports`. Task ``report_generation_difference``, over seeds, where ``reference`` is
    what is subtracted: the first model minus each other; its own images minus each control, or minus the commonest
    report; a generator minus the nearest report. Each metric has a ``_difference``, its ``_p``, and ``_p_holm``,
    corrected within a data set over all comparisons of the means over findings and of texts, and within a comparison
    over single findings.
    """
    work, pairs = _list_work(evaluation, writing), _list_pairs(writing)
    return sign_metrics(measure_and_compare(evaluation, work, pairs, writing.seeds, _WHOLE, workers))


def _list_work(evaluation: Evaluation, writing: Writing) -> list[tuple[list[str], list[WriteReports]]]:
    """Models that can write by the same tasks, and these."""
    if evaluation.cohort.empty:
        return []
    tasks = writing.list_tasks()
    if not evaluation.findings or evaluation.validation.empty:
        tasks = [task for task in tasks if task.generator != COMPOSITION]
    # What has learnt to bring reports and images together: other encoders have not, nor arms on images alone.
    sides = {arm: f"{arm_folder(arm, writing.seeds[0])}/model/text_encoder" for arm in filter(is_arm, writing.arms)}
    with_texts = [arm for arm, side in sides.items() if evaluation.run.has(side)]
    others = [name for name in writing.arms if name not in with_texts]
    work = [(with_texts, tasks), (others, [task for task in tasks if not task.generator.endswith("_text")])]
    work = [(arms, of_arms) for arms, of_arms in work if arms and of_arms]
    if not work:
        raise StudyError(
            "no generator writes on any encoder: name one of each or more; nearest and medoid by text need an arm that "
            "was trained on texts, composition labels and a validation split."
        )
    return [*work, ([NO_ENCODER], [WriteReports(name, OWN, writing.settings) for name in TEXT_CONTROLS])]


def _list_pairs(writing: Writing) -> dict[str, list]:
    """What is subtracted, by its name, and the pairs of tasks and models."""

    def write(generator: str, control: str = OWN) -> WriteReports:
        return WriteReports(generator, control, writing.settings)

    sides = [(write(name), arm) for name in writing.generators for arm in writing.arms]
    pairs = {COMMONEST: [(side, (write(COMMONEST), NO_ENCODER)) for side in sides]}
    for control in writing.controls:
        pairs[control] = [((task, arm), (write(task.generator, control), arm)) for task, arm in sides]
    if NEAREST in writing.generators:
        others = [side for side in sides if side[0].generator != NEAREST]
        pairs[NEAREST] = [((task, arm), (write(NEAREST), arm)) for task, arm in others]
    for other in writing.arms[1:]:
        pairs[other] = [((task, arm), (task, other)) for task, arm in sides if arm == writing.arms[0]]
    return pairs


# --- in words --------------------------------------------------------------------------------------------------------


def judge_reading(rows: pd.DataFrame) -> list[str]:
    """A sentence for each generator, model and data set: does it read the image?

    It does if its mean F1 falls whenever it is shown a blank image or another patient's: the whole interval of the
    paired difference must lie above zero, and the control must lose more than a twentieth of the score.

    Of rows of both tasks of `measure_written`.
    """
    rows = select_judged(rows)
    place = ["data_set", "arm", "head"]
    own = rows[(rows.task == TASK) & (rows.variant == OWN)].sort_values("seed").drop_duplicates(place).set_index(place)
    lost = rows[(rows.task == DIFFERENCE) & rows.reference.isin(BLIND) & (rows.variant == OWN)]
    return [_judge(where, own.loc[where], of_model) for where, of_model in lost.groupby(place, sort=False)]


def select_judged(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows, values and differences, by which it is told whether a model reads the image."""
    for column, wanted in JUDGED.items():
        rows = rows[rows[column].str.removesuffix("_difference") == wanted]
    return rows


def _judge(where: tuple[str, str, str], own: pd.Series, lost: pd.DataFrame) -> str:
    data_set, arm, generator = (part.replace("_", " ") for part in where)
    least = lost.loc[lost.value.idxmin()]
    reads = bool((lost.ci_low > 0).all() and own.value - least.value < _NEARLY_ALL * own.value)
    verdict = "reads the image" if reads else "reads no image, as far as can be told"
    return (
        f"{generator} on {arm} ({data_set}) {verdict}: its mean F1 of {write_interval(*own[_ENDS])} falls by "
        f"{'at least ' * reads}{write_interval(*least[_ENDS])} when it is shown {CONTROLS[least.reference]} "
        f"({own.n} reports)."
    )
