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
from chexstudy.plots.looks import ACCENT, GREY, INK, PALE, SEQUENCE, arm_styles, order_arms
from chexstudy.plots.measurements import require_rows
from chexstudy.plots.style import add_colour_bar, add_legend, new_figure, title_panel
from chexstudy.plots.words import short_name

_PHASES = {"warm_up": ("warm-up", "#F2F2F2"), "curate": ("curation", "#FBE6D6"), "subset": ("subset", "#FFFFFF")}
_MOST_STACKED = 10
_SMOOTHED_FROM = 120
_ASSIGNMENT = ("assignment_min", "assignment_max")


def _select_training(history: pd.DataFrame, others: dict[str, pd.DataFrame]) -> tuple:
    """The curated arm's history without usage, one row a step, and the histories of all arms in their order.

    The ``logit_scale`` of a history is the logarithm that is trained.
    """
    require_rows(history, "training steps")
    return history.drop(columns="usage"), {
        arm: (others | {"curated": history})[arm] for arm in order_arms([*others, "curated"])
    }


def _plot_training(_: pd.DataFrame, histories: dict[str, pd.DataFrame]) -> Drawing:
    history, looks = histories["curated"], arm_styles(histories)
    curated = history[history.phase == "curate"].reset_index(drop=True)
    figure = new_figure(height_mm=116)
    kept, batches, spread, usage, loss, cosine, temperature, rate = figure.subplots(2, 4).ravel()
    _draw_series(kept, curated.step, 100 * curated.keep_ratio, ACCENT)
    top = 100 * curated.keep_ratio.max() if len(curated) else 1.0
    kept.set(ylabel="Kept (%)", ylim=(0, 1.25 * top if np.isfinite(top) else None))
    _draw_batches(batches, curated)
    _draw_spread(spread, curated)
    _draw_usage(usage, curated)
    for arm, steps in histories.items():
        style = looks[arm]
        _draw_series(loss, steps.step, steps.loss, style.colour)
        _draw_series(cosine, steps.step, steps.matched_cosine, style.colour)
        _draw_series(cosine, steps.step, steps.unmatched_cosine, style.colour, dashed=True)
        _draw_series(temperature, steps.step, np.exp(steps.logit_scale), style.colour)
        _draw_series(rate, steps.step, 1e3 * steps.learning_rate, style.colour, smooth=False)
    for axes, label in (
        (loss, "Loss"),
        (cosine, "Cosine (dashed: unmatched)"),
        (temperature, "1 / temperature"),
        (rate, "Learning rate (\N{MULTIPLICATION SIGN}10⁻³)"),
    ):
        axes.set_ylabel(label)
        _shade_phases(axes, history)
    rate.set_ylim(bottom=0)
    titles = ("Share kept", "Pairs per super-batch", "Between prototypes", "Prototype usage")
    titles += ("Contrastive loss", "Cosine of pairs", "Temperature, inverse", "Learning rate")
    for axes, letter, title in zip(figure.axes, "abcdefgh", titles, strict=False):
        title_panel(axes, letter, title)
        _count_steps(axes, curated if letter < "e" else curated[:0])
    handles = [Line2D([], [], color=style.colour, linewidth=1.2, label=style.name) for style in looks.values()]
    handles += [
        Patch(facecolor=colour, edgecolor=GREY, linewidth=0.4, label=f"curated: {word}")
        for phase, (word, colour) in _PHASES.items()
        if (history.phase == phase).any()
    ]
    add_legend(figure, handles, min(5, len(handles)))
    return figure


def _count_steps(axes: Axes, curated: pd.DataFrame) -> None:
    """Steps along x, from the first to the last of curation where these are given."""
    axes.set_xlabel("Step")
    axes.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
    axes.yaxis.get_major_formatter().set_useOffset(False)
    if len(curated):
        axes.set_xlim(curated.step.min() - 0.5, curated.step.max() + 0.5)


