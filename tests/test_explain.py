"""The story of one pair: every number in it can be read off the ledger, and nothing private is told unasked."""

import numpy as np
import pandas as pd
import pytest

from chexstudy.cohort.table import validate_cohort, write_cohort
from chexstudy.curation.records.explain import explain_choice, explain_pair, tell_story
from chexstudy.curation.records.ledger import LedgerWriter
from chexstudy.curation.records.subsets import ChosenSubset, read_subset
from chexstudy.errors import StudyError
from chexstudy.pseudonyms import show_image_ids

KEPT = "kept: the sampler picked it among the central members of its prototype"
PASSED = "dropped: the sampler passed over it among the central members of its prototype"
SUPPORT = "kept: in the support band"
OUTLIER = "dropped: farther from its prototype than the outlier quantile"


def make_batch(epoch, step, reasons, prototypes=(0, 0, 0, 0, 0, 1), distances=(0.1, 0.2, 0.3, 0.6, 0.9, 0.5)):
    """Six pairs a to f: five around prototype 0, whose support band runs from 0.5 to 0.8, and f alone around 1."""
    kept = [reason.startswith("kept") for reason in reasons]
    distances = np.array(distances, np.float32)
    order = np.full(6, -1)
    picked = np.flatnonzero([reason == KEPT for reason in reasons])
    order[picked] = np.arange(len(picked))
    return pd.DataFrame(
        {
            "image_id": [f"made/{letter}" for letter in "abcdef"],
            "epoch": epoch,
            "step": step,
            "prototype": prototypes,
            "distance": distances,
            "threshold_support": np.float32(0.5),
            "threshold_outlier": np.float32(0.8),
            "band": np.select([distances > 0.8, distances > 0.5], ["outlier", "support"], "central"),
            "order": order,
            "priority": np.float32(np.nan),
            "kept": kept,
            "reason": reasons,
        }
    )


FIRST = make_batch(4, 40, [PASSED, KEPT, KEPT, SUPPORT, OUTLIER, KEPT])
SECOND = make_batch(5, 50, [KEPT, PASSED, KEPT, SUPPORT, OUTLIER, KEPT])
THIRD = make_batch(6, 60, [KEPT, PASSED, PASSED, SUPPORT, OUTLIER, KEPT])


def make_cohort():
    return validate_cohort(
        pd.DataFrame(
            {
                "image_id": [f"made/{letter}" for letter in "abcdefgh"],
                "patient_id": [f"made/secret{i}" for i in range(8)],
                "study_id": "made/s",
                "source": "made",
                "split": ["train"] * 6 + ["test", "train"],
                "view": "PA",
                "sex": ["F", "M"] * 4,
                "age_years": [63, np.nan, 50, 50, 50, 50, 50, 50],
                "image_path": "none.png",
                "report": "The private words.",
                "report_origin": "written",
                "No Finding": [0, 1, 1, 1, 1, 1, 1, 1],
                "Mass": [1, 0, 0, 0, 0, 0, 0, 0],
                "Edema": [-1, 0, None, 0, 0, 0, 0, 0],
            }
        )
    )


@pytest.fixture
def study(home):
    from chexstudy.runs import Run

    run = Run("made")
    write_cohort(make_cohort(), run.path("cohort.parquet"))
    writer = LedgerWriter(run.path("pretraining/curated/seed0/ledger.parquet"))
    for number, part in enumerate((FIRST, SECOND)):
        writer.write(number, part)
    writer.finish()
    return run


@pytest.mark.parametrize(
    ("letter", "told"),
    [
        ("a", "made/a was dropped.\n"),
        ("a", "Epoch 4, step 40: it was one of 6 pairs in its super-batch, of which 4 were kept."),
        ("a", "Its nearest prototype was number 0, at a distance of 0.100"),
        ("a", "it was the nearest of the 5 pairs nearest to that prototype"),
        ("a", "support band ran from 0.500 to 0.800, and the pair lay below it, in the central band"),
        ("a", "It was dropped: the sampler passed over it"),
        ("a", "Of that prototype's 3 central pairs in the super-batch, 2 were kept."),
        ("c", "2 of the 4 other pairs nearest to that prototype lay closer (50%)"),
        ("c", "It was pick 2 of the sampler's 2."),
        ("d", "the pair lay inside it"),
        ("d", "It was the only pair in the support band of that prototype"),
        ("e", "the farthest of the 5 pairs"),
        ("e", "beyond it, as an outlier"),
        ("f", "no other pair of the super-batch was nearest to that prototype"),
    ],
)
def test_a_pair_is_told_by_its_band_its_place_and_its_rivals(letter, told):
    assert told in explain_pair(FIRST, f"made/{letter}")
    assert "pick" not in explain_pair(FIRST, "made/a").replace("picked", "")


