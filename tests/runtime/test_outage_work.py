"""The work that an outage causes: it does not grow with the number of live locations."""

from __future__ import annotations

import random

import pytest
import trio
from trio.testing import MockClock

from tests.support.batchers import make_span
from trio_spanbatch import BatchPolicy, Delivered, ExportResult, Limits, SpanBatch, SpanBatcher, TryLater
from trio_spanbatch._scheduler.location import Location
from trio_spanbatch._scheduler.scheduler import Scheduler

TOO_MANY = 50_000


class Server:
    """An exporter that cannot connect to its servers while they are down: those with these names, or the only one."""

    def __init__(self, *down: str) -> None:
        self.down = down

    async def export(self, batch: SpanBatch) -> ExportResult:
        await trio.sleep(0.01)
        is_down = self.endpoint_of(batch.location) in self.down
        return TryLater("cannot connect: Connection refused", endpoint=True) if is_down else Delivered()

    async def aclose(self) -> None:
        await trio.lowlevel.checkpoint()

    def endpoint_of(self, location: str) -> str:
        return location.rpartition("/")[0]


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> list[Location]:
    """The locations that the scheduler looks at; too many are an error, as endless ones would let no time pass."""
    looks: list[Location] = []
    look = Scheduler._look

    def counted(self: Scheduler, location: Location, now: float) -> None:
        looks.append(location)
        assert len(looks) < TOO_MANY, "the scheduler looks at locations again and again"
        look(self, location, now)

    monkeypatch.setattr(Scheduler, "_look", counted)
    return looks


def fill(batcher: SpanBatcher, locations: list[str]) -> None:
    """Add a span to each location, and more in turns until the byte budget is used up, or each has ten."""
    try:
        for location in locations * 10:
            batcher.add_span_nowait(location, make_span())
    except trio.WouldBlock:
        pass


async def looks_in_an_outage(locations: int, looks: list[Location], *, is_full: bool, waits: bool) -> float:
    """Return at how many locations the scheduler looks per attempt, after the first minute of an outage."""
    server = Server("")
    async with SpanBatcher(Server()) as sizing:
        sizing.add_span_nowait("a location", make_span())
        cost = sizing.statistics().pending_bytes
    names = [f"location-{number}" for number in range(locations)]
    budget = cost * locations if is_full else 1 << 30
    limits = Limits(max_pending_bytes=budget, max_pending_bytes_per_location=min(budget, 20 * cost))
    async with SpanBatcher(server, limits=limits, rng=random.Random(1)) as batcher:
        fill(batcher, names)
        async with trio.open_nursery() as nursery:
            if waits:
                for _ in range(1 if is_full else 30):
                    nursery.start_soon(batcher.add_span, names[0], make_span())
            await trio.sleep(60)
            looks_before, requests_before = len(looks), batcher.statistics().requests
            await trio.sleep(180)
            found = (len(looks) - looks_before) / (batcher.statistics().requests - requests_before)
            assert batcher.statistics().delivered == 0
            server.down = ()
            await batcher.flush()
    assert batcher.statistics().undelivered == 0
    return found


@pytest.mark.parametrize("waits", [False, True], ids=["no adder", "an adder waits"])
@pytest.mark.parametrize("is_full", [False, True], ids=["space", "the budget is used up"])
async def test_an_outage_causes_no_more_work_with_ten_times_as_many_locations(
    is_full: bool, waits: bool, looks: list[Location], autojump_clock: MockClock
) -> None:
    few = await looks_in_an_outage(50, looks, is_full=is_full, waits=waits)
    looks.clear()
    many = await looks_in_an_outage(500, looks, is_full=is_full, waits=waits)
    assert 0 < many <= 1.5 * few


async def test_an_adder_that_waits_for_bytes_makes_the_locations_of_an_endpoint_due_again_after_an_outage(
    looks: list[Location], autojump_clock: MockClock
) -> None:
    server = Server("")
    names = [f"location-{number}" for number in range(200)]
    policy = BatchPolicy(max_delay=10_000)
    async with SpanBatcher(server, batch=policy, limits=Limits(max_pending_bytes=30_000)) as batcher:
        fill(batcher, names)
        with trio.fail_after(160):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(batcher.add_span, names[0], make_span())
                await trio.sleep(100)
                assert not batcher.statistics().endpoint.is_up
                server.down = ()
        # All of them have left the endpoint's queue while nobody waited for bytes any more.
        await batcher.flush()
        fill(batcher, names)
        await trio.sleep(1)
        with trio.fail_after(60):
            await batcher.add_span("another location", make_span())


async def test_a_full_budget_is_freed_by_the_healthy_endpoint_beside_one_that_is_down(
    looks: list[Location], autojump_clock: MockClock
) -> None:
    server = Server("down")
    down = [f"down/{number}" for number in range(100)]
    healthy = [f"healthy/{number}" for number in range(100)]
    policy = BatchPolicy(max_delay=10_000)
    async with SpanBatcher(server, batch=policy, limits=Limits(max_pending_bytes=30_000)) as batcher:
        # Those of the endpoint that is down are the fullest.
        fill(batcher, down[:30] + down + healthy)
        with trio.fail_after(30):
            for _ in range(50):
                await batcher.add_span(healthy[0], make_span())
        assert not batcher.statistics().endpoints["down"].is_up
        server.down = ()
