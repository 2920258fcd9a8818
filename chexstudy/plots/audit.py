"""The audit as a forest: how often each group of pairs was kept, with intervals, and where a warning stands."""

import pandas as pd
from matplotlib.figure import Figure as Drawing
from matplotlib.lines import Line2D

from chexstudy.curation.quality.audit import AuditReport
from chexstudy.plots.figure import Figure
from chexstudy.plots.forest import Estimate, Group, draw_forest, forest_height_mm
from chexstudy.plots.looks import ACCENT, GREY, INK, SEQUENCE, ArmStyle
from chexstudy.plots.measurements import require_rows
from chexstudy.plots.style import add_legend, legend_mark, new_figure, title_panel

# The panel's title says what a finding is.
_HEADINGS = {"finding": "", "tier": "Prevalence of the findings", "age": "Age (years)", "duplicate": "Copies"}
_WARNING = ArmStyle("kept less often than the others (warning)", ACCENT, "D")
_AS_MEANT = ArmStyle("kept less often, as curation means to", SEQUENCE[1], "s")
_WITHIN_CHANCE = ArmStyle("within chance, or kept more often", GREY, "o")


def _select(report: AuditReport) -> tuple[pd.DataFrame, AuditReport]:
    return require_rows(report.table, "groups"), report


def _plot(table: pd.DataFrame, report: AuditReport) -> Drawing:
    of_finding = table.kind == "finding"
    sides = {"By finding": _list_groups(table[of_finding]), "By other groups": _list_groups(table[~of_finding])}
    sides = {title: groups for title, groups in sides.items() if groups}
    heights = [[len(group.estimates) for group in groups] for groups in sides.values()]
    figure = new_figure(height_mm=max(forest_height_mm(one) for one in heights) + 24)
    grid = figure.subplots(1, len(sides), squeeze=False)[0]
    overall, top = 100 * report.kept / report.pairs, 100 * table[["keep_rate", "ci_high"]].max(axis=None)
    for axes, (title, groups), height, letter in zip(grid, sides.items(), heights, "ab", strict=False):
        draw_forest(axes, groups, height, reference=overall, number_format=".0f", heading_at_axes=True)
        axes.set(xlim=(0, min(100.0, 1.04 * top)), xlabel="Kept (%), 95 % interval")
        title_panel(axes, letter, title)
    # Give both forests the lines of the longer, so that their spacing is equal.
    lowest = max(axes.get_ylim()[0] for axes in grid)
    for axes in grid:
        axes.set_ylim(bottom=lowest)
    styles = {_style(row) for row in table.itertuples()}
    handles = [legend_mark(style) for style in (_WARNING, _AS_MEANT, _WITHIN_CHANCE) if style in styles]
    handles.append(Line2D([], [], color=INK, linewidth=0.6, label=f"all pairs ({overall:.1f} %)"))
    add_legend(figure, handles, 2)
    return figure


def _list_groups(table: pd.DataFrame) -> list[Group]:
    """Groups of a forest, kind by kind; findings from the commonest to the rarest."""
    groups = []
    for kind, rows in table.groupby("kind", sort=False):
        if kind == "finding":
            rows = rows.sort_values(["n", "group"], ascending=[False, True])
        estimates = [
            Estimate(
                f"{row.group} ({row.n:,})", (100 * row.keep_rate, 100 * row.ci_low, 100 * row.ci_high), _style(row)
            )
            for row in rows.itertuples()
        ]
        groups.append(Group(_HEADINGS.get(kind, kind.capitalize()), estimates))
    return groups


def _style(row) -> ArmStyle:
    return _WARNING if row.warning else _AS_MEANT if row.dropped_more else _WITHIN_CHANCE


def _describe(table: pd.DataFrame, report: AuditReport, seed: int = 0) -> str:
    left_out = f" {len(report.left_out)} groups without pairs to compare are left out." if len(report.left_out) else ""
    return (
        "Audit of what was kept: keep rate of each group (number of pairs in brackets; kept % and interval on the "
        "right) against all pairs (line). Intervals are 95 %, patients resampled, or Wilson's with the number of "
        "patients where none or all were kept. A warning stands where a group is kept less often than the pairs "
        f"outside it, by a permutation test of patients ({report.permutations:,} permutations, Holm-corrected over "
        f"{len(table)} groups, 5 %). {_conclude(table, report)}{left_out} n = {report.pairs:,} pairs of "
        f"{report.patients:,} patients, {report.kept:,} kept, seed {seed}."
    )


def _conclude(table: pd.DataFrame, _: AuditReport) -> str:
    names = [
        f"{row.group} ({100 * row.keep_rate:.0f} % against {100 * row.others_rate:.0f} % of the others, "
        f"p {row.p_holm:.3f})"
        for row in table[table.warning].itertuples()
    ]
    return f"Warnings: {'; '.join(names)}." if names else "No group was kept less often than chance allows."


audit = Figure("audit", _select, _plot, _describe, _conclude)
