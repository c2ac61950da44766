"""What a batcher takes over from the spools of processes that have ended, and how it sends that."""

from __future__ import annotations

import math
from contextlib import nullcontext
from typing import Any

import pytest
import trio

from tests.spool.batchers import stored_ids, watched_spooling_batcher
from tests.spool.memory import MemoryDisk, MemoryStore
from tests.support.batchers import ids_of, make_span, make_spans, span_ids
from trio_spanbatch import BatchPolicy, InvalidLocationError, Limits, TryLater
from trio_spanbatch._scheduler.records import CommittedRecord
from trio_spanbatch._scheduler.spooling import SpoolingScheduler
from trio_spanbatch.testing import InMemoryExporter

NEVER = BatchPolicy(max_delay=math.inf)


async def leave_in_spool(disk: MemoryDisk, **spans: Any) -> None:
    """Have a process end that has committed ``spans``, by location."""
    async with watched_spooling_batcher(
        InMemoryExporter(delay=math.inf), disk, batch=NEVER, shutdown_timeout=0.01
    ) as batcher:
        for location, some in spans.items():
            for span in some:
                await batcher.add_span(location, span)
                await batcher.sync()


async def test_what_a_process_has_left_is_recovered_and_delivered(autojump_clock: trio.testing.MockClock) -> None:
    disk, spans = MemoryDisk(), make_spans(10)
    await leave_in_spool(disk, a=spans)
    exporter = InMemoryExporter()
    async with watched_spooling_batcher(exporter, disk) as batcher:
        await trio.sleep(1)
        statistics = batcher.statistics()
        assert (statistics.recovered, statistics.accepted, statistics.delivered) == (10, 0, 10)
        assert statistics.locations["a"].recovered == 10
    assert span_ids(exporter.delivered["a"]) == ids_of(spans)
    assert not disk.records


async def test_recovered_records_share_a_batch(autojump_clock: trio.testing.MockClock) -> None:
    disk, spans = MemoryDisk(), make_spans(10)
    await leave_in_spool(disk, a=spans)
    exporter = InMemoryExporter()
    async with watched_spooling_batcher(exporter, disk, batch=BatchPolicy(max_spans=4)) as batcher:
        await trio.sleep(1)
        assert batcher.statistics().delivered == 10
    assert [len(batch.spans) for batch in exporter.batches] == [4, 4, 2]


async def test_recovered_spans_are_sent_before_new_ones_of_their_location(
    autojump_clock: trio.testing.MockClock,
) -> None:
    disk, old, new = MemoryDisk(), make_spans(40), make_spans(40)
    await leave_in_spool(disk, a=old)
    exporter = InMemoryExporter(delay=0.5)
    policy, limits = BatchPolicy(max_spans=5, max_delay=0.1), Limits(max_exports_per_location=1)
    async with watched_spooling_batcher(exporter, disk, batch=policy, limits=limits) as batcher:
        await trio.sleep(0.1)
        await batcher.add_spans("a", new)
        await batcher.flush()
    assert span_ids(exporter.delivered["a"]) == ids_of(old + new)


async def test_old_and_new_locations_take_turns(autojump_clock: trio.testing.MockClock) -> None:
    disk = MemoryDisk()
    await leave_in_spool(disk, **{f"old{number}": make_spans(12) for number in range(3)})
    exporter = InMemoryExporter(delay=1.0)
    limits = Limits(max_exports=1)
    async with watched_spooling_batcher(
        exporter, disk, batch=BatchPolicy(max_spans=3, max_delay=0.1), limits=limits
    ) as batcher:
        await batcher.add_spans("new", make_spans(12))
        await trio.sleep(9)
    sent = [batch.location for batch in exporter.batches[:8]]
    assert {sent.count(location) for location in ("old0", "old1", "old2", "new")} == {2}


async def test_recovery_needs_no_room_in_the_queue(autojump_clock: trio.testing.MockClock) -> None:
    """The queue and the byte budget are full of new spans while old ones are sent."""
    disk, old = MemoryDisk(), make_spans(50)
    await leave_in_spool(disk, a=old)
    exporter = InMemoryExporter(delay=0.1)
    limits = Limits(max_queued_spans=2, max_pending_bytes=200, max_exports=2, max_exports_per_location=1)
    new = make_spans(50)
    async with watched_spooling_batcher(exporter, disk, limits=limits, batch=BatchPolicy(max_spans=4)) as batcher:
        with trio.fail_after(60):
            # Spans that are added before the old ones are found may be sent before them.
            await trio.sleep(0.05)
            assert batcher.statistics().recovered == len(old)
            await batcher.add_spans("a", new)
            await batcher.flush()
    assert span_ids(exporter.delivered["a"]) == ids_of(old + new)


