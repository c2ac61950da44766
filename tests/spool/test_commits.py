"""When a batcher commits its spans, `sync`, and what happens if the disk fails."""

from __future__ import annotations

import errno
import math
from collections.abc import Sequence

import pytest
import trio

from tests.spool.batchers import spooling_batcher, stored_ids, watched_spooling_batcher
from tests.spool.memory import MemoryDisk, MemoryStore
from tests.support.batchers import ids_of, make_span, make_spans, span_ids
from trio_spanbatch import (
    BatchPolicy,
    Delivered,
    ExportResult,
    Limits,
    SpanBatch,
    SpanBatcher,
    TryLater,
)
from trio_spanbatch._spool.store import NewRecord, Record
from trio_spanbatch.testing import InMemoryExporter

SOON = BatchPolicy(max_delay=0.01)


async def test_a_commit_begins_an_interval_after_its_first_span(autojump_clock: trio.testing.MockClock) -> None:
    disk = MemoryDisk()
    async with watched_spooling_batcher(InMemoryExporter(), disk, spool={"commit_interval": 0.2}) as batcher:
        batcher.add_span_nowait("a", make_span())
        await trio.sleep(0.1)
        batcher.add_span_nowait("a", make_span())
        batcher.add_span_nowait("b", make_span())
        await trio.sleep(0.09)
        assert not disk.records
        await trio.sleep(0.02)
        assert [(record.location, record.count) for record, _ in disk.records.values()] == [("a", 2), ("b", 1)]
        assert batcher.statistics().in_flight == 3


async def test_a_commit_begins_at_512_spans(autojump_clock: trio.testing.MockClock) -> None:
    disk = MemoryDisk()
    spool = {"commit_interval": 1000.0}
    never = BatchPolicy(max_spans=10_000, max_delay=math.inf)
    limits = Limits(max_queued_spans=100_000)
    async with watched_spooling_batcher(InMemoryExporter(), disk, spool=spool, batch=never, limits=limits) as batcher:
        await batcher.add_spans("a", make_spans(511))
        await trio.sleep(1)
        assert not disk.records
        await batcher.add_span("a", make_span())
        await trio.sleep(1)
        assert [record.count for record, _ in disk.records.values()] == [512]
        # Of several locations together, as soon as the scheduler looks at one.
        for number in range(512):
            await batcher.add_span(f"b{number}", make_span())
        await trio.sleep(1)
        assert sum(record.count for record, _ in disk.records.values()) == 1024


async def test_a_commit_begins_at_256_kib(autojump_clock: trio.testing.MockClock) -> None:
    disk = MemoryDisk()
    never = BatchPolicy(max_delay=math.inf)
    async with watched_spooling_batcher(
        InMemoryExporter(), disk, spool={"commit_interval": 1000.0}, batch=never
    ) as batcher:
        await batcher.add_spans("a", make_spans(27, size=10_000))
        await trio.sleep(1)
        assert [record.count for record, _ in disk.records.values()] == [26, 1]
        assert all(record.nbytes <= 256 * 1024 for record, _ in disk.records.values())


async def test_one_commit_is_under_way_at_a_time(autojump_clock: trio.testing.MockClock) -> None:
    """What comes meanwhile is in the next one."""
    sizes: list[int] = []
    running = 0

    class Counted(MemoryStore):
        async def commit(self, records: Sequence[NewRecord], settled: Sequence[int] = ()) -> Sequence[Record]:
            nonlocal running
            running += 1
            assert running == 1
            sizes.append(sum(len(record.spans) for record in records))
            try:
                return await super().commit(records, settled)
            finally:
                running -= 1

    store = Counted()
    store.slow = 3.0
    async with watched_spooling_batcher(InMemoryExporter(), store) as batcher:
        for _ in range(60):
            batcher.add_span_nowait("a", make_span())
            await trio.sleep(0.1)
    assert sizes in ([2, 31, 27], [3, 30, 27], [2, 30, 28], [3, 31, 26])


