"""A program that traces its work, obeys commands on its standard input, and receives signals.

It reports its progress on its standard output, one word per line, and finally, however it ends, one line of JSON with
its knowledge of its spans. Run it as python -m tests.processes.agent SETTINGS, with `AgentSettings` as JSON.

A KeyboardInterrupt may be raised in any Python code that trio does not protect. So steps that belong together
(accepting a span and recording it) are protected here, and each line is written by a single system call.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import random
import select
import signal
import sys
from collections.abc import Iterator
from typing import Any

import attrs
import trio

from tests.support.batchers import span_ids
from trio_spanbatch import (
    BatchPolicy,
    Delivered,
    ExportResult,
    Limits,
    Loss,
    OTLPExporter,
    RetryPolicy,
    Span,
    SpanBatch,
    SpanBatcher,
    SpanContext,
    TryLater,
    exit_on_sigterm,
)

from .collector import LEFT_OUT, LOCATION_HEADER, POISON


@attrs.frozen(kw_only=True)
class AgentSettings:
    """The settings of an agent. Times are in seconds.

    Attributes:
        url: The server's URL.
        locations: The locations of its spans, in turn.
        max_delay: As for `BatchPolicy`; if infinite, spans wait for the drain.
        timeout: As for `OTLPExporter`.
        shutdown_timeout: As for `SpanBatcher`.
        left_out: The server leaves out one in this many spans.
        poison: The server refuses the whole request for one in this many spans.
    """

    url: str
    locations: tuple[str, ...] = ("a", "b", "c", "d")
    max_delay: float = 0.01
    timeout: float = math.inf
    shutdown_timeout: float = math.inf
    left_out: int = sys.maxsize
    poison: int = sys.maxsize

    def to_json(self) -> str:
        return json.dumps(attrs.asdict(self))


def say(word: str) -> None:
    os.write(1, f"{word}\n".encode())


class WatchedExporter(OTLPExporter):
    """Reports the beginning and the outcome of attempts, and keeps the results that a program can know.

    Attributes:
        answered: The ids of the spans of each accepted batch, and the number of those that were left out.
        doubtful: The ids of spans that had an attempt of unknown outcome.
    """

    answered: list[tuple[list[int], int]]
    doubtful: set[int]

    async def export(self, batch: SpanBatch) -> ExportResult:
        ids = span_ids(batch.spans)
        result: ExportResult | None = None
        say("sending")
        try:
            result = await super().export(batch)
        finally:
            self._note(ids, result)
        return result

    def _note(self, ids: list[int], result: ExportResult | None) -> None:
        if result is None or (isinstance(result, TryLater) and result.ambiguous):
            self.doubtful.update(ids)
            say("doubtful")
        elif isinstance(result, TryLater):
            say("failed")
        elif isinstance(result, Delivered):
            self.answered.append((ids, result.rejected))
            say("answered")


class Agent:
    """The program and its knowledge of its spans."""

    def __init__(self, settings: AgentSettings) -> None:
        self._settings = settings
        self._numbers = itertools.count(1)
        self._accepted: dict[int, str] = {}
        self._losses: list[Loss] = []
        self._exporter = WatchedExporter(settings.url, location_header=LOCATION_HEADER, timeout=settings.timeout)
        self._exporter.answered = []
        self._exporter.doubtful = set()
        self._batcher = SpanBatcher(
            self._exporter,
            batch=BatchPolicy(max_spans=20, max_delay=settings.max_delay),
            limits=Limits(max_queued_spans=60),
            retry=RetryPolicy(initial=0.02, maximum=0.1, max_elapsed=math.inf, attempt_timeout=math.inf),
            shutdown_timeout=settings.shutdown_timeout,
            on_loss=self._note_loss,
            rng=random.Random(1),
        )

    async def run(self) -> None:
        with exit_on_sigterm():
            async with self._batcher, trio.open_nursery() as nursery:
                await self._obey_all(nursery)
                nursery.cancel_scope.cancel()

    async def _obey_all(self, nursery: trio.Nursery) -> None:
        say("ready")
        commands = Commands()
        while (line := await commands.next()) != "end":
            await self._obey(line, nursery)
            say(f"done: {line}")

    async def _obey(self, command: str, nursery: trio.Nursery) -> None:
        match command.split():
            case ["add", count]:
                for location in itertools.islice(itertools.cycle(self._settings.locations), int(count)):
                    await self._add(location)
            case ["keep", "adding"]:
                for location in self._settings.locations:
                    nursery.start_soon(self._keep_adding, location)
            case ["flush"]:
                await self._batcher.flush()
            case ["work", "in", "a", "thread", how]:
                nursery.start_soon(tell_of_cancel)
                await trio.to_thread.run_sync(self._work, abandon_on_cancel=how == "abandoned")
            case ["mark"]:
                pass
            case _:
                raise ValueError(f"unknown command {command!r}")

    # -- adding ------------------------------------------------------------------------------------------------

    @trio.lowlevel.enable_ki_protection
    async def _add(self, location: str) -> None:
        span = self._make_span()
        await self._batcher.add_span(location, span)
        self._accepted[span.context.span_id] = location

    async def _keep_adding(self, location: str) -> None:
        while True:
            await self._add(location)

    def _work(self) -> None:
        """Work in a thread until a line arrives, then add spans."""
        say("in the thread")
        select.select([0], [], [])
        os.read(0, 1000)
        for location in self._settings.locations:
            trio.from_thread.run_sync(self._add_nowait, location)

    @trio.lowlevel.enable_ki_protection
    def _add_nowait(self, location: str) -> None:
        span = self._make_span()
        self._batcher.add_span_nowait(location, span)
        self._accepted[span.context.span_id] = location

    def _make_span(self) -> Span:
        number = next(self._numbers)
        poison, left_out = number % self._settings.poison == 0, number % self._settings.left_out == 0
        name = POISON if poison else LEFT_OUT if left_out else "work"
        return Span(name, SpanContext(trace_id=1, span_id=number), start_time=1, end_time=2)

    # -- reporting ---------------------------------------------------------------------------------------------

    def _note_loss(self, loss: Loss) -> None:
        self._losses.append(loss)
        say(loss.outcome)

    def report(self, error: BaseException | None) -> dict[str, Any]:
        leaf = only_leaf(error)
        return {
            "error": None if leaf is None else type(leaf).__name__,
            "notes": list(notes_of(error)),
            "accepted": list(self._accepted.items()),
            "answered": self._exporter.answered,
            "doubtful": sorted(self._exporter.doubtful),
            "losses": [
                {"ids": span_ids(loss.batch.spans), "outcome": loss.outcome, "count": loss.count, "reason": loss.reason}
                for loss in self._losses
            ],
            "statistics": attrs.asdict(self._batcher.statistics()),
        }


class Commands:
    """The lines of standard input."""

    def __init__(self) -> None:
        # A duplicate descriptor, since the stream closes it.
        self._stream = trio.lowlevel.FdStream(os.dup(0))
        self._data = b""

    async def next(self) -> str:
        """Return the next line, or ``end`` at the end of the stream."""
        while b"\n" not in self._data:
            chunk = await self._stream.receive_some()
            if not chunk:
                return "end"
            self._data += chunk
        line, _, self._data = self._data.partition(b"\n")
        return line.decode()


async def tell_of_cancel() -> None:
    try:
        await trio.sleep_forever()
    finally:
        say("cancelled")


def only_leaf(error: BaseException | None) -> BaseException | None:
    """Return the exception inside the groups that this program's nursery adds."""
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error


def notes_of(error: BaseException | None) -> Iterator[str]:
    """Yield the notes of an exception and of its context, as a traceback shows them."""
    while error is not None:
        yield from getattr(error, "__notes__", [])
        error = error.__context__


def run(settings: AgentSettings) -> None:
    agent = Agent(settings)
    error: BaseException | None = None
    try:
        try:
            trio.run(agent.run)
        finally:
            # A signal that arrives late must not interrupt the report.
            signal.signal(signal.SIGINT, signal.SIG_IGN)
    except BaseException as exc:  # noqa: ASYNC103  # raised again below
        error = exc
    sys.stdout.write(f"{json.dumps(agent.report(error))}\n")
    sys.stdout.flush()
    if (leaf := only_leaf(error)) is not None:
        raise leaf


if __name__ == "__main__":
    given = json.loads(sys.argv[1])
    run(AgentSettings(**{**given, "locations": tuple(given["locations"])}))
