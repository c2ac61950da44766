"""Isolation: one bad span does not cause hundreds of good ones to be rejected."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from typing import cast

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock

from tests.support.batchers import ids_of, make_span, make_spans, span_ids, watched_batcher
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
from trio_spanbatch._reporting.statistics import Settlement
from trio_spanbatch._scheduler.isolation import MAX_REFUSALS, MAX_REQUESTS, Isolation
from trio_spanbatch._scheduler.ledger import Account
from trio_spanbatch._scheduler.location import Lease, Location
from trio_spanbatch._scheduler.pace import Pace
from trio_spanbatch.testing import InMemoryExporter

BIG = BatchPolicy(max_spans=512, max_delay=60)


def refusing(bad: Iterable[int], status: int = 422) -> Callable[[SpanBatch], ExportResult]:
    """Return a server that refuses a request for any of the span ids ``bad`` in it."""
    poison = frozenset(bad)

    def answer(batch: SpanBatch) -> ExportResult:
        found = sorted(poison.intersection(span_ids(batch.spans)))
        return Refused(f"bad span {found[0]}", status, isolate=True) if found else Delivered()

    return answer


@pytest.mark.parametrize("status", [400, 413, 422])
async def test_512_spans_of_which_8_are_bad_end_with_504_delivered_and_8_rejected(
    status: int, autojump_clock: MockClock
) -> None:
    spans = make_spans(512)
    bad = random.Random(8).sample(ids_of(spans), 8)
    losses: list[Loss] = []
    exporter = InMemoryExporter(refusing(bad, status))
    async with watched_batcher(exporter, BIG, on_loss=losses.append) as batcher:
        batcher.add_spans_nowait("a", spans)
        report = await batcher.flush()
    assert (report.delivered, report.rejected) == (504, 8)
    assert sorted(span_ids(exporter.delivered["a"])) == sorted(set(ids_of(spans)) - set(bad))
    # Each bad span is rejected alone, with the server's message about it or about a part that it was in.
    assert sorted(span_ids(span for loss in losses for span in loss.batch.spans)) == sorted(bad)
    assert {(loss.status_code, loss.outcome, loss.count) for loss in losses} == {(status, "rejected", 1)}
    assert all(loss.reason.startswith("bad span") for loss in losses)
    assert batcher.statistics().requests < 150


async def test_eight_bad_spans_side_by_side_are_isolated(autojump_clock: MockClock) -> None:
    spans = make_spans(512)
    async with watched_batcher(InMemoryExporter(refusing(ids_of(spans[:8]))), BIG) as batcher:
        batcher.add_spans_nowait("a", spans)
        await batcher.flush()
    assert (batcher.statistics().delivered, batcher.statistics().rejected) == (504, 8)


@pytest.mark.parametrize("status", [401, 403, 404, 500])
async def test_a_refusal_that_is_about_no_span_is_never_split(status: int, autojump_clock: MockClock) -> None:
    exporter = InMemoryExporter(lambda batch: Refused("no", status))
    async with watched_batcher(exporter, BIG) as batcher:
        batcher.add_spans_nowait("a", make_spans(512))
    statistics = batcher.statistics()
    assert (statistics.rejected, statistics.requests, statistics.splits) == (512, 1, 0)


async def test_a_server_that_refuses_everything_sees_few_requests(autojump_clock: MockClock) -> None:
    exporter = InMemoryExporter(lambda batch: Refused("no", 400, isolate=True))
    async with watched_batcher(exporter, BIG) as batcher:
        batcher.add_spans_nowait("a", make_spans(512))
        await batcher.flush()
        assert 1 < batcher.statistics().requests <= 32
        for _ in range(5):
            before = batcher.statistics().requests
            batcher.add_spans_nowait("a", make_spans(512))
            report = await batcher.flush()
            assert report.rejected == 512
            assert batcher.statistics().requests == before + 1
            # It is sent a single span.
            assert len(exporter.batches[-1].spans) == 1
    assert batcher.statistics().rejected == 6 * 512


async def test_a_location_that_refused_everything_isolates_again_once_something_passed(
    autojump_clock: MockClock,
) -> None:
    refuse_all = True
    bad = make_span()

    def answer(batch: SpanBatch) -> ExportResult:
        return Refused("no", 400, isolate=True) if refuse_all else refusing([bad.context.span_id])(batch)

    async with watched_batcher(InMemoryExporter(answer), BIG) as batcher:
        batcher.add_spans_nowait("a", make_spans(100))
        await batcher.flush()
        refuse_all = False
        batcher.add_spans_nowait("a", [*make_spans(50), bad, *make_spans(49)])
        report = await batcher.flush()
        assert (report.delivered, report.rejected) == (99, 1)


async def test_deliveries_under_way_do_not_isolate_once_another_found_that_everything_is_refused(
    autojump_clock: MockClock,
) -> None:
    refuse_all = False

    def answer(batch: SpanBatch) -> ExportResult:
        return Refused("no", 400, isolate=True) if refuse_all else Delivered()

    exporter = InMemoryExporter(answer, delay=1)
    async with watched_batcher(exporter, BatchPolicy(max_spans=64, max_delay=60)) as batcher:
        for _ in range(4):
            batcher.add_span_nowait("a", make_span())
            await batcher.flush()
        refuse_all = True
        before = len(exporter.batches)
        batcher.add_spans_nowait("a", make_spans(64 * 10))
        report = await batcher.flush()
    assert report.rejected == 640
    # Four whole batches at once, one of which is isolated, and one request for each of the six others.
    assert len(exporter.batches) - before <= 3 + 32 + 6


async def test_one_refused_span_does_not_mark_its_location_as_refusing_everything(autojump_clock: MockClock) -> None:
    bad = make_span()
    async with watched_batcher(InMemoryExporter(refusing([bad.context.span_id])), BIG) as batcher:
        batcher.add_span_nowait("a", bad)
        await batcher.flush()
        batcher.add_spans_nowait("a", [bad, *make_spans(20)])
        report = await batcher.flush()
    assert (report.delivered, report.rejected) == (20, 1)


async def test_a_location_that_refused_everything_is_sent_a_batch_of_one_span_whole(
    autojump_clock: MockClock,
) -> None:
    exporter = InMemoryExporter(lambda batch: Refused("no", 400, isolate=True))
    async with watched_batcher(exporter, BIG) as batcher:
        batcher.add_spans_nowait("a", make_spans(2))
        await batcher.flush()
        before = len(exporter.batches)
        batcher.add_span_nowait("a", make_span())
        report = await batcher.flush()
    assert (report.rejected, len(exporter.batches) - before) == (1, 1)


async def test_when_the_budget_is_used_up_the_remainder_is_handed_back_if_any_part_passed(
    autojump_clock: MockClock,
) -> None:
    spans = make_spans(512)
    # Every other span is bad: far more requests than allowed, and never 24 refusals in a row.
    exporter = InMemoryExporter(refusing(ids_of(spans[::2])))
    async with watched_batcher(exporter, BIG) as batcher:
        batcher.add_spans_nowait("a", spans)
        await batcher.flush()
    statistics = batcher.statistics()
    assert statistics.requests == MAX_REQUESTS
    assert statistics.undelivered > 0
    assert {loss.reason.split(":")[0] for loss in batcher.undelivered} == {"isolation budget"}
    assert {loss.status_code for loss in batcher.undelivered} == {422}


async def test_after_a_413_the_location_remembers_the_size_that_passed(autojump_clock: MockClock) -> None:
    def answer(batch: SpanBatch) -> ExportResult:
        return Refused("too large", 413, isolate=True) if batch.size > 10_000 else Delivered()

    exporter = InMemoryExporter(answer)
    async with watched_batcher(exporter, BIG, limits=Limits(max_exports_per_location=1)) as batcher:
        for _ in range(4):
            batcher.add_spans_nowait("a", make_spans(300, size=100))
            await batcher.flush()
    assert batcher.statistics().delivered == 1200
    too_large = [batch for batch in exporter.batches if batch.size > 10_000]
    # Refused once while the batch is halved, and never again.
    assert len(too_large) <= 7
    first_passed = next(i for i, batch in enumerate(exporter.batches) if batch.size <= 10_000)
    assert all(batch.size <= 10_000 for batch in exporter.batches[first_passed + 8 :])


async def test_a_span_that_is_too_large_by_itself_is_rejected_and_does_not_make_requests_tiny(
    autojump_clock: MockClock,
) -> None:
    def answer(batch: SpanBatch) -> ExportResult:
        return Refused("too large", 413, isolate=True) if batch.size > 100_000 else Delivered()

    exporter = InMemoryExporter(answer)
    async with watched_batcher(exporter, BIG) as batcher:
        batcher.add_spans_nowait("a", [make_span(size=200_000), make_span()])
        await batcher.flush()
        batcher.add_spans_nowait("a", make_spans(200, size=100))
        report = await batcher.flush()
        assert report.delivered == 200
    assert (batcher.statistics().rejected, len(exporter.batches)) == (1, 4)


async def test_a_part_that_is_tried_again_later_is_isolated_all_the_same(autojump_clock: MockClock) -> None:
    spans = make_spans(64)
    rng = random.Random(5)
    refuse = refusing(ids_of(spans[10:12]))

    def answer(batch: SpanBatch) -> ExportResult:
        return TryLater("busy") if rng.random() < 0.4 else refuse(batch)

    async with watched_batcher(InMemoryExporter(answer), BIG) as batcher:
        batcher.add_spans_nowait("a", spans)
        await batcher.flush()
    assert (batcher.statistics().delivered, batcher.statistics().rejected) == (62, 2)


async def test_an_isolation_that_the_deadline_ends_accounts_for_every_span(autojump_clock: MockClock) -> None:
    spans = make_spans(256)
    exporter = InMemoryExporter(refusing(ids_of(spans[100:105])), delay=1)
    async with watched_batcher(exporter, BIG, shutdown_timeout=10) as batcher:
        batcher.add_spans_nowait("a", spans)
    statistics = batcher.statistics()
    assert statistics.undelivered > 0
    assert statistics.delivered > 0
    assert statistics.delivered + statistics.rejected + statistics.undelivered == 256
    handed_back = {id(span) for loss in batcher.undelivered for span in loss.batch.spans}
    assert handed_back.isdisjoint(map(id, exporter.delivered["a"]))


async def test_a_batch_whose_parts_were_given_up_does_not_mark_its_location_as_refusing_everything(
    autojump_clock: MockClock,
) -> None:
    first, second = make_spans(4), make_spans(4)
    refuse_one = refusing(ids_of(second[:1]))

    def answer(batch: SpanBatch) -> ExportResult:
        if not set(span_ids(batch.spans)).isdisjoint(ids_of(first)):
            # The whole batch was refused; whether any of its parts is good is not known in time.
            return Refused("bad", 400, isolate=True) if len(batch.spans) == 4 else TryLater("busy")
        return refuse_one(batch)

    retry = RetryPolicy(initial=1, maximum=1, max_elapsed=5)
    async with watched_batcher(InMemoryExporter(answer), BIG, retry=retry) as batcher:
        batcher.add_spans_nowait("a", first)
        await batcher.flush()
        batcher.add_spans_nowait("a", second)
        report = await batcher.flush()
    assert (report.delivered, report.rejected) == (3, 1)
    assert batcher.statistics().undelivered == 4


async def test_flush_reports_the_spans_of_an_isolated_batch_exactly(autojump_clock: MockClock) -> None:
    spans = make_spans(32)
    async with watched_batcher(InMemoryExporter(refusing(ids_of(spans[3:5]))), BIG) as batcher:
        batcher.add_spans_nowait("a", spans)
        report = await batcher.flush()
    assert (report.delivered, report.rejected, report.undelivered) == (30, 2, 0)


async def test_at_most_256_requests_are_sent_for_a_batch(autojump_clock: MockClock) -> None:
    spans = make_spans(512)
    exporter = InMemoryExporter(refusing(ids_of(spans[::4])))
    async with watched_batcher(exporter, BIG) as batcher:
        batcher.add_spans_nowait("a", spans)
        report = await batcher.flush()
        # Even if the last request was for a part that passed.
        assert len(exporter.batches) == MAX_REQUESTS == 256
        assert report.undelivered > 0
        assert report.delivered + report.rejected + report.undelivered == 512
        assert all(loss.reason.startswith("isolation budget: bad span") for loss in batcher.undelivered)


@pytest.mark.parametrize("at_most", [1, 2, 3])
async def test_a_server_that_accepts_few_spans_per_request_gets_all_of_them(
    at_most: int, autojump_clock: MockClock
) -> None:
    def answer(batch: SpanBatch) -> ExportResult:
        return Delivered() if len(batch.spans) <= at_most else Refused("too large", 413, isolate=True)

    exporter = InMemoryExporter(answer)
    async with watched_batcher(exporter, BIG) as batcher:
        for _ in range(2):
            batcher.add_spans_nowait("a", make_spans(512))
            assert (await batcher.flush()).delivered == 512
    # The size that passes is known after the first refusals.
    assert sum(len(batch.spans) > at_most for batch in exporter.batches) < 20


async def test_parts_that_passed_before_the_first_judgement_do_not_count(autojump_clock: MockClock) -> None:
    spans = make_spans(400)
    bad = spans[300].context.span_id

    def answer(batch: SpanBatch) -> ExportResult:
        if len(batch.spans) > 1:
            return Refused("too large", 413, isolate=True)
        return refusing([bad])(batch)

    async with watched_batcher(InMemoryExporter(answer), BIG) as batcher:
        batcher.add_spans_nowait("a", spans)
        report = await batcher.flush()
    assert (report.delivered, report.rejected, report.undelivered) == (399, 1, 0)


async def test_a_location_that_refused_everything_is_remembered_after_it_ended_idle(
    autojump_clock: MockClock,
) -> None:
    exporter = InMemoryExporter(lambda batch: Refused("no", 400, isolate=True))
    limits = Limits(location_idle_timeout=10)
    requests = []
    async with watched_batcher(exporter, BIG, limits=limits) as batcher:
        for _ in range(3):
            before = len(exporter.batches)
            batcher.add_spans_nowait("a", make_spans(64))
            await batcher.flush()
            requests.append(len(exporter.batches) - before)
            await trio.sleep(20)
    assert requests[0] > 1
    assert requests[1:] == [1, 1]


async def test_a_half_that_passed_with_rejected_spans_implies_nothing_about_the_other_half(
    autojump_clock: MockClock,
) -> None:
    spans = make_spans(64)
    bad = set(ids_of(spans[:2]))

    def answer(batch: SpanBatch) -> ExportResult:
        found = len(bad.intersection(span_ids(batch.spans)))
        if len(batch.spans) == 64:
            return Refused("bad spans", 400, isolate=True)
        return Delivered(found, "bad spans") if found else Delivered()

    async with watched_batcher(InMemoryExporter(answer), BIG) as batcher:
        batcher.add_spans_nowait("a", spans)
        report = await batcher.flush()
    assert (report.delivered, report.rejected) == (62, 2)
    assert batcher.statistics().requests == 3


def isolate(count: int, bad: frozenset[int], status: int) -> tuple[dict[int, str], list[tuple[int, int]]]:
    """Isolate ``bad`` among ``count`` spans. Return each span's verdict, and the ranges that were sent."""
    spans = [EncodedSpan(bytes([1])) for _ in range(count)]
    # Of no location, as isolation only splits it.
    whole = Lease(cast(Location, None), SpanBatch("a", spans), count, 0, 0.0, None, count)
    isolation = Isolation(whole, Lease.split)
    verdicts: dict[int, str] = {}
    sent: list[tuple[int, int]] = []
    while (part := isolation.next()) is not None:
        sent.append((part.first, len(part)))
        if bad.intersection(range(part.first, part.first + len(part))):
            found = isolation.refused(Refused("bad", status, isolate=True), give_up=False)
        else:
            found = isolation.passed(Delivered())
        for lease, settlement in found:
            for number in range(lease.first, lease.first + len(lease)):
                assert number not in verdicts
                verdicts[number] = verdict(settlement)
    return verdicts, sent


