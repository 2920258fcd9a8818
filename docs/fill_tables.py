"""Write the tables of data/*.csv into the pages that show them: README.md and docs/results.md.

A table stands below a comment that names its file, ``<!-- data/NAME.csv -->``.
"""

import re
from pathlib import Path

import pandas as pd

_ROOT = Path(__file__).resolve().parent.parent
PAGES = (_ROOT / "README.md", _ROOT / "docs" / "results.md")
_TABLE = re.compile(r"(<!-- (data/\w+\.csv) -->\n)((?:\|.*\n)*)")


def fill_tables(text: str) -> str:
    """The page with every table as its file has it."""
    return _TABLE.sub(lambda found: found[1] + _format_table(pd.read_csv(_ROOT / found[2], dtype=str)), text)


def _format_table(table: pd.DataFrame) -> str:
    rows = [list(table.columns), ["---"] * table.shape[1], *table.to_numpy().tolist()]
    return "".join(f"| {' | '.join(row)} |\n".replace("| --- ", "|---").replace("--- |", "---|") for row in rows)


if __name__ == "__main__":
    for page in PAGES:
        page.write_text(fill_tables(page.read_text(encoding="utf-8")), encoding="utf-8")
