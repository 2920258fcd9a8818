"""What a cohort is made of: sources, splits, people, findings, reports, and what was set aside."""

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Drawing
from matplotlib.ticker import NullLocator

from chexstudy.cohort.prevalence import measure_prevalence
from chexstudy.cohort.table import NO_FINDING, REPORT_ORIGINS, SEXES, SPLITS, VIEWS, finding_columns, label_matrix
from chexstudy.plots.figure import Figure
from chexstudy.plots.looks import ACCENT, GREY, INK, PALE, SEQUENCE
from chexstudy.plots.measurements import require_rows
from chexstudy.plots.style import clear_frame, name_lines, new_figure, title_panel

_MOST_IN_MATRIX = 16


def count_findings(cohort: pd.DataFrame, split: str | None = None) -> pd.DataFrame:
    """How often each finding is present, uncertain, absent or not stated, in one split or in all, commonest first.

    The ``prevalence`` is the share of all images (`measure_prevalence`), for reports seldom state what is absent.
    """
    rows = cohort if split is None else cohort[cohort.split == split]
    findings = finding_columns(cohort)
    labels = label_matrix(rows, findings)
    table = pd.DataFrame(
        {
            "finding": findings,
            "present": (labels == 1).sum(axis=0),
            "uncertain": (labels == -1).sum(axis=0),
            "absent": (labels == 0).sum(axis=0),
            "not_stated": np.isnan(labels).sum(axis=0),
            "prevalence": measure_prevalence(rows).to_numpy(),
        }
    )
    return table.sort_values(["present", "finding"], ascending=[False, True]).reset_index(drop=True)


def count_report_lengths(cohort: pd.DataFrame) -> pd.DataFrame:
    """Length of reports in words by source (largest first), without empty reports."""
    written = cohort[cohort.report.str.strip() != ""]
    words = written.report.str.split().str.len().astype(float)
    rows = []
    for source in written.source.value_counts().index:
        group = words[written.source == source]
        p5, median, p95 = np.percentile(group, (5, 50, 95))
        rows.append((source, len(group), p5, group.mean(), median, p95, group.max()))
    return pd.DataFrame(rows, columns=["source", "reports", "p5", "mean", "median", "p95", "longest"])


