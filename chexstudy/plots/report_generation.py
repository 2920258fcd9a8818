"""Written reports beside what was shown to the writer: all metrics, single findings, and examples as marks."""

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Drawing
from matplotlib.lines import Line2D

from chexstudy.evaluation.context import Evaluation
from chexstudy.evaluation.report_generation import controls
from chexstudy.evaluation.report_generation.cases import list_labelled
from chexstudy.evaluation.report_generation.image_controls import (
    CONTROLS,
    MEAN,
    NO_INDICATION,
    OWN,
    SHUFFLED,
    SHUFFLED_ALIKE,
    ZEROS,
)
from chexstudy.evaluation.report_generation.labeler import label_reports
from chexstudy.evaluation.report_generation.run import DIFFERENCE, TASK, WriteReports, Writing
from chexstudy.evaluation.scores import scores_artifact
from chexstudy.plots.figure import Figure
from chexstudy.plots.forest import ROW_MM, add_arm_legend, draw_estimate, frame_lines, head_group, spread_arms
from chexstudy.plots.looks import ACCENT, GREY, INK, SEQUENCE, ArmStyle, arm_styles
from chexstudy.plots.measurements import NothingToDraw, interval, prefer_data_set, require_rows, select_rows
from chexstudy.plots.style import DOUBLE_MM, add_legend, clear_frame, new_figure, show_radiograph, title_panel
from chexstudy.plots.words import describe_interval, name_data_set, short_name, write_row
from chexstudy.results import OVER_SEEDS

# How generators look where they are told apart, in the order of all figures.
GENERATORS = {
    "nearest_image": ArmStyle("Nearest report, by image", "#0072B2", "s"),
    "nearest_text": ArmStyle("Nearest report, image to text", "#56B4E9", "^"),
    "medoid_image": ArmStyle("Middle of the nearest, by image", "#009E73", "v"),
    "medoid_text": ArmStyle("Middle of the nearest, image to text", "#CC79A7", "<"),
    "composition": ArmStyle("Composed of probed labels", "#E69F00", "D"),
    "language_model": ArmStyle("Language model", "#D55E00", "o"),
}
_UNSEEING = {
    controls.COMMONEST: "commonest training report",
    controls.RANDOM: "random report of another patient",
    controls.TURNED: "reference, one finding turned",
    controls.ITSELF: "the reference itself",
}
_SHOWN = {
    OWN: "the image",
    MEAN: "mean training image",
    ZEROS: "black image",
    SHUFFLED: "another patient's image",
    SHUFFLED_ALIKE: "... of the same view and sex",
    NO_INDICATION: "no indication",
}
_PANELS = {
    ("macro_f1", "all", "report"): "F1 of findings",
    ("macro_f1", "all", "image"): "F1, image truth",
    ("bleu_4", "all", ""): "BLEU-4",
    ("rouge_l", "all", ""): "ROUGE-L",
}
_ABOVE = {controls.TURNED, controls.ITSELF}  # made of the reference: written at the edge, not to stretch the scale
_AGREED, _MISSED, _INVENTED = "agreed", "missed", "invented"
_MARKS = {
    _AGREED: {"marker": "o", "color": SEQUENCE[3], "markerfacecolor": SEQUENCE[3]},
    _MISSED: {"marker": "o", "color": INK, "markerfacecolor": "white"},
    _INVENTED: {"marker": "X", "color": ACCENT, "markerfacecolor": ACCENT},
}


def name_generator(generator: str) -> str:
    """As it is called in a sentence."""
    name = GENERATORS[generator].name
    return name[:1].lower() + name[1:]


# --- generators, controls and metrics ---------------------------------------------------------------------------------


def _select_controls(results: pd.DataFrame) -> pd.DataFrame:
    """Every generator, encoder and control over seeds on the preferred test set, in the metrics of the panels."""
    rows = select_rows(results, TASK, seed=OVER_SEEDS)
    panel = [*zip(rows.metric, rows.finding, rows.group, strict=True)]
    return prefer_data_set(require_rows(rows[[one in _PANELS for one in panel]], "written reports"))


