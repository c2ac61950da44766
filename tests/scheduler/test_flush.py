"""A flush waits for all spans that were accepted before it."""

from __future__ import annotations

import math

import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from tests.support.batchers import batch_lengths, make_span, make_spans, watched_batcher
from trio_spanbatch import (
    BatchPolicy,
    Delivered,
    ExportResult,
    FlushCounts,
    FlushReport,
    Limits,
    Refused,
    SpanBatcherStatistics,
    TryLater,
)
from trio_spanbatch.testing import Hang, InMemoryExporter

NEVER = BatchPolicy(max_delay=math.inf)


async def test_a_flush_returns_once_everything_accepted_before_is_accounted_for(autojump_clock: MockClock) -> None:
    answers: dict[str, ExportResult | Exception] = {"a": Delivered(), "b": Refused("no"), "c": ZeroDivisionError()}
    exporter = InMemoryExporter(lambda batch: answers[batch.location], delay=3)
    async with watched_batcher(exporter, NEVER) as batcher:
        for count, location in enumerate("abc", start=1):
            batcher.add_spans_nowait(location, make_spans(count))
        report = await batcher.flush()
        assert trio.current_time() == 3
        assert report == FlushReport(
            delivered=1,
            rejected=2,
            undelivered=3,
            locations={
                "a": FlushCounts(delivered=1),
                "b": FlushCounts(rejected=2),
                "c": FlushCounts(undelivered=3),
            },
        )
        assert batcher.statistics().queued == batcher.statistics().in_flight == 0


async def test_a_flush_of_nothing_reports_nothing(autojump_clock: MockClock) -> None:
    async with watched_batcher(InMemoryExporter(), NEVER) as batcher:
        assert await batcher.flush() == FlushReport()
        assert await batcher.flush("never seen") == FlushReport()
        batcher.add_span_nowait("a", make_span())
        await batcher.flush()
        # Spans accounted for before the call do not count.
        assert await batcher.flush() == FlushReport()


async def test_a_flush_of_one_location_leaves_the_others_alone(autojump_clock: MockClock) -> None:
    exporter = InMemoryExporter()
    async with watched_batcher(exporter, NEVER) as batcher:
        for location in "ab":
            batcher.add_spans_nowait(location, make_spans(2))
        report = await batcher.flush("a")
        assert report.locations == {"a": FlushCounts(delivered=2)}
        assert batcher.statistics().queued == 2


async def test_a_flush_waits_for_spans_that_are_already_in_flight(autojump_clock: MockClock) -> None:
    async with watched_batcher(InMemoryExporter(delay=5), BatchPolicy(max_spans=2, max_delay=60)) as batcher:
        batcher.add_spans_nowait("a", make_spans(2))
        await trio.sleep(3)
        report = await batcher.flush()
        assert (report.delivered, trio.current_time()) == (2, 5)


async def test_spans_that_come_after_the_call_do_not_extend_it(autojump_clock: MockClock) -> None:
    async def add_for_ever() -> None:
        while True:
            await batcher.add_span("a", make_span())
            await trio.sleep(0.5)

    async with (
        watched_batcher(InMemoryExporter(delay=1), NEVER) as batcher,
        trio.open_nursery() as nursery,
    ):
        batcher.add_spans_nowait("a", make_spans(3))
        nursery.start_soon(add_for_ever)
        with trio.fail_after(3):
            report = await batcher.flush()
        assert report.delivered == 3
        nursery.cancel_scope.cancel()


async def flush_two_spans_that_share_a_batch_with_five_later_ones(
    exporter: InMemoryExporter,
) -> tuple[FlushReport, SpanBatcherStatistics]:
    """The only slot is taken while the spans are added; the exporter takes some time for the first batch."""
    reports: list[FlushReport] = []

    async def flush() -> None:
        reports.append(await batcher.flush("a"))

    async with (
        watched_batcher(exporter, NEVER, limits=Limits(max_exports=1)) as batcher,
        trio.open_nursery() as nursery,
    ):
        batcher.add_span_nowait("slow", make_span())
        nursery.start_soon(batcher.flush, "slow")
        await wait_all_tasks_blocked()
        batcher.add_spans_nowait("a", make_spans(2))
        nursery.start_soon(flush)
        await wait_all_tasks_blocked()
        batcher.add_spans_nowait("a", make_spans(5))
    assert batch_lengths(exporter.batches) == [1, 7]
    (report,) = reports
    return report, batcher.statistics()


