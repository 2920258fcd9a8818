"""What every notebook's first code cell calls, so that it behaves the same in JupyterLab, papermill and the runner.

The cell after ``parameters`` reads::

    from chexstudy.workflow.notebook import start_notebook

    run = start_notebook("04_pretrain_curated", globals())
"""

import ast
import os
from collections.abc import Iterable, MutableMapping
from pathlib import Path

from chexstudy import NETWORK_SWITCHES, paths
from chexstudy.children import end_with_parent
from chexstudy.errors import StudyError
from chexstudy.runs import MADE_BY_VARIABLE, Run
from chexstudy.workflow.identity import CHANGE, FOLDERS, begin_notebook, choose_profile, settle_values
from chexstudy.workflow.locks import hold_while_cells_run
from chexstudy.workflow.notebook_tables import use_plain_tables
from chexstudy.workflow.parameters import check_names, check_values, read_parameters

_INJECTED = "# Parameters"
_CACHES = {"NUMBA_CACHE_DIR": "numba", "MPLCONFIGDIR": "matplotlib"}


def notebook_environment(online: bool = False) -> dict[str, str]:
    """Environment variables a notebook's kernel runs under; what the user has set already wins.

    Compiled code and fonts are cached in a writable place, and models are downloaded only if ``online``.
    """
    caches = {name: str(paths.cache() / folder) for name, folder in _CACHES.items()}
    # --online is the user's wish of this moment: it wins over what a shell profile exports.
    return {name: os.environ.get(name, place) for name, place in caches.items()} | {
        name: "0" if online else os.environ.get(name, "1") for name in NETWORK_SWITCHES
    }


def start_notebook(name: str, namespace: MutableMapping[str, object], folder: str | Path | None = None) -> Run:
    """Check the parameters in a notebook's ``globals()``, give them the study's values, and open its run folder.

    Values edited by hand and values injected by papermill are held to the same rules as those of the command line; a
    whole number given where a number is expected becomes one. The others become those that the study has, or that the
    profile of its name has if there is no such study yet. The study is held while cells run.
    """
    end_with_parent()
    source = Path(folder or paths.NOTEBOOKS) / f"{name}.py"
    declared = read_parameters(source)
    own, injected = _assigned_parameters(namespace.get("In", ()))
    check_names([given for given in (*own, *injected) if given != CHANGE], declared, name)
    absent = [parameter for parameter in declared if parameter not in namespace]
    if absent:
        raise StudyError(f"the parameters cell of {name} does not set {absent[0]!r}: put its line back.")
    values = check_values(declared, {parameter: namespace[parameter] for parameter in declared}, name)
    asked = {one: value for one, value in values.items() if one in injected or value != declared[one].default}
    os.environ[MADE_BY_VARIABLE] = name
    for variable, value in notebook_environment().items():
        os.environ.setdefault(variable, value)
    # JupyterLab starts kernels in the notebook's folder; the user thinks from the checkout.
    if paths.working_folder() == source.parent.resolve():
        os.environ.setdefault("CHEXSTUDY_CWD", str(paths.REPOSITORY))
    run = Run(str(namespace["study"]))
    hold_while_cells_run(run, f"the notebook {name}")
    settled = settle_values(
        run,
        {name: declared},
        {name: asked},
        choose_profile(run, None, source.parent / "profiles"),
        accepted=namespace.get(CHANGE) is True,
        how=f"set {CHANGE} = True in the parameters cell (papermill: -p {CHANGE} True)",
    )[name]
    begin_notebook(run, name, settled)
    use_plain_tables()
    namespace.update(values | settled)
    # What stands otherwise in the parameters cell; a folder is not named, as the notebook may be handed on.
    taken = {one: value for one, value in settled.items() if one not in asked and value != values[one]}
    if taken:
        shown = [one if one in FOLDERS else f"{one} = {value!r}" for one, value in taken.items()]
        print(f"Taken from study {run.study!r}: {', '.join(shown)}.")
    return run


def _assigned_parameters(executed_cells: Iterable[str]) -> tuple[list[str], list[str]]:
    """Names set in the parameters cell as it was last run, perhaps edited by hand, and in papermill's own after it.

    Both are found in the kernel's history: papermill's by its comment, the other because it sets ``study``.
    """
    own, injected = [], []
    for cell in executed_cells:
        names = _assigned_names(cell)
        if cell.lstrip().startswith(_INJECTED):
            injected = names
        elif "study" in names:
            own = names
    return own, injected


def _assigned_names(cell: str) -> list[str]:
    """Names a cell of nothing but plain assignments sets; none for any other cell."""
    try:
        statements = ast.parse(cell).body
    except SyntaxError:
        # Magics and shell commands.
        return []
    if not all(isinstance(statement, ast.Assign | ast.AnnAssign) for statement in statements):
        return []
    targets = [target for one in statements for target in getattr(one, "targets", None) or [one.target]]
    return [target.id for target in targets if isinstance(target, ast.Name)]
