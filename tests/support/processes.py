"""Helpers for tests that start processes."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import IO

import trio

from tests.support.paths import PROJECT

# Seconds for which a test waits at most. Only a slow machine needs more than a few: this limit is for tests that hang,
# and ends them before pytest's own limit ends the whole run.
DEADLINE = 600.0
# Seconds between two checks of a condition without an event: the content of a file, the state of a process.
_INTERVAL = 0.005


def untraced_environment() -> dict[str, str]:
    """Return the environment for a child that a KeyboardInterrupt may hit anywhere: coverage is not measured in it.

    Coverage takes a lock while it looks at a file for the first time. A KeyboardInterrupt that is raised right there
    leaves the lock taken, and the child hangs forever.
    """
    environ = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_PROCESS")}
    # Make the tests importable from any directory, after other entries: a planted package must come first.
    path = [environ.get("PYTHONPATH", ""), str(PROJECT)]
    return {**environ, "PYTHONPATH": os.pathsep.join(filter(None, path)), "PYTHONSAFEPATH": "1"}


def run_to_end(
    arguments: Sequence[object],
    *,
    folder: Path | None = None,
    environ: Mapping[str, str] | None = None,
    together: bool = False,
    timeout: float = DEADLINE,
) -> subprocess.CompletedProcess[str]:
    """Run a program to its end and return its output.

    It runs in a new session, so that it can be killed together with its children if this function ends early.

    Args:
        arguments: The command.
        folder: The working directory.
        environ: The environment; by default that of `untraced_environment`.
        together: Redirect its standard error to its standard output.
        timeout: Seconds.

    Raises:
        subprocess.TimeoutExpired: The program took longer than ``timeout``.
    """
    command = [*map(str, arguments)]
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT if together else subprocess.PIPE,
        cwd=folder,
        env=untraced_environment() if environ is None else dict(environ),
        text=True,
        start_new_session=True,
    ) as process:
        try:
            out, errors = process.communicate(timeout=timeout)
        except BaseException:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            raise
    return subprocess.CompletedProcess(command, process.returncode, out, errors)


async def wait_until(condition: Callable[[], bool]) -> None:
    """Return once ``condition`` holds, which another process brings about."""
    with trio.fail_after(DEADLINE):
        # There is no event for it, so it is polled.
        while not condition():  # noqa: ASYNC110  # see above
            await trio.sleep(_INTERVAL)


@contextmanager
def reserved_port() -> Iterator[int]:
    """Reserve a port of 127.0.0.1 for a server that is stopped and started again.

    A socket that is bound to the port and does not listen refuses connections, keeps the port from other programs and,
    as both set SO_REUSEADDR, lets the server bind to it. This works on Linux; elsewhere the port is free in between.
    """
    with socket.socket() as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.bind(("127.0.0.1", 0))
        port: int = holder.getsockname()[1]
        if sys.platform != "linux":
            holder.close()
        yield port


class Child:
    """A Python program in a child process that reads commands and reports its progress, line by line.

    Attributes:
        said: The lines of its output so far.
    """

    def __init__(self, process: trio.Process, errors: IO[bytes]) -> None:
        self.said: list[str] = []
        self._process = process
        self._errors = errors
        self._looked_at = 0
        self._said_all = False
        self._said_more = trio.lowlevel.ParkingLot()

    async def listen(self) -> None:
        """Read its output to the end, so that it never waits for a reader."""
        assert self._process.stdout is not None
        data = b""
        async for chunk in self._process.stdout:
            *lines, data = (data + chunk).split(b"\n")
            self.said += [line.decode() for line in lines]
            self._said_more.unpark_all()
        self._said_all = True
        self._said_more.unpark_all()

    @property
    def errors(self) -> str:
        """Its standard error so far."""
        return os.pread(self._errors.fileno(), 1_000_000, 0).decode(errors="replace")

    async def says(self, word: str) -> str:
        """Return the next line that begins with ``word``; skip the lines before it."""
        with trio.fail_after(DEADLINE):
            while True:
                for line in self.said[self._looked_at :]:
                    self._looked_at += 1
                    if line.startswith(word):
                        return line
                assert not self._said_all, f"the child ended and never said {word!r}"
                await self._said_more.park()

    async def has_said(self, word: str, times: int) -> None:
        """Wait until it has written ``word`` that many times since it began."""
        with trio.fail_after(DEADLINE):
            while self.said.count(word) < times:
                assert not self._said_all, f"the child ended and did not say {word!r} {times} times"
                await self._said_more.park()

    async def tell(self, command: str) -> None:
        """Write a line to its standard input."""
        assert self._process.stdin is not None
        with trio.fail_after(DEADLINE):
            await self._process.stdin.send_all(f"{command}\n".encode())

    async def does(self, command: str) -> None:
        """Send it a command, and wait until it reports that it is done."""
        await self.tell(command)
        await self.says(f"done: {command}")

    def send_signal(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    async def stop(self) -> None:
        """Stop it with SIGSTOP, and return once it is stopped."""
        self.send_signal(signal.SIGSTOP)
        await wait_until(self._is_stopped)

    def go_on(self) -> None:
        self.send_signal(signal.SIGCONT)

    async def kill(self) -> None:
        self._process.kill()
        await self.wait()

    async def wait(self) -> int:
        """Wait until it has ended. Return its exit code; if a signal ended it, the negated signal number."""
        with trio.fail_after(DEADLINE):
            while not self._said_all:
                await self._said_more.park()
            return await self._process.wait()

    def _is_stopped(self) -> bool:
        assert self._process.poll() is None, "the child has ended"
        return os.waitid(os.P_PID, self._process.pid, os.WSTOPPED | os.WNOHANG | os.WNOWAIT) is not None


@asynccontextmanager
async def child(*arguments: object, environ: dict[str, str] | None = None) -> AsyncIterator[Child]:
    """Run Python with ``arguments`` and an import path with the tests. The process is killed on leaving.

    A failure gets a note with the child's output.
    """
    with tempfile.TemporaryFile() as errors:
        process = await trio.lowlevel.open_process(
            [sys.executable, "-W", "error", *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors.fileno(),
            env={**untraced_environment(), **(environ or {})},
        )
        started = Child(process, errors)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(started.listen)
                yield started
                nursery.cancel_scope.cancel()
        except BaseException as error:
            error.add_note(f"{arguments} said {started.said[-20:]} and wrote on its standard error:\n{started.errors}")
            raise
        finally:
            with trio.move_on_after(DEADLINE, shield=True):
                process.kill()
                await process.wait()
                for stream in (process.stdin, process.stdout):
                    if stream is not None:
                        await trio.aclose_forcefully(stream)
