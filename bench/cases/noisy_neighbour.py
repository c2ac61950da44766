"""A noisy neighbour: the effect of a location whose server never answers on 49 healthy locations.

For each batch of a healthy location, the case measures the time from when the batch is due until it is acknowledged:
from the time its first span was added, plus `max_delay`, to the time the exporter has the server's answer. This
includes timers that wake late, the wait for an export slot, the request and its answer.
"""

from __future__ import annotations

import logging
import random
from typing import TypeAlias

import attrs
import trio
from opentelemetry.sdk.trace import ReadableSpan

from bench.harness import Bar, Case, Figures, Plot, Round, Row, Setup
from bench.ids import SpansLost, check_ids, ids_of_batch
from bench.spans import frozen_agent_spans
from trio_spanbatch import BatchPolicy, Delivered, ExportResult, Limits, OTLPExporter, SpanBatch, SpanBatcher

__all__ = ["CASE"]

# When a span is added, in seconds from the start, and its location.
_Scheduled: TypeAlias = tuple[float, str, ReadableSpan]

_HANGING = "hanging"
_HEALTHY = [f"main.agents.spans_{number}" for number in range(49)]
_SPANS_PER_SECOND = 20  # of each location, at random times
_POLICY = BatchPolicy(max_delay=0.5)
# How long the exporter waits for an answer. The hanging location has a slot for that time.
_TIMEOUT = 2.0
# So few that the hanging location has a large part of them.
_FEW_SLOTS = Limits(max_exports=4)


@attrs.frozen
class _Timed:
    """A `SpanExporter` around `OTLPExporter` that notes when batches are acknowledged, by their first span's id."""

    inner: OTLPExporter
    acknowledged: dict[int, float] = attrs.Factory(dict)

    async def export(self, batch: SpanBatch) -> ExportResult:
        result = await self.inner.export(batch)
        if isinstance(result, Delivered):
            self.acknowledged[ids_of_batch(batch)[0]] = trio.current_time()
        return result

    async def aclose(self) -> None:
        await self.inner.aclose()


def _prepared(setup: Setup, limits: Limits, *, with_hanging: bool) -> Round:
    seconds = setup.size(50, 5) / 10
    count = int(seconds * _SPANS_PER_SECOND)
    healthy_count = count * len(_HEALTHY)
    spans = frozen_agent_spans(healthy_count + count)
    schedule = _schedule(spans, count, seconds)
    if not with_hanging:
        schedule = [entry for entry in schedule if entry[1] != _HANGING]

    def run_round() -> Figures:
        setup.receiver.forget()
        latencies = sorted(trio.run(_latencies, setup.receiver.url, schedule, limits, healthy_count))
        check_ids(setup.receiver.ids(), healthy_count)
        return {name: latencies[int(len(latencies) * part)] * 1e3 for name, part in (("p50", 0.5), ("p99", 0.99))}

    return run_round


def _schedule(spans: list[ReadableSpan], count: int, seconds: float) -> list[_Scheduled]:
    """Give each location ``count`` spans, the last ones to the hanging one, at random times after a random start."""
    rng = random.Random(7)  # the same times for all sides and rounds
    schedule: list[_Scheduled] = []
    for number, location in enumerate((*_HEALTHY, _HANGING)):
        phase = rng.uniform(0, _POLICY.max_delay)
        some = spans[number * count : (number + 1) * count]
        schedule += [(phase + rng.uniform(0, seconds), location, span) for span in some]
    return sorted(schedule, key=lambda entry: entry[0])


async def _latencies(url: str, schedule: list[_Scheduled], limits: Limits, healthy: int) -> list[float]:
    """Add the spans at their times. Return how long the batches of healthy locations took, in seconds."""
    logger = logging.getLogger("bench.noisy_neighbour")
    logger.disabled = True  # the hanging location's spans are handed back, as expected
    exporter = _Timed(OTLPExporter(url, location_header="x-location", timeout=_TIMEOUT))
    added: dict[int, float] = {}
    async with SpanBatcher(exporter, batch=_POLICY, limits=limits, shutdown_timeout=0.1, logger=logger) as batcher:
        start = trio.current_time()
        for at, location, span in schedule:
            await trio.sleep_until(start + at)
            added[span.context.span_id] = trio.current_time()
            batcher.add_span_nowait(location, span)
        # Wait until the last batch is due by itself.
        await trio.sleep(_POLICY.max_delay)
        for location in _HEALTHY:
            await batcher.flush(location)
    counts = batcher.statistics()
    if (counts.delivered, counts.undelivered) != (healthy, len(schedule) - healthy):
        raise SpansLost(f"{counts.delivered} spans were delivered and {counts.undelivered} handed back")
    return [at - added[first] - _POLICY.max_delay for first, at in exporter.acknowledged.items()]


CASE = Case(
    name="noisy_neighbour",
    title="A noisy neighbour",
    about=(
        "49 healthy locations get 20 spans per second each, at random times, for 5 s; so does a location whose server "
        "never answers, with a timeout of 2 s. `max_delay` is 0.5 s. The figures are, for each batch of a healthy "
        "location, the time from when it is due (its first span's time plus `max_delay`) until the exporter has the "
        "server's answer, with default limits and with 4 export slots. The comparison is the same program without the "
        "hanging location."
    ),
    sides={
        "trio-spanbatch": lambda setup: _prepared(setup, Limits(), with_hanging=True),
        "alone": lambda setup: _prepared(setup, Limits(), with_hanging=False),
        "4 slots": lambda setup: _prepared(setup, _FEW_SLOTS, with_hanging=True),
        "4 slots, alone": lambda setup: _prepared(setup, _FEW_SLOTS, with_hanging=False),
    },
    rows=(
        Row("With a hanging location: p99 from due to acknowledged", "p99", "ms", "alone", goal=1.2),
        Row("The same, median", "p50", "ms", "alone"),
        Row("With a hanging location, 4 export slots: p99", "p99", "ms", "4 slots, alone", goal=1.2, side="4 slots"),
    ),
    plots=(
        Plot(
            "From due to acknowledged, p99, 49 healthy locations",
            "ms",
            (
                Bar("alone", "alone: p99"),
                Bar("with a hanging one", "trio-spanbatch: p99"),
                Bar("alone, 4 export slots", "4 slots, alone: p99"),
                Bar("with a hanging one, 4 slots", "4 slots: p99"),
            ),
        ),
    ),
)
