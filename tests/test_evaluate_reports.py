"""`chexstudy evaluate reports`: anybody's reports from two tables, and whatever these may hold."""

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from chexstudy.cli.main import main
from chexstudy.evaluation.report_generation.files import read_pairs, score_pairs

COUNT = 40
_PARTS = ("pulmonary edema", "pleural effusion", "pneumothorax", "focal consolidation")


@pytest.fixture
def files(home, monkeypatch):
    """Tables of 40 references of 20 patients, of reports that are right about the first half, and of labels."""
    monkeypatch.setenv("CHEXSTUDY_CWD", str(home))
    monkeypatch.chdir(home)
    present = np.random.default_rng(0).random((COUNT, len(_PARTS))) < 0.5
    told = [
        " ".join(f"There is {'a' if yes else 'no'} {part}." for yes, part in zip(row, _PARTS, strict=True))
        for row in present
    ]
    ids = [f"s/{number}" for number in range(COUNT)]
    table = pd.DataFrame({"image_id": ids, "patient_id": np.arange(COUNT) // 2, "report": told})
    table.to_csv("references.csv", index=False)
    half = COUNT // 2
    table[["image_id"]].assign(report=told[:half] + told[half:][::-1]).to_csv("written.csv", index=False)
    labels = present[:, :2].astype(int)
    table[["image_id"]].assign(Edema=labels[:, 0], **{"Pleural Effusion": labels[:, 1]}).to_csv(
        "labels.csv", index=False
    )
    return home


def change(name, as_name=None, **cells):
    """Write a table again with other cells, a column as a whole or some of its rows."""
    table = pd.read_csv(name, dtype=str)
    for column, new in cells.items():
        for row, cell in new.items() if isinstance(new, dict) else enumerate(new):
            table.loc[row, column] = cell
    table.to_csv(as_name or name, index=False)
    return table


def score(**options):
    return score_pairs(read_pairs("written.csv", "references.csv", **options), 200, 0)


def value(rows, metric, variant="reports", finding="all", group="", reference=""):
    place = {"metric": metric, "variant": variant, "finding": finding, "group": group, "reference": reference}
    (row,) = rows[(rows[list(place)] == pd.Series(place)).all(axis=1)].to_dict("records")
    return row


def test_reports_are_scored_beside_controls_with_intervals_and_signatures(files, capsys):
    command = ["evaluate", "reports", "written.csv", "references.csv", "--labels", "labels.csv", "--resamples", "200"]
    assert main([*command, "--out", "scores.csv"]) == 0
    shown = capsys.readouterr().out
    assert shown.split()[:5] == ["metric", "findings", "against", "reports", "commonest"]
    assert "40 reports of 20 patients; 95 % intervals by bootstrap of patients (200 resamples)." in shown
    assert "with one finding turned into its opposite, where one could be (100%): what" in shown
    assert "BLEU-4: sacrebleu|nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:" in shown
    assert "There is" not in shown + (files / "scores.csv").read_text()  # no text of a report
    rows = pd.read_csv("scores.csv", keep_default_na=False, na_values={"value": "", "ci_low": "", "ci_high": ""})
    written, itself, turned = (value(rows, "bleu_4", variant) for variant in ("reports", "itself", "turned"))
    assert written["ci_low"] < written["value"] < written["ci_high"] < itself["value"] == 1
    assert 0.7 < turned["value"] < 1
    for group in ("report", "image"):
        found = [value(rows, "micro_f1", who, "all", group)["value"] for who in ("commonest", "reports", "itself")]
        assert found == sorted(set(found))
        assert found[-1] == 1
    assert value(rows, "micro_f1", "turned", "chexpert_14", "report")["value"] < 0.9
    assert value(rows, "micro_f1_difference", finding="chexpert_14", group="report", reference="random")["ci_low"] > 0
    assert main(command) == 0
    assert capsys.readouterr().out == shown.replace(f"written to {files / 'scores.csv'}\n", "")


def test_order_and_names_of_columns_do_not_matter(files):
    rows = score()
    change("written.csv").sample(frac=1, random_state=0).rename(
        columns={"image_id": "Image ID", "report": "prediction"}
    ).to_csv("written.csv", index=False)
    pd.testing.assert_frame_equal(score(), rows)
    for name in ("written.csv", "references.csv"):
        change(name).rename(columns={"image_id": "study_id", "Image ID": "study_id", "report": "Findings"}).to_csv(
            name, index=False
        )
    pd.testing.assert_frame_equal(score(), rows)


def test_images_of_one_patient_are_drawn_together(files):
    apart = change("references.csv").drop(columns="patient_id")
    together = value(score(), "rouge_l")
    apart.to_csv("references.csv", index=False)
    alone = value(score(), "rouge_l")
    assert together["value"] == alone["value"]
    assert together["ci_low"] != alone["ci_low"]
    assert (
        "No patient_id in references.csv: each report counts as another patient's."
        in read_pairs("written.csv", "references.csv").notes
    )


def test_sections_and_comparisons_are_as_asked(files):
    told = change("references.csv").report
    sectioned = "FINDINGS: " + told + " Heart is unchanged.\nIMPRESSION: Stable cardiomegaly."
    change("references.csv", report=sectioned)
    assert value(score(strip_comparisons=True), "bleu_4") == value(score(strip_comparisons=True), "bleu_4")
    change("written.csv", report=told)
    assert value(score(strip_comparisons=True), "bleu_4")["value"] == 1
    assert value(score(), "bleu_4")["value"] < 1
    both = read_pairs("written.csv", "references.csv", sections="findings+impression")
    assert both.references[0].endswith("Heart is unchanged. Stable cardiomegaly.")
    assert "80 of 240 sentences of the references compare with an earlier study." in both.notes[0]


@pytest.mark.parametrize(
    ("name", "cells", "note", "n", "understood"),
    [
        ("written.csv", {0: "", 1: "nan", 2: "___"}, "3 reports have no such text and count as wrong.", 40, 40),
        ("references.csv", {0: "", 1: None, 2: " \n "}, "3 references have no such text and were left out.", 37, 37),
        ("references.csv", {5: "Kein Pleuraerguss, kein Pneumothorax."}, None, 40, 39),
        ("references.csv", {5: "无胸腔积液。", 6: "Нет выпота."}, None, 40, 38),
        ("written.csv", {5: "Épanchement pleural gauche de faible abondance."}, None, 40, 40),
        ("written.csv", {0: "No pleural effusion. " * 3400}, None, 40, 40),
        ("references.csv", {0: "No pleural effusion. " * 3400}, None, 40, 40),
        ("written.csv", {0: "No \x07pleural\x1b[31m\u200b effusion.\r\n\t\x0b", 1: "\ufeff\x01"}, None, 40, 40),
    ],
    ids=[
        "empty reports",
        "empty references",
        "german",
        "other letters",
        "french",
        "long report",
        "long reference",
        "signs",
    ],
)
def test_odd_texts_are_scored_or_left_out_and_counted(files, capsys, name, cells, note, n, understood):
    change(name, report=cells)
    command = ["evaluate", "reports", "written.csv", "references.csv", "--resamples", "100", "--out", "scores.csv"]
    assert main(command) == 0
    shown = capsys.readouterr().out
    assert note is None or note in shown
    assert ("say nothing that the rules understand" in shown) == (understood < n)
    rows = pd.read_csv("scores.csv", keep_default_na=False, na_values={"value": "", "ci_low": "", "ci_high": ""})
    assert value(rows, "bleu_4")["n"] == n
    assert value(rows, "micro_f1", finding="chexpert_14", group="report")["n"] == understood
    assert value(rows, "bleu_4", "itself")["value"] == value(rows, "chrf", "itself")["value"] == 1
    assert rows.value[rows.metric.isin(["bleu_1", "chrf", "rouge_l"])].between(0, 1).all()


def _leave_out(rows):
    change("written.csv").drop(index=rows).to_csv("written.csv", index=False)


def _write_latin():
    change("written.csv", report={0: "Épanchement."}).to_csv("written.csv", index=False, encoding="latin-1")


def _write_image():
    Image.fromarray(np.zeros((8, 8), np.uint8)).save("written.csv", "PNG")


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (
            lambda: _leave_out([1, 2]),
            "written.csv has 38 reports and references.csv 40, 38 of them of one image: write",
        ),
        (
            lambda: change("written.csv", image_id={1: "s/0"}),
            "written.csv hold an image a second time in line 3 (1 rows): give",
        ),
        (
            lambda: change("written.csv", image_id={1: None}),
            "written.csv have no image_id in line 3 (1 rows): give every",
        ),
        (lambda: change("references.csv", image_id={1: "s/0"}), "references.csv hold an image a second time in line 3"),
        (lambda: change("references.csv", patient_id={1: ""}), "references.csv has no patient_id for 1 reports: name"),
        (
            lambda: change("written.csv", image_id=[f"t/{number}" for number in range(COUNT)]),
            "share no image (their ids are written as '…/0' and '…/0'): write them alike.",
        ),
        (lambda: change("references.csv", report=[""] * COUNT), "all reference reports are empty: choose"),
        (
            lambda: change("written.csv").drop(columns="report").to_csv("written.csv"),
            "written.csv lacks the column 'report'; it",
        ),
        (
            lambda: change("written.csv").drop(columns="image_id").to_csv("written.csv"),
            "written.csv lacks the column 'image_id'",
        ),
        (
            lambda: change("written.csv").rename(columns={"image_id": "study_id"}).to_csv("written.csv"),
            "written.csv and references.csv tell reports by different ids: give both an image_id.",
        ),
        (lambda: change("references.csv", patient_id=["p"] * COUNT), "reports of other patients need at least two"),
        (_write_latin, "written.csv is not UTF-8 text: save it again as CSV in UTF-8 or as Parquet (see line 2)."),
        (_write_image, "written.csv is not UTF-8 text: save it again as CSV in UTF-8 or as Parquet (see line 1)."),
        (
            lambda: change("labels.csv", image_id=[f"t/{number}" for number in range(COUNT)]),
            "labels.csv labels no finding",
        ),
        (
            lambda: change("labels.csv", Edema={0: "2"}),
            "the label 2 of 'Edema' is none of 1, 0, -1 (uncertain) or empty",
        ),
    ],
    ids=lambda value: "" if callable(value) else value[:40],
)
def test_tables_that_cannot_be_scored_are_refused_in_one_sentence(files, capsys, spoil, sentence):
    spoil()
    assert (
        main(["evaluate", "reports", "written.csv", "references.csv", "--labels", "labels.csv", "--resamples", "100"])
        == 2
    )
    shown = capsys.readouterr()
    assert sentence in shown.err
    assert shown.err.count("\n") == 1
    assert shown.out == ""
    assert "There is" not in shown.err


def test_reports_of_both_files_can_be_scored_alone(files, capsys):
    _leave_out([1, 2])
    assert main(["evaluate", "reports", "written.csv", "references.csv", "--shared-only", "--resamples", "100"]) == 0
    shown = capsys.readouterr().out
    assert "38 reports of 20 patients" in shown or "38 reports of 19 patients" in shown
    assert "2 that only one of the files holds were left out." in shown


def test_bert_score_stands_beside_where_an_encoder_is_named(files, capsys):
    command = ["evaluate", "reports", "written.csv", "references.csv", "--resamples", "100", "--out", "scores.csv"]
    assert main([*command, "--bert", "upstream-text@1"]) == 0
    shown = capsys.readouterr().out
    assert "CheXbert, RadGraph and GREEN are not measured" in shown
    rows = pd.read_csv("scores.csv", keep_default_na=False, na_values={"value": "", "ci_low": "", "ci_high": ""})
    written, itself = (value(rows, "bert_score", variant) for variant in ("reports", "itself"))
    assert written["ci_low"] < written["value"] < itself["value"] == pytest.approx(1)
    assert "model:upstream-text|" in written["signature"]
