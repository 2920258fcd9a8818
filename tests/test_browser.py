"""Every notebook in a real browser: Run All in both halves, the explorer pixel by pixel, and what is saved.

`make browser` runs these. All notebooks open one finished study of the debug profile, which is made first; with
``CHEXSTUDY_BROWSER_HOME`` the one under that folder is taken. Screenshots lie in ``$CHEXSTUDY_SCREENSHOTS``, if set.
"""

import io
import os
import re
import subprocess
import time
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import jupytext
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgb
from PIL import Image
from scipy.ndimage import label

from chexstudy import paths
from chexstudy.plots.explorer import MARKS
from chexstudy.runs import Run
from chexstudy.workflow.runner import list_notebooks, run_notebooks

pytest.importorskip("playwright")
from lab import Page, commit_all, copy_checkout, git, open_browser, run_make, serve_lab

pytestmark = pytest.mark.browser
NOTEBOOKS = list_notebooks()
_EXPLORER = ".chexstudy-explorer canvas"
_CARD = ".chexstudy-explorer img"


@pytest.fixture(scope="session")
def study(tmp_path_factory):
    """A finished study of the debug profile."""
    before = os.environ.get("CHEXSTUDY_HOME")
    os.environ["CHEXSTUDY_HOME"] = os.environ.get("CHEXSTUDY_BROWSER_HOME") or str(tmp_path_factory.mktemp("home"))
    try:
        run = Run("debug")
        if not all(run.path(f"notebooks/{name}.ipynb").exists() for name in NOTEBOOKS):
            run_notebooks(None, "debug", study="debug")
        yield run
    finally:
        os.environ.pop("CHEXSTUDY_HOME")
        if before is not None:
            os.environ["CHEXSTUDY_HOME"] = before


@pytest.fixture(scope="session")
def checkout(study, tmp_path_factory):
    """A checkout whose notebooks say ``study = "debug"``, which takes that study's values."""
    folder = copy_checkout(tmp_path_factory.mktemp("lab") / "checkout")
    for name in NOTEBOOKS:
        source = folder / f"notebooks/{name}.py"
        text = source.read_text()
        assert text.count('study = "demo"  #') == 1
        source.write_text(text.replace('study = "demo"  #', 'study = "debug"  #'))
    subprocess.run(run_make(folder, "sync"), check=True, capture_output=True)
    commit_all(folder)
    return folder


@pytest.fixture(scope="session")
def lab(checkout, study):
    with serve_lab(checkout, CHEXSTUDY_HOME=str(paths.home())) as address:
        yield address


@pytest.fixture(scope="session")
def browser():
    with open_browser() as context:
        yield context


@contextmanager
def open_notebook(lab, browser, name):
    """A file of the checkout's notebooks; afterwards nothing but this machine was asked for anything."""
    page = Page(browser, lab, f"notebooks/{name}")
    yield page
    page.close()
    hosts = {urlsplit(url).hostname for url in page.requests if urlsplit(url).scheme not in ("data", "blob")}
    assert hosts == {"127.0.0.1"}


def take_screenshot(page, name):
    if folder := os.environ.get("CHEXSTUDY_SCREENSHOTS"):
        page.page.screenshot(path=Path(folder) / f"{name}.png")


def private_words(run):
    """Reports, and names of images and patients, that a saved notebook must not hold."""
    cohort = pd.read_parquet(run.path("cohort.parquet"))
    sentences = {part.strip() for report in cohort.report.dropna() for part in report.split(".") if len(part) > 40}
    return [*cohort.image_id, *sentences]


def list_outputs(cells):
    return [output for cell in cells for output in cell.get("outputs", [])]


def list_errors(cells):
    return [output["evalue"] for output in list_outputs(cells) if output["output_type"] == "error"]


