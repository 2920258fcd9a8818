"""The drawn radiographs: repeatable, the same at any size, anatomically in place, findings where their masks say."""

from dataclasses import replace
from functools import lru_cache

import numpy as np
import pytest

from chexstudy.cohort.phantom.case import Case, Lesion, Patient
from chexstudy.cohort.phantom.drawing import draw_radiograph
from chexstudy.cohort.phantom.lesions import LESIONS
from chexstudy.cohort.phantom.population import PREVALENCE
from chexstudy.errors import StudyError

# Where a finding is looked for; everything else lies on one side, in the middle zone.
PLACES = {
    "Atelectasis": ("left", "lower"),
    "Aortic Enlargement": ("midline", ""),
    "Bronchiectasis": ("bilateral", "lower"),
    "Cardiomegaly": ("midline", ""),
    "Edema": ("bilateral", "diffuse"),
    "Emphysema": ("bilateral", "diffuse"),
    "Fibrosis": ("bilateral", "lower"),
    "Hernia": ("midline", "lower"),
    "Pleural Effusion": ("left", "lower"),
    "Pneumoperitoneum": ("right", ""),
    "Pneumothorax": ("left", "upper"),
    "Scoliosis": ("right", ""),
    "Tuberculosis": ("left", "upper"),
}


# Cases are values: what several tests look at is drawn once.
draw = lru_cache(1024)(draw_radiograph)


def make_case(number: int = 0, *lesions: Lesion, **changes) -> Case:
    patient = Patient(f"p{number}", "FM"[number % 2], 35 + 7 * number, 0.15 * number, 100 + number)
    plain = Case(patient, 0, "PA", 0.0, 0.9, 0.0, 0.008, "", lesions, 500 + number)
    return replace(plain, **changes)


def make_lesion(finding: str, severity: float, seed: int = 3, side: str = "", zone: str | None = None) -> Lesion:
    usual_side, usual_zone = PLACES.get(finding, ("left", "middle"))
    return Lesion(finding, side or usual_side, usual_zone if zone is None else zone, severity, True, seed)


def measure_change(case: Case, lesion: Lesion, size: int = 96) -> tuple[float, float]:
    """Mean absolute change of grey values that a lesion makes inside its mask, and outside."""
    before = draw(case, size).pixels.astype(float)
    drawing = draw(replace(case, lesions=(*case.lesions, lesion)), size)
    change, mask = np.abs(drawing.pixels - before), drawing.masks[lesion.finding]
    return float(change[mask].mean()), float(change[~mask].mean())


def measure_cardiothoracic_ratio(masks: dict[str, np.ndarray]) -> float:
    def width(mask: np.ndarray) -> int:
        columns = np.flatnonzero(mask.any(axis=0))
        return columns[-1] - columns[0] + 1

    return width(masks["heart"]) / width(masks["right lung"] | masks["left lung"])


def overlap(first: np.ndarray, second: np.ndarray) -> float:
    return (first & second).sum() / max((first | second).sum(), 1)