def verdict(settlement: Settlement) -> str:
    return next(name for name in ("delivered", "rejected", "undelivered") if getattr(settlement, name))


@given(st.integers(1, 200).flatmap(lambda n: st.tuples(st.just(n), st.frozensets(st.integers(0, n - 1), max_size=9))))
def test_isolation_gives_every_span_one_verdict_and_few_bad_ones_are_all_found(
    case: tuple[int, frozenset[int]],
) -> None:
    count, bad = case
    verdicts, sent = isolate(count, bad, 422)
    assert sorted(verdicts) == list(range(count))
    if len(bad) <= 8 and len(bad) < count:
        assert {number for number, word in verdicts.items() if word == "rejected"} == bad
        assert "undelivered" not in verdicts.values()
    assert len(sent) == len(set(sent)), "a part was asked about twice"


@given(st.integers(1, 600), st.sampled_from([400, 413]))
def test_isolation_gives_up_on_a_server_that_refuses_everything(count: int, status: int) -> None:
    verdicts, sent = isolate(count, frozenset(range(count)), status)
    assert set(verdicts.values()) == {"rejected"}
    assert len(sent) <= MAX_REFUSALS


def test_a_half_is_not_sent_if_its_result_follows_from_the_other_half() -> None:
    _, sent = isolate(4, frozenset({3}), 422)
    # The left half passed, so the bad span is in the right one: only half of that is sent.
    assert sent == [(0, 4), (0, 2), (2, 1)]
    _, sent = isolate(4, frozenset({3}), 413)
    # A 413 implies nothing for the other half: both halves may be small enough.
    assert sent == [(0, 4), (0, 2), (2, 2), (2, 1), (3, 1)]


def test_the_request_size_limit_follows_the_sizes_that_the_server_accepts() -> None:
    pace = Pace(RetryPolicy(), random.Random(1), Account(), 4)
    pace.size_passed(100)
    assert pace.max_size == float("inf")
    pace.size_refused(80)
    assert pace.max_size == 40
    pace.size_passed(50)
    assert pace.max_size == 50
    pace.size_passed(90)
    assert pace.max_size == float("inf")
