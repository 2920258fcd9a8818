"""What all adapters need from a data set's folder: its place, its tables and its image files, or one clear sentence."""

import json
import os
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property, lru_cache
from pathlib import Path

import pandas as pd

from chexstudy.cohort.images.dicom import read_tags
from chexstudy.cohort.table import require_columns
from chexstudy.errors import StudyError
from chexstudy.inputs.tables import read_text_table
from chexstudy.paths import resolve_user_path
from chexstudy.progress import progress

# Where a name without its ending means several files, the first of these is taken.
_ENDINGS = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".dcm", ".dicom")
IMAGE_SUFFIXES = frozenset(_ENDINGS)
# By the first letter of a unit, in English, Spanish or French: days, weeks, months.
_YEARS_IN = {"d": 1 / 365.25, "j": 1 / 365.25, "w": 7 / 365.25, "s": 7 / 365.25, "m": 1 / 12}
# The number of images in the folder that no row of the tables names, kept in ``cohort.attrs``.
WHO = {"view": "ViewPosition", "sex": "PatientSex", "age": "PatientAge"}  # column -> keyword of DICOM headers
IMAGES_WITHOUT_ROW = "images_without_row"


def require_folder(data_root: str | Path, holding: str) -> Path:
    """The data folder as an absolute path."""
    if not str(data_root or "").strip():
        raise StudyError(f"no data folder was given: set data_root to the folder that holds {holding}.")
    folder = resolve_user_path(data_root)
    if not folder.is_dir():
        raise StudyError(f"there is no folder {folder}: set data_root to the folder that holds {holding}.")
    return folder


def list_files(folder: Path) -> list[str]:
    """Every file under a folder by its path from there, in order, hidden ones left out; links are walked once."""
    found, seen = [], set()

    def walk(place: str, start: str) -> None:
        real = resolve_links(place)
        if real in seen or not os.access(place, os.R_OK | os.X_OK):
            return
        seen.add(real)
        with os.scandir(place) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                if entry.name.startswith((".", "__MACOSX")):
                    continue
                if entry.is_dir():
                    walk(entry.path, f"{start}{entry.name}/")
                elif entry.is_file():
                    found.append(start + entry.name)

    walk(str(folder), "")
    return found


def is_image(name: str) -> bool:
    """Whether a file is an image by its name."""
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES


def drop_ending(name: str) -> str:
    """The name of an image without the ending, if it has one: a UID without an ending has dots too."""
    return os.path.splitext(name)[0] if is_image(name) or name.endswith(".img") else name


class Download:
    """The folder of a public data set as it was unpacked: files are found wherever they lie under it.

    ``holding`` says what it holds, behind "the folder that holds"; ``tables`` are names of the set's table, the newest
    first.
    """

    def __init__(self, data_root: str | Path, holding: str, tables: Sequence[str] = ()):
        self.folder = require_folder(data_root, holding)
        self._holding, self._tables = holding, tables

    @cached_property
    def files(self) -> list[str]:
        """All files by their paths from the folder, in order of path."""
        return list_files(self.folder)

    @cached_property
    def table(self) -> Path:
        """The set's table; the folder, for a set that has none."""
        return self.require(*self._tables) if self._tables else self.folder

    def find(self, *names: str) -> Path | None:
        """The file that goes by one of these names or ends of paths, the first that is there, as it is or as ``.gz``.

        ``*`` in a name stands for what differs between deliveries. The file nearest to the folder is meant; two as near
        are refused.
        """
        for name in names:
            found = self._find_tail(name) or self._find_tail(f"{name}.gz") or self._find_tail(name.removesuffix(".gz"))
            depths = [file.count("/") for file in found]
            if depths.count(min(depths, default=0)) > 1:
                places = " and ".join(found[:2])
                raise StudyError(f"{self.folder} holds {places}: set data_root to the folder that holds one of them.")
            if found:
                return self.folder / min(found, key=lambda file: file.count("/"))
        return None

    def require(self, *names: str) -> Path:
        """As `find`, or a StudyError."""
        found = self.find(*names)
        if found is None:
            raise StudyError(
                f"{self.folder} has no {' or '.join(names)}: set data_root to the folder that holds {self._holding}."
            )
        return found

    def read(self, *names: str, columns: Iterable[str] = ()) -> pd.DataFrame:
        """A table by its names (the set's own if none is given), every cell text or missing, with these columns."""
        path = self.require(*names) if names else self.table
        table = read_text_table(path)
        require_columns(table, columns, path.name)
        return table

    def read_each(self, *names: str, columns: Iterable[str] = ()) -> pd.DataFrame:
        """Those of several CSV files that are there, one below another; the place of a row says its file too."""
        tables = []
        for path in [path for name in names if (path := self.find(name))] or [self.require(*names)]:
            table = read_text_table(path)
            require_columns(table, columns, path.name)
            tables.append(table.set_axis(pd.Index([f"{line} of {path.name}" for line in table.index], name="line")))
        return pd.concat(tables)

    def _find_tail(self, name: str) -> list[str]:
        tail = _plain_path(name)
        if "*" in tail:
            pattern = re.compile(rf"(?:.*/)?{re.escape(tail).replace(re.escape('*'), '[^/]*')}")
            files = (file for files in self._by_name.values() for file in files)
            return [file for file in files if pattern.fullmatch(_plain_path(file))]
        named_so = self._by_name.get(os.path.basename(tail), [])
        return [file for file in named_so if f"/{_plain_path(file)}".endswith(f"/{tail}")]

    @cached_property
    def _by_name(self) -> dict[str, list[str]]:
        by_name: dict[str, list[str]] = {}
        for file in self.files:
            if not is_image(file):
                by_name.setdefault(_plain_path(os.path.basename(file)), []).append(file)
        return by_name


