"""The map to be walked through in JupyterLab: a slider over snapshots, and what became of the pair one points at.

A pair shows its radiograph, band, decision with its reason, prototype and distance; its report only if reports are
given, for what is shown can be saved with the notebook. Where no one can point at anything (papermill, nbconvert, a
script) there is no explorer, and executed notebooks carry no state of it.
"""

import html
import io
import os
import sys
from collections.abc import Callable, Mapping

import numpy as np
import pandas as pd
from PIL import Image

from chexstudy.curation.decisions import BANDS
from chexstudy.plots.maps import require_pairs
from chexstudy.plots.measurements import require_rows
from chexstudy.plots.style import BAND_COLOURS, GREY, INK, PALE

# So many points a browser still moves at once.
MOST_POINTS = 20_000
_SYMBOLS = {"central": "circle", "support": "triangle-up", "outlier": "x"}
_SIZES = {"central": 5, "support": 7, "outlier": 6}
_MADE_BY = "03_watch_prototypes"
# Servers that have a screen at their other end set these for the kernels they start; papermill and nbconvert do not.
_SET_BY_FRONT_ENDS = ("JPY_SESSION_NAME", "VSCODE_PID", "COLAB_RELEASE_TAG")


def has_front_end() -> bool:
    """Whether someone can point at what a cell shows: the code runs in a kernel of JupyterLab or the like."""
    if os.environ.get("CHEXSTUDY_HEADLESS") or "ipykernel" not in sys.modules:
        return False
    return any(os.environ.get(name) for name in _SET_BY_FRONT_ENDS)


def explore_prototypes(
    pairs: pd.DataFrame,
    trajectory: pd.DataFrame,
    read_pixels: Callable[[str], np.ndarray],
    reports: Mapping[str, str] | None = None,
) -> "PrototypeExplorer | None":
    """The explorer where there is a front end, else nothing: the static figure stands for it.

    Args:
        pairs, trajectory, read_pixels, reports: as `PrototypeExplorer`.

    Raises:
        StudyError: there are no mapped pairs or no snapshots.
    """
    return PrototypeExplorer(pairs, trajectory, read_pixels, reports) if has_front_end() else None


