"""A run folder: named artifacts of one study, written atomically, each with its provenance beside it.

An artifact is *current* when the key it was written under is the key asked for: the hash of its parameters, of its
input artifacts and of the code that computes it (`chexstudy.code_closure`). A stale artifact is computed again, a
current one is reused, so a killed study goes on where it stopped and a changed one is never mixed with an old one.

Every artifact is *sealed*: ``provenance/NAME.json`` holds the SHA-256 of its bytes, and whoever reads the artifact
compares. One that was damaged or edited is never used: it is not current, so the step that makes it makes it again, and
a step that only reads it stops and says which one makes it. Files without a seal are the user's own.
"""

import errno
import fcntl
import glob
import hashlib
import json
import os
import platform
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from datetime import UTC, datetime
from functools import cache
from importlib import metadata
from pathlib import Path

import numpy as np
import pandas as pd

from chexstudy import paths
from chexstudy.children import has_ended
from chexstudy.code_closure import Makers, code_revision, hash_closure, name_computing_modules
from chexstudy.errors import StudyError
from chexstudy.steps import find_step

_WRITE_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS}
# Names the notebook at work, for its own process and those it starts.
MADE_BY_VARIABLE = "CHEXSTUDY_NOTEBOOK"
# In place of a locked file, on a file system without locks.
NO_LOCKS = -1
# Within this time of a change, a file could change again and show the same time.
_CLOCK_TICK = 2 * 10**9
# File systems take names of 255 bytes.
_LONGEST_NAME = 200
_SECONDS_OF_A_REPLACEMENT = 0.2
_LARGE_FILE = 2**28  # bytes
_SECONDS_OF_TRUST = 12 * 3600
_RECORDED_VERSIONS = ("numpy", "pandas", "torch", "transformers", "faiss-cpu", "scikit-learn", "umap-learn")


