"""OTLP JSON is read as protobuf reads it."""

from __future__ import annotations

import base64
import json
import math
import re
from collections.abc import Mapping
from typing import Any

import pytest
from google.protobuf import json_format
from google.protobuf.message import Message
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.resource.v1.resource_pb2 import Resource as ResourceMessage

from tests.cli.json_support import DOCUMENTS, document_with, read, read_span, read_value, span_json
from tests.support.span_strategies import WELL_FORMED_TEXTS
from trio_spanbatch._spans.batch import SpanBatch
from trio_spanbatch._spans.encoder import SpanEncoder
from trio_spanbatch._spans.records import Span, SpanKind, Status, StatusCode
from trio_spanbatch.cli.otlp_json import read_request

IDS = ("traceId", "spanId", "parentSpanId", "trace_id", "span_id", "parent_span_id")


def with_base64_ids(value: Any) -> Any:
    """Return OTLP JSON as protobuf's JSON, where ids are base64, as all bytes are."""
    if isinstance(value, list):
        return [with_base64_ids(item) for item in value]
    if not isinstance(value, dict):
        return value
    return {
        key: base64.b64encode(bytes.fromhex(item)).decode()
        if key in IDS and isinstance(item, str)
        else with_base64_ids(item)
        for key, item in value.items()
    }


def read_by_protobuf(document: Any) -> ExportTraceServiceRequest:
    return json_format.ParseDict(with_base64_ids(document), ExportTraceServiceRequest(), ignore_unknown_fields=True)


def request_of(spans: list[Span]) -> ExportTraceServiceRequest:
    encoder = SpanEncoder()
    return SpanBatch("here", [encoder.encode(span) for span in spans]).to_message()


def same_bytes(message: Message, other: Message) -> bool:
    """Compare messages that may contain NaN, which is not equal to itself."""
    return message.SerializeToString(deterministic=True) == other.SerializeToString(deterministic=True)


def envelopes_by_content(request: ExportTraceServiceRequest) -> dict[tuple[bytes, bytes], list[bytes]]:
    """Return the spans under each resource and scope: requests may group spans differently."""
    spans: dict[tuple[bytes, bytes], list[bytes]] = {}
    for resource_spans in request.resource_spans:
        for scope_spans in resource_spans.scope_spans:
            messages = [span.SerializeToString(deterministic=True) for span in scope_spans.spans]
            scope_spans.ClearField("spans")
            key = scope_spans.SerializeToString(deterministic=True)
            resource_spans.ClearField("scope_spans")
            spans.setdefault((resource_spans.SerializeToString(deterministic=True), key), []).extend(messages)
    return {key: messages for key, messages in spans.items() if messages}


@pytest.mark.parametrize("document", DOCUMENTS, ids=range(len(DOCUMENTS)))
def test_recorded_requests_round_trip(document: Any) -> None:
    assert request_of(read(document)) == read_by_protobuf(document)


# Documents made by Hypothesis


