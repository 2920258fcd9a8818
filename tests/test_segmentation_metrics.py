"""Measures of outlines: by hand, against distances of every pixel to every other, and over images and patients."""

import numpy as np
import pandas as pd
import pytest

from chexstudy.errors import StudyError
from chexstudy.evaluation.segmentation.metrics import measure_case, measure_image, measure_structures
from chexstudy.statistics.bootstrap import bootstrap_patients

DIAGONAL = 64 * np.sqrt(2)


def square(top=20, left=20, side=20, size=64):
    mask = np.zeros((size, size), dtype=bool)
    mask[top : top + side, left : left + side] = True
    return mask


NOTHING, WHOLE = square(side=0), square()
SPECK = WHOLE.copy()
SPECK[0, 0] = True


# The table of edge cases: what is outlined, what is there, and what each measure says.
@pytest.mark.parametrize(
    ("prediction", "truth", "outcome", "dice", "iou", "hd95", "surface_dice"),
    [
        (NOTHING, NOTHING, "both_empty", np.nan, np.nan, np.nan, np.nan),
        (WHOLE, NOTHING, "false_positive", 0, 0, DIAGONAL, 0),
        (NOTHING, WHOLE, "missed", 0, 0, DIAGONAL, 0),
        (WHOLE, WHOLE, "found", 1, 1, 0, 1),
        (~NOTHING, ~NOTHING, "found", 1, 1, 0, 1),
        # Moved by two: of the 76 boundary pixels of each, 36 lie on the other's.
        (square(22), WHOLE, "found", 0.9, 18 / 22, 2, 36 / 76),
        # One pixel far away among 77 is beyond the 95th percentile, and not beyond the 100th.
        (SPECK, WHOLE, "found", 800 / 801, 400 / 401, 0, 152 / 153),
        # Nothing in common is no miss.
        (square(40, 40), WHOLE, "found", 0, 0, None, 0),
        # A truth of one pixel.
        (square(10, 14, 1), square(10, 10, 1), "found", 0, 0, 4, 0),
    ],
)
def test_every_case_by_hand(prediction, truth, outcome, dice, iou, hd95, surface_dice):
    case = measure_case(prediction, truth, spacing=0.5)
    assert case["outcome"] == outcome
    assert [case["dice"], case["iou"]] == pytest.approx([dice, iou], nan_ok=True)
    if hd95 is not None:
        assert [case["hd95"], case["hd95_mm"]] == pytest.approx([hd95, hd95 / 2], nan_ok=True)
    assert case["surface_dice"] == pytest.approx(surface_dice, nan_ok=True)
    assert (case["area"], case["overlap"]) == (prediction.sum() + truth.sum(), (prediction & truth).sum())


def test_the_numbers_of_the_specification():
    assert measure_case(square(22), WHOLE)["dice"] == pytest.approx(0.9)
    assert measure_case(NOTHING, WHOLE)["hd95"] == pytest.approx(90.51, abs=0.005)
    # Two pixels are 0.35 mm on a film of the JSRT; with pixels of 1.5 mm, 40 of 76 are one pixel away or none.
    case = measure_case(square(22), WHOLE, spacing=0.175)
    assert (case["hd95_mm"], case["surface_dice_2mm"]) == (pytest.approx(0.35), 1)
    assert measure_case(square(22), WHOLE, spacing=1.5)["surface_dice_2mm"] == pytest.approx(40 / 76)
    assert not {"hd95_mm", "surface_dice_2mm"} & measure_case(WHOLE, WHOLE, np.nan).keys()
    with pytest.raises(StudyError, match=r"^a mask of \(64, 64\) has no place on one of \(64, 32\)"):
        measure_case(WHOLE, WHOLE[:, :32])


