"""The audit: it finds a planted unfairness, raises few false alarms, and its numbers can be worked out by hand."""

import time

import numpy as np
import pandas as pd
import pytest
from scipy.stats import hypergeom

from chexstudy.cohort.groups import list_groups
from chexstudy.curation.quality.audit import audit_arm, audit_selection, describe_audit, list_audit
from chexstudy.errors import StudyError
from chexstudy.results import validate_results
from chexstudy.statistics.proportions import wilson_interval


def make_cohort(patients=200, seed=0, most_images=3):
    """Patients with up to so many images; sex, age and source are the patient's, view and findings the image's."""
    rng = np.random.default_rng(seed)
    images = rng.integers(1, most_images + 1, patients)
    patient = np.repeat(np.arange(patients), images)
    pairs = len(patient)
    normal = rng.random(pairs) < 0.5
    return pd.DataFrame(
        {
            "image_id": [f"made/{i}" for i in range(pairs)],
            "patient_id": [f"made/p{i}" for i in patient],
            "study_id": [f"made/s{i}" for i in range(pairs)],
            "source": np.where(rng.random(patients) < 0.7, "east", "west")[patient],
            "split": "train",
            "view": rng.choice(["PA", "AP", "unknown"], pairs, p=[0.5, 0.4, 0.1]),
            "sex": rng.choice(["F", "M"], patients)[patient],
            "age_years": rng.uniform(20, 90, patients).astype(np.float32)[patient],
            "image_path": "none.png",
            "report": "words",
            "report_origin": np.where(rng.random(pairs) < 0.8, "written", "template"),
            "No Finding": pd.array(normal.astype(int), dtype="Int8"),
            "Edema": pd.array(((rng.random(pairs) < 0.3) & ~normal).astype(int), dtype="Int8"),
            "Hernia": pd.array(((rng.random(pairs) < 0.02) & ~normal).astype(int), dtype="Int8"),
        }
    )


def audit(cohort, kept, seed=0, resamples=200, **known):
    return audit_selection(cohort, kept, np.random.default_rng(seed), resamples, **known)


def row_of(report, kind, group):
    found = report.table[(report.table.kind == kind) & (report.table.group == group)]
    assert len(found) == 1
    return found.iloc[0]


def test_counts_and_rates_by_hand():
    cohort = make_cohort(5, most_images=1).assign(
        sex=["F", "F", "M", "M", "unknown"], age_years=[17, 18, 80, np.nan, 59.5], view="PA", source="east"
    )
    cohort["Edema"] = pd.array([1, -1, None, 0, 1], dtype="Int8")
    report = audit(cohort, np.array([True, False, True, True, False]))
    assert (report.pairs, report.patients, report.kept) == (5, 5, 3)
    women = row_of(report, "sex", "F")
    assert (women.n, women.patients, women.kept, women.keep_rate, women.others_rate) == (2, 2, 1, 0.5, 1.0)
    assert women.ratio == 0.5
    edema = row_of(report, "finding", "Edema")
    assert (edema.n, edema.keep_rate) == (2, 0.5)
    assert edema.others_rate == 1.0, "not stated counts as without, uncertain as neither"
    assert [row_of(report, "age", band).n for band in ("0-17", "18-39", "40-59", "80+")] == [1, 1, 1, 1]
    left_out = set(report.left_out.kind + "=" + report.left_out.group)
    assert {"age=60-79", "view=PA", "view=AP", "source=east", "duplicate=near-duplicate"} <= left_out
    assert not left_out & set(report.table.kind + "=" + report.table.group)


def test_one_image_a_patient_gives_the_exact_test():
    cohort = make_cohort(60, most_images=1)
    kept = np.random.default_rng(3).random(60) < 0.4
    women = cohort.sex.eq("F").to_numpy()
    exact = hypergeom(60, kept.sum(), women.sum()).cdf((women & kept).sum())
    assert row_of(audit(cohort, kept, resamples=20_000), "sex", "F").p_value == pytest.approx(exact, abs=0.015)


