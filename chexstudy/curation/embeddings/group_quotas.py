"""Group quotas: at least so much of a group of pairs is selected, at the same budget.

A quota is written ``sex=F:0.25`` (a quarter of the group) or ``sex=F:0.9x`` (nine tenths of the fraction selected of
all).
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp

from chexstudy.curation.choice import Choice
from chexstudy.errors import StudyError

_SYNTAX = re.compile(r"(?P<kind>[^=]+)=(?P<group>.+):(?P<rate>[^:]+?)(?P<relative>[xX]?)")


@dataclass(frozen=True)
class GroupQuota:
    """The least fraction of a group that is selected."""

    kind: str  # what pairs are grouped by: a kind of `chexstudy.cohort.groups`, or a column of the table
    group: str  # which of its groups
    rate: float  # from 0 to 1; if ``relative``, in fractions selected of all
    relative: bool = False

    @property
    def name(self) -> str:
        return f"{self.kind}={self.group}"

    def __str__(self) -> str:
        return f"{self.name}:{self.rate:g}{'x' if self.relative else ''}"

    def least(self, size: int, budget: int, pairs: int) -> int:
        """How many of a group of ``size`` must be kept where ``budget`` of all ``pairs`` are."""
        rate = self.rate * budget / pairs if self.relative else self.rate
        # What a product of floats exceeds a whole number by is rounding.
        return int(np.ceil(rate * size - 1e-9))


def parse_quota(text: str) -> GroupQuota:
    """Read a quota such as ``sex=F:0.25``, ``finding=Hernia:1`` or ``age=80+:0.9x``."""
    match = _SYNTAX.fullmatch(text.strip())
    if match is None:
        raise StudyError(f"a group quota is written GROUP=VALUE:SHARE, such as sex=F:0.25 or sex=F:0.9x, not {text!r}.")
    try:
        rate = float(match["rate"])
    except ValueError:
        rate = np.nan
    relative = bool(match["relative"])
    if not (0 <= rate < np.inf) or (rate > 1 and not relative):
        of_share = "a share from 0 to 1, or 0.9x for that part of the share of all"
        wanted = "a number such as 0.9" if relative else of_share
        raise StudyError(f"the group quota {text!r} asks for {match['rate']!r}: give {wanted}.")
    return GroupQuota(match["kind"].strip(), match["group"].strip(), rate, relative)


def apply_quotas(choice: Choice, groups: Mapping[str, np.ndarray], quotas: Sequence[GroupQuota]) -> Choice:
    """Change a choice so that every quota holds, at the same budget, by as few and as cheap swaps as it takes.

    As long as a group is below its quota, the dropped pair of the highest score in such a group takes the place of the
    kept pair of the lowest score that is in no such group and whose going takes no other group below its quota. With
    one quota, or quotas of groups that do not overlap, no choice that meets them has a higher total score. Where groups
    overlap so that swaps one at a time do not get there though the quotas can be met, the numbers to keep of each
    combination of groups are solved for as a whole (integer program, fewest swaps), and the highest scores taken.

    ``groups`` holds the members ``(pairs,)`` bool of the group of each quota, by its name. Scores stay the method's
    own, so they no longer say alone what was kept; pairs that were taken in have the weight 1, the others keep theirs.
    """
    if not quotas:
        return choice
    pairs, budget = len(choice.scores), len(choice.rows)
    members = np.array([np.asarray(groups[quota.name], dtype=bool) for quota in quotas])
    if members.shape[1] != pairs:
        raise StudyError(
            f"groups of {members.shape[1]:,} pairs do not fit a choice among {pairs:,}: take the same pairs."
        )
    sizes = members.sum(axis=1)
    least = np.array([quota.least(size, budget, pairs) for quota, size in zip(quotas, sizes, strict=True)])
    for quota, need, size in zip(quotas, least, sizes, strict=True):
        if need > min(size, budget):
            raise StudyError(
                f"the group quota {quota} asks for {need:,} of {size:,} pairs at a budget of {budget:,}: lower it"
                f"{' or raise the budget' if need <= size else ''}."
            )
    cells = _Cells(members, choice.scores, choice.kept)
    taken = cells.swap(least)
    if taken is None:
        taken = cells.solve(least, budget)
    if taken is None:
        named = ", ".join(map(str, quotas))
        raise StudyError(f"no {budget:,} pairs meet the group quotas {named} together: lower one or raise the budget.")
    weights = np.ones(pairs)
    weights[choice.rows] = choice.weights
    rows = np.flatnonzero(taken)
    return replace(choice, rows=rows, weights=weights[rows])


class _Cells:
    """Pairs by the combination of groups they are in; within a cell only the score tells them apart."""

    def __init__(self, members: np.ndarray, scores: np.ndarray, kept: np.ndarray):
        self.kept, self.scores = kept, np.where(np.isnan(scores), -np.inf, scores)
        combinations, cell = np.unique(members.T, axis=0, return_inverse=True)
        self.groups = combinations.astype(int)  # (cells, quotas)
        best_first = np.argsort(-self.scores, kind="stable")
        cell = cell.ravel()[best_first]
        # Rows of each cell, the highest scores first: those to take in, and those to give up from the end.
        self.rows = [best_first[cell == number] for number in range(len(combinations))]
        self.inside = [rows[kept[rows]] for rows in self.rows]
        self.outside = [rows[~kept[rows]] for rows in self.rows]

    def swap(self, least: np.ndarray) -> np.ndarray | None:
        """Kept pairs ``(pairs,)`` after one swap at a time, or None if that ends before all quotas hold."""
        kept = self.kept.copy()
        have = self.groups.T @ np.array([len(rows) for rows in self.inside])
        given, taken = np.zeros(len(self.rows), dtype=int), np.zeros(len(self.rows), dtype=int)
        while (have < least).any():
            below = have < least
            wanted = [
                (self.scores[rows[taken[cell]]], -rows[taken[cell]], cell)
                for cell, rows in enumerate(self.outside)
                if self.groups[cell] @ below and taken[cell] < len(rows)
            ]
            if not wanted:
                return None
            _, row, gains = max(wanted)
            after = have + self.groups[gains]
            spare = [
                (self.scores[rows[-1 - given[cell]]], -rows[-1 - given[cell]], cell)
                for cell, rows in enumerate(self.inside)
                if given[cell] < len(rows)
                and not self.groups[cell] @ below
                and (after - self.groups[cell] >= np.minimum(least, after)).all()
            ]
            if not spare:
                return None
            _, gone, loses = min(spare)
            kept[-row], kept[-gone] = True, False
            taken[gains] += 1
            given[loses] += 1
            have = after - self.groups[loses]
        return kept

    def solve(self, least: np.ndarray, budget: int) -> np.ndarray | None:
        """Kept pairs ``(pairs,)`` after the fewest swaps that meet all quotas, or None if nothing does."""
        cells = len(self.rows)
        # Per cell: how many more are taken in, and how many given up.
        identity = np.concatenate([np.ones(cells), -np.ones(cells)])
        before = np.array([len(rows) for rows in self.inside])
        room = np.array([len(rows) for rows in self.outside])
        change = np.hstack([self.groups.T, -self.groups.T])
        limits = [LinearConstraint(change, least - self.groups.T @ before, np.inf), LinearConstraint(identity, 0, 0)]
        swaps, bounds = np.ones(2 * cells), Bounds(0, np.concatenate([room, before]))
        solution = milp(swaps, integrality=swaps, bounds=bounds, constraints=limits)
        if not solution.success:
            return None
        more, fewer = np.round(solution.x).astype(int).reshape(2, cells)
        kept = self.kept.copy()
        for inside, outside, taken, given in zip(self.inside, self.outside, more, fewer, strict=True):
            kept[outside[:taken]], kept[inside[len(inside) - given :]] = True, False
        return kept
