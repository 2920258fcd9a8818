"""Training dynamics: what the curator, its prototypes and the loss did, step by step."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Drawing
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from chexstudy.curation.records.ledger import measure_churn
from chexstudy.plots.figure import Figure
from chexstudy.plots.measurements import require_rows, short_name
from chexstudy.plots.style import (
    ACCENT,
    GREY,
    INK,
    PALE,
    SEQUENCE,
    add_legend,
    arm_style,
    new_figure,
    order_arms,
    title_panel,
)

_PHASES = {"warm_up": ("warm-up", "#F2F2F2"), "curate": ("curation", "#FBE6D6"), "subset": ("subset", "#FFFFFF")}
_MOST_STACKED = 10
_SMOOTHED_FROM = 120
_ASSIGNMENT = ("assignment_min", "assignment_max")


def plot_training_dynamics(history: pd.DataFrame, others: dict[str, pd.DataFrame] | None = None) -> Drawing:
    """Eight panels over the steps of the curated arm, with the other arms' losses and schedules beside it.

    Args:
        history: the curated arm's history, one row a step; its ``logit_scale`` is the logarithm that is trained.
        others: further arms' histories by arm, drawn where they have something to say.
    """
    require_rows(history, "training steps")
    histories = {"curated": history} | {arm: others[arm] for arm in order_arms(others or {}) if arm != "curated"}
    curated = history[history.phase == "curate"].reset_index(drop=True)
    figure = new_figure(height_mm=116)
    grid = figure.subplots(2, 4)
    panels = grid.ravel()
    _draw_keep_ratio(panels[0], curated)
    title_panel(panels[0], "a", "Share kept")
    _draw_batches(panels[1], curated)
    title_panel(panels[1], "b", "Pairs per super-batch")
    _draw_series(panels[2], curated.step, curated.prototype_spread, ACCENT, "spread")
    panels[2].set_ylabel("Mean distance")
    title_panel(panels[2], "c", "Between prototypes")
    draw_usage(panels[3], curated)
    title_panel(panels[3], "d", "Prototype usage")
    for arm, steps in histories.items():
        style = arm_style(arm, list(histories))
        _draw_series(panels[4], steps.step, steps.loss, style.colour, style.name)
        _draw_series(panels[5], steps.step, steps.matched_cosine, style.colour, style.name)
        _draw_series(panels[5], steps.step, steps.unmatched_cosine, style.colour, style.name, dashed=True)
        _draw_series(panels[6], steps.step, np.exp(steps.logit_scale), style.colour, style.name)
        _draw_series(panels[7], steps.step, 1e3 * steps.learning_rate, style.colour, style.name, smooth=False)
    for axes, letter, title, label in (
        (panels[4], "e", "Contrastive loss", "Loss"),
        (panels[5], "f", "Cosine of pairs", "Cosine (dashed: unmatched)"),
        (panels[6], "g", "Temperature, inverse", "1 / temperature"),
        (panels[7], "h", "Learning rate", "Learning rate (\N{MULTIPLICATION SIGN}10⁻³)"),
    ):
        title_panel(axes, letter, title)
        axes.set_ylabel(label)
        _shade_phases(axes, history)
    panels[7].set_ylim(bottom=0)
    for axes in panels:
        axes.set_xlabel("Step")
        axes.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
        axes.yaxis.get_major_formatter().set_useOffset(False)
    for axes in panels[:4]:
        if len(curated):
            axes.set_xlim(curated.step.min() - 0.5, curated.step.max() + 0.5)
    handles = [
        *[_line(arm_style(arm, list(histories)).colour, arm_style(arm, list(histories)).name) for arm in histories],
        *_phase_patches(history),
    ]
    add_legend(figure, handles, min(5, len(handles)))
    return figure


def _line(colour: str, label: str) -> Line2D:
    return Line2D([], [], color=colour, linewidth=1.2, label=label)


def _phase_patches(history: pd.DataFrame) -> list[Patch]:
    return [
        Patch(facecolor=colour, edgecolor=GREY, linewidth=0.4, label=f"curated: {word}")
        for phase, (word, colour) in _PHASES.items()
        if (history.phase == phase).any()
    ]


def _draw_series(
    axes: Axes, steps: pd.Series, values: pd.Series, colour: str, label: str, dashed: bool = False, smooth: bool = True
) -> None:
    """A line; a long noisy one is drawn thin, with its running mean on top."""
    line = (0, (3, 1.5)) if dashed else "-"
    values = pd.Series(np.asarray(values, dtype=float))
    window = len(values) // 40
    if smooth and len(values) >= _SMOOTHED_FROM:
        axes.plot(steps, values, color=colour, linewidth=0.4, alpha=0.3, gid="raw")
        values = values.rolling(window, center=True, min_periods=1).mean()
    marker = "o" if len(values) <= 12 else ""
    axes.plot(steps, values, color=colour, linestyle=line, linewidth=1.1, marker=marker, markersize=2.4, label=label)


def _draw_keep_ratio(axes: Axes, curated: pd.DataFrame) -> None:
    _draw_series(axes, curated.step, 100 * curated.keep_ratio, ACCENT, "kept")
    axes.set_ylabel("Kept (%)")
    top = 100 * curated.keep_ratio.max() if len(curated) else 1.0
    axes.set_ylim(0, 1.25 * top if np.isfinite(top) else None)


def _draw_batches(axes: Axes, curated: pd.DataFrame) -> None:
    for counts, colour in ((curated.pairs_scored, GREY), (curated.pairs_trained, ACCENT)):
        axes.step(curated.step, counts, where="mid", color=colour, linewidth=1.1, marker="o", markersize=2.4)
    axes.set_ylabel("Pairs")
    axes.set_ylim(bottom=0)
    if len(curated):
        axes.set_ylim(0, 1.3 * curated.pairs_scored.max())
        middle = curated.step.iloc[len(curated) // 2]
        for values, word, colour in (
            (curated.pairs_scored, "scored", GREY),
            (curated.pairs_trained, "trained", ACCENT),
        ):
            axes.annotate(word, (middle, values.max()), (0, 3), textcoords="offset points", color=colour, ha="center")


def draw_usage(axes: Axes, curated: pd.DataFrame) -> None:
    """Share of the kept pairs assigned to each prototype: stacked for few prototypes, as an image for many."""
    counted = curated[curated.usage.map(len) > 0]
    axes.set_ylabel("Share of kept pairs (%)")
    if counted.empty:
        return
    usage = np.stack([np.asarray(counts, dtype=float) for counts in counted.usage])
    share = 100 * usage / np.maximum(usage.sum(axis=1, keepdims=True), 1)
    if usage.shape[1] > _MOST_STACKED:
        extent = (counted.step.min() - 0.5, counted.step.max() + 0.5, usage.shape[1] - 0.5, -0.5)
        image = axes.imshow(share.T, aspect="auto", cmap="cividis", extent=extent, interpolation="nearest")
        axes.set_ylabel("Prototype")
        bar = axes.figure.colorbar(image, ax=axes, aspect=25, pad=0.02)
        bar.set_label("Share of kept pairs (%)")
        bar.outline.set_visible(False)
        return
    bottom = np.zeros(len(share))
    for k in range(share.shape[1]):
        axes.bar(
            counted.step, share[:, k], 1.0, bottom, color=SEQUENCE[k % len(SEQUENCE)], edgecolor="white", linewidth=0.3,
            gid=f"prototype {k}",
        )  # fmt: skip
        axes.text(
            1.01, bottom[-1] + share[-1, k] / 2, str(k), transform=axes.get_yaxis_transform(), va="center", fontsize=6
        )
        bottom += share[:, k]
    axes.set_ylim(0, 100)


def _shade_phases(axes: Axes, history: pd.DataFrame) -> None:
    for phase, (_, colour) in _PHASES.items():
        steps = history.loc[history.phase == phase, "step"]
        if len(steps):
            axes.axvspan(steps.min() - 0.5, steps.max() + 0.5, color=colour, linewidth=0, zorder=0)
    axes.margins(x=0.01)
    axes.spines["left"].set_color(INK)


def describe_training_dynamics(
    history: pd.DataFrame, others: dict[str, pd.DataFrame] | None = None, seed: int = 0
) -> str:
    curated = history[history.phase == "curate"]
    text = (
        "Training dynamics of the curated arm: share of each super-batch kept (a), pairs scored and trained on (b), "
        "mean distance between prototypes (c) and how the kept pairs spread over them (d) while curating; loss (e), "
        "cosine of matched and unmatched pairs (f), one over the temperature (g) and learning rate (h)"
    )
    text += " beside the other arms. " if others else ". "
    if len(history) >= _SMOOTHED_FROM:
        text += "Thin lines are steps, thick ones running means. "
    if len(curated):
        kept, scored = int(curated.pairs_trained.sum()), int(curated.pairs_scored.sum())
        text += f"{kept:,} of {scored:,} scored pairs were kept ({100 * kept / max(scored, 1):.1f} %). "
    return text + f"Seed {seed}, {len(history):,} steps; single run, no intervals."


def plot_prototype_dynamics(history: pd.DataFrame, ledger: pd.DataFrame) -> Drawing:
    """What the prototypes did while curating: usage, spread, and, where recorded, assignment probabilities and churn.

    Args:
        history: the curated arm's history, one row a step.
        ledger: its decisions, with ``epoch``; churn is drawn where there are several epochs.
    """
    curated = require_rows(history[history.phase == "curate"], "curation steps").reset_index(drop=True)
    churn = measure_churn(ledger)
    panels = _dynamics_panels(history, churn)
    figure = new_figure(height_mm=60)
    grid = figure.subplots(1, len(panels), squeeze=False)[0]
    for axes, panel, letter in zip(grid, panels, "abcd", strict=False):
        if panel == "usage":
            draw_usage(axes, curated)
            title_panel(axes, letter, "Prototype usage")
        elif panel == "spread":
            _draw_series(axes, curated.step, curated.prototype_spread, ACCENT, "spread")
            axes.set_ylabel("Mean distance")
            title_panel(axes, letter, "Between prototypes")
        elif panel == "assignment":
            _draw_assignment(axes, curated)
            title_panel(axes, letter, "Assignment probability")
        else:
            _draw_churn(axes, churn)
            title_panel(axes, letter, "Churn")
            continue
        axes.set_xlabel("Step")
        axes.set_xlim(curated.step.min() - 0.5, curated.step.max() + 0.5)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
        axes.yaxis.get_major_formatter().set_useOffset(False)
    return figure


def _dynamics_panels(history: pd.DataFrame, churn: pd.DataFrame) -> list[str]:
    """The panels there are numbers for."""
    panels = ["usage", "spread"]
    curated = history[history.phase == "curate"]
    if set(_ASSIGNMENT) <= set(history) and curated[list(_ASSIGNMENT)].notna().any(axis=None):
        panels.append("assignment")
    return panels + ["churn"] * (len(churn) > 0)


def _draw_assignment(axes: Axes, curated: pd.DataFrame) -> None:
    low, high = (curated[name].astype(float) for name in _ASSIGNMENT)
    axes.fill_between(curated.step, low, high, color=PALE, linewidth=0)
    for values, name in ((high, "largest"), (low, "smallest")):
        _draw_series(axes, curated.step, values, ACCENT if name == "largest" else SEQUENCE[1], name)
        axes.annotate(
            name, (curated.step.iloc[0], values.iloc[0]), (2, 4 if name == "largest" else -9),
            textcoords="offset points", fontsize=6,
        )  # fmt: skip
    axes.set_ylim(0, 1)
    axes.set_ylabel("Probability")


def _draw_churn(axes: Axes, churn: pd.DataFrame) -> None:
    """Shares in percent over epochs; the lines are named beside their last points."""
    series = (
        ("differ", "differ", INK, "D"),
        ("readmitted_share", "re-admitted", SEQUENCE[1], "o"),
        ("newly_dropped_share", "newly dropped", ACCENT, "s"),
    )
    lines = [
        axes.plot(churn.epoch, 100 * churn[column], color=colour, marker=marker, markersize=3, label=name, gid=column)[
            0
        ]
        for column, name, colour, marker in series
    ]
    axes.set_ylim(0, max(1.0, 125 * churn[[column for column, *_ in series]].max(axis=None)))
    axes.set_xlim(churn.epoch.min() - 0.5, churn.epoch.max() + 0.5)
    axes.legend(handles=lines, loc="lower left", handlelength=1.2)
    axes.set_xlabel("Epoch")
    axes.set_ylabel("Share of kept pairs (%)")
    # Of one epoch or two, a locator would mark halves.
    axes.set_xticks(churn.epoch[:: -(-len(churn) // 6)])


def describe_prototype_dynamics(history: pd.DataFrame, ledger: pd.DataFrame, seed: int = 0) -> str:
    churn = measure_churn(ledger)
    said = {
        "usage": "how the kept pairs spread over the prototypes",
        "spread": "mean distance between two prototypes",
        "assignment": "largest and smallest probability with which a pair is assigned to a prototype",
        "churn": (
            "decisions that differ from those of the epoch before: share of the pairs kept in either epoch that were "
            "not kept in both, re-admitted pairs among those kept now, newly dropped ones among those kept before"
        ),
    }
    panels = _dynamics_panels(history, churn)
    text = " ".join(f"{letter}, {said[panel]}." for letter, panel in zip("abcd", panels, strict=False))
    if len(churn):
        last = churn.iloc[-1]
        text += (
            f" From epoch {int(last.epoch) - 1} to {int(last.epoch)}, {100 * last.differ:.1f} % differ, over "
            f"{int(last.pairs):,} pairs."
        )
    else:
        text += " One epoch of curation, so there is no churn to show."
    steps = int((history.phase == "curate").sum())
    return (
        f"Prototypes while curating. {text} n = {ledger.image_id.nunique():,} pairs, {steps:,} steps, seed {seed}; "
        "single run, no intervals."
    )


def _conclude_prototypes(history: pd.DataFrame, ledger: pd.DataFrame) -> str:
    """How far apart prototypes are, and how far decisions change between epochs."""
    curated = history[history.phase == "curate"]
    first, last = curated.prototype_spread.iloc[[0, -1]]
    text = f"The mean distance between prototypes goes from {first:.3f} to {last:.3f} in {len(curated):,} steps"
    churn = measure_churn(ledger)
    if len(churn):
        return f"{text}; in the last epoch {100 * churn.differ.iloc[-1]:.1f} % of the decisions changed."
    return f"{text}; one epoch of curation has no churn."


def _conclude_training(history: pd.DataFrame, others: dict[str, pd.DataFrame]) -> str:
    """Where the loss of every arm ended, as the mean of the last tenth of its steps."""
    histories = {"curated": history} | others
    ends = {arm: one.loss.tail(max(1, len(one) // 10)).mean() for arm, one in histories.items()}
    return f"Loss at the end: {'; '.join(f'{short_name(arm)} {ends[arm]:.3f}' for arm in order_arms(ends))}."


prototype_dynamics = Figure(
    name="prototype_dynamics",
    select=lambda history, _: history.loc[history.phase == "curate", ["step", "usage", "prototype_spread"]],
    plot=plot_prototype_dynamics,
    describe=describe_prototype_dynamics,
    conclude=_conclude_prototypes,
)
training_dynamics = Figure(
    name="training_dynamics",
    select=lambda history, _: history.drop(columns="usage"),
    plot=plot_training_dynamics,
    describe=describe_training_dynamics,
    conclude=_conclude_training,
)
