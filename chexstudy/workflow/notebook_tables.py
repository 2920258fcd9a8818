"""How tables look in notebooks: numbers as people write them, intervals in one piece, sentences whole."""

import math
import re

import numpy as np
import pandas as pd

_INTERVAL = re.compile(r"(?<=\S) \[([^\[\]<>,]{1,16}), ([^\[\]<>,]{1,16})\]")
_NO_INTERVAL = re.compile(r" \[nan, [+-]?nan\]")
_MISSING = "–"


def write_number(number: float) -> str:
    """A number without an exponent: whole ones whole, others with as many decimals as their size asks for."""
    if math.isinf(number):
        return "no upper bound" if number > 0 else "no lower bound"
    if number == int(number) or abs(number) >= 1000:
        return f"{number:,.0f}"
    if abs(number) >= 100:
        return f"{number:.1f}"
    if abs(number) >= 0.001:
        return f"{number:.3f}"
    return np.format_float_positional(number, precision=3, fractional=False, trim="-")


def write_table(table: pd.DataFrame) -> str:
    """A table as HTML: nothing is cut, a missing value is a dash, and no line breaks within an interval."""
    rows, columns = pd.get_option("display.max_rows"), pd.get_option("display.max_columns")
    with pd.option_context("display.max_colwidth", None):
        shown = table.to_html(
            max_rows=rows, max_cols=columns, float_format=write_number, na_rep=_MISSING, notebook=True
        )
    return _INTERVAL.sub(r"&nbsp;[\1,&nbsp;\2]", _NO_INTERVAL.sub("", shown))


def use_plain_tables() -> None:
    """Show every table of this kernel so; outside of a kernel nothing is changed."""
    from IPython import get_ipython

    pd.set_option("display.max_colwidth", None)
    pd.set_option("display.float_format", write_number)
    shell = get_ipython()
    if shell is not None:
        shell.display_formatter.formatters["text/html"].for_type(pd.DataFrame, write_table)
