"""Accepting: `add_span_nowait` without the encoding, as the spans are already encoded."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Iterable, Iterator
from itertools import cycle
from typing import TypeAlias

import attrs
import trio

from bench.harness import Case, Figures, Limit, Round, Row, Setup, Watch, watch
from bench.ids import check_ids, ids_of_batch
from bench.in_memory import KeepsIds
from bench.limits import LARGE_LIMITS
from bench.spans import agent_spans
from trio_spanbatch import EncodedSpan, SpanBatch, SpanBatcher
from trio_spanbatch._spans.encoder import SpanEncoder

__all__ = ["CASE"]

_Run: TypeAlias = Callable[[list[EncodedSpan], list[str]], Awaitable[Watch]]

# The figures, with their numbers of locations.
_FIGURES = {"1 location": 1, "50 locations in turn": 50}


def _prepared(setup: Setup, run: _Run) -> Round:
    spans = _encoded(setup)

    def run_round() -> Figures:
        return {
            name: trio.run(run, spans, _locations(count)).cpu / len(spans) * 1e6 for name, count in _FIGURES.items()
        }

    return run_round


async def _added(spans: list[EncodedSpan], locations: list[str]) -> Watch:
    exporter = KeepsIds()
    async with SpanBatcher(exporter, limits=LARGE_LIMITS) as batcher:
        with watch() as seen:
            # There is no checkpoint here, so nothing else runs.
            for location, span in zip(cycle(locations), spans, strict=False):
                batcher.add_span_nowait(location, span)
        await batcher.flush()
    check_ids(exporter.ids, len(spans))
    return seen


@attrs.define(eq=False)
class _Record:
    """The counts of a location, and its channel."""

    send: trio.MemorySendChannel[EncodedSpan]
    receive: trio.MemoryReceiveChannel[EncodedSpan]
    accepted: int = 0
    queued: int = 0


async def _sent(spans: list[EncodedSpan], locations: list[str]) -> Watch:
    records = {location: _Record(*trio.open_memory_channel[EncodedSpan](math.inf)) for location in locations}
    with watch() as seen:
        for location, span in zip(cycle(locations), spans, strict=False):
            record = records[location]
            record.accepted += 1
            record.queued += 1
            record.send.send_nowait(span)
    await trio.lowlevel.checkpoint()
    check_ids(ids_of_batch(SpanBatch("all", _received(records.values()))), len(spans))
    return seen


def _received(records: Iterable[_Record]) -> Iterator[EncodedSpan]:
    for record in records:
        yield from (record.receive.receive_nowait() for _ in range(record.queued))


def _encoded(setup: Setup) -> list[EncodedSpan]:
    encoder = SpanEncoder()
    return [encoder.encode(span) for span in agent_spans(setup.size(50_000, 2_000))]


def _locations(count: int) -> list[str]:
    return [f"main.agents.spans_{number}" for number in range(count)]


CASE = Case(
    name="accepting",
    title="Accepting",
    about=(
        "50,000 spans that are already encoded, each added with `add_span_nowait`, while nothing else runs. The "
        "comparison is, for each span, a look-up of a record in a dict, two additions to it, and `send_nowait` on its "
        "memory channel."
    ),
    sides={
        "trio-spanbatch": lambda setup: _prepared(setup, _added),
        "bare channel": lambda setup: _prepared(setup, _sent),
    },
    rows=(
        *(Row(f"Accepting, {name}: CPU per span", name, "µs", Limit(2.0), goal=1.0) for name in _FIGURES),
        *(Row(f"Accepting, {name}: CPU per span", name, "µs", "bare channel", goal=2.0) for name in _FIGURES),
    ),
)
