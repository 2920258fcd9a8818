"""How many labels: learning curves with their fits, families of curves, forecasts, plans, and what there is to draw."""

from functools import partial

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Drawing
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from chexstudy.cohort.table import NO_FINDING, finding_columns, label_matrix
from chexstudy.label_planning.accuracy import EVERY, take_early
from chexstudy.label_planning.families import FAMILIES
from chexstudy.label_planning.fitting import EXTRAPOLATION, INTERPOLATION
from chexstudy.label_planning.planner import FARTHEST, NEEDED, NOT_YET, REACHED, UNREACHABLE
from chexstudy.plots.figure import Figure
from chexstudy.plots.forest import add_arm_legend, draw_estimate, spread_arms
from chexstudy.plots.looks import GREY, INK, PALE, ArmStyle, arm_styles, order_arms
from chexstudy.plots.measurements import require_rows
from chexstudy.plots.style import add_legend, draw_marks, name_lines, new_figure, scale_log, title_panel
from chexstudy.plots.words import name_data_set, short_name
from chexstudy.statistics.proportions import measure_proportion
from chexstudy.statistics.ranking import known_labels

_SHOWN = 12
# Points between the axes of the table of counts and its title, where the column names stand.
_HEADER_PAD = 22
_EVERY_STYLE = ArmStyle("All encoders", "#7A5195", "p")
_METHODS = {
    "posterior": ("pooled posterior", "-"),
    "least_squares": ("least squares", (0, (4, 2))),
    "last": ("last AUROC seen", (0, (1, 1.5))),
}
_SPLIT_WORDS = {"train": "training", "validate": "validation", "test": "test", "test_enriched": "test,\nenriched"}
_FITTED = {EXTRAPOLATION: "beyond", INTERPOLATION: "between"}
_PREDICTORS = {"early_slope": ("slope", "Early slope (AUROC a tenfold of labels)"), "last": ("AUROC", "Early AUROC")}


def _looks(table: pd.DataFrame) -> dict[str, ArmStyle]:
    """Of all encoders together first, where the table has them, and of each."""
    encoders = set(table.encoder)
    return ({EVERY: _EVERY_STYLE} if EVERY in encoders else {}) | arm_styles(encoders - {EVERY})


def _scale_labels(axes: Axes, low: float, high: float) -> None:
    """A log axis of label counts with ticks that do not crowd a small panel."""
    scale_log(axes, parts=(1,) if high / low > 60 else (1, 3))
    axes.set_xlim(low, high)


def _name_unit(table: pd.DataFrame) -> str:
    return "cases" if (table.unit == "cases").all() else "positives"


def select_prevalence(cohort: pd.DataFrame) -> pd.DataFrame:
    """How often each finding is present: one row a finding but `No Finding`, commonest in training first.

    Gives ``finding``; for each split with images ``positives_<split>`` and ``known_<split>``, images with a label of 1,
    and of 1 or 0; of the training split ``patients`` with the finding, ``prevalence`` among known labels and
    ``prevalence_low, prevalence_high`` (95 %, patients as clusters).
    """
    findings = [finding for finding in finding_columns(cohort) if finding != NO_FINDING]
    labels, table = label_matrix(cohort, findings), pd.DataFrame({"finding": findings})
    for split in _SPLIT_WORDS:
        own = (cohort.split == split).to_numpy()
        if own.any():
            table[f"positives_{split}"] = (labels[own] == 1).sum(axis=0)
            table[f"known_{split}"] = known_labels(labels[own]).sum(axis=0)
    train = (cohort.split == "train").to_numpy()
    patients, rows = pd.factorize(cohort.patient_id[train])[0], []
    for of_finding in labels[train].T:
        ends = measure_proportion(known_labels(of_finding), of_finding == 1, patients)
        rows.append((len(np.unique(patients[of_finding == 1])), *ends))
    names = ["patients", "prevalence", "prevalence_low", "prevalence_high"]
    table = table.join(pd.DataFrame(rows, columns=names))
    return table.sort_values("prevalence", ascending=False, kind="stable", ignore_index=True)


