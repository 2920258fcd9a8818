"""The online curator as an offline method: one pass over features that stand still."""

from dataclasses import replace

import numpy as np
import pandas as pd
import torch

from chexstudy.curation.choice import Choice, check_option, choose_first
from chexstudy.curation.methods.blocks import read_rows
from chexstudy.curation.online.configuration import CuratorConfig
from chexstudy.curation.online.decisions import BANDS, CENTRAL, SUPPORT
from chexstudy.curation.online.streaming import curate_stream
from chexstudy.vectors.farthest import farthest_points


def choose_by_bands(
    features: np.ndarray, budget: int, generator: torch.Generator, *, prototypes: int = 6, super_batch: int = 480
) -> Choice:
    """The published prototype bands, run once over random batches of the set, then brought to the budget.

    Source: CheXficient (arXiv 2602.22843); see `chexstudy.curation.online.selection`. Constants are the published ones,
    but for those below. The share that rule keeps is fixed by its constants: the support band, 10 %, and
    ``central_cap`` pairs of each prototype and batch. Departures, which make it keep any budget: the cap is the one
    whose expected share, ``0.10 + central_cap * prototypes / super_batch``, comes nearest to the budget (10 at 22.5 %).
    What is still missing or too many is settled by priority, in the rule's own order: the support band first, in random
    order; then central pairs by their place in the farthest-point order of their prototype and batch, beyond the cap
    too, equal places in random order; then what the rule drops as outliers, the nearest first. So a budget below 10 %
    is a random part of the support band, and one above 95 % takes outliers in. Subsets of different budgets are not
    nested: the prototypes follow what the cap keeps.
    """
    check_option("super_batch", super_batch, 1)
    config = CuratorConfig(prototypes=prototypes)
    batches = -(-len(features) // super_batch)
    support = config.outlier_quantile - config.support_quantile
    cap = round((budget - support * len(features)) / (prototypes * batches))
    config = replace(config, central_cap=max(1, cap))
    decisions = curate_stream(features, config, generator, super_batch, label="curating")
    level = _order_of_retention(features, decisions, generator)
    tie = torch.randperm(len(decisions), generator=generator).numpy()
    return choose_first(decisions["row"].to_numpy()[np.lexsort((tie, level))], budget, len(features))


def choose_within_budget(
    features: np.ndarray,
    budget: int,
    generator: torch.Generator,
    *,
    prototypes: int = 6,
    super_batch: int = 480,
    outlier_policy: str = "drop",
) -> Choice:
    """The budgeted prototype bands, run once over random batches of the set.

    Source: ours, after CheXficient (arXiv 2602.22843); see `chexstudy.curation.online.budgeted` for the rule.
    Prototypes are fitted on a random sample of the normalised features. Kept pairs score higher than dropped ones, and
    either by the priority the curator gave them when their turn came. Subsets of different budgets are not nested.
    """
    config = CuratorConfig(
        rule="budgeted",
        # A budget of 1 would mean all pairs.
        budget=budget if budget > 1 else 1 / len(features),
        prototypes=prototypes,
        outlier_policy=outlier_policy,
        warm_up_order="random",
        warm_up_features="normalised",
    )
    decisions = curate_stream(features, config, generator, super_batch, label="curating")
    first = np.lexsort((-decisions["priority"].to_numpy(), ~decisions["kept"].to_numpy()))
    return choose_first(decisions["row"].to_numpy()[first], budget, len(features))


def _order_of_retention(features: np.ndarray, decisions: pd.DataFrame, generator: torch.Generator) -> np.ndarray:
    """When each decision's pair would be given up by the published rule, the last to go first ``(n,)``.

    0 in the support band, 1 and more by place in the farthest-point order of the central band, and above all of
    these outliers, by distance.
    """
    band = decisions["band"].to_numpy()
    level = len(decisions) + decisions["distance"].to_numpy(dtype=np.float64)
    level[band == BANDS[SUPPORT]] = 0
    rows, order = decisions["row"].to_numpy(), decisions["order"].to_numpy()
    central = decisions[band == BANDS[CENTRAL]]
    for places in central.groupby(["step", "prototype"]).indices.values():
        members = central.index.to_numpy()[places]
        # Where the sampler was at work it drew the start; the order it began goes on from there.
        started = np.flatnonzero(order[members] == 0)
        start = int(started[0]) if len(started) else int(torch.randint(len(members), (), generator=generator))
        picked = farthest_points(read_rows(features, rows[members]), len(members), start).numpy()
        level[members[picked]] = 1 + np.arange(len(members))
    return level