@contextmanager
def atomic_path(final: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside ``final``; move it into place only when the block succeeds.

    A full disk or a killed process leaves the old file, or none, never half of one under its name; what a killed one
    had written so far is taken away by the next that writes the same file.
    """
    final = Path(final)
    # The suffix stays last because numpy and image writers choose their format by it.
    temporary = final.with_name(f"{name_partial(final.stem)}{final.suffix}")
    with refused_writes(final):
        try:
            final.parent.mkdir(parents=True, exist_ok=True)
            remove_leftovers(final.parent, f".{glob.escape(final.stem)}")
            yield temporary
            with open(temporary, "rb") as handle:
                os.fsync(handle.fileno())
            os.replace(temporary, final)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def name_partial(stem: str) -> str:
    """What a file or folder is called while this process writes it."""
    return f".{stem}.{platform.node()}.{os.getpid()}.partial"


@contextmanager
def refused_writes(final: Path) -> Iterator[None]:
    """Turn a refusal of the operating system to write within the block into one sentence about ``final``."""
    try:
        yield
    except BaseException as error:
        reason = _refusal_of_the_system(error)
        if reason is None:
            raise
        raise StudyError(
            f"could not write {final}: {reason}; free some space or set CHEXSTUDY_HOME to another disk."
        ) from error


def lock_file(path: Path, wait: bool = False) -> int | None:
    """Lock a file, which is made if need be; the system lets go when it is closed or all that hold it open have ended.

    Returns the descriptor of the open file, `NO_LOCKS` where the file system knows none, and None if another process
    holds it and is not waited for.
    """
    with refused_writes(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        return None if isinstance(error, BlockingIOError) else NO_LOCKS
    return descriptor


@contextmanager
def hold_lock(path: Path, wait: bool = False) -> Iterator[bool]:
    """As `lock_file` for the time of the block; says whether no other process holds it."""
    descriptor = lock_file(path, wait)
    try:
        yield descriptor is not None
    finally:
        if descriptor not in (None, NO_LOCKS):
            os.close(descriptor)


def remove_leftovers(folder: Path, pattern: str = "**/.*") -> None:
    """Take away what processes of this machine that are no longer there left half written, under a pattern of names."""
    for path in folder.glob(f"{pattern}.{glob.escape(platform.node())}.*.partial*"):
        process = re.search(r"\.(\d+)\.partial[^/]*$", path.name)
        if process and has_ended(int(process[1])):
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)


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


_hashes: dict[tuple[int, ...], str] = {}


def hash_file(path: str | Path) -> str:
    """SHA-256 of a file's bytes, as 64 hex digits.

    While its size and times of change stay, a file is read once a process, and one of 256 MiB or more once in twelve
    hours, by whichever process is the first.
    """
    with open(path, "rb") as handle:
        status = os.fstat(handle.fileno())
        state = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
        if state not in _hashes:
            memo = paths.cache() / "hashes" / hash_values(state) if status.st_size >= _LARGE_FILE else None
            digest = _recall(memo) if memo else None
            if digest is None:
                digest = hashlib.file_digest(handle, "sha256").hexdigest()
                if time.time_ns() - status.st_mtime_ns < _CLOCK_TICK:
                    return digest
                if memo:
                    with suppress(StudyError), atomic_path(memo) as temporary:
                        temporary.write_text(digest)
            _hashes[state] = digest
    return _hashes[state]


def _recall(memo: Path) -> str | None:
    """The hash that a process wrote down not long ago."""
    with suppress(OSError):
        digest, age = memo.read_text(), time.time() - memo.stat().st_mtime
        if re.fullmatch(r"[0-9a-f]{64}", digest) and 0 <= age < _SECONDS_OF_TRUST:
            return digest
        memo.unlink()
    return None


def hash_artifact(path: Path) -> str:
    """SHA-256 of a file's bytes, or of a folder's file names and their hashes; hidden files do not count."""
    if not path.is_dir():
        return hash_file(path)
    files = {one.relative_to(path): one for one in path.rglob("*") if one.is_file()}
    shown = [name for name in sorted(files) if not any(part.startswith(".") for part in name.parts)]
    return hash_values([(name.as_posix(), hash_file(files[name])) for name in shown])


def hash_values(*values: object) -> str:
    """SHA-256 of JSON-serialisable values, as 64 hex digits; dictionaries are compared without their order."""
    text = json.dumps(values, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


# Folders of the studies that this process has opened; others are known by where they lie.
_opened: set[Path] = set()


@contextmanager
def artifact_path(final: str | Path) -> Iterator[Path]:
    """As `atomic_path`, for an artifact of a study: it is sealed with the SHA-256 of what was written."""
    with atomic_path(final) as temporary:
        yield temporary
        seal_artifact(Path(final), hash_file(temporary))


def seal_artifact(path: Path, sha256: str | None = None, grown_under: str = "") -> None:
    """Write the SHA-256 of an artifact, file or folder, into its provenance; elsewhere than in a study do nothing.

    ``sha256`` is that of what is about to be there, if it is not there yet; ``grown_under`` the key of an array that is
    done before the artifact it is a part of.
    """
    record = _find_record(path)
    if record:
        key = {"grown_under": grown_under} if grown_under else {}
        write_record(record, {"sha256": sha256 or hash_artifact(path)} | key)


def has_grown(path: Path, key: str) -> bool:
    """Whether an artifact is whole and was sealed as grown under this key."""
    record = _find_record(path)
    seal = (read_record(record) if record else None) or {}
    return seal.get("grown_under") == key and not _find_damage(path, record)


def require_whole(path: Path) -> None:
    """Stop at an artifact that is not what was written."""
    record = _find_record(path)
    if damage := _find_damage(path, record):
        raise _refuse_damaged(str(path), damage, record)


def forget_artifact(path: Path) -> None:
    """Take an artifact away, file or folder, with what is recorded of it."""
    record = _find_record(path)
    for one in (path, record, record and record.with_suffix("")):
        if one and one.is_dir():
            shutil.rmtree(one)
        elif one:
            one.unlink(missing_ok=True)


def _find_record(path: Path) -> Path | None:
    """Where the provenance of an artifact lies, or None if it lies in no study."""
    runs = paths.runs()
    folder = next((one for one in path.parents if one in _opened or one.parent == runs), None)
    return folder / "provenance" / f"{path.relative_to(folder)}.json" if folder else None


def write_record(path: Path, record: dict) -> None:
    """Write provenance, with a hash of its own: what is recorded is as easily damaged as what it is about."""
    made_by = {"made_by": os.environ[MADE_BY_VARIABLE]} if MADE_BY_VARIABLE in os.environ else {}
    record = json.loads(json.dumps(made_by | record, default=str))
    with atomic_path(path) as temporary:
        content = record | {"record_sha256": hash_values(record)}
        temporary.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")


def read_record(path: Path) -> dict | None:
    """Provenance as it was written: None if there is none, empty if it was damaged."""
    try:
        record = json.loads(path.read_bytes())
        return record if record.pop("record_sha256") == hash_values(record) else {}
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError, LookupError, TypeError, AttributeError):
        return {}


def _find_damage(path: Path, record: Path | None, sha256: str | None = None) -> str:
    """What is wrong with an artifact, to follow its name in a sentence; empty if it is what was written there.

    ``sha256`` is what is expected, that of the seal if not given.
    """
    for last in (False, True):
        seal = read_record(record) if record else None
        if seal is None and sha256 is None:
            return ""
        expected = sha256 or seal.get("sha256")
        try:
            if expected and hash_artifact(path) == expected:
                return ""
        except OSError as error:
            return f"cannot be read ({error.strerror or error})"
        if not last:
            # Another process may be just between writing the seal and putting the file in its place.
            time.sleep(_SECONDS_OF_A_REPLACEMENT)
    if not expected:
        return "has a provenance that cannot be read"
    return "is not what was written there (its SHA-256 differs), it was damaged or changed"


def _refuse_damaged(name: str, damage: str, record: Path) -> StudyError:
    folder = next(one for one in record.parents if one.name == "provenance")
    seal, artifact = read_record(record) or {}, record.relative_to(folder).as_posix().removesuffix(".json")
    return StudyError(f"{name} {damage}: run {seal.get('made_by') or find_step(artifact)} again, which makes it anew.")


@cache
def list_versions(packages: tuple[str, ...] = _RECORDED_VERSIONS) -> dict[str, str]:
    """Versions of Python and of those packages that are installed."""
    versions = {"python": platform.python_version()}
    for name in packages:
        with suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return versions


class Run:
    """The folder of one study and the artifacts in it; a study is named by one folder name such as ``demo``."""

    def __init__(self, study: str):
        if not study or study.startswith(".") or Path(study).name != study or not study.isprintable():
            raise StudyError(f"study must be a plain folder name such as 'demo', not {study!r}.")
        if len(os.fsencode(study)) > _LONGEST_NAME:
            raise StudyError(f"the name of study '{study[:20]}...' is too long: give it at most {_LONGEST_NAME} bytes.")
        self._open(study, paths.runs() / study)

    def _open(self, study: str, folder: Path) -> None:
        self.study, self.folder = study, folder
        _opened.add(folder)

    def path(self, name: str) -> Path:
        """Where the artifact ``name`` (a relative path such as ``embeddings/image.npy``) lies or would lie."""
        return self.folder / name

    def has(self, name: str) -> bool:
        return self.path(name).exists()

    def require(self, name: str) -> Path:
        """The path of an artifact that another step makes."""
        path = self.path(name)
        if not path.exists():
            raise StudyError(f"study {self.study!r} has no {name} yet: run {find_step(name)} first.")
        if damage := self.find_damage(name):
            raise _refuse_damaged(f"{name} of study {self.study!r}", damage, self._record_path(name))
        return path

    def key(self, parameters: dict, inputs: tuple[str, ...] = (), by: Makers = None) -> str:
        """The key an artifact is written under: parameters, contents of its input artifacts, code that computes it.

        The last is the calling module with all that it imports, or those of functions or classes ``by``.
        """
        modules = name_computing_modules(by, sys._getframe(1))
        return hash_values(self.data_key(parameters, inputs), hash_closure(modules))

    def data_key(self, parameters: dict, inputs: tuple[str, ...] = ()) -> str:
        """As `key`, whatever the code: what work that is half done belongs to."""
        return hash_values(parameters, self._hash_inputs(inputs))

    def _hash_inputs(self, inputs: tuple[str, ...]) -> dict[str, str]:
        return {name: hash_artifact(self.require(name)) for name in inputs}

    def is_current(self, name: str, key: str) -> bool:
        """Whether the artifact exists, was written under this key, and is whole, with all files recorded with it.

        What was damaged or changed is said, since it will be made again.
        """
        if not self.has(name):
            return False
        record = read_record(self._record_path(name))
        if record is None or (record and record.get("key") != key):
            return False
        for part, sha256 in {name: record.get("sha256"), **record.get("files", {})}.items():
            if not self.has(part):
                return False
            damage = _find_damage(self.path(part), self._record_path(part), sha256)
            if damage:
                print(f"{part} of study {self.study!r} {damage}: it is made again.", flush=True)
                return False
            if not read_record(self._record_path(part)):
                # Of the part, only the seal was lost, and the whole vouches for it.
                write_record(self._record_path(part), {"sha256": sha256})
        return True

    def find_damage(self, name: str) -> str:
        """What is wrong with an artifact that is there, to follow its name in a sentence; empty if nothing is.

        Of the files recorded with it, those beside it must be of the same making; their bytes count when they are read.
        """
        if damage := _find_damage(self.path(name), self._record_path(name)):
            return damage
        for part, sha256 in (self.provenance(name) or {}).get("files", {}).items():
            seal = read_record(self._record_path(part)) if Path(part).parent == Path(name).parent else None
            if seal and seal.get("sha256") != sha256:
                return f"was written with another {part} than there is now"
        return ""

    def _record_path(self, name: str) -> Path:
        return self.path(f"provenance/{name}.json")

    def provenance(self, name: str) -> dict | None:
        """How an artifact came to be, as `record` wrote it; None if nobody did, or if that was damaged."""
        record = read_record(self._record_path(name))
        return record if record and "key" in record else None

    def record(
        self,
        name: str,
        parameters: dict,
        inputs: tuple[str, ...] = (),
        seed: int | None = None,
        files: tuple[str, ...] = (),
        by: Makers = None,
    ) -> None:
        """Write down how an artifact came to be; call it after the artifact is in place.

        ``files`` are further files or folders that were written with it: without them it is not current. The others
        are as in `key`.
        """
        modules = name_computing_modules(by, sys._getframe(1))
        hashes = {one: hash_artifact(self.require(one)) for one in (name, *files)}
        for one in files:
            if not read_record(self._record_path(one)):
                write_record(self._record_path(one), {"sha256": hashes[one]})
        record = {
            "sha256": hashes[name],
            "files": {one: hashes[one] for one in files},
            "key": hash_values(self.data_key(parameters, inputs), hash_closure(modules)),
            "parameters": parameters,
            "inputs": self._hash_inputs(inputs),
            "seed": seed,
            "code_revision": code_revision(),
            "module": modules,
            "code_hash": hash_closure(modules),
            "versions": list_versions(),
            "written_at": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        write_record(self._record_path(name), record)

    def writing(self, name: str) -> AbstractContextManager[Path]:
        """A temporary path for an artifact; it is sealed and moved into place when the block succeeds."""
        return artifact_path(self.path(name))

    def _read(self, read: Callable, name: str) -> object:
        path = self.require(name)
        try:
            return read(path)
        except (OSError, ValueError, EOFError, RecursionError) as error:
            reason = getattr(error, "strerror", None) or type(error).__name__
            raise StudyError(
                f"{name} of study {self.study!r} cannot be read ({reason}): run {find_step(name)} again, or put a "
                "whole one there."
            ) from None

    def write_table(self, name: str, table: pd.DataFrame) -> Path:
        """Write a parquet table atomically."""
        with self.writing(name) as temporary:
            table.to_parquet(temporary, index=False)
        return self.path(name)

    def read_table(self, name: str) -> pd.DataFrame:
        return self._read(pd.read_parquet, name)

    def keep_tables(
        self,
        names: Sequence[str],
        parameters: dict,
        make: Callable[[], Iterable[pd.DataFrame]],
        inputs: Sequence[str] = (),
        seed: int | None = None,
        by: Makers = None,
    ) -> list[pd.DataFrame]:
        """Tables as they are kept where all are current, else made in this order, written and recorded.

        They depend on parameters, on inputs (artifacts) and on the code of the module of ``by`` or else of ``make``.
        """
        by, inputs = by or make, tuple(inputs)
        key = self.key(parameters, inputs, by)
        if not all(self.is_current(name, key) for name in names):
            for name, table in zip(names, make(), strict=True):
                self.write_table(name, table)
                self.record(name, parameters, inputs, seed, by=by)
        return [self.read_table(name) for name in names]

    def write_array(self, name: str, array: np.ndarray) -> Path:
        """Write a ``.npy`` array atomically."""
        with self.writing(name) as temporary:
            np.save(temporary, array)
        return self.path(name)

    def read_array(self, name: str, memory_map: bool = False) -> np.ndarray:
        mode = "r" if memory_map else None
        return self._read(lambda path: np.load(path, mmap_mode=mode, allow_pickle=False), name)

    def write_json(self, name: str, value: object) -> Path:
        with self.writing(name) as temporary:
            temporary.write_text(json.dumps(value, indent=2, sort_keys=True, default=str) + "\n")
        return self.path(name)

    def read_json(self, name: str) -> dict:
        return self._read(lambda path: json.loads(path.read_bytes()), name)