def _plot_prevalence(table: pd.DataFrame) -> Drawing:
    splits = [name.removeprefix("positives_") for name in table if name.startswith("positives_")]
    figure = new_figure(height_mm=22 + 4.4 * len(table))
    bars, counts = figure.subplots(1, 2, sharey=True, width_ratios=[1.1, 1])
    share, low, high = (100 * table[name] for name in ("prevalence", "prevalence_low", "prevalence_high"))
    bars.hlines(range(len(table)), low, high, color=INK, linewidth=0.9, gid="interval")
    bars.plot(share, range(len(table)), "o", color=INK, markersize=3.8, gid="estimate")
    scale_log(bars, parts=(1, 3))
    name_lines(bars, list(table.finding), ticks=2.5)
    bars.set_xlabel("Prevalence in training (%, log)")
    bars.grid()
    title_panel(bars, "a", "Prevalence among known labels", pad=_HEADER_PAD)
    columns = {f"positives_{split}": _SPLIT_WORDS[split] for split in splits} | {"patients": "patients\nin training"}
    counts.set_xlim(-0.6, len(columns) - 0.4)
    for place, column in enumerate(columns):
        for row, value in enumerate(table[column]):
            counts.text(place, row, f"{value:,}", ha="center", va="center", fontsize=6.5, color=INK if value else GREY)
    counts.set_xticks(range(len(columns)), columns.values())
    counts.xaxis.tick_top()
    counts.tick_params(length=0, labelleft=False)
    counts.spines[:].set_visible(False)
    for row in range(0, len(table), 2):
        counts.axhspan(row - 0.5, row + 0.5, color=PALE, alpha=0.35, linewidth=0, zorder=0)
    title_panel(counts, "b", "Images with the finding", pad=_HEADER_PAD)
    return figure


def _describe_prevalence(table: pd.DataFrame) -> str:
    return (
        f"What there is to draw (T1): {len(table)} findings, commonest first. (a) Share of the training images with a "
        "known label that show the finding, with 95 % intervals (Wilson, patients as clusters); n = "
        f"{table.known_train.min():,} to {table.known_train.max():,} images. (b) Images with the finding by split, and "
        "patients with it in training."
    )


def _conclude_prevalence(table: pd.DataFrame) -> str:
    few = int((table.positives_train < 50).sum())
    return f"{len(table)} findings can be labelled; {few} of them are on fewer than 50 training images."


