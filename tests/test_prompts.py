import numpy as np
import pytest

from chexstudy.errors import StudyError
from chexstudy.evaluation.prompts import CLINICAL, CONTRAST_NORMAL, FAMILIES, PUBLISHED, PromptFamily, choose_prompts


def test_the_published_prompts_are_the_bare_name_and_no():
    assert PUBLISHED.prompts("Pleural Effusion") == (("Pleural Effusion",), ("no Pleural Effusion",))
    assert PUBLISHED.prompts("No Finding") == (("No Finding",), ("there is Finding",))
    assert PUBLISHED.prompts("Pleural_Thickening")[0] == ("Pleural Thickening",)


def test_clinical_prompts_are_sentences_with_abbreviations_kept():
    present, absent = CLINICAL.prompts("ILD (Interstitial Lung Disease)")
    assert "ILD (interstitial lung disease)." in present
    assert "No evidence of ILD (interstitial lung disease)." in absent
    assert all(sentence[0].isupper() and sentence.endswith(".") for sentence in present + absent)


def test_the_contrast_is_the_same_normal_radiograph_for_every_finding():
    assert CONTRAST_NORMAL.prompts("Mass")[1] == CONTRAST_NORMAL.prompts("Hernia")[1]
    assert CONTRAST_NORMAL.prompts("Mass")[0] == CLINICAL.prompts("Mass")[0]


@pytest.mark.parametrize("family", FAMILIES.values())
def test_no_finding_is_for_normal_and_against_abnormal(family):
    for_it, against = family.prompts("No Finding")
    assert for_it
    assert against
    assert not set(for_it) & set(against)


def test_the_family_that_ranks_validation_best_is_chosen():
    labels = np.array([[1, 0], [0, 1], [0, 0], [1, 1]], dtype=float)
    noise = np.array([[0.1, 0.9], [0.2, 0.1], [0.9, 0.3], [0.4, 0.2]])
    assert choose_prompts({"published": noise, "clinical": labels}, labels) == "clinical"
    assert choose_prompts({"published": labels, "clinical": labels}, labels) == "published"


def test_without_a_judge_there_is_no_choice():
    with pytest.raises(StudyError, match="no finding is both present and absent"):
        choose_prompts({"published": np.zeros((3, 2))}, np.zeros((3, 2)))


def test_a_family_needs_a_known_casing_and_every_side():
    with pytest.raises(StudyError, match="as_named"):
        PromptFamily("own", ("{}",), ("no {}",), ("normal",), ("abnormal",), casing="upper")
    with pytest.raises(StudyError, match="without a sentence"):
        PromptFamily("own", ("{}",), (), ("normal",), ("abnormal",), casing="as_named")
