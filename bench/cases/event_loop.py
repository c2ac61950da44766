"""The event loop: how late a program's other tasks are while spans are added and sent.

A ticker is due each millisecond, at times that are fixed beforehand. When it wakes late, each time that has passed
counts with its own lag. Otherwise a stall of 50 ms would be one late tick among thousands, and the longer a stall, the
fewer ticks would show it (coordinated omission). So the p99.9 is the lag that a thousandth of all times exceed. All
figures include the delays of the machine, and those of trio, which wakes up to a millisecond late because `epoll_wait`
counts in milliseconds. The idle side shows how large these delays are.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeAlias

import trio
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import BatchSpanProcessor

from bench.harness import Bar, Case, Figures, Limit, Plot, Round, Row, Setup
from bench.ids import check_ids
from bench.limits import LARGE_LIMITS
from bench.spans import frozen_agent_spans
from trio_spanbatch import BatchPolicy, OTLPExporter, SpanBatcher

__all__ = ["CASE"]

_Add: TypeAlias = Callable[[ReadableSpan], None]
_Measured: TypeAlias = Callable[[list[ReadableSpan], int], Awaitable[list[float]]]

_TICK = 0.001
_DEFAULT = BatchPolicy()
# 4 MiB are 8,000 spans: ten per millisecond fill several such batches in a round.
_LARGE = BatchPolicy(max_spans=1_000_000, max_bytes=4 * 1024 * 1024)


def _prepared(setup: Setup, policy: BatchPolicy, compression: str | None, spans_per_tick: int) -> Round:
    async def measured(spans: list[ReadableSpan], ticks: int) -> list[float]:
        exporter = OTLPExporter(setup.receiver.url, compression=compression)
        async with SpanBatcher(exporter, batch=policy, limits=LARGE_LIMITS) as batcher:
            lags = await _lags(lambda span: batcher.add_span_nowait("default", span), spans, ticks)
            await batcher.flush()
        return lags

    return _rounds(setup, measured, spans_per_tick)


def _prepared_opentelemetry(setup: Setup) -> Round:
    async def measured(spans: list[ReadableSpan], ticks: int) -> list[float]:
        # The queue holds all spans, as it drops spans that do not fit.
        processor = BatchSpanProcessor(OTLPSpanExporter(setup.receiver.url), max_queue_size=len(spans))
        lags = await _lags(processor.on_end, spans, ticks)
        # The rest is not measured, on either side.
        await trio.to_thread.run_sync(processor.shutdown)
        return lags

    return _rounds(setup, measured, 2)


def _prepared_idle(setup: Setup) -> Round:
    async def measured(spans: list[ReadableSpan], ticks: int) -> list[float]:
        return await _lags(lambda _: None, spans, ticks)

    return _rounds(setup, measured, 0)


def _rounds(setup: Setup, measured: _Measured, spans_per_tick: int) -> Round:
    ticks = setup.size(5_000, 500)
    spans = frozen_agent_spans(ticks * spans_per_tick)

    def run_round() -> Figures:
        setup.receiver.forget()
        lags = sorted(trio.run(measured, spans, ticks))
        check_ids(setup.receiver.ids(), len(spans))
        return {
            "p50": lags[len(lags) // 2] * 1e3,
            "p99.9": lags[len(lags) * 999 // 1000] * 1e3,
            "longest": lags[-1] * 1e3,
        }

    return run_round


async def _lags(add: _Add, spans: list[ReadableSpan], ticks: int) -> list[float]:
    """Add the same number of ``spans`` in each tick. Return how late each tick was, in seconds."""
    lags: list[float] = []
    start = trio.current_time() + _TICK
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_tick, lags, start, ticks)
        nursery.start_soon(_add_all, add, spans, start, ticks)
    return lags


async def _tick(lags: list[float], start: float, ticks: int) -> None:
    while len(lags) < ticks:
        await trio.sleep_until(start + len(lags) * _TICK)
        now = trio.current_time()
        while len(lags) < ticks and (lag := now - start - len(lags) * _TICK) >= 0:
            lags.append(lag)


async def _add_all(add: _Add, spans: list[ReadableSpan], start: float, ticks: int) -> None:
    spans_per_tick = len(spans) // ticks
    for number in range(ticks):
        # If this is late, `sleep_until` returns at once, so it catches up.
        await trio.sleep_until(start + number * _TICK)
        for span in spans[number * spans_per_tick : (number + 1) * spans_per_tick]:
            add(span)


_THEIRS, _IDLE, _GZIP = "OpenTelemetry", "idle", "trio-spanbatch, gzip"
_4_MIB, _4_MIB_GZIP = "trio-spanbatch, 4 MiB", "trio-spanbatch, 4 MiB, gzip"
_LAG, _STALL = "Lag of a 1 ms ticker", "Longest stall"

CASE = Case(
    name="event_loop",
    title="The event loop",
    about=(
        "A program adds two spans each millisecond for 5 s, and a ticker that is due each millisecond measures how "
        "late it is: each of the 5,000 times counts, including those that passed before it woke. The comparisons are "
        "the same program with `BatchSpanProcessor` and its thread, and the same program without spans. For batches "
        "of 4 MiB, the program adds ten spans each millisecond."
    ),
    sides={
        "trio-spanbatch": lambda setup: _prepared(setup, _DEFAULT, None, 2),
        _THEIRS: _prepared_opentelemetry,
        _IDLE: _prepared_idle,
        _GZIP: lambda setup: _prepared(setup, _DEFAULT, "gzip", 2),
        _4_MIB: lambda setup: _prepared(setup, _LARGE, None, 10),
        _4_MIB_GZIP: lambda setup: _prepared(setup, _LARGE, "gzip", 10),
    },
    rows=(
        Row(f"{_LAG}: p99.9", "p99.9", "ms", _THEIRS, goal=1 / 4),
        Row(f"{_LAG}: p99.9", "p99.9", "ms", Limit(3.0), goal=1.0),
        Row(f"{_LAG}: p99.9, gzip", "p99.9", "ms", _THEIRS, side=_GZIP),
        Row(f"{_LAG}: median", "p50", "ms", _THEIRS),
        Row(_STALL, "longest", "ms", _THEIRS),
        Row(f"{_STALL}, gzip", "longest", "ms", _THEIRS, side=_GZIP),
        Row(f"{_STALL}, 10,000 spans per second in batches of 4 MiB", "longest", "ms", _IDLE, side=_4_MIB),
        Row(f"{_STALL}, the same with gzip", "longest", "ms", _IDLE, side=_4_MIB_GZIP),
        Row("Without spans: p99.9", "p99.9", "ms", side=_IDLE),
    ),
    plots=tuple(
        Plot(
            title,
            "ms",
            (
                Bar("without spans", f"{_IDLE}: {figure}", is_ours=False),
                Bar("OpenTelemetry", f"{_THEIRS}: {figure}", is_ours=False),
                *(Bar(side, f"{side}: {figure}") for side in ("trio-spanbatch", _GZIP, _4_MIB, _4_MIB_GZIP)),
            ),
        )
        for title, figure in (("Lag of a 1 ms ticker, p99.9", "p99.9"), ("Longest stall", "longest"))
    ),
)
