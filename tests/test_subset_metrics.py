import time
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from chexstudy.curation.quality.subset_metrics import KEPT_COLUMNS, measure_kept
from chexstudy.errors import StudyError
from chexstudy.statistics.proportions import wilson_interval

# Eight pairs on a circle; 0 and 1, and 4 and 5, are near-duplicates.
ANGLES = np.radians([0, 2, 20, 40, 90, 91, 150, 180])
FEATURES = np.stack([np.cos(ANGLES), np.sin(ANGLES)], axis=1).astype(np.float32)
KEPT = np.array([1, 1, 0, 0, 1, 0, 0, 1], dtype=bool)
LABELS = pd.DataFrame(
    {
        "image_id": [f"t/{number}" for number in range(8)],
        "Edema": pd.array([1, 1, 1, 1, 0, 0, 0, 0], dtype="Int8"),
        "Mass": pd.array([0, 0, 0, 1, 1, -1, None, 0], dtype="Int8"),
        "Hernia": pd.array([0, 0, 0, 0, 0, 0, 1, 1], dtype="Int8"),
        "Cavity": pd.array([0, 0, 0, 0, 0, 0, 0, 1], dtype="Int8"),
        "No Finding": pd.array([0, 0, 0, 0, 0, 1, 0, 0], dtype="Int8"),
    }
)
TIERS = {"Edema": "head", "Mass": "medium", "Hernia": "tail", "Cavity": "tail"}
TRUTH = pd.DataFrame(
    {
        "image_id": LABELS.image_id,
        "duplicate_of": ["", "t/0", "", "", "", "t/4", "t/3", "elsewhere"],
        "mismatched": [1, 0, 1, 0, 1, 0, 0, 0],
        "junk": [0, 0, 0, 0, 0, 0, 1, 0],
    }
)
PATIENTS = [f"p{number}" for number in range(8)]


@pytest.fixture(autouse=True)
def two_neighbours(monkeypatch):
    monkeypatch.setattr("chexstudy.curation.quality.subset_metrics._NEIGHBOURS", 2)


def measure(kept=KEPT, features=FEATURES, labels=LABELS, tiers=TIERS, truth=TRUTH, patients=PATIENTS, resamples=200):
    return measure_kept(kept, features, labels, tiers, truth, patients, np.random.default_rng(0), resamples)


def pick(table, metric, finding="all"):
    row = table[(table.metric == metric) & (table.finding == finding)]
    assert len(row) == 1, (metric, finding)
    return SimpleNamespace(**row.iloc[0])


def test_recall_and_enrichment_of_findings_and_tiers():
    table = measure()
    assert tuple(table.columns) == KEPT_COLUMNS
    assert not table[["metric", "finding"]].duplicated().any()
    ratio = pick(table, "keep_ratio")
    assert (ratio.value, ratio.n, ratio.positives) == (0.5, 8, 4)
    assert np.isnan(ratio.ci_low)
    for finding, value, n in (
        ("Edema", 1 / 2, 4),
        ("Mass", 1 / 2, 2),  # the uncertain and the unstated are not present
        ("Hernia", 1 / 2, 2),
        ("Cavity", 1, 1),
        ("No Finding", 0, 1),
        ("head", 1 / 2, 4),
        ("medium", 1 / 2, 2),
        ("tail", 1 / 2, 2),
    ):
        recall, enrichment = pick(table, "recall", finding), pick(table, "enrichment", finding)
        assert (recall.value, recall.n, recall.positives) == (value, n, value * n)
        assert enrichment.value == pytest.approx(value / 0.5)
        assert enrichment.n == n
    # Hernia and cavity count alike, though hernia is twice as common.
    rare = pick(table, "rare_recall", "tail")
    assert (rare.value, rare.n, rare.positives) == (0.75, 2, 1)


def test_shares_of_wrong_and_double_pairs():
    table = measure()
    removed = pick(table, "duplicates_removed")
    # The original of 7 is not among the pairs. Of 1 with 0 both are kept, of 5 with 4 one, of 6 with 3 none.
    assert (removed.value, removed.n, removed.positives) == (0.5, 2, 1)
    assert (pick(table, "mismatched_kept").value, pick(table, "mismatched_kept").n) == (pytest.approx(2 / 3), 3)
    assert (pick(table, "junk_kept").value, pick(table, "junk_kept").n) == (0, 1)


def test_redundancy_and_coverage(monkeypatch):
    table = measure()
    nearest = np.cos(np.radians([2, 2, 88, 90]))
    assert pick(table, "redundancy").value == pytest.approx(nearest.mean(), abs=1e-6)
    assert pick(table, "redundancy").n == 4
    assert pick(table, "coverage_radius").value == pytest.approx(2 * np.sin(np.radians(19)), abs=1e-5)
    # With one neighbour pair 3 has pair 2 alone, which is not kept; 6 has 7 and 2 has 1.
    monkeypatch.setattr("chexstudy.curation.quality.subset_metrics._NEIGHBOURS", 1)
    one = pick(measure(), "knn_coverage")
    assert (one.value, one.n, one.positives) == (7 / 8, 8, 7)


