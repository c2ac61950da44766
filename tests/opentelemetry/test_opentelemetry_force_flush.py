"""``force_flush`` waits for the flush in another thread, observes its timeout, and returns the right result."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
import trio

from tests.opentelemetry.support import delivered_names, end_spans, in_thread, provider_of, tasks_named, tracer_of
from tests.support.batchers import watched_batcher
from tests.support.processes import DEADLINE
from tests.support.receivers import wait_until
from trio_spanbatch import BatchPolicy, Delivered, Limits, Refused, SpanBatcher, TryLater
from trio_spanbatch.opentelemetry import BatcherSpanProcessor
from trio_spanbatch.testing import Hang, InMemoryExporter

NEVER_BY_ITSELF = BatchPolicy(max_delay=1e6)


class Elapsed:
    """A duration on the real clock."""

    def __init__(self) -> None:
        self.seconds = math.nan

    def of(self, call: Callable[[], bool]) -> bool:
        began = time.monotonic()
        try:
            return call()
        finally:
            self.seconds = time.monotonic() - began


# -- from another thread -----------------------------------------------------------------------------------------


async def test_from_another_thread_it_waits_for_the_real_flush() -> None:
    exporter = InMemoryExporter(delay=0.05)
    async with watched_batcher(exporter, NEVER_BY_ITSELF) as batcher:
        processor = BatcherSpanProcessor(batcher)
        end_spans(tracer_of(processor), 3)
        assert await trio.to_thread.run_sync(processor.force_flush)
        assert len(exporter.delivered["default"]) == 3
        assert batcher.statistics().queued == batcher.statistics().in_flight == 0


async def test_it_includes_spans_handed_over_before() -> None:
    exporter = InMemoryExporter()
    async with watched_batcher(exporter, NEVER_BY_ITSELF) as batcher:
        processor = BatcherSpanProcessor(batcher)
        provider = provider_of(processor)

        def work() -> bool:
            end_spans(provider.get_tracer("tests"), 100)
            return provider.force_flush()

        assert await trio.to_thread.run_sync(work)
        assert len(exporter.delivered["default"]) == 100


async def test_with_nothing_to_flush_it_returns_true() -> None:
    async with watched_batcher(InMemoryExporter()) as batcher:
        assert await trio.to_thread.run_sync(BatcherSpanProcessor(batcher).force_flush)


async def test_it_returns_false_after_its_timeout_and_the_spans_are_delivered_later() -> None:
    exporter = InMemoryExporter([Hang(), Delivered()])
    async with watched_batcher(exporter, BatchPolicy(max_spans=1), shutdown_timeout=0.5) as batcher:
        processor = BatcherSpanProcessor(batcher)
        end_spans(tracer_of(processor), 1)
        elapsed = Elapsed()
        assert not await trio.to_thread.run_sync(elapsed.of, lambda: processor.force_flush(50))
        assert 0.05 <= elapsed.seconds < DEADLINE
        await trio.testing.wait_all_tasks_blocked()
        # No thread waits for that flush any more.
        assert tasks_named("force_flush") == []
        assert batcher.statistics().in_flight == 1


async def test_it_observes_its_timeout_when_the_trio_thread_is_stalled() -> None:
    exporter = InMemoryExporter()
    async with watched_batcher(exporter) as batcher:
        processor = BatcherSpanProcessor(batcher)
        end_spans(tracer_of(processor), 1)
        # This is trio's thread, which blocks here.
        assert not in_thread(lambda: processor.force_flush(50))
        await trio.testing.wait_all_tasks_blocked()
        assert tasks_named("force_flush") == []
    assert delivered_names(exporter) == {"default": ["span 0"]}


@pytest.mark.parametrize(("milliseconds", "exported"), [(0, False), (-1, False), (math.inf, True), (1e300, True)])
async def test_it_observes_unusual_timeouts(milliseconds: Any, exported: bool) -> None:
    exporter = InMemoryExporter(delay=0 if exported else math.inf)
    async with watched_batcher(exporter, shutdown_timeout=0) as batcher:
        processor = BatcherSpanProcessor(batcher)
        end_spans(tracer_of(processor), 1)
        assert await trio.to_thread.run_sync(processor.force_flush, milliseconds) is exported


async def test_several_threads_can_wait_at_once() -> None:
    async with watched_batcher(InMemoryExporter(delay=0.05)) as batcher:
        processor = BatcherSpanProcessor(batcher)
        tracer = tracer_of(processor)
        flushed: list[bool] = []

        def work() -> None:
            end_spans(tracer, 5)
            flushed.append(processor.force_flush())

        async with trio.open_nursery() as nursery:
            for _ in range(4):
                nursery.start_soon(trio.to_thread.run_sync, work)
        assert flushed == [True] * 4


# -- the result --------------------------------------------------------------------------------------------------


async def test_a_flush_with_a_loss_returns_false_and_the_next_one_covers_later_spans() -> None:
    exporter = InMemoryExporter([Refused("no"), Delivered(rejected=1), Delivered(), OSError("a bug"), Delivered()])
    async with watched_batcher(exporter, NEVER_BY_ITSELF) as batcher:
        processor = BatcherSpanProcessor(batcher)
        tracer = tracer_of(processor)
        flushed = []
        for _ in range(5):
            end_spans(tracer, 2)
            flushed.append(await trio.to_thread.run_sync(processor.force_flush))
        assert flushed == [False, False, True, False, True]
    # After the end it covers all spans.
    assert [processor.force_flush(), processor.force_flush()] == [False, False]


async def test_a_loss_before_the_flush_makes_it_return_false() -> None:
    exporter = InMemoryExporter([Refused("no")])
    async with watched_batcher(exporter, NEVER_BY_ITSELF) as batcher:
        processor = BatcherSpanProcessor(batcher)
        end_spans(tracer_of(processor), 1)
        await batcher.flush()
        assert batcher.statistics().rejected == 1
        assert not await trio.to_thread.run_sync(processor.force_flush)
        assert await trio.to_thread.run_sync(processor.force_flush)


async def test_dropped_spans_make_it_return_false() -> None:
    async with watched_batcher(InMemoryExporter(), limits=Limits(max_queued_spans=2)) as batcher:
        processor = BatcherSpanProcessor(batcher)
        end_spans(tracer_of(processor), 3)
        assert processor.dropped["queue_full"] == 1
        assert not await trio.to_thread.run_sync(processor.force_flush)
        assert await trio.to_thread.run_sync(processor.force_flush)


async def test_spans_dropped_after_being_handed_over_make_it_return_false() -> None:
    async with watched_batcher(InMemoryExporter(), limits=Limits(max_queued_spans=2)) as batcher:
        processor = BatcherSpanProcessor(batcher)
        tracer = tracer_of(processor)
        end_spans(tracer, 2)

        def work() -> bool:
            end_spans(tracer, 2)
            return processor.force_flush()

        flushed = await trio.to_thread.run_sync(work)
        assert flushed == (processor.statistics().accepted == 4)


async def test_spans_that_end_after_the_call_are_not_waited_for() -> None:
    exporter = InMemoryExporter([Delivered(), Hang()])
    async with watched_batcher(exporter, BatchPolicy(max_spans=1), shutdown_timeout=0) as batcher:
        processor = BatcherSpanProcessor(batcher)
        tracer = tracer_of(processor)
        end_spans(tracer, 1)
        assert await trio.to_thread.run_sync(processor.force_flush)
        end_spans(tracer, 1)
        assert not await trio.to_thread.run_sync(processor.force_flush, 20)


# -- in the trio thread ------------------------------------------------------------------------------------------


async def test_in_the_trio_thread_it_returns_false_immediately_and_logs_once_what_to_do(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with watched_batcher(InMemoryExporter()) as batcher:
        processor = BatcherSpanProcessor(batcher)
        provider = provider_of(processor)
        end_spans(provider.get_tracer("tests"), 1)
        elapsed = Elapsed()
        assert not elapsed.of(provider.force_flush)
        assert elapsed.seconds < DEADLINE
        assert not processor.force_flush()
        (said,) = [message for message in caplog.messages if "force_flush" in message]
        assert "returns False there: use `await batcher.flush()`" in said
        # The remedy of the message works.
        assert (await batcher.flush()).delivered == 1


async def test_in_the_thread_of_another_run_it_does_not_wait_either() -> None:
    async with watched_batcher(InMemoryExporter()) as batcher:
        processor = BatcherSpanProcessor(batcher)

        async def other() -> bool:
            await trio.lowlevel.checkpoint()
            return processor.force_flush()

        assert not await trio.to_thread.run_sync(trio.run, other)


def test_in_guest_mode_force_flush_does_not_wait_in_the_hosts_loop() -> None:
    """Trio's run is not current there, but waits for this thread."""
    batcher = SpanBatcher(InMemoryExporter())
    processor = BatcherSpanProcessor(batcher)
    todo: list[Callable[[], object]] = []
    done: list[object] = []
    flushed: list[bool] = []
    opened = trio.Event()

    async def guest() -> None:
        async with batcher:
            end_spans(tracer_of(processor), 1)
            await opened.wait()

    ready = threading.Semaphore(0)

    def run_soon(call: Callable[[], object]) -> None:
        todo.append(call)
        ready.release()

    trio.lowlevel.start_guest_run(guest, run_sync_soon_threadsafe=run_soon, done_callback=done.append)
    while not done:
        assert ready.acquire(timeout=DEADLINE)
        todo.pop(0)()
        if batcher.statistics().accepted and not flushed:
            elapsed = Elapsed()
            flushed.append(elapsed.of(processor.force_flush))
            assert elapsed.seconds < DEADLINE
            opened.set()
    assert flushed == [False]
    assert batcher.statistics().delivered == 1


