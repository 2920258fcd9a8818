import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from chexstudy.cohort import pseudo_reports
from chexstudy.cohort.adapters import DATASETS
from chexstudy.cohort.pseudo_reports import TemplateRules, template_report
from chexstudy.errors import StudyError

LABELS = {"Mass": 0, "Pleural Effusion": 1, "Nodule": -1, "Hernia": 0, "Fibrosis": None}


def sentences(report):
    return [sentence.strip() for sentence in report.rstrip(".").split(". ")]


def test_one_sentence_for_each_stated_label_in_column_order():
    for image in range(40):
        told = sentences(template_report(LABELS, f"nih/{image}", seed=1))
        assert [
            name for text in told for name in ("mass", "pleural effusion", "nodule", "hernia") if name in text.lower()
        ] == ["mass", "pleural effusion", "nodule", "hernia"]
        assert all(text[0].isupper() and text[1:] == text[1:].lower() for text in told)


def test_each_label_draws_from_all_of_its_own_templates_as_many_as_published():
    for finding, published in {"Mass": (8, 7, 3), "Pleural Other": (2, 2, 2), "Support Devices": (8, 3, 3)}.items():
        drawn = [
            {template_report({finding: label}, f"nih/{image}", seed=1) for image in range(200)} for label in (1, 0, -1)
        ]
        assert tuple(map(len, drawn)) == published
        assert not drawn[0] & drawn[1]
    assert len({template_report({"No Finding": 1}, f"a/{image}", seed=1) for image in range(60)}) == 2


def test_special_labels_have_their_own_wording():
    drawn = {template_report({"Support Devices": 0}, f"a/{image}", seed=1) for image in range(60)}
    assert drawn == {"No lines, tubes or devices.", "The chest is free of hardware.", "No support devices seen."}
    assert "pleural other" not in template_report({"Pleural Other": 1}, "a/1", seed=1).lower()


def test_missing_values_of_every_kind_are_not_stated():
    missing = {"Mass": pd.NA, "Nodule": np.nan, "Hernia": None}
    assert template_report(missing, "a/1", seed=1) == ""
    row = pd.DataFrame({"Mass": [1], "Nodule": [pd.NA]}, dtype="Int8").to_dict("records")[0]
    assert template_report(row, "a/1", seed=1) == template_report({"Mass": 1}, "a/1", seed=1)


def test_no_finding_alone_is_one_of_two_fixed_sentences_and_beside_a_finding_says_nothing():
    drawn = {template_report({"No Finding": 1, "Mass": 0, "Nodule": None}, f"a/{i}", seed=1) for i in range(40)}
    assert len(drawn) == 2
    assert not any("mass" in text.lower() for text in drawn)
    for other in (1, -1):
        for none in (1, 0):
            told = template_report({"No Finding": none, "Mass": other}, "a/1", seed=1)
            assert told == template_report({"Mass": other}, "a/1", seed=1)


def test_wording_depends_on_image_and_seed_but_not_on_order_or_other_labels():
    images = [f"nih/{image}" for image in range(30)]
    forward = [template_report(LABELS, image, seed=1) for image in images]
    backward = [template_report(LABELS, image, seed=1) for image in reversed(images)]
    assert forward == backward[::-1]
    assert forward != [template_report(LABELS, image, seed=2) for image in images]
    assert len(set(forward)) > 20
    with_more = template_report({**LABELS, "Emphysema": 1}, images[0], seed=1)
    assert with_more.startswith(forward[0])


def test_a_word_budget_leaves_out_random_absent_findings_only():
    labels = {f"Finding{i}": 0 for i in range(20)} | {"Mass": 1, "Nodule": -1}
    full = template_report(labels, "a/1", seed=1)
    rules = TemplateRules(word_budget=30)
    short = template_report(labels, "a/1", seed=1, rules=rules)
    assert len(full.split()) > 30 >= len(short.split())
    assert set(sentences(short)) < set(sentences(full))
    assert len(short.split()) > 20
    kept = {f: template_report(labels, f, seed=1, rules=rules) for f in ("a/1", "a/2", "a/3")}
    left = [tuple(i for i in range(20) if f"finding{i}" in text.replace(".", "").split()) for text in kept.values()]
    assert len(set(left)) == 3
    tiny = template_report(labels, "a/1", seed=1, rules=TemplateRules(word_budget=1)).lower()
    assert "mass" in tiny
    assert "nodule" in tiny
    assert "finding" not in tiny


