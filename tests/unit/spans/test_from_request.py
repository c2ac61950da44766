"""A batch out of a request's bytes."""

from __future__ import annotations

import re
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, InstrumentationScope, KeyValue
from opentelemetry.proto.resource.v1.resource_pb2 import Resource
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, ScopeSpans, Span

from tests.unit.spans.test_batch import ENCODED_SPANS
from trio_spanbatch import EncodedSpan, InvalidSpanError, SpanBatch
from trio_spanbatch._spans.wire import delimited


def request(*names: str, scope: str = "scope") -> ExportTraceServiceRequest:
    spans = [Span(name=name, trace_id=bytes(range(16)), span_id=bytes(range(8))) for name in names]
    attributes = [KeyValue(key="service.name", value=AnyValue(string_value="agent"))]
    scoped = ScopeSpans(scope=InstrumentationScope(name=scope), spans=spans)
    return ExportTraceServiceRequest(
        resource_spans=[ResourceSpans(resource=Resource(attributes=attributes), scope_spans=[scoped])]
    )


def names_of(batch: SpanBatch) -> list[str]:
    return [span.to_message().name for span in batch.spans]


@given(st.lists(ENCODED_SPANS, max_size=30))
def test_a_batch_out_of_its_own_request_has_the_same_request(spans: list[EncodedSpan]) -> None:
    batch = SpanBatch("here", spans)
    again = SpanBatch.from_request("here", batch.to_request())
    assert (again.location, again.size, again.to_request()) == ("here", batch.size, batch.to_request())
    # The spans of one envelope are together in a request.
    assert sorted(span.payload for span in again.spans) == sorted(span.payload for span in spans)


def test_spans_of_one_envelope_share_their_headers() -> None:
    batch = SpanBatch.from_request("here", request("a", "b").SerializeToString())
    first, second = batch.spans
    assert first.headers is second.headers
    assert b"service.name" in first.headers.resource
    assert b"scope" in first.headers.scope


def test_several_requests_in_a_row_are_one() -> None:
    data = request("a", "b").SerializeToString() + request("c", scope="other").SerializeToString()
    batch = SpanBatch.from_request("here", data)
    assert names_of(batch) == ["a", "b", "c"]
    assert batch.to_message().resource_spans[0].scope_spans[1].scope.name == "other"


def test_fields_that_are_not_known_are_kept() -> None:
    unknown = b"\xfa\x01\x03new"  # field 31
    span = Span(name="a").SerializeToString() + unknown
    scope = ScopeSpans(schema_url="s").SerializeToString() + b"\x12" + bytes([len(span)]) + span + unknown
    resource = unknown + b"\x12" + bytes([len(scope)]) + scope
    data = b"\x0a" + bytes([len(resource)]) + resource
    again = SpanBatch.from_request("here", data).to_request()
    assert again.count(unknown) == 3
    assert ExportTraceServiceRequest.FromString(again) == ExportTraceServiceRequest.FromString(data)


@pytest.mark.parametrize("data", [b"", b"\x0a\x00", request().SerializeToString()])
def test_a_request_without_spans_is_an_empty_batch(data: bytes) -> None:
    assert SpanBatch.from_request("here", data).spans == ()


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_any_kind_of_bytes_is_read(kind: Any) -> None:
    assert names_of(SpanBatch.from_request("here", kind(request("a").SerializeToString()))) == ["a"]


@pytest.mark.parametrize("data", ["text", None, [1], 7])
def test_something_that_is_not_bytes_is_a_type_error(data: Any) -> None:
    with pytest.raises(TypeError, match=r"^data is of type \w+; it must be the bytes of a request$"):
        SpanBatch.from_request("here", data)


def nested(depth: int) -> bytes:
    """Return a request with a span that has arrays in arrays."""
    value = b""
    for _ in range(depth):
        value = delimited(b"\x2a", delimited(b"\x0a", value))
    attribute = delimited(b"\x4a", delimited(b"\x12", value))
    return delimited(b"\x0a", delimited(b"\x12", delimited(b"\x12", attribute)))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b'{"resourceSpans": []}', "byte 0 of the data begins a field with the wire type 3"),
        (b"\x00", "byte 0 of the data begins a field with the number 0"),
        (b"\x0a\x05abc", "byte 0 of the data begins a field that ends 2 bytes after its message; the data may be cut"),
        (b"\x0a\x00\x0a", "byte 3 of the data begins a number that does not end; the data may be cut off"),
        (b"\x0a\x00\x08" + b"\xff" * 11, "byte 3 of the data begins a number that does not end:"),
        (b"\x0a\x03\x0a\x01\x0f", "byte 4 of the data begins a field with the wire type 7"),
        (
            request("a\x00b").SerializeToString().replace(b"\x00b", b"\xffb"),
            "text that is not UTF-8, in the field name",
        ),
        (nested(60), "a message that is nested too deeply"),
        (b"\x0a\x04\xc2\x3e\x01\x0a", "byte 2 of the data begins spans of OTLP before 0.15"),
    ],
)
def test_the_first_bad_byte_is_named(data: bytes, message: str) -> None:
    with pytest.raises(InvalidSpanError, match=re.escape(message)):
        SpanBatch.from_request("here", data)


def test_every_request_that_is_cut_off_inside_an_envelope_is_refused() -> None:
    data = request("a", "b").SerializeToString()
    for end in range(1, len(data)):
        with pytest.raises(InvalidSpanError, match="the data may be cut off"):
            SpanBatch.from_request("here", data[:end])


@given(st.binary(max_size=200), st.integers(0, 150), st.integers(0, 40))
def test_whatever_the_bytes_are_it_is_a_batch_or_an_invalid_span_error(more: bytes, at: int, skipped: int) -> None:
    data = request("a", "b").SerializeToString()
    for tried in (more, data[:at] + more + data[at + skipped :]):
        with suppress(InvalidSpanError):
            batch = SpanBatch.from_request("here", tried)
            assert len(batch.to_request()) == batch.size
            batch.to_message()
