"""Differences from the SDK's exporter in the encoding of spans, and from the specification.

docs/opentelemetry.md lists the former in a table. Each test encodes the same ``ReadableSpan`` with both encoders.
"""

from __future__ import annotations

import re
from typing import Any

import pytest
import trio.testing
from google.protobuf.message import DecodeError
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import Link, SpanContext, Status, StatusCode, TraceFlags, TraceState

from tests.support.paths import PROJECT
from trio_spanbatch import SpanBatch, SpanBatcher
from trio_spanbatch._spans.encoder import SpanEncoder
from trio_spanbatch.opentelemetry import BatcherSpanProcessor
from trio_spanbatch.testing import InMemoryExporter

PAGE = PROJECT / "docs" / "opentelemetry.md"
CONTEXT = SpanContext(1, 2, False, TraceFlags(3), TraceState([("vendor", "x")]))
SCOPE = InstrumentationScope("scope")


def make_span(name: Any = "work", **fields: Any) -> ReadableSpan:
    defaults: dict[str, Any] = {
        "context": CONTEXT,
        "start_time": 1,
        "end_time": 2,
        "resource": Resource({}),
        "instrumentation_scope": SCOPE,
    }
    return ReadableSpan(name, **defaults | fields)


def the_only_span(request: ExportTraceServiceRequest) -> Any:
    ((scope_spans,),) = (resource_spans.scope_spans for resource_spans in request.resource_spans)
    (span,) = scope_spans.spans
    return span


def ours_of(span: ReadableSpan) -> ExportTraceServiceRequest:
    return SpanBatch("here", [SpanEncoder().encode(span)]).to_message()


def both(**fields: Any) -> tuple[Any, Any]:
    """Return a span as encoded by the SDK's exporter and by this library."""
    span = make_span(**fields)
    return the_only_span(encode_spans([span])), the_only_span(ours_of(span))


def keys(message: Any) -> list[str]:
    return [attribute.key for attribute in message.attributes]


def nested(depth: int) -> Any:
    return {"a": nested(depth - 1)} if depth else 1


def test_a_spans_own_trace_flags_are_sent() -> None:
    theirs, ours = both(parent=SpanContext(1, 3, True, TraceFlags(1)))
    assert (theirs.flags, ours.flags) == (0x300, 0x303)


def test_a_links_trace_flags_and_trace_state_are_sent() -> None:
    theirs, ours = both(links=[Link(CONTEXT)])
    assert (theirs.links[0].flags, theirs.links[0].trace_state) == (0x100, "")
    assert (ours.links[0].flags, ours.links[0].trace_state) == (0x103, "vendor=x")


def test_an_int_beyond_64_bits_is_sent_as_its_digits() -> None:
    theirs, ours = both(attributes={"large": 2**64, "fine": 1})
    assert (keys(theirs), theirs.dropped_attributes_count) == (["fine"], 0)
    assert (keys(ours), ours.attributes[0].value.string_value) == (["large", "fine"], "18446744073709551616")


def test_a_lone_surrogate_in_an_attribute_is_replaced() -> None:
    theirs, ours = both(attributes={"text": "a\ud800", "fine": 1})
    assert (keys(theirs), theirs.dropped_attributes_count) == (["fine"], 0)
    assert ours.attributes[0].value.string_value == "a\ufffd"


def test_a_lone_surrogate_in_a_name_or_a_description_is_replaced() -> None:
    text = "a\ud800"
    for span in (make_span(text), make_span(status=Status(StatusCode.ERROR, text))):
        with pytest.raises(UnicodeEncodeError):
            encode_spans([span])
        ours = the_only_span(ours_of(span))
        assert "a\ufffd" in (ours.name, ours.status.message)


def test_a_span_without_a_scope_is_sent_without_one() -> None:
    span = make_span(instrumentation_scope=None)
    theirs, ours = (request.resource_spans[0].scope_spans[0] for request in (encode_spans([span]), ours_of(span)))
    assert (theirs.HasField("scope"), ours.HasField("scope")) == (True, False)
    empty = make_span(instrumentation_scope=InstrumentationScope(""))
    theirs, ours = (request.resource_spans[0].scope_spans[0] for request in (encode_spans([empty]), ours_of(empty)))
    assert (theirs.HasField("scope"), ours.HasField("scope")) == (True, True)


def test_an_attribute_nested_too_deep_is_dropped_and_counted() -> None:
    refused, lost, left_out = (make_span(attributes={"deep": nested(depth), "fine": 1}) for depth in (32, 33, 40))
    with pytest.raises(DecodeError):
        ExportTraceServiceRequest.FromString(encode_spans([refused]).SerializeToString())
    with pytest.raises(DecodeError):
        encode_spans([lost])
    theirs = the_only_span(encode_spans([left_out]))
    assert (keys(theirs), theirs.dropped_attributes_count) == (["fine"], 0)
    for span in (refused, lost, left_out):
        ours = the_only_span(ours_of(span))
        assert (keys(ours), ours.dropped_attributes_count) == (["fine"], 1)


def test_a_list_over_16_mib_is_dropped_and_counted() -> None:
    text = "x" * 1024 * 1024
    theirs, ours = both(attributes={"large": [text] * 16, "fine": 1})
    assert keys(theirs) == ["large", "fine"]
    assert (keys(ours), ours.dropped_attributes_count) == (["fine"], 1)


@pytest.mark.parametrize(("name", "theirs", "ours"), [(None, "", ""), (b"x", "x", "b'x'"), (5, None, "5")])
def test_a_name_that_is_not_a_string_is_its_str(name: Any, theirs: str | None, ours: str) -> None:
    span = make_span(name)
    if theirs is None:
        with pytest.raises(TypeError):
            encode_spans([span])
    else:
        assert the_only_span(encode_spans([span])).name == theirs
    assert the_only_span(ours_of(span)).name == ours


def test_each_difference_in_the_table_has_its_test() -> None:
    _, _, table = PAGE.read_text().partition("<!-- table: differences -->\n")
    rows = table.partition("\n\n")[0].splitlines()[2:]
    named = [re.findall(r"`(test_\w+)`", row) for row in rows]
    assert len(named) > 5
    assert [name for names in named for name in names if not callable(globals().get(name))] == []
    assert all(len(names) == 1 for names in named)


async def test_shutdown_only_stops_the_intake_and_the_end_of_the_batcher_delivers() -> None:
    exporter = InMemoryExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    tracer = provider.get_tracer("scope")
    async with SpanBatcher(exporter) as batcher:
        provider.add_span_processor(BatcherSpanProcessor(batcher))
        tracer.start_span("before").end()
        provider.shutdown()
        tracer.start_span("after").end()
        await trio.testing.wait_all_tasks_blocked()
        assert exporter.delivered == {}
    assert [span.to_message().name for span in exporter.delivered["default"]] == ["before"]