def test_patients_and_not_images_are_the_unit():
    """Twenty-four patients of ten images each, decided patient by patient: images would seem to prove a difference."""
    cohort = make_cohort(24, most_images=1).iloc[np.repeat(np.arange(24), 10)].reset_index(drop=True)
    women = np.repeat(np.arange(24) < 12, 10)
    cohort = cohort.assign(image_id=[f"made/{i}" for i in range(240)], sex=np.where(women, "F", "M"))
    kept = np.repeat(np.isin(np.arange(24), [0, 1, 2, 3, 12, 13, 14, 15, 16, 17]), 10)
    found = row_of(audit(cohort, kept, resamples=4000), "sex", "F")
    by_image = hypergeom(240, kept.sum(), 120).cdf((women & kept).sum())
    by_patient = hypergeom(24, 10, 12).cdf(4)
    assert by_image < 0.01 < 0.3 < by_patient
    assert found.p_value == pytest.approx(by_patient, abs=0.03)
    assert found.ci_high - found.ci_low > 0.4


def test_a_planted_unfairness_is_found():
    cohort = make_cohort(1500, seed=1)
    rng = np.random.default_rng(2)
    fair = rng.random(len(cohort)) < 0.3
    of_women = np.flatnonzero(fair & cohort.sex.eq("F").to_numpy())
    removed = rng.choice(of_women, round(0.3 * len(of_women)), replace=False)
    kept = fair & ~np.isin(np.arange(len(cohort)), removed)
    assert not audit(cohort, fair, resamples=1000).table.warning.any()
    report = audit(cohort, kept, resamples=1000)
    women = row_of(report, "sex", "F")
    assert women.warning
    assert women.kept == len(of_women) - len(removed)
    assert women.ratio_low < women.ratio < women.ratio_high < 0.9
    assert list(report.table.group[report.table.warning]) == ["F"]
    text = describe_audit(report)
    assert "Warning, sex F:" in text


def test_false_alarms_are_near_five_in_a_hundred():
    alarms = 0
    for seed in range(200):
        cohort = make_cohort(80, seed=1000 + seed)
        kept = np.random.default_rng(seed).random(len(cohort)) < 0.3
        alarms += audit(cohort, kept, seed, resamples=10).table.dropped_more.any()
    assert 1 <= alarms <= 20, "ten are expected at most; more than twenty would be a chance of one in a thousand"


def test_long_reports_have_more_words_than_three_quarters_of_those_there_are():
    reports = ["clear", "a b", "a b c", "a\nb  c d", "a b c d e", "", None]
    groups = {group.name: group for group in list_groups(make_cohort(7, most_images=1).assign(report=reports))}
    assert groups["long"].members.tolist() == [False] * 4 + [True] + [False] * 2
    assert groups["long"].known.tolist() == [True] * 5 + [False] * 2


def test_what_curation_is_meant_to_drop_is_reported_but_no_warning():
    cohort = make_cohort(800)
    normal = cohort["No Finding"].eq(1).to_numpy()
    kept = np.random.default_rng(0).random(len(cohort)) < np.where(normal, 0.1, 0.4)
    report = audit(cohort, kept)
    found = row_of(report, "finding", "No Finding")
    assert found.dropped_more
    assert found.expected
    assert not found.warning
    assert "As curation is meant to, finding No Finding" in describe_audit(report)


def test_a_group_dropped_only_because_it_is_normal_is_even_among_like_pairs():
    cohort = make_cohort(6000)
    normal = cohort["No Finding"].eq(1).to_numpy()
    rng = np.random.default_rng(5)
    cohort["view"] = np.where(rng.random(len(cohort)) < np.where(normal, 0.8, 0.3), "PA", "AP")
    kept = rng.random(len(cohort)) < np.where(normal, 0.1, 0.4)
    found = row_of(audit(cohort, kept), "view", "PA")
    assert found.warning
    assert found.ratio < 0.75
    assert found.like_ratio == pytest.approx(1, abs=0.1)


def test_near_duplicates_by_truth_by_equal_embeddings_or_not_at_all():
    cohort = make_cohort(100, most_images=1)
    truth = pd.DataFrame({"image_id": cohort.image_id, "duplicate_of": ""})
    truth.loc[[3, 8, 9], "duplicate_of"] = "made/0"
    kept = np.arange(100) % 2 == 0
    found = row_of(audit(cohort, kept, truth=truth.sample(frac=1, random_state=0)), "duplicate", "near-duplicate")
    assert (found.n, found.kept) == (3, 1)
    features = np.random.default_rng(0).normal(size=(100, 4)).astype(np.float32)
    features[[50, 60]] = features[7]
    found = row_of(audit(cohort, kept, features=features), "duplicate", "near-duplicate")
    assert (found.n, found.kept) == (2, 2)
    with pytest.raises(StudyError, match="another cohort"):
        audit(cohort, kept, truth=truth.iloc[1:])


