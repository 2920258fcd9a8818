"""Verbs that choose pairs and say why: curate, why, check-golden."""

import os
from argparse import Namespace
from collections.abc import Sequence

from chexstudy.cli.parser import SEED, STUDY, option, run_options, verb
from chexstudy.cli.run import run_chosen
from chexstudy.paths import resolve_user_path

# What each face of `curate` takes; anything else would silently do nothing.
_OF_FILES = (
    *("embeddings", "ids", "out", "method", "keep", "seed", "text", "losses", "scores", "floor", "table"),
    *("threads", "report", "parameter"),
)
_OF_REPORT = ("report", "study", "arm", "seed")
_OF_NOTEBOOK = ("profile", "study", "online", "quiet", "parameter", "change")


@verb(
    "curate",
    "choose pairs: of any embeddings, or in a study",
    option("--list", "list the methods; curate nothing"),
    option(
        "--report AUDIT.parquet",
        "print what was kept of each group, with intervals and warnings; with a name, write the table too",
        nargs="?",
        const="",
    ),
    option("--seed K", "seed of the method, or of the arm reported (default: 0)", type=int),
    option("--arm A", "the arm reported (default: curated)"),
    *run_options(),
    files=(
        option("--embeddings E.npy", "one row an image, (rows, dim)"),
        option("--ids IDS", "CSV or Parquet: image_id, in the order of the embeddings"),
        option("--out SUBSET.parquet", "where the chosen go: image_id, weight"),
        option("--method M", "how to choose, see --list (default: budgeted)"),
        option("--keep X", "a share up to 1, or a number of pairs (default: 0.227, as published)", type=float),
        option("--text T.npy", "text embeddings in the same order"),
        option("--losses LOSSES", "CSV or Parquet: image_id, loss and, if a method needs it, reference_loss"),
        option("--scores SCORES.parquet", "also write the score of every pair"),
        option("--table TABLE", "CSV or Parquet: image_id and columns of groups, such as a cohort table"),
        option(
            "--floor GROUP:X",
            "keep at least so much of a group, such as sex=F:0.9x (of the fraction selected of all); may be repeated",
            repeated=True,
        ),
        option("--threads N", "use at most so many threads (default: all)", type=int),
    ),
)
def curate(options: Namespace) -> None:
    """Keep the part of a set that is worth training on.

    With --embeddings: of any embeddings, by any of the known methods, at exactly the budget named. No cohort is
    needed. Rows are float16, float32 or float64; each is brought to unit norm. With --text they are the image
    side, and pairs are curated by both sides at once. -p gives the method's own options another value.
    With --report and no --embeddings: what the curation of a study kept of which group, and where chance does
    not explain it.
    With neither: run 03_watch_prototypes of a study, which warms up, curates, and draws where prototypes move.

    examples:
      chexstudy curate --embeddings E.npy --ids ids.parquet --method k_centre --keep 0.227 --out subset.parquet
      chexstudy curate --embeddings I.npy --text T.npy --ids ids.parquet --keep 5000 --out subset.parquet
      chexstudy curate --embeddings E.npy --ids ids.parquet --out subset.parquet \\
                       --table cohort.parquet --floor sex=F:0.9x --report
      chexstudy curate --list                                  methods, what they need, their options
      chexstudy curate --report --study demo --arm curated --seed 0
      chexstudy curate --profile demo --study demo             the notebook

    writes: --out (image_id, weight; how it came to be is in its parquet metadata), --scores (image_id, score);
            the notebook: runs/<study>/pretraining/curated/seed<k>/ and figures/
    """
    if options.list:
        from chexstudy.curation.embeddings.curate import describe_methods

        print(describe_methods())
    elif options.embeddings is not None:
        _refuse_others(options, _OF_FILES, "with --embeddings")
        _curate_files(options)
    elif options.report is not None:
        _refuse_others(options, _OF_REPORT, "with --report of a study: it takes --study, --arm and --seed")
        _report_study(options)
    else:
        _refuse_others(options, _OF_NOTEBOOK, "without --embeddings")
        run_chosen(options, ["03_watch_prototypes"])


def _refuse_others(options: Namespace, taken: Sequence[str], where: str) -> None:
    for name in sorted({*_OF_FILES, *_OF_REPORT, *_OF_NOTEBOOK}.difference(taken)):
        if getattr(options, name) not in (None, False, []):
            options.parser.error(f"--{name} has no use {where}")


def _curate_files(options: Namespace) -> None:
    for name in ("ids", "out"):
        if getattr(options, name) is None:
            options.parser.error(f"--embeddings needs --{name}")
    if options.table is None and (options.floor or options.report is not None):
        options.parser.error(
            f"--{'floor' if options.floor else 'report'} needs --table, which says who is in which group"
        )
    # OpenMP reads this when torch is imported. Threads that wait by spinning take the cores from those that work, which
    # on a busy machine multiplies what the many small steps of a curator cost.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from chexstudy.curation.embeddings.curate import CurationRequest, curate_files

    typed = vars(options) | {"audit": options.report or None}
    request = {name: typed[name] for name in ("method", "keep", "seed", "threads") if typed[name] is not None}
    for name in ("embeddings", "ids", "out", "text", "losses", "scores", "table", "audit"):
        request[name] = None if typed[name] is None else resolve_user_path(typed[name])
    request |= {"quotas": tuple(options.floor), "report": options.report is not None}
    curate_files(CurationRequest(**request, options=dict(options.parameter)))


def _report_study(options: Namespace) -> None:
    from chexstudy.curation.embeddings.files import check_output, report_audit
    from chexstudy.curation.quality.audit import audit_arm
    from chexstudy.runs import Run

    path = resolve_user_path(options.report) if options.report else None
    if path:
        check_output(path)
    run = Run("demo" if options.study is None else options.study)
    report_audit(audit_arm(run, options.arm or "curated", options.seed or 0), path)


@verb(
    "why",
    "tell why a pair was kept or dropped",
    option("image_id IMAGE_ID", "the pair, by the image_id of the cohort table, or by the pseudonym shown"),
    STUDY,
    option("--arm A", "the arm", default="curated"),
    SEED,
    option("--report-text", "also show the report"),
)
def why(options: Namespace) -> None:
    """Tell the story of one pair in words: when it was considered, which prototype it was near, how far, what was
    decided and on which grounds.

    examples:
      chexstudy why phantom/000042 --study demo
      chexstudy why phantom/000042 --arm curated --seed 1 --report-text

    writes: nothing
    """
    from chexstudy.curation.records.explain import tell_story
    from chexstudy.runs import Run

    print(tell_story(Run(options.study), options.image_id, options.arm, options.seed, options.report_text))


@verb(
    "check-golden",
    "check curator, self-supervision and decoders against published numbers",
    option("file FILE.npz", "inputs and expected numbers of every case"),
)
def check_golden(options: Namespace) -> int:
    """Compute what the file holds from its inputs and compare: of the curator masks, loss, prototype usage and updated
    prototypes, case by case; of self-supervision targets, losses, gradients, schedules, masks and the encoder; of the
    decoders for segmentation their logits. This is what `faithful` means here.

    example:
      chexstudy check-golden curator.npz

    writes: nothing; exit status 1 if a case differs
    """
    from chexstudy import golden

    cases = golden.check_golden(resolve_user_path(options.file))
    print(cases.replace({True: "same", False: "DIFFERS"}).to_string(index=False))
    passed = int(cases.passed.sum())
    print(f"{passed} of {len(cases)} cases agree.")
    return 0 if passed == len(cases) else 1
