"""The `chexstudy` command: thin verbs over the notebooks and the package."""

import argparse
import difflib
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from chexstudy import __version__, paths
from chexstudy.cli.studies import add_study_verbs
from chexstudy.errors import StudyError
from chexstudy.workflow.unforeseen import silence, tell_mistake, tell_unforeseen

_STEPS = {
    "embed": ["02_embed_pairs"],
    "curate": ["03_watch_prototypes"],
    "pretrain": ["04_pretrain_curated"],
    "evaluate": ["05_compare_arms", "06_long_tail"],
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status: 0 done, 1 a failure, 2 a mistake of the user, 130 Ctrl-C."""
    debug = "--debug" in (sys.argv[1:] if arguments is None else arguments)
    try:
        try:
            options, unknown = build_parser().parse_known_args(arguments)
            if unknown:
                options.parser.refuse(unknown[0])
            return options.act(options) or 0
        finally:
            # Here and not at the end of Python, where nobody could tell of it any more.
            sys.stdout.flush()
    except BrokenPipeError:
        # The reader of our output (head, less) went away; that is no failure. Nothing more can be flushed.
        silence(sys.stdout)
        return 0
    except KeyboardInterrupt:
        return _say("Stopped. What was finished is kept; the same command goes on from there.", 130)
    except Exception as error:
        if debug:
            raise
        if isinstance(error, StudyError):
            return _say(str(error), 2 if getattr(error, "by_study", True) else 1)
        sentence = tell_mistake(error)
        return _say(sentence or tell_unforeseen(error), 2 if sentence else 1)


def _say(sentence: str, status: int) -> int:
    """The last words on standard error; the exit status."""
    try:
        print(sentence, file=sys.stderr, flush=True)
        sys.stdout.flush()
    except OSError:
        silence(sys.stdout)
    return status


class _Parser(argparse.ArgumentParser):
    """A parser whose complaints are one sentence, like those of the rest of the study."""

    def error(self, message: str) -> NoReturn:
        choice = re.fullmatch(r"argument (\S+): invalid choice: '(.*)' \(choose from (.*)\)", message)
        if choice:
            known = re.findall(r"[\w-]+", choice[3])
            message = f"{choice[1]} cannot be {choice[2]!r}; it is one of {', '.join(known)}"
            # No slip of the finger leads to the verb that removes.
            message += _guess(choice[2], [one for one in known if one != "rm"])
        elif "-p/--parameter" in message:
            message = "-p takes a name and a value, for example `-p seed 3`"
        self.exit(2, f"{self.prog}: {message}; see `{self.prog} --help`.\n")

    def _print_message(self, message: str, file=None) -> None:
        # argparse would pass over a full disk.
        (file or sys.stderr).write(message)

    def refuse(self, argument: str) -> NoReturn:
        """Stop at an argument that no one takes."""
        own = [name for action in self._actions for name in action.option_strings]
        hint = _guess(argument, own)
        if not hint and argument.startswith("--") and "--parameter" in own:
            hint = ": what notebooks take is given as `-p name value`"
        self.error(f"there is no use for {argument!r}{hint}")


def _guess(word: str, known: Sequence[str]) -> str:
    closest = difflib.get_close_matches(word, known, n=1)
    return f": did you mean {closest[0]!r}" if closest else ""


def build_parser() -> argparse.ArgumentParser:
    """The parser with every verb; each verb's function is its ``act``."""
    parser = _new_parser(
        _Parser,
        "chexstudy",
        "Train chest X-ray foundation models on less data and less compute: a reproducible study.\n\n"
        "A study is one folder, runs/<study>. Notebooks fill it step by step; every verb below is a way to run\n"
        "them without a screen, or to look at what they wrote.",
        "first steps:\n"
        "  chexstudy run all --profile debug       every notebook on a tiny drawn cohort, in minutes\n"
        "  chexstudy run 04 -p seed 3              one notebook of the default study with another seed\n"
        "  chexstudy run --list                    notebooks, their parameters, profiles\n"
        "  chexstudy curate --embeddings E.npy --ids ids.parquet --keep 0.227 --out subset.parquet\n"
        "  chexstudy doctor                        versions, GPU, faiss, where things live",
    )
    parser.set_defaults(debug=False, parser=parser, act=lambda options: parser.print_help())
    parser.add_argument("--version", action="version", version=f"chexstudy {__version__}")
    verbs = parser.add_subparsers(title="verbs", metavar="VERB")
    _add_run(verbs)
    _add_cohort(verbs)
    _add_step(
        verbs,
        "embed",
        "embed the pairs of a cohort",
        "Run 02_embed_pairs: image and text embeddings of every training pair, by pretrained encoders or by tiny ones\n"
        "after a short warm-up, and a map of them.\n"
        "Embeddings are cached by encoder, revision, preprocessing and cohort: a killed run goes on, a second costs\n"
        "nothing.",
        "runs/<study>/embeddings/scoring/ (image.npy, text.npy, ids.parquet, map.parquet) and figures/",
        _STEPS["embed"],
    )
    _add_curate(verbs)
    _add_why(verbs)
    _add_step(
        verbs,
        "pretrain",
        "train the arms",
        "Run 04_pretrain_curated: the curated arm and the arms it is compared with, each resumed where it stopped.",
        "runs/<study>/pretraining/<arm>/seed<k>/ (model/, subset.parquet, history.parquet, compute.json)",
        _STEPS["pretrain"],
    )
    _add_evaluate(verbs)
    _add_plan_labels(verbs)
    _add_release(verbs)
    _add_figures(verbs)
    add_study_verbs(verbs, _add_verb)
    _add_golden(verbs)
    _add_doctor(verbs)
    return parser


# --- run -------------------------------------------------------------------------------------------------------------


def _add_run(verbs) -> None:
    parser = _add_verb(
        verbs,
        "run",
        "run one notebook, several, or all",
        "Run notebooks of a study in order, without a screen. Names and types of all parameters are checked first.\n"
        "The executed notebooks, with their outputs, lie in runs/<study>/notebooks/.",
        "examples:\n"
        "  chexstudy run all                                        the default study\n"
        "  chexstudy run all --profile nlm_tb -p data_root ~/nlm    a real cohort\n"
        "  chexstudy run 05_compare_arms --study demo -p resamples 500\n"
        "  chexstudy run 07 08 --study demo                         two, one after the other\n"
        "  chexstudy run 04 --list                                  what 04 can be told\n"
        "  chexstudy run --list                                     all notebooks and profiles\n\n"
        "writes: runs/<study>/ (artifacts, notebooks/, figures/, results.parquet, timings.json)",
        _run,
    )
    parser.add_argument("notebooks", metavar="NOTEBOOK", nargs="*", help="notebooks by name or number, or all")
    _add_run_options(parser)
    parser.add_argument("--list", action="store_true", help="list notebooks, parameters and profiles; run nothing")


def _run(options: argparse.Namespace) -> None:
    if "all" in options.notebooks and len(options.notebooks) > 1:
        options.parser.error("all stands for every notebook: name no other beside it")
    names = None if options.notebooks in ([], ["all"]) else options.notebooks
    if options.list:
        _list_parameters(names)
    elif not options.notebooks:
        options.parser.error("say which notebook, by name or number, or all")
    else:
        _run_selected(options, names)


def _run_selected(options: argparse.Namespace, names: list[str] | None) -> None:
    from chexstudy.workflow.runner import run_notebooks

    run_notebooks(
        names,
        options.profile,
        dict(options.parameter),
        study=options.study,
        change=[name for names in options.change for name in names.split(",")],
        from_text=True,
        online=options.online,
        quiet=options.quiet,
    )


def _list_parameters(names: list[str] | None) -> None:
    from chexstudy.workflow.parameters import read_parameters
    from chexstudy.workflow.profiles import list_profiles, read_profile
    from chexstudy.workflow.runner import find_notebook, list_notebooks

    for name in list_notebooks() if names is None else map(find_notebook, names):
        print(name)
        for parameter in read_parameters(paths.NOTEBOOKS / f"{name}.py").values():
            print(f"  {parameter.name} = {parameter.default!r}\n      {parameter.expected}; {parameter.help}")
    if names is None:
        profiles = [read_profile(name) for name in list_profiles()]
        width = max(len(profile.name) for profile in profiles)
        print("\nprofiles (--profile)")
        for profile in profiles:
            print(f"  {profile.name:<{width}}  {'; '.join(filter(None, (profile.title, profile.cost)))}")


def _add_run_options(parser: argparse.ArgumentParser, default: str = "that of the study, else demo") -> None:
    named = ", ".join(sorted(path.stem for path in paths.PROFILES.glob("*.yaml")))
    parser.add_argument(
        "--profile",
        metavar="P",
        help=f"set of parameters: {named}, or a .yaml of yours (default: {default})",
    )
    parser.add_argument("--study", metavar="S", help="name of the run folder (default: the profile's name)")
    parser.add_argument(
        "--change",
        action="append",
        default=[],
        metavar="NAME",
        help="let a parameter differ from the study's value, and tell what is stale then; may be repeated",
    )
    parser.add_argument(
        "-p",
        "--parameter",
        nargs=2,
        action="append",
        default=[],
        metavar=("NAME", "VALUE"),
        help="give a notebook parameter another value; may be repeated",
    )
    parser.add_argument(
        "--online", action="store_true", help="let notebooks download models (default: local cache only)"
    )
    parser.add_argument("--quiet", action="store_true", help="do not repeat what the notebooks print")


def _add_step(
    verbs, name: str, summary: str, description: str, writes: str, notebooks: list[str]
) -> argparse.ArgumentParser:
    example = f"example:\n  chexstudy {name} --profile demo --study demo\n\nwrites: {writes}"
    parser = _add_verb(verbs, name, summary, description, example, lambda options: _run_selected(options, notebooks))
    _add_run_options(parser)
    return parser


# --- evaluate --------------------------------------------------------------------------------------------------------


def _add_evaluate(verbs) -> None:
    parser = _add_step(
        verbs,
        "evaluate",
        "measure the arms, or compare two models",
        "Run 05_compare_arms and 06_long_tail: zero-shot classification, retrieval, linear probe and the long tail,\n"
        "each with 95 % patient-clustered bootstrap intervals. Two models alone: chexstudy evaluate compare --help",
        "runs/<study>/results.parquet and figures/",
        _STEPS["evaluate"],
    )
    actions = parser.add_subparsers(title="actions", metavar="ACTION")
    compare = _add_verb(
        actions,
        "compare",
        "compare two models on the same patients",
        "Two models, finding by finding: values, their difference with a 95 % interval, p values corrected by Holm.\n"
        "A and B are each an arm of the study (all its seeds), one of its heads as arm@task, or tables of scores with\n"
        "image_id and one column a finding (CSV or parquet; several seeds as A0.csv,A1.csv).\n"
        "Patients are drawn, the same for both; with several seeds these are drawn too. The p value of AUROCs is\n"
        "DeLong's where there is one seed, for patients with several images if there are such; else the bootstrap's.",
        "examples:\n"
        "  chexstudy evaluate compare curated full --study demo\n"
        "  chexstudy evaluate compare curated random_same_data --data-set phantom/test_enriched --metric auprc\n"
        "  chexstudy evaluate compare curated curated@linear_probe --out heads.csv\n"
        "  chexstudy evaluate compare mine.csv theirs.csv --labels labels.csv --test permutation\n\n"
        "writes: --out, the table with all numbers; otherwise nothing",
        _compare_models,
    )
    compare.add_argument("first", metavar="A", help="an arm, arm@task, or files of scores")
    compare.add_argument("second", metavar="B", help="the same of the model it is compared with")
    compare.add_argument(
        "--study", default="demo", metavar="S", help="the study of the arms and labels (default: demo)"
    )
    compare.add_argument(
        "--task",
        default="zero_shot",
        metavar="T",
        help="which scores of arms, such as adaptation_linear (default: zero_shot)",
    )
    compare.add_argument(
        "--data-set", metavar="D", help="source/split, such as phantom/test (default: the arms' test set)"
    )
    compare.add_argument(
        "--labels", metavar="LABELS", help="image_id, patient_id and findings (default: the study's cohort)"
    )
    compare.add_argument("--metric", choices=("auroc", "auprc"), default="auroc", help="(default: auroc)")
    compare.add_argument(
        "--test",
        choices=("auto", "delong", "bootstrap", "permutation"),
        default="auto",
        help="whose p values are shown and corrected (default: auto, as said above)",
    )
    compare.add_argument("--resamples", type=int, default=2000, metavar="N", help="of patients (default: 2000)")
    compare.add_argument("--permutations", type=int, default=2000, metavar="N", help="of that test (default: 2000)")
    compare.add_argument("--seed", type=int, default=0, metavar="K", help="seed of the resampling (default: 0)")
    compare.add_argument("--shared-only", action="store_true", help="compare on the images that both have scores of")
    compare.add_argument("--out", metavar="FILE", help="also write the table, as .csv or .parquet")


def _compare_models(options: argparse.Namespace) -> None:
    from chexstudy.evaluation.comparison.inputs import read_contest
    from chexstudy.evaluation.comparison.table import (
        check_output,
        describe_models,
        list_reasons,
        tabulate_models,
        write_comparison,
    )
    from chexstudy.evaluation.comparison.two_models import compare_score_tables

    out = check_output(options.out) if options.out else None
    contest = read_contest(
        options.first,
        options.second,
        study=options.study,
        task=options.task,
        data_set=options.data_set,
        labels=options.labels,
    )
    comparison = compare_score_tables(
        contest.first,
        contest.second,
        contest.labels,
        metric=options.metric,
        tiers=contest.tiers,
        test=options.test,
        resamples=options.resamples,
        permutations=options.permutations,
        seed=options.seed,
        shared_only=options.shared_only,
    )
    table = tabulate_models(comparison)
    table["finding"] = table.finding.str.ljust(table.finding.str.len().max())
    print(table.to_string(index=False) + "\n")
    for line in (*list_reasons(comparison), describe_models(comparison)):
        print(line)
    if contest.place:
        print(f"Scores: {contest.place}.")
    if comparison.left_out:
        print(f"{comparison.left_out:,} images that only one of them scored were left out.")
    if out is not None:
        write_comparison(comparison, out)
        print(f"written to {out}")


# --- curate, why -----------------------------------------------------------------------------------------------------

# What each face of `curate` takes; anything else would silently do nothing.
_CURATE_FILES = (
    *("embeddings", "ids", "out", "method", "keep", "seed", "text", "losses", "scores", "floor", "table"),
    *("threads", "report", "parameter"),
)
_CURATE_REPORT = ("report", "study", "arm", "seed")
_CURATE_NOTEBOOK = ("profile", "study", "online", "quiet", "parameter", "change")


def _add_curate(verbs) -> None:
    parser = _add_verb(
        verbs,
        "curate",
        "choose pairs: of any embeddings, or in a study",
        "Keep the part of a set that is worth training on.\n\n"
        "With --embeddings: of any embeddings, by any of the known methods, at exactly the budget named. No cohort is\n"
        "needed. Rows are float16, float32 or float64; each is brought to unit norm. With --text they are the image\n"
        "side, and pairs are curated by both sides at once. -p gives the method's own options another value.\n"
        "With --report and no --embeddings: what the curation of a study kept of which group, and where chance does\n"
        "not explain it.\n"
        "With neither: run 03_watch_prototypes of a study, which warms up, curates, and draws where prototypes move.",
        "examples:\n"
        "  chexstudy curate --embeddings E.npy --ids ids.parquet --method k_centre --keep 0.227 --out subset.parquet\n"
        "  chexstudy curate --embeddings I.npy --text T.npy --ids ids.parquet --keep 5000 --out subset.parquet\n"
        "  chexstudy curate --embeddings E.npy --ids ids.parquet --out subset.parquet \\\n"
        "                   --table cohort.parquet --floor sex=F:0.9x --report\n"
        "  chexstudy curate --list                                  methods, what they need, their options\n"
        "  chexstudy curate --report --study demo --arm curated --seed 0\n"
        "  chexstudy curate --profile demo --study demo             the notebook\n\n"
        "writes: --out (image_id, weight; how it came to be is in its parquet metadata), --scores (image_id, score);\n"
        "        the notebook: runs/<study>/pretraining/curated/seed<k>/ and figures/",
        _curate,
    )
    parser.add_argument("--list", action="store_true", help="list the methods; curate nothing")
    files = parser.add_argument_group("files")
    files.add_argument("--embeddings", metavar="E.npy", help="one row an image, (rows, dim)")
    files.add_argument("--ids", metavar="IDS", help="CSV or Parquet: image_id, in the order of the embeddings")
    files.add_argument("--out", metavar="SUBSET.parquet", help="where the chosen go: image_id, weight")
    files.add_argument("--method", metavar="M", help="how to choose, see --list (default: budgeted)")
    files.add_argument(
        "--keep", type=float, metavar="X", help="a share up to 1, or a number of pairs (default: 0.227, as published)"
    )
    files.add_argument("--text", metavar="T.npy", help="text embeddings in the same order")
    files.add_argument(
        "--losses", metavar="LOSSES", help="CSV or Parquet: image_id, loss and, if a method needs it, reference_loss"
    )
    files.add_argument("--scores", metavar="SCORES.parquet", help="also write the score of every pair")
    files.add_argument(
        "--table", metavar="TABLE", help="CSV or Parquet: image_id and columns of groups, such as a cohort table"
    )
    files.add_argument(
        "--floor",
        action="append",
        metavar="GROUP:X",
        help="keep at least so much of a group, for example sex=F:0.9x (of the share kept of all); may be repeated",
    )
    files.add_argument("--threads", type=int, metavar="N", help="use at most so many threads (default: all)")
    parser.add_argument(
        "--report",
        nargs="?",
        const="",
        metavar="AUDIT.parquet",
        help="print what was kept of each group, with intervals and warnings; with a name, write the table too",
    )
    parser.add_argument("--seed", type=int, metavar="K", help="seed of the method, or of the arm reported (default: 0)")
    parser.add_argument("--arm", metavar="A", help="the arm reported (default: curated)")
    _add_run_options(parser)


def _curate(options: argparse.Namespace) -> None:
    if options.list:
        from chexstudy.curation.embeddings.files import describe_methods

        print(describe_methods())
    elif options.embeddings is not None:
        _refuse_others(options, _CURATE_FILES, "with --embeddings")
        _curate_files(options)
    elif options.report is not None:
        _refuse_others(options, _CURATE_REPORT, "with --report of a study: it takes --study, --arm and --seed")
        _report_study(options)
    else:
        _refuse_others(options, _CURATE_NOTEBOOK, "without --embeddings")
        _run_selected(options, _STEPS["curate"])


def _refuse_others(options: argparse.Namespace, taken: Sequence[str], where: str) -> None:
    every = {*_CURATE_FILES, *_CURATE_REPORT, *_CURATE_NOTEBOOK}
    for name in sorted(every.difference(taken)):
        if getattr(options, name) not in (None, False, []):
            options.parser.error(f"--{name} has no use {where}")


def _curate_files(options: argparse.Namespace) -> None:
    # OpenMP reads this when torch is imported. Threads that wait by spinning take the cores from those that work, which
    # on a busy machine multiplies what the many small steps of a curator cost.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from chexstudy.curation.embeddings.files import FileCuration, curate_files
    from chexstudy.paths import resolve_user_path

    for name in ("ids", "out"):
        if getattr(options, name) is None:
            options.parser.error(f"--embeddings needs --{name}")
    if options.table is None and (options.floor or options.report is not None):
        options.parser.error(
            f"--{'floor' if options.floor else 'report'} needs --table, which says who is in which group"
        )
    given = {name: getattr(options, name) for name in ("method", "keep", "seed", "threads")}
    files = {name: getattr(options, name) for name in ("embeddings", "ids", "out", "text", "losses", "scores", "table")}
    files["audit"] = options.report or None
    curate_files(
        FileCuration(
            **{name: resolve_user_path(path) for name, path in files.items() if path is not None},
            **{name: value for name, value in given.items() if value is not None},
            floors=tuple(options.floor or ()),
            report=options.report is not None,
            options=dict(options.parameter),
        )
    )


def _report_study(options: argparse.Namespace) -> None:
    from chexstudy.curation.embeddings.files import check_output, report_audit
    from chexstudy.curation.quality.audit import audit_arm
    from chexstudy.paths import resolve_user_path
    from chexstudy.runs import Run

    path = resolve_user_path(options.report) if options.report else None
    if path:
        check_output(path)
    run = Run("demo" if options.study is None else options.study)
    report_audit(audit_arm(run, options.arm or "curated", options.seed or 0), path)


def _add_why(verbs) -> None:
    parser = _add_verb(
        verbs,
        "why",
        "tell why a pair was kept or dropped",
        "Tell the story of one pair in words: when it was considered, which prototype it was near, how far, what was\n"
        "decided and on which grounds.",
        "examples:\n"
        "  chexstudy why phantom/000042 --study demo\n"
        "  chexstudy why phantom/000042 --arm curated --seed 1 --report-text\n\n"
        "writes: nothing",
        _tell_why,
    )
    parser.add_argument(
        "image_id", metavar="IMAGE_ID", help="the pair, by the image_id of the cohort table, or by the pseudonym shown"
    )
    parser.add_argument("--study", default="demo", metavar="S", help="the study (default: demo)")
    parser.add_argument("--arm", default="curated", metavar="A", help="the arm (default: curated)")
    parser.add_argument("--seed", type=int, default=0, metavar="K", help="its seed (default: 0)")
    parser.add_argument("--report-text", action="store_true", help="also show the report")


def _tell_why(options: argparse.Namespace) -> None:
    from chexstudy.curation.records.explain import tell_story
    from chexstudy.runs import Run

    print(tell_story(Run(options.study), options.image_id, options.arm, options.seed, options.report_text))


# --- cohort ----------------------------------------------------------------------------------------------------------


def _add_cohort(verbs) -> None:
    parser = _add_verb(
        verbs,
        "cohort",
        "build, convert, export, check or show a cohort",
        "A cohort is a table with one row an image: ids, split, view, report, and one column a finding\n"
        "(present 1, absent 0, uncertain -1, not stated empty).",
        "see: chexstudy cohort build --help",
        None,
    )
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)
    build = _add_verb(
        actions,
        "build",
        "build a cohort from a source",
        "Run 01_build_cohort: read a source, split its patients, put unreadable images in quarantine, store pixels.",
        "examples:\n"
        "  chexstudy cohort build --source phantom --study drawn\n"
        "  chexstudy cohort build --source nlm_tb --data-root ~/nlm_tb --study tb --size 96\n"
        "  chexstudy cohort build --source folder --data-root ~/mine --study mine     (with ~/mine/cohort.yaml)\n"
        "  chexstudy cohort build --source webdataset --data-root '~/shards/*.tar' --study shards\n\n"
        "writes: runs/<study>/cohort.parquet, quarantine.parquet, pixels/, and images/ of webdataset or huggingface",
        _build_cohort,
    )
    sources = ("phantom", "nih", "nlm_tb", "folder", "webdataset", "huggingface")
    build.add_argument("--source", choices=sources, help="where the images come from")
    build.add_argument("--data-root", metavar="X", help="the folder that holds the source's images and tables")
    build.add_argument("--size", metavar="N", help="pixels on a side of the stored images")
    _add_run_options(build, "that of the study, else of the source, else demo")
    _add_convert(actions)
    _add_export(actions)
    check = _add_verb(
        actions,
        "check",
        "check a cohort table, or a folder of your own",
        "Hold a study's cohort table against the contract: columns, label values, unique ids, one split a patient.\n"
        "For a folder of your own (images, a table, cohort.yaml) or another source, list everything that is wrong\n"
        "before an image is read: rows without an image, images without a row, copies, empty files, splits without\n"
        "patients, findings of one class, columns that nothing uses.",
        "examples:\n"
        "  chexstudy cohort check demo\n"
        "  chexstudy cohort check ~/mine\n"
        "  chexstudy cohort check ~/nih --source nih\n\n"
        "writes: nothing; exit status 2 if there is a problem that would stop a run, 0 with remarks alone",
        _check_cohort,
    )
    check.add_argument(
        "cohort", metavar="STUDY|TABLE.parquet|FOLDER", help="a study's name, a table's path, or a source's folder"
    )
    check.add_argument("--source", choices=sources[1:], help="what the folder is (default: told by what it holds)")
    show = _add_verb(
        actions,
        "show",
        "count what a cohort holds",
        "Count images, patients and reports by source and split, and the labels of every finding.",
        "example:\n  chexstudy cohort show demo\n\nwrites: nothing",
        _show_cohort,
    )
    show.add_argument("cohort", metavar="STUDY|TABLE.parquet", help="a study's name, or a table's path")


