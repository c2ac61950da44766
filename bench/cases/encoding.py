"""Encoding: spans of the SDK, into the bytes of requests of 512 spans."""

from __future__ import annotations

from collections.abc import Callable

from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan

from bench.harness import Bar, Case, Figures, Plot, Round, Row, Setup, watch
from bench.spans import SPANS
from trio_spanbatch import SpanBatch
from trio_spanbatch._spans.encoder import SpanEncoder

__all__ = ["CASE"]

_BATCH = 512


def _requests(spans: list[ReadableSpan]) -> list[bytes]:
    # As in a batcher: one encoder for all spans, each span by itself, and each batch joined when it is sealed. The size
    # of the request is then known from accepting the spans.
    encoder = SpanEncoder()
    return [
        SpanBatch("default", [encoder.encode(span) for span in batch], size=0).to_request() for batch in _batches(spans)
    ]


def _sdk_requests(spans: list[ReadableSpan]) -> list[bytes]:
    return [encode_spans(batch).SerializeToString() for batch in _batches(spans)]


def _batches(spans: list[ReadableSpan]) -> list[list[ReadableSpan]]:
    return [spans[at : at + _BATCH] for at in range(0, len(spans), _BATCH)]


def _prepared(setup: Setup, encode: Callable[[list[ReadableSpan]], list[bytes]]) -> Round:
    spans = {kind: make(setup.size(8 * _BATCH, _BATCH)) for kind, make in SPANS.items()}

    def run_round() -> Figures:
        figures = {}
        for kind, some in spans.items():
            with watch() as seen:
                requests = encode(some)
            figures[kind] = seen.cpu / len(some) * 1e6
            _check(requests, _sdk_requests(some))
        return figures

    return run_round


def _check(requests: list[bytes], wanted: list[bytes]) -> None:
    for request, other in zip(requests, wanted, strict=True):
        ours = ExportTraceServiceRequest.FromString(request)
        for resource_spans in ours.resource_spans:
            for scope_spans in resource_spans.scope_spans:
                for span in scope_spans.spans:
                    span.flags &= ~0xFF  # the span's own trace flags, which the SDK leaves out
        if ours != ExportTraceServiceRequest.FromString(other):
            raise AssertionError("the request is not what the SDK makes of the same spans")


CASE = Case(
    name="encoding",
    title="Encoding",
    about=(
        "4,096 spans of OpenTelemetry's SDK, encoded into requests of 512. The comparison is the SDK's own "
        "`encode_spans(...).SerializeToString()`. The two messages are checked to be equal, field by field."
    ),
    sides={
        "trio-spanbatch": lambda setup: _prepared(setup, _requests),
        "OpenTelemetry": lambda setup: _prepared(setup, _sdk_requests),
    },
    rows=tuple(Row(f"Encoding, {kind}: CPU per span", kind, "µs", "OpenTelemetry", goal=1 / 5) for kind in SPANS),
    plots=(
        Plot(
            "CPU time to encode a span",
            "µs",
            tuple(
                Bar(f"{kind}: {side}", f"{side}: {kind}", is_ours=side == "trio-spanbatch")
                for kind in SPANS
                for side in ("trio-spanbatch", "OpenTelemetry")
            ),
        ),
    ),
)
