"""Adapt trained encoders to labels: fit heads, keep their scores, measure them, and compare on the same patients.

Heads see the training and the validation split alone; test splits are only scored.
"""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial

import pandas as pd
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from chexstudy.encoders.frozen_features import drop_patches
from chexstudy.errors import StudyError
from chexstudy.evaluation.adaptation.glori import GloriHead
from chexstudy.evaluation.adaptation.linear import LinearHead
from chexstudy.evaluation.adaptation.recipes import HeadPlan, Pair, fit_plan, name_share
from chexstudy.evaluation.adaptation.training import FittedHead
from chexstudy.evaluation.context import EvaluatedModel, Evaluation, add_exposure, work_apart
from chexstudy.evaluation.scores import Measured, measure_findings
from chexstudy.evaluation.task import Fitted, Task, list_differences, list_values, measure_tasks, run_task
from chexstudy.pretraining.arms.definitions import require_current_arm
from chexstudy.results import COLUMNS, join_rows, validate_results
from chexstudy.runs import Run
from chexstudy.steps import find_step

ADAPTATION = "adaptation"
ADAPTATION_DIFFERENCE = "adaptation_difference"
SMALL_LESIONS = "small lesions"
_CLASSES = {kind.__name__: kind for kind in (LinearHead, GloriHead)}


def _head_folder(arm: str, seed: int, head: str) -> str:
    return f"heads/{arm}/seed{seed}/{head}"


@dataclass(frozen=True)
class AdaptedHead(Task):
    """One head on a trained arm's encoder; the arm's seed is also that of the head."""

    plan: HeadPlan
    small: tuple[str, ...] = ()  # findings with small lesions; where given, only their mean is measured

    @property
    def name(self) -> str:
        """Such as ``adaptation_glori_v1``."""
        return f"{ADAPTATION}_{self.plan.name}"

    @property
    def place(self) -> dict[str, str]:
        share = name_share(self.plan.labelled_share)
        return {"task": ADAPTATION, "head": self.plan.kind, "variant": self.plan.variant, "setting": share}

    def list_parameters(self, evaluation: Evaluation) -> dict:
        return {"plan": asdict(self.plan)}

    def fit(self, arm: EvaluatedModel) -> Fitted:
        """Fit and keep the head, and what it cost."""
        evaluation, run, plan = arm.evaluation, arm.evaluation.run, self.plan
        if not evaluation.findings:
            raise StudyError("the cohort has no labels to adapt to: add a column for each finding.")
        features, encoder = arm.freeze(plan.needs_patches, plan.side), arm.encoder
        start = time.perf_counter()
        parts = evaluation.training, evaluation.validation, evaluation.findings
        fitted, score = fit_plan(plan, features, encoder, evaluation.store, *parts, arm.seed, evaluation.device)
        folder = _head_folder(arm.name, arm.seed, plan.name)
        files = _save_head(run, folder, fitted) if isinstance(fitted, FittedHead) else ()
        run.write_json(f"{folder}/cost.json", {"seconds": time.perf_counter() - start})
        return Fitted(lambda rows: score(rows.image_id.tolist()), (*files, f"{folder}/cost.json"))

    def measure(self, evaluation: Evaluation, rows: pd.DataFrame, scores: Sequence) -> list[Measured]:
        if not self.small:
            return super().measure(evaluation, rows, scores)
        places = [evaluation.findings.index(finding) for finding in self.small]
        small, labels = [one[:, places] for one in scores], evaluation.labels(rows)[:, places]
        whole = measure_findings(small, labels, self.small, evaluation.draw_patients(rows)[0])
        mean = {
            "columns": pd.DataFrame({"finding": [SMALL_LESIONS], "n": len(rows), "positives": -1}),
            "values": whole.values[..., -1:],
            "replicates": whole.replicates[..., -1:],
            "patients": whole.patients[-1:],
        }
        return [replace(whole, findings=0, **mean)]


def adapt_arm(
    evaluation: Evaluation, arm: str, seed: int, plans: Sequence[HeadPlan], keep_patches: bool = True
) -> None:
    """Fit heads on one arm's encoder and keep their scores on every test set; those that are current are left."""
    trained = EvaluatedModel(evaluation, arm, seed)
    # Features with patches serve heads that look at none, too.
    for plan in sorted(plans, key=lambda plan: not plan.needs_patches):
        run_task(evaluation, AdaptedHead(plan), trained)
    name = trained.name_features()
    if not keep_patches and evaluation.run.has(f"features/{name}/layout.json"):
        drop_patches(evaluation.run, name)


def _save_head(run: Run, folder: str, fitted: FittedHead) -> tuple[str, str]:
    """Keep the weights of a trained head and what is needed to build it again; the names of the artifacts."""
    state = {key: value.detach().cpu().contiguous() for key, value in fitted.head.state_dict().items()}
    with run.writing(f"{folder}/head.safetensors") as temporary:
        save_file(state, temporary)
    record = {
        "head": {"class": type(fitted.head).__name__, "settings": fitted.head.settings},
        "learning_rate": fitted.learning_rate,
        "validation": fitted.validation.astype(object).where(fitted.validation.notna(), None).to_dict("records"),
        "encoder": fitted.encoder,
        "findings": fitted.findings,
    }
    run.write_json(f"{folder}/head.json", record)
    return f"{folder}/head.json", f"{folder}/head.safetensors"


