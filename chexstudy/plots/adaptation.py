"""What frozen encoders are worth once labels are given: heads by prevalence, label efficiency, components of GLoRI."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Drawing
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from chexstudy.cohort.prevalence import TIERS
from chexstudy.evaluation.adaptation.fine_tuning import METHODS
from chexstudy.evaluation.adaptation.run import ADAPTATION, ADAPTATION_DIFFERENCE
from chexstudy.evaluation.scores import MACRO
from chexstudy.plots.figure import Figure
from chexstudy.plots.forest import (
    Estimate,
    Group,
    draw_estimate,
    draw_forest,
    draw_seeds,
    forest_height_mm,
    level_groups,
    list_estimates,
)
from chexstudy.plots.looks import GREY, INK, ArmStyle, arm_style, arm_styles
from chexstudy.plots.measurements import (
    NothingToDraw,
    interval,
    prefer_data_set,
    require_rows,
    seed_values,
    select_rows,
    summarise_seeds,
)
from chexstudy.plots.style import add_legend, name_lines, new_figure, title_panel
from chexstudy.plots.words import describe_interval, name_data_set, short_name, write_row
from chexstudy.results import OVER_SEEDS, join_rows

_METRICS = {"auroc": "AUROC", "auprc": "Average precision"}
_GROUP_NAMES = {MACRO: "All findings", "head": "Head", "medium": "Medium", "tail": "Tail"}
# In the order of all figures: simple ones first, fine-tuning last.
HEADS = {
    "linear": ArmStyle("linear probe", "#0072B2", "s"),
    "logistic": ArmStyle("logistic regression", "#56B4E9", "^"),
    "neighbours": ArmStyle("nearest neighbours", "#8A8A8A", "v"),
    "glori_v1": ArmStyle("GLoRI, version 1", "#E69F00", "o"),
    "glori_v2": ArmStyle("GLoRI, version 2", "#D55E00", "D"),
    "bias_only": ArmStyle("biases tuned", "#CC79A7", "<"),
    "low_rank": ArmStyle("low-rank updates", "#7A5195", ">"),
    "full": ArmStyle("all weights tuned", "#222222", "P"),
}
_SHORT_NAMES = {"glori_v1": "GLoRI v1", "glori_v2": "GLoRI v2", "linear": "probe", "logistic": "logistic"}


def name_head(head: str, variant: str = "") -> str:
    """A head as words: ``glori_v2`` and ``no_pyramid`` become ``GLoRI, version 2, no pyramid``."""
    return HEADS[head].name + (f", {variant.replace('_', ' ')}" if variant else "")


def _select_whole(results: pd.DataFrame, **wanted: object) -> pd.DataFrame:
    return select_rows(results, ADAPTATION, variant="", setting="", **wanted)


def _select_heads(results: pd.DataFrame) -> pd.DataFrame:
    """AUROC and average precision of every encoder and head, macro and by tier, on the preferred test set."""
    rows = _select_whole(results, metric=list(_METRICS), finding=[MACRO, *TIERS])
    return prefer_data_set(require_rows(rows, "adapted encoders"))


def _plot_heads(rows: pd.DataFrame) -> Drawing:
    looks = arm_styles(rows.arm)
    findings = [finding for finding in (MACRO, *TIERS) if (rows.finding == finding).any()]
    panels = {}
    for metric in _METRICS:
        for finding in findings:
            of_panel = rows[(rows.metric == metric) & (rows.finding == finding)]
            by_arm = {style.name: of_panel[of_panel.arm == arm] for arm, style in looks.items()}
            panels[metric, finding] = [Group(name, list_estimates(own, "head", HEADS)) for name, own in by_arm.items()]
    heights = level_groups(*panels.values())
    figure = new_figure(height_mm=2 * (15 + forest_height_mm(heights)))
    grid = figure.subplots(2, len(findings), squeeze=False)
    for axes, letter, ((metric, finding), groups) in zip(grid.ravel(), "abcdefgh", panels.items(), strict=False):
        is_first = finding == findings[0]
        draw_forest(axes, groups, heights, heading_at_axes=not is_first)
        if not is_first:
            axes.set_yticklabels([])
            for heading in axes.texts:
                heading.set_visible(False)
        axes.margins(x=0.08)
        axes.set_xlabel(_METRICS[metric])
        title_panel(axes, letter, _GROUP_NAMES[finding])
    return figure


def _describe_heads(rows: pd.DataFrame) -> str:
    return (
        "Heads on frozen encoders, and encoders tuned as a whole, by prevalence in training (head above 10 %, tail "
        "under 1 %). Upper row AUROC, lower row average precision. All choices were made on validation. "
        + describe_interval(rows)
    )


def _conclude_heads(rows: pd.DataFrame) -> str:
    best = "; ".join(f"in {name} {_best_of(rows[rows.metric == metric])}" for metric, name in _METRICS.items())
    return f"The best head over all findings ({name_data_set(rows.data_set.iloc[0])}): {best}."


def _best_of(rows: pd.DataFrame) -> str:
    summary = summarise_seeds(rows[rows.finding == MACRO])
    row = summary.loc[summary.value.idxmax()]
    return f"{name_head(row['head'])} on {short_name(row.arm)} ({write_row(row)})"


def state_heads(results: pd.DataFrame) -> list[str]:
    """The best head of each encoder on each test set over all findings, in sentences."""
    rows = _select_whole(results, metric="auroc", finding=MACRO)
    return [
        f"{name_data_set(data_set)}: best in macro AUROC is {_best_of(own)}, of {own['head'].nunique()} heads."
        for (data_set, _), own in rows.groupby(["data_set", "arm"])
    ]


def tabulate_heads(results: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Means over seeds with 95 % intervals as text: one row a data set, encoder and head, one column a group."""
    rows = _select_whole(results, metric=metric, finding=[MACRO, *TIERS], seed=OVER_SEEDS)
    if rows.empty:
        return pd.DataFrame()
    rows = rows.assign(cell=[write_row(row) for row in rows.itertuples()], data_set=rows.data_set.map(name_data_set))
    table = rows.pivot(index=["data_set", "arm", "head"], columns="finding", values="cell")
    return table[[group for group in (MACRO, *TIERS) if group in table]]