def _add_convert(actions) -> None:
    convert = _add_verb(
        actions,
        "convert",
        "write the pixel store of a cohort at a size of your choice",
        "Read every image of a cohort once, check and resize it, and write the pixels as shards of uint8 arrays, with\n"
        "an index and hashes. What cannot be used goes to quarantine and is counted. A conversion that was stopped,\n"
        "by a power cut too, goes on at the first shard that is not finished when the command is given again.\n\n"
        "With --study, the study's own store is written anew. With --cohort, the store of any cohort table is written\n"
        "to any folder. With --check, nothing is written: every shard is read and its hash compared.",
        "examples:\n"
        "  chexstudy cohort convert --study tb --size 378\n"
        "  chexstudy cohort convert --cohort cohort.parquet --root ~/images --out ~/store --size 224 --workers 8\n"
        "  chexstudy cohort convert --study tb --check\n\n"
        "writes: pixels/ (shard-00000.npy ..., index.parquet, manifest.json), cohort.parquet, quarantine.parquet in\n"
        "        runs/<study>/ or in --out",
        _convert_cohort,
    )
    convert.add_argument("--study", metavar="S", help="the study whose cohort is converted")
    convert.add_argument("--cohort", metavar="TABLE.parquet", help="a cohort table of no study")
    convert.add_argument("--root", metavar="FOLDER", help="where its relative image paths start (default: its folder)")
    convert.add_argument("--out", metavar="FOLDER", help="where its store is written")
    convert.add_argument("--size", type=int, metavar="N", help="pixels on a side of the stored images")
    convert.add_argument(
        "--fit",
        choices=("crop", "pad"),
        default="crop",
        help="how images are made square (default: crop, as published)",
    )
    convert.add_argument("--workers", type=int, metavar="N", help="processes that read images (default: one a core)")
    convert.add_argument("--shard-images", type=int, metavar="N", help="images a shard (default: about 256 MB)")
    convert.add_argument("--check", action="store_true", help="compare the hash of every shard; write nothing")