def _select_curves(curves: pd.DataFrame, bands: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """What was measured at each label count, and the fits; and the curves.

    ``encoder, finding, kind`` (``measured`` or ``fit``), ``labels, value, low, high, draws``. Measured: mean and the
    middle 95 % of draws (none with fewer than ten of them). Labels are counted in the curves' unit.
    """
    require_rows(curves, "learning curves")
    counted = curves.assign(labels=np.where(curves.unit == "positives", curves.positives, curves.n))
    groups = counted.groupby(["encoder", "finding", "labels"]).auroc
    table = groups.agg(value="mean", low=lambda one: one.quantile(0.025), high=lambda one: one.quantile(0.975))
    table = table.assign(draws=groups.size()).reset_index()
    table.loc[table.draws < 10, ["low", "high"]] = np.nan
    fits = bands[["encoder", "finding", "labels", "value", "low", "high"]].assign(kind="fit")
    return pd.concat([table.assign(kind="measured"), fits], ignore_index=True), curves


def _plot_curves(table: pd.DataFrame, curves: pd.DataFrame) -> Drawing:
    share = curves.groupby("finding")[["positives", "n"]].sum()
    share = (share.positives / share.n).sort_values(ascending=False, kind="stable")
    findings, looks = list(share.index[:_SHOWN]), _looks(table)
    columns = min(4, len(findings))
    rows = -(-len(findings) // columns)
    figure = new_figure(height_mm=12 + 38 * rows)
    grid = figure.subplots(rows, columns, squeeze=False, sharex=True).ravel()
    drawn = table[table.finding.isin(findings)]
    for place, (axes, finding) in enumerate(zip(grid, findings, strict=False)):
        for encoder, style in looks.items():
            own = drawn[(drawn.finding == finding) & (drawn.encoder == encoder)]
            fit, measured, colour = own[own.kind == "fit"], own[own.kind == "measured"], style.colour
            axes.fill_between(
                fit.labels, fit.low, fit.high, color=colour, alpha=0.16, linewidth=0, zorder=1, gid="band"
            )
            axes.plot(fit.labels, fit.value, color=colour, linewidth=1.0, gid="fit", zorder=3)
            draw_marks(axes, measured.labels, measured.value, style, 2.8, markeredgewidth=0.3, gid="measured", zorder=4)
        _scale_labels(axes, drawn.labels.min() / 1.3, drawn.labels.max() * 1.1)
        axes.yaxis.set_major_locator(MaxNLocator(nbins=4, steps=[1, 2, 5, 10]))
        axes.grid(axis="y")
        axes.set_title(finding, fontsize=7)
        if place + columns >= len(findings):
            axes.tick_params(labelbottom=True)
            axes.set_xlabel(f"Labelled {_name_unit(curves)} (log)")
        if place % columns == 0:
            axes.set_ylabel("AUROC")
    for unused in grid[len(findings) :]:
        unused.set_axis_off()
    add_arm_legend(figure, looks.values())
    return figure


def _describe_curves(table: pd.DataFrame, curves: pd.DataFrame) -> str:
    findings, seeds = table.finding.nunique(), sorted(curves.seed.unique())
    where = ", ".join(name_data_set(name) for name in sorted(curves.data_set.unique()))
    return (
        f"Learning curves (L1): AUROC on held-out patients ({where}) against labelled {_name_unit(curves)}, "
        f"{min(_SHOWN, findings)} most prevalent of {findings} findings. Marks are means over "
        f"{int(table.draws.max())} draws of patients (one where everything is drawn); lines are the power law of "
        "the planner, inferred for all findings of an encoder together, and reach to twice the labels at hand; bands "
        f"are its 95 % intervals for this pool of images and this test set. Seed{'s' * (len(seeds) > 1)} of the "
        f"encoders: {', '.join(map(str, seeds))}."
    )


def _conclude_curves(_: pd.DataFrame, curves: pd.DataFrame) -> str:
    largest = curves[curves.n == curves.groupby(["encoder", "finding"]).n.transform("max")]
    means = largest.groupby(["encoder", "finding"]).auroc.mean().groupby("encoder").mean()
    words = "; ".join(f"{short_name(encoder)} {means[encoder]:.3f}" for encoder in order_arms(means.index))
    return f"Mean AUROC over findings with all labels: {words}."


def _plot_families(measured: pd.DataFrame) -> Drawing:
    splits, looks = [split for split in _FITTED if (measured.split == split).any()], _looks(measured)
    families = measured[(measured.encoder == EVERY) & (measured.split == splits[0])].sort_values("mae").family.tolist()
    figure = new_figure(height_mm=22 + 8.5 * len(families))
    panels = figure.subplots(1, len(splits), sharey=True, squeeze=False)[0]
    for axes, letter, split in zip(panels, "ab", splits, strict=False):
        for offset, (encoder, style) in zip(spread_arms(len(looks), 0.56), looks.items(), strict=True):
            rows = measured[(measured.split == split) & (measured.encoder == encoder)]
            for row in rows[rows.family.isin(families)].itertuples():
                ends = (row.mae, row.mae_low, row.mae_high)
                draw_estimate(axes, families.index(row.family) + offset, ends, style)
        axes.set(xlabel="Mean absolute error of the AUROC", xlim=(0, None))
        axes.grid(axis="x")
        title_panel(axes, letter, f"{_FITTED[split].capitalize()} the labels fitted to")
    names = [f"{family.replace('_', ' ')}\n{FAMILIES[family].formula}" for family in families]
    panels[0].set_yticks(range(len(families)), names)
    panels[0].set_ylim(len(families) - 0.5, -0.5)
    add_arm_legend(figure, looks.values())
    return figure


def _describe_families(measured: pd.DataFrame) -> str:
    return (
        "Families of learning curves (L2), best first, by least squares weighted by how little draws differ. (a) "
        "fitted to the first label counts and asked for all larger ones; (b) one label count left out. "
        f"{_conclude_families(measured)} Points that not every family could be fitted to are left out. Bars are 95 % "
        f"intervals over {int(measured[measured.encoder == EVERY].findings.max())} findings."
    )


def _conclude_families(measured: pd.DataFrame) -> str:
    every, parts = measured[measured.encoder == EVERY], []
    for split, word in _FITTED.items():
        for best in every[every.split == split].sort_values("mae").head(1).itertuples():
            parts.append(
                f"{word} the labels fitted to, {best.family.replace('_', ' ')} errs least ({best.mae:.4f}, n = "
                f"{int(best.points):,} left-out points)"
            )
    return f"{'; '.join(parts).capitalize()}."


def _select_forecasts(measured: pd.DataFrame, alone: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The tables of `chexstudy.label_planning.accuracy.measure_forecasts`: findings together, and each by itself."""
    return require_rows(measured, "curves with three label counts up to those asked for and one beyond"), alone


def _take_forecasts(measured: pd.DataFrame, encoder: str = EVERY, method: str = "posterior") -> pd.DataFrame:
    return measured[(measured.encoder == encoder) & (measured.method == method)].sort_values("at_most_n")


def _plot_forecasts(measured: pd.DataFrame, alone: pd.DataFrame) -> Drawing:
    looks = _looks(measured)
    figure = new_figure(height_mm=72)
    panels = error, coverage = figure.subplots(1, 2)
    encoders = [*(encoder for encoder in looks if encoder != EVERY), EVERY]
    for shift, encoder in zip(np.geomspace(0.94, 1.06, len(encoders)), encoders, strict=True):
        rows, style = _take_forecasts(measured, encoder), looks[encoder]
        for axes, name, width in ((error, "mae", 1.0), (coverage, "coverage", 0.8)):
            for place, *ends in rows[["at_most_n", name, f"{name}_low", f"{name}_high"]].itertuples(index=False):
                draw_estimate(axes, shift * place, ends, style, vertical=True)
            axes.plot(shift * rows.at_most_n, rows[name], color=style.colour, linewidth=width, zorder=2)
    for method in ("least_squares", "last"):
        rows, line = _take_forecasts(measured, method=method), _METHODS[method][1]
        error.plot(rows.at_most_n, rows.mae, color=GREY, linestyle=line, linewidth=1.1, gid=method, zorder=1)
    rows = _take_forecasts(alone)
    for axes, name in zip(panels, ("mae", "coverage"), strict=True):
        axes.plot(rows.at_most_n, rows[name], color=GREY, linestyle="-.", linewidth=1.1, gid="alone", zorder=1)
    coverage.axhline(0.95, color=GREY, linestyle=(0, (3, 2)), linewidth=0.8, gid="stated", zorder=1)
    counts = sorted(measured.at_most_n.unique())
    for axes in panels:
        _scale_labels(axes, counts[0] / 1.3, counts[-1] * 1.3)
        axes.set(xticks=counts, xlabel="Labels used (log)")
        axes.grid(axis="y")
    error.set(ylim=(0, None), ylabel="Mean absolute error of the AUROC\nat the largest n")
    coverage.set(ylim=(0, 1.03), ylabel="Share of intervals with the truth")
    title_panel(error, "a", "Error of the forecast")
    title_panel(coverage, "b", "Coverage of its 95 % intervals")
    lines = [
        _METHODS["posterior"],
        ("posterior of each finding alone", "-."),
        _METHODS["least_squares"],
        _METHODS["last"],
    ]
    handles = [Line2D([], [], color=INK if line == "-" else GREY, linestyle=line, label=word) for word, line in lines]
    error.legend(handles=handles, loc="upper right")
    add_arm_legend(figure, looks.values())
    return figure


def _describe_forecasts(measured: pd.DataFrame, alone: pd.DataFrame) -> str:
    return (
        "Forecasts of the AUROC at the largest n from fewer labels (L3). (a) Mean absolute error of the median of the "
        "posterior; grey, all encoders together: posterior of each finding alone, least squares, last AUROC seen. (b) "
        "Share of the 95 % intervals that hold the truth; dashed: what they state. Only findings with three label "
        "counts up to the number used are there, so that more labels also mean rarer findings. "
        f"{_conclude_forecasts(measured, alone)} Bars are 95 % intervals over findings (none with fewer than five)."
    )


def _conclude_forecasts(measured: pd.DataFrame, _: pd.DataFrame) -> str:
    parts = [
        f"{row.at_most_n:g} labels: error {row.mae:.3f}, coverage {100 * row.coverage:.0f} % ({row.curves} curves of "
        f"{row.findings} findings)"
        for row in _take_forecasts(measured).itertuples()
    ]
    return f"{'; '.join(parts).capitalize()}."


def _select_plans(plans: pd.DataFrame, priced: pd.DataFrame) -> pd.DataFrame:
    """The plans of `chexstudy.label_planning.planner.plan_labels` with their prices."""
    require_rows(plans, "plans of labels")
    return priced


def _plot_plans(plans: pd.DataFrame) -> Drawing:
    looks, have = arm_styles(plans.encoder), plans.have.max()
    order = plans.groupby("finding").auroc.max().sort_values(ascending=False).index.tolist()
    figure = new_figure(height_mm=24 + len(order) * (2.6 + 1.5 * len(looks)))
    axes = figure.subplots()
    needs = plans[["need", "need_low"]].to_numpy(float)
    low = max(1.0, min([have / 10, *needs[np.isfinite(needs)]]) / 1.5)
    high = FARTHEST * have
    for place in range(0, len(order), 2):
        axes.axhspan(place - 0.5, place + 0.5, color=PALE, alpha=0.3, linewidth=0, zorder=0)
    offsets = dict(zip(looks, spread_arms(len(looks)), strict=True))
    for row in plans.itertuples():
        _draw_plan(axes, row, order.index(row.finding) + offsets[row.encoder], low, high, looks[row.encoder])
    _scale_labels(axes, low, high * 1.6)
    name_lines(axes, order)
    axes.set_ylim(len(order) - 0.5, -0.5)
    axes.set_xlabel(f"Labelled {_name_unit(plans)} needed for an AUROC of {plans.target.iloc[0]:g} (log)")
    axes.grid(axis="x")
    axes.axvline(have, color=GREY, linewidth=0.8, linestyle=(0, (3, 2)), gid="have", zorder=1)
    axes.annotate(
        "labelled already", (have, 1), (2, 2), xycoords=axes.get_xaxis_transform(), textcoords="offset points",
        fontsize=6, color=GREY,
    )  # fmt: skip
    states = {
        REACHED: {"marker": "o", "label": "reached, or needed: can be told"},
        NOT_YET: {"marker": "o", "label": NOT_YET, "markerfacecolor": "white"},
        UNREACHABLE: {"marker": "x", "label": UNREACHABLE},
    }
    marks = [mark for state, mark in states.items() if (plans.state.replace(NEEDED, REACHED) == state).any()]
    marks.append({"marker": ">", "label": "no upper end"})
    handles = [Patch(color=style.colour, label=style.name) for style in looks.values()]
    handles += [Line2D([], [], color=INK, linestyle="none", markersize=4, **mark) for mark in marks]
    add_legend(figure, handles, 4)
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


def _describe_plans(plans: pd.DataFrame) -> str:
    return (
        f"Labelled {_name_unit(plans)} needed for an AUROC of {plans.target.iloc[0]:g} (L4), by finding and encoder, "
        "best first: median and 95 % interval of the posterior of each curve, findings of an encoder inferred "
        "together. An open mark or an arrow says that the interval has no upper end within a hundred times what is "
        "labelled; a cross, that the plateau lies below the target. Intervals are of this pool and test set. "
        f"{_conclude_plans(plans)}"
    )


def _conclude_plans(plans: pd.DataFrame) -> str:
    counts = ", ".join(f"{state} {count}" for state, count in plans.state.value_counts().items())
    return f"Of {len(plans)} curves: {counts}."


def _select_early(forecasts: pd.DataFrame, correlations: pd.DataFrame, early: float) -> tuple:
    """What the first labels showed and what came of it, a row a curve: ``early_slope``, ``last`` and ``truth``.

    With them how well each of both orders the findings, all encoders together, in words.
    """
    rows = take_early(forecasts, early)
    require_rows(rows, f"curves with three label counts up to {early:g}")
    columns = ["encoder", "finding", "data_set", "unit", "at_most_n", "target_n", "early_slope", "last", "truth"]
    every = correlations[correlations.encoder == EVERY]
    words = {name: _write_correlation(every[every.predictor == name]) for name in _PREDICTORS}
    return rows[columns].reset_index(drop=True), words


def _write_correlation(rows: pd.DataFrame) -> str:
    if rows.empty or not np.isfinite(rows.correlation.iloc[0]):
        return "too few findings for a correlation"
    row = rows.iloc[0]
    return f"Spearman {row.correlation:.2f} [{row.low:.2f}, {row.high:.2f}]".replace("-", "\N{MINUS SIGN}")


def _plot_early(rows: pd.DataFrame, correlations: dict[str, str]) -> Drawing:
    looks = arm_styles(rows.encoder)
    figure = new_figure(height_mm=70)
    panels = figure.subplots(1, 2, sharey=True)
    for axes, letter, (predictor, (_, words)) in zip(panels, "ab", _PREDICTORS.items(), strict=True):
        for encoder, style in looks.items():
            own = rows[rows.encoder == encoder]
            draw_marks(axes, own[predictor], own.truth, style, gid=encoder)
        axes.set_xlabel(words)
        axes.grid()
        axes.xaxis.set_major_locator(MaxNLocator(nbins=5))
        title_panel(axes, letter, f"{words.split(' (')[0]}, up to {rows.at_most_n.iloc[0]:g} labels")
        axes.text(
            0.97, 0.04, correlations[predictor], transform=axes.transAxes, ha="right", fontsize=6.5, gid="correlation"
        )
    panels[0].set_ylabel("AUROC at the largest n")
    add_arm_legend(figure, looks.values())
    return figure


def _describe_early(rows: pd.DataFrame, correlations: dict[str, str]) -> str:
    early = rows.at_most_n.iloc[0]
    return (
        f"What the first {early:g} labels say of the end (L5): slope over log10 of the labels (a) and AUROC (b) at the "
        f"largest count up to {early:g}, against the AUROC at the largest n; {len(rows)} curves of "
        f"{rows.finding.nunique()} findings. All encoders together, 95 % intervals over findings: "
        f"{_state_correlations(correlations)}."
    )


def _state_correlations(correlations: dict[str, str]) -> str:
    return "; ".join(f"{_PREDICTORS[name][0]} {words}" for name, words in correlations.items())


def _conclude_early(rows: pd.DataFrame, correlations: dict[str, str]) -> str:
    early = rows.at_most_n.iloc[0]
    return f"The first {early:g} labels against the end, {len(rows)} curves: {_state_correlations(correlations)}."


_select_findings = partial(require_rows, what="findings")
label_prevalence = Figure(
    "label_prevalence", _select_findings, _plot_prevalence, _describe_prevalence, _conclude_prevalence
)
learning_curves = Figure("learning_curves", _select_curves, _plot_curves, _describe_curves, _conclude_curves)
# Of the table of `chexstudy.label_planning.accuracy.measure_families`.
_select_families = partial(require_rows, what="curves with label counts enough to leave one out")
curve_families = Figure("curve_families", _select_families, _plot_families, _describe_families, _conclude_families)
label_forecasts = Figure(
    "label_forecasts", _select_forecasts, _plot_forecasts, _describe_forecasts, _conclude_forecasts
)
labels_needed = Figure("labels_needed", _select_plans, _plot_plans, _describe_plans, _conclude_plans)
early_slope = Figure("early_slope", _select_early, _plot_early, _describe_early, _conclude_early)