async def test_sync_returns_once_all_that_was_accepted_is_committed(autojump_clock: trio.testing.MockClock) -> None:
    store = MemoryStore()
    store.slow = 0.5
    spans = make_spans(5)
    async with watched_spooling_batcher(InMemoryExporter(), store, spool={"commit_interval": 100.0}) as batcher:
        async with trio.open_nursery() as nursery:
            for number in range(5):
                batcher.add_span_nowait(f"location {number}", spans[number])
                nursery.start_soon(batcher.sync)
        assert stored_ids(store.disk) == set(ids_of(spans))
        # Several that wait share a commit.
        assert trio.current_time() <= 1.0
        await batcher.sync()
        assert trio.current_time() <= 1.0


async def test_sync_waits_for_spans_that_come_while_a_commit_is_under_way(
    autojump_clock: trio.testing.MockClock,
) -> None:
    store = MemoryStore()
    store.slow = 1.0
    async with watched_spooling_batcher(InMemoryExporter(), store) as batcher:
        batcher.add_span_nowait("a", make_span())
        await trio.sleep(0.5)
        second = make_span()
        batcher.add_span_nowait("a", second)
        await batcher.sync()
        assert set(ids_of([second])) <= stored_ids(store.disk)


async def test_sync_returns_though_other_locations_change_all_the_time(autojump_clock: trio.testing.MockClock) -> None:
    async with watched_spooling_batcher(
        InMemoryExporter(), MemoryDisk(), spool={"commit_interval": 1000.0}, batch=BatchPolicy(max_delay=math.inf)
    ) as batcher:
        for number in range(100):
            batcher.add_span_nowait(f"{number}", make_span())
        scheduler, passes = batcher._scheduler, 0
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:

                async def sync() -> None:
                    await batcher.sync()
                    scope.cancel()

                nursery.start_soon(sync)
                for passes in range(1000):  # noqa: B007  # it is used below
                    for location in scheduler.locations.values():
                        scheduler.admission.touch(location)
                    await trio.lowlevel.checkpoint()
                nursery.cancel_scope.cancel()
        assert passes < 100


async def test_sync_without_a_spool_says_how_to_get_one() -> None:
    async with SpanBatcher(InMemoryExporter()) as batcher:
        with pytest.raises(RuntimeError, match=r"has no spool: use SpanBatcher\(\.\.\., spool=Spool\(directory\)\)"):
            await batcher.sync()


async def test_a_cancelled_sync_leaves_the_commit_alone(autojump_clock: trio.testing.MockClock) -> None:
    store = MemoryStore()
    store.slow = 1.0
    async with watched_spooling_batcher(InMemoryExporter(), store) as batcher:
        batcher.add_span_nowait("a", make_span())
        with trio.move_on_after(0.5) as scope:
            await batcher.sync()
        assert scope.cancelled_caught
        await trio.sleep(1)
        assert len(store.disk.records) == 1


async def test_only_committed_spans_are_sent(autojump_clock: trio.testing.MockClock) -> None:
    store = MemoryStore()
    store.slow = 1.0

    def results(batch: SpanBatch) -> ExportResult:
        assert set(span_ids(batch.spans)) <= stored_ids(store.disk)
        return Delivered()

    exporter = InMemoryExporter(results)
    async with watched_spooling_batcher(exporter, store, batch=SOON) as batcher:
        for _ in range(20):
            await batcher.add_spans("a", make_spans(7))
            await trio.sleep(0.3)
        await batcher.flush()
    assert sum(len(batch.spans) for batch in exporter.batches) == 140