def _plot_controls(rows: pd.DataFrame) -> Drawing:
    """A panel a metric; by generator the image and each control, a mark an encoder; below what sees no image."""
    panels = {panel: title for panel, title in _PANELS.items() if (_of_panel(rows, panel)).any()}
    lines = _list_lines(rows)
    arms = arm_styles(set(rows.arm[rows["head"].isin(list(GENERATORS))]))
    aside = dict(zip(arms, spread_arms(len(arms), 0.5), strict=True))
    row_mm = max(ROW_MM, 1.7 * len(arms))
    figure = new_figure(height_mm=24 + row_mm * (len(lines) + 0.4 * len({head for head, _, _ in lines})))
    grid = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axes, letter, (panel, title) in zip(grid, "abcd", panels.items(), strict=False):
        of_panel = rows[_of_panel(rows, panel)]
        places, y, heading = {}, 0.0, None
        for group, line, wanted in lines:
            if group != heading:
                y, heading = y + 0.4 * (heading is not None), group
                if axes is grid[0]:
                    head_group(axes, y, group, at_axes=False)
                y += 1
            places[y] = line
            for row in of_panel[(of_panel["head"] == wanted[0]) & (of_panel.variant == wanted[1])].itertuples():
                if row.head in _ABOVE:
                    axes.annotate(
                        f"{row.value:.2f} \N{RIGHTWARDS ARROW}", (1, y), xycoords=axes.get_yaxis_transform(),
                        ha="right", va="center", fontsize=6, color=GREY, gid="above",
                    )  # fmt: skip
                else:
                    style = arms.get(row.arm, ArmStyle("", GREY, "D"))
                    draw_estimate(axes, y + aside.get(row.arm, 0.0), interval(row), style, size=3.6)
            y += 1
        axes.set_ylim(y - 0.4, -0.6)
        frame_lines(axes, places)
        axes.set_xlim(left=min(0.0, axes.get_xlim()[0]))
        title_panel(axes, letter, title)
    add_arm_legend(figure, arms.values())
    return figure


def _of_panel(rows: pd.DataFrame, panel: tuple[str, str, str]) -> pd.Series:
    return (rows.metric == panel[0]) & (rows.finding == panel[1]) & (rows.group == panel[2])


def _list_lines(rows: pd.DataFrame) -> list[tuple[str, str, tuple[str, str]]]:
    """Heading, label, and generator with control of each line from the top down."""
    pairs = set(zip(rows["head"], rows.variant, strict=True))
    lines = [
        (style.name, _SHOWN[control], (generator, control))
        for generator, style in GENERATORS.items()
        for control in _SHOWN
        if (generator, control) in pairs
    ]
    unseeing = [("Without an image", words, (name, OWN)) for name, words in _UNSEEING.items() if (name, OWN) in pairs]
    return lines + unseeing


def _describe_controls(rows: pd.DataFrame) -> str:
    settings = ", ".join(sorted(set(rows.setting)))
    return (
        "Written reports by generator and encoder, and the same generators shown something else in place of the image: "
        "what loses nothing then reads no image. Below, what sees none; a reference with one finding turned into its "
        "opposite, where it stays high, shows what a metric cannot see; what is made of the reference is written at "
        "the edge. F1 of findings by a rule labeler, mean over "
        f"findings present in a reference. Text: {settings}. {describe_interval(rows)}"
    )


