"""One look for all figures: sizes in millimetres, type, colours with markers that also tell apart in grey, one save.

Colours are those of Okabe and Ito, chosen to be told apart by people with any common colour vision.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.mathtext import MathTextParser
from matplotlib.text import Text
from matplotlib.ticker import LogLocator, NullLocator

from chexstudy.errors import StudyError
from chexstudy.pseudonyms import show_image_ids
from chexstudy.runs import Run, atomic_path

SINGLE_MM, DOUBLE_MM = 89.0, 183.0
_MM_PER_INCH = 25.4

INK, GREY, PALE = "#222222", "#8A8A8A", "#D9D9D9"
ACCENT = "#D55E00"
# Dark to light as well as blue to orange, so that stacked parts keep their order in grey print.
SEQUENCE = (
    "#0B3C5D", "#0072B2", "#56B4E9", "#009E73", "#E69F00", "#F0E442", "#CC79A7", "#D55E00", "#999999", "#D9D9D9",
)  # fmt: skip
BAND_COLOURS = {"central": "#8FB8DE", "support": "#D07C00", "outlier": "#4B1D6B"}
BAND_MARKERS = {"central": "o", "support": "^", "outlier": "x"}

# What belongs to patients stays out of what is published.
_PRIVATE_COLUMNS = {"patient_id", "study_id", "report", "image_path"}


@dataclass(frozen=True)
class ArmStyle:
    """How one arm looks in every figure."""

    name: str
    colour: str
    marker: str


ARM_STYLES = {
    "curated": ArmStyle("Curated", "#D55E00", "o"),
    "random_same_data": ArmStyle("Random, same data", "#0072B2", "s"),
    "random_same_compute": ArmStyle("Random, same compute", "#56B4E9", "^"),
    "full": ArmStyle("All pairs", "#222222", "D"),
    "oracle_balanced": ArmStyle("Label-balanced (oracle)", "#009E73", "P"),
}
_OTHER_MARKERS = ("v", "X", "<", ">", "h", "p")
_OTHER_COLOURS = ("#CC79A7", "#E69F00", "#8A8A8A", "#7A5195", "#5E4B3C")


def arm_style(arm: str, arms: Iterable[str] = ()) -> ArmStyle:
    """The look of an arm; arms of one's own get a colour by their place among ``arms``."""
    if arm in ARM_STYLES:
        return ARM_STYLES[arm]
    others = [other for other in order_arms(arms) if other not in ARM_STYLES]
    place = others.index(arm) if arm in others else 0
    looks = _OTHER_COLOURS[place % len(_OTHER_COLOURS)], _OTHER_MARKERS[place % len(_OTHER_MARKERS)]
    return ArmStyle(arm.replace("_", " ").capitalize(), *looks)


def arm_styles(arms: Iterable[str]) -> dict[str, ArmStyle]:
    """The looks of arms, in the order of all figures."""
    return {arm: arm_style(arm, arms) for arm in order_arms(arms)}


def order_arms(arms: Iterable[str]) -> list[str]:
    """Arms in the order of all figures: the study's own as above, then others by name."""
    known = list(ARM_STYLES)
    return sorted(set(arms), key=lambda arm: (known.index(arm) if arm in known else len(known), arm))


def use_style() -> None:
    """Set the type, lines and sizes of all figures. `new_figure` calls it; so may a notebook for figures of its own."""
    plt.style.use(Path(__file__).with_name("figures.mplstyle"))


def new_figure(height_mm: float, width_mm: float = DOUBLE_MM) -> Figure:
    """An empty figure of a given size; its panels are laid out so that nothing overlaps.

    pyplot forgets it at once: a notebook shows the figure a cell returns, once, and none pile up in memory.
    """
    use_style()
    figure = plt.figure(figsize=(width_mm / _MM_PER_INCH, height_mm / _MM_PER_INCH), layout="constrained")
    figure.get_layout_engine().set(w_pad=2.5 / 72, h_pad=2.5 / 72, wspace=0.03, hspace=0.04)
    plt.close(figure)
    return figure


def title_panel(axes: Axes, letter: str, title: str = "", **options) -> None:
    """Put the panel's bold letter and its title over the left end of the axes."""
    axes.set_title(rf"$\mathbf{{{letter}}}$" + (f"   {title}" if title else ""), loc="left", **options)


def legend_mark(style: ArmStyle, line: str = "none") -> Line2D:
    """The legend entry of a look."""
    return Line2D([], [], linestyle=line, marker=style.marker, color=style.colour, markersize=4.2, label=style.name)


def add_legend(figure: Figure, handles: list, columns: int = 0) -> None:
    """One legend for a whole figure, under it; in one row if no number of columns is given."""
    figure.legend(handles=handles, loc="outside lower center", ncols=columns or len(handles))


def name_lines(axes: Axes, names: list[str], ticks: float = 0.0) -> None:
    """Write the names of lines 0, 1, ... from the top down; ``ticks`` is the length of their ticks."""
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.tick_params(axis="y", length=ticks)


def scale_log(axes: Axes, along: str = "x", parts: tuple[int, ...] = (1, 2, 5)) -> None:
    """A logarithmic axis with ticks at these parts of each decade, thousands written as ``k``."""
    axes.set(**{f"{along}scale": "log"})
    axis = axes.xaxis if along == "x" else axes.yaxis
    axis.set_major_locator(LogLocator(subs=parts))
    axis.set_major_formatter(lambda value, _: f"{value / 1000:g}k" if value >= 1000 else f"{value:g}")
    axis.set_minor_locator(NullLocator())