async def test_recovery_needs_no_room_among_the_locations(autojump_clock: trio.testing.MockClock) -> None:
    disk = MemoryDisk()
    await leave_in_spool(disk, **{f"old{number}": make_spans(2) for number in range(20)})
    exporter = InMemoryExporter(lambda batch: TryLater("down") if trio.current_time() < 100 else None)
    limits = Limits(max_locations=3, location_idle_timeout=1)
    async with watched_spooling_batcher(exporter, disk, limits=limits, batch=BatchPolicy(max_delay=0.1)) as batcher:
        await trio.sleep(5)
        assert batcher.statistics().recovered == 40
        for location in ("new0", "new1"):
            await batcher.add_span(location, make_span())
        await trio.sleep(2000)
        assert batcher.statistics().delivered == 42
    assert not disk.records


async def test_adding_does_not_wait_for_a_slow_recovery(autojump_clock: trio.testing.MockClock) -> None:
    disk = MemoryDisk()
    await leave_in_spool(disk, a=make_spans(300))
    store = MemoryStore(disk)
    entered_at = trio.current_time()
    async with watched_spooling_batcher(InMemoryExporter(), store, batch=BatchPolicy(max_delay=0.1)) as batcher:
        store.slow = 10.0
        await batcher.add_spans("b", make_spans(5))
        assert trio.current_time() == entered_at
        await trio.sleep(15)
        store.slow = 0.0
        await trio.sleep(100)
        assert batcher.statistics().delivered == 305


async def test_what_is_not_recovered_when_the_batcher_is_left_stays(autojump_clock: trio.testing.MockClock) -> None:
    disk = MemoryDisk()
    await leave_in_spool(disk, a=make_spans(10))
    store = MemoryStore(disk)
    async with watched_spooling_batcher(InMemoryExporter(), store) as batcher:
        store.slow = 1e6
    assert batcher.statistics().recovered == 0
    assert len(stored_ids(disk)) == 10


async def test_a_flush_does_not_wait_for_recovered_spans(autojump_clock: trio.testing.MockClock) -> None:
    disk = MemoryDisk()
    await leave_in_spool(disk, a=make_spans(10))
    exporter = InMemoryExporter(lambda batch: TryLater("no", after=50) if batch.location == "a" else None)
    async with watched_spooling_batcher(exporter, disk) as batcher:
        await trio.sleep(1)
        await batcher.add_spans("b", make_spans(2))
        with trio.fail_after(1):
            report = await batcher.flush()
        assert (report.delivered, set(report.locations)) == (2, {"b"})


async def test_a_location_that_the_exporter_cannot_send_to_stays_on_disk(
    autojump_clock: trio.testing.MockClock,
) -> None:
    class Picky(InMemoryExporter):
        def check_location(self, location: str) -> None:
            if location == "bad":
                raise InvalidLocationError("bad")

    disk = MemoryDisk()
    await leave_in_spool(disk, bad=make_spans(3), good=make_spans(3))
    async with watched_spooling_batcher(Picky(), disk) as batcher:
        await trio.sleep(10)
        statistics = batcher.statistics()
        assert (statistics.delivered, statistics.spooled) == (3, 3)
    assert len(stored_ids(disk)) == 3


async def test_a_flush_waits_for_new_spans_where_recovered_ones_were_dropped_before_their_location_was_opened(
    autojump_clock: trio.testing.MockClock,
) -> None:
    class RefusesOnce(InMemoryExporter):
        has_refused = False

        def check_location(self, location: str) -> None:
            if not self.has_refused:
                self.has_refused = True
                raise InvalidLocationError(location)

    disk = MemoryDisk()
    await leave_in_spool(disk, a=make_spans(5))
    await trio.sleep(100)
    async with watched_spooling_batcher(RefusesOnce(), disk, batch=NEVER, spool={"max_age": 50.0}) as batcher:
        await trio.sleep(10)
        assert batcher.statistics().undelivered == 5
        await batcher.add_spans("a", make_spans(3))
        assert (await batcher.flush("a")).delivered == 3


