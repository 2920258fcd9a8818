"""The figure shows the curves it is given; the caption has the errors before and after."""

import numpy as np
import pandas as pd
import pytest
from drawn import describe, plot

from chexstudy.evaluation.robustness.report import RECALIBRATIONS
from chexstudy.plots import figures
from chexstudy.plots.measurements import NothingToDraw
from chexstudy.results import validate_results


@pytest.fixture
def curves():
    tables = []
    for head in ("zero_shot", "linear_probe"):
        for setting in RECALIBRATIONS:
            predicted = np.array([0.0001, 0.01, 0.1, 0.6])
            observed = predicted * 0.9
            table = {"predicted": predicted, "observed": observed, "ci_low": observed / 2, "ci_high": observed * 1.1}
            place = {"arm": "curated", "seed": 0, "data_set": "a/test", "head": head, "setting": setting}
            tables.append(pd.DataFrame(table).assign(n=250, positives=[0, 2, 23, 135], exposure="held_out", **place))
    return pd.concat(tables, ignore_index=True)


@pytest.fixture
def results(curves):
    place = {"study": "s", "arm": "curated", "seed": 0, "task": "calibration", "data_set": "a/test", "finding": "macro"}
    place |= {"metric": "ece_mass", "ci_low": 0.0, "ci_high": 1.0, "n": 90, "positives": -1, "exposure": "unknown"}
    return validate_results(
        pd.DataFrame(
            [
                place | {"head": head, "setting": setting, "value": 0.4 - 0.1 * step}
                for head in ("zero_shot", "linear_probe")
                for step, setting in enumerate(RECALIBRATIONS)
            ]
        )
    )


def test_each_sort_of_scores_has_its_panel_with_every_recalibration(curves, results):
    figure = plot(figures.calibration, curves, results)
    assert len(figure.axes) == 4
    for axes in figure.axes[:2]:
        lines = [line for line in axes.lines if not line.get_label().startswith("_")]
        assert [line.get_label() for line in lines] == ["As scored", "Temperature", "Platt", "Platt, prevalence known"]
        np.testing.assert_allclose(lines[0].get_xdata(), [0.001, 0.01, 0.1, 0.6])
        np.testing.assert_allclose(lines[0].get_ydata(), [0.001, 0.009, 0.09, 0.54])
    for axes in figure.axes[2:]:
        assert list(axes.lines[0].get_ydata()) == [0, 2, 23, 135]
        assert axes.get_ylim()[1] > 135
    assert len(plot(figures.calibration, curves[curves["head"] == "zero_shot"], results).axes) == 2


def test_the_caption_has_errors_labels_and_exposure(curves, results):
    text = describe(figures.calibration, curves, results)
    assert "zero-shot: 0.400 as scored, 0.300 Temperature, 0.200 Platt, 0.100 Platt, prevalence known" in text
    assert "1,000 labels in bins of about 250" in text
    assert "n = 90 (a, test, exposure unknown)" in text


def test_nothing_to_draw_is_one_sentence(curves):
    with pytest.raises(NothingToDraw, match="without reliability curves, which need labels"):
        figures.calibration.choose(curves[:0], None)
