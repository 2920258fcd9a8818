"""The map to be walked through in JupyterLab: a slider over snapshots, and what became of the pairs one points at.

The map is a jupyter-scatter widget; all that it shows is in its state, so a reloaded page shows it again. A pair shows
its radiograph, band, decision with its reason, prototype and distance; its report only if reports are given. Where no
one can point at anything (papermill, nbconvert, a script) there is no explorer. A picture of the last snapshot is
displayed with it, which names no pair: a notebook that is opened without its kernel shows that.
"""

import base64
import html
import io
import os
import sys
from collections.abc import Callable, Mapping
from unittest.mock import patch

import numpy as np
import pandas as pd
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure as Drawing
from PIL import Image

from chexstudy.curation.online.decisions import BANDS
from chexstudy.plots.looks import BAND_COLOURS, GREY, INK, PALE
from chexstudy.plots.maps import PROTOTYPE_HANDLE, band_handles, draw_bands, draw_prototypes, require_pairs
from chexstudy.plots.measurements import require_rows
from chexstudy.plots.style import add_legend, frame_map, new_figure
from chexstudy.pseudonyms import show_image_ids
from chexstudy.runs import Run

# So many of the radiographs inside a lasso are shown.
MOST_RADIOGRAPHS = 24
_SIDE = 560
# Servers that have a screen at their other end set these for the kernels they start; papermill and nbconvert do not.
_SET_BY_FRONT_ENDS = ("JPY_SESSION_NAME", "VSCODE_PID", "COLAB_RELEASE_TAG")

_AHEAD, _PROTOTYPE = "to be scored", "prototype"


_PALE_BANDS = {band: to_hex([0.45 * part + 0.55 for part in to_rgb(BAND_COLOURS[band])]) for band in BANDS}
# What a mark can be, with its colour and its size in pixels, in the order they are drawn: the rare and the kept on top.
MARKS = {
    _AHEAD: (PALE, 4),
    **{f"{band}, dropped": (_PALE_BANDS[band], 5) for band in BANDS},
    **{f"{band}, kept": (BAND_COLOURS[band], 8) for band in BANDS},
    "mismatched, dropped": (BAND_COLOURS["mismatched"], 5),
    _PROTOTYPE: (INK, 5),
}
_LOADER = """
export default {
  async render({ model, el }) {
    const url = URL.createObjectURL(new Blob([model.get("code")], { type: "text/javascript" }));
    const { default: map } = await import(url);
    return map.render({ model, el });
  },
};
"""
# The picture stands in the output above; a living explorer takes its place.
_HIDE_PICTURE = "<style>.jp-OutputArea-child:has(+ .jp-OutputArea-child .chexstudy-explorer) {display: none}</style>"


def has_front_end() -> bool:
    """Whether someone can point at what a cell shows: the code runs in a kernel of JupyterLab or the like."""
    if os.environ.get("CHEXSTUDY_HEADLESS") or "ipykernel" not in sys.modules:
        return False
    return any(os.environ.get(name) for name in _SET_BY_FRONT_ENDS)


def explore_prototypes(*given) -> "PrototypeExplorer | None":
    """The `PrototypeExplorer` where there is a front end, else nothing: the static figure stands for it."""
    return PrototypeExplorer(*given) if has_front_end() else None


