"""What a stream has shown lately, group by group: running quantiles of a value, and the pairs kept last.

Both hold tensors of fixed shape and write into rings, so nothing waits for the device and the memory is bounded. What
is not to be remembered is written into one group more than there are.
"""

import torch
from torch import Tensor


class _Rings:
    """A ring of the latest ``length`` entries of each of ``groups``."""

    state: tuple[str, ...]  # the names of its tensors

    def __init__(self, groups: int, length: int, like: Tensor):
        self.groups, self.length = groups, length
        self.written = torch.zeros(groups + 1, dtype=torch.int64, device=like.device)

    def make_room(self, group: Tensor, belongs: Tensor) -> tuple[Tensor, Tensor]:
        """Group and place ``(n,)`` each at which entries of groups ``(n,)`` are to be written."""
        group = torch.where(belongs, group, self.groups)
        is_own = group.unsqueeze(1) == torch.arange(self.groups + 1, device=group.device)
        before = is_own.cumsum(dim=0).gather(1, group.unsqueeze(1)).squeeze(1) - 1
        place = (self.written[group] + before) % self.length
        self.written.index_add_(0, group, torch.ones_like(group))
        return group, place

    def state_dict(self) -> dict[str, Tensor]:
        return {name: getattr(self, name) for name in self.state}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        for name in self.state:
            setattr(self, name, state[name].clone())


class RunningQuantiles(_Rings):
    """Quantiles of the latest values of each group, remembered for ``memory`` pairs of the stream; typed ``like``."""

    state = ("values", "seen_at", "written", "sorted", "known")

    def __init__(self, groups: int, length: int, memory: int, like: Tensor):
        super().__init__(groups, length, like)
        self.memory = memory
        self.values = like.new_full((groups + 1, length), torch.inf)
        self.seen_at = torch.full((groups + 1, length), -memory, dtype=torch.int64, device=like.device)
        self.settle(0)

    def add(self, group: Tensor, value: Tensor, belongs: Tensor, now: int) -> None:
        """Remember values ``(n,)`` of groups ``(n,)`` where ``belongs``, seen at place ``now`` of the stream.

        Of more values than the length at once, only so many are remembered of each group.
        """
        place = self.make_room(group, belongs)
        self.values[place], self.seen_at[place] = value, now

    def settle(self, now: int) -> None:
        """Sort what is remembered at place ``now``; `quantile` and `rank` answer from this until the next call."""
        remembered = self.seen_at[: self.groups] > now - self.memory
        self.sorted = torch.sort(self.values[: self.groups].masked_fill(~remembered, torch.inf), dim=1).values
        self.known = remembered.sum(dim=1)

    def quantile(self, share: float | Tensor, unknown: float) -> Tensor:
        """Quantile of each group ``(groups,)`` with linear interpolation; ``unknown`` for a group not remembered."""
        place = share * (self.known - 1).clamp(min=0).to(self.sorted)
        below = place.floor().long()
        above = torch.minimum(below + 1, (self.known - 1).clamp(min=0))
        low, high = (self.sorted.gather(1, at.unsqueeze(1)).squeeze(1) for at in (below, above))
        # An infinite value is a neighbour as good as any, but must not be interpolated with itself.
        between = torch.where(low == high, low, low + (place - below) * (high - low))
        return torch.where(self.known > 0, between, unknown)

    def rank(self, group: Tensor, value: Tensor) -> Tensor:
        """Share of the group's remembered values that lie below ``value`` ``(n,)``; 1 for a group not remembered."""
        below = torch.searchsorted(self.sorted[group], value.unsqueeze(1)).squeeze(1)
        known = self.known[group]
        return torch.where(known > 0, torch.minimum(below, known) / known.clamp(min=1), 1.0)


class RecentPairs(_Rings):
    """The unit-norm features of the latest ``length`` pairs of each group, of the type and width of ``like``."""

    state = ("features", "rows", "written")

    def __init__(self, groups: int, length: int, like: Tensor):
        super().__init__(groups, length, like)
        self.features = like.new_zeros(groups + 1, length, like.shape[1])
        self.rows = torch.full((groups + 1, length), -1, dtype=torch.int64, device=like.device)

    def add(self, group: Tensor, features: Tensor, rows: Tensor, belongs: Tensor) -> None:
        """Remember pairs ``(n, dim)`` with their row numbers where ``belongs``; n must not exceed the length."""
        place = self.make_room(group, belongs)
        self.features[place], self.rows[place] = features, rows

    def distance(self, group: Tensor, features: Tensor, rows: Tensor) -> Tensor:
        """Euclidean distance to the nearest other remembered pair of the group ``(n,)``; infinite without any."""
        cosine = (features @ self.features[: self.groups].flatten(0, 1).T).view(len(features), self.groups, self.length)
        own = cosine.gather(1, group.view(-1, 1, 1).expand(-1, 1, self.length)).squeeze(1)
        remembered = self.rows[group]
        rival = (remembered >= 0) & (remembered != rows.unsqueeze(1))
        nearest = own.masked_fill(~rival, -torch.inf).amax(dim=1)
        return (2 - 2 * nearest).clamp(min=0).sqrt()
