"""Spans that the batcher does not accept: counted in `Tracer.dropped`, and never raised into the program."""

from __future__ import annotations

import logging
import os
import threading

import pytest
import trio
import trio.testing

from tests.support.batchers import make_span
from trio_spanbatch import Limits, SpanBatcher
from trio_spanbatch.testing import Hang, InMemoryExporter
from trio_spanbatch.tracing import Tracer


def end_a_span(tracer: Tracer, name: str = "work") -> None:
    with tracer.span(name):
        pass


def end_spans_in_a_thread(tracer: Tracer, number: int, name: str = "work") -> None:
    """Have another thread end spans, while trio's thread is busy."""

    def work() -> None:
        for _ in range(number):
            end_a_span(tracer, name)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()


async def test_a_span_for_a_full_queue_is_counted_and_logged_once(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    limits = Limits(max_queued_spans=1)
    async with SpanBatcher(InMemoryExporter([Hang()]), limits=limits, shutdown_timeout=1) as batcher:
        tracer = Tracer(batcher)
        for _ in range(10):
            end_a_span(tracer)
        assert tracer.dropped == 9
        assert batcher.statistics().accepted == 1
    dropped = [record.getMessage() for record in caplog.records if "Tracer dropped" in record.getMessage()]
    assert dropped == [
        "SpanBatcher: a Tracer dropped a span, 1 so far: no space for 'default'; logged at most every 30 s"
    ]


async def test_spans_before_and_after_the_batcher_are_counted() -> None:
    batcher = SpanBatcher(InMemoryExporter())
    tracer = Tracer(batcher)
    end_a_span(tracer)
    async with batcher:
        end_a_span(tracer)
        assert tracer.dropped == 1
    end_a_span(tracer)
    assert tracer.dropped == 2
    assert batcher.statistics().delivered == 1


async def test_a_span_during_the_drain_is_counted() -> None:
    async with trio.open_nursery() as nursery:
        async with SpanBatcher(InMemoryExporter()) as batcher:
            tracer = Tracer(batcher)

            async def ends_late() -> None:
                with tracer.span("late"):
                    await trio.lowlevel.checkpoint()
                    await left.wait()

            left = trio.Event()
            nursery.start_soon(ends_late)
            await trio.testing.wait_all_tasks_blocked()
        left.set()
    assert tracer.dropped == 1


async def test_a_span_that_cannot_be_encoded_is_counted_and_the_program_goes_on() -> None:
    async with SpanBatcher(InMemoryExporter()) as batcher:
        tracer = Tracer(batcher)
        with tracer.span("work") as span:
            span.add_event("event", timestamp=-1)
        with pytest.raises(ValueError, match="the program's own"), tracer.span("work") as span:
            span.add_event("event", timestamp=-1)
            raise ValueError("the program's own")
    assert tracer.dropped == 2


async def test_a_location_too_many_is_counted() -> None:
    async with SpanBatcher(InMemoryExporter(), limits=Limits(max_locations=1)) as batcher:
        tracer = Tracer(batcher)
        batcher.add_span_nowait("other", make_span())
        end_a_span(tracer)
        assert tracer.dropped == 1


async def test_a_value_that_cannot_be_sent_costs_only_itself() -> None:
    exporter = InMemoryExporter()
    async with SpanBatcher(exporter) as batcher:
        nested: list[object] = []
        nested.append(nested)
        with Tracer(batcher).span("work", attributes={"nested": nested, "kept": 1}):
            pass
    message = exporter.delivered["default"][0].to_message()
    assert ([pair.key for pair in message.attributes], message.dropped_attributes_count) == (["kept"], 1)


async def test_spans_of_a_thread_are_bounded_while_the_trio_thread_is_busy() -> None:
    async with SpanBatcher(InMemoryExporter(), limits=Limits(max_queued_spans=5)) as batcher:
        tracer = Tracer(batcher)

        end_spans_in_a_thread(tracer, 20)
        assert tracer.dropped == 15
        await trio.testing.wait_all_tasks_blocked()
        assert batcher.statistics().accepted == 5


async def test_spans_of_a_thread_are_bounded_in_bytes_too() -> None:
    limits = Limits(max_pending_bytes=100_000, max_pending_bytes_per_location=100_000)
    async with SpanBatcher(InMemoryExporter(), limits=limits) as batcher:
        tracer = Tracer(batcher)
        end_spans_in_a_thread(tracer, 20, "x" * 30_000)
        assert tracer.dropped == 17


async def test_a_flush_and_the_end_include_spans_that_ended_in_threads_before() -> None:
    async with SpanBatcher(InMemoryExporter()) as batcher:
        tracer = Tracer(batcher)
        end_spans_in_a_thread(tracer, 1)
        assert (await batcher.flush()).delivered == 1
        end_spans_in_a_thread(tracer, 1)
    assert (batcher.statistics().delivered, tracer.dropped) == (2, 0)


async def test_only_a_tracer_that_threads_have_used_is_known_to_the_batcher() -> None:
    """Else a program that makes one for each request would need ever more memory."""
    async with SpanBatcher(InMemoryExporter()) as batcher:
        for _ in range(3):
            end_a_span(Tracer(batcher))
        assert batcher._runtime.feeders == []


async def test_spans_that_a_thread_ends_after_the_run_are_counted() -> None:
    may_end, has_ended = threading.Event(), threading.Event()
    tracers: list[Tracer] = []

    def work() -> None:
        with tracers[0].span("late"):
            may_end.wait()
        has_ended.set()

    async def main() -> None:
        async with SpanBatcher(InMemoryExporter()) as batcher:
            tracers.append(Tracer(batcher))
            threading.Thread(target=work).start()

    await trio.to_thread.run_sync(trio.run, main)
    may_end.set()
    await trio.to_thread.run_sync(has_ended.wait)
    assert tracers[0].dropped == 1


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
async def test_a_span_in_a_forked_child_is_counted_there() -> None:
    async with SpanBatcher(InMemoryExporter()) as batcher:
        tracer = Tracer(batcher)
        with tracer.span("around"):
            if (child := os.fork()) == 0:
                logging.disable()
                end_a_span(tracer)
                os._exit(tracer.dropped)
            _, status = os.waitpid(child, 0)  # noqa: ASYNC222  # the child exits at once
        assert os.waitstatus_to_exitcode(status) == 1
    assert (tracer.dropped, batcher.statistics().delivered) == (0, 1)
