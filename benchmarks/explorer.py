"""Scatter widgets for the explorer in JupyterLab: jupyter-scatter as the explorer draws it, beside plotly.

Each draws the same points in six colours. Counted is the time from running the cell, and from reloading the page, until
all six colours are seen in a screenshot of headless Chromium with software rendering; what was asked for by name of a
machine; and the size of the package. What is not installed is recorded as null. Needs Chromium and Playwright
(`make browser` installs it).
"""

import sys
import tempfile
import time
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import urlsplit

import nbformat
import numpy as np
from matplotlib.colors import to_rgb
from record import benchmark_parser, reach, write_record

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
from lab import Page, copy_checkout, open_browser, serve_lab

_COLOURS = ["#cddff0", "#ebc88c", "#ae99bc", "#8FB8DE", "#D07C00", "#4B1D6B"]
_DATA = """
import numpy as np
import pandas as pd
generator = np.random.default_rng({seed})
points = generator.normal(size=({points}, 2)) / 4
state = generator.choice(6, {points}, p=[0.5, 0.1, 0.1, 0.2, 0.05, 0.05])
"""
_CELLS = {
    "jupyter-scatter": """
from chexstudy.plots.explorer import MARKS, _open_map
map = _open_map()
map.points = np.column_stack([points, state + 1, np.zeros(len(points))])
map
""",
    "plotly": """
import plotly.graph_objects as go
traces = [
    go.Scattergl(x=points[state == one, 0], y=points[state == one, 1], mode="markers", marker_color=colour)
    for one, colour in enumerate({colours})
]
go.FigureWidget(traces, layout=dict(width=640, height=560, template="plotly_white"))
""",
}


def wait_for_colours(page: Page, since: float, seconds: float) -> float | None:
    """Seconds from ``since`` until every colour is on the page; None if it never is."""
    wanted = np.round(255 * np.array([to_rgb(colour) for colour in _COLOURS]))
    while time.monotonic() - since < seconds:
        seen = page.picture(".jp-Notebook").astype(int)
        if all((np.abs(seen - colour).max(axis=2) <= 8).sum() > 20 for colour in wanted):
            return time.monotonic() - since
    return None


def measure(address: str, context, folder: Path, name: str, points: int, seed: int) -> dict:
    """First paint, paint after a reload, and whom the page asked."""
    cells = [_DATA.format(points=points, seed=seed), _CELLS[name].format(colours=_COLOURS)]
    if name == "jupyter-scatter":
        cells[0] += "import jscatter, chexstudy.plots.explorer\n"
    kernel = {"kernelspec": {"name": "python3", "language": "python", "display_name": "Python 3 (ipykernel)"}}
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells], metadata=kernel)
    nbformat.write(notebook, folder / "scatter.ipynb")
    page = Page(context, address, "scatter.ipynb")
    page.page.locator(".jp-CodeCell").first.click()
    page.command("notebook:run-cell-and-select-next")
    start = time.monotonic()
    page.command("notebook:run-cell")
    first = wait_for_colours(page, start, 90)
    page.save()
    start = time.monotonic()
    page.load()
    again = wait_for_colours(page, start, 90)
    hosts = {urlsplit(url).hostname for url in page.requests if urlsplit(url).scheme not in ("data", "blob")}
    page.close()
    return {
        "widget": name, "points": points, "first_paint_s": first, "after_reload_s": again,
        "other_hosts": len(hosts - {"127.0.0.1"}), "package_mib": measure_package(name),
    }  # fmt: skip


def measure_package(name: str) -> float:
    """Installed size of a package in MiB."""
    return sum(path.locate().stat().st_size for path in metadata.files(name) if path.locate().exists()) / 2**20


def main() -> None:
    parser = benchmark_parser(__doc__, rounds=1)
    parser.add_argument("--points", type=int, nargs="+", default=[4_000, 100_000], help="points drawn")
    given = parser.parse_args()
    there = {"jupyter-scatter": "jscatter", "plotly": "plotly"}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "checkout"
        folder.mkdir()
        copy_checkout(folder)
        with serve_lab(folder) as address, open_browser() as context:
            rows = [
                measure(address, context, folder, name, points, given.seed + number)
                for number in range(given.rounds)
                for points in given.points
                for name, module in there.items()
                if find_spec(module)
            ]
    best = {
        (row["widget"], row["points"]): row["first_paint_s"]
        for row in sorted(rows, key=lambda row: -(row["first_paint_s"] or 1e9))
    }
    most = max(given.points)
    ours = best["jupyter-scatter", most]
    peer = best.get(("plotly", most))
    goals = [
        reach(f"seconds to first paint, {most:,} points", 15, ours, at_least=False),
        reach(
            f"first paint, {most:,} points, plotly's time over ours", 1, peer / ours if peer and ours else None,
            note="" if peer else "plotly is not installed",
        ),
        reach("machines asked besides this one", 0, max(row["other_hosts"] for row in rows), at_least=False),
    ]  # fmt: skip
    write_record("explorer", rows, goals, given.out, packages=["jupyter-scatter", "plotly", "anywidget", "jupyterlab"])


if __name__ == "__main__":
    main()
