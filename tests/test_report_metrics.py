"""Metrics of written reports against hand-computed numbers, sacrebleu, rouge-score and scikit-learn."""

import random

import numpy as np
import pandas as pd
import pytest
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu.metrics import BLEU, CHRF
from sklearn.metrics import f1_score
from test_report_controls import label

from chexstudy.errors import StudyError
from chexstudy.evaluation.report_generation.controls import flip_polarity
from chexstudy.evaluation.report_generation.metrics import (
    FIVE,
    FOURTEEN,
    OVERLAPS,
    SIGNATURES,
    VARIETIES,
    count_overlaps,
    measure_labels,
    measure_reports,
    measure_texts,
    measure_variety,
    score_overlaps,
    sign_metrics,
)
from chexstudy.results import validate_results
from chexstudy.statistics.bootstrap import bootstrap_patients

_WORDS = (
    "no",
    "left",
    "effusion",
    "edema",
    "heart",
    "is",
    "Normal",
    ".",
    ",",
    "clear",
    "x-ray",
    "5",
    "p.m.",
    "élan",
    "肺",
)


def write_texts(count, longest=14, seed=0):
    drawn = random.Random(seed)
    return [" ".join(drawn.choices(_WORDS, k=drawn.randint(0, longest))) for _ in range(count)]


def score(hypotheses, references):
    return dict(zip(OVERLAPS, score_overlaps(count_overlaps(hypotheses, references).sum(axis=0)), strict=True))


def ask_packages(hypotheses, references):
    """The same from sacrebleu and rouge-score themselves."""
    corpus = [
        metric.corpus_score(list(hypotheses), [list(references)]).score / 100
        for metric in (BLEU(max_ngram_order=1), BLEU(), CHRF())
    ]
    rouge = RougeScorer(["rougeL"])
    pairs = zip(hypotheses, references, strict=True)
    return [*corpus, np.mean([rouge.score(told, said)["rougeL"].fmeasure for said, told in pairs])]


def test_three_sentences_by_hand():
    said = ["no edema seen today", "small left effusion", "clear"]
    told = ["no edema seen today", "small effusion", "lungs are clear"]
    # Of 1 to 4 words 7 of 8, 3 of 5, 2 of 3 and 1 of 1 are right; 8 words are said in place of 9.
    brevity = np.exp(1 - 9 / 8)
    by_hand = {
        "bleu_1": brevity * 7 / 8,
        "bleu_4": brevity * (7 / 8 * 3 / 5 * 2 / 3) ** (1 / 4),
        "rouge_l": (1 + 2 * 2 / 5 + 2 * 1 / 4) / 3,
        "length_ratio": 8 / 9,
    }
    measured = score(said, told)
    assert {name: measured[name] for name in by_hand} == pytest.approx(by_hand)
    # chrF of "ab" against "abc": of 1 and 2 letters 2 of 2 and 1 of 1 are right, of those told 2 of 3 and 1 of 2.
    precision, recall = 1, (2 / 3 + 1 / 2) / 2
    assert score(["ab"], ["abc"])["chrf"] == pytest.approx(5 * precision * recall / (4 * precision + recall))


def test_a_report_against_itself_is_right_and_an_empty_one_wrong():
    told = ["No edema.", "Small left pleural effusion.", "Heart is normal in size."]
    assert score(told, told) == dict.fromkeys(OVERLAPS, 1)
    assert score([""] * 3, told) == dict.fromkeys(OVERLAPS, 0)
    assert score(["."], ["肺"])["rouge_l"] == 0


@pytest.mark.parametrize("longest", [3, 14, 80])
def test_corpora_and_single_pairs_are_scored_as_by_the_packages(longest):
    said = [*write_texts(120, longest), "", ".", "a", "No edema.", "x" * 300]
    told = [text or "." for text in [*write_texts(120, longest, seed=1), "No edema.", "a", "b c", "Edema.", "x"]]
    assert list(score(said, told).values())[:4] == pytest.approx(ask_packages(said, told))
    for pair in zip(said, told, strict=True):
        assert list(score(*([one] for one in pair)).values())[:4] == pytest.approx(
            ask_packages(*([one] for one in pair))
        )


