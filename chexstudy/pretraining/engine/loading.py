"""Batches loaded in a thread while the device computes, and how long the device had to wait for them.

A thread and not processes: copying rows out of a mapped file holds no interpreter lock, so one thread gathers far more
images than a model takes, and sending them between processes would cost more than reading them.
"""

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from chexstudy.cohort.pixels.store import PixelStore
from chexstudy.errors import StudyError

T = TypeVar("T")
U = TypeVar("U")


@dataclass
class StallMeter:
    """How long the consumer of `prefetch` waited for its batches."""

    seconds: float = 0.0  # waited, in all
    batches: int = 0  # received
    # when the first batch was asked for, on the clock of ``time.perf_counter``; None before
    started: float | None = None

    def share(self) -> float:
        """Part of the time since the first batch was asked for that was spent waiting, 0 to 1."""
        if self.started is None:
            return 0.0
        return self.seconds / max(time.perf_counter() - self.started, 1e-9)


def prefetch(
    batches: Iterable[T], load: Callable[[T], U], depth: int = 2, meter: StallMeter | None = None
) -> Iterator[U]:
    """Yield ``load(batch)`` for every batch in order, with the next ones being loaded in a thread meanwhile.

    The batches themselves are drawn in the caller's thread. If the consumer stops early, by ``break`` or an error, what
    was not begun is dropped and the thread ends before the generator does.

    ``load`` is called in the thread, one batch after the other, ``depth`` ahead of the consumer; its errors come up
    where its batch was due. The meter counts the seconds the consumer waited; the first batch is always waited for.
    """
    if depth < 1:
        raise StudyError(f"the loader must be 1 or more batches ahead, not {depth}.")
    return _load_ahead(iter(batches), load, depth, meter if meter is not None else StallMeter())


def gather_pixels(store: PixelStore, rows: np.ndarray, pin_memory: bool = False) -> Tensor:
    """Copy images out of the store, uint8 ``(batch, 1, size, size)``, for `prefetch` to do in its thread.

    ``.to("cuda", non_blocking=True)`` does not hold up the caller from page-locked, that is pinned, memory.
    """
    pixels = torch.empty((len(rows), 1, store.size, store.size), dtype=torch.uint8, pin_memory=pin_memory)
    store.take(rows, out=pixels.numpy()[:, 0])
    return pixels


def _load_ahead(batches: Iterator[T], load: Callable[[T], U], depth: int, meter: StallMeter) -> Iterator[U]:
    pool = ThreadPoolExecutor(1, thread_name_prefix="loader")
    try:
        meter.started = meter.started or time.perf_counter()
        ahead = deque(pool.submit(load, batch) for batch in islice(batches, depth))
        while ahead:
            asked = time.perf_counter()
            loaded = ahead.popleft().result()
            meter.seconds += time.perf_counter() - asked
            meter.batches += 1
            ahead.extend(pool.submit(load, batch) for batch in islice(batches, 1))
            yield loaded
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
