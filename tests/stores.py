"""What tests of stores share: the bytes of one, and a death in the middle of writing one."""

import os
import signal
from collections.abc import Callable
from pathlib import Path

from sightline.data.store import Store


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a folder, hidden ones too."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def exit_code(work: Callable[[], object]) -> int:
    """The exit code of `work` in a forked process; negative for a signal."""
    pid = os.fork()
    if pid == 0:
        try:
            work()
            os._exit(0)
        except BaseException:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def killed_at_shard(number: int, work: Callable[[], object]) -> None:
    """Do `work` in a process that is killed, for real, as it writes its `number`-th shard."""

    def dying() -> None:
        write, count = Store.write, 0

        def killed(*arguments) -> None:
            nonlocal count
            count += 1
            if count == number:
                os.kill(os.getpid(), signal.SIGKILL)
            write(*arguments)

        Store.write = killed
        work()

    assert exit_code(dying) == -signal.SIGKILL
