"""The verb that asks when curation pays: regimes."""

from argparse import Namespace

from chexstudy.cli.parser import option, verb
from chexstudy.cli.tables import check_output, lay_out, write_table


@verb(
    "regimes",
    "measure when curation pays, on drawn pools that no scorer has seen",
    option("question QUESTION", "which to answer (default: all, in the order of the design)", nargs="*"),
    option("--seeds N", "pools of each cell (default: those of the design)", type=int),
    option(
        "--method METHOD", "only this, and random choice; may be repeated (default: all of the question)", repeated=True
    ),
    option("--first K", "seed of the first pool", default=0),
    option("--until W", "then one pool more at a time, up to 16, until the main contrast is known to +-W", type=float),
    option("--workers N", "trainings side by side", default=2),
    option("--estimate", "only say what is left and how long it takes; with --out, write what is there"),
    option(
        "--out FILE",
        "also write every training's outcome, without single findings, as .csv or .parquet",
        type=check_output,
    ),
)
def regimes(options: Namespace) -> None:
    """Choose from drawn pools by every method, train on what was chosen, and compare with a random choice.
    What is done is kept and not done again. The questions stand in chexstudy/experiments/regimes/design.yaml,
    the plan in words in docs/regimes_plan.md.

    examples:
      chexstudy regimes --estimate
      chexstudy regimes gain --seeds 3
      chexstudy regimes gain --until 0.01 --out gain.csv

    writes: runs/regimes*/ and --out
    """
    from chexstudy.experiments.regimes.bench import estimate, read_outcomes, run_bench
    from chexstudy.experiments.regimes.contrasts import MAIN_METRIC, correct_gains, half_width, measure_gains
    from chexstudy.experiments.regimes.design import MOST_POOLS, read_design
    from chexstudy.experiments.regimes.evidence import leave_out_findings

    design = read_design()
    jobs = design.list_jobs(options.question, options.seeds, options.first, options.method)
    if options.estimate:
        print(estimate(jobs, design.methods, options.workers))
    for name in [] if options.estimate else options.question or design.questions:
        seeds, first = options.seeds or design.questions[name].seeds, options.first
        while True:
            asked = design.list_jobs([name], seeds, first, options.method)
            gains = measure_gains(run_bench(asked, design.methods, options.workers), [MAIN_METRIC])
            if options.until is None or half_width(gains) <= options.until or first + seeds >= MOST_POOLS:
                break
            seeds += 1
        jobs += [job for job in asked if job not in jobs]
        print(f"{name}: {design.questions[name].asks}")
        print(lay_out(correct_gains(gains).drop(columns="metric").round(4)))
    if options.out:
        write_table(leave_out_findings(read_outcomes(jobs, design.methods)).round(5), options.out)