async def test_the_log_counts_lost_spans_among_all_that_were_taken(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    disk = MemoryDisk()
    await leave_in_spool(disk, a=make_spans(5))
    await trio.sleep(100)
    async with watched_spooling_batcher(InMemoryExporter(), disk, spool={"max_age": 50.0}) as batcher:
        await trio.sleep(10)
        await batcher.add_spans("a", make_spans(3))
    assert "5 of 8 spans were handed back undelivered" in caplog.text


async def test_spans_that_are_found_when_their_location_was_just_evicted_are_sent_and_keep_their_account(
    autojump_clock: trio.testing.MockClock,
) -> None:
    disk, left, limits = MemoryDisk(), MemoryDisk(), Limits(max_locations=1, location_idle_timeout=1)
    await leave_in_spool(left, a=make_spans(3))
    exporter = InMemoryExporter(lambda batch: TryLater("no", after=1000) if batch.location == "a" else None)
    async with watched_spooling_batcher(exporter, disk, limits=limits, batch=NEVER, shutdown_timeout=0) as batcher:
        await trio.sleep(1)
        scheduler = batcher._scheduler
        assert isinstance(scheduler, SpoolingScheduler)
        # In one step: the driver has not looked at the evicted location yet.
        for location in ("a", "b"):
            scheduler.open(location)
        disk.records |= {100 + token: found for token, found in left.records.items()}
        for token, (record, _) in disk.records.items():
            scheduler.recovered("a", CommittedRecord(token, record.count, record.count, record.nbytes, record.oldest))
        for location in ("c", "d", "e"):
            await trio.sleep(10)
            await batcher.add_span(location, make_span())
            await batcher.flush()
        account = scheduler.ledger.accounts()["a"]
        assert (account.recovered, account.recovered_left) == (3, 3)
        assert account.requests > 0


async def test_the_account_of_a_location_that_was_never_live_ends_when_its_spans_are_dropped(
    autojump_clock: trio.testing.MockClock,
) -> None:
    disk, limits = MemoryDisk(), Limits(max_locations=2)
    await leave_in_spool(disk, **{f"bad{number}": make_spans(1) for number in range(10)})

    class RefusesAll(InMemoryExporter):
        def check_location(self, location: str) -> None:
            raise InvalidLocationError(location)

    async with watched_spooling_batcher(RefusesAll(), disk, limits=limits, spool={"max_age": 50.0}) as batcher:
        await trio.sleep(1)
        assert len(batcher.statistics().locations) == 10
    async with watched_spooling_batcher(RefusesAll(), disk, limits=limits, spool={"max_age": 0.5}) as batcher:
        await trio.sleep(1)
        assert batcher.statistics().undelivered == 10
        assert len(batcher.statistics().locations) == 2


async def test_each_process_delivers_what_the_one_before_has_left(autojump_clock: trio.testing.MockClock) -> None:
    disk = MemoryDisk()
    all_spans: list[int] = []
    delivered: list[int] = []
    for number in range(5):
        exporter = InMemoryExporter([TryLater("later")] * number * 7, delay=0.2)
        spans = make_spans(30)
        async with watched_spooling_batcher(
            exporter, disk, batch=BatchPolicy(max_spans=4), shutdown_timeout=0.3
        ) as batcher:
            await batcher.add_spans("a", spans)
            await batcher.sync()
            await trio.sleep(2)
        all_spans += ids_of(spans)
        delivered += span_ids(exporter.delivered.get("a", []))
    exporter = InMemoryExporter()
    async with watched_spooling_batcher(exporter, disk) as batcher:
        await trio.sleep(1)
    delivered += span_ids(exporter.delivered.get("a", []))
    assert set(delivered) == set(all_spans)
    assert not disk.records


async def test_statistics_have_the_bytes_and_the_age_of_the_spool(autojump_clock: trio.testing.MockClock) -> None:
    disk = MemoryDisk()
    await leave_in_spool(disk, a=make_spans(3))
    await trio.sleep(100)
    exporter = InMemoryExporter(lambda batch: TryLater("down"))
    async with watched_spooling_batcher(exporter, disk, shutdown_timeout=0) as batcher:
        await trio.sleep(1)
        spool = batcher.statistics().spool
        assert spool is not None
        assert spool.nbytes == disk.nbytes > 0
        assert spool.oldest_age == pytest.approx(101, abs=0.1)


@pytest.mark.parametrize("error", [ValueError("no policy"), SystemExit(3)])
async def test_whatever_the_policy_function_raises_for_recovered_spans_ends_nothing_else(
    error: BaseException, autojump_clock: trio.testing.MockClock
) -> None:
    disk = MemoryDisk()
    await leave_in_spool(disk, old=make_spans(2))

    def policy(location: str) -> BatchPolicy:
        if location == "old":
            raise error
        return BatchPolicy()

    exporter = InMemoryExporter()
    # A SystemExit ends the program, once everything is accounted for.
    with pytest.raises(SystemExit) if isinstance(error, SystemExit) else nullcontext():
        async with watched_spooling_batcher(exporter, disk, batch=policy) as batcher:
            await trio.sleep(1)
            batcher.add_span_nowait("new", make_span())
            assert (await batcher.flush("new")).delivered == 1
    # The program's exception is raised instead of another one, so this is looked at afterwards.
    assert (batcher.statistics().delivered, batcher.statistics().spooled) == (1, 2)
