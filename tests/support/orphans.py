"""Kill the processes that tests have started once their parent has ended, even if it was killed with SIGKILL.

A killed process cannot clean up. So each process that runs tests has a watcher, a small process that waits for its end
and then kills its children and their children, those in other sessions included. The watcher finds them by a variable
in their environment, which processes inherit.

This needs Linux's /proc. Elsewhere, tests that are interrupted or fail still end their children, but SIGKILL leaves
some. A process that was forked and never called exec has its parent's environment and is not found: a test that forks
must limit the life of its child itself.
"""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

__all__ = ["Watcher"]

_PROC = Path("/proc")
_VARIABLE = "TRIO_SPANBATCH_TESTS_STARTED_BY"
# A process between fork and exec still has its parent's environment, so the search is repeated several times.
_LOOKS = 5
_SECONDS_BETWEEN_LOOKS = 0.05


class Watcher:
    """Kills the processes that this process starts from now on, once it has ended or calls `end`."""

    def __init__(self) -> None:
        # The watcher itself must not be killed by the watcher of the process that started this one.
        environ = {name: value for name, value in os.environ.items() if name != _VARIABLE}
        self._outer = os.environ.get(_VARIABLE)
        own = os.environ[_VARIABLE] = f"{os.getpid()}-{secrets.token_hex(8)}"
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", __file__, own],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=environ,
            # So that it does not get a Ctrl-C.
            start_new_session=True,
        )
        assert self._process.stdin is not None
        # The watcher waits until the other end of this pipe is closed. A forked child would keep it open.
        os.register_at_fork(after_in_child=self._process.stdin.close)

    def end(self) -> None:
        """Have the remaining processes killed, and wait for that."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()
        if self._outer is None:
            del os.environ[_VARIABLE]
        else:
            os.environ[_VARIABLE] = self._outer


def started_by(name: str) -> Iterator[int]:
    """Yield the ids of the running processes that the process with this watcher has started."""
    entry = f"{_VARIABLE}={name}".encode()
    for folder in _PROC.iterdir():
        # A process may have just ended, or belong to another user.
        with suppress(OSError):
            if folder.name.isdecimal() and entry in (folder / "environ").read_bytes().split(b"\0"):
                yield int(folder.name)


def kill_what_was_started_by(name: str) -> None:
    looks = 0
    while looks < _LOOKS:
        looks += 1
        for process in started_by(name):
            looks = 0
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        time.sleep(_SECONDS_BETWEEN_LOOKS)


if __name__ == "__main__":
    sys.stdin.buffer.read()
    if _PROC.is_dir():
        kill_what_was_started_by(sys.argv[1])
