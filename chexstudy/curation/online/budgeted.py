"""The budgeted curator: exactly the share or number of pairs asked for, whatever the batch.

The published rule takes its quantiles from one batch and a fixed number of central pairs from each prototype of that
batch, so what is kept depends on the batch (F2). Here the same bands are decided against what the stream has shown so
far, and the budget is a promise for the epoch:

* *Quantiles.* The distances of the latest pairs of each prototype, those about to be decided among them, give its band
  edges. They hardly know where a batch begins, and they forget: the model learns while it is asked, distances grow, and
  edges from long ago would make outliers of everything.
* *Shares.* The support band is kept and outliers follow their policy; what the budget leaves for the central band is
  divided evenly over prototypes (a prototype with fewer members than its part gives the rest to the others). This is
  what a fixed cap does in the published rule, and where its rebalancing comes from.
* *Novelty.* Farthest-point selection spreads the central picks of a batch. The stream's form of it compares a pair with
  a bank of the pairs kept lately around its prototype: the pair is kept if it is farther from all of them than the
  running quantile that leaves the prototype its share. Within a block of `BLOCK` pairs, a pair within that distance of
  an earlier candidate gives way (Matérn's second thinning; Matérn 1960, Spatial Variation).
* *Virtual batches.* Edges, shares and prototypes change after every `VIRTUAL_BATCH` pairs of the stream (the published
  batch), wherever real batches end; where a real batch begins in between, the edges are looked at once more. With
  features that do not change, batches of different sizes so make nearly the same decisions; a model that learns between
  its batches still changes the features.
* *Exactness.* The share asked for is steered to what is left of the budget over what is left of the epoch, and no part
  of a virtual batch may spend more than `_SLACK` times its share, or less than that part of it: a model that learns
  makes all pairs look novel beside those of earlier batches, and would spend the budget early. A batch may keep no more
  than the budget left, and no fewer than would put the budget out of reach; where that binds, the order of `priority`
  decides. After the last batch the count is exact.

The warm-up sample fits the first prototypes and is then run through once without being decided, so that the first batch
already meets settled rings; drawn over the whole cohort (``warm_up_order=random``), it is what a reservoir of a stream
of known length would hold. A pair is never compared with itself in the bank, so in a later epoch it is judged against
others and may be taken back.

All state is tensors of fixed shape, and no step waits for the device.
"""

from dataclasses import fields, replace
from itertools import pairwise

import torch
from torch import Tensor

from chexstudy.curation.choice import count_budget
from chexstudy.curation.online.configuration import CuratorConfig
from chexstudy.curation.online.decisions import CENTRAL, OUTLIER, OUTLIER_REASONS, SUPPORT, Reason, Selection
from chexstudy.curation.online.prototypes import initial_prototypes, update_prototypes
from chexstudy.curation.online.running_quantiles import RecentPairs, RunningQuantiles
from chexstudy.errors import StudyError

BLOCK = 32
VIRTUAL_BATCH = 480
_RING = 1024
_MEMORY = 2 * VIRTUAL_BATCH
_SLACK = 1.3
_BANK = 2048
_TENSORS = (
    *("members", "recent", "recent_kept", "usage", "budget_left"),
    *("support_share", "central_share", "novelty_edge"),
)
# Half of a prototype's share of the stream is forgotten in so many pairs.
_HALF_LIFE = 4096


