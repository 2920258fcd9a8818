"""Self-supervised arms in a study: trained beside the others, given equally many images, judged by heads."""

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from chexstudy.cohort.pixels.store import open_pixel_store
from chexstudy.cohort.table import read_cohort
from chexstudy.errors import StudyError
from chexstudy.evaluation.adaptation.recipes import HeadPlan
from chexstudy.evaluation.adaptation.training import Recipe
from chexstudy.evaluation.context import Evaluation
from chexstudy.evaluation.encoders import load_encoder
from chexstudy.experiments.self_supervised_arms import (
    CURATED,
    POOLED,
    RANDOM,
    SOURCE,
    SOURCE_DIFFERENCE,
    UNTRAINED,
    compare_sides,
    judge_arms,
    judge_encoders,
    plan_self_supervision,
    plan_supervision,
    read_histories,
    train_by_source,
    train_self_supervised,
)
from chexstudy.plots.measurements import NothingToDraw
from chexstudy.plots.self_supervision import (
    self_supervised_arms,
    self_supervised_resolution,
    self_supervised_sources,
    self_supervised_training,
    tabulate_encoders,
)
from chexstudy.pretraining.arms.definitions import arm_folder, read_costs
from chexstudy.pretraining.configuration import PretrainingConfig
from chexstudy.pretraining.self_supervision.configuration import PUBLISHED, SelfSupervisionConfig
from chexstudy.pretraining.training.subsets import choose_training_subset
from chexstudy.workflow.profiles import read_profile

_STUDY = PretrainingConfig.from_dict({"super_batch": 40, "prototypes": 3, "central_cap": 4, "warm_up_pairs": 30})
_CONSTANTS = [
    *("image_encoder=tiny-dinov2", "image_size=32", "local_size=16", "local_crops=1", "crop_prototypes=16"),
    *("patch_prototypes=16", "head_hidden=16", "batch_size=24", "warm_up_epochs=1", "subset_epochs=1"),
    *("learning_rate=1e-3", "watch_every=1"),
]
CONFIG = plan_self_supervision(_STUDY, _CONSTANTS)


def test_the_curator_is_the_studys_unless_constants_say_otherwise():
    assert (CONFIG.curator, CONFIG.super_batch, CONFIG.objective) == (_STUDY.curator, 40, "self_supervised")
    other = plan_self_supervision(_STUDY, [*_CONSTANTS, "prototypes=5", "precision=fp32"])
    assert (other.curator.prototypes, other.curator.central_cap, other.precision) == (5, 4, "fp32")


def test_the_profile_of_the_papers_scale_holds_the_published_constants():
    given = read_profile("paper_ssl").notebooks["13_pretrain_ssl"]
    sizes = [f"image_size={given['ssl_image_size']}", f"local_size={given['local_size']}"]
    own = plan_self_supervision(_STUDY, [*sizes, *given["ssl_constants"]])
    # Patches of 14 pixels do not divide the published 96.
    assert own.self_supervision == SelfSupervisionConfig(**(PUBLISHED | {"local_size": 98}))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    from conftest import make_tiny_study

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CHEXSTUDY_HOME", str(tmp_path_factory.mktemp("alone")))
        run = make_tiny_study()
        arms = train_self_supervised(run, ["random_same_data", "curated", "by_semdedup"], [0], CONFIG, "cpu")
        yield run, arms


def test_arms_see_as_many_images_and_leave_the_studys_own_alone(trained):
    run, arms = trained
    assert arms == [UNTRAINED, RANDOM, CURATED, "by_semdedup.self_supervised"]
    costs = read_costs(run, arms, [0]).set_index("arm")
    assert costs.loc[UNTRAINED, ["steps", "flops", "pairs_trained"]].tolist() == [0, 0, 0]
    assert costs.pairs_trained.drop(UNTRAINED).nunique() == 1
    assert costs.flops.drop(UNTRAINED).max() < 1.15 * costs.flops.drop(UNTRAINED).min()
    assert {path.name.partition(".")[2] for path in run.path("pretraining").iterdir() if path.is_dir()} == {
        "self_supervised"
    }
    start = load_file(run.path(f"{arm_folder(UNTRAINED, 0)}/model/image_encoder/model.safetensors"))
    warm = load_file(run.path(f"{arm_folder('warm_up.self_supervised', 0)}/model/image_encoder/model.safetensors"))
    assert any(not np.array_equal(start[name], warm[name]) for name in start)


