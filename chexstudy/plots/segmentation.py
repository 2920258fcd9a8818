"""How well structures are outlined, by structure, encoder, decoder and share of the labels."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import product

import numpy as np
import pandas as pd
from matplotlib.figure import Figure as Drawing
from matplotlib.ticker import MaxNLocator

from chexstudy.evaluation.encoders import NO_ENCODER
from chexstudy.evaluation.scores import MACRO
from chexstudy.evaluation.segmentation.decoders import DECODERS, PIXEL_UNET
from chexstudy.evaluation.segmentation.run import MEAN_MASK, SEGMENTATION, SEGMENTATION_DIFFERENCE
from chexstudy.plots.adaptation import draw_by_share
from chexstudy.plots.figure import Figure
from chexstudy.plots.forest import add_arm_legend, draw_estimate, draw_seeds, spread_arms
from chexstudy.plots.looks import INK, PALE, ArmStyle, arm_styles
from chexstudy.plots.measurements import (
    NothingToDraw,
    interval,
    prefer_data_set,
    require_rows,
    seed_values,
    select_rows,
    summarise_seeds,
)
from chexstudy.plots.style import name_lines, new_figure, scale_log, title_panel
from chexstudy.plots.words import describe_interval, name_data_set, write_row

_MEASURES = {
    "dice": ("Dice", "mean over images"),
    "hd95": ("HD95", "pixels"),
    "missed": ("Missed", "share of images"),
    "dice_difference": ("Dice \N{MINUS SIGN} small U-Net", "same patients"),
}
_DECODER_NAMES = {
    "unet": "U-Net",
    "published_unet": "U-Net as published",
    "linear": "Linear",
    "normalised_linear": "Linear, normalised",
    "normalised_linear_4": "Linear, normalised, four blocks",
    "upernet": "UPerNet",
}
_BASELINES = {
    PIXEL_UNET: ArmStyle("Small U-Net on pixels", "#009E73", "P"),
    MEAN_MASK: ArmStyle("Mean training mask", "#5E4B3C", "d"),
}


def _looks(rows: pd.DataFrame) -> dict[tuple[str, str], ArmStyle]:
    """The look of every encoder (an arm and no head) and baseline (a head and no arm), in the order of all figures."""
    encoders = arm_styles(set(rows.arm) - {NO_ENCODER})
    baselines = {("", head): style for head, style in _BASELINES.items() if (rows["head"] == head).any()}
    return {(arm, ""): style for arm, style in encoders.items()} | baselines


def _of_line(rows: pd.DataFrame, arm: str, head: str) -> pd.DataFrame:
    """Rows of an encoder or of a baseline."""
    return rows[rows["head"] == head] if head else rows[rows.arm == arm]


def name_decoder(head: str) -> str:
    """A decoder as words."""
    return _DECODER_NAMES.get(head, head.replace("_", " ").capitalize())


def _list_decoders(rows: pd.DataFrame) -> list[str]:
    """Decoders on encoders, those that most encoders have first, then in the order of `DECODERS`."""
    encoders = rows[rows.arm != NO_ENCODER].groupby("head").arm.nunique()
    return sorted(encoders.index, key=lambda head: (-encoders[head], [*DECODERS, head].index(head)))


def _select(results: pd.DataFrame, **wanted: object) -> pd.DataFrame:
    """Measures with all the labels on the preferred test set, and differences to the small U-Net."""
    wanted = {"variant": "", "setting": "", "metric": list(_MEASURES)} | wanted
    rows = prefer_data_set(require_rows(select_rows(results, SEGMENTATION, **wanted), "outlined structures"))
    minus = select_rows(
        results, SEGMENTATION_DIFFERENCE, reference=PIXEL_UNET, data_set=rows.data_set.iloc[0], **wanted
    )
    return pd.concat([rows, minus[minus.arm != NO_ENCODER]], ignore_index=True)


def _select_structures(results: pd.DataFrame) -> pd.DataFrame:
    """One decoder on every encoder, by structure, the mean first and then those that are outlined best."""
    rows = _select(results)
    decoders = _list_decoders(rows)[:1]
    rows = rows[rows["head"].isin([*decoders, *_BASELINES])]
    dice = rows[(rows.metric == "dice") & (rows.finding != MACRO)].groupby("finding").value.mean()
    # The mean of one structure is that structure.
    order = [MACRO] * (len(dice) > 1) + list(dice.sort_values(ascending=False).index)
    rows = rows[rows.finding.isin(order)].copy()
    rows["heading"] = [
        "Mean" if row.finding == MACRO else f"{row.finding[:1].upper()}{row.finding[1:]} ({row.positives:,})"
        for row in rows.itertuples()
    ]
    return _sort(rows, rows.finding, order)


def _select_decoders(results: pd.DataFrame) -> pd.DataFrame:
    """Every decoder on every encoder, mean over structures; what needs no encoder last."""
    rows = _select(results, finding=MACRO)
    decoders = _list_decoders(rows)
    if len(decoders) < 2:
        raise NothingToDraw("there is nothing to compare with one decoder")
    rows["heading"] = ["No encoder" if head in _BASELINES else name_decoder(head) for head in rows["head"]]
    return _sort(rows, rows["head"], [*decoders, *_BASELINES])


def _sort(rows: pd.DataFrame, by: pd.Series, order: Sequence[str]) -> pd.DataFrame:
    return rows.iloc[np.argsort(pd.Index(order).get_indexer(by), kind="stable")].reset_index(drop=True)


def _plot(rows: pd.DataFrame) -> Drawing:
    """A panel a measure: under each heading a mark an encoder or baseline."""
    looks, headings = _looks(rows), list(dict.fromkeys(rows.heading))
    metrics = [metric for metric in _MEASURES if (rows.metric == metric).any()]
    figure = new_figure(height_mm=24 + len(headings) * (3 + 2.2 * len(looks)))
    grid = figure.subplots(1, len(metrics), sharey=True, squeeze=False)[0]
    for axes, metric, letter in zip(grid, metrics, "abcd", strict=False):
        for (place, heading), (aside, line) in product(
            enumerate(headings), zip(spread_arms(len(looks), 0.76), looks, strict=True)
        ):
            own = _of_line(rows[(rows.metric == metric) & (rows.heading == heading)], *line)
            for row in summarise_seeds(own).itertuples():
                draw_estimate(axes, place + aside, interval(row), looks[line], size=3.6)
                draw_seeds(axes, place + aside, seed_values(own), looks[line])
        for place in range(1, len(headings)):
            axes.axhline(place - 0.5, color=PALE, linewidth=0.5, zorder=0)
        axes.grid(axis="x")
        axes.tick_params(axis="y", length=0)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=4, steps=[1, 2, 5, 10]))
        axes.margins(x=0.08)
        title, label = _MEASURES[metric]
        axes.set_xlabel(label)
        # The diagonal of one that misses a structure would press all others together.
        if metric == "hd95" and (rows.value[rows.metric == metric] > 0).all():
            scale_log(axes)
            axes.set_xlabel(f"{label} (log)")
        title_panel(axes, letter, title)
        if metric == "dice_difference":
            axes.axvline(0, color=INK, linewidth=0.6, zorder=1)
    name_lines(grid[0], headings)
    add_arm_legend(figure, looks.values())
    return figure


def _describe(rows: pd.DataFrame) -> str:
    decoders = ", ".join(map(name_decoder, _list_decoders(rows)))
    minus, counted = "dice_difference" in set(rows.metric), " (how many do, in brackets)"
    return (
        f"Structures outlined from frozen encoders (decoder: {decoders}), beside a small U-Net trained end to end on "
        "the same images and the mean mask of the training images, which looks at no image. Dice and the 95th "
        "percentile of the distance between the boundaries (HD95), means over images at their original size; a missed "
        "structure has Dice 0 and the image's diagonal as HD95, and leaves no mean. Missed: share of the images that "
        f"show a structure{counted * bool((rows.finding != MACRO).any())} on which nothing was outlined. "
        + "The last panel is paired by patient and seed: left of the line the small U-Net is better. " * minus
        + describe_interval(rows[rows.metric == "dice"])
    )


def _conclude(rows: pd.DataFrame) -> str:
    """The first heading's values, and where frozen encoders lose to the small U-Net by a paired interval."""
    dice = rows[(rows.metric == "dice") & (rows.finding == rows.finding.iloc[0])]
    of_what = dice.finding.iloc[0].replace(MACRO, "mean over structures")
    several, words = len(_list_decoders(rows)) > 1, []
    for line, style in _looks(dice).items():
        best = summarise_seeds(_of_line(dice, *line)).sort_values("value").iloc[-1]
        named = f", {name_decoder(best['head'])}," if several and not line[1] else ""
        words.append(f"{style.name}{named} {write_row(best)}")
    minus = summarise_seeds(rows[(rows.metric == "dice_difference") & (rows.finding != MACRO)])
    lost = minus[minus.ci_high < 0].groupby("finding").arm.nunique()
    losses = ", ".join(f"{structure} ({count} of {minus.arm.nunique()} encoders)" for structure, count in lost.items())
    sentence = f"Dice, {of_what} ({name_data_set(dice.data_set.iloc[0])}): {'; '.join(words)}"
    return sentence + (f". Below the small U-Net: {losses or 'no encoder on any structure'}." if len(minus) else ".")


