"""Pretraining on images alone: whether it trains or collapses, and what curation is worth to it."""

from collections.abc import Mapping
from dataclasses import replace

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Drawing
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from chexstudy.cohort.prevalence import TIERS
from chexstudy.evaluation.adaptation.run import SMALL_LESIONS
from chexstudy.evaluation.scores import MACRO
from chexstudy.experiments.self_supervised_arms import (
    ALL_SOURCES,
    DIFFERENCE,
    OF_SOURCE,
    RESOLUTION,
    SECONDS,
    SOURCE,
    SOURCE_DIFFERENCE,
    SUPERVISED,
    TASK,
    VARIANT,
    name_source,
)
from chexstudy.experiments.small_lesions import ATTENTION, GAIN, LARGER_LESIONS, VARIANTS
from chexstudy.plots.adaptation import HEADS, name_head
from chexstudy.plots.figure import Figure
from chexstudy.plots.forest import (
    Estimate,
    Group,
    add_arm_legend,
    draw_estimate,
    draw_values_and_differences,
    forest_height_mm,
    level_groups,
    list_estimates,
)
from chexstudy.plots.looks import ACCENT, GREY, SEQUENCE, ArmStyle, arm_style
from chexstudy.plots.measurements import interval, prefer_data_set, require_rows, select_rows, summarise_seeds
from chexstudy.plots.style import add_legend, new_figure, title_panel
from chexstudy.plots.words import describe_interval, name_data_set, write_row
from chexstudy.pretraining.arms.definitions import split_name
from chexstudy.pretraining.self_supervision.collapse import Verdict
from chexstudy.results import OVER_SEEDS, join_rows

_NAMES = {
    "untrained": ("Before training", GREY),
    "full": ("All images", "#222222"),
    "random_same_compute": ("All images, same compute", SEQUENCE[2]),
    "random_same_data": ("Random images", SEQUENCE[1]),
    "curated": ("Published bands", "#D55E00"),
    "by_budgeted": ("Budgeted bands", SEQUENCE[4]),
    "by_hierarchical": ("Hierarchical k-means", SEQUENCE[3]),
    "by_semdedup": ("SemDeDup", SEQUENCE[6]),
    f"by_{ALL_SOURCES}": ("All sources", "#222222"),
}
# What is watched, with the words over its panel; those that a history lacks are not drawn.
_WATCHED = {
    "crop_loss": "Loss on crops",
    "patch_loss": "Loss on patches",
    "row_entropy": "Entropy, a target",
    "mean_entropy": "Entropy, mean target",
    "prototypes_used": "Prototypes used",
    "effective_rank": "Effective rank of [CLS]",
    "mean_cosine": "Cosine of two images",
    "gradient_norm": "Norm of the gradient",
    "knn_auroc": "kNN AUROC of [CLS]",
    "knn_auroc_patches": "kNN AUROC of patches",
}
_PANELS_A_ROW = 4
_AUROC = ("AUROC, all findings", "Difference in AUROC")
_FEW = 12  # looks, each of which gets a mark


def style_encoder(arm: str, variant: str) -> ArmStyle:
    """The look of an arm on images alone, or of a contrastive one beside them."""
    if variant == OF_SOURCE and arm not in _NAMES:
        return ArmStyle(f"{arm.removeprefix('by_').replace('_', ' ')} alone", SEQUENCE[1], "o")
    if variant not in (VARIANT, OF_SOURCE):
        plain = arm_style(arm)
        return ArmStyle(f"Image and text: {plain.name.lower()}", plain.colour, "D")
    name, colour = _NAMES.get(arm, (arm_style(arm).name, SEQUENCE[5]))
    return ArmStyle(name, colour, "o")


def _select_training(histories: Mapping[str, pd.DataFrame], verdicts: Mapping[str, Verdict]) -> tuple:
    """What was watched, one row an arm and step that was watched; the whole histories, and how each ended."""
    columns = ["step", "phase", *(name for name in _WATCHED if any(name in one for one in histories.values()))]
    tables = [one.reindex(columns=columns).assign(arm=arm) for arm, one in histories.items()]
    rows = require_rows(pd.concat(tables, ignore_index=True), "training steps") if tables else pd.DataFrame()
    return require_rows(rows.dropna(subset=["effective_rank"]), "watched steps"), histories, verdicts


