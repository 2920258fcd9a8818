"""The long tail: what curation gains and keeps where findings are rare."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Drawing

from chexstudy.cohort.prevalence import TIERS
from chexstudy.cohort.table import NO_FINDING
from chexstudy.curation.quality.keep_rates import REPORT_GROUPS, TRUTH_GROUPS
from chexstudy.evaluation.comparison.gains_by_prevalence import GAIN_TREND, PER_DECADE
from chexstudy.plots.figure import Figure
from chexstudy.plots.forest import Estimate, Group, draw_estimate, draw_forest, draw_seeds, list_estimates
from chexstudy.plots.looks import ACCENT, GREY, INK, PALE, ArmStyle, arm_style, order_arms
from chexstudy.plots.measurements import (
    interval,
    prefer_data_set,
    prefer_setting,
    require_rows,
    seed_values,
    select_rows,
    summarise_seeds,
)
from chexstudy.plots.style import draw_marks, name_lines, new_figure, scale_log, title_panel
from chexstudy.plots.words import describe_interval, name_data_set, name_place, short_name, write_row
from chexstudy.pretraining.arms.definitions import CURATING
from chexstudy.results import OVER_SEEDS

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


def _select(results: pd.DataFrame, prevalence: pd.Series, against: str) -> tuple[pd.DataFrame, dict, str]:
    """All numbers of the figure, as rows of the results table with the ``prevalence`` of the finding.

    With them by panel what it draws, where anything was measured: real cohorts have no known duplicates, small ones no
    tiers. ``auroc`` and ``auprc`` are gains by finding (as `summarise_seeds`, with ``prevalence``, commonest first;
    ``No Finding`` is no disease and not among them).
    """
    kept = select_rows(results, "curation", arm=list(CURATING), metric=["keep_rate", "enrichment"])
    kept = kept[(kept.group != "density") & ((kept.arm == "curated") | kept.group.isin(_KIND_GROUPS))]
    kept = kept.reset_index(drop=True)
    trends = select_rows(results, GAIN_TREND, metric=[name + PER_DECADE for name in _TREND_WORDS], arm="curated")
    trends = prefer_setting(trends[trends.ci_low.notna()])
    # On the data set that is drawn, then on the others.
    first = set(prefer_data_set(trends).data_set)
    trends = trends.sort_values("data_set", key=lambda names: ~names.isin(first), kind="stable", ignore_index=True)
    rows, by_finding, by_tier = [trends, kept], {}, {}
    for metric in _METRIC_WORDS:
        differences = select_rows(results, "zero_shot_difference", metric=f"{metric}_difference", arm="curated")
        gains = prefer_setting(prefer_data_set(differences[differences.reference == against]))
        tiers = prefer_setting(prefer_data_set(differences[differences.finding.isin(TIERS)]))
        rows += [gains, tiers]
        of_findings = _add_prevalence(gains, prevalence)
        by_finding[metric] = of_findings.sort_values("prevalence", ascending=False, kind="stable", ignore_index=True)
        by_tier[f"{metric} by tier"] = tiers
    elsewhere = trends[trends.data_set != (trends.data_set.iloc[0] if len(trends) else "")]
    panels = {
        **by_finding,
        **by_tier,
        "trends": trends.drop(elsewhere.index),
        "trends elsewhere": elsewhere[elsewhere.data_set == elsewhere.data_set.min()],
        "enrichment": _add_prevalence(kept[(kept.metric == "enrichment") & (kept.group == "finding")], prevalence),
        "kinds": kept[(kept.metric == "keep_rate") & kept.group.isin(_KIND_GROUPS)],
    }
    panels = {panel: table for panel, table in panels.items() if len(table)}
    numbers = pd.concat([table for table in rows if len(table)] or [results[:0]], ignore_index=True)
    if not panels:
        require_rows(results[:0], "per-finding differences and no keep rates")
    numbers = numbers.drop_duplicates(ignore_index=True)
    return numbers.assign(prevalence=numbers.finding.map(prevalence).astype(float)), panels, against


def _add_prevalence(rows: pd.DataFrame, prevalence: pd.Series) -> pd.DataFrame:
    """Findings over seeds, as far as any is in the training pairs."""
    summary = summarise_seeds(rows)
    summary["prevalence"] = summary.finding.map(prevalence.drop(NO_FINDING, errors="ignore")).astype(float)
    return summary[summary.prevalence > 0].reset_index(drop=True)


def _find_trend(numbers: pd.DataFrame, gains: pd.DataFrame, against: str, metric: str) -> pd.Series | None:
    """The row that holds the trend of the gains drawn, if it rests on enough findings."""
    place = {"data_set": gains.data_set.iloc[0], "setting": gains.setting.iloc[0], "reference": against}
    rows = select_rows(numbers, GAIN_TREND, metric=metric + PER_DECADE, **place)
    return rows.iloc[0] if len(rows) and rows.n.iloc[0] >= _FEWEST_FOR_A_TREND else None


def _plot(numbers: pd.DataFrame, panels: dict[str, pd.DataFrame], against: str) -> Drawing:
    height, columns = (len(panels) + 1) // 2, min(2, len(panels))
    figure = new_figure(height_mm=60 * height + 4)
    # Every row has margins of its own: long labels of one panel do not squeeze those above and below.
    strips = figure.subfigures(height, 1, squeeze=False).ravel()
    grid = [one for strip in strips for one in strip.subplots(1, columns, squeeze=False).ravel()]
    for unused in grid[len(panels) :]:
        unused.remove()
    other, named = arm_style(against).name.lower(), []
    for axes, letter, (panel, table) in zip(grid, "abcdefgh", panels.items(), strict=False):
        metric = panel.partition(" ")[0]
        if panel in _METRIC_WORDS:
            _scatter_by_prevalence(axes, table, 0)
            axes.set_ylabel(f"Difference in {_METRIC_WORDS[metric]}\n(curated \N{MINUS SIGN} {other})")
            trend = _find_trend(numbers, table, against, metric)
            if trend is not None and _excludes_zero(trend):
                _draw_trend(axes, table, trend)
            title = f"Gain over {other}, by prevalence"
        elif metric in _METRIC_WORDS:
            _draw_groups(axes, _group_tiers(table), f"Difference in macro {_METRIC_WORDS[metric]}")
            title = "Curated minus others, by tier"
        elif metric == "trends":
            _draw_groups(axes, _group_trends(table), "Change of the gain for ten times the prevalence")
            title = f"Trend of the gain ({table.data_set.iloc[0].rpartition('/')[2].replace('_', ' ')})"
        elif panel == "enrichment":
            _scatter_by_prevalence(axes, table, 1)
            axes.set_ylabel("Enrichment among kept pairs\n(1: as in all pairs)")
            axes.set_ylim(bottom=max(axes.get_ylim()[0], 0))
            title = "What curation keeps, by prevalence"
        else:
            _draw_kinds(axes, table)
            title = "What curation keeps, by kind of pair"
        title_panel(axes, letter, title)
        if "prevalence" in table:
            named.append((axes, table))
    # Once all panels are laid out.
    for axes, table in named:
        _name_findings(axes, table)
    return figure


def _draw_groups(axes: Axes, groups: list[Group], label: str) -> None:
    heights = [len(group.estimates) for group in groups]
    draw_forest(axes, groups, heights, reference=0.0, number_format="+.3f", heading_at_axes=True)
    axes.set_xlabel(label)


def _group_trends(rows: pd.DataFrame) -> list[Group]:
    own = {word: rows[rows.metric == metric + PER_DECADE] for metric, word in _TREND_WORDS.items()}
    return [Group(word, _list_arms(of_metric)) for word, of_metric in own.items() if len(of_metric)]


def _group_tiers(rows: pd.DataFrame) -> list[Group]:
    by_tier = {word: rows[rows.finding == tier] for tier, word in _TIER_WORDS.items()}
    return [Group(f"{word.capitalize()} findings", _list_arms(own)) for word, own in by_tier.items() if len(own)]


def _list_arms(rows: pd.DataFrame) -> list[Estimate]:
    return list_estimates(rows, "reference", {arm: arm_style(arm) for arm in order_arms(rows.reference)})


def _scatter_by_prevalence(axes: Axes, table: pd.DataFrame, middle: float) -> None:
    x = 100 * table.prevalence
    axes.vlines(x, table.ci_low, table.ci_high, color=ACCENT, linewidth=0.7, alpha=0.45, zorder=2)
    draw_marks(axes, x, table.value, arm_style("curated"), gid="estimate", zorder=3)
    scale_log(axes)
    axes.set(xlim=(x.min() / 1.35, x.max() * 1.35), xlabel="Prevalence in training (%, log)")
    axes.grid(axis="y")
    axes.axhline(middle, color=INK, linewidth=0.6, zorder=1)
    _limit_to_values(axes, table, middle)


def _excludes_zero(trend: pd.Series) -> bool:
    return trend.ci_low > 0 or trend.ci_high < 0


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
    # In points, once the figure's layout is settled.
    figure = axes.get_figure(root=True)
    figure.draw_without_rendering()
    width, height = (side * (72 / figure.dpi) for side in axes.get_window_extent().size)
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
    offsets = [(dx, dy, side) for dx, side in ((4, "left"), (-4, "right")) for dy in (2, -8)]
    offsets += [(0, 4, "center"), (0, -10, "center")]
    for distance in (16, 28, 40, 52, 64) if far else ():
        offsets += [(dx, dy, "center") for dy in (distance, -distance - 6) for dx in (0, distance, -distance)]
    return offsets


def _overlap(one: tuple, other: tuple) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def _draw_kinds(axes: Axes, rows: pd.DataFrame) -> None:
    summary, filtered = (summarise_seeds(rows[rows.arm == arm]).set_index("finding") for arm in CURATING)
    names = [name for name in _KINDS if name in summary.index]
    for line, name in enumerate(names):
        row, seeds = summary.loc[name], 100 * seed_values(rows, arm="curated", finding=name)
        axes.barh(line, 100 * row.value, 0.62, color=ACCENT if name in TIERS else "#F0B48A", gid="bar")
        if np.isfinite(row.ci_low):
            axes.plot([100 * row.ci_low, 100 * row.ci_high], [line, line], color=INK, linewidth=0.9, gid="interval")
        draw_seeds(axes, line + 0.18, seeds, ArmStyle("", INK, "o"))
        if name in filtered.index:
            draw_estimate(axes, line - 0.18, interval(filtered.loc[name], 100), arm_style("filtered"))
    words = [f"{_TIER_WORDS[name]} findings" if name in TIERS else name.lower() for name in names]
    name_lines(axes, [f"{word} ({int(summary.n[name]):,})" for word, name in zip(words, names, strict=True)])
    axes.set(xlim=(0, None), xlabel="Kept (%), pairs in brackets")


def _describe(numbers: pd.DataFrame, panels: dict[str, pd.DataFrame], against: str) -> str:
    letters = dict(zip(panels, "abcdefgh", strict=False))
    parts, measured = ["The long tail."], [metric for metric in _METRIC_WORDS if metric in panels]
    for metric in measured:
        gains = panels[metric]
        parts.append(
            f"{letters[metric]}, gain of the curated arm over {arm_style(against).name.lower()} in zero-shot "
            f"{_METRIC_WORDS[metric]} ({name_place(gains.iloc[0])}), paired by patient and seed, by prevalence in "
            f"training, for {len(gains)} finding{'s' * (len(gains) != 1)}; long intervals are cut at the frame. "
            + _describe_trend(_find_trend(numbers, gains, against, metric))
        )
    if "auroc" in panels:
        place = panels["auroc"].iloc[0]
        of_gains = select_rows(numbers, "zero_shot_difference", metric="auroc_difference", reference=against)
        parts.append(
            describe_interval(select_rows(of_gains, place.task, data_set=place.data_set, setting=place.setting))
        )
    if "auprc" in panels:
        share = 100 * panels["auprc"].positives / panels["auprc"].n
        parts.append(
            f"AUPRC depends on the share of positives, in this test set {share.min():.1f} to {share.max():.1f} % of "
            "the images by finding."
        )
    by_tier = [metric for metric in _METRIC_WORDS if f"{metric} by tier" in panels]
    if by_tier:
        parts.append(
            f"{', '.join(letters[f'{metric} by tier'] for metric in by_tier)}, paired differences in macro "
            f"{' and '.join(_METRIC_WORDS[metric] for metric in by_tier)} by tier of prevalence in training (above 10 "
            "%, 1 to 10 %, below 1 %, as CXR-LT), 95 % intervals."
        )
    if "trends" in panels:
        parts.append(_describe_trends(panels, letters))
    if "enrichment" in panels:
        parts.append(
            f"{letters['enrichment']}, enrichment of findings among the pairs kept by the curated arm; above 1, kept "
            "pairs hold more of the finding than all pairs."
        )
    if "kinds" in panels:
        beside = " (bars), and the filtered arm (pentagons)" * ("filtered" in set(panels["kinds"].arm))
        parts.append(f"{letters['kinds']}, share of the pairs of each kind that the curated arm kept{beside}.")
    if {"enrichment", "kinds"} & set(panels):
        parts.append(_describe_keep_rates(select_rows(numbers, "curation", arm="curated"), list(letters.values())))
    return " ".join(parts)


def _describe_trends(panels: dict[str, pd.DataFrame], letters: dict[str, str]) -> str:
    said = []
    for panel in ("trends", "trends elsewhere"):
        if panel in panels:
            rows = panels[panel]
            low, high = int(rows.n.min()), int(rows.n.max())
            count = f"{low}" if low == high else f"{low} to {high}"
            said.append(f"{letters[panel]}, {name_data_set(rows.data_set.iloc[0])}, {count} findings")
    return (
        f"Slopes of the gain over log10 prevalence, over each arm ({'; '.join(said)}; findings of five patients or "
        "more); below zero, curation gains most on the rare. Normalised AUPRC: the part reached of what can be reached "
        "at the test set's prevalence (Boyd 2012)."
    )


def _describe_trend(trend: pd.Series | None) -> str:
    if trend is None or not np.isfinite(trend.ci_low):
        return "Too few findings for a trend."
    drawn = "line, shaded the slopes of the interval" if _excludes_zero(trend) else "not drawn, the interval holds zero"
    return (
        f"Change for ten times the prevalence {write_row(trend, '+.3f')} (least squares over {int(trend.n)} findings "
        f"in every resample of patients and seeds; {drawn})."
    )


def _describe_keep_rates(rows: pd.DataFrame, letters: list[str]) -> str:
    seeds = rows.seed[rows.seed != OVER_SEEDS].nunique()
    marks = "One seed" if seeds == 1 else f"{seeds} seeds together"
    if seeds > 1 and (rows.group != "finding").any():
        marks += f" (small marks in {letters[-1]}: single seeds)"
    if summarise_seeds(rows).ci_low.isna().all():
        return f"{marks}; no intervals."
    return f"{marks}; lines are 95 % intervals, Wilson's with patients{' and seeds' * (seeds > 1)} as clusters."


def _conclude(numbers: pd.DataFrame, panels: dict[str, pd.DataFrame], against: str) -> str:
    if "auroc" not in panels:
        return "No finding was compared between arms: only what was kept can be told."
    trend = _find_trend(numbers, panels["auroc"], against, "auroc")
    return f"Gain of the curated arm over {short_name(against)}: {_describe_trend(trend)}"


long_tail = Figure("long_tail", _select, _plot, _describe, _conclude)
