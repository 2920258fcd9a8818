"""The arms of the study: which pairs each is trained on, and how long. All go through the same engine."""

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace

import pandas as pd

from chexstudy.errors import StudyError
from chexstudy.pretraining.configuration import PretrainingConfig
from chexstudy.runs import Run, hash_file
from chexstudy.steps import find_step

_BY, _AT_COMPUTE = "by_", "@compute"
_CURATED, _FILTERED, _WARM_UP, _UNTRAINED = "curated", "filtered", "warm_up", "untrained"
_PLAIN_OBJECTIVE = "contrastive"
# The arms of the study whose curator chooses while they are trained; each is compared with all others.
CURATING = (_CURATED, _FILTERED)
# What the results table calls arms at a method's subset that spend the curated arm's operations.
SAME_COMPUTE = "same_compute"
# These can be trained under constants of their own.
_WITH_VARIANTS = (_CURATED, "random_same_data", "random_same_compute", "full", _WARM_UP, _UNTRAINED)


@dataclass(frozen=True)
class Arm:
    """One way to spend data and compute."""

    name: str  # as in the results table
    # ``curated``, ``filtered``, ``random``, ``oracle``, ``subset`` (chosen beforehand by a method), ``all`` or ``none``
    data: str
    compute: str  # ``epochs`` (as many as configured) or ``matched`` (as many operations as the curated arm spent)
    explanation: str  # one sentence for captions

    def needs(self, config: PretrainingConfig) -> list[str]:
        """Arms of the same seed that must be finished before this one."""
        warm_up = [name_warm_up(config)] * (self.data not in ("all", "none") and config.warm_up_epochs > 0)
        return warm_up + [self.partner] * bool(self.partner)

    @property
    def is_warm_up(self) -> bool:
        return self.name.partition(".")[0] == _WARM_UP

    @property
    def curates(self) -> bool:
        """Whether a curator chooses while the arm is trained, and leaves a record of it."""
        return self.data in CURATING

    @property
    def variant(self) -> str:
        """The name of the constants that an arm ``NAME.VARIANT`` is trained under, empty for other arms."""
        return self.name.removesuffix(_AT_COMPUTE).partition(".")[2]

    @property
    def partner(self) -> str:
        """The curated arm whose number of pairs or operations this one matches, empty for arms that match none."""
        if self.data not in (_FILTERED, "random", "oracle") and self.compute != "matched":
            return ""
        return name_variant(_CURATED, self.variant) if self.variant else _CURATED

    @property
    def method(self) -> str:
        """The method that chose an arm's subset beforehand, empty for other arms."""
        return self.name.removeprefix(_BY).removesuffix(_AT_COMPUTE) if self.data == "subset" else ""


ARMS = {
    arm.name: arm
    for arm in (
        Arm("warm_up", "all", "epochs", "The epochs before curation, shared by the arms that start with them."),
        Arm(_CURATED, _CURATED, "epochs", "The published curator chooses; then epochs over what it kept."),
        Arm(
            *(_FILTERED, _FILTERED, "epochs"),
            "As curated and as many pairs, but mismatched ones are set aside first, and bands keep to the number.",
        ),
        Arm(
            "random_same_data", "random", "epochs", "As curated, but as many pairs of each super-batch drawn at random."
        ),
        Arm("random_same_compute", "all", "matched", "Random batches of all pairs until the curated arm's operations."),
        Arm("full", "all", "epochs", "All pairs in every epoch."),
        Arm("oracle_balanced", "oracle", "epochs", "As curated, but a subset balanced by the true labels."),
    )
}
_WITHOUT_TRAINING = Arm(_UNTRAINED, "none", "epochs", "The model as training begins.")