def test_a_resample_of_patients_is_scored_as_the_corpus_it_is():
    said, told = write_texts(40), [text or "." for text in write_texts(40, seed=1)]
    weights = bootstrap_patients([number // 3 for number in range(40)], 20, np.random.default_rng(0))
    measured = measure_texts([said, told], told, weights)
    for drawn, replicates in zip(weights, measured.replicates[0], strict=True):
        of_draw = [list(np.repeat(texts, drawn)) for texts in (said, told)]
        assert replicates[:4, 0] == pytest.approx(ask_packages(*of_draw))
    assert (measured.values[1, : len(OVERLAPS)] == 1).all()
    assert np.isnan(measured.replicates[:, :, len(OVERLAPS) :]).all()  # of varieties


def test_signatures_are_those_of_sacrebleu():
    for name, metric in (("bleu_1", BLEU(max_ngram_order=1)), ("bleu_4", BLEU()), ("chrf", CHRF())):
        metric.corpus_score(["a"], [["a"]])
        assert f"|{metric.get_signature()}|" in SIGNATURES[name]


def test_variety_counts_what_is_said_more_than_once():
    varied = dict(zip(VARIETIES, measure_variety(["no edema", "no edema", "no mass", ""]), strict=True))
    assert varied == {"distinct_1": 3 / 6, "distinct_2": 2 / 3, "unique_share": 3 / 4, "empty_share": 1 / 4}


# --- findings ---------------------------------------------------------------------------------------------------------


def draw_labels(shape, seed, values=(1, 0, -1, np.nan)):
    return np.random.default_rng(seed).choice(values, size=shape, p=(0.3, 0.3, 0.1, 0.3)[: len(values)])


def rows_of(measured, **where):
    rows = pd.concat([part.of_seed(0) for part in measured])
    for column, value in where.items():
        rows = rows[rows[column] == value]
    return rows


def test_f1_is_that_of_scikit_learn_in_every_resample():
    names = [*FIVE, "Mass", "Fracture"]
    truth, said = np.nan_to_num(draw_labels((60, 7), 0)), draw_labels((60, 7), 1)
    truth[:, 6] = 0  # nowhere present: in no macro mean, yet what is said of it counts in the micro one
    weights = bootstrap_patients([number // 2 for number in range(60)], 30, np.random.default_rng(0))
    of_findings, of_groups, uncertain = measure_labels([said], truth, names, weights, "report", names)
    for drawn, single, grouped in zip(weights, of_findings.replicates[0], of_groups.replicates[0], strict=True):
        true, yes = (np.repeat(labels == 1, drawn, axis=0) for labels in (truth, said))
        assert single[0, :6] == pytest.approx(f1_score(true[:, :6], yes[:, :6], average=None))
        assert np.isnan(single[0, 6])
        assert grouped[0, 2] == pytest.approx(f1_score(true[:, :6], yes[:, :6], average="macro"))
        assert grouped[1, 2] == pytest.approx(f1_score(true, yes, average="micro"))
        assert grouped[1, 1] == pytest.approx(f1_score(true[:, :5], yes[:, :5], average="micro"))
    true, yes = (np.isin(labels, (1, -1)) for labels in (truth, said))
    assert uncertain.values[0, 0, 2] == pytest.approx(f1_score(true[:, :6], yes[:, :6], average="macro"))
    assert set(uncertain.columns.group) == {"report_uncertain_present"}
    assert of_findings.columns.positives[0] == (truth[:, 0] == 1).sum()


def test_the_best_constant_is_the_best_of_all_constants():
    truth = (np.random.default_rng(0).random((50, 5)) < [0.7, 0.5, 0.3, 0.1, 0]).astype(float)
    names, weights = list(FIVE), np.ones((1, 50), dtype=int)
    constants = [np.tile([float(bits >> place & 1) for place in range(5)], (50, 1)) for bits in range(32)]
    values = np.array([measure_labels([one], truth, names, weights, "report")[1].values[0, :, 1] for one in constants])
    beside = rows_of(measure_labels([truth], truth, names, weights, "report"), finding="chexpert_5", group="report")
    beside = beside.set_index("metric").value
    assert beside["macro_f1_of_best_constant"] == pytest.approx(values[:, 0].max())
    assert beside["micro_f1_of_best_constant"] == pytest.approx(values[:, 1].max())
    assert (beside["macro_f1"], beside["findings_said"], beside["findings_present"]) == (1, 4, 4)


def test_what_an_image_is_not_known_to_show_is_neither_right_nor_wrong():
    said = np.array([[1.0], [1], [1], [0]])
    truth = np.array([[1.0], [0], [np.nan], [np.nan]])
    (row,) = rows_of(measure_labels([said], truth, ["Mass"], np.ones((1, 4), int), "image"), metric="f1").to_dict(
        "records"
    )
    assert (row["value"], row["n"], row["positives"]) == (pytest.approx(2 / 3), 2, 1)


# --- together ---------------------------------------------------------------------------------------------------------


def make_reports(count=40):
    drawn = np.random.default_rng(0)
    parts = ("edema", "effusion", "cardiomegaly", "mass")
    return [
        " ".join(f"{'' if drawn.random() < 0.4 else 'No '}{part}.".capitalize() for part in parts) for _ in range(count)
    ]


def test_reports_give_rows_of_the_results_table_and_paired_differences():
    references = [*make_reports(), " "]
    truth = np.array([[float("No mass" not in text)] for text in references])
    weights = bootstrap_patients([f"p{number // 2}" for number in range(41)], 200, np.random.default_rng(0))
    flipped = flip_polarity(references, label, FOURTEEN)
    sides = [
        measure_reports([texts, texts], references, weights, label, ["Mass"], truth) for texts in (references, flipped)
    ]
    place = {"study": "s", "arm": "a", "data_set": "d", "exposure": "unknown", "reason": ""}
    rows = [part.each_seed((0, 1), np.random.default_rng(0)) for part in sides[0]]
    rows = sign_metrics(validate_results(pd.concat(rows).assign(task="report_generation", **place)))
    assert ((rows.signature == "") == rows.metric.isin(["prevalence", "findings_present", "empty_references"])).all()
    assert set(rows.metric[~rows.metric.str.contains("constant|prevalence|present$|empty_ref")]) == set(SIGNATURES)
    over_seeds = rows[rows.seed == -1].set_index(["metric", "finding", "group"])
    assert over_seeds.value["bleu_4", "all", ""] == 1
    assert over_seeds.n["bleu_4", "all", ""] == 40
    assert over_seeds.value["macro_f1", "chexpert_14", "report"] == over_seeds.value["f1", "Mass", "image"] == 1
    assert (rows.value[rows.metric == "empty_references"] == 1).all()
    generator = np.random.default_rng(0)
    differences = pd.concat([one.minus(other, generator) for one, other in zip(*sides, strict=True)])
    differences = validate_results(differences.assign(seed=-1, task="report_generation_difference", **place))
    chosen = differences.set_index(["metric", "finding", "group"]).loc[("micro_f1_difference", "chexpert_14", "report")]
    assert 0 < chosen.ci_low < chosen.value < chosen.ci_high < 1


def test_references_that_are_all_empty_are_told():
    with pytest.raises(StudyError, match="all reference reports are empty"):
        measure_reports([["a"] * 3], ["", " ", ""], np.ones((1, 3), int), label)