def test_methods_choose_by_what_the_teacher_of_the_warm_up_sees(trained):
    run, _ = trained
    kept = choose_training_subset(run, "k_centre", 0, CONFIG, 7, "cpu")
    images = read_cohort(run.path("cohort.parquet")).query("split == 'train'").image_id.to_numpy()
    encoder = load_encoder(run, "warm_up.self_supervised", 0)
    pixels = torch.from_numpy(np.array(open_pixel_store(run).read(images))).unsqueeze(1)
    with torch.no_grad():
        features = torch.nn.functional.normalize(encoder(pixels), dim=1).numpy()
    assert np.allclose(run.read_array("curation/scoring.self_supervised/seed0/image.npy"), features, atol=1e-5)
    rows = pd.Index(images).get_indexer(kept.image_id)
    assert len(kept) == 7

    def radius(chosen):
        return np.linalg.norm(features[:, None] - features[chosen], axis=2).min(axis=1).max()

    # The farthest point is nearer to a kept one than with any subset drawn at random.
    generator = np.random.default_rng(0)
    assert radius(rows) < min(radius(generator.permutation(len(images))[:7]) for _ in range(20))


def test_encoders_are_judged_beside_the_one_before_training(trained):
    run, arms = trained
    cohort = read_cohort(run.path("cohort.parquet"))
    evaluation = Evaluation(run, cohort, open_pixel_store(run), resamples=20)
    rows = judge_encoders(evaluation, arms, [0], [HeadPlan("neighbours")], plan_supervision(1))
    values = rows[(rows.task == "self_supervision") & (rows.seed == 0) & (rows.finding == "macro")]
    auroc = values[values.metric == "auroc"]
    assert set(zip(auroc.arm, auroc["head"], strict=True)) == {
        *((arm, "neighbours") for arm in ("untrained", "random_same_data", "curated", "by_semdedup")),
        ("untrained", "full"),
    }
    assert set(auroc.variant) == {"self_supervised"}
    assert (auroc.flops > 0).tolist() == (auroc.arm != "untrained").tolist()
    differences = rows[(rows.task == "self_supervision_difference") & (rows.finding == "macro")]
    own = auroc[auroc["head"] == "neighbours"].set_index("arm").value
    minus = differences[(differences.reference == "untrained") & (differences.metric == "auroc_difference")]
    assert minus.set_index("arm").value.to_dict() == pytest.approx(
        {arm: own[arm] - own["untrained"] for arm in ("random_same_data", "curated", "by_semdedup")}
    )
    assert self_supervised_arms.plot(*self_supervised_arms.choose(rows))
    assert len(tabulate_encoders(rows)) == 5


def test_an_encoder_is_judged_at_several_sides(trained):
    run, _ = trained
    evaluation = Evaluation(run, read_cohort(run.path("cohort.parquet")), open_pixel_store(run), resamples=20)
    rows = compare_sides(evaluation, [UNTRAINED], [0], [16, 32], Recipe((1e-2,), 1))
    seconds = rows[rows.metric == "seconds_an_image"].set_index("setting").value
    assert 0 < seconds["16"] < seconds["32"]
    probes = rows[(rows.metric == "auroc") & (rows.finding == "macro") & (rows.seed == 0)].set_index("setting").value
    assert probes["16"] != probes["32"]
    assert self_supervised_resolution.plot(*self_supervised_resolution.choose(rows))
    with pytest.raises(StudyError, match="36 pixels a side, and 64 would show no more"):
        compare_sides(evaluation, [UNTRAINED], [0], [64], Recipe())