def measure_by_force(first, second, tolerance):
    """All of it from the distances of every boundary pixel to every other, pixels looked at one by one."""

    def boundary(mask):
        padded = np.pad(mask, 1)
        inside = [(r, c) for r, c in np.argwhere(mask)]
        around = ((0, 1), (2, 1), (1, 0), (1, 2))
        return np.array([(r, c) for r, c in inside if not all(padded[r + down, c + right] for down, right in around)])

    ours, theirs = boundary(first), boundary(second)
    apart = np.sqrt(((ours[:, None] - theirs[None]) ** 2).sum(axis=2))
    near, back = np.sort(apart.min(axis=1)), np.sort(apart.min(axis=0))

    def at_95(sorted_values):
        place = 0.95 * (len(sorted_values) - 1)
        low, share = int(place), place - int(place)
        high = sorted_values[min(low + 1, len(sorted_values) - 1)]
        return sorted_values[low] * (1 - share) + high * share

    within = ((near <= tolerance).sum() + (back <= tolerance).sum()) / (len(near) + len(back))
    both, either = len([1 for one, two in zip(first.flat, second.flat, strict=True) if one and two]), (first | second)
    return both * 2 / (first.sum() + second.sum()), both / either.sum(), max(at_95(near), at_95(back)), within


@pytest.mark.parametrize("seed", range(8))
def test_random_masks_against_every_distance(seed):
    generator = np.random.default_rng(seed)
    shape = (23, 41)
    rows, columns = np.mgrid[:23, :41]
    masks = []
    for _ in range(2):
        mask = generator.random(shape) < generator.choice([0.01, 0.05])
        centre, radius = generator.random(2) * shape, generator.integers(2, 14)
        masks.append(mask | (np.hypot(rows - centre[0], columns - centre[1]) < radius))
    case = measure_case(*masks, spacing=0.7)
    expected = measure_by_force(*masks, 0.01 * np.hypot(*shape))
    assert [case[name] for name in ("dice", "iou", "hd95", "surface_dice")] == pytest.approx(expected)
    assert case["surface_dice_2mm"] == pytest.approx(measure_by_force(*masks, 2 / 0.7)[3])
    assert measure_case(*masks[::-1], spacing=0.7) == pytest.approx(case)


# --- a data set -------------------------------------------------------------------------------------------------------


ROWS = pd.DataFrame({"image_id": [f"a/{n}" for n in range(40)], "patient_id": [f"p{n // 2}" for n in range(40)]})
STRUCTURES = ["heart", "nodule", "rib"]


def make_table(generator, spacing=None):
    """Hearts on all but four films, of which nothing is known; nodules known on every third, half of them without."""
    table = []
    for number, image_id in enumerate(ROWS.image_id):
        truth = {"heart": WHOLE} if number >= 4 else {}
        if number % 3 == 0:
            truth["nodule"] = square(8, 8, 4) if number % 2 else NOTHING
        predicted = {"heart": square(20 + generator.integers(5))}
        predicted["nodule"] = generator.choice([0, 1]) * square(8, 9, 4) > 0
        table.append({"image_id": image_id, **measure_image(predicted, truth, spacing)})
    return pd.DataFrame(table).sample(frac=1, random_state=0)


def resample(table, image_ids):
    return table.set_index("image_id").loc[image_ids]


def measure_plainly(table, structure):
    """Means, medians and shares of the cases of one structure in a table whose rows may be there several times."""
    cases = table[table[f"{structure}: outcome"].notna()].filter(like=f"{structure}: ")
    cases.columns = cases.columns.str.removeprefix(f"{structure}: ")
    counted, shown = cases[cases.outcome != "both_empty"], cases[cases.outcome.isin(["found", "missed"])]
    absent = cases[cases.outcome.isin(["false_positive", "both_empty"])]
    return {
        "dice": counted.dice.mean(),
        "iou": counted.iou.mean(),
        "surface_dice": counted.surface_dice.mean(),
        "hd95": counted.hd95.mean(),
        "median_hd95": counted.hd95.median(),
        "global_dice": 2 * cases.overlap.sum() / cases.area.sum(),
        "sensitivity": (shown.outcome == "found").mean(),
        "missed": (shown.outcome == "missed").mean(),
        "specificity": (absent.outcome == "both_empty").mean(),
        "both_empty": (cases.outcome == "both_empty").mean(),
    }


