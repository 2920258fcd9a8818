"""How a training is asked to stop: it finishes its step, writes a checkpoint and can be started again."""

import signal
import sys

# BSD's "temporary failure; try again", which batch systems can be told to requeue on.
START_AGAIN = 75


class Stopped(Exception):
    """The arm was asked to stop and can go on from its last checkpoint."""


class StopRequests:
    """Whether somebody has asked this process to stop.

    A signal asks; the same one again, or any outside the block that trains (``with requests:``), ends the process at
    once. JupyterLab interrupts the kernel's processes with one signal, and the kernel then ends its workers with
    another.
    """

    def __init__(self):
        self.training = False
        self._received: set[int] = set()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
            signal.signal(number, self._ask)

    def __enter__(self) -> None:
        self.training = True

    def __exit__(self, *_: object) -> None:
        self.training = False

    @property
    def asked(self) -> bool:
        return bool(self._received)

    def _ask(self, number: int, *_: object) -> None:
        if number in self._received or not self.training:
            # As an exception, so that a file half written is taken away.
            sys.exit(START_AGAIN)
        self._received.add(number)
