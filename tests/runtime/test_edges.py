"""Edge cases in which two events coincide."""

from __future__ import annotations

import itertools
import math
from contextlib import suppress
from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from tests.support.batchers import make_span, make_spans, span_ids, watched_batcher
from tests.support.exporters import encoded_span
from trio_spanbatch import (
    BatchPolicy,
    Delivered,
    EncodedSpan,
    ExportResult,
    InvalidLocationError,
    Limits,
    Loss,
    Refused,
    RetryPolicy,
    SpanBatch,
    SpanBatcher,
    TooManyLocationsError,
    TryLater,
)
from trio_spanbatch._scheduler.admission import Admission
from trio_spanbatch._scheduler.location import Waiter
from trio_spanbatch._spans.batch import cost_of
from trio_spanbatch.testing import Hang, InMemoryExporter

NEVER = BatchPolicy(max_delay=math.inf)
ONE = BatchPolicy(max_spans=1)
# A little more than the bytes of a span of size=100.
SPAN_BYTES = 180


# -- locations that come and go --------------------------------------------------------------------------------


async def test_a_location_that_is_ended_for_another_one_can_be_opened_again_in_the_same_step(
    autojump_clock: MockClock,
) -> None:
    async with watched_batcher(InMemoryExporter(), ONE, limits=Limits(max_locations=2)) as batcher:
        for location in "ab":
            batcher.add_span_nowait(location, make_span())
        await batcher.flush()
        # C ends A, and A ends B.
        batcher.add_span_nowait("c", make_span())
        batcher.add_span_nowait("a", make_span())
        await batcher.flush()
        assert batcher.statistics().locations["a"].delivered == 2


async def test_a_location_is_not_ended_while_an_adder_waits_for_it_to_get_bytes(autojump_clock: MockClock) -> None:
    limits = Limits(max_locations=2, max_pending_bytes=SPAN_BYTES)
    exporter = InMemoryExporter(delay=1)
    async with (
        watched_batcher(exporter, ONE, limits=limits) as batcher,
        trio.open_nursery() as nursery,
    ):
        await batcher.add_span("b", make_span(size=100))
        nursery.start_soon(batcher.add_span, "a", make_span(size=100))
        await wait_all_tasks_blocked()
        # A has no pending spans, but its adder waits. Only B may end, once it is empty.
        with pytest.raises(TooManyLocationsError):
            batcher.add_span_nowait("c", make_span())
    assert batcher.statistics().delivered == 2


async def test_an_idle_location_ends_even_after_its_waiting_adder_was_cancelled(autojump_clock: MockClock) -> None:
    limits = Limits(max_pending_bytes=SPAN_BYTES, location_idle_timeout=10)
    exporter = InMemoryExporter(lambda batch: Hang())
    retry = RetryPolicy(attempt_timeout=math.inf)
    async with watched_batcher(exporter, ONE, limits=limits, retry=retry, shutdown_timeout=1) as batcher:
        batcher.add_span_nowait("hangs", make_span(size=100))
        with trio.move_on_after(5):
            await batcher.add_span("a", make_span(size=100))
        assert len(batcher._live) == 2
        await trio.sleep(11)
        assert len(batcher._live) == 1


async def test_the_wait_that_the_server_asked_for_outlives_an_idle_location(autojump_clock: MockClock) -> None:
    exporter = InMemoryExporter([TryLater("busy", after=250)])
    limits = Limits(location_idle_timeout=10)
    async with watched_batcher(exporter, ONE, limits=limits, retry=RetryPolicy(max_elapsed=240)) as batcher:
        batcher.add_span_nowait("a", make_span())
        await trio.sleep(100)
        assert batcher.statistics().undelivered == 1
        batcher.add_span_nowait("a", make_span())
        await batcher.flush()
        # No batch waits longer than max_elapsed for its first attempt.
        assert trio.current_time() == 240


async def test_a_policy_function_that_adds_a_span_opens_one_location(autojump_clock: MockClock) -> None:
    calls: list[str] = []

    def policy(location: str) -> BatchPolicy:
        calls.append(location)
        if len(calls) == 1:
            batcher.add_span_nowait(location, make_span())
        return NEVER

    async with watched_batcher(InMemoryExporter(), policy) as batcher:
        batcher.add_span_nowait("a", make_span())
        assert len(batcher._live) == 1
        report = await batcher.flush()
        assert report.delivered == 2


