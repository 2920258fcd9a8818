"""Write tables into the pages that show them: README.md, docs/results.md and data/README.md.

A table stands below a comment that names its file, ``<!-- data/NAME.csv -->``, or the command that lists the sources.
"""

import re
from pathlib import Path

import pandas as pd

from chexstudy.cohort.adapters import tabulate_sources

_ROOT = Path(__file__).resolve().parent.parent
PAGES = (_ROOT / "README.md", _ROOT / "docs" / "results.md", _ROOT / "data" / "README.md")
_TABLE = re.compile(r"(<!-- (data/\w+\.csv|chexstudy cohort sources) -->\n)((?:\|.*\n)*)")


def fill_tables(text: str) -> str:
    """The page with every table as its file has it."""
    return _TABLE.sub(lambda found: found[1] + _format_table(_read_table(found[2])), text)


def _read_table(name: str) -> pd.DataFrame:
    if name.endswith(".csv"):
        return pd.read_csv(_ROOT / name, dtype=str)
    table = tabulate_sources()
    marks = {"source": "`{}`", "address": "<{}>"}
    return table.apply(lambda cells: cells.map(lambda cell: cell and marks.get(cells.name, "{}").format(cell)))


def _format_table(table: pd.DataFrame) -> str:
    rows = [list(table.columns), ["---"] * table.shape[1], *table.to_numpy().tolist()]
    return "".join(f"| {' | '.join(row)} |\n".replace("| --- ", "|---").replace("--- |", "---|") for row in rows)


if __name__ == "__main__":
    for page in PAGES:
        page.write_text(fill_tables(page.read_text(encoding="utf-8")), encoding="utf-8")
