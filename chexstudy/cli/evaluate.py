"""Verbs that measure, and show what was measured: evaluate, evaluate compare and reports, results, plan-labels."""

from argparse import Namespace

from chexstudy.cli.parser import STUDY, option, run_options, verb
from chexstudy.cli.run import run_chosen
from chexstudy.cli.tables import check_output, lay_out, write_table
from chexstudy.paths import resolve_user_path


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
    STUDY,
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
    option("--out FILE", "also write the table, as .csv or .parquet", type=check_output),
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
    from chexstudy.evaluation.comparison.table import describe_models, list_comparison, list_reasons, tabulate_models
    from chexstudy.evaluation.comparison.two_models import compare_score_tables

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
    if options.out:
        write_table(list_comparison(comparison), options.out)


@verb(
    "evaluate reports",
    "score written reports against reference reports",
    option("hypotheses HYPOTHESES", "a table of image_id (or study_id) and report: those to score"),
    option("references REFERENCES", "a table of the same ids and report; patient_id if a patient has several"),
    option("--labels LABELS", "what the images show: the ids and one column a finding, 1, 0, -1 or empty"),
    option("--sections", "of reports with headings", choices=("findings", "findings+impression"), default="findings"),
    option("--strip-comparisons", "take sentences that compare with an earlier study out of the references"),
    option("--bert MODEL", "BERTScore too, by a text encoder in a folder or the local cache; MODEL@5: by its layer 5"),
    option("--shared-only", "score the reports that both tables hold"),
    option("--resamples N", "of patients", default=1000),
    option("--seed K", "seed of the resampling and of the random reports", default=0),
    option("--out FILE", "also write the table, as .csv or .parquet", type=check_output),
)
def reports(options: Namespace) -> None:
    """Words (BLEU, chrF, ROUGE-L, how varied they are) and findings (F1 of the 14 of CheXpert and of the 5 most
    used) of anybody's reports, each with its 95 % interval and beside controls that look at no image. Findings are
    told from English texts by rules. Tables are CSV or parquet; texts are never shown.

    examples:
      chexstudy evaluate reports written.csv references.csv
      chexstudy evaluate reports written.csv references.csv --labels labels.csv --sections findings+impression

    writes: --out, the table with all numbers, differences to the controls and signatures; otherwise nothing
    """
    from chexstudy.evaluation.report_generation.bert_score import load_bert_score
    from chexstudy.evaluation.report_generation.files import (
        describe_scores,
        read_pairs,
        score_pairs,
        tabulate_findings,
        tabulate_scores,
    )

    typed = vars(options)
    names = ("hypotheses", "references", "labels", "sections", "strip_comparisons", "shared_only")
    pairs = read_pairs(**{name: typed[name] for name in names})
    bert = load_bert_score(options.bert) if options.bert else None
    rows = score_pairs(pairs, options.resamples, options.seed, bert)
    for table in (tabulate_scores(rows), tabulate_findings(rows)):
        print(lay_out(table) + "\n")
    print(*describe_scores(pairs, rows, options.resamples), sep="\n")
    if options.out:
        write_table(rows, options.out)


@verb(
    "results",
    "show and export what a study measured",
    STUDY,
    option("--task T", "the values of one task: over seeds where there are any, means over findings"),
    option("--finding F", "its values for one finding, in place of means"),
    option(
        "--csv FILE", "also write all rows and columns, of the task or of all, as .csv or .parquet", type=check_output
    ),
)
def results(options: Namespace) -> None:
    """Without --task: what was measured, of how many arms and data sets. With it: its values with 95 % intervals.
    A difference is the arm minus what stands under reference. Columns that say nothing are left out; --csv has all
    of them, as chexstudy/results.py tells.

    examples:
      chexstudy results --study demo
      chexstudy results --task zero_shot --finding Mass
      chexstudy results --study demo --csv demo.csv

    writes: --csv; otherwise nothing
    """
    from chexstudy.plots.words import name_data_set, name_setting
    from chexstudy.results import read_results, write_interval
    from chexstudy.workflow.studies import WHAT_IS_MEASURED, find_study, select_overview

    rows = read_results(find_study(options.study))
    if options.task or options.finding:
        chosen = select_overview(rows, options.task or "zero_shot", options.finding)
        rows = rows[rows.task == (options.task or "zero_shot")]
        table = chosen[[name for name in WHAT_IS_MEASURED if name != "task"]]
        table = table.assign(
            data_set=table.data_set.map(name_data_set),
            setting=table.setting.map(name_setting),
            seed=table.seed.astype(str).replace("-1", "all"),
            value=[write_interval(*row) for row in chosen[["value", "ci_low", "ci_high"]].to_numpy()],
            n=chosen.n,
        )
        table = table[[name for name in table if name in ("arm", "value") or table[name].nunique() > 1]]
    else:
        table = rows.groupby("task").agg(
            arms=("arm", "nunique"), data_sets=("data_set", "nunique"), findings=("finding", "nunique")
        )
        table = table.assign(rows=rows.groupby("task").size()).reset_index()
    print(lay_out(table.rename(columns=lambda name: name.replace("_", " "))))
    if options.csv:
        write_table(rows, options.csv)


@verb(
    "plan-labels",
    "tell how many labels a target AUROC needs",
    option("--target X", "the AUROC to reach, such as 0.85", type=float, required=True),
    option("--curve TABLE", "a table of learning curves, .parquet or .csv"),
    option("--study S", "the study whose curves are read (default: demo)"),
    option("--finding F", "answer for this finding only"),
    option("--encoder E", "answer for this encoder only"),
    option("--cost C", "what labelling one case costs", type=float),
    option("--at-most N", "use only the part of the curves up to N labels", type=float),
    option("--no-pool", "findings do not learn from each other"),
    option("--seed K", "seed of the posterior draws", default=0),
    option("--out FILE", "also write the plan, .parquet or .csv", type=check_output),
)
def plan_labels(options: Namespace) -> None:
    """Read learning curves (AUROC at several numbers of labels) and tell for each finding how many labels more a
    target AUROC needs, with a 95 % interval, or why there is no number: the target is reached already, it lies
    above the plateau, or the labels so far do not say. Findings of one encoder learn from each other
    (--no-pool: each alone). Intervals are of the cases and the test set that the curves were measured on.

    A table of your own needs the columns n and auroc, one row a draw; finding, encoder, draw, seed, unit and
    positives are optional. It is parquet or CSV.

    examples:
      chexstudy plan-labels --target 0.85 --study demo
      chexstudy plan-labels --target 0.85 --curve curves.csv --cost 2.50
      chexstudy plan-labels --target 0.80 --study demo --encoder curated --finding Mass --at-most 200

    reads: runs/<study>/label_budget/curves.parquet, or --curve
    writes: --out (the table, parquet or CSV), or nothing
    """
    from chexstudy.inputs.tables import read_typed_table
    from chexstudy.label_planning.observations import CURVES
    from chexstudy.label_planning.planner import describe_plans, plan_table
    from chexstudy.runs import Run

    if options.curve and options.study:
        options.parser.error("--curve and --study both say where the curves are: give one of them")
    path = resolve_user_path(options.curve) if options.curve else None
    plans = plan_table(
        read_typed_table(path) if path else Run(options.study or "demo").read_table(CURVES),
        options.target,
        options.finding,
        options.encoder,
        options.at_most,
        not options.no_pool,
        options.cost,
        options.seed,
    )
    print(describe_plans(plans))
    if options.out:
        write_table(plans, options.out)