def _add_export(actions) -> None:
    export = _add_verb(
        actions,
        "export",
        "write a cohort for other programs",
        "Write the pairs of a study's cohort as WebDataset tar shards (KEY.png, KEY.json, KEY.txt), or as a folder\n"
        "that Hugging Face's datasets.load_dataset reads. Images are the stored pixels, without loss. Reports and the\n"
        "ids of patients and studies stay out unless asked for. A killed export goes on; two give the same bytes.",
        "examples:\n"
        "  chexstudy cohort export --study demo --to webdataset --out ~/demo-shards\n"
        "  chexstudy cohort export --study demo --to huggingface --out ~/demo-dataset --with-reports\n"
        "  chexstudy cohort build --source webdataset --data-root ~/demo-shards --study again\n\n"
        "writes: the shards, and export.json, which says what they hold",
        _export_cohort,
    )
    export.add_argument("--study", default="demo", metavar="S", help="the study (default: demo)")
    export.add_argument("--to", required=True, choices=("webdataset", "huggingface"), help="the format")
    export.add_argument("--out", required=True, metavar="FOLDER", help="where to: a new or an empty folder")
    export.add_argument("--shard-images", type=int, default=1000, metavar="N", help="images a shard (default: 1000)")
    export.add_argument("--with-reports", action="store_true", help="reports leave too")
    export.add_argument(
        "--with-patient-ids", action="store_true", help="ids of patients and studies leave, in place of new numbers"
    )
    export.add_argument(
        "--original-images", action="store_true", help="the image files as they are, in place of the stored pixels"
    )