def _plot_training(rows: pd.DataFrame, histories: Mapping[str, pd.DataFrame], _: Mapping[str, Verdict]) -> Drawing:
    watched = [name for name in _WATCHED if name in rows and rows[name].notna().any()]
    lines = -(-len(watched) // _PANELS_A_ROW)
    figure = new_figure(height_mm=46 * lines + 10)
    grid = figure.subplots(lines, _PANELS_A_ROW, squeeze=False).ravel()
    for axes, name, letter in zip(grid, watched, "abcdefghijkl", strict=False):
        for arm, history in histories.items():
            seen = history.reindex(columns=["step", name]).dropna()
            style = style_encoder(*split_name(arm))
            marker = "o" if len(seen) < _FEW else ""
            axes.plot(seen.step, seen[name], color=style.colour, linewidth=0.9, marker=marker, markersize=2.4, gid=arm)
        axes.set_xlabel("Step")
        axes.xaxis.set_major_locator(MaxNLocator(nbins=4, integer=True))
        axes.margins(x=0.01)
        _bound(axes, name)
        title_panel(axes, letter, _WATCHED[name])
    for unused in grid[len(watched) :]:
        unused.set_axis_off()
    looks = [style_encoder(*split_name(arm)) for arm in histories]
    add_legend(figure, [Line2D([], [], color=one.colour, label=one.name) for one in looks], min(4, len(looks)))
    return figure


def _bound(axes: Axes, name: str) -> None:
    """Shares and norms are seen from zero, so that a collapse is one to the eye."""
    if name in ("row_entropy", "mean_entropy", "prototypes_used"):
        axes.set_ylim(0, 1.05)
    if name == "gradient_norm":
        axes.set_yscale("log")
    if name == "effective_rank":
        axes.set_ylim(bottom=0)


def _describe_training(rows: pd.DataFrame, histories: Mapping[str, pd.DataFrame], _, seed: int = 0) -> str:
    return (
        "Self-supervised training, step by step: the losses, and what tells a collapse, which losses do not. "
        "Entropies are shares of that of equal probabilities: a target says nothing at 1, and the mean target falls "
        "where few prototypes take everything. Prototypes used, effective rank (RankMe) and cosine are of the images "
        "of one step, as the teacher sees them. kNN: neighbours among training images answer for validation. "
        f"Seed {seed}, {len(histories)} trainings of up to "
        f"{int(rows.step.max()) + 1:,} steps, those of the common warm-up included; no intervals."
    )


def _conclude_training(_: pd.DataFrame, __, verdicts: Mapping[str, Verdict]) -> str:
    return "\n".join(f"{style_encoder(*split_name(arm)).name}: {verdict}" for arm, verdict in verdicts.items())


def _select_arms(results: pd.DataFrame) -> tuple:
    """Macro AUROC of every encoder by head, and its differences from random images; on the preferred test set."""
    rows = prefer_data_set(require_rows(select_rows(results, TASK, metric="auroc", finding=MACRO), "judged encoders"))
    wanted = {"metric": "auroc_difference", "finding": MACRO, "reference": "random_same_data"}
    return rows, select_rows(results, DIFFERENCE, data_set=rows.data_set.iloc[0], **wanted)


def _plot_arms(rows: pd.DataFrame, differences: pd.DataFrame) -> Drawing:
    values, minus = {}, {}
    for key in order_encoders(rows):
        style = style_encoder(*key)
        values[key] = Group(style.name, _list_heads(_of_encoder(rows, key), style))
        minus[key] = Group("", _list_heads(_of_encoder(differences, key), style))
    return _draw_beside(values, minus, _AUROC, {"a": "By head", "b": "Minus random images"}, 0.5)


def _draw_beside(values: dict, beside: dict, labels: tuple[str, str], titles: dict, chance=None, **options) -> Drawing:
    """Forests of two measures, line by line beside each other."""
    figure = new_figure(height_mm=forest_height_mm(level_groups(list(values.values()))) + 18)
    draw_values_and_differences(figure, values, beside, labels, titles, chance, **options)
    for axes in figure.axes[1:]:
        axes.set_yticklabels([])
    return figure


def _list_heads(rows: pd.DataFrame, style: ArmStyle) -> list[Estimate]:
    return list_estimates(rows, "head", {head: replace(style, name=_name_probe(head)) for head in HEADS})


def _name_probe(head: str) -> str:
    """A tuned encoder is the supervised one."""
    return "tuned whole on labels" if head == SUPERVISED else name_head(head)


def _of_encoder(rows: pd.DataFrame, key: tuple[str, str]) -> pd.DataFrame:
    return rows[(rows.arm == key[0]) & (rows.variant == key[1])]


def order_encoders(rows: pd.DataFrame) -> list[tuple[str, str]]:
    """Arms and variants among rows in the order of figures, contrastive ones last."""
    known = list(_NAMES)
    found = set(rows[["arm", "variant"]].itertuples(index=False, name=None))
    return sorted(found, key=lambda one: (one[1] != VARIANT, known.index(one[0]) if one[0] in known else 99, one))


def _describe_arms(rows: pd.DataFrame, differences: pd.DataFrame) -> str:
    beside = bool((rows.variant != VARIANT).any()) * (
        " Beside them contrastive encoders of the study, of another architecture, which saw the reports too."
    )
    return (
        "Encoders pretrained on images alone, judged by heads on frozen features: before training; on all images; on "
        f"all until the curated arm's operations are spent; on as many images as the published rule keeps.{beside} "
        f"{'b, paired by patient and seed. ' if len(differences) else ''}" + describe_interval(rows)
    )


def _conclude_arms(rows: pd.DataFrame, differences: pd.DataFrame) -> str:
    summary = summarise_seeds(rows[rows["head"] != SUPERVISED])
    best = summary.loc[summary.value.idxmax()]
    text = f"The best frozen encoder ({name_data_set(best.data_set)}): {style_encoder(best.arm, best.variant).name} by "
    text += f"{name_head(best['head'])}, {write_row(best)}"
    found = summarise_seeds(differences)
    clear = found[(found.ci_low > 0) | (found.ci_high < 0)] if len(found) else found
    words = [
        f"{style_encoder(row.arm, row.variant).name} by {name_head(row.head)} {write_row(row, '+.3f')}"
        for row in clear.itertuples()
    ]
    return f"{text}; apart from random images at the same head: {', '.join(words) or 'none'}."


def tabulate_encoders(results: pd.DataFrame, metric: str = "auroc") -> pd.DataFrame:
    """Means over seeds with intervals as text, and what training took: a row a data set, encoder and head."""
    rows = select_rows(results, TASK, metric=metric, finding=[MACRO, *TIERS], seed=OVER_SEEDS)
    if rows.empty:
        return pd.DataFrame()
    order = {style_encoder(*key).name: place for place, key in enumerate(order_encoders(rows))}
    rows = rows.assign(
        cell=[write_row(row) for row in rows.itertuples()],
        data_set=rows.data_set.map(name_data_set),
        encoder=[style_encoder(row.arm, row.variant).name for row in rows.itertuples()],
        head=rows["head"].map(_name_probe),
        TFLOP=(rows.flops / 1e12).round(2),
    )
    table = rows.pivot(index=["data_set", "encoder", "head", "TFLOP"], columns="finding", values="cell")
    table = table.assign(n=rows[rows.finding == MACRO].groupby(["data_set", "encoder", "head", "TFLOP"]).n.first())
    table = table.sort_index(level="encoder", key=lambda names: names.map(order), sort_remaining=False)
    return table[[group for group in (MACRO, *TIERS, "n") if group in table]]


def _select_sources(results: pd.DataFrame) -> tuple:
    """Macro AUROC of every encoder by test set and head, and its differences from the one that saw all sources."""
    rows = select_rows(results, SOURCE, metric="auroc", finding=MACRO)
    require_rows(rows, "training images of two sources; -p data_by view takes views for sources")
    wanted = {"metric": "auroc_difference", "finding": MACRO, "reference": f"by_{ALL_SOURCES}"}
    return rows, select_rows(results, SOURCE_DIFFERENCE, **wanted)


def _plot_sources(rows: pd.DataFrame, differences: pd.DataFrame) -> Drawing:
    values, minus = {}, {}
    for data_set in sorted(set(rows.data_set)):
        own_source = name_source(data_set.partition("/")[0])
        for key in order_encoders(rows):
            style = style_encoder(*key)
            if key[0] == own_source:
                style = ArmStyle(f"{style.name}, the test's own", ACCENT, "D")
            one, other = (_of_encoder(table[table.data_set == data_set], key) for table in (rows, differences))
            values[data_set, key] = Group(f"{name_data_set(data_set)}: {style.name}", _list_heads(one, style))
            minus[data_set, key] = Group("", _list_heads(other, style))
    titles = {"a": "By test set, encoder and head", "b": "Minus all sources"}
    return _draw_beside(values, minus, _AUROC, titles, 0.5)


def _describe_sources(rows: pd.DataFrame, differences: pd.DataFrame) -> str:
    return (
        "Pretraining data: encoders that learned from the training images of one source alone, or from as many of all "
        "sources, in as many steps from one start, and that start. Heads are fitted to the labels of all sources and "
        "judged on each one's test; diamonds: the encoder has seen images of that source alone, of other patients. "
        f"{'b, paired by patient and seed. ' if len(differences) else ''}" + describe_interval(rows)
    )


def _conclude_sources(_: pd.DataFrame, differences: pd.DataFrame) -> str:
    trained = differences[differences.variant == OF_SOURCE]
    words = [
        f"{style_encoder(row.arm, row.variant).name} on {name_data_set(row.data_set)} by {name_head(row.head)} "
        f"{write_row(row, '+.3f')}"
        for row in summarise_seeds(trained).itertuples()
        if row.ci_low > 0 or row.ci_high < 0
    ]
    return f"One source minus all, apart from zero: {'; '.join(words) or 'none'}."


def _select_lesions(results: pd.DataFrame) -> tuple:
    """Gains in AUROC over the linear probe by encoder, lesion size and head; and attention beyond the mean maps."""
    gains = select_rows(results, GAIN, metric="auroc_difference", reference="linear")
    gains = prefer_data_set(require_rows(gains, "lesions of known size"))
    wanted = {"metric": "mass_inside_over_mean_map", "data_set": gains.data_set.iloc[0]}
    seen = select_rows(results, ATTENTION, **wanted)
    return join_rows(gains, seen), gains, seen


def _plot_lesions(_: pd.DataFrame, gains: pd.DataFrame, seen: pd.DataFrame) -> Drawing:
    groups, marks = {}, {}
    for key in order_encoders(gains):
        for size in (SMALL_LESIONS, LARGER_LESIONS):
            one, other = (_of_encoder(rows[rows.finding == size], key) for rows in (gains, seen))
            if one.empty:
                continue
            groups[key, size] = Group(f"{style_encoder(*key).name}: {size}", _list_places(one))
            marks[key, size] = Group("", _list_places(other))
    titles = {"a": "Minus the linear probe", "b": "Inside, beyond the mean map"}
    return _draw_beside(groups, marks, ("Difference in AUROC", "Share of the attention"), titles, reference=0.0)


def _list_places(rows: pd.DataFrame) -> list[Estimate]:
    found = sorted(rows.itertuples(), key=lambda row: ["", *VARIANTS].index(row.setting))
    return [Estimate(name_head(row.head, row.setting), interval(row), HEADS[row.head]) for row in found]


def _describe_lesions(_: pd.DataFrame, gains: pd.DataFrame, seen: pd.DataFrame, small: float) -> str:
    cases = seen.drop_duplicates("finding").set_index("finding").n
    return (
        f"Heads that look at places, on findings whose median lesion covers less than {small:.1%} of the image and on "
        "the others. a, AUROC minus that of the published linear probe on the same frozen encoder. b, how much more of "
        "the attention lies inside the outlines of the finding than of the head's own mean map over all images, which "
        f"knows nothing of this one ({', '.join(f'{count:,} cases of {size}' for size, count in cases.items())}). "
        "Middle: the tokens of the second of four blocks alone; last: of the last alone; learnable queries: attention "
        "pooling. " + describe_interval(gains)
    )


def _conclude_lesions(_: pd.DataFrame, gains: pd.DataFrame, __: pd.DataFrame) -> str:
    words = [
        f"{name_head(row.head, row.setting)} on {style_encoder(row.arm, row.variant).name} {write_row(row, '+.3f')}"
        for row in gains[gains.finding == SMALL_LESIONS].itertuples()
    ]
    return f"AUROC on small lesions minus the linear probe: {'; '.join(words) or 'no finding has small ones here'}."


def _select_resolution(results: pd.DataFrame) -> pd.DataFrame:
    """Macro AUROC and seconds an image by the side in pixels, over seeds, on the preferred test set."""
    rows = select_rows(results, RESOLUTION, seed=OVER_SEEDS, finding=[MACRO, "all"], metric=["auroc", SECONDS])
    rows = prefer_data_set(require_rows(rows, "encoders that looked at several sizes"))
    return rows.assign(side=rows.setting.astype(int)).sort_values("side", ignore_index=True)


def _plot_resolution(rows: pd.DataFrame) -> Drawing:
    figure = new_figure(height_mm=62, width_mm=134)
    panels = figure.subplots(1, 2)
    for key in order_encoders(rows):
        style, own = style_encoder(*key), _of_encoder(rows, key)
        for axes, metric, scale in zip(panels, ("auroc", SECONDS), (1, 1000), strict=True):
            of_metric = own[own.metric == metric]
            axes.plot(of_metric.side, scale * of_metric.value, color=style.colour, linewidth=1.0)
            for row in of_metric.itertuples():
                draw_estimate(axes, row.side, interval(row, scale), style, vertical=True)
    for axes, label, letter in zip(panels, ("AUROC, all findings", "Milliseconds an image"), "ab", strict=True):
        axes.set(xlabel="Side in pixels", ylabel=label, xticks=sorted(set(rows.side)))
        title_panel(axes, letter, "Linear probe" if letter == "a" else "What an image takes")
    panels[1].set_ylim(bottom=0)
    add_arm_legend(figure, [style_encoder(*key) for key in order_encoders(rows)])
    return figure


def _describe_resolution(rows: pd.DataFrame, trained_at: int = 0) -> str:
    return (
        "Resolution: a, the linear probe on frozen features of an encoder that looks at images of each side, its "
        f"positions interpolated; it was trained at {trained_at} pixels only. b, what an image takes. "
        + describe_interval(rows[rows.metric == "auroc"])
    )


def _conclude_resolution(rows: pd.DataFrame) -> str:
    words = []
    for key in order_encoders(rows):
        own = _of_encoder(rows, key)
        own = own[own.metric == "auroc"]
        best = own.loc[own.value.idxmax()]
        words.append(f"{style_encoder(*key).name} at {best.side} pixels, {write_row(best)}")
    return f"The best side by the linear probe: {'; '.join(words)}."


self_supervised_training = Figure(
    "self_supervised_training", _select_training, _plot_training, _describe_training, _conclude_training
)
self_supervised_resolution = Figure(
    "self_supervised_resolution", _select_resolution, _plot_resolution, _describe_resolution, _conclude_resolution
)
self_supervised_sources = Figure(
    "self_supervised_sources", _select_sources, _plot_sources, _describe_sources, _conclude_sources
)
self_supervised_lesions = Figure(
    "self_supervised_lesions", _select_lesions, _plot_lesions, _describe_lesions, _conclude_lesions
)
self_supervised_arms = Figure("self_supervised_arms", _select_arms, _plot_arms, _describe_arms, _conclude_arms)