def _select_gains(results: pd.DataFrame, arm: str, pairs: Sequence[tuple[str, str]], sizes: pd.Series) -> tuple:
    """Paired differences in AUROC between two heads on one encoder, a row a finding, largest first.

    One table for each of the ``pairs`` of heads; ``sizes``, the median share of the image that a finding's lesions
    cover, orders findings as far as it is known.
    """
    if not pairs:
        raise NothingToDraw("no heads were compared")
    tables = []
    for first, second in pairs:
        wanted = {"arm": arm, "head": first, "variant": "", "reference": second, "metric": "auroc_difference"}
        rows = select_rows(results, ADAPTATION_DIFFERENCE, **wanted)
        rows = prefer_data_set(require_rows(rows, f"comparison of {first} with {second} on {arm}"))
        rows = rows[~rows.finding.isin([MACRO, *TIERS])] if rows.finding.nunique() > 1 else rows
        # Means over other groups of findings have no positives of their own.
        rows = rows[rows.positives >= 0] if (rows.positives >= 0).any() else rows
        order = summarise_seeds(rows).sort_values("value", ascending=False).finding
        tables.append(rows.set_index("finding").loc[list(order)].reset_index())
    return join_rows(*tables), tables, sizes


def _plot_gains(_: pd.DataFrame, tables: list[pd.DataFrame], sizes: pd.Series) -> Drawing:
    findings = list(dict.fromkeys(tables[0].finding))
    if len(sizes):
        findings = sorted(findings, key=lambda finding: sizes.get(finding, np.inf))
    figure = new_figure(height_mm=20 + 4.2 * len(findings))
    grid = figure.subplots(1, len(tables), sharey=True, squeeze=False)[0]
    for axes, rows, letter in zip(grid, tables, "abcd", strict=False):
        first, second = rows["head"].iloc[0], rows.reference.iloc[0]
        for row in summarise_seeds(rows[rows.finding.isin(findings)]).itertuples():
            draw_estimate(axes, findings.index(row.finding), interval(row), HEADS[first])
        axes.axvline(0, color=INK, linewidth=0.6, zorder=1)
        axes.grid(axis="x")
        axes.set_xlabel("Difference in AUROC")
        # Four of these stand side by side.
        names = (_SHORT_NAMES.get(head, head) for head in (first, second))
        title_panel(axes, letter, " \N{MINUS SIGN} ".join(names))
    sized = {finding: f"{finding} ({size:.1%})" for finding, size in sizes.items() if np.isfinite(size)}
    name_lines(grid[0], [sized.get(finding, finding) for finding in findings], ticks=2.5)
    return figure


