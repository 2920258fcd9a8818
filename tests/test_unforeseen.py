"""Nothing ends in a traceback: refusals of the system and mistakes of ours are one sentence, a log and an exit code."""

import errno
import os
import re
import subprocess
import sys

import pytest

from chexstudy import paths
from chexstudy.cli import doctor
from chexstudy.cli import main as cli
from chexstudy.workflow.unforeseen import tell_mistake, tell_unforeseen

_SECRET = "Mrs. Doe has a small left effusion"


def _fail(kind, text=_SECRET):
    raise kind(text)


@pytest.mark.parametrize("kind", [ValueError, KeyError, TypeError, ZeroDivisionError, RuntimeError])
def test_the_unforeseen_is_a_sentence_and_a_log_without_words_of_the_data(home, monkeypatch, capsys, kind):
    def fail():
        try:
            _fail(LookupError)
        except LookupError:
            _fail(kind)

    monkeypatch.setattr(doctor, "_versions", fail)
    assert cli.main(["doctor"]) == 1
    said = capsys.readouterr()
    assert said.out == ""
    (log,) = (paths.runs() / ".logs").iterdir()
    assert re.fullmatch(
        rf"this should not happen: {kind.__name__} at chexstudy/cli/doctor\.py, line \d+; where it came from is in "
        rf"{re.escape(str(log))}, and `--debug` shows all, to be sent with a report of it\.\n",
        said.err,
    )
    text = log.read_text()
    assert f"builtins.{kind.__name__}\n" in text
    assert "builtins.LookupError\n" in text
    assert "in _fail: raise kind(text)" in text
    assert _SECRET not in text
    with pytest.raises(kind):
        cli.main(["doctor", "--debug"])


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (
            MemoryError(),
            r"memory ran out: use a smaller profile, fewer workers or smaller batches, or close other .*\.",
        ),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"), r"memory ran out: .*"),
        (
            PermissionError(errno.EACCES, "x", "/a/b"),
            r"/a/b cannot be used: Permission denied; change its permissions.*",
        ),
        (
            OSError(errno.ENAMETOOLONG, "x", "n" * 300),
            r"n{60}…n{60} cannot be used: File name too long; choose a short.*",
        ),
        (
            NotADirectoryError(errno.ENOTDIR, "x", "/a"),
            r"/a cannot be used: Not a directory; a file is where a folder.*",
        ),
        (FileNotFoundError(errno.ENOENT, "x"), r"the folder you stand in was removed: change to another .*"),
        (OSError(errno.ENOSPC, "x"), r"the system refuses: No space left on device; free some space, .*"),
    ],
)
def test_what_the_system_refuses_is_told_as_such(home, monkeypatch, capsys, error, sentence):
    assert re.fullmatch(sentence, tell_mistake(error))

    def fail():
        raise error

    monkeypatch.setattr(doctor, "_versions", fail)
    assert cli.main(["doctor"]) == 2
    assert re.fullmatch(sentence + "\n", capsys.readouterr().err)


def test_a_log_that_cannot_be_written_does_not_hide_the_sentence(home):
    home.joinpath("runs").write_text("a file where the folder should be")
    with pytest.raises(ValueError, match="Doe") as caught:
        _fail(ValueError)
    assert tell_mistake(caught.value) is None
    told = tell_unforeseen(caught.value)
    assert re.match(r"this should not happen: ValueError at .*test_unforeseen\.py, line \d+; no log could be wri", told)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full")
@pytest.mark.parametrize("arguments", [["--help"], ["run", "--list"]])
def test_a_full_disk_behind_standard_output_is_one_sentence(home, arguments):
    command = [sys.executable, "-m", "chexstudy.cli", *arguments]
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.stderr == (
        "the system refuses: No space left on device; free some space, or set CHEXSTUDY_HOME to another disk.\n"
    )
    assert done.returncode == 2


def test_a_folder_that_is_gone_is_one_sentence(home, tmp_path):
    gone = tmp_path / "gone"
    gone.mkdir()
    program = "import os, sys; from chexstudy.cli.main import main; os.rmdir(os.getcwd()); sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", program, "cohort", "check", "here.csv"]
    done = subprocess.run(command, cwd=gone, capture_output=True, text=True)
    assert done.stderr == "the folder you stand in was removed: change to another one and give the command again.\n"
    assert done.returncode == 2


def test_the_engine_has_a_last_handler_too(home, monkeypatch, capsys):
    from chexstudy.pretraining.training import arm_run as engine

    monkeypatch.setattr(engine, "StopRequests", lambda: None)
    monkeypatch.setattr(engine, "_read_values", lambda path: _fail(ValueError))
    assert engine.main(["--study", "s", "--arm", "full", "--device", "cpu"]) == 1
    said = capsys.readouterr().err
    assert re.match(
        r"this should not happen: ValueError at chexstudy/pretraining/training/arm_run\.py, line \d+; where it", said
    )
    assert _SECRET not in said
    monkeypatch.setattr(engine, "_read_values", lambda path: _fail(MemoryError))
    assert engine.main(["--study", "s", "--arm", "full", "--device", "cpu"]) == 2
    assert capsys.readouterr().err.startswith("memory ran out")
    with pytest.raises(MemoryError):
        engine.main(["--study", "s", "--arm", "full", "--device", "cpu", "--debug"])


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("[" * 100_000, r"--config .* cannot be read \(RecursionError\): give a JSON file of constants\."),
        ("\ufeff", r"--config .* cannot be read \(JSONDecodeError\): give a JSON file of constants\."),
        ('{"curator": 3}', r"--config .* holds no constants by name: .*"),
        ('{"dim": "16"}', r"dim must be int, not '16'\."),
        (f'{{"dim": {10**30}}}', r"dim must be a number that a computer can work with, not 10+\."),
        ('{"learning_rate": Infinity}', r"learning_rate must be a number that a computer can work with, not inf\."),
        ('{"temperature": 0.0}', r"temperature must be above 0, not 0\.0\."),
        ('{"threads": 1000000000}', r"threads must be at most 1024, not 1000000000\."),
        ('{"frozen_towers": [[1]]}', r"frozen_towers must be a list of str, not \[\[1\]\]\."),
        ('{"image_encoder": "a\\u0000b"}', r"a path cannot hold the character of number 0: write it again\."),
    ],
)
def test_odd_constants_are_one_sentence(tiny_study, monkeypatch, capsys, tmp_path, content, sentence):
    from chexstudy.pretraining.training import arm_run as engine

    monkeypatch.setattr(engine, "StopRequests", lambda: None)
    (tmp_path / "arm.json").write_text(content)
    given = ["--study", "tiny", "--arm", "full", "--device", "cpu", "--config", str(tmp_path / "arm.json")]
    assert engine.main(given) == 2
    assert re.fullmatch(sentence + "\n", capsys.readouterr().err)