def find_arm(name: str) -> Arm:
    """An arm by its name.

    Besides those of `ARMS` there are ``by_METHOD``, trained like the curated arm but on the subset that a method of
    `chexstudy.curation.methods` (or any other) left in ``curation/METHOD/seed<k>/subset.parquet``;
    ``by_METHOD@compute``, the same until the curated arm's operations are spent; and ``curated.VARIANT``, the curated
    arm under constants of its own, in a folder of its own, with ``random_same_data.VARIANT`` and
    ``random_same_compute.VARIANT``, which match that arm and not ``curated``; likewise ``full.VARIANT``,
    ``warm_up.VARIANT``, ``by_METHOD.VARIANT``, and ``untrained.VARIANT``, the model as training begins.
    """
    if name in ARMS:
        return ARMS[name]
    method, matched = name.removeprefix(_BY).removesuffix(_AT_COMPUTE), name.endswith(_AT_COMPUTE)
    if name.startswith(_BY) and re.fullmatch(r"\w+(\.\w+)?", method):
        until = "until the curated arm's operations are spent" if matched else "for as many epochs"
        return Arm(
            name, "subset", "matched" if matched else "epochs", f"As curated, on the subset of {method}, {until}."
        )
    base, _, variant = name.partition(".")
    if base in _WITH_VARIANTS and re.fullmatch(r"\w+", variant):
        known = ARMS.get(base, _WITHOUT_TRAINING)
        what = "The curated arm" if base == _CURATED else known.explanation.removesuffix(".")
        return replace(known, name=name, explanation=f"{what}, {variant.replace('_', ' ')}.")
    raise StudyError(
        f"unknown arm {name!r}; there are {', '.join(one for one in ARMS if one != 'warm_up')}, and by_METHOD for "
        "subsets chosen beforehand."
    )


def name_method_arm(method: str, matched: bool = False) -> str:
    """The arm that is trained on a method's subset, for as many epochs or until the curated arm's operations."""
    return f"{_BY}{method}{_AT_COMPUTE if matched else ''}"


def name_variant(arm: str, variant: str) -> str:
    """The arm that is trained under the constants of a variant: ``curated.keep_10``."""
    return f"{arm}.{variant}"


def name_objective(config: PretrainingConfig) -> str:
    """The variant that arms of another objective than the study's usual one are trained as; empty for that one."""
    return "" if config.objective == _PLAIN_OBJECTIVE else config.objective


def name_warm_up(config: PretrainingConfig) -> str:
    """The warm-up that arms of a configuration start with, one for each objective."""
    objective = name_objective(config)
    return name_variant(_WARM_UP, objective) if objective else _WARM_UP


def name_untrained(config: PretrainingConfig) -> str:
    """The model that arms of a configuration begin with, as an arm."""
    return name_variant(_UNTRAINED, config.objective)


def split_name(name: str) -> tuple[str, str]:
    """What the results table calls an arm: its name without the variant, and the variant."""
    arm = find_arm(name)
    if arm.method:
        method, _, variant = arm.method.partition(".")
        return name_method_arm(method), SAME_COMPUTE if arm.compute == "matched" else variant
    return name.removesuffix(f".{arm.variant}"), arm.variant


