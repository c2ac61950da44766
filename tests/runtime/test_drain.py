"""Leaving the `async with`, in all cases."""

from __future__ import annotations

import atexit
import contextvars
import gc
import logging
import math
import random
import threading
import weakref
from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from tests.support.batchers import (
    assert_conserved,
    batch_lengths,
    ids_of,
    make_span,
    make_spans,
    span_ids,
    watched_batcher,
)
from trio_spanbatch import (
    BatchPolicy,
    Delivered,
    ExportResult,
    Limits,
    Loss,
    Refused,
    SpanBatch,
    SpanBatcher,
    TryLater,
    UndeliveredSpansError,
)
from trio_spanbatch.testing import Hang, InMemoryExporter

NEVER = BatchPolicy(max_delay=math.inf)
ONE = BatchPolicy(max_spans=1)


async def test_the_end_of_the_body_delivers_everything(autojump_clock: MockClock) -> None:
    exporter = InMemoryExporter(delay=2)
    async with watched_batcher(exporter, NEVER) as batcher:
        for location in "abc":
            batcher.add_spans_nowait(location, make_spans(5))
    assert trio.current_time() == 2
    assert batcher.statistics().delivered == 15
    assert exporter.closed


async def test_neither_a_thread_nor_an_exit_hook_is_used(autojump_clock: MockClock) -> None:
    # No atexit hook that would block inside an event loop: only the `async with` shuts down.
    def hooks() -> int:
        return atexit._ncallbacks()

    hooks_before, threads_before = hooks(), set(threading.enumerate())
    async with watched_batcher(InMemoryExporter(delay=2), ONE) as batcher:
        batcher.add_spans_nowait("a", make_spans(5))
        await trio.sleep(1)
        # An idle thread of another test may end in between.
        assert (hooks(), set(threading.enumerate()) - threads_before) == (hooks_before, set())
    assert (hooks(), set(threading.enumerate()) - threads_before) == (hooks_before, set())
    assert batcher.statistics().delivered == 5


async def test_a_batcher_that_was_given_nothing_ends_at_once(autojump_clock: MockClock) -> None:
    exporter = InMemoryExporter()
    async with watched_batcher(exporter):
        pass
    assert exporter.closed
    assert trio.current_time() == 0


async def test_the_bodys_exception_leaves_as_the_same_object(autojump_clock: MockClock) -> None:
    exporter = InMemoryExporter(delay=2)
    error = ValueError("mine")
    with pytest.raises(ValueError, match="mine") as caught:
        async with watched_batcher(exporter, NEVER) as batcher:
            batcher.add_spans_nowait("a", make_spans(5))
            raise error
    assert caught.value is error
    assert not hasattr(error, "__notes__")
    assert error.__cause__ is None
    assert error.__context__ is None
    assert batcher.statistics().delivered == 5


async def test_a_group_raised_by_the_body_leaves_as_it_is(autojump_clock: MockClock) -> None:
    with pytest.RaisesGroup(ValueError) as caught:
        async with watched_batcher(InMemoryExporter()):
            raise ExceptionGroup("mine", [ValueError()])
    assert caught.value.message == "mine"


async def test_a_cancel_from_outside_ends_the_body_and_everything_is_delivered(autojump_clock: MockClock) -> None:
    exporter = InMemoryExporter(delay=2)
    with trio.move_on_after(3) as scope:
        async with watched_batcher(exporter, ONE) as batcher:
            batcher.add_spans_nowait("a", make_spans(5))
            await trio.sleep_forever()
    assert scope.cancelled_caught
    assert batcher.statistics().delivered == 5
    assert batcher.statistics().ambiguous == 0
    assert exporter.closed


async def test_an_export_that_is_cancelled_hands_its_batch_back_and_the_queue_follows_in_order(
    autojump_clock: MockClock,
) -> None:
    exporter = InMemoryExporter(lambda batch: Hang())
    spans = make_spans(9)
    with trio.move_on_after(3):
        async with watched_batcher(exporter, BatchPolicy(max_spans=3), shutdown_timeout=5) as batcher:
            batcher.add_spans_nowait("a", spans)
            await trio.sleep_forever()
    (in_flight,) = exporter.batches
    assert batcher.statistics().ambiguous == 3
    handed_back = [loss.batch for loss in batcher.undelivered]
    # The delivery and the queue hand their spans back in any order.
    handed_back.remove(in_flight)
    handed_back.insert(0, in_flight)
    assert [span_ids(batch.spans) for batch in handed_back] == [ids_of(spans[at : at + 3]) for at in (0, 3, 6)]


