"""The path of a span: the CPU time of each part, from adding the span to its acknowledgement."""

from __future__ import annotations

import zlib

import trio
from opentelemetry.sdk.trace import ReadableSpan

from bench.harness import Bar, Case, Figures, Plot, Round, Row, Setup, Watch, watch
from bench.ids import check_ids
from bench.in_memory import KeepsIds
from bench.limits import LARGE_LIMITS
from bench.spans import frozen_agent_spans
from trio_spanbatch import EncodedSpan, OTLPExporter, SpanBatch, SpanBatcher, SpanExporter
from trio_spanbatch._http.body import GZIP_LEVEL
from trio_spanbatch._spans.encoder import SpanEncoder

__all__ = ["CASE"]

_BATCH = 512

# The parts, in the order in which a span passes through them.
_READING, _ENCODING, _ACCEPTING = "reading the SDK's span", "the rest of encoding it", "accepting it"
_BATCHING, _JOINING, _EXCHANGE = "sealing, delivering and accounting", "joining the request", "the HTTP exchange"
_GZIP = "gzip, if enabled"
_PARTS = (_READING, _ENCODING, _ACCEPTING, _BATCHING, _JOINING, _EXCHANGE)


def _prepared(setup: Setup) -> Round:
    spans = frozen_agent_spans(setup.size(20_480, 1_024))

    def run_round() -> Figures:
        reading = _read(spans)
        with watch() as encoding:
            encoder = SpanEncoder()
            encoded = [encoder.encode(span) for span in spans]
        batches = [SpanBatch("default", encoded[at : at + _BATCH], size=0) for at in range(0, len(encoded), _BATCH)]
        with watch() as joining:
            requests = [batch.to_request() for batch in batches]
        with watch() as compressing:
            for request in requests:
                zlib.compress(request, GZIP_LEVEL)
        del batches, requests
        kept = KeepsIds()
        accepting, batching = trio.run(_added_and_flushed, kept, encoded)
        check_ids(kept.ids, len(spans))
        setup.receiver.forget()
        _, sending = trio.run(_added_and_flushed, OTLPExporter(setup.receiver.url), encoded)
        check_ids(setup.receiver.ids(), len(spans))
        seconds = {
            _READING: reading.cpu,
            _ENCODING: encoding.cpu - reading.cpu,
            _ACCEPTING: accepting.cpu,
            _BATCHING: batching.cpu,
            _JOINING: joining.cpu,
            _EXCHANGE: sending.cpu - batching.cpu - joining.cpu,
        }
        figures = {part: cpu / len(spans) * 1e6 for part, cpu in seconds.items()}
        return figures | {"total": sum(figures.values()), _GZIP: compressing.cpu / len(spans) * 1e6}

    return run_round


def _read(spans: list[ReadableSpan]) -> Watch:
    """Read all properties of each span that are encoded."""
    with watch() as seen:
        for span in spans:
            _ = span.parent, span.context, span.name, span.kind, span.start_time, span.end_time
            _ = span.attributes, span.dropped_attributes, span.events, span.dropped_events
            _ = span.links, span.dropped_links, span.status, span.resource, span.instrumentation_scope
    return seen


async def _added_and_flushed(exporter: SpanExporter, spans: list[EncodedSpan]) -> tuple[Watch, Watch]:
    async with SpanBatcher(exporter, limits=LARGE_LIMITS) as batcher:
        with watch() as accepting:
            for span in spans:
                batcher.add_span_nowait("default", span)
        with watch() as batching:
            await batcher.flush()
    return accepting, batching


def _capitalized(part: str) -> str:
    return part[0].upper() + part[1:]


CASE = Case(
    name="breakdown",
    title="The path of a span",
    about=(
        "20,480 spans with 11 attributes and an event, one location, batches of 512: the CPU time of each part of the "
        "path, measured one after the other and by subtraction. In the row of a part, the ratio is its share of the "
        "total."
    ),
    sides={"trio-spanbatch": _prepared},
    rows=(
        *(Row(f"{_capitalized(part)}: CPU per span", part, "µs", "trio-spanbatch: total") for part in _PARTS),
        Row("Total: CPU per span", "total", "µs"),
        Row(f"{_capitalized(_GZIP)}: CPU per span", _GZIP, "µs", "trio-spanbatch: total"),
    ),
    plots=(Plot("CPU time per span", "µs", tuple(Bar(part, f"trio-spanbatch: {part}") for part in (*_PARTS, _GZIP))),),
)
