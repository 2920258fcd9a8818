"""Verbs that run notebooks: run, embed, pretrain, figures."""

from argparse import Namespace

from chexstudy import paths
from chexstudy.cli.parser import QUIET, STUDY, option, run_options, verb


@verb(
    "run",
    "run one notebook, several, or all",
    option("notebooks NOTEBOOK", "notebooks by name or number, or all", nargs="*"),
    *run_options(),
    option("--list", "list notebooks, parameters and profiles; run nothing"),
)
def run(options: Namespace) -> None:
    """Run notebooks of a study in order, without a screen. Names and types of all parameters are checked first.
    The executed notebooks, with their outputs, lie in runs/<study>/notebooks/.

    examples:
      chexstudy run all                                        the default study
      chexstudy run all --profile nlm_tb -p data_root ~/nlm    a real cohort
      chexstudy run 05_compare_arms --study demo -p resamples 500
      chexstudy run 07 08 --study demo                         two, one after the other
      chexstudy run 04 --list                                  what 04 can be told
      chexstudy run --list                                     all notebooks and profiles

    writes: runs/<study>/ (artifacts, notebooks/, figures/, results/, timings/)
    """
    if "all" in options.notebooks and len(options.notebooks) > 1:
        options.parser.error("all stands for every notebook: name no other beside it")
    names = None if options.notebooks in ([], ["all"]) else options.notebooks
    if options.list:
        _list_parameters(names)
    elif not options.notebooks:
        options.parser.error("say which notebook, by name or number, or all")
    else:
        run_chosen(options, names)


@verb("embed", "embed the pairs of a cohort", *run_options())
def embed(options: Namespace) -> None:
    """Run 02_embed_pairs: image and text embeddings of every training pair, by pretrained encoders or by tiny ones
    after a short warm-up, and a map of them.
    Embeddings are cached by encoder, revision, preprocessing and cohort: a killed run goes on, a second costs
    nothing.

    example:
      chexstudy embed --profile demo --study demo

    writes: runs/<study>/embeddings/scoring/ (image.npy, text.npy, ids.parquet, map.parquet) and figures/
    """
    run_chosen(options, ["02_embed_pairs"])


@verb("pretrain", "train the arms", *run_options())
def pretrain(options: Namespace) -> None:
    """Run 04_pretrain_curated: the curated arm and the arms it is compared with, each resumed where it stopped.

    example:
      chexstudy pretrain --profile demo --study demo

    writes: runs/<study>/pretraining/<arm>/seed<k>/ (model/, subset.parquet, history.parquet, compute.json)
    """
    run_chosen(options, ["04_pretrain_curated"])


def run_chosen(options: Namespace, names: list[str] | None) -> None:
    """Run notebooks as the options of `run_options` say; None runs all."""
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


@verb(
    "figures",
    "draw the figures of a study again",
    STUDY,
    option("--copy-to FOLDER", "also copy the figures there, with a page about them"),
    QUIET,
)
def figures(options: Namespace) -> None:
    """Run the notebooks of a study again with the study's values. Artifacts that are current
    are reused, so only the drawing is done anew; a step whose code or inputs changed is computed again.

    examples:
      chexstudy figures --study demo
      chexstudy figures --study demo --copy-to figures

    writes: runs/<study>/figures/ (PNG and PDF, with caption and numbers as JSON)
    """
    from chexstudy.plots.gallery import publish_figures
    from chexstudy.runs import Run
    from chexstudy.workflow.runner import rerun_notebooks

    rerun_notebooks(options.study, quiet=options.quiet)
    run = Run(options.study)
    drawn = sorted(run.path("figures").glob("*.json"))
    print(f"{len(drawn)} figures in {run.path('figures')}")
    if options.copy_to:
        folder = paths.resolve_user_path(options.copy_to)
        publish_figures(run, folder)
        print(f"copied to {folder}, with a README.md of what each one shows")
