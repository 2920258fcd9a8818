"""The long tail: what curation gains and keeps where findings are rare."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Drawing
from matplotlib.ticker import LogLocator, NullLocator

from chexstudy.cohort.prevalence import TIERS
from chexstudy.cohort.table import NO_FINDING
from chexstudy.curation.quality.keep_rates import REPORT_GROUPS, TRUTH_GROUPS
from chexstudy.evaluation.comparison.gains_by_prevalence import GAIN_TREND, PER_DECADE
from chexstudy.plots.figure import Figure
from chexstudy.plots.forest import Estimate, Group, draw_forest, draw_seeds
from chexstudy.plots.measurements import (
    describe_interval,
    name_data_set,
    name_setting,
    preferred_data_set,
    preferred_setting,
    require_rows,
    seed_values,
    select_rows,
    short_name,
    summarise_seeds,
)
from chexstudy.plots.style import ACCENT, GREY, INK, PALE, ArmStyle, arm_style, new_figure, order_arms, title_panel
from chexstudy.results import OVER_SEEDS, write_interval

_TIER_WORDS = dict(zip(TIERS, ("common", "medium", "rare"), strict=True))
_KINDS = (*TIERS, NO_FINDING, *TRUTH_GROUPS, *REPORT_GROUPS.values())
_KIND_GROUPS = ("tier", "no finding", "truth", "report")
# Findings the published study calls out; named in the figure whatever came out for them.
CALLED_OUT = ("Aortic Enlargement", "Fibrosis", "Pulmonary Fibrosis", "Aortic enlargement", "Pulmonary fibrosis")
_NAMED_AT_MOST = 5
_FEWEST_FOR_A_TREND = 8
_METRIC_WORDS = {"auroc": "AUROC", "auprc": "AUPRC"}
# The fourth, in doublings of AUPRC, has another unit and is left to the table.
_TREND_WORDS = _METRIC_WORDS | {"normalised_auprc": "Normalised AUPRC"}


def select_gains(
    results: pd.DataFrame, prevalence: pd.Series, against: str = "random_same_data", metric: str = "auroc"
) -> pd.DataFrame:
    """Per-finding gains of the curated arm with the prevalence in training.

    Args:
        prevalence: share of the training pairs with each finding, indexed by finding.
        against: the arm compared with.
        metric: ``auroc`` or ``auprc``.

    Returns:
        As `summarise_seeds`, with ``prevalence``, commonest first; empty if no finding was compared. ``No Finding`` is
        no disease and not among them.
    """
    prevalence = prevalence.drop(NO_FINDING, errors="ignore")
    rows = _gains(results, against, metric)
    summary = summarise_seeds(rows[rows.finding.isin(prevalence.index)])
    summary["prevalence"] = summary.finding.map(prevalence).astype(float)
    summary = summary[summary.prevalence > 0]
    return summary.sort_values("prevalence", ascending=False, kind="stable").reset_index(drop=True)


def _gains(results: pd.DataFrame, against: str, metric: str = "auroc") -> pd.DataFrame:
    rows = select_rows(results, "zero_shot_difference", metric=f"{metric}_difference", arm="curated", reference=against)
    return _choose_one(rows)


def _choose_one(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows of the preferred data set and prompts."""
    if rows.empty:
        return rows
    rows = rows[rows.data_set == preferred_data_set(rows)]
    return rows[rows.setting == preferred_setting(rows)] if len(rows) else rows


def select_keep_rates(results: pd.DataFrame) -> pd.DataFrame:
    """What the curated arm keeps: keep rates and enrichment of every group but tenths of density."""
    rows = select_rows(results, "curation", arm="curated", metric=["keep_rate", "enrichment"])
    return rows[rows.group != "density"].reset_index(drop=True)


