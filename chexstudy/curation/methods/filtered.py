"""Any choice by features alone, after pairs that are rather mismatched have been set aside."""

from dataclasses import replace

import numpy as np
import torch

from chexstudy.curation.choice import Choice, check_option, choose_highest
from chexstudy.curation.methods.blocks import RowView, read_rows
from chexstudy.curation.methods.coverage import choose_at_random, choose_by_density, choose_k_centre
from chexstudy.curation.methods.duplicates import choose_without_duplicates
from chexstudy.curation.methods.hierarchical import choose_from_hierarchy
from chexstudy.curation.methods.online import choose_by_bands, choose_within_budget
from chexstudy.curation.online.mismatch_filter import FilterVerdict, judge_filter, rank_pairs
from chexstudy.devices import use_threads
from chexstudy.errors import StudyError
from chexstudy.progress import progress

_RULES = {
    "bands": choose_by_bands,
    "budgeted": choose_within_budget,
    "random": choose_at_random,
    "k_centre": choose_k_centre,
    "density": choose_by_density,
    "semdedup": choose_without_duplicates,
    "hierarchical": choose_from_hierarchy,
}


def choose_filtered(
    features: np.ndarray,
    budget: int,
    generator: torch.Generator,
    *,
    image: np.ndarray,
    text: np.ndarray,
    rule: str = "bands",
    strength: str = "auto",
    prototypes: int = 6,
    super_batch: int = 480,
) -> Choice:
    """Set aside the pairs whose report rather belongs to another image, then choose among the others.

    Source: ours; see `chexstudy.curation.online.mismatch_filter` for the filter, whose ranks are taken in random
    super-batches. ``strength`` is ``auto``, which cuts where matched and shuffled pairs are best told apart, or the
    share of the pairs to set aside. While matched pairs cannot be told from shuffled ones none is, whatever the
    strength. Among those that pass, ``rule`` chooses with its own defaults: ``bands``, ``budgeted``, ``random``,
    ``k_centre``, ``density``, ``semdedup`` or ``hierarchical``. If no more pass than the budget asks for, all of them
    are kept and the next best by rank fill it up. What was done is told in the choice's note.
    """
    check_option("super_batch", super_batch, 2)
    if rule not in _RULES:
        raise StudyError(f"rule must be one of {', '.join(_RULES)}, not {rule!r}.")
    share = _read_strength(strength)
    ranks, verdict = rank_all_pairs(image, text, super_batch, generator)
    if share is None or verdict.abstains:
        passing = np.flatnonzero(ranks >= verdict.cut)
    else:
        passing = choose_highest(ranks, len(ranks) - round(share * len(ranks))).rows
    aside = np.ones(len(ranks), dtype=bool)
    aside[passing] = False
    note = str(verdict)
    if not verdict.abstains:
        note += f" {len(ranks) - len(passing):,} of {len(ranks):,} pairs were set aside."
    if len(passing) <= budget:
        if len(passing) < budget:
            note += f" Only {len(passing):,} pass: the {budget - len(passing):,} of the next best rank fill the budget."
        return replace(choose_highest(ranks, budget, note), set_aside=aside)
    if rule in ("bands", "budgeted"):
        # They read a batch at a time, so the others need no copy.
        among, options = RowView(features, passing), {"prototypes": prototypes, "super_batch": super_batch}
    else:
        among, options = features[passing], {}
    choice = _RULES[rule](among, budget, generator, **options)
    # Whatever was set aside comes after all that passed, by its rank.
    scores = ranks - 2
    scores[passing] = choice.scores - choice.scores.min()
    return Choice(passing[choice.rows], scores, choice.weights, note, aside)


def _read_strength(strength: str) -> float | None:
    """The share of pairs to set aside, None for the filter's own choice."""
    if strength == "auto":
        return None
    try:
        share = float(strength)
    except ValueError:
        share = np.nan
    if not 0 <= share < 1:
        raise StudyError(f"strength must be auto or a share of the pairs from 0 to below 1, not {strength!r}.")
    return share


def rank_all_pairs(
    image: np.ndarray, text: np.ndarray, super_batch: int, generator: torch.Generator
) -> tuple[np.ndarray, FilterVerdict]:
    """Scores ``(pairs,)`` from random super-batches of nearly equal size, and what they say of the encoders."""
    matched, shuffled = np.empty(len(image)), np.empty(len(image))
    order = torch.randperm(len(image), generator=generator).numpy()
    batches = np.array_split(order, -(-len(order) // super_batch))
    # Small steps: threads that share them would wait for each other most of the time.
    with use_threads(1):
        for rows in progress(batches, label="ranking pairs"):
            scores = rank_pairs(read_rows(image, rows), read_rows(text, rows))
            matched[rows], shuffled[rows] = (one.numpy() for one in scores)
    return matched, judge_filter(matched, shuffled)
