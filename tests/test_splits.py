import pandas as pd
import pytest

from chexstudy.cohort.splits import DEFAULT_FRACTIONS, carve_validation, choose_main_test_set, split_patients
from chexstudy.errors import StudyError


def cohort(patients=200, images=3):
    ids = [f"a/{patient}" for patient in range(patients) for _ in range(images)]
    return pd.DataFrame({"image_id": [f"a/{i}.png" for i in range(len(ids))], "patient_id": ids, "split": "train"})


def split_of(table):
    return table.drop_duplicates("patient_id").set_index("patient_id")["split"].sort_index()


def test_shares_are_exact_and_patients_stay_together():
    table = split_patients(cohort(), DEFAULT_FRACTIONS, seed=0)
    assert table.groupby("patient_id")["split"].nunique().max() == 1
    assert split_of(table).value_counts().to_dict() == {"train": 140, "test": 40, "validate": 20}
    assert split_patients(cohort(3), DEFAULT_FRACTIONS, seed=0)["split"].notna().all()


def test_the_split_depends_on_the_seed_and_not_on_the_order_of_rows():
    table = cohort()
    split = split_of(split_patients(table, DEFAULT_FRACTIONS, seed=0))
    shuffled = split_of(split_patients(table.sample(frac=1, random_state=1), DEFAULT_FRACTIONS, seed=0))
    pd.testing.assert_series_equal(split, shuffled)
    other = split_of(split_patients(table, DEFAULT_FRACTIONS, seed=1))
    assert 0.2 < (split != other).mean() < 0.7


def test_neighbouring_ids_do_not_share_a_split_more_than_by_chance():
    split = split_patients(cohort(1000, 1), {"train": 0.5, "test": 0.5}, seed=3)["split"]
    assert 0.4 < (split.to_numpy()[1:] == split.to_numpy()[:-1]).mean() < 0.6


def test_validation_comes_out_of_training_only():
    table = cohort().assign(split=lambda t: ["test" if int(p[2:]) < 50 else "train" for p in t["patient_id"]])
    table = table.sample(frac=1, random_state=0)
    carved = carve_validation(table, 0.2, seed=0)
    assert (carved.loc[table["split"] == "test", "split"] == "test").all()
    assert split_of(carved).value_counts().to_dict() == {"train": 120, "test": 50, "validate": 30}
    assert list(carved["image_id"]) == list(table["image_id"])


@pytest.mark.parametrize(
    ("fractions", "sentence"),
    [
        ({"train": 0.5, "test": 0.2}, "the shares of the splits must be 0 or more and add up to 1, not train 0.5, tes"),
        ({"train": 1.2, "test": -0.2}, "the shares of the splits must be 0 or more and add up to 1, not train 1.2, te"),
        ({"dev": 1.0}, "there is no split named 'dev': the splits are train, validate, test, test_enriched."),
    ],
)
def test_wrong_fractions_are_one_sentence(fractions, sentence):
    with pytest.raises(StudyError, match=f"^{sentence}"):
        split_patients(cohort(), fractions, seed=0)


def test_one_data_set_stands_for_all_by_its_name():
    plain = ["theirs/test", "mine/test", "mine/validate"]
    assert choose_main_test_set(plain) == "mine/test"
    assert choose_main_test_set([*plain, "theirs/test_enriched"]) == "theirs/test_enriched"
    assert choose_main_test_set(["mine/train"]) == "mine/train"