def select_trend(results: pd.DataFrame, against: str = "random_same_data", metric: str = "auroc") -> pd.Series | None:
    """The row of the results table that holds the trend of the gains drawn, or None if there is none."""
    gains = _gains(results, against, metric)
    rows = select_rows(results, GAIN_TREND, arm="curated", reference=against, metric=metric + PER_DECADE)
    if gains.empty or rows.empty:
        return None
    rows = rows[(rows.data_set == gains.data_set.iloc[0]) & (rows.setting == gains.setting.iloc[0])]
    return rows.iloc[0] if len(rows) else None


def select_trends(results: pd.DataFrame) -> pd.DataFrame:
    """The trends of the gains over every arm, on the data set that is drawn and then on the others."""
    rows = select_rows(results, GAIN_TREND, metric=[name + PER_DECADE for name in _TREND_WORDS])
    rows = rows[(rows.arm == "curated") & rows.ci_low.notna()]
    if rows.empty:
        return rows
    first = preferred_data_set(rows)
    rows = rows[rows.setting == preferred_setting(rows)]
    return rows.sort_values("data_set", key=lambda names: names != first, kind="stable", ignore_index=True)


def select_long_tail(results: pd.DataFrame, prevalence: pd.Series, against: str = "random_same_data") -> pd.DataFrame:
    """All numbers of the figure, as rows of the results table with the ``prevalence`` of the finding."""
    rows = [select_trends(results), select_keep_rates(results)]
    for metric in _METRIC_WORDS:
        rows.append(_gains(results, against, metric))
        rows.append(_gains_of_all(results, metric))
    rows = [table for table in rows if len(table)] or [results[:0]]
    table = pd.concat(rows, ignore_index=True).drop_duplicates(ignore_index=True)
    return table.assign(prevalence=table.finding.map(prevalence).astype(float))


def plot_long_tail(results: pd.DataFrame, prevalence: pd.Series, against: str = "random_same_data") -> Drawing:
    """Gain against prevalence and by tier in AUROC and AUPRC, its trends, enrichment, and what kinds of pairs are kept.

    Panels without rows are left out: real cohorts have no known duplicates, small ones no tiers.
    """
    tables = _tables(results, prevalence, against)
    panels = [panel for panel, table in tables.items() if len(table)]
    if not panels:
        require_rows(tables["auroc"], "per-finding differences and no keep rates")
    height, columns = (len(panels) + 1) // 2, min(2, len(panels))
    figure = new_figure(height_mm=60 * height + 4)
    # Every row has margins of its own: long labels of one panel do not squeeze those above and below.
    rows = figure.subfigures(height, 1, squeeze=False).ravel()
    grid = [one for row in rows for one in row.subplots(1, columns, squeeze=False).ravel()]
    axes = dict(zip(panels, grid, strict=False))
    for unused in grid[len(panels) :]:
        unused.remove()
    letters = dict(zip(panels, "abcdefgh", strict=False))
    other = arm_style(against)
    for metric, words in _METRIC_WORDS.items():
        if metric in axes:
            trend = select_trend(results, against, metric)
            _draw_gains(axes[metric], tables[metric], other, trend, words)
            title = f"Gain over {other.name.lower()}, by prevalence"
            title_panel(axes[metric], letters[metric], title)
        tiers = f"{metric} by tier"
        if tiers in axes:
            _draw_groups(axes[tiers], tables[tiers], f"Difference in macro {words}")
            title_panel(axes[tiers], letters[tiers], "Curated minus others, by tier")
    for panel in ("trends", "trends elsewhere"):
        if panel in axes:
            _draw_groups(axes[panel], _group_trends(tables[panel]), "Change of the gain for ten times the prevalence")
            title_panel(axes[panel], letters[panel], f"Trend of the gain ({_name_test(tables[panel])})")
    if "enrichment" in axes:
        _draw_enrichment(axes["enrichment"], tables["enrichment"])
        title_panel(axes["enrichment"], letters["enrichment"], "What curation keeps, by prevalence")
    if "kinds" in axes:
        _draw_kinds(axes["kinds"], tables["kinds"])
        title_panel(axes["kinds"], letters["kinds"], "What curation keeps, by kind of pair")
    for panel in (*_METRIC_WORDS, "enrichment"):
        if panel in axes:
            _name_findings(axes[panel], tables[panel])
    return figure


