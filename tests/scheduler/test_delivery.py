"""Attempts, backoff, the probe, and the concurrency of a location's exports."""

from __future__ import annotations

import logging
import math
import random
from collections import Counter
from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from tests.support.batchers import NoSpread, batch_lengths, make_span, make_spans, span_ids, watched_batcher
from trio_spanbatch import BatchPolicy, Delivered, ExportResult, Limits, Loss, Refused, RetryPolicy, SpanBatch, TryLater
from trio_spanbatch._scheduler.ledger import Account
from trio_spanbatch._scheduler.pace import Pace
from trio_spanbatch.testing import Hang, InMemoryExporter

ONE = BatchPolicy(max_spans=1)


class Timed:
    """A script that notes when each export began."""

    def __init__(self, *steps: ExportResult | Exception | Hang) -> None:
        self._steps = list(steps)
        self.at: list[float] = []

    def __call__(self, batch: SpanBatch) -> ExportResult | Exception | Hang:
        self.at.append(trio.current_time())
        return self._steps.pop(0) if self._steps else Delivered()

    @property
    def waits(self) -> list[float]:
        return [later - earlier for earlier, later in zip(self.at, self.at[1:], strict=False)]


async def test_a_failed_export_is_repeated_with_exponential_backoff_and_full_jitter(autojump_clock: MockClock) -> None:
    script = Timed(*[TryLater("busy")] * 8)
    async with watched_batcher(InMemoryExporter(script), ONE, rng=random.Random(7)) as batcher:
        batcher.add_span_nowait("a", make_span())
        await batcher.flush()
    rng = random.Random(7)
    expected = [rng.uniform(0, longest) for longest in (1, 2, 4, 8, 16, 30, 30, 30)]
    assert script.waits == pytest.approx(expected)
    statistics = batcher.statistics()
    assert (statistics.delivered, statistics.requests, statistics.retries) == (1, 9, 8)
    assert statistics.ambiguous == 0


async def test_the_wait_that_the_server_asks_for_is_kept(autojump_clock: MockClock) -> None:
    script = Timed(TryLater("busy", after=17), TryLater("busy", after=40), TryLater("busy", after=0))
    async with watched_batcher(InMemoryExporter(script), ONE) as batcher:
        batcher.add_span_nowait("a", make_span())
        await batcher.flush()
    assert script.waits[:2] == [17, 40]
    # With after=0, the usual backoff still applies.
    assert 0 < script.waits[2] <= 4


async def test_retries_end_after_max_elapsed_and_hand_the_spans_back(autojump_clock: MockClock) -> None:
    script = Timed(*[TryLater("busy")] * 1000)
    async with watched_batcher(InMemoryExporter(script), ONE, retry=RetryPolicy(max_elapsed=60)) as batcher:
        batcher.add_span_nowait("a", make_span())
        report = await batcher.flush()
        assert report.undelivered == 1
        assert 20 < script.at[-1] <= 60
        assert trio.current_time() <= 60
    assert [loss.reason for loss in batcher.undelivered] == ["retries exhausted: busy"]


async def test_a_wait_that_ends_after_max_elapsed_is_not_begun(autojump_clock: MockClock) -> None:
    async with watched_batcher(
        InMemoryExporter([TryLater("busy", after=61)]), ONE, retry=RetryPolicy(max_elapsed=60)
    ) as batcher:
        batcher.add_span_nowait("a", make_span())
        report = await batcher.flush()
        assert (report.undelivered, trio.current_time()) == (1, 0)


async def test_an_attempt_ends_after_attempt_timeout_and_its_spans_are_ambiguous(autojump_clock: MockClock) -> None:
    script = Timed(Hang(), Hang())
    async with watched_batcher(InMemoryExporter(script), retry=RetryPolicy(attempt_timeout=12)) as batcher:
        batcher.add_spans_nowait("a", make_spans(3))
        await batcher.flush()
    assert 24 <= script.at[2] <= 27
    statistics = batcher.statistics()
    # Each span is counted once, however many of its attempts timed out.
    assert (statistics.delivered, statistics.ambiguous, statistics.retries) == (3, 3, 2)


