"""Cases of report generation: which images, which text of their reports, why others are left out, and what was asked.

Headings of an indication lie in ``cases.yaml``.
"""

import re
from collections.abc import Sequence
from dataclasses import replace

import pandas as pd

from chexstudy.cohort.reports import SECTION_HEADINGS, training_text
from chexstudy.cohort.splits import TEST_SPLITS, thin_splits
from chexstudy.cohort.table import SPLITS
from chexstudy.evaluation.context import Evaluation
from chexstudy.evaluation.report_generation.labeler import can_label, is_foreign
from chexstudy.evaluation.report_generation.variants import prepare_texts
from chexstudy.inputs.yaml_files import read_data_beside

NO_REPORT, NO_SECTION, LATERAL, FOREIGN = "no report", "no such section", "lateral view", "not in English"
STRIPPED = "nothing but comparisons"
_HEADINGS = sorted((re.escape(name) for names in SECTION_HEADINGS.values() for name in names), key=len, reverse=True)
_INDICATION = re.compile(
    rf"(?:^|(?<=[.!?])\s+)(?:{'|'.join(read_data_beside(__file__)['indications'])})\s*:(?P<told>.*?)"
    rf"(?=\n\s*\n|(?:^|[.!?]\s+|\s(?=[A-Z]))(?:{'|'.join(_HEADINGS)})\s*:|\Z)",
    re.IGNORECASE | re.MULTILINE | re.DOTALL,
)


def read_indication(report: str) -> str:
    """Why the image was taken, in one line, as far as the report says so under a heading; else empty."""
    found = _INDICATION.search(report)
    return " ".join(found["told"].split()) if found else ""


def explain_unused(rows: pd.DataFrame, texts: Sequence[str], told: Sequence[str]) -> list[str]:
    """Why each row of a cohort is no case, in words, empty where it is one.

    ``texts`` are those of its sections, ``told`` what is left of them where comparisons are stripped.
    """
    reasons = []
    for view, report, text, kept in zip(rows["view"], rows.report, texts, told, strict=True):
        tests = {
            NO_REPORT: not training_text(report),
            LATERAL: view == "lateral",
            NO_SECTION: not text,
            FOREIGN: is_foreign(text),
            STRIPPED: not kept,
        }
        reasons.append(next((reason for reason, holds in tests.items() if holds), ""))
    return reasons


def choose_cases(
    evaluation: Evaluation,
    sections: str = "findings",
    strip_comparisons: bool = False,
    train_images: int = 0,
    test_images: int = 0,
) -> tuple[Evaluation, pd.DataFrame]:
    """The images that reports are written of, and how many others there are, and why.

    Args:
        sections, strip_comparisons: as `prepare_texts` takes them.
        train_images, test_images: at most so many of training, and of each test set, of whole patients; 0 is all.
            Fewer are part of more.

    Returns:
        The evaluation of these images, and a row a data set and reason: ``data_set, reason, images, of``. If there is
        nothing to learn from, or to judge by, a line says so and there is no image.
    """
    cohort = evaluation.cohort
    reports, named = cohort.report.tolist(), cohort.source + "/" + cohort.split
    texts = prepare_texts(reports, sections)[0]
    kept = prepare_texts(reports, sections, True)[0] if strip_comparisons else texts
    reasons = pd.Series(explain_unused(cohort, texts, kept), cohort.index, dtype=object)
    usable = cohort[reasons == ""]
    counts = pd.DataFrame({"data_set": named, "reason": reasons})[reasons != ""].value_counts(sort=False)
    counts = counts.rename("images").reset_index()
    counts["of"] = counts.data_set.map(named.value_counts())
    chosen = thin_splits(
        usable, dict.fromkeys(SPLITS, train_images) | dict.fromkeys(TEST_SPLITS, test_images), evaluation.seed
    )
    if obstacle := _explain_none(chosen, counts):
        print(f"No reports are written: {obstacle}.")
        chosen = chosen.iloc[:0]
    return replace(evaluation, cohort=chosen), counts


def describe_cases(evaluation: Evaluation, sections: str = "findings") -> pd.DataFrame:
    """A row a data set: images, shares of texts written by templates and of repeated ones, and what compares.

    ``compares`` is the share of sentences that compare with an earlier study, before any is stripped.
    """
    rows = []
    for name, own in evaluation.cohort.groupby(evaluation.cohort.source + "/" + evaluation.cohort.split):
        texts, met = prepare_texts(own.report, sections)
        repeated = pd.Series(texts).duplicated(keep=False).mean()
        told = (own.report_origin == "template").mean(), repeated, met["comparisons"] / max(1, met["sentences"])
        rows.append((name, len(own), own.patient_id.nunique(), *told))
    return pd.DataFrame(rows, columns=["data_set", "images", "patients", "by_template", "repeated", "compares"])


def _explain_none(chosen: pd.DataFrame, left_out: pd.DataFrame) -> str:
    """Why there is nothing to learn from, or nothing to judge by, as a sentence; empty if there is."""
    has = set(chosen.split)
    lacks = "training" if "train" not in has else "test" if not has & set(TEST_SPLITS) else ""
    counts = left_out.groupby("reason").images.sum()
    told = "; ".join(f"{reason}: {count:,}" for reason, count in counts.items())
    return f"no {lacks} image has a text to write ({told})" if lacks else ""


def list_labelled(evaluation: Evaluation) -> list[str]:
    """The cohort's findings that the labeler reads from a text."""
    return [finding for finding in evaluation.findings if can_label(finding)]