def _draw_groups(axes: Axes, groups: list[Group], label: str) -> None:
    heights = [len(group.estimates) for group in groups]
    draw_forest(axes, groups, heights, reference=0.0, number_format="+.3f", heading_at_axes=True)
    axes.set_xlabel(label)


def _name_test(rows: pd.DataFrame) -> str:
    return rows.data_set.iloc[0].rpartition("/")[2].replace("_", " ")


def _tables(results, prevalence, against) -> dict:
    """What each panel draws, by panel; empty where nothing was measured."""
    kept = select_keep_rates(results)
    enrichment = summarise_seeds(kept[(kept.metric == "enrichment") & (kept.group == "finding")])
    enrichment["prevalence"] = enrichment.finding.map(prevalence).astype(float)
    trends = select_trends(results)
    drawn = trends.data_set == (trends.data_set.iloc[0] if len(trends) else "")
    elsewhere = trends[~drawn]
    return {
        **{metric: select_gains(results, prevalence, against, metric) for metric in _METRIC_WORDS},
        **{f"{metric} by tier": _group_tiers(_gains_of_all(results, metric)) for metric in _METRIC_WORDS},
        "trends": trends[drawn],
        "trends elsewhere": elsewhere[elsewhere.data_set == elsewhere.data_set.min()],
        "enrichment": enrichment[enrichment.prevalence > 0],
        "kinds": kept[(kept.metric == "keep_rate") & kept.group.isin(_KIND_GROUPS)],
    }


def _gains_of_all(results: pd.DataFrame, metric: str) -> pd.DataFrame:
    rows = select_rows(results, "zero_shot_difference", metric=f"{metric}_difference", finding=TIERS)
    return _choose_one(rows[rows.arm == "curated"])


def _group_trends(rows: pd.DataFrame) -> list[Group]:
    """Trends by measure, an arm a line."""
    groups = []
    for metric, word in _TREND_WORDS.items():
        of_metric = rows[rows.metric == metric + PER_DECADE]
        by_arm = {row.reference: row for row in of_metric.itertuples()}
        estimates = [
            Estimate(arm_style(arm).name, by_arm[arm].value, by_arm[arm].ci_low, by_arm[arm].ci_high, arm_style(arm))
            for arm in order_arms(by_arm)
        ]
        if estimates:
            groups.append(Group(word, estimates))
    return groups


def _group_tiers(rows: pd.DataFrame) -> list[Group]:
    summary, groups = summarise_seeds(rows), []
    for tier, word in _TIER_WORDS.items():
        by_arm = {row.reference: row for row in summary[summary.finding == tier].itertuples()}
        estimates = [
            Estimate(
                arm_style(arm).name, by_arm[arm].value, by_arm[arm].ci_low, by_arm[arm].ci_high, arm_style(arm),
                seed_values(rows, reference=arm, finding=tier),
            )
            for arm in order_arms(by_arm)
        ]  # fmt: skip
        if estimates:
            groups.append(Group(f"{word.capitalize()} findings", estimates))
    return groups


def _scatter_by_prevalence(axes: Axes, table: pd.DataFrame, colour: str, marker: str) -> None:
    x = 100 * table.prevalence
    axes.vlines(x, table.ci_low, table.ci_high, color=colour, linewidth=0.7, alpha=0.45, zorder=2)
    axes.plot(
        x, table.value, marker, color=colour, markersize=4, markeredgecolor="white", markeredgewidth=0.4,
        linestyle="none", gid="estimate", zorder=3,
    )  # fmt: skip
    axes.set_xscale("log")
    axes.set_xlim(x.min() / 1.35, x.max() * 1.35)
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("Prevalence in training (%, log)")
    axes.grid(axis="y", color="#ECECEC", linewidth=0.5)


