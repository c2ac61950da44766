"""What happens if the spool is full of the batcher's own records, and what can never be sent."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import trio

from tests.spool.batchers import stored_ids, watched_spooling_batcher
from tests.spool.memory import MemoryDisk, MemoryStore
from tests.spool.test_paging import ONE_AT_A_TIME, SOON, down_until
from tests.spool.test_recovery import leave_in_spool
from tests.support.batchers import ids_of, make_span, make_spans, span_ids
from trio_spanbatch import BatchPolicy, Delivered, InvalidLocationError, Limits, Loss, Refused, RetryPolicy, TryLater
from trio_spanbatch._spool.store import NewRecord, Record
from trio_spanbatch.testing import InMemoryExporter


class Picky(InMemoryExporter):
    """Cannot send to ``bad``."""

    def check_location(self, location: str) -> None:
        if location == "bad":
            raise InvalidLocationError("no such table")


async def test_with_a_full_spool_sync_waits_and_nothing_is_handed_back(autojump_clock: trio.testing.MockClock) -> None:
    """Although the outage lasts for longer than a delivery is tried."""
    disk, losses = MemoryDisk(), list[Loss]()
    spans = make_spans(400)
    async with watched_spooling_batcher(
        down_until(1000),
        disk,
        batch=SOON,
        retry=RetryPolicy(max_elapsed=20),
        limits=Limits(max_queued_spans=10, max_exports_per_location=1),
        spool={"max_bytes": 2000},
        on_loss=losses.append,
    ) as batcher:
        with pytest.raises(trio.WouldBlock):
            for span in spans:
                batcher.add_span_nowait("a", span)
                await trio.sleep(1)
        accepted = batcher.statistics().accepted
        await batcher.sync()
        assert trio.current_time() > 1000
        # A sync waits for what was accepted before.
        assert batcher.statistics().delivered + len(stored_ids(disk)) >= accepted
        await batcher.add_spans("a", spans[accepted:])
        await batcher.flush()
        statistics = batcher.statistics()
        assert (statistics.delivered, statistics.undelivered, losses) == (400, 0, [])
    assert not disk.records


async def test_order_is_kept_if_the_spool_is_full(autojump_clock: trio.testing.MockClock) -> None:
    exporter = down_until(100)
    spans = make_spans(100)
    async with watched_spooling_batcher(
        exporter,
        batch=BatchPolicy(max_spans=7, max_delay=0.1),
        retry=RetryPolicy(max_elapsed=5),
        limits=Limits(max_queued_spans=10, max_exports_per_location=1),
        spool={"max_bytes": 2000},
    ) as batcher:
        await batcher.add_spans("a", spans)
        await batcher.flush()
    assert span_ids(exporter.delivered["a"]) == ids_of(spans)


async def test_a_spool_full_of_what_cannot_be_sent_does_not_stop_sending(
    autojump_clock: trio.testing.MockClock,
) -> None:
    disk = MemoryDisk()
    await leave_in_spool(disk, bad=make_spans(20))
    exporter = Picky()
    async with watched_spooling_batcher(
        exporter, disk, batch=SOON, limits=ONE_AT_A_TIME, spool={"max_bytes": disk.nbytes}
    ) as batcher:
        spans = make_spans(5000)
        with trio.fail_after(60):
            await batcher.add_spans("a", spans)
            await batcher.sync()
        assert batcher.statistics().delivered == 5000
        spool = batcher.statistics().spool
        assert spool is not None
        assert (spool.uncommitted, spool.unsendable) == (5000, 20)
    assert span_ids(exporter.delivered["a"]) == ids_of(spans)


async def test_what_a_full_spool_cannot_take_waits_for_the_end_of_an_outage(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """It is sent uncommitted, and its delivery does not give up as one does without a spool."""
    disk, losses = MemoryDisk(), list[Loss]()
    await leave_in_spool(disk, bad=make_spans(20))
    exporter = Picky(lambda batch: TryLater("down") if trio.current_time() < 1000 else Delivered())
    async with watched_spooling_batcher(
        exporter,
        disk,
        batch=SOON,
        retry=RetryPolicy(max_elapsed=20),
        spool={"max_bytes": disk.nbytes},
        on_loss=losses.append,
    ) as batcher:
        spans = make_spans(20)
        await batcher.add_spans("a", spans)
        await batcher.flush()
        assert trio.current_time() > 1000
        assert losses == []
    assert span_ids(exporter.delivered["a"]) == ids_of(spans)


async def test_a_sync_waits_for_spans_whose_delivery_gives_up_during_its_commit(
    autojump_clock: trio.testing.MockClock,
) -> None:
    disk = MemoryDisk()
    await leave_in_spool(disk, bad=make_spans(20))
    store = MemoryStore(disk)
    exporter = Picky(lambda batch: TryLater("down"))
    async with watched_spooling_batcher(
        exporter,
        store,
        batch=SOON,
        retry=RetryPolicy(max_elapsed=3),
        spool={"max_bytes": disk.nbytes},
        shutdown_timeout=0,
    ) as batcher:
        spans = make_spans(5)
        await batcher.add_spans("a", spans)
        await trio.sleep(1)
        # They are being sent, as the spool is full. Now it is not any more, but slow.
        store.max_bytes, store.slow = 1 << 30, 8.0
        await batcher.add_span("b", make_span())
        await batcher.sync()
        assert set(ids_of(spans)) <= stored_ids(disk)


async def test_a_batch_larger_than_the_spool_is_sent(autojump_clock: trio.testing.MockClock) -> None:
    async with watched_spooling_batcher(InMemoryExporter(), batch=SOON, spool={"max_bytes": 100}) as batcher:
        await batcher.add_span("a", make_span(size=10_000))
        await batcher.sync()
        assert batcher.statistics().delivered == 1


async def test_a_full_spool_is_said_now_and_then(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with watched_spooling_batcher(
        down_until(100), batch=SOON, limits=Limits(max_queued_spans=10), spool={"max_bytes": 2000}
    ) as batcher:
        with trio.move_on_after(20):
            await batcher.add_spans("a", make_spans(100))
    said = [record.getMessage() for record in caplog.records if "spool" in record.getMessage()]
    # Every 30 seconds.
    assert len([message for message in said if "the spool cannot commit: the spool is full" in message]) == 3
    assert not [message for message in said if "can commit again" in message]


async def test_the_oldest_records_are_dropped_even_if_their_location_is_not_live(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Because there is no space for it among the locations, or nothing can be sent to it."""
    disk, losses = MemoryDisk(), list[Loss]()
    await leave_in_spool(disk, bad=make_spans(10), old0=make_spans(10), old1=make_spans(10))
    exporter = Picky(lambda batch: TryLater("down", endpoint=True) if trio.current_time() < 1000 else Delivered())
    async with watched_spooling_batcher(
        exporter,
        disk,
        batch=SOON,
        limits=Limits(max_queued_spans=10, max_locations=2),
        spool={"max_bytes": disk.nbytes + 500, "when_full": "drop_oldest"},
        on_loss=losses.append,
    ) as batcher:
        await trio.sleep(5)
        assert "old1" not in batcher._scheduler.locations
        # Until the end of the outage, if the last ones are sent without being committed.
        with trio.fail_after(1500):
            await batcher.add_spans("new", make_spans(200))
            await batcher.sync()
        assert {loss.location for loss in losses} >= {"bad", "old1"}
        statistics = batcher.statistics()
        assert statistics.undelivered == sum(loss.count for loss in losses)
        assert statistics.spool is not None
        assert statistics.spool.unsendable == 0


