"""Arrays that grow on disk hold what was written before a kill, and say so where they do not."""

import numpy as np
import pytest

from chexstudy.errors import StudyError
from chexstudy.growing import GrowingArray


def test_rows_written_in_turn_are_the_array(tmp_path):
    final, rows = tmp_path / "a.npy", np.arange(35, dtype=np.float32).reshape(7, 5)
    growing = GrowingArray(final, rows.shape, np.float32)
    for start in (0, 3, 6):
        growing.write(start, rows[start : start + 3])
    assert not final.exists()
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


def test_one_that_starts_anew_forgets_what_was_there(tmp_path):
    GrowingArray(tmp_path / "a.npy", (4, 2), np.float32).write(0, np.ones((3, 2)))
    assert GrowingArray(tmp_path / "a.npy", (4, 2), np.float32).rows == 0


def test_an_array_with_rows_missing_is_not_put_in_its_place(tmp_path):
    growing = GrowingArray(tmp_path / "a.npy", (4, 2), np.float32)
    growing.write(0, np.ones((3, 2)))
    with pytest.raises(StudyError, match="holds 3 rows and not the 4"):
        growing.finish()
    assert not (tmp_path / "a.npy").exists()


def test_a_full_disk_is_one_sentence(tmp_path, full_disk):
    growing = GrowingArray(tmp_path / "a.npy", (100, 1000), np.float32)
    with full_disk(20_000), pytest.raises(StudyError, match=r"could not write .*a\.npy: File too large; free some"):
        growing.write(0, np.ones((100, 1000)))