def optional(**fields: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    """Objects in which any of the fields may be missing, null, or named in snake_case."""

    def renamed(message: dict[str, Any], snake: bool) -> dict[str, Any]:
        if not snake:
            return message
        return {re.sub("[A-Z]", lambda c: f"_{c.group().lower()}", name): value for name, value in message.items()}

    nullable = {name: st.one_of(values, values, values, st.none()) for name, values in fields.items()}
    unknown = {"unknownField": st.just({"nested": [1, None]})}
    return st.builds(renamed, st.fixed_dictionaries({}, optional=nullable | unknown), st.booleans())


def required(
    ids: dict[str, st.SearchStrategy[Any]], **fields: st.SearchStrategy[Any]
) -> st.SearchStrategy[dict[str, Any]]:
    return st.builds(lambda first, second: {**first, **second}, st.fixed_dictionaries(ids), optional(**fields))


def numbers(first: int, last: int) -> st.SearchStrategy[Any]:
    whole = st.integers(first, last)
    return st.one_of(whole, whole.map(str), st.integers(max(first, -1000), min(last, 1000)).map(float))


def hex_ids(size: int) -> st.SearchStrategy[str]:
    ids = st.binary(min_size=size, max_size=size).filter(any).map(bytes.hex)
    return st.one_of(ids, ids.map(str.upper))


def unique_keys(items: st.SearchStrategy[dict[str, Any]]) -> st.SearchStrategy[list[dict[str, Any]]]:
    return st.lists(items, max_size=3, unique_by=lambda item: item["key"])


DOUBLES = st.one_of(
    st.floats(allow_nan=False, allow_infinity=False),
    st.floats(allow_nan=False, allow_infinity=False).map(str),
    st.integers(-(2**53), 2**53),
    st.sampled_from(["NaN", "Infinity", "-Infinity"]),
)
TIMES, COUNTS = numbers(0, 2**64 - 1), numbers(0, 2**32 - 1)
BASE64 = st.binary().map(base64.b64encode).map(bytes.decode)

ANY_VALUES: st.SearchStrategy[dict[str, Any]] = st.recursive(
    st.one_of(
        st.just({}),
        st.builds(lambda value: {"stringValue": value}, WELL_FORMED_TEXTS),
        st.builds(lambda value: {"string_value": value}, WELL_FORMED_TEXTS),
        st.builds(lambda value: {"boolValue": value}, st.booleans()),
        st.builds(lambda value: {"intValue": value}, numbers(-(2**63), 2**63 - 1)),
        st.builds(lambda value: {"doubleValue": value}, DOUBLES),
        st.builds(lambda value: {"bytesValue": value}, BASE64),
    ),
    lambda values: st.one_of(
        st.builds(lambda items: {"arrayValue": {"values": items}}, st.lists(values, max_size=3)),
        st.builds(
            lambda items: {"kvlistValue": {"values": items}},
            unique_keys(st.fixed_dictionaries({"key": WELL_FORMED_TEXTS, "value": values})),
        ),
        st.just({"arrayValue": {}}),
        st.just({"kvlist_value": {}}),
    ),
    max_leaves=6,
)
ATTRIBUTES = unique_keys(st.fixed_dictionaries({"key": WELL_FORMED_TEXTS, "value": ANY_VALUES}))
EVENTS = optional(timeUnixNano=TIMES, name=WELL_FORMED_TEXTS, attributes=ATTRIBUTES, droppedAttributesCount=COUNTS)
LINKS = required(
    {"traceId": hex_ids(16), "spanId": hex_ids(8)},
    traceState=WELL_FORMED_TEXTS,
    attributes=ATTRIBUTES,
    droppedAttributesCount=COUNTS,
    flags=COUNTS,
)
SPANS = required(
    {"traceId": hex_ids(16), "spanId": hex_ids(8)},
    parentSpanId=st.just("") | hex_ids(8),
    traceState=WELL_FORMED_TEXTS,
    flags=COUNTS,
    name=WELL_FORMED_TEXTS,
    kind=st.one_of(st.integers(0, 5), st.sampled_from([f"SPAN_KIND_{kind.name}" for kind in SpanKind])),
    startTimeUnixNano=TIMES,
    endTimeUnixNano=TIMES,
    attributes=ATTRIBUTES,
    droppedAttributesCount=COUNTS,
    events=st.lists(EVENTS, max_size=2),
    droppedEventsCount=COUNTS,
    links=st.lists(LINKS, max_size=2),
    droppedLinksCount=COUNTS,
    status=optional(
        message=WELL_FORMED_TEXTS,
        code=st.one_of(st.integers(0, 2), st.sampled_from([f"STATUS_CODE_{code.name}" for code in StatusCode])),
    ),
)
# A schema URL without a resource or scope is read as one with an empty resource or scope, see below.
RESOURCES = optional(attributes=ATTRIBUTES, droppedAttributesCount=COUNTS)
SCOPES = optional(
    name=WELL_FORMED_TEXTS, version=WELL_FORMED_TEXTS, attributes=ATTRIBUTES, droppedAttributesCount=COUNTS
)
SPAN_LISTS = st.lists(SPANS, min_size=1, max_size=3)
SCOPE_SPANS = st.one_of(
    st.fixed_dictionaries({"spans": SPAN_LISTS}),
    required({"scope": SCOPES, "spans": SPAN_LISTS}, schemaUrl=WELL_FORMED_TEXTS),
    optional(spans=SPAN_LISTS),
)
SCOPE_SPANS_LISTS = st.lists(SCOPE_SPANS, min_size=1, max_size=2)
RESOURCE_SPANS = st.one_of(
    st.fixed_dictionaries({"scopeSpans": SCOPE_SPANS_LISTS}),
    required({"resource": RESOURCES, "scopeSpans": SCOPE_SPANS_LISTS}, schemaUrl=WELL_FORMED_TEXTS),
    optional(scopeSpans=SCOPE_SPANS_LISTS),
)
REQUESTS = st.fixed_dictionaries({"resourceSpans": st.lists(RESOURCE_SPANS, min_size=1, max_size=2)})


@given(SPANS)
def test_a_span_is_read_as_protobuf_reads_it(span: dict[str, Any]) -> None:
    document = document_with(span)
    assert same_bytes(request_of(read(document)), read_by_protobuf(document))


@given(REQUESTS)
def test_a_request_is_read_as_protobuf_reads_it(document: dict[str, Any]) -> None:
    assert envelopes_by_content(request_of(read(document))) == envelopes_by_content(read_by_protobuf(document))


def test_ids_are_hex_in_either_case() -> None:
    span = read_span(traceId="5b8EFFF798038103d269B633813FC60C", parentSpanId="eee19b7ec3c1B173")
    assert span.context.trace_id == 0x5B8EFFF798038103D269B633813FC60C
    assert span.context.span_id == 0xCDCDCDCDCDCDCDCD
    assert span.parent is not None
    assert span.parent.span_id == 0xEEE19B7EC3C1B173


@pytest.mark.parametrize("parent", ["", None, "0" * 16])
def test_a_parent_that_is_empty_or_zero_is_none(parent: str | None) -> None:
    assert read_span(parentSpanId=parent).parent is None


def test_flags_are_kept_with_all_their_bits_and_say_whether_the_parent_is_remote() -> None:
    span = read_span(flags=0x80000301, parentSpanId="01" * 8)
    assert span.flags == 0x80000301
    assert span.context.trace_flags == 1
    assert span.parent is not None
    assert span.parent.is_remote
    assert read_span().flags == 0


def test_missing_fields_stay_missing_in_the_message() -> None:
    span = read_span()
    message = SpanEncoder().encode(span).to_message()
    assert span.kind is SpanKind.UNSPECIFIED
    assert (message.kind, message.flags, message.HasField("status")) == (0, 0, False)
    assert read_span(status={}).status == Status(StatusCode.UNSET, "")


@pytest.mark.parametrize("kind", [3, "3", 3.0, "SPAN_KIND_CLIENT"])
def test_enums_are_numbers_or_names(kind: object) -> None:
    assert read_span(kind=kind).kind is SpanKind.CLIENT


@pytest.mark.parametrize("time", [1544712660000000000, "1544712660000000000", "1.54471266e18", 1.54471266e18])
def test_times_are_numbers_or_strings(time: object) -> None:
    assert read_span(startTimeUnixNano=time).start_time == 1544712660000000000


def test_spans_of_an_envelope_share_their_resource_and_scope() -> None:
    document = {
        "resourceSpans": [
            {
                "resource": {"attributes": [{"key": "list", "value": {"arrayValue": {"values": [{"intValue": 1}]}}}]},
                "schemaUrl": "https://resource",
                "scopeSpans": [
                    {"scope": {"name": "scope"}, "schemaUrl": "https://scope", "spans": [span_json(), span_json()]},
                    {"spans": [span_json()]},
                ],
            }
        ]
    }
    first, second, third = read(document)
    assert first.resource is second.resource is third.resource
    assert first.instrumentation_scope is second.instrumentation_scope
    assert third.instrumentation_scope is None
    assert first.resource is not None
    assert first.instrumentation_scope is not None
    assert (first.resource.schema_url, first.instrumentation_scope.schema_url) == ("https://resource", "https://scope")
    encoder = SpanEncoder()
    assert encoder.encode(first).headers.resource is encoder.encode(third).headers.resource


def test_a_schema_url_is_kept_without_a_resource_or_scope() -> None:
    document = {"resourceSpans": [{"schemaUrl": "r", "scopeSpans": [{"schemaUrl": "s", "spans": [span_json()]}]}]}
    (resource_spans,) = request_of(read(document)).resource_spans
    assert (resource_spans.schema_url, resource_spans.scope_spans[0].schema_url) == ("r", "s")


def test_of_attributes_with_the_same_key_the_last_one_counts() -> None:
    attributes = [{"key": "a", "value": {"intValue": 1}}, {"key": "b"}, {"key": "a", "value": {"intValue": 2}}]
    assert read_span(attributes=attributes).attributes == {"a": 2, "b": None}


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ({}, None),
        ({"stringValue": None}, None),
        ({"unknownValue": 1}, None),
        ({"intValue": "-9223372036854775808"}, -(2**63)),
        ({"intValue": "1e3"}, 1000),
        ({"int_value": 5}, 5),
        ({"doubleValue": "1.5"}, 1.5),
        ({"doubleValue": "7"}, 7.0),
        ({"doubleValue": 7}, 7.0),
        ({"doubleValue": "-Infinity"}, -math.inf),
        ({"doubleValue": math.inf}, math.inf),
        ({"bytesValue": "-_8="}, b"\xfb\xff"),
        ({"bytesValue": "+/8"}, b"\xfb\xff"),
        ({"bytesValue": ""}, b""),
        ({"arrayValue": {"values": [{}, {"boolValue": False}]}}, (None, False)),
        ({"kvlistValue": {"values": [{"key": "a"}, {"value": {"intValue": 1}}]}}, {"a": None, "": 1}),
    ],
)
def test_a_value_is_read_as_the_python_value_that_it_holds(value: dict[str, Any], expected: object) -> None:
    read_back = read_value(**value)
    assert read_back == expected
    assert type(read_back) is type(expected) or isinstance(expected, Mapping)


