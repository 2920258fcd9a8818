"""A fork of the warm process is ``python -m MODULE`` to whoever asked for it."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from chexstudy.workflow.warm import start_python, warm_process

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks of a warm process are for Linux")
_MODULE = """
import json, os, sys, time
late = "heavy" in sys.modules
import heavy
if __name__ == "__main__":
    print(json.dumps([sys.argv[1:], os.environ["ONE"], os.getcwd(), late, os.getppid()]), flush=True)
    print(sys.stdin.readline().strip()[::-1], flush=True)
    print("last words", file=sys.stderr)
    sys.exit(int(sys.stdin.readline() or 7))
"""


@pytest.fixture
def start(tmp_path, monkeypatch):
    (tmp_path / "heavy.py").write_text("")
    (tmp_path / "asked.py").write_text(_MODULE)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")

    def start(warm):
        with open(tmp_path / "errors", "w") as errors:
            environment = os.environ | {"ONE": "1"} | warm
            return start_python("asked", ["a", "b c"], environment, errors.fileno(), tmp_path, piped=True)

    return start


def test_warm_or_cold_it_is_the_same_process_but_for_what_is_imported(start, tmp_path):
    told = []
    with warm_process(["import heavy", "import nothing_of_that_name"], {}) as warm:
        for where in ({}, warm, warm):
            process = start(where)
            told.append(json.loads(process.stdout.readline()))
            process.stdin.write("word\n3\n")
            process.stdin.flush()
            assert process.stdout.readline() == "drow\n"
            assert process.wait(30) == process.poll() == 3
            assert (tmp_path / "errors").read_text() == "last words\n"
    assert [one[:3] for one in told] == [[["a", "b c"], "1", str(tmp_path)]] * 3
    # The first that asks does not wait until everything is imported.
    assert (told[0][3], told[2][3]) == (False, True)
    assert told[0][4] == os.getpid() != told[1][4] == told[2][4]
    assert process.largest_bytes > 2**20


def test_a_killed_fork_is_heard_of_and_without_a_warm_process_a_cold_one_works(start):
    with warm_process(["import heavy"], {}) as warm:
        process = start(warm)
        server = json.loads(process.stdout.readline())[-1]
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.01)
        process.kill()
        assert process.wait(30) == -signal.SIGKILL
        os.kill(server, signal.SIGKILL)
        cold = start(warm)
        assert json.loads(cold.stdout.readline())[-1] == os.getpid()
        cold.kill()
        cold.wait()


def test_a_fork_ends_with_the_one_that_asked_for_it(start):
    with warm_process([], {}) as warm:
        process = start(warm)
        process.stdout.readline()
        process._connection.close()
        until = time.monotonic() + 30
        while time.monotonic() < until and Path(f"/proc/{process.pid}").exists():
            time.sleep(0.05)
        assert not Path(f"/proc/{process.pid}").exists()
