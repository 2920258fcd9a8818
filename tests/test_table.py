"""The cohort table's contract: what keeps it comes back the same, what breaks it is named by row and column."""

import os

import numpy as np
import pandas as pd
import pytest

from chexstudy.cohort.table import (
    finding_columns,
    label_matrix,
    outcome_columns,
    outcome_names,
    read_cohort,
    validate_cohort,
    write_cohort,
)
from chexstudy.errors import StudyError


def make_cohort(**changes):
    columns = {
        "image_id": ["a/1", "a/2", "a/3", "a/4"],
        "patient_id": ["a/p", "a/p", "a/q", "a/r"],
        "study_id": ["a/s1", "a/s2", "a/s3", "a/s4"],
        "source": "a",
        "split": ["train", "train", "validate", "test"],
        "view": ["PA", "AP", "lateral", "unknown"],
        "sex": ["F", "F", "M", "unknown"],
        "age_years": [50, 50.5, None, 0],
        "image_path": ["1.png", "2.png", "3.png", "4.png"],
        "report": ["Clear.", "", "Mass.", "Hernia?"],
        "report_origin": ["written", "none", "template", "written"],
        "Mass": [0, None, 1, -1],
        "Hernia": [0, 1, 0, 1],
    }
    return pd.DataFrame(columns | changes)


def sentence(**changes):
    with pytest.raises(StudyError) as caught:
        validate_cohort(make_cohort(**changes), "cohort.parquet")
    return str(caught.value)


def test_a_cohort_comes_back_as_it_went_with_the_contracts_order_and_types(tmp_path):
    cohort = make_cohort()
    shuffled = cohort[["Mass", *[name for name in reversed(cohort.columns) if name != "Mass"]]]
    write_cohort(shuffled, tmp_path / "deep/cohort.parquet")
    back = read_cohort(tmp_path / "deep/cohort.parquet")
    assert list(back.columns) == [*cohort.columns[:11], "Mass", "Hernia"]
    assert finding_columns(back) == ["Mass", "Hernia"]
    assert str(back.Mass.dtype) == "Int8"
    assert str(back.age_years.dtype) == "float32"
    np.testing.assert_array_equal(label_matrix(back, ["Mass", "Hernia"]), [[0, 0], [np.nan, 1], [1, 0], [-1, 1]])
    assert list(back.image_id) == list(cohort.image_id)
    assert outcome_names(back) == outcome_columns(back) == []
    pd.testing.assert_frame_equal(back, validate_cohort(back))


def test_labels_of_any_number_type_are_read():
    for labels in ([0.0, np.nan, 1.0, -1.0], pd.array([0, None, 1, -1], dtype="Int64"), ["0", None, "1", "-1"]):
        assert validate_cohort(make_cohort(Mass=labels)).Mass.tolist() == [0, pd.NA, 1, -1]


def test_a_long_text_in_a_wrong_column_is_not_shown():
    message = sentence(Mass=[0, 1, "There is a small left pleural effusion with adjacent atelectasis.", 0])
    assert "holds a text of 65 characters" in message
    assert "effusion" not in message


@pytest.mark.parametrize("absent", [["report"], ["patient_id", "split"]])
def test_a_missing_column_is_named_beside_those_there_are(absent):
    with pytest.raises(StudyError) as caught:
        validate_cohort(make_cohort().drop(columns=absent), "cohort.parquet")
    assert str(caught.value).startswith(
        f"cohort.parquet lacks the column{'s' * (len(absent) > 1)} {', '.join(map(repr, absent))}; it has 'image_id', "
    )