def _export_cohort(options: argparse.Namespace) -> None:
    from chexstudy.cohort.interchange.export import ExportOptions, export_cohort
    from chexstudy.paths import resolve_user_path
    from chexstudy.runs import Run

    chosen = ExportOptions(
        options.to, options.shard_images, options.with_reports, options.with_patient_ids, options.original_images
    )
    folder = resolve_user_path(options.out)
    export = export_cohort(Run(options.study), folder, chosen)
    known = export.shards - export.written
    print(
        f"{export.pairs} pairs in {export.shards} shards in {folder}{f' ({known} were there)' if known else ''}.\n"
        f"{export.left_out}"
    )


def _convert_cohort(options: argparse.Namespace) -> None:
    from chexstudy.cohort.pixels.convert import StoreFolder, convert_cohort, read_requested_cohort
    from chexstudy.cohort.pixels.store import plan_pixel_store, verify_pixel_store
    from chexstudy.cohort.table import read_cohort
    from chexstudy.paths import resolve_user_path
    from chexstudy.runs import Run
    from chexstudy.workflow.identity import settle_store
    from chexstudy.workflow.locks import hold_study

    refuse = options.parser.error
    if options.study is not None and (options.cohort or options.out or options.root):
        refuse("--study has a cohort and a place of its own: give it without --cohort, --root and --out")
    if options.study is None and not options.out:
        refuse("say what to convert: --study S, or --cohort TABLE.parquet and --out FOLDER")
    run = Run(options.study) if options.study is not None else StoreFolder(resolve_user_path(options.out))
    if options.check:
        shards = verify_pixel_store(run)
        print(f"{run.path('pixels')}: {shards} shard{'s' * (shards > 1)}, every hash as written.")
        return
    if options.size is None:
        refuse("--size says how many pixels a side the stored images have, for example --size 378")
    if options.study is not None:
        with hold_study(run, "`chexstudy cohort convert`"):
            cohort = read_requested_cohort(run)
            plan = plan_pixel_store(run, cohort, options.size, options.fit, run.folder, options.shard_images)
            convert_cohort(run, plan, options.workers)
            settle_store(run, options.size, options.fit)
        return
    if not options.cohort:
        refuse("--cohort names the table to convert, for example --cohort cohort.parquet")
    table = resolve_user_path(options.cohort)
    root = resolve_user_path(options.root) if options.root else table.parent
    plan = plan_pixel_store(run, read_cohort(table), options.size, options.fit, root, options.shard_images)
    convert_cohort(run, plan, options.workers)


