"""The audit as a forest: how often each group of pairs was kept, with intervals, and where a warning stands."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Drawing
from matplotlib.lines import Line2D

from chexstudy.curation.quality.audit import AuditReport
from chexstudy.plots.figure import Figure
from chexstudy.plots.forest import Estimate, Group, draw_forest, forest_height_mm
from chexstudy.plots.measurements import require_rows
from chexstudy.plots.style import (
    ACCENT,
    GREY,
    INK,
    SEQUENCE,
    ArmStyle,
    add_legend,
    legend_mark,
    new_figure,
    title_panel,
)

_HEADINGS = {
    # The panel's title says it.
    "finding": "",
    "tier": "Prevalence of the findings",
    "sex": "Sex",
    "age": "Age (years)",
    "view": "View",
    "source": "Source",
    "report": "Report",
    "duplicate": "Copies",
}
_WARNING = ArmStyle("kept less often than the others (warning)", ACCENT, "D")
_AS_MEANT = ArmStyle("kept less often, as curation means to", SEQUENCE[1], "s")
_WITHIN_CHANCE = ArmStyle("within chance, or kept more often", GREY, "o")


def plot_audit(report: AuditReport) -> Drawing:
    """Keep rates of all groups with 95 % intervals; findings on the left, other groups on the right."""
    table = require_rows(report.table, "groups")
    sides = [list_audit_groups(table[is_finding]) for is_finding in (table.kind == "finding", table.kind != "finding")]
    sides = [groups for groups in sides if groups]
    heights = [[len(group.estimates) for group in groups] for groups in sides]
    figure = new_figure(height_mm=max(forest_height_mm(one) for one in heights) + 24)
    grid = figure.subplots(1, len(sides), squeeze=False)[0]
    overall = 100 * report.kept / report.pairs
    top = 100 * float(np.nanmax(table[["keep_rate", "ci_high"]].to_numpy()))
    for axes, groups, height, letter in zip(grid, sides, heights, "ab", strict=False):
        draw_forest(axes, groups, height, reference=overall, number_format=".0f", heading_at_axes=True)
        axes.set_xlim(0, min(100.0, 1.04 * top))
        axes.set_xlabel("Kept (%), 95 % interval")
        title_panel(axes, letter, "By finding" if groups[0].heading == "" else "By other groups")
    _level(grid)
    styles = [_style(row) for row in table.itertuples()]
    handles = [legend_mark(style) for style in (_WARNING, _AS_MEANT, _WITHIN_CHANCE) if style in styles]
    handles.append(Line2D([], [], color=INK, linewidth=0.6, label=f"all pairs ({overall:.1f} %)"))
    add_legend(figure, handles, 2)
    return figure


def list_audit_groups(table: pd.DataFrame) -> list[Group]:
    """The audit's rows as groups of a forest, kind by kind; findings from the commonest to the rarest."""
    groups = []
    for kind in table.kind.unique():
        rows = table[table.kind == kind]
        if kind == "finding":
            rows = rows.sort_values(["n", "group"], ascending=[False, True])
        estimates = [
            Estimate(f"{row.group} ({row.n:,})", 100 * row.keep_rate, 100 * row.ci_low, 100 * row.ci_high, _style(row))
            for row in rows.itertuples()
        ]
        groups.append(Group(_HEADINGS.get(kind, kind.capitalize()), estimates))
    return groups


def _style(row) -> ArmStyle:
    if row.warning:
        return _WARNING
    return _AS_MEANT if row.dropped_more else _WITHIN_CHANCE


def _level(grid: np.ndarray | list[Axes]) -> None:
    """Give all forests the lines of the longest, so that their spacing is equal."""
    lowest = max(axes.get_ylim()[0] for axes in grid)
    for axes in grid:
        axes.set_ylim(lowest, axes.get_ylim()[1])


def describe_audit(report: AuditReport, seed: int = 0) -> str:
    """The caption of `plot_audit`; it names the groups with a warning."""
    left_out = f" {len(report.left_out)} groups without pairs to compare are left out." if len(report.left_out) else ""
    return (
        "Audit of what was kept: keep rate of each group (number of pairs in brackets; kept % and interval on the "
        "right) against all pairs (line). Intervals are 95 %, patients resampled, or Wilson's with the number of "
        f"patients where none or all were kept. A warning stands where a group is kept less often than the pairs "
        f"outside it, by a permutation test of patients ({report.permutations:,} permutations, Holm-corrected over "
        f"{len(report.table)} groups, 5 %). {conclude_audit(report)}{left_out} n = {report.pairs:,} pairs of "
        f"{report.patients:,} patients, {report.kept:,} kept, seed {seed}."
    )


def conclude_audit(report: AuditReport) -> str:
    """Which groups were kept less often than chance allows."""
    names = [
        f"{row.group} ({100 * row.keep_rate:.0f} % against {100 * row.others_rate:.0f} % of the others, "
        f"p {row.p_holm:.3f})"
        for row in report.table[report.table.warning].itertuples()
    ]
    return f"Warnings: {'; '.join(names)}." if names else "No group was kept less often than chance allows."


audit = Figure(
    name="audit", select=lambda report: report.table, plot=plot_audit, describe=describe_audit, conclude=conclude_audit
)
