"""Every place on disk. Nothing else in the package or the notebooks builds a path from the working folder.

``CHEXSTUDY_HOME`` moves what is written (runs, caches) away from the checkout; the code, the notebooks and the
committed figures stay where they are.
"""

import os
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent
REPOSITORY = PACKAGE.parent
NOTEBOOKS = REPOSITORY / "notebooks"
PROFILES = NOTEBOOKS / "profiles"
FIGURES = REPOSITORY / "figures"
DATA = REPOSITORY / "data"


def home() -> Path:
    """The folder under which runs and caches are written: ``$CHEXSTUDY_HOME``, else the checkout."""
    return Path(os.environ.get("CHEXSTUDY_HOME") or REPOSITORY).expanduser().resolve()


def runs() -> Path:
    """The folder that holds one folder a study."""
    return home() / "runs"


def cache() -> Path:
    """A writable folder for compiled code and other things that can be made again."""
    return home() / "runs" / ".cache"


def resolve_user_path(path: str | Path) -> Path:
    """A path typed by a user: ``~`` expanded, relative ones taken from the folder the user stands in.

    The runner exports ``CHEXSTUDY_CWD`` because papermill and JupyterLab start kernels in different folders.
    """
    path = Path(path).expanduser()
    if path.is_absolute():
        return path.resolve()
    return (Path(os.environ.get("CHEXSTUDY_CWD") or Path.cwd()) / path).resolve()
