"""WebDataset: tar shards whose members of one key are one sample (``KEY.png``, ``KEY.json``, ``KEY.txt``).

A key is a member's name up to its first dot, folders included, and numbers between dots, as in the UIDs of DICOM; the
rest is its kind. Members of a sample follow one another. JSON members give fields, text members one field each.
``columns: {image_path: KIND}`` says which of several is the image. Source: the WebDataset documentation, "The
WebDataset Format".
"""

import glob
import json
import os
import tarfile
import zlib
from collections.abc import Iterator
from functools import partial
from itertools import groupby, islice
from lzma import LZMAError
from pathlib import Path, PurePosixPath

import pandas as pd

from chexstudy.cohort.adapters.layout import IMAGE_SUFFIXES
from chexstudy.cohort.adapters.unpacking import (
    IMAGE_FILE,
    KEY,
    Part,
    Sample,
    build_from_rows,
    read_mapping,
    tell_split,
    unpack_parts,
)
from chexstudy.errors import StudyError
from chexstudy.paths import resolve_user_path

NAME = "webdataset"
SHARDS = (".tar", ".tar.gz", ".tgz")
_TEXTS = ("txt", "text", "report", "cls")
_BLOCK = 512  # bytes; a tar ends with blocks of zeros
# More than any radiograph or report needs, and little enough that an archive made to fill memory or disk cannot.
_LARGEST_IMAGE, _LARGEST_TEXT, _LARGEST_HEADER = 2**29, 2**24, 2**20  # bytes
_MOST_MEMBERS = 1000  # of a sample
_LONGEST_NAME = 255  # bytes of a file's name on most disks
_PAX_HEADERS = (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE)
_LONG_HEADERS = (*_PAX_HEADERS, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK)
_DAMAGES = (tarfile.TarError, EOFError, OSError, zlib.error, LZMAError)


class _Member(tarfile.TarInfo):
    """A member whose header is read only if it is of a sensible size."""

    def _proc_member(self, archive):
        if self.type in _LONG_HEADERS and self.size > _LARGEST_HEADER:
            raise tarfile.ReadError("a header beyond all names")
        return super()._proc_member(archive)


def build_webdataset(data_root: str | Path, seed: int, unpack_to: str | Path, **options) -> pd.DataFrame:
    """The cohort of a folder of tar shards, or of those that a pattern such as ``~/shards/train-*.tar`` names.

    Without a field split the names of shards tell it (``val/000000.tar``); where they tell none or all ``train``,
    patients are split.
    """
    shards, root = _find_shards(data_root)
    mapping = read_mapping(root, options)
    kind = str((mapping.get("columns") or {}).get("image_path") or "").lower().lstrip(".")
    parts = []
    for shard in shards:
        name = shard.relative_to(root).as_posix()
        parts.append(Part(name, shard, partial(_read_shard, shard, kind), _tell_split(name)))
    folder = Path(unpack_to) / NAME
    rows = unpack_parts(parts, folder, Path(__file__), kind)
    repeated = rows[rows[KEY].duplicated(keep=False)].sort_values(KEY, kind="stable")
    if len(repeated):
        first, again = (
            next(part.name for part in parts if image.startswith(f"{part.name}/")) for image in repeated[IMAGE_FILE][:2]
        )
        raise StudyError(
            f"{first} and {again} both hold a sample of one key ({repeated[KEY].nunique()} keys repeat): give each "
            "sample a key of its own."
        )
    return build_from_rows(rows, Path(unpack_to), NAME, seed, mapping)


def _find_shards(data_root: str | Path) -> tuple[list[Path], Path]:
    """The shards in order of name, and the folder from which their names count."""
    if not str(data_root or "").strip():
        raise StudyError("no shards were given: set data_root to the folder that holds them, or to a pattern.")
    path = resolve_user_path(data_root)
    if path.is_dir():
        found, root = [file for file in path.rglob("*") if file.is_file()], path
    else:
        found = [Path(file) for file in glob.glob(str(path), recursive=True) if os.path.isfile(file)]
        root = Path(os.path.commonpath([file.parent for file in found])) if found else path.parent
    shards = sorted(file for file in found if file.name.endswith(SHARDS) and not file.name.startswith("."))
    if not shards:
        raise StudyError(
            f"{path} holds and names no tar shard ({', '.join(SHARDS)}): set data_root to the folder that holds them, "
            "or to a pattern such as 'shards/train-*.tar'."
        )
    return shards, root


def _tell_split(name: str) -> str | None:
    path = PurePosixPath(name)
    return tell_split([path.name.split(".")[0].rstrip("0123456789").rstrip("-_"), *reversed(path.parts[:-1])])


