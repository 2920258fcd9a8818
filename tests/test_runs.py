import errno
import os
import platform
import subprocess
import sys
import threading

import numpy as np
import pandas as pd
import pytest

from chexstudy import paths, runs
from chexstudy.errors import StudyError
from chexstudy.runs import Run, atomic_path, hash_file, hold_lock


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


@pytest.mark.parametrize(
    ("broken_by", "told"),
    [
        (ValueError("mine"), (ValueError, "mine")),
        (KeyboardInterrupt(), (KeyboardInterrupt, None)),
        (OSError(errno.ENOSPC, "No space"), (StudyError, r"could not write .*a\.txt: No space; free some space")),
    ],
)
def test_an_interrupted_write_leaves_the_old_file(tmp_path, broken_by, told):
    final = tmp_path / "a.txt"
    final.write_text("old")

    def write():
        with atomic_path(final) as temporary:
            temporary.write_text("half")
            raise broken_by

    with pytest.raises(told[0], match=told[1]):
        write()
    assert final.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_a_write_that_the_system_cuts_off_leaves_nothing(run, full_disk):
    numbers = np.random.default_rng(0).random(100_000)
    writes = (
        lambda: run.write_table("a.parquet", pd.DataFrame({"x": numbers})),
        lambda: run.write_array("a.npy", numbers),
        lambda: run.write_json("a.json", numbers.tolist()),
    )
    for write in writes:
        with full_disk(20_000), pytest.raises(StudyError, match="could not write"):
            write()
        assert list(run.folder.iterdir()) == []


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


def test_what_is_written_is_read_back(run):
    table = pd.DataFrame({"x": [1, 2], "name": ["a", "b"]})
    run.write_table("t.parquet", table)
    run.write_array("deep/a.npy", np.arange(6).reshape(2, 3))
    run.write_json("j.json", {"b": 1, "a": [1, 2]})
    pd.testing.assert_frame_equal(run.read_table("t.parquet"), table)
    mapped = run.read_array("deep/a.npy", memory_map=True)
    assert isinstance(mapped, np.memmap)
    assert mapped.tolist() == [[0, 1, 2], [3, 4, 5]]
    assert run.read_json("j.json") == {"a": [1, 2], "b": 1}
    assert hash_file(run.write_table("again.parquet", table)) == hash_file(run.path("t.parquet"))


def test_an_artifact_is_current_until_its_parameters_its_inputs_or_the_code_change(run, monkeypatch):
    run.write_json("in.json", 1)
    run.write_json("out.json", 2)
    assert not run.is_current("out.json", run.key({"k": 1}, ("in.json",)))
    run.record("out.json", {"k": 1, "l": 2}, ("in.json",), seed=3)
    key = run.key({"l": 2, "k": 1}, ("in.json",))
    assert run.is_current("out.json", key)
    assert not run.is_current("out.json", run.key({"k": 2, "l": 2}, ("in.json",)))
    record = run.provenance("out.json")
    assert (record["parameters"], record["seed"]) == ({"k": 1, "l": 2}, 3)
    assert record["inputs"] == {"in.json": hash_file(run.path("in.json"))}
    assert {"python", "torch", "numpy"} <= set(record["versions"])
    assert record["code_revision"]
    assert record["written_at"].endswith("+00:00")
    with monkeypatch.context() as patch:
        patch.setattr("chexstudy.runs.hash_closure", lambda module: "other code")
        assert not run.is_current("out.json", run.key({"k": 1, "l": 2}, ("in.json",)))
    run.write_json("in.json", 7)
    assert not run.is_current("out.json", run.key({"k": 1, "l": 2}, ("in.json",)))
    run.path("out.json").unlink()
    assert not run.is_current("out.json", key)


# --- damage ----------------------------------------------------------------------------------------------------------


def _flip(content):
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


