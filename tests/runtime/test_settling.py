"""A location that settles after a backoff: what waits for that, and for how long. On trio's mock clock."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
from trio.testing import MockClock

from tests.support.batchers import make_span, watched_batcher
from trio_spanbatch import BatchPolicy, Delivered, ExportResult, Limits, RetryPolicy, SpanBatch, SpanBatcher, TryLater

LONGEST = 64.0


class Server:
    """An exporter that answers 503 to one location. It has the age of each span at its delivery, by location."""

    def __init__(self) -> None:
        self.is_overloaded = True
        self.ages: dict[str, list[float]] = {}
        self.has_delivered = trio.Event()

    async def export(self, batch: SpanBatch) -> ExportResult:
        await trio.lowlevel.checkpoint()
        if self.is_overloaded and batch.location == "settling":
            return TryLater("503", status_code=503)
        now = trio.current_time()
        self.ages.setdefault(batch.location, []).extend(now - float(span.to_message().name) for span in batch.spans)
        self.has_delivered.set()
        return Delivered()

    async def aclose(self) -> None:
        await trio.lowlevel.checkpoint()


def add(batcher: SpanBatcher, location: str = "settling") -> None:
    batcher.add_span_nowait(location, make_span(str(trio.current_time())))


@asynccontextmanager
async def settling(limits: Limits | None = None) -> AsyncIterator[tuple[SpanBatcher, Server]]:
    """Yield a batcher with a location whose backoff of up to 64 s has just ended, and its server."""
    server = Server()
    policy, retry = BatchPolicy(max_spans=4), RetryPolicy(initial=LONGEST, maximum=LONGEST)
    async with watched_batcher(server, policy, retry=retry, limits=limits, rng=random.Random(1)) as batcher:
        add(batcher)
        await trio.sleep(5.5)
        assert batcher.statistics().requests == 1
        server.is_overloaded = False
        await server.has_delivered.wait()
        server.ages.clear()
        await trio.sleep(0.1)
        yield batcher, server


async def test_a_span_waits_no_longer_than_the_longest_backoff_and_then_all_is_as_usual(
    autojump_clock: MockClock,
) -> None:
    async with settling() as (batcher, server):
        add(batcher)
        await trio.sleep(5.1)
        assert batcher.statistics().queued == 1
        await trio.sleep(LONGEST - 5.1)
        assert 5 < server.ages["settling"][0] < LONGEST
        add(batcher)
        await trio.sleep(5.1)
        assert server.ages["settling"][1] == pytest.approx(5)


async def test_other_locations_are_not_held_up(autojump_clock: MockClock) -> None:
    async with settling() as (batcher, server):
        add(batcher)
        add(batcher, "other")
        await trio.sleep(5.1)
        assert (list(server.ages), batcher.statistics().queued) == (["other"], 1)


@pytest.mark.parametrize("location", [None, "settling"])
async def test_a_flush_sends_at_once(location: str | None, autojump_clock: MockClock) -> None:
    async with settling() as (batcher, _):
        add(batcher)
        with trio.fail_after(0.1):
            assert (await batcher.flush(location)).delivered == 1


async def test_leaving_sends_at_once(autojump_clock: MockClock) -> None:
    async with settling() as (batcher, _):
        add(batcher)
        left_at = trio.current_time()
    assert trio.current_time() - left_at < 0.1
    assert batcher.statistics().delivered == 2


async def test_a_full_batch_is_sent_at_once(autojump_clock: MockClock) -> None:
    async with settling() as (batcher, server):
        for _ in range(4):
            add(batcher)
        await trio.sleep(0.1)
        assert len(server.ages["settling"]) == 4


@pytest.mark.parametrize("location", ["settling", "other"])
async def test_an_adder_that_waits_for_bytes_does_not_wait_for_a_location_to_settle(
    location: str, autojump_clock: MockClock
) -> None:
    async with settling(Limits(max_pending_bytes=200)) as (batcher, _):
        with pytest.raises(trio.WouldBlock):
            for _ in range(4):
                add(batcher)
        with trio.fail_after(0.1):
            await batcher.add_span(location, make_span(str(trio.current_time())))


async def test_an_adder_that_waits_for_its_locations_own_bytes_does_not_wait_for_it_to_settle(
    autojump_clock: MockClock,
) -> None:
    async with settling(Limits(max_pending_bytes_per_location=200)) as (batcher, _):
        with pytest.raises(trio.WouldBlock):
            for _ in range(4):
                add(batcher)
        with trio.fail_after(0.1):
            await batcher.add_span("settling", make_span(str(trio.current_time())))


async def test_a_span_from_before_the_end_of_the_backoff_is_sent_with_the_usual_delay(
    autojump_clock: MockClock,
) -> None:
    server = Server()
    async with watched_batcher(
        server, retry=RetryPolicy(initial=LONGEST, maximum=LONGEST), rng=random.Random(1)
    ) as batcher:
        add(batcher)
        await trio.sleep(5.5)
        server.is_overloaded = False
        add(batcher)
        await server.has_delivered.wait()
        await trio.sleep(5)
        assert batcher.statistics().queued == 0


@pytest.mark.parametrize("period", [20, 60])
async def test_a_server_that_fails_once_before_each_success_does_not_make_the_backoff_longer(
    period: int, autojump_clock: MockClock
) -> None:
    server = Server()
    async with watched_batcher(server, rng=random.Random(1)) as batcher:
        for _ in range(20):
            server.is_overloaded = True
            add(batcher)
            await trio.sleep(5.0001)
            server.is_overloaded = False
            await trio.sleep(period - 5.0001)
    assert len(server.ages["settling"]) == 20
    assert max(server.ages["settling"]) <= 6.1
