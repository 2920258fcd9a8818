"""The studies under ``runs/``: what each holds, what is stale in it, how two differ, and to be rid of one."""

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import groupby
from pathlib import Path

import pandas as pd
import pyarrow
import pyarrow.parquet

from chexstudy import paths
from chexstudy.code_closure import hash_closure
from chexstudy.errors import StudyError
from chexstudy.results import OVER_SEEDS, read_results
from chexstudy.runs import Run, hash_file
from chexstudy.workflow.identity import ENGINE, read_identity
from chexstudy.workflow.locks import LOCK, hold_study, tell_holder
from chexstudy.workflow.timings import read_timings

_COHORT = "cohort.parquet"
_REMOVED = ".removed."
OTHER_CODE, OTHER_INPUTS = "made by other code", "made from other inputs"
WHAT_IS_MEASURED = [
    *("arm", "variant", "reference", "head", "setting", "group"),
    *("seed", "task", "data_set", "finding", "metric"),
]


@dataclass(frozen=True)
class Study:
    """What a study's folder holds."""

    name: str  # of the study
    profile: str  # its name, empty if nobody recorded one
    cohort: str  # images and sources in words, empty without one
    # By name the state of each that was started: ``done``, ``failed``, ``stopped``, perhaps ``done, then failed``;
    # ``opened`` without the runner, or ``trained`` without a notebook.
    notebooks: dict[str, str]
    stale_values: dict[str, list[str]]  # parameters that have changed since, by notebook
    stale_artifacts: dict[str, str]  # why each stale artifact is stale
    holder: str | None  # who is at work on it, in words; None if nobody is
    sizes: dict[str, int]  # bytes of what lies in its folder, by name, the largest first
    changed_at: datetime | None  # when the last of them was written; None if there is none

    @property
    def bytes(self) -> int:
        """Of all its files."""
        return sum(self.sizes.values())

    @property
    def state(self) -> str:
        """``running``, ``stale`` or nothing, and what did not end."""
        words = ["running"] * (self.holder is not None) + ["stale"] * bool(self.stale_values or self.stale_artifacts)
        ends = {name: state.rpartition(" ")[2] for name, state in self.notebooks.items()}
        words += [f"{name[:2]} {end}" for name, end in ends.items() if end in ("failed", "stopped")]
        return ", ".join(words)


def list_studies() -> list[str]:
    """Names of the studies there are."""
    return sorted(one.name for one in paths.runs().glob("[!.]*") if one.is_dir())


def find_study(name: str) -> Run:
    """A study that is there."""
    run = Run(name)
    if not run.folder.is_dir():
        known = list_studies()
        raise StudyError(f"there is no study {name!r}; there {'are ' + ', '.join(known) if known else 'is none yet'}.")
    return run


def examine_study(run: Run) -> Study:
    """Look at a study without computing anything; what cannot be read is said to be damaged."""
    sizes, changed_at = _measure_folder(run.folder)
    profile, notebooks, stale = "", {}, {}
    try:
        identity = read_identity(run)
        timings = read_timings(run)
    except StudyError:
        profile, identity, timings = "damaged", None, {}
    if identity is not None:
        profile = identity.profile.name
        notebooks = {name: "trained" if name == ENGINE else "opened" for name in identity.notebooks}
        stale = {name: entry["stale"] for name, entry in sorted(identity.notebooks.items()) if entry["stale"]}
    elif timings:
        profile = next(iter(timings.values()))["profile"]
    for name, entry in timings.items():
        since = entry.get("unfinished")
        notebooks[name] = entry["state"] + (f", then {since['state']}" if since else "")
    return Study(
        run.study,
        profile,
        _describe_cohort(run),
        dict(sorted(notebooks.items())),
        stale,
        find_stale_artifacts(run),
        tell_holder(run),
        sizes,
        changed_at,
    )


def find_stale_artifacts(run: Run) -> dict[str, str]:
    """Artifacts that were made by other code than this, or from inputs that have changed since, and which of both."""
    stale = {}
    for name in _recorded_artifacts(run):
        record = run.provenance(name)
        if record is None or not run.has(name):
            continue
        if record.get("code_hash") != hash_closure(record.get("module", "")):
            stale[name] = OTHER_CODE
        elif any(_has_changed(run, one, sha256) for one, sha256 in record["inputs"].items()):
            stale[name] = OTHER_INPUTS
    return stale


def list_trained_arms(run: Run) -> dict[str, list[int]]:
    """Seeds of every arm that was trained to its end."""
    arms: dict[str, list[int]] = {}
    for path in sorted(run.folder.glob("pretraining/*/seed*/compute.json")):
        arms.setdefault(path.parts[-3], []).append(int(path.parts[-2].removeprefix("seed")))
    return {arm: sorted(seeds) for arm, seeds in arms.items()}


def remove_study(run: Run) -> None:
    """Take a study away with all its files."""
    if run.folder.is_symlink():
        raise StudyError(f"{run.folder} is a link to a folder elsewhere: remove the link and that folder yourself.")
    with hold_study(run, "`chexstudy rm`"):
        # Out of the way at once, so that a removal that is stopped leaves no half study behind.
        try:
            os.rename(run.folder, run.folder.with_name(f"{_REMOVED}{os.getpid()}"))
            for left in paths.runs().glob(f"{_REMOVED}*"):
                shutil.rmtree(left)
        except OSError as error:
            raise StudyError(
                f"study {run.study!r} could not be removed whole ({error.strerror}): {error.filename} is left."
            ) from None


