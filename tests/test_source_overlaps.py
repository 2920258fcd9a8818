"""What sources share: derived from the facts, taken out of training, and said where it cannot be told."""

import pandas as pd
import pytest

from chexstudy.cohort.adapters import DATASETS
from chexstudy.cohort.overlaps import (
    OVERLAPS,
    describe_exposure,
    exclude_overlap,
    find_overlaps,
    list_untold,
    share_images,
    tabulate_overlaps,
)


@pytest.mark.parametrize(
    ("first", "second", "shared"),
    [
        ("nih/train", "rsna_pneumonia/test", True),
        ("siim_acr", "rsna_pneumonia", True),  # both of NIH
        ("covidx/test", "nih/train", True),  # by RSNA
        ("rsna_pneumonia", "bimcv_covid19", False),  # parts of COVIDx, not of each other
        ("chexpert_plus/train", "chexpert_5x200/test", True),
        ("chexpert_plus/validate", "chexpert_5x200/test", False),
        ("chexpert/validate", "chexlocalize/validate", True),
        ("chexpert/train", "chexlocalize/validate", False),
        ("chexpert", "chexpert_test", False),
        ("mimic_cxr/test", "cxr_lt_2024/test", True),
        ("cxr_lt_2023/train", "cxr_lt_2024/test", True),
        ("cxr_lt_2023/train", "cxr_lt_2023/test", False),
        ("nih/train", "nih/test", False),
        ("nih/train", "nih/train", True),
        ("padchest", "bimcv_covid19", False),
        ("folder/train", "phantom/test", False),
    ],
)
def test_what_follows_from_the_facts(first, second, shared):
    assert share_images(first, second) is shared
    assert share_images(second, first) is shared


def test_tables_for_people():
    (fact,) = find_overlaps("nih", "rsna_pneumonia")
    assert (fact.set, fact.of, fact.told_by) == ("rsna_pneumonia", "nih", "mapping")
    (hospital,) = find_overlaps("padchest/train", "bimcv_covid19/test")
    assert hospital.shares == "hospital"
    table = tabulate_overlaps(["siim_acr", "openi", "covidx", "rsna_pneumonia", "padchest", "bimcv_covid19"])
    told = {(row.source, row["and"]): (row["share"], row["told by"]) for _, row in table.iterrows()}
    assert told == {
        ("siim_acr", "covidx"): ("images", "looking"),
        ("siim_acr", "rsna_pneumonia"): ("images", "looking"),
        ("covidx", "rsna_pneumonia"): ("images", "image"),
        ("covidx", "bimcv_covid19"): ("images", "image"),
        ("padchest", "bimcv_covid19"): ("hospital", "looking"),
    }
    assert tabulate_overlaps(["openi"]).empty
    assert describe_exposure("nlm_tb") == "images shared with TBX11K's extra images"
    assert describe_exposure("chexpert_test") == "images shared with chexlocalize"
    assert describe_exposure("rsna_pneumonia") == "images shared with chexmask, covidx, nih, siim_acr"
    assert describe_exposure("bimcv_covid19").endswith("; hospitals shared with padchest")
    assert describe_exposure("folder") == ""


def rows(*told):
    """A cohort of ``image_id, patient_id, split``."""
    table = pd.DataFrame(told, columns=["image_id", "patient_id", "split"])
    return table.assign(source=table.image_id.str.partition("/")[0])


def test_what_a_test_set_holds_is_taken_out_of_training():
    cohort = rows(
        ("mimic_cxr/a", "mimic_cxr/1", "train"),
        ("cxr_lt_2023/a", "mimic_cxr/1", "test"),
        ("mimic_cxr/b", "mimic_cxr/2", "train"),
        ("cxr_lt_2023/b", "mimic_cxr/2", "train"),
        ("mimic_cxr/c", "mimic_cxr/3", "validate"),
        ("cxr_lt_2023/c", "mimic_cxr/3", "test_enriched"),
        ("mimic_cxr/d", "mimic_cxr/4", "train"),
        ("cxr_lt_2023/d", "mimic_cxr/4", "validate"),
        # NIH's own test set holds nothing that is of another split; RSNA's patients are NIH's by its mapping.
        ("nih/0007_1.png", "nih/0007", "train"),
        ("nih/8.png", "nih/8", "test"),
        ("rsna_pneumonia/x", "nih/7", "test"),
        # No name tells of SIIM's.
        ("nih/9.png", "nih/9", "train"),
        ("siim_acr/1.2.276.9", "siim_acr/1.2.276.9", "test"),
        ("covid_chestxray/Case-1.png", "covid_chestxray/1", "train"),
        ("openi/Case-1.png", "openi/1", "train"),
        ("covidx/case-1.jpg", "covidx/cohen_1", "test"),
    )
    kept, told = exclude_overlap(cohort)
    gone = ["mimic_cxr/a", "mimic_cxr/c", "mimic_cxr/d", "nih/0007_1.png", "covid_chestxray/Case-1.png"]
    assert set(cohort.image_id) - set(kept.image_id) == set(gone)
    assert told == (
        "taken out of training: 5 images of mimic_cxr, nih, covid_chestxray that a set nearer to the test holds "
        "(4 by patient, 1 by name); it cannot be told what siim_acr/test shares with nih, "
        "covidx/test shares with nih, so results there count as seen."
    )
    assert list(kept.image_id) == [name for name in cohort.image_id if name not in gone]
    again, told = exclude_overlap(kept)
    assert len(again) == len(kept)
    assert told.startswith("taken out of training: no image;")


@pytest.mark.parametrize(
    ("training", "held_out", "untold"),
    [
        (("nih/1.png", "nih/1"), ("rsna_pneumonia/x", "nih/2"), []),
        (("nih/1.png", "nih/1"), ("rsna_pneumonia/x", "rsna_pneumonia/x"), ["nih"]),
        (("nih/1.png", "nih/1"), ("siim_acr/x", "siim_acr/x"), ["nih"]),
        (("jsrt/JPCLN001", "jsrt/1"), ("scr/JPCLN002.png", "scr/2"), []),
        (("jsrt/JPCLN001", "jsrt/1"), ("scr/JPCLN001.png", "scr/1"), ["jsrt"]),
        (("padchest/1.png", "padchest/1"), ("bimcv_covid19/1.png", "bimcv_covid19/1"), []),
        (("folder/1", "folder/1"), ("phantom/1", "phantom/1"), []),
    ],
)
def test_what_tables_do_not_tell_apart_stays_named(training, held_out, untold):
    cohort = rows((*training, "train"), (*held_out, "test"))
    assert list_untold(cohort, f"{cohort.source[1]}/test") == untold


def test_the_facts_name_sources_that_are_read_and_number_patients_as_they_say():
    assert {name for one in OVERLAPS for name in (one.set, one.of)} <= set(DATASETS)
    for one in OVERLAPS:
        assert one.told_by in ("patient", "image", "mapping", "looking")
        if one.told_by == "patient" and DATASETS[one.set].columns:
            assert DATASETS[one.set].patients_of == one.of
