"""What each quirk of the published curator changes: the published value of a switch against the corrected one.

Numbers are those of the project's notes on the paper and its public code. Measures are of kept sets and, where variants
were trained, of zero-shot classification; all are differences, corrected minus published, with seed paired with seed.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import pandas as pd

from chexstudy.evaluation.scores import MACRO
from chexstudy.experiments.curator_ablation import JACCARD, REFERENCE, average_seeds, subtract_reference
from chexstudy.experiments.trained_variants import ZERO_SHOT_DIFFERENCE
from chexstudy.results import OVER_SEEDS, write_interval

STREAM, TRAINED = "unchanging features", "training"
_QUIRK = ["quirk", "constant", "published", "corrected", "measured"]


@dataclass(frozen=True)
class Quirk:
    """One switch."""

    number: str  # of the project's notes
    constant: str  # of `CuratorConfig` or `PretrainingConfig`
    published: object  # its published value
    corrected: object  # the value that mends it
    # Of the trained settings, the one with the published value and the one with the corrected value, in pairs of which
    # one at most was trained.
    variants: tuple[tuple[str, str], ...] = ()

    @property
    def settings(self) -> tuple[str, str]:
        """The two settings on unchanging features."""
        return REFERENCE, f"{self.constant}={self.corrected}"


QUIRKS = (
    # The outlier band is dropped; and the share kept depends on batch and prototypes.
    Quirk("F1", "outlier_policy", "drop", "keep", ((REFERENCE, "outliers_kept"),)),
    Quirk("F2", "rule", "published", "budgeted", ((REFERENCE, "budgeted"),)),
    # First prototypes come from the first rows of the cohort, by a k-means that sees features not of unit norm.
    Quirk("F3", "warm_up_order", "first", "random"),
    Quirk("F4", "warm_up_features", "raw", "normalised"),
    # At its temperature balancing hardly balances; and the update of prototypes is balanced.
    Quirk("F5", "sinkhorn_epsilon", 0.5, 0.05),
    Quirk("F5", "assignment", "balanced", "nearest"),
    # Prototypes follow the kept pairs alone, by features from before the step.
    Quirk("F6", "update_features", "kept", "all"),
    Quirk("F6", "update_timing", "before_step", "after_step", ((REFERENCE, "after_step"),)),
    # The schedule's length changes with the subset.
    Quirk(
        *("F10", "schedule", "published", "hold_then_cosine"),
        (("schedule_published", REFERENCE), (REFERENCE, "schedule_held")),
    ),
)

# Quirks that change training or evaluation and not what is kept, and where each is decided.
ELSEWHERE = {
    "F7": "half precision, CLIP's image statistics, centre crop: `precision`, `image_normalisation`, `fit`",
    "F8": "register tokens are dropped: `drop_registers`",
    "F9": "a text is read off its last token: `text_pooling`",
    "F11": "texts are put together in another order at retrieval than in training: always as in training",
    "F12": "the temperature has no bound and is decayed: `logit_scale_max`, `decay_logit_scale`",
    "F13": "the gradient is divided by the number of devices: always the true gradient",
    "F14": "identical reports are negatives of each other: as published in the loss, not at retrieval",
}


def compare_quirks(
    stream: pd.DataFrame, trained: pd.DataFrame, zero_shot: pd.DataFrame, metrics: Mapping[str, str]
) -> pd.DataFrame:
    """Corrected minus published, quirk by quirk, of `measure_settings` and `measure_variants`, seeds put together, and
    `evaluate_variants` on one data set; ``metrics`` are measures of kept sets, and of which finding or tier.

    Gives ``quirk, constant, published, corrected``; ``measured``, on unchanging features or in training; ``metric,
    finding, value, ci_low, ci_high, seeds``, for what was measured and trained. The metric ``jaccard`` is no difference
    but the overlap of the two kept sets, ``auroc`` the change of the mean over findings. Intervals of kept sets are
    over seeds, that of AUROC over patients and seeds.
    """
    tables = []
    for quirk in QUIRKS:
        sources = [(STREAM, stream, quirk.settings), *((TRAINED, trained, pair) for pair in quirk.variants)]
        for measured, rows, (published, corrected) in sources:
            if not {published, corrected} <= set(rows.setting):
                continue
            found = [_compare_kept(rows, published, corrected, metrics)]
            if measured == TRAINED and len(zero_shot):
                found.append(_compare_zero_shot(zero_shot, published, corrected))
            place = {"quirk": quirk.number, "constant": quirk.constant, "measured": measured}
            place |= {"published": str(quirk.published), "corrected": str(quirk.corrected)}
            tables.append(pd.concat(found, ignore_index=True).assign(**place))
    return pd.concat(tables, ignore_index=True)[[*_QUIRK, "metric", "finding", "value", "ci_low", "ci_high", "seeds"]]


def _compare_kept(rows: pd.DataFrame, published: str, corrected: str, metrics: Mapping[str, str]) -> pd.DataFrame:
    overlap = rows[(rows.setting == (corrected if published == REFERENCE else published)) & (rows.metric == JACCARD)]
    overlap = average_seeds(overlap, ["metric", "finding"])
    overlap = overlap.assign(ci_low=overlap.ci_low.clip(lower=0.0), ci_high=overlap.ci_high.clip(upper=1.0))
    wanted = pd.DataFrame(metrics.items(), columns=["metric", "finding"])
    changes = wanted.merge(subtract_reference(rows[rows.setting.isin((published, corrected))], published))
    return pd.concat([overlap, changes[changes.value.notna()]], ignore_index=True)


def _compare_zero_shot(results: pd.DataFrame, published: str, corrected: str) -> pd.DataFrame:
    variant, sign = (corrected, 1) if published == REFERENCE else (published, -1)
    rows = results[
        (results.task == ZERO_SHOT_DIFFERENCE)
        & (results.variant == variant)
        & (results.seed == OVER_SEEDS)
        & (results.metric == "auroc_difference")
        & (results.finding == MACRO)
    ]
    low, high = (rows.ci_low, rows.ci_high) if sign == 1 else (-rows.ci_high, -rows.ci_low)
    seeds = results.seed[results.seed != OVER_SEEDS].nunique()
    return rows.assign(metric="auroc", value=sign * rows.value, ci_low=low, ci_high=high, seeds=seeds)


def describe_quirks(table: pd.DataFrame) -> str:
    """What `compare_quirks` found, in words: differences whose interval excludes zero, quirk by quirk."""
    changes = table[(table.metric != JACCARD) & table.ci_low.notna()]
    if len(changes) == 0:
        return "There are no intervals: one seed says nothing of how far seeds differ."
    clear = changes[(changes.ci_low > 0) | (changes.ci_high < 0)]
    lines = [
        f"{len(clear)} of {len(changes)} differences have an interval that excludes zero; about "
        f"{0.05 * len(changes):.0f} would if no quirk changed anything."
    ]
    for (number, constant, measured), rows in clear.groupby(["quirk", "constant", "measured"], sort=False):
        found = [f"{row.metric.replace('_', ' ')} {row.value:+.3f}" for row in rows.itertuples()]
        lines.append(f"{number}, {constant} ({measured}): {', '.join(found)}.")
    return "\n".join(lines)


def lay_out_quirks(table: pd.DataFrame) -> pd.DataFrame:
    """`compare_quirks` for the eye: a row a quirk, a column a measure, cells such as ``+0.012 [-0.003, +0.027]``."""
    cells = [
        write_interval(row.value, row.ci_low, row.ci_high, ".3f" if row.metric == JACCARD else "+.3f")
        for row in table.itertuples()
    ]
    wide = table.assign(cell=cells).pivot(index=_QUIRK, columns="metric", values="cell").fillna("")
    order = table[_QUIRK].drop_duplicates()
    return wide.loc[list(order.itertuples(index=False, name=None)), list(table.metric.unique())]
