"""The verb that tells how many labels to buy: plan-labels."""

from argparse import Namespace

from chexstudy.cli.parser import option, verb
from chexstudy.cli.tables import check_output, write_table
from chexstudy.paths import resolve_user_path


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
    option("--out FILE", "also write the plan, .parquet or .csv"),
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
    out = check_output(options.out) if options.out else None
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
    if out:
        write_table(plans, out)
