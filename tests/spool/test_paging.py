"""Spans that leave memory, or that nothing could be done about for now, and are read back from the spool."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from contextlib import suppress

import pytest
import trio

from tests.spool.batchers import spooling_batcher, stored_ids, watched_spooling_batcher
from tests.spool.memory import MemoryDisk, MemoryStore
from tests.support.batchers import ids_of, make_span, make_spans, span_ids
from tests.support.interruptions import AtCall, Interrupted
from trio_spanbatch import (
    BatchPolicy,
    Delivered,
    EncodedSpan,
    ExportResult,
    Limits,
    Loss,
    Refused,
    RetryPolicy,
    SpanBatch,
    TryLater,
)
from trio_spanbatch.testing import InMemoryExporter

SOON = BatchPolicy(max_delay=0.1)
ONE_AT_A_TIME = Limits(max_exports_per_location=1)


class LongWaits(random.Random):
    def random(self) -> float:
        return 1.0

    def uniform(self, a: float, b: float) -> float:
        return b


def down_until(time: float) -> InMemoryExporter:
    return InMemoryExporter(
        lambda batch: TryLater("no connection", endpoint=True) if trio.current_time() < time else Delivered()
    )


async def test_an_outage_longer_than_memory_is_on_disk_and_delivered_in_order_afterwards(
    autojump_clock: trio.testing.MockClock,
) -> None:
    exporter = down_until(1000)
    limits = Limits(max_queued_spans=50, max_pending_bytes=10_000, max_exports_per_location=1)
    spans = make_spans(2000)
    async with watched_spooling_batcher(exporter, batch=SOON, limits=limits) as batcher:
        with trio.fail_after(500):
            for span in spans:
                await batcher.add_span("a", span)
                await trio.sleep(0.01)
                assert batcher.statistics().pending_bytes <= 10_000
        assert batcher.statistics().spooled > 1800
        await trio.sleep(1200)
        assert batcher.statistics().delivered == 2000
    assert span_ids(exporter.delivered["a"]) == ids_of(spans)


async def test_an_outage_of_an_hour_of_2000_locations_stays_within_the_budgets(
    autojump_clock: trio.testing.MockClock,
) -> None:
    disk = MemoryDisk()
    exporter = down_until(3600)
    limits = Limits(max_pending_bytes=500_000, max_pending_bytes_per_location=20_000)
    batcher = spooling_batcher(exporter, disk, limits=limits, spool={"commit_interval": 1.0})
    names = [f"location {number}" for number in range(2000)]
    most = 0
    added = 0
    async with batcher:
        for _ in range(12):
            for name in names:
                await batcher.add_span(name, make_span(size=100))
                added += 1
            most = max(most, batcher._scheduler.ledger.total.pending_bytes)
            await trio.sleep(300)
        assert most <= limits.max_pending_bytes
        statistics = batcher.statistics()
        assert statistics.undelivered == 0
        assert statistics.spooled > 20_000
        await trio.sleep(300)
        assert batcher.statistics().delivered == added == 24_000
    assert not disk.records
    assert {len(spans) for spans in exporter.delivered.values()} == {12}


async def test_spans_whose_retries_are_exhausted_stay_and_are_tried_again(
    autojump_clock: trio.testing.MockClock,
) -> None:
    exporter = InMemoryExporter(
        lambda batch: TryLater("busy", status_code=429) if trio.current_time() < 500 else Delivered()
    )
    spans = make_spans(7)
    retry = RetryPolicy(max_elapsed=20)
    async with watched_spooling_batcher(exporter, batch=SOON, retry=retry, limits=ONE_AT_A_TIME) as batcher:
        await batcher.add_spans("a", spans)
        await trio.sleep(300)
        statistics = batcher.statistics()
        assert statistics.undelivered == 0
        assert statistics.spooled + statistics.in_flight == 7
        # With backoff.
        assert 10 < statistics.requests < 60
        await trio.sleep(300)
        assert batcher.statistics().delivered == 7
    assert span_ids(exporter.delivered["a"]) == ids_of(spans)


async def test_spans_of_which_isolation_gives_up_stay(autojump_clock: trio.testing.MockClock) -> None:
    """Every other span is refused until a minute has passed, so that the isolation budget is used up."""

    def results(batch: SpanBatch) -> ExportResult:
        bad = trio.current_time() < 60 and any(span_id % 2 for span_id in span_ids(batch.spans))
        return Refused("bad", status_code=400, isolate=True) if bad else Delivered()

    disk = MemoryDisk()
    exporter = InMemoryExporter(results)
    # The wait after the first try is not random: it is no less than half a second.
    async with watched_spooling_batcher(exporter, disk, batch=BatchPolicy(max_delay=0.5), rng=LongWaits()) as batcher:
        await batcher.add_spans("a", make_spans(512))
        await trio.sleep(0.6)
        statistics = batcher.statistics()
        assert statistics.spooled > 150
        assert (statistics.undelivered, statistics.rejected > 50) == (0, True)
        await trio.sleep(200)
        statistics = batcher.statistics()
        assert statistics.delivered + statistics.rejected == 512
        assert statistics.rejected < 512
        assert len(disk.dead) == statistics.rejected
    assert not disk.records


async def test_an_exporter_that_raises_is_asked_again_with_backoff(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    exporter = InMemoryExporter(lambda batch: KeyError("bug") if trio.current_time() < 100 else Delivered())
    async with watched_spooling_batcher(exporter, batch=SOON) as batcher:
        await batcher.add_spans("a", make_spans(3))
        await trio.sleep(200)
        statistics = batcher.statistics()
        assert (statistics.delivered, statistics.undelivered) == (3, 0)
        assert statistics.requests < 40


async def test_rejected_spans_become_dead_letters_and_are_forgotten(autojump_clock: trio.testing.MockClock) -> None:
    disk = MemoryDisk()
    losses: list[Loss] = []
    exporter = InMemoryExporter([Refused("no such table", status_code=404)])
    spans = make_spans(3)
    async with watched_spooling_batcher(exporter, disk, batch=SOON, on_loss=losses.append) as batcher:
        await batcher.add_spans("a", spans)
        await batcher.flush()
        await trio.sleep(0.01)
        statistics = batcher.statistics()
        assert statistics.spool is not None
        assert (statistics.rejected, statistics.spool.dead) == (3, 3)
    assert [(location, span_ids(dead), reason) for location, dead, reason in disk.dead] == [
        ("a", ids_of(spans), "no such table")
    ]
    assert not disk.records
    assert [loss.outcome for loss in losses] == ["rejected"]


async def test_a_record_is_forgotten_only_after_its_dead_letters_are_written(
    autojump_clock: trio.testing.MockClock,
) -> None:
    class Hangs(MemoryStore):
        async def bury(self, location: str, spans: Sequence[EncodedSpan], reason: str) -> None:
            await trio.sleep_forever()

    store = Hangs()
    exporter = InMemoryExporter([Refused("no such table", status_code=404)])
    async with watched_spooling_batcher(exporter, store, batch=SOON, shutdown_timeout=1) as batcher:
        await batcher.add_spans("a", make_spans(3))
        await trio.sleep(1)
        assert batcher.statistics().rejected == 3
    assert (len(store.disk.records), store.disk.dead) == (1, [])


async def test_dead_letters_that_cannot_be_written_do_not_keep_the_record(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """They would otherwise be sent, and rejected, for ever."""
    store = MemoryStore()
    store.failing = {"bury"}
    exporter = InMemoryExporter([Refused("no such table", status_code=404)])
    async with watched_spooling_batcher(exporter, store, batch=SOON) as batcher:
        await batcher.add_spans("a", make_spans(3))
        await batcher.flush()
    assert not store.disk.records
    assert "the spool cannot write dead letters: Input/output error" in caplog.text


async def test_a_partial_success_buries_the_whole_batch_and_says_so(autojump_clock: trio.testing.MockClock) -> None:
    disk = MemoryDisk()
    async with watched_spooling_batcher(InMemoryExporter([Delivered(1, "too old")]), disk, batch=SOON) as batcher:
        await batcher.add_spans("a", make_spans(3))
        await batcher.flush()
    assert [(len(dead), reason) for _, dead, reason in disk.dead] == [(3, "1 of these 3 spans were rejected: too old")]


async def test_a_damaged_record_costs_its_own_spans_only(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    store = MemoryStore()
    losses: list[Loss] = []
    exporter = down_until(100)
    limits = Limits(max_queued_spans=4, max_exports_per_location=1)
    spans = make_spans(30)
    async with watched_spooling_batcher(
        exporter, store, batch=BatchPolicy(max_spans=5, max_delay=0.1), limits=limits, on_loss=losses.append
    ) as batcher:
        for span in spans:
            await batcher.add_span("a", span)
            await batcher.sync()
        victim = sorted(store.disk.records)[20]
        lost = span_ids(store.disk.records[victim][1])
        store.damaged.add(victim)
        await trio.sleep(300)
        statistics = batcher.statistics()
        assert (statistics.delivered, statistics.undelivered) == (30 - len(lost), len(lost))
        assert statistics.spool is not None
        assert statistics.spool.damaged == 1
    assert span_ids(exporter.delivered["a"]) == [span_id for span_id in ids_of(spans) if span_id not in lost]
    assert [(loss.count, loss.reason) for loss in losses] == [(len(lost), "the record in the spool is damaged")]


async def test_a_record_that_cannot_be_read_now_is_read_later(autojump_clock: trio.testing.MockClock) -> None:
    store = MemoryStore()
    exporter = down_until(50)
    limits = Limits(max_queued_spans=4)
    async with watched_spooling_batcher(exporter, store, batch=SOON, limits=limits) as batcher:
        await batcher.add_spans("a", make_spans(30))
        await trio.sleep(40)
        store.failing = {"read"}
        await trio.sleep(100)
        assert batcher.statistics().spooled > 0
        store.failing = set()
        await trio.sleep(100)
        assert batcher.statistics().delivered == 30


async def test_spans_that_are_too_old_are_dropped(autojump_clock: trio.testing.MockClock) -> None:
    """On disk and in memory, also if their location has nothing else to do."""
    losses: list[Loss] = []
    disk = MemoryDisk()
    limits = Limits(max_queued_spans=4, max_exports=1)
    async with watched_spooling_batcher(
        down_until(math.inf), disk, batch=SOON, limits=limits, on_loss=losses.append, spool={"max_age": 60.0}
    ) as batcher:
        await batcher.add_spans("a", make_spans(20))
        await batcher.add_spans("b", make_spans(1))
        await trio.sleep(50)
        assert not losses
        await batcher.add_spans("a", make_spans(2))
        await trio.sleep(15)
        # The first batch of each location may be in delivery; it comes back when its retries are exhausted.
        assert 15 <= sum(loss.count for loss in losses) <= 21
        assert {loss.reason for loss in losses} == {"older than Spool.max_age, 60 s"}


async def test_a_full_spool_makes_adders_wait(autojump_clock: trio.testing.MockClock) -> None:
    disk = MemoryDisk()
    limits = Limits(max_queued_spans=10, max_pending_bytes=2000)
    exporter = down_until(1000)
    spans = make_spans(400)
    async with watched_spooling_batcher(
        exporter, disk, batch=SOON, limits=limits, spool={"max_bytes": 5000}
    ) as batcher:
        number = 0
        with trio.move_on_after(500):
            for span in spans:
                await batcher.add_span("a", span)
                number += 1
        assert 50 < number < 150
        assert disk.nbytes <= 5000
        with pytest.raises(trio.WouldBlock):
            batcher.add_span_nowait("a", make_span())
        for span in spans[number:]:
            await batcher.add_span("a", span)
        await trio.sleep(3000)
        assert batcher.statistics().delivered == 400
        assert batcher.statistics().undelivered == 0


async def test_a_full_spool_drops_the_oldest_records_if_it_is_to(autojump_clock: trio.testing.MockClock) -> None:
    disk = MemoryDisk()
    losses: list[Loss] = []
    limits = Limits(max_queued_spans=10, max_pending_bytes=2000)
    exporter = down_until(1000)
    spans = make_spans(400)
    async with watched_spooling_batcher(
        exporter,
        disk,
        batch=SOON,
        limits=limits,
        spool={"max_bytes": 5000, "when_full": "drop_oldest"},
        on_loss=losses.append,
    ) as batcher:
        with trio.fail_after(900):
            for span in spans:
                await batcher.add_span("a", span)
        await trio.sleep(3000)
        statistics = batcher.statistics()
        assert statistics.delivered + statistics.undelivered == 400
        assert statistics.delivered > 50
    assert {(loss.reason, loss.batch.spans) for loss in losses} == {
        ("the spool is full, and its oldest spans are dropped", ())
    }
    delivered = span_ids(exporter.delivered["a"])
    assert sum(loss.count for loss in losses) == 400 - len(delivered)
    assert delivered[-50:] == ids_of(spans[-50:])
    assert not stored_ids(disk)


async def test_a_span_held_in_memory_is_dropped_at_its_age_and_not_later(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Also if the sum of its time and its age is rounded."""
    losses: list[Loss] = []
    await trio.sleep(10.420503209528324)
    never = BatchPolicy(max_delay=math.inf)
    async with watched_spooling_batcher(
        InMemoryExporter(), batch=never, on_loss=losses.append, spool={"max_age": 30.0}
    ) as batcher:
        await batcher.add_span("a", make_span())
        await trio.sleep(29.9)
        assert not losses
        await trio.sleep(0.2)
        assert [loss.reason for loss in losses] == ["older than Spool.max_age, 30 s"]


