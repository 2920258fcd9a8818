"""The verbs of the `chexstudy` command about whole studies: list, show, rm, compare-studies."""

import argparse
import sys
from collections.abc import Callable


def add_study_verbs(verbs, add_verb: Callable[..., argparse.ArgumentParser]) -> None:
    """Add the verbs to the command's.

    Args:
        verbs: where `argparse` keeps them.
        add_verb: ``(verbs, name, summary, description, epilog, act)``, returns the verb's parser.
    """
    add_verb(
        verbs,
        "list",
        "list the studies",
        "List the studies under runs/: profile, cohort, notebooks done, whether one is running or stale, size, and\n"
        "when it last changed.",
        "example:\n  chexstudy list\n\nwrites: nothing",
        _list_studies,
    )
    show = add_verb(
        verbs,
        "show",
        "tell what a study is and holds",
        "Tell a study's profile and changed parameters, its cohort, how far its notebooks and arms are, what is stale\n"
        "in it and why, and what takes its space.",
        "example:\n  chexstudy show demo\n\nwrites: nothing",
        _show_study,
    )
    show.add_argument("study", metavar="STUDY", help="the study")
    remove = add_verb(
        verbs,
        "rm",
        "remove a study",
        "Remove a study with its cohort, models, results and figures. It asks before; a study at work is refused.",
        "examples:\n  chexstudy rm tb\n  chexstudy rm debug --yes\n\nwrites: nothing; removes runs/<study>/",
        _remove_study,
    )
    remove.add_argument("study", metavar="STUDY", help="the study")
    remove.add_argument("--yes", action="store_true", help="do not ask")
    compare = add_verb(
        verbs,
        "compare-studies",
        "lay results of two studies side by side",
        "Tell in which parameters, cohort and code two studies differ, and lay side by side what both measured:\n"
        "values with their 95 % intervals, and the difference (B minus A). Intervals are each study's own; nothing\n"
        "pairs the patients of two studies, so no difference has one. Two models of one cohort: evaluate compare.",
        "examples:\n"
        "  chexstudy compare-studies demo wider\n"
        "  chexstudy compare-studies demo wider --task linear_probe --out both.csv\n\n"
        "writes: --out, all results of both; otherwise nothing",
        _compare_studies,
    )
    compare.add_argument("first", metavar="A", help="a study")
    compare.add_argument("second", metavar="B", help="the study it is compared with")
    compare.add_argument(
        "--task", default="zero_shot", metavar="T", help="the results that are shown (default: zero_shot)"
    )
    compare.add_argument("--out", metavar="FILE", help="also write all that both measured, as .csv or .parquet")


def _list_studies(options: argparse.Namespace) -> None:
    import pandas as pd

    from chexstudy import paths
    from chexstudy.runs import Run
    from chexstudy.workflow.studies import count_notebooks, examine_study, list_studies

    studies = [examine_study(Run(name)) for name in list_studies()]
    if not studies:
        print(f"There is no study at {paths.runs()} yet: `chexstudy run all --profile debug` makes one.")
        return
    table = pd.DataFrame(
        {
            "study": one.name,
            "profile": one.profile,
            "cohort": one.cohort,
            "notebooks": count_notebooks(one.notebooks),
            "state": one.state,
            "size": _name_size(one.bytes),
            "last change": f"{one.changed_at:%Y-%m-%d %H:%M}" if one.changed_at else "",
        }
        for one in studies
    )
    print(_lay_out(table))


