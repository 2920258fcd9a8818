"""Labels read from reports, against sentences that a radiologist would read in one way."""

from pathlib import Path

import numpy as np
import pytest
import yaml

from chexstudy.evaluation.report_generation.labeler import label_reports

CHEXPERT = [
    *("No Finding", "Enlarged Cardiomediastinum", "Cardiomegaly", "Lung Opacity", "Lung Lesion", "Edema"),
    *("Consolidation", "Pneumonia", "Atelectasis", "Pneumothorax", "Pleural Effusion", "Pleural Other", "Fracture"),
    "Support Devices",
]
OTHERS = [
    *("Granuloma", "Nodule", "Emphysema", "Scoliosis", "Mass", "Pleural Thickening", "Fibrosis", "Rib Fracture"),
    *("Hilar Enlargement", "Tuberculosis", "Aortic Enlargement", "Cavity", "Bronchiectasis", "Pneumoperitoneum"),
    *("Hernia", "Infiltration"),
]
_SENTENCES = yaml.safe_load((Path(__file__).parent / "report_sentences.yaml").read_text(encoding="utf-8"))


def read(text, findings=(*CHEXPERT, *OTHERS)):
    labels = label_reports([text], findings)[0]
    return {finding: int(label) for finding, label in zip(findings, labels, strict=True) if not np.isnan(label)}


@pytest.mark.parametrize(
    ("text", "told"), [(text, told) for group in _SENTENCES.values() for text, told in group.items()]
)
def test_a_sentence_is_read_as_a_radiologist_reads_it(text, told):
    said = read(text)
    free = {"No Finding", "Infiltration"} - told.keys()
    assert {name: label for name, label in said.items() if name in told or (label and name not in free)} == told
