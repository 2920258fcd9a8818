"""The verb that makes the committed pretrained encoders anew: upstream."""

from argparse import Namespace

from chexstudy.cli.parser import QUIET, option, verb
from chexstudy.paths import resolve_user_path


@verb(
    "upstream",
    "make the pretrained encoders that studies start from",
    option("--quick", "a smaller run of the same recipe, in minutes"),
    option("--start HOW", "contrastive, self_supervised or supervised images (default: the best without labels)"),
    option("--device D", "auto, cpu or cuda", default="auto"),
    option("--workers N", "trainings side by side", default=2),
    option("--out FOLDER", "where the encoders go (default: into the package, in place of those committed)"),
    QUIET,
)
def upstream(options: Namespace) -> None:
    """Draw a cohort of patients whom no study sees, train an image encoder by self-supervision, a text encoder by
    masked language modelling and an aligned pair on it, and compare what images, reports and labels are worth as a
    start. A killed run goes on where it stopped.

    examples:
      chexstudy upstream --quick --out ~/upstream
      chexstudy upstream

    writes: runs/upstream/ and --out (image/, text/, pair/, README.md, starts.csv)
    """
    from chexstudy.cohort.phantom.plan import UPSTREAM_SEED, UPSTREAM_STUDY
    from chexstudy.encoders.upstream_encoders import FOLDER
    from chexstudy.experiments.upstream import COMMITTED, QUICK, make_upstream
    from chexstudy.runs import Run
    from chexstudy.workflow.runner import run_notebooks

    recipe = QUICK if options.quick else COMMITTED
    told = {"pairs": recipe.pairs, "cohort_seed": UPSTREAM_SEED, "workers": options.workers}
    run_notebooks(["01_build_cohort"], "demo", told, study=UPSTREAM_STUDY, change=["pairs"], quiet=options.quiet)
    folder = resolve_user_path(options.out) if options.out else FOLDER
    command = f"chexstudy upstream{' --quick' * options.quick}"
    made = make_upstream(
        Run(UPSTREAM_STUDY), recipe, folder, options.start or "", options.device, options.workers, command
    )
    print(made)
