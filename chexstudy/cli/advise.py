"""The verb that says how to choose from a cohort: advise."""

from argparse import Namespace

from chexstudy.cli.parser import SEED, option, verb
from chexstudy.cli.tables import check_output, lay_out, write_table
from chexstudy.paths import resolve_user_path


@verb(
    "advise",
    "say which method and budget suit a cohort",
    option("--study S", "a study, whose training pairs are looked at"),
    option(
        "--scorer",
        "whose embeddings of a study: the upstream pair's, or those that notebook 2 left (default: upstream)",
        choices=("upstream", "study"),
    ),
    option("--embeddings I.npy", "instead of a study: image embeddings, (rows, dim)"),
    option("--text T.npy", "text embeddings of the same space in the same order"),
    option("--ids IDS", "CSV or Parquet: image_id, in the order of the embeddings"),
    option("--table TABLE", "CSV or Parquet: image_id and No Finding, such as a cohort table"),
    option("--keep X", "a share up to 1, or a number of pairs (default: what suits)", type=float),
    option("--start", "what training begins with", choices=("scratch", "upstream"), default="scratch"),
    option("--own", "by what `chexstudy regimes` has measured here, not by what comes with the package"),
    SEED,
    option("--out FILE", "also write what each method gained, as .csv or .parquet", type=check_output),
)
def advise(options: Namespace) -> None:
    """Measure a cohort (size, copies, share of mismatched and of normal pairs, whether its scorer can tell matched
    from shuffled ones) and say which method of `chexstudy curate` to choose with, and how many pairs, from what was
    measured at the most similar conditions (`chexstudy regimes`), or that this was not covered.

    examples:
      chexstudy advise --study demo
      chexstudy advise --study demo --start upstream --keep 0.2
      chexstudy advise --embeddings I.npy --text T.npy --ids ids.parquet --table cohort.parquet --keep 5000

    writes: --out; of a study, runs/<study>/embeddings/upstream-pair/
    """
    _check(options)
    from chexstudy.experiments.regimes.advice import advise as find_advice
    from chexstudy.experiments.regimes.advice_in_words import describe_advice, describe_cohort, tabulate_gains
    from chexstudy.experiments.regimes.cohort_measures import measure_files, measure_study
    from chexstudy.experiments.regimes.evidence import read_evidence
    from chexstudy.runs import Run

    evidence = read_evidence(options.own)
    if options.study is not None:
        measures = measure_study(Run(options.study), options.scorer or "upstream", options.seed)
    else:
        typed = (options.embeddings, options.text, options.ids, options.table)
        measures = measure_files(*[None if name is None else resolve_user_path(name) for name in typed], options.seed)
    print(*describe_cohort(measures), sep="\n", end="\n\n")
    advice = find_advice(measures, options.keep, options.start, evidence)
    print(*describe_advice(advice), sep="\n", end="\n\n")
    print(lay_out(tabulate_gains(advice)))
    if options.out:
        write_table(advice.gains, options.out)


def _check(options: Namespace) -> None:
    """Stop at what has no use together."""
    if (options.study is None) == (options.embeddings is None):
        options.parser.error("give either --study, or --embeddings with --text")
    ours, place = ("text", "ids", "table"), "with --study"
    if options.study is None:
        ours, place = ("scorer",), "with --embeddings"
    for name in ours:
        if getattr(options, name) is not None:
            options.parser.error(f"--{name} has no use {place}")