def name_arms(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows of results with ``variant`` beside ``arm``; a reference is named by what it has in place of these."""
    arms = {name: split_name(name) for name in rows.arm.unique()}
    sides = [arms[name] for name in rows.arm]
    rows = rows.assign(arm=[arm for arm, _ in sides], variant=[variant for _, variant in sides])
    if "reference" not in rows:
        return rows
    others = [split_name(name) if isinstance(name, str) and name else ("", "") for name in rows.reference]
    pairs = zip(sides, others, strict=True)
    # Where only the variant differs, the reference is one.
    return rows.assign(reference=[other[1] if other[0] == own[0] else other[0] for own, other in pairs])


def subset_artifact(method: str, seed: int) -> str:
    """Where a method's subset lies within a run: ``image_id`` and ``weight``."""
    return f"curation/{method}/seed{seed}/subset.parquet"


def choice_cost_artifact(method: str, seed: int) -> str:
    """Where what it took a method to choose its subset lies within a run: ``flops``, ``seconds``, ``pairs_scored``."""
    return f"curation/{method}/seed{seed}/cost.json"


def arm_folder(arm: str, seed: int) -> str:
    """Where an arm's artifacts lie within a run."""
    return f"pretraining/{arm}/seed{seed}"


def choose_arms(names: list[str], labelled: bool = True) -> list[str]:
    """The named arms, or all but the warm-up if none is named.

    Where the cohort is not ``labelled``, the oracle has nothing to read and is left out.
    """
    every = [name for name in ARMS if name != "warm_up" and (labelled or ARMS[name].data != "oracle")]
    for name in names:
        if find_arm(name).is_warm_up:
            raise StudyError("the warm-up is no arm to choose: the arms that start with it train it.")
    return list(names) or every


def choose_seeds(first: int, count: int) -> list[int]:
    """``count`` seeds from ``first`` on."""
    if count < 1:
        raise StudyError(f"seeds must be at least 1, not {count}.")
    return list(range(first, first + count))


def require_current_arm(run: Run, arm: str, seed: int) -> str:
    """The folder of a trained arm, provided that it was trained on the cohort the study has now."""
    folder = arm_folder(arm, seed)
    cost, step = f"{folder}/compute.json", find_step(folder)
    if not run.has(cost):
        raise StudyError(f"study {run.study!r} has no arm {arm!r} with seed {seed} yet: run {step} with them first.")
    run.require(cost)
    record = run.provenance(cost)
    if record is None:
        raise StudyError(
            f"nothing tells how the arm {arm!r} (seed {seed}) was trained, it was cut off at its end or its provenance "
            f"is damaged: run {step} again."
        )
    if record["inputs"].get("cohort.parquet") != hash_file(run.path("cohort.parquet")):
        raise StudyError(
            f"the arm {arm!r} (seed {seed}) was trained on another cohort than study {run.study!r} has now: "
            f"run {step} again."
        )
    return folder


def read_costs(run: Run, arms: Iterable[str], seeds: Iterable[int]) -> pd.DataFrame:
    """What each arm and seed cost: one row each of what ``compute.json`` holds, without the phases."""
    places = [(arm, seed) for arm in arms for seed in seeds]
    costs = [run.read_json(f"{require_current_arm(run, *place)}/compute.json") for place in places]
    rows = [{"arm": arm, "seed": seed} | cost for (arm, seed), cost in zip(places, costs, strict=True)]
    return pd.DataFrame(rows).drop(columns="by_phase", errors="ignore")


def tabulate_costs(costs: pd.DataFrame) -> pd.DataFrame:
    """What each arm cost, the mean of its seeds, in the units people read."""
    mean = costs.groupby("arm", sort=False).mean(numeric_only=True)
    return pd.DataFrame(
        {
            "operations (TFLOP)": mean.flops / 1e12,
            "time (s)": mean.seconds.round(1),
            "waiting for input (s)": mean.input_stall_seconds.round(1),
            "peak memory (GB)": (mean.peak_memory_bytes / 1e9).round(2),
            "pairs scored": mean.pairs_scored,
            "pairs trained on": mean.pairs_trained,
            "steps": mean.steps,
        }
    )


def compare_costs(costs: pd.DataFrame) -> pd.DataFrame:
    """Operations, seconds and pairs trained on of each arm over those of all pairs, means over seeds; else empty."""
    mean = costs.groupby("arm", sort=False)[["flops", "seconds", "pairs_trained"]].mean()
    return mean / mean.loc["full"] if "full" in mean.index else mean[:0]


def state_costs(costs: pd.DataFrame) -> list[str]:
    """What each arm was trained on and what it spent, in sentences."""
    mean = costs.groupby("arm", sort=False).mean(numeric_only=True)
    shares = compare_costs(costs).flops.map(" ({:.0%} of those of all pairs)".format)
    return [
        f"{row.Index}: {row.pairs_trained:,.0f} pairs trained, {row.flops:.2e} operations{shares.get(row.Index, '')}."
        for row in mean.itertuples()
    ]
