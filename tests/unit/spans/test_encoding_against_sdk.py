"""Spans of OpenTelemetry's SDK, encoded here and by OpenTelemetry's own encoder."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanLimits, Tracer, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import Link, SpanContext, SpanKind, Status, StatusCode, TraceFlags, TraceState

from trio_spanbatch._errors import InvalidSpanError
from trio_spanbatch._spans import records as _records
from trio_spanbatch._spans.batch import SpanBatch
from trio_spanbatch._spans.encoder import SpanEncoder

REMOTE = SpanContext(
    0x11111111111111111111111111111111,
    0x2222222222222222,
    True,
    TraceFlags(1),
    TraceState([("vendor", "x"), ("b", "2")]),
)
LOCAL = SpanContext(0x33333333333333333333333333333333, 0x4444444444444444, False)
NOWHERE = SpanContext(0, 0, False)

ATTRIBUTES: dict[str, Any] = {
    "str": "text",
    "empty": "",
    "multilingual": "计划 naïve données 🚀",
    "bool": True,
    "int": 7,
    "negative": -1,
    "large": 2**62,
    "float": 0.5,
    "nan-free zero": 0.0,
    "bytes": b"\x00\xff",
    "none": None,
    "strs": ["a", "b"],
    "mixed": (1, "a", None, 2.5, [True]),
    "empty list": [],
    "map": {"a": {"b": [1, {"c": None}]}, "d": b"x"},
    "long": "x" * 20_000,
    "cleaned": {1, 2},
}

Program = Callable[[Tracer], None]


def plain(tracer: Tracer) -> None:
    tracer.start_span("plain").end()


def attributes_of_all_kinds(tracer: Tracer) -> None:
    with tracer.start_as_current_span("attributes", attributes=ATTRIBUTES) as span:
        span.add_event("event", ATTRIBUTES)
        span.add_event("bare")
        span.add_link(LOCAL, ATTRIBUTES)


def every_kind(tracer: Tracer) -> None:
    for kind in SpanKind:
        tracer.start_span(kind.name, kind=kind).end()


def every_status(tracer: Tracer) -> None:
    for status in (Status(StatusCode.OK), Status(StatusCode.ERROR), Status(StatusCode.ERROR, "it broke")):
        span = tracer.start_span("status")
        span.set_status(status)
        span.end()


def parents(tracer: Tracer) -> None:
    with tracer.start_as_current_span("root"), tracer.start_as_current_span("child"):
        pass
    for context in (REMOTE, LOCAL):
        parent = trace.set_span_in_context(trace.NonRecordingSpan(context))
        tracer.start_span("continued", context=parent).end()


def links(tracer: Tracer) -> None:
    tracer.start_span("links", links=[Link(REMOTE, {"a": 1}), Link(LOCAL)]).end()


def links_that_lead_nowhere(tracer: Tracer) -> None:
    """The SDK records them if they have attributes or a trace state, as the specification says."""
    said = [
        Link(NOWHERE, {"a": 1}),
        Link(SpanContext(0, 0, True, None, TraceState([("vendor", "x")]))),
        Link(SpanContext(0, 7, False), {"key": 1, "": "dropped"}),
    ]
    with tracer.start_as_current_span("nowhere", links=[*said, Link(NOWHERE)]) as span:
        assert isinstance(span, ReadableSpan)
        assert len(span.links) + span.dropped_links == len(said)


def exceptions(tracer: Tracer) -> None:
    with pytest.raises(ZeroDivisionError), tracer.start_as_current_span("exception"):
        raise ZeroDivisionError("by zero")


def more_than_the_limits(tracer: Tracer) -> None:
    with tracer.start_as_current_span("limits", links=[Link(REMOTE)] * 5) as span:
        for number in range(9):
            span.set_attribute(f"key.{number}", "long text")
            span.add_event("event", {"a": 1, "b": 2, "c": 3})


def odd_times(tracer: Tracer) -> None:
    tracer.start_span("clock stepped back", start_time=10).end(5)
    tracer.start_span("epoch", start_time=0).end(0)


PROGRAMS = (
    plain,
    attributes_of_all_kinds,
    every_kind,
    every_status,
    parents,
    links,
    links_that_lead_nowhere,
    exceptions,
    more_than_the_limits,
    odd_times,
)
LIMITS = SpanLimits(
    max_span_attributes=4,
    max_events=3,
    max_links=2,
    max_event_attributes=2,
    max_link_attributes=2,
    max_attribute_length=5,
)


def run(*programs: Program, resource: Resource, limits: SpanLimits | None = None) -> list[ReadableSpan]:
    """Run programs with one resource and several scopes; return the spans that exporters get."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider(resource=resource, span_limits=limits, shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    for tracer in (
        provider.get_tracer("bare"),
        provider.get_tracer("scope", "1.0", "https://schema/scope", {"scope.attribute": ["a", 1]}),
    ):
        for program in programs:
            assert isinstance(tracer, Tracer)
            program(tracer)
    return list(exporter.get_finished_spans())


def without_what_the_sdk_leaves_out(request: ExportTraceServiceRequest) -> ExportTraceServiceRequest:
    """Clear trace flags, and the trace state of links, which OpenTelemetry's encoder does not send."""
    for span in spans_of(request):
        span.flags &= 0x300
        for link in span.links:
            link.ClearField("trace_state")
            link.flags &= 0x300
    return request


def spans_of(request: ExportTraceServiceRequest) -> Iterator[Any]:
    for resource_spans in request.resource_spans:
        for scope_spans in resource_spans.scope_spans:
            yield from scope_spans.spans


