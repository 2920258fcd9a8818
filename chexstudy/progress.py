"""Progress of long work: a bar at a terminal or in JupyterLab, a line now and then where nobody watches."""

import os
import sys
import time
from collections.abc import Iterable, Iterator

from tqdm.auto import tqdm

_SECONDS_BETWEEN_LINES = 10.0


def _someone_watches() -> bool:
    # papermill's kernels look like JupyterLab's; the runner says so through this variable.
    if os.environ.get("CHEXSTUDY_HEADLESS"):
        return False
    return sys.stderr.isatty() or "ipykernel" in sys.modules


def progress(items: Iterable, total: int | None = None, label: str = "") -> Iterator:
    """Yield the items and show how far the work is and when it will end.

    Args:
        items: what is worked through.
        total: number of items, if it cannot be told from ``items``.
        label: what is being done, for example ``drawing radiographs``.
    """
    total = total if total is not None else (len(items) if hasattr(items, "__len__") else None)
    if _someone_watches():
        yield from tqdm(items, total=total, desc=label, leave=False)
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