def _select(cohort: pd.DataFrame, quarantine: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """`count_findings`, the cohort, and what was set aside: ``image_id, image_path, reason``."""
    return count_findings(require_rows(cohort, "images")), cohort, quarantine


def _plot(counts: pd.DataFrame, cohort: pd.DataFrame, quarantine: pd.DataFrame) -> Drawing:
    findings = counts.finding[counts.finding != NO_FINDING].tolist()
    sources = cohort.source.value_counts().index.tolist()
    heights = [
        50 + 3.4 * max(len(sources) - 6, 0),
        max(40.0, 18 + 3.5 * len(counts)) if len(counts) else 18.0,
        34 + 3.4 * max(len(sources) - 3, 0),
    ]
    figure = new_figure(height_mm=sum(heights))
    strips = figure.subfigures(3, 1, height_ratios=heights)
    splits, people, ages = strips[0].subplots(1, 3, width_ratios=[1.2, 1.1, 1])
    shares, matrix = strips[1].subplots(1, 2)
    lengths, aside = strips[2].subplots(1, 2)
    letters = iter("abcdefg")
    _draw_splits(splits, cohort, sources)
    strips[0].legend(handles=splits.containers, loc="outside lower left", ncols=4)
    title_panel(splits, next(letters), "Images by source and split")
    _draw_people(people, cohort)
    title_panel(people, next(letters), "Views, sexes, reports")
    _draw_ages(ages, cohort)
    title_panel(ages, next(letters), "Ages")
    if len(counts):
        _draw_findings(shares, counts[counts.present > 0])
    else:
        _say(shares, "no labels")
    title_panel(shares, next(letters), "Findings")
    if len(findings) > 1:
        _draw_matrix(matrix, cohort, findings[:_MOST_IN_MATRIX])
        title_panel(matrix, next(letters), "Co-occurrence (% of the row's images)")
    else:
        matrix.set_axis_off()
    _draw_lengths(lengths, count_report_lengths(cohort))
    title_panel(lengths, next(letters), "Report lengths")
    _draw_quarantine(aside, quarantine)
    title_panel(aside, next(letters), "Quarantined")
    return figure


def _count_beside(axes: Axes, counts) -> None:
    for line, count in enumerate(counts):
        axes.annotate(f"{int(count):,}", (count, line), (3, 0), textcoords="offset points", va="center", fontsize=6)


def _draw_splits(axes: Axes, cohort: pd.DataFrame, sources: list[str]) -> None:
    table = cohort.groupby(["source", "split"]).size().unstack(fill_value=0).reindex(index=sources)
    left = np.zeros(len(sources))
    splits = [split for split in SPLITS if split in table]
    for split, colour in zip(splits, (SEQUENCE[0], SEQUENCE[2], SEQUENCE[4], SEQUENCE[7]), strict=False):
        label = f"{split.replace('_', ' ')} ({int(table[split].sum()):,})"
        axes.barh(sources, table[split], 0.6, left, color=colour, label=label)
        left += table[split].to_numpy()
    _count_beside(axes, left)
    name_lines(axes, sources)
    axes.set(xlim=(0, left.max() * 1.2), xlabel="Images")
    axes.xaxis.set_major_formatter(lambda value, _: f"{int(value):,}")
    axes.locator_params(axis="x", nbins=4)


def _draw_people(axes: Axes, cohort: pd.DataFrame) -> None:
    for line, (column, names) in enumerate((("view", VIEWS), ("sex", SEXES), ("report_origin", REPORT_ORIGINS))):
        shares = 100 * cohort[column].value_counts(normalize=True).reindex(list(names), fill_value=0.0)
        left, narrow = 0.0, []
        for name, colour in zip(names, (SEQUENCE[1], SEQUENCE[2], SEQUENCE[4], PALE), strict=False):
            colour = PALE if name in ("unknown", "none") else colour
            axes.barh(line, shares[name], 0.6, left, color=colour, edgecolor="white", linewidth=0.5)
            if shares[name] >= 2.7 * len(name):
                text = f"{name}\n{shares[name]:.0f} %"
                ink = "white" if colour == SEQUENCE[1] else INK
                axes.text(left + shares[name] / 2, line, text, ha="center", va="center", fontsize=6, color=ink)
            elif shares[name] > 0:
                narrow.append(f"{name} {shares[name]:.0f} %" if shares[name] >= 0.5 else f"{name} <1 %")
            left += shares[name]
        axes.annotate(
            "\n".join(narrow), (100, line), (3, 0), textcoords="offset points", va="center", fontsize=6,
            annotation_clip=False,
        )  # fmt: skip
    axes.set_yticks(range(3), ["View", "Sex", "Report"])
    axes.set(ylim=(2.5, -0.5), xlim=(0, 100), xlabel="Share of images (%)")
    axes.tick_params(axis="y", length=0)


def _draw_ages(axes: Axes, cohort: pd.DataFrame) -> None:
    ages = cohort.age_years.dropna()
    if len(ages):
        sns.histplot(
            x=ages, binwidth=5, binrange=(0, 120), color=SEQUENCE[2], alpha=1, edgecolor="white", linewidth=0.4, ax=axes
        )
        axes.axvline(ages.median(), color=INK, linewidth=0.8)
        axes.annotate(
            f"median {ages.median():.0f}", (ages.median(), 1.0), (3, 0), xycoords=("data", "axes fraction"),
            textcoords="offset points", fontsize=6, va="top", 
            bbox={"fc": "white", "ec": "none", "pad": 0.2, "alpha": 0.8},
        )  # fmt: skip
        axes.set_xlim(max(0, ages.min() - 5), min(125, ages.max() + 5))
    else:
        _say(axes, "not stated")
    axes.set(xlabel=f"Age (years), stated for {len(ages):,}", ylabel="Images")


def _say(axes: Axes, text: str) -> None:
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", color=GREY)
    clear_frame(axes)


def _draw_findings(axes: Axes, shown: pd.DataFrame) -> None:
    share, lines = 100 * shown.prevalence, np.arange(len(shown))
    left = share.min() / 2 if len(shown) else 0.1
    axes.hlines(lines, left, share, color=PALE, linewidth=1.2, zorder=1)
    disease = (shown.finding != NO_FINDING).to_numpy()
    for chosen, colour in ((disease, ACCENT), (~disease, GREY)):
        axes.plot(
            share[chosen], lines[chosen], "o", color=colour, markersize=3.6, linestyle="none", gid="estimate", zorder=2
        )
    for line, end, present in zip(lines, share, shown.present, strict=True):
        axes.annotate(f"{present:,}", (end, line), (4, 0), textcoords="offset points", va="center", fontsize=6)
    name_lines(axes, list(shown.finding))
    axes.set(xscale="log", xlim=(left, share.max() * 2.6 if len(shown) else 100))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}" if value <= 100 else "")
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("Present (% of all images, log; number: images)")


