"""Exceptions that end a task and come from other code: a `trio.Cancelled` that no scope of the batcher sent.

A program gets one by keeping it: a future that keeps what its maker raised, a cache of results, an ``auth`` whose
callers share one fetch.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from tests.support.batchers import make_span, make_spans, watched_batcher
from trio_spanbatch import BatchPolicy, ExportResult, Limits, Loss, OTLPExporter, RetryPolicy, SpanBatch, SpanBatcher
from trio_spanbatch.testing import Hang, InMemoryExporter, OTLPReceiver

ONE = BatchPolicy(max_spans=1)
SHORT = BatchPolicy(max_delay=1)

Failure = Callable[[BaseException], BaseException]

FAILURES: dict[str, Failure] = {
    "Cancelled": lambda kept: kept,
    "a group of Cancelled": lambda kept: BaseExceptionGroup("g", [kept, BaseExceptionGroup("h", [kept])]),
    "Cancelled and an error": lambda kept: BaseExceptionGroup("g", [kept, ValueError()]),
    "asyncio's CancelledError": lambda kept: asyncio.CancelledError(),
    "GeneratorExit": lambda kept: GeneratorExit(),
    "StopAsyncIteration": lambda kept: StopAsyncIteration(),
    "StopIteration": lambda kept: StopIteration(),
}


async def kept_cancelled() -> trio.Cancelled:
    """Return the exception of a cancelled task, long after its scope has ended."""
    kept: list[trio.Cancelled] = []
    with trio.CancelScope() as scope:
        scope.cancel()
        try:
            await trio.sleep_forever()
        except trio.Cancelled as cancelled:
            kept.append(cancelled)
            raise
    return kept[0]


def traceback_length(exc: BaseException) -> int:
    length, traceback = 0, exc.__traceback__
    while traceback is not None:
        length, traceback = length + 1, traceback.tb_next
    return length


class FailsAtBad(InMemoryExporter):
    """Delivers, except for the location "bad"."""

    def __init__(self, fail: Callable[[], Awaitable[None]]) -> None:
        super().__init__()
        self._fail = fail

    async def export(self, batch: SpanBatch) -> ExportResult:
        if batch.location == "bad":
            await self._fail()
        return await super().export(batch)


def raises(failure: BaseException) -> Callable[[], Awaitable[None]]:
    async def fail() -> None:
        await trio.sleep(0.5)
        raise failure

    return fail


# -- the exporter --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", FAILURES)
async def test_an_exception_that_ends_only_a_task_affects_one_batch(
    what: str, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    exporter = FailsAtBad(raises(FAILURES[what](await kept_cancelled())))
    async with watched_batcher(exporter, SHORT) as batcher:
        for location in ("bad", "good", "new"):
            batcher.add_span_nowait(location, make_span())
            await trio.sleep(5)
        report = await batcher.flush()
        assert report.delivered + report.undelivered == 0
    assert [loss.location for loss in batcher.undelivered] == ["bad"]
    assert batcher.undelivered[0].reason.startswith("the exporter raised ")
    assert (batcher.statistics().delivered, exporter.closed) == (2, True)
    assert "the exporter raised for <SpanBatch 'bad'" in caplog.text


async def test_the_reason_names_a_cancelled_without_a_cancelled_scope(autojump_clock: MockClock) -> None:
    async with watched_batcher(FailsAtBad(raises(await kept_cancelled())), ONE) as batcher:
        batcher.add_span_nowait("bad", make_span())
    (loss,) = batcher.undelivered
    assert loss.reason == "the exporter raised Cancelled, though its attempt was not cancelled"


async def test_waiting_adders_are_admitted_after_an_export_raised_a_kept_cancelled(
    autojump_clock: MockClock,
) -> None:
    limits = Limits(max_pending_bytes=400, max_queued_spans=1)
    async with (
        watched_batcher(FailsAtBad(raises(await kept_cancelled())), SHORT, limits=limits) as batcher,
        trio.open_nursery() as nursery,
    ):
        for location in ("bad", "good", "new") * 6:
            nursery.start_soon(batcher.add_span, location, make_span(size=100))
    counts = {location: counts.undelivered for location, counts in batcher.statistics().locations.items()}
    assert counts == {"bad": 6, "good": 0, "new": 0}
    assert batcher.statistics().delivered == 12


async def test_a_kept_cancelled_in_place_of_the_drains_own_ends_the_drain(autojump_clock: MockClock) -> None:
    kept = await kept_cancelled()

    async def fail() -> None:
        try:
            await trio.sleep_forever()
        except trio.Cancelled:
            raise kept from None  # noqa: ASYNC104  # the bug

    async with watched_batcher(FailsAtBad(fail), ONE, shutdown_timeout=5) as batcher:
        batcher.add_span_nowait("bad", make_span())
    assert [loss.reason for loss in batcher.undelivered] == ["the shutdown deadline passed"]
    assert trio.current_time() == 4.5


async def test_a_kept_cancelled_at_the_end_of_an_attempts_time_is_a_timeout_and_repeated(
    autojump_clock: MockClock,
) -> None:
    kept = await kept_cancelled()
    attempts: list[float] = []

    async def fail() -> None:
        attempts.append(trio.current_time())
        if len(attempts) == 1:
            try:
                await trio.sleep_forever()
            except trio.Cancelled:
                raise kept from None  # noqa: ASYNC104  # the bug

    async with watched_batcher(FailsAtBad(fail), ONE, retry=RetryPolicy(attempt_timeout=3)) as batcher:
        batcher.add_span_nowait("bad", make_span())
        await batcher.flush()
    assert len(attempts) == 2
    assert (batcher.statistics().delivered, batcher.statistics().ambiguous) == (1, 1)


async def test_a_cancelled_of_the_drain_leaves_by_way_of_the_exporters_own_scopes_and_nurseries(
    autojump_clock: MockClock,
) -> None:
    async def fail() -> None:
        with trio.CancelScope(), trio.move_on_after(1000):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(trio.sleep_forever)
                await trio.sleep_forever()

    async with watched_batcher(FailsAtBad(fail), ONE, shutdown_timeout=5) as batcher:
        batcher.add_span_nowait("bad", make_span())
    assert [loss.reason for loss in batcher.undelivered] == ["the shutdown deadline passed"]


@pytest.mark.parametrize("error", [None, ValueError()])
async def test_an_exception_that_is_raised_repeatedly_does_not_grow(
    error: ValueError | None, autojump_clock: MockClock
) -> None:
    failure = error or await kept_cancelled()
    async with watched_batcher(FailsAtBad(raises(failure)), ONE) as batcher:
        for _ in range(20):
            batcher.add_span_nowait("bad", make_span())
            await batcher.flush()
        assert traceback_length(failure) <= 1
    assert batcher.statistics().undelivered == 20


async def test_a_cancelled_out_of_closing_the_exporter_is_logged_as_any_error_and_does_not_leave(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    kept = await kept_cancelled()

    class Closes(InMemoryExporter):
        async def aclose(self) -> None:
            await super().aclose()
            raise kept

    async with watched_batcher(Closes(), ONE) as batcher:
        batcher.add_span_nowait("a", make_span())
    assert batcher.statistics().delivered == 1
    assert "closing the exporter failed with Cancelled" in caplog.text


async def test_a_cancelled_out_of_closing_the_exporter_as_entering_was_cancelled_is_logged(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    kept = await kept_cancelled()

    class Closes(InMemoryExporter):
        async def aclose(self) -> None:
            await super().aclose()
            raise kept

    with trio.CancelScope() as scope:
        scope.cancel()
        async with SpanBatcher(Closes()):
            pytest.fail("was entered")
    assert scope.cancelled_caught
    assert "closing the exporter failed with Cancelled" in caplog.text


async def test_a_nursery_that_aclose_leaves_open_is_logged_and_raises_no_group(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    class Closes(InMemoryExporter):
        async def aclose(self) -> None:
            await super().aclose()
            self.nursery = trio.open_nursery()
            await self.nursery.__aenter__()

    async with watched_batcher(Closes(), ONE) as batcher:
        batcher.add_span_nowait("a", make_span())
    assert batcher.statistics().delivered == 1
    assert "closing the exporter failed with RuntimeError" in caplog.text


# -- other code of the program ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", FAILURES)
async def test_an_exception_from_on_loss_that_ends_only_a_task_is_logged(
    what: str, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    failure = FAILURES[what](await kept_cancelled())

    def on_loss(loss: Loss) -> None:
        raise failure

    exporter = InMemoryExporter(lambda batch: Hang())
    async with watched_batcher(exporter, ONE, on_loss=on_loss, shutdown_timeout=1) as batcher:
        batcher.add_spans_nowait("a", make_spans(3))
    assert batcher.statistics().undelivered == 3
    assert caplog.text.count("on_loss raised") == 3


async def test_an_exception_from_a_policy_function_or_a_location_check_propagates_and_no_span_is_accepted(
    autojump_clock: MockClock,
) -> None:
    kept = await kept_cancelled()

    class Checks(InMemoryExporter):
        def check_location(self, location: str) -> None:
            if location == "checked":
                raise kept

    def policy(location: str) -> BatchPolicy:
        if location == "asked":
            raise kept
        return ONE

    async with watched_batcher(Checks(), policy) as batcher:
        for location in ("checked", "asked"):
            with pytest.raises(trio.Cancelled):
                batcher.add_span_nowait(location, make_span())
        batcher.add_span_nowait("good", make_span())
    assert (batcher.statistics().accepted, batcher.statistics().delivered) == (1, 1)


class RaisingObserver:
    """Raises a given exception."""

    def __init__(self, failure: BaseException) -> None:
        self._failure = failure

    def began(self, spans: int) -> None:
        raise self._failure

    def settled(self, settlement: object) -> None:
        raise self._failure

    def kept(self, spans: int) -> None:
        raise self._failure

    def ended(self, seconds: float, status_code: int | None, loss: object) -> None:
        raise self._failure

    def handed_back(self, spans: int) -> None:
        raise self._failure


class RaisingFeeder:
    """Raises in each method."""

    def __init__(self, failure: BaseException) -> None:
        self._failure = failure

    def feed(self) -> None:
        raise self._failure

    def ended(self) -> None:
        raise self._failure


@pytest.mark.parametrize("what", FAILURES)
async def test_observers_and_feeders_that_raise_affect_no_delivery_and_no_drain(
    what: str, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    failure = FAILURES[what](await kept_cancelled())
    async with watched_batcher(InMemoryExporter(), ONE) as batcher:
        batcher._runtime.observers.append(RaisingObserver(failure))
        batcher._runtime.feeders.append(RaisingFeeder(failure))
        batcher.add_spans_nowait("a", make_spans(3))
        await batcher.flush()
        batcher.add_spans_nowait("a", make_spans(3))
    assert batcher.statistics().delivered == 6
    assert "an observer of deliveries failed" in caplog.text
    assert "a feeder failed to add its spans" in caplog.text


class SharedFetch:
    """An ``auth`` whose callers share a fetch and its result."""

    def __init__(self) -> None:
        self.seconds = 60.0
        self._fetch: tuple[trio.Event, list[Any]] | None = None

    async def __call__(self, location: str) -> Mapping[str, str]:
        if self._fetch is None:
            await self._make()
            return {"authorization": "Bearer token"}
        done, results = self._fetch
        await done.wait()
        if isinstance(results[0], BaseException):
            raise results[0]
        return dict(results[0])

    async def _make(self) -> None:
        done, results = self._fetch = trio.Event(), []
        try:
            await trio.sleep(self.seconds)
            results.append({"authorization": "Bearer token"})
        except BaseException as error:
            results.append(error)
            raise
        finally:
            self._fetch = None
            done.set()


async def test_auth_whose_shared_fetch_was_cancelled_is_called_again(autojump_clock: MockClock) -> None:
    auth = SharedFetch()
    async with OTLPReceiver(listen=False, location_header="x-location") as server:
        exporter = OTLPExporter(
            server.url, location_header="x-location", auth=auth, transport=server.memory_transport(), timeout=10
        )
        async with SpanBatcher(exporter, batch=ONE) as batcher:
            batcher.add_span_nowait("first", make_span())
            await trio.sleep(5)
            batcher.add_span_nowait("second", make_span())
            # The first one's attempt ends, and the second one is notified.
            await trio.sleep(5.1)
            assert batcher.statistics().locations["second"].consecutive_failures == 1
            auth.seconds = 0.1
            batcher.add_span_nowait("third", make_span())
            await trio.sleep(60)
            assert batcher.statistics().delivered == 3


# -- however the work ends -------------------------------------------------------------------------------------------


async def exits() -> None:
    await trio.sleep(0.5)
    raise SystemExit(3)


async def leaves_a_nursery_open() -> None:
    await trio.sleep(0.5)
    await trio.open_nursery().__aenter__()


async def leaves_a_task_in_a_nursery() -> None:
    await trio.sleep(0.5)
    nursery = await trio.open_nursery().__aenter__()
    nursery.start_soon(trio.sleep_forever)


async def cancels_the_nursery_that_it_runs_in() -> None:
    await trio.sleep(0.5)
    nursery = trio.lowlevel.current_task().parent_nursery
    assert nursery is not None
    nursery.cancel_scope.cancel()
    await trio.sleep_forever()


async def closes_the_scope_of_the_nursery_that_it_runs_in() -> None:
    await trio.sleep(0.5)
    nursery = trio.lowlevel.current_task().parent_nursery
    assert nursery is not None
    nursery.cancel_scope.__exit__(None, None, None)


class IntakeWatch(trio.abc.Instrument):
    """Checks after each step that a batcher admits no spans while its tasks are being cancelled."""

    def __init__(self, batcher: SpanBatcher) -> None:
        self._batcher = batcher
        self.has_ended = False
        self.let_in = False

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        if self._batcher._supervisor._nursery.cancel_scope.cancel_called:
            self.has_ended = True
            self.let_in |= self._batcher._runtime.thread_id is not None

    task_exited = after_task_step


ENDINGS: list[Callable[[], Awaitable[None]]] = [
    exits,
    leaves_a_nursery_open,
    leaves_a_task_in_a_nursery,
    cancels_the_nursery_that_it_runs_in,
    closes_the_scope_of_the_nursery_that_it_runs_in,
]


@pytest.mark.parametrize("repetition", range(5))
@pytest.mark.parametrize("end", ENDINGS)
async def test_when_the_work_ends_for_any_reason_the_intake_closes_in_that_step_and_all_waiting_calls_are_woken(
    end: Callable[[], Awaitable[None]], repetition: int, autojump_clock: MockClock
) -> None:
    ends: Counter[str] = Counter()

    async def add(location: str) -> None:
        try:
            await batcher.add_span(location, make_span(size=100))
            ends["accepted"] += 1
        except trio.ClosedResourceError:
            ends["closed"] += 1

    async def use() -> None:
        async with watched_batcher(
            FailsAtBad(end), SHORT, limits=Limits(max_pending_bytes=400, max_queued_spans=1), shutdown_timeout=10
        ) as entered:
            batchers.append(entered)
            trio.lowlevel.add_instrument(watch := IntakeWatch(entered))
            entered.add_span_nowait("bad", make_span(size=100))
            started.set()
            await trio.sleep(30)
            trio.lowlevel.remove_instrument(watch)
            assert (watch.has_ended, watch.let_in) == (True, False)
            for location in ("bad", "good", "unheard of"):
                with pytest.raises(trio.ClosedResourceError):
                    entered.add_span_nowait(location, make_span())
            with pytest.raises(trio.ClosedResourceError):
                await entered.flush()

    batchers: list[SpanBatcher] = []
    started = trio.Event()
    with trio.fail_after(1000):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ignoring_the_end, use)
            await started.wait()
            (batcher,) = batchers
            for location in ("bad", "good", "new") * 6:
                nursery.start_soon(add, location)
            await wait_all_tasks_blocked()
    assert ends.total() == 18
    assert ends["closed"] > 0
    assert batcher.statistics().accepted == 1 + ends["accepted"]


async def ignoring_the_end(use: Callable[[], Awaitable[None]]) -> None:
    """Run ``use``. The exception that ended the work is not in a group."""
    with contextlib.suppress(SystemExit, RuntimeError):
        await use()


async def test_a_nursery_that_an_exporter_leaves_open_is_named_and_trios_advice_propagates(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(RuntimeError, match="Nursery stack corrupted"):
        async with watched_batcher(FailsAtBad(leaves_a_nursery_open), ONE) as batcher:
            batcher.add_span_nowait("bad", make_span())
            await trio.sleep(0.1)
            batcher.add_spans_nowait("bad", make_spans(2))
            await trio.sleep(1)
    reasons = {loss.reason for loss in batcher.undelivered}
    assert reasons == {"the exporter raised RuntimeError", "the exporter left a nursery open"}


async def test_a_scope_that_an_exporter_leaves_open_costs_its_batch_only(autojump_clock: MockClock) -> None:
    async def fail() -> None:
        await trio.lowlevel.checkpoint()
        trio.CancelScope().__enter__()

    async with watched_batcher(FailsAtBad(fail), ONE) as batcher:
        batcher.add_span_nowait("bad", make_span())
        await batcher.flush()
        batcher.add_span_nowait("good", make_span())
    assert [loss.location for loss in batcher.undelivered] == ["bad"]
    assert batcher.statistics().delivered == 1


async def test_a_cancellation_of_tasks_from_outside_is_reported_in_the_log_and_in_the_reasons(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with watched_batcher(FailsAtBad(cancels_the_nursery_that_it_runs_in), ONE) as batcher:
        batcher.add_spans_nowait("bad", make_spans(2))
        await trio.sleep(1)
    assert {loss.reason for loss in batcher.undelivered} == {"the tasks of the batcher were cancelled"}
    assert "it stopped before it was left: the tasks of the batcher were cancelled" in caplog.text
    assert batcher.statistics().undelivered == 2


async def test_a_flush_returns_when_the_work_ends(autojump_clock: MockClock) -> None:
    with pytest.raises(SystemExit):
        async with watched_batcher(FailsAtBad(exits), BatchPolicy(max_delay=math.inf)) as batcher:
            batcher.add_spans_nowait("bad", make_spans(3))
            with trio.fail_after(5):
                report = await batcher.flush()
            assert report.undelivered == 3