async def test_a_cancel_during_the_bodys_own_flush_delivers_everything(autojump_clock: MockClock) -> None:
    exporter = InMemoryExporter(delay=2)
    with trio.move_on_after(1) as scope:
        async with watched_batcher(exporter, NEVER) as batcher:
            batcher.add_spans_nowait("a", make_spans(5))
            await batcher.flush()
    assert scope.cancelled_caught
    assert trio.current_time() == 2
    assert batcher.statistics().delivered == 5


async def test_entering_under_a_scope_that_is_cancelled_already_does_not_hang(autojump_clock: MockClock) -> None:
    exporter = InMemoryExporter()
    batcher = SpanBatcher(exporter)
    with trio.CancelScope() as scope:
        scope.cancel()
        async with batcher:
            pytest.fail("was entered")
    assert scope.cancelled_caught
    assert exporter.closed
    assert_conserved(batcher.statistics())
    with pytest.raises(trio.ClosedResourceError):
        batcher.add_span_nowait("a", make_span())


async def test_a_cancel_that_comes_while_entering_closes_an_exporter_that_hangs_in_time(
    autojump_clock: MockClock,
) -> None:
    class HangsInClose(InMemoryExporter):
        async def aclose(self) -> None:
            with trio.CancelScope(deadline=trio.current_time() + 100):
                await trio.sleep_forever()

    with trio.CancelScope() as scope:
        scope.cancel()
        async with SpanBatcher(HangsInClose(), shutdown_timeout=5):
            pytest.fail("was entered")
    assert trio.current_time() == 5


