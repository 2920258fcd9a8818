from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from chexstudy.cohort.annotations import Regions
from chexstudy.encoders.frozen_features import FrozenFeatures
from chexstudy.errors import StudyError
from chexstudy.evaluation.localisation.pointing_game import (
    METRICS,
    absent_thresholds,
    centre_map,
    choose_examples,
    mass_inside,
    measure_cases,
    point,
    read_attention,
    spread_map,
    summarise_cases,
    widen_mask,
)
from chexstudy.statistics.bootstrap import bootstrap_patients

FINDINGS = ["Nodule", "Mass"]
GRID, SIZE = 4, 32


class BrightestPatch(nn.Module):
    """A head that looks at patches in proportion to their channel of the finding."""

    needs_patches = True

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def attention(self, batch):
        weights = batch.patches.transpose(1, 2) / batch.patches.sum(dim=1)[..., None]
        return weights[:, None].expand(-1, 3, -1, -1)


def make_rows():
    labels = {"Nodule": [1, 1, 1, 0, -1, None], "Mass": [0, 1, 0, 0, 0, 0]}
    table = {"image_id": [f"x/{n}" for n in range(6)], "patient_id": [f"x/p{n // 2}" for n in range(6)]}
    return pd.DataFrame(table | {name: pd.array(column, dtype="Int8") for name, column in labels.items()})


def make_features(patches):
    vectors = patches.mean(axis=1).astype(np.float32)
    ids = [f"x/{number}" for number in range(len(patches))]
    return FrozenFeatures(ids, vectors, vectors, vectors, patches.astype(np.float16), (2,), GRID, {})


def square(top, left, side=8):
    mask = np.zeros((SIZE, SIZE), dtype=bool)
    mask[top : top + side, left : left + side] = True
    return mask


def make_regions():
    rows = [("x/0", "Nodule", square(0, 0)), ("x/1", "Nodule", square(16, 8)), ("x/1", "Mass", square(0, 0, 16))]
    return Regions(pd.DataFrame(rows, columns=["image_id", "finding", "mask"]))


# --- geometry ---------------------------------------------------------------------------------------------------------


def test_a_patch_spreads_to_its_own_pixels():
    weights = np.zeros(16, dtype=np.float32)
    weights[6] = 1  # second row, third column
    spread = spread_map(weights, SIZE)
    inside = square(8, 16)
    assert inside[spread == spread.max()].all()
    assert point(spread, inside) == 1
    # Half of the way to the next patch's centre, half of the weight: bilinear, not blocks.
    assert spread[12, 15] == pytest.approx(spread[12, 24])
    assert 0.4 < spread[12, 15] < 0.6
    assert spread.sum() == pytest.approx(64)
    assert spread_map(torch.ones(2, 3, 9), 12).shape == (2, 3, 12, 12)


# --- measures by hand -------------------------------------------------------------------------------------------------


def test_the_pointing_game_and_mass_inside_by_hand():
    values = np.arange(16.0).reshape(4, 4)
    mask = np.zeros((4, 4), dtype=bool)
    mask[3, 3] = True
    assert point(values, mask) == 1
    assert point(-values, mask) == 0
    # Four maxima, one of them inside; and a map without a maximum does as chance does.
    assert point(np.array([[1, 0], [1, 0]]), np.array([[True, True], [False, False]])) == 0.5
    assert point(np.ones((4, 4)), mask) == mask.mean() == mass_inside(np.ones((4, 4)), mask)
    assert mass_inside(np.array([[1, 2], [3, 4]]), np.array([[True, False], [False, True]])) == 0.5


def test_a_widened_mask_holds_what_is_near():
    mask = np.zeros((5, 5), dtype=bool)
    mask[2, 2] = True
    assert widen_mask(mask, 1).sum() == 5
    assert widen_mask(mask, 1.5).sum() == 9
    assert (widen_mask(mask, 0) == mask).all()


def test_the_centre_map_is_highest_in_the_middle():
    centre = centre_map(33)
    assert np.unravel_index(centre.argmax(), centre.shape) == (16, 16)
    np.testing.assert_allclose(centre, centre.T)
    assert centre[16, 16 + 8] == pytest.approx(np.exp(-0.5 * (8 / 33 / 0.25) ** 2))


# --- cases ------------------------------------------------------------------------------------------------------------


def test_attention_is_read_in_the_order_of_the_cases_and_averaged_over_all_images():
    generator = np.random.default_rng(0)
    patches = generator.random((150, 16, 2))
    features = make_features(patches)
    ids = [f"x/{number}" for number in range(149, -1, -1)]
    maps, mean = read_attention(BrightestPatch(), features, ids, np.array([3, 148, 3, 70]), np.array([1, 0, 0, 1]))
    share = patches / patches.sum(axis=1, keepdims=True)
    expected = [share[146, :, 1], share[1, :, 0], share[146, :, 0], share[79, :, 1]]
    np.testing.assert_allclose(maps, expected, atol=2e-3)
    np.testing.assert_allclose(mean, share.mean(axis=0).T, atol=2e-3)


