"""The check at the end of each round that every span was received exactly once."""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Iterable

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from trio_spanbatch import SpanBatch

__all__ = ["SpansLost", "check_ids", "ids_of_batch", "ids_of_request"]

# A span that trio-spanbatch encoded begins with its ids: a tag and a length, 16 bytes; a tag and a length, 8 bytes.
_SPAN_ID = struct.Struct(">20xQ")


class SpansLost(Exception):
    """Spans were lost, sent twice or invented; the message has the numbers."""


def ids_of_request(request: bytes) -> list[int]:
    """Return the ids of the spans in an OTLP request."""
    message = ExportTraceServiceRequest.FromString(request)
    return [
        int.from_bytes(span.span_id)
        for resource_spans in message.resource_spans
        for scope_spans in resource_spans.scope_spans
        for span in scope_spans.spans
    ]


def ids_of_batch(batch: SpanBatch) -> list[int]:
    """Return the ids of the spans in a batch, without building its request."""
    return [_SPAN_ID.unpack_from(span.payload)[0] for span in batch.spans]


def check_ids(received: Iterable[int], count: int) -> None:
    """Raise `SpansLost` unless exactly the ids 1 to ``count`` were received, each once."""
    times = Counter(received)
    expected = range(1, count + 1)
    missing = sum(1 for span_id in expected if span_id not in times)
    repeated = sum(1 for number in times.values() if number > 1)
    invented = sum(1 for span_id in times if span_id not in expected)
    if missing or repeated or invented:
        raise SpansLost(
            f"of {count} spans, {missing} did not arrive; {repeated} arrived more than once, "
            f"and {invented} were never sent"
        )
