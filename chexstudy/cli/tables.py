"""Tables as the command prints them."""

from pathlib import Path


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


def write_table(table, path: Path) -> None:
    """Write a table as its name's ending says, CSV or Parquet, and say so."""
    from chexstudy.runs import atomic_path

    with atomic_path(path) as temporary:
        (table.to_csv if path.suffix == ".csv" else table.to_parquet)(temporary, index=False)
    print(f"written to {path}")
