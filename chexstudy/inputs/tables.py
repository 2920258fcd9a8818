"""Tables that a user brings, CSV or Parquet, by one strict reader: what is not a table in every row is refused.

The index of a table says where a row stands, for messages: the line of a text file in which it begins, counted from 1
and over all lines, or the row of a Parquet file, counted from 0 as pandas does.
"""

import csv
import gzip
import io
import re
import zlib
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import pandas as pd
import pyarrow as pa
from pyarrow import compute
from pyarrow import parquet as pq

from chexstudy.errors import StudyError
from chexstudy.inputs.identifiers import clean_text
from chexstudy.inputs.placeholders import is_placeholder

_PARQUET = (".parquet", ".pq")
_SEPARATORS = {".csv": ",", ".tsv": "\t"}
ENDINGS = (*_PARQUET, *_SEPARATORS, *(f"{ending}.gz" for ending in _SEPARATORS))
_IDENTIFIERS = ("image_id", "patient_id", "study_id")
NESTED = "nested"  # in ``attrs``: columns of lists, records or bytes, which are left out

_MOST_COLUMNS = 10_000
_MOST_BYTES = 4 * 2**30  # unpacked
_DAMAGES = (OSError, EOFError, ValueError, zlib.error, pa.ArrowException)
_UNNAMED = re.compile(r"(Unnamed: \d+[.\d]*|__index_level_\d+__)?")


def is_table(name: str) -> bool:
    """Whether a file is a table by its name."""
    return name.lower().endswith(ENDINGS)


def table_stem(path: Path) -> str:
    """The name of a table's file without its ending."""
    return path.name[: -len(max((end for end in ENDINGS if path.name.lower().endswith(end)), key=len))]


def read_text_table(path: Path) -> pd.DataFrame:
    """A table with every value as text, missing where the cell is empty; an index of Parquet becomes a column."""
    _require_file(path)
    if not path.name.lower().endswith(_PARQUET):
        return _read_csv(path)
    arrow = _read_parquet(path)
    nested = [name for name in arrow.column_names if _is_nested(arrow[name].type)]
    table = pd.DataFrame(
        {name: _cast_to_text(arrow[name]) for name in arrow.column_names if name not in nested},
        index=pd.RangeIndex(len(arrow), name="row"),
    )
    table = _drop_unnamed(table, path)
    table.attrs[NESTED] = nested
    return table


def read_typed_table(path: Path, columns: Sequence[str] | None = None) -> pd.DataFrame:
    """A table, or the asked-for columns that it has, with numbers where every cell of a column is one.

    Identifiers of a CSV (of images, patients and studies) are texts.
    """
    _require_file(path)
    if path.name.lower().endswith(_PARQUET):
        table = _read_parquet(path, columns).to_pandas(ignore_metadata=True)
        table.index.name = "row"
        return _drop_unnamed(table, path)
    table = _read_csv(path)
    names = [name for name in table.columns if columns is None or name in columns]
    return table[names].apply(lambda cells: cells if cells.name in _IDENTIFIERS else _tell_type(cells))


def read_characters(path: Path) -> str:
    """The text of a table, unpacked, or a StudyError where it is not UTF-8."""
    try:
        with gzip.open(path) if path.name.lower().endswith(".gz") else open(path, "rb") as file:
            data = file.read(_MOST_BYTES + 1)
    except _DAMAGES:
        raise StudyError(f"{path} cannot be read as a table: write it again as CSV in UTF-8 or as Parquet.") from None
    if len(data) > _MOST_BYTES:
        raise StudyError(f"{path} holds more than {_MOST_BYTES // 2**30} GiB of text: save it as Parquet.")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise StudyError(
            f"{path} is not UTF-8 text: save it again as CSV in UTF-8 or as Parquet (see line {line})."
        ) from None
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise StudyError(f"{path} holds a NUL character in line {line} and is no text: save it again as CSV in UTF-8.")
    return text


def list_columns(path: Path) -> list[str]:
    """The names of a table's columns."""
    _require_file(path)
    if path.name.lower().endswith(_PARQUET):
        return [clean_text(name) for name in pq.read_schema(path).names]
    return list(_read_csv(path).columns)


