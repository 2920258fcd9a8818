"""A run folder: named artifacts of one study, written atomically, each with its provenance beside it.

An artifact is *current* when the key it was written under is the key asked for: the hash of its parameters, of its
input artifacts and of the code that computes. A stale artifact is computed again, a current one is reused, so a killed
study goes on where it stopped and a changed one is never mixed with an old one.
"""

import errno
import glob
import hashlib
import json
import os
import platform
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import cache
from importlib import metadata
from pathlib import Path

import numpy as np
import pandas as pd

from chexstudy import paths
from chexstudy.errors import StudyError

# These rooms show results or start notebooks; a change in them cannot change a number.
_PRESENTATION = {
    *("plots", "explorer.py", "cli.py", "doctor.py", "notebook.py", "parameters.py", "profiles.py", "runner.py"),
}
_WRITE_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS}
_RECORDED_VERSIONS = ("numpy", "pandas", "torch", "transformers", "faiss-cpu", "scikit-learn", "umap-learn")


@contextmanager
def atomic_path(final: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside ``final``; move it into place only when the block succeeds.

    A full disk or a killed process leaves the old file, or none, never half of one under its name; what a killed one
    had written so far is taken away by the next that writes the same file.

    Raises:
        StudyError: the disk is full or the place cannot be written.
    """
    final = Path(final)
    # The suffix stays last because numpy and image writers choose their format by it.
    temporary = final.with_name(f".{final.stem}.{platform.node()}.{os.getpid()}.partial{final.suffix}")
    with refused_writes(final):
        try:
            final.parent.mkdir(parents=True, exist_ok=True)
            _remove_leftovers(final)
            yield temporary
            with open(temporary, "rb") as handle:
                os.fsync(handle.fileno())
            os.replace(temporary, final)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


@contextmanager
def refused_writes(final: Path) -> Iterator[None]:
    """Turn a refusal of the operating system to write within the block into one sentence about ``final``.

    Raises:
        StudyError: the disk is full or the place cannot be written.
    """
    try:
        yield
    except BaseException as error:
        reason = _refusal_of_the_system(error)
        if reason is None:
            raise
        raise StudyError(
            f"could not write {final}: {reason}; free some space or set CHEXSTUDY_HOME to another disk."
        ) from error


def _remove_leftovers(final: Path) -> None:
    """Take away what processes of this machine that are no longer there left half written of this file."""
    before, after = f".{final.stem}.{platform.node()}.", f".partial{final.suffix}"
    for path in final.parent.glob(f"{glob.escape(before)}*{glob.escape(after)}"):
        process = path.name.removeprefix(before).removesuffix(after)
        try:
            os.kill(int(process), 0)
        except ProcessLookupError:
            path.unlink(missing_ok=True)
        except (ValueError, PermissionError):
            continue


def _refusal_of_the_system(error: BaseException) -> str | None:
    """Why the operating system refused to write, or None if something else went wrong.

    Writers in other languages hide it: torch keeps the ``OSError`` as the context of an error of its own, safetensors
    names its number in the text.
    """
    if isinstance(error, OSError):
        return error.strerror or str(error)
    number = re.search(r"\(os error (\d+)\)", str(error))
    code = int(number[1]) if number else getattr(error.__context__, "errno", None)
    return os.strerror(code) if code in _WRITE_ERRORS else None


def hash_file(path: str | Path) -> str:
    """SHA-256 of a file's bytes, as 64 hex digits."""
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def hash_values(*values: object) -> str:
    """SHA-256 of JSON-serialisable values, as 64 hex digits; dictionaries are compared without their order."""
    text = json.dumps(values, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


@cache
def source_hash() -> str:
    """Hash of the package's computing code (everything but plots, command line and runner), 12 hex digits."""
    digest = hashlib.sha256()
    for path in sorted(paths.PACKAGE.rglob("*.py")):
        relative = path.relative_to(paths.PACKAGE)
        if relative.parts[0] not in _PRESENTATION:
            digest.update(str(relative).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:12]


@cache
def code_revision() -> str:
    """The git commit of the checkout, ``+changes`` if the working tree differs, else ``unversioned``."""
    try:
        commit, status = (
            subprocess.run(
                ["git", "-C", str(paths.REPOSITORY), *command], capture_output=True, text=True, check=True
            ).stdout.strip()
            for command in (["rev-parse", "--short=12", "HEAD"], ["status", "--porcelain", "--", "chexstudy"])
        )
    except (OSError, subprocess.CalledProcessError):
        return "unversioned"
    return commit + ("+changes" if status else "")


@cache
def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for name in _RECORDED_VERSIONS:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


class Run:
    """The folder of one study and the artifacts in it.

    Args:
        study: name of the study, one folder name such as ``demo``.

    Raises:
        StudyError: the name is empty or is not a plain folder name.
    """

    def __init__(self, study: str):
        if not study or study.startswith(".") or Path(study).name != study:
            raise StudyError(f"study must be a plain folder name such as 'demo', not {study!r}.")
        self.study = study
        self.folder = paths.runs() / study

    def path(self, name: str) -> Path:
        """Where the artifact ``name`` (a relative path such as ``embeddings/image.npy``) lies or would lie."""
        return self.folder / name

    def has(self, name: str) -> bool:
        return self.path(name).exists()

    def require(self, name: str, made_by: str) -> Path:
        """The path of an artifact that another step makes.

        Raises:
            StudyError: it is missing; the sentence names the notebook or command ``made_by`` that makes it.
        """
        if not self.has(name):
            raise StudyError(f"study {self.study!r} has no {name} yet: run {made_by} first.")
        return self.path(name)

    # --- provenance -------------------------------------------------------------------------------------------------

    def key(self, parameters: dict, inputs: tuple[str, ...] = ()) -> str:
        """The key an artifact is written under: parameters, contents of its input artifacts, computing code."""
        hashes = {name: hash_file(self.path(name)) for name in inputs}
        return hash_values(parameters, hashes, source_hash())

    def is_current(self, name: str, key: str) -> bool:
        """Whether the artifact exists and was written under this key."""
        record = self.provenance(name)
        return self.has(name) and record is not None and record["key"] == key

    def provenance(self, name: str) -> dict | None:
        """What is recorded about an artifact, or None."""
        path = self.path(f"provenance/{name}.json")
        return json.loads(path.read_text()) if path.exists() else None

    def record(self, name: str, parameters: dict, inputs: tuple[str, ...] = (), seed: int | None = None) -> None:
        """Write down how an artifact came to be; call it after the artifact is in place."""
        record = {
            "key": self.key(parameters, inputs),
            "parameters": parameters,
            "inputs": {name: hash_file(self.path(name)) for name in inputs},
            "seed": seed,
            "code_revision": code_revision(),
            "source_hash": source_hash(),
            "versions": _versions(),
            "written_at": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        self.write_json(f"provenance/{name}.json", record)

    # --- reading and writing ----------------------------------------------------------------------------------------

    def write_table(self, name: str, table: pd.DataFrame) -> Path:
        """Write a parquet table atomically."""
        with atomic_path(self.path(name)) as temporary:
            table.to_parquet(temporary, index=False)
        return self.path(name)

    def read_table(self, name: str, made_by: str) -> pd.DataFrame:
        return pd.read_parquet(self.require(name, made_by))

    def write_array(self, name: str, array: np.ndarray) -> Path:
        """Write a ``.npy`` array atomically."""
        with atomic_path(self.path(name)) as temporary:
            np.save(temporary, array)
        return self.path(name)

    def read_array(self, name: str, made_by: str, memory_map: bool = False) -> np.ndarray:
        return np.load(self.require(name, made_by), mmap_mode="r" if memory_map else None, allow_pickle=False)

    def write_json(self, name: str, value: object) -> Path:
        with atomic_path(self.path(name)) as temporary:
            temporary.write_text(json.dumps(value, indent=2, sort_keys=True, default=str) + "\n")
        return self.path(name)

    def read_json(self, name: str, made_by: str) -> dict:
        return json.loads(self.require(name, made_by).read_text())
