"""How many labels: learning curves with their fits, families of curves, forecasts, plans, and what there is to draw."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Drawing
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from chexstudy.cohort.table import NO_FINDING, finding_columns, label_matrix
from chexstudy.label_planning.accuracy import EVERY, take_early
from chexstudy.label_planning.families import FAMILIES
from chexstudy.label_planning.fitting import EXTRAPOLATION, INTERPOLATION
from chexstudy.label_planning.planner import FARTHEST, NEEDED, NOT_YET, REACHED, UNREACHABLE
from chexstudy.plots.figure import Figure
from chexstudy.plots.forest import add_arm_legend, draw_estimate
from chexstudy.plots.measurements import name_data_set, require_rows, short_name
from chexstudy.plots.style import GREY, INK, PALE, ArmStyle, add_legend, arm_style, new_figure, order_arms, title_panel
from chexstudy.statistics.proportions import measure_proportion
from chexstudy.statistics.ranking import known_labels

SHOWN = 12
# Points between the axes of the table of counts and its title, where the column names stand.
_HEADER_PAD = 22
_EVERY_STYLE = ArmStyle("All encoders", "#7A5195", "p")
_METHOD_LINES = {"posterior": "-", "least_squares": (0, (4, 2)), "last": (0, (1, 1.5))}
_METHOD_WORDS = {"posterior": "pooled posterior", "least_squares": "least squares", "last": "last AUROC seen"}
_SPLIT_WORDS = {"train": "training", "validate": "validation", "test": "test", "test_enriched": "test,\nenriched"}
_PREDICTORS = {"early_slope": "Early slope (AUROC a tenfold of labels)", "last": "Early AUROC"}


def _style(encoder: str, encoders: list[str]) -> ArmStyle:
    return _EVERY_STYLE if encoder == EVERY else arm_style(encoder, encoders)


def _scale_labels(axes: Axes, low: float, high: float) -> None:
    """A log axis of label counts with ticks that do not crowd a small panel."""
    axes.set_xscale("log")
    axes.set_xlim(low, high)
    axes.xaxis.set_major_locator(LogLocator(subs=(1,) if high / low > 60 else (1, 3)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda n, _: f"{n / 1000:g}k" if n >= 1000 else f"{n:g}"))
    axes.xaxis.set_minor_locator(NullLocator())


def _order_findings(curves: pd.DataFrame) -> list[str]:
    """Findings from the most to the least prevalent among what was drawn."""
    share = curves.groupby("finding")[["positives", "n"]].sum()
    return (share.positives / share.n).sort_values(ascending=False, kind="stable").index.tolist()


# --- T1: what there is to draw ---------------------------------------------------------------------------------------


def select_prevalence(cohort: pd.DataFrame) -> pd.DataFrame:
    """How often each finding is present: one row a finding but `No Finding`, commonest in training first.

    Returns:
        ``finding``; for each split with images ``positives_<split>`` and ``known_<split>``, images with a label of 1,
        and of 1 or 0; of the training split ``patients`` with the finding, ``prevalence`` among known labels and
        ``prevalence_low, prevalence_high`` (95 %, patients as clusters).
    """
    findings = [finding for finding in finding_columns(cohort) if finding != NO_FINDING]
    splits = [split for split in ("train", "validate", "test", "test_enriched") if (cohort.split == split).any()]
    train = cohort[cohort.split == "train"]
    patients = pd.factorize(train.patient_id)[0]
    rows = []
    for finding in findings:
        row = {"finding": finding}
        for split in splits:
            labels = label_matrix(cohort[cohort.split == split], [finding])[:, 0]
            row[f"positives_{split}"] = int((labels == 1).sum())
            row[f"known_{split}"] = int(known_labels(labels).sum())
        labels = label_matrix(train, [finding])[:, 0]
        row["patients"] = int(train.patient_id[labels == 1].nunique())
        ends = measure_proportion(known_labels(labels), labels == 1, patients)
        rows.append(row | dict(zip(("prevalence", "prevalence_low", "prevalence_high"), ends, strict=True)))
    table = pd.DataFrame(rows)
    return table.sort_values("prevalence", ascending=False, kind="stable", ignore_index=True) if rows else table


def plot_prevalence(table: pd.DataFrame) -> Drawing:
    """T1: prevalence in training on a logarithmic scale beside the counts of positives by split."""
    require_rows(table, "findings")
    splits = [name.removeprefix("positives_") for name in table if name.startswith("positives_")]
    figure = new_figure(height_mm=22 + 4.4 * len(table))
    bars, counts = figure.subplots(1, 2, sharey=True, width_ratios=[1.1, 1])
    y = np.arange(len(table))
    share = 100 * table.prevalence.to_numpy(float)
    bars.hlines(y, 100 * table.prevalence_low, 100 * table.prevalence_high, color=INK, linewidth=0.9, gid="interval")
    bars.plot(share, y, "o", color=INK, markersize=3.8, gid="estimate")
    bars.set_xscale("log")
    bars.xaxis.set_major_locator(LogLocator(subs=(1, 3)))
    bars.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    bars.xaxis.set_minor_locator(NullLocator())
    bars.set_yticks(y, table.finding)
    bars.set_ylim(len(table) - 0.4, -0.6)
    bars.set_xlabel("Prevalence in training (%, log)")
    bars.grid(axis="both", color="#ECECEC", linewidth=0.5)
    bars.set_title(r"$\mathbf{a}$   Prevalence among known labels", loc="left", pad=_HEADER_PAD)
    columns = [*(f"positives_{split}" for split in splits), "patients"]
    words = [*(_SPLIT_WORDS[split] for split in splits), "patients\nin training"]
    counts.set_xlim(-0.6, len(columns) - 0.4)
    for place, column in enumerate(columns):
        for row, value in enumerate(table[column]):
            counts.text(place, row, f"{value:,}", ha="center", va="center", fontsize=6.5, color=INK if value else GREY)
    counts.set_xticks(range(len(columns)), words)
    counts.xaxis.tick_top()
    counts.tick_params(length=0, labelleft=False)
    for spine in counts.spines.values():
        spine.set_visible(False)
    for row in range(0, len(table), 2):
        counts.axhspan(row - 0.5, row + 0.5, color=PALE, alpha=0.35, linewidth=0, zorder=0)
    counts.set_title(r"$\mathbf{b}$   Images with the finding", loc="left", pad=_HEADER_PAD)
    return figure


def describe_prevalence(table: pd.DataFrame) -> str:
    n = f"{table.known_train.min():,} to {table.known_train.max():,}" if len(table) else "no"
    return (
        f"What there is to draw (T1): {len(table)} findings, commonest first. (a) Share of the training images with a "
        f"known label that show the finding, with 95 % intervals (Wilson, patients as clusters); n = {n} images. "
        "(b) Images with the finding by split, and patients with it in training."
    )


# --- L1: learning curves ---------------------------------------------------------------------------------------------


def select_curves(curves: pd.DataFrame, bands: pd.DataFrame) -> pd.DataFrame:
    """All numbers of L1: what was measured at each label count, and the fits.

    Args:
        curves: of `chexstudy.label_planning.curves.measure_curves`.
        bands: of `chexstudy.label_planning.posterior.trace_bands`.

    Returns:
        ``encoder, finding, kind`` (``measured`` or ``fit``), ``labels, value, low, high, draws``. Measured: mean and
        the middle 95 % of draws (none with fewer than ten of them). Labels are counted in the curves' unit.
    """
    require_rows(curves, "learning curves")
    counted = curves.assign(labels=np.where(curves.unit == "positives", curves.positives, curves.n))
    groups = counted.groupby(["encoder", "finding", "labels"]).auroc
    table = groups.agg(value="mean", low=lambda one: one.quantile(0.025), high=lambda one: one.quantile(0.975))
    table = table.assign(draws=groups.size()).reset_index()
    table.loc[table.draws < 10, ["low", "high"]] = np.nan
    fits = bands[["encoder", "finding", "labels", "value", "low", "high"]].assign(kind="fit")
    return pd.concat([table.assign(kind="measured"), fits], ignore_index=True)


def plot_curves(curves: pd.DataFrame, bands: pd.DataFrame, shown: int = SHOWN) -> Drawing:
    """L1: AUROC against the number of labels, a panel a finding, the most prevalent ones.

    Args:
        shown: how many findings.
    """
    table = select_curves(curves, bands)
    findings, encoders = _order_findings(curves)[:shown], order_arms(table.encoder)
    columns = min(4, len(findings))
    rows = -(-len(findings) // columns)
    figure = new_figure(height_mm=12 + 38 * rows)
    grid = figure.subplots(rows, columns, squeeze=False, sharex=True)
    drawn = table[table.finding.isin(findings)]
    low, high = drawn.labels.min() / 1.3, drawn.labels.max() * 1.1
    for axes, finding in zip(grid.ravel(), findings, strict=False):
        for encoder in encoders:
            own, style = drawn[(drawn.finding == finding) & (drawn.encoder == encoder)], arm_style(encoder, encoders)
            _draw_curve(axes, own, style)
        _scale_labels(axes, low, high)
        axes.yaxis.set_major_locator(MaxNLocator(nbins=4, steps=[1, 2, 5, 10]))
        axes.grid(axis="y", color="#ECECEC", linewidth=0.5)
        axes.set_title(finding, fontsize=7)
    for unused in grid.ravel()[len(findings) :]:
        unused.set_axis_off()
    for place, axes in enumerate(grid.ravel()[: len(findings)]):
        if place + columns >= len(findings):
            axes.tick_params(labelbottom=True)
            axes.set_xlabel(f"Labelled {_name_unit(curves)} (log)")
        if place % columns == 0:
            axes.set_ylabel("AUROC")
    add_arm_legend(figure, [arm_style(encoder, encoders) for encoder in encoders])
    return figure


def _draw_curve(axes: Axes, own: pd.DataFrame, style: ArmStyle) -> None:
    fit, measured = own[own.kind == "fit"], own[own.kind == "measured"]
    axes.fill_between(fit.labels, fit.low, fit.high, color=style.colour, alpha=0.16, linewidth=0, zorder=1, gid="band")
    axes.plot(fit.labels, fit.value, color=style.colour, linewidth=1.0, gid="fit", zorder=3)
    axes.plot(
        measured.labels, measured.value, style.marker, color=style.colour, markersize=2.8, markeredgecolor="white",
        markeredgewidth=0.3, linestyle="none", gid="measured", zorder=4,
    )  # fmt: skip


def _name_unit(curves: pd.DataFrame) -> str:
    return "cases" if (curves.unit == "cases").all() else "positives"


def describe_curves(curves: pd.DataFrame, bands: pd.DataFrame, shown: int = SHOWN) -> str:
    table = select_curves(curves, bands)
    measured = table[table.kind == "measured"]
    drawn = min(shown, table.finding.nunique())
    where = ", ".join(name_data_set(name) for name in sorted(curves.data_set.unique()))
    return (
        f"Learning curves (L1): AUROC on held-out patients ({where}) against labelled {_name_unit(curves)}, "
        f"{drawn} most prevalent of {table.finding.nunique()} findings. Marks are means over "
        f"{int(measured.draws.max())} draws of patients (one where everything is drawn); lines are the power law of "
        "the planner, inferred for all findings of an encoder together, and reach to twice the labels at hand; bands "
        f"are its 95 % intervals for this pool of images and this test set. {_describe_seeds(curves)}"
    )


def _describe_seeds(curves: pd.DataFrame) -> str:
    seeds = sorted(curves.seed.unique())
    return f"Seed{'s' * (len(seeds) > 1)} of the encoders: {', '.join(map(str, seeds))}."


# --- L2: families of curves ------------------------------------------------------------------------------------------


def plot_families(measured: pd.DataFrame) -> Drawing:
    """L2: held-out error of the families of curves, by extrapolation and by interpolation.

    Args:
        measured: of `chexstudy.label_planning.accuracy.measure_families`, which is also the figure's data.
    """
    require_rows(measured, "curves with label counts enough to leave one out")
    splits = [split for split in (EXTRAPOLATION, INTERPOLATION) if (measured.split == split).any()]
    encoders = order_arms(set(measured.encoder) - {EVERY})
    families = measured[(measured.encoder == EVERY) & (measured.split == splits[0])].sort_values("mae").family.tolist()
    figure = new_figure(height_mm=22 + 8.5 * len(families))
    panels = figure.subplots(1, len(splits), sharey=True, squeeze=False)[0]
    words = {EXTRAPOLATION: "Beyond the labels fitted to", INTERPOLATION: "Between the labels fitted to"}
    offsets = np.linspace(-0.28, 0.28, len(encoders) + 1)
    for axes, letter, split in zip(panels, "ab", splits, strict=False):
        for offset, encoder in zip(offsets, [EVERY, *encoders], strict=True):
            rows = measured[(measured.split == split) & (measured.encoder == encoder)].set_index("family")
            style = _style(encoder, encoders)
            for place, family in enumerate(families):
                if family in rows.index:
                    row = rows.loc[family]
                    draw_estimate(axes, row.mae, place + offset, row.mae_low, row.mae_high, style)
        axes.set_xlabel("Mean absolute error of the AUROC")
        axes.set_xlim(left=0)
        axes.grid(axis="x", color="#ECECEC", linewidth=0.5)
        title_panel(axes, letter, words[split])
    names = [f"{family.replace('_', ' ')}\n{FAMILIES[family].formula}" for family in families]
    panels[0].set_yticks(range(len(families)), names)
    panels[0].set_ylim(len(families) - 0.5, -0.5)
    add_arm_legend(figure, [_style(encoder, encoders) for encoder in (EVERY, *encoders)])
    return figure


def describe_families(measured: pd.DataFrame) -> str:
    return (
        "Families of learning curves (L2), best first, by least squares weighted by how little draws differ. (a) "
        "fitted to the first label counts and asked for all larger ones; (b) one label count left out. "
        f"{conclude_families(measured)} Points that not every family could be fitted to are left out. Bars are 95 % "
        f"intervals over {int(measured[measured.encoder == EVERY].findings.max())} findings."
    )


# --- L3: forecasts ---------------------------------------------------------------------------------------------------


def plot_forecasts(measured: pd.DataFrame, alone: pd.DataFrame | None = None) -> Drawing:
    """L3: error of forecasts, and coverage of their intervals, against the number of labels used.

    Args:
        measured: of `chexstudy.label_planning.accuracy.measure_forecasts`, which is also the figure's data.
        alone: the same of forecasts that took each finding by itself, drawn in grey.
    """
    require_rows(measured, "curves with three label counts up to those asked for and one beyond")
    encoders = order_arms(set(measured.encoder) - {EVERY})
    figure = new_figure(height_mm=72)
    error, coverage = figure.subplots(1, 2)
    counts = measured.at_most_n
    spread = np.geomspace(0.94, 1.06, len(encoders) + 1)
    for shift, encoder in zip(spread, [*encoders, EVERY], strict=True):
        style = _style(encoder, encoders)
        for method, line in _METHOD_LINES.items():
            rows = measured[(measured.encoder == encoder) & (measured.method == method)].sort_values("at_most_n")
            if method == "posterior":
                for row in rows.itertuples():
                    draw_estimate(
                        error, shift * row.at_most_n, row.mae, row.mae_low, row.mae_high, style, vertical=True
                    )
                    ends = (row.coverage_low, row.coverage_high)
                    draw_estimate(coverage, shift * row.at_most_n, row.coverage, *ends, style, vertical=True)
                error.plot(shift * rows.at_most_n, rows.mae, color=style.colour, linewidth=1.0, zorder=2)
                coverage.plot(shift * rows.at_most_n, rows.coverage, color=style.colour, linewidth=0.8, zorder=2)
            elif encoder == EVERY:
                error.plot(rows.at_most_n, rows.mae, color=GREY, linestyle=line, linewidth=1.1, gid=method, zorder=1)
    if alone is not None:
        rows = alone[(alone.encoder == EVERY) & (alone.method == "posterior")].sort_values("at_most_n")
        for axes, values in ((error, rows.mae), (coverage, rows.coverage)):
            axes.plot(rows.at_most_n, values, color=GREY, linestyle="-.", linewidth=1.1, gid="alone", zorder=1)
    coverage.axhline(0.95, color=GREY, linestyle=(0, (3, 2)), linewidth=0.8, gid="stated", zorder=1)
    for axes, letter, title, label in (
        (error, "a", "Error of the forecast", "Mean absolute error of the AUROC\nat the largest n"),
        (coverage, "b", "Coverage of its 95 % intervals", "Share of intervals with the truth"),
    ):
        _scale_labels(axes, counts.min() / 1.3, counts.max() * 1.3)
        axes.set_xticks(sorted(counts.unique()))
        axes.set_xlabel("Labels used (log)")
        axes.set_ylabel(label)
        axes.grid(axis="y", color="#ECECEC", linewidth=0.5)
        title_panel(axes, letter, title)
    error.set_ylim(bottom=0)
    coverage.set_ylim(0, 1.03)
    handles = [
        Line2D([], [], color=GREY if name != "posterior" else INK, linestyle=line, label=_METHOD_WORDS[name])
        for name, line in _METHOD_LINES.items()
    ]
    if alone is not None:
        handles.insert(1, Line2D([], [], color=GREY, linestyle="-.", label="posterior of each finding alone"))
    error.legend(handles=handles, loc="upper right")
    add_arm_legend(figure, [_style(encoder, encoders) for encoder in (EVERY, *encoders)])
    return figure


def describe_forecasts(measured: pd.DataFrame, *_) -> str:
    """The caption of `plot_forecasts`, with errors and coverage of all encoders together."""
    return (
        "Forecasts of the AUROC at the largest n from fewer labels (L3). (a) Mean absolute error of the median of the "
        "posterior; grey, all encoders together: posterior of each finding alone, least squares, last AUROC seen. (b) "
        "Share of the 95 % intervals that hold the truth; dashed: what they state. Only findings with three label "
        "counts up to the number used are there, so that more labels also mean rarer findings. "
        f"{conclude_forecasts(measured)} Bars are 95 % intervals over findings (none with fewer than five)."
    )


# --- L4: labels needed -----------------------------------------------------------------------------------------------


def plot_plans(plans: pd.DataFrame, *_) -> Drawing:
    """L4: labels needed for the target by finding and encoder, with intervals and states.

    Args:
        plans: of `chexstudy.label_planning.planner.plan_labels`, which is also the figure's data.
    """
    require_rows(plans, "plans of labels")
    encoders = order_arms(plans.encoder)
    order = plans.groupby("finding").auroc.max().sort_values(ascending=False).index.tolist()
    figure = new_figure(height_mm=24 + len(order) * (2.6 + 1.5 * len(encoders)))
    axes = figure.subplots()
    have = plans.have.max()
    finite = plans[["need", "need_low"]].to_numpy(float)
    finite = finite[np.isfinite(finite)]
    low = max(1.0, min([have / 10, *finite]) / 1.5)
    high = FARTHEST * have
    offsets = np.linspace(-0.3, 0.3, len(encoders)) if len(encoders) > 1 else [0.0]
    for place, finding in enumerate(order):
        if place % 2 == 0:
            axes.axhspan(place - 0.5, place + 0.5, color=PALE, alpha=0.3, linewidth=0, zorder=0)
        for offset, encoder in zip(offsets, encoders, strict=True):
            rows = plans[(plans.finding == finding) & (plans.encoder == encoder)]
            for row in rows.itertuples():
                _draw_plan(axes, row, place + offset, low, high, arm_style(encoder, encoders))
    _scale_labels(axes, low, high * 1.6)
    axes.set_yticks(range(len(order)), order)
    axes.set_ylim(len(order) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel(f"Labelled {_name_unit(plans)} needed for an AUROC of {plans.target.iloc[0]:g} (log)")
    axes.grid(axis="x", color="#ECECEC", linewidth=0.5)
    axes.axvline(have, color=GREY, linewidth=0.8, linestyle=(0, (3, 2)), gid="have", zorder=1)
    axes.annotate(
        "labelled already", (have, 1), (2, 2), xycoords=axes.get_xaxis_transform(), textcoords="offset points",
        fontsize=6, color=GREY,
    )  # fmt: skip
    add_legend(figure, _plan_handles(plans, encoders), 4)
    return figure


def _draw_plan(axes: Axes, row, y: float, low: float, high: float, style: ArmStyle) -> None:
    """A filled mark where the number can be told, an open one where not yet, a cross at the end where never."""
    if row.state == UNREACHABLE:
        axes.plot([high * 1.3], [y], "x", color=style.colour, markersize=3.6, markeredgewidth=1.0, gid=row.state)
        return
    ends = np.clip([row.need_low, min(row.need_high, high)], low, high)
    axes.plot(ends, [y, y], color=style.colour, linewidth=1.0, solid_capstyle="butt", gid="interval", zorder=2)
    if row.need_high > high:
        axes.plot([high], [y], ">", color=style.colour, markersize=2.6, gid="open end", zorder=3)
    if not np.isfinite(row.need) or row.need > high:
        return
    face = style.colour if row.state in (REACHED, NEEDED) else "white"
    size = 4.2 if row.state == REACHED else 3.6
    axes.plot(
        [np.clip(row.need, low, high)], [y], style.marker, color=style.colour, markersize=size, markerfacecolor=face,
        markeredgewidth=0.7, gid=row.state, zorder=4,
    )  # fmt: skip


def _plan_handles(plans: pd.DataFrame, encoders: list[str]) -> list:
    handles = [
        Patch(color=arm_style(encoder, encoders).colour, label=arm_style(encoder, encoders).name)
        for encoder in encoders
    ]
    mark = {"color": INK, "linestyle": "none", "markersize": 4}
    words = {
        REACHED: Line2D([], [], marker="o", label="reached, or needed: can be told", **mark),
        NOT_YET: Line2D([], [], marker="o", markerfacecolor="white", label=NOT_YET, **mark),
        UNREACHABLE: Line2D([], [], marker="x", label=UNREACHABLE, **mark),
    }
    states = set(plans.state.replace(NEEDED, REACHED))
    handles += [handle for state, handle in words.items() if state in states]
    return [*handles, Line2D([], [], marker=">", label="no upper end", **mark)]


def describe_plans_drawn(plans: pd.DataFrame, *_) -> str:
    """The caption of `plot_plans`, with how many plans are in each state."""
    return (
        f"Labelled {_name_unit(plans)} needed for an AUROC of {plans.target.iloc[0]:g} (L4), by finding and encoder, "
        "best first: median and 95 % interval of the posterior of each curve, findings of an encoder inferred "
        "together. An open mark or an arrow says that the interval has no upper end within a hundred times what is "
        "labelled; a cross, that the plateau lies below the target. Intervals are of this pool and test set. "
        f"{conclude_plans(plans)}"
    )


# --- L5: early slope and what comes after ----------------------------------------------------------------------------


def select_early(forecasts: pd.DataFrame, early: float) -> pd.DataFrame:
    """What the first labels showed and what came of it, a row a curve: ``early_slope``, ``last`` and ``truth``."""
    rows = take_early(forecasts, early)
    require_rows(rows, f"curves with three label counts up to {early:g}")
    columns = ["encoder", "finding", "data_set", "unit", "at_most_n", "target_n", "early_slope", "last", "truth"]
    return rows[columns].reset_index(drop=True)


def plot_early(forecasts: pd.DataFrame, correlations: pd.DataFrame, early: float) -> Drawing:
    """L5: early slope, and early AUROC, against the AUROC at the largest n.

    Args:
        correlations: of `chexstudy.label_planning.accuracy.correlate_early`.
    """
    rows = select_early(forecasts, early)
    encoders = order_arms(rows.encoder)
    figure = new_figure(height_mm=70)
    panels = figure.subplots(1, 2, sharey=True)
    for axes, letter, (predictor, words) in zip(panels, "ab", _PREDICTORS.items(), strict=True):
        for encoder in encoders:
            own, style = rows[rows.encoder == encoder], arm_style(encoder, encoders)
            axes.plot(
                own[predictor], own.truth, style.marker, color=style.colour, markersize=4, markeredgecolor="white",
                markeredgewidth=0.4, linestyle="none", gid=encoder,
            )  # fmt: skip
        axes.set_xlabel(words)
        axes.grid(color="#ECECEC", linewidth=0.5)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=5))
        title_panel(axes, letter, f"{words.split(' (')[0]}, up to {early:g} labels")
        every = correlations[(correlations.encoder == EVERY) & (correlations.predictor == predictor)]
        axes.text(
            0.97, 0.04, _write_correlation(every), transform=axes.transAxes, ha="right", fontsize=6.5, gid="correlation"
        )
    panels[0].set_ylabel("AUROC at the largest n")
    add_arm_legend(figure, [arm_style(encoder, encoders) for encoder in encoders])
    return figure


def _write_correlation(rows: pd.DataFrame) -> str:
    if rows.empty or not np.isfinite(rows.correlation.iloc[0]):
        return "too few findings for a correlation"
    row = rows.iloc[0]
    return f"Spearman {row.correlation:.2f} [{row.low:.2f}, {row.high:.2f}]".replace("-", "\N{MINUS SIGN}")


def describe_early(forecasts: pd.DataFrame, correlations: pd.DataFrame, early: float) -> str:
    rows = select_early(forecasts, early)
    return (
        f"What the first {early:g} labels say of the end (L5): slope over log10 of the labels (a) and AUROC (b) at the "
        f"largest count up to {early:g}, against the AUROC at the largest n; {len(rows)} curves of "
        f"{rows.finding.nunique()} findings. All encoders together, 95 % intervals over findings: "
        f"{_write_correlations(correlations)}."
    )


def _write_correlations(correlations: pd.DataFrame) -> str:
    every = correlations[correlations.encoder == EVERY].set_index("predictor")
    words = (("early_slope", "slope"), ("last", "AUROC"))
    known = [(name, word) for name, word in words if name in every.index]
    return "; ".join(f"{word} {_write_correlation(every.loc[[name]])}" for name, word in known)


# --- what came out ----------------------------------------------------------------------------------------------------


def conclude_prevalence(table: pd.DataFrame) -> str:
    """How many findings have how many positives to draw."""
    few = int((table.positives_train < 50).sum())
    return f"{len(table)} findings can be labelled; {few} of them are on fewer than 50 training images."


def conclude_curves(curves: pd.DataFrame, _: pd.DataFrame) -> str:
    """The mean AUROC of each encoder at its largest label count."""
    largest = curves[curves.n == curves.groupby(["encoder", "finding"]).n.transform("max")]
    means = largest.groupby(["encoder", "finding"]).auroc.mean().groupby("encoder").mean()
    words = "; ".join(f"{short_name(encoder)} {means[encoder]:.3f}" for encoder in order_arms(means.index))
    return f"Mean AUROC over findings with all labels: {words}."


def conclude_families(measured: pd.DataFrame) -> str:
    """Which family errs least, beyond the labels fitted to and between them."""
    every = measured[measured.encoder == EVERY]
    parts = []
    for split, word in ((EXTRAPOLATION, "beyond"), (INTERPOLATION, "between")):
        for best in every[every.split == split].sort_values("mae").head(1).itertuples():
            parts.append(
                f"{word} the labels fitted to, {best.family.replace('_', ' ')} errs least ({best.mae:.4f}, n = "
                f"{int(best.points):,} left-out points)"
            )
    return f"{'; '.join(parts).capitalize()}."


def conclude_forecasts(measured: pd.DataFrame, *_) -> str:
    """Error and coverage of the forecasts of all encoders together."""
    rows = measured[(measured.encoder == EVERY) & (measured.method == "posterior")].sort_values("at_most_n")
    parts = [
        f"{row.at_most_n:g} labels: error {row.mae:.3f}, coverage {100 * row.coverage:.0f} % ({row.curves} curves of "
        f"{row.findings} findings)"
        for row in rows.itertuples()
    ]
    return f"{'; '.join(parts).capitalize()}."


def conclude_plans(plans: pd.DataFrame, *_) -> str:
    """How many curves are in each state."""
    counts = ", ".join(f"{state} {count}" for state, count in plans.state.value_counts().items())
    return f"Of {len(plans)} curves: {counts}."


def conclude_early(forecasts: pd.DataFrame, correlations: pd.DataFrame, early: float) -> str:
    """How well the first labels order the findings as the last ones do."""
    curves = len(select_early(forecasts, early))
    return f"The first {early:g} labels against the end, {curves} curves: {_write_correlations(correlations)}."


label_prevalence = Figure(
    "label_prevalence", lambda table: table, plot_prevalence, describe_prevalence, conclude_prevalence
)
learning_curves = Figure("learning_curves", select_curves, plot_curves, describe_curves, conclude_curves)
curve_families = Figure("curve_families", lambda table: table, plot_families, describe_families, conclude_families)
label_forecasts = Figure(
    "label_forecasts", lambda measured, _: measured, plot_forecasts, describe_forecasts, conclude_forecasts
)
labels_needed = Figure("labels_needed", lambda _, priced: priced, plot_plans, describe_plans_drawn, conclude_plans)
early_slope = Figure(
    "early_slope",
    lambda forecasts, _, early: select_early(forecasts, early),
    plot_early,
    describe_early,
    conclude_early,
)
