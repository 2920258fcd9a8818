"""Arrays in parts: made once, joined in order, never mixed with those of another key."""

import numpy as np
import pytest

from chexstudy.arrays import Parts, write_rows


def compute(rows):
    numbers = np.arange(rows.start, rows.stop)
    return numbers[:, None] * np.ones((1, 3), np.float32), np.repeat(numbers, 4).reshape(-1, 2, 2).astype(np.float16)


def test_parts_are_joined_to_the_whole(tmp_path):
    parts = Parts(tmp_path / "parts" / "key", 4)
    parts.make(("matrix", "cube"), 10, compute, "counting")
    whole = compute(slice(0, 10))
    for kind, expected in zip(("matrix", "cube"), whole, strict=True):
        write_rows(tmp_path / f"{kind}.npy", parts.read(kind, 10), 10)
        joined = np.load(tmp_path / f"{kind}.npy", mmap_mode="r")
        assert (joined.dtype, joined.shape) == (expected.dtype, expected.shape)
        assert np.array_equal(joined, expected)
    parts.remove()
    assert not (tmp_path / "parts").exists()


def test_only_missing_parts_are_made(tmp_path):
    asked = []

    def break_at_eight(rows):
        asked.append((rows.start, rows.stop))
        if rows.start == 8 and len(asked) == 3:
            raise KeyboardInterrupt
        return compute(rows)

    with pytest.raises(KeyboardInterrupt):
        Parts(tmp_path / "parts" / "key", 4).make(("matrix", "cube"), 10, break_at_eight, "counting")
    (tmp_path / "parts" / "key" / "cube_0000000004.npy").unlink()
    Parts(tmp_path / "parts" / "key", 4).make(("matrix", "cube"), 10, break_at_eight, "counting")
    assert asked == [(0, 4), (4, 8), (8, 10), (4, 8), (8, 10)]


def test_parts_of_another_key_are_thrown_away(tmp_path):
    Parts(tmp_path / "parts" / "old", 4).make(("matrix", "cube"), 10, compute, "counting")
    Parts(tmp_path / "parts" / "new", 4)
    assert list((tmp_path / "parts").iterdir()) == []