@pytest.mark.parametrize("suffix", [".ipynb", ".py"])
@pytest.mark.parametrize("name", NOTEBOOKS)
def test_run_all(name, suffix, lab, browser, study, checkout):
    with open_notebook(lab, browser, name + suffix) as page:
        cells = page.run_all()
        outputs = list_outputs(cells)
        assert list_errors(cells) == []
        assert all(cell["execution_count"] for cell in cells if cell["cell_type"] == "code")
        assert [output["text"] for output in outputs if output.get("name") == "stderr"] == []
        page.save()
        take_screenshot(page, f"{name}{suffix}")
        assert page.problems == []
    saved = (checkout / f"notebooks/{name}.ipynb").read_text()
    assert saved.count('"image/png"') == sum("image/png" in output.get("data", {}) for output in outputs)
    assert [word for word in private_words(study) if word in saved] == []
    # Pictures of patients are in the file and not in git, and both halves still hold the same.
    until = time.monotonic() + 20
    while (status := git(checkout, "status", "--porcelain")) and time.monotonic() < until:
        time.sleep(0.5)
    assert status == ""
    halves = [jupytext.read(checkout / f"notebooks/{name}{half}").cells for half in (".ipynb", ".py")]
    assert [cell.source for cell in halves[0]] == [cell.source for cell in halves[1]]


def count_marks(picture):
    """How many separate spots of each mark's colour there are in a picture of the map."""
    counts = {}
    for mark, (colour, size) in MARKS.items():
        wanted = np.round(255 * np.array(to_rgb(colour)))
        near = np.abs(picture.astype(int) - wanted).max(axis=2) <= 6
        spots, _ = label(near)
        counts[mark] = int((np.bincount(spots.ravel())[1:] >= size).sum())
    return counts


def read_counts(page):
    """How many marks of each kind the summary says there are."""
    page.page.locator(".chexstudy-explorer", has_text="prototype (").wait_for()
    text = page.page.locator(".chexstudy-explorer").text_content()
    return {mark: int(re.search(rf"{mark} \(([\d,]+)\)", text)[1].replace(",", "")) for mark in MARKS}


def assert_drawn(page):
    """All that the summary counts is on the map; what overlaps is counted as one."""
    said = read_counts(page)
    for _ in range(40):
        seen = count_marks(page.picture(_EXPLORER))
        bands = [mark for mark in MARKS if mark != "prototype"]
        if all(0.6 * said[mark] <= seen[mark] <= max(said[mark], 1) for mark in bands if said[mark]):
            break
        page.page.wait_for_timeout(250)
    else:
        raise AssertionError(f"said {said}, seen {seen}")
    assert sum(said[mark] for mark in bands) > 100
    assert [mark for mark in bands if not said[mark] and seen[mark] > 2] == []
    assert seen["prototype"] >= 1


@pytest.fixture(scope="module")
def explored(lab, browser):
    with open_notebook(lab, browser, "03_watch_prototypes.ipynb") as page:
        assert list_errors(page.run_all()) == []
        page.page.wait_for_selector(_EXPLORER)
        yield page


def find_spot(page, mark):
    """Where on the page a mark of a kind is."""
    picture = page.picture(_EXPLORER).astype(int)
    near = np.abs(picture - np.round(255 * np.array(to_rgb(MARKS[mark][0])))).max(axis=2) <= 6
    spots, _ = label(near)
    largest = 1 + np.bincount(spots.ravel())[1:].argmax()
    row, column = np.argwhere(spots == largest).mean(axis=0)
    box = page.page.locator(_EXPLORER).first.bounding_box()
    return box["x"] + column, box["y"] + row


def read_card(page):
    return page.page.locator(".chexstudy-explorer").inner_text()


