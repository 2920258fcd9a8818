"""Long work shows a bar where someone watches and lines where nobody does, and leaves no widget behind."""

import sys
from contextlib import closing
from types import SimpleNamespace

import pytest

from chexstudy import progress as module
from chexstudy.progress import JobProgress, progress


@pytest.fixture
def in_notebook(monkeypatch):
    """The code runs in a kernel that JupyterLab started."""
    monkeypatch.delenv("CHEXSTUDY_HEADLESS", raising=False)
    kernel = SimpleNamespace(get_ipython=lambda: SimpleNamespace(kernel=None))
    monkeypatch.setitem(sys.modules, "IPython", kernel)


def test_a_notebook_has_a_bar_of_text_that_goes_when_it_is_done(in_notebook, capsys):
    assert list(progress(range(3), label="drawing")) == [0, 1, 2]
    shown = capsys.readouterr()
    # JupyterLab lets a carriage return begin the line anew; what is left of it is blank.
    assert "drawing" in shown.out
    assert "0/3" in shown.out
    assert shown.out.split("\r")[-2].strip() == ""
    assert shown.err == ""


def test_jobs_fill_a_bar_with_what_they_tell(in_notebook, capsys):
    with closing(JobProgress(2, "training")) as shown:
        for _ in range(2):
            shown.tell("full (seed 0): epoch 3, loss 2.345")
            shown.finish_job()
    out = capsys.readouterr().out
    assert "\n" not in out
    assert "1/2" in out
    assert "full (seed 0): epoch 3, loss 2.345" in out
    assert out.split("\r")[-2].strip() == ""


def test_nobody_watches_and_lines_are_printed(in_notebook, monkeypatch, capsys):
    monkeypatch.setenv("CHEXSTUDY_HEADLESS", "1")
    monkeypatch.setattr(module, "_SECONDS_BETWEEN_LINES", 0.0)
    assert list(progress(range(2), label="drawing")) == [0, 1]
    with closing(JobProgress(1, "training")) as shown:
        shown.tell("epoch 3")
        shown.finish_job()
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(",")[0] for line in lines] == ["drawing: 1 of 2", "drawing: 2 of 2", "epoch 3"]
