"""Learning rates worked out by hand."""

import pytest

from chexstudy.pretraining.engine.schedule import LearningRate


def test_ramp_hold_and_half_cosine():
    rate = LearningRate(peak=1.0, floor=0.2, ramp_steps=4, fall_from=10, fall_to=20)
    assert [rate.at(step) for step in (0, 3, 4, 9, 10)] == [0.25, 1.0, 1.0, 1.0, 1.0]
    assert rate.at(15) == pytest.approx(0.6)
    assert rate.at(20) == rate.at(99) == pytest.approx(0.2)


def test_published_schedule_rises_again_after_its_minimum():
    # CheXficient: 13,649 steps against a planned 11,660 end at 8.15e-6 instead of 5e-6 (F10).
    rate = LearningRate(5e-5, 5e-6, 0, 0, 11_660, overshoots=True)
    assert rate.at(0) == 5e-5
    assert rate.at(11_660) == pytest.approx(5e-6)
    assert rate.at(13_649) == pytest.approx(8.15e-6, rel=0.01)
