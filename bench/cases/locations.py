"""Locations: the cost of many of them, in CPU per span and memory per live location."""

from __future__ import annotations

import gc
import tracemalloc
from collections.abc import Iterable
from itertools import cycle

import trio
import trio.testing
from opentelemetry.sdk.trace import ReadableSpan

from bench.harness import Bar, Case, Figures, Plot, Round, Row, Setup, Watch, watch
from bench.ids import check_ids
from bench.in_memory import KeepsIds, add_all
from bench.spans import agent_spans, frozen_agent_spans
from trio_spanbatch import EncodedSpan, Limits, SpanBatcher
from trio_spanbatch._spans.encoder import SpanEncoder

__all__ = ["CASE", "LOCATIONS_ROOM", "sent"]

_COUNTS = (1, 10, 100, 1_000, 10_000)


# Holds all spans at once, so that only the number of locations differs.
_LARGE_BUDGET = Limits(max_pending_bytes=1 << 30)


def _prepared(setup: Setup, limits: Limits, counts: Iterable[int]) -> Round:
    spans = frozen_agent_spans(setup.size(200_000, 5_000))

    def run_round() -> Figures:
        return {
            _name(count): trio.run(sent, spans, setup.size(count, min(count, 100)), limits).cpu / len(spans) * 1e6
            for count in counts
        }

    return run_round


async def sent(spans: list[ReadableSpan], count: int, limits: Limits) -> Watch:
    exporter = KeepsIds()
    async with SpanBatcher(exporter, limits=limits) as batcher:
        with watch() as seen:
            await add_all(batcher, zip(cycle(_locations(count)), spans, strict=False))
            await batcher.flush()
    check_ids(exporter.ids, len(spans))
    return seen


def _prepared_lanes(setup: Setup) -> Round:
    encoder = SpanEncoder()
    spans = [encoder.encode(span) for span in agent_spans(setup.size(10_000, 100))]

    def run_round() -> Figures:
        tracemalloc.start()
        try:
            return trio.run(_lanes, spans)
        finally:
            tracemalloc.stop()

    return run_round


async def _lanes(spans: list[EncodedSpan]) -> Figures:
    """Measure the memory of a location that holds a span, not counting the span, and of an idle location."""
    exporter = KeepsIds()
    locations = _locations(len(spans))
    async with SpanBatcher(exporter) as batcher:
        before = _traced()
        for location, span in zip(locations, spans, strict=True):
            batcher.add_span_nowait(location, span)
        await trio.testing.wait_all_tasks_blocked()
        holding = _traced() - before
        await batcher.flush()
        await trio.testing.wait_all_tasks_blocked()
        # The ids belong to the exporter and are not counted.
        check_ids(exporter.ids, len(spans))
        exporter.ids.clear()
        idle = _traced() - before
    return {"holding": holding / len(spans), "idle": idle / len(spans)}


def _traced() -> int:
    gc.collect()
    return tracemalloc.get_traced_memory()[0]


def _locations(count: int) -> list[str]:
    return [f"main.agents.spans_{number}" for number in range(count)]


def _name(count: int) -> str:
    return f"{count:,} location{'s' if count > 1 else ''}"


_SIDE, _DEFAULT_SIDE = "trio-spanbatch", "default byte budget"

CASE = Case(
    name="locations",
    title="Locations",
    about=(
        "The same 200,000 spans, distributed in turn over 1, 10, 100, 1,000 and 10,000 locations, with an exporter in "
        "memory, from adding the first to the end of `flush`, encoding included. The spans are 105 MB. The budget for "
        "pending bytes holds all of them, or is the default, 64 MiB, and the program waits for space. The memory of a "
        "location is measured with `tracemalloc`, with 10,000 locations."
    ),
    sides={
        _SIDE: lambda setup: _prepared(setup, _LARGE_BUDGET, _COUNTS),
        _DEFAULT_SIDE: lambda setup: _prepared(setup, Limits(), (1, 10_000)),
        "lanes": _prepared_lanes,
    },
    rows=(
        *(
            Row(f"{_name(count)}: CPU per span", _name(count), "µs", f"{_SIDE}: {_name(1)}", goal)
            for count, goal in zip(_COUNTS[1:], (None, None, None, 1.5), strict=True)
        ),
        Row(
            f"{_name(10_000)}, default byte budget: CPU per span",
            _name(10_000),
            "µs",
            f"{_DEFAULT_SIDE}: {_name(1)}",
            goal=1.5,
            side=_DEFAULT_SIDE,
        ),
        Row("Memory of a live location that holds a span, without the span", "holding", "bytes", side="lanes"),
        Row("Memory of a live location that is idle", "idle", "bytes", side="lanes"),
    ),
    plots=(
        Plot(
            "CPU time per span, by number of locations",
            "µs",
            tuple(Bar(_name(count), f"trio-spanbatch: {_name(count)}") for count in _COUNTS),
        ),
    ),
)