def ours(spans: list[ReadableSpan]) -> ExportTraceServiceRequest:
    encoder = SpanEncoder()
    return SpanBatch("here", [encoder.encode(span) for span in spans]).to_message()


@pytest.mark.parametrize("limits", [None, LIMITS], ids=["no limits", "limits"])
@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.__name__)
def test_an_sdk_span_is_encoded_as_by_the_sdk(program: Program, limits: SpanLimits | None) -> None:
    spans = run(program, resource=Resource({"service.name": "x", "list": ["a", "b"]}, "https://schema"), limits=limits)
    assert spans
    assert without_what_the_sdk_leaves_out(ours(spans)) == encode_spans(spans)


def test_spans_of_several_resources_and_scopes_are_grouped_as_the_sdk_groups_them() -> None:
    resources = [Resource({}), Resource.create({"service.name": "x"}), Resource({"map": {"a": [1]}}, "https://schema")]
    runs = [run(*PROGRAMS, resource=resource) for resource in resources]
    spans = [span for of_each in zip(*runs, strict=True) for span in of_each]
    request = without_what_the_sdk_leaves_out(ours(spans))
    assert request == encode_spans(spans)
    assert [len(resource_spans.scope_spans) for resource_spans in request.resource_spans] == [2, 2, 2]


def test_dropped_counts_of_the_sdk_are_sent() -> None:
    (span, _) = spans_of(ours(run(more_than_the_limits, resource=Resource({}), limits=LIMITS)))
    assert (span.dropped_attributes_count, span.dropped_events_count, span.dropped_links_count) == (5, 6, 3)
    assert span.events[0].dropped_attributes_count == 1


def test_links_are_sent_with_the_trace_state_and_trace_flags_that_the_sdk_leaves_out() -> None:
    (span, _) = spans_of(ours(run(links, resource=Resource({}))))
    assert [(link.trace_state, link.flags) for link in span.links] == [("vendor=x,b=2", 0x301), ("", 0x100)]


def test_a_span_that_the_sdk_still_records_is_refused() -> None:
    span = TracerProvider(shutdown_on_exit=False).get_tracer("scope").start_span("running")
    assert isinstance(span, ReadableSpan)
    with pytest.raises(InvalidSpanError, match="the span has not ended"):
        SpanEncoder().encode(span)
    span.end()
    assert SpanEncoder().encode(span).to_message().name == "running"


def test_a_readable_span_made_by_hand_is_encoded() -> None:
    span = ReadableSpan("by hand", LOCAL, start_time=1, end_time=2, attributes={"a": 1}, resource=Resource({}))
    (message,) = spans_of(ours([span]))
    assert (message.name, len(message.attributes)) == ("by hand", 1)


def test_a_span_that_is_not_recorded_is_refused() -> None:
    with pytest.raises(InvalidSpanError, match="is not a span"):
        SpanEncoder().encode(trace.NonRecordingSpan(LOCAL))  # type: ignore[arg-type]  # on purpose


def as_record(span: ReadableSpan) -> _records.Span:
    def context_of(context: SpanContext) -> _records.SpanContext:
        return _records.SpanContext(
            context.trace_id, context.span_id, context.is_remote, context.trace_flags, context.trace_state
        )

    assert span.context is not None
    assert span.start_time is not None
    assert span.end_time is not None
    scope = span.instrumentation_scope
    assert scope is not None
    return _records.Span(
        span.name,
        context_of(span.context),
        start_time=span.start_time,
        end_time=span.end_time,
        kind=_records.SpanKind(span.kind.value),
        parent=None if span.parent is None else context_of(span.parent),
        attributes=span.attributes,
        events=[
            _records.SpanEvent(event.name, event.timestamp, event.attributes, event.dropped_attributes)
            for event in span.events
        ],
        links=[
            _records.SpanLink(context_of(link.context), link.attributes, link.dropped_attributes) for link in span.links
        ],
        status=_records.Status(_records.StatusCode(span.status.status_code.value), span.status.description),
        resource=_records.Resource(span.resource.attributes, span.resource.schema_url),
        instrumentation_scope=_records.InstrumentationScope(
            scope.name, scope.version, scope.schema_url, scope.attributes
        ),
        dropped_attributes=span.dropped_attributes,
        dropped_events=span.dropped_events,
        dropped_links=span.dropped_links,
    )


def test_a_record_with_the_values_of_an_sdk_span_has_the_same_encoding() -> None:
    encoder = SpanEncoder()
    for span in run(*PROGRAMS, resource=Resource({"service.name": "x"}, "https://schema"), limits=LIMITS):
        theirs, record = encoder.encode(span), encoder.encode(as_record(span))
        assert theirs.payload == record.payload
        assert theirs.headers == record.headers


def test_the_enums_have_the_values_of_opentelemetrys() -> None:
    assert {kind.name: kind.value for kind in SpanKind} | {"UNSPECIFIED": -1} == {
        kind.name: kind.value for kind in _records.SpanKind
    }
    assert {code.name: code.value for code in StatusCode} == {code.name: code.value for code in _records.StatusCode}


def test_a_resource_of_the_sdk_is_encoded_once() -> None:
    resource = Resource({"service.name": "x", "list": ["a"]})
    first, *others = run(plain, links, resource=resource)
    encoder = SpanEncoder()
    header = encoder.encode(first).headers.resource
    # If it were read again, this would be sent.
    resource._attributes._dict["service.name"] = "changed behind its back"
    assert all(encoder.encode(span).headers.resource is header for span in others)
