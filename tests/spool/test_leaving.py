"""Leaving a batcher with a spool: what is left is committed in the reserve, and nothing is handed back that is."""

from __future__ import annotations

import logging
import math
import signal
from collections.abc import Sequence

import pytest
import trio

from tests.spool.batchers import spooling_batcher, stored_ids, watched_spooling_batcher
from tests.spool.memory import MemoryDisk, MemoryStore
from tests.support.batchers import ids_of, make_span, make_spans, span_ids
from trio_spanbatch import BatchPolicy, Loss, SpanBatch, TryLater
from trio_spanbatch._spool.store import NewRecord, Record, SpoolError
from trio_spanbatch.testing import InMemoryExporter

NEVER = BatchPolicy(max_delay=math.inf)


async def test_what_is_not_delivered_in_the_drain_is_spooled(autojump_clock: trio.testing.MockClock) -> None:
    disk = MemoryDisk()
    spans = make_spans(30)
    async with watched_spooling_batcher(
        InMemoryExporter(delay=math.inf), disk, batch=BatchPolicy(max_spans=10), shutdown_timeout=20
    ) as batcher:
        await batcher.add_spans("a", spans)
    assert trio.current_time() == pytest.approx(19, abs=0.01)
    statistics = batcher.statistics()
    assert (statistics.spooled, statistics.undelivered) == (30, 0)
    assert stored_ids(disk) == set(ids_of(spans))
    assert batcher.undelivered == ()


async def test_all_that_is_queued_is_committed_as_soon_as_the_drain_begins(
    autojump_clock: trio.testing.MockClock,
) -> None:
    disk = MemoryDisk()
    exporter = InMemoryExporter()
    async with watched_spooling_batcher(exporter, disk, batch=NEVER, spool={"commit_interval": 1e6}) as batcher:
        for number in range(200):
            await batcher.add_span(f"location {number}", make_span())
    assert (batcher.statistics().delivered, trio.current_time()) == (200, 0)
    assert not disk.records


async def test_the_reserve_is_used_to_commit_what_is_left(autojump_clock: trio.testing.MockClock) -> None:
    """The last one ends after deliveries have been stopped, at 7.65 s."""
    store = MemoryStore()
    store.slow = 0.5
    async with watched_spooling_batcher(
        InMemoryExporter(delay=math.inf), store, batch=NEVER, shutdown_timeout=8.5, spool={"commit_interval": 1e6}
    ) as batcher:
        await batcher.add_span("a", make_span())
        await batcher.sync()
        began = trio.current_time()
        store.slow = 8.0
        await batcher.add_spans("b", make_spans(100))
    assert trio.current_time() - began == pytest.approx(8.0, abs=0.3)
    # The first span had an attempt, which the drain cancelled.
    assert (batcher.statistics().spooled, batcher.statistics().ambiguous) == (101, 1)


async def test_a_commit_under_way_at_the_deadline_is_handed_back_and_ambiguous(
    autojump_clock: trio.testing.MockClock,
) -> None:
    store = MemoryStore()
    losses: list[Loss] = []
    committed, late = make_spans(3), make_spans(4)
    async with watched_spooling_batcher(
        InMemoryExporter(delay=math.inf), store, batch=NEVER, shutdown_timeout=5, on_loss=losses.append
    ) as batcher:
        await batcher.add_spans("a", committed)
        await batcher.sync()
        store.slow = math.inf
        await batcher.add_spans("a", late)
        await batcher.add_spans("b", more := make_spans(2))
    assert trio.current_time() <= 5.001
    statistics = batcher.statistics()
    # Those that are committed had an attempt of unknown outcome.
    assert (statistics.spooled, statistics.undelivered, statistics.ambiguous) == (3, 6, 3 + 6)
    assert {span_id for loss in losses for span_id in span_ids(loss.batch.spans)} == set(ids_of([*late, *more]))
    assert {loss.reason for loss in losses} == {"the shutdown deadline passed"}