class PrototypeExplorer:
    """A slider over snapshots, the map of the snapshot's stage, and a card of the pairs one points at.

    It opens at the last snapshot. Pairs scored before the snapshot are coloured by band, strong if kept and pale if
    dropped; pairs still to be scored are grey. Prototypes are stars. Hovering shows a pair, a click holds it, a lasso
    shows the first radiographs inside it; a double click lets go.

    Args:
        run: the study, which says how images are called where they are shown.
        pairs: mapped pairs with ``reason`` (`chexstudy.curation.records.stage_maps.join_stage_maps`).
        trajectory: prototypes on the maps (`chexstudy.curation.records.stage_maps.trace_over_stages`).
        read_pixels: from an ``image_id`` to its pixels ``(height, width)`` uint8.
        reports: from an ``image_id`` to its report; without it no report is shown.

    Attributes:
        marks: what is drawn, in drawing order, with its ``mark`` (a name of `MARKS`) and place: pairs, then prototypes.
        map: the jupyter-scatter widget; ``hovering`` and ``selection`` are rows of ``marks``.
        summary, card: step, counts and legend, and what is known of the pairs pointed at, as HTML.
    """

    def __init__(
        self,
        run: Run,
        pairs: pd.DataFrame,
        trajectory: pd.DataFrame,
        read_pixels: Callable[[str], np.ndarray],
        reports: Mapping[str, str] | None = None,
    ):
        # They take a second to import, which notebooks that run without a screen are spared.
        import ipywidgets

        self._pairs = _with_stage(require_pairs(pairs))
        self._pairs["shown_as"] = show_image_ids(run, self._pairs.image_id)
        self._trajectory = _with_stage(require_rows(trajectory, "prototype snapshots"))
        self._read_pixels, self._reports = read_pixels, reports
        snapshots = self._trajectory.drop_duplicates("snapshot").sort_values("snapshot")
        options = [(f"step {row.step:,}", int(row.snapshot)) for row in snapshots.itertuples()]
        self.slider = ipywidgets.SelectionSlider(
            options=options, value=options[-1][1], description="Snapshot", continuous_update=False,
            layout={"width": f"{_SIDE}px"},
        )  # fmt: skip
        self.summary = ipywidgets.HTML()
        self.card = ipywidgets.HTML(layout={"width": "320px"})
        self.map = _open_map()
        self._show_snapshot()
        self.slider.observe(lambda change: self._show_snapshot(), names="value")
        self.map.observe(lambda change: self._show_pointed(), names=["hovering", "selection"])
        left = ipywidgets.VBox([self.slider, self.summary, self.map], layout={"width": f"{_SIDE + 60}px"})
        self.box = ipywidgets.VBox([ipywidgets.HBox([left, self.card]), ipywidgets.HTML(_HIDE_PICTURE)])
        self.box.add_class("chexstudy-explorer")

    def _ipython_display_(self) -> None:
        from IPython.display import display

        display(self.draw_picture())
        # Without the text that widgets have of themselves: it would be saved, with what they show.
        display(self.box._repr_mimebundle_() | {"text/plain": ""}, raw=True)

    def _show_snapshot(self) -> None:
        """Set ``marks`` to what is on the map at the snapshot, and draw it."""
        at = self._trajectory[self._trajectory.snapshot == self.slider.value]
        on_map = self._pairs[self._pairs.stage == at.stage.iloc[0]]
        decision = on_map.band.astype(str) + np.where(on_map.kept, ", kept", ", dropped")
        mark = decision.where(on_map.step < at.step.iloc[0], _AHEAD)
        marks = pd.concat([on_map.assign(mark=mark), at.assign(mark=_PROTOTYPE)[["x", "y", "prototype", "mark"]]])
        marks["mark"] = pd.Categorical(marks.mark, categories=list(MARKS))
        self.marks = marks.sort_values("mark", kind="stable", ignore_index=True)
        codes = np.stack([self.marks.mark.cat.codes, np.zeros(len(self.marks))], axis=1)
        # A selection is of rows, and these are other rows now.
        self.map.hovering, self.map.selection = None, np.empty(0, np.uint32)
        self.map.annotations = [*self._trace_paths(), *self._outline_stars()]
        self.map.points = np.concatenate([self._frame(self.marks), codes], axis=1)
        self.summary.value = self._summarise()
        self.card.value = "Point at a pair to see it, click to hold it, draw a lasso around several."

    def _frame(self, table: pd.DataFrame) -> np.ndarray:
        """Places ``(rows, 2)`` within -1 and 1: one frame for all snapshots, so what moves in it moves on the map."""
        places = np.concatenate([self._pairs[["x", "y"]], self._trajectory[["x", "y"]]]).astype(float)
        centre = (places.max(axis=0) + places.min(axis=0)) / 2
        return (table[["x", "y"]].to_numpy(float) - centre) / (1.06 * max(np.abs(places - centre).max(), 1e-6))

    def _trace_paths(self) -> list:
        from jscatter import Line

        so_far = self._trajectory[self._trajectory.snapshot <= self.slider.value].sort_values("snapshot")
        ways = [self._frame(way).tolist() for _, way in so_far.groupby("prototype")]
        return [Line(way, line_color=GREY) for way in ways if len(way) > 1]

    def _outline_stars(self) -> list:
        from jscatter import Line

        turns, reach = np.linspace(0, 2 * np.pi, 11), np.where(np.arange(11) % 2, 0.012, 0.028)
        star = (reach * [np.sin(turns), np.cos(turns)]).T
        centres = self._frame(self.marks[self.marks.mark == _PROTOTYPE])
        return [Line((centre + star).tolist(), line_color=INK, line_width=2) for centre in centres]

    def _summarise(self) -> str:
        counts = self.marks.mark.value_counts().reindex(list(MARKS))
        scored = self.marks[~self.marks.mark.isin([_AHEAD, _PROTOTYPE])]
        kept = f", {100 * scored.kept.astype(bool).mean():.1f} % kept" if len(scored) else ""
        step = self.slider.options[self.slider.index][0]
        # The map is white in every theme, the legend is not.
        colours = {mark: colour for mark, (colour, _) in MARKS.items()} | {_PROTOTYPE: "inherit"}
        dots = [
            f"<span style='white-space:nowrap;color:{colours[mark]}'>{'★' if mark == _PROTOTYPE else '●'}</span>"
            f"<span style='white-space:nowrap'> {mark} ({counts[mark]:,})</span>"
            for mark in MARKS
        ]
        return f"<b>{step.capitalize()}: {len(scored):,} pairs of this stage scored{kept}</b><br>{'&ensp; '.join(dots)}"

    def draw_picture(self) -> Drawing:
        """The map at the last snapshot as a static figure, without any name."""
        at = self._trajectory[self._trajectory.snapshot == self._trajectory.snapshot.max()]
        pairs = self._pairs[self._pairs.stage == at.stage.iloc[0]]
        figure = new_figure(height_mm=95, width_mm=100)
        axes = figure.add_subplot()
        draw_bands(axes, pairs)
        draw_prototypes(axes, at)
        frame_map(axes, pd.concat([pairs[["x", "y"]], at[["x", "y"]]]))
        axes.set_title(f"step {at.step.iloc[0]:,}; run this cell in JupyterLab to walk through the map", fontsize=7)
        add_legend(figure, [*band_handles(pairs), PROTOTYPE_HANDLE])
        return figure

    def _show_pointed(self) -> None:
        """Show what is selected, or, where nothing is, what the pointer is on; else leave what is shown."""
        selection, hovering = self.map.selection, self.map.hovering
        chosen = selection if selection is not None and len(selection) else [] if hovering is None else [hovering]
        rows = self.marks.iloc[[int(row) for row in chosen if row < len(self.marks)]]
        pairs = rows[rows.mark != _AHEAD]
        if len(pairs) > 1:
            self.card.value = self._describe_several(pairs[pairs.mark != _PROTOTYPE])
        elif len(pairs):
            row = pairs.iloc[0]
            self.card.value = self._describe_prototype(row) if row.mark == _PROTOTYPE else self._describe_pair(row)

    def _describe_prototype(self, row: pd.Series) -> str:
        members = self.marks[(self.marks.prototype == row.prototype) & ~self.marks.mark.isin([_AHEAD, _PROTOTYPE])]
        pairs = f"{len(members):,} scored, of which {members.kept.sum():,} kept"
        return _tabulate({"prototype": int(row.prototype), "pairs": pairs})

    def _describe_pair(self, row: pd.Series) -> str:
        facts = {
            "image": row.shown_as,
            "decision": row.reason,
            "band": row.band,
            "prototype": int(row.prototype),
            "distance": _write_distance(row),
            "scored at": f"step {int(row.step):,}",
        }
        if pd.notna(row.get("priority")):
            facts["priority"] = f"{row.priority:.3f}"
        if self._reports is not None:
            facts["report"] = self._reports.get(row.image_id, "no report")
        return self._embed(row.image_id, 280) + _tabulate(facts)

    def _describe_several(self, pairs: pd.DataFrame) -> str:
        shown = pairs.iloc[:MOST_RADIOGRAPHS]
        tiles = [
            f"<figure style='margin:0;width:74px;font-size:10px;line-height:1.2'>{self._embed(row.image_id, 74)}"
            f"<figcaption>{html.escape(row.mark)}</figcaption></figure>"
            for row in shown.itertuples()
        ]
        first = f", the first {len(shown)} shown" if len(shown) < len(pairs) else ""
        grid = f"<div style='display:flex;flex-wrap:wrap;gap:4px'>{''.join(tiles)}</div>"
        return f"<b>{len(pairs):,} pairs, {pairs.kept.sum():,} kept{first}</b>{grid}"

    def _embed(self, image_id: str, width: int) -> str:
        buffer = io.BytesIO()
        Image.fromarray(self._read_pixels(image_id)).save(buffer, "PNG")
        return f"<img width='{width}' src='data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}'>"