def name_place(places: pd.Index, position: int) -> str:
    """``line 5`` or ``row 3``: where a row stands in the file whose table has this index."""
    return f"line {places[position]}" if places.name == "line" else f"row {position}"


def _require_file(path: Path) -> None:
    if not path.is_file():
        raise StudyError(f"there is no table {path}: check its name and the folder.")
    if not is_table(path.name):
        raise StudyError(f"{path} is neither CSV nor Parquet: name a file that ends in {', '.join(ENDINGS)}.")


def _tell_type(cells: pd.Series) -> pd.Series:
    """Numbers where every cell that says something is one, or true or false; else the texts."""
    words = {cell: cell.strip().lower() for cell in cells.dropna().unique()}
    stated = cells.map({cell: word for cell, word in words.items() if not is_placeholder(word)})
    if set(words.values()) <= {"true", "false"} and words:
        return (stated == "true").astype("Int8").where(stated.notna())
    try:
        return pd.to_numeric(stated)
    except (ValueError, TypeError):
        return cells


def _check_names(names: Sequence[str], path: Path) -> None:
    if len(names) > _MOST_COLUMNS:
        raise StudyError(
            f"{path.name} has {len(names):,} columns, and a table can have {_MOST_COLUMNS:,}: take some out."
        )
    repeated = next((name for number, name in enumerate(names) if name and name in names[:number]), None)
    if repeated is not None:
        raise StudyError(f"{path.name} has two columns named {repeated!r}: rename one, or take it out.")


def _drop_unnamed(table: pd.DataFrame, path: Path) -> pd.DataFrame:
    """The table without columns that have no name, if they hold nothing or count the rows, as a written index does."""
    unnamed = [number for number, name in enumerate(table.columns) if _UNNAMED.fullmatch(name)]
    for number in unnamed:
        cells = table.iloc[:, number].dropna()
        if not cells.astype("str").str.fullmatch(r"\d+").all():
            raise StudyError(f"column {number + 1} of {path.name} has no name: name it, or take it out.")
    return table.iloc[:, [number for number in range(table.shape[1]) if number not in unnamed]]


def _read_csv(path: Path) -> pd.DataFrame:
    name = path.name.lower().removesuffix(".gz")
    separator = next(sign for ending, sign in _SEPARATORS.items() if name.endswith(ending))
    lines = list(io.StringIO(read_characters(path), newline=""))
    records, begins = _split_records(lines, separator, path)
    if not records:
        raise StudyError(f"{path.name} is empty: give it a line of column names and a row for each image.")
    told, records, first, begins = records[0], records[1:], begins[0], begins[1:]
    header = [clean_text(cell) for cell in told]
    other = next((sign for sign in (";", "\t", "|", ",") if sign != separator and sign in told[0]), None)
    if len(header) == 1 and other is not None:
        what = {"\t": "tabs", ",": "commas", ";": "semicolons", "|": "bars"}
        raise StudyError(f"{path.name} has {what[other]} between its cells: write {what[separator]} there.")
    _check_names(header, path)
    width = max((number for number, cell in enumerate(header, start=1) if cell), default=0)
    _check_widths(records, begins, width, len(header), first, path)
    _refuse_swallowed_rows(records, begins, lines, width, separator, path)
    columns = islice(zip(*records, strict=False), width) if records else [()] * width
    cells = {number: [cell if cell.strip() else None for cell in column] for number, column in enumerate(columns)}
    table = pd.DataFrame(cells, pd.Index(begins, name="line", dtype="int64"), dtype="str")
    table = _drop_unnamed(table.set_axis(header[:width], axis=1), path)
    table.attrs[NESTED] = []
    return table