# -- adders ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("repetition", range(20))
async def test_an_add_spans_that_waits_as_the_drain_begins_adds_no_more_spans(
    repetition: int, autojump_clock: MockClock
) -> None:
    async def add() -> None:
        with pytest.raises(trio.ClosedResourceError):
            await batcher.add_spans("a", make_spans(10))

    exporter = InMemoryExporter(delay=1)
    async with trio.open_nursery() as nursery:
        async with watched_batcher(exporter, ONE, limits=Limits(max_queued_spans=1)) as batcher:
            batcher.add_span_nowait("a", make_span())
            nursery.start_soon(add)
            await trio.sleep(1)
        await wait_all_tasks_blocked()
    statistics = batcher.statistics()
    assert statistics.delivered == statistics.accepted


async def test_an_adder_that_waits_for_bytes_is_served_when_the_location_made_due_backs_off(
    autojump_clock: MockClock,
) -> None:
    exporter = InMemoryExporter(lambda batch: TryLater("down", after=200) if batch.location == "down" else Delivered())
    limits = Limits(max_pending_bytes=10 * SPAN_BYTES, max_exports=1)
    async with watched_batcher(exporter, NEVER, limits=limits, shutdown_timeout=1) as batcher:
        batcher.add_spans_nowait("down", make_spans(6, size=100))
        batcher.add_spans_nowait("up", make_spans(3, size=100))
        with trio.fail_after(1):
            await batcher.add_span("other", make_span(size=300))
        assert trio.current_time() == 0


async def test_an_adder_for_bytes_uses_a_slot_that_becomes_free_while_another_location_hangs(
    autojump_clock: MockClock,
) -> None:
    def answer(batch: SpanBatch) -> ExportResult | Hang:
        return Hang() if batch.location == "hangs" else Delivered()

    exporter = InMemoryExporter(answer, delay=lambda batch: 1 if batch.location == "slow" else 0)
    limits = Limits(max_pending_bytes=10 * SPAN_BYTES, max_exports=2)
    async with watched_batcher(exporter, NEVER, limits=limits, shutdown_timeout=1) as batcher:
        batcher.add_span_nowait("slow", make_span(size=100))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(batcher.flush, "slow")
            await wait_all_tasks_blocked()
            batcher.add_spans_nowait("hangs", make_spans(4, size=100))
            batcher.add_spans_nowait("up", make_spans(3, size=100))
            with trio.fail_after(5):
                await batcher.add_span("other", make_span(size=400))
            assert trio.current_time() == 1


async def test_after_a_cancelled_adder_for_bytes_its_location_is_served_round_robin(autojump_clock: MockClock) -> None:
    def span(size: int) -> EncodedSpan:
        return EncodedSpan(b"x" * size)

    limits = Limits(max_pending_bytes=100)
    async with (
        watched_batcher(InMemoryExporter(delay=math.inf), ONE, limits=limits, shutdown_timeout=1) as batcher,
        trio.open_nursery() as others,
        trio.open_nursery() as large,
    ):
        batcher.add_span_nowait("c", span(60))
        large.start_soon(batcher.add_span, "a", span(50))
        await wait_all_tasks_blocked()
        for location, size in (("a", 10), ("a", 40), ("b", 10)):
            others.start_soon(batcher.add_span, location, span(size))
            await wait_all_tasks_blocked()
        assert batcher.statistics().accepted == 1
        large.cancel_scope.cancel()
        await wait_all_tasks_blocked()
        # A's next span is admitted, then B's. There is no space for A's last one.
        counts = batcher.statistics().locations
        assert (counts["a"].accepted, counts["b"].accepted) == (1, 1)
        others.cancel_scope.cancel()


async def test_add_spans_that_is_cancelled_leaves_an_in_order_prefix(autojump_clock: MockClock) -> None:
    spans = make_spans(50)
    limits = Limits(max_queued_spans=4, max_exports_per_location=1)
    exporter = InMemoryExporter(delay=1)
    async with watched_batcher(exporter, BatchPolicy(max_spans=2), limits=limits) as batcher:
        with trio.move_on_after(5.5) as scope:
            await batcher.add_spans("a", spans)
        assert scope.cancelled_caught
    sent = span_ids(exporter.delivered["a"])
    assert 0 < len(sent) < 50
    assert sent == [span.context.span_id for span in spans[: len(sent)]]


async def test_the_error_for_adding_from_another_thread_names_the_remedy_and_no_span_is_accepted(
    mock_clock: MockClock,
) -> None:
    async with watched_batcher(InMemoryExporter()) as batcher:
        with pytest.raises(RuntimeError, match=r"trio\.from_thread\.run_sync"):
            await trio.to_thread.run_sync(batcher.add_span_nowait, "a", make_span())
        await trio.to_thread.run_sync(trio.from_thread.run_sync, batcher.add_span_nowait, "a", make_span())
    assert batcher.statistics().delivered == 1