# -- before and after --------------------------------------------------------------------------------------------


def test_before_the_batcher_is_entered_it_does_not_wait() -> None:
    processor = BatcherSpanProcessor(SpanBatcher(InMemoryExporter()))
    assert processor.force_flush()
    end_spans(tracer_of(processor), 1)
    assert not processor.force_flush()


@pytest.mark.parametrize(("result", "truth"), [(Delivered(), True), (Refused("no"), False), (Hang(), False)])
def test_after_the_run_it_returns_immediately_whether_everything_was_delivered(
    result: Delivered | Refused | Hang, truth: bool
) -> None:
    # Only an export that hangs may run into the shutdown timeout: on a busy machine others could exceed it too.
    batcher = SpanBatcher(InMemoryExporter([result]), shutdown_timeout=0.05 if isinstance(result, Hang) else DEADLINE)
    processor = BatcherSpanProcessor(batcher)

    async def main() -> bool:
        async with batcher:
            end_spans(tracer_of(processor), 1)
        return processor.force_flush()

    # Also inside the run: there is nothing left to wait for.
    assert trio.run(main) is truth
    assert processor.force_flush() is truth
    assert in_thread(processor.force_flush) is truth


async def test_during_the_drain_it_waits_for_the_end_of_the_drain() -> None:
    outcomes: list[bool] = []
    exporter = InMemoryExporter(delay=0.1)
    async with trio.open_nursery() as nursery:
        batcher = SpanBatcher(exporter)
        processor = BatcherSpanProcessor(batcher)

        async def flush_in_thread() -> None:
            await wait_until(lambda: not processor._intake.is_open())
            outcomes.append(await trio.to_thread.run_sync(processor.force_flush))

        async with batcher:
            end_spans(tracer_of(processor), 1)
            nursery.start_soon(flush_in_thread)
            await trio.lowlevel.checkpoint()
    assert outcomes == [True]