def _find_table(named: str) -> Path:
    """The cohort table meant by a study's name, a study's folder or a table's path."""
    from chexstudy.paths import resolve_user_path
    from chexstudy.runs import Run

    path = resolve_user_path(named)
    if (path / "cohort.parquet").is_file():
        return path / "cohort.parquet"
    if path.is_file() or path.suffix or len(Path(named).parts) != 1:
        return path
    return Run(named).require("cohort.parquet", "01_build_cohort")


def _build_cohort(options: argparse.Namespace) -> None:
    from chexstudy.runs import Run
    from chexstudy.workflow.identity import read_identity
    from chexstudy.workflow.profiles import list_profiles

    if options.profile is None:
        # Real images under the default study's name would end what was drawn there.
        if options.study is None and options.source not in (None, "phantom"):
            options.study = options.source
        if options.source in list_profiles() and read_identity(Run(options.study)) is None:
            options.profile = options.source
    named = {"source": options.source, "data_root": options.data_root, "image_size": options.size}
    options.parameter = [*options.parameter, *((name, value) for name, value in named.items() if value is not None)]
    _run_selected(options, ["01_build_cohort"])


def _check_cohort(options: argparse.Namespace) -> int:
    from chexstudy.cohort.check import check_source, check_table
    from chexstudy.cohort.table import finding_columns, read_cohort
    from chexstudy.paths import resolve_user_path

    path = resolve_user_path(options.cohort)
    is_source = options.source is not None or (path.is_dir() and not (path / "cohort.parquet").is_file())
    check = check_source(path, options.source) if is_source else check_table(read_cohort(_find_table(options.cohort)))
    if check.remarks:
        print("remarks:", *check.remarks, sep="\n  ")
    for problem in check.problems:
        print(problem, file=sys.stderr)
    if check.problems:
        return 2
    cohort = check.cohort
    print(
        f"{options.cohort} keeps the contract: {len(cohort)} images of {cohort.patient_id.nunique()} patients, "
        f"{len(finding_columns(cohort))} findings."
    )
    return 0


