"""`faithful` means these numbers."""

import numpy as np
import pytest

from chexstudy.errors import StudyError
from chexstudy.golden import check_golden


def test_every_case_passes(golden_curator):
    cases = check_golden(golden_curator)
    assert len(cases) >= 3
    assert cases.passed.all()


@pytest.mark.parametrize("name", ["keep", "loss", "prototypes_after", "usage"])
def test_a_changed_number_fails_its_check(golden_curator, tmp_path, name):
    with np.load(golden_curator) as archive:
        arrays = dict(archive)
    spoilt = arrays[f"case0/{name}"]
    arrays[f"case0/{name}"] = ~spoilt if spoilt.dtype == bool else spoilt + 1e-6
    np.savez(tmp_path / "spoilt.npz", **arrays)
    cases = check_golden(tmp_path / "spoilt.npz").set_index("case")
    assert not cases.passed["case0"]
    assert cases.passed["case1"]


def test_wrong_files_are_named_in_one_sentence(tmp_path):
    with pytest.raises(StudyError, match="no file of golden numbers"):
        check_golden(tmp_path / "absent.npz")
    (tmp_path / "text.npz").write_text("not an archive")
    with pytest.raises(StudyError, match=r"not a readable \.npz"):
        check_golden(tmp_path / "text.npz")
    np.savez(tmp_path / "half.npz", **{"case0/image": np.zeros((2, 2))})
    with pytest.raises(StudyError, match="lacks the array 'case0/text'"):
        check_golden(tmp_path / "half.npz")


def test_a_single_array_is_no_file_of_golden_numbers(tmp_path):
    np.save(tmp_path / "one.npy", np.zeros(3))
    with pytest.raises(StudyError, match=r"is not a readable \.npz file: expected arrays named case0/image"):
        check_golden(tmp_path / "one.npy")
