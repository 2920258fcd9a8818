"""Arms at several budgets: the curated arm keeps exactly a share of the pairs, and random ones are paired with it.

To keep a share exactly takes the budgeted rule (`chexstudy.curation.online.budgeted`); the published one keeps what its
constants and the super-batch make it keep. Beside the curated arm are trained random pairs of the same number, and
random batches of all pairs until the same operations are spent. All pairs, the budget of everything, is one arm.
"""

import re
from collections.abc import Sequence
from dataclasses import replace

from chexstudy.curation.choice import count_budget
from chexstudy.errors import StudyError
from chexstudy.pretraining.arms.definitions import name_variant
from chexstudy.pretraining.configuration import PretrainingConfig

CURATED, FULL = "curated", "full"
RANDOM = ("random_same_data", "random_same_compute")
_KEEP = "keep_"


def name_budget(share: float) -> str:
    """The variant that keeps a share of the pairs: ``keep_22_7`` for 0.227."""
    percent = f"{100 * share:.6f}".rstrip("0").rstrip(".")
    return f"{_KEEP}{percent.replace('.', '_')}"


def read_budget(variant: str) -> float:
    """The share of the pairs that arms of a variant are paired at: 0.227 for ``keep_22_7``, 1 for arms without one."""
    if not variant:
        return 1.0
    match = re.fullmatch(rf"{_KEEP}(\d+(?:_\d+)?)", variant)
    if match is None:
        raise StudyError(f"the variant {variant!r} is of no budget: such variants are, for example, keep_10.")
    return float(match[1].replace("_", ".")) / 100


def plan_budgets(config: PretrainingConfig, shares: Sequence[float], pairs: int) -> dict[str, PretrainingConfig]:
    """The constants of each budget's arms by variant, the largest and longest first.

    The budgeted rule and its budget, a share of the training ``pairs``, replace the curator's own.
    """
    variants: dict[str, PretrainingConfig] = {}
    kept: dict[int, float] = {}
    for share in sorted(shares, reverse=True):
        if not 0 < share < 1:
            raise StudyError(f"budgets are shares above 0 and below 1, such as 0.227, not {share:g}.")
        count = count_budget(share, pairs)
        if count in kept:
            raise StudyError(f"the budgets {kept[count]:g} and {share:g} both keep {count:,} of {pairs:,} pairs.")
        kept[count] = share
        curator = replace(config.curator, rule="budgeted", budget=float(share))
        variants[name_budget(share)] = replace(config, curator=curator)
    return variants


def list_budget_arms(variants: Sequence[str]) -> list[str]:
    """All that is trained to compare budgets of `plan_budgets`: curated and both random arms at each, and all pairs.

    Without any budget, nothing is compared.
    """
    at_budgets = [name_variant(arm, variant) for variant in variants for arm in (CURATED, *RANDOM)]
    return [FULL, *at_budgets] if at_budgets else []
