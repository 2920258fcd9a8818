import numpy as np
import pandas as pd
import pytest

from chexstudy.cli.tables import check_output, write_table
from chexstudy.errors import StudyError
from chexstudy.evaluation.comparison.table import (
    describe_models,
    list_comparison,
    list_reasons,
    tabulate_models,
)
from chexstudy.evaluation.comparison.two_models import ModelScores, compare_score_tables


@pytest.fixture
def cases():
    generator = np.random.default_rng(0)
    labels = pd.DataFrame({"image_id": [f"s/{number}" for number in range(100)]})
    labels["patient_id"] = labels.image_id
    labels["Mass"] = (generator.random(100) < 0.4).astype(int)
    labels["Edema"] = 0
    shared = generator.normal(size=100)
    sides = []
    for name, strength in (("good", 4.0), ("bad", 0.5)):
        scores = strength * labels.Mass + shared + generator.normal(size=100)
        sides.append(ModelScores(name, (labels[["image_id"]].assign(Mass=scores, Edema=scores),)))
    return labels, *sides


def test_a_cell_holds_a_value_with_its_interval_and_what_is_not_to_be_had_is_a_dash(cases):
    labels, first, second = cases
    comparison = compare_score_tables(first, second, labels, resamples=300)
    table = tabulate_models(comparison)
    assert " ".join(table.columns) == "finding n positives patients good bad difference p p (Holm)"
    mass, edema, macro = (table.set_index("finding").loc[name] for name in ("Mass", "Edema", "macro"))
    values = comparison.table.set_index("finding").loc["Mass"]
    assert mass.good == f"{values['first']:.3f} ({values.first_low:.3f} to {values.first_high:.3f})"
    assert mass.difference == f"{values.difference:+.3f} ({values.ci_low:+.3f} to {values.ci_high:+.3f})"
    assert (mass.p, mass["p (Holm)"], mass.n, mass.positives) == ("< 0.001", "< 0.001", 100, str(labels.Mass.sum()))
    assert edema[["good", "bad", "difference", "p", "p (Holm)"]].tolist() == ["-"] * 5
    assert (macro.positives, macro["p (Holm)"]) == ("", "-")
    same = tabulate_models(compare_score_tables(first, ModelScores("good", second.tables), labels, resamples=100))
    assert {"good (A)", "good (B)"} <= set(same.columns)


def test_the_words_name_n_seeds_interval_test_and_what_differs(cases):
    labels, first, second = cases
    words = describe_models(compare_score_tables(first, second, labels, resamples=300))
    assert words.startswith("AUROC of good minus bad, mean of 1 findings: +0.")
    for part in (
        "100 images of 100 patients, 1 seed a side",
        "95 % intervals by paired bootstrap of patients (300 resamples)",
        "p DeLong's, of means from the bootstrap",
        "after Holm's correction over 1 findings 1 differs at 0.05: Mass.",
    ):
        assert part in words
    labels["patient_id"] = np.arange(100) // 2
    labels["split"] = "validate"
    sides = [ModelScores(side.name, side.tables * 2) for side in (first, second)]
    words = describe_models(compare_score_tables(*sides, labels, metric="auprc", resamples=100))
    assert words.startswith("average precision of good")
    assert "50 patients, 2 seeds a side; 95 % intervals by paired bootstrap of patients and seeds" in words
    assert words.endswith("Images of validate are among them: models may have seen these.")
    words = describe_models(compare_score_tables(first, second, labels, resamples=100))
    assert "p DeLong's for patients with several images" in words
    exchanged = {"test": "permutation", "permutations": 99}
    words = describe_models(compare_score_tables(first, second, labels, resamples=100, **exchanged))
    assert "p by exchange of models within patients, 99 permutations" in words


def test_reasons_are_lines(cases):
    labels, first, second = cases
    assert list_reasons(compare_score_tables(first, second, labels, resamples=100)) == [
        "not evaluable (no positives): Edema"
    ]
    rare = labels.assign(Edema=(labels.index < 3).astype(int))
    assert list_reasons(compare_score_tables(first, second, rare, resamples=100)) == [
        "no interval or p value (fewer than 5 patients of a class): Edema"
    ]


@pytest.mark.parametrize("name", ["table.csv", "table.parquet"])
def test_the_table_is_written_with_what_was_compared(cases, tmp_path, monkeypatch, name):
    monkeypatch.setenv("CHEXSTUDY_CWD", str(tmp_path))
    comparison = compare_score_tables(*cases[1:], cases[0], resamples=100)
    write_table(list_comparison(comparison), check_output(name))
    read = (pd.read_csv if name.endswith("csv") else pd.read_parquet)(tmp_path / name)
    np.testing.assert_array_equal(read.difference, comparison.table.difference)
    how = read.loc[0, ["model_first", "model_second", "metric", "test", "images"]]
    assert how.tolist() == ["good", "bad", "auroc", "delong", 100]
    with pytest.raises(StudyError, match=r"table.txt is neither CSV nor parquet"):
        check_output("table.txt")
