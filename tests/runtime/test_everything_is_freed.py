"""All objects of a batch are freed without the garbage collector: none is part of a reference cycle."""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Container, Iterator

import pytest
import trio
from trio.testing import MockClock

from tests.support.batchers import make_span, make_spans
from trio_spanbatch import (
    BatchPolicy,
    Delivered,
    ExportResult,
    Limits,
    Refused,
    RetryPolicy,
    SpanBatch,
    SpanBatcher,
    TryLater,
)
from trio_spanbatch._runtime.delivery import Delivery
from trio_spanbatch._scheduler.flush import Flush, LocationFlush
from trio_spanbatch._scheduler.isolation import Isolation
from trio_spanbatch._scheduler.location import Lease, Location, Waiter
from trio_spanbatch._scheduler.splitter import OpenBatch, QueuedBatch, Run
from trio_spanbatch._spans.batch import EncodedSpan

KINDS = (
    *(Delivery, EncodedSpan, Flush, Isolation, Lease, Location, LocationFlush, QueuedBatch, Run, SpanBatch, Waiter),
    OpenBatch,
)


def alive(before: Container[int] = ()) -> list[object]:
    """Return the objects of a batch, except for those whose ids are in ``before``."""
    objects = [one for one in gc.get_objects() if type(one) in KINDS and id(one) not in before]
    # `NO_BATCH` stays.
    return [one for one in objects if not isinstance(one, OpenBatch) or one.full_at]


def ids_of_all() -> list[int]:
    return [id(one) for one in alive()]


@pytest.fixture(autouse=True)
def collector_off() -> Iterator[None]:
    # Logging is disabled because pytest keeps log records, and with them exceptions and their frames.
    logging.disable()
    gc.collect()
    gc.disable()
    yield
    gc.enable()
    logging.disable(logging.NOTSET)


class Exporter:
    """Returns the result of a function of the request's number and the batch."""

    def __init__(self, answer: Callable[[int, SpanBatch], ExportResult]) -> None:
        self._answer = answer
        self._requests = 0

    async def export(self, batch: SpanBatch) -> ExportResult:
        self._requests += 1
        await trio.lowlevel.checkpoint()
        return self._answer(self._requests, batch)

    async def aclose(self) -> None:
        await trio.lowlevel.checkpoint()


def delivered(number: int, batch: SpanBatch) -> ExportResult:
    return Delivered()


def refused(number: int, batch: SpanBatch) -> ExportResult:
    return Refused("no")


def isolated(number: int, batch: SpanBatch) -> ExportResult:
    return Refused("no", isolate=True) if len(batch.spans) > 1 else Delivered()


def retried(number: int, batch: SpanBatch) -> ExportResult:
    return Delivered() if number > 2 else TryLater("later")


def handed_back(number: int, batch: SpanBatch) -> ExportResult:
    return TryLater("later")


def raising(number: int, batch: SpanBatch) -> ExportResult:
    raise ValueError("a bug")


def run(answer: Callable[[int, SpanBatch], ExportResult], act: Callable[[SpanBatcher], object]) -> None:
    async def main() -> None:
        before = ids_of_all()
        async with SpanBatcher(
            Exporter(answer),
            batch=BatchPolicy(max_spans=4),
            limits=Limits(max_queued_spans=8, location_idle_timeout=1),
            retry=RetryPolicy(max_elapsed=20, attempt_timeout=5),
            # Without on_loss, the batcher would keep the undelivered batches.
            on_loss=lambda loss: None,
        ) as batcher:
            await act(batcher)  # type: ignore[misc]  # an async function
            # By now all spans are accounted for, and the location has ended.
            await trio.sleep(100)
            assert not batcher.statistics().queued
            assert alive(before) == []
        assert alive(before) == []

    trio.run(main, clock=MockClock(autojump_threshold=0))


async def add(batcher: SpanBatcher) -> None:
    batcher.add_spans_nowait("a", make_spans(7))
    await trio.lowlevel.checkpoint()


@pytest.mark.parametrize("answer", [delivered, refused, isolated, retried, handed_back, raising])
def test_all_objects_of_a_batch_are_freed(answer: Callable[[int, SpanBatch], ExportResult]) -> None:
    run(answer, add)


def test_all_objects_of_an_attempt_that_timed_out_are_freed() -> None:
    class Hanging(Exporter):
        async def export(self, batch: SpanBatch) -> ExportResult:
            await trio.sleep_forever()
            raise AssertionError

    async def main() -> None:
        before = ids_of_all()
        retry = RetryPolicy(max_elapsed=20, attempt_timeout=5)
        limits = Limits(location_idle_timeout=1)
        async with SpanBatcher(Hanging(delivered), retry=retry, limits=limits, on_loss=lambda loss: None) as batcher:
            await add(batcher)
            await trio.sleep(100)
            assert batcher.statistics().undelivered == 7
            assert alive(before) == []

    trio.run(main, clock=MockClock(autojump_threshold=0))


async def flush(batcher: SpanBatcher) -> None:
    await add(batcher)
    await batcher.flush()
    await add(batcher)
    with trio.move_on_after(0.001):
        await batcher.flush()


async def wait(batcher: SpanBatcher) -> None:
    async with trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(batcher.add_span, "a", make_span())
    with trio.move_on_after(0):
        await batcher.add_span("a", make_span())


@pytest.mark.parametrize("act", [flush, wait])
def test_all_objects_of_a_flush_and_of_a_waiting_adder_are_freed(act: Callable[[SpanBatcher], object]) -> None:
    run(delivered, act)


def test_all_objects_are_freed_after_a_batcher_was_left_with_pending_spans() -> None:
    async def main() -> None:
        before = ids_of_all()
        async with SpanBatcher(Exporter(handed_back), shutdown_timeout=1, on_loss=lambda loss: None) as batcher:
            await add(batcher)
        assert batcher.statistics().undelivered == 7
        assert alive(before) == []

    trio.run(main, clock=MockClock(autojump_threshold=0))