def _show_cohort(options: argparse.Namespace) -> None:
    from chexstudy.cohort.table import OUTCOME_PREFIX, YEARS_SUFFIX, finding_columns, outcome_names, read_cohort

    cohort = read_cohort(_find_table(options.cohort))
    groups = cohort.groupby(["source", "split"], sort=True)
    counts = groups.agg(
        images=("image_id", "size"), patients=("patient_id", "nunique"), studies=("study_id", "nunique")
    )
    counts["with report"] = groups["report"].agg(lambda reports: int((reports.str.strip() != "").sum()))
    print(f"{len(cohort)} images of {cohort.patient_id.nunique()} patients\n")
    print(counts.reset_index().to_string(index=False))
    findings = finding_columns(cohort)
    if findings:
        labels = cohort[findings]
        table = {"present": labels.eq(1).sum(), "uncertain": labels.eq(-1).sum(), "absent": labels.eq(0).sum()}
        table["not stated"] = labels.isna().sum()
        width = max(map(len, findings))
        print(f"\n{'finding':<{width}}  " + "  ".join(f"{name:>10}" for name in table))
        for finding in table["present"].sort_values(ascending=False, kind="stable").index:
            print(f"{finding:<{width}}  " + "  ".join(f"{int(column[finding]):>10}" for column in table.values()))
    outcomes = outcome_names(cohort)
    if outcomes:
        width = max(map(len, ("outcome", *outcomes)))
        columns = ("happened", "did not", "unknown", "years observed, median")
        print(f"\n{'outcome':<{width}}  " + "  ".join(f"{name:>10}" for name in columns))
        for name in outcomes:
            events, years = cohort[f"{OUTCOME_PREFIX}{name}"], cohort.get(f"{OUTCOME_PREFIX}{name}{YEARS_SUFFIX}")
            counts = "  ".join(
                f"{int(number):>10}" for number in (events.eq(1).sum(), events.eq(0).sum(), events.isna().sum())
            )
            print(f"{name:<{width}}  {counts}" + ("" if years is None else f"  {years.median():>{len(columns[3])}.1f}"))


