"""The verb that shows and exports what a study measured: results."""

from argparse import Namespace

from chexstudy.cli.parser import STUDY, option, verb
from chexstudy.cli.tables import check_output, lay_out, write_table


@verb(
    "results",
    "show and export what a study measured",
    STUDY,
    option("--task T", "the values of one task: over seeds where there are any, means over findings"),
    option("--finding F", "its values for one finding, in place of means"),
    option("--csv FILE", "also write all rows and columns, of the task or of all, as .csv or .parquet"),
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
    from chexstudy.plots.measurements import name_data_set, name_setting
    from chexstudy.results import read_results, write_interval
    from chexstudy.workflow.studies import WHAT_IS_MEASURED, find_study, select_overview

    out = check_output(options.csv) if options.csv else None
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
    if out is not None:
        write_table(rows, out)