def test_few_patients_have_wilsons_interval():
    cohort = make_cohort(100, most_images=1)
    cohort["Hernia"] = pd.array([1, 1, 1] + [0] * 97, dtype="Int8")
    kept = np.arange(100) % 3 == 0
    found = row_of(audit(cohort, kept), "finding", "Hernia")
    assert found.interval == "wilson"
    assert (found.ci_low, found.ci_high) == pytest.approx(wilson_interval(1 / 3, 3))
    assert np.isnan(found.ratio_low)
    assert not found.warning


def test_all_or_nothing_kept_raises_no_warning():
    for everything in (True, False):
        report = audit(make_cohort(50), np.full(len(make_cohort(50)), everything))
        assert not report.table.dropped_more.any()
        assert (report.table.p_value == 1).all()
        describe_audit(report)


def test_wrong_decisions_are_one_sentence():
    cohort = make_cohort(50)
    every = np.ones(len(cohort), dtype=bool)
    for rows, kept, resamples, sentence in (
        (cohort, every[:3], 9, "3 decisions for"),
        (cohort, every.astype(float), 9, "true or false"),
        (cohort.iloc[:0], every[:0], 9, "at least one pair"),
        (cohort, every, 0, "at least one pair"),
    ):
        with pytest.raises(StudyError, match=sentence):
            audit(rows, kept, resamples=resamples)


def test_a_cohort_without_labels_is_audited_all_the_same():
    cohort = make_cohort(50).drop(columns=["No Finding", "Edema", "Hernia"])
    report = audit(cohort, np.arange(len(cohort)) % 2 == 0)
    assert set(report.table.kind) == {"sex", "age", "view", "source", "report"}
    assert report.table.like_ratio.isna().all()
    describe_audit(report)


def test_words_name_no_pair_and_the_same_seed_gives_the_same_rows():
    cohort = make_cohort(60)
    kept = np.arange(len(cohort)) % 4 == 0
    report = audit(cohort, kept)
    text = describe_audit(report)
    assert "made/" not in text
    assert "words" not in text
    rows = validate_results(list_audit(report).assign(study="s", arm="curated", seed=0, data_set="made/train"))
    assert len(rows) == 2 * len(report.table)
    ratio = rows[(rows.metric == "keep_ratio") & (rows.finding == "F")].iloc[0]
    assert ratio.value == row_of(report, "sex", "F").ratio
    pd.testing.assert_frame_equal(report.table, audit(cohort, kept).table)
    assert not audit(cohort, kept, seed=1).table.p_value.equals(report.table.p_value)


def test_thirty_thousand_pairs_take_seconds():
    cohort = make_cohort(15_000)
    rng = np.random.default_rng(0)
    for number in range(40):
        cohort[f"Finding {number}"] = pd.array(rng.integers(0, 2, len(cohort)), dtype="Int8")
    kept = rng.random(len(cohort)) < 0.2
    start = time.process_time()
    report = audit(cohort, kept, resamples=2000)
    assert len(report.table) > 50
    assert time.process_time() - start < 30, "measured: 5 s on one core"


def test_an_arm_is_audited_on_the_training_pairs(tiny_study):
    from chexstudy.cohort.table import validate_cohort, write_cohort

    cohort = make_cohort(40).assign(split="train")
    cohort.loc[cohort.patient_id == cohort.patient_id.iloc[-1], "split"] = "test"
    write_cohort(validate_cohort(cohort), tiny_study.path("cohort.parquet"))
    train = cohort[cohort.split == "train"]
    chosen = train.image_id.iloc[::3]
    tiny_study.write_table("curation/density/seed1/subset.parquet", pd.DataFrame({"image_id": chosen, "weight": 1.0}))
    report = audit_arm(tiny_study, "by_density", 1, resamples=50)
    assert (report.pairs, report.kept) == (len(train), len(chosen))
    with pytest.raises(StudyError, match="density"):
        audit_arm(tiny_study, "nothing", 0)