def list_differences(first: Run, second: Run) -> pd.DataFrame:
    """What two studies are made of and differ in, a column each: profile, parameters, cohort, code."""
    makings = pd.DataFrame([_list_makings(run) for run in (first, second)]).T.fillna("-")
    names = [first.study, second.study] if first.study != second.study else ["first", "second"]
    return makings[makings[0] != makings[1]].set_axis(names, axis=1).rename_axis("what").reset_index()


def compare_results(first: Run, second: Run) -> pd.DataFrame:
    """Results of two studies side by side, where they measure the same: ``difference`` is second minus first."""
    values = ["value", "ci_low", "ci_high"]
    tables = [read_results(run)[[*WHAT_IS_MEASURED, *values]] for run in (first, second)]
    both = tables[0].merge(tables[1], on=WHAT_IS_MEASURED, suffixes=("_first", "_second"))
    if both.empty:
        raise StudyError(f"studies {first.study!r} and {second.study!r} measured nothing that is the same.")
    return both.assign(difference=both.value_second - both.value_first)


def select_overview(results: pd.DataFrame, task: str, finding: str | None = None) -> pd.DataFrame:
    """Of results the rows of a task that tell most: over seeds where there are any; of one finding, or means of all."""
    for column, wanted in (("task", task), ("finding", finding)):
        known = sorted(results[column].unique())
        if wanted is not None and wanted not in known:
            raise StudyError(f"there are no results of {wanted!r} here, but of {', '.join(known)}.")
        results = results if wanted is None else results[results[column] == wanted]
    for told in (results.seed == OVER_SEEDS, results.finding.isin(["macro", "all"])):
        results = results[told[results.index]] if told[results.index].any() else results
    return results.reset_index(drop=True)


def _measure_folder(folder: Path) -> tuple[dict[str, int], datetime | None]:
    sizes: dict[str, int] = {}
    changed = 0.0
    for place, _, files in os.walk(folder):
        inside = Path(place).relative_to(folder).parts
        for name in files:
            if name != LOCK:
                status = os.stat(os.path.join(place, name), follow_symlinks=False)
                top = inside[0] if inside else name
                sizes[top] = sizes.get(top, 0) + status.st_size
                changed = max(changed, status.st_mtime)
    by_size = dict(sorted(sizes.items(), key=lambda item: -item[1]))
    return by_size, datetime.fromtimestamp(changed, UTC) if changed else None


def _list_makings(run: Run) -> dict[str, str]:
    makings: dict[str, str] = {}
    identity = read_identity(run)
    if identity is not None:
        makings["profile"] = identity.profile.name
        for name, entry in sorted(identity.notebooks.items()):
            for parameter, value in entry["values"].items():
                is_own = makings.get(parameter, str(value)) != str(value)
                makings[f"{parameter} ({name})" if is_own else parameter] = str(value)
    cohort = run.path(_COHORT)
    if cohort.is_file():
        makings["cohort"] = f"{_describe_cohort(run)} [{hash_file(cohort)[:8]}]"
    records = [record for name in _recorded_artifacts(run) if (record := run.provenance(name)) is not None]
    if records:
        makings["code"] = ", ".join(sorted({one["code_revision"] for one in records}))
    return makings


def _recorded_artifacts(run: Run) -> list[str]:
    folder = run.path("provenance")
    return [str(path.relative_to(folder).with_suffix("")) for path in sorted(folder.rglob("*.json"))]


def _has_changed(run: Run, name: str, sha256: str) -> bool:
    """Whether an input is another than it was, by its seal, without reading it."""
    try:
        return json.loads(run.path(f"provenance/{name}.json").read_bytes()).get("sha256") != sha256
    except (OSError, ValueError, AttributeError):
        path = run.path(name)
        return not path.is_file() or hash_file(path) != sha256


def _describe_cohort(run: Run) -> str:
    path = run.path(_COHORT)
    if not path.is_file():
        return ""
    try:
        sources = pyarrow.parquet.read_table(path, columns=["source"]).column("source")
    except (OSError, pyarrow.ArrowException, KeyError):
        return "damaged"
    named = ", ".join(sorted(map(str, sources.unique().to_pylist())))
    return f"{len(sources):,} images, {named}"


def count_notebooks(notebooks: Mapping[str, str]) -> str:
    """Numbers of the notebooks that came to their end or were opened, in stretches such as ``1-6 9``."""
    there = [int(name[:2]) for name, state in notebooks.items() if state.startswith(("done", "opened", "trained"))]
    # In a stretch, numbers and their places rise together.
    stretches = [
        [one for _, one in of] for _, of in groupby(enumerate(sorted({*there})), lambda pair: pair[1] - pair[0])
    ]
    return " ".join(f"{one[0]}-{one[-1]}" if len(one) > 1 else str(one[0]) for one in stretches)