@pytest.mark.parametrize("how", ["end", "raise", "cancel"])
async def test_an_exporter_that_hangs_for_ever_cannot_outlast_the_deadline(
    how: str, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    error = KeyError("mine")
    with trio.CancelScope() as scope:
        try:
            async with watched_batcher(
                InMemoryExporter(lambda batch: Hang()), BatchPolicy(max_spans=3), shutdown_timeout=7
            ) as batcher:
                batcher.add_spans_nowait("a", make_spans(5))
                batcher.add_spans_nowait("b", make_spans(2))
                await wait_all_tasks_blocked()
                if how == "raise":
                    raise error
                if how == "cancel":
                    scope.cancel()
                    await trio.sleep_forever()
        except KeyError as exc:
            assert exc is error
            assert "7 of 7 spans were handed back undelivered" in exc.__notes__[0]
    # Deliveries stop a tenth of the time before the deadline; closing took none.
    assert trio.current_time() == pytest.approx(6.3)
    statistics = batcher.statistics()
    assert statistics.undelivered == 7
    # Spans in flight may have arrived.
    assert statistics.ambiguous == 5
    assert sum(loss.count for loss in batcher.undelivered) == 7
    assert {loss.reason for loss in batcher.undelivered} == {"the shutdown deadline passed"}
    errors = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert [
        "7 of 7 spans were handed back undelivered (the shutdown deadline passed: 7)" in r.getMessage() for r in errors
    ] == [True]


async def test_an_exporter_that_raises_in_the_drain_hands_back(autojump_clock: MockClock) -> None:
    async with watched_batcher(InMemoryExporter([RuntimeError("bug")]), NEVER) as batcher:
        batcher.add_spans_nowait("a", make_spans(2))
    assert batcher.statistics().undelivered == 2


async def test_an_exporter_that_hangs_in_aclose_is_cut_off_at_the_deadline(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    class HangsInClose(InMemoryExporter):
        async def aclose(self) -> None:
            await trio.sleep_forever()

    async with watched_batcher(HangsInClose(), shutdown_timeout=7) as batcher:
        batcher.add_span_nowait("a", make_span())
    assert trio.current_time() == 7
    assert batcher.statistics().delivered == 1
    assert "closing the exporter was cut short by shutdown_timeout" in caplog.text


async def test_an_exporter_that_raises_in_aclose_is_logged_and_noted(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    class RaisesInClose(InMemoryExporter):
        async def aclose(self) -> None:
            await trio.lowlevel.checkpoint()
            raise OSError("no")

    async with watched_batcher(RaisesInClose()) as batcher:
        batcher.add_span_nowait("a", make_span())
    assert batcher.statistics().delivered == 1
    assert "closing the exporter failed with OSError" in caplog.text
    with pytest.raises(KeyError) as caught:
        async with watched_batcher(RaisesInClose()):
            raise KeyError
    assert caught.value.__notes__ == ["SpanBatcher: closing the exporter failed with OSError"]


async def test_an_outer_cancel_during_the_drain_is_raised_after_it(autojump_clock: MockClock) -> None:
    exporter = InMemoryExporter(delay=10)
    after = False
    with trio.move_on_after(3) as scope:
        async with watched_batcher(exporter, NEVER) as batcher:
            batcher.add_spans_nowait("a", make_spans(5))
        after = True
    assert scope.cancelled_caught
    assert not after
    assert trio.current_time() == 10
    assert batcher.statistics().delivered == 5


async def test_the_bodys_exception_wins_over_an_outer_cancel_during_the_drain(autojump_clock: MockClock) -> None:
    with trio.move_on_after(3), pytest.raises(KeyError):
        async with watched_batcher(InMemoryExporter(delay=10), NEVER) as batcher:
            batcher.add_spans_nowait("a", make_spans(5))
            raise KeyError
    assert batcher.statistics().delivered == 5


async def test_our_own_backoff_is_cut_short_by_the_drain(autojump_clock: MockClock) -> None:
    # Retries do not outlive the shutdown: its deadline limits everything.
    class LongestWaits(random.Random):
        def uniform(self, a: float, b: float) -> float:
            return b

    exporter = InMemoryExporter([TryLater("busy")] * 4)
    async with watched_batcher(exporter, ONE, rng=LongestWaits()) as batcher:
        batcher.add_span_nowait("a", make_span())
        await trio.sleep(3.5)
        # It failed at 0, 1 and 3, and sleeps until 7.
        assert len(exporter.batches) == 3
        began = trio.current_time()
    # Sent at once, then after min(8, half of the remaining 29 s).
    assert trio.current_time() - began == pytest.approx(8)
    assert batcher.statistics().delivered == 1


async def test_a_server_that_never_recovers_gets_requests_until_shortly_before_the_deadline(
    autojump_clock: MockClock,
) -> None:
    exporter = InMemoryExporter(lambda batch: TryLater("busy"))
    async with watched_batcher(exporter, ONE, shutdown_timeout=20) as batcher:
        batcher.add_spans_nowait("a", make_spans(3))
        await wait_all_tasks_blocked()
    assert 17 < trio.current_time() <= 20
    assert batcher.statistics().undelivered == 3
    assert len(exporter.batches) < 60


async def test_a_retry_after_that_ends_before_the_deadline_is_honoured(autojump_clock: MockClock) -> None:
    exporter = InMemoryExporter([TryLater("busy", after=20)])
    async with watched_batcher(exporter, ONE) as batcher:
        batcher.add_span_nowait("a", make_span())
        await trio.sleep(5)
    assert trio.current_time() == 20
    assert batcher.statistics().delivered == 1


async def test_a_retry_after_that_ends_after_the_deadline_hands_back_at_once(autojump_clock: MockClock) -> None:
    exporter = InMemoryExporter(lambda batch: TryLater("busy", after=60) if batch.location == "a" else Delivered())
    async with watched_batcher(exporter, ONE) as batcher:
        batcher.add_spans_nowait("a", make_spans(3))
        batcher.add_spans_nowait("b", make_spans(3))
        await trio.sleep(5)
    assert trio.current_time() == 5
    statistics = batcher.statistics()
    assert (statistics.delivered, statistics.undelivered) == (3, 3)
    assert all("deadline" in loss.reason for loss in batcher.undelivered)
    # There is no request before the server's time: one request.
    assert statistics.locations["a"].requests == 1


async def test_a_retry_after_that_comes_during_the_drain_and_ends_too_late_hands_back_at_once(
    autojump_clock: MockClock,
) -> None:
    exporter = InMemoryExporter(lambda batch: TryLater("busy", after=60), delay=1)
    async with watched_batcher(exporter, ONE) as batcher:
        batcher.add_spans_nowait("a", make_spans(3))
    assert trio.current_time() == 1
    assert batcher.statistics().undelivered == 3
    assert batcher.statistics().requests == 1


async def test_a_shutdown_timeout_of_zero_hands_back_all_spans_that_are_not_delivered(
    autojump_clock: MockClock,
) -> None:
    async with watched_batcher(InMemoryExporter(delay=1), NEVER, shutdown_timeout=0) as batcher:
        batcher.add_spans_nowait("a", make_spans(3))
    assert trio.current_time() == 0
    assert batcher.statistics().undelivered == 3


async def test_an_infinite_shutdown_timeout_waits_for_the_server(autojump_clock: MockClock) -> None:
    async with watched_batcher(InMemoryExporter(delay=25), ONE, shutdown_timeout=math.inf) as batcher:
        batcher.add_spans_nowait("a", make_spans(3))
    assert trio.current_time() == 50
    assert batcher.statistics().delivered == 3


async def test_adding_in_the_drain_raises_closed_resource_error(autojump_clock: MockClock) -> None:
    async with trio.open_nursery() as nursery:
        batcher = SpanBatcher(InMemoryExporter(delay=5), batch=NEVER)

        async def add_in_the_drain() -> None:
            await trio.sleep(1)
            with pytest.raises(trio.ClosedResourceError):
                batcher.add_span_nowait("a", make_span())
            with pytest.raises(trio.ClosedResourceError):
                await batcher.add_span("a", make_span())

        async with batcher:
            batcher.add_span_nowait("a", make_span())
            nursery.start_soon(add_in_the_drain)
    assert batcher.statistics().accepted == batcher.statistics().delivered == 1


async def test_a_flush_in_progress_elsewhere_ends_with_the_drain(autojump_clock: MockClock) -> None:
    reports = []

    async def flush() -> None:
        reports.append(await batcher.flush())

    async with trio.open_nursery() as nursery:
        exporter = InMemoryExporter(lambda batch: Hang() if batch.location == "b" else Delivered())
        async with watched_batcher(exporter, NEVER, shutdown_timeout=5) as batcher:
            batcher.add_spans_nowait("a", make_spans(2))
            batcher.add_spans_nowait("b", make_spans(3))
            nursery.start_soon(flush)
            await wait_all_tasks_blocked()
    (report,) = reports
    assert (report.delivered, report.undelivered) == (2, 3)


async def test_strict_raises_when_spans_were_lost_and_the_body_ended_cleanly(autojump_clock: MockClock) -> None:
    exporter = InMemoryExporter([Refused("no"), RuntimeError("bug")])
    with pytest.raises(UndeliveredSpansError, match="2 spans were rejected and 3 were handed back") as caught:
        async with watched_batcher(exporter, strict=True) as batcher:
            batcher.add_spans_nowait("a", make_spans(2))
            await batcher.flush()
            batcher.add_spans_nowait("a", make_spans(3))
    assert (caught.value.rejected, caught.value.undelivered) == (2, 3)


async def test_strict_is_silent_when_nothing_was_lost(autojump_clock: MockClock) -> None:
    async with watched_batcher(InMemoryExporter(), strict=True) as batcher:
        batcher.add_span_nowait("a", make_span())
    assert batcher.statistics().delivered == 1


async def test_strict_does_not_replace_the_bodys_exception_or_a_cancel(autojump_clock: MockClock) -> None:
    with pytest.raises(KeyError):
        async with watched_batcher(InMemoryExporter([Refused("no")]), strict=True) as batcher:
            batcher.add_span_nowait("a", make_span())
            raise KeyError
    with trio.move_on_after(1) as scope:
        async with watched_batcher(InMemoryExporter([Refused("no")], delay=3), strict=True) as batcher:
            batcher.add_span_nowait("a", make_span())
    assert scope.cancelled_caught


async def test_undelivered_batches_can_be_added_again(autojump_clock: MockClock) -> None:
    async with watched_batcher(InMemoryExporter(lambda batch: Hang()), ONE, shutdown_timeout=1) as first:
        first.add_spans_nowait("a", make_spans(3))
        first.add_spans_nowait("b", make_spans(2))
    exporter = InMemoryExporter()
    async with watched_batcher(exporter) as second:
        for loss in first.undelivered:
            second.add_spans_nowait(loss.location, loss.batch.spans)
    assert {location: len(spans) for location, spans in exporter.delivered.items()} == {"a": 3, "b": 2}


async def test_on_loss_may_add_the_spans_again(autojump_clock: MockClock) -> None:
    def add_again(loss: Loss) -> None:
        batcher.add_spans_nowait("elsewhere", loss.batch.spans)

    exporter = InMemoryExporter(lambda batch: Delivered() if batch.location == "elsewhere" else Refused("no"))
    async with watched_batcher(exporter, on_loss=add_again) as batcher:
        batcher.add_spans_nowait("a", make_spans(3))
        await batcher.flush()
    assert len(exporter.delivered["elsewhere"]) == 3
    assert (batcher.statistics().accepted, batcher.statistics().rejected) == (6, 3)


async def test_an_exception_from_on_loss_is_logged_and_has_no_other_effect(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(loss: Loss) -> None:
        raise ZeroDivisionError

    exporter = InMemoryExporter([Refused("no")] * 2)
    async with watched_batcher(exporter, ONE, on_loss=broken) as batcher:
        batcher.add_spans_nowait("a", make_spans(3))
    assert batcher.statistics().delivered == 1
    assert caplog.text.count("on_loss raised") == 2


async def test_with_on_loss_undelivered_batches_are_not_kept(autojump_clock: MockClock) -> None:
    losses: list[Loss] = []
    exporter = InMemoryExporter(lambda batch: Hang())
    async with watched_batcher(exporter, ONE, on_loss=losses.append, shutdown_timeout=1) as batcher:
        batcher.add_spans_nowait("a", make_spans(3))
    assert sum(loss.count for loss in losses) == 3
    assert batcher.undelivered == ()


async def test_undelivered_batches_are_kept_up_to_max_pending_bytes_and_the_rest_is_counted_and_logged(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    exporter = InMemoryExporter(lambda batch: RuntimeError("bug"))
    async with watched_batcher(exporter, ONE, limits=Limits(max_pending_bytes=1000)) as batcher:
        for _ in range(10):
            await batcher.add_span("a", make_span(size=300))
    assert batcher.statistics().undelivered == 10
    kept = sum(loss.batch.size for loss in batcher.undelivered)
    assert kept <= 1000 < kept + batcher.undelivered[0].batch.size
    assert f"{10 - len(batcher.undelivered)} of them beyond max_pending_bytes and not kept" in caplog.text


async def test_an_exporter_that_exits_the_program_does_so_and_every_span_is_accounted_for(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    class Exits(InMemoryExporter):
        async def export(self, batch: SpanBatch) -> ExportResult:
            await trio.sleep(1)
            raise SystemExit(3)

    with pytest.raises(SystemExit) as caught:
        async with watched_batcher(Exits(), ONE) as batcher:
            batcher.add_spans_nowait("a", make_spans(3))
            batcher.add_spans_nowait("b", make_spans(3))
            await trio.sleep(2)
            with pytest.raises(trio.ClosedResourceError):
                batcher.add_span_nowait("a", make_span())
    assert caught.value.code == 3
    assert batcher.statistics().undelivered == 6
    assert "one of its tasks failed with SystemExit" in caplog.text


async def test_a_batcher_is_entered_once(autojump_clock: MockClock) -> None:
    batcher = SpanBatcher(InMemoryExporter())
    async with batcher:
        with pytest.raises(trio.BusyResourceError, match="entered only once"):
            await batcher.__aenter__()
    with pytest.raises(trio.BusyResourceError):
        async with batcher:
            pytest.fail("was entered")


async def test_deliveries_run_in_the_batchers_context(autojump_clock: MockClock) -> None:
    request: contextvars.ContextVar[str] = contextvars.ContextVar("request")
    seen = []

    class Looks(InMemoryExporter):
        async def export(self, batch: SpanBatch) -> ExportResult:
            seen.append(request.get())
            request.set("changed by an export")
            return await super().export(batch)

    request.set("the batcher's")
    async with watched_batcher(Looks(), ONE) as batcher:
        request.set("an adder's")
        batcher.add_spans_nowait("a", make_spans(3))
        await batcher.flush()
    assert seen == ["the batcher's"] * 3


async def test_a_location_does_not_keep_its_adders_context_alive(autojump_clock: MockClock) -> None:
    class Request:
        pass

    request: contextvars.ContextVar[Request] = contextvars.ContextVar("request")
    async with watched_batcher(InMemoryExporter()) as batcher:
        held = Request()
        alive = weakref.ref(held)

        def add(held: Request) -> None:
            request.set(held)
            batcher.add_span_nowait("a", make_span())

        contextvars.copy_context().run(add, held)
        del held
        await batcher.flush()
        gc.collect()
        assert alive() is None


async def test_no_task_or_timer_is_left_after_the_end(autojump_clock: MockClock) -> None:
    before = trio.lowlevel.current_statistics()
    with trio.move_on_after(5):
        async with watched_batcher(InMemoryExporter(delay=3), ONE, shutdown_timeout=10) as batcher:
            for number in range(20):
                batcher.add_spans_nowait(f"location {number}", make_spans(10))
            await trio.sleep_forever()
    after = trio.lowlevel.current_statistics()
    assert after.tasks_living == before.tasks_living
    assert after.seconds_to_next_deadline == before.seconds_to_next_deadline


async def test_several_batchers_in_one_run_drain_in_any_order(autojump_clock: MockClock) -> None:
    async def run(delay: float, shutdown_at: float) -> None:
        async with watched_batcher(InMemoryExporter(delay=delay), NEVER) as batcher:
            batcher.add_spans_nowait("a", make_spans(3))
            await trio.sleep(shutdown_at)
        assert batcher.statistics().delivered == 3

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run, 5, 1)
        nursery.start_soon(run, 1, 2)
        nursery.start_soon(run, 9, 2)


async def test_statistics_can_be_read_after_the_end(autojump_clock: MockClock) -> None:
    async with watched_batcher(InMemoryExporter()) as batcher:
        batcher.add_spans_nowait("a", make_spans(3))
    statistics = batcher.statistics()
    assert statistics.locations["a"].delivered == statistics.delivered == 3
    assert repr(batcher) == "<SpanBatcher, closed: 3 accepted, 0 pending>"


async def test_the_drain_makes_full_batches(autojump_clock: MockClock) -> None:
    exporter = InMemoryExporter()
    async with watched_batcher(exporter, BatchPolicy(max_spans=10, max_delay=60)) as batcher:
        batcher.add_spans_nowait("a", make_spans(25))
    assert sorted(batch_lengths(exporter.batches)) == [5, 10, 10]


@pytest.mark.parametrize("timeout", [-1, math.nan])
def test_an_error_names_an_invalid_shutdown_timeout(timeout: float) -> None:
    with pytest.raises(ValueError, match=r"shutdown_timeout is .*; it must be 0 or more seconds"):
        SpanBatcher(InMemoryExporter(), shutdown_timeout=timeout)


def test_arguments_of_the_wrong_type_are_named() -> None:
    make: Any = SpanBatcher
    with pytest.raises(TypeError, match="shutdown_timeout is '5'"):
        make(InMemoryExporter(), shutdown_timeout="5")
    with pytest.raises(TypeError, match=r"limits is .*must be of type Limits"):
        make(InMemoryExporter(), limits=BatchPolicy())
    with pytest.raises(TypeError, match=r"retry is .*must be of type RetryPolicy"):
        make(InMemoryExporter(), retry=5)
    with pytest.raises(TypeError, match="batch is 5; it must be of type BatchPolicy"):
        make(InMemoryExporter(), batch=5)
    with pytest.raises(TypeError, match=r"exporter is of type str; it must be a SpanExporter"):
        make("http://localhost:4318/v1/traces")
    with pytest.raises(TypeError, match=r"exporter is the class .*must be a SpanExporter"):
        make(InMemoryExporter)
    with pytest.raises(TypeError, match="on_loss is 3; it must be a function"):
        make(InMemoryExporter(), on_loss=3)
    with pytest.raises(TypeError, match="rng is 3; it must be of type Random"):
        make(InMemoryExporter(), rng=3)
    with pytest.raises(TypeError, match="logger is 'mine'; it must be of type Logger"):
        make(InMemoryExporter(), logger="mine")