# -- deliveries ------------------------------------------------------------------------------------------------


async def test_a_slot_that_was_kept_free_for_others_is_used_once_a_location_exports_alone(
    autojump_clock: MockClock,
) -> None:
    limits = Limits(max_exports=3, max_exports_per_location=3)
    # Trio's scheduler decides which location runs first, and only one of the two orders left the slot free.
    for _ in range(20):
        exporter = InMemoryExporter(delay=1)
        async with watched_batcher(exporter, ONE, limits=limits) as batcher:
            batcher.add_spans_nowait("grown", make_spans(3))
            await batcher.flush()
            batcher.add_spans_nowait("grown", make_spans(6))
            await wait_all_tasks_blocked()
            batcher.add_span_nowait("waits", make_span())
            await wait_all_tasks_blocked()
            assert exporter.active == 3
            # All three end at once. The location that waits gets its first slot, and one is kept free for others.
            await trio.sleep(1)
            await wait_all_tasks_blocked()
            assert exporter.active == 2
            # Both end at once, in either order. A location that exports alone may use the reserved slots.
            await trio.sleep(1)
            await wait_all_tasks_blocked()
            assert exporter.active == 2


async def test_no_empty_batch_is_exported_if_the_only_waiting_delivery_gave_up(autojump_clock: MockClock) -> None:
    def answer(batch: SpanBatch) -> ExportResult | Hang:
        return Hang() if batch.location == "hangs" else TryLater("busy", after=1)

    exporter = InMemoryExporter(answer)
    retry = RetryPolicy(max_elapsed=10, attempt_timeout=30)
    async with watched_batcher(exporter, ONE, limits=Limits(max_exports=1), retry=retry) as batcher:
        batcher.add_span_nowait("a", make_span())
        await trio.sleep(0.5)
        batcher.add_span_nowait("hangs", make_span())
        await batcher.flush("a")
    assert all(batch.spans for batch in exporter.batches)
    assert batcher.statistics().locations["a"].requests == 1


async def test_successes_before_a_failure_do_not_allow_more_than_one_probe(autojump_clock: MockClock) -> None:
    active: list[tuple[float, int]] = []
    delays = iter([0, 0, 0, 0, 1, 2, 2, 2])
    answers = iter([Delivered()] * 4 + [TryLater("busy", after=50)] + [Delivered()] * 3)

    def answer(batch: SpanBatch) -> ExportResult:
        active.append((trio.current_time(), exporter.active))
        return next(answers, Delivered())

    exporter = InMemoryExporter(answer, delay=lambda batch: next(delays, 1))
    async with watched_batcher(exporter, ONE) as batcher:
        for _ in range(4):
            batcher.add_span_nowait("a", make_span())
            await batcher.flush()
        batcher.add_spans_nowait("a", make_spans(20))
        await batcher.flush()
    probes = [count for time, count in active if 50 <= time < 52]
    assert probes[0] == 1
    assert [time for time, _ in active].count(51) == 1


async def test_the_servers_time_is_kept_when_our_own_wait_was_longer(autojump_clock: MockClock) -> None:
    answers = iter([Delivered()] * 4 + [TryLater("reset"), TryLater("busy", after=20)])
    delays = iter([0, 0, 0, 0, 0.1, 0.2])
    exporter = InMemoryExporter(lambda batch: next(answers, Delivered()), delay=lambda batch: next(delays, 0))
    async with watched_batcher(exporter, ONE, retry=RetryPolicy(initial=30)) as batcher:
        for _ in range(4):
            batcher.add_span_nowait("a", make_span())
            await batcher.flush()
        batcher.add_spans_nowait("a", make_spans(2))
        await trio.sleep(1)
    # The drain ends the backoff, but not the wait that the server asked for.
    assert trio.current_time() == pytest.approx(20.2)
    assert batcher.statistics().delivered == 6