def load_head(run: Run, arm: str, seed: int, head: str) -> FittedHead:
    """Read a head trained by gradient that `adapt_arm` kept, ``head`` being the name of its plan."""
    folder = _head_folder(arm, seed, head)
    record = run.read_json(f"{folder}/head.json")
    weights = run.require(f"{folder}/head.safetensors")
    try:
        built = _CLASSES[record["head"]["class"]](**record["head"]["settings"], generator=torch.Generator())
        built.load_state_dict(load_file(weights))
    except (KeyError, OSError, RuntimeError, SafetensorError, TypeError):
        raise StudyError(
            f"the head in {weights.parent} is damaged: run {find_step(f'{folder}/head.json')} again."
        ) from None
    validation = pd.DataFrame(record["validation"]).astype({"auroc": float, "auprc": float})
    built.requires_grad_(False).eval()
    return FittedHead(built, record["learning_rate"], validation, record["encoder"], tuple(record["findings"]))


def adapt_arms(
    evaluation: Evaluation, arms: Sequence[str], seeds: Sequence[int], plans: Sequence[HeadPlan], workers: int = 1
) -> None:
    """`adapt_arm` for every arm and seed, several side by side; use one worker on a GPU.

    Patches take by far the most disk: they are kept for the first arm and seed and dropped for the others.
    """
    names = [plan.name for plan in plans]
    if len(set(names)) < len(names):
        raise StudyError(f"two heads are named {next(n for n in names if names.count(n) > 1)!r}: name a variant.")
    jobs = [(arm, seed) for arm in arms for seed in seeds] if plans else []
    for job in jobs:
        require_current_arm(evaluation.run, *job)
    if jobs:
        work = partial(_adapt, plans=tuple(plans), first=jobs[0])
        work_apart(evaluation, work, jobs, workers, "adapting encoders")


def _adapt(evaluation: Evaluation, arm: str, seed: int, plans: tuple[HeadPlan, ...], first: tuple[str, int]) -> None:
    adapt_arm(evaluation, arm, seed, plans, keep_patches=(arm, seed) == first)


def tabulate_costs(run: Run, arms: Sequence[str], seeds: Sequence[int], plans: Sequence[HeadPlan]) -> pd.DataFrame:
    """Seconds that fitting each head took: one row a head, mean and sum over arms and seeds."""
    rows = [
        (plan.name, run.read_json(f"{_head_folder(arm, seed, plan.name)}/cost.json")["seconds"])
        for plan in plans
        for arm in arms
        for seed in seeds
    ]
    seconds = pd.DataFrame(rows, columns=["head", "seconds"]).groupby("head", sort=False).seconds
    return seconds.agg(["mean", "sum", "count"]).rename(columns={"sum": "all", "count": "fits"})


def measure_adaptation(
    evaluation: Evaluation, arms: Sequence[str], seeds: Sequence[int], plans: Sequence[HeadPlan]
) -> pd.DataFrame:
    """AUROC and average precision of every head on every encoder and test set, by seed and over seeds.

    The heads are those that `adapt_arms` scored. Rows of the results table, task ``adaptation``, in ``setting`` the
    share of the labelled patients where it is not all of them; no head gives no rows.
    """
    if not plans:
        return pd.DataFrame(columns=COLUMNS)
    tasks = [AdaptedHead(plan) for plan in plans]
    measured = measure_tasks(evaluation, tasks, arms, seeds)
    return _finish(evaluation, list_values(evaluation, measured, tasks, arms, seeds), seeds)


def compare_adaptation(
    evaluation: Evaluation, seeds: Sequence[int], pairs: Sequence[Pair], small: Sequence[str] = ()
) -> pd.DataFrame:
    """Paired differences between encoders with heads, by patient and seed.

    Pairs are an arm and a head each, against another arm or head with all the labels. Gives rows of the results table:
    task ``adaptation_difference``, over seeds; ``reference`` is the other arm, or the other head where the arm is the
    same; the mean over findings with ``small`` lesions is the finding ``small lesions``. Nothing to compare gives no
    rows.
    """
    tables = [pd.DataFrame(columns=COLUMNS)]
    for of_findings in ((), tuple(small)) if small else ((),):
        measured = {}
        for arm in dict.fromkeys(arm for pair in pairs for arm, _ in pair):
            sides = {plan.name: AdaptedHead(plan, of_findings) for pair in pairs for one, plan in pair if one == arm}
            measured |= measure_tasks(evaluation, list(sides.values()), [arm], seeds)
        for (arm, head), (other, base) in pairs:
            rows = list_differences(evaluation, measured, [((AdaptedHead(head), arm), (AdaptedHead(base), other))])
            tables.append(rows.assign(reference=other if other != arm else base.kind))
    return _finish(evaluation, join_rows(*tables), seeds)


def _finish(evaluation: Evaluation, rows: pd.DataFrame, seeds: Sequence[int]) -> pd.DataFrame:
    return validate_results(add_exposure(evaluation, rows, seeds[0]).assign(study=evaluation.run.study))
