import threading
import time

import numpy as np
import pytest
import torch

from chexstudy.cohort.pixels.store import open_pixel_store
from chexstudy.errors import StudyError
from chexstudy.pretraining.engine.loading import StallMeter, gather_pixels, prefetch


def loaders():
    return [thread for thread in threading.enumerate() if thread.name.startswith("loader")]


def test_batches_come_in_order_and_are_loaded_in_a_thread_ahead_of_the_consumer():
    seen = []

    def load(batch):
        seen.append((batch, threading.current_thread()))
        return batch * batch

    received = []
    for value in prefetch(range(6), load):
        if not received:
            # Two more are loaded while the first is worked on, and not a third.
            time.sleep(0.1)
            assert [batch for batch, _ in seen] == [0, 1, 2]
        received.append(value)
    assert received == [0, 1, 4, 9, 16, 25]
    assert all(thread is not threading.main_thread() for _, thread in seen)
    assert loaders() == []


def test_batches_are_drawn_in_the_thread_of_the_caller():
    drawn_by = []

    def draw():
        for batch in range(3):
            drawn_by.append(threading.current_thread())
            yield batch

    assert list(prefetch(draw(), str)) == ["0", "1", "2"]
    assert set(drawn_by) == {threading.main_thread()}


def test_no_batches_are_no_error():
    assert list(prefetch([], str)) == []
    assert loaders() == []


def test_an_error_of_the_loader_comes_up_where_its_batch_was_due():
    def load(batch):
        if batch == 2:
            raise StudyError("the shard is gone: make the store again.")
        return batch

    batches = prefetch(range(9), load)
    assert [next(batches), next(batches)] == [0, 1]
    with pytest.raises(StudyError, match=r"^the shard is gone: make the store again\.$"):
        next(batches)
    assert loaders() == []


@pytest.mark.parametrize("stop", ["break", "error", "close"])
def test_the_thread_ends_when_the_consumer_stops_early(stop):
    loaded = []

    def load(batch):
        time.sleep(0.01)
        loaded.append(batch)

    if stop == "break":
        for _ in prefetch(range(1000), load):
            break
    elif stop == "error":
        with pytest.raises(ZeroDivisionError):
            sum(1 / 0 for _ in prefetch(range(1000), load))
    else:
        batches = prefetch(range(1000), load)
        next(batches)
        assert len(loaders()) == 1
        batches.close()
    assert loaders() == []
    assert len(loaded) <= 4


def test_the_meter_counts_what_the_consumer_waited_and_nothing_else():
    slow, fast = StallMeter(), StallMeter()
    for _ in prefetch(range(5), lambda _: time.sleep(0.05), meter=slow):
        pass
    assert 0.2 <= slow.seconds < 2
    for _ in prefetch(range(5), lambda batch: batch, meter=fast):
        time.sleep(0.04)
    assert fast.seconds < 0.1


def test_pixels_are_gathered_as_the_model_takes_them(tiny_study):
    store = open_pixel_store(tiny_study)
    rng = np.random.default_rng(0)
    pieces = [rng.integers(0, len(store), 7) for _ in range(4)]
    for rows, pixels in prefetch(pieces, lambda rows: (rows, gather_pixels(store, rows))):
        assert pixels.dtype == torch.uint8
        np.testing.assert_array_equal(pixels[:, 0].numpy(), store.images[rows])


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_pinned_pixels_reach_the_device(tiny_study):
    store = open_pixel_store(tiny_study)
    pixels = gather_pixels(store, np.array([3, 1]), pin_memory=True)
    assert pixels.is_pinned()
    np.testing.assert_array_equal(pixels.to("cuda", non_blocking=True).cpu()[:, 0].numpy(), store.images[[3, 1]])