def test_every_training_is_judged_in_words(trained):
    run, arms = trained
    histories = read_histories(run, arms, 0)
    assert set(histories) == set(arms[1:])
    assert {len(one) for one in histories.values()} == {read_costs(run, [CURATED], [0]).steps.iloc[0]}
    verdicts = judge_arms(histories, CONFIG)
    chosen = self_supervised_training.choose(histories, verdicts)
    assert self_supervised_training.conclude(*chosen).count("\n") == 2
    assert self_supervised_training.plot(*chosen)


def test_one_source_is_held_against_as_many_images_of_all(trained):
    run, _ = trained
    cohort = read_cohort(run.path("cohort.parquet"))
    # Every second patient; of the last source there are too few for a batch.
    patients = cohort.patient_id.str.removeprefix("tiny/p").astype(int)
    cohort = cohort.assign(source=np.where(patients % 2 == 0, "a-b", "c").astype(object))
    cohort.loc[patients < 3, "source"] = "few"
    training = cohort[cohort.split == "train"].set_index("image_id").source
    arms = train_by_source(run, cohort, "source", [0], CONFIG, "cpu")
    assert arms == [UNTRAINED, "by_a_b.self_supervised_source", "by_c.self_supervised_source", POOLED]
    seen = {arm: training[run.read_table(f"{arm_folder(arm, 0)}/subset.parquet").image_id] for arm in arms[1:]}
    sizes = training.value_counts()
    assert {len(one) for one in seen.values()} == {sizes["a-b"]}
    assert sizes["few"] < 24 <= sizes["a-b"] < sizes["c"]
    assert [set(one) for one in seen.values()][:2] == [{"a-b"}, {"c"}]
    assert {"a-b", "c"} <= set(seen[POOLED])
    costs = read_costs(run, arms[1:], [0])
    assert costs.steps.nunique() == 1
    assert costs.pairs_trained.nunique() == 1

    evaluation = Evaluation(run, cohort, open_pixel_store(run), resamples=20)
    heads, tasks = [HeadPlan("neighbours")], (SOURCE, SOURCE_DIFFERENCE)
    rows = judge_encoders(evaluation, arms, [0], heads, reference=POOLED, tasks=tasks)
    auroc = rows[(rows.task == SOURCE) & (rows.metric == "auroc") & (rows.finding == "macro") & (rows.seed == 0)]
    assert set(auroc.data_set) == {"a-b/test", "c/test"}
    assert set(auroc.arm) == {
        "untrained",
        "by_a_b",
        "by_c",
        "by_all_sources",
    }
    values = auroc.set_index(["data_set", "arm"]).value
    minus = rows[(rows.task == SOURCE_DIFFERENCE) & (rows.finding == "macro") & (rows.metric == "auroc_difference")]
    minus = minus[minus.reference == "by_all_sources"].set_index(["data_set", "arm"]).value
    assert minus["c/test", "by_c"] == pytest.approx(values["c/test", "by_c"] - values["c/test", "by_all_sources"])
    chosen = self_supervised_sources.choose(rows)
    headings = [text.get_text() for text in self_supervised_sources.plot(*chosen).axes[0].texts]
    assert "c, test: c alone, the test's own" in headings
    assert "c, test: a b alone" in headings

    alone = train_by_source(run, cohort.assign(source="c"), "source", [0], CONFIG, "cpu")
    assert alone == [UNTRAINED]
    with pytest.raises(NothingToDraw, match="training images of two sources"):
        self_supervised_sources.choose(judge_encoders(evaluation, alone, [0], heads, reference=POOLED, tasks=tasks))
    with pytest.raises(StudyError, match="no column 'hospital'"):
        train_by_source(run, cohort, "hospital", [0], CONFIG, "cpu")
