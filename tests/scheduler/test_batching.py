"""When a batch is due, how large it is, and how often its location wakes."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from tests.support.batchers import (
    StepCounter,
    batch_lengths,
    encoded_size,
    ids_of,
    make_span,
    make_spans,
    span_ids,
    watched_batcher,
)
from trio_spanbatch import BatchPolicy, Limits, Resource, Span, SpanBatcher, TryLater
from trio_spanbatch.testing import InMemoryExporter


async def test_a_batch_is_due_when_it_has_max_spans(autojump_clock: MockClock) -> None:
    exporter = InMemoryExporter()
    async with watched_batcher(exporter, BatchPolicy(max_spans=3)) as batcher:
        batcher.add_spans_nowait("a", make_spans(3))
        await wait_all_tasks_blocked()
        assert batch_lengths(exporter.batches) == [3]
        assert trio.current_time() == 0


async def test_a_batch_is_due_max_delay_after_its_first_span(autojump_clock: MockClock) -> None:
    exporter = InMemoryExporter()
    async with watched_batcher(exporter, BatchPolicy(max_delay=5)) as batcher:
        await trio.sleep(1)
        batcher.add_span_nowait("a", make_span())
        await trio.sleep(4.9)
        # The deadline is counted from the first span; later spans do not restart it.
        batcher.add_span_nowait("a", make_span())
        assert exporter.batches == []
        await trio.sleep(0.2)
        assert batch_lengths(exporter.batches) == [2]


async def test_the_spans_left_after_a_seal_are_due_max_delay_after_the_first_of_them(autojump_clock: MockClock) -> None:
    sent_at: list[float] = []
    exporter = InMemoryExporter(delay=recording_times(sent_at))
    async with watched_batcher(exporter, BatchPolicy(max_spans=10, max_delay=5)) as batcher:
        batcher.add_spans_nowait("a", make_spans(8))
        await trio.sleep(2)
        batcher.add_spans_nowait("a", make_spans(7))
        await trio.sleep(20)
    assert batch_lengths(exporter.batches) == [10, 5]
    assert sent_at == [2, 7]


async def test_locations_are_never_mixed_in_a_batch(autojump_clock: MockClock) -> None:
    # Spans are grouped by location before they are batched: 25 spans of 5 tables are 5 requests, not 25.
    exporter = InMemoryExporter()
    async with watched_batcher(exporter, BatchPolicy(max_spans=5, max_delay=60)) as batcher:
        for span in make_spans(5):
            for location in "abcde":
                batcher.add_span_nowait(location, span)
        await wait_all_tasks_blocked()
        assert sorted((batch.location, len(batch.spans)) for batch in exporter.batches) == [(n, 5) for n in "abcde"]


async def test_spans_keep_their_order_within_a_location(autojump_clock: MockClock) -> None:
    exporter = InMemoryExporter()
    spans = make_spans(25)
    one = Limits(max_exports_per_location=1)
    async with watched_batcher(exporter, BatchPolicy(max_spans=4), limits=one) as batcher:
        batcher.add_spans_nowait("a", spans)
    assert span_ids(exporter.delivered["a"]) == ids_of(spans)


async def test_a_batch_never_exceeds_max_bytes_with_its_envelopes(autojump_clock: MockClock) -> None:
    # Byte limits count exact sizes, envelopes included.
    exporter = InMemoryExporter()
    resources = [Resource({"service.name": "x" * n}) for n in (10, 100, 130)]
    spans = [with_resource(make_span(size=37 * i % 400), resources[i % 3]) for i in range(200)]
    policy = BatchPolicy(max_bytes=2000, max_delay=60)
    async with watched_batcher(exporter, policy, limits=Limits(max_exports_per_location=1)) as batcher:
        batcher.add_spans_nowait("a", spans)
        await wait_all_tasks_blocked()
        assert exporter.batches
    assert [batch.size for batch in exporter.batches] == [len(batch.to_request()) for batch in exporter.batches]
    assert max(batch.size for batch in exporter.batches) <= 2000
    assert [span_id for batch in exporter.batches for span_id in span_ids(batch.spans)] == ids_of(spans)


async def test_a_batch_that_has_exactly_max_bytes_is_due(autojump_clock: MockClock) -> None:
    first, second = make_spans(2, size=50)
    exporter = InMemoryExporter()
    async with SpanBatcher(exporter) as batcher:
        batcher.add_spans_nowait("a", [first, second])
    exact = exporter.batches[0].size
    exporter = InMemoryExporter()
    async with watched_batcher(exporter, BatchPolicy(max_bytes=exact, max_delay=60)) as batcher:
        batcher.add_spans_nowait("a", [first, second])
        await wait_all_tasks_blocked()
        assert [batch.size for batch in exporter.batches] == [exact]


async def test_a_span_that_would_overflow_a_batch_makes_it_due_and_opens_the_next(autojump_clock: MockClock) -> None:
    exporter = InMemoryExporter()
    async with watched_batcher(exporter, BatchPolicy(max_bytes=1000, max_delay=60)) as batcher:
        batcher.add_span_nowait("a", make_span(size=600))
        await wait_all_tasks_blocked()
        assert exporter.batches == []
        batcher.add_span_nowait("a", make_span(size=600))
        await wait_all_tasks_blocked()
        assert batch_lengths(exporter.batches) == [1]
        assert batcher.statistics().queued == 1


async def test_a_span_larger_than_max_bytes_travels_alone(autojump_clock: MockClock) -> None:
    # An oversized span does not take others with it.
    exporter = InMemoryExporter()
    spans = [make_span(size=10), make_span(size=5000), make_span(size=10)]
    async with watched_batcher(exporter, BatchPolicy(max_bytes=1000, max_delay=60)) as batcher:
        batcher.add_spans_nowait("a", spans)
        await wait_all_tasks_blocked()
        assert batch_lengths(exporter.batches) == [1, 1]
    assert batch_lengths(exporter.batches) == [1, 1, 1]
    assert len(exporter.delivered["a"]) == 3


async def test_a_lone_oversized_span_is_due_at_once(autojump_clock: MockClock) -> None:
    exporter = InMemoryExporter()
    async with watched_batcher(exporter, BatchPolicy(max_bytes=100, max_delay=60)) as batcher:
        batcher.add_span_nowait("a", make_span(size=500))
        await wait_all_tasks_blocked()
        assert batch_lengths(exporter.batches) == [1]


async def test_max_spans_of_one_sends_each_span_by_itself(autojump_clock: MockClock) -> None:
    exporter = InMemoryExporter()
    async with watched_batcher(exporter, BatchPolicy(max_spans=1, max_delay=60)) as batcher:
        batcher.add_spans_nowait("a", make_spans(3))
        await wait_all_tasks_blocked()
        assert batch_lengths(exporter.batches) == [1, 1, 1]


async def test_a_batch_cannot_be_larger_than_the_queue(autojump_clock: MockClock) -> None:
    exporter = InMemoryExporter()
    limits = Limits(max_queued_spans=4)
    async with watched_batcher(exporter, BatchPolicy(max_spans=100, max_delay=math.inf), limits=limits) as batcher:
        await batcher.add_spans("a", make_spans(10))
        await wait_all_tasks_blocked()
        assert batch_lengths(exporter.batches) == [4, 4]


async def test_a_batch_grows_while_it_waits_for_a_slow_server(autojump_clock: MockClock) -> None:
    # Sealed late: a batch that is due but cannot be sent yet continues to grow.
    exporter = InMemoryExporter(delay=10)
    async with watched_batcher(exporter, BatchPolicy(max_spans=100, max_delay=1)) as batcher:
        for _ in range(9):
            batcher.add_span_nowait("a", make_span())
            await trio.sleep(1.1)
    assert batch_lengths(exporter.batches) == [1, 8]


async def test_the_policy_may_depend_on_the_location(autojump_clock: MockClock) -> None:
    exporter = InMemoryExporter()

    def policy(location: str) -> BatchPolicy:
        return BatchPolicy(max_spans=2 if location == "small" else 4, max_delay=60)

    async with watched_batcher(exporter, policy) as batcher:
        for location in ("small", "large"):
            batcher.add_spans_nowait(location, make_spans(4))
        await wait_all_tasks_blocked()
        assert sorted(batch_lengths(exporter.batches)) == [2, 2, 4]


async def test_a_policy_function_that_returns_no_policy_is_named(autojump_clock: MockClock) -> None:
    def no_policy(_location: str) -> Any:
        return None

    async with watched_batcher(InMemoryExporter(), no_policy) as batcher:
        with pytest.raises(TypeError, match="returned None; it must return a BatchPolicy"):
            batcher.add_span_nowait("a", make_span())
        assert batcher.statistics().accepted == 0


async def test_the_driver_wakes_three_times_for_a_batch_of_any_size(autojump_clock: MockClock) -> None:
    # For its first span, at the deadline, and when its spans are accounted for.
    async with watched_batcher(InMemoryExporter(), BatchPolicy(max_delay=1)) as batcher:
        batcher.add_span_nowait("a", make_span())
        await trio.sleep(10)
        counter = StepCounter("trio_spanbatch driver")
        trio.lowlevel.add_instrument(counter)
        for _ in range(100):
            batcher.add_span_nowait("a", make_span())
            await trio.lowlevel.checkpoint()
        await trio.sleep(10)
        trio.lowlevel.remove_instrument(counter)
    assert counter.steps == 3


async def test_a_full_batch_wakes_the_driver_three_times(autojump_clock: MockClock) -> None:
    async with watched_batcher(InMemoryExporter(), BatchPolicy(max_spans=100, max_delay=60)) as batcher:
        batcher.add_span_nowait("a", make_span())
        await batcher.flush()
        counter = StepCounter("trio_spanbatch driver")
        trio.lowlevel.add_instrument(counter)
        for _ in range(100):
            batcher.add_span_nowait("a", make_span())
            await trio.lowlevel.checkpoint()
        await wait_all_tasks_blocked()
        trio.lowlevel.remove_instrument(counter)
        assert batcher.statistics().delivered == 101
    assert counter.steps == 3


async def test_a_batch_that_waits_for_a_slot_wakes_the_driver_four_times(
    autojump_clock: MockClock,
) -> None:
    exporter = InMemoryExporter(delay=lambda batch: 10 if batch.location == "slow" else 0)
    async with watched_batcher(exporter, BatchPolicy(max_delay=1), limits=Limits(max_exports=1)) as batcher:
        for location in ("slow", "a"):
            batcher.add_span_nowait(location, make_span())
            await batcher.flush()
        batcher.add_span_nowait("slow", make_span())
        await trio.sleep(1.5)
        counter = StepCounter("trio_spanbatch driver")
        trio.lowlevel.add_instrument(counter)
        batcher.add_spans_nowait("a", make_spans(50))
        await trio.sleep(30)
        trio.lowlevel.remove_instrument(counter)
    # For its first span, at the deadline, when the slot is free, and when its spans are accounted for.
    assert counter.steps == 4


async def test_a_span_added_while_its_location_is_being_woken_is_not_lost(autojump_clock: MockClock) -> None:
    # No wake-up is lost if spans are added at the very instant of a deadline or of a seal.
    exporter = InMemoryExporter()
    async with watched_batcher(exporter, BatchPolicy(max_spans=2, max_delay=1)) as batcher:
        for _ in range(50):
            batcher.add_span_nowait("a", make_span())
            await trio.sleep(1)
            batcher.add_span_nowait("a", make_span())
            await trio.lowlevel.checkpoint()
            batcher.add_span_nowait("a", make_span())
        await trio.sleep(1.1)
        assert batcher.statistics().delivered == 150


async def test_an_encoded_span_can_be_added(autojump_clock: MockClock) -> None:
    exporter = InMemoryExporter()
    async with watched_batcher(exporter) as batcher:
        batcher.add_span_nowait("a", make_span())
        await batcher.flush()
        encoded = exporter.delivered["a"][0]
        batcher.add_span_nowait("b", encoded)
    assert exporter.delivered["b"] == [encoded]
    assert encoded.size == encoded_size(make_span())


def recording_times(times: list[float]) -> Callable[[object], float]:
    def delay(batch: object) -> float:
        times.append(trio.current_time())
        return 0

    return delay


def with_resource(span: Span, resource: Resource) -> Span:
    return Span(
        span.name,
        span.context,
        start_time=span.start_time,
        end_time=span.end_time,
        attributes=span.attributes,
        resource=resource,
    )


async def settling(batcher: SpanBatcher) -> None:
    """Add a span, and wait until its third attempt, which succeeds: then the location takes 2 s to settle."""
    batcher.add_span_nowait("a", make_span())
    with trio.fail_after(10):
        await batcher.flush("a")
    # Its next batch is opened after the end of the backoff.
    await trio.sleep(0.001)


def fails_twice() -> InMemoryExporter:
    return InMemoryExporter([TryLater("busy"), TryLater("busy")])


SOON = BatchPolicy(max_spans=3, max_delay=0.1)


async def test_a_batch_waits_for_its_location_to_settle_after_a_backoff(autojump_clock: MockClock) -> None:
    exporter = fails_twice()
    async with watched_batcher(exporter, SOON) as batcher:
        await settling(batcher)
        batcher.add_span_nowait("a", make_span())
        await trio.sleep(1.9)
        batcher.add_span_nowait("a", make_span())
        assert batch_lengths(exporter.batches) == [1, 1, 1]
        await trio.sleep(0.1)
        assert batch_lengths(exporter.batches) == [1, 1, 1, 2]


async def test_while_a_location_settles_full_batches_are_sent_at_once(autojump_clock: MockClock) -> None:
    exporter = fails_twice()
    async with watched_batcher(exporter, SOON) as batcher:
        await settling(batcher)
        batcher.add_spans_nowait("a", make_spans(3))
        await trio.sleep(0.001)
        assert batch_lengths(exporter.batches) == [1, 1, 1, 3]


async def test_while_a_location_settles_a_flush_does_not_wait(autojump_clock: MockClock) -> None:
    async with watched_batcher(fails_twice(), SOON) as batcher:
        await settling(batcher)
        batcher.add_span_nowait("a", make_span())
        with trio.fail_after(0.001):
            await batcher.flush("a")


async def test_while_a_location_settles_the_drain_does_not_wait(autojump_clock: MockClock) -> None:
    async with watched_batcher(fails_twice(), SOON) as batcher:
        await settling(batcher)
        batcher.add_span_nowait("a", make_span())
        left_at = trio.current_time()
    assert trio.current_time() == left_at
    assert batcher.statistics().delivered == 2


async def test_while_a_location_settles_an_adder_that_waits_makes_its_batch_due(autojump_clock: MockClock) -> None:
    limits = Limits(max_queued_spans=2)
    async with watched_batcher(fails_twice(), BatchPolicy(max_bytes=1000, max_delay=0.1), limits=limits) as batcher:
        await settling(batcher)
        with trio.fail_after(0.001):
            for span in make_spans(5):
                await batcher.add_span("a", span)
