"""Ctrl-C and SIGTERM while a stage trains: the step is finished, a checkpoint written, and the way on is said."""

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from ..errors import SightlineError

ECHO = 1.0
"""Seconds within which a second signal is taken for the first: a scheduler that signals every process, and torchrun
that passes on what it got, say the same thing twice."""


class Stopped(SightlineError):
    """The user, or the machine's scheduler, asked the run to stop, and it did so with nothing lost."""

    def __init__(self, message: str, signum: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + signum


class StopSignal:
    """What was asked for: 0, or the number of the signal."""

    def __init__(self) -> None:
        self.signum = 0
        self._asked = 0.0

    def __bool__(self) -> bool:
        return self.signum != 0

    def _ask(self, signum: int, frame: FrameType | None) -> None:
        if not self.signum:
            self.signum, self._asked = signum, time.monotonic()
        elif time.monotonic() - self._asked > ECHO:
            signal.default_int_handler(signum, frame)


@contextmanager
def listening() -> Iterator[StopSignal]:
    """Take SIGINT and SIGTERM as a wish to stop; another, later than `ECHO`, stops at once. Outside the main thread, do
    nothing."""
    stop = StopSignal()
    before = {}
    try:
        for signum in (signal.SIGINT, signal.SIGTERM):
            before[signum] = signal.signal(signum, stop._ask)
    except ValueError:
        pass
    try:
        yield stop
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