class ImageFinder:
    """Image files under a folder by the names that a table gives them.

    A name that is no file is looked for in another Unicode form, letter case, and without ending, as other systems
    write it. ``anywhere``, for public sets: a name is the end of a path, and the file nearest to the folder with the
    name's own ending is meant; else it is a whole path and means one file. ``images`` are the paths of all that may be
    meant.
    """

    def __init__(self, folder: Path, images: Sequence[str] | None = None, anywhere: bool = False):
        self.folder, self._anywhere = folder, anywhere
        self._by_parts: dict[int, dict[str, list[str]]] = {}
        if images is not None:
            self.images = images

    @cached_property
    def images(self) -> Sequence[str]:
        """All image files that may be meant, by their paths from the folder, in order of path."""
        return [name for name in list_files(self.folder) if is_image(name)]

    def find(self, name: str) -> str:
        """The file meant by a name; where there is none, the name as a path from the folder."""
        path = os.path.join(self.folder, name)
        # Unlike Path.is_file, this takes a name of any length for no file.
        if not self._anywhere and os.path.isfile(path):
            return path
        key = _plain_path(name)
        meant = self._list_keys(key.count("/") + 1 if self._anywhere else 0).get(key, ())
        if self._anywhere and not meant:
            meant = self._list_keys(key.count("/") + 1).get(drop_ending(key), ())
        return os.path.join(self.folder, meant[0]) if len(meant) == 1 or (meant and self._anywhere) else path

    def list_meant(self, names: Iterable[str]) -> set[str]:
        """All files that names of a public set may mean, of any ending: in two forms it has two an image."""
        keys = {drop_ending(_plain_path(name)) for name in names} if self._anywhere else ()
        return {file for key in keys for file in self._list_keys(key.count("/") + 1).get(key, ())}

    def _list_keys(self, parts: int) -> dict[str, list[str]]:
        """The last so many parts of the paths (all of 0), with and without ending -> files, the likeliest first."""
        if parts not in self._by_parts:
            by_key: dict[str, list[str]] = {}
            for name in sorted(self.images, key=_rank) if self._anywhere else self.images:
                key = "/".join(_plain_path(name).split("/")[-parts:])
                for one in dict.fromkeys((key, drop_ending(key))):
                    by_key.setdefault(one, []).append(name)
            self._by_parts[parts] = by_key
        return self._by_parts[parts]


@contextmanager
def read_json(path: Path, what: str) -> Iterator[object]:
    """What a JSON file holds; that it is not ``what`` is one sentence, also where that shows as it is used."""
    try:
        yield json.loads(path.read_bytes())
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise StudyError(f"{path} is not {what}, or a part of it (see {error}): fetch it again.") from None


def read_headers(download: Download, images: pd.Series, names: Mapping[str, str]) -> pd.DataFrame:
    """Columns of what DICOM headers say under keywords (column -> keyword), empty where the image is not there."""
    dicoms = (file for file in download.files if file.endswith((".dicom", ".dcm")))
    files = {os.path.splitext(os.path.basename(file))[0]: download.folder / file for file in dicoms}
    tags, empty = list(names.values()), [""] * len(names)
    found = progress(images, len(images), "reading headers")
    rows = [read_tags(files[image], tags) if image in files else empty for image in found]
    return pd.DataFrame(rows, images.index, list(names), dtype="str")


def resolve_links(path: str) -> str:
    """The absolute path without links, as `os.path.realpath` has it, at the cost of one look at it and its folders."""
    if not path.startswith("/") or "/." in path or "//" in path or os.path.islink(path):
        return os.path.realpath(path)
    folder, _, name = path.rpartition("/")
    return f"{_resolve_folder(folder)}/{name}"


@lru_cache(maxsize=2**20)
def _resolve_folder(folder: str) -> str:
    return resolve_links(folder) if folder else ""


def parse_years(text: pd.Series) -> pd.Series:
    """Ages in years from ``58``, ``58.5``, ``058Y``, ``57 ans``, ``6 months``, ``012D``; NaN where there is none."""
    parts = text.astype("str").str.strip().str.lower().str.extract(r"^(\d+(?:\.\d+)?)\s*([a-z]*)")
    years_in_unit = parts[1].str[:1].map(_YEARS_IN).fillna(1.0)
    return (pd.to_numeric(parts[0], errors="coerce") * years_in_unit).astype("float32")


def _rank(name: str) -> tuple[int, int]:
    ending = os.path.splitext(name)[1].lower()
    return name.count("/"), _ENDINGS.index(ending) if ending in _ENDINGS else len(_ENDINGS)


def _plain_path(name: str) -> str:
    name = os.path.normpath(name)
    return (name if name.isascii() else unicodedata.normalize("NFC", name)).casefold()
