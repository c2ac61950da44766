"""A flush: the spans that were pending when it began, and no others."""

from __future__ import annotations

import pytest

from tests.unit.scheduler.parts import make_scheduler, make_span
from trio_spanbatch import Limits
from trio_spanbatch._reporting.statistics import FlushCounts, Settlement
from trio_spanbatch._scheduler.flush import Flush, LocationFlush
from trio_spanbatch._scheduler.ledger import Account
from trio_spanbatch._scheduler.orders import Start, Wake

# watermark, first span, count of spans, settlement: delivered, rejected, undelivered of the flush.
TABLE = [
    (10, 0, 4, Settlement(delivered=4), (4, 0, 0)),
    (10, 8, 4, Settlement(delivered=4), (2, 0, 0)),
    (10, 10, 4, Settlement(delivered=4), (0, 0, 0)),
    (10, 8, 4, Settlement(rejected=4), (0, 2, 0)),
    (10, 8, 4, Settlement(undelivered=4), (0, 0, 2)),
    (10, 0, 4, Settlement(delivered=3, rejected=1), (3, 1, 0)),
    (10, 0, 4, Settlement(delivered=1, rejected=1, undelivered=2), (1, 1, 2)),
]


@pytest.mark.parametrize(("watermark", "first", "count", "settlement", "counted"), TABLE)
def test_only_spans_below_the_watermark_count(
    watermark: int, first: int, count: int, settlement: Settlement, counted: tuple[int, int, int]
) -> None:
    part = LocationFlush(Flush(), "a", {}, watermark, 10)
    part.note(first, count, settlement)
    assert (part.delivered, part.rejected, part.undelivered) == counted
    assert part.remaining == 10 - sum(counted)


def test_a_flush_is_done_when_all_locations_are_watched_and_finished() -> None:
    flush, parts = Flush(), dict[LocationFlush, None]()
    flush.watch("a", Account(accepted=3, queued=2), parts)
    (part,) = parts
    assert (part.watermark, part.remaining) == (3, 2)
    part.note(1, 2, Settlement(delivered=2))
    flush.finished(part)
    assert not parts
    done_before = flush.is_done
    flush.watches_all = True
    assert (done_before, flush.is_done) == (False, True), "at first another location may be watched"
    assert flush.report().locations == {"a": FlushCounts(delivered=2, rejected=0, undelivered=0)}


def test_an_abandoned_flush_is_removed_from_its_locations() -> None:
    flush, parts = Flush(), dict[LocationFlush, None]()
    flush.watch("a", Account(accepted=1, queued=1), parts)
    flush.forget()
    assert not parts


def test_a_flush_makes_queued_spans_due_at_once_and_is_woken_with_the_last_of_them() -> None:
    scheduler = make_scheduler(Limits(max_exports=1))
    location = scheduler.open("a")
    scheduler.admission.try_admit(location, make_span(), lambda: 0.0)
    scheduler.step(0.0)
    assert not scheduler.outbox
    flush = Flush()
    scheduler.watch(location, flush)
    flush.watches_all = True
    scheduler.admission.try_admit(location, make_span(), lambda: 0.0)
    scheduler.step(0.0)
    start = scheduler.outbox.popleft()
    assert isinstance(start, Start)
    scheduler.attempt_began(start.lease)
    scheduler.attempt_ended(start.lease, None, 1.0)
    scheduler.settled(start.lease, Settlement(undelivered=len(start.lease)), 1.0)
    wake = scheduler.outbox.popleft()
    assert isinstance(wake, Wake)
    assert wake.flush is flush
    assert flush.is_done


def test_a_location_without_pending_spans_is_not_watched() -> None:
    scheduler = make_scheduler()
    flush = Flush()
    scheduler.watch(scheduler.open("a"), flush)
    flush.watches_all = True
    assert flush.is_done


def test_a_flush_does_not_wait_for_the_spans_of_a_location_that_ended_and_was_opened_again() -> None:
    scheduler = make_scheduler(Limits(max_locations=1))
    ended = scheduler.open("a")
    scheduler.open("b")
    scheduler.admission.try_admit(scheduler.open("a"), make_span(), lambda: 0.0)
    flush = Flush()
    scheduler.watch(ended, flush)
    flush.watches_all = True
    assert flush.is_done