def _draw_series(
    axes: Axes, steps: pd.Series, values: pd.Series, colour: str, dashed: bool = False, smooth: bool = True
) -> None:
    """A line; a long noisy one is drawn thin, with its running mean on top."""
    values = pd.Series(np.asarray(values, dtype=float))
    if smooth and len(values) >= _SMOOTHED_FROM:
        axes.plot(steps, values, color=colour, linewidth=0.4, alpha=0.3, gid="raw")
        values = values.rolling(len(values) // 40, center=True, min_periods=1).mean()
    line, marker = (0, (3, 1.5)) if dashed else "-", "o" if len(values) <= 12 else ""
    axes.plot(steps, values, color=colour, linestyle=line, linewidth=1.1, marker=marker, markersize=2.4)


def _draw_spread(axes: Axes, curated: pd.DataFrame) -> None:
    _draw_series(axes, curated.step, curated.prototype_spread, ACCENT)
    axes.set_ylabel("Mean distance")


def _draw_batches(axes: Axes, curated: pd.DataFrame) -> None:
    counts = {"scored": (curated.pairs_scored, GREY), "trained": (curated.pairs_trained, ACCENT)}
    for word, (pairs, colour) in counts.items():
        axes.step(curated.step, pairs, where="mid", color=colour, linewidth=1.1, marker="o", markersize=2.4)
        if len(curated):
            top = (curated.step.iloc[len(curated) // 2], pairs.max())
            axes.annotate(word, top, (0, 3), textcoords="offset points", color=colour, ha="center")
    axes.set(ylabel="Pairs", ylim=(0, 1.3 * curated.pairs_scored.max() if len(curated) else None))


def _draw_usage(axes: Axes, curated: pd.DataFrame) -> None:
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
        add_colour_bar(image, axes, "Share of kept pairs (%)", aspect=25)
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


def _describe_training(history: pd.DataFrame, histories: dict[str, pd.DataFrame], seed: int = 0) -> str:
    curated = history[history.phase == "curate"]
    text = (
        "Training dynamics of the curated arm: share of each super-batch kept (a), pairs scored and trained on (b), "
        "mean distance between prototypes (c) and how the kept pairs spread over them (d) while curating; loss (e), "
        "cosine of matched and unmatched pairs (f), one over the temperature (g) and learning rate (h)"
    )
    text += " beside the other arms. " if len(histories) > 1 else ". "
    if len(history) >= _SMOOTHED_FROM:
        text += "Thin lines are steps, thick ones running means. "
    if len(curated):
        kept, scored = int(curated.pairs_trained.sum()), int(curated.pairs_scored.sum())
        text += f"{kept:,} of {scored:,} scored pairs were kept ({100 * kept / max(scored, 1):.1f} %). "
    return text + f"Seed {seed}, {len(history):,} steps; single run, no intervals."


def _conclude_training(_: pd.DataFrame, histories: dict[str, pd.DataFrame]) -> str:
    ends = {arm: one.loss.tail(max(1, len(one) // 10)).mean() for arm, one in histories.items()}
    return f"Loss at the end: {'; '.join(f'{short_name(arm)} {end:.3f}' for arm, end in ends.items())}."


def _select_prototypes(history: pd.DataFrame, ledger: pd.DataFrame) -> tuple:
    """Usage and spread by step while curating; the curated steps whole, the churn of decisions, and how many pairs.

    Churn is drawn where the ledger has several epochs.
    """
    curated = require_rows(history[history.phase == "curate"], "curation steps").reset_index(drop=True)
    return curated[["step", "usage", "prototype_spread"]], curated, measure_churn(ledger), ledger.image_id.nunique()


def _list_panels(curated: pd.DataFrame, churn: pd.DataFrame) -> dict[str, str]:
    """The letters of the panels there are numbers for."""
    assigned = set(_ASSIGNMENT) <= set(curated) and curated[list(_ASSIGNMENT)].notna().any(axis=None)
    there = {"usage": True, "spread": True, "assignment": assigned, "churn": len(churn)}
    return dict(zip([panel for panel, numbers in there.items() if numbers], "abcd", strict=False))


def _plot_prototypes(_: pd.DataFrame, curated: pd.DataFrame, churn: pd.DataFrame, pairs: int) -> Drawing:
    drawn = {
        "usage": (_draw_usage, "Prototype usage"),
        "spread": (_draw_spread, "Between prototypes"),
        "assignment": (_draw_assignment, "Assignment probability"),
    }
    letters = _list_panels(curated, churn)
    figure = new_figure(height_mm=60)
    for axes, (panel, letter) in zip(figure.subplots(1, len(letters)), letters.items(), strict=True):
        if panel == "churn":
            _draw_churn(axes, churn)
            title_panel(axes, letter, "Churn")
        else:
            draw, title = drawn[panel]
            draw(axes, curated)
            title_panel(axes, letter, title)
            _count_steps(axes, curated)
    return figure


def _draw_assignment(axes: Axes, curated: pd.DataFrame) -> None:
    low, high = (curated[name].astype(float) for name in _ASSIGNMENT)
    axes.fill_between(curated.step, low, high, color=PALE, linewidth=0)
    for values, name, colour, aside in ((high, "largest", ACCENT, 4), (low, "smallest", SEQUENCE[1], -9)):
        _draw_series(axes, curated.step, values, colour)
        start = (curated.step.iloc[0], values.iloc[0])
        axes.annotate(name, start, (2, aside), textcoords="offset points", fontsize=6)
    axes.set(ylim=(0, 1), ylabel="Probability")


def _draw_churn(axes: Axes, churn: pd.DataFrame) -> None:
    series = {
        "differ": ("differ", INK, "D"),
        "readmitted_share": ("re-admitted", SEQUENCE[1], "o"),
        "newly_dropped_share": ("newly dropped", ACCENT, "s"),
    }
    for column, (name, colour, marker) in series.items():
        axes.plot(churn.epoch, 100 * churn[column], color=colour, marker=marker, markersize=3, label=name, gid=column)
    axes.set(xlim=(churn.epoch.min() - 0.5, churn.epoch.max() + 0.5), xlabel="Epoch", ylabel="Share of kept pairs (%)")
    axes.set_ylim(0, max(1.0, 125 * churn[list(series)].max(axis=None)))
    axes.legend(loc="lower left", handlelength=1.2)
    # Of one epoch or two, a locator would mark halves.
    axes.set_xticks(churn.epoch[:: -(-len(churn) // 6)])


def _describe_prototypes(_: pd.DataFrame, curated: pd.DataFrame, churn: pd.DataFrame, pairs: int, seed: int = 0) -> str:
    said = {
        "usage": "how the kept pairs spread over the prototypes",
        "spread": "mean distance between two prototypes",
        "assignment": "largest and smallest probability with which a pair is assigned to a prototype",
        "churn": (
            "decisions that differ from those of the epoch before: share of the pairs kept in either epoch that were "
            "not kept in both, re-admitted pairs among those kept now, newly dropped ones among those kept before"
        ),
    }
    text = " ".join(f"{letter}, {said[panel]}." for panel, letter in _list_panels(curated, churn).items())
    changed = "One epoch of curation, so there is no churn to show."
    if len(churn):
        last = churn.iloc[-1]
        changed = f"From epoch {int(last.epoch) - 1} to {int(last.epoch)}, {100 * last.differ:.1f} % differ, over "
        changed += f"{int(last.pairs):,} pairs."
    return (
        f"Prototypes while curating. {text} {changed} n = {pairs:,} pairs, {len(curated):,} steps, seed {seed}; single "
        "run, no intervals."
    )


def _conclude_prototypes(_: pd.DataFrame, curated: pd.DataFrame, churn: pd.DataFrame, pairs: int) -> str:
    first, last = curated.prototype_spread.iloc[[0, -1]]
    text = f"The mean distance between prototypes goes from {first:.3f} to {last:.3f} in {len(curated):,} steps"
    if len(churn):
        return f"{text}; in the last epoch {100 * churn.differ.iloc[-1]:.1f} % of the decisions changed."
    return f"{text}; one epoch of curation has no churn."


training_dynamics = Figure(
    "training_dynamics", _select_training, _plot_training, _describe_training, _conclude_training
)
prototype_dynamics = Figure(
    "prototype_dynamics", _select_prototypes, _plot_prototypes, _describe_prototypes, _conclude_prototypes
)
