"""Admission and waiting adders: the limits on a location's queue, its bytes, and the bytes of all locations."""

from __future__ import annotations

import math
from typing import Any

import pytest
import trio
from trio.testing import MockClock, assert_checkpoints, assert_no_checkpoints, wait_all_tasks_blocked

from tests.support.batchers import (
    UnboundProxy,
    batch_lengths,
    encoded_size,
    ids_of,
    make_span,
    make_spans,
    span_ids,
    watched_batcher,
)
from trio_spanbatch import (
    BatchPolicy,
    InvalidLocationError,
    InvalidSpanError,
    Limits,
    Refused,
    RetryPolicy,
    Span,
    SpanBatcher,
    TooManyLocationsError,
    TryLater,
)
from trio_spanbatch.testing import InMemoryExporter

NEVER = BatchPolicy(max_delay=math.inf)
SIZE = encoded_size(make_span(size=100))


async def test_nowait_raises_would_block_when_the_queue_is_full_and_accepts_nothing(autojump_clock: MockClock) -> None:
    exporter = InMemoryExporter(delay=math.inf)
    async with watched_batcher(exporter, NEVER, limits=Limits(max_queued_spans=3), shutdown_timeout=1) as batcher:
        batcher.add_spans_nowait("a", make_spans(3))
        with pytest.raises(trio.WouldBlock):
            batcher.add_span_nowait("a", make_span())
        assert batcher.statistics().accepted == 3
        # The location sealed a batch, so there is space for exactly three spans again.
        await wait_all_tasks_blocked()
        batcher.add_spans_nowait("a", make_spans(3))
        with pytest.raises(trio.WouldBlock):
            batcher.add_span_nowait("a", make_span())


async def test_the_queue_holds_exactly_max_queued_spans_while_its_location_sleeps(autojump_clock: MockClock) -> None:
    async with watched_batcher(
        InMemoryExporter(delay=1), BatchPolicy(max_spans=1), limits=Limits(max_queued_spans=2)
    ) as batcher:
        batcher.add_span_nowait("a", make_span())
        await wait_all_tasks_blocked()
        assert batcher.statistics().in_flight == 1
        batcher.add_spans_nowait("a", make_spans(2))
        await wait_all_tasks_blocked()
        with pytest.raises(trio.WouldBlock):
            batcher.add_span_nowait("a", make_span())


async def test_add_spans_nowait_accepts_all_spans_or_none(autojump_clock: MockClock) -> None:
    async with watched_batcher(InMemoryExporter(), NEVER, limits=Limits(max_queued_spans=5)) as batcher:
        batcher.add_spans_nowait("a", make_spans(3))
        with pytest.raises(trio.WouldBlock):
            batcher.add_spans_nowait("a", make_spans(3))
        bad = Span("x", make_span().context, start_time=-1, end_time=2)
        with pytest.raises(InvalidSpanError, match="start_time"):
            batcher.add_spans_nowait("a", [make_span(), bad])
        assert batcher.statistics().accepted == 3
        batcher.add_spans_nowait("b", [])
        assert "b" not in batcher.statistics().locations


async def test_spans_that_can_never_fit_raise_a_value_error_at_once(autojump_clock: MockClock) -> None:
    limits = Limits(max_queued_spans=3, max_pending_bytes_per_location=1000, max_pending_bytes=5000)
    async with watched_batcher(InMemoryExporter(), NEVER, limits=limits) as batcher:
        with pytest.raises(ValueError, match=r"4 spans can never fit at once: Limits\.max_queued_spans is 3"):
            batcher.add_spans_nowait("a", make_spans(4))
        with pytest.raises(ValueError, match=r"the span has 1.*can never fit.*1000"):
            batcher.add_span_nowait("a", make_span(size=1000))
        with pytest.raises(ValueError, match=r"the 2 spans have 1.*can never fit"):
            batcher.add_spans_nowait("a", make_spans(2, size=500))
        with pytest.raises(InvalidSpanError, match="can never fit"):
            await batcher.add_span("a", make_span(size=1000))
        with pytest.raises(InvalidSpanError, match="can never fit") as caught:
            await batcher.add_spans("a", [make_span(), make_span(size=1000), make_span()])
        assert caught.value.accepted == 1
        assert batcher.statistics().accepted == 1


