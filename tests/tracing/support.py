"""Helpers for tests of the tracer: its spans as plain values."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import attrs
from google.protobuf.json_format import MessageToDict
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span as SpanMessage

from trio_spanbatch import SpanBatcher
from trio_spanbatch.testing import InMemoryExporter
from trio_spanbatch.tracing import Tracer


def plain(value: AnyValue) -> Any:
    """Return a value as Python's."""
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [plain(item) for item in value.array_value.values]
    if kind == "kvlist_value":
        return attributes(value.kvlist_value.values)
    return None if kind is None else getattr(value, kind)


def attributes(pairs: Any) -> dict[str, Any]:
    found: list[KeyValue] = list(pairs)
    return {pair.key: plain(pair.value) for pair in found}


@attrs.frozen
class Recorded:
    """The delivered spans of a tracer."""

    tracer: Tracer
    exporter: InMemoryExporter

    def all(self) -> dict[str, SpanMessage]:
        """Return the spans by name. Names must be unique."""
        spans = [span.to_message() for found in self.exporter.delivered.values() for span in found]
        assert len({span.name for span in spans}) == len(spans)
        return {span.name: span for span in spans}

    def places(self) -> Mapping[str, str]:
        """Return the location of each span."""
        return {
            span.to_message().name: location for location, found in self.exporter.delivered.items() for span in found
        }

    def parents(self) -> Mapping[str, str | None]:
        """Return the name of each span's parent; None for the root of a trace."""
        spans = self.all()
        names = {(span.trace_id, span.span_id): span.name for span in spans.values()}
        return {
            span.name: names[span.trace_id, span.parent_span_id] if span.parent_span_id else None
            for span in spans.values()
        }

    def outcome(self, name: str) -> str:
        """Return how a span ended, in a word or two."""
        span = self.all()[name]
        status = MessageToDict(span.status)
        cancelled = attributes(span.attributes).get("trio.cancelled")
        events = [attributes(event.attributes)["exception.type"] for event in span.events if event.name == "exception"]
        if not status and not events:
            return "cancelled" if cancelled else "ended"
        assert status["code"] == "STATUS_CODE_ERROR"
        assert not cancelled
        return f"error: {status['message']}, {events}"


@asynccontextmanager
async def recording(**options: Any) -> AsyncIterator[Recorded]:
    """Open a batcher with a tracer; the spans are read after it was left."""
    exporter = InMemoryExporter()
    async with SpanBatcher(exporter) as batcher:
        yield Recorded(Tracer(batcher, **options), exporter)