def test_the_explorer_in_the_browser(explored):
    page, mouse = explored, explored.page.mouse
    assert_drawn(page)
    take_screenshot(page, "explorer")
    # Hover.
    for mark, words in (("central, dropped", "dropped:"), ("support, kept", "kept:")):
        mouse.move(*find_spot(page, mark), steps=3)
        page.page.wait_for_function(
            f"() => /{words}/.test(document.querySelector('.chexstudy-explorer').innerText)", timeout=20_000
        )
    assert page.page.locator(_CARD).count() == 1
    take_screenshot(page, "explorer_hover")
    # A click holds: pointing elsewhere leaves it.
    mouse.down()
    mouse.up()
    held = read_card(page)
    mouse.move(*find_spot(page, "central, dropped"), steps=3)
    page.page.wait_for_timeout(500)
    assert "kept:" in held
    assert "kept:" in read_card(page)
    mouse.dblclick(*_find_empty_corner(page))
    # Lasso.
    page.page.locator(".chexstudy-explorer button").nth(1).click()
    box = page.page.locator(_EXPLORER).first.bounding_box()
    corners = [(0.05, 0.05), (0.95, 0.05), (0.95, 0.95), (0.05, 0.95), (0.05, 0.1)]
    places = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in corners]
    mouse.move(*places[0])
    mouse.down()
    for place in places[1:]:
        mouse.move(*place, steps=10)
    mouse.up()
    page.page.wait_for_function("() => document.querySelectorAll('.chexstudy-explorer img').length === 24")
    take_screenshot(page, "explorer_lasso")
    assert "the first 24 shown" in read_card(page)
    # Slider: one step back, other pairs are on the map.
    last = read_counts(page)
    page.page.locator(".chexstudy-explorer .noUi-handle").focus()
    page.page.keyboard.press("ArrowLeft")
    page.page.wait_for_function("() => document.querySelectorAll('.chexstudy-explorer img').length === 0")
    assert read_counts(page) != last
    assert_drawn(page)
    assert page.problems == []


def _find_empty_corner(page):
    box = page.page.locator(_EXPLORER).first.bounding_box()
    return box["x"] + 4, box["y"] + 4


def test_the_explorer_in_the_dark(explored):
    page = explored
    page.command("apputils:change-theme", {"theme": "JupyterLab Dark"})
    page.page.wait_for_selector("body[data-jp-theme-light='false']", state="attached")
    assert_drawn(page)
    take_screenshot(page, "explorer_dark")
    page.command("apputils:change-theme", {"theme": "JupyterLab Light"})


def test_the_explorer_outlives_a_reload_and_leaves_a_picture_without_its_kernel(explored):
    page = explored
    page.save()
    page.load()
    page.page.wait_for_selector(_EXPLORER)
    assert_drawn(page)
    take_screenshot(page, "explorer_reloaded")
    # It is alive: it answers the pointer. And it hides the picture that stands for it.
    page.page.mouse.move(*find_spot(page, "support, kept"), steps=3)
    page.page.wait_for_selector(_CARD)
    cell = page.page.locator(".jp-CodeCell", has=page.page.locator(".chexstudy-explorer"))
    assert not cell.locator(".jp-RenderedImage").first.is_visible()
    page.restart()
    page.load()
    cell = page.page.locator(".jp-CodeCell", has_text="explore_prototypes(run")
    cell.locator(".jp-RenderedImage img").first.wait_for()
    assert page.page.locator(_EXPLORER).count() == 0
    standing_in = cell.locator(".jp-RenderedImage img").first
    standing_in.scroll_into_view_if_needed()
    # JupyterLab lays out the cells above it meanwhile.
    page.page.wait_for_function("(image) => image.complete && image.naturalWidth > 0", arg=standing_in.element_handle())
    shown = np.asarray(Image.open(io.BytesIO(standing_in.screenshot())).convert("RGB")).astype(int)
    for mark in ("central, dropped", "support, kept"):
        near = np.abs(shown - np.round(255 * np.array(to_rgb(MARKS[mark][0])))).max(axis=2) <= 30
        assert near.sum() > 20, mark
    take_screenshot(page, "explorer_without_kernel")
    page.run_all()
    assert_drawn(page)
