"""Generators of reports: the nearest report, told labels, and the signature they share."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from chexstudy.cohort.pseudo_reports import template_report
from chexstudy.errors import StudyError
from chexstudy.evaluation.context import Evaluation
from chexstudy.evaluation.report_generation.generators import (
    GeneratorSettings,
    choose_f1_thresholds,
    choose_medoid,
    fit_generator,
)

pytestmark = pytest.mark.usefixtures("one_thread")
FINDINGS = ["No Finding", "Edema", "Mass", "Hernia"]


class PlaneArm:
    """An arm whose features are the first two pixels of an image, and whose texts lie where a table says."""

    def __init__(self, cohort, pixels, places=None):
        images = dict(zip(cohort.image_id, pixels, strict=True))
        store = SimpleNamespace(read=lambda ids: np.stack([images[one] for one in ids]))
        self.evaluation = Evaluation(None, cohort, store)
        self.encoder = lambda batch: batch[:, 0, 0, :2].float()
        self.model = SimpleNamespace(image_tower=SimpleNamespace(project=lambda features: features.flip(1)))
        self._places = places

    def embed(self, rows):
        return self.evaluation.store.read(rows.image_id)[:, 0, :2].astype(np.float32)

    def encode_texts(self, texts):
        return np.array([self._places[text] for text in texts], dtype=np.float32)


def make_cohort(splits, reports, patients=None, **labels):
    count = len(splits)
    table = {
        "image_id": [f"x/{number}" for number in range(count)],
        "patient_id": patients or [f"x/p{number}" for number in range(count)],
        "source": "x",
        "split": splits,
        "report": reports,
    }
    columns = {name: pd.array(values, dtype="Int8") for name, values in labels.items()}
    return pd.DataFrame(table | columns)


def lay_out(points):
    pixels = np.zeros((len(points), 4, 4), dtype=np.uint8)
    pixels[:, 0, :2] = points
    return pixels


# --- the nearest report -----------------------------------------------------------------------------------------------

TEXTS = ["Heart large.", "Lungs clear.", "Lungs clear.", "", "Left effusion.", "Asked.", "Asked too."]
POINTS = [(100, 0), (0, 100), (50, 55), (100, 1), (90, 30), (100, 2), (1, 100)]


def make_plane():
    cohort = make_cohort(["train"] * 5 + ["test"] * 2, TEXTS, ["x/a", "x/b", "x/c", "x/d", "x/e", "x/f", "x/g"])
    places = {"Heart large.": (1, 0), "Lungs clear.": (0, 1), "Left effusion.": (1, 1)}
    return PlaneArm(cohort, lay_out(POINTS), places)


def test_the_nearest_report_on_a_plane():
    arm = make_plane()
    nearest = fit_generator("nearest_image", arm, arm.evaluation)
    # The image at (100, 1) is nearer, but has no report.
    assert nearest.generate(["x/6", "x/5"]) == ["Lungs clear.", "Heart large."]
    assert nearest.describe() == {"training_reports": 4, "verbatim_duplicates": 0.5}
    # The projection turns the plane, so that an image finds what is written at right angles to it.
    by_text = fit_generator("nearest_text", arm, arm.evaluation)
    assert by_text.generate(["x/5", "x/6"]) == ["Lungs clear.", "Heart large."]
    # Other pixels in the place of the images: what is looked at decides.
    assert nearest.generate(["x/6", "x/5"], pixels=lay_out([(90, 29), (0, 9)])) == ["Left effusion.", "Lungs clear."]


def test_no_report_of_the_same_patient_is_copied():
    arm = make_plane()
    nearest = fit_generator("nearest_image", arm, arm.evaluation)
    assert nearest.generate(["x/0", "x/1"]) == ["Left effusion.", "Lungs clear."]
    arm.evaluation.cohort["patient_id"] = ["x/a", "x/b", "x/b", "x/d", "x/a", "x/f", "x/g"]
    nearest = fit_generator("nearest_image", arm, arm.evaluation)
    assert nearest.generate(["x/0", "x/1"]) == ["Lungs clear.", "Left effusion."]


def test_the_medoid_shares_most_words():
    assert choose_medoid(["a b", "c d", "a b c", "x"]) == "a b c"
    assert choose_medoid(["a", "b"]) == "a"
    arm = make_plane()
    assert fit_generator("medoid_image", arm, arm.evaluation, GeneratorSettings(neighbours=1)).generate(["x/5"]) == [
        "Heart large."
    ]
    assert fit_generator("medoid_image", arm, arm.evaluation).generate(["x/5"]) == ["Lungs clear."]


# --- told labels ------------------------------------------------------------------------------------------------------


def make_labelled(count=200):
    """Edema is where the first number is high, a mass where the second is; every case knows neither or both."""
    rng = np.random.default_rng(0)
    points = rng.integers(0, 250, (count, 2))
    edema, mass = (points > 125).T.astype(int)
    splits = [("train", "train", "validate", "test")[number % 4] for number in range(count)]
    labels = {"No Finding": 1 - (edema | mass), "Edema": edema, "Mass": mass, "Hernia": np.zeros(count)}
    cohort = make_cohort(splits, ["Some four words here."] * count, **labels)
    return PlaneArm(cohort, lay_out(points)), cohort


def test_composed_reports_tell_the_labels_of_the_image():
    arm, cohort = make_labelled()
    generator = fit_generator("composition", arm, arm.evaluation, seed=3)
    test = cohort[cohort.split == "test"]
    texts = generator.generate(test.image_id.tolist())
    told = pd.DataFrame({name: [name.lower() in text.lower() for text in texts] for name in FINDINGS[1:]})
    assert (told.Edema.to_numpy() == (test.Edema == 1)).mean() > 0.9
    assert (told.Mass.to_numpy() == (test.Mass == 1)).mean() > 0.9
    # No training image has a hernia, so that nothing is said of it; and of a clear image there is one sentence.
    assert not told.Hernia.any()
    assert generator.describe() == {"findings_told": 2, "findings": 3}
    clear = int(np.flatnonzero((test["No Finding"] == 1) & ~told.any(axis=1).to_numpy())[0])
    assert texts[clear] == template_report({"No Finding": 1}, test.image_id.iloc[clear], 3)


def test_the_threshold_with_the_best_f1():
    scores = np.array([[0.9, 5, np.nan], [0.8, 5, np.nan], [0.7, 5, np.nan], [0.1, 5, np.nan], [0.0, 9, np.nan]])
    labels = np.array([[1, 1, 1], [0, 0, 0], [1, 1, 1], [0, 1, 1], [-1, np.nan, 1.0]])
    # By hand: F1 at 0.9 is 2/3, at 0.8 1/2, at 0.7 4/5, at 0.1 2/3. Scores alike are called present together.
    np.testing.assert_array_equal(choose_f1_thresholds(scores, labels), [0.7, 5, np.nan])
    assert np.isnan(choose_f1_thresholds(scores, np.zeros((5, 3)))).all()


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("act", "sentence"),
    [
        (lambda arm: fit_generator("poet", arm, arm.evaluation), "there is no generator 'poet'"),
        (lambda arm: GeneratorSettings(neighbours=0), "neighbours of 1 or more"),
        (lambda arm: fit_generator("nearest_image", arm, arm.evaluation).generate(["x/5"], ["a", "b"]), "1 images and"),
        (lambda arm: fit_generator("composition", arm, arm.evaluation), "a validation split"),
        (
            lambda arm: fit_generator("nearest_image", arm, Evaluation(None, arm.evaluation.cohort[5:], None)),
            "no training image has a report",
        ),
    ],
)
def test_mistakes_get_a_sentence(act, sentence):
    with pytest.raises(StudyError, match=sentence):
        act(make_plane())


def test_no_images_give_no_reports():
    arm = make_plane()
    assert fit_generator("nearest_image", arm, arm.evaluation).generate([]) == []
