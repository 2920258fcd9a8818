"""`chexstudy plan-labels` from the command line: answers, files, and one sentence for every mistake."""

import pandas as pd
import pytest
from learning_curves import LABELS, measure_table

from chexstudy.cli.main import main
from chexstudy.runs import Run


@pytest.fixture
def table():
    return measure_table(("Effusion", "Edema", "Mass"), ("curated", "full"), LABELS[:6])


@pytest.fixture
def curve(table, tmp_path):
    path = tmp_path / "curves.csv"
    table.to_csv(path, index=False)
    return str(path)


def test_every_finding_gets_a_sentence_and_a_row(curve, capsys):
    assert main(["plan-labels", "--target", "0.8", "--curve", curve, "--encoder", "full", "--cost", "2"]) == 0
    shown = capsys.readouterr().out
    sentences, rows = shown.split("\n\n")
    assert [line.split(":")[0] for line in sentences.splitlines()] == ["Edema", "Effusion", "Mass"]
    assert "Effusion: reached already: 0.8 needs" in sentences
    assert "Mass: unreachable" in sentences
    assert len(rows.splitlines()) == 4
    assert "cost (95 %)" in rows


def test_one_finding_of_both_encoders_written_to_a_file(curve, capsys, tmp_path):
    out = tmp_path / "plan.parquet"
    command = ["plan-labels", "--target", "0.8", "--curve", curve, "--finding", "Edema", "--at-most", "100"]
    assert main([*command, "--out", str(out)]) == 0
    assert "Edema, curated: " in capsys.readouterr().out
    plan = pd.read_parquet(out)
    assert plan.encoder.tolist() == ["curated", "full"]
    assert (plan.have == 100).all()
    assert main([*command, "--no-pool", "--out", str(tmp_path / "plan.csv")]) == 0
    alone = pd.read_csv(tmp_path / "plan.csv")
    assert (alone.plateau_high - alone.plateau_low > plan.plateau_high - plan.plateau_low).any()


def test_the_curves_of_a_study(table, home, capsys):
    Run("mine").write_table("label_budget/curves.parquet", table)
    assert main(["plan-labels", "--target", "0.8", "--study", "mine", "--finding", "Mass"]) == 0
    assert "unreachable" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--target", "1.1"], "a target AUROC of 1.1"),
        (["--target", "0.5"], "above 0.5"),
        (["--target", "0.8", "--finding", "Hernia"], "'Hernia': choose among Edema, Effusion, Mass"),
        (["--target", "0.8", "--encoder", "random"], "'random': choose among curated, full"),
        (["--target", "0.8", "--at-most", "20"], "2 numbers of labels"),
        (["--target", "0.8", "--cost", "-2"], "cannot cost"),
        (["--target", "0.8", "--out", "plan.xlsx"], "neither CSV nor parquet"),
    ],
)
def test_a_mistake_is_one_sentence(curve, capsys, options, sentence):
    assert main(["plan-labels", "--curve", curve, *options]) == 2
    error = capsys.readouterr().err
    assert sentence in error
    assert len(error.strip().splitlines()) == 1


def test_an_empty_table_is_one_sentence(table, tmp_path, capsys):
    table[:0].to_parquet(tmp_path / "bad.parquet")
    assert main(["plan-labels", "--target", "0.8", "--curve", str(tmp_path / "bad.parquet")]) == 2
    assert capsys.readouterr().err == "the table of curves holds no AUROC: every row is empty or NaN.\n"


def test_files_that_are_not_there_or_no_tables(tmp_path, home, capsys):
    assert main(["plan-labels", "--target", "0.8", "--curve", str(tmp_path / "no.parquet")]) == 2
    assert "there is no table" in capsys.readouterr().err
    (tmp_path / "text.parquet").write_text("text")
    assert main(["plan-labels", "--target", "0.8", "--curve", str(tmp_path / "text.parquet")]) == 2
    assert "cannot be read as a table" in capsys.readouterr().err
    assert main(["plan-labels", "--target", "0.8", "--study", "none"]) == 2
    assert "run 11_plan_labels first" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["plan-labels", "--target", "0.8", "--study", "none", "--curve", "x.csv"])
    assert "both say where the curves are" in capsys.readouterr().err


def test_a_curve_that_falls_is_one_sentence(tmp_path, home, capsys):
    falling = [(10 * 2**step, 0.9 - 0.05 * step + 0.01 * draw) for step in range(6) for draw in range(3)]
    pd.DataFrame(falling, columns=["n", "auroc"]).to_csv(tmp_path / "falling.csv", index=False)
    assert main(["plan-labels", "--target", "0.85", "--curve", str(tmp_path / "falling.csv")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("the curve of 'encoder' on 'finding' falls as labels are added, so how many are needed")
    assert len(error.strip().splitlines()) == 1
