"""The server process as seen by the soak, which reads its reports and makes it break connections."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import trio

from tests.soak.oracle import ForgettingOracle
from tests.soak.support import DROP, FAULT, PORT, STORED

__all__ = ["ServerProcess", "running_server"]


class ServerProcess:
    """The server process and its reports.

    Attributes:
        process: The process.
        faults: The number of injected faults, by kind.
        port: The port on which it listens.
    """

    def __init__(self, process: trio.Process, oracle: ForgettingOracle) -> None:
        self.process = process
        self.faults: Counter[str] = Counter()
        self.port = 0
        self._oracle = oracle
        self._is_ready = trio.Event()
        self._has_ended = trio.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1/traces"

    async def drop_connections(self) -> None:
        """Make it break all connections."""
        assert self.process.stdin is not None
        await self.process.stdin.send_all(DROP)

    async def wait_until_ready(self) -> None:
        """Wait until it listens."""
        await self._is_ready.wait()
        if not self.port:
            raise RuntimeError("the soak's server ended before it listened")

    async def listen(self) -> None:
        """Read its reports until it ends."""
        assert self.process.stdout is not None
        rest = b""
        async for chunk in self.process.stdout:
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines:
                self._heard(line.decode().split())
        self._has_ended.set()
        self._is_ready.set()

    async def end(self) -> None:
        """End it, after reading all of its reports."""
        assert self.process.stdin is not None
        await self.process.stdin.aclose()
        await self._has_ended.wait()
        if await self.process.wait():
            self._oracle.report(f"the server ended with code {self.process.returncode}")

    def _heard(self, words: Sequence[str]) -> None:
        match words:
            case [str(word), location, *ids] if word == STORED:
                self._oracle.stored(location, map(int, ids))
            case [str(word), kind] if word == FAULT:
                self.faults[kind] += 1
            case [str(word), port] if word == PORT:
                self.port = int(port)
                self._is_ready.set()
            case _:
                self._oracle.report(f"the server says {words}")


@asynccontextmanager
async def running_server(seed: int, oracle: ForgettingOracle) -> AsyncIterator[ServerProcess]:
    """Run the server with random numbers of ``seed``, and report the spans that it stores to ``oracle``."""
    process = await trio.lowlevel.open_process(
        [sys.executable, "-m", "tests.soak.server", str(seed)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        # So that it does not get a Ctrl-C from the terminal.
        start_new_session=True,
    )
    server = ServerProcess(process, oracle)
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(server.listen)
            await server.wait_until_ready()
            yield server
            await server.end()
    finally:
        process.kill()
        with trio.move_on_after(10, shield=True):
            await process.wait()