def _conclude_controls(rows: pd.DataFrame) -> str:
    judged = rows[_of_panel(rows, next(iter(_PANELS)))]
    own = judged[judged["head"].isin(list(GENERATORS)) & (judged.variant == OWN)]
    best = own.loc[own.value.idxmax()]
    same = judged[(judged["head"] == best["head"]) & (judged.arm == best.arm) & (judged.variant != OWN)]
    blind = "".join(
        f"; shown {CONTROLS[row.variant]} it gets {write_row(row)}" for row in same.nlargest(1, "value").itertuples()
    )
    floor = judged[judged["head"].isin([controls.COMMONEST, controls.RANDOM])]
    floors = ", ".join(f"{_UNSEEING[row.head]} {row.value:.3f}" for row in floor.itertuples())
    return (
        f"The best mean F1 of findings on {name_data_set(best.data_set)} is that of {name_generator(best['head'])} on "
        f"{short_name(best.arm)}, {write_row(best)}{blind}; against it stand {floors}."
    )


def tabulate_encoders(results: pd.DataFrame, others: Sequence[str]) -> pd.DataFrame:
    """The first encoder minus each other: differences with intervals and p after Holm, in the metrics of the panels."""
    rows = select_rows(results, DIFFERENCE, reference=list(others), variant=OWN)
    if rows.empty:
        return pd.DataFrame(columns=["value", "ci_low", "ci_high", "p"])
    kinds = rows.metric.str.partition("_difference")
    rows = rows.assign(metric=kinds[0], kind=kinds[2])
    rows = rows[[one in _PANELS for one in zip(rows.metric, rows.finding, rows.group, strict=True)]]
    place = ["data_set", "head", "reference", "metric", "group"]
    by_kind = {kind: own.set_index(place) for kind, own in rows.groupby("kind")}
    return by_kind[""][["value", "ci_low", "ci_high"]].assign(p=by_kind["_p_holm"].value).sort_index()


# --- findings ---------------------------------------------------------------------------------------------------------


def _select_findings(results: pd.DataFrame, arm: str) -> pd.DataFrame:
    """F1 of every finding and generator on one encoder, shown the image, and what the best constant gets."""
    rows = select_rows(results, TASK, seed=OVER_SEEDS, arm=arm, variant=OWN, metric="f1")
    rows = require_rows(rows[rows.positives > 0], f"findings told in reports on {arm}")
    best = select_rows(results, TASK, metric="f1_of_best_constant", arm=arm, variant=OWN)
    keys = ["data_set", "finding", "group"]
    best = best.drop_duplicates(keys).rename(columns={"value": "best_constant"})[[*keys, "best_constant"]]
    return prefer_data_set(rows.merge(best, on=keys, how="left"))


def _plot_findings(rows: pd.DataFrame) -> Drawing:
    """A panel by what is taken for true; findings from the commonest down, a mark a generator."""
    counts = rows[rows.group == "report"].groupby("finding").positives.max()
    findings = sorted(counts.index, key=lambda one: (-counts[one], one))
    rows = rows[rows.finding.isin(findings)]
    looks = {name: style for name, style in GENERATORS.items() if (rows["head"] == name).any()}
    aside = dict(zip(looks, spread_arms(len(looks), 0.55), strict=True))
    figure = new_figure(height_mm=22 + max(ROW_MM, 1.5 * len(looks)) * len(findings))
    titles = {"report": "Against the reference reports", "image": "Against the truth of the images"}
    shown = {group: title for group, title in titles.items() if (rows.group == group).any()}
    grid = figure.subplots(1, len(shown), sharey=True, squeeze=False)[0]
    for axes, letter, (group, title) in zip(grid, "ab", shown.items(), strict=False):
        for row in rows[rows.group == group].itertuples():
            y = findings.index(row.finding)
            draw_estimate(axes, y + aside[row.head], interval(row), looks[row.head], size=3.4)
            axes.plot([row.best_constant], [y], "|", color=INK, markersize=9, gid="best constant", zorder=1)
        axes.set_ylim(len(findings) - 0.4, -0.6)
        frame_lines(axes, {n: f"{name} ({counts[name]})" for n, name in enumerate(findings)})
        axes.set_xlim(-0.02, 1.02)
        axes.set_xlabel("F1")
        title_panel(axes, letter, title)
    handles = [Line2D([], [], marker=s.marker, color=s.colour, linestyle="none", label=s.name) for s in looks.values()]
    handles.append(Line2D([], [], marker="|", color=INK, linestyle="none", markersize=8, label="The best constant"))
    add_legend(figure, handles, min(4, len(handles)))
    return figure


