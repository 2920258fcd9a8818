import numpy as np
import pandas as pd
import pytest

from chexstudy.cohort.table import write_cohort
from chexstudy.errors import StudyError
from chexstudy.evaluation.comparison.inputs import (
    choose_data_set,
    list_scored,
    read_contest,
    read_files,
    split_name,
    tiers_of_labels,
)
from chexstudy.evaluation.scores import write_scores
from chexstudy.runs import Run

FINDINGS = ["Edema", "Mass"]
_IDS = {"image_id": "", "patient_id": "p", "study_id": "e"}


def make_cohort(images=60):
    numbers = np.arange(images)
    generator = np.random.default_rng(0)
    table = {name: [f"s/{letter}{number}" for number in numbers] for name, letter in _IDS.items()}
    table |= {"source": "s", "split": np.array(["train", "test", "test_enriched"])[numbers * 3 // images]}
    table |= {"view": "PA", "sex": "F", "age_years": 50.0, "image_path": "1.png", "report": "", "report_origin": "none"}
    return pd.DataFrame(table | {finding: (generator.random(images) < 0.4).astype(int) for finding in FINDINGS})


@pytest.fixture
def study(home):
    """A study whose arms were scored on two test sets, one of them for another task too."""
    run, cohort = Run("mine"), make_cohort()
    write_cohort(cohort, run.path("cohort.parquet"))
    generator = np.random.default_rng(1)
    for split in ("test", "test_enriched"):
        ids = cohort.image_id[cohort.split == split]
        for arm, seeds, task in (
            ("full", (0, 1, 10), "zero_shot"),
            ("by_d4@compute", (0, 1), "zero_shot"),
            ("full", (0,), "adaptation_linear"),
        ):
            for seed in seeds:
                scores = generator.normal(size=(len(ids), 2))
                place = {"arm": arm, "seed": seed, "task": task, "data_set": f"s/{split}"}
                write_scores(run, scores, ids, FINDINGS, **place)
    run.write_table("evaluation/full/seed0/retrieval/s/test.parquet", pd.DataFrame({"rank": [1]}))
    return run


def test_scores_of_a_study_are_listed_without_the_ranks_of_reports(study):
    scored = list_scored(study)
    assert set(scored.task) == {"zero_shot", "adaptation_linear"}
    assert len(scored) == 12
    assert list(scored.seed[(scored.arm == "full") & (scored.task == "zero_shot")].unique()) == [0, 1, 10]
    assert list_scored(Run("empty")).empty


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("full", ("full", "zero_shot")),
        ("full@adaptation_linear", ("full", "adaptation_linear")),
        ("by_d4@compute", ("by_d4@compute", "zero_shot")),
        ("by_d4@compute@zero_shot", ("by_d4@compute", "zero_shot")),
    ],
)
def test_an_arm_may_be_named_with_its_task(study, name, meant):
    assert split_name(list_scored(study), name, "zero_shot") == meant


def test_an_unknown_arm_or_task_names_those_there_are(study):
    scored = list_scored(study)
    for listed, name, sentence in (
        (scored, "ful", r"an arm 'ful': did you mean 'full'; those with scores are by_d4@compute, full."),
        (scored, "full@glori", "'full' has no scores for the task 'glori'; it has adaptation_linear, zero_shot"),
        (scored[:0], "full", "no scores of any arm yet: run 05_compare_arms first"),
    ):
        with pytest.raises(StudyError, match=sentence):
            split_name(listed, name, "zero_shot")


