"""Progress of long work: a bar at a terminal or in JupyterLab, a line now and then where nobody watches."""

import os
import sys
import time
from collections.abc import Iterable, Iterator

from tqdm import tqdm

_SECONDS_BETWEEN_LINES = 10.0


def _in_kernel() -> bool:
    # The package alone is loaded by papermill, too.
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    return hasattr(shell, "kernel")


def _someone_watches() -> bool:
    # papermill's kernels look like JupyterLab's; the runner says so through this variable.
    if os.environ.get("CHEXSTUDY_HEADLESS"):
        return False
    return sys.stderr.isatty() or _in_kernel()


def _open_bar(label: str, **what: object) -> tqdm:
    # In a notebook a bar of text, which is gone when it is done: a widget would leave an error behind in what is saved.
    return tqdm(desc=label, leave=False, file=sys.stdout if _in_kernel() else sys.stderr, ncols=100, **what)


def progress(items: Iterable, total: int | None = None, label: str = "") -> Iterator:
    """Yield the items and show how far the work, such as ``drawing radiographs``, is and when it will end."""
    total = total if total is not None else (len(items) if hasattr(items, "__len__") else None)
    if _someone_watches():
        yield from _open_bar(label, iterable=items, total=total)
        return
    start = last = time.monotonic()
    for done, item in enumerate(items, start=1):
        yield item
        now = time.monotonic()
        if now - last >= _SECONDS_BETWEEN_LINES:
            last = now
            spent = now - start
            ahead = f" of {total}, about {spent / done * (total - done):.0f} s left" if total else ""
            print(f"{label}: {done}{ahead}", flush=True)


class JobProgress:
    """Progress of jobs that tell of themselves: a bar with the last line told, or the lines where nobody watches."""

    def __init__(self, total: int, label: str):
        self._bar = _open_bar(label, total=total) if _someone_watches() else None

    def tell(self, line: str) -> None:
        """Show what a job said."""
        if self._bar is None:
            print(line, flush=True)
        else:
            self._bar.set_postfix_str(line)

    def finish_job(self) -> None:
        """One job more is done."""
        if self._bar is not None:
            self._bar.update()

    def close(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.close()
