"""Random streams: one named source of chance for each purpose, so that a run resumes without any random state."""

import hashlib
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class RandomStreams:
    """The sources of chance of one training. Each draw is a function of the seed, the purpose and the place."""

    seed: int  # the arm's
    fixed: tuple[str, ...] = ()  # streams that use seed 0 whatever ``seed`` is

    def draw_seed(self, stream: str, *position: int) -> int:
        """The seed of one draw: ``stream`` says what is drawn, ``position`` where in the training."""
        base = 0 if stream in self.fixed else self.seed
        digest = hashlib.sha256(repr((base, stream, position)).encode()).digest()
        return int.from_bytes(digest[:8], "big") >> 1

    def generator(self, stream: str, *position: int) -> torch.Generator:
        """A CPU generator seeded by `draw_seed`."""
        return torch.Generator().manual_seed(self.draw_seed(stream, *position))