def _split_records(lines: list[str], separator: str, path: Path) -> tuple[list[list[str]], list[int]]:
    """The cells of every row that has any, the header first, and the line in which each begins."""
    records, begins, last = [], [], 0
    reader = csv.reader(lines, delimiter=separator, strict=True)
    try:
        for cells in reader:
            if any(cell.strip() for cell in cells):
                records.append(cells)
                begins.append(last + 1)
            last = reader.line_num
    except csv.Error as error:
        if "limit" in str(error):
            problem = f"has a cell of more than {csv.field_size_limit():,} characters: close its quote, or shorten it"
        else:
            problem = "has a quote that is not closed, or text behind a closed one: write a quote within a cell twice"
        raise StudyError(f"{path.name}: the row that begins in line {last + 1} {problem}.") from None
    return records, begins


def _check_widths(
    records: list[list[str]], begins: list[int], width: int, written: int, first: int, path: Path
) -> None:
    """Refuse rows with fewer cells than the header, or more that hold something.

    Empty cells behind the last column are no fault where the header or every row has them: some programs end all rows
    with a comma.
    """
    regular = len({len(cells) for cells in records}) == 1
    for cells, line in zip(records, begins, strict=True):
        filled = any(cell.strip() for cell in cells[width:])
        if len(cells) < width or filled or (len(cells) > written and not regular):
            hint = "put a text that holds the separator in double quotes" if len(cells) > width else "fill the row up"
            hint = "take lines of comment out" if cells[0].startswith("#") or width == 1 else hint
            count = f"{len(cells)} cell{'s' * (len(cells) > 1)}"
            raise StudyError(
                f"{path.name}: line {line} has {count} where the header (line {first}) has {width}: {hint}."
            )


def _refuse_swallowed_rows(
    records: list[list[str]], begins: list[int], lines: list[str], width: int, separator: str, path: Path
) -> None:
    """Refuse a quoted text of several lines one of which looks like a row of this table.

    A quote that was never closed reaches up to the next one, and where that happens to end its cell nothing else shows
    that the rows between them are gone. A line looks like a row if its cells, but for those of the quoted column, are
    made like cells of their columns: letters and digits in the same places.
    """
    shapes: list[set[str]] | None = None
    ends = [*begins, len(lines) + 1][1:]
    for cells, begin, end in zip(records, begins, ends, strict=True):
        quoted = {number for number, cell in enumerate(cells) if "\n" in cell or "\r" in cell}
        if not quoted or len(quoted) == width:
            continue
        for line in range(begin + 1, end):
            text = lines[line - 1]
            if text.count(separator) < width - 1:
                continue
            inner = next(csv.reader([text], delimiter=separator))
            if len(inner) < width:
                continue
            shapes = shapes or [{_tell_shape(cell) for cell in column} for column in zip(*records, strict=False)]
            if all(_tell_shape(inner[number]) in shapes[number] for number in range(width) if number not in quoted):
                raise StudyError(
                    f"{path.name}: the row that begins in line {begin} has a quote that is not closed, because line "
                    f"{line} is a row of its own: close the quote, or write a quote within a cell twice."
                )


def _tell_shape(cell: str) -> str:
    return re.sub(r"\d+", "9", re.sub(r"[^\W\d_]+", "a", cell.strip()))


def _read_parquet(path: Path, columns: Sequence[str] | None = None) -> pa.Table:
    try:
        file = pq.ParquetFile(path)
        names = {name: clean_text(name) for name in file.schema_arrow.names}
        _check_names([clean_text(name) for name in file.schema_arrow.names], path)
        wanted = [name for name, clean in names.items() if columns is None or clean in columns]
        table = file.read(columns=wanted)
        columns = {names[name]: table[name] for name in wanted}
        for name, column in columns.items():
            if pa.types.is_dictionary(column.type):
                columns[name] = column.cast(column.type.value_type)
        return pa.table(columns)
    except _DAMAGES:
        raise StudyError(f"{path} cannot be read as a table: write it again as Parquet.") from None


def _is_nested(kind: pa.DataType) -> bool:
    return pa.types.is_nested(kind) or pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def _cast_to_text(column: pa.ChunkedArray) -> pd.Series:
    """The column as texts, whole numbers without decimals."""
    if pa.types.is_floating(column.type):
        column = compute.if_else(compute.is_nan(column), None, column)
    cells = column.cast(pa.string()).to_pandas().astype("str")
    return cells.where(cells.str.strip() != "")
