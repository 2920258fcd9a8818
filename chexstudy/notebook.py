"""What every notebook's first code cell calls, so that it behaves the same in JupyterLab, papermill and the runner.

The cell after ``parameters`` reads::

    from chexstudy.notebook import start_notebook

    run = start_notebook("04_pretrain_curated", globals())
"""

import ast
import os
from collections.abc import Iterable, Iterator, MutableMapping
from pathlib import Path

from chexstudy import paths
from chexstudy.parameters import check_names, check_values, read_parameters
from chexstudy.runs import Run

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
        StudyError: a parameter is unknown or has another type than its default.
    """
    source = Path(folder or paths.NOTEBOOKS) / f"{name}.py"
    declared = read_parameters(source)
    check_names(_injected_names(namespace.get("In", ())), declared, name)
    present = {parameter: namespace[parameter] for parameter in declared if parameter in namespace}
    namespace.update(check_values(declared, present, name))
    for variable, value in notebook_environment().items():
        os.environ.setdefault(variable, value)
    # JupyterLab starts kernels in the notebook's folder; the user thinks from the checkout.
    if Path.cwd() == source.parent.resolve():
        os.environ.setdefault("CHEXSTUDY_CWD", str(paths.REPOSITORY))
    return Run(str(namespace["study"]))


def _injected_names(executed_cells: Iterable[str]) -> Iterator[str]:
    """Names assigned in the cell papermill injects, found in the kernel's history by papermill's own comment."""
    for cell in executed_cells:
        if cell.lstrip().startswith(_INJECTED):
            for statement in ast.parse(cell).body:
                if isinstance(statement, ast.Assign):
                    yield from (target.id for target in statement.targets if isinstance(target, ast.Name))