def test_lone_surrogates_out_of_json_are_replaced_when_they_are_encoded() -> None:
    span = read_span(**json.loads('{"name": "a\\ud800b"}'))
    assert SpanEncoder().encode(span).to_message().name == "a\ufffdb"


ENTITY = {
    "schemaUrl": "https://schema",
    "type": "service",
    "idKeys": ["service.name", "service.namespace"],
    "descriptionKeys": ["service.version"],
}


def with_entities(*entities: object, name: str = "entityRefs") -> dict[str, Any]:
    document = document_with(span_json())
    document["resourceSpans"][0]["resource"] = {name: list(entities)}
    return document


@pytest.mark.parametrize("name", ["entityRefs", "entity_refs"])
def test_entity_refs_of_a_resource_are_kept(name: str) -> None:
    (span,) = read(with_entities(ENTITY, {}, name=name))
    # Not as messages: the oldest opentelemetry-proto that is allowed does not know the field.
    first = b"\x0a\x0ehttps://schema\x12\x07service\x1a\x0cservice.name\x1a\x11service.namespace"
    first += b"\x22\x0fservice.version"
    refs = b"\x1a" + bytes([len(first)]) + first + b"\x1a\x00"
    assert SpanEncoder().encode(span).headers.resource == b"\x0a" + bytes([len(refs)]) + refs
    if "entity_refs" in ResourceMessage.DESCRIPTOR.fields_by_name:
        assert request_of([span]) == read_by_protobuf(with_entities(ENTITY, {}))


@pytest.mark.parametrize("entity", [5, {"type": 5}, {"idKeys": "a"}, {"idKeys": [5]}, {"descriptionKeys": {}}])
def test_invalid_entity_refs_are_reported(entity: object) -> None:
    (problem,) = read_request(with_entities(entity))
    assert "resource.entityRefs[0]" in str(problem)


def test_an_attribute_nested_too_deep_is_dropped_and_counted_and_the_span_arrives() -> None:
    for depth in (48, 60, 100_000):
        value: dict[str, Any] = {"intValue": 1}
        for _ in range(depth):
            value = {"arrayValue": {"values": [value]}}
        span = read_span(attributes=[{"key": "deep", "value": value}, {"key": "fine", "value": {"intValue": 1}}])
        message = SpanEncoder().encode(span).to_message()
        assert [attribute.key for attribute in message.attributes] == ["fine"]
        assert message.dropped_attributes_count == 1