def test_every_epoch_is_told_and_a_pair_taken_back_is_called_so():
    ledger = pd.concat([THIRD, FIRST, SECOND], ignore_index=True)
    taken_back = explain_pair(ledger, "made/a")
    assert "considered 3 times: dropped in epoch 4, taken back in epoch 5, kept again in epoch 6." in taken_back
    assert taken_back.index("step 40") < taken_back.index("step 50") < taken_back.index("step 60")
    assert "kept in epoch 4, dropped in epoch 5, dropped again in epoch 6." in explain_pair(ledger, "made/b")
    assert "kept in epoch 4, kept again in epoch 5, dropped in epoch 6." in explain_pair(ledger, "made/c")


def test_priority_is_told_where_there_is_one_and_edges_where_they_are():
    ledger = FIRST.assign(priority=np.arange(6, dtype=np.float32), threshold_support=np.inf, threshold_outlier=np.inf)
    story = explain_pair(ledger, "made/d")
    assert "Its priority of 3.00 was above that of 50% of its super-batch." in story
    assert "bands had no edges yet" in story
    assert "inf" not in story
    assert "priority" not in explain_pair(FIRST.drop(columns="priority"), "made/d")


def test_labels_around_the_prototype():
    story = explain_pair(FIRST, "made/a", make_cohort())
    assert "These pairs are most often labelled No Finding (80%), Mass (20%)." in story


def test_an_unknown_pair_is_one_sentence_that_names_no_other():
    for ledger, count in ((FIRST, 6), (FIRST.iloc[:0], 0)):
        with pytest.raises(StudyError, match=f"no pair 'made/aa' among the {count} decisions of the ledger") as refused:
            explain_pair(ledger, "made/aa")
        assert "made/a " not in str(refused.value)


def test_the_story_from_a_study(study):
    story = tell_story(study, "made/a")
    (shown,) = show_image_ids(study, ["made/a"])
    assert explain_pair(pd.concat([FIRST, SECOND]), "made/a", make_cohort(), shown) in story
    assert "The pair: PA view, female, 63 years, source made, written report; labelled Mass. Uncertain: Edema." in story
    assert "private" not in story
    assert "secret" not in story
    assert tell_story(study, "made/a", with_report=True).endswith("Report: The private words.")
    assert "male, source made" in tell_story(study, "made/b"), "an unknown age is left out"


def test_the_same_story_while_training_goes_on(study):
    whole = tell_story(study, "made/a")
    path = study.path("pretraining/curated/seed0/ledger.parquet")
    writer = LedgerWriter(path, first=2)
    assert not path.exists()
    assert tell_story(study, "made/a") == whole
    assert "not considered yet: the ledger of arm 'curated' (seed 0) holds 12 decisions" in tell_story(study, "made/h")
    writer.finish()
    assert "another cohort" in tell_story(study, "made/h")


def test_pairs_that_were_never_considered(study):
    assert "it is in the test split" in tell_story(study, "made/g")
    quarantine = pd.DataFrame({"image_id": ["made/x"], "image_path": "x.png", "reason": "blank", "detail": ""})
    study.write_table("quarantine.parquet", quarantine)
    assert "set aside when the cohort was built (blank)" in tell_story(study, "made/x")
    with pytest.raises(StudyError, match=f"did you mean {' or '.join(show_image_ids(study, ['made/a']))}"):
        tell_story(study, "a")
    with pytest.raises(StudyError, match=r"its ids look like image-[0-9a-f]{10}"):
        tell_story(study, "zzz")


def test_a_pair_is_told_by_its_pseudonym_and_found_by_it(study):
    (shown,) = show_image_ids(study, ["made/a"])
    story = tell_story(study, "made/a")
    assert story.startswith(f"{shown} was considered 2 times")
    assert "made/a" not in story
    assert tell_story(study, shown) == tell_story(study, shown.removeprefix("image-").upper()) == story
    assert "made/" not in tell_story(study, "made/g") + tell_story(study, "made/h")


