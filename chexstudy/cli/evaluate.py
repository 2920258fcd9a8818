"""Verbs that measure: evaluate, evaluate compare."""

from argparse import Namespace

from chexstudy.cli.parser import option, run_options, verb
from chexstudy.cli.run import run_chosen
from chexstudy.cli.tables import check_output, write_table


@verb("evaluate", "measure the arms, or compare two models", *run_options())
def evaluate(options: Namespace) -> None:
    """Run 05_compare_arms and 06_long_tail: zero-shot classification, retrieval, linear probe and the long tail,
    each with 95 % patient-clustered bootstrap intervals. Two models alone: chexstudy evaluate compare --help

    example:
      chexstudy evaluate --profile demo --study demo

    writes: runs/<study>/results/ and figures/
    """
    run_chosen(options, ["05_compare_arms", "06_long_tail"])


@verb(
    "evaluate compare",
    "compare two models on the same patients",
    option("first A", "an arm, arm@task, or files of scores"),
    option("second B", "the same of the model it is compared with"),
    option("--study S", "the study of the arms and labels", default="demo"),
    option("--task T", "which scores of arms, such as adaptation_linear", default="zero_shot"),
    option("--data-set D", "source/split, such as phantom/test (default: the arms' test set)"),
    option("--labels LABELS", "image_id, patient_id and findings (default: the study's cohort)"),
    option("--metric", "shown and compared", choices=("auroc", "auprc"), default="auroc"),
    option(
        "--test",
        "whose p values are shown and corrected, as said above",
        choices=("auto", "delong", "bootstrap", "permutation"),
        default="auto",
    ),
    option("--resamples N", "of patients", default=2000),
    option("--permutations N", "of that test", default=2000),
    option("--seed K", "seed of the resampling", default=0),
    option("--shared-only", "compare on the images that both have scores of"),
    option("--out FILE", "also write the table, as .csv or .parquet"),
)
def compare(options: Namespace) -> None:
    """Two models, finding by finding: values, their difference with a 95 % interval, p values corrected by Holm.
    A and B are each an arm of the study (all its seeds), one of its heads as arm@task, or tables of scores with
    image_id and one column a finding (CSV or parquet; several seeds as A0.csv,A1.csv).
    Patients are drawn, the same for both; with several seeds these are drawn too. The p value of AUROCs is
    DeLong's where there is one seed, for patients with several images if there are such; else the bootstrap's.

    examples:
      chexstudy evaluate compare curated full --study demo
      chexstudy evaluate compare curated random_same_data --data-set phantom/test_enriched --metric auprc
      chexstudy evaluate compare curated curated@linear_probe --out heads.csv
      chexstudy evaluate compare mine.csv theirs.csv --labels labels.csv --test permutation

    writes: --out, the table with all numbers; otherwise nothing
    """
    from chexstudy.evaluation.comparison.inputs import read_contest
    from chexstudy.evaluation.comparison.table import (
        describe_models,
        list_comparison,
        list_reasons,
        tabulate_models,
    )
    from chexstudy.evaluation.comparison.two_models import compare_score_tables

    out = check_output(options.out) if options.out else None
    typed = vars(options)
    where = {name: typed[name] for name in ("study", "task", "data_set", "labels")}
    contest = read_contest(options.first, options.second, **where)
    how = {name: typed[name] for name in ("metric", "test", "resamples", "permutations", "seed", "shared_only")}
    comparison = compare_score_tables(contest.first, contest.second, contest.labels, tiers=contest.tiers, **how)
    table = tabulate_models(comparison)
    table["finding"] = table.finding.str.ljust(table.finding.str.len().max())
    print(table.to_string(index=False) + "\n")
    print(*list_reasons(comparison), describe_models(comparison), sep="\n")
    if contest.place:
        print(f"Scores: {contest.place}.")
    if comparison.left_out:
        print(f"{comparison.left_out:,} images that only one of them scored were left out.")
    if out is not None:
        write_table(list_comparison(comparison), out)
