"""Ending a span of OpenTelemetry adds it to the batcher, or drops and counts it. It never blocks or raises."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from typing import Any

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock

from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.trace import SpanContext, TraceFlags
from tests.opentelemetry.support import (
    ManualClock,
    SampleByName,
    assert_all_counted,
    delivered_names,
    drops,
    end_spans,
    in_thread,
    provider_of,
    tracer_of,
)
from tests.support.batchers import make_span, watched_batcher
from trio_spanbatch import BatchPolicy, Limits, SpanBatcher
from trio_spanbatch import opentelemetry as bridge
from trio_spanbatch.opentelemetry import BatcherSpanProcessor, use_location
from trio_spanbatch.testing import InMemoryExporter


def hanging() -> InMemoryExporter:
    return InMemoryExporter(delay=math.inf)


def warnings_in(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if "dropped" in record.getMessage()]


class Hostile:
    """A value of which every operation raises."""

    def __init__(self, error: BaseException) -> None:
        self._error = error

    def __str__(self) -> str:
        raise self._error


# -- accepted ----------------------------------------------------------------------------------------------------


async def test_a_span_that_ends_in_the_trio_thread_is_accepted_at_once(autojump_clock: MockClock) -> None:
    exporter = InMemoryExporter()
    async with watched_batcher(exporter) as batcher:
        processor = BatcherSpanProcessor(batcher)
        end_spans(tracer_of(processor), 3)
        assert batcher.statistics().accepted == 3
        assert (await batcher.flush()).delivered == 3
    assert_all_counted(processor, batcher)
    assert delivered_names(exporter) == {"default": ["span 0", "span 1", "span 2"]}


async def test_only_sampled_spans_are_sent(autojump_clock: MockClock) -> None:
    exporter = InMemoryExporter()
    async with watched_batcher(exporter) as batcher:
        processor = BatcherSpanProcessor(batcher)
        tracer = tracer_of(processor, sampler=SampleByName())
        for name in ("drop", "record only", "sample"):
            tracer.start_span(name).end()
    assert_all_counted(processor, batcher)
    assert delivered_names(exporter) == {"default": ["sample"]}
    assert processor.statistics().ended == 1


async def test_spans_that_end_while_their_task_is_cancelled_are_accepted(autojump_clock: MockClock) -> None:
    exporter = InMemoryExporter()
    async with watched_batcher(exporter) as batcher:
        processor = BatcherSpanProcessor(batcher)
        tracer = tracer_of(processor)

        async def agent() -> None:
            with tracer.start_as_current_span("agent"), tracer.start_as_current_span("tool"):
                by_hand = tracer.start_span("by hand")
                try:
                    await trio.sleep_forever()
                finally:
                    by_hand.end()

        with trio.move_on_after(1):
            await agent()
    assert_all_counted(processor, batcher)
    assert delivered_names(exporter) == {"default": ["by hand", "tool", "agent"]}


async def test_spans_that_end_while_everything_is_cancelled_are_drained(autojump_clock: MockClock) -> None:
    exporter = InMemoryExporter()
    with trio.CancelScope() as scope:
        async with watched_batcher(exporter) as batcher:
            processor = BatcherSpanProcessor(batcher)
            with tracer_of(processor).start_as_current_span("interrupted"):
                scope.cancel()
                await trio.sleep_forever()
    assert_all_counted(processor, batcher)
    assert delivered_names(exporter) == {"default": ["interrupted"]}


async def test_spans_that_end_as_a_keyboard_interrupt_passes_are_drained(autojump_clock: MockClock) -> None:
    exporter = InMemoryExporter()
    with pytest.raises(KeyboardInterrupt):
        async with watched_batcher(exporter) as batcher:
            processor = BatcherSpanProcessor(batcher)
            with tracer_of(processor).start_as_current_span("interrupted"):
                raise KeyboardInterrupt
    assert_all_counted(processor, batcher)
    assert delivered_names(exporter) == {"default": ["interrupted"]}


# -- dropped -----------------------------------------------------------------------------------------------------


async def test_on_overflow_the_new_span_is_dropped_as_queue_full(autojump_clock: MockClock) -> None:
    async with watched_batcher(hanging(), limits=Limits(max_queued_spans=4), shutdown_timeout=1) as batcher:
        processor = BatcherSpanProcessor(batcher)
        end_spans(tracer_of(processor), 10)
        assert drops(processor) == {"queue_full": 6}
    kept = [span.to_message().name for loss in batcher.undelivered for span in loss.batch.spans]
    assert sorted(kept) == [f"span {number}" for number in range(4)]
    assert_all_counted(processor, batcher)


async def test_a_full_byte_budget_drops_as_queue_full_too(autojump_clock: MockClock) -> None:
    async with watched_batcher(hanging(), limits=Limits(max_pending_bytes=1000), shutdown_timeout=1) as batcher:
        processor = BatcherSpanProcessor(batcher)
        tracer_of(processor).start_span("x" * 600).end()
        tracer_of(processor).start_span("y" * 600).end()
        assert drops(processor) == {"queue_full": 1}
    assert_all_counted(processor, batcher)


async def test_a_span_does_not_overtake_an_adder_that_waits(autojump_clock: MockClock) -> None:
    async with watched_batcher(hanging(), limits=Limits(max_queued_spans=1), shutdown_timeout=1) as batcher:
        processor = BatcherSpanProcessor(batcher)
        async with trio.open_nursery() as nursery:
            batcher.add_span_nowait("default", make_span())
            await trio.testing.wait_all_tasks_blocked()
            batcher.add_span_nowait("default", make_span())
            nursery.start_soon(batcher.add_span, "default", make_span())
            await trio.testing.wait_all_tasks_blocked()
            end_spans(tracer_of(processor), 1)
            nursery.cancel_scope.cancel()
        assert drops(processor) == {"queue_full": 1}


async def test_a_full_location_does_not_affect_another_one(autojump_clock: MockClock) -> None:
    exporter = InMemoryExporter(delay=lambda batch: math.inf if batch.location == "hangs" else 0)
    async with watched_batcher(exporter, limits=Limits(max_queued_spans=2), shutdown_timeout=1) as batcher:
        processor = BatcherSpanProcessor(batcher)
        tracer = tracer_of(processor)
        with use_location("hangs"):
            end_spans(tracer, 5)
        with use_location("well"):
            end_spans(tracer, 2)
        assert drops(processor) == {"queue_full": 3}
    assert len(exporter.delivered["well"]) == 2


async def test_before_the_batcher_is_entered_and_after_it_was_left_spans_are_dropped_as_already_shutdown(
    autojump_clock: MockClock,
) -> None:
    batcher = SpanBatcher(InMemoryExporter())
    processor = BatcherSpanProcessor(batcher)
    tracer = tracer_of(processor)
    end_spans(tracer, 1)
    assert drops(processor) == {"already_shutdown": 1}
    async with batcher:
        end_spans(tracer, 1)
    end_spans(tracer, 1)
    assert drops(processor) == {"already_shutdown": 2}
    assert_all_counted(processor, batcher)
    assert batcher.statistics().delivered == 1


async def test_while_the_batcher_drains_spans_are_dropped_as_already_shutdown(autojump_clock: MockClock) -> None:
    async with trio.open_nursery() as nursery:
        batcher = SpanBatcher(InMemoryExporter(delay=5))
        processor = BatcherSpanProcessor(batcher)
        tracer = tracer_of(processor)

        async def late() -> None:
            await trio.sleep(3)
            end_spans(tracer, 1)

        async with batcher:
            end_spans(tracer, 1)
            nursery.start_soon(late)
    assert drops(processor) == {"already_shutdown": 1}
    assert_all_counted(processor, batcher)


async def test_after_shutdown_spans_are_dropped_and_what_was_accepted_is_delivered(autojump_clock: MockClock) -> None:
    exporter = InMemoryExporter()
    async with watched_batcher(exporter) as batcher:
        processor = BatcherSpanProcessor(batcher)
        tracer = tracer_of(processor)
        end_spans(tracer, 2)
        processor.shutdown()
        end_spans(tracer, 3)
        processor.shutdown()
        assert drops(processor) == {"already_shutdown": 3}
        # The ``async with`` still keeps the batcher open.
        batcher.add_span_nowait("default", make_span("direct"))
    assert delivered_names(exporter) == {"default": ["span 0", "span 1", "direct"]}


async def test_shutdown_never_blocks_in_any_thread_even_if_the_exporter_hangs(autojump_clock: MockClock) -> None:
    async with watched_batcher(hanging(), BatchPolicy(max_spans=1), shutdown_timeout=1) as batcher:
        processor = BatcherSpanProcessor(batcher)
        provider = provider_of(processor)
        end_spans(provider.get_tracer("tests"), 1)
        await trio.testing.wait_all_tasks_blocked()
        before = trio.current_time()
        provider.shutdown()
        in_thread(provider.shutdown)
        # The export still hangs, and trio did not run in between.
        assert (trio.current_time(), batcher.statistics().in_flight) == (before, 1)
    assert_all_counted(processor, batcher)


def test_shutdown_can_be_called_at_exit_after_the_run(caplog: pytest.LogCaptureFixture) -> None:
    batcher = SpanBatcher(InMemoryExporter())
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(BatcherSpanProcessor(batcher))

    async def main() -> None:
        async with batcher:
            end_spans(provider.get_tracer("tests"), 2)

    trio.run(main)
    provider.shutdown()
    assert batcher.statistics().delivered == 2
    assert caplog.records == []


async def test_spans_that_cannot_be_sent_are_dropped_as_invalid_with_the_reason_in_the_log(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    clock = ManualClock()
    async with watched_batcher(InMemoryExporter(), limits=Limits(max_pending_bytes=1000)) as batcher:
        processor = BatcherSpanProcessor(batcher, clock=clock)
        tracer = tracer_of(processor)
        tracer.start_span("wrong time", start_time=-1).end()
        clock.now += 30
        tracer.start_span("x" * 2000).end()
        clock.now += 30
        tracer.start_span("wrong end").end(2**64)
        assert drops(processor) == {"invalid": 3}
    assert_all_counted(processor, batcher)
    first, second, third = warnings_in(caplog)
    assert "start_time is -1" in first
    assert "can never fit" in second
    assert f"end_time is {2**64}" in third


async def test_spans_at_more_than_max_locations_are_invalid(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with watched_batcher(hanging(), limits=Limits(max_locations=2), shutdown_timeout=1) as batcher:
        processor = BatcherSpanProcessor(batcher, lambda span, _: span.name)
        end_spans(tracer_of(processor), 3)
        assert drops(processor) == {"invalid": 1}
    assert_all_counted(processor, batcher)
    assert "Limits.max_locations" in caplog.text


# -- never raises ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("broken", ["encode", "admit", "policy"])
async def test_a_failure_of_the_batcher_in_on_end_is_not_raised(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch, broken: str, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> Any:
        raise OSError("broken")

    policy = fail if broken == "policy" else None
    async with watched_batcher(InMemoryExporter(), policy) as batcher:
        processor = BatcherSpanProcessor(batcher)
        if broken == "encode":
            monkeypatch.setattr(type(batcher._encoder), "encode", fail)
        if broken == "admit":
            monkeypatch.setattr(batcher, "_try_admit", fail)
        end_spans(tracer_of(processor), 1)
        assert drops(processor) == {"invalid": 1}
    assert_all_counted(processor, batcher)
    assert "OSError('broken')" in caplog.text


async def test_a_failure_when_a_span_starts_is_not_raised_and_its_location_is_not_guessed(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> Any:
        raise OSError("broken")

    async with watched_batcher(InMemoryExporter()) as batcher:
        processor = BatcherSpanProcessor(batcher)
        with monkeypatch.context() as patch:
            patch.setattr(processor._locations, "start", fail)
            span = tracer_of(processor).start_span("span")
        span.end()
    assert drops(processor) == {"invalid": 1}
    assert_all_counted(processor, batcher)
    assert "determining the location of a span failed" in caplog.text


async def test_a_span_with_invalid_fields_loses_them_or_is_dropped(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with watched_batcher(InMemoryExporter()) as batcher:
        processor = BatcherSpanProcessor(batcher)
        sampled = SpanContext(1, 1, is_remote=False, trace_flags=TraceFlags(1))
        hostile: Any = Hostile(ValueError("no text"))
        for attributes in ({"key": hostile}, {hostile: 1}, hostile):
            span: Any = ReadableSpan("by hand", sampled, start_time=1, end_time=2, attributes=attributes)
            processor.on_start(span)
            processor.on_end(span)
        processor.on_end(ReadableSpan("without ids", None))
        assert drops(processor) == {"invalid": 1}
    assert batcher.statistics().delivered == 2
    assert_all_counted(processor, batcher)
    assert "did not see" not in caplog.text


def test_the_exception_of_a_log_handler_does_not_reach_the_program() -> None:
    class Raises(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            raise OSError("disk full")

    logger = logging.getLogger("tests.raises")
    logger.addHandler(handler := Raises())
    try:
        processor = BatcherSpanProcessor(SpanBatcher(InMemoryExporter(), logger=logger))
        end_spans(tracer_of(processor), 2)
        processor.shutdown()
    finally:
        logger.removeHandler(handler)
    assert drops(processor) == {"already_shutdown": 2}


async def test_a_span_whose_attribute_raises_system_exit_is_counted(autojump_clock: MockClock) -> None:
    async with watched_batcher(InMemoryExporter()) as batcher:
        processor = BatcherSpanProcessor(batcher)
        sampled = SpanContext(1, 1, is_remote=False, trace_flags=TraceFlags(1))
        hostile: Any = {"key": Hostile(SystemExit())}
        span: Any = ReadableSpan("by hand", sampled, start_time=1, end_time=2, attributes=hostile)
        processor.on_start(span)
        with pytest.raises(SystemExit):
            processor.on_end(span)
        assert drops(processor) == {"invalid": 1}
    assert_all_counted(processor, batcher)


# -- logged ------------------------------------------------------------------------------------------------------


async def test_dropped_spans_are_logged_at_most_every_30_seconds_and_at_shutdown(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    clock = ManualClock()
    async with watched_batcher(hanging(), limits=Limits(max_queued_spans=1), shutdown_timeout=1) as batcher:
        processor = BatcherSpanProcessor(batcher, clock=clock)
        tracer = tracer_of(processor)
        end_spans(tracer, 11)
        (first,) = warnings_in(caplog)
        assert (
            "1 span that had ended was dropped (1 queue_full; the last queue_full one: no space for 'default')" in first
        )
        clock.now += 29.9
        end_spans(tracer, 10)
        tracer.start_span("wrong", start_time=-1).end()
        assert len(warnings_in(caplog)) == 1
        clock.now += 0.1
        end_spans(tracer, 1)
        assert len(warnings_in(caplog)) == 2
        assert "21 spans that had ended were dropped (20 queue_full; 1 invalid;" in warnings_in(caplog)[1]
        end_spans(tracer, 3)
        processor.shutdown()
        assert len(warnings_in(caplog)) == 3
        assert "3 spans that had ended were dropped (3 queue_full;" in warnings_in(caplog)[2]
        processor.shutdown()
        assert len(warnings_in(caplog)) == 3
    assert all(record.levelno == logging.WARNING for record in caplog.records if "dropped" in record.getMessage())


async def test_dropped_spans_are_logged_when_the_batcher_is_left(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """Spans must not be lost silently if the provider is not shut down."""
    async with watched_batcher(InMemoryExporter(), limits=Limits(max_queued_spans=1)) as batcher:
        end_spans(tracer_of(BatcherSpanProcessor(batcher)), 6)
    assert ["1 span that" in warnings_in(caplog)[0], "4 spans that" in warnings_in(caplog)[1]] == [True, True]


def test_warnings_go_to_the_batchers_logger(caplog: pytest.LogCaptureFixture) -> None:
    batcher = SpanBatcher(InMemoryExporter(), logger=logging.getLogger("elsewhere"))
    end_spans(tracer_of(BatcherSpanProcessor(batcher)), 1)
    assert [record.name for record in caplog.records] == ["elsewhere"]


# -- counted -----------------------------------------------------------------------------------------------------


def test_dropped_is_an_immutable_snapshot() -> None:
    processor = BatcherSpanProcessor(SpanBatcher(InMemoryExporter()))
    before: Any = processor.dropped
    assert before == {"queue_full": 0, "already_shutdown": 0, "invalid": 0}
    end_spans(tracer_of(processor), 1)
    assert before["already_shutdown"] == 0
    with pytest.raises(TypeError):
        before["invalid"] = 7
    assert repr(processor) == (
        "<BatcherSpanProcessor for <SpanBatcher, not entered: 0 accepted, 0 pending>: 1 ended, 1 dropped>"
    )


def test_the_public_names_are_the_processor_a_batcher_in_a_thread_and_the_words_for_spans_and_locations() -> None:
    assert set(bridge.__all__) == {"BatcherSpanProcessor", "background_batcher", "span", "traced", "use_location"}
    assert issubclass(BatcherSpanProcessor, SpanProcessor)


def test_an_argument_that_is_not_a_batcher_is_a_type_error() -> None:
    wrong: Any = InMemoryExporter()
    with pytest.raises(TypeError, match=r"batcher is <trio_spanbatch\.testing.*it must be a SpanBatcher"):
        BatcherSpanProcessor(wrong)


EVENTS = st.lists(
    st.tuples(st.sampled_from(["span", "long", "invalid", "record", "sleep", "flush"]), st.sampled_from("abc")),
    max_size=40,
)


@given(EVENTS, st.integers(1, 5), st.sampled_from([0.0, 0.5, math.inf]), st.booleans())
def test_every_span_that_ended_is_accounted_for(
    events: list[tuple[str, str]], max_queued: int, delay: float, shut_down: bool
) -> None:
    exporter = InMemoryExporter(delay=delay)

    async def main() -> None:
        limits = Limits(max_queued_spans=max_queued, max_locations=2, max_pending_bytes=500)
        async with watched_batcher(
            exporter, BatchPolicy(max_spans=2, max_delay=1), limits=limits, shutdown_timeout=2
        ) as batcher:
            processor = BatcherSpanProcessor(batcher)
            tracer = tracer_of(processor, sampler=SampleByName())
            for what in iterate(events):
                if what == "sleep":
                    await trio.sleep(0.4)
                elif what == "flush":
                    with trio.move_on_after(1):
                        await batcher.flush()
                else:
                    tracer.start_span(what * (100 if what == "long" else 1), start_time=times.get(what)).end()
                counts = processor.statistics()
                assert counts.ended == counts.accepted + counts.handed_over + sum(counts.dropped.values())
            if shut_down:
                processor.shutdown()
                tracer.start_span("late").end()
        assert_all_counted(processor, batcher)
        sampled = sum(what in ("span", "long", "invalid") for what, _ in events)
        assert processor.statistics().ended == sampled + shut_down

    times = {"invalid": -1}
    trio.run(main, clock=MockClock(autojump_threshold=0))


def iterate(events: list[tuple[str, str]]) -> Iterator[str]:
    for what, location in events:
        with use_location(location):
            yield what