def _read_shard(shard: Path, kind: str) -> Iterator[Sample]:
    places: dict[str, int] = {}
    for key, members in groupby(_read_members(shard), key=lambda member: member[0]):
        # Keys may be called after patients, so messages count.
        which = f"sample {len(places) + 1} of {shard.name}"
        if key in places:
            raise StudyError(
                f"{which} has the key of sample {places[key]}: give each sample a key of its own, and let its members "
                "follow one another."
            )
        places[key] = len(places) + 1
        own = [(suffix, data) for _, suffix, data in islice(members, _MOST_MEMBERS + 1)]
        if len(own) > _MOST_MEMBERS:
            raise StudyError(f"{which} has more than {_MOST_MEMBERS:,} members: give each image a key of its own.")
        yield _make_sample(which, key, own, kind)


def _make_sample(which: str, key: str, members: list[tuple[str, bytes]], kind: str) -> Sample:
    suffixes = [suffix for suffix, _ in members]
    twice = next((suffix for suffix in suffixes if suffixes.count(suffix) > 1), None)
    if twice is not None:
        raise StudyError(f"{which} has its member .{twice} twice: give each sample a key of its own.")
    images = [
        suffix for suffix in suffixes if (suffix == kind if kind else f".{suffix.rsplit('.', 1)[-1]}" in IMAGE_SUFFIXES)
    ]
    if not images:
        wanted, held = kind or "png, jpg, jpeg, dcm, tif or bmp", ", ".join(suffixes)
        raise StudyError(f"{which} has no image ({wanted}) but {held}: add it, or take the sample out.")
    if len(images) > 1:
        held = f"{len(images)} images ({', '.join(images)})"
        raise StudyError(f"{which} has {held}: say which by 'columns: {{image_path: KIND}}'.")
    fields: dict[str, object] = {}
    for suffix, data in members:
        if suffix == "json" or suffix in _TEXTS:
            fields |= _read_fields(which, suffix, data)
    image = dict(members)[images[0]]
    return Sample(f"{key}.{images[0]}", image, fields, key)


def _read_fields(which: str, suffix: str, data: bytes) -> dict[str, object]:
    if len(data) > _LARGEST_TEXT:
        raise StudyError(f"{which} has a member .{suffix} of more than {_LARGEST_TEXT >> 20} MiB: take it out.")
    try:
        text = data.decode("utf-8-sig")
        if suffix != "json":
            return {suffix: text}
        fields = json.loads(text)
    except (ValueError, RecursionError):
        fields = None
    if not isinstance(fields, dict):
        expected = "a JSON object" if suffix == "json" else "UTF-8 text"
        raise StudyError(f"the member .{suffix} of {which} is not {expected}: write it again.")
    return fields


def _read_members(shard: Path) -> Iterator[tuple[str, str, bytes]]:
    """Key, kind and bytes of each member."""
    count = 0
    try:
        with tarfile.open(shard, "r:*", tarinfo=_Member) as archive:
            for count, member in enumerate(archive, start=1):
                key, suffix = _split_name(member.name)
                if member.isdir() or not suffix:
                    continue
                problem = _find_problem(member, key)
                if problem:
                    raise StudyError(f"member {count} of {shard.name} {problem}.")
                yield key, suffix, archive.extractfile(member).read()
            # The library takes a broken header, or none, for the end; the end of a whole archive is a block of zeros.
            archive.fileobj.seek(archive.offset)
            if archive.fileobj.read(_BLOCK) != bytes(_BLOCK):
                raise tarfile.ReadError("no end of archive")
    except _DAMAGES:
        after = f" after {count} members" if count else ""
        raise StudyError(f"the shard {shard} is damaged or cut short{after}: fetch it again.") from None


def _find_problem(member: tarfile.TarInfo, key: str) -> str:
    """Why a member must not be unpacked; empty if it may be."""
    if not member.isfile():
        return "is a link, a device or a pipe: an archive of samples holds regular files alone"
    if key.startswith("/") or ".." in PurePosixPath(key).parts:
        return "would lie outside its own folder: fetch the archive from a better place"
    if member.size > _LARGEST_IMAGE:
        return f"has more than {_LARGEST_IMAGE >> 20} MiB, which no radiograph has: take it out"
    if "\0" in member.name or any(len(os.fsencode(part)) > _LONGEST_NAME for part in PurePosixPath(member.name).parts):
        return f"has a name that no disk takes: names have at most {_LONGEST_NAME} bytes"
    return ""


def _split_name(name: str) -> tuple[str, str]:
    """``a/b.cxr.PNG`` to ``a/b``, ``cxr.png``; ``1.2.84.png`` to ``1.2.84``, ``png``; hidden files have no kind."""
    folder, _, base = name.removeprefix("./").rpartition("/")
    stem, _, suffix = base.partition(".")
    parts = base.split(".")
    numbers = [place for place, part in enumerate(parts) if place and part.isdecimal()]
    if stem and len(numbers) > 1:
        stem, suffix = ".".join(parts[: numbers[-1] + 1]), ".".join(parts[numbers[-1] + 1 :])
    if not stem or folder.startswith("__MACOSX"):
        return name, ""
    return f"{folder}/{stem}" if folder else stem, suffix.lower()
