"""What a method chooses from a pool, and what that keeps."""

from collections.abc import Mapping

import numpy as np
import torch

from chexstudy.cohort.prevalence import TIERS
from chexstudy.cohort.table import NO_FINDING, finding_columns, label_matrix
from chexstudy.curation.choice import Choice
from chexstudy.curation.methods import choose_subset
from chexstudy.curation.online.curators import select_label_balanced
from chexstudy.errors import StudyError
from chexstudy.experiments.regimes.pools import Pool
from chexstudy.pretraining.training.scoring import Scores

_TRUTHS = ("sound", "sick", "balanced")


def choose(how: Mapping, pool: Pool, scores: Scores, budget: int, generator: torch.Generator) -> Choice:
    """Choose by a method of the design: one of `chexstudy.curation.methods` with its options, or by the truth."""
    if "truth" in how:
        return _choose_by_truth(how["truth"], pool, budget, generator)
    options = {name: value for name, value in how.items() if name not in ("method", "spends")}
    if how["method"] == "el2n":
        options |= {"temperature": scores.temperature, "batch": scores.batch_size}
    signals = {name: getattr(scores, name) for name in ("image", "text", "loss", "reference_loss")}
    return choose_subset(how["method"], scores.features, budget, generator, **signals, **options)


def _choose_by_truth(wanted: list[str], pool: Pool, budget: int, generator: torch.Generator) -> Choice:
    """A control: at random, or balanced by labels, among the pairs that are truly sound, or truly with a finding."""
    for name in wanted:
        if name not in _TRUTHS:
            raise StudyError(f"a choice by truth is of {', '.join(_TRUTHS)}, not {name!r}.")
    passing = np.ones(len(pool.pairs), dtype=bool)
    if "sound" in wanted:
        passing &= pool.sound
    if "sick" in wanted:
        passing &= ~_is_healthy(pool)
    among = np.flatnonzero(passing)
    if len(among) < budget:
        raise StudyError(f"only {len(among):,} pairs are {' and '.join(wanted)}: ask for a smaller budget.")
    if "balanced" in wanted:
        labels = label_matrix(pool.pairs, finding_columns(pool.pairs))
        rows = among[select_label_balanced(labels[among], budget, generator)]
    else:
        rows = np.sort(among[torch.randperm(len(among), generator=generator)[:budget].numpy()])
    scores = np.zeros(len(passing))
    scores[rows] = 1
    return Choice(rows, scores, np.ones(budget))


def _is_healthy(pool: Pool) -> np.ndarray:
    return (pool.pairs[NO_FINDING] == 1).to_numpy()


def describe_choice(pool: Pool, choice: Choice, tiers: Mapping[str, str]) -> dict[str, float]:
    """What a choice kept: shares of the chosen that are wrong, healthy or a second of one group, and of each tier's
    findings the share that was kept; all from 0 to 1.
    """
    kept = np.zeros(len(pool.pairs), dtype=bool)
    kept[choice.rows] = True
    group = pool.truth.duplicate_of.where(pool.truth.duplicate_of != "", pool.truth.image_id)
    told = {
        "kept_mismatched": float(pool.truth.mismatched[kept].mean()),
        "kept_junk": float(pool.truth.junk[kept].mean()),
        "kept_healthy": float(_is_healthy(pool)[kept].mean()),
        "kept_repeated": float(group[kept].duplicated().mean()),
        "kept_words": float(pool.pairs.report[kept].str.split().str.len().mean()),
        "kept_women": float((pool.pairs.sex[kept] == "F").mean()),
        "kept_age": float(pool.pairs.age_years[kept].mean()),
    }
    findings = [finding for finding in finding_columns(pool.pairs) if finding != NO_FINDING]
    present = (label_matrix(pool.pairs, findings) == 1) & pool.sound[:, None]
    for tier in TIERS:
        own = present[:, [tiers.get(finding) == tier for finding in findings]]
        told[f"recall_{tier}"] = float(own[kept].sum() / max(own.sum(), 1))
    return told