async def test_add_span_waits_for_space_in_the_queue(autojump_clock: MockClock) -> None:
    exporter = InMemoryExporter(delay=3)
    async with watched_batcher(exporter, NEVER, limits=Limits(max_queued_spans=2)) as batcher:
        for _ in range(6):
            await batcher.add_span("a", make_span())
        # Two were sent at 0, two at 3 when the first export had ended, two wait.
        assert trio.current_time() == 3
        assert batch_lengths(exporter.batches) == [2, 2]
    assert batch_lengths(exporter.batches) == [2, 2, 2]


async def test_waiting_adders_are_served_first_come_first_served(autojump_clock: MockClock) -> None:
    exporter = InMemoryExporter(delay=1)
    spans = make_spans(12)
    limits = Limits(max_queued_spans=1, max_exports_per_location=1)
    async with watched_batcher(exporter, NEVER, limits=limits) as batcher, trio.open_nursery() as nursery:
        for span in spans:
            nursery.start_soon(batcher.add_span, "a", span)
            await wait_all_tasks_blocked()
    assert span_ids(exporter.delivered["a"]) == ids_of(spans)


async def test_nowait_never_overtakes_a_waiting_adder(autojump_clock: MockClock) -> None:
    small, large = encoded_size(make_span(size=10)), encoded_size(make_span(size=300))
    limits = Limits(max_pending_bytes_per_location=large + small)
    exporter = InMemoryExporter(delay=5)
    async with (
        watched_batcher(exporter, BatchPolicy(max_spans=1), limits=limits) as batcher,
        trio.open_nursery() as nursery,
    ):
        batcher.add_span_nowait("a", make_span(size=300))
        nursery.start_soon(batcher.add_span, "a", make_span(size=300))
        await wait_all_tasks_blocked()
        with pytest.raises(trio.WouldBlock):
            batcher.add_span_nowait("a", make_span(size=10))
        with pytest.raises(trio.WouldBlock):
            batcher.add_spans_nowait("a", [make_span(size=10)])