def test_values_and_replicates_are_those_of_the_cases_drawn():
    generator = np.random.default_rng(0)
    tables = [make_table(generator) for _ in range(2)]
    weights = bootstrap_patients(ROWS.patient_id, 20, generator)
    measured = measure_structures(tables, ROWS, STRUCTURES, weights)
    assert measured.columns.finding.tolist() == [*STRUCTURES, "macro"]
    assert measured.columns.n.tolist() == [36, 14, 0, 40]
    assert measured.columns.positives.tolist() == [36, 7, 0, -1]
    assert np.isnan(measured.values[:, :, 2]).all()
    for seed, table in enumerate(tables):
        for place, structure in enumerate(STRUCTURES[:2]):
            drawn = [(measured.values[seed], ROWS.image_id)]
            drawn += [(one, ROWS.image_id.repeat(w)) for one, w in zip(measured.replicates[seed], weights, strict=True)]
            for values, image_ids in drawn:
                expected = measure_plainly(resample(table, image_ids), structure)
                told = dict(zip(measured.metrics, values[:, place], strict=True))
                assert told == pytest.approx(expected, nan_ok=True)
    # Over the structures that are known.
    np.testing.assert_allclose(measured.values[..., 3], np.nanmean(measured.values[..., :3], axis=-1))


def test_missing_more_never_helps_and_empty_films_are_left_out():
    """Three films moved by two pixels and seven missed: HD95 is no 2, as where misses drop out."""
    films = ROWS[:10]
    cases = [measure_image({"rib": square(22) if n < 3 else NOTHING}, {"rib": WHOLE}) for n in range(10)]
    weights = bootstrap_patients(films.patient_id, 50, np.random.default_rng(0))

    def measure(cases):
        table = pd.DataFrame(cases).assign(image_id=films.image_id)
        measured = measure_structures([table], films, ["rib"], weights)
        return dict(zip(measured.metrics, measured.values[0, :, 0], strict=True))

    told = measure(cases)
    assert told["hd95"] == pytest.approx((3 * 2 + 7 * DIAGONAL) / 10)
    assert (told["median_hd95"], told["missed"], told["dice"]) == pytest.approx((DIAGONAL, 0.7, 0.27))
    # Who outlines nothing where most films are empty.
    cases = [measure_image({"rib": NOTHING}, {"rib": NOTHING if n < 8 else WHOLE}) for n in range(10)]
    assert (measure(cases)["dice"], measure(cases)["both_empty"]) == (0, pytest.approx(0.8))


def test_intervals_draw_patients_and_differences_are_paired():
    generator = np.random.default_rng(1)
    weights = bootstrap_patients(ROWS.patient_id, 200, generator)
    first, second = ([make_table(generator, 0.2) for _ in range(3)] for _ in range(2))
    measured = measure_structures(first, ROWS, STRUCTURES, weights)
    table = measured.each_seed([0, 1, 2], generator).set_index(["seed", "finding", "metric"])
    row = table.loc[(0, "heart", "hd95_mm")]
    assert row.ci_low < row.value < row.ci_high
    assert row.value == pytest.approx(0.2 * table.value[0, "heart", "hd95"])
    # Seven nodules of as many patients; without one there is no interval.
    assert np.isfinite(table.ci_low[-1, "nodule", "dice"])
    assert np.isnan(table.ci_low[-1, "rib", "dice"])
    assert measured.bounds[1][list(measured.metrics).index("median_hd95")] == np.inf
    itself = measured.minus(measured, generator).dropna()
    assert len(itself)
    assert (itself[["value", "ci_low", "ci_high"]] == 0).all(axis=None)
    assert len(measured.minus(measure_structures(second, ROWS, STRUCTURES, weights), generator))
    with pytest.raises(StudyError, match="lacks 1 of the images"):
        measure_structures([first[0].iloc[1:]], ROWS, STRUCTURES, weights)