class PrototypeExplorer:
    """A slider over snapshots, the map of the snapshot's stage, and a card of the pair one points at.

    Pairs scored before the snapshot are coloured by band, filled if kept and open if dropped; pairs still to be scored
    are pale and say nothing. Hovering shows a pair, a click holds it until the next click on it.

    Args:
        pairs: mapped pairs with ``reason`` (`chexstudy.stages.join_stage_maps`); beyond 20,000 a stage, a sample.
        trajectory: prototypes on the maps (`chexstudy.stages.trace_over_stages`).
        read_pixels: from an ``image_id`` to its pixels ``(height, width)`` uint8.
        reports: from an ``image_id`` to its report; without it no report is shown.

    Attributes:
        figure: the map, a plotly ``FigureWidget``.
        slider: over snapshots.
        picture: the radiograph of the pair shown.
        details: what is known of it, as HTML.
        box: all of them together; this is what a cell displays.

    Raises:
        StudyError: there are no mapped pairs or no snapshots.
    """

    def __init__(
        self,
        pairs: pd.DataFrame,
        trajectory: pd.DataFrame,
        read_pixels: Callable[[str], np.ndarray],
        reports: Mapping[str, str] | None = None,
    ):
        # They take a second to import, which notebooks that run without a screen are spared.
        import ipywidgets

        self._pairs = _thin_stages(_with_stage(require_pairs(pairs)))
        self._trajectory = _with_stage(require_rows(trajectory, "prototype snapshots", _MADE_BY))
        self._thinned = len(self._pairs) < len(pairs)
        self._read_pixels, self._reports = read_pixels, reports
        self._held: int | None = None
        self._rows: dict[str, np.ndarray] = {}
        self.figure = self._draw_empty_map()
        snapshots = self._trajectory.drop_duplicates("snapshot").sort_values("snapshot")
        options = [(f"step {row.step:,}", int(row.snapshot)) for row in snapshots.itertuples()]
        self.slider = ipywidgets.SelectionSlider(
            options=options, description="Snapshot", continuous_update=False, layout={"width": "560px"}
        )
        self.slider.observe(lambda change: self.show_snapshot(change["new"]), names="value")
        self.picture = ipywidgets.Image(format="png", width=280, layout={"visibility": "hidden"})
        self.details = ipywidgets.HTML("Point at a pair to see it; click to hold it.", layout={"width": "300px"})
        card = ipywidgets.VBox([self.picture, self.details])
        self.box = ipywidgets.HBox([ipywidgets.VBox([self.slider, self.figure]), card])
        self.show_snapshot(options[0][1])

    def _ipython_display_(self) -> None:
        from IPython.display import display

        display(self.box)

    def _draw_empty_map(self):
        import plotly.graph_objects as go

        figure = go.FigureWidget()
        figure.add_scattergl(mode="markers", name="to be scored", marker={"color": PALE, "size": 4}, hoverinfo="skip")
        for band in BANDS:
            figure.add_scattergl(
                mode="markers", name=band, marker={"color": BAND_COLOURS[band], "size": _SIZES[band]},
                hovertemplate="%{text}<extra></extra>",
            )  # fmt: skip
        figure.add_scatter(
            mode="lines", name="path so far", line={"color": GREY, "width": 1.5}, hoverinfo="skip", connectgaps=False
        )
        figure.add_scatter(
            mode="markers+text", name="prototype", textposition="top right", hoverinfo="text", hovertext=[],
            marker={"symbol": "star", "size": 14, "color": "white", "line": {"color": INK, "width": 1.2}},
        )  # fmt: skip
        for trace in figure.data[1 : 1 + len(BANDS)]:
            trace.on_hover(self._on_hover)
            trace.on_click(self._on_click)
        figure.update_layout(
            width=640, height=560, template="plotly_white", margin={"l": 10, "r": 10, "t": 40, "b": 10},
            legend={"orientation": "h", "y": -0.02}, hovermode="closest", uirevision="kept",
        )  # fmt: skip
        # One frame for all snapshots: what moves in it moves on the map.
        for column, set_axis in (("x", figure.update_xaxes), ("y", figure.update_yaxes)):
            values = np.concatenate([self._pairs[column], self._trajectory[column]])
            margin = 0.04 * (values.max() - values.min()) or 1.0
            set_axis(range=[float(values.min() - margin), float(values.max() + margin)], visible=False)
        figure.update_yaxes(scaleanchor="x", scaleratio=1)
        return figure

    # --- the snapshot -------------------------------------------------------------------------------------------------

    def show_snapshot(self, snapshot: int) -> None:
        """Draw the map of the snapshot's stage, the pairs scored before it and the prototypes at it."""
        if self.slider.value != snapshot:
            # Asked for from outside: the slider goes there, and comes back with its own call.
            self.slider.value = snapshot
            return
        at = self._trajectory[self._trajectory.snapshot == snapshot]
        step, stage = int(at.step.iloc[0]), at.stage.iloc[0]
        on_map = self._pairs[self._pairs.stage == stage]
        scored = on_map[on_map.step < step]
        ahead = on_map[on_map.step >= step]
        path = self._trajectory[self._trajectory.snapshot <= snapshot]
        with self.figure.batch_update():
            traces = {trace.name: trace for trace in self.figure.data}
            traces["to be scored"].update(x=ahead.x.to_numpy(), y=ahead.y.to_numpy())
            for band in BANDS:
                members = scored[scored.band == band]
                self._rows[band] = members.index.to_numpy()
                traces[band].update(x=members.x.to_numpy(), y=members.y.to_numpy(), text=_name_pairs(members))
                traces[band].marker.symbol = [_SYMBOLS[band] + "-open" * (not kept) for kept in members.kept]
            lines = _break_paths(path)
            traces["path so far"].update(x=lines[:, 0], y=lines[:, 1])
            labels = [str(prototype) for prototype in at.prototype]
            words = [f"prototype {label}" for label in labels]
            traces["prototype"].update(x=at.x.to_numpy(), y=at.y.to_numpy(), text=labels, hovertext=words)
            self.figure.layout.title = self._title(step, scored)

    def _title(self, step: int, scored: pd.DataFrame) -> dict:
        kept = f", {100 * scored.kept.mean():.1f} % kept" if len(scored) else ""
        sample = " (a sample of the pairs)" if self._thinned else ""
        return {
            "text": f"Step {step:,}: {len(scored):,} pairs of this stage scored{kept}{sample}",
            "font": {"size": 13},
        }

    # --- the pair -----------------------------------------------------------------------------------------------------

    def _on_hover(self, trace, points, _state) -> None:
        if points.point_inds and self._held is None:
            self._show_row(self._rows[trace.name][points.point_inds[0]])

    def _on_click(self, trace, points, _state) -> None:
        if not points.point_inds:
            return
        row = int(self._rows[trace.name][points.point_inds[0]])
        self._held = None if row == self._held else row
        self._show_row(row)

    def _show_row(self, number: int) -> None:
        row = self._pairs.loc[number]
        self.picture.value = _encode_png(self._read_pixels(row.image_id))
        self.picture.layout.visibility = "visible"
        facts = {
            "image": row.image_id,
            "decision": row.reason,
            "band": row.band,
            "prototype": str(row.prototype),
            "distance": _write_distance(row),
            "scored at": f"step {row.step:,}",
        }
        if "priority" in row and pd.notna(row.priority):
            facts["priority"] = f"{row.priority:.3f}"
        if self._reports is not None:
            facts["report"] = self._reports.get(row.image_id, "no report")
        lines = [
            f"<tr><td><b>{html.escape(name)}</b>&nbsp;</td><td>{html.escape(str(value))}</td></tr>"
            for name, value in facts.items()
        ]
        held = "<i>Held: click it again to let go.</i>" if self._held is not None else ""
        self.details.value = f"<table style='line-height:1.4'>{''.join(lines)}</table>{held}"


