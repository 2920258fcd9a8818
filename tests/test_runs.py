import errno
import os
import platform
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

from chexstudy.errors import StudyError
from chexstudy.runs import Run, atomic_path, hash_file, hash_values


@pytest.fixture
def run(home):
    return Run("tiny")


@pytest.mark.parametrize("name", ["", ".", "..", ".hidden", "a/b", "../up", "/abs"])
def test_a_study_is_one_plain_folder_name(home, name):
    with pytest.raises(StudyError, match="plain folder name"):
        Run(name)


def test_an_atomic_write_appears_only_when_it_is_whole(tmp_path):
    final = tmp_path / "deep" / "a.txt"
    with atomic_path(final) as temporary:
        temporary.write_text("new")
        assert not final.exists()
        assert temporary.suffix == ".txt"
    assert final.read_text() == "new"
    assert os.listdir(final.parent) == ["a.txt"]


@pytest.mark.parametrize("exception", [ValueError, KeyboardInterrupt])
def test_an_interrupted_write_leaves_the_old_file(tmp_path, exception):
    final = tmp_path / "a.txt"
    final.write_text("old")

    def write():
        with atomic_path(final) as temporary:
            temporary.write_text("half")
            raise exception

    with pytest.raises(exception):
        write()
    assert final.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_a_full_disk_is_one_sentence_and_leaves_nothing(tmp_path, monkeypatch):
    def fsync(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", fsync)

    def write():
        with atomic_path(tmp_path / "a.txt") as temporary:
            temporary.write_text("half")

    with pytest.raises(StudyError, match=r"could not write .*a\.txt: No space left on device; free some space"):
        write()
    assert os.listdir(tmp_path) == []


WRITERS = {
    "table": "run.write_table('a.parquet', pd.DataFrame({'x': np.random.default_rng(0).random(100_000)}))",
    "array": "run.write_array('a.npy', np.zeros(100_000))",
    "json": "run.write_json('a.json', list(range(100_000)))",
}


@pytest.mark.parametrize("writer", WRITERS)
def test_a_write_that_the_system_cuts_off_leaves_nothing(home, writer):
    program = f"""
import resource
import numpy as np, pandas as pd
from chexstudy.errors import StudyError
from chexstudy.runs import Run
run = Run("tiny")
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
try:
    {WRITERS[writer]}
except StudyError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "could not write" in done.stdout
    assert list(Run("tiny").folder.iterdir()) == []


def test_what_a_killed_process_left_half_written_is_taken_away_and_nothing_else(tmp_path):
    dead = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True)
    of_this_machine = f".a.{platform.node()}"
    left = tmp_path / f"{of_this_machine}.{dead.stdout.strip()}.partial.txt"
    others = [
        f"{of_this_machine}.{os.getppid()}.partial.txt",
        f".a.elsewhere.{dead.stdout.strip()}.partial.txt",
        f".b.{platform.node()}.{dead.stdout.strip()}.partial.txt",
    ]
    for name in (left.name, *others):
        (tmp_path / name).write_text("half")
    with atomic_path(tmp_path / "a.txt") as temporary:
        temporary.write_text("whole")
    assert sorted(os.listdir(tmp_path)) == sorted([*others, "a.txt"])


def test_a_missing_artifact_names_who_makes_it(run):
    with pytest.raises(StudyError, match=r"study 'tiny' has no a\.parquet yet: run 01_build_cohort first"):
        run.read_table("a.parquet", "01_build_cohort")


def test_what_is_written_is_read_back(run):
    table = pd.DataFrame({"x": [1, 2], "name": ["a", "b"]})
    run.write_table("t.parquet", table)
    run.write_array("deep/a.npy", np.arange(6).reshape(2, 3))
    run.write_json("j.json", {"b": 1, "a": [1, 2]})
    pd.testing.assert_frame_equal(run.read_table("t.parquet", "x"), table)
    mapped = run.read_array("deep/a.npy", "x", memory_map=True)
    assert isinstance(mapped, np.memmap)
    assert mapped.tolist() == [[0, 1, 2], [3, 4, 5]]
    assert run.read_json("j.json", "x") == {"a": [1, 2], "b": 1}


def test_the_same_table_is_the_same_bytes(run):
    table = pd.DataFrame({"x": [1.5, 2.5], "name": ["a", None]})
    first, second = (hash_file(run.write_table(f"{name}.parquet", table)) for name in "ab")
    assert first == second


def test_hashes_do_not_depend_on_the_order_of_names():
    assert hash_values({"a": 1, "b": 2}) == hash_values({"b": 2, "a": 1})
    assert hash_values({"a": 1}) != hash_values({"a": 2})


def test_an_artifact_is_current_until_its_parameters_its_inputs_or_the_code_change(run, monkeypatch):
    run.write_json("in.json", 1)
    run.write_json("out.json", 2)
    assert not run.is_current("out.json", run.key({"k": 1}, ("in.json",)))
    run.record("out.json", {"k": 1}, ("in.json",), seed=3)
    assert run.is_current("out.json", run.key({"k": 1}, ("in.json",)))
    assert not run.is_current("out.json", run.key({"k": 2}, ("in.json",)))
    key = run.key({"k": 1}, ("in.json",))
    with monkeypatch.context() as patch:
        patch.setattr("chexstudy.runs.source_hash", lambda: "other code")
        assert not run.is_current("out.json", run.key({"k": 1}, ("in.json",)))
    assert run.is_current("out.json", key)
    run.write_json("in.json", 7)
    assert not run.is_current("out.json", run.key({"k": 1}, ("in.json",)))
    run.path("out.json").unlink()
    assert not run.is_current("out.json", key)


def test_provenance_says_how_an_artifact_came_to_be(run):
    run.write_json("in.json", 1)
    run.write_json("out.json", 2)
    run.record("out.json", {"k": 1}, ("in.json",), seed=3)
    record = run.provenance("out.json")
    assert record["parameters"] == {"k": 1}
    assert record["inputs"] == {"in.json": hash_file(run.path("in.json"))}
    assert record["seed"] == 3
    assert {"python", "torch", "numpy"} <= set(record["versions"])
    assert record["code_revision"]
    assert record["written_at"].endswith("+00:00")