def test_all_kept_and_one_kept():
    table = measure(np.ones(8, dtype=bool))
    assert (table[table.metric.isin(["recall", "enrichment", "knn_coverage", "rare_recall"])].value == 1).all()
    assert pick(table, "coverage_radius").value == 0
    assert pick(table, "duplicates_removed").value == 0
    table = measure(np.eye(8, dtype=bool)[0])
    assert np.isnan(pick(table, "redundancy").value), "there is no other one"
    assert pick(table, "coverage_radius").value == pytest.approx(2, abs=1e-5)


def test_what_is_not_there_is_nan_or_left_out():
    table = measure(labels=LABELS.assign(Mass=0), truth=None)
    for metric, finding in (("recall", "Mass"), ("enrichment", "medium")):
        row = pick(table, metric, finding)
        assert np.isnan(row.value)
        assert np.isnan(row.ci_low)
        assert (row.n, row.positives) == (0, 0)
    assert not table.metric.isin(["mismatched_kept", "junk_kept", "duplicates_removed"]).any()
    no_rare = measure(labels=LABELS.assign(Hernia=0, Cavity=0))
    assert np.isnan(pick(no_rare, "rare_recall", "tail").value)
    unlabelled = measure(labels=LABELS[["image_id"]], tiers=None)
    assert not unlabelled.metric.isin(["recall", "enrichment", "rare_recall"]).any()
    assert pick(unlabelled, "knn_coverage").n == 8


def make_many(patients, images, seed=0):
    rng = np.random.default_rng(seed)
    rows = patients * images
    patient = np.repeat(np.arange(patients), images)
    features = rng.standard_normal((rows, 4)).astype(np.float32)
    labels = pd.DataFrame({"image_id": [f"m/{row}" for row in range(rows)], "Hernia": 1, "Mass": 0})
    kept = (rng.random(patients) < 0.4)[patient]
    return features, labels, patient, kept


def test_a_further_image_of_a_patient_says_nothing_new():
    """A patient's images are kept or dropped together: the interval is that of the patients."""
    features, labels, patient, kept = make_many(100, 5)
    options = {"tiers": {"Hernia": "tail"}, "truth": None, "resamples": 1000}
    row = pick(measure(kept, features, labels, patients=patient, **options), "recall", "Hernia")
    share = kept.mean()
    expected = 2 * 1.96 * np.sqrt(share * (1 - share) / 100)
    assert row.ci_high - row.ci_low == pytest.approx(expected, rel=0.15)
    rare = pick(measure(kept, features, labels, patients=patient, **options), "rare_recall", "tail")
    assert rare.value == pytest.approx(share)
    assert rare.ci_high - rare.ci_low == pytest.approx(expected, rel=0.15)
    alone = pick(measure(kept, features, labels, patients=np.arange(500), **options), "recall", "Hernia")
    assert alone.ci_high - alone.ci_low == pytest.approx(expected / np.sqrt(5), rel=0.15)


def test_none_of_twelve_is_not_certainly_none_of_all():
    features, labels, patient, kept = make_many(40, 1)
    labels = labels.assign(Hernia=np.arange(40) < 12)
    kept[:12], kept[12] = False, True
    table = measure(kept, features, labels.astype({"Hernia": int}), {"Hernia": "tail"}, None, patient)
    low, high = wilson_interval(0.0, 12)
    for metric, finding in (("recall", "Hernia"), ("recall", "tail"), ("rare_recall", "tail")):
        row = pick(table, metric, finding)
        assert (row.value, row.ci_low, row.ci_high) == (0, low, pytest.approx(high))
    enrichment = pick(table, "enrichment", "Hernia")
    assert enrichment.ci_high == pytest.approx(high / kept.mean())


def test_repeats_itself_to_the_byte():
    first, second = measure(), measure()
    pd.testing.assert_frame_equal(first, second, check_exact=True)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"kept": np.zeros(8, dtype=bool)}, "nothing was kept"),
        ({"kept": np.arange(4)}, "true or false"),
        ({"features": FEATURES[1:]}, "features has 7 rows for 8 pairs"),
        ({"truth": TRUTH[1:]}, "truth has 7 rows"),
        ({"truth": TRUTH[::-1]}, "in another order"),
        ({"features": np.where(FEATURES == 1, np.nan, FEATURES)}, "finite"),
        (
            {"kept": KEPT[:1], "features": FEATURES[:1], "labels": LABELS[:1], "truth": None, "patients": PATIENTS[:1]},
            "two",
        ),
    ],
)
def test_refuses_what_it_cannot_measure(given, sentence):
    with pytest.raises(StudyError, match=sentence):
        measure(**given)


@pytest.mark.slow
def test_takes_seconds_at_the_size_of_the_default_study():
    rng = np.random.default_rng(0)
    features = rng.standard_normal((6000, 256)).astype(np.float32)
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    labels = pd.DataFrame((rng.random((6000, 24)) < 0.05).astype(int), columns=[f"F{number}" for number in range(24)])
    begin = time.perf_counter()
    measure(rng.random(6000) < 0.2, features, labels, None, None, np.arange(6000) // 2, resamples=1000)
    assert time.perf_counter() - begin < 30