def _with_stage(table: pd.DataFrame) -> pd.DataFrame:
    return table if "stage" in table else table.assign(stage=0)


def _thin_stages(pairs: pd.DataFrame) -> pd.DataFrame:
    """At most `MOST_POINTS` pairs a stage, drawn with a fixed seed, in their order."""
    shown = [
        members if len(members) <= MOST_POINTS else members.sample(MOST_POINTS, random_state=0).sort_index()
        for _, members in pairs.groupby("stage")
    ]
    return pd.concat(shown, ignore_index=True)


def _name_pairs(pairs: pd.DataFrame) -> list[str]:
    """What the pointer says of each pair at once, before the card is drawn."""
    return [
        f"{image_id}<br>{band}, {'kept' if kept else 'dropped'}<br>prototype {prototype}, distance {distance:.3f}"
        for image_id, band, kept, prototype, distance in pairs[
            ["image_id", "band", "kept", "prototype", "distance"]
        ].itertuples(index=False)
    ]


def _break_paths(path: pd.DataFrame) -> np.ndarray:
    """Paths of all prototypes as one line ``(points, 2)``, broken by a row of NaN after each."""
    gap = np.full((1, 2), np.nan)
    parts = [
        np.concatenate([steps.sort_values("snapshot")[["x", "y"]].to_numpy(dtype=float), gap])
        for _, steps in path.groupby("prototype")
    ]
    return np.concatenate(parts)


def _write_distance(row: pd.Series) -> str:
    """The distance with the band's edges, where the ledger holds them."""
    text = f"{row.distance:.3f}"
    if {"threshold_support", "threshold_outlier"} <= set(row.index):
        text += f" (support band: {row.threshold_support:.3f} to {row.threshold_outlier:.3f})"
    return text


def _encode_png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()