async def test_a_record_is_forgotten_only_after_its_last_span_is_settled(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """A batch may have a part of a record, and a record be in several batches."""
    limits = Limits(max_exports_per_location=1)
    policy = BatchPolicy(max_spans=4, max_delay=0.01)
    left = MemoryDisk()
    async with spooling_batcher(InMemoryExporter(delay=math.inf), left, shutdown_timeout=0.1) as first:
        await first.add_spans("a", make_spans(10))
        await first.sync()
    assert [record.count for record, _ in left.records.values()] == [10]
    exporter = InMemoryExporter(delay=1.0)
    async with watched_spooling_batcher(exporter, left, batch=policy, limits=limits) as second:
        for delivered in (4, 8):
            await trio.sleep(1.01)
            assert (second.statistics().delivered, len(left.records)) == (delivered, 1)
        await trio.sleep(2)
        assert not left.records
    assert [len(batch.spans) for batch in exporter.batches] == [4, 4, 2]


async def test_records_of_several_commits_are_sent_in_one_batch(autojump_clock: trio.testing.MockClock) -> None:
    exporter = InMemoryExporter()
    spans = make_spans(20)
    async with watched_spooling_batcher(exporter, batch=BatchPolicy(max_delay=5.0)) as batcher:
        for span in spans:
            batcher.add_span_nowait("a", span)
            await trio.sleep(0.2)
        await trio.sleep(5)
        assert [span_ids(batch.spans) for batch in exporter.batches] == [ids_of(spans)]
        batch = exporter.batches[0]
        assert len(batch.to_request()) == batch.size
        assert batch.size == SpanBatch("a", batch.spans).size


async def test_a_batch_of_several_records_keeps_to_the_policy(autojump_clock: trio.testing.MockClock) -> None:
    exporter = InMemoryExporter(delay=1.0)
    policy = BatchPolicy(max_spans=7, max_bytes=2000, max_delay=3.0)
    # So short that each record has one span.
    spool = {"commit_interval": 0.05}
    async with watched_spooling_batcher(exporter, batch=policy, spool=spool) as batcher:
        for number in range(100):
            await batcher.add_span("a", make_span(size=200 if 50 < number < 70 else 0))
            await trio.sleep(0.1)
    assert max(len(batch.spans) for batch in exporter.batches) == 7
    assert all(batch.size <= 2000 for batch in exporter.batches)
    assert len(exporter.batches) < 40


async def test_a_flush_commits_at_once(autojump_clock: trio.testing.MockClock) -> None:
    async with watched_spooling_batcher(InMemoryExporter(), spool={"commit_interval": 100.0}) as batcher:
        await batcher.add_spans("a", make_spans(3))
        report = await batcher.flush()
        assert (report.delivered, trio.current_time()) == (3, 0)


async def test_with_a_failing_disk_spans_go_uncommitted_and_sync_raises(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    store = MemoryStore()
    store.failing = {"commit"}
    exporter = InMemoryExporter()
    spans = make_spans(5)
    async with watched_spooling_batcher(exporter, store, batch=SOON) as batcher:
        await batcher.add_spans("a", spans)
        with pytest.raises(OSError, match="the spool cannot commit: Input/output error") as caught:
            await batcher.sync()
        assert caught.value.errno == errno.EIO
        await trio.sleep(1)
        statistics = batcher.statistics()
        assert statistics.delivered == 5
        assert statistics.spool is not None
        assert statistics.spool.uncommitted == 5
        # Nothing is left to be committed.
        await batcher.sync()
        store.failing = set()
        await batcher.add_spans("a", make_spans(2))
        await batcher.sync()
        assert len(store.disk.records) == 1
    assert span_ids(exporter.delivered["a"][:5]) == ids_of(spans)
    said = [record.getMessage() for record in caplog.records if record.name == "trio_spanbatch"]
    assert said.count("SpanBatcher: the spool cannot commit: Input/output error") == 1
    assert said.count("SpanBatcher: the spool can commit again") == 1


async def test_what_could_not_be_committed_is_committed_when_the_disk_works_again(
    autojump_clock: trio.testing.MockClock,
) -> None:
    store = MemoryStore()
    store.full = True
    exporter = InMemoryExporter([TryLater("down")] * 1000)
    async with watched_spooling_batcher(exporter, store, shutdown_timeout=0.0) as batcher:
        await batcher.add_spans("a", make_spans(5))
        await batcher.add_spans("b", make_spans(5))
        # The first batches are in delivery, uncommitted.
        await trio.sleep(3)
        more = make_spans(5)
        await batcher.add_spans("a", more)
        with pytest.raises(OSError, match="No space left"):
            await batcher.sync()
        store.full = False
        with pytest.raises(OSError, match="No space left"):
            # Others are still being sent without having been committed.
            await batcher.sync()
        assert set(ids_of(more)) <= stored_ids(store.disk)


async def test_a_sync_waits_for_the_queue_behind_a_commit_that_is_tried_again(
    autojump_clock: trio.testing.MockClock,
) -> None:
    store, limits = MemoryStore(), Limits(max_exports=1)
    exporter = InMemoryExporter(delay=math.inf)
    async with watched_spooling_batcher(exporter, store, batch=SOON, limits=limits, shutdown_timeout=0) as batcher:
        # It takes the only slot, so nothing else is sent.
        await batcher.add_span("x", make_span())
        await trio.sleep(1)
        store.failing = {"commit"}
        spans = make_spans(10)
        for location in ("b", "a"):
            await batcher.add_spans(location, spans[:5])
        with pytest.raises(OSError, match="Input/output error"):
            await batcher.sync()
        store.failing, store.slow = set(), 1.0
        # As many as one commit takes. So the queue of "a" is still behind its first spans when the others are there.
        await batcher.add_spans("b", make_spans(512))
        await batcher.add_spans("a", spans[5:])
        async with trio.open_nursery() as nursery:
            nursery.start_soon(batcher.sync)
            await trio.sleep(0.5)
            await batcher.add_spans("c", make_spans(512))
        assert set(ids_of(spans)) <= stored_ids(store.disk)


async def test_a_disk_that_hangs_does_not_stop_sending(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    store = MemoryStore()
    exporter = InMemoryExporter()
    async with watched_spooling_batcher(exporter, store, batch=SOON, shutdown_timeout=5) as batcher:
        store.slow = math.inf
        await batcher.add_spans("a", make_spans(5))
        with pytest.raises(OSError, match="the disk does not answer within 10 s"):
            await batcher.sync()
        await trio.sleep(1)
        assert batcher.statistics().delivered == 5
        # Nobody knows whether they were committed, and so whether the next process sends them again.
        assert batcher.statistics().ambiguous == 5
        await batcher.add_spans("a", make_spans(5))
        with trio.fail_after(3):
            await batcher.flush()


async def test_order_is_kept_within_a_location(autojump_clock: trio.testing.MockClock) -> None:
    """Through commits, failed ones, and a queue that is short."""
    store = MemoryStore()
    limits = Limits(max_queued_spans=10, max_exports_per_location=1)
    exporter = InMemoryExporter(delay=0.3)
    spans = make_spans(200)
    async with watched_spooling_batcher(
        exporter, store, batch=BatchPolicy(max_spans=6, max_delay=0.5), limits=limits
    ) as batcher:
        for number, span in enumerate(spans):
            store.failing = {"commit"} if 50 < number < 100 else set()
            await batcher.add_span("a", span)
            await trio.sleep(0.01)
        await batcher.flush()
    assert span_ids(exporter.delivered["a"]) == ids_of(spans)


def test_a_batcher_without_a_spool_has_the_plain_scheduler() -> None:
    batcher = SpanBatcher(InMemoryExporter())
    assert type(batcher._scheduler).__name__ == "Scheduler"
    assert batcher._spooler is None
    assert batcher.statistics().spool is None


def test_a_spool_must_be_a_spool() -> None:
    with pytest.raises(TypeError, match="spool"):
        SpanBatcher(InMemoryExporter(), spool="/var/spool")  # type: ignore[arg-type]  # the mistake under test