def test_review_list_and_truth_are_told(study):
    review = pd.DataFrame(
        {"image_id": ["made/e", "made/a"], "mismatch_score": [4.0, 1.2], "advice": ["rather wrong", "unclear"]}
    )
    study.write_table("pretraining/curated/seed0/review.parquet", review)
    truth = pd.DataFrame(
        {
            "image_id": [f"made/{letter}" for letter in "abcdefgh"],
            "duplicate_of": ["", "made/a", "", "", "", "", "", ""],
            "mismatched": [False, False, True] + [False] * 5,
            "report_of": ["", "", "made/d", "", "", "", "", ""],
            "junk": [False] * 4 + [True] + [False] * 3,
            "junk_kind": [""] * 4 + ["hand"] + [""] * 3,
        }
    )
    study.write_table("truth.parquet", truth)
    story = tell_story(study, "made/a")
    assert "It is on the review list, number 2 of 2, with a mismatch score of 1.20: unclear." in story
    assert "it is nearly repeated by made/b" in story
    assert "it nearly repeats made/a" in tell_story(study, "made/b")
    assert "its report belongs to made/d" in tell_story(study, "made/c")
    assert "it is junk (hand)" in tell_story(study, "made/e")
    assert "a sound pair" in tell_story(study, "made/f")
    assert "review list" not in tell_story(study, "made/f")


def write_choice(run, method, kept, scores, arm=None):
    subset = pd.DataFrame({"image_id": kept, "weight": 1.0})
    run.write_table(f"curation/{method}/seed3/subset.parquet", subset)
    run.write_table(
        f"curation/{method}/seed3/scores.parquet",
        pd.Series(scores).rename_axis("image_id").rename("score").reset_index(),
    )
    if arm:
        run.write_table(f"pretraining/{arm}/seed3/subset.parquet", subset)


def test_an_offline_method_is_told_by_rank_and_share(study):
    scores = {f"made/{letter}": score for letter, score in zip("abcdefh", [7.0, 6, 5, 4, 3, 3, 1], strict=True)}
    write_choice(study, "density", ["made/a", "made/b"], scores, arm="by_density")
    for arm in ("by_density", "density"):
        story = tell_story(study, "made/e", arm, 3)
        assert f"{show_image_ids(study, ['made/e'])[0]} was dropped by {arm}, which kept 2 of 7 pairs." in story
        assert (
            "Its score of 3 is number 5 from the top, above that of 14% of all pairs, with 1 of the same score."
            in story
        )
        assert "The lowest score kept is 6, the highest dropped 5." in story
    assert " was kept" in tell_story(study, "made/a", "density", 3)
    with pytest.raises(StudyError, match=r"no subset of 'density' with seed 0; there are: by_density \(seed 3\)"):
        tell_story(study, "made/a", "density", 0)


def test_quotas_and_weights_show_in_the_story():
    scores = pd.Series({"a": 5.0, "b": 4.0, "c": 3.0, "d": 2.0, "e": np.nan})
    subset = ChosenSubset(pd.Series({"a": 1.0, "d": 2.5}), scores, "loss")
    assert "it gave way to a group quota" in explain_choice(subset, "b", 5)
    held = explain_choice(subset, "d", 5)
    assert "a group quota held it" in held
    assert "It weighs 2.50 in training." in held
    assert "quota" not in explain_choice(subset, "a", 5) + explain_choice(subset, "c", 5)
    assert "it has no score" in explain_choice(subset, "e", 5)
    with pytest.raises(StudyError, match="loss scored 5 pairs, not x"):
        explain_choice(subset, "x", 5)


def test_an_arm_with_neither_ledger_nor_scores(study):
    study.write_table(
        "pretraining/random_same_data/seed0/subset.parquet", pd.DataFrame({"image_id": ["made/a"], "weight": 1.0})
    )
    story = tell_story(study, "made/a", "random_same_data")
    assert " was kept by random_same_data, which kept 1 of 7 pairs; it left no ledger and no scores" in story
    assert read_subset(study, "random_same_data", 0).scores is None
