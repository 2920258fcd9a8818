"""What all adapters need from a data set's folder: its place, its tables and its image files, or one clear sentence."""

import os
import unicodedata
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from types import MappingProxyType

import pandas as pd

from chexstudy.errors import StudyError
from chexstudy.paths import resolve_user_path

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".dcm", ".dicom"})
# The number of images in the folder that no row of the tables names, kept in ``cohort.attrs``.
IMAGES_WITHOUT_ROW = "images_without_row"


def require_folder(data_root: str | Path, holding: str) -> Path:
    """The data folder as an absolute path."""
    if not str(data_root or "").strip():
        raise StudyError(f"no data folder was given: set data_root to the folder that holds {holding}.")
    folder = resolve_user_path(data_root)
    if not folder.is_dir():
        raise StudyError(f"there is no folder {folder}: set data_root to the folder that holds {holding}.")
    return folder


def list_images(folder: Path) -> Iterator[Path]:
    """Every file under a folder that is named like an image, hidden ones left out, in order of path.

    Linked folders are walked once each, whatever links to whatever.
    """
    found, seen = [], set()
    for place, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(place)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not _is_hidden(name))
        images = (
            name for name in files if os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES and not _is_hidden(name)
        )
        found += [path for path in (Path(place, name) for name in images) if path.is_file()]
    yield from sorted(found)


class ImageFinder:
    """Image files under a folder by the names that a table gives them.

    A name that is no file is looked for once more in another Unicode form, with other letter case, and without the
    ending, and taken if exactly one file is meant: other systems write names in other forms. ``by_name`` holds files by
    their names where names say nothing of folders.
    """

    def __init__(self, folder: Path, by_name: Mapping[str, Path] = MappingProxyType({})):
        self.folder, self._by_name = folder, by_name

    @cached_property
    def images(self) -> tuple[Path, ...]:
        """All image files that may be meant."""
        return tuple(self._by_name.values() or list_images(self.folder))

    def find(self, name: str) -> Path:
        """The file meant by a path from the folder; where there is none, the path as it is."""
        path = self._by_name.get(name, self.folder / name)
        # Unlike Path.is_file, this takes a name of any length for no file.
        if os.path.isfile(path):
            return path
        meant = self._by_key.get(_plain_path(name), ())
        return meant[0] if len(meant) == 1 else path

    @cached_property
    def _by_key(self) -> dict[str, list[Path]]:
        by_key: dict[str, list[Path]] = {}
        for path in self.images:
            name = path.relative_to(self.folder).as_posix()
            for key in (_plain_path(name), _plain_path(name).rpartition(".")[0]):
                by_key.setdefault(key, []).append(path)
        return by_key


def _plain_path(name: str) -> str:
    return unicodedata.normalize("NFC", os.path.normpath(name)).casefold()


def parse_years(text: pd.Series) -> pd.Series:
    """Ages in years from ``58``, ``58.5``, ``058Y``, ``58yrs``, ``6 months``, ``012D``; NaN where there is none."""
    parts = text.astype("str").str.strip().str.lower().str.extract(r"^(\d+(?:\.\d+)?)\s*([a-z]*)")
    years_in_unit = parts[1].str[:1].map({"d": 1 / 365.25, "w": 7 / 365.25, "m": 1 / 12}).fillna(1.0)
    return (pd.to_numeric(parts[0], errors="coerce") * years_in_unit).astype("float32")


def _is_hidden(name: str) -> bool:
    return name.startswith((".", "__MACOSX"))
