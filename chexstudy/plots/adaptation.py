"""What frozen encoders are worth once labels are given: heads by prevalence, label efficiency, components of GLoRI."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
from matplotlib.figure import Figure as Drawing
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from chexstudy.cohort.prevalence import TIERS
from chexstudy.evaluation.adaptation import fine_tuning
from chexstudy.evaluation.adaptation.run import ADAPTATION, ADAPTATION_DIFFERENCE
from chexstudy.evaluation.scores import MACRO
from chexstudy.plots.figure import Figure
from chexstudy.plots.forest import Estimate, Group, draw_estimate, draw_forest, forest_height_mm, level_groups
from chexstudy.plots.measurements import (
    NothingToDraw,
    describe_interval,
    name_data_set,
    preferred_data_set,
    require_rows,
    seed_values,
    select_rows,
    short_name,
    summarise_seeds,
)
from chexstudy.plots.style import (
    GREY,
    INK,
    SEQUENCE,
    ArmStyle,
    add_legend,
    arm_style,
    new_figure,
    order_arms,
    title_panel,
)
from chexstudy.results import OVER_SEEDS, join_rows, write_interval

_METRIC_NAMES = {"auroc": "AUROC", "auprc": "Average precision"}
_GROUP_NAMES = {MACRO: "All findings", "head": "Head", "medium": "Medium", "tail": "Tail"}
_HEAD_NAMES = {
    "linear": "linear probe",
    "logistic": "logistic regression",
    "neighbours": "nearest neighbours",
    "glori_v1": "GLoRI, version 1",
    "glori_v2": "GLoRI, version 2",
    "bias_only": "biases tuned",
    "low_rank": "low-rank updates",
    "full": "all weights tuned",
}
_SHORT_NAMES = {"glori_v1": "GLoRI v1", "glori_v2": "GLoRI v2", "linear": "probe", "logistic": "logistic"}
_HEAD_STYLES = {
    "linear": ArmStyle("linear probe", "#0072B2", "s"),
    "logistic": ArmStyle("logistic regression", "#56B4E9", "^"),
    "neighbours": ArmStyle("nearest neighbours", "#8A8A8A", "v"),
    "glori_v1": ArmStyle("GLoRI, version 1", "#E69F00", "o"),
    "glori_v2": ArmStyle("GLoRI, version 2", "#D55E00", "D"),
    "bias_only": ArmStyle("biases tuned", "#CC79A7", "<"),
    "low_rank": ArmStyle("low-rank updates", "#7A5195", ">"),
    "full": ArmStyle("all weights tuned", "#222222", "P"),
}


def name_head(head: str, variant: str = "") -> str:
    """A head as words: ``glori_v2`` and ``no_pyramid`` become ``GLoRI, version 2, no pyramid``."""
    name = _HEAD_NAMES.get(head, head.replace("_", " "))
    return name + (f", {variant.replace('_', ' ')}" if variant else "")


def _head_style(head: str) -> ArmStyle:
    return _HEAD_STYLES.get(head, ArmStyle(name_head(head), SEQUENCE[0], "o"))


def _select_whole(results: pd.DataFrame, **wanted: object) -> pd.DataFrame:
    """Rows of the heads themselves, given all the labels."""
    return select_rows(results, ADAPTATION, variant="", setting="", **wanted)


# --- X2: heads by prevalence -----------------------------------------------------------------------------------------


def select_heads(results: pd.DataFrame, data_set: str | None = None) -> pd.DataFrame:
    """The rows of the figure: AUROC and average precision of every encoder and head, macro and by tier.

    Args:
        results: rows of the results table.
        data_set: one of those measured; without it, the rare-enriched test where there is one.
    """
    rows = _select_whole(results, metric=["auroc", "auprc"], finding=[MACRO, *TIERS])
    require_rows(rows, "adapted encoders")
    return rows[rows.data_set == (data_set or preferred_data_set(rows))].reset_index(drop=True)


def plot_heads(results: pd.DataFrame, data_set: str | None = None) -> Drawing:
    """Every head on every encoder: average precision and AUROC, macro and by prevalence (X2 of CheXFound).

    Args:
        results, data_set: as in `select_heads`.
    """
    rows = select_heads(results, data_set)
    summary, arms = summarise_seeds(rows), order_arms(rows.arm)
    heads = sorted(set(rows["head"]), key=_place_head)
    groups = [group for group in (MACRO, *TIERS) if (rows.finding == group).any()]
    per_column = {
        (metric, group): [_group_heads(rows, summary, arm, arms, heads, metric, group) for arm in arms]
        for metric in ("auroc", "auprc")
        for group in groups
    }
    heights = level_groups(*per_column.values())
    figure = new_figure(height_mm=2 * (15 + forest_height_mm(heights)))
    axes = figure.subplots(2, len(groups), squeeze=False)
    letters = iter("abcdefgh")
    for row, metric in enumerate(("auroc", "auprc")):
        for column, group in enumerate(groups):
            panel = axes[row, column]
            draw_forest(panel, per_column[metric, group], heights, heading_at_axes=column > 0)
            if column:
                panel.set_yticklabels([])
                for text in panel.texts:
                    text.set_visible(False)
            panel.margins(x=0.08)
            panel.set_xlabel(_METRIC_NAMES[metric])
            title_panel(panel, next(letters), _GROUP_NAMES[group])
    return figure


def _place_head(head: str) -> tuple[int, str]:
    """Heads in the order of all figures: simple ones first, fine-tuning last."""
    known = list(_HEAD_NAMES)
    return (known.index(head) if head in known else len(known)), head


def _group_heads(rows, summary, arm, arms, heads, metric, group) -> Group:
    chosen = summary[(summary.arm == arm) & (summary.metric == metric) & (summary.finding == group)].set_index("head")
    estimates = []
    for head in heads:
        if head in chosen.index:
            row = chosen.loc[head]
            seeds = seed_values(rows, arm=arm, metric=metric, finding=group, head=head)
            estimates.append(Estimate(name_head(head), row.value, row.ci_low, row.ci_high, _head_style(head), seeds))
    return Group(arm_style(arm, arms).name, estimates)


def describe_heads(results: pd.DataFrame, data_set: str | None = None) -> str:
    rows = select_heads(results, data_set)
    return (
        "Heads on frozen encoders, and encoders tuned as a whole, by prevalence in training (head above 10 %, tail "
        "under 1 %). Upper row AUROC, lower row average precision. All choices were made on validation. "
        + describe_interval(rows)
    )


# --- differences by finding ------------------------------------------------------------------------------------------


def select_gains(results: pd.DataFrame, arm: str, first: str, second: str, data_set: str | None = None) -> pd.DataFrame:
    """Paired differences in AUROC between two heads on one encoder, a row a finding, largest first."""
    rows = select_rows(
        results, ADAPTATION_DIFFERENCE, arm=arm, head=first, variant="", reference=second, metric="auroc_difference"
    )
    require_rows(rows, f"comparison of {first} with {second} on {arm}")
    rows = rows[rows.data_set == (data_set or preferred_data_set(rows))]
    rows = rows[~rows.finding.isin([MACRO, *TIERS])] if rows.finding.nunique() > 1 else rows
    # Means over other groups of findings have no positives of their own.
    rows = rows[rows.positives >= 0] if (rows.positives >= 0).any() else rows
    order = summarise_seeds(rows).sort_values("value", ascending=False).finding
    return rows.set_index("finding").loc[list(order)].reset_index()


def plot_gains(
    results: pd.DataFrame, arm: str, pairs: Sequence[tuple[str, str]], sizes: pd.Series, data_set: str | None = None
) -> Drawing:
    """What a head gains over another on each finding, findings with small lesions marked.

    Args:
        results: rows of the results table.
        arm: whose encoder.
        pairs: heads compared, one panel each.
        sizes: median share of the image that a finding's lesions cover, by finding, as far as known; orders findings.
        data_set: as in `select_heads`.
    """
    selected = [select_gains(results, arm, *pair, data_set) for pair in pairs]
    findings = list(dict.fromkeys(selected[0].finding))
    if len(sizes):
        findings = sorted(findings, key=lambda finding: sizes.get(finding, np.inf))
    figure = new_figure(height_mm=20 + 4.2 * len(findings))
    axes = figure.subplots(1, len(pairs), sharey=True, squeeze=False)[0]
    for panel, rows, (first, second), letter in zip(axes, selected, pairs, "abcd", strict=False):
        summary = summarise_seeds(rows).set_index("finding")
        for place, finding in enumerate(findings):
            if finding in summary.index:
                row = summary.loc[finding]
                draw_estimate(panel, row.value, place, row.ci_low, row.ci_high, _head_style(first))
        panel.axvline(0, color=INK, linewidth=0.6, zorder=1)
        panel.grid(axis="x", color="#ECECEC", linewidth=0.5)
        panel.set_xlabel("Difference in AUROC")
        # Four of these stand side by side.
        title_panel(
            panel, letter, f"{_SHORT_NAMES.get(first, first)} \N{MINUS SIGN} {_SHORT_NAMES.get(second, second)}"
        )
    axes[0].set_yticks(range(len(findings)), [_label_finding(finding, sizes) for finding in findings])
    axes[0].set_ylim(len(findings) - 0.4, -0.6)
    return figure


def _label_finding(finding: str, sizes: pd.Series) -> str:
    if not np.isfinite(sizes.get(finding, np.nan)):
        return finding
    return f"{finding} ({sizes[finding]:.1%})"


def describe_gains(
    results: pd.DataFrame, arm: str, pairs: Sequence[tuple[str, str]], sizes: pd.Series, data_set: str | None = None
) -> str:
    rows = pd.concat([select_gains(results, arm, *pair, data_set) for pair in pairs])
    order = (
        "ordered by how much of the image their lesions cover (median, in brackets)"
        if len(sizes)
        else "largest gain first"
    )
    return (
        f"What the first head gains over the second on each finding, encoder of the arm {arm_style(arm).name!r}, "
        f"findings {order}. Paired by patient and seed. " + describe_interval(rows)
    )


# --- X4, C5: label efficiency ----------------------------------------------------------------------------------------


def select_label_efficiency(results: pd.DataFrame, kind: str = "logistic", finding: str = MACRO) -> pd.DataFrame:
    """AUROC of every encoder by the share of the labels its head was given.

    Returns:
        Rows of the results table with ``share``, in (0, 1].
    """
    rows = select_rows(results, ADAPTATION, metric="auroc", finding=finding, head=kind, variant="")
    rows = rows.assign(share=[float(share or 1) for share in rows.setting])
    require_rows(rows[rows.share < 1], f"{kind} heads on shares of the labels")
    return rows[rows.data_set == preferred_data_set(rows)].reset_index(drop=True)


def plot_label_efficiency(results: pd.DataFrame, kind: str = "logistic", finding: str = MACRO) -> Drawing:
    """AUROC against the share of labels, a line an encoder, and paired differences at unequal shares (X4, C5).

    Args:
        results: rows of the results table.
        kind: the head.
        finding: ``macro``, a tier, or one finding.
    """
    rows = select_label_efficiency(results, kind, finding)
    arms = order_arms(rows.arm)
    differences = _select_claims(results, kind, finding, rows.data_set.iloc[0])
    figure = new_figure(height_mm=72)
    curves, claims = figure.subplots(1, 2, width_ratios=[1.1, 1])
    for arm in arms:
        style, own = arm_style(arm, arms), rows[rows.arm == arm]
        summary = summarise_seeds(own)
        summary = summary.assign(share=[float(share or 1) for share in summary.setting]).sort_values("share")
        # Moved apart a little, so that intervals of equal shares do not hide each other.
        x = summary.share * 1.05 ** (arms.index(arm) - (len(arms) - 1) / 2)
        curves.plot(x, summary.value, color=style.colour, linewidth=1.0, zorder=2)
        for place, row in zip(x, summary.itertuples(), strict=True):
            draw_estimate(curves, place, row.value, row.ci_low, row.ci_high, style, vertical=True)
    shares = sorted(set(rows.share))
    curves.set_xscale("log")
    curves.set_xticks(shares, [f"{share:.0%}" for share in shares])
    curves.minorticks_off()
    curves.grid(axis="y", color="#ECECEC", linewidth=0.5)
    curves.set_xlabel("Share of the labelled patients (log)")
    curves.set_ylabel(f"AUROC, {_GROUP_NAMES.get(finding, finding).lower()}")
    title_panel(curves, "a", "By share of the labels")
    groups = [Group("", [])]
    if len(differences):
        estimates = [
            Estimate(_word_claim(row), row.value, row.ci_low, row.ci_high, arm_style(row.arm))
            for row in summarise_seeds(differences).itertuples()
        ]
        groups = [Group("", estimates)]
    draw_forest(claims, groups, [len(groups[0].estimates)], reference=0.0)
    claims.set_xlabel("Difference in AUROC, same patients")
    claims.margins(x=0.08)
    title_panel(claims, "b", "Few labels against all")
    handles = [
        Line2D([], [], color=arm_style(a, arms).colour, marker=arm_style(a, arms).marker, label=arm_style(a, arms).name)
        for a in arms
    ]
    add_legend(figure, handles)
    return figure


def _select_claims(results, kind, finding, data_set) -> pd.DataFrame:
    wanted = {"metric": "auroc_difference", "finding": finding, "data_set": data_set, "head": kind}
    rows = select_rows(results, ADAPTATION_DIFFERENCE, **wanted)
    return rows[rows.setting != ""]


def _word_claim(row) -> str:
    """An arm with a share of the labels against another with all of them."""
    few, whole = arm_style(row.arm).name.lower(), arm_style(row.reference).name.lower()
    return f"{few}, {float(row.setting):.0%}\n\N{MINUS SIGN} {whole}, 100%"


def describe_label_efficiency(results: pd.DataFrame, kind: str = "logistic", finding: str = MACRO) -> str:
    rows = select_label_efficiency(results, kind, finding)
    return (
        f"Label efficiency of adaptation, {name_head(kind)} on frozen features, "
        f"{_GROUP_NAMES.get(finding, finding).lower()}. "
        "a, by the share of labelled patients, training and validation thinned alike, each seed with another draw. "
        "b, an encoder with few labels minus another with all of them. " + describe_interval(rows)
    )


# --- X8, X12 and losses: variants ------------------------------------------------------------------------------------


def select_variants(results: pd.DataFrame, arm: str, base: str, finding: str = MACRO) -> pd.DataFrame:
    """Paired differences of the variants of a head to the head itself, AUROC and average precision."""
    rows = _list_variants(results, arm, base, finding=finding)
    require_rows(rows, f"variants of {base} on {arm}")
    return rows[rows.data_set == preferred_data_set(rows)].reset_index(drop=True)


def _list_variants(results: pd.DataFrame, arm: str, base: str, **wanted: object) -> pd.DataFrame:
    rows = select_rows(results, ADAPTATION_DIFFERENCE, arm=arm, reference=base, **wanted)
    # Other heads on frozen features are held against the base, too, but are no variant of it.
    family = ["glori_v1", "glori_v2"] if base.startswith("glori") else [base, *fine_tuning.METHODS]
    return rows[rows["head"].isin(family)]


def plot_variants(results: pd.DataFrame, arm: str, base: str, findings: Sequence[str] = (MACRO, "tail")) -> Drawing:
    """What each part of a head is worth: variants minus the head, AUROC and average precision (X8 of CheXFound).

    Args:
        results: rows of the results table.
        arm: whose encoder.
        base: the head, for example ``glori_v2``.
        findings: groups shown, one column each.
    """
    findings = _list_groups(results, arm, base, findings)
    rows = {finding: select_variants(results, arm, base, finding) for finding in findings}
    pairs = set(rows[findings[0]][["head", "variant"]].itertuples(index=False, name=None))
    variants = sorted(pairs, key=lambda one: (_place_head(one[0])[0], one[1] != "", one))
    height = 16 + 4.6 * len(variants)
    figure = new_figure(height_mm=height)
    axes = figure.subplots(1, 2 * len(findings), sharey=True, squeeze=False)[0]
    panels = [(finding, metric) for finding in findings for metric in ("auroc", "auprc")]
    for panel, (finding, metric), letter in zip(axes, panels, "abcdefgh", strict=False):
        chosen = rows[finding][rows[finding].metric == f"{metric}_difference"]
        for row in summarise_seeds(chosen).itertuples():
            place = variants.index((row.head, row.variant))
            draw_estimate(panel, row.value, place, row.ci_low, row.ci_high, _head_style(row.head))
        panel.axvline(0, color=GREY, linewidth=0.6, zorder=1)
        panel.grid(axis="x", color="#ECECEC", linewidth=0.5)
        panel.set_xlabel(f"Difference in {'AUROC' if metric == 'auroc' else 'AP'}")
        panel.xaxis.set_major_locator(MaxNLocator(nbins=3, steps=[1, 2, 5, 10]))
        title_panel(panel, letter, _GROUP_NAMES.get(finding, finding))
    axes[0].set_yticks(range(len(variants)), [_word_variant(*variant, base) for variant in variants])
    axes[0].set_ylim(len(variants) - 0.4, -0.6)
    return figure


def _list_groups(results: pd.DataFrame, arm: str, base: str, findings: Sequence[str]) -> list[str]:
    """The groups of findings that could be compared: in a small test set no rare finding may be there."""
    own = _list_variants(results, arm, base)
    return [finding for finding in findings if (own.finding == finding).any()] or list(findings[:1])


def _word_variant(head: str, variant: str, base: str) -> str:
    return variant.replace("_", " ") if head == base and variant else name_head(head, variant)


def describe_variants(results: pd.DataFrame, arm: str, base: str, findings: Sequence[str] = (MACRO, "tail")) -> str:
    groups = _list_groups(results, arm, base, findings)
    rows = pd.concat([select_variants(results, arm, base, finding) for finding in groups])
    return (
        f"Variants minus {name_head(base)}, encoder of the arm {arm_style(arm).name!r}: right of the line the variant "
        "is better. AUROC and average precision (AP). Paired by patient and seed. " + describe_interval(rows)
    )


def tabulate_heads(results: pd.DataFrame, metric: str = "auroc") -> pd.DataFrame:
    """Means over seeds with 95 % intervals as text: one row a data set, encoder and head, one column a group."""
    rows = _select_whole(results, metric=metric, finding=[MACRO, *TIERS], seed=OVER_SEEDS)
    if rows.empty:
        return pd.DataFrame()
    cells = [f"{write_interval(row.value, row.ci_low, row.ci_high)}" for row in rows.itertuples()]
    table = rows.assign(cell=cells, data_set=rows.data_set.map(name_data_set)).pivot(
        index=["data_set", "arm", "head"], columns="finding", values="cell"
    )
    return table[[group for group in (MACRO, *TIERS) if group in table]]


def _best_of(rows: pd.DataFrame, metric: str) -> str:
    """The best mean over findings and whose it is."""
    summary = summarise_seeds(rows[(rows.metric == metric) & (rows.finding == MACRO)])
    row = summary.loc[summary.value.idxmax()]
    return f"{name_head(row['head'])} on {short_name(row.arm)} ({write_interval(row.value, row.ci_low, row.ci_high)})"


def state_heads(results: pd.DataFrame) -> list[str]:
    """The best head of each encoder on each test set over all findings, in sentences."""
    rows = _select_whole(results, metric="auroc", finding=MACRO)
    return [
        f"{name_data_set(data_set)}: best in macro AUROC is {_best_of(own, 'auroc')}, of {own['head'].nunique()} heads."
        for (data_set, _), own in rows.groupby(["data_set", "arm"])
    ]


def conclude_heads(results: pd.DataFrame) -> str:
    """The best head by each metric."""
    rows = select_heads(results)
    where = name_data_set(rows.data_set.iloc[0])
    best = "; ".join(f"in {_METRIC_NAMES[metric]} {_best_of(rows, metric)}" for metric in ("auroc", "auprc"))
    return f"The best head over all findings ({where}): {best}."


def conclude_gains(results: pd.DataFrame, arm: str, pairs: Sequence[tuple[str, str]], *_) -> str:
    """On how many findings each head gains or loses beyond its interval."""
    parts = []
    for first, second in pairs:
        summary = summarise_seeds(select_gains(results, arm, first, second))
        gained, lost = int((summary.ci_low > 0).sum()), int((summary.ci_high < 0).sum())
        parts.append(f"{name_head(first)} over {name_head(second)} gains on {gained} and loses on {lost}")
    return f"Of {len(summary)} findings {'; '.join(parts)}."


def conclude_label_efficiency(results: pd.DataFrame) -> str:
    """What few labels on the first encoder come to against all labels on the others."""
    rows = select_label_efficiency(results)
    claims = summarise_seeds(_select_claims(results, "logistic", MACRO, rows.data_set.iloc[0]))
    words = [
        f"{_word_claim(row).replace(chr(10), ' ')} {write_interval(row.value, row.ci_low, row.ci_high, '+.3f')}"
        for row in claims.itertuples()
    ]
    return f"AUROC with few labels against all: {'; '.join(words) or 'one encoder alone has no other to match'}."


def conclude_variants(results: pd.DataFrame, arm: str, base: str) -> str:
    """Which variants are beyond the head itself, in macro AUROC."""
    rows = select_variants(results, arm, base)
    summary = summarise_seeds(rows[rows.metric == "auroc_difference"])
    names = pd.Series([_word_variant(row.head, row.variant, base) for row in summary.itertuples()])
    better, worse = (", ".join(names[beyond]) or "none" for beyond in (summary.ci_low > 0, summary.ci_high < 0))
    return f"Against {name_head(base)}, of {len(summary)} variants better in macro AUROC: {better}; worse: {worse}."


heads = Figure("heads", select_heads, plot_heads, describe_heads, conclude_heads)


def _select_all_gains(results: pd.DataFrame, arm: str, pairs: Sequence[tuple[str, str]], _) -> pd.DataFrame:
    if not pairs:
        raise NothingToDraw("no heads were compared")
    return join_rows(*[select_gains(results, arm, *pair) for pair in pairs])


glori_gains = Figure(
    name="glori_gains",
    select=_select_all_gains,
    plot=plot_gains,
    describe=describe_gains,
    conclude=conclude_gains,
)
label_efficiency = Figure(
    name="label_efficiency",
    select=select_label_efficiency,
    plot=plot_label_efficiency,
    describe=describe_label_efficiency,
    conclude=conclude_label_efficiency,
)
glori_parts = Figure("glori_parts", select_variants, plot_variants, describe_variants, conclude_variants)
probe_variants = replace(glori_parts, name="probe_variants")
