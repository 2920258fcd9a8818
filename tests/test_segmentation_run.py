"""Segmentation of a study: outlined beside baselines, kept, not trained twice, measured on the same patients."""

from dataclasses import replace

import numpy as np
import pytest
from test_adaptation_run import make_arm

from chexstudy.cohort.annotations import ANNOTATIONS, make_outline, write_annotations
from chexstudy.cohort.pixels.store import open_pixel_store
from chexstudy.cohort.source_annotations import Box
from chexstudy.cohort.table import read_cohort
from chexstudy.errors import StudyError
from chexstudy.evaluation.adaptation.fine_tuning import FineTuning
from chexstudy.evaluation.context import EvaluatedModel, Evaluation
from chexstudy.evaluation.segmentation import run as segmentation
from chexstudy.evaluation.segmentation.decoder_training import DecoderRecipe
from chexstudy.evaluation.segmentation.metrics import measure_image
from chexstudy.evaluation.segmentation.run import (
    MEAN_MASK,
    SegmentationPlan,
    SegmentStructures,
    choose_images,
    measure_segmentation,
    segment_structures,
)
from chexstudy.evaluation.task import run_task
from chexstudy.results import OVER_SEEDS, validate_results

QUICK = DecoderRecipe(epochs=2, least_steps=4)
BAND = "band"
DATA_SET = "tiny/test"
pytestmark = pytest.mark.usefixtures("one_thread")


def annotate(run, cohort, outlined):
    """Outlines, on pictures of twice the size: a band at the top of all images, wider in some."""
    rows = []
    for number, image_id in enumerate(cohort.image_id[outlined]):
        mask = np.zeros((72, 72), dtype=bool)
        mask[: 24 + 2 * (number % 3)] = True
        rows.append(make_outline(image_id, BAND, mask))
    write_annotations(rows, run.path(ANNOTATIONS))


@pytest.fixture
def evaluation(tiny_study):
    cohort = read_cohort(tiny_study.path("cohort.parquet"))
    # Of the first test patient nobody knows where anything is.
    annotate(tiny_study, cohort, cohort.patient_id != cohort.patient_id[cohort.split == "test"].iloc[0])
    everything = Evaluation(tiny_study, cohort, open_pixel_store(tiny_study), resamples=40)
    return choose_images(everything, [BAND])[0]


@pytest.fixture
def count_fits(monkeypatch):
    """Names of decoders, one for each that is trained."""
    fits, real = [], segmentation.fit_decoder
    monkeypatch.setattr(segmentation, "fit_decoder", lambda kind, *rest: fits.append(kind) or real(kind, *rest))
    return fits


def plan(encoders=("full", "untrained"), seeds=(0,), shares=(0.5,), recipe=QUICK, structures=(BAND,)):
    return SegmentationPlan(structures, encoders, seeds, ("linear",), recipe, shares, encoders)


def test_decoders_and_baselines_are_kept_measured_and_compared(evaluation, count_fits):
    for seed in (0, 1):
        make_arm(evaluation.run, "full", seed)
    whole = plan(seeds=(0, 1))
    segment_structures(evaluation, whole)
    trained = len(count_fits)
    segment_structures(evaluation, whole)
    assert len(count_fits) == trained == 2 * (2 * 2 + 2), "seeds, encoders and shares, and the small U-Net"
    rows = validate_results(measure_segmentation(evaluation, whole))
    values, differences = (rows[rows.task == task] for task in ("segmentation", "segmentation_difference"))
    assert set(zip(values.arm, values["head"], values.setting, strict=True)) == {
        *((arm, "linear", share) for arm in ("full", "untrained") for share in ("", "0.5")),
        *(("no_encoder", head, share) for head in ("pixel_unet", "mean_mask") for share in ("", "0.5")),
    }
    dice = values[(values.metric == "dice") & (values.finding == BAND) & (values.setting == "")]
    assert set(dice.n) == {len(evaluation.test_sets()[DATA_SET])} == {22}
    # Nothing moves but the rim, so that the mean mask is hard to beat.
    mean = dice[dice["head"] == MEAN_MASK].set_index("seed").value
    assert mean[0] == mean[1] == mean[OVER_SEEDS] > 0.95
    references = {("full", one) for one in ("untrained", "mean_mask", "pixel_unet")}
    references |= {("untrained", one) for one in ("mean_mask", "pixel_unet")}
    assert set(zip(differences.arm, differences.reference, strict=True)) == references
    over = dice[dice.seed == OVER_SEEDS].set_index(["arm", "head"]).value
    one = differences[(differences.metric == "dice_difference") & (differences.finding == BAND)]
    one = one.set_index(["arm", "reference"]).value
    assert one["full", "mean_mask"] == pytest.approx(over["full", "linear"] - over["no_encoder", "mean_mask"])
    p_values = differences.pivot_table("value", ["arm", "reference", "finding"], "metric")
    assert (p_values.dice_difference_p_holm >= p_values.dice_difference_p).all()


