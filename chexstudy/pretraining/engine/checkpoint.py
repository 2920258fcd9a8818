"""Checkpoints: written atomically, hash-checked and read without unpickling code, refused where they do not belong.

Beside ``step-00000120.pt`` lies ``step-00000120.json`` with its SHA-256 and its key, written after it: a checkpoint
without that record is one that a killed process did not finish.
"""

import json
import re
from pathlib import Path

import torch

from chexstudy.errors import StudyError
from chexstudy.runs import atomic_path, hash_file

_KEPT = 2


def save_checkpoint(path: Path, key: str, state: dict) -> None:
    """Write tensors and plain values under a key that names the configuration and the data."""
    # Through Python's own file: torch's says only that a position is unexpected where the disk is full.
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        torch.save(state, file)
    with atomic_path(path.with_suffix(".json")) as temporary:
        temporary.write_text(json.dumps({"key": key, "sha256": hash_file(path)}, indent=2) + "\n")


def load_checkpoint(path: Path, key: str) -> dict:
    """Read a checkpoint."""
    mend = "delete it to train this arm anew."
    try:
        record = json.loads(path.with_suffix(".json").read_text())
        damaged = record["sha256"] != hash_file(path)
    except (OSError, ValueError, KeyError):
        damaged, record = True, {}
    if damaged:
        raise StudyError(f"{path} is damaged or incomplete: {mend}")
    if record.get("key") != key:
        raise StudyError(f"{path} belongs to another configuration or other data: {mend}")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for an archive it cannot read
        raise StudyError(f"{path} cannot be read ({type(error).__name__}): {mend}") from None


class Checkpoints:
    """The last two checkpoints of an arm, which belong to a key."""

    def __init__(self, folder: Path, key: str):
        self.folder, self.key = folder, key

    def _found(self) -> list[Path]:
        """The checkpoints from the newest to the oldest."""
        paths = {int(m[1]): path for path in self.folder.glob("*.pt") if (m := re.fullmatch(r"step-(\d+)", path.stem))}
        return [paths[step] for step in sorted(paths, reverse=True)]

    def save(self, step: int, state: dict) -> None:
        """Write the state after so many steps; the checkpoint before stays, older ones go."""
        path = self.folder / f"step-{step:08d}.pt"
        save_checkpoint(path, self.key, state)
        found = self._found()
        place = found.index(path)
        # One of a later step was passed over because it is damaged.
        for other in [*found[:place], *found[place + _KEPT :]]:
            _remove(other)

    def load(self) -> tuple[dict | None, list[str]]:
        """The newest state that is whole and belongs here, or None; a sentence for each newer one passed over."""
        passed_over = []
        for path in self._found():
            try:
                return load_checkpoint(path, self.key), passed_over
            except StudyError as error:
                passed_over.append(str(error))
        return None, passed_over

    def clear(self) -> None:
        """Take all of them away."""
        for path in self._found():
            _remove(path)
        if self.folder.is_dir() and not any(self.folder.iterdir()):
            self.folder.rmdir()


def _remove(path: Path) -> None:
    # Its record first: what is left over then counts as none.
    path.with_suffix(".json").unlink(missing_ok=True)
    path.unlink(missing_ok=True)
