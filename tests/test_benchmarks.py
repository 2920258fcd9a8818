"""The benchmarks run, small, and record what they say they record."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

_BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"
_SMALL = {
    "curator": ["--rows", "150", "--prototypes", "3", "6", "--dim", "16"],
    "loader": ["--images", "2", "--size", "64", "--batch", "4", "--stored", "20", "--steps", "2"],
    "bootstrap": ["--cases", "300", "--findings", "3", "--resamples", "20", "--peer-resamples", "1"],
    "label_planner": ["--pooled-rounds", "1", "--findings", "2", "--most", "50", "--draws", "1", "5"],
    "self_supervised": [
        *("--scale", "least", "--no-memory", "--threads", "1", "--seconds", "1"),
        *("--prototypes", "64", "--patches", "60"),
    ],
    "curate": ["--rows", "300", "--dim", "16", "--threads", "1"],
    "kmeans": ["--rows", "300", "--dim", "8", "--clusters", "4", "--iterations", "2"],
}


@pytest.mark.parametrize("name", _SMALL)
def test_a_small_run_is_recorded(name, tmp_path):
    command = [sys.executable, str(_BENCHMARKS / f"{name}.py"), *_SMALL[name], "--rounds", "1", "--out", str(tmp_path)]
    if name == "loader":
        noise = np.random.default_rng(0).integers(0, 256, (64, 64), np.uint8)
        Image.fromarray(noise).save(tmp_path / "noise.png")
        command += ["--folder", str(tmp_path)]
    shown = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout
    record = json.loads((tmp_path / f"{name}.json").read_text())
    assert record["machine"]["cores"] >= 1
    assert record["versions"]["torch"]
    assert record["command"].startswith(f"python benchmarks/{name}.py {_SMALL[name][0]}")
    assert record["rows"]
    for goal in record["goals"]:
        assert {"name", "target", "measured", "met"} <= set(goal)
        assert (goal["measured"] is None) == (goal["met"] is None)
        assert goal["name"] in shown
    if name == "loader":
        assert [goal["measured"] for goal in record["goals"] if "differ" in goal["name"]] == [0, 0]
    if name == "curator":
        assert all(row["fused_differs"] == row["static_differs"] == 0 for row in record["rows"])
    if name == "self_supervised":
        assert [goal["met"] for goal in record["goals"] if "relative difference" in goal["name"]] == [True, True]
        assert max(row["differs"] for row in record["rows"] if row["section"] == "patch head") < 1e-5


def test_goals_are_met_from_the_right_side(monkeypatch):
    monkeypatch.syspath_prepend(_BENCHMARKS)
    import record

    assert record.reach("speed-up", 6, 6.0).met
    assert not record.reach("speed-up", 6, 5.9).met
    assert record.reach("seconds", 60, 59, at_least=False).met
    assert record.reach("on a GPU", 6, None, note="no GPU").met is None


def test_callables_take_turns(monkeypatch):
    monkeypatch.syspath_prepend(_BENCHMARKS)
    import record

    monkeypatch.setattr(record, "_SECONDS_OF_A_TURN", 0.0)
    calls = []
    timings = record.measure_in_turns({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, 3, seconds=60)
    assert calls == ["a", "b"] * 4
    assert timings["a"].rounds == 3
    assert 0 <= timings["a"].best <= timings["a"].median


def test_an_answer_is_contradicted_by_what_was_measured_later(monkeypatch):
    monkeypatch.syspath_prepend(_BENCHMARKS)
    from label_forecasts import judge_answers

    from chexstudy.label_planning.observations import LearningCurve
    from chexstudy.label_planning.posterior import Posterior

    labels = np.array([10, 20, 50, 200, 1000.0])
    curve = LearningCurve("e", "f", labels, np.array([0.6, 0.7, 0.76, 0.82, 0.9])[:, None])

    def judge_level(plateau):
        """Of an encoder that is at once at its plateau, from 50 labels, for 0.75, 0.80 and 0.85."""
        parameters = np.tile([plateau, 0.0, 0.5, 0.0], (100, 1))
        return judge_answers(curve, Posterior(curve.until(50), parameters, *np.zeros((2, 100)), 1.0))

    # 0.75 is reached at 50, 0.80 at 200 and 0.85 at 1,000.
    assert judge_level(0.78) == {"answers": 3, "said": 3, "contradicted": 2}
    assert judge_level(0.95) == {"answers": 3, "said": 3, "contradicted": 2}
    assert judge_level(0.74) == {"answers": 3, "said": 3, "contradicted": 3}