_LABEL = "; a label is 1 (present), 0 (absent), -1 (uncertain) or empty (not stated)."
_EVENT = "; an outcome is 1 (it happened), 0 (it did not) or empty (unknown)."
_TIME = "; a time is a number of years above 0, and is empty only where the outcome is unknown."
OUTCOMES = {
    "outcome_death_years": [2.5, 10, None, 0.25],
    "outcome_malposition": [None, 0, 1, None],
    "outcome_death": [1, 0, None, 1],
}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"split": ["train", "train", "holdout", "test"]}, "row 2, column 'split' holds 'holdout': expected one of tr"),
        ({"view": "oblique"}, "row 0, column 'view' holds 'oblique': expected one of PA, AP, lateral, unknown."),
        ({"sex": "W"}, "row 0, column 'sex' holds 'W': expected one of F, M, unknown."),
        ({"report_origin": "guessed"}, "row 0, column 'report_origin' holds 'guessed': expected one of written"),
        ({"age_years": [1, 2, 130, 4]}, "row 2, column 'age_years' holds 130: expected an age from 0 to 120 years"),
        ({"age_years": [1, None, "old", 4]}, "row 2, column 'age_years' holds 'old': expected an age from 0 to 120"),
        ({"image_path": ["1.png", "", "3.png", "4.png"]}, "row 1, column 'image_path': expected a text"),
        ({"patient_id": ["a/p", "a/p", None, "a/r"]}, "row 2, column 'patient_id' is empty; every row needs a value"),
        ({"report": ["Clear.", None, "", ""]}, "row 1, column 'report' is empty; every row needs a value there."),
        ({"image_id": ["a/1", "a/2", "a/1", "a/4"]}, "row 0, column 'image_id': every image_id must be there once and"),
        (
            {"split": ["train", "test", "validate", "test"]},
            "row 0 (train) and row 1 (test) are of one patient; 1 patient(s) lie in more than one split: give all im",
        ),
        *(({"Mass": [0, 1, one, 0]}, f"row 2, column 'Mass' holds {one!r}{_LABEL}") for one in (2, -2, 0.5, "maybe")),
        ({"Mass": [0, 1, np.inf, 0]}, f"row 2, column 'Mass' holds inf{_LABEL}"),
        *(
            ({"outcome_death": [1, 0, one, 0]}, f"row 2, column 'outcome_death' holds {one!r}{_EVENT}")
            for one in (-1, 2, "dead", 0.5)
        ),
        *(
            ({"outcome_death_years": years}, f"row {row}, column 'outcome_death_years' {held}{_TIME}")
            for years, row, held in (
                ([2.5, -1, None, 1], 1, "holds -1.0"),
                ([2.5, 0, None, 1], 1, "holds 0.0"),
                ([2.5, None, None, 1], 1, "is empty"),
                ([2.5, np.inf, None, 1], 1, "holds inf"),
                ([2.5, "long", None, 1], 1, "holds 'long'"),
                # Where the outcome is unknown a time need not be there, but must not be impossible.
                ([2.5, 1, -3, 1], 2, "holds -3.0"),
            )
        ),
    ],
)
def test_a_value_outside_the_contract_is_named_by_row_and_column(changes, expected):
    outcomes = OUTCOMES if any(name in OUTCOMES for name in changes) else {}
    assert sentence(**outcomes | changes).startswith(f"cohort.parquet: {expected}")


def test_an_empty_table_is_one_sentence():
    with pytest.raises(StudyError, match=r"^the cohort table has no rows: check the folder it was built from"):
        validate_cohort(make_cohort().iloc[:0])


def test_a_broken_cohort_is_not_written(tmp_path):
    with pytest.raises(StudyError, match=r"^cohort\.parquet: row 2,"):
        write_cohort(make_cohort(Mass=[0, 1, 7, 0]), tmp_path / "cohort.parquet")
    assert os.listdir(tmp_path) == []


def test_no_table_and_something_else_are_one_sentence(tmp_path):
    with pytest.raises(
        StudyError, match=r"^there is no cohort table at .*none\.parquet: build one with `chexstudy coh"
    ):
        read_cohort(tmp_path / "none.parquet")
    (tmp_path / "page.parquet").write_text("<html>")
    with pytest.raises(StudyError, match=r"page\.parquet is not a parquet table that can be read: build it again"):
        read_cohort(tmp_path / "page.parquet")
    (tmp_path / "folder.parquet").mkdir()
    with pytest.raises(StudyError, match=r"there is no cohort table at .*folder\.parquet"):
        read_cohort(tmp_path / "folder.parquet")


# --- outcomes ---------------------------------------------------------------------------------------------------------


def test_outcomes_stand_behind_the_findings_each_event_before_its_time_and_are_no_findings(tmp_path):
    cohort = make_cohort(**OUTCOMES)
    shuffled = cohort[[*OUTCOMES, *[name for name in cohort.columns if name not in OUTCOMES]]]
    back = read_cohort(write_cohort(shuffled, tmp_path / "cohort.parquet"))
    expected = ["outcome_malposition", "outcome_death", "outcome_death_years"]
    assert list(back.columns[-5:]) == ["Mass", "Hernia", *expected]
    assert finding_columns(back) == ["Mass", "Hernia"]
    assert outcome_names(back) == ["malposition", "death"]
    assert outcome_columns(back) == expected
    assert [str(dtype) for dtype in back[expected].dtypes] == ["Int8", "Int8", "float32"]
    assert back.outcome_death.tolist() == [1, 0, pd.NA, 1]
    np.testing.assert_array_equal(back.outcome_death_years, np.array([2.5, 10, np.nan, 0.25], dtype="float32"))
    pd.testing.assert_frame_equal(back, validate_cohort(back))


def test_a_time_without_its_event_is_named():
    assert sentence(outcome_death_years=[1, 2, 3, 4]) == (
        "cohort.parquet: the time 'outcome_death_years' has no event column 'outcome_death': add it, 1 where the event "
        "happened and 0 where observation ended without it."
    )
    # The time of a time has no event either, and must not vanish.
    assert "'outcome_death_years_years' has no event column" in sentence(**OUTCOMES, outcome_death_years_years=1.0)