# --- plan-labels -----------------------------------------------------------------------------------------------------


def _add_plan_labels(verbs) -> None:
    parser = _add_verb(
        verbs,
        "plan-labels",
        "tell how many labels a target AUROC needs",
        "Read learning curves (AUROC at several numbers of labels) and tell for each finding how many labels more a\n"
        "target AUROC needs, with a 95 % interval, or why there is no number: the target is reached already, it lies\n"
        "above the plateau, or the labels so far do not say. Findings of one encoder learn from each other\n"
        "(--no-pool: each alone). Intervals are of the cases and the test set that the curves were measured on.\n\n"
        "A table of your own needs the columns n and auroc, one row a draw; finding, encoder, draw, seed, unit and\n"
        "positives are optional. It is parquet or CSV.",
        "examples:\n"
        "  chexstudy plan-labels --target 0.85 --study demo\n"
        "  chexstudy plan-labels --target 0.85 --curve curves.csv --cost 2.50\n"
        "  chexstudy plan-labels --target 0.80 --study demo --encoder curated --finding Mass --at-most 200\n\n"
        "reads: runs/<study>/label_budget/curves.parquet, or --curve\n"
        "writes: --out (the table, parquet or CSV), or nothing",
        _plan_labels,
    )
    parser.add_argument("--target", type=float, required=True, metavar="X", help="the AUROC to reach, such as 0.85")
    parser.add_argument("--curve", metavar="TABLE", help="a table of learning curves, .parquet or .csv")
    parser.add_argument("--study", metavar="S", help="the study whose curves are read (default: demo)")
    parser.add_argument("--finding", metavar="F", help="answer for this finding only")
    parser.add_argument("--encoder", metavar="E", help="answer for this encoder only")
    parser.add_argument("--cost", type=float, metavar="C", help="what labelling one case costs")
    parser.add_argument("--at-most", type=float, metavar="N", help="use only the part of the curves up to N labels")
    parser.add_argument("--no-pool", action="store_true", help="findings do not learn from each other")
    parser.add_argument("--seed", type=int, default=0, metavar="K", help="seed of the posterior draws (default: 0)")
    parser.add_argument("--out", metavar="FILE", help="also write the plan, .parquet or .csv")


