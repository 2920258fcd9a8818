"""Where the subset of a study's arm, or of a method of curation, lies, and the scores it was chosen by."""

from dataclasses import dataclass

import pandas as pd

from chexstudy.errors import StudyError
from chexstudy.runs import Run


@dataclass(frozen=True)
class ChosenSubset:
    """What was chosen for an arm; both Series are indexed by ``image_id``."""

    kept: pd.Series  # weights of the kept pairs in training
    scores: pd.Series | None  # of every pair the method could choose from; None where the arm was not chosen by scores
    method: str  # name of the offline method, empty if there is none


def read_subset(run: Run, arm: str, seed: int) -> ChosenSubset:
    """The subset that an arm, ``by_<method>`` or any other, was trained on, or that a method of this name chose."""
    method = arm.removeprefix("by_")
    trained, curated = f"pretraining/{arm}/seed{seed}/subset.parquet", f"curation/{method}/seed{seed}"
    kept = next((name for name in (trained, f"{curated}/subset.parquet") if run.has(name)), None)
    if kept is None:
        there = ", ".join(_list_subsets(run)) or "none yet"
        raise StudyError(f"study {run.study!r} has no subset of {arm!r} with seed {seed}; there are: {there}.")
    scored, scores = f"{curated}/scores.parquet", None
    if run.has(scored):
        scores = run.read_table(scored).set_index("image_id").score
    weights = run.read_table(kept).set_index("image_id").weight
    return ChosenSubset(weights, scores, method if scores is not None else "")


def _list_subsets(run: Run) -> list[str]:
    """The arms and methods with a subset, as ``curated (seeds 0, 1)``."""
    seeds: dict[str, set[int]] = {}
    for path in run.folder.glob("*/*/seed*/subset.parquet"):
        step, name, seed = path.parts[-4:-1]
        if step in ("pretraining", "curation") and seed.removeprefix("seed").isdigit():
            seeds.setdefault(name, set()).add(int(seed.removeprefix("seed")))
    listed = {name: ", ".join(map(str, sorted(own))) for name, own in sorted(seeds.items())}
    return [f"{name} (seed{'s' * (',' in own)} {own})" for name, own in listed.items()]