def _open_map():
    """A jupyter-scatter widget with one point of every mark, spread over a frame from -1 to 1."""
    import jscatter
    from jscatter.widget import JupyterScatter
    from traitlets import Unicode

    class Map(JupyterScatter):
        # A browser that takes over two seconds to load a widget's code is deaf to all later messages of its kernel, and
        # jupyter-scatter's are two megabytes. So what is loaded first is this, and the rest when the map is drawn.
        _esm = _LOADER
        code = Unicode(str(JupyterScatter._esm)).tag(sync=True)

    spread = np.linspace(-1, 1, len(MARKS))
    with patch.object(jscatter.jscatter, "JupyterScatter", Map):
        return jscatter.Scatter(
            data=pd.DataFrame({"x": spread, "y": spread, "mark": pd.Categorical(MARKS, categories=list(MARKS))}),
            x="x", y="y", x_scale=(-1, 1), y_scale=(-1, 1), width=_SIDE, height=_SIDE,
            color_by="mark", color_map=[colour for colour, _ in MARKS.values()], opacity=1, opacity_by=None,
            size_by="mark", size_map=[size for _, size in MARKS.values()], color_selected=INK, color_hover=INK,
            axes=False, background_color="white",
        ).show()  # fmt: skip


def _with_stage(table: pd.DataFrame) -> pd.DataFrame:
    return table if "stage" in table else table.assign(stage=0)


def _tabulate(facts: Mapping[str, object]) -> str:
    rows = [
        f"<tr style='vertical-align:top'><th>{html.escape(name)}&nbsp;</th><td>{html.escape(str(value))}</td></tr>"
        for name, value in facts.items()
    ]
    return f"<table style='line-height:1.4;text-align:left'>{''.join(rows)}</table>"


def _write_distance(row: pd.Series) -> str:
    """The distance with the band's edges, where the ledger holds them."""
    text = f"{row.distance:.3f}"
    if {"threshold_support", "threshold_outlier"} <= set(row.index):
        text += f" (support band: {row.threshold_support:.3f} to {row.threshold_outlier:.3f})"
    return text