@pytest.mark.parametrize("after", [-1, math.nan, "5"])
async def test_an_invalid_wait_is_a_bug_of_the_exporter_and_causes_no_hot_loop(
    after: Any, autojump_clock: MockClock
) -> None:
    class Broken(InMemoryExporter):
        async def export(self, batch: SpanBatch) -> ExportResult:
            await trio.lowlevel.checkpoint()
            return TryLater("busy", after=after)

    async with watched_batcher(Broken(), ONE) as batcher:
        batcher.add_spans_nowait("a", make_spans(2))
    statistics = batcher.statistics()
    assert (statistics.requests, statistics.undelivered) == (2, 2)
    assert {loss.reason for loss in batcher.undelivered} == {"the exporter raised ValueError"}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Delivered(rejected=None), "Delivered.rejected is None; it must be int"),  # type: ignore[arg-type]  # wrong on purpose
        (lambda: Delivered(message=7), "Delivered.message is 7; it must be str"),  # type: ignore[arg-type]  # wrong on purpose
        (lambda: Refused(None), "Refused.reason is None; it must be str"),  # type: ignore[arg-type]  # wrong on purpose
        (lambda: Refused("no", "404"), "Refused.status_code is '404'; it must be int or None"),  # type: ignore[arg-type]  # wrong on purpose
    ],
)
def test_results_check_their_values(make: Any, message: str) -> None:
    with pytest.raises(TypeError) as caught:
        make()
    assert str(caught.value) == message


def test_a_loss_counts_the_whole_batch_by_default() -> None:
    batch = SpanBatch("a", [EncodedSpan(b"")] * 3)
    assert Loss("a", batch, "undelivered", "no").count == 3
    assert Loss("a", batch, "rejected", "no", count=1).count == 1


async def test_reprs_show_the_state(autojump_clock: MockClock) -> None:
    batcher = SpanBatcher(InMemoryExporter(delay=1), batch=BatchPolicy(max_spans=2))
    assert repr(batcher) == "<SpanBatcher, not entered: 0 accepted, 0 pending>"
    async with batcher:
        batcher.add_spans_nowait("a", make_spans(3))
        await wait_all_tasks_blocked()
        assert repr(batcher) == "<SpanBatcher, open: 3 accepted, 3 pending>"
        assert [repr(location) for location in batcher._live.values()] == ["<Location 'a': 1 queued, 2 in flight>"]


# -- the drain -------------------------------------------------------------------------------------------------


async def test_an_exporter_whose_nursery_fails_when_cancelled_affects_no_other_batch(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    class Grouped(InMemoryExporter):
        async def export(self, batch: SpanBatch) -> ExportResult:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._fail_at_the_end, batch.location)
                await trio.sleep_forever()

        async def _fail_at_the_end(self, location: str) -> None:
            try:
                await trio.sleep_forever()
            finally:
                if location == "fails":
                    raise ValueError("while being cancelled")

        async def aclose(self) -> None:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._fail_at_the_end, "fails")
                await trio.sleep_forever()

    error = KeyError("mine")
    with pytest.raises(KeyError) as caught:
        async with watched_batcher(Grouped(), ONE, shutdown_timeout=5) as batcher:
            batcher.add_spans_nowait("fails", make_spans(2))
            batcher.add_spans_nowait("hangs", make_spans(2))
            await wait_all_tasks_blocked()
            raise error
    assert caught.value is error
    assert trio.current_time() == 5
    statistics = batcher.statistics()
    # One attempt of each location was running.
    assert (statistics.undelivered, statistics.ambiguous) == (4, 2)
    assert {loss.reason for loss in batcher.undelivered} == {"the shutdown deadline passed"}
    assert "closing the exporter failed with ValueError" in caplog.text


async def test_several_tasks_that_exit_the_program_leave_one_exit_and_no_group(autojump_clock: MockClock) -> None:
    class Exits(InMemoryExporter):
        async def export(self, batch: SpanBatch) -> ExportResult:
            await trio.sleep(1)
            raise SystemExit(3)

    with pytest.raises(SystemExit) as caught:
        async with watched_batcher(Exits(), ONE) as batcher:
            for location in "abc":
                batcher.add_spans_nowait(location, make_spans(3))
    assert caught.value.code == 3
    assert batcher.statistics().undelivered == 9


async def test_an_exit_in_aclose_propagates_unchanged(autojump_clock: MockClock) -> None:
    class Exits(InMemoryExporter):
        async def aclose(self) -> None:
            await trio.lowlevel.checkpoint()
            raise SystemExit(4)

    with pytest.raises(SystemExit) as caught:
        async with watched_batcher(Exits()):
            pass
    assert caught.value.code == 4


async def test_an_exit_in_on_loss_propagates_at_the_end_with_every_span_accounted_for(
    autojump_clock: MockClock,
) -> None:
    def on_loss(loss: Loss) -> None:
        raise SystemExit(2)

    with pytest.raises(SystemExit) as caught:
        async with watched_batcher(
            InMemoryExporter(lambda batch: Hang()), ONE, on_loss=on_loss, shutdown_timeout=1
        ) as batcher:
            batcher.add_spans_nowait("a", make_spans(6))
            batcher.add_spans_nowait("b", make_spans(3))
    assert caught.value.code == 2
    assert batcher.statistics().undelivered == 9