def _plan_labels(options: argparse.Namespace) -> None:
    from chexstudy.label_planning.files import read_curves, write_plan
    from chexstudy.label_planning.planner import check_target, describe_plans, plan_table
    from chexstudy.paths import resolve_user_path

    if options.curve and options.study:
        options.parser.error("--curve and --study both say where the curves are: give one of them")
    check_target(options.target)
    path = resolve_user_path(options.curve) if options.curve else None
    out = resolve_user_path(options.out) if options.out else None
    plans = plan_table(
        read_curves(path, options.study or "demo"),
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
        write_plan(plans, out)


# --- release ---------------------------------------------------------------------------------------------------------


def _add_release(verbs) -> None:
    parser = _add_verb(
        verbs,
        "release",
        "write a trained arm as a Hugging Face model",
        "Write the trained pair as a folder that transformers loads where chexstudy is not installed: one file of\n"
        "weights, image processor, tokenizer, the Python files they need, and a model card written from the run.\n"
        "Nothing is uploaded.",
        "examples:\n"
        "  chexstudy release curated --study demo --out curated-model\n"
        "  chexstudy release full --study demo --seed 1 --out ~/models/full\n\n"
        "writes: --out, which must be new or hold an earlier release",
        _release,
    )
    parser.add_argument("arm", metavar="ARM", help="the trained arm, such as curated or full")
    parser.add_argument("--study", default="demo", metavar="S", help="the study (default: demo)")
    parser.add_argument("--seed", type=int, default=0, metavar="K", help="its seed (default: 0)")
    parser.add_argument("--out", required=True, metavar="FOLDER", help="where the model goes")
    parser.add_argument(
        "--accept-rare-tokens",
        action="store_true",
        help="release a vocabulary with tokens from reports of fewer than 5 patients, which may be names",
    )


def _release(options: argparse.Namespace) -> None:
    from chexstudy.paths import resolve_user_path
    from chexstudy.release.export import release_arm
    from chexstudy.runs import Run

    folder = resolve_user_path(options.out)
    release = release_arm(Run(options.study), options.arm, options.seed, folder, options.accept_rare_tokens)
    how = "with or without the code in it" if release.plain else "with the code in it"
    print(
        f"{release.folder} loads {how}; its embeddings differ from the trained pair's by at most "
        f"{release.difference:.0e}. Read its README.md, and choose a licence there, before you share it."
    )


# --- figures, golden numbers, doctor ---------------------------------------------------------------------------------


def _add_figures(verbs) -> None:
    parser = _add_verb(
        verbs,
        "figures",
        "draw the figures of a study again",
        "Run the notebooks of a study again with the study's values. Artifacts that are current\n"
        "are reused, so only the drawing is done anew; a step whose code or inputs changed is computed again.",
        "examples:\n"
        "  chexstudy figures --study demo\n"
        "  chexstudy figures --study demo --copy-to figures\n\n"
        "writes: runs/<study>/figures/ (PNG and PDF, with caption and numbers as JSON)",
        _draw_figures,
    )
    parser.add_argument("--study", default="demo", metavar="S", help="the study to draw (default: demo)")
    parser.add_argument("--copy-to", metavar="FOLDER", help="also copy the figures there, with a page about them")
    parser.add_argument("--quiet", action="store_true", help="do not repeat what the notebooks print")


def _draw_figures(options: argparse.Namespace) -> None:
    from chexstudy.paths import resolve_user_path
    from chexstudy.plots.gallery import publish_figures
    from chexstudy.runs import Run
    from chexstudy.workflow.runner import rerun_notebooks

    rerun_notebooks(options.study, quiet=options.quiet)
    run = Run(options.study)
    drawn = sorted(run.path("figures").glob("*.json"))
    print(f"{len(drawn)} figures in {run.path('figures')}")
    if options.copy_to:
        folder = resolve_user_path(options.copy_to)
        publish_figures(run, folder)
        print(f"copied to {folder}, with a README.md of what each one shows")


def _add_golden(verbs) -> None:
    parser = _add_verb(
        verbs,
        "check-golden",
        "check the curator against published numbers",
        "Run our curator on given embeddings and compare masks, loss, prototype usage and updated prototypes with the\n"
        "numbers in the file, case by case. This is what `faithful` means here.",
        "example:\n  chexstudy check-golden curator.npz\n\nwrites: nothing; exit status 1 if a case differs",
        _check_golden,
    )
    parser.add_argument("file", metavar="FILE.npz", help="inputs and expected numbers of every case")


def _check_golden(options: argparse.Namespace) -> int:
    from chexstudy.paths import resolve_user_path
    from chexstudy.pretraining.golden import check_golden

    cases = check_golden(resolve_user_path(options.file))
    verdicts = cases.replace({True: "same", False: "DIFFERS"})
    print(verdicts.to_string(index=False))
    passed = int(cases.passed.sum())
    print(f"{passed} of {len(cases)} cases agree.")
    return 0 if passed == len(cases) else 1


def _add_doctor(verbs) -> None:
    _add_verb(
        verbs,
        "doctor",
        "look at this installation",
        "Print versions, GPU, faiss build and where things live, and name what is wrong. Put it in bug reports.",
        "example:\n  chexstudy doctor\n\nwrites: nothing; exit status 1 if there is a problem",
        _examine,
    )


def _examine(options: argparse.Namespace) -> int:
    from chexstudy.cli.doctor import complaints, report

    print(report())
    return 1 if complaints() else 0


def _add_verb(verbs, name: str, summary: str, description: str, epilog: str, act) -> argparse.ArgumentParser:
    parser = _new_parser(verbs.add_parser, name, description, epilog, help=summary)
    if act:
        parser.set_defaults(act=act, parser=parser)
    return parser


def _new_parser(make, name: str, description: str, epilog: str, **options) -> argparse.ArgumentParser:
    parser = make(
        name,
        description=description,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        **options,
    )
    # Without a default here, a verb does not undo a --debug given before it.
    parser.add_argument(
        "--debug", action="store_true", default=argparse.SUPPRESS, help="show the traceback of an error"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
