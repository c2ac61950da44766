"""Helpers for tests of the batcher: spans, and a watch that checks at every step that all spans are accounted for."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any

import trio

from trio_spanbatch import (
    BatchPolicy,
    EncodedSpan,
    LocationStatistics,
    Span,
    SpanBatch,
    SpanBatcher,
    SpanBatcherStatistics,
    SpanContext,
    SpanExporter,
)
from trio_spanbatch._spans.encoder import SpanEncoder

_SPAN_IDS = itertools.count(1)


def make_span(name: str = "work", *, size: int = 0) -> Span:
    """Return a span with a unique id, padded by about ``size`` bytes."""
    context = SpanContext(trace_id=1, span_id=next(_SPAN_IDS))
    return Span(name, context, start_time=1, end_time=2, attributes={"pad": "x" * size} if size else {})


def make_spans(count: int, *, size: int = 0) -> list[Span]:
    return [make_span(size=size) for _ in range(count)]


def encoded_size(span: Span) -> int:
    """Return the size of a span's encoding."""
    return SpanEncoder().encode(span).size


def span_ids(spans: Iterable[EncodedSpan]) -> list[int]:
    return [int.from_bytes(span.to_message().span_id, "big") for span in spans]


def ids_of(spans: Iterable[Span]) -> list[int]:
    return [span.context.span_id for span in spans]


def batch_lengths(batches: Iterable[SpanBatch]) -> list[int]:
    return [len(batch.spans) for batch in batches]


def assert_conserved(statistics: SpanBatcherStatistics) -> None:
    everything: list[SpanBatcherStatistics | LocationStatistics] = [statistics, *statistics.locations.values()]
    for counts in everything:
        assert counts.accepted + counts.recovered == (
            counts.queued + counts.in_flight + counts.delivered + counts.rejected + counts.spooled + counts.undelivered
        ), counts
        assert min(counts.queued, counts.in_flight, counts.pending_bytes) >= 0, counts
        assert (counts.pending_bytes == 0) == (counts.queued + counts.in_flight == 0), counts


class ConservationWatch(trio.abc.Instrument):
    """Checks a batcher's statistics after each scheduling step."""

    def __init__(self, batcher: SpanBatcher) -> None:
        self._batcher = batcher
        self.steps = 0
        self.failure: AssertionError | None = None

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        self.steps += 1
        try:
            assert_conserved(self._batcher.statistics())
        except AssertionError as failure:
            self.failure = self.failure or failure


@contextmanager
def watched(batcher: SpanBatcher) -> Iterator[SpanBatcher]:
    """Assert that ``batcher`` conserves its spans at each step of the run, and has none pending at the end."""
    watch = ConservationWatch(batcher)
    trio.lowlevel.add_instrument(watch)
    try:
        yield batcher
    finally:
        trio.lowlevel.remove_instrument(watch)
    if watch.failure is not None:
        raise watch.failure
    assert watch.steps > 0
    statistics = batcher.statistics()
    assert_conserved(statistics)
    assert statistics.queued == statistics.in_flight == 0


class Watched:
    """A batcher whose conservation is watched at every step, as an async context manager."""

    def __init__(self, batcher: SpanBatcher) -> None:
        self.batcher = batcher
        self._watch = watched(batcher)

    async def __aenter__(self) -> SpanBatcher:
        self._watch.__enter__()
        return await self.batcher.__aenter__()

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            await self.batcher.__aexit__(exc_type, exc, traceback)  # noqa: ASYNC102  # bounded by the drain
        finally:
            self._watch.__exit__(None, None, None)


def watched_batcher(
    exporter: SpanExporter, batch: BatchPolicy | Callable[[str], BatchPolicy] | None = None, **options: Any
) -> Watched:
    return Watched(SpanBatcher(exporter, batch=batch, **{"rng": NoSpread(), **options}))


class NoSpread(random.Random):
    """Jitter for backoffs, but nothing more than the server asks for."""

    def random(self) -> float:
        return 0.0

    def uniform(self, a: float, b: float) -> float:
        return a + (b - a) * super().random()


class StepCounter(trio.abc.Instrument):
    """Counts the steps of tasks whose name contains a word."""

    def __init__(self, word: str) -> None:
        self._word = word
        self.steps = 0

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        if self._word in task.name:
            self.steps += 1


class UnboundProxy:
    """An unbound proxy, as web frameworks have them outside a request: even its class is unavailable."""

    @property
    def __class__(self) -> type:
        raise RuntimeError("working outside of a request")

    @__class__.setter
    def __class__(self, value: type) -> None: ...