def draw_marks(axes: Axes, x, y, style: ArmStyle, size: float = 4.0, **options) -> None:
    """Marks of one look with white edges, by themselves if no line is asked for."""
    options = {"linestyle": "none", "markeredgewidth": 0.4} | options
    axes.plot(x, y, marker=style.marker, color=style.colour, markersize=size, markeredgecolor="white", **options)


def show_radiograph(axes: Axes, pixels: np.ndarray, **options) -> None:
    """Pixels from 0, black, to 255, white."""
    axes.imshow(pixels, cmap="gray", vmin=0, vmax=255, **options)


def add_colour_bar(drawn, axes: Axes | list[Axes], label: str, **options) -> None:
    """A bar without a frame that says what the colours of a map or an image mean."""
    bar = drawn.axes.figure.colorbar(drawn, ax=axes, pad=0.02, **options)
    bar.set_label(label)
    bar.outline.set_visible(False)


def clear_frame(axes: Axes) -> None:
    """Leave nothing of the axes but what is drawn in them: for maps and radiographs."""
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)


def frame_map(axes: Axes, points: pd.DataFrame) -> None:
    """Limits of a map of points ``x, y`` that few far ones do not stretch, at one scale; call it after drawing."""
    for column, set_limits in (("x", axes.set_xlim), ("y", axes.set_ylim)):
        low, high = np.quantile(points[column], [0.002, 0.998])
        margin = 0.06 * (high - low) or 1.0
        low, high = max(low, points[column].min()) - margin, min(high, points[column].max()) + margin
        # auto=True lets the limits widen where the panel's shape asks for it.
        set_limits(low, high, auto=True)
    axes.set_aspect("equal", adjustable="datalim")
    clear_frame(axes)


def save_figure(run: Run, figure: Figure, name: str, caption: str, data: pd.DataFrame | None = None) -> Path:
    """Write a figure into ``figures/``: PNG (300 dpi), PDF, and JSON of caption and numbers; gives the PNG's path.

    The same figure gives the same bytes: neither file holds a date or a version. Images among the numbers (a column
    ``image_id``) are written by their pseudonyms (`chexstudy.pseudonyms`).
    """
    if not name or Path(name).name != name or name.startswith("."):
        raise StudyError(f"a figure's name must be a plain file name such as 'zero_shot', not {name!r}.")
    private = sorted(_PRIVATE_COLUMNS & set(() if data is None else data.columns))
    if private:
        raise StudyError(
            f"the numbers of figure {name} hold the column {private[0]}: leave it out, figures are public."
        )
    if data is not None and "image_id" in data:
        data = data.assign(image_id=show_image_ids(run, data.image_id))
    use_style()
    metadata = {".png": {"Software": None}, ".pdf": {"CreationDate": None, "Creator": None, "Producer": None}}
    for suffix, fields in metadata.items():
        with atomic_path(run.path(f"figures/{name}{suffix}")) as temporary:
            _save(figure, temporary, fields)
        # Solving the layout takes as long as drawing, and its places are the same in all formats.
        figure.set_layout_engine("none")
    record = {"name": name, "caption": caption, "data": [] if data is None else _records(data)}
    with atomic_path(run.path(f"figures/{name}.json")) as temporary:
        temporary.write_text(_write_record(record), encoding="utf-8")
    return run.path(f"figures/{name}.png")


def _save(figure: Figure, path: Path, metadata: dict) -> None:
    """Save a figure, texts as they are that are no mathematics: a finding may have dollar signs in its name."""
    parser = MathTextParser("path")
    while True:
        try:
            figure.savefig(path, metadata=metadata)
            return
        except ValueError:
            wrong = [text for text in figure.findobj(Text) if text.get_parse_math() and not _is_math(parser, text)]
            if not wrong:
                raise
            for text in wrong:
                text.set_parse_math(False)


def _is_math(parser: MathTextParser, text: Text) -> bool:
    try:
        parser.parse(text.get_text())
    except ValueError:
        return False
    return True


def _write_record(record: dict) -> str:
    """JSON with one mark a line: to be read and compared, and small."""
    head = [f" {json.dumps(key)}: {json.dumps(record[key], ensure_ascii=False)}" for key in ("name", "caption")]
    rows = ",\n".join(f"  {json.dumps(row, ensure_ascii=False, separators=(',', ':'))}" for row in record["data"])
    return "{\n" + ",\n".join(head) + ',\n "data": [\n' + rows + "\n ]\n}\n"


def _records(data: pd.DataFrame) -> list[dict]:
    """One dictionary a row; columns of the results table that have no text in any row are left out."""
    told = [name for name in data if not all(isinstance(value, str) and not value for value in data[name])]
    return [{name: _plain(value) for name, value in row.items()} for row in data[told].to_dict("records")]


def _plain(value: object) -> object:
    """A value JSON can hold; numbers to seven digits, which is more than any figure shows."""
    if isinstance(value, np.ndarray | list | tuple):
        return [_plain(one) for one in value]
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or value is pd.NA or (isinstance(value, float) and not np.isfinite(value)):
        return None
    if isinstance(value, float):
        return float(f"{value:.7g}")
    return value if isinstance(value, bool | int | str) else str(value)