async def test_all_damaged_records_are_accounted_for_even_if_another_one_cannot_be_read_then(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """And although the batcher is left before that is read again."""
    disk = MemoryDisk()
    async with watched_spooling_batcher(InMemoryExporter(delay=math.inf), disk, shutdown_timeout=0.1) as batcher:
        for _ in range(4):
            await batcher.add_spans("a", make_spans(4))
            await batcher.sync()
    first, second, third, fourth = sorted(disk.records)

    class FailsAfterwards(MemoryStore):
        async def read(self, token: int) -> Sequence[EncodedSpan]:
            if token == fourth:
                self.failing = {"read"}
            return await super().read(token)

    store = FailsAfterwards(disk)
    store.damaged |= {second, third}
    losses: list[Loss] = []
    async with watched_spooling_batcher(
        InMemoryExporter(), store, on_loss=losses.append, shutdown_timeout=0.1
    ) as batcher:
        await trio.sleep(0.05)
    statistics = batcher.statistics()
    assert (statistics.recovered, statistics.spooled, statistics.undelivered) == (16, 8, 8)
    assert [loss.count for loss in losses] == [4, 4]
    assert set(disk.records) == {first, fourth}


async def test_an_add_that_is_interrupted_while_a_batch_returns_to_the_spool_is_counted(
    autojump_clock: trio.testing.MockClock,
) -> None:
    places = 0
    while await _add_interrupted_at(places + 1):
        places += 1
    assert places > 20


async def _add_interrupted_at(place: int) -> bool:
    """Interrupt an add at a call, while a batch is in flight that then returns to the spool. Return if it has that."""
    reached = False

    def interrupt() -> None:
        nonlocal reached
        reached = True
        raise Interrupted

    async def export(batch: SpanBatch) -> ExportResult:
        await trio.sleep(1)
        if batch.location != "a" or reached or asked:
            return Delivered()
        asked.append(True)
        with suppress(Interrupted), AtCall(place, interrupt):
            batcher.add_span_nowait("b", make_span())
        return TryLater("busy", status_code=429, after=60)

    asked: list[bool] = []
    exporter = InMemoryExporter()
    exporter.export = export  # type: ignore[method-assign]  # it interrupts an add meanwhile
    batch, retry = BatchPolicy(max_delay=2), RetryPolicy(max_elapsed=20)
    async with spooling_batcher(exporter, batch=batch, retry=retry) as batcher:
        batcher.add_spans_nowait("b", make_spans(2))
        await trio.sleep(0.5)
        batcher.add_spans_nowait("a", make_spans(3))
        await trio.sleep(100)
        statistics = batcher.statistics()
        assert statistics.accepted == statistics.delivered, place
        assert statistics.pending_bytes == 0, place
        assert all(counts.pending_bytes == 0 for counts in statistics.locations.values())
    return reached