def _show_study(options: argparse.Namespace) -> None:
    import pandas as pd

    from chexstudy.workflow.identity import read_identity
    from chexstudy.workflow.studies import examine_study, find_study, list_trained_arms

    run = find_study(options.study)
    study, identity = examine_study(run), read_identity(run)
    print(f"Study {study.name!r} in {run.folder}, {_name_size(study.bytes)}")
    print(f"Profile: {study.profile or 'not recorded'}")
    if identity is not None:
        for name, value in sorted(identity.changed.items()):
            print(f"  {name} = {value!r}")
    print(f"Cohort: {study.cohort or 'none yet'}")
    if study.holder:
        print(f"At work on it: {study.holder}")
    if study.notebooks:
        because = {name: f"stale: {', '.join(names)} changed" for name, names in study.stale_values.items()}
        rows = [(name, state, because.get(name, "")) for name, state in study.notebooks.items()]
        print("\n" + _lay_out(pd.DataFrame(rows, columns=["notebook", "state", ""])))
    arms = list_trained_arms(run)
    if arms:
        rows = [(arm, " ".join(map(str, seeds))) for arm, seeds in arms.items()]
        print("\n" + _lay_out(pd.DataFrame(rows, columns=["trained arm", "seeds"])))
    for reason in sorted(set(study.stale_artifacts.values())):
        names = [name for name, why in study.stale_artifacts.items() if why == reason]
        more = f" and {len(names) - 10} more" if len(names) > 10 else ""
        print(f"\nStale, {reason}: {', '.join(names[:10])}{more}")
    rows = [(name, _name_size(size)) for name, size in list(study.sizes.items())[:8]]
    print("\n" + _lay_out(pd.DataFrame(rows, columns=["takes space", "size"])))


def _remove_study(options: argparse.Namespace) -> None:
    from chexstudy.errors import StudyError
    from chexstudy.workflow.studies import examine_study, find_study, remove_study

    run = find_study(options.study)
    study = examine_study(run)
    held = ", ".join(filter(None, (study.cohort, f"{len(study.notebooks)} notebooks", _name_size(study.bytes))))
    if not options.yes:
        if not sys.stdin.isatty():
            raise StudyError(f"study {run.study!r} ({held}) is only removed when asked for: add --yes.")
        if input(f"Remove study {run.study!r} ({held}) for good? [y/N] ").strip().lower() not in ("y", "yes"):
            print("Nothing was removed.")
            return
    remove_study(run)
    print(f"Study {run.study!r} ({held}) was removed.")


def _compare_studies(options: argparse.Namespace) -> None:
    from chexstudy.evaluation.comparison.table import check_output
    from chexstudy.runs import atomic_path
    from chexstudy.workflow.studies import compare_results, find_study, list_differences, select_overview

    first, second = find_study(options.first), find_study(options.second)
    out = check_output(options.out) if options.out else None
    differences = list_differences(first, second)
    if len(differences):
        print(_lay_out(differences) + "\n")
    else:
        print("The studies have the same profile, parameters, cohort and code.\n")
    results = compare_results(first, second)
    shown = select_overview(results, options.task)
    table = shown[["arm", "data_set", "finding", "metric", "setting"]]
    table = table.drop(columns=[name for name in ("setting", "finding") if shown[name].nunique() == 1])
    for study, side in ((options.first, "first"), (options.second, "second")):
        values = shown[[f"value_{side}", f"ci_low_{side}", f"ci_high_{side}"]]
        table = table.assign(
            **{study if study not in table else f"{study} ({side})": [*map(_name_value, values.values)]}
        )
    print(_lay_out(table.assign(difference=shown.difference.map("{:+.3f}".format))))
    others = sorted(set(results.task) - {options.task})
    if others:
        print(f"\nBoth also measured (--task): {', '.join(others)}")
    if out is not None:
        with atomic_path(out) as temporary:
            if out.suffix == ".csv":
                results.to_csv(temporary, index=False)
            else:
                results.to_parquet(temporary, index=False)
        print(f"written to {out}")


def _name_value(row) -> str:
    value, low, high = row
    return f"{value:.3f}" + (f" [{low:.3f}, {high:.3f}]" if low == low else "")


def _name_size(size: int) -> str:
    for unit, power in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= power:
            return f"{size / power:.1f} {unit}"
    return f"{size} bytes"


def _lay_out(table) -> str:
    """A table of texts, each column to the left."""
    texts = table.astype(str)
    widths = {name: max(len(name), *texts[name].str.len()) for name in texts}
    rows = [list(texts.columns), *texts.values.tolist()]
    return "\n".join(
        "  ".join(text.ljust(width) for text, width in zip(row, widths.values(), strict=True)).rstrip() for row in rows
    )
