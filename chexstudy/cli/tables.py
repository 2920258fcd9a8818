"""Tables as the command prints and writes them."""

from pathlib import Path

from chexstudy.errors import StudyError
from chexstudy.paths import resolve_user_path


def lay_out(table) -> str:
    """A table as lines: texts to the left of their column, numbers to the right, nothing for a missing one."""
    from pandas.api.types import is_numeric_dtype

    columns = []
    for name, cells in table.items():
        texts = [str(name), *("" if cell is None or cell != cell else str(cell) for cell in cells)]
        width = max(map(len, texts))
        columns.append([text.rjust(width) if is_numeric_dtype(cells) else text.ljust(width) for text in texts])
    return "\n".join("  ".join(row).rstrip() for row in zip(*columns, strict=True))


def name_size(size: int) -> str:
    """Bytes in the unit that suits them."""
    for unit, power in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= power:
            return f"{size / power:.1f} {unit}"
    return f"{size} bytes"


def check_output(name: str) -> Path:
    """The path that a table shall be written to."""
    path = resolve_user_path(name)
    if path.suffix.lower() not in (".csv", ".parquet"):
        raise StudyError(f"{name} is neither CSV nor parquet: give --out a name that ends in .csv or .parquet.")
    return path


def write_table(table, path: Path) -> None:
    """Write a table as its name's ending says, CSV or parquet, and say so."""
    from chexstudy.runs import atomic_path, refused_writes

    with refused_writes(path), atomic_path(path) as temporary:
        (table.to_csv if path.suffix.lower() == ".csv" else table.to_parquet)(temporary, index=False)
    print(f"written to {path}")
