"""Locations that hang do not delay the others, measured on the mock clock."""

from __future__ import annotations

import math
import random
from collections import Counter

import attrs
import pytest
import trio
from trio.testing import MockClock

from tests.support.batchers import assert_conserved, make_span, make_spans
from trio_spanbatch import BatchPolicy, Delivered, ExportResult, Limits, SpanBatch, SpanBatcher

HEALTHY = 48
SPANS = 4
SERVICE = (0.3, 0.7)  # seconds that a healthy location's server takes
PERIOD = 1.0  # seconds between two batches of a healthy location: half of its load
ROUNDS = 24


@attrs.define(eq=False)
class Servers:
    """One server for each location. Those whose name begins with "hang" hang from ``hang_from`` on."""

    rng: random.Random
    hang_from: float
    due_at: dict[int, float] = attrs.Factory(dict)
    waits: list[float] = attrs.Factory(list)
    active: Counter[str] = attrs.Factory(Counter)
    max_active: int = 0
    max_active_by_location: int = 0

    async def export(self, batch: SpanBatch) -> ExportResult:
        self.active[batch.location] += 1
        self.max_active = max(self.max_active, self.active.total())
        self.max_active_by_location = max(self.max_active_by_location, self.active[batch.location])
        try:
            if batch.location.startswith("hang") and trio.current_time() >= self.hang_from:
                await trio.sleep_forever()
            await trio.sleep(self.rng.uniform(*SERVICE))
        finally:
            self.active[batch.location] -= 1
        if batch.location.startswith("healthy") and trio.current_time() >= self.hang_from:
            first = int.from_bytes(batch.spans[0].to_message().span_id, "big")
            self.waits.append(trio.current_time() - self.due_at[first])
        return Delivered()

    async def aclose(self) -> None:
        await trio.lowlevel.checkpoint()


async def keep_adding(batcher: SpanBatcher, location: str, servers: Servers, rounds: int) -> None:
    """Add a full batch each period, starting at a phase that depends on the location."""
    await trio.sleep(servers.rng.uniform(0, PERIOD))
    for _ in range(rounds):
        spans = make_spans(SPANS)
        # It is due in the step in which its last span is accepted.
        servers.due_at[spans[0].context.span_id] = trio.current_time()
        await batcher.add_spans(location, spans)
        await trio.sleep(PERIOD)


@attrs.frozen
class Course:
    """When the others hang and when the healthy locations begin, in seconds."""

    hang_from: float = 0
    healthy_from: float = 0


async def run(hanging: int, course: Course) -> Servers:
    """Run the healthy locations beside ``hanging`` others."""
    servers = Servers(random.Random(hanging), hang_from=trio.current_time() + course.hang_from)
    policy = BatchPolicy(max_spans=SPANS, max_delay=60)
    async with (
        SpanBatcher(servers, batch=policy, shutdown_timeout=1) as batcher,
        trio.open_nursery() as nursery,
    ):
        for number in range(hanging):
            nursery.start_soon(keep_all_exports_busy, batcher, f"hangs {number}", 10)
        await trio.sleep(course.healthy_from)
        for number in range(HEALTHY):
            nursery.start_soon(keep_adding, batcher, f"healthy {number}", servers, ROUNDS)
        await trio.sleep(ROUNDS * PERIOD + 5)
        nursery.cancel_scope.cancel()
    assert_conserved(batcher.statistics())
    return servers


async def keep_all_exports_busy(batcher: SpanBatcher, location: str, seconds: float) -> None:
    """Add four batches at a time forever, so that the location reaches its maximum of concurrent exports."""
    while True:
        await batcher.add_spans(location, make_spans(4 * SPANS))
        await trio.sleep(0.5)


def p99(values: list[float]) -> float:
    return sorted(values)[math.ceil(len(values) * 0.99) - 1]


COURSES = {
    "from the start": Course(),
    "after they had grown": Course(hang_from=10),
    "after they had grown, before the healthy ones come alive": Course(hang_from=10, healthy_from=12),
}


@pytest.mark.long
@pytest.mark.parametrize("course", COURSES.values(), ids=COURSES)
async def test_locations_that_hang_do_not_slow_healthy_ones_down(course: Course, autojump_clock: MockClock) -> None:
    alone = await run(0, course)
    for hanging in (4, 16):
        with_hanging = await run(hanging, course)
        assert len(with_hanging.waits) > HEALTHY * (ROUNDS - 15)
        assert p99(with_hanging.waits) <= 1.2 * p99(alone.waits)
        assert with_hanging.max_active <= Limits().max_exports
        assert with_hanging.max_active_by_location <= Limits().max_exports_per_location


async def test_a_stalled_location_with_large_spans_never_makes_a_healthy_one_wait(autojump_clock: MockClock) -> None:
    waited: list[float] = []

    async def stall() -> None:
        while True:
            await batcher.add_span("hangs", make_span(size=30_000))

    async def add(location: str) -> None:
        for _ in range(30):
            before = trio.current_time()
            await batcher.add_span(location, make_span(size=300))
            waited.append(trio.current_time() - before)
            await trio.sleep(1)

    servers = Servers(random.Random(1), hang_from=0)
    async with (
        SpanBatcher(servers, batch=BatchPolicy(max_delay=1), shutdown_timeout=1) as batcher,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(stall)
        async with trio.open_nursery() as healthy:
            for number in range(HEALTHY):
                healthy.start_soon(add, f"well {number}")
        # The stalled location has used up its byte limit.
        stalled = batcher.statistics().locations["hangs"].pending_bytes
        assert 16_000_000 < stalled <= Limits().max_pending_bytes_per_location
        nursery.cancel_scope.cancel()
    assert max(waited) == 0


async def test_a_lone_location_may_use_all_slots_that_it_is_allowed(autojump_clock: MockClock) -> None:
    servers = Servers(random.Random(1), hang_from=math.inf)
    limits = Limits(max_exports=4, max_exports_per_location=4)
    async with SpanBatcher(servers, batch=BatchPolicy(max_spans=1), limits=limits) as batcher:
        for span in make_spans(60):
            servers.due_at[span.context.span_id] = trio.current_time()
            await batcher.add_span("healthy", span)
        await batcher.flush()
    assert servers.max_active == 4


async def test_in_the_drain_no_slot_is_kept_for_locations_that_cannot_come(autojump_clock: MockClock) -> None:
    servers = Servers(random.Random(1), hang_from=math.inf)
    limits = Limits(max_exports=8)
    policy = BatchPolicy(max_spans=1, max_delay=60)
    async with SpanBatcher(servers, batch=policy, limits=limits, shutdown_timeout=30) as batcher:
        for location in ("one", "two"):
            batcher.add_spans_nowait(location, make_spans(100))
    assert servers.max_active == 8
