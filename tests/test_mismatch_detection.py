import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from chexstudy.curation.quality.mismatch_detection import DETECTION_COLUMNS, list_detection, measure_detection
from chexstudy.curation.quality.pair_mismatch import MismatchScores
from chexstudy.errors import StudyError


def make_case(pairs=80, seed=0):
    rng = np.random.default_rng(seed)
    kind = np.arange(pairs) % 8
    truth = pd.DataFrame({"mismatched": kind == 0, "junk": kind == 1})
    # A wrong pair with a rare finding is wrong, and not rare.
    tiers = np.where(kind <= 3, "tail", np.where(kind == 4, "head", "none"))
    score = [rng.standard_normal(pairs) + 2 * (kind <= one) for one in (0, 1, 0, 1)]
    scored = MismatchScores(*score)
    patients = [f"p{number // 2}" for number in range(pairs)]
    bands = np.where(np.arange(pairs) < pairs // 2, "outlier", "central")
    return scored, truth, tiers, patients, bands


def measure(*case, bands=None):
    return measure_detection(*case, np.random.default_rng(0), 200, bands=bands)


def test_equals_scikit_learn_on_each_question():
    scored, truth, tiers, patients, bands = make_case()
    table = measure(scored, truth, tiers, patients, bands=bands)
    assert tuple(table.columns) == DETECTION_COLUMNS
    assert len(table) == 4 * 3 * 2 * 3
    assert not table[["score", "wrong", "against", "among"]].duplicated().any()
    values = {
        "mismatch_score": scored.score,
        "mismatch": scored.mismatch,
        "isolation": scored.isolation,
        "clip_score": -scored.agreement,
    }
    wrongs = {"mismatched": truth.mismatched, "junk": truth.junk, "either": truth.mismatched | truth.junk}
    sound = ~wrongs["either"].to_numpy()
    for row in table.itertuples():
        where = np.ones(len(bands), bool) if row.among == "all" else bands == row.among
        positive = wrongs[row.wrong].to_numpy() & where
        negative = sound & where & ((tiers == "tail") | (row.against == "sound"))
        asked = positive | negative
        assert row.value == pytest.approx(roc_auc_score(positive[asked], values[row.score][asked]))
        assert (row.n, row.positives) == (asked.sum(), positive.sum())
        assert np.isnan(row.ci_low) == np.isnan(row.ci_high)
        assert np.isnan(row.ci_low) or row.ci_low <= row.value <= row.ci_high


def test_without_wrong_pairs_there_is_nothing_to_measure():
    scored, truth, tiers, patients, _ = make_case()
    table = measure(scored, truth.assign(junk=False), tiers, patients)
    junk = table[table.wrong == "junk"]
    assert junk.value.isna().all()
    assert (junk.positives == 0).all()
    assert len(junk) == 4 * 2
    mismatched = table[table.wrong == "mismatched"]
    assert mismatched.value.notna().all()


def test_patients_not_images_make_an_interval_narrow():
    scored, truth, tiers, _, _ = make_case(320)
    wide = measure(scored, truth, tiers, [f"p{number // 32}" for number in range(320)])
    narrow = measure(scored, truth, tiers, [f"p{number}" for number in range(320)])
    asked = (wide.score == "isolation") & (wide.wrong == "junk") & (wide.against == "sound")
    assert (wide.ci_high - wide.ci_low)[asked].item() > (narrow.ci_high - narrow.ci_low)[asked].item()
    pd.testing.assert_series_equal(wide.value, narrow.value)


def test_every_input_is_one_a_pair():
    scored, truth, tiers, patients, bands = make_case()
    for broken in (
        (scored, truth[1:], tiers, patients),
        (scored, truth, tiers[1:], patients),
        (scored, truth, tiers, patients[1:]),
    ):
        with pytest.raises(StudyError, match="79 rows for 80 pairs"):
            measure(*broken)
    with pytest.raises(StudyError, match="bands has 79 rows"):
        measure(scored, truth, tiers, patients, bands=bands[1:])


def test_rows_of_the_results_table_name_what_was_told_from_what():
    rows = list_detection(measure(*make_case()[:4]))
    assert not rows.duplicated(["finding", "setting", "reference", "group"]).any()
    assert ("isolation", "rare", "all") in set(
        rows[["setting", "reference", "group"]].itertuples(index=False, name=None)
    )
    assert set(rows.finding) == {"mismatched", "junk", "either"}
    assert list_detection(pd.DataFrame()).empty