@pytest.mark.parametrize("fails", ["check_location", "batch"])
async def test_what_cannot_be_sent_is_told(
    fails: str, autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """Once for all such locations. As soon as the program can open the location, its spans are sent."""
    is_broken = True

    def policy(location: str) -> BatchPolicy:
        if is_broken and location.startswith("bad"):
            raise KeyError(location)
        return SOON

    class Checks(InMemoryExporter):
        def check_location(self, location: str) -> None:
            if is_broken and location.startswith("bad"):
                raise InvalidLocationError("no such table")

    disk = MemoryDisk()
    await leave_in_spool(disk, bad0=make_spans(3), bad1=make_spans(4), good=make_spans(5))
    exporter, batch = (Checks(), SOON) if fails == "check_location" else (InMemoryExporter(), policy)
    async with watched_spooling_batcher(exporter, disk, batch=batch) as batcher:
        await trio.sleep(10)
        statistics = batcher.statistics()
        assert statistics.spool is not None
        assert (statistics.delivered, statistics.spooled, statistics.spool.unsendable) == (5, 7, 7)
        is_broken = False
        await batcher.add_span("bad1", make_span())
        await trio.sleep(10)
        statistics = batcher.statistics()
        assert statistics.spool is not None
        assert (statistics.delivered, statistics.spooled, statistics.spool.unsendable) == (10, 3, 3)
    said = [record.getMessage() for record in caplog.records if "stay in the spool" in record.getMessage()]
    why = "no such table" if fails == "check_location" else "'bad0'"
    assert said == [f"SpanBatcher: recovered spans stay in the spool, as nothing can be sent to 'bad0' ({why})"]


async def test_a_commit_begins_at_256_kib_of_all_locations(autojump_clock: trio.testing.MockClock) -> None:
    disk = MemoryDisk()
    never = BatchPolicy(max_delay=math.inf)
    async with watched_spooling_batcher(
        InMemoryExporter(), disk, spool={"commit_interval": 1000.0}, batch=never
    ) as batcher:
        for number in range(26):
            await batcher.add_span(f"location {number}", make_span(size=10_000))
        await trio.sleep(1)
        assert not disk.records
        await batcher.add_span("another", make_span(size=10_000))
        await trio.sleep(1)
        assert len(disk.records) == 27


async def test_settled_records_are_forgotten_with_the_next_commit(autojump_clock: trio.testing.MockClock) -> None:
    calls: list[str] = []

    class Counted(MemoryStore):
        async def settle(self, tokens: Sequence[int]) -> None:
            calls.append("settle")
            await super().settle(tokens)

    store = Counted()
    async with watched_spooling_batcher(InMemoryExporter(), store, batch=BatchPolicy(max_delay=0.001)) as batcher:
        for _ in range(20):
            await batcher.add_span("a", make_span())
            await batcher.sync()
            await trio.sleep(0.05)
        assert len(store.disk.records) == 1
        assert not calls
        # Alone, if no other commit follows.
        await trio.sleep(1)
        assert not store.disk.records
        assert calls == ["settle"]


async def test_what_was_settled_last_is_forgotten_when_the_batcher_is_left(
    autojump_clock: trio.testing.MockClock,
) -> None:
    disk = MemoryDisk()
    async with watched_spooling_batcher(InMemoryExporter(delay=0.01), disk, spool={"commit_interval": 1e6}) as batcher:
        await batcher.add_spans("a", make_spans(5))
    assert batcher.statistics().delivered == 5
    assert not disk.records


async def test_recovered_locations_do_not_count_among_those_of_the_program(
    autojump_clock: trio.testing.MockClock,
) -> None:
    disk = MemoryDisk()
    await leave_in_spool(disk, **{f"old{number}": make_spans(2) for number in range(4)})
    async with watched_spooling_batcher(
        down_until(100), disk, batch=SOON, limits=Limits(max_locations=4, location_idle_timeout=1)
    ) as batcher:
        await trio.sleep(5)
        assert len(batcher._scheduler.locations) == 2
        for number in range(4):
            await batcher.add_span(f"new{number}", make_span())
        assert len(batcher._scheduler.locations) == 6
        await trio.sleep(500)
        assert batcher.statistics().delivered == 12
        assert batcher._scheduler.guests == 0


async def test_no_record_is_forgotten_before_its_dead_letters_are_written(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Although commits, which have settled records forgotten, go before dead letters."""

    class Checks(MemoryStore):
        def check(self, tokens: Sequence[int]) -> None:
            written = {span_id for _, spans, _ in self.disk.dead for span_id in span_ids(spans)}
            settled = {span_id for token in tokens for span_id in span_ids(self.disk.records[token][1])}
            assert settled <= written

        async def commit(self, records: Sequence[NewRecord], settled: Sequence[int] = ()) -> Sequence[Record]:
            self.check(settled)
            return await super().commit(records, settled)

        async def settle(self, tokens: Sequence[int]) -> None:
            self.check(tokens)
            await super().settle(tokens)

    store = Checks()
    exporter = InMemoryExporter(lambda batch: Refused("no such table", status_code=404))
    async with watched_spooling_batcher(exporter, store, batch=BatchPolicy(max_delay=0.001)) as batcher:
        store.slow = 0.1
        for number in range(100):
            await batcher.add_span(f"location {number % 10}", make_span())
            await trio.sleep(0.05)
    assert len(store.disk.dead) > 50
    assert not store.disk.records


async def test_old_spans_that_cannot_be_sent_are_dropped_when_they_are_recovered(
    autojump_clock: trio.testing.MockClock,
) -> None:
    disk, losses = MemoryDisk(), list[Loss]()
    await leave_in_spool(disk, bad=make_spans(3), good=make_spans(2))
    await trio.sleep(100)
    async with watched_spooling_batcher(
        Picky(), disk, batch=SOON, spool={"max_age": 50.0}, on_loss=losses.append
    ) as batcher:
        await trio.sleep(10)
        assert batcher.statistics().undelivered == 5
    assert {(loss.location, loss.reason) for loss in losses} == {
        (location, "older than Spool.max_age, 50 s") for location in ("bad", "good")
    }
    assert sum(loss.count for loss in losses) == 5
    assert not disk.records