def _draw_gains(axes: Axes, gains: pd.DataFrame, against: ArmStyle, trend: pd.Series | None, metric: str) -> None:
    _scatter_by_prevalence(axes, gains, ACCENT, "o")
    axes.axhline(0, color=INK, linewidth=0.6, zorder=1)
    axes.set_ylabel(f"Difference in {metric}\n(curated \N{MINUS SIGN} {against.name.lower()})")
    _limit_to_values(axes, gains, around=0.0)
    if trend is not None and _is_drawn(trend):
        _draw_trend(axes, gains, trend)


def _is_drawn(trend: pd.Series) -> bool:
    """Whether a trend rests on enough findings and its interval excludes zero."""
    return trend.n >= _FEWEST_FOR_A_TREND and (trend.ci_low > 0 or trend.ci_high < 0)


def _draw_trend(axes: Axes, gains: pd.DataFrame, trend: pd.Series) -> None:
    """The line through the middle of the points, which every least-squares line passes, and its slope's interval."""
    decades = np.log10(gains.prevalence.to_numpy(dtype=float))
    x = np.linspace(decades.min(), decades.max(), 60)
    line, *ends = (gains.value.mean() + slope * (x - decades.mean()) for slope in trend[["value", "ci_low", "ci_high"]])
    axes.fill_between(
        100 * 10**x, np.minimum(*ends), np.maximum(*ends), color=PALE, alpha=0.6, linewidth=0, gid="trend interval",
        zorder=0,
    )  # fmt: skip
    axes.plot(100 * 10**x, line, color=GREY, linewidth=1.0, gid="trend", zorder=1)


def _draw_enrichment(axes: Axes, table: pd.DataFrame) -> None:
    _scatter_by_prevalence(axes, table, ACCENT, "o")
    axes.axhline(1, color=INK, linewidth=0.6, zorder=1)
    axes.set_ylabel("Enrichment among kept pairs\n(1: as in all pairs)")
    _limit_to_values(axes, table, around=1.0)
    axes.set_ylim(bottom=max(axes.get_ylim()[0], 0))


def _limit_to_values(axes: Axes, table: pd.DataFrame, around: float) -> None:
    """Show every value whole and intervals as far as twice the values' reach; those of the rarest run on."""
    reach = 1.3 * np.abs(table.value - around).max() or 0.05
    low = max(table.ci_low.min(), around - 2 * reach) if table.ci_low.notna().any() else around - reach
    high = min(table.ci_high.max(), around + 2 * reach) if table.ci_high.notna().any() else around + reach
    low, high = min(low, around - 0.2 * reach), max(high, around + 0.2 * reach)
    axes.set_ylim(low - 0.05 * (high - low), high + 0.05 * (high - low))


def _name_findings(axes: Axes, table: pd.DataFrame) -> None:
    """Names of the findings called out and of the few farthest from the middle, where they do not collide."""
    farthest = (table.value - table.value.median()).abs().sort_values(ascending=False).index
    called = [index for index in table.index if table.finding[index] in CALLED_OUT]
    wanted = [*called, *[index for index in farthest if index not in called]][: max(_NAMED_AT_MOST, len(called))]
    width, height = _measure_panel(axes)
    to_points = axes.transAxes.inverted()
    places = {
        index: to_points.transform(axes.transData.transform((100 * table.prevalence[index], table.value[index])))
        * (width, height)
        for index in table.index
    }
    taken = [(x - 2.5, y - 2.5, x + 2.5, y + 2.5) for x, y in places.values()]
    leader = {"arrowstyle": "-", "color": INK, "lw": 0.5, "shrinkB": 3}
    for index in wanted:
        x, y = places[index]
        length = 3.6 * len(table.finding[index])
        for dx, dy, align in _label_offsets(far=table.finding[index] in CALLED_OUT):
            left = x + dx - {"left": 0.0, "right": length, "center": length / 2}[align]
            box = (left, y + dy, left + length, y + dy + 6.5)
            inside = box[0] > 0 and box[2] < width and box[1] > 0 and box[3] < height
            if inside and not any(_overlap(box, other) for other in taken):
                axes.annotate(
                    table.finding[index], (100 * table.prevalence[index], table.value[index]), (dx, dy),
                    textcoords="offset points", ha=align, va="bottom", fontsize=6, zorder=5, annotation_clip=True,
                    bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.75, "pad": 0.3},
                    arrowprops=leader if max(abs(dx), abs(dy)) > 10 else None,
                )  # fmt: skip
                axes.plot(
                    [100 * table.prevalence[index]], [table.value[index]], "o", color="none", markeredgecolor=INK,
                    markersize=4.6, markeredgewidth=0.7, gid="named", zorder=4,
                )  # fmt: skip
                taken.append(box)
                break


