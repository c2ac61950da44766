"""Spans as messages of opentelemetry-proto, built without the encoder."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1 import common_pb2
from opentelemetry.proto.resource.v1 import resource_pb2
from opentelemetry.proto.trace.v1 import trace_pb2

from trio_spanbatch._spans.records import InstrumentationScope, Resource, Span, SpanContext, SpanEvent, SpanLink


def decimal_digits(value: int) -> str:
    """Return ``str(value)``, which Python refuses for more than 4,300 digits."""
    if abs(value) < 10**4000:
        return str(value)
    high, low = divmod(abs(value), 10**4000)
    return f"{'-' if value < 0 else ''}{decimal_digits(high)}{low:04000d}"


def text(value: str) -> str:
    return re.sub("[\ud800-\udfff]", "\ufffd", value)


def any_value(value: Any) -> common_pb2.AnyValue:
    match value:
        case None:
            return common_pb2.AnyValue()
        case bool():
            return common_pb2.AnyValue(bool_value=value)
        case int() if not -(2**63) <= value < 2**63:
            return common_pb2.AnyValue(string_value=decimal_digits(value))
        case int():
            return common_pb2.AnyValue(int_value=value)
        case float():
            return common_pb2.AnyValue(double_value=value)
        case str():
            return common_pb2.AnyValue(string_value=text(value))
        case bytes() | bytearray():
            return common_pb2.AnyValue(bytes_value=bytes(value))
        case Mapping():
            return common_pb2.AnyValue(kvlist_value=common_pb2.KeyValueList(values=attributes(value)))
        case Sequence():
            return common_pb2.AnyValue(array_value=common_pb2.ArrayValue(values=[any_value(item) for item in value]))
        case _:
            return common_pb2.AnyValue(string_value=text(str(value)))


def attributes(mapping: Mapping[Any, Any]) -> list[common_pb2.KeyValue]:
    under_texts = {str(key): value for key, value in mapping.items()}
    return [common_pb2.KeyValue(key=text(key), value=any_value(value)) for key, value in under_texts.items()]


def _trace_state(context: SpanContext) -> str:
    state = context.trace_state
    return text(state if isinstance(state, str) else ",".join(f"{key}={value}" for key, value in state.items()))


def _remote_flags(context: SpanContext | None) -> int:
    return 0x300 if context is not None and context.is_remote else 0x100


def event_message(event: SpanEvent) -> trace_pb2.Span.Event:
    return trace_pb2.Span.Event(
        name=text(event.name),
        time_unix_nano=event.timestamp,
        attributes=attributes(event.attributes),
        dropped_attributes_count=event.dropped_attributes,
    )


def link_message(link: SpanLink) -> trace_pb2.Span.Link:
    context = link.context
    return trace_pb2.Span.Link(
        trace_id=context.trace_id.to_bytes(16, "big"),
        span_id=context.span_id.to_bytes(8, "big"),
        trace_state=_trace_state(context),
        attributes=attributes(link.attributes),
        dropped_attributes_count=link.dropped_attributes,
        flags=_remote_flags(context) | context.trace_flags if link.flags is None else link.flags,
    )


def span_message(span: Span) -> trace_pb2.Span:
    status = span.status
    return trace_pb2.Span(
        trace_id=span.context.trace_id.to_bytes(16, "big"),
        span_id=span.context.span_id.to_bytes(8, "big"),
        trace_state=_trace_state(span.context),
        parent_span_id=b"" if span.parent is None else span.parent.span_id.to_bytes(8, "big"),
        flags=_remote_flags(span.parent) | span.context.trace_flags if span.flags is None else span.flags,
        name=text(span.name),
        kind=trace_pb2.Span.SpanKind.Value(f"SPAN_KIND_{span.kind.name}"),
        start_time_unix_nano=span.start_time,
        end_time_unix_nano=span.end_time,
        attributes=attributes(span.attributes),
        dropped_attributes_count=span.dropped_attributes,
        events=[event_message(event) for event in span.events],
        dropped_events_count=span.dropped_events,
        links=[link_message(link) for link in span.links],
        dropped_links_count=span.dropped_links,
        status=None
        if status is None
        else trace_pb2.Status(
            code=trace_pb2.Status.StatusCode.Value(f"STATUS_CODE_{status.status_code.name}"),
            message=text(status.description or ""),
        ),
    )


def resource_message(resource: Resource | None) -> resource_pb2.Resource | None:
    if resource is None:
        return None
    return resource_pb2.Resource(
        attributes=attributes(resource.attributes), dropped_attributes_count=resource.dropped_attributes
    )


def scope_message(scope: InstrumentationScope | None) -> common_pb2.InstrumentationScope | None:
    if scope is None:
        return None
    return common_pb2.InstrumentationScope(
        name=text(scope.name),
        version=text(scope.version or ""),
        attributes=attributes(scope.attributes),
        dropped_attributes_count=scope.dropped_attributes,
    )


def request_message(span: Span) -> ExportTraceServiceRequest:
    """Return the request with one span."""
    resource, scope = span.resource, span.instrumentation_scope
    return ExportTraceServiceRequest(
        resource_spans=[
            trace_pb2.ResourceSpans(
                resource=resource_message(resource),
                schema_url=text(resource.schema_url) if resource else "",
                scope_spans=[
                    trace_pb2.ScopeSpans(
                        scope=scope_message(scope),
                        schema_url=text(scope.schema_url or "") if scope else "",
                        spans=[span_message(span)],
                    )
                ],
            )
        ]
    )
