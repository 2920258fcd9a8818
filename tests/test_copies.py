import os
from pathlib import Path

import pytest

from chexstudy.cohort import copies
from chexstudy.cohort.copies import find_copies, refuse_shared_files
from chexstudy.errors import StudyError


def write(folder, contents):
    """Files 0, 1, ... of these bytes."""
    files = [folder / str(number) for number in range(len(contents))]
    for file, content in zip(files, contents, strict=True):
        file.write_bytes(content)
    return files


def test_files_of_equal_bytes_are_found_whatever_their_names(tmp_path):
    files = write(tmp_path, [b"a" * 9, b"b" * 9, b"a" * 9, b"a" * 10, b"b" * 9, b"c", b"a" * 9])
    assert find_copies(files) == [[0, 2, 6], [1, 4]]
    assert find_copies([str(file) for file in files[3:]]) == []
    assert find_copies([]) == []


def test_only_files_that_agree_in_size_and_in_the_middle_are_read_whole(tmp_path, monkeypatch):
    large = bytes(20_000)
    files = write(tmp_path, [large, large[:-1] + b"\1", large, large[:10_000] + b"\1" + large[10_001:], large + b"\0"])
    read = []
    whole = copies.hash_file
    monkeypatch.setattr(copies, "hash_file", lambda file: read.append(file.name) or whole(file))
    assert find_copies(files) == [[0, 2]]
    assert read == ["0", "1", "2"]


def test_what_is_empty_absent_or_no_file_is_no_copy(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    files = [*write(tmp_path, [b"", b""]), tmp_path / "pipe", tmp_path / "pipe", tmp_path, tmp_path / "absent"]
    assert find_copies([*files, tmp_path / "absent", Path("/dev/zero"), Path("/dev/zero")]) == []


def test_a_file_named_twice_is_told_by_its_rows_however_it_is_written(tmp_path):
    first, second, third = write(tmp_path, [b"a", b"b", b"a"])
    (tmp_path / "link").symlink_to(second)
    (tmp_path / "folder").symlink_to(tmp_path)
    files = [first, second, third, tmp_path / "x/../0", str(tmp_path / "link"), tmp_path / "folder/0"]
    with pytest.raises(StudyError) as caught:
        refuse_shared_files(files)
    assert str(caught.value) == (
        "the cohort table: rows 0 and 3 name one image file, and 5 rows share their file with another: keep one row "
        "for each file, or mend the column of paths."
    )
    refuse_shared_files(files[:3])
