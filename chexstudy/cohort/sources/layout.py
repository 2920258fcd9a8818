"""What all adapters need from a data set's folder: its place, its tables and its image files, or one clear sentence."""

from collections.abc import Iterable, Iterator
from pathlib import Path

import pandas as pd

from chexstudy.errors import StudyError
from chexstudy.paths import resolve_user_path

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".dcm", ".dicom"})
# The number of images in the folder that no row of the tables names, kept in ``cohort.attrs``.
IMAGES_WITHOUT_ROW = "images_without_row"


def require_folder(data_root: str | Path, holding: str) -> Path:
    """The data folder as an absolute path.

    Raises:
        StudyError: no folder was given, or it does not exist; the sentence says what it should hold.
    """
    if not str(data_root or "").strip():
        raise StudyError(f"no data folder was given: set data_root to the folder that holds {holding}.")
    folder = resolve_user_path(data_root)
    if not folder.is_dir():
        raise StudyError(f"there is no folder {folder}: set data_root to the folder that holds {holding}.")
    return folder


def read_table(path: Path) -> pd.DataFrame:
    """A CSV (or ``.tsv``) or Parquet table with every value as text, and missing where the cell is empty.

    Raises:
        StudyError: there is no such file, or it cannot be read as a table.
    """
    if not path.is_file():
        raise StudyError(f"there is no table {path}: check its name and the data folder.")
    try:
        if path.suffix.lower() in (".parquet", ".pq"):
            return _as_text(pd.read_parquet(path))
        separator = "\t" if path.suffix.lower() == ".tsv" else ","
        return pd.read_csv(
            path, sep=separator, dtype="str", keep_default_na=False, na_values=[""], encoding="utf-8-sig"
        )
    except (ValueError, OSError) as error:
        what = "is not UTF-8 text" if isinstance(error, UnicodeDecodeError) else "cannot be read as a table"
        raise StudyError(f"{path} {what}: save it again as CSV in UTF-8 or as Parquet.") from None


def require_columns(table: pd.DataFrame, names: Iterable[str], path: Path) -> None:
    """Raise a StudyError unless the table has these columns; the sentence lists those it has."""
    missing = [name for name in names if name not in table.columns]
    if missing:
        raise StudyError(
            f"{path.name} lacks the column{'s' * (len(missing) > 1)} {', '.join(map(repr, missing))}; "
            f"it has {', '.join(map(repr, table.columns))}."
        )


def list_images(folder: Path) -> Iterator[Path]:
    """Every file under a folder that is named like an image, hidden ones left out, in order of path."""
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file() and not _is_hidden(path.relative_to(folder)):
            yield path


def parse_years(text: pd.Series) -> pd.Series:
    """Ages in years from ``58``, ``58.5``, ``058Y``, ``58yrs``, ``6 months``, ``012D``; NaN where there is none."""
    parts = text.astype("str").str.strip().str.lower().str.extract(r"^(\d+(?:\.\d+)?)\s*([a-z]*)")
    years_in_unit = parts[1].str[:1].map({"d": 1 / 365.25, "w": 7 / 365.25, "m": 1 / 12}).fillna(1.0)
    return (pd.to_numeric(parts[0], errors="coerce") * years_in_unit).astype("float32")


def _as_text(table: pd.DataFrame) -> pd.DataFrame:
    text = table.astype("str").where(table.notna())
    return text.where(text != "")


def _is_hidden(path: Path) -> bool:
    return any(part.startswith((".", "__MACOSX")) for part in path.parts)
