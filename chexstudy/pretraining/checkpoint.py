"""Checkpoints: written atomically, read without unpickling code, refused if they belong to another configuration."""

from pathlib import Path

import torch

from chexstudy.errors import StudyError
from chexstudy.runs import atomic_path


def save_checkpoint(path: Path, key: str, state: dict) -> None:
    """Write tensors and plain values under a key that names the configuration and the data."""
    # Through Python's own file: torch's says only that a position is unexpected where the disk is full.
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        torch.save({"key": key, "state": state}, file)


def load_checkpoint(path: Path, key: str) -> dict:
    """Read a checkpoint.

    Raises:
        StudyError: it cannot be read, or it was written for another configuration, data or code.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        found, state = content["key"], content["state"]
    except Exception as error:  # torch raises many kinds for a damaged archive
        raise StudyError(f"{path} cannot be read ({type(error).__name__}): delete it to train this arm anew.") from None
    if found != key:
        raise StudyError(f"{path} belongs to another configuration, data or code: delete it to train this arm anew.")
    return state
