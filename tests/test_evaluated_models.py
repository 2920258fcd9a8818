"""Encoders beside the arms of a study: taken by name, scored, measured and compared as arms are."""

from dataclasses import dataclass, field

import numpy as np
import pandas as pd
import pytest

from chexstudy.cohort.pixels.store import open_pixel_store
from chexstudy.cohort.table import read_cohort
from chexstudy.encoders.build import build_image_encoder
from chexstudy.encoders.checkpoint import save_encoder
from chexstudy.encoders.encoder import hash_weights
from chexstudy.encoders.spec import EncoderSpec, name_encoder
from chexstudy.errors import StudyError
from chexstudy.evaluation import encoders
from chexstudy.evaluation.context import EvaluatedModel, Evaluation, add_exposure, tell_exposure
from chexstudy.evaluation.encoders import load_encoder
from chexstudy.evaluation.task import Fitted, Task, list_differences, list_values, measure_tasks, run_task, run_tasks
from chexstudy.pretraining.configuration import PretrainingConfig
from chexstudy.pretraining.models.dual_encoder import build_model
from chexstudy.results import validate_results
from chexstudy.runs import Run

BESIDE = ["start", "untrained", "no_encoder"]
DATA_SET = "tiny/test"


@dataclass(frozen=True)
class Brightness(Task):
    """Scores every finding by one feature of the encoder, or all alike without one."""

    name: str = "brightness"
    fits: list = field(default_factory=list, compare=False)

    def fit(self, arm):
        self.fits.append((arm.name, arm.seed))
        features = None if arm.name == "no_encoder" else arm.freeze(patches=False)

        def score(rows):
            feature = np.zeros(len(rows)) if features is None else features.pooled[features.rows(rows.image_id), 0]
            return np.repeat(feature[:, None], len(arm.evaluation.findings), axis=1)

        return Fitted(score)


@dataclass(frozen=True)
class PixelsOfHalves(Task):
    """A table with two rows an image."""

    name: str = "halves"

    def fit(self, arm):
        def score(rows):
            pixels = arm.evaluation.store.read(rows.image_id)
            halves = [pd.DataFrame({"image_id": rows.image_id, "half": one}) for one in ("top", "bottom")]
            return pd.concat(halves).assign(value=[*pixels[:, :9].mean((1, 2)), *pixels[:, 9:].mean((1, 2))])

        return Fitted(score)


@pytest.fixture
def evaluation(tiny_study):
    return Evaluation(tiny_study, read_cohort(tiny_study.path("cohort.parquet")), open_pixel_store(tiny_study), 40)


@pytest.fixture
def folder(home):
    save_encoder(build_image_encoder(EncoderSpec("tiny-resnet", image_size=36), 7), home / "mine")
    return str(home / "mine")


@pytest.mark.parametrize("begins", ["upstream-image", "tiny-resnet"])
def test_start_is_what_arms_begin_with_and_untrained_knows_nothing_of_it(home, monkeypatch, begins):
    config = PretrainingConfig(image_encoder=begins, image_size=64)
    monkeypatch.setattr(encoders, "read_config", lambda run: config)
    begun = build_model(config, pd.DataFrame({"report": ["Clear lungs."] * 9}), 3).image_tower.encoder
    start, *untrained = (load_encoder(Run("s"), *one) for one in (("start", 3), ("untrained", 3), ("untrained", 4)))
    weights = [hash_weights(one.model) for one in (begun, start, *untrained)]
    assert weights[0] == weights[1] != weights[3] != weights[2]
    assert (weights[2] == weights[1]) == (begins == "tiny-resnet")
    assert {one.image_size for one in (start, *untrained)} == {64}


def test_a_folder_is_read_and_an_arm_must_be_trained(home, folder):
    saved = build_image_encoder(EncoderSpec("tiny-resnet", image_size=36), 7)
    assert hash_weights(load_encoder(Run("s"), folder, 0).model) == hash_weights(saved.model)
    with pytest.raises(StudyError, match="no arm 'curated' with seed 0 yet"):
        load_encoder(Run("s"), "curated", 0)


def test_encoders_beside_the_arms_are_scored_once_measured_and_compared(evaluation, folder):
    task, names = Brightness(), [*BESIDE, folder]
    run_tasks(evaluation, [task], names, [0, 1])
    run_tasks(evaluation, [task], names, [0, 1])
    assert task.fits == [(name, seed) for name in names for seed in (0, 1)]
    assert evaluation.run.has(f"evaluation/{name_encoder(folder)}/seed1/brightness/{DATA_SET}.parquet")
    measured = measure_tasks(evaluation, [task], names, [0, 1])
    values = list_values(evaluation, measured, [task], names, [0, 1])
    rows = validate_results(add_exposure(evaluation, values, 0).assign(study="tiny"))
    assert dict(zip(rows.arm, rows.exposure, strict=True)) == dict.fromkeys(BESIDE, "held_out") | {folder: "unknown"}
    same = rows[(rows.arm == "no_encoder") & (rows.metric == "auroc") & (rows.finding == "Mass")]
    assert (same.value == 0.5).all()
    differences = list_differences(evaluation, measured, [((task, "start"), (task, "no_encoder"))])
    assert set(zip(differences.arm, differences.reference, strict=True)) == {("start", "no_encoder")}


def test_an_encoder_that_is_another_under_its_name_is_scored_anew(evaluation, folder, home):
    task = Brightness()
    run_tasks(evaluation, [task], [folder], [0])
    save_encoder(build_image_encoder(EncoderSpec("tiny-resnet", image_size=36), 8), home / "mine")
    run_tasks(evaluation, [task], [folder], [0])
    assert len(task.fits) == 2


def test_a_table_with_several_rows_an_image_is_split_by_data_set(evaluation):
    cohort = evaluation.cohort.copy()
    test = cohort.index[cohort.split == "test"]
    cohort.loc[test[::2], "split"] = "test_enriched"
    parts = Evaluation(evaluation.run, cohort, evaluation.store)
    run_task(parts, PixelsOfHalves(), EvaluatedModel(parts, "no_encoder", 0))
    for split, rows in cohort[cohort.split.isin(["test", "test_enriched"])].groupby("split"):
        kept = evaluation.run.read_table(f"evaluation/no_encoder/seed0/halves/tiny/{split}.parquet")
        assert sorted(kept.image_id) == sorted([*rows.image_id] * 2)
        assert (kept.groupby("image_id").half.nunique() == 2).all()


def test_what_encoders_beside_the_arms_have_seen(evaluation):
    names = [*BESIDE, "microsoft/rad-dino", "/mine/x"]
    told = [tell_exposure(evaluation, name, 0, "nih/test") for name in names]
    assert told == [*["held_out"] * 3, "seen", "unknown"]
    # What stands on an encoder is fitted on the training split.
    assert {tell_exposure(evaluation, name, 0, "tiny/train") for name in names} == {"seen"}
