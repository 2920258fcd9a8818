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

T = TypeVar("T")
U = TypeVar("U")
_AHEAD = 2


@dataclass
class StallMeter:
    """How long the consumer of `prefetch` waited for its batches."""

    seconds: float = 0.0


def prefetch(batches: Iterable[T], load: Callable[[T], U], meter: StallMeter | None = None) -> Iterator[U]:
    """Yield ``load(batch)`` for every batch in order, with the next two being loaded in a thread meanwhile.

    The batches themselves are drawn in the caller's thread. If the consumer stops early, by ``break`` or an error, what
    was not begun is dropped and the thread ends before the generator does. Errors of ``load`` come up where its batch
    was due. The meter counts the seconds the consumer waited; the first batch is always waited for.
    """
    batches, meter = iter(batches), meter or StallMeter()
    pool = ThreadPoolExecutor(1, thread_name_prefix="loader")
    try:
        ahead = deque(pool.submit(load, batch) for batch in islice(batches, _AHEAD))
        while ahead:
            asked = time.perf_counter()
            loaded = ahead.popleft().result()
            meter.seconds += time.perf_counter() - asked
            ahead.extend(pool.submit(load, batch) for batch in islice(batches, 1))
            yield loaded
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def gather_pixels(store: PixelStore, rows: np.ndarray, pin_memory: bool = False) -> Tensor:
    """Copy images out of the store, uint8 ``(batch, 1, size, size)``, for `prefetch` to do in its thread.

    ``.to("cuda", non_blocking=True)`` does not hold up the caller from page-locked, that is pinned, memory.
    """
    pixels = torch.empty((len(rows), 1, store.size, store.size), dtype=torch.uint8, pin_memory=pin_memory)
    store.take(rows, out=pixels.numpy()[:, 0])
    return pixels
