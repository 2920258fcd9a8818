from itertools import combinations
from pathlib import Path

import pandas as pd
import pytest
import yaml

from chexstudy.cohort import finding_names
from chexstudy.cohort.adapters import DATASETS, tabulate_crosswalk
from chexstudy.cohort.adapters.column_mapping import ColumnMapping
from chexstudy.cohort.finding_names import canonical_name
from chexstudy.cohort.table import NO_FINDING


def test_no_spelling_stands_under_two_names():
    # Read as pairs, for a key that stands twice would hide its first line.
    text = Path(finding_names.__file__).with_suffix(".yaml").read_text()
    lines = [(name.value, [one.value for one in others.value]) for name, others in yaml.compose(text).value]
    assert len(lines) > 50
    for name, others in lines:
        assert {canonical_name(spelling) for spelling in (name, *others)} == {name}
    spellings = [one.lower() for name, others in lines for one in (name, *others)]
    assert len(spellings) == len(set(spellings))


@pytest.mark.parametrize(
    ("spellings", "name"),
    [
        ("No finding|No Findings|Normal|NORMAL|health", "No Finding"),
        ("Airspace Opacity|opacity|Lung opacity", "Lung Opacity"),
        ("Effusion|pleural_effusion|Pleural effusion|PleuralEffusion", "Pleural Effusion"),
        ("Pleural_Thickening|thickened_pleura|Pleural thickening", "Pleural Thickening"),
        ("Infiltrate|infiltrates", "Infiltration"),
        ("pulmonary_edema|Pulmonary edema", "Edema"),
        ("Pulmonary fibrosis|fibrosis", "Fibrosis"),
        ("TB|tb", "Tuberculosis"),
        ("COVID 19|Pneumonia/Viral/COVID-19", "COVID-19"),
        ("aortic_calcification|Calcification of the Aorta", "Calcification of the Aorta"),
        ("tortuous_aorta", "Tortuous Aorta"),
        ("fracture_old", "Old Fracture"),
        ("Other disease|Other diseases", "Other Disease"),
        ("Brocho-pneumonia", "Bronchopneumonia"),
        ("Bone island", "Bone island"),
    ],
)
def test_spellings_of_public_data_sets_get_one_name(spellings, name):
    assert {canonical_name(spelling) for spelling in spellings.split("|")} == {name}


@pytest.mark.parametrize(
    "alike",
    [
        ("Nodule/Mass", "Nodule", "Mass", "Lung Lesion", "Lung tumor", "Other lesion", "mediastinal mass"),
        ("Infiltration", "Lung Opacity", "Consolidation", "Pneumonia"),
        ("Fracture", "Rib fracture", "Clavicle fracture", "fracture_old"),
        ("Atelectasis", "Lobar Atelectasis", "Round Atelectasis", "laminar atelectasis"),
        ("Pneumonia", "COVID-19", "Brocho-pneumonia", "Pleuro-pneumonia", "atypical pneumonia", "Tuberculosis"),
        ("Hernia", "Diagphramatic hernia"),
        ("Emphysema", "Congenital emphysema", "Subcutaneous Emphysema", "COPD"),
        ("Calcification", "aortic_calcification", "Aortic enlargement", "Tortuous Aorta"),
        ("Pneumothorax", "Hydropneumothorax"),
        ("Pleural Effusion", "Pleural Thickening", "Pleural Other"),
        ("Cardiomegaly", "Enlarged Cardiomediastinum", "Enlarged PA", "Hilar Enlargement"),
    ],
)
def test_findings_that_look_alike_are_never_merged(alike):
    assert [pair for pair in combinations(alike, 2) if canonical_name(pair[0]) == canonical_name(pair[1])] == []


def test_the_crosswalk_says_what_each_source_calls_a_finding():
    cohort = pd.DataFrame(
        {
            "source": ["folder", "nih", "nih"],
            "Mass": [1, None, None],
            "Pleural Effusion": [None, 1, 0],
            "Edema": [0, -1, None],
            "Hernia": [None, None, None],
        }
    )
    table = tabulate_crosswalk(cohort)
    assert table.columns.tolist() == ["folder", "nih"]
    assert table.T.to_dict("list") == {
        "Edema": ["Edema", "Edema"],
        "Mass": ["Mass", ""],
        "Pleural Effusion": ["", "Effusion"],
    }
    assert table.index[0] == "Edema"


@pytest.mark.parametrize("source", DATASETS)
def test_each_data_set_names_each_finding_once_and_as_english(source):
    own = list(ColumnMapping(columns=DATASETS[source].columns).findings())
    names = [canonical_name(name) for name in own]
    assert len(names) == len(set(names))
    if DATASETS[source].templates:
        told = [DATASETS[source].templates.display.get(name, name) for name in own]
        assert not any("_" in name for name in told)
        # The label that no finding is present is no finding to be told.
        assert [name == NO_FINDING for name in told] == [name == NO_FINDING for name in names]