def _label_offsets(far: bool) -> list[tuple[float, float, str]]:
    """Where a name may stand beside its point, in points, nearest first; ``far`` places get a leader."""
    offsets = [
        (4, 2, "left"),
        (4, -8, "left"),
        (-4, 2, "right"),
        (-4, -8, "right"),
        (0, 4, "center"),
        (0, -10, "center"),
    ]
    for distance in (16, 28, 40, 52, 64) if far else ():
        offsets += [(dx, dy, "center") for dy in (distance, -distance - 6) for dx in (0, distance, -distance)]
    return offsets


def _measure_panel(axes: Axes) -> tuple[float, float]:
    """Size of the axes in points, once the figure's layout is settled."""
    axes.get_figure(root=True).draw_without_rendering()
    box = axes.get_window_extent()
    scale = 72 / axes.get_figure(root=True).dpi
    return box.width * scale, box.height * scale


def _overlap(one: tuple, other: tuple) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def _draw_kinds(axes: Axes, rows: pd.DataFrame) -> None:
    summary = summarise_seeds(rows).set_index("finding")
    names = [name for name in _KINDS if name in summary.index]
    style = arm_style("curated")
    for line, name in enumerate(names):
        row = summary.loc[name]
        axes.barh(line, 100 * row.value, 0.62, color=style.colour if name in TIERS else "#F0B48A", gid="bar")
        if np.isfinite(row.ci_low):
            axes.plot([100 * row.ci_low, 100 * row.ci_high], [line, line], color=INK, linewidth=0.9, gid="interval")
        seeds = 100 * seed_values(rows, finding=name)
        draw_seeds(axes, seeds, np.full(len(seeds), line + 0.18), ArmStyle("", INK, "o"))
    words = [f"{_TIER_WORDS[name]} findings" if name in TIERS else name.lower() for name in names]
    labels = [f"{word} ({int(summary.n[name]):,})" for word, name in zip(words, names, strict=True)]
    axes.set_yticks(range(len(names)), labels)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.set_xlim(left=0)
    axes.set_xlabel("Kept (%), pairs in brackets")


