"""Every place on disk. Nothing else in the package or the notebooks builds a path from the working folder.

``CHEXSTUDY_HOME`` moves what is written (runs, caches) away from the checkout; the code, the notebooks and the
committed figures stay where they are.
"""

import os
from pathlib import Path

from chexstudy.errors import StudyError

PACKAGE = Path(__file__).resolve().parent
REPOSITORY = PACKAGE.parent
NOTEBOOKS = REPOSITORY / "notebooks"
PROFILES = NOTEBOOKS / "profiles"
FIGURES = REPOSITORY / "figures"


def home() -> Path:
    """The folder under which runs and caches are written: ``$CHEXSTUDY_HOME``, else the checkout."""
    given = _expand_user(os.environ.get("CHEXSTUDY_HOME") or REPOSITORY)
    return (given if given.is_absolute() else working_folder() / given).resolve()


def working_folder() -> Path:
    """The folder the process works in."""
    try:
        return Path.cwd()
    except FileNotFoundError:
        raise StudyError(
            "the folder you stand in was removed: change to another one and give the command again."
        ) from None


def _expand_user(path: str | Path) -> Path:
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise StudyError(f"there is no home folder for {Path(path).parts[0]!r}: give the whole path.") from None


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
    if "\0" in str(path):
        raise StudyError("a path cannot hold the character of number 0: write it again.")
    path = _expand_user(path)
    if path.is_absolute():
        return path.resolve()
    return (Path(os.environ.get("CHEXSTUDY_CWD") or working_folder()) / path).resolve()