async def test_a_commit_that_was_ambiguous_may_be_sent_again_by_the_next_process(
    autojump_clock: trio.testing.MockClock,
) -> None:
    store = MemoryStore()
    store.lands = True
    spans = make_spans(4)
    async with watched_spooling_batcher(InMemoryExporter(), store, batch=NEVER, shutdown_timeout=5) as batcher:
        store.slow = math.inf
        await batcher.add_spans("a", spans)
    assert (batcher.statistics().undelivered, batcher.statistics().ambiguous) == (4, 4)
    exporter = InMemoryExporter()
    async with watched_spooling_batcher(exporter, store.disk) as batcher:
        await trio.sleep(1)
    assert span_ids(exporter.delivered["a"]) == ids_of(spans)


async def test_what_a_failing_disk_does_not_take_is_handed_back_with_the_reason(
    autojump_clock: trio.testing.MockClock,
) -> None:
    store = MemoryStore()
    async with watched_spooling_batcher(
        InMemoryExporter(delay=math.inf), store, batch=NEVER, shutdown_timeout=5
    ) as batcher:
        await batcher.add_spans("a", make_spans(3))
        await batcher.sync()
        store.failing = {"commit"}
        for number in range(100):
            await batcher.add_span(f"location {number}", make_span())
    statistics = batcher.statistics()
    assert (statistics.spooled, statistics.undelivered) == (3, 100)
    assert "the spool cannot commit: Input/output error" in {loss.reason for loss in batcher.undelivered}
    assert len(store.disk.records) == 1


