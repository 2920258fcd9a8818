"""Tables of notebooks: no exponents, no inf, whole intervals and sentences."""

import re

import numpy as np
import pandas as pd
import pytest
from IPython.core.interactiveshell import InteractiveShell

from chexstudy.workflow.notebook_tables import use_plain_tables, write_number, write_table


@pytest.mark.parametrize(
    ("number", "written"),
    [
        (1.8e11, "180,000,000,000"), (954696.4, "954,696"), (1234.5, "1,234"), (59.0, "59"), (126.44, "126.4"),
        (24.868, "24.868"), (0.587065, "0.587"), (-0.05, "-0.050"), (0.0, "0"), (-0.0, "-0"), (0.0002, "0.0002"),
        (-0.0002, "-0.0002"), (3.21e-5, "0.0000321"), (np.inf, "no upper bound"), (-np.inf, "no lower bound"),
    ],
)  # fmt: skip
def test_numbers_are_written_as_people_do(number, written):
    assert write_number(number) == written


def test_nothing_is_cut_broken_or_left_as_nan():
    reason = "10 cases hold 0.7 positives at the prevalence of the finding, and every head needs one."
    table = pd.DataFrame(
        {"AUROC": ["0.685 [0.526, 0.788]", "0.312 [nan, nan]"], "price": [np.inf, 1.8e11], "reason": [reason, None]}
    )
    shown = re.sub(r"<style.*?</style>", "", write_table(table), flags=re.DOTALL)
    assert "0.685&nbsp;[0.526,&nbsp;0.788]" in shown
    assert "<td>0.312</td>" in shown
    assert reason in shown
    assert "<td>no upper bound</td>" in shown
    assert "<td>180,000,000,000</td>" in shown
    assert not re.search(r"nan|inf\b|e\+\d", shown)
    assert "<td>–</td>" in write_table(pd.DataFrame({"value": [0.5, np.nan]}))


def test_lists_are_no_intervals():
    assert "[chest, film]" in write_table(pd.DataFrame({"words": ["[chest, film]"]}))


def test_a_kernel_shows_its_tables_so(monkeypatch):
    shell = InteractiveShell.instance()
    monkeypatch.setattr("IPython.get_ipython", lambda: shell)
    with pd.option_context("display.max_colwidth", 50, "display.float_format", None):
        use_plain_tables()
        data, _ = shell.display_formatter.format(pd.DataFrame({"flops": [6.05e10]}))
    assert "60,500,000,000" in data["text/html"]
    assert "60,500,000,000" in data["text/plain"]
