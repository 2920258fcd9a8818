"""The explorer answers slider and pointer as told by a browser's messages, and keeps reports to itself."""

import io
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from chexstudy import explorer as module
from chexstudy.errors import StudyError
from chexstudy.explorer import PrototypeExplorer, explore_prototypes, has_front_end


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
def explorer(pairs, trajectory):
    return PrototypeExplorer(pairs, trajectory, read_pixels)


def traces(explorer):
    return {trace.name: trace for trace in explorer.figure.data}


def point(explorer, event, name, index):
    """What the browser sends when someone points at a mark."""
    number = [trace.name for trace in explorer.figure.data].index(name)
    explorer.figure._js2py_pointsCallback = {
        "event_type": f"plotly_{event}", "selector": None, "device_state": None,
        "points": {"trace_indexes": [number], "point_indexes": [index], "xs": [0], "ys": [0]},
    }  # fmt: skip


def shade(explorer):
    """Grey level of the radiograph on show."""
    return int(np.asarray(Image.open(io.BytesIO(explorer.picture.value)))[0, 0])


def test_at_the_start_no_pair_is_scored(explorer):
    assert [len(traces(explorer)[band].x) for band in ("central", "support", "outlier")] == [0, 0, 0]
    assert len(traces(explorer)["to be scored"].x) == 6
    assert traces(explorer)["prototype"].x.tolist() == [0, 5]


def test_the_slider_shows_what_was_scored_before_the_snapshot(explorer):
    explorer.slider.value = 1
    drawn = traces(explorer)
    assert drawn["central"].x.tolist() == [0]
    assert drawn["support"].x.tolist() == [2]
    assert drawn["to be scored"].x.tolist() == [1, 3, 5]
    assert drawn["prototype"].x.tolist() == [1, 6]
    explorer.slider.value = 3
    # Another stage: another map, and all its pairs are scored.
    assert drawn["central"].x.tolist() == [10, 11]
    assert len(drawn["to be scored"].x) == 0
    assert drawn["central"].marker.symbol == ("circle-open", "circle")
    assert drawn["outlier"].marker.symbol == ("x-open", "x-open")
    assert "6 pairs of this stage scored, 50.0 % kept" in explorer.figure.layout.title.text


def test_paths_of_prototypes_reach_the_snapshot_and_are_not_joined(explorer):
    explorer.slider.value = 2
    path = traces(explorer)["path so far"].x
    assert np.nan_to_num(path, nan=-1).tolist() == [0, 1, 2, -1, 5, 6, 7, -1]


def test_a_snapshot_can_be_asked_for_without_the_slider(explorer):
    explorer.show_snapshot(3)
    assert explorer.slider.value == 3
    assert len(traces(explorer)["central"].x) == 2


def test_pointing_at_a_pair_shows_its_radiograph_and_why(explorer):
    explorer.slider.value = 3
    assert explorer.picture.layout.visibility == "hidden"
    point(explorer, "hover", "support", 1)
    assert explorer.picture.layout.visibility == "visible"
    assert shade(explorer) == 60
    for words in (
        "t/12-3",
        "kept: in the support band",
        "support",
        "prototype",
        "0.800 (support band: 0.600 to 0.900)",
    ):
        assert words in explorer.details.value
    point(explorer, "hover", "outlier", 0)
    assert shade(explorer) == 80
    # What the ledger says is text, and never markup.
    assert "dropped: &lt;too far&gt;" in explorer.details.value
    assert "priority" not in explorer.details.value


def test_a_click_holds_a_pair_until_the_next_click_on_it(explorer):
    explorer.slider.value = 3
    point(explorer, "click", "support", 0)
    assert "Held" in explorer.details.value
    point(explorer, "hover", "outlier", 0)
    assert shade(explorer) == 40
    point(explorer, "click", "outlier", 1)
    assert shade(explorer) == 100
    point(explorer, "click", "outlier", 1)
    assert "Held" not in explorer.details.value
    point(explorer, "hover", "central", 0)
    assert shade(explorer) == 0


def test_reports_are_shown_only_if_given(pairs, trajectory):
    given = PrototypeExplorer(pairs, trajectory, read_pixels, {"t/11-0": "Clear <lungs>."})
    given.slider.value = 3
    point(given, "click", "central", 0)
    assert "Clear &lt;lungs&gt;." in given.details.value
    point(given, "click", "central", 1)
    assert "no report" in given.details.value
    without = PrototypeExplorer(pairs.assign(report="secret"), trajectory, read_pixels)
    without.slider.value = 3
    point(without, "click", "central", 0)
    assert "secret" not in without.details.value
    assert "secret" not in str(without.figure.to_dict())


def test_a_priority_is_shown_where_the_rule_has_one(pairs, trajectory):
    given = PrototypeExplorer(pairs.assign(priority=0.25), trajectory, read_pixels)
    given.slider.value = 3
    point(given, "hover", "central", 0)
    assert "0.250" in given.details.value


def test_one_map_without_stages_can_be_explored_too(pairs, trajectory):
    given = PrototypeExplorer(
        pairs[pairs.stage == 0].drop(columns="stage"), trajectory.drop(columns="stage"), read_pixels
    )
    given.slider.value = 3
    assert sum(len(traces(given)[band].x) for band in ("central", "support", "outlier")) == 6


def test_many_pairs_are_thinned_and_the_reader_is_told(pairs, trajectory, monkeypatch):
    monkeypatch.setattr(module, "MOST_POINTS", 4)
    given = PrototypeExplorer(pairs, trajectory, read_pixels)
    given.slider.value = 3
    assert sum(len(traces(given)[band].x) for band in ("central", "support", "outlier")) == 4
    assert "a sample of the pairs" in given.figure.layout.title.text
    # Pointing still finds the pair that is drawn there.
    name = next(band for band in ("central", "support", "outlier") if len(traces(given)[band].x))
    point(given, "click", name, 0)
    x = traces(given)[name].x[0]
    assert pairs.image_id[pairs.x == x].iloc[0] in given.details.value


def test_nothing_to_explore_is_said_in_one_sentence(pairs, trajectory):
    with pytest.raises(StudyError, match="nothing to draw"):
        PrototypeExplorer(pairs[:0], trajectory, read_pixels)
    with pytest.raises(StudyError, match="nothing to draw"):
        PrototypeExplorer(pairs, trajectory[:0], read_pixels)


def test_there_is_an_explorer_only_where_someone_can_point(pairs, trajectory, monkeypatch):
    monkeypatch.delenv("CHEXSTUDY_HEADLESS", raising=False)
    for name in ("JPY_SESSION_NAME", "VSCODE_PID", "COLAB_RELEASE_TAG"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setitem(sys.modules, "ipykernel", sys)
    # A kernel that papermill or nbconvert started by itself.
    assert not has_front_end()
    assert explore_prototypes(pairs, trajectory, read_pixels) is None
    monkeypatch.setenv("JPY_SESSION_NAME", "03_watch_prototypes.ipynb")
    assert has_front_end()
    monkeypatch.setattr(module, "PrototypeExplorer", lambda *given: given)
    assert explore_prototypes(pairs, trajectory, read_pixels)[2:] == (read_pixels, None)
    monkeypatch.setenv("CHEXSTUDY_HEADLESS", "1")
    assert not has_front_end()
    monkeypatch.delenv("CHEXSTUDY_HEADLESS")
    monkeypatch.delitem(sys.modules, "ipykernel")
    assert not has_front_end()


def test_importing_the_module_does_not_import_widgets():
    code = "import sys, chexstudy.explorer; sys.exit('plotly' in sys.modules or 'ipywidgets' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