def _describe_findings(rows: pd.DataFrame) -> str:
    return (
        f"F1 of each finding that is told, encoder {short_name(rows.arm.iloc[0])}, commonest finding first (in "
        "brackets, how many reports have it). The best constant tells the finding in every report. "
        + describe_interval(rows)
    )


def _conclude_findings(rows: pd.DataFrame) -> str:
    judged = rows[rows.group == "report"]
    above = judged[judged.ci_low > judged.best_constant].groupby("head").finding.nunique()
    told = "; ".join(
        f"{name_generator(name)} {above.get(name, 0)}" for name in GENERATORS if (judged["head"] == name).any()
    )
    return (
        f"Of {judged.finding.nunique()} findings on {name_data_set(judged.data_set.iloc[0])}, told better than by the "
        f"best constant: {told}."
    )


# --- examples ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ReportCard:
    """One image with what its reference and every generator tell of it."""

    pixels: np.ndarray  # ``(size, size)`` uint8
    finding: str  # for which it was chosen
    marks: pd.DataFrame  # a row a finding that anybody tells, a column a generator: `_MARKS`, or empty
    texts: Mapping[str, str]  # by writer; empty unless they are to be shown


def collect_reports(
    evaluation: Evaluation, writing: Writing, count: int, show_reports: bool = False
) -> list[ReportCard]:
    """Examples by rule: of one finding after the other, the rarest first, the first image whose reference tells it.

    Of the main test set, the first encoder and the first seed; no image is there twice.
    """
    if evaluation.cohort.empty:
        return []
    data_set, arm, seed = evaluation.main_test_set(), writing.arms[0], writing.seeds[0]
    rows = evaluation.test_sets()[data_set]
    tasks = {name: WriteReports(name, OWN, writing.settings) for name in writing.generators}
    written = {
        name: task.read(evaluation, arm, seed, rows)
        for name, task in tasks.items()
        if evaluation.run.has(scores_artifact(arm, seed, task.name, data_set))
    }
    findings = list_labelled(evaluation)
    texts = {"reference": next(iter(tasks.values())).list_texts(rows)} | written
    labels = {name: label_reports(of_all, findings) == 1 for name, of_all in texts.items()}
    told, cards, taken = labels["reference"], [], set()
    for number in sorted(np.flatnonzero(told.any(axis=0)), key=lambda one: told[:, one].sum()):
        place = next((one for one in np.flatnonzero(told[:, number]) if one not in taken), None)
        if place is None or len(cards) == count:
            continue
        taken.add(place)
        true, marks = told[place], pd.DataFrame(index=findings)
        for name in written:
            said = labels[name][place]
            marks[name] = np.select([true & said, true & ~said, said], [_AGREED, _MISSED, _INVENTED], "")
        cards.append(
            ReportCard(
                evaluation.store.read([rows.image_id.iloc[place]])[0],
                findings[number],
                marks[(marks != "").any(axis=1)],
                {name: of_all[place] for name, of_all in texts.items()} if show_reports else {},
            )
        )
    return cards


def _select_examples(cards: Sequence[ReportCard]) -> tuple:
    if not cards:
        raise NothingToDraw("there is nothing to draw without a finding in a reference")
    tables = [
        card.marks.rename_axis("finding").reset_index().assign(example=number) for number, card in enumerate(cards, 1)
    ]
    return pd.concat(tables, ignore_index=True), cards