DAMAGES = {"flipped": _flip, "cut": lambda content: content[: len(content) // 2], "empty": lambda content: b""}
KINDS = {
    "a.parquet": (Run.write_table, Run.read_table, pd.DataFrame({"x": np.arange(40.0)})),
    "deep/a.npy": (Run.write_array, Run.read_array, np.arange(40.0)),
    "a.json": (Run.write_json, Run.read_json, {"seconds": 12.5, "flops": [1.0, 2.0]}),
}


@pytest.fixture
def at_once(monkeypatch):
    monkeypatch.setattr("chexstudy.runs._SECONDS_OF_A_REPLACEMENT", 0)


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", KINDS)
def test_a_damaged_artifact_is_told_never_read_and_made_again(run, capsys, monkeypatch, at_once, name, damage):
    write, read, value = KINDS[name]
    key = run.key({"k": 1})
    with monkeypatch.context() as patch:
        patch.setenv("CHEXSTUDY_NOTEBOOK", "05_compare_arms")
        write(run, name, value)
        run.record(name, {"k": 1})
    whole = run.path(name).read_bytes()
    assert run.is_current(name, key)
    run.path(name).write_bytes(DAMAGES[damage](whole))
    assert not run.is_current(name, key)
    altered = f"{name} of study 'tiny' is not what was written there (its SHA-256 differs), it was damaged or changed"
    assert capsys.readouterr().out == f"{altered}: it is made again.\n"
    # Another notebook that reads it says who made it, whoever it thinks did.
    for use in (lambda: read(run, name), lambda: run.key({}, (name,))):
        with pytest.raises(StudyError) as caught:
            use()
        assert str(caught.value) == f"{altered}: run 05_compare_arms again, which makes it anew."
    write(run, name, value)
    assert not run.is_current(name, key), "until it is recorded how it was made"
    run.record(name, {"k": 1})
    assert run.is_current(name, key)
    assert run.path(name).read_bytes() == whole
    read(run, name)


def test_a_missing_table_and_one_edited_by_hand_name_who_makes_it(run, at_once):
    name = "evaluation/full/seed0/scores.parquet"
    with pytest.raises(StudyError, match=r"study 'tiny' has no evaluation/.* yet: run 05_compare_arms first"):
        run.read_table(name)
    run.write_table(name, pd.DataFrame({"score": [0.25, 0.5]}))
    pd.DataFrame({"score": [0.75, 0.5]}).to_parquet(run.path(name), index=False)
    with pytest.raises(StudyError, match=r"it was damaged or changed: run 05_compare_arms again"):
        run.read_table(name)


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_provenance_is_damage(run, capsys, at_once, damage):
    run.write_json("a.json", 1)
    run.record("a.json", {"k": 1})
    record = run.path("provenance/a.json.json")
    record.write_bytes(DAMAGES[damage](record.read_bytes()))
    assert run.provenance("a.json") is None
    assert not run.is_current("a.json", run.key({"k": 1}))
    assert "a.json of study 'tiny' has a provenance that cannot be read: it is made again" in capsys.readouterr().out
    with pytest.raises(
        StudyError, match=r"has a provenance that cannot be read: run the step that makes it again, which makes it anew"
    ):
        run.read_json("a.json")


def test_no_bit_of_provenance_can_change_unseen(run):
    run.write_json("a.json", 1)
    run.record("a.json", {"k": 1}, seed=3)
    record, before = run.path("provenance/a.json.json"), run.provenance("a.json")
    content = record.read_bytes()
    for position in range(0, 400, 37):
        record.write_bytes(content[:position] + bytes([content[position] ^ 1]) + content[position + 1 :])
        assert run.provenance("a.json") in (None, before), position


def test_an_artifact_is_current_only_with_all_files_recorded_with_it(run, at_once):
    key = run.key({"k": 1})

    def make():
        run.write_json("main.json", 1)
        run.write_array("rows.npy", np.arange(5))
        run.path("model").mkdir(exist_ok=True)
        for name in ("weights", "config", ".hidden"):
            run.path(f"model/{name}").write_text(name)
        runs.seal_artifact(run.path("model"))
        run.record("main.json", {"k": 1}, files=("rows.npy", "model"))

    make()
    assert run.is_current("main.json", key)
    for name in ("main.json", "rows.npy", "model/weights"):
        path = run.path(name)
        whole = path.read_bytes()
        path.write_bytes(_flip(whole))
        assert not run.is_current("main.json", key), name
        path.unlink()
        assert not run.is_current("main.json", key), name
        path.write_bytes(whole)
        assert run.is_current("main.json", key), name
    run.path("model/extra").write_text("")
    assert not run.is_current("main.json", key), "a file that nobody wrote"
    run.path("model/extra").unlink()
    run.path("model/.hidden").unlink()
    assert run.is_current("main.json", key)
    # The seal of a part alone is written anew, since the whole tells what the part is.
    for lost in (b"", None):
        record = run.path("provenance/rows.npy.json")
        record.unlink() if lost is None else record.write_bytes(lost)
        assert run.is_current("main.json", key)
        assert run.read_array("rows.npy").tolist() == [0, 1, 2, 3, 4]
        assert record.stat().st_size > 0
    run.write_array("rows.npy", np.arange(6))
    assert not run.is_current("main.json", key), "a part of another making"
    with pytest.raises(
        StudyError, match=r"main\.json of study 'tiny' was written with another rows\.npy than there is"
    ):
        run.read_json("main.json")


def test_what_is_damaged_before_it_is_recorded_is_not_taken_for_what_was_written(run, at_once):
    run.write_array("rows.npy", np.arange(5))
    run.write_json("main.json", 1)
    run.path("rows.npy").write_bytes(_flip(run.path("rows.npy").read_bytes()))
    with pytest.raises(StudyError, match=r"rows\.npy of study 'tiny' is not what was written there"):
        run.record("main.json", {}, files=("rows.npy",))


def test_files_of_the_user_are_read_without_a_seal_and_refused_if_they_cannot_be(run):
    run.folder.mkdir(parents=True)
    pd.DataFrame({"x": [1]}).to_parquet(run.path("own.parquet"))
    assert run.read_table("own.parquet").x.tolist() == [1]
    for name, content in (("own.parquet", b""), ("own.json", b"{"), ("deep.json", b"[" * 100_000), ("own.npy", b"x")):
        run.path(name).write_bytes(content)
        read = {".parquet": run.read_table, ".json": run.read_json, ".npy": run.read_array}[run.path(name).suffix]
        with pytest.raises(
            StudyError, match=rf"^{name} of study 'tiny' cannot be read \(.*\): run the step that makes"
        ):
            read(name)


def test_a_reader_between_the_seal_and_the_file_waits_for_the_file(run, monkeypatch):
    run.write_json("a.json", 1)
    old = run.path("a.json").read_bytes()
    run.write_json("a.json", 2)
    new = run.path("a.json").read_bytes()
    run.path("a.json").write_bytes(old)
    monkeypatch.setattr("chexstudy.runs.time.sleep", lambda seconds: run.path("a.json").write_bytes(new))
    assert run.read_json("a.json") == 2


def test_a_large_file_is_hashed_once_a_process(run, monkeypatch):
    run.write_array("large.npy", np.arange(1000))
    settled = os.stat(run.path("large.npy")).st_mtime_ns - 10**10
    os.utime(run.path("large.npy"), ns=(settled, settled))
    read = []
    digest = runs.hashlib.file_digest
    monkeypatch.setattr(runs.hashlib, "file_digest", lambda file, kind: read.append(file.name) or digest(file, kind))
    for _ in range(5):
        run.read_array("large.npy", memory_map=True)
        run.key({}, ("large.npy",))
    assert len(read) == 1
    with open(run.path("large.npy"), "r+b") as file:
        file.seek(500)
        file.write(b"x")
    with pytest.raises(StudyError, match="SHA-256 differs"):
        run.read_array("large.npy")


def test_an_artifact_is_forgotten_with_its_provenance(run):
    for name in ("deep/a.json", "deep/b.json", "c.json"):
        run.write_json(name, 1)
    runs.forget_artifact(run.path("deep"))
    runs.forget_artifact(run.path("absent.json"))
    left = sorted(path.relative_to(run.folder).as_posix() for path in run.folder.rglob("*") if path.is_file())
    assert left == ["c.json", "provenance/c.json.json"]


def test_a_large_file_is_read_once_by_all_processes_until_it_changes_or_time_is_up(run, monkeypatch):
    monkeypatch.setattr(runs, "_LARGE_FILE", 4)
    monkeypatch.setattr(runs, "_CLOCK_TICK", 0)
    reads = []
    digest = runs.hashlib.file_digest
    monkeypatch.setattr(runs.hashlib, "file_digest", lambda *given: reads.append(1) or digest(*given))
    large, small = run.path("large"), run.path("small")
    large.parent.mkdir(parents=True, exist_ok=True)
    large.write_bytes(b"large")
    small.write_bytes(b"abc")

    def read_in_another_process(path):
        monkeypatch.setattr(runs, "_hashes", {})
        before = len(reads)
        return hash_file(path), len(reads) - before

    first = hash_file(large)
    assert read_in_another_process(large) == (first, 0)
    assert [read_in_another_process(small)[1] for _ in range(2)] == [1, 1]
    (memo,) = (paths.cache() / "hashes").iterdir()
    os.utime(memo, (0, 0))
    assert read_in_another_process(large) == (first, 1)
    memo.write_text("cut")
    assert read_in_another_process(large) == (first, 1)
    status = large.stat()
    large.write_bytes(b"flips")
    os.utime(large, ns=(status.st_atime_ns, status.st_mtime_ns))
    changed, read = read_in_another_process(large)
    assert (changed != first, read) == (True, 1)


def test_a_lock_is_refused_or_waited_for(tmp_path):
    entered, path = threading.Event(), tmp_path / "made" / ".lock"

    def enter():
        with hold_lock(path, wait=True) as is_held:
            assert is_held
            entered.set()

    with hold_lock(path) as is_held, hold_lock(path) as is_held_twice:
        assert (is_held, is_held_twice) == (True, False)
        other = threading.Thread(target=enter)
        other.start()
        assert not entered.wait(0.3)
    assert entered.wait(10)
    other.join()
