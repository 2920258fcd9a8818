import pandas as pd
import pytest

from chexstudy.cohort.prevalence import measure_prevalence, prevalence_tiers, tiers_of_pairs
from chexstudy.errors import StudyError


def make_cohort(**labels):
    return pd.DataFrame({name.replace("_", " "): pd.array(values, dtype="Int8") for name, values in labels.items()})


def test_prevalence_is_the_share_of_all_images():
    cohort = make_cohort(Mass=[1, 0, -1, None], No_Finding=[0, 1, 1, 1])
    assert dict(measure_prevalence(cohort)) == {"Mass": 0.25, "No Finding": 0.75}
    unlabelled = cohort[[]].assign(image_id=list("abcd"))
    assert measure_prevalence(unlabelled).empty
    assert prevalence_tiers(measure_prevalence(unlabelled)).empty
    assert list(tiers_of_pairs(unlabelled, {})) == ["none"] * 4


def test_tiers_follow_the_thresholds_and_leave_out_no_finding():
    prevalence = pd.Series({"No Finding": 0.6, "Effusion": 0.101, "Edema": 0.10, "Nodule": 0.01, "Hernia": 0.009})
    tiers = {"Effusion": "head", "Edema": "medium", "Nodule": "medium", "Hernia": "tail"}
    assert dict(prevalence_tiers(prevalence)) == tiers
    with pytest.raises(StudyError, match="from 0 to 1"):
        prevalence_tiers(pd.Series({"Mass": 12}))


def test_a_pair_belongs_to_its_rarest_tier():
    cohort = make_cohort(
        Mass=[1, 1, 0, -1, 1], Hernia=[0, 1, 0, 0, 0], Edema=[0, 0, 0, 0, 1], No_Finding=[0, 0, 1, 0, 0]
    )
    tiers = {"Mass": "head", "Hernia": "tail", "Edema": "medium"}
    assert list(tiers_of_pairs(cohort, tiers)) == ["head", "tail", "none", "none", "medium"]
