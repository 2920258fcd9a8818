"""What every notebook's first code cell calls, so that it behaves the same in JupyterLab, papermill and the runner.

The cell after ``parameters`` reads::

    from chexstudy.notebook import start_notebook

    run = start_notebook("04_pretrain_curated", globals())
"""

import ast
import os
from collections.abc import Iterable, MutableMapping
from pathlib import Path

from chexstudy import paths
from chexstudy.errors import StudyError
from chexstudy.parameters import check_names, check_values, read_parameters
from chexstudy.runs import MADE_BY_VARIABLE, Run

_INJECTED = "# Parameters"


def notebook_environment(online: bool = False) -> dict[str, str]:
    """Environment variables a notebook's kernel runs under; what the user has set already wins.

    Compiled code and fonts are cached in a writable place, nothing reports home, and models come from the local cache
    unless ``online``.
    """
    offline = "0" if online else "1"
    defaults = {
        "HF_HUB_OFFLINE": offline,
        "TRANSFORMERS_OFFLINE": offline,
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "DO_NOT_TRACK": "1",
        "NUMBA_CACHE_DIR": str(paths.cache() / "numba"),
        "MPLCONFIGDIR": str(paths.cache() / "matplotlib"),
    }
    # --online is the user's wish of this moment: it wins over what a shell profile exports.
    forced = {"HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"} if online else set()
    return {name: value if name in forced else os.environ.get(name, value) for name, value in defaults.items()}


def start_notebook(name: str, namespace: MutableMapping[str, object], folder: str | Path | None = None) -> Run:
    """Check the notebook's parameters, set up its environment, and open the run folder of its study.

    Values edited by hand and values injected by papermill are held to the same rules as those of the command line; a
    whole number given where a number is expected becomes one.

    Args:
        name: the notebook's name, for example ``04_pretrain_curated``.
        namespace: the notebook's ``globals()``.
        folder: where the notebook's source lies, if not in ``notebooks/``.

    Returns:
        The run of the parameter ``study``.

    Raises:
        StudyError: a parameter is unknown, absent, or of another type than its default.
    """
    source = Path(folder or paths.NOTEBOOKS) / f"{name}.py"
    declared = read_parameters(source)
    check_names(_assigned_parameters(namespace.get("In", ())), declared, name)
    absent = [parameter for parameter in declared if parameter not in namespace]
    if absent:
        raise StudyError(f"the parameters cell of {name} does not set {absent[0]!r}: put its line back.")
    namespace.update(check_values(declared, {parameter: namespace[parameter] for parameter in declared}, name))
    os.environ[MADE_BY_VARIABLE] = name
    for variable, value in notebook_environment().items():
        os.environ.setdefault(variable, value)
    # JupyterLab starts kernels in the notebook's folder; the user thinks from the checkout.
    if Path.cwd() == source.parent.resolve():
        os.environ.setdefault("CHEXSTUDY_CWD", str(paths.REPOSITORY))
    return Run(str(namespace["study"]))


def _assigned_parameters(executed_cells: Iterable[str]) -> list[str]:
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
    return own + injected


def _assigned_names(cell: str) -> list[str]:
    """Names a cell of nothing but plain assignments sets; none for any other cell."""
    try:
        statements = ast.parse(cell).body
    except SyntaxError:
        # Magics and shell commands.
        return []
    names = []
    for statement in statements:
        if not isinstance(statement, ast.Assign | ast.AnnAssign):
            return []
        targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
        names += [target.id for target in targets if isinstance(target, ast.Name)]
    return names