@pytest.mark.parametrize(("limit", "ends_at"), [(10, 30), (60, 61)])
async def test_without_a_policy_an_attempt_has_the_time_that_its_exporter_needs(
    limit: float, ends_at: float, autojump_clock: MockClock
) -> None:
    class Slow(InMemoryExporter):
        def __init__(self) -> None:
            super().__init__([Hang()])
            self.timeout = limit

    exporter = Slow()
    async with watched_batcher(exporter, ONE) as batcher:
        batcher.add_span_nowait("a", make_span())
        await trio.sleep(ends_at - 0.5)
        assert batcher.statistics().ambiguous == 0
        await trio.sleep(1)
        assert batcher.statistics().ambiguous == 1


async def test_without_a_policy_and_without_a_limit_of_its_exporter_an_attempt_has_none(
    autojump_clock: MockClock,
) -> None:
    class Unlimited(InMemoryExporter):
        timeout = math.inf

    exporter = Unlimited(delay=100_000)
    async with watched_batcher(exporter, ONE) as batcher:
        batcher.add_span_nowait("a", make_span())
        assert (await batcher.flush()).delivered == 1
    assert (trio.current_time(), batcher.statistics().ambiguous) == (100_000, 0)


async def test_ambiguous_is_counted_when_the_exporter_says_so(autojump_clock: MockClock) -> None:
    exporter = InMemoryExporter([TryLater("reset", ambiguous=True), TryLater("refused"), Delivered()])
    async with watched_batcher(exporter) as batcher:
        batcher.add_spans_nowait("a", make_spans(2))
        batcher.add_spans_nowait("b", make_spans(5))
        await batcher.flush()
    assert batcher.statistics().ambiguous in (2, 5)


async def test_a_backoff_holds_no_slot(autojump_clock: MockClock) -> None:
    # A backoff that held an export slot would stall the other locations.
    exporter = InMemoryExporter(lambda batch: TryLater("down") if batch.location == "down" else Delivered())
    limits = Limits(max_exports=1)
    async with watched_batcher(exporter, ONE, limits=limits, shutdown_timeout=1) as batcher:
        batcher.add_span_nowait("down", make_span())
        await wait_all_tasks_blocked()
        for _ in range(20):
            batcher.add_span_nowait("up", make_span())
        await batcher.flush("up")
        assert trio.current_time() == 0
        assert batcher.statistics().locations["down"].in_flight == 1


async def test_nothing_is_sealed_while_its_location_backs_off_and_one_probe_goes_first(
    autojump_clock: MockClock,
) -> None:
    script = Timed(TryLater("busy", after=10), TryLater("busy", after=10))
    exporter = InMemoryExporter(script, delay=1)
    async with watched_batcher(exporter, BatchPolicy(max_spans=10, max_delay=1)) as batcher:
        batcher.add_spans_nowait("a", make_spans(2))
        await trio.sleep(1.5)
        batcher.add_spans_nowait("a", make_spans(10))
        batcher.add_spans_nowait("a", make_spans(10))
        await trio.sleep(100)
    # The probe (2 spans) alone until it passes; then the rest, with growing concurrency.
    assert batch_lengths(exporter.batches) == [2, 2, 2, 10, 10]
    assert script.at == [1, 12, 23, 24, 24]
    assert script.at == [1, 12, 23, 24, 24]