async def test_the_exporter_is_closed_although_the_disk_hangs(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    store = MemoryStore()
    exporter = InMemoryExporter()
    async with watched_spooling_batcher(exporter, store, shutdown_timeout=5) as batcher:
        store.slow = math.inf
        await batcher.add_spans("a", make_spans(3))
    assert exporter.closed
    assert "cut short" not in caplog.text


async def test_a_second_ctrl_c_ends_the_wait_for_the_disk(autojump_clock: trio.testing.MockClock) -> None:
    class Interrupts(MemoryStore):
        async def commit(self, records: Sequence[NewRecord], settled: Sequence[int] = ()) -> Sequence[Record]:
            if self.slow == math.inf:
                signal.raise_signal(signal.SIGINT)
            return await super().commit(records, settled)

    store = Interrupts()
    committed, late = make_spans(3), make_spans(4)
    batcher = spooling_batcher(InMemoryExporter(delay=math.inf), store, batch=NEVER, spool={"commit_interval": 1e6})
    with pytest.raises(KeyboardInterrupt):
        async with batcher:
            await batcher.add_spans("a", committed)
            await batcher.sync()
            store.slow = math.inf
            await batcher.add_spans("a", late)
    assert trio.current_time() == 0
    statistics = batcher.statistics()
    assert (statistics.spooled, statistics.undelivered, statistics.ambiguous) == (3, 4, 3 + 4)
    assert {loss.reason for loss in batcher.undelivered} == {"Ctrl-C during the drain"}


async def test_after_a_second_ctrl_c_a_disk_that_hangs_is_not_waited_for_in_order_to_close_it(
    autojump_clock: trio.testing.MockClock,
) -> None:
    class Hangs(MemoryStore):
        async def commit(self, records: Sequence[NewRecord], settled: Sequence[int] = ()) -> Sequence[Record]:
            if self.slow == math.inf:
                signal.raise_signal(signal.SIGINT)
            return await super().commit(records, settled)

        async def close(self) -> None:
            await trio.sleep(self.slow)

    store = Hangs()
    batcher = spooling_batcher(InMemoryExporter(delay=math.inf), store, batch=NEVER, spool={"commit_interval": 1e6})
    with pytest.raises(KeyboardInterrupt):
        async with batcher:
            store.slow = math.inf
            await batcher.add_spans("a", make_spans(4))
    assert trio.current_time() <= 0.1
    assert (batcher.statistics().spooled, batcher.statistics().undelivered) == (0, 4)


async def test_a_cancelled_body_leaves_its_spans_in_the_spool(autojump_clock: trio.testing.MockClock) -> None:
    disk = MemoryDisk()
    with trio.move_on_after(1) as scope:
        async with watched_spooling_batcher(
            InMemoryExporter(delay=math.inf), disk, batch=NEVER, shutdown_timeout=10
        ) as batcher:
            await batcher.add_spans("a", make_spans(3))
            await trio.sleep_forever()
    assert scope.cancelled_caught
    assert (batcher.statistics().spooled, len(stored_ids(disk))) == (3, 3)


async def test_with_an_endpoint_down_leaving_does_not_wait_for_it(autojump_clock: trio.testing.MockClock) -> None:
    """Spans in the spool are safe."""
    disk = MemoryDisk()

    def results(batch: SpanBatch) -> TryLater:
        return TryLater("asked to wait", after=1000)

    async with watched_spooling_batcher(InMemoryExporter(results), disk, shutdown_timeout=30) as batcher:
        for location in "abc":
            await batcher.add_spans(location, make_spans(5))
        await batcher.sync()
        await trio.sleep(10)
        for location in "abc":
            await batcher.add_spans(location, make_spans(5))
    assert trio.current_time() == 10
    assert (batcher.statistics().spooled, len(stored_ids(disk))) == (30, 30)


async def test_strict_is_content_with_spans_in_the_spool(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    async with spooling_batcher(InMemoryExporter(delay=math.inf), strict=True, shutdown_timeout=1) as batcher:
        await batcher.add_spans("a", make_spans(3))
    assert caplog.messages == ["SpanBatcher: 3 spans in the spool, to be sent by the next one"]


async def test_a_flush_ends_with_the_batcher_and_reports_what_is_spooled(
    autojump_clock: trio.testing.MockClock,
) -> None:
    reports = []

    async def flush() -> None:
        reports.append(await batcher.flush())

    exporter = InMemoryExporter(delay=math.inf)
    async with trio.open_nursery() as nursery, watched_spooling_batcher(exporter, shutdown_timeout=1) as batcher:
        await batcher.add_spans("a", make_spans(3))
        nursery.start_soon(flush)
        await trio.sleep(1)
    assert (reports[0].spooled, reports[0].locations["a"].spooled, reports[0].delivered) == (3, 3, 0)


async def test_a_spool_that_cannot_be_opened_is_an_error_of_entering() -> None:
    store = MemoryStore()
    store.failing = {"open"}
    exporter = InMemoryExporter()
    with pytest.raises(SpoolError, match="cannot be opened"):
        async with spooling_batcher(exporter, store):
            pytest.fail("it was entered")
    assert exporter.closed


async def test_a_spool_for_another_endpoint_is_refused() -> None:
    disk = MemoryDisk()
    async with spooling_batcher(
        InMemoryExporter(delay=math.inf), MemoryStore(disk, "http://one"), shutdown_timeout=0.1
    ) as batcher:
        await batcher.add_spans("a", make_spans(3))
        await batcher.sync()
    with pytest.raises(SpoolError, match="holds spans for http://one, and this batcher sends to http://two"):
        async with spooling_batcher(InMemoryExporter(), MemoryStore(disk, "http://two")):
            pytest.fail("it was entered")


@pytest.mark.parametrize("hangs", [False, True])
async def test_a_sync_ends_with_the_batcher(hangs: bool, autojump_clock: trio.testing.MockClock) -> None:
    store = MemoryStore()
    ended: list[str] = []

    async def sync() -> None:
        try:
            await batcher.sync()
        except OSError:
            ended.append("failed")
        else:
            ended.append("committed")

    exporter = InMemoryExporter(delay=math.inf)
    async with trio.open_nursery() as nursery, watched_spooling_batcher(exporter, store, shutdown_timeout=2) as batcher:
        store.slow = math.inf if hangs else 1.5
        await batcher.add_spans("a", make_spans(3))
        nursery.start_soon(sync)
        await trio.sleep(0.01)
        nursery.start_soon(sync)
        await trio.sleep(0.01)
    assert ended == ["failed" if hangs else "committed"] * 2
