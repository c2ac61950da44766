from __future__ import annotations

import math

import attrs
import pytest
import trio
import trio.testing

from tests.support.batchers import make_span, watched_batcher
from trio_spanbatch import (
    BatchPolicy,
    Delivered,
    ExportResult,
    InvalidLocationError,
    Limits,
    Loss,
    Refused,
    SpanBatch,
    TryLater,
)
from trio_spanbatch._http.exporter import OTLPExporter
from trio_spanbatch._spans.encoder import SpanEncoder
from trio_spanbatch.cli.circuit_breaker import CircuitBreaker
from trio_spanbatch.testing import Hang, InMemoryExporter

PATIENCE = 20.0
BUSY = TryLater("busy", status_code=503)


def batch() -> SpanBatch:
    return SpanBatch("a", [SpanEncoder().encode(make_span())])


async def seconds_until_it_gives_up(breaker: CircuitBreaker) -> float:
    """Return after how many seconds it gave up; `math.inf` if it did not within an hour."""
    start = trio.current_time()
    with trio.move_on_after(3600):
        await breaker.wait_to_give_up()
        return trio.current_time() - start
    return math.inf


async def test_the_patience_of_the_breaker_begins_with_the_first_attempt(
    autojump_clock: trio.testing.MockClock,
) -> None:
    breaker = CircuitBreaker(InMemoryExporter([TryLater("cannot connect")]), PATIENCE)

    async def attempt_later() -> None:
        await trio.sleep(100)
        await breaker.export(batch())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(attempt_later)
        assert await seconds_until_it_gives_up(breaker) == 100 + PATIENCE
    assert breaker.failure == "cannot connect"


@pytest.mark.parametrize(
    "answer",
    [Delivered(), Refused("404 Not Found", 404), TryLater("busy", status_code=503), TryLater("busy", status_code=429)],
    ids=str,
)
async def test_the_breaker_never_gives_up_once_a_request_was_answered(
    answer: ExportResult, autojump_clock: trio.testing.MockClock
) -> None:
    breaker = CircuitBreaker(InMemoryExporter([answer, TryLater("127.0.0.1:1 ended the exchange")]), PATIENCE)
    assert await breaker.export(batch()) == answer
    await breaker.export(batch())
    assert await seconds_until_it_gives_up(breaker) == math.inf


async def test_giving_up_cancels_the_attempts_under_way_and_hands_back_all_further_batches(
    autojump_clock: trio.testing.MockClock,
) -> None:
    breaker = CircuitBreaker(InMemoryExporter([Hang()]), PATIENCE, "localhost:4318")
    results: list[ExportResult] = []

    async def attempt() -> None:
        results.append(await breaker.export(batch()))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(attempt)
        assert breaker.reason_to_hand_back("a") is None
        await breaker.wait_to_give_up()
    assert trio.current_time() == pytest.approx(PATIENCE)
    # The server may have the batch of the attempt that was cancelled; the next one is not sent at all.
    reason = "no answer from localhost:4318 within 20 s"
    assert results == [TryLater(reason, ambiguous=True)]
    assert breaker.reason_to_hand_back("a") == breaker.reason_to_hand_back("b") == breaker.failure == reason


async def test_a_location_is_given_up_once_it_has_failed_for_max_elapsed_and_others_are_not(
    autojump_clock: trio.testing.MockClock,
) -> None:
    breaker = CircuitBreaker(InMemoryExporter([BUSY, BUSY]), PATIENCE, max_elapsed=300)
    assert await breaker.export(batch()) == BUSY
    await trio.sleep(299)
    assert breaker.reason_to_hand_back("a") is None
    await trio.sleep(1)
    assert breaker.reason_to_hand_back("a") == "retries exhausted: busy"
    assert breaker.reason_to_hand_back("b") is None
    assert await breaker.export(SpanBatch("b", batch().spans)) == BUSY
    assert [failing.location for failing in breaker.failing()] == ["a", "b"]


async def test_a_location_whose_server_asks_to_wait_for_longer_than_max_elapsed_is_given_up(
    autojump_clock: trio.testing.MockClock,
) -> None:
    breaker = CircuitBreaker(InMemoryExporter([attrs.evolve(BUSY, after=300)]), PATIENCE, max_elapsed=300)
    await breaker.export(batch())
    assert breaker.reason_to_hand_back("a") == "retries exhausted: busy"


async def test_batches_handed_back_without_an_attempt_are_undelivered_and_count_no_request(
    autojump_clock: trio.testing.MockClock,
) -> None:
    inside = InMemoryExporter(lambda batch: BUSY if batch.location == "a" else Delivered())
    breaker = CircuitBreaker(inside, PATIENCE, max_elapsed=300)
    losses: list[Loss] = []
    # With one slot only, each batch that is handed back has to return its slot.
    limits, one = Limits(max_exports=1), BatchPolicy(max_spans=1)
    async with watched_batcher(breaker, one, limits=limits, on_loss=losses.append) as batcher:
        for location in ("a", "a", "a"):
            await batcher.add_span(location, make_span())
        await batcher.flush()
        attempts = len(inside.batches)
        for location in ("a", "b", "a", "b"):
            await batcher.add_span(location, make_span())
        await batcher.flush()
        assert len(inside.batches) == attempts + 2
    statistics = batcher.statistics()
    given_up, served = statistics.locations["a"], statistics.locations["b"]
    assert (given_up.undelivered, given_up.rejected, served.delivered) == (5, 0, 2)
    assert (given_up.requests, given_up.retries) == (attempts, attempts - 1)
    assert {(loss.outcome, loss.reason) for loss in losses} == {("undelivered", "retries exhausted: busy")}


async def test_a_location_that_answers_again_is_not_failing(
    autojump_clock: trio.testing.MockClock,
) -> None:
    breaker = CircuitBreaker(InMemoryExporter([BUSY, Delivered(), BUSY, BUSY]), PATIENCE, max_elapsed=300)
    await breaker.export(batch())
    await trio.sleep(200)
    await breaker.export(batch())
    assert list(breaker.failing()) == []
    for _ in range(2):
        await trio.sleep(200)
        assert await breaker.export(batch()) == BUSY


async def test_the_breaker_checks_locations_as_the_wrapped_exporter_does() -> None:
    exporter = OTLPExporter("http://localhost:4318/v1/traces", location_header="X-T")
    breaker = CircuitBreaker(exporter, PATIENCE)
    with pytest.raises(InvalidLocationError):
        breaker.check_location("a\n")
    await breaker.aclose()
    CircuitBreaker(InMemoryExporter(), PATIENCE).check_location("a\n")