async def test_a_full_location_does_not_delay_others(autojump_clock: MockClock) -> None:
    # Fairness: a location that hangs fills only its own queue and its own byte limit.
    exporter = InMemoryExporter(delay=lambda batch: math.inf if batch.location == "stuck" else 0)
    limits = Limits(max_queued_spans=4)
    async with (
        watched_batcher(exporter, BatchPolicy(max_spans=2), limits=limits, shutdown_timeout=1) as batcher,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(add_until_closed, batcher, "stuck", make_spans(50))
        await wait_all_tasks_blocked()
        for _ in range(20):
            await batcher.add_span("healthy", make_span())
        await batcher.flush("healthy")
        assert trio.current_time() == 0
        assert len(exporter.delivered["healthy"]) == 20
        nursery.cancel_scope.cancel()


async def test_the_bytes_of_a_location_are_bounded(autojump_clock: MockClock) -> None:
    limits = Limits(max_pending_bytes_per_location=3 * SIZE)
    exporter = InMemoryExporter(delay=2)
    async with watched_batcher(exporter, NEVER, limits=limits) as batcher:
        for _ in range(7):
            await batcher.add_span("a", make_span(size=100))
            assert batcher.statistics().pending_bytes <= 3 * SIZE
        # The adder that waits for bytes makes the batch due, which it never is otherwise.
        assert trio.current_time() == 4
        assert batch_lengths(exporter.batches) == [3, 3]


async def test_bytes_in_flight_count_until_they_are_accounted_for(autojump_clock: MockClock) -> None:
    limits = Limits(max_pending_bytes=2 * SIZE)
    async with watched_batcher(InMemoryExporter(delay=5), BatchPolicy(max_spans=1), limits=limits) as batcher:
        for location in "ab":
            batcher.add_span_nowait(location, make_span(size=100))
        await wait_all_tasks_blocked()
        assert batcher.statistics().in_flight == 2
        with pytest.raises(trio.WouldBlock):
            batcher.add_span_nowait("c", make_span())
        await batcher.add_span("c", make_span(size=100))
        assert trio.current_time() == 5


async def test_a_byte_budget_spread_over_many_locations_that_are_not_due_stalls_nobody(
    autojump_clock: MockClock,
) -> None:
    exporter = InMemoryExporter()
    limits = Limits(max_pending_bytes=100 * SIZE)
    async with watched_batcher(exporter, NEVER, limits=limits) as batcher:
        for number in range(100):
            batcher.add_span_nowait(f"location {number}", make_span(size=100))
        await wait_all_tasks_blocked()
        assert exporter.batches == []
        for number in range(100):
            with trio.fail_after(1):
                await batcher.add_span(f"other {number}", make_span(size=100))
        assert trio.current_time() == 0


async def test_an_adder_that_waits_for_bytes_makes_the_fullest_location_due_first(autojump_clock: MockClock) -> None:
    exporter = InMemoryExporter(delay=1)
    limits = Limits(max_pending_bytes=6 * SIZE, max_exports=1)
    async with watched_batcher(exporter, NEVER, limits=limits) as batcher:
        for location, count in (("one", 1), ("three", 3), ("two", 2)):
            batcher.add_spans_nowait(location, make_spans(count, size=100))
        await batcher.add_span("four", make_span(size=100))
        assert [batch.location for batch in exporter.batches] == ["three"]


async def test_a_location_that_holds_the_budget_and_backs_off_is_made_due_when_it_recovers(
    autojump_clock: MockClock,
) -> None:
    # The first batch is handed back at once, since the server asks to wait for longer than max_elapsed.
    exporter = InMemoryExporter([TryLater("busy", after=50)])
    limits = Limits(max_pending_bytes=4 * SIZE)
    async with watched_batcher(exporter, NEVER, limits=limits, retry=RetryPolicy(max_elapsed=10)) as batcher:
        batcher.add_span_nowait("a", make_span())
        await batcher.flush()
        batcher.add_spans_nowait("a", make_spans(4, size=100))
        await batcher.add_span("b", make_span(size=100))
        assert trio.current_time() == 10
        assert batch_lengths(exporter.batches) == [1, 4]


async def test_a_large_span_is_not_starved_by_small_ones(autojump_clock: MockClock) -> None:
    exporter = InMemoryExporter(delay=1)
    limits = Limits(max_pending_bytes=10 * SIZE)
    admitted_at: list[float] = []

    async def add_large() -> None:
        await batcher.add_span("large", make_span(size=900))
        admitted_at.append(trio.current_time())

    async with (
        watched_batcher(exporter, BatchPolicy(max_spans=1), limits=limits) as batcher,
        trio.open_nursery() as nursery,
    ):
        for _ in range(10):
            batcher.add_span_nowait("small", make_span(size=100))
        nursery.start_soon(add_large)
        await wait_all_tasks_blocked()
        nursery.start_soon(batcher.add_spans, "small", make_spans(60, size=100))
    assert admitted_at
    assert admitted_at[0] <= 10


async def test_adders_that_wait_for_bytes_are_served_round_robin_over_locations(autojump_clock: MockClock) -> None:
    exporter = InMemoryExporter(delay=1)
    limits = Limits(max_pending_bytes=2 * SIZE, max_exports_per_location=1)
    done: list[str] = []

    async def add(location: str, count: int) -> None:
        for span in make_spans(count, size=100):
            await batcher.add_span(location, span)
            done.append(location)

    async with (
        watched_batcher(exporter, BatchPolicy(max_spans=1), limits=limits) as batcher,
        trio.open_nursery() as nursery,
    ):
        for location in "abcd":
            nursery.start_soon(add, location, 5)
    assert sorted(done) == sorted("abcd" * 5)
    assert set(done[:8]) == set("abcd")


async def test_many_adders_of_few_locations_all_get_their_bytes_round_robin(autojump_clock: MockClock) -> None:
    exporter = InMemoryExporter(delay=1)
    limits = Limits(max_pending_bytes=3 * SIZE, max_pending_bytes_per_location=2 * SIZE, max_exports_per_location=1)
    order: list[str] = []

    async def add(location: str) -> None:
        await batcher.add_span(location, make_span(size=100))
        order.append(location)

    async with (
        watched_batcher(exporter, BatchPolicy(max_spans=1), limits=limits) as batcher,
        trio.open_nursery() as nursery,
    ):
        for _ in range(6):
            for location in "abc":
                nursery.start_soon(add, location)
    assert sorted(order) == sorted("abc" * 6)
    assert set(order[:6]) == set("abc")


async def test_a_cancelled_adder_accepted_nothing_and_lets_the_next_one_in(autojump_clock: MockClock) -> None:
    exporter = InMemoryExporter(delay=math.inf)
    small, large = encoded_size(make_span()), encoded_size(make_span(size=500))
    limits = Limits(max_pending_bytes=large + small)
    first, kept = make_span(size=500), make_span()

    async def give_up() -> None:
        with trio.move_on_after(2) as scope:
            await batcher.add_span("b", make_span(size=500))
        assert scope.cancelled_caught

    async with (
        watched_batcher(exporter, BatchPolicy(max_spans=1), limits=limits, shutdown_timeout=1) as batcher,
        trio.open_nursery() as nursery,
    ):
        batcher.add_span_nowait("a", first)
        nursery.start_soon(give_up)
        await wait_all_tasks_blocked()
        nursery.start_soon(batcher.add_span, "b", kept)
        await wait_all_tasks_blocked()
        assert batcher.statistics().accepted == 1
        await trio.sleep(3)
        assert batcher.statistics().accepted == 2
    assert sorted(span_ids(loss.batch.spans) for loss in batcher.undelivered) == sorted(
        [ids_of([first]), ids_of([kept])]
    )


async def test_a_cancelled_adder_at_the_head_of_the_line_for_bytes_lets_other_locations_in(
    autojump_clock: MockClock,
) -> None:
    small, large = encoded_size(make_span()), encoded_size(make_span(size=500))
    limits = Limits(max_pending_bytes=large + small)
    async with (
        watched_batcher(
            InMemoryExporter(delay=math.inf), BatchPolicy(max_spans=1), limits=limits, shutdown_timeout=1
        ) as batcher,
        trio.open_nursery() as nursery,
    ):
        batcher.add_span_nowait("a", make_span(size=500))
        with trio.move_on_after(2):
            nursery.start_soon(add_later, batcher, 1, "c", make_span())
            await batcher.add_span("b", make_span(size=500))
        await wait_all_tasks_blocked()
        assert {"a", "c"} == {name for name, counts in batcher.statistics().locations.items() if counts.accepted}


async def test_an_add_span_that_is_cancelled_before_it_begins_accepts_nothing(autojump_clock: MockClock) -> None:
    async with watched_batcher(InMemoryExporter()) as batcher:
        with trio.CancelScope() as scope:
            scope.cancel()
            await batcher.add_span("a", make_span())
        with trio.CancelScope() as scope:
            scope.cancel()
            await batcher.add_spans("a", make_spans(2))
        assert batcher.statistics().accepted == 0


async def test_add_span_add_spans_and_flush_always_checkpoint_and_nowait_never(autojump_clock: MockClock) -> None:
    async with watched_batcher(InMemoryExporter()) as batcher:
        with assert_checkpoints():
            await batcher.add_span("a", make_span())
        with assert_checkpoints():
            await batcher.add_spans("a", make_spans(2))
        with assert_checkpoints():
            await batcher.add_spans("a", [])
        with assert_checkpoints():
            await batcher.flush()
        with assert_checkpoints():
            await batcher.flush()
        with assert_no_checkpoints():
            batcher.add_span_nowait("a", make_span())
            batcher.add_spans_nowait("a", make_spans(2))
            batcher.statistics()


async def test_add_spans_lets_other_tasks_run(autojump_clock: MockClock) -> None:
    others = 0

    async def other() -> None:
        nonlocal others
        while True:
            others += 1
            await trio.lowlevel.checkpoint()

    async with watched_batcher(InMemoryExporter()) as batcher, trio.open_nursery() as nursery:
        nursery.start_soon(other)
        await batcher.add_spans("a", make_spans(1000))
        assert others > 10
        nursery.cancel_scope.cancel()


async def test_add_spans_admits_a_prefix_and_says_how_long_it_is(autojump_clock: MockClock) -> None:
    async with watched_batcher(InMemoryExporter()) as batcher:
        no_context: Any = None
        bad = Span("bad", no_context, start_time=1, end_time=2)
        good = make_spans(3)
        with pytest.raises(InvalidSpanError) as caught:
            await batcher.add_spans("a", [*good, bad, make_span()])
        assert caught.value.accepted == 3
        assert batcher.statistics().accepted == 3


async def test_closing_wakes_waiting_adders_with_closed_resource_error(autojump_clock: MockClock) -> None:
    errors: list[Any] = []

    async def add_spans(spans: list[Span]) -> None:
        try:
            await batcher.add_spans("a", spans)
        except trio.ClosedResourceError as error:
            errors.append(error)

    async with trio.open_nursery() as nursery:
        exporter = InMemoryExporter(delay=math.inf)
        limits = Limits(max_queued_spans=2)
        async with watched_batcher(exporter, NEVER, limits=limits, shutdown_timeout=5) as batcher:
            nursery.start_soon(add_spans, make_spans(10))
            nursery.start_soon(add_spans, make_spans(10))
            await wait_all_tasks_blocked()
            accepted = batcher.statistics().accepted
        await wait_all_tasks_blocked()
    assert sum(error.accepted for error in errors) == accepted
    assert len(errors) == 2


async def test_adding_to_a_closed_batcher_raises_closed_resource_error(autojump_clock: MockClock) -> None:
    async with watched_batcher(InMemoryExporter()) as batcher:
        pass
    with pytest.raises(trio.ClosedResourceError):
        batcher.add_span_nowait("a", make_span())
    with pytest.raises(trio.ClosedResourceError):
        batcher.add_spans_nowait("a", make_spans(2))
    with pytest.raises(trio.ClosedResourceError):
        await batcher.add_span("a", make_span())
    with pytest.raises(trio.ClosedResourceError):
        await batcher.add_spans("a", make_spans(2))
    with pytest.raises(trio.ClosedResourceError):
        await batcher.flush()


def test_the_error_for_adding_before_entering_names_the_remedy() -> None:
    with pytest.raises(RuntimeError, match="async with SpanBatcher"):
        SpanBatcher(InMemoryExporter()).add_span_nowait("a", make_span())


@pytest.mark.parametrize("location", ["", None, 7, ["a"]])
async def test_an_invalid_location_is_refused_before_any_span_is_accepted(
    location: Any, autojump_clock: MockClock
) -> None:
    async with watched_batcher(InMemoryExporter()) as batcher:
        with pytest.raises(InvalidLocationError, match=r"location must be a (non-empty )?str"):
            batcher.add_span_nowait(location, make_span())
        with pytest.raises(InvalidLocationError):
            await batcher.add_spans(location, make_spans(2))
        assert batcher.statistics().accepted == 0
        assert len(batcher.statistics().locations) == 0


async def test_a_location_whose_hash_raises_is_refused_like_any_other_invalid_location(
    autojump_clock: MockClock,
) -> None:
    class Unhashable:
        def __hash__(self) -> int:
            raise RuntimeError("no hash")

    location: Any = Unhashable()
    async with watched_batcher(InMemoryExporter()) as batcher:
        with pytest.raises(InvalidLocationError, match="location must be a str, not Unhashable"):
            batcher.add_span_nowait(location, make_span())


async def test_a_location_that_does_not_even_tell_its_class_is_refused_like_any_other(
    autojump_clock: MockClock,
) -> None:
    location: Any = UnboundProxy()
    async with watched_batcher(InMemoryExporter()) as batcher:
        with pytest.raises(InvalidLocationError, match="location must be a str, not UnboundProxy"):
            batcher.add_span_nowait(location, make_span())


async def test_a_str_subclass_with_overridden_methods_is_the_location_of_its_characters(
    autojump_clock: MockClock,
) -> None:
    class Odd(str):
        __slots__ = ()

        def __repr__(self) -> str:
            raise RuntimeError("no repr")

        def __bool__(self) -> bool:
            return False

        def __eq__(self, other: object) -> bool:
            return self is other

        def __hash__(self) -> int:
            return 1

    exporter = InMemoryExporter()
    async with watched_batcher(exporter, limits=Limits(max_queued_spans=1)) as batcher:
        batcher.add_span_nowait("a", make_span())
        with pytest.raises(trio.WouldBlock):
            batcher.add_span_nowait(Odd("a"), make_span())
        await batcher.add_span(Odd("a"), make_span())
    assert {type(location) for location in exporter.delivered} == {str}
    assert batcher.statistics().locations["a"].delivered == 2


async def test_an_exporter_may_refuse_locations(autojump_clock: MockClock) -> None:
    class Picky(InMemoryExporter):
        def check_location(self, location: str) -> None:
            if location != "a":
                raise InvalidLocationError(f"{location!r} is not a")

    async with watched_batcher(Picky()) as batcher:
        batcher.add_span_nowait("a", make_span())
        with pytest.raises(InvalidLocationError, match="'b' is not a"):
            await batcher.add_span("b", make_span())
    assert batcher.statistics().delivered == 1


async def test_one_location_too_many_ends_the_location_that_was_empty_longest(autojump_clock: MockClock) -> None:
    # The number of locations is bounded.
    async with watched_batcher(InMemoryExporter(), NEVER, limits=Limits(max_locations=3)) as batcher:
        for location in "abc":
            batcher.add_span_nowait(location, make_span())
        with pytest.raises(TooManyLocationsError, match="3 locations hold spans"):
            batcher.add_span_nowait("d", make_span())
        assert batcher.statistics().accepted == 3
        await batcher.flush("b")
        await batcher.flush("a")
        batcher.add_span_nowait("d", make_span())
        batcher.add_span_nowait("a", make_span())
        with pytest.raises(TooManyLocationsError):
            batcher.add_span_nowait("b", make_span())
    assert batcher.statistics().delivered == 5
    # Ended locations are forgotten beyond max_locations, oldest first; the totals keep them.
    assert {name: counts.accepted for name, counts in batcher.statistics().locations.items()} == {
        "a": 2,
        "c": 1,
        "d": 1,
    }


async def test_more_locations_than_may_be_alive_can_come_and_go(autojump_clock: MockClock) -> None:
    limits = Limits(max_locations=10)
    async with watched_batcher(InMemoryExporter(), BatchPolicy(max_spans=1), limits=limits) as batcher:
        for number in range(100):
            batcher.add_span_nowait(f"location {number}", make_span())
            await wait_all_tasks_blocked()
            assert trio.lowlevel.current_statistics().tasks_living < 20
        assert len(batcher.statistics().locations) <= 20
    statistics = batcher.statistics()
    # Locations are forgotten, but not their counts.
    assert statistics.delivered == statistics.accepted == 100


async def test_a_location_whose_adder_waits_is_not_ended(autojump_clock: MockClock) -> None:
    limits = Limits(max_locations=2, max_pending_bytes=SIZE, location_idle_timeout=1)
    exporter = InMemoryExporter(delay=10)
    async with (
        watched_batcher(exporter, BatchPolicy(max_spans=1), limits=limits) as batcher,
        trio.open_nursery() as nursery,
    ):
        batcher.add_span_nowait("a", make_span(size=100))
        nursery.start_soon(batcher.add_span, "b", make_span(size=100))
        await trio.sleep(5)
        with pytest.raises(TooManyLocationsError):
            batcher.add_span_nowait("c", make_span())
    assert len(exporter.delivered["b"]) == 1


async def test_rejected_spans_free_their_space(autojump_clock: MockClock) -> None:
    limits = Limits(max_pending_bytes=SIZE)
    exporter = InMemoryExporter(lambda batch: Refused("no"))
    async with watched_batcher(exporter, BatchPolicy(max_spans=1), limits=limits) as batcher:
        for _ in range(5):
            await batcher.add_span("a", make_span(size=100))
    assert batcher.statistics().rejected == 5


async def add_until_closed(batcher: SpanBatcher, location: str, spans: list[Span]) -> None:
    for span in spans:
        await batcher.add_span(location, span)


async def add_later(batcher: SpanBatcher, seconds: float, location: str, span: Span) -> None:
    await trio.sleep(seconds)
    await batcher.add_span(location, span)
