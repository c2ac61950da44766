"""The gauges of an endpoint: up or down, since when, attempts, and when the next probe is due."""

from __future__ import annotations

from typing import Any

import pytest
import trio
from trio.testing import MockClock

from tests.opentelemetry.support import in_thread
from tests.opentelemetry.test_opentelemetry_metrics import (
    ATTEMPTS,
    NEXT_PROBE,
    OWN_NAMES,
    STATE_DURATION,
    UP,
    Metrics,
)
from tests.support.batchers import make_span
from trio_spanbatch import Delivered, ExportResult, SpanBatch, SpanBatcher, TryLater
from trio_spanbatch.opentelemetry import BatcherSpanProcessor
from trio_spanbatch.testing import InMemoryExporter, outage

NAME = "trio_spanbatch.endpoint.name"


class TwoServers:
    """An exporter whose server ``down`` cannot be connected to."""

    async def export(self, batch: SpanBatch) -> ExportResult:
        await trio.lowlevel.checkpoint()
        if batch.location == "down":
            return TryLater("cannot connect", endpoint=True)
        return Delivered()

    async def aclose(self) -> None:
        await trio.lowlevel.checkpoint()

    def endpoint_of(self, location: str) -> str:
        return location


def values(metrics: Metrics, name: str) -> dict[object, Any]:
    """Return a gauge's values by the name of their endpoint."""
    return {point.attributes.get(NAME): point.value for point in metrics.points(name)}


async def test_gauges_tell_up_or_down_since_when_attempts_and_when_the_next_probe_is_due(
    autojump_clock: MockClock,
) -> None:
    metrics = Metrics()
    async with SpanBatcher(InMemoryExporter([outage(100)])) as batcher:
        BatcherSpanProcessor(batcher, meter_provider=metrics.provider)
        assert not OWN_NAMES & set(metrics.read())
        batcher.add_span_nowait("a location", make_span())
        await trio.sleep(90)
        known = batcher.statistics().endpoint
        now = trio.current_time()
        assert known.next_probe_at is not None
        assert values(metrics, UP) == {None: 0}
        assert values(metrics, ATTEMPTS) == {None: known.attempts}
        assert values(metrics, STATE_DURATION) == {None: pytest.approx(now - known.since)}
        assert values(metrics, NEXT_PROBE) == {None: pytest.approx(max(0, known.next_probe_at - now))}
        await batcher.flush()
        assert values(metrics, UP) == {None: 1}
        assert values(metrics, STATE_DURATION) == {None: 0}
        assert values(metrics, NEXT_PROBE) == {}
        await trio.sleep(3)
        assert values(metrics, STATE_DURATION) == {None: pytest.approx(3)}


async def test_the_gauges_of_several_endpoints_have_their_names_and_can_be_read_in_another_thread(
    autojump_clock: MockClock,
) -> None:
    metrics = Metrics()
    async with SpanBatcher(TwoServers(), shutdown_timeout=1) as batcher:
        BatcherSpanProcessor(batcher, meter_provider=metrics.provider)
        for location in ("up", "down"):
            batcher.add_span_nowait(location, make_span())
        await trio.sleep(60)
        assert values(metrics, UP) == {"up": 1, "down": 0}
        found: list[dict[object, Any]] = []
        in_thread(lambda: found.extend(values(metrics, name) for name in (ATTEMPTS, STATE_DURATION, NEXT_PROBE)))
        assert [set(each) for each in found] == [{"up", "down"}, {"up", "down"}, {"down"}]
    # In the drain there may be no time for another probe.
    assert all(value < 1000 for value in values(metrics, NEXT_PROBE).values())