def test_if_the_run_ends_before_the_flush_begins_the_final_result_is_returned(monkeypatch: pytest.MonkeyPatch) -> None:
    batcher = SpanBatcher(InMemoryExporter())
    processor = BatcherSpanProcessor(batcher)

    async def main() -> None:
        async with batcher:
            end_spans(tracer_of(processor), 1)

    trio.run(main)
    monkeypatch.setattr(type(batcher._supervisor), "has_ended", False)
    assert in_thread(processor.force_flush)


def test_if_the_run_starts_no_more_tasks_pending_spans_count_as_undelivered(monkeypatch: pytest.MonkeyPatch) -> None:
    batcher = SpanBatcher(InMemoryExporter())
    processor = BatcherSpanProcessor(batcher)

    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError("Nursery is closed to new arrivals")

    async def main() -> bool:
        async with batcher:
            end_spans(tracer_of(processor), 1)
            with monkeypatch.context() as patch:
                patch.setattr(trio.lowlevel, "spawn_system_task", refuse)
                # The span is still pending.
                return await trio.to_thread.run_sync(processor.force_flush)

    assert not trio.run(main)
    assert processor.force_flush()


async def test_a_server_that_comes_back_is_waited_for() -> None:
    exporter = InMemoryExporter([TryLater("busy", after=0.05), Delivered()])
    async with watched_batcher(exporter, NEVER_BY_ITSELF) as batcher:
        processor = BatcherSpanProcessor(batcher)
        end_spans(tracer_of(processor), 1)
        assert await trio.to_thread.run_sync(processor.force_flush)
        assert batcher.statistics().retries == 1


async def test_a_failure_of_the_flush_itself_is_logged_and_returns_false(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def fail() -> None:
        await trio.lowlevel.checkpoint()
        raise OSError("broken")

    async with watched_batcher(InMemoryExporter()) as batcher:
        processor = BatcherSpanProcessor(batcher)
        with monkeypatch.context() as patch:
            patch.setattr(batcher, "flush", fail)
            assert not await trio.to_thread.run_sync(processor.force_flush)
    assert "force_flush failed" in caplog.text
