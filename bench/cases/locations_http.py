"""Locations over HTTP: ten spans for each, all due at once, with default limits."""

from __future__ import annotations

from collections.abc import Callable

import trio
from opentelemetry.exporter.otlp.proto.http import Compression
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import BatchSpanProcessor

from bench.harness import Bar, Case, Figures, Plot, Round, Row, Setup, Watch, watch
from bench.ids import SpansLost, check_ids
from bench.spans import frozen_agent_spans
from trio_spanbatch import OTLPExporter, SpanBatcher

__all__ = ["CASE"]

_SPANS = 10
# How often a round is repeated, by the number of locations: few spans take no measurable time.
_REPETITIONS = {1: 50, 100: 5, 1_000: 1, 10_000: 1}


def _prepared(setup: Setup, send: Callable[[Setup, list[ReadableSpan]], Watch]) -> Round:
    spans = frozen_agent_spans(_SPANS * setup.size(10_000, 100))

    def run_round() -> Figures:
        return {
            _name(count): _cpu(setup, send, spans[: count * _SPANS], setup.size(repetitions, 1))
            for count, repetitions in _REPETITIONS.items()
        }

    return run_round


def _cpu(
    setup: Setup, send: Callable[[Setup, list[ReadableSpan]], Watch], spans: list[ReadableSpan], repetitions: int
) -> float:
    """Return the microseconds of CPU time per span."""
    seconds = 0.0
    for _ in range(repetitions):
        setup.receiver.forget()
        seconds += send(setup, spans).cpu
        check_ids(setup.receiver.ids(), len(spans))
    return seconds / len(spans) / repetitions * 1e6


def _send(setup: Setup, spans: list[ReadableSpan]) -> Watch:
    return trio.run(_sent, setup.receiver.url, spans)


async def _sent(url: str, spans: list[ReadableSpan]) -> Watch:
    locations = [f"main.agents.spans_{number}" for number in range(len(spans) // _SPANS)]
    async with SpanBatcher(OTLPExporter(url, location_header="x-location")) as batcher:
        with watch() as seen:
            for at, span in enumerate(spans):
                batcher.add_span_nowait(locations[at % len(locations)], span)
            await batcher.flush()
        numbers = batcher.statistics()
    if numbers.retries or numbers.ambiguous:
        raise SpansLost(f"{numbers.retries} requests were repeated, {numbers.ambiguous} spans may have come twice")
    return seen


def _send_with_opentelemetry(setup: Setup, spans: list[ReadableSpan]) -> Watch:
    exporter = OTLPSpanExporter(setup.receiver.url, compression=Compression.NoCompression)
    # The queue holds all spans, as it drops spans that do not fit.
    processor = BatchSpanProcessor(exporter, max_queue_size=max(len(spans), 512), max_export_batch_size=512)
    with watch() as seen:
        for span in spans:
            processor.on_end(span)
        processor.force_flush()
    processor.shutdown()  # type: ignore[no-untyped-call]  # it has no annotations
    return seen


def _name(count: int) -> str:
    return f"{count:,} location{'s' if count > 1 else ''}"


_OURS, _PEER = "trio-spanbatch", "OpenTelemetry"

CASE = Case(
    name="locations_http",
    title="Locations over HTTP",
    about=(
        "1, 100, 1,000 and 10,000 locations with ten spans each, all due at once, with default limits, from adding the "
        "first to the end of `flush`: a request for each location, 64 at once. No request is repeated or times "
        "out. The comparison is `BatchSpanProcessor` with its OTLP/HTTP exporter and the same spans, in batches of 512 "
        "to one location."
    ),
    sides={
        _OURS: lambda setup: _prepared(setup, _send),
        _PEER: lambda setup: _prepared(setup, _send_with_opentelemetry),
    },
    rows=tuple(
        Row(f"{_name(count)} over HTTP: CPU per span", _name(count), "µs", _PEER, goal)
        for count, goal in zip(_REPETITIONS, (None, None, 0.7, 0.9), strict=True)
    ),
    plots=(
        Plot(
            "CPU time per span over HTTP, by number of locations",
            "µs",
            (
                *(Bar(_name(count), f"{_OURS}: {_name(count)}") for count in _REPETITIONS),
                Bar(f"{_PEER}, one location", f"{_PEER}: {_name(10_000)}", is_ours=False),
            ),
        ),
    ),
)
