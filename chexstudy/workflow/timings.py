"""How each notebook of a study ran: ``timings/<notebook>.json``, one file each, so that nobody writes another's."""

import os
import platform
import resource
import sys
from datetime import UTC, datetime

from chexstudy.errors import StudyError
from chexstudy.runs import Run

_FOLDER = "timings"
_BYTES_A_UNIT = 1 if sys.platform == "darwin" else 1024


def record_timing(
    run: Run, name: str, state: str, seconds: float, profile: str, values: dict[str, object], largest: int = 0
) -> None:
    """Write down how a notebook ended, with which parameters, and how many bytes its largest process had.

    Where nobody told that, it is the largest process waited for so far in this call.
    """
    entry = {
        "state": state,
        "seconds": round(seconds, 2),
        "finished_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "profile": profile,
        "parameters": values,
        "largest_process_bytes": largest or resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * _BYTES_A_UNIT,
        "machine": {"cpus": os.cpu_count(), "system": platform.platform(), "python": platform.python_version()},
    }
    artifact, former = _name_artifact(name), {}
    if run.has(artifact):
        try:
            former = run.read_json(artifact)
        except StudyError as error:
            print(f"{error} It is begun anew.", flush=True)
    if state != "done" and former.get("state") == "done":
        # What a run that ended well was started with still says how its artifacts came to be.
        entry = former | {"unfinished": entry}
    run.write_json(artifact, entry)


def read_timings(run: Run) -> dict[str, dict]:
    """What is recorded of each notebook that was run, in the order of their names."""
    return {
        path.stem: run.read_json(_name_artifact(path.stem)) for path in sorted(run.path(_FOLDER).glob("[!.]*.json"))
    }


def _name_artifact(notebook: str) -> str:
    return f"{_FOLDER}/{notebook}.json"