def test_a_killed_run_goes_on_where_it_was(evaluation, count_fits, monkeypatch):
    real = segmentation.measure_image
    monkeypatch.setattr(segmentation, "measure_image", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        segment_structures(evaluation, plan(("untrained",), shares=()))
    monkeypatch.setattr(segmentation, "measure_image", real)
    segment_structures(evaluation, plan(("untrained",), shares=()))
    assert count_fits == ["linear", "linear", "pixel_unet"]
    # Another recipe, or other outlines, are another task; a share more trains that share alone.
    segment_structures(evaluation, plan(("untrained",), shares=(), recipe=replace(QUICK, epochs=1)))
    segment_structures(evaluation, plan(("untrained",), recipe=replace(QUICK, epochs=1)))
    assert count_fits[3:] == ["linear", "pixel_unet"] * 2
    annotate(evaluation.run, evaluation.cohort[::-1], np.full(len(evaluation.cohort), True))
    segment_structures(evaluation, plan(("untrained",), shares=(), recipe=replace(QUICK, epochs=1)))
    assert count_fits[7:] == ["linear", "pixel_unet"]


@pytest.mark.parametrize("tuning", [None, FineTuning("full")])
def test_the_kept_decoder_outlines_what_was_measured(evaluation, tuning):
    task = SegmentStructures((BAND,), "unet", replace(QUICK, tuning=tuning))
    run_task(evaluation, task, EvaluatedModel(evaluation, "untrained", 0))
    rows = evaluation.test_sets()[DATA_SET]
    kept = task.read(evaluation, "untrained", 0, rows).set_index("image_id")
    look = task.look(evaluation, "untrained", 0, rows.tail(3))
    for image_id in rows.image_id.tail(3):
        pixels, predicted, truth = look(image_id)
        assert (pixels.shape, truth[BAND].shape) == ((36, 36), (36, 36)), "the size of the image file"
        assert measure_image(predicted, truth)[f"{BAND}: dice"] == kept.loc[image_id, f"{BAND}: dice"]


def test_shares_of_patients_are_nested_and_validation_is_thinned_as_well(evaluation):
    def split(share, seed=0):
        parts = SegmentStructures((BAND,), labelled_share=share).split_patients(evaluation, seed)
        return [set(rows.patient_id) for rows in parts]

    few, more, whole = split(0.1), split(0.5), split(1.0)
    for part in (0, 1):
        assert few[part] < more[part] < whole[part]
    assert split(0.5, 1) != more


def test_without_outlines_in_validation_training_patients_take_its_place(evaluation):
    alone = replace(evaluation, cohort=evaluation.cohort[evaluation.cohort.split != "validate"])
    train, held_out = SegmentStructures((BAND,)).split_patients(alone, 0)
    assert set(train.patient_id).isdisjoint(held_out.patient_id)
    assert len(train) + len(held_out) == len(evaluation.training)
    assert held_out.patient_id.nunique() == pytest.approx(0.2 * evaluation.training.patient_id.nunique(), abs=1)


def test_images_are_those_of_which_something_is_known_and_so_many_at_most(evaluation):
    whole = Evaluation(evaluation.run, read_cohort(evaluation.run.path("cohort.parquet")), evaluation.store)
    assert len(whole.cohort) - len(evaluation.cohort) == 2
    some = choose_images(whole, [BAND], 20, 8)[0].cohort
    assert some.split.value_counts().to_dict() == {"train": 20, "validate": 10, "test": 8}
    assert set(some.image_id) < set(choose_images(whole, [BAND], 30, 12)[0].cohort.image_id)
    # Images of a patient stay together, and none is not all.
    assert (choose_images(whole, [BAND], 1, 8)[0].cohort.split == "validate").sum() == 2


def test_without_a_test_image_there_is_nothing_to_judge_by(evaluation, capsys):
    rows = evaluation.cohort[evaluation.cohort.split == "train"]
    annotate(evaluation.run, rows, np.full(len(rows), True))
    nothing, structures = choose_images(evaluation)
    assert (len(nothing.cohort), structures) == (0, ())
    assert "nothing to judge by" in capsys.readouterr().out


def test_of_boxes_there_is_nothing_to_learn_from(evaluation, capsys):
    box = Box(evaluation.cohort.image_id.iloc[0], BAND, (1.0, 1.0, 4.0, 4.0), (72, 72))
    write_annotations([box.read()], evaluation.run.path(ANNOTATIONS))
    nothing, structures = choose_images(evaluation)
    assert "nothing to learn from, no organ is outlined" in capsys.readouterr().out
    asked = plan(structures=structures)
    segment_structures(nothing, asked)
    assert nothing.cohort.empty
    assert measure_segmentation(nothing, asked).empty
    with pytest.raises(StudyError, match="no training image has an outline of 'band': nobody outlined any structure"):
        choose_images(evaluation, [BAND])


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"labelled_share": 0.0}, "share of labels must lie above 0"),
        ({"structures": ("spleen",)}, "no training image has outlines of spleen"),
        ({"decoder": "vnet"}, "there is no decoder 'vnet'"),
    ],
)
def test_what_cannot_be_outlined_is_one_sentence(evaluation, change, sentence):
    model = EvaluatedModel(evaluation, "untrained", 0)
    with pytest.raises(StudyError, match=sentence):
        run_task(evaluation, SegmentStructures(**{"structures": (BAND,), "recipe": QUICK} | change), model)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"encoders": ()}, "name one of each or more"),
        ({"decoders": ()}, "name one of each or more"),
        ({"tuning": ("by_hand",)}, "an encoder is tuned by bias_only, low_rank, full, not 'by_hand'"),
    ],
)
def test_a_plan_that_compares_nothing_is_one_sentence(change, sentence):
    with pytest.raises(StudyError, match=sentence):
        replace(plan(), **change)