class BudgetedCurator:
    """Prototype bands at an exact budget; see the module and `chexstudy.curation.online.curators.Curator`."""

    scores = True

    def __init__(self, config: CuratorConfig):
        self.config = config
        self.prototypes: Tensor | None = None

    def warm_up(self, features: Tensor, rows: Tensor) -> None:
        """Fit the first prototypes and settle the running quantiles on a sample."""
        self._allocate(initial_prototypes(features, self.config))
        rows = rows.to(features.device)
        start, budget = self.prototypes, self.config.budget
        # A budget given as a number says nothing about a sample.
        self._open(len(features), (budget if budget <= 1 else 0.25) * len(features))
        self._decide(features, rows)
        # The run through the sample fills the rings; the prototypes stay where k-means put them.
        self.prototypes = start

    def begin_epoch(self, pairs: int) -> None:
        """Open the budget of an epoch of ``pairs`` pairs."""
        self._open(pairs, count_budget(self.config.budget, pairs))

    def state_dict(self) -> dict:
        return {
            "prototypes": self.prototypes,
            "distances": self._distances.state_dict(),
            "novelties": self._novelties.state_dict(),
            "bank": self._bank.state_dict(),
            **{name: getattr(self, f"_{name}") for name in _TENSORS},
            "position": self._position,
            "left": self._left,
        }

    def load_state_dict(self, state: dict) -> None:
        self._allocate(state["prototypes"])
        for name, part in (("distances", self._distances), ("novelties", self._novelties), ("bank", self._bank)):
            part.load_state_dict(state[name])
        for name in _TENSORS:
            setattr(self, f"_{name}", state[name].clone())
        self._position, self._left, self._foreseen = state["position"], state["left"], 0

    def choose(
        self, step: int, rows: Tensor, features: Tensor, generator: torch.Generator | None
    ) -> tuple[Tensor, Selection]:
        """Decide on a super-batch; nothing is left to chance."""
        if len(rows) > self._left:
            raise StudyError(
                f"the curator was told of {self._left} more pairs in this epoch but was given {len(rows)}: announce "
                "the epoch's length with begin_epoch."
            )
        rows = rows.to(features.device)
        self._usage = torch.zeros_like(self._usage)
        budget, to_come = self._budget_left, self._left - len(rows)
        # Fewer or more pairs are kept where the epoch's budget could not be met otherwise.
        least, most = (budget - to_come).clamp(min=0), budget.clamp(max=len(rows))
        selection = _bound_kept(self._decide(features, rows), least, most)
        self._budget_left = budget - selection.kept.sum()
        return selection.kept, selection

    def set_aside(self, count: int, batch: int) -> int:
        """Take ``count`` pairs out of the next ``batch``, or as many as leave the budget within reach; gives how many.

        As large a share is expected of what follows, so that the budget is spent evenly.
        """
        count = min(count, self._left - int(self._budget_left))
        self._foreseen = (self._left - batch) * count / batch
        self._left -= count
        return count

    def _share_left(self) -> Tensor:
        """The share of the pairs to come that the budget left pays for ``()``."""
        return self._budget_left / max(self._left - self._foreseen, 1)

    def _decide(self, features: Tensor, rows: Tensor) -> Selection:
        """Decide on any number of pairs: piece by piece within virtual batches, block by block within pieces."""
        decided = []
        for a, b in _cut(self._position, len(rows), VIRTUAL_BATCH):
            piece, start = features[a:b], self._position
            distance, prototype = _measure_gaps(piece, self.prototypes).min(dim=1)
            self._distances.add(prototype, distance, torch.ones_like(distance, dtype=torch.bool), start)
            self._settle_bands()
            if start % VIRTUAL_BATCH == 0:
                self._settle_shares()
            expected = self._share_left() * (b - a)
            blocks = [
                self._decide_block(features[a + c : a + d], rows[a + c : a + d]) for c, d in _cut(start, b - a, BLOCK)
            ]
            free = _concatenate(blocks)
            decided.append(_bound_kept(free, (expected / _SLACK).floor(), (expected * _SLACK).ceil()))
            kept = decided[-1].kept
            self._budget_left = self._budget_left + free.kept.sum() - kept.sum()
            self._recent_kept[start % VIRTUAL_BATCH :][: b - a] = kept
            if self._position % VIRTUAL_BATCH == 0:
                self._move_prototypes()
        return _concatenate(decided)

    def update(self, features: Tensor, kept: Tensor) -> Tensor:
        """How many pairs each prototype was assigned in the last `choose` ``(K,)``, where prototypes move."""
        return self._usage

    def _allocate(self, prototypes: Tensor) -> None:
        count, dim = prototypes.shape
        self.prototypes, self._position = prototypes, 0
        self._distances = RunningQuantiles(count, _RING, _MEMORY, prototypes)
        self._novelties = RunningQuantiles(count, _RING, _MEMORY, prototypes)
        self._bank = RecentPairs(count, max(BLOCK, _BANK // count), prototypes)
        self._members = prototypes.new_ones(count)
        self._recent = prototypes.new_zeros(VIRTUAL_BATCH, dim)
        self._recent_kept = torch.zeros(VIRTUAL_BATCH, dtype=torch.bool, device=prototypes.device)
        self._usage = prototypes.new_zeros(count)
        self._support_share, self._central_share = prototypes.new_zeros(()), prototypes.new_zeros(count)
        self._novelty_edge = prototypes.new_zeros(count)

    def _open(self, pairs: int, budget: float) -> None:
        self._left, self._foreseen = pairs, 0
        # The clock goes on, so that what is remembered keeps its age; an epoch begins with a virtual batch.
        self._position = -(-self._position // VIRTUAL_BATCH) * VIRTUAL_BATCH
        self._budget_left = torch.tensor(budget, dtype=torch.float64, device=self.prototypes.device)

    def _settle_bands(self) -> None:
        """Take band edges anew; they hold for one piece of a virtual batch."""
        config = self.config
        self._distances.settle(self._position)
        self._support_edge = self._distances.quantile(config.support_quantile, unknown=torch.inf)
        self._outlier_edge = self._distances.quantile(config.outlier_quantile, unknown=torch.inf)

    def _settle_shares(self) -> None:
        """Take anew what each prototype may keep and how novel that asks a pair to be; it holds for a virtual batch."""
        config = self.config
        self._novelties.settle(self._position)
        wanted = self._share_left().to(self._members)
        self._support_share, self._central_share = _divide_share(wanted, self._members / self._members.sum(), config)
        novelty_edge = self._novelties.quantile(1 - self._central_share, unknown=-torch.inf)
        # A share of one asks for no novelty at all, not even over an exact copy.
        self._novelty_edge = torch.where(self._central_share >= 1, -torch.inf, novelty_edge)

    def _decide_block(self, features: Tensor, rows: Tensor) -> Selection:
        """Decide on at most `BLOCK` pairs that lie in one virtual batch, and remember them."""
        config = self.config
        distance, prototype = _measure_gaps(features, self.prototypes).min(dim=1)
        support_edge, outlier_edge = self._support_edge[prototype], self._outlier_edge[prototype]
        band = torch.where(distance > outlier_edge, OUTLIER, torch.where(distance > support_edge, SUPPORT, CENTRAL))
        is_central, is_support, is_outlier = band == CENTRAL, band == SUPPORT, band == OUTLIER

        novelty_edge = self._novelty_edge[prototype]
        novelty = self._bank.distance(prototype, features, rows)
        candidate = is_central & (novelty > novelty_edge)
        between = _measure_gaps(features, features)
        rivals = candidate & (prototype.unsqueeze(1) == prototype) & torch.ones_like(between, dtype=torch.bool).tril(-1)
        novelty = torch.minimum(novelty, between.masked_fill(~rivals, torch.inf).amin(dim=1))
        is_novel = is_central & (novelty > novelty_edge)

        rank = self._distances.rank(prototype, distance)
        width = max(config.outlier_quantile - config.support_quantile, 1e-9)
        within_support = ((rank - config.support_quantile) / width).clamp(0, 1)
        is_afforded = is_support & (within_support >= 1 - self._support_share)
        keeps_outliers = config.outlier_policy == "keep"
        kept = is_novel | is_afforded | (is_outlier & keeps_outliers)

        # From the last to be kept to the first: outliers that are not wanted (the farthest last), the support that the
        # budget does not reach, central pairs by how far they clear their prototype's bar, support, wanted outliers.
        clearance = self._novelties.rank(prototype, novelty) - (1 - self._central_share[prototype])
        # The distance itself tells pairs apart that are all more novel than anything remembered.
        clearance = clearance + 1e-3 * novelty.clamp(max=2)
        priority = torch.where(is_novel, 1 + clearance.clamp(min=0), clearance.clamp(max=0))
        priority = torch.where(is_support, torch.where(is_afforded, 3.0, -2.0) + within_support, priority)
        priority = torch.where(is_outlier, 5.0 if keeps_outliers else -3 - rank, priority)
        reason = torch.where(is_novel, Reason.NOVEL, Reason.REDUNDANT)
        reason = torch.where(is_support, torch.where(is_afforded, Reason.IN_SUPPORT, Reason.BUDGET_SPENT), reason)
        reason = torch.where(is_outlier, OUTLIER_REASONS[config.outlier_policy], reason)

        self._novelties.add(prototype, novelty, is_central, self._position)
        self._remember(features, rows, prototype, is_central, kept)
        order = torch.full_like(prototype, -1)
        bands = (band.to(torch.int8), order, priority.to(distance), kept, reason.to(torch.int8))
        return Selection(prototype, distance, support_edge, outlier_edge, *bands)

    def _remember(self, features: Tensor, rows: Tensor, prototype: Tensor, is_central: Tensor, kept: Tensor) -> None:
        self._bank.add(prototype, features, rows, is_central & kept)
        members = self._members * 0.5 ** (len(rows) / _HALF_LIFE)
        self._members = members.index_add(0, prototype, torch.ones_like(members[prototype]))
        start = self._position % VIRTUAL_BATCH
        self._recent[start : start + len(rows)] = features
        self._recent_kept[start : start + len(rows)] = kept
        self._budget_left = self._budget_left - kept.sum()
        self._position += len(rows)
        self._left -= len(rows)

    def _move_prototypes(self) -> None:
        config = self.config
        if config.decay == 1:
            return
        weights = self._recent_kept if config.update_features == "kept" else torch.ones_like(self._recent_kept)
        self.prototypes, usage = update_prototypes(self.prototypes, self._recent, config, weights)
        self._usage = self._usage + usage


def _measure_gaps(points: Tensor, others: Tensor) -> Tensor:
    return torch.cdist(points, others, compute_mode="donot_use_mm_for_euclid_dist")


def _divide_share(wanted: Tensor, members: Tensor, config: CuratorConfig) -> tuple[Tensor, Tensor]:
    """How much of the support band ``()`` and of each prototype's central members ``(K,)`` a share ``()`` pays for.

    Both that share and ``members`` ``(K,)``, those nearest to each prototype, are of all pairs.
    """
    support = config.outlier_quantile - config.support_quantile
    outliers = 1 - config.outlier_quantile if config.outlier_policy == "keep" else 0.0
    support_share = ((wanted - outliers) / max(support, 1e-9)).clamp(0, 1)
    central = (wanted - outliers - support_share * support).clamp(min=0)
    # Find the level c with sum(min(available, c)) = central: with prototypes in ascending order, the first at which
    # the rest, divided evenly over it and those above, does not exceed what it has.
    available = members * config.support_quantile
    ordered = torch.sort(available).values
    below = ordered.cumsum(0) - ordered
    levels = (central - below) / torch.arange(len(ordered), 0, -1, device=ordered.device)
    holds = levels <= ordered
    first = torch.where(holds.any(), holds.to(torch.int8).argmax(), len(ordered) - 1)
    level = levels.gather(0, first.unsqueeze(0))
    return support_share, (level / available.clamp(min=1e-12)).clamp(0, 1)


def _bound_kept(selection: Selection, least: Tensor, most: Tensor) -> Selection:
    """Keep no fewer pairs than ``least`` and no more than ``most``, by priority; of equal ones the first."""
    pairs = len(selection.kept)
    allowed = torch.minimum(torch.maximum(selection.kept.sum(), least), most)
    by_priority = torch.sort(selection.priority, descending=True, stable=True).indices
    by_decision = torch.sort(selection.kept[by_priority].to(torch.int8), descending=True, stable=True).indices
    place = torch.empty_like(by_priority)
    place[by_priority[by_decision]] = torch.arange(pairs, device=place.device)
    kept = place < allowed
    reason = torch.where(kept & ~selection.kept, Reason.BUDGET_FILLED, selection.reason)
    reason = torch.where(selection.kept & ~kept, Reason.BUDGET_SPENT, reason).to(torch.int8)
    return replace(selection, kept=kept, reason=reason)


def _cut(position: int, count: int, size: int) -> list[tuple[int, int]]:
    """Bounds of the pieces that ``count`` pairs of the stream from ``position`` on fall into, cut at every ``size``."""
    cuts = range(size - position % size, count, size)
    return list(pairwise([0, *cuts, count]))


def _concatenate(blocks: list[Selection]) -> Selection:
    return Selection(*(torch.cat([getattr(block, column.name) for block in blocks]) for column in fields(Selection)))
