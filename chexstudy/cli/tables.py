"""Tables as the command prints them."""

import math


def lay_out(table) -> str:
    """A table as lines: texts to the left of their column, numbers to the right, nothing for a missing one."""
    from pandas.api.types import is_numeric_dtype

    columns = []
    for name, cells in table.items():
        texts = [str(name), *("" if cell is None or cell != cell else str(cell) for cell in cells)]
        width = max(map(len, texts))
        columns.append([text.rjust(width) if is_numeric_dtype(cells) else text.ljust(width) for text in texts])
    return "\n".join("  ".join(row).rstrip() for row in zip(*columns, strict=True))


def name_interval(value: float, low: float, high: float) -> str:
    """``0.812 [0.790, 0.834]``; the value alone where no interval can be had."""
    return f"{value:.3f}" + ("" if math.isnan(low) else f" [{low:.3f}, {high:.3f}]")


def name_size(size: int) -> str:
    """Bytes in the unit that suits them."""
    for unit, power in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= power:
            return f"{size / power:.1f} {unit}"
    return f"{size} bytes"
