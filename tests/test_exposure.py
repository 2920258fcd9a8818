"""What an encoder or an arm had seen: by name, by folder and by what is shared; unknown wherever nothing says so."""

from pathlib import Path

import pandas as pd
import pytest

from chexstudy.cohort.adapters import DATASETS
from chexstudy.encoders.exposure import tell_encoder_exposure
from chexstudy.encoders.upstream_encoders import FOLDERS
from chexstudy.evaluation import context
from chexstudy.evaluation.context import Evaluation, add_exposure, tell_exposure
from chexstudy.inputs.yaml_files import read_data_beside
from chexstudy.results import worst_exposure
from chexstudy.runs import Run

RAD_DINO, CHEXFICIENT = "microsoft/rad-dino", "StanfordAIMI/CheXficient"


@pytest.mark.parametrize(
    ("encoder", "data_set", "exposure"),
    [
        ("tiny-resnet", "nih/test", "held_out"),
        ("upstream-image", "mine/test", "held_out"),
        (RAD_DINO, "nih/test", "seen"),
        (RAD_DINO, "rsna_pneumonia/test", "seen"),  # images of NIH
        (RAD_DINO, "mimic_cxr/train", "seen"),
        (RAD_DINO, "cxr_lt_2024/test", "seen"),  # holds patients of MIMIC's training split
        (RAD_DINO, "chexpert_plus/validate", "seen"),
        (RAD_DINO, "mimic_cxr/test", "held_out"),
        (RAD_DINO, "chexlocalize/validate", "seen"),
        (RAD_DINO, "chexlocalize/test", "held_out"),
        (RAD_DINO, "chexpert/test", "unknown"),  # CheXpert has none: a study made it of its validation images
        (RAD_DINO, "chexpert_plus/test", "unknown"),
        (RAD_DINO, "vindr_cxr/test", "held_out"),
        (RAD_DINO, "jsrt/test", "unknown"),  # it began from pages of the web
        ("StanfordAIMI/XraySigLIP__vit-l-16-siglip-384__webli", "vindr_cxr/test", "unknown"),
        (RAD_DINO, "phantom/test", "held_out"),
        (RAD_DINO, "mine/test", "unknown"),
        (CHEXFICIENT, "openi/test", "seen"),
        (CHEXFICIENT, "vindr_cxr/test", "held_out"),
        (CHEXFICIENT, "plco/test", "held_out"),
        (CHEXFICIENT, "chexpert_test/test", "unknown"),  # checkpoints were chosen by it
        (CHEXFICIENT, "mimic_cxr/test", "unknown"),  # its text encoder began from notes of the hospital
        ("facebook/dinov2-base", "padchest/test", "held_out"),
        ("facebook/dinov2-base", "openi/test", "unknown"),
        ("somebody/else", "padchest/test", "unknown"),
    ],
)
def test_a_released_encoder_and_a_data_set(encoder, data_set, exposure):
    assert tell_encoder_exposure(encoder, data_set) == exposure


@pytest.mark.parametrize(
    ("encoder", "known"),
    [
        ("microsoft/rad-dino@23589fe9", True),
        ("Microsoft/RAD-DINO", True),
        ("rad-dino", True),
        ("/models/rad-dino", True),
        ("~/models/microsoft--rad-dino/", True),
        ("/cache/hub/models--microsoft--rad-dino/snapshots/23589fe9", True),
        ("/models/chexfound.pth", True),
        ("/models/CheXFound/teacher.pth", True),
        ("somebody/rad-dino", False),
        ("/models/rad-dino-fine-tuned", False),
        ("/models/rad-dino/mine", False),
    ],
)
def test_an_encoder_is_known_by_name_folder_and_revision(encoder, known):
    assert tell_encoder_exposure(encoder, "padchest/test") == ("seen" if known else "unknown")


def test_a_folder_called_like_an_encoder_that_saw_nobody_is_not_it():
    assert tell_encoder_exposure("/runs/tiny-resnet", "nih/test") == "unknown"
    assert {tell_encoder_exposure(name, "nih/test") for name in FOLDERS} == {"held_out"}


def test_every_encoder_says_where_it_is_said_and_begins_from_one_that_is_listed():
    listed = read_data_beside(str(Path(context.__file__).parents[1] / "encoders/exposure.py"))
    names = [name for entry in listed["encoders"] for name in entry["names"]]
    assert len(set(names)) == len(names)
    for entry in listed["encoders"]:
        assert entry["said_in"]
        assert set(entry.get("began_from", [])) <= set(names)
        not_seen = entry.get("not_seen", ())
        named = {*entry.get("seen", ()), *entry.get("unknown", ()), *(not_seen if isinstance(not_seen, list) else ())}
        assert {one.partition("/")[0] for one in named} - {"by_agreement"} <= set(DATASETS)
    assert set(listed["groups"]["by_agreement"]) <= set(DATASETS)


@pytest.fixture
def make_evaluation(home, monkeypatch):
    """A study whose arm began from encoders of these names."""
    monkeypatch.setattr(context, "require_current_arm", lambda run, arm, seed: f"pretraining/{arm}/seed{seed}")

    def make(cohort, image_encoder, text_encoder=None):
        run = Run("mine")
        for side in ("image", "text") if text_encoder else ("image",):
            run.path(f"pretraining/full/seed0/model/{side}_encoder").mkdir(parents=True)
        config = {"image_encoder": image_encoder, "text_encoder": text_encoder or RAD_DINO}
        run.write_json("pretraining/full/seed0/model/pretraining.json", config)
        return Evaluation(run, cohort, None)

    return make


COHORT = pd.DataFrame(
    [
        ("nih/1", "nih/1", "nih", "train"),
        ("nih/2", "nih/2", "nih", "test"),
        ("rsna_pneumonia/3", "nih/3", "rsna_pneumonia", "test"),
        ("siim_acr/4", "siim_acr/4", "siim_acr", "test"),
        ("plco/5", "plco/5", "plco", "test"),
    ],
    columns=["image_id", "patient_id", "source", "split"],
)


@pytest.mark.parametrize(
    ("image", "text", "exposures"),
    [
        # Beside its training split, an arm from scratch has seen only what no table tells from that.
        ("tiny-resnet", "tiny-bert", {"nih/test": "held_out", "rsna_pneumonia/test": "held_out"}),
        # Of images alone: the text encoder takes no part.
        ("tiny-dinov2", None, {"nih/test": "held_out"}),
        (RAD_DINO, "tiny-bert", {"nih/test": "seen", "rsna_pneumonia/test": "seen", "plco/test": "held_out"}),
        ("facebook/dinov2-base", "emilyalsentzer/Bio_ClinicalBERT", {"nih/test": "unknown", "plco/test": "held_out"}),
        ("/runs/other/model/image_encoder", "tiny-bert", {"nih/test": "unknown"}),
    ],
)
def test_an_arm_has_seen_what_it_and_its_encoders_were_trained_on(make_evaluation, image, text, exposures):
    evaluation = make_evaluation(COHORT, image, text)
    expected = exposures | {"nih/train": "seen", "siim_acr/test": "seen"}
    assert {name: tell_exposure(evaluation, "full", 0, name) for name in expected} == expected
    rows = add_exposure(evaluation, pd.DataFrame({"arm": "full", "data_set": [*expected, "nih/test"]}), 0)
    assert list(rows.exposure) == [*expected.values(), expected["nih/test"]]


def test_of_several_the_worst_counts():
    assert worst_exposure(["held_out", "unknown", "held_out"]) == "unknown"
    assert worst_exposure(["unknown", "seen"]) == "seen"