def _plot_examples(_: pd.DataFrame, cards: Sequence[ReportCard]) -> Drawing:
    """Radiographs, each beside a table of findings by generator; texts below if they are to be shown."""
    columns, lines = min(2, len(cards)), max(len(card.marks) for card in cards)
    rows, texts_mm = -(-len(cards) // columns), 9 * len(cards[0].texts)
    height = max(40.0, 3.4 * lines + 16) + texts_mm
    figure = new_figure(height_mm=rows * height + 8, width_mm=DOUBLE_MM * columns / 2)
    parts = figure.subfigures(rows, columns, squeeze=False).ravel()
    layout = [["picture", "marks"]] + [["texts", "texts"]] * bool(texts_mm)
    for place, (part, card) in enumerate(zip(parts, cards, strict=False)):
        heights = {"height_ratios": [height - texts_mm, texts_mm]} if texts_mm else {}
        axes = part.subplot_mosaic(layout, width_ratios=[1.2, 1.0], **heights)
        show_radiograph(axes["picture"], card.pixels)
        clear_frame(axes["picture"])
        title_panel(axes["picture"], "abcdefghijklmnopqrstuvwxyz"[place % 26], card.finding)
        _draw_marks(axes["marks"], card.marks, lines)
        if texts_mm:
            clear_frame(axes["texts"])
            axes["texts"].text(0, 1, _write_texts(card.texts), va="top", fontsize=5, in_layout=False)
    handles = [Line2D([], [], linestyle="none", markersize=4.2, label=label, **look) for label, look in _MARKS.items()]
    add_legend(figure, handles)
    return figure


def _draw_marks(axes: Axes, marks: pd.DataFrame, lines: int) -> None:
    for column, name in enumerate(marks):
        for line, mark in enumerate(marks[name]):
            if mark:
                axes.plot([column], [line], linestyle="none", markersize=4.2, gid=mark, **_MARKS[mark])
    axes.set_xticks(range(marks.shape[1]), map(_shorten, marks), fontsize=5, rotation=35, ha="left")
    axes.xaxis.tick_top()
    axes.set_yticks(range(len(marks)), marks.index, fontsize=5.5)
    axes.tick_params(length=0)
    axes.set(xlim=(-0.6, marks.shape[1] - 0.4), ylim=(lines - 0.4, -0.6))
    axes.spines[:].set_visible(False)
    axes.grid(axis="y")


def _shorten(generator: str) -> str:
    return {"composition": "composed"}.get(generator, generator.replace("_", ", ").replace("language, m", "language m"))


def _write_texts(texts: Mapping[str, str]) -> str:
    names = {name: GENERATORS[name].name if name in GENERATORS else "Reference" for name in texts}
    return "\n".join(
        textwrap.fill(f"{names[name]}: {text}", 80, max_lines=4, placeholder=" ...") for name, text in texts.items()
    )


def _describe_examples(_: pd.DataFrame, cards: Sequence[ReportCard], encoder: str) -> str:
    texts = "Texts below are those of the cohort and of the generators. " if cards[0].texts else ""
    return (
        f"What written reports tell of {len(cards)} test images, encoder {encoder}: findings that reference and report "
        "both call present (agreed), the reference alone (missed) or the report alone (invented), as a rule labeler "
        f"reads them. {texts}Examples by rule: of one finding after the other, the rarest in the references first, the "
        "first image whose reference has it."
    )


def _conclude_examples(numbers: pd.DataFrame, cards: Sequence[ReportCard]) -> str:
    names = [name for name in numbers if name in GENERATORS]
    counts = {name: numbers[name].value_counts() for name in names}
    told = "; ".join(
        f"{name_generator(name)} " + ", ".join(f"{counts[name].get(mark, 0)} {mark}" for mark in _MARKS)
        for name in names
    )
    return f"Of the findings in {len(cards)} examples: {told}."


report_generation = Figure(
    "report_generation", _select_controls, _plot_controls, _describe_controls, _conclude_controls
)
report_findings = Figure("report_findings", _select_findings, _plot_findings, _describe_findings, _conclude_findings)
report_examples = Figure("report_examples", _select_examples, _plot_examples, _describe_examples, _conclude_examples)