def _describe_gains(numbers: pd.DataFrame, _: list[pd.DataFrame], sizes: pd.Series) -> str:
    order = "ordered by how much of the image their lesions cover (median, in brackets)"
    return (
        "What the first head gains over the second on each finding, encoder of the arm "
        f"{arm_style(numbers.arm.iloc[0]).name!r}, findings {order if len(sizes) else 'largest gain first'}. Paired by "
        f"patient and seed. {describe_interval(numbers)}"
    )


def _conclude_gains(_: pd.DataFrame, tables: list[pd.DataFrame], __: pd.Series) -> str:
    parts = []
    for rows in tables:
        summary, (first, second) = summarise_seeds(rows), rows[["head", "reference"]].iloc[0]
        gained, lost = int((summary.ci_low > 0).sum()), int((summary.ci_high < 0).sum())
        parts.append(f"{name_head(first)} over {name_head(second)} gains on {gained} and loses on {lost}")
    return f"Of {len(summary)} findings {'; '.join(parts)}."


def _select_label_efficiency(results: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Macro AUROC of every encoder by the ``share`` of the labels, in (0, 1], that logistic regression was given.

    With them, over seeds, the differences of an encoder with few labels to another with all of them.
    """
    rows = select_rows(results, ADAPTATION, metric="auroc", finding=MACRO, head="logistic", variant="")
    rows = rows.assign(share=[float(share or 1) for share in rows.setting])
    require_rows(rows[rows.share < 1], "logistic heads on shares of the labels")
    rows = prefer_data_set(rows)
    wanted = {"metric": "auroc_difference", "finding": MACRO, "data_set": rows.data_set.iloc[0], "head": "logistic"}
    differences = select_rows(results, ADAPTATION_DIFFERENCE, **wanted)
    return rows, summarise_seeds(differences[differences.setting != ""])


def _plot_label_efficiency(rows: pd.DataFrame, claims: pd.DataFrame) -> Drawing:
    looks = arm_styles(rows.arm)
    figure = new_figure(height_mm=72)
    curves, forest = figure.subplots(1, 2, width_ratios=[1.1, 1])
    draw_by_share(curves, [(style, rows[rows.arm == arm]) for arm, style in looks.items()])
    curves.set_ylabel("AUROC, all findings")
    title_panel(curves, "a", "By share of the labels")
    estimates = [Estimate(_word_claim(row, "\n"), interval(row), arm_style(row.arm)) for row in claims.itertuples()]
    draw_forest(forest, [Group("", estimates)], [len(estimates)], reference=0.0)
    forest.set_xlabel("Difference in AUROC, same patients")
    forest.margins(x=0.08)
    title_panel(forest, "b", "Few labels against all")
    handles = [Line2D([], [], color=style.colour, marker=style.marker, label=style.name) for style in looks.values()]
    add_legend(figure, handles)
    return figure


def draw_by_share(axes: Axes, curves: Sequence[tuple[ArmStyle, pd.DataFrame]]) -> None:
    """Values of one metric against the share of the labelled patients, which ``setting`` says; empty means all."""
    shares = set()
    for place, (style, rows) in enumerate(curves):
        summary = summarise_seeds(rows)
        summary = summary.assign(share=[float(share or 1) for share in summary.setting]).sort_values("share")
        # Moved apart a little, so that intervals of equal shares do not hide each other.
        x = summary.share * 1.05 ** (place - (len(curves) - 1) / 2)
        axes.plot(x, summary.value, color=style.colour, linewidth=1.0, zorder=2)
        for at, row in zip(x, summary.itertuples(), strict=True):
            draw_estimate(axes, at, interval(row), style, vertical=True)
            draw_seeds(axes, at, seed_values(rows, setting=row.setting), style, vertical=True)
        shares |= set(summary.share)
    axes.set_xscale("log")
    axes.set_xticks(sorted(shares), [f"{share:.0%}" for share in sorted(shares)])
    axes.minorticks_off()
    axes.grid(axis="y")
    axes.set_xlabel("Share of the labelled patients (log)")


def _word_claim(row, space: str = " ") -> str:
    """An arm with a share of the labels against another with all of them."""
    few, whole = arm_style(row.arm).name.lower(), arm_style(row.reference).name.lower()
    return f"{few}, {float(row.setting):.0%}{space}\N{MINUS SIGN} {whole}, 100%"


def _describe_label_efficiency(rows: pd.DataFrame, _: pd.DataFrame) -> str:
    return (
        "Label efficiency of adaptation, logistic regression on frozen features, all findings. "
        "a, by the share of labelled patients, training and validation thinned alike, each seed with another draw. "
        "b, an encoder with few labels minus another with all of them. " + describe_interval(rows)
    )


def _conclude_label_efficiency(_: pd.DataFrame, claims: pd.DataFrame) -> str:
    words = "; ".join(f"{_word_claim(row)} {write_row(row, '+.3f')}" for row in claims.itertuples())
    return f"AUROC with few labels against all: {words or 'one encoder alone has no other to match'}."


def _select_variants(results: pd.DataFrame, arm: str, base: str) -> pd.DataFrame:
    """Paired differences of the variants of a head to the head itself, AUROC and average precision.

    All findings, and those of the tail where any could be compared: in a small test set there may be none.
    """
    rows = select_rows(results, ADAPTATION_DIFFERENCE, arm=arm, reference=base, finding=[MACRO, "tail"])
    # Other heads on frozen features are held against the base, too, but are no variant of it.
    rows = rows[rows["head"].isin(["glori_v1", "glori_v2"] if base.startswith("glori") else [base, *METHODS])]
    require_rows(rows[rows.finding == MACRO], f"variants of {base} on {arm}")
    by_finding = [prefer_data_set(rows[rows.finding == finding]) for finding in (MACRO, "tail")]
    return pd.concat([table for table in by_finding if len(table)], ignore_index=True)


def _plot_variants(rows: pd.DataFrame) -> Drawing:
    base, known = rows.reference.iloc[0], list(HEADS)
    pairs = set(rows.loc[rows.finding == MACRO, ["head", "variant"]].itertuples(index=False, name=None))
    variants = sorted(pairs, key=lambda one: (known.index(one[0]), one[1] != "", one))
    figure = new_figure(height_mm=16 + 4.6 * len(variants))
    panels = [(finding, metric) for finding in rows.finding.unique() for metric in _METRICS]
    grid = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axes, (finding, metric), letter in zip(grid, panels, "abcdefgh", strict=False):
        chosen = rows[(rows.finding == finding) & (rows.metric == f"{metric}_difference")]
        for row in summarise_seeds(chosen).itertuples():
            draw_estimate(axes, variants.index((row.head, row.variant)), interval(row), HEADS[row.head])
        axes.axvline(0, color=GREY, linewidth=0.6, zorder=1)
        axes.grid(axis="x")
        axes.set_xlabel(f"Difference in {'AUROC' if metric == 'auroc' else 'AP'}")
        axes.xaxis.set_major_locator(MaxNLocator(nbins=3, steps=[1, 2, 5, 10]))
        title_panel(axes, letter, _GROUP_NAMES[finding])
    name_lines(grid[0], [_word_variant(*variant, base) for variant in variants], ticks=2.5)
    return figure


def _word_variant(head: str, variant: str, base: str) -> str:
    return variant.replace("_", " ") if head == base and variant else name_head(head, variant)


def _describe_variants(rows: pd.DataFrame) -> str:
    first = rows.iloc[0]
    return (
        f"Variants minus {name_head(first.reference)}, encoder of the arm {arm_style(first.arm).name!r}: right of the "
        "line the variant is better. AUROC and average precision (AP). Paired by patient and seed. "
        + describe_interval(rows)
    )


def _conclude_variants(rows: pd.DataFrame) -> str:
    base = rows.reference.iloc[0]
    summary = summarise_seeds(rows[(rows.metric == "auroc_difference") & (rows.finding == MACRO)])
    names = pd.Series([_word_variant(row.head, row.variant, base) for row in summary.itertuples()])
    better, worse = (", ".join(names[beyond]) or "none" for beyond in (summary.ci_low > 0, summary.ci_high < 0))
    return f"Against {name_head(base)}, of {len(summary)} variants better in macro AUROC: {better}; worse: {worse}."


heads = Figure("heads", _select_heads, _plot_heads, _describe_heads, _conclude_heads)
glori_gains = Figure("glori_gains", _select_gains, _plot_gains, _describe_gains, _conclude_gains)
label_efficiency = Figure(
    "label_efficiency",
    _select_label_efficiency,
    _plot_label_efficiency,
    _describe_label_efficiency,
    _conclude_label_efficiency,
)
glori_parts = Figure("glori_parts", _select_variants, _plot_variants, _describe_variants, _conclude_variants)
probe_variants = replace(glori_parts, name="probe_variants")
