"""Python processes that start warm: forks of one process that has imported what they need.

Torch and the rest take seconds to import, and a study starts a process for every notebook and for every few trainings.
So the runner starts one more, which does nothing but import and fork (`warm_process`). `start_python` asks it for
``python -m MODULE`` where there is one, and starts that itself elsewhere: in JupyterLab, and outside of Linux, where
not every library bears a fork. It never computes and has one thread, so nothing is lost in a fork of it.
"""

import json
import os
import resource
import runpy
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from chexstudy.children import fits_sockets, name_parent, temporary_folder
from chexstudy.workflow.locks import inherited_descriptors

# Where the warm process listens, for the processes that may ask it.
_SOCKET = "CHEXSTUDY_WARM"
_LARGEST_ORDER = 2**20
_SECONDS_TO_END = 4.0
# What functions of these modules import late, because it takes long.
_LATE = {
    "chexstudy.encoders": "transformers.modeling_utils",
    "chexstudy.pretraining.arms": "chexstudy.pretraining.training.arm_run",
    "chexstudy.vectors.umap": "umap",
}


@contextmanager
def warm_process(statements: Sequence[str], environment: Mapping[str, str]) -> Iterator[dict[str, str]]:
    """A process that forks, for the time of the block; yields what `start_python` needs in the environment to ask it.

    It executes import ``statements``, one after the other, while nobody asks it for a process, and works under the
    variables of ``environment`` beside those of this process.
    """
    with temporary_folder() as folder, socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        if sys.platform != "linux" or not fits_sockets(folder):
            yield {}
            return
        listener.bind(f"{folder}/warm")
        listener.listen()
        process = subprocess.Popen(
            [sys.executable, "-m", "chexstudy.workflow.warm", str(listener.fileno())],
            # A library that looks for a GPU when it is imported is answered without opening one.
            env=os.environ | dict(environment) | {"PYTORCH_NVML_BASED_CUDA_CHECK": "1"},
            pass_fds=(listener.fileno(), *inherited_descriptors()),
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        # Open here, too, it would take the calls of one that has died.
        listener.close()
        try:
            process.stdin.write(json.dumps(list(statements)).encode() + b"\n")
            process.stdin.flush()
            yield {_SOCKET: f"{folder}/warm"}
        finally:
            process.kill()
            process.communicate()


def start_python(
    module: str,
    arguments: Sequence[str],
    environment: Mapping[str, str],
    errors: int,
    folder: Path,
    piped: bool = False,
) -> "subprocess.Popen | _Fork":
    """Start ``python -m MODULE ARGUMENTS`` in a session of its own, under this process's lock of a study.

    It has exactly the variables of ``environment``, works in ``folder``, and writes its errors to a descriptor. Its
    standard input and output are pipes of texts if it is ``piped``; else there is none of either.
    """
    if address := environment.get(_SOCKET):
        # Where the warm process has died, a cold one does.
        with suppress(OSError):
            return _Fork(address, [module, list(arguments), dict(environment), str(folder)], errors, piped)
    pipe = subprocess.PIPE if piped else subprocess.DEVNULL
    return subprocess.Popen(
        [sys.executable, "-m", module, *arguments],
        env={**environment, **name_parent()},
        cwd=folder,
        stdin=pipe,
        stdout=pipe,
        stderr=errors,
        text=piped,
        pass_fds=inherited_descriptors(),
        start_new_session=True,
    )


class _Fork:
    """A fork of the warm process, with the part of `subprocess.Popen` that is asked for."""

    stdin = stdout = stderr = None

    def __init__(self, address: str, order: list, errors: int, piped: bool):
        self.returncode: int | None = None
        self.largest_bytes = 0  # of it and what it has waited for, known when it has ended
        self._status = -signal.SIGKILL
        self._connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._connection.connect(address)
        if piped:
            (read, given), (taken, write) = os.pipe(), os.pipe()
            self.stdin, self.stdout = os.fdopen(given, "w"), os.fdopen(taken)
        else:
            read = write = os.open(os.devnull, os.O_RDWR)
        try:
            socket.send_fds(self._connection, [json.dumps(order).encode()], [read, write, errors])
            self.pid = int(self._connection.recv(64) or -1)
        finally:
            for descriptor in {read, write}:
                os.close(descriptor)
        if self.pid < 0:
            raise ConnectionResetError

    def poll(self) -> int | None:
        return self._listen(0)

    def wait(self, timeout: float | None = None) -> int:
        if self._listen(timeout) is None:
            raise subprocess.TimeoutExpired("a warm process", timeout)
        return self.returncode

    def _listen(self, seconds: float | None) -> int | None:
        """Its exit status, as soon as its end of the connection is closed; it says it before, if it still can."""
        while self.returncode is None and select.select([self._connection], [], [], seconds)[0]:
            try:
                said = self._connection.recv(64)
            except ConnectionResetError:
                said = b""
            if said:
                self._status, self.largest_bytes = json.loads(said)
            else:
                self.returncode = self._status
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def main() -> None:
    """Import and fork until standard input ends, which is when the one who started this process does."""
    os.environ.pop("JPY_PARENT_PID", None)
    # Nobody waits for the forks: whoever asked hears of their end.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    statements = json.loads(sys.stdin.readline())
    statements += [f"if {one!r} in sys.modules: import {late}" for one, late in _LATE.items()]
    with socket.socket(fileno=int(sys.argv[1])) as listener:
        while True:
            ready = select.select([listener, sys.stdin], [], [], 0 if statements else None)[0]
            if sys.stdin in ready:
                return
            if listener in ready:
                connection, _ = listener.accept()
                if os.fork() == 0:
                    break
                connection.close()
            elif statements:
                # What is wrong with it, the notebook tells.
                with suppress(Exception):
                    exec(statements.pop(0), {"sys": sys})
    _work(connection)


def _work(connection: socket.socket) -> None:
    """Be ``python -m MODULE`` for the process at the other end of the connection, and end with it."""
    order, descriptors, _, _ = socket.recv_fds(connection, _LARGEST_ORDER, 3)
    module, arguments, environment, folder = json.loads(order)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.setsid()
    for number, descriptor in enumerate(descriptors):
        os.dup2(descriptor, number)
    threads = environment.get("OMP_NUM_THREADS", "")
    if threads.isdecimal() and threads != os.environ.get("OMP_NUM_THREADS"):
        # Libraries that are told so after they were loaded do not listen.
        from threadpoolctl import threadpool_limits

        threadpool_limits(int(threads))
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    connection.send(str(os.getpid()).encode())
    threading.Thread(target=_end_with, args=(connection,), daemon=True).start()
    sys.argv = [module, *arguments]
    status = 1
    try:
        # Imported before, it is still run from its beginning.
        sys.modules.pop(module, None)
        runpy.run_module(module, run_name="__main__", alter_sys=True)
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
        raise
    finally:
        largest = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
        with suppress(OSError):
            connection.send(json.dumps([status, largest * 1024]).encode())


def _end_with(connection: socket.socket) -> None:
    with suppress(OSError):
        connection.recv(1)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(_SECONDS_TO_END)
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    main()
