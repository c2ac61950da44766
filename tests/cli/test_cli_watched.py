from __future__ import annotations

import math

import pytest
import trio
import trio.testing

from tests.support.batchers import make_span
from trio_spanbatch import Delivered, ExportResult, InvalidLocationError, Refused, SpanBatch, TryLater
from trio_spanbatch._http.exporter import OTLPExporter
from trio_spanbatch._spans.encoder import SpanEncoder
from trio_spanbatch.cli.watched import GIVEN_UP, WatchedExporter
from trio_spanbatch.testing import Hang, InMemoryExporter

PATIENCE = 20.0


def batch() -> SpanBatch:
    return SpanBatch("a", [SpanEncoder().encode(make_span())])


async def seconds_until_it_gives_up(watched: WatchedExporter) -> float:
    """Return after how many seconds it gave up, `math.inf` if it did not within an hour."""
    start = trio.current_time()
    with trio.move_on_after(3600):
        await watched.wait_to_give_up()
        return trio.current_time() - start
    return math.inf


async def test_its_patience_begins_with_the_first_attempt(autojump_clock: trio.testing.MockClock) -> None:
    watched = WatchedExporter(InMemoryExporter([TryLater("cannot connect")]), PATIENCE)

    async def attempt_later() -> None:
        await trio.sleep(100)
        await watched.export(batch())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(attempt_later)
        assert await seconds_until_it_gives_up(watched) == 100 + PATIENCE
    assert watched.failure == "cannot connect"


@pytest.mark.parametrize(
    "answer",
    [Delivered(), Refused("404 Not Found", 404), TryLater("busy", status_code=503), TryLater("busy", status_code=429)],
    ids=str,
)
async def test_any_answer_keeps_it_going(answer: ExportResult, autojump_clock: trio.testing.MockClock) -> None:
    watched = WatchedExporter(InMemoryExporter([answer, TryLater("127.0.0.1:1 ended the exchange")]), PATIENCE)
    assert await watched.export(batch()) == answer
    await watched.export(batch())
    assert await seconds_until_it_gives_up(watched) == math.inf


async def test_after_that_attempts_end_at_once_and_leave_no_time_for_another(
    autojump_clock: trio.testing.MockClock,
) -> None:
    watched = WatchedExporter(InMemoryExporter([Hang()]), PATIENCE, "localhost:4318")
    results: list[ExportResult] = []

    async def attempt() -> None:
        results.append(await watched.export(batch()))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(attempt)
        await watched.wait_to_give_up()
    assert trio.current_time() == pytest.approx(PATIENCE)
    # The server may have the batch of the attempt that was cut short; the next one was not sent at all.
    reason = "no answer from localhost:4318 within 20 s"
    assert results == [TryLater(reason, after=math.inf, ambiguous=True)]
    assert await watched.export(batch()) == TryLater(reason, after=math.inf, ambiguous=False)
    assert watched.failure == reason


async def test_what_is_handed_back_without_an_attempt_is_no_request(autojump_clock: trio.testing.MockClock) -> None:
    inside = InMemoryExporter([TryLater("cannot connect")])
    watched = WatchedExporter(inside, PATIENCE)
    attempted, other = batch(), batch()
    await watched.export(attempted)
    await watched.wait_to_give_up()
    await watched.export(attempted)
    await watched.export(other)
    assert len(inside.batches) == 1
    assert (watched.not_sent, watched.not_repeated) == ({"a": 2}, {"a": 1})


async def test_what_is_handed_back_for_a_location_that_was_given_up_is_no_request_and_others_are_sent(
    autojump_clock: trio.testing.MockClock,
) -> None:
    busy = TryLater("busy", status_code=503)
    inside = InMemoryExporter([busy, busy, Delivered()])
    watched = WatchedExporter(inside, PATIENCE, max_elapsed=300)
    attempted, other = batch(), batch()
    assert await watched.export(attempted) == busy
    await trio.sleep(300)
    # Its second attempt has come too late: this was the last.
    for _ in range(2):
        result = await watched.export(attempted)
        assert (result, result.status_code) == (Refused("retries exhausted: busy", GIVEN_UP), GIVEN_UP)
    await watched.export(other)
    assert len(inside.batches) == 1
    assert (watched.not_sent, watched.not_repeated) == ({"a": 3}, {"a": 2})
    assert await watched.export(SpanBatch("b", other.spans)) == busy
    assert [trouble.location for trouble in watched.troubles()] == ["a", "b"]


async def test_a_location_that_answers_again_has_no_trouble(autojump_clock: trio.testing.MockClock) -> None:
    busy = TryLater("busy", status_code=503)
    watched = WatchedExporter(InMemoryExporter([busy, Delivered(), busy, busy]), PATIENCE, max_elapsed=300)
    await watched.export(batch())
    await trio.sleep(200)
    await watched.export(batch())
    assert list(watched.troubles()) == []
    for _ in range(2):
        await trio.sleep(200)
        assert await watched.export(batch()) == busy


async def test_it_checks_locations_as_the_exporter_inside_does() -> None:
    exporter = OTLPExporter("http://localhost:4318/v1/traces", location_header="X-T")
    watched = WatchedExporter(exporter, PATIENCE)
    with pytest.raises(InvalidLocationError):
        watched.check_location("a\n")
    await watched.aclose()
    WatchedExporter(InMemoryExporter(), PATIENCE).check_location("a\n")