def describe_long_tail(results: pd.DataFrame, prevalence: pd.Series, against: str = "random_same_data") -> str:
    """The caption of `plot_long_tail`, with the trend as it came out; it names the panels that are drawn."""
    tables = _tables(results, prevalence, against)
    letters = dict(zip([panel for panel, table in tables.items() if len(table)], "abcdefgh", strict=False))
    parts, other = ["The long tail."], arm_style(against).name.lower()
    for metric, words in _METRIC_WORDS.items():
        if metric in letters:
            gains = tables[metric]
            first = gains.iloc[0]
            where = ", ".join(part for part in (name_data_set(first.data_set), name_setting(first.setting)) if part)
            parts.append(
                f"{letters[metric]}, gain of the curated arm over {other} in zero-shot {words} ({where}), paired by "
                f"patient and seed, by prevalence in training, for {len(gains)} finding{'s' * (len(gains) != 1)}; long "
                "intervals are cut at the frame."
            )
            parts.append(_describe_trend(select_trend(results, against, metric)))
    if "auroc" in letters:
        parts.append(describe_interval(_gains(results, against)))
    if "auprc" in letters:
        parts.append(_describe_test_prevalence(tables["auprc"]))
    by_tier = [letters[f"{metric} by tier"] for metric in _METRIC_WORDS if f"{metric} by tier" in letters]
    if by_tier:
        measured = " and ".join(words for metric, words in _METRIC_WORDS.items() if f"{metric} by tier" in letters)
        parts.append(
            f"{', '.join(by_tier)}, paired differences in macro {measured} by tier of prevalence in training (above "
            "10 %, 1 to 10 %, below 1 %, as CXR-LT), 95 % intervals."
        )
    if "trends" in letters:
        parts.append(_describe_trends(tables, letters))
    if "enrichment" in letters:
        parts.append(
            f"{letters['enrichment']}, enrichment of findings among the pairs kept by the curated arm; above 1, kept "
            "pairs hold more of the finding than all pairs."
        )
    if "kinds" in letters:
        parts.append(f"{letters['kinds']}, share of the pairs of each kind that it kept.")
    if {"enrichment", "kinds"} & set(letters):
        parts.append(_describe_keep_rates(select_keep_rates(results), list(letters.values())))
    return " ".join(parts)


def _describe_test_prevalence(gains: pd.DataFrame) -> str:
    share = 100 * gains.positives / gains.n
    return (
        f"AUPRC depends on the share of positives, in this test set {share.min():.1f} to {share.max():.1f} % of the "
        "images by finding."
    )


def _describe_trends(tables: dict, letters: dict[str, str]) -> str:
    said = []
    for panel in ("trends", "trends elsewhere"):
        if panel in letters:
            rows = tables[panel]
            low, high = int(rows.n.min()), int(rows.n.max())
            count = f"{low}" if low == high else f"{low} to {high}"
            said.append(f"{letters[panel]}, {name_data_set(rows.data_set.iloc[0])}, {count} findings")
    return (
        f"Slopes of the gain over log10 prevalence, over each arm ({'; '.join(said)}; findings of five patients or "
        "more); below zero, curation gains most on the rare. Normalised AUPRC: the part reached of what can be reached "
        "at the test set's prevalence (Boyd 2012)."
    )


def _describe_trend(trend: pd.Series | None) -> str:
    if trend is None or trend.n < _FEWEST_FOR_A_TREND or not np.isfinite(trend.ci_low):
        return "Too few findings for a trend."
    slope = write_interval(trend.value, trend.ci_low, trend.ci_high, "+.3f")
    drawn = "line, shaded the slopes of the interval" if _is_drawn(trend) else "not drawn, the interval holds zero"
    return (
        f"Change for ten times the prevalence {slope} (least squares over {int(trend.n)} findings in every resample of "
        f"patients and seeds; {drawn})."
    )


def _describe_keep_rates(rows: pd.DataFrame, letters: list[str]) -> str:
    seeds = rows.seed[rows.seed != OVER_SEEDS].nunique()
    marks = "One seed" if seeds == 1 else f"{seeds} seeds together"
    if seeds > 1 and (rows.group != "finding").any():
        marks += f" (small marks in {letters[-1]}: single seeds)"
    if summarise_seeds(rows).ci_low.isna().all():
        return f"{marks}; no intervals."
    return f"{marks}; lines are 95 % intervals, Wilson's with patients{' and seeds' * (seeds > 1)} as clusters."


def conclude_long_tail(results: pd.DataFrame, prevalence: pd.Series, against: str) -> str:
    """The gain by prevalence as it came out, or else what was kept."""
    if select_gains(results, prevalence, against).empty:
        return "No finding was compared between arms: only what was kept can be told."
    return f"Gain of the curated arm over {short_name(against)}: {_describe_trend(select_trend(results, against))}"


long_tail = Figure("long_tail", select_long_tail, plot_long_tail, describe_long_tail, conclude_long_tail)