async def test_deliveries_that_fail_together_are_probed_one_at_a_time_the_oldest_first(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    down = True

    def answer(batch: SpanBatch) -> ExportResult:
        return TryLater("busy", after=10) if down else Delivered()

    exporter = InMemoryExporter(delay=1)
    async with watched_batcher(exporter, ONE) as batcher:
        for _ in range(4):
            batcher.add_span_nowait("a", make_span())
            await batcher.flush()
        exporter_down = InMemoryExporter(answer, delay=1)
        monkeypatch.setattr(exporter, "export", exporter_down.export)  # the server goes down
        batcher.add_spans_nowait("a", make_spans(8))
        await trio.sleep(2)
        assert exporter_down.max_active == 4
        first_four = [batch.spans[0] for batch in exporter_down.batches]
        exporter_down.max_active = 0
        down = False
        await batcher.flush()
        assert len(exporter_down.batches) == 4 + 8
        again = [batch.spans[0] for batch in exporter_down.batches[4:]]
        oldest = min(first_four, key=lambda span: span_ids([span]))
        assert again[0] is oldest
        # After one success two may run; after those, the last of the four beside batches that were not tried before.
        assert {id(span) for span in again[:3]} < {id(span) for span in first_four}
    assert batcher.statistics().retries == 4


async def test_a_location_starts_with_one_export_gains_one_with_each_success_and_falls_back_to_one(
    autojump_clock: MockClock,
) -> None:
    began_at: list[float] = []

    def fails() -> bool:
        return len(began_at) == 16

    def answer(batch: SpanBatch) -> ExportResult:
        began_at.append(trio.current_time())
        return TryLater("busy", after=5) if fails() else Delivered()

    exporter = InMemoryExporter(answer, delay=lambda batch: 0.5 if fails() else 1)
    async with watched_batcher(exporter, ONE, limits=Limits(max_exports_per_location=8)) as batcher:
        batcher.add_spans_nowait("a", make_spans(29))
        await batcher.flush()
    # Each time all that ran succeeded, so twice as many could begin, up to the limit; one of those that began at 4
    # failed at 4.5, and the others ended while the location backed off.
    assert Counter(began_at) == {0: 1, 1: 2, 2: 4, 3: 8, 4: 8, 9.5: 1, 10.5: 2, 11.5: 4}
    assert exporter.max_active_by_location["a"] == 8


async def test_locations_that_hang_cannot_take_all_slots(autojump_clock: MockClock) -> None:
    # Fairness: each location that hangs holds one slot.
    exporter = InMemoryExporter(lambda batch: Hang() if batch.location.startswith("hang") else Delivered())
    async with watched_batcher(exporter, ONE, limits=Limits(max_exports=8), shutdown_timeout=1) as batcher:
        for number in range(7):
            batcher.add_spans_nowait(f"hang {number}", make_spans(20))
        await wait_all_tasks_blocked()
        assert exporter.active == 7
        batcher.add_spans_nowait("healthy", make_spans(20))
        await batcher.flush("healthy")
        assert trio.current_time() == 0


async def test_max_exports_is_never_exceeded(autojump_clock: MockClock) -> None:
    # Deadlock: retries, and the halves of refused batches, wait for another slot. If they kept theirs, no export would
    # ever begin.
    rng = random.Random(3)
    answers: list[ExportResult] = [Delivered(), Delivered(), Delivered(), TryLater("busy"), Refused("no", isolate=True)]
    exporter = InMemoryExporter(lambda batch: rng.choice(answers), delay=lambda batch: rng.uniform(0, 2))
    limits = Limits(max_exports=3, max_exports_per_location=2)
    async with watched_batcher(exporter, BatchPolicy(max_spans=2, max_delay=1), limits=limits) as batcher:
        for _ in range(30):
            for location in "abcdefgh":
                batcher.add_span_nowait(location, make_span())
            await trio.sleep(rng.uniform(0, 0.5))
        with trio.fail_after(1000):
            await batcher.flush()
    assert exporter.max_active == 3
    assert max(exporter.max_active_by_location.values()) <= 2


async def test_a_refused_batch_is_rejected_with_its_reason_and_not_repeated(autojump_clock: MockClock) -> None:
    losses: list[Loss] = []
    exporter = InMemoryExporter([Refused("unknown table", status_code=404)])
    async with watched_batcher(exporter, on_loss=losses.append) as batcher:
        batcher.add_spans_nowait("a", make_spans(3))
        report = await batcher.flush()
    assert report.rejected == 3
    assert batch_lengths(exporter.batches) == [3]
    (loss,) = losses
    assert (loss.location, loss.outcome, loss.reason, loss.status_code) == ("a", "rejected", "unknown table", 404)
    assert loss.batch is exporter.batches[0]
    # Rejected spans are reported only to on_loss and the log.
    assert batcher.undelivered == ()


@pytest.mark.parametrize(("said", "counted"), [(0, 0), (2, 2), (3, 3), (99, 3), (-5, 0)])
async def test_partial_success_is_counted_as_rejected_clipped_to_the_batch(
    said: int, counted: int, autojump_clock: MockClock
) -> None:
    losses: list[Loss] = []
    exporter = InMemoryExporter([Delivered(rejected=said, message="too old")])
    async with watched_batcher(exporter, on_loss=losses.append) as batcher:
        batcher.add_spans_nowait("a", make_spans(3))
        report = await batcher.flush()
    assert (report.delivered, report.rejected) == (3 - counted, counted)
    assert [(loss.count, loss.outcome, loss.reason) for loss in losses] == (
        [(counted, "rejected", "too old")] if counted else []
    )
    assert len(exporter.batches) == 1


async def test_a_message_with_no_rejected_span_is_a_warning(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with watched_batcher(InMemoryExporter([Delivered(message="use v2")])) as batcher:
        batcher.add_span_nowait("a", make_span())
    assert [(record.levelno, record.getMessage()) for record in caplog.records] == [
        (logging.WARNING, "SpanBatcher: the server for 'a' accepted a batch with a warning: use v2")
    ]


async def test_an_exception_from_export_hands_the_batch_back_and_affects_no_other_batch(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    exporter = InMemoryExporter(lambda batch: ZeroDivisionError("oops") if batch.location == "bug" else Delivered())
    async with watched_batcher(exporter) as batcher:
        batcher.add_spans_nowait("bug", make_spans(3))
        batcher.add_spans_nowait("fine", make_spans(2))
        report = await batcher.flush()
        batcher.add_span_nowait("bug", make_span())
    assert (report.delivered, report.undelivered) == (2, 3)
    assert {loss.reason for loss in batcher.undelivered} == {"the exporter raised ZeroDivisionError"}
    logged = [record for record in caplog.records if record.exc_info]
    assert len(logged) == 2
    assert "the exporter raised" in logged[0].getMessage()


async def test_an_exporters_reason_to_hand_back_that_raises_costs_its_batch_only(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken(InMemoryExporter):
        def reason_to_hand_back(self, location: str) -> str | None:
            if location == "bug":
                raise ZeroDivisionError("oops")
            return None

    async with watched_batcher(Broken()) as batcher:
        batcher.add_spans_nowait("bug", make_spans(3))
        batcher.add_spans_nowait("fine", make_spans(2))
        report = await batcher.flush()
        batcher.add_span_nowait("fine", make_span())
    statistics = batcher.statistics()
    assert (report.delivered, report.undelivered, statistics.delivered, statistics.requests) == (2, 3, 3, 2)
    assert {loss.reason for loss in batcher.undelivered} == {"the exporter raised ZeroDivisionError"}
    assert [record.exc_info is not None for record in caplog.records if "raised for" in record.getMessage()] == [True]


@pytest.mark.parametrize("result", [None, 200, "ok"])
async def test_a_result_that_is_not_an_export_result_hands_the_batch_back(
    result: Any, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken(InMemoryExporter):
        async def export(self, batch: SpanBatch) -> ExportResult:
            await trio.lowlevel.checkpoint()
            answer: ExportResult = result
            return answer

    async with watched_batcher(Broken()) as batcher:
        batcher.add_span_nowait("a", make_span())
    assert [loss.reason for loss in batcher.undelivered] == [
        f"the exporter returned {type(result).__name__}, which is not an ExportResult"
    ]
    assert any("the exporter returned" in record.getMessage() for record in caplog.records)


async def test_an_exporter_that_uses_nurseries_and_fails_at_the_timeout_is_accounted_for(
    autojump_clock: MockClock,
) -> None:
    class Grouped(InMemoryExporter):
        async def export(self, batch: SpanBatch) -> ExportResult:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(trio.sleep_forever)
                try:
                    await trio.sleep_forever()
                finally:
                    raise ValueError("while being cancelled")

    async with watched_batcher(Grouped()) as batcher:
        batcher.add_span_nowait("a", make_span())
        await batcher.flush()
        assert trio.current_time() == 30
    assert [loss.reason for loss in batcher.undelivered] == ["the exporter raised ExceptionGroup"]


async def test_the_statistics_tell_the_age_of_the_oldest_pending_span_and_the_failures_in_a_row(
    autojump_clock: MockClock,
) -> None:
    exporter = InMemoryExporter([TryLater("busy", after=10), TryLater("busy", after=10)], delay=1)
    async with watched_batcher(exporter, BatchPolicy(max_delay=2)) as batcher:
        batcher.add_span_nowait("a", make_span())
        await trio.sleep(1.5)
        assert batcher.statistics().locations["a"].oldest_pending_age == 1.5
        await trio.sleep(5)
        batcher.add_span_nowait("a", make_span())
        assert batcher.statistics().locations["a"].oldest_pending_age == 6.5
        assert batcher.statistics().locations["a"].consecutive_failures == 1
        await trio.sleep(10)
        assert batcher.statistics().locations["a"].consecutive_failures == 2
        await batcher.flush()
        after = batcher.statistics().locations["a"]
        assert (after.oldest_pending_age, after.consecutive_failures) == (0, 0)


async def test_spans_that_wait_behind_a_probe_are_handed_back_when_their_own_time_is_over(
    autojump_clock: MockClock,
) -> None:
    """Two deliveries fail at once; the first one hangs in its probes, and the other must not wait forever."""
    failing = False

    def answer(batch: SpanBatch) -> ExportResult | Hang:
        if not failing:
            return Delivered()
        return TryLater("busy") if len(exporter.batches) <= 6 else Hang()

    exporter = InMemoryExporter(answer, delay=1)
    retry = RetryPolicy(max_elapsed=20, attempt_timeout=50)
    async with watched_batcher(exporter, ONE, retry=retry) as batcher:
        for _ in range(4):
            batcher.add_span_nowait("a", make_span())
            await batcher.flush()
        failing = True
        batcher.add_spans_nowait("a", make_spans(2))
        await trio.sleep(19.9)
        assert batcher.statistics().undelivered == 0
        await trio.sleep(0.2)
        (loss,) = batcher.undelivered
        assert loss.reason == "retries exhausted: busy"
        assert batcher.statistics().in_flight == 1
        await batcher.flush()
    assert batcher.statistics().undelivered == 2


async def test_an_idle_location_ends_and_a_new_span_opens_it_again(autojump_clock: MockClock) -> None:
    # Idle locations end after location_idle_timeout.
    limits = Limits(location_idle_timeout=90)
    exporter = InMemoryExporter(delay=200)
    async with watched_batcher(exporter, ONE, limits=limits, retry=RetryPolicy(attempt_timeout=math.inf)) as batcher:
        tasks = trio.lowlevel.current_statistics().tasks_living
        batcher.add_span_nowait("a", make_span())
        await trio.sleep(199)
        # Not while a delivery is outstanding, however long it takes.
        assert len(batcher._live) == 1
        assert trio.lowlevel.current_statistics().tasks_living == tasks + 1
        await trio.sleep(90)
        # A location is not a task.
        assert len(batcher._live) == 1
        assert trio.lowlevel.current_statistics().tasks_living == tasks
        await trio.sleep(2)
        assert len(batcher._live) == 0
        batcher.add_span_nowait("a", make_span())
        await batcher.flush()
    assert batcher.statistics().locations["a"].delivered == 2


async def test_a_span_added_in_the_step_in_which_its_location_ends_is_delivered(autojump_clock: MockClock) -> None:
    # Spans are added at the very instant of the idle timeout, with the tasks in any order.
    async with watched_batcher(InMemoryExporter(), ONE, limits=Limits(location_idle_timeout=1)) as batcher:
        for _ in range(100):
            batcher.add_span_nowait("a", make_span())
            await trio.sleep(1)
        await batcher.flush()
        assert batcher.statistics().delivered == 100


def test_a_backoff_is_never_longer_than_the_policy_allows() -> None:
    pace = Pace(RetryPolicy(initial=1, maximum=30, multiplier=10), random.Random(1), Account(), 4)
    for failure in range(2000):
        now = failure * 100.0
        pace.back_off(now, None, math.inf)
        assert now <= pace.retry_at <= now + 30


def test_pace_leaves_time_for_another_attempt_before_the_drain_ends() -> None:
    pace = Pace(RetryPolicy(initial=1000, maximum=1000), random.Random(1), Account(), 4)
    pace.back_off(100, None, 110)
    assert 100 <= pace.retry_at <= 105
    pace.back_off(109.95, None, 110)
    assert pace.retry_at == math.inf


def test_pace_counts_failures_of_the_same_wait_once() -> None:
    pace = Pace(RetryPolicy(), NoSpread(), Account(), 4)
    for _ in range(4):
        pace.back_off(100, None, math.inf)
    assert pace.failures == 1
    until = pace.retry_at
    pace.back_off(100, 50, math.inf)
    assert pace.retry_at == 150
    pace.back_off(100, 20, math.inf)
    assert pace.retry_at == 150
    assert until < 150
    pace.cut_short(101)
    assert pace.retry_at == 150
