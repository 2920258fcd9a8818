"""The explorer answers slider and pointer as told by a browser's messages, and keeps names and reports to itself."""

import base64
import io
import re
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgb
from PIL import Image

from chexstudy.errors import StudyError
from chexstudy.plots import explorer as module
from chexstudy.plots.explorer import MARKS, PrototypeExplorer, explore_prototypes, has_front_end
from chexstudy.plots.looks import BAND_COLOURS
from chexstudy.pseudonyms import show_image_ids
from chexstudy.runs import Run


@pytest.fixture
def pairs():
    """Two stages of six pairs, two of each band; steps 10 and 11 are of the first, 11 and 12 of the second."""
    rows = []
    for stage, steps in ((0, (10, 11)), (1, (11, 12))):
        for place in range(6):
            band = ("central", "support", "outlier")[place // 2]
            kept = band != "outlier" and place != 0
            rows.append(
                {
                    "image_id": f"t/{steps[place % 2]}-{place}", "stage": stage, "step": steps[place % 2],
                    "x": 10.0 * stage + place, "y": float(place), "prototype": place % 2, "distance": 0.5 + place / 10,
                    "threshold_support": 0.6, "threshold_outlier": 0.9, "band": band, "kept": kept,
                    "reason": "kept: in the support band" if kept else "dropped: <too far>", "priority": np.nan,
                }
            )  # fmt: skip
    return pd.DataFrame(rows)


@pytest.fixture
def trajectory():
    rows = [
        {"snapshot": s, "step": 10 + s, "stage": int(s > 2), "prototype": k, "x": 5.0 * k + s, "y": 1.0 * s}
        for s in range(4)
        for k in range(2)
    ]
    return pd.DataFrame(rows).assign(phase="curate")


def read_pixels(image_id):
    return np.full((8, 8), int(image_id.split("-")[1]) * 20, dtype=np.uint8)


@pytest.fixture
def run(home):
    return Run("walked")


@pytest.fixture
def explorer(run, pairs, trajectory):
    return PrototypeExplorer(run, pairs, trajectory, read_pixels)


def point_at(explorer, mark, place=0):
    """What the browser sends when someone points at the mark number ``place`` of a kind."""
    explorer.map.hovering = find(explorer, mark)[place]


def select(explorer, *rows):
    """What the browser sends after a click (one row), a lasso (several) or a double click (none)."""
    explorer.map.selection = np.array(rows, dtype=np.uint32)


def find(explorer, mark):
    return [int(row) for row in np.flatnonzero(explorer.marks.mark == mark)]


def shades(explorer):
    """Grey levels of the radiographs on show."""
    pictures = re.findall(r"base64,([^']+)'", explorer.card.value)
    return [int(np.asarray(Image.open(io.BytesIO(base64.b64decode(picture))))[0, 0]) for picture in pictures]


def test_it_opens_at_the_last_step_with_every_pair_of_its_stage_on_the_map(explorer):
    counts = explorer.marks.mark.value_counts()
    assert {mark: count for mark, count in counts.items() if count} == {
        "central, dropped": 1, "central, kept": 1, "support, kept": 2, "outlier, dropped": 2, "prototype": 2,
    }  # fmt: skip
    assert "Step 13: 6 pairs of this stage scored, 50.0 % kept" in explorer.summary.value
    # What is sent: a place within the frame and the number of a mark for each, and a visible colour and size for it.
    points = explorer.map.points
    assert np.abs(points[:, :2]).max() <= 1
    assert [list(MARKS)[int(code)] for code in points[:, 2]] == explorer.marks.mark.tolist()
    assert len(explorer.map.color) == len(explorer.map.size) == len(MARKS)
    assert min(explorer.map.size) >= 4
    for mark, colour in zip(MARKS, explorer.map.color, strict=True):
        assert colour[3] == 1
        assert min(colour[:3]) < 0.95, f"{mark} cannot be told from the white ground"
    strong = explorer.map.color[list(MARKS).index("support, kept")]
    assert strong[:3] == pytest.approx(to_rgb(BAND_COLOURS["support"]))


def test_the_slider_shows_what_was_scored_before_the_snapshot(explorer):
    explorer.slider.value = 1
    drawn = explorer.marks.groupby("mark", observed=True).x.apply(list).to_dict()
    assert drawn == {
        "to be scored": [1, 3, 5], "central, dropped": [0], "support, kept": [2], "outlier, dropped": [4],
        "prototype": [1, 6],
    }  # fmt: skip
    explorer.slider.value = 0
    assert find(explorer, "to be scored") == [0, 1, 2, 3, 4, 5]
    assert "0 pairs of this stage scored<" in explorer.summary.value


def test_one_frame_holds_all_snapshots_at_one_scale(explorer):
    # x runs from 0 to 15 and y from 0 to 5 over all stages, so half of 15 is 1/1.06 in both directions.
    at = {name: explorer.map.points[find(explorer, name)] for name in ("central, dropped", "central, kept")}
    assert at["central, dropped"][0, :2] == pytest.approx([2.5 / 7.5 / 1.06, -2.5 / 7.5 / 1.06])
    explorer.slider.value = 1
    assert explorer.map.points[find(explorer, "central, dropped")[0], :2] == pytest.approx([-1 / 1.06, -2.5 / 7.95])


def test_prototypes_are_stars_and_their_ways_reach_the_snapshot(explorer):
    explorer.slider.value = 2
    ways, stars = explorer.map.annotations[:2], explorer.map.annotations[2:]
    assert [len(way.vertices) for way in ways] == [3, 3]
    assert [len(star.vertices) for star in stars] == [11, 11]
    centres = [np.mean(star.vertices[:-1], axis=0) for star in stars]
    assert np.allclose(centres, [way.vertices[-1] for way in ways])
    # Five points reach out, five lie in between.
    reach = np.linalg.norm(np.array(stars[0].vertices) - centres[0], axis=1)
    assert np.allclose(reach[0:10:2], reach[0])
    assert np.allclose(reach[1:10:2], reach[1])
    assert reach[1] < reach[0] / 2
    explorer.slider.value = 0
    assert len(explorer.map.annotations) == 2


def test_pointing_at_a_pair_shows_its_radiograph_and_why(explorer):
    assert shades(explorer) == []
    point_at(explorer, "support, kept", 1)
    assert shades(explorer) == [60]
    for words in ("kept: in the support band", "prototype", "0.800 (support band: 0.600 to 0.900)", "step 12"):
        assert words in explorer.card.value
    point_at(explorer, "outlier, dropped")
    assert shades(explorer) == [80]
    # What the ledger says is text, and never markup.
    assert "dropped: &lt;too far&gt;" in explorer.card.value
    assert "priority" not in explorer.card.value
    # Leaving it with the pointer leaves it on show.
    explorer.map.hovering = None
    assert shades(explorer) == [80]


def test_pairs_to_be_scored_say_nothing_and_a_prototype_counts_its_pairs(explorer):
    point_at(explorer, "prototype", 1)
    # Places 1, 3 and 5 are its pairs; the outlier at 5 is dropped.
    assert "3 scored, of which 2 kept" in explorer.card.value
    explorer.slider.value = 1
    before = explorer.card.value
    point_at(explorer, "to be scored")
    select(explorer, *find(explorer, "to be scored"))
    assert explorer.card.value == before


def test_a_click_holds_a_pair_until_a_double_click(explorer):
    select(explorer, find(explorer, "support, kept")[0])
    assert shades(explorer) == [40]
    point_at(explorer, "outlier, dropped")
    assert shades(explorer) == [40]
    select(explorer)
    assert shades(explorer) == [80]
    point_at(explorer, "central, dropped")
    assert shades(explorer) == [0]


def test_a_lasso_shows_the_first_radiographs_inside_it(explorer, monkeypatch):
    select(explorer, *range(len(explorer.marks)))
    assert sorted(shades(explorer)) == [0, 20, 40, 60, 80, 100]
    assert "6 pairs, 3 kept<" in explorer.card.value
    monkeypatch.setattr(module, "MOST_RADIOGRAPHS", 2)
    select(explorer, *range(1, len(explorer.marks)))
    assert len(shades(explorer)) == 2
    assert "5 pairs, 3 kept, the first 2 shown" in explorer.card.value
    # Another snapshot has other rows.
    explorer.slider.value = 2
    assert len(explorer.map.selection) == 0
    assert shades(explorer) == []


def test_reports_are_shown_only_if_given(run, pairs, trajectory):
    given = PrototypeExplorer(run, pairs, trajectory, read_pixels, {"t/11-0": "Clear <lungs>."})
    point_at(given, "central, dropped")
    assert "Clear &lt;lungs&gt;." in given.card.value
    point_at(given, "central, kept")
    assert "no report" in given.card.value
    # Images are called by pseudonyms.
    (shown,) = show_image_ids(run, ["t/12-1"])
    assert shown.startswith("image-")
    assert shown in given.card.value
    assert "t/12-1" not in given.card.value
    without = PrototypeExplorer(run, pairs.assign(report="secret"), trajectory, read_pixels)
    point_at(without, "central, dropped")
    assert "secret" not in str([without.card.value, without.map.get_state()])


def test_a_priority_and_one_map_without_stages_are_shown_too(run, pairs, trajectory):
    one_map = pairs[pairs.stage == 0].drop(columns="stage").assign(priority=0.25), trajectory.drop(columns="stage")
    given = PrototypeExplorer(run, *one_map, read_pixels)
    assert len(given.marks) == 6 + 2
    point_at(given, "central, kept")
    assert "0.250" in given.card.value


def test_a_nameless_picture_is_displayed_with_it_and_no_text(explorer, monkeypatch):
    """A notebook opened without its kernel shows the picture; the widget's own text would be saved with it."""
    shown = []
    monkeypatch.setattr("IPython.display.display", lambda what, **options: shown.append(what))
    point_at(explorer, "central, kept")
    explorer._ipython_display_()
    figure, bundle = shown
    marks = {artist.get_gid() for axes in figure.axes for artist in axes.collections}
    assert {"band central", "band support", "band outlier", "prototypes"} <= marks
    words = " ".join(text.get_text() for text in figure.findobj(lambda artist: hasattr(artist, "get_text")))
    assert "t/1" not in words
    assert bundle["text/plain"] == ""
    assert set(bundle) == {"text/plain", "application/vnd.jupyter.widget-view+json"}


def test_a_slow_browser_does_not_make_it_deaf(explorer):
    """A widget whose code takes over two seconds to load hears nothing more; so little is loaded first."""
    assert len(explorer.map._esm) < 1_000
    assert len(explorer.map.code) > 1_000_000


def test_nothing_to_explore_is_said_in_one_sentence(run, pairs, trajectory):
    for given in ((pairs[:0], trajectory), (pairs, trajectory[:0])):
        with pytest.raises(StudyError, match="nothing to draw"):
            PrototypeExplorer(run, *given, read_pixels)


def test_there_is_an_explorer_only_where_someone_can_point(run, pairs, trajectory, monkeypatch):
    monkeypatch.delenv("CHEXSTUDY_HEADLESS", raising=False)
    for name in ("JPY_SESSION_NAME", "VSCODE_PID", "COLAB_RELEASE_TAG"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setitem(sys.modules, "ipykernel", sys)
    # A kernel that papermill or nbconvert started by itself.
    assert not has_front_end()
    assert explore_prototypes(run, pairs, trajectory, read_pixels) is None
    monkeypatch.setenv("JPY_SESSION_NAME", "03_watch_prototypes.ipynb")
    assert has_front_end()
    monkeypatch.setattr(module, "PrototypeExplorer", lambda *given: given)
    assert explore_prototypes(run, pairs, trajectory, read_pixels)[3:] == (read_pixels,)
    monkeypatch.setenv("CHEXSTUDY_HEADLESS", "1")
    assert not has_front_end()
    monkeypatch.delenv("CHEXSTUDY_HEADLESS")
    monkeypatch.delitem(sys.modules, "ipykernel")
    assert not has_front_end()


def test_importing_the_module_does_not_import_widgets():
    code = "import sys, chexstudy.plots.explorer; sys.exit('jscatter' in sys.modules or 'ipywidgets' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