async def test_the_exporter_is_closed_even_with_no_time_left(autojump_clock: MockClock) -> None:
    exporter = InMemoryExporter(delay=1)
    async with watched_batcher(exporter, ONE, shutdown_timeout=0) as batcher:
        batcher.add_spans_nowait("a", make_spans(3))
        await wait_all_tasks_blocked()
    assert exporter.closed
    assert trio.current_time() == 0


async def test_a_location_that_waits_for_a_slot_is_handed_back_at_once_if_its_server_asks_to_wait_too_long(
    autojump_clock: MockClock,
) -> None:
    """The location waits for a slot when its server asks for a minute."""

    def answer(batch: SpanBatch) -> ExportResult | Hang:
        return Hang() if batch.location == "hangs" else TryLater("busy", after=60)

    handed_back_at: dict[str, float] = {}

    def on_loss(loss: Loss) -> None:
        handed_back_at[loss.location] = trio.current_time()

    exporter = InMemoryExporter(answer, delay=2)
    async with watched_batcher(exporter, ONE, limits=Limits(max_exports=2), on_loss=on_loss) as batcher:
        batcher.add_spans_nowait("a", make_spans(3))
        batcher.add_span_nowait("hangs", make_span())
        await wait_all_tasks_blocked()
    assert handed_back_at["a"] == 2


async def test_the_reserve_is_at_most_a_second(autojump_clock: MockClock) -> None:
    async with watched_batcher(InMemoryExporter(lambda batch: Hang()), ONE, shutdown_timeout=25) as batcher:
        batcher.add_span_nowait("a", make_span())
    assert trio.current_time() == 24


async def test_deliveries_given_up_in_the_drain_for_max_elapsed_say_so(autojump_clock: MockClock) -> None:
    exporter = InMemoryExporter(lambda batch: TryLater("busy", after=3))
    retry = RetryPolicy(max_elapsed=2)
    async with watched_batcher(exporter, ONE, retry=retry) as batcher:
        batcher.add_span_nowait("a", make_span())
    assert [loss.reason for loss in batcher.undelivered] == ["retries exhausted: busy"]


@pytest.mark.parametrize("location", ["", 5, None, ["a"]])
async def test_a_bad_location_is_refused_even_with_no_spans_to_add_or_to_flush(location: Any) -> None:
    async with watched_batcher(InMemoryExporter()) as batcher:
        with pytest.raises(InvalidLocationError):
            batcher.add_spans_nowait(location, [])
        with pytest.raises(InvalidLocationError):
            await batcher.add_spans(location, [])
        if location is not None:
            with pytest.raises(InvalidLocationError):
                await batcher.flush(location)
        assert batcher.statistics().locations == {}


async def test_a_list_that_can_never_fit_is_refused_before_encoding_and_an_endless_one_soon_after() -> None:
    limits = Limits(max_queued_spans=10, max_pending_bytes_per_location=1000)
    async with watched_batcher(InMemoryExporter(), limits=limits) as batcher:
        no_spans: list[Any] = [object()] * 11
        with pytest.raises(ValueError, match="11 spans can never fit at once"):
            batcher.add_spans_nowait("a", no_spans)
        with pytest.raises(ValueError, match="11 spans can never fit at once"):
            batcher.add_spans_nowait("a", itertools.repeat(make_span()))
        with pytest.raises(ValueError, match=r"the 3 spans have 1... bytes with resource and scope, and can never fit"):
            batcher.add_spans_nowait("a", itertools.repeat(make_span(size=400)))
        assert batcher.statistics().accepted == 0


async def test_an_adder_whose_new_location_is_evicted_before_it_waits_opens_it_again(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    span = encoded_span(1, "x" * 200)
    room = cost_of([span]) + 20
    limits = Limits(max_locations=2, max_pending_bytes=room, max_pending_bytes_per_location=room)
    exporter = InMemoryExporter(delay=5)
    join, others = Admission.join, iter(["other"])

    def join_late(admission: Admission, waiter: Waiter) -> bool:
        for other in others:
            # As a finalizer or a signal handler may do at any place.
            with suppress(trio.WouldBlock):
                batcher.add_span_nowait(other, span)
        return join(admission, waiter)

    monkeypatch.setattr(Admission, "join", join_late)
    async with watched_batcher(exporter, BatchPolicy(max_spans=1), limits=limits) as batcher:
        batcher.add_span_nowait("full", span)
        await batcher.add_span("new", span)
        await batcher.flush()
        assert batcher.statistics().accepted == 2
    assert {location: len(spans) for location, spans in exporter.delivered.items()} == {"full": 1, "new": 1}
