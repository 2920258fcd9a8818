"""Arrays that grow on disk hold what was written before a kill, and say so where they do not."""

import numpy as np
import pytest

from chexstudy.arrays import GrowingArray, grow_arrays
from chexstudy.errors import StudyError
from chexstudy.runs import Run


def test_rows_written_in_turn_are_the_array(tmp_path):
    final, rows = tmp_path / "a.npy", np.arange(35, dtype=np.float32).reshape(7, 5)
    growing = GrowingArray(final, rows.shape, np.float32)
    for start in (0, 3):
        growing.write(start, rows[start : start + 3])
    with pytest.raises(StudyError, match="holds 6 rows and not the 7"):
        growing.finish()
    assert not final.exists()
    growing.write(6, rows[6:])
    growing.finish()
    assert np.array_equal(np.load(final), rows)
    assert [path.name for path in tmp_path.iterdir()] == ["a.npy"]


def test_another_process_goes_on_where_one_was_killed(tmp_path):
    final, rows = tmp_path / "a.npy", np.arange(12, dtype=np.float16).reshape(6, 2)
    killed = GrowingArray(final, rows.shape, np.float16)
    killed.write(0, rows[:4])
    killed.flush()
    later = GrowingArray(final, rows.shape, np.float16, keep=True)
    later.require(4)
    with pytest.raises(StudyError, match="holds 4 rows and not the 5 that its checkpoint counts"):
        later.require(5)
    # Its checkpoint is from before the last rows: they are decided anew.
    later.write(3, rows[3:])
    later.finish()
    assert np.array_equal(np.load(final), rows)


def test_what_is_not_kept_or_not_flushed_counts_for_nobody(tmp_path):
    shape = tmp_path / "a.npy", (4, 2), np.float32
    GrowingArray(*shape).write(0, np.ones((3, 2)))
    assert GrowingArray(*shape, keep=True).rows == 0
    flushed = GrowingArray(*shape)
    flushed.write(0, np.ones((3, 2)))
    flushed.flush()
    assert GrowingArray(*shape).rows == 0


def test_a_full_disk_is_one_sentence(tmp_path, full_disk):
    growing = GrowingArray(tmp_path / "a.npy", (100, 1000), np.float32)
    with full_disk(20_000), pytest.raises(StudyError, match=r"could not write .*a\.npy: File too large; free some"):
        growing.write(0, np.ones((100, 1000)))


def test_parts_are_computed_once_and_never_mixed_with_those_of_another_key(home):
    run, asked = Run("one"), []
    finals = [run.path(f"arrays/{kind}.npy") for kind in ("matrix", "cube")]

    def compute(rows):
        asked.append((rows.start, rows.stop))
        if len(asked) == 3:
            raise KeyboardInterrupt
        numbers = np.arange(rows.start, rows.stop)
        matrix = np.repeat(numbers, 3).reshape(-1, 3).astype(np.float32)
        return matrix, np.repeat(numbers, 4).reshape(-1, 2, 2).astype(np.float16)

    def grow(key):
        asked.clear()
        grow_arrays(finals, 10, 4, key, compute, "counting")

    with pytest.raises(KeyboardInterrupt):
        grow("one")
    grow_arrays(finals, 10, 4, "one", compute, "counting")
    assert asked == [(0, 4), (4, 8), (8, 10), (8, 10)]
    matrix, cube = (np.load(final) for final in finals)
    assert (matrix.dtype, cube.dtype) == (np.float32, np.float16)
    assert np.array_equal(matrix, np.repeat(np.arange(10), 3).reshape(10, 3))
    assert np.array_equal(cube, np.repeat(np.arange(10), 4).reshape(10, 2, 2))
    assert sorted(path.name for path in run.path("arrays").iterdir()) == ["cube.npy", "matrix.npy"]
    grow("one")
    assert asked == [], "all of it is there"
    for key in ("another", "third"):
        with pytest.raises(KeyboardInterrupt):
            grow(key)
    assert asked == [(0, 4), (4, 8), (8, 10)], "nothing of the other key"
