"""What a kept set depends on beside the pairs: the ratio law of the published rule, and chance, order and batch.

Both are measured on unchanging features (`chexstudy.experiments.curator_ablation`).
"""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pandas as pd

from chexstudy.curation.online.budgeted import BLOCK
from chexstudy.curation.online.configuration import RULES, expected_fraction
from chexstudy.curation.quality.overlap import compare_selections
from chexstudy.experiments.curator_ablation import CAPS, average_seeds, change_constants, curate_features, mark_kept
from chexstudy.pretraining.configuration import PretrainingConfig
from chexstudy.progress import progress
from chexstudy.results import OVER_SEEDS

_PROTOTYPES, _SUPER_BATCHES = (2, 6, 24), (120, 480, 1920)
_COMPARED_BATCHES = (128, 480, 2048, 8192)
# Seeds far from those of the study, so that none of its orders or draws is met again.
_ELSEWHERE = 1_000_000


def measure_ratio_law(reference: PretrainingConfig, features: np.ndarray, seed: int) -> pd.DataFrame:
    """The fraction that the published rule selects of full super-batches, over prototypes, cap and super-batch.

    The last super-batch of an epoch is left out: it is smaller, and so keeps more.

    Gives ``prototypes, central_cap, super_batch, law`` (of `expected_fraction`), ``measure, n, seed``.
    """
    curator, pairs = reference.curator, len(features)
    batches = [one for one in _SUPER_BATCHES if one <= pairs] or [min(reference.super_batch, pairs)]
    counts = sorted({*_PROTOTYPES, curator.prototypes})
    sample = min(curator.warm_up_pairs, pairs)
    grid = [(k, cap, b) for k in counts for cap in CAPS for b in batches if k <= min(b, sample)]
    rows = []
    for k, cap, batch in progress(grid, label=f"seed {seed}, ratio law"):
        changes = {"prototypes": k, "central_cap": cap, "super_batch": batch}
        config = change_constants(reference, changes)
        decisions = curate_features(features, config, seed)
        full = decisions[decisions.groupby("step").kept.transform("size") == batch]
        law = float(expected_fraction(config.curator, [batch])[0])
        rows.append({**changes, "law": law, "measure": float(full.kept.mean()), "n": len(full), "seed": seed})
    return pd.DataFrame(rows)


def average_ratio_law(rows: pd.DataFrame) -> pd.DataFrame:
    """The fractions of `measure_ratio_law`, seeds put together, averaged over the seeds.

    Student's intervals end at the law: no batch keeps more, but for the rounding of a band of few members.
    """
    table = average_seeds(rows, ["prototypes", "central_cap", "super_batch", "law"], "measure")
    most = np.maximum(table.measure, table.law)
    return table.assign(ci_low=table.ci_low.clip(lower=0.0), ci_high=table.ci_high.clip(upper=most))


def measure_stability(reference: PretrainingConfig, features: Mapping[int, np.ndarray]) -> pd.DataFrame:
    """How alike the kept sets of each rule are when only what should not matter changes, on each seed's features.

    Gives one row for every two kept sets: ``rule``; ``varied``: ``super-batch`` (same features, same order), ``order``,
    ``chance`` (the sampler's, the order being the same) or ``seed`` (model, order and chance); ``seed`` (-1 where two
    seeds are compared), ``first``, ``second``, ``n`` pairs, ``jaccard`` and ``jaccard_by_chance``, that of two random
    sets of the same sizes.
    """
    rows = []
    pairs = len(next(iter(features.values())))
    # In place of those as large as the cohort, the cohort itself.
    batches = {min(one, pairs) for one in _COMPARED_BATCHES}
    if len(batches) == 1:
        batches.add(max(BLOCK, pairs // 2 // BLOCK * BLOCK))
    batches = sorted(one for one in batches if reference.curator.prototypes <= one <= pairs)
    for rule in RULES:
        config = change_constants(reference, {"rule": rule})
        own, compared = {}, []
        for seed, seen in progress(features.items(), len(features), f"{rule} rule, stability"):
            by_batch = {f"{batch:,}": (replace(config, super_batch=batch), seed) for batch in batches}
            runs = {"own": (config, seed), "reordered": (config, seed, seed + _ELSEWHERE)}
            runs |= {"redrawn": (config, seed + _ELSEWHERE, seed)} | by_batch
            kept = {name: mark_kept(curate_features(seen, *run), pairs) for name, run in runs.items()}
            own[f"seed {seed}"] = kept["own"]
            compared += [
                ("super-batch", seed, {name: kept[name] for name in by_batch}),
                ("order", seed, {"one order": kept["own"], "another": kept["reordered"]}),
                ("chance", seed, {"one draw": kept["own"], "another": kept["redrawn"]}),
            ]
        for varied, seed, selections in [*compared, ("seed", OVER_SEEDS, own)]:
            if len(selections) > 1:
                alike = compare_selections(selections).drop(columns="rank_correlation")
                rows.append(alike.assign(rule=rule, varied=varied, seed=seed))
    return pd.concat(rows, ignore_index=True).assign(n=pairs)


def describe_stability(table: pd.DataFrame) -> str:
    """What `measure_stability` found, in one sentence a rule."""
    sentences = []
    for rule, rows in table.groupby("rule", sort=False):
        parts = []
        for varied, of_kind in rows.groupby("varied", sort=False):
            ends = dict.fromkeys(f"{one:.2f}" for one in (of_kind.jaccard.min(), of_kind.jaccard.max()))
            parts.append(f"{' to '.join(ends)} ({varied}; {of_kind.jaccard_by_chance.mean():.2f} for random sets)")
        sentences.append(f"By the {rule} rule the Jaccard index of two kept sets is {', '.join(parts)}.")
    return "\n".join(sentences)