def test_a_label_outside_the_contract_is_one_sentence():
    with pytest.raises(StudyError, match=r"^a label of 'Mass' is 2; a label is 1, 0, -1 or empty\.$"):
        template_report({"Mass": 2}, "a/1", seed=1)


NORMAL = ["normal"]


@pytest.mark.parametrize(
    ("source", "labels", "told"),
    [
        # The five sources of CheXficient that have labels and no text, findings as their tables call them.
        ("nih", {"No Finding": 0, "Effusion": 1, "Mass": 0}, ["+effusion", "-mass"]),
        ("nih", {"No Finding": 1, "Effusion": 0, "Mass": 0}, NORMAL),
        ("brax", {"No Finding": None, "Edema": -1, "Mass": None, "Fracture": 1}, ["?edema", "+fracture"]),
        ("brax", {"No Finding": 1.0, "Edema": np.nan, "Support Devices": 0.0}, NORMAL),
        ("chestdr", {"nodule": 0, "TB": 0, "fracture_old": 1}, ["-nodule", "-tuberculosis", "+old fracture"]),
        ("chestdr", {"No Finding": 1, "nodule": 0}, ["-nodule"]),
        ("vindr_cxr", {"Edema": 0, "COPD": 0, "No finding": 1}, NORMAL),
        # Where readers dispute that nothing was found, their findings are told.
        ("vindr_cxr", {"COPD": 1, "Edema": 0, "No finding": 1}, ["+chronic obstructive pulmonary disease"]),
        ("vindr_pcxr", {"No finding": 1, "Brocho-pneumonia": 0}, NORMAL),
        ("vindr_pcxr", {"No finding": 0, "Brocho-pneumonia": 0, "Pneumonia": 1}, ["-bronchopneumonia", "+pneumonia"]),
        ("vindr_pcxr", {"No finding": None, "CPAM": None}, []),
    ],
)
def test_the_special_rules_of_each_source_are_told(source, labels, told):
    report = template_report(labels, "a/1", 1, DATASETS[source].templates)
    assert [read_back(text) for text in sentences(report) if text] == told


def read_back(sentence):
    """``+mass``, ``-mass``, ``?mass`` or ``normal``: what a sentence says, by the templates in their file."""
    words = yaml.safe_load(Path(pseudo_reports.__file__).with_suffix(".yaml").read_text())
    if sentence.lower() in words["no_finding_sentences"]:
        return "normal"
    signs = {"present": "+", "absent": "-", "uncertain": "?"}
    pairs = [(template, signs[state]) for state, templates in words["templates"].items() for template in templates]
    for template, sign in sorted(pairs, key=lambda pair: -len(pair[0])):
        if found := re.fullmatch(re.escape(template).replace(r"\{finding\}", "(.+)"), sentence, re.IGNORECASE):
            return sign + found[1].lower()
    raise AssertionError(sentence)


def test_a_display_name_stands_for_the_finding_to_the_letter():
    rules = TemplateRules(display={"Pleural Effusion": "Effusion"})
    for image in range(30):
        own = template_report({"Effusion": 1, "Mass": 0}, f"nih/{image}", 1)
        assert template_report({"Pleural Effusion": 1, "Mass": 0}, f"nih/{image}", 1, rules) == own


def test_absent_findings_are_left_out_at_random_and_nothing_else_is():
    labels = {"Mass": 1, **{f"Finding{number}": 0 for number in range(26)}}
    full, left = sentences(template_report(labels, "a/1", 1)), []
    for image in range(60):
        told = sentences(template_report(labels, f"a/{image}", 1, DATASETS["vindr_cxr"].templates))
        assert len(told) == len(full) - 7
        assert "mass" in told[0].lower()
        names = [re.search(r"finding\d+", text)[0] for text in map(str.lower, told[1:])]
        assert names == sorted(names, key=lambda name: int(name[7:]))
        left += set(map(str.lower, labels)) - {"mass", *names}
    assert len(set(left)) == 26  # each is left out somewhere: 60 * 7 / 26 is 16 times each
    both = TemplateRules(absent_left_out=7, word_budget=30)
    assert len(template_report(labels, "a/1", 1, both).split()) <= 30
