"""The `chexstudy` command: thin verbs over the notebooks and the package."""

import argparse
import sys
from collections.abc import Sequence

from chexstudy.cli import advise, cohort, curate, doctor, evaluate, regimes, release, run, studies, upstream
from chexstudy.cli.parser import make_parser
from chexstudy.errors import StudyError
from chexstudy.workflow.unforeseen import silence, tell_mistake, tell_unforeseen

_ABOUT = """\
Train chest X-ray foundation models on less data and less compute: a reproducible study.

A study is one folder, runs/<study>. Notebooks fill it step by step; every verb below is a way to run
them without a screen, or to look at what they wrote.

first steps:
  chexstudy run all --profile debug       every notebook on a tiny drawn cohort, in minutes
  chexstudy run 04 -p seed 3              one notebook of the default study with another seed
  chexstudy run --list                    notebooks, their parameters, profiles
  chexstudy curate --embeddings E.npy --ids ids.parquet --keep 0.227 --out subset.parquet
  chexstudy doctor                        versions, GPU, faiss, where things live"""
# As the help lists them; a verb stands before its actions.
_VERBS = (
    run.run,
    *(
        cohort.cohort,
        cohort.build,
        cohort.convert,
        cohort.export,
        cohort.check,
        cohort.duplicates,
        cohort.show,
        cohort.sources,
    ),
    *(run.embed, curate.curate, curate.why, run.pretrain, upstream.upstream),
    *(regimes.regimes, advise.advise),
    *(evaluate.evaluate, evaluate.compare, evaluate.reports, evaluate.results, evaluate.plan_labels),
    *(release.release, run.figures),
    *(studies.list_all, studies.show, studies.remove, studies.compare),
    *(curate.check_golden, doctor.doctor),
)


def build_parser() -> argparse.ArgumentParser:
    """The parser of all verbs."""
    return make_parser(_ABOUT, _VERBS)


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
