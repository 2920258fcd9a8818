"""Verbs of whole studies: list, show, rm, compare-studies."""

import sys
from argparse import Namespace

from chexstudy import paths
from chexstudy.cli.parser import option, verb
from chexstudy.cli.tables import check_output, lay_out, name_size, write_table
from chexstudy.errors import StudyError

_STUDY = option("study STUDY", "the study")


@verb("list", "list the studies")
def list_all(options: Namespace) -> None:
    """List the studies under runs/: profile, cohort, notebooks done, whether one is running or stale, size, and
    when it last changed.

    example:
      chexstudy list

    writes: nothing
    """
    import pandas as pd

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
            "size": name_size(one.bytes),
            "last change": f"{one.changed_at:%Y-%m-%d %H:%M}" if one.changed_at else "",
        }
        for one in studies
    )
    print(lay_out(table))


@verb("show", "tell what a study is and holds", _STUDY)
def show(options: Namespace) -> None:
    """Tell a study's profile and changed parameters, its cohort, how far its notebooks and arms are, what is stale
    in it and why, and what takes its space.

    example:
      chexstudy show demo

    writes: nothing
    """
    import pandas as pd

    from chexstudy.workflow.identity import read_identity
    from chexstudy.workflow.studies import examine_study, find_study, list_trained_arms

    run = find_study(options.study)
    study, identity = examine_study(run), read_identity(run)
    print(f"Study {study.name!r} in {run.folder}, {name_size(study.bytes)}")
    print(f"Profile: {study.profile or 'not recorded'}")
    if identity is not None:
        for name, value in sorted(identity.changed.items()):
            print(f"  {name} = {value!r}")
    print(f"Cohort: {study.cohort or 'none yet'}")
    if study.holder:
        print(f"At work on it: {study.holder}")
    because = {name: f"stale: {', '.join(names)} changed" for name, names in study.stale_values.items()}
    notebooks = [(name, state, because.get(name, "")) for name, state in study.notebooks.items()]
    arms = [(arm, " ".join(map(str, seeds))) for arm, seeds in list_trained_arms(run).items()]
    for rows, columns in ((notebooks, ["notebook", "state", ""]), (arms, ["trained arm", "seeds"])):
        if rows:
            print("\n" + lay_out(pd.DataFrame(rows, columns=columns)))
    for reason in sorted(set(study.stale_artifacts.values())):
        names = [name for name, why in study.stale_artifacts.items() if why == reason]
        more = f" and {len(names) - 10} more" if len(names) > 10 else ""
        print(f"\nStale, {reason}: {', '.join(names[:10])}{more}")
    sizes = [(name, name_size(size)) for name, size in list(study.sizes.items())[:8]]
    print("\n" + lay_out(pd.DataFrame(sizes, columns=["takes space", "size"])))


@verb("rm", "remove a study", _STUDY, option("--yes", "do not ask"))
def remove(options: Namespace) -> None:
    """Remove a study with its cohort, models, results and figures. It asks before; a study at work is refused.

    examples:
      chexstudy rm tb
      chexstudy rm debug --yes

    writes: nothing; removes runs/<study>/
    """
    from chexstudy.workflow.studies import examine_study, find_study, remove_study

    run = find_study(options.study)
    study = examine_study(run)
    held = ", ".join(filter(None, (study.cohort, f"{len(study.notebooks)} notebooks", name_size(study.bytes))))
    if not options.yes:
        if not sys.stdin.isatty():
            raise StudyError(f"study {run.study!r} ({held}) is only removed when asked for: add --yes.")
        if input(f"Remove study {run.study!r} ({held}) for good? [y/N] ").strip().lower() not in ("y", "yes"):
            print("Nothing was removed.")
            return
    remove_study(run)
    print(f"Study {run.study!r} ({held}) was removed.")


@verb(
    "compare-studies",
    "lay results of two studies side by side",
    option("first A", "a study"),
    option("second B", "the study it is compared with"),
    option("--task T", "the results that are shown", default="zero_shot"),
    option("--out FILE", "also write all that both measured, as .csv or .parquet", type=check_output),
)
def compare(options: Namespace) -> None:
    """Tell in which parameters, cohort and code two studies differ, and lay side by side what both measured:
    values with their 95 % intervals, and the difference (B minus A). Intervals are each study's own; nothing
    pairs the patients of two studies, so no difference has one. Two models of one cohort: evaluate compare.

    examples:
      chexstudy compare-studies demo wider
      chexstudy compare-studies demo wider --task linear_probe --out both.csv

    writes: --out, all results of both; otherwise nothing
    """
    from chexstudy.results import write_interval
    from chexstudy.workflow.studies import (
        WHAT_IS_MEASURED,
        compare_results,
        find_study,
        list_differences,
        select_overview,
    )

    first, second = find_study(options.first), find_study(options.second)
    differences = list_differences(first, second)
    if len(differences):
        print(lay_out(differences) + "\n")
    else:
        print("The studies have the same profile, parameters, cohort and code.\n")
    results = compare_results(first, second)
    shown = select_overview(results, options.task)
    table = shown[[name for name in WHAT_IS_MEASURED if name not in ("task", "seed")]]
    table = table[[name for name in table if name in ("arm", "data_set", "metric") or table[name].nunique() > 1]]
    for study, side in ((options.first, "first"), (options.second, "second")):
        values = shown[[f"value_{side}", f"ci_low_{side}", f"ci_high_{side}"]].to_numpy()
        name = study if study not in table else f"{study} ({side})"
        table = table.assign(**{name: [write_interval(*row) for row in values]})
    print(lay_out(table.assign(difference=shown.difference.map("{:+.3f}".format))))
    others = sorted(set(results.task) - {options.task})
    if others:
        print(f"\nBoth also measured (--task): {', '.join(others)}")
    if options.out:
        write_table(results, options.out)