def shrink(image: np.ndarray) -> np.ndarray:
    """Average 2 x 2 pixels."""
    return image.reshape(image.shape[0] // 2, 2, image.shape[1] // 2, 2).mean(axis=(1, 3))


def test_same_case_gives_same_bytes_whatever_numpy_draws_elsewhere_and_another_seed_does_not():
    case = make_case(1, make_lesion("Tuberculosis", 0.7), make_lesion("Support Devices", 0.9), side_marker="L")
    before = np.random.get_state()[1].copy()
    first, again = draw_radiograph(case, 96), draw_radiograph(case, 96)
    assert np.array_equal(before, np.random.get_state()[1])
    assert first.pixels.dtype == np.uint8
    assert first.pixels.shape == (96, 96)
    assert first.pixels.tobytes() == again.pixels.tobytes()
    assert all(np.array_equal(first.masks[name], again.masks[name]) for name in first.masks)
    assert not np.array_equal(first.pixels, draw(replace(case, seed=9), 96).pixels)


def test_a_patient_keeps_the_anatomy_over_studies_and_patients_differ():
    size = 128
    first = draw(make_case(2), size).masks
    later = draw(make_case(2, study_number=1, seed=77), size).masks
    other = draw(make_case(5), size).masks
    for organ in ("right lung", "left lung", "heart"):
        assert overlap(first[organ], later[organ]) > 0.88
        assert overlap(first[organ], later[organ]) > overlap(first[organ], other[organ])


@pytest.mark.parametrize("number", range(3))
def test_composition_is_the_same_at_any_size(number):
    lesions = (make_lesion("Mass", 0.8), make_lesion("Pleural Effusion", 0.5, side="right"))
    case = make_case(number, *lesions, side_marker="R", rotation_degrees=3.0, noise=0.01)
    small, large = draw(case, 96), draw(case, 192)
    assert np.corrcoef(small.pixels.ravel(), shrink(large.pixels.astype(float)).ravel())[0, 1] > 0.97
    assert small.masks.keys() == large.masks.keys()
    for name in ("right lung", "left lung", "heart", "spine", "Mass", "Pleural Effusion"):
        assert overlap(small.masks[name], shrink(large.masks[name].astype(float)) >= 0.5) > 0.85, name


@pytest.mark.parametrize("size", [64, 97, 300])
def test_any_size_can_be_drawn(size):
    lesions = tuple(make_lesion(finding, 1.0) for finding in LESIONS)
    assert set(LESIONS) == set(PREVALENCE)
    drawing = draw(make_case(3, *lesions), size)
    assert drawing.pixels.shape == (size, size)
    assert set(LESIONS) <= drawing.masks.keys()
    assert all(mask.dtype == bool and mask.shape == (size, size) and mask.any() for mask in drawing.masks.values())


@pytest.mark.parametrize("finding", list(PREVALENCE))
def test_a_finding_changes_the_picture_inside_its_mask_is_visible_at_half_severity_and_grows(finding):
    inside, outside = np.mean(
        [measure_change(make_case(k), make_lesion(finding, 0.8, seed=k)) for k in range(5)], axis=0
    )
    assert inside > 2.0 * outside
    assert inside > 10.0
    totals = []
    for severity in (0.15, 0.5, 1.0):
        cases = [make_case(k, make_lesion(finding, severity, seed=k)) for k in range(4)]
        before = [draw(make_case(k), 96).pixels.astype(float) for k in range(4)]
        totals.append(
            sum(np.abs(draw(case, 96).pixels - plain).sum() for case, plain in zip(cases, before, strict=True))
        )
    assert totals[0] < totals[1] < totals[2]
    assert np.mean([measure_change(make_case(k), make_lesion(finding, 0.5, seed=k))[0] for k in range(4)]) > 7.0


def test_left_is_the_image_right():
    masks = draw(make_case(4), 96).masks
    column = {name: np.flatnonzero(mask.any(axis=0)).mean() for name, mask in masks.items()}
    assert column["right lung"] < 48 < column["left lung"]
    assert column["heart"] > 48
    assert column["aorta"] > column["trachea"]


@pytest.mark.parametrize("number", range(4))
def test_organs_have_the_greys_and_places_of_a_radiograph(number):
    size = 128
    drawing = draw(make_case(number), size)
    pixels, masks = drawing.pixels.astype(float), drawing.masks
    lungs = masks["right lung"] | masks["left lung"]
    assert pixels[lungs].mean() + 40 < pixels[masks["heart"]].mean() < pixels[masks["spine"] & masks["heart"]].mean()
    assert pixels[lungs & masks["ribs"]].mean() > pixels[lungs & ~masks["ribs"]].mean() + 3
    assert pixels[-size // 8 :, size // 3 : -size // 3].mean() > pixels[lungs].mean() + 60
    assert not (lungs & masks["heart"]).any()
    floor = {side: np.flatnonzero(masks[f"{side} lung"].any(axis=1))[-1] for side in ("right", "left")}
    assert abs(floor["right"] - floor["left"]) < 0.1 * size
    right_dome = np.flatnonzero(masks["diaphragm"][:, : size // 2].any(axis=1))[0]
    left_dome = np.flatnonzero(masks["diaphragm"][:, 5 * size // 8 :].any(axis=1))[0]
    assert right_dome < left_dome
    assert 0.15 < lungs.mean() < 0.45


@pytest.mark.parametrize("number", range(4))
def test_cardiomegaly_takes_more_than_half_of_the_chest(number):
    def ratio(*lesions, **changes):
        return measure_cardiothoracic_ratio(draw(make_case(number, *lesions, **changes), 192).masks)

    normal = ratio()
    mild, gross = (ratio(make_lesion("Cardiomegaly", severity)) for severity in (0.1, 1.0))
    assert normal < 0.52
    assert 0.5 < mild < gross
    assert gross > 0.62
    assert ratio(view="AP") > normal
    assert ratio(make_lesion("Emphysema", 0.9)) < normal


def test_pneumothorax_is_darker_than_the_lung_was():
    for side in ("left", "right"):
        case = make_case(2, noise=0.005)
        before = draw(case, 192)
        after = draw(replace(case, lesions=(make_lesion("Pneumothorax", 0.5, side=side),)), 192)
        mask = after.masks["Pneumothorax"]
        assert after.pixels[mask].mean() < before.pixels[mask].mean() - 8
        assert overlap(mask, mask & (before.masks[f"{side} lung"])) > 0.85
        collapsed = before.masks[f"{side} lung"] & ~mask
        assert after.pixels[collapsed].mean() > before.pixels[collapsed].mean()
        rows = np.flatnonzero(mask.any(axis=1))
        lung_rows = np.flatnonzero(before.masks[f"{side} lung"].any(axis=1))
        assert abs(int(rows[0]) - int(lung_rows[0])) < 5


def test_effusion_lies_at_the_base_of_its_side_and_climbs_the_wall():
    size = 192
    case = make_case(1, noise=0.005)
    before = draw(case, size)
    for side, columns in (("right", slice(0, size // 2)), ("left", slice(size // 2, size))):
        after = draw(replace(case, lesions=(make_lesion("Pleural Effusion", 0.5, side=side),)), size)
        mask = after.masks["Pleural Effusion"]
        assert mask[:, columns].sum() == mask.sum()
        assert after.pixels[mask].mean() > before.pixels[mask].mean() + 40
        lung = before.masks[f"{side} lung"]
        assert np.argwhere(mask)[:, 0].mean() > np.argwhere(lung)[:, 0].mean() + 0.05 * size
        filled = np.flatnonzero(mask.any(axis=0))
        top = np.array([np.flatnonzero(mask[:, column])[0] for column in filled])
        outward = top if side == "left" else top[::-1]
        middle, lateral = outward[len(outward) // 3], outward[-len(outward) // 8]
        assert lateral < middle


def test_free_air_is_dark_below_the_right_dome():
    case = make_case(3, noise=0.005)
    before = draw(case, 192)
    after = draw(replace(case, lesions=(make_lesion("Pneumoperitoneum", 0.6),)), 192)
    mask = after.masks["Pneumoperitoneum"]
    assert not mask[:, 96:].any()
    assert not (mask & before.masks["right lung"]).any()
    assert after.pixels[mask].mean() < before.pixels[mask].mean() - 60


def test_a_zone_moves_a_nodule_down_the_lung():
    def row(zone):
        drawing = draw(make_case(0, make_lesion("Nodule", 0.8, zone=zone)), 128)
        return np.argwhere(drawing.masks["Nodule"])[:, 0].mean()

    assert row("upper") < row("middle") < row("lower")


def test_scoliosis_is_convex_to_its_side():
    def bend(side):
        spine = draw(make_case(0, make_lesion("Scoliosis", 1.0, side=side)), 192).masks["spine"]
        middle = np.array([np.flatnonzero(line).mean() for line in spine])
        return middle[60:110].mean() - 0.5 * (middle[:10].mean() + middle[-10:].mean())

    assert bend("right") < -5
    assert bend("left") > 5


@pytest.mark.parametrize(("letter", "half"), [("R", slice(0, 64)), ("L", slice(64, 128))])
def test_side_letter_is_on_its_side_of_the_film(letter, half):
    with_letter = draw(make_case(0, side_marker=letter), 128).pixels.astype(int)
    without = draw(make_case(0), 128).pixels.astype(int)
    added = with_letter - without
    assert added[:40, half].max() > 60
    assert (added != 0).sum() == (added[:40, half] != 0).sum()


def test_exposure_noise_tilt_and_breath_act_as_named():
    full, shallow = (draw(make_case(1, inspiration=depth), 128).masks for depth in (1.0, 0.3))
    assert full["right lung"].sum() > 1.15 * shallow["right lung"].sum()
    dark = draw(make_case(0, exposure=1.0), 96).pixels.mean()
    bright = draw(make_case(0, exposure=-1.0), 96).pixels.mean()
    assert dark + 20 < bright
    quiet = draw(make_case(0, noise=0.0), 96).pixels.astype(float)
    noisy = draw(make_case(0, noise=0.03), 96).pixels.astype(float)
    assert 0.02 * 255 < (noisy - quiet).std() < 0.045 * 255
    spine = draw(make_case(0, rotation_degrees=6.0), 192).masks["spine"]
    line = [np.flatnonzero(row).mean() for row in spine]
    slope = np.polyfit(np.arange(192), line, 1)[0]
    assert abs(abs(np.degrees(np.arctan(slope))) - 6.0) < 1.5


def test_breasts_and_size_show():
    slim = make_case(0, patient=Patient("a", "M", 40, 0.0, 7))
    heavy = make_case(0, patient=Patient("a", "M", 40, 1.0, 7))
    woman = make_case(0, patient=Patient("a", "F", 40, 1.0, 7))
    slim, heavy, woman = (draw(case, 96) for case in (slim, heavy, woman))
    # More trunk is on the film below the armpits.
    assert (heavy.pixels[50:, :10] > 60).mean() > (slim.pixels[50:, :10] > 60).mean()
    base = woman.masks["right lung"] & (np.arange(96)[:, None] > 50)
    assert woman.pixels[base].mean() > heavy.pixels[base].mean() + 5


def test_an_unknown_finding_and_a_tiny_film_are_refused():
    with pytest.raises(StudyError, match="no drawing for the finding"):
        draw(make_case(0, make_lesion("Gallstones", 0.5)), 96)
    with pytest.raises(StudyError, match="at least 32"):
        draw(make_case(0), 16)
