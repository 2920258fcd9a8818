"""Random streams: one named source of chance for each purpose, so that a run resumes without any random state."""

import hashlib

import torch


def stream_seed(seed: int, stream: str, *position: int, fixed_streams: tuple[str, ...] = ()) -> int:
    """The seed of one draw: a function of the arm's seed, the purpose and the place in the training.

    Args:
        seed: the arm's seed.
        stream: what is drawn, for example ``order``.
        position: where in the training, for example the epoch.
        fixed_streams: streams that use seed 0 whatever ``seed`` is.
    """
    base = 0 if stream in fixed_streams else seed
    digest = hashlib.sha256(repr((base, stream, position)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def stream_generator(seed: int, stream: str, *position: int, fixed_streams: tuple[str, ...] = ()) -> torch.Generator:
    """A CPU generator seeded by `stream_seed`."""
    return torch.Generator().manual_seed(stream_seed(seed, stream, *position, fixed_streams=fixed_streams))
