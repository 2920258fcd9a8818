"""Which text is retrieved, and what identical texts count as: choices said, listed and measured."""

import numpy as np
import pandas as pd

from chexstudy.evaluation.context import Evaluation
from chexstudy.evaluation.image_text.retrieval_protocols import (
    choose_texts,
    list_text_choices,
    measure_retrieval_choices,
    tabulate_retrieval_choices,
)

BOTH = "FINDINGS: Mass on the left. IMPRESSION: Likely cancer."
ONE = "IMPRESSION: Normal."
PLAIN = "Heart size normal."


def test_texts_are_made_of_the_sections_chosen():
    reports = [BOTH, ONE, PLAIN]
    assert choose_texts(reports, "findings, impression") == [
        "Mass on the left. Likely cancer.", "Normal.", "Heart size normal.",
    ]  # fmt: skip
    assert choose_texts(reports, "impression, findings")[0] == "Likely cancer. Mass on the left."
    assert choose_texts(reports, "findings") == ["Mass on the left.", "", "Heart size normal."]
    assert choose_texts(reports, "impression") == ["Likely cancer.", "Normal.", ""]


def test_only_choices_that_change_a_text_are_measured():
    assert list_text_choices([PLAIN, PLAIN]) == ["findings, impression"]
    assert list_text_choices([ONE, PLAIN]) == ["findings, impression", "findings", "impression"]
    assert list_text_choices([BOTH]) == ["findings, impression", "impression, findings", "findings", "impression"]


class Arm:
    """Embeds at random; ranks need no more."""

    name, seed, evaluation = "full", 0, Evaluation(None, None, None, resamples=10)

    def project(self, rows):
        return np.random.default_rng(0).normal(size=(len(rows), 8))

    def encode_texts(self, texts):
        return np.stack([np.random.default_rng(len(text)).normal(size=8) for text in texts])


def test_every_choice_is_measured_under_every_policy():
    reports = [f"FINDINGS: Mass {number % 5}. IMPRESSION: Mass {number % 3}." for number in range(12)]
    rows = measure_retrieval_choices(Arm(), pd.DataFrame({"report": reports, "patient_id": range(12)}))
    assert len(rows) == 4 * 3 * 2 * 10
    assert not rows.duplicated(["metric", "setting", "variant", "group"]).any()
    table = tabulate_retrieval_choices(rows)
    assert len(table) == 2 * 4 * 3
    assert table.loc[("text_to_image", "impression", "collapse"), "queries"] == 3
    assert table.loc[("text_to_image", "impression", "strict"), "queries"] == 12
    # The right answers of a stricter policy are among those of a looser one.
    strict, any_match = (table.xs(policy, level="identical texts")["recall@5"] for policy in ("strict", "any_match"))
    assert (strict <= any_match + 1e-12).all()