def test_cases_are_measured_against_their_own_region():
    patches = np.full((6, 16, 2), 1e-3)
    patches[0, 0, 0] = 1  # on the nodule of the first image
    patches[1, 15, 0] = 1  # far from that of the second
    patches[1, 5, 1] = 1  # on the mass of the second
    cases = measure_cases(BrightestPatch(), make_features(patches), make_regions(), make_rows(), FINDINGS)
    assert cases.finding.tolist() == ["Nodule", "Nodule", "Mass"]
    assert cases.pointing_game.tolist() == [1, 0, 1]
    assert cases.area_inside.tolist() == pytest.approx([1 / 16, 1 / 16, 1 / 4])
    assert cases.mass_inside[0] > 0.5 > cases.mass_inside[1]
    # One patch of eight pixels away: the region grows to a quarter circle about its corner and more.
    assert cases.area_inside_tolerant[0] > 3 / 16
    # The centre of 32 x 32 pixels is shared by four, of which one lies in the third region.
    assert cases.pointing_game_centre.tolist() == [0, 0.25, 0.25]
    # The mean map of masses has its maximum on the second image's mass; that of nodules on both nodules' places alike.
    assert cases.pointing_game_mean_map[2] == 1
    assert cases.mass_inside_mean_map[0] < cases.mass_inside[0]


def test_summaries_by_hand_and_with_paired_intervals():
    rows = pd.DataFrame({"image_id": [f"i{n}" for n in range(40)], "patient_id": [f"p{n}" for n in range(40)]})
    generator = np.random.default_rng(1)
    cases = pd.DataFrame({"image_id": rows.image_id[:30], "finding": ["Nodule"] * 20 + ["Mass"] * 10})
    for metric in METRICS[:9]:
        cases[metric] = generator.random(30)
    cases["mass_inside"] = cases.area_inside + 0.2
    weights = bootstrap_patients(rows.patient_id, 200, generator)
    results = summarise_cases(cases, rows, [*FINDINGS, "Hernia"], weights)
    assert len(results) == 4 * len(METRICS)
    table = results.set_index(["finding", "metric"])
    nodule = cases[cases.finding == "Nodule"]
    assert table.value["Nodule", "pointing_game"] == pytest.approx(nodule.pointing_game.mean())
    assert table.value["macro", "mass_inside"] == pytest.approx(cases.groupby("finding").mass_inside.mean().mean())
    assert (table.n["Nodule", "mass_inside"], table.n["macro", "mass_inside"]) == (20, 30)
    row = table.loc[("Nodule", "pointing_game")]
    assert row.ci_low < row.value < row.ci_high
    # The difference is the same for every image, so its interval has no width, and only pairing can show that.
    row = table.loc[("Nodule", "mass_inside_over_area")]
    assert (row.ci_low, row.ci_high) == pytest.approx((0.2, 0.2))
    hernia = table.loc[("Hernia", "mass_inside")]
    assert (np.isnan(hernia.value), np.isnan(hernia.ci_low), hernia.n) == (True, True, 0)


def test_without_a_case_every_row_is_there_and_says_so():
    empty = pd.DataFrame(columns=["image_id", "finding", *METRICS[:9]])
    results = summarise_cases(empty, make_rows(), FINDINGS, np.ones((10, 6), dtype=int), "lungs")
    assert set(results.group) == {"lungs"}
    assert len(results) == 3 * len(METRICS)
    assert results.value.isna().all()
    assert (results.n == 0).all()


# --- examples ---------------------------------------------------------------------------------------------------------


def test_thresholds_keep_a_share_of_the_images_without_the_finding():
    scores = np.array([[0.0, 1], [1, 1], [2, 1], [3, 1], [9, 1], [8, 1]])
    labels = np.array([[0, 1], [0, 1], [0, 1], [0, 1], [1, 1], [-1, np.nan]])
    thresholds = absent_thresholds(scores, labels, 2 / 3)
    assert thresholds[0] == 2
    assert np.isnan(thresholds[1])


def test_examples_follow_the_rule():
    rows = make_rows()
    scores = np.array([[0.1, 0], [0.9, 0.9], [0.8, 0], [0.9, 0], [0.9, 0], [0.9, 0]])
    thresholds = np.array([0.5, 0.5])
    # The first detected nodule is on x/1; the only mass is there, too, and no image is shown twice.
    chosen = choose_examples(rows, scores, thresholds, FINDINGS, ["Nodule", "Mass"], 3)
    assert chosen.to_numpy().tolist() == [["x/1", "Nodule"]]
    chosen = choose_examples(rows, scores, thresholds, FINDINGS, ["Mass", "Nodule"], 3)
    assert chosen.to_numpy().tolist() == [["x/1", "Mass"], ["x/2", "Nodule"]]
    assert len(choose_examples(rows, scores, thresholds, FINDINGS, ["Mass", "Nodule"], 1)) == 1
    assert choose_examples(rows, scores, thresholds, FINDINGS, ["Nodule"], 3, {"x/2"}).image_id.tolist() == ["x/2"]
    assert choose_examples(rows, scores, np.array([np.nan, 0.5]), FINDINGS, ["Nodule"], 3).empty


def test_a_head_without_attention_is_named():
    head = SimpleNamespace()
    with pytest.raises(StudyError, match="show the attention of a GLoRI head"):
        read_attention(head, make_features(np.ones((1, 16, 2))), ["x/0"], np.array([0]), np.array([0]))