def test_the_data_set_is_the_one_asked_for_or_the_test_set(study):
    scored = list_scored(study)
    sides = [("full", "zero_shot"), ("by_d4@compute", "zero_shot")]
    assert choose_data_set(scored, sides) == "s/test"
    assert choose_data_set(scored, sides, "s/test_enriched") == "s/test_enriched"
    assert choose_data_set(scored[scored.data_set == "s/test_enriched"], sides) == "s/test_enriched"
    with pytest.raises(StudyError, match=r"have no scores on 'nih/test'; they have s/test, s/test_enriched."):
        choose_data_set(scored, sides, "nih/test")
    other = scored[scored.data_set == "s/test"].assign(data_set="t/test")
    with pytest.raises(StudyError, match="say which with --data-set"):
        choose_data_set(pd.concat([scored, other]), sides)
    apart = pd.concat([scored[scored.arm == "full"], other[other.arm != "full"]])
    with pytest.raises(StudyError, match="on no data set in common"):
        choose_data_set(apart, sides)


def test_arms_are_read_with_all_their_seeds_and_tiers_of_training(study):
    contest = read_contest("full", "by_d4@compute", study="mine")
    assert (contest.first.name, contest.first.seeds) == ("full", (0, 1, 10))
    assert contest.second.seeds == (0, 1)
    assert list(contest.first.tables[0].image_id) == [f"s/{number}" for number in range(20, 40)]
    assert contest.tiers == {"Edema": "head", "Mass": "head"}
    assert contest.place == "zero_shot of study mine on s/test"
    heads = read_contest("full", "full@adaptation_linear", study="mine", data_set="s/test_enriched")
    assert heads.place == "zero_shot and adaptation_linear of study mine on s/test_enriched"


def test_files_are_read_one_a_seed_and_of_the_data_set_alone(study, tmp_path, monkeypatch):
    monkeypatch.setenv("CHEXSTUDY_CWD", str(tmp_path))
    scores = make_cohort()[["image_id"]].assign(Edema=0.5, Mass=np.arange(60))
    scores.to_csv(tmp_path / "a0.csv", index=False)
    scores.to_parquet(tmp_path / "a1.parquet")
    both = read_files("a0.csv,a1.parquet")
    assert (both.name, both.seeds, len(both.tables)) == ("a0+a1", (), 2)
    assert len(read_contest("a0.csv", "a1.parquet", study="mine").first.tables[0]) == 60
    for contest in (
        read_contest("a0.csv", "full", study="mine"),
        read_contest("a0.csv", "a1.parquet", study="mine", data_set="s/test"),
    ):
        assert list(contest.first.tables[0].image_id) == [f"s/{number}" for number in range(20, 40)]
    with pytest.raises(StudyError, match=r"no data set 's/tset'; they have s/test, s/test_enriched, s/train."):
        read_contest("a0.csv", "a1.parquet", study="mine", data_set="s/tset")
    scores.assign(image_id="other/" + scores.image_id).to_csv(tmp_path / "b.csv", index=False)
    with pytest.raises(StudyError, match="b has no scores of the images to compare on"):
        read_contest("b.csv", "full", study="mine")


def test_labels_of_ones_own_need_no_study(home, tmp_path, monkeypatch):
    monkeypatch.setenv("CHEXSTUDY_CWD", str(tmp_path))
    pd.DataFrame({"image_id": ["007", "008"], "Mass": [0.1, 0.2]}).to_csv(tmp_path / "a.csv", index=False)
    labels = pd.DataFrame({"image_id": ["007", "008"], "patient_id": ["01", "02"], "Mass": [1, 0]})
    labels.to_csv(tmp_path / "labels.csv", index=False)
    contest = read_contest("a.csv", "a.csv", study="none", labels="labels.csv")
    assert list(contest.first.tables[0].image_id) == list(contest.labels.image_id) == ["007", "008"]
    assert contest.tiers is None
    assert tiers_of_labels(labels) is None
    with pytest.raises(StudyError, match="no columns source and split to find 's/test' by"):
        read_contest("a.csv", "a.csv", study="none", labels="labels.csv", data_set="s/test")
    with pytest.raises(StudyError, match=r"study 'none' has no cohort.parquet yet"):
        read_contest("a.csv", "a.csv", study="none")