async def test_a_later_span_that_shares_a_batch_is_not_in_the_report(autojump_clock: MockClock) -> None:
    exporter = InMemoryExporter(delay=lambda batch: 5 if batch.location == "slow" else 0)
    report, _ = await flush_two_spans_that_share_a_batch_with_five_later_ones(exporter)
    assert report.delivered == 2


async def test_rejected_spans_of_a_shared_batch_are_counted_as_far_as_they_can_be(autojump_clock: MockClock) -> None:
    exporter = InMemoryExporter([Delivered(), Delivered(rejected=3, message="some")], delay=5)
    report, statistics = await flush_two_spans_that_share_a_batch_with_five_later_ones(exporter)
    assert (report.delivered, report.rejected) == (0, 2)
    assert statistics.rejected == 3


async def test_a_flush_works_when_the_queue_is_full(autojump_clock: MockClock) -> None:
    # A flush does not go through the queue, so it works when the queue is full.
    async with watched_batcher(
        InMemoryExporter(delay=1), BatchPolicy(max_spans=2), limits=Limits(max_queued_spans=8)
    ) as batcher:
        batcher.add_spans_nowait("a", make_spans(8))
        report = await batcher.flush()
        assert report.delivered == 8


async def test_a_flush_waits_through_retries(autojump_clock: MockClock) -> None:
    exporter = InMemoryExporter([TryLater("busy", after=20)] * 3)
    async with watched_batcher(exporter, NEVER) as batcher:
        batcher.add_span_nowait("a", make_span())
        report = await batcher.flush()
        assert (report.delivered, trio.current_time()) == (1, 60)


async def test_a_cancelled_flush_leaves_the_spans_to_be_delivered(autojump_clock: MockClock) -> None:
    async with watched_batcher(InMemoryExporter(delay=5), NEVER) as batcher:
        batcher.add_spans_nowait("a", make_spans(3))
        with trio.move_on_after(1) as scope:
            await batcher.flush()
        assert scope.cancelled_caught
        await trio.sleep(5)
        assert batcher.statistics().delivered == 3


async def test_many_flushes_at_once_each_get_their_own_report(autojump_clock: MockClock) -> None:
    reports: dict[int, FlushReport] = {}

    async def flush(number: int) -> None:
        reports[number] = await batcher.flush()

    exporter = InMemoryExporter(delay=1)
    async with (
        watched_batcher(exporter, NEVER, limits=Limits(max_exports_per_location=1)) as batcher,
        trio.open_nursery() as nursery,
    ):
        for number in range(5):
            batcher.add_span_nowait("a", make_span())
            batcher.add_span_nowait(f"own {number}", make_span())
            nursery.start_soon(flush, number)
            await trio.sleep(0.3)
    # Each covers the spans of all earlier calls, except the first two spans, which were delivered before the last call.
    assert {number: report.delivered for number, report in reports.items()} == {0: 2, 1: 4, 2: 6, 3: 8, 4: 8}
    # The spans that came while the first export was under way shared a batch.
    assert len([batch for batch in exporter.batches if batch.location == "a"]) == 3


async def test_a_flush_ends_when_its_batches_are_given_up(autojump_clock: MockClock) -> None:
    exporter = InMemoryExporter(lambda batch: Hang())
    async with trio.open_nursery() as nursery:
        reports = []

        async def flush() -> None:
            reports.append(await batcher.flush())

        async with watched_batcher(exporter, NEVER, shutdown_timeout=1) as batcher:
            batcher.add_spans_nowait("a", make_spans(3))
            nursery.start_soon(flush)
            await wait_all_tasks_blocked()
    assert [report.undelivered for report in reports] == [3]


async def test_a_flush_over_many_locations_returns_if_one_ends_and_comes_back_meanwhile(
    autojump_clock: MockClock,
) -> None:
    # So many that the flush lets other tasks run before it has looked at the last one.
    names = [f"location {number}" for number in range(257)]
    async with watched_batcher(
        InMemoryExporter(), NEVER, limits=Limits(max_locations=len(names), location_idle_timeout=math.inf)
    ) as batcher:
        for name in names:
            batcher.add_span_nowait(name, make_span())
        # The last one is empty for longest, so it makes way for another one.
        await batcher.flush(names[-1])
        await batcher.flush()

        async def replace_the_last() -> None:
            batcher.add_span_nowait("another", make_span())
            batcher.add_span_nowait(names[-1], make_span())
            await trio.lowlevel.checkpoint()

        for _ in range(5):
            # The order of the two tasks is random.
            async with trio.open_nursery() as nursery:
                nursery.start_soon(replace_the_last)
                with trio.fail_after(1000):
                    await batcher.flush()
            await batcher.flush("another")
            await batcher.flush(names[-1])
            await batcher.flush()