def _select_labels(results: pd.DataFrame) -> pd.DataFrame:
    """Means over structures by the share of the patients, of one decoder on every encoder and of the baselines."""
    rows = select_rows(results, SEGMENTATION, variant="", finding=MACRO, metric=["dice", "hd95"])
    require_rows(rows[rows.setting != ""], "outlines learnt from shares of the labels")
    rows = prefer_data_set(rows)
    thinned = rows[rows.setting != ""]
    decoder = _list_decoders(thinned)[:1]
    # What was not learnt from fewer labels is no curve.
    learnt = thinned[["arm", "head"]].drop_duplicates()
    rows = rows.merge(learnt, on=["arm", "head"])
    return rows[rows["head"].isin([*decoder, *_BASELINES])].reset_index(drop=True)


def _plot_labels(rows: pd.DataFrame) -> Drawing:
    """Dice and HD95 against the share of the labels, a line an encoder or baseline."""
    looks = _looks(rows)
    figure = new_figure(height_mm=78)
    for axes, metric, letter in zip(figure.subplots(1, 2), ("dice", "hd95"), "ab", strict=True):
        own = rows[rows.metric == metric]
        draw_by_share(axes, [(style, _of_line(own, *line)) for line, style in looks.items()])
        axes.set_ylabel({"dice": "Dice", "hd95": "HD95 (pixels)"}[metric])
        title_panel(axes, letter, _MEASURES[metric][0])
    add_arm_legend(figure, looks.values())
    return figure


def _describe_labels(rows: pd.DataFrame) -> str:
    return (
        "Label efficiency of segmentation, means over structures, decoder "
        f"{name_decoder(_list_decoders(rows)[0])}. Patients of smaller shares are among those of larger ones, each "
        "seed draws others. " + describe_interval(rows)
    )


def _conclude_labels(rows: pd.DataFrame) -> str:
    dice = rows[rows.metric == "dice"]
    share = min(dice.setting[dice.setting != ""], key=float)
    few = dice[dice.setting == share]
    words = (
        f"{style.name} {write_row(summarise_seeds(_of_line(few, *line)).iloc[0])}"
        for line, style in _looks(few).items()
    )
    return f"Dice with {float(share):.0%} of the labelled patients: {'; '.join(words)}."


segmentation = Figure("segmentation", _select_structures, _plot, _describe, _conclude)
segmentation_decoders = replace(segmentation, name="segmentation_decoders", select=_select_decoders)
segmentation_labels = Figure("segmentation_labels", _select_labels, _plot_labels, _describe_labels, _conclude_labels)
