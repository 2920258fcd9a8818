"""Settings of `make lab` that JSON cannot say."""

import subprocess
from pathlib import Path


def refresh_git(os_path, **_):
    """Let git notice that a notebook saved with new outputs is, without them, the one it has."""
    path = Path(os_path)
    if path.suffix == ".ipynb":
        # In the background: nobody waits for git to save.
        refresh = 'git diff --quiet -- "$0" && git update-index -- "$0"'
        return subprocess.Popen(["sh", "-c", refresh, path.name], cwd=path.parent, stderr=subprocess.DEVNULL)


c = get_config()  # noqa: F821
c.FileContentsManager.post_save_hook = refresh_git
