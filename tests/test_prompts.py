import numpy as np
import pytest

from chexstudy.errors import StudyError
from chexstudy.evaluation.image_text.prompts import (
    CLINICAL,
    CONTRAST_NORMAL,
    FAMILIES,
    PUBLISHED,
    add_prompt_families,
    choose_prompts,
    hash_families,
)


def test_the_published_prompts_are_the_bare_name_and_no():
    assert PUBLISHED.prompts("Pleural Effusion") == (("Pleural Effusion",), ("no Pleural Effusion",))
    assert PUBLISHED.prompts("No Finding") == (("No Finding",), ("there is Finding",))
    assert PUBLISHED.prompts("Pleural_Thickening")[0] == ("Pleural Thickening",)


def test_clinical_prompts_are_sentences_with_abbreviations_kept_and_the_contrast_is_a_normal_radiograph():
    present, absent = CLINICAL.prompts("ILD (Interstitial Lung Disease)")
    assert "ILD (interstitial lung disease)." in present
    assert "No evidence of ILD (interstitial lung disease)." in absent
    assert all(sentence[0].isupper() and sentence.endswith(".") for sentence in present + absent)
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
    assert choose_prompts({"clinical": labels, "published": labels}, labels) == "clinical"
    # Where nobody has a finding there is no judge.
    assert choose_prompts({"clinical": noise, "published": noise}, 0 * labels) == "published"


def test_sentences_of_a_single_finding_stand_as_they_are_and_others_are_templates():
    radiologist = FAMILIES["radiologist"]
    assert "The heart is enlarged." in radiologist.prompts("Cardiomegaly")[0]
    assert radiologist.prompts("Pleural_Effusion") == radiologist.prompts("Pleural Effusion")
    assert "There is cavity." in radiologist.prompts("Cavity")[0]
    assert "Severe mass in the upper zones." in FAMILIES["severity_location"].prompts("Mass")[0]


OWN = """
families:
  mine:
    present: ["Clear signs of {}."]
    absent: ["Not a trace of {}."]
    normal: ["All is well."]
    abnormal: ["Something is wrong."]
    findings:
      Pleural Effusion: {present: ["Fluid."], absent: ["No fluid."]}
"""


def write(tmp_path, text):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    return path


def test_a_family_of_ones_own_is_added_after_those_of_the_study(tmp_path):
    families = add_prompt_families(write(tmp_path, OWN))
    assert list(families) == [*FAMILIES, "mine"]
    assert families["mine"].candidate
    assert families["mine"].prompts("Mass") == (("Clear signs of mass.",), ("Not a trace of mass.",))
    assert families["mine"].prompts("Pleural_Effusion") == (("Fluid.",), ("No fluid.",))
    assert families["mine"].prompts("No Finding") == (("All is well.",), ("Something is wrong.",))
    assert add_prompt_families("") == FAMILIES
    changed = add_prompt_families(write(tmp_path, OWN.replace("Fluid", "Liquid")))
    assert hash_families(changed) != hash_families(families)


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        (OWN, "families: [", r"mine.yaml is not valid YAML at line 1"),
        (OWN, "prompts: {}", "holds no prompt family"),
        ("mine:", "My-Prompts:", "small letters"),
        ("mine:", "chosen:", "small letters"),
        ("mine:", "published:", "'published' belongs to a family of the study"),
        ("absent: [", "abscent: [", "unknown key 'abscent'"),
        ('absent: ["Not a trace of {}."]', "absent: []", "absent must be a list of at least one sentence"),
        ('["All is well."]', "[no]", "normal holds False, which is no sentence: put it in quotes"),
        ("signs of {}", "signs", "lacks {}"),
        ("signs of {}", "signs of {finding}", "no braces but {}"),
        ("Not a trace", "Clear signs", "present and absent are the same sentences"),
        ("All is well.", "Something is wrong.", "normal and abnormal are the same sentences"),
        ("No fluid.", "Fluid.", "Pleural Effusion, both sides are the same sentences"),
        ("    present: [", "    casing: upper\n    present: [", "casing must be one of as_named, .*, not 'upper'"),
        ("    present: [", "    candidate: 3\n    present: [", "candidate must be true or false"),
        ("{present: [", "{for: [", "findings must hold"),
    ],
)
def test_a_file_that_cannot_be_used_is_one_sentence(tmp_path, old, new, sentence):
    with pytest.raises(StudyError, match=sentence):
        add_prompt_families(write(tmp_path, OWN.replace(old, new)))