def _draw_matrix(axes: Axes, cohort: pd.DataFrame, findings: list[str]) -> None:
    present = (label_matrix(cohort, findings) == 1).astype(float)
    together = present.T @ present
    share = 100 * together / np.maximum(np.diag(together)[:, None], 1)
    np.fill_diagonal(share, np.nan)
    largest = np.nanmax(share) if np.isfinite(share).any() else 1.0
    sns.heatmap(
        pd.DataFrame(share, index=findings, columns=findings), cmap="Blues", vmin=0, vmax=largest or 1.0, square=True,
        cbar_kws={"aspect": 22, "pad": 0.02, "shrink": 0.7}, ax=axes,
    )  # fmt: skip
    axes.tick_params(length=0, labelsize=6)
    axes.set_anchor("N")


def _draw_lengths(axes: Axes, lengths: pd.DataFrame) -> None:
    if lengths.empty:
        _say(axes, "no reports")
        return
    for line, row in enumerate(lengths.itertuples()):
        axes.plot([row.p5, row.p95], [line, line], color=SEQUENCE[2], linewidth=4, solid_capstyle="butt", zorder=1)
        axes.plot([row.p95, row.longest], [line, line], color=GREY, linewidth=0.6, zorder=1)
        axes.plot([row.median], [line], "|", color=INK, markersize=8, markeredgewidth=1.4, zorder=3)
        axes.plot([row.mean], [line], "D", color="white", markeredgecolor=INK, markersize=3.4, zorder=3)
        axes.plot([row.longest], [line], "x", color=GREY, markersize=3.5, zorder=3)
    name_lines(axes, list(lengths.source))
    axes.set(xlim=(0, None), xlabel="Words (bar 5th to 95th percentile,\nline median, diamond mean, cross longest)")


def _draw_quarantine(axes: Axes, quarantine: pd.DataFrame) -> None:
    if quarantine.empty:
        axes.text(0.0, 0.8, "No image was set aside.", transform=axes.transAxes, color=GREY)
        axes.set_axis_off()
        return
    # A reason may go on with the particulars of one file; what comes before the colon is its kind.
    kinds = quarantine.reason.str.partition(":")[0].str.strip().value_counts()
    axes.barh(kinds.index, kinds, 0.6, color=GREY)
    _count_beside(axes, kinds)
    name_lines(axes, list(kinds.index))
    axes.set(xlim=(0, kinds.max() * 1.2), xlabel="Images")
    axes.locator_params(axis="x", nbins=4, integer=True)


def _describe(counts: pd.DataFrame, cohort: pd.DataFrame, quarantine: pd.DataFrame) -> str:
    sources, findings = cohort.source.nunique(), counts[counts.finding != NO_FINDING]
    panels = ["share of all images with each finding" if len(findings) else "no finding is labelled"]
    panels += ["which findings occur together"] * (len(findings) > 1)
    panels += ["report lengths by source", f"images set aside with the reason ({len(quarantine):,})"]
    said = " ".join(f"{letter}, {text}." for letter, text in zip("defg", panels, strict=False))
    return (
        f"The cohort: n = {len(cohort):,} images of {cohort.patient_id.nunique():,} patients from {sources} "
        f"source{'s' * (sources != 1)}. a, sources and splits (no patient is in two). b, views, sexes and where "
        f"reports come from. c, ages. {said} Counts, no sampling: neither seeds nor intervals."
    )


def _conclude(counts: pd.DataFrame, cohort: pd.DataFrame, quarantine: pd.DataFrame) -> str:
    text = f"{len(cohort):,} images of {cohort.patient_id.nunique():,} patients, {len(quarantine):,} set aside"
    shown = counts[(counts.finding != NO_FINDING) & (counts.present > 0)]
    if len(shown):
        first, last = shown.iloc[0], shown.iloc[-1]
        text += (
            f"; of {len(shown)} findings the commonest is {first.finding} ({100 * first.prevalence:.1f} % of images), "
            f"the rarest {last.finding} ({100 * last.prevalence:.2f} %)"
        )
    return text + "."


composition = Figure("composition", _select, _plot, _describe, _conclude)
