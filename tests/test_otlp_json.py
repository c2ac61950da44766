"""OTLP JSON against protobuf's own reading of it, and what is said of JSON that is wrong."""

from __future__ import annotations

import base64
import inspect
import json
import math
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import json_format
from google.protobuf.message import Message
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from span_strategies import WELL_FORMED_TEXTS

from trio_spanbatch._batch import SpanBatch
from trio_spanbatch._errors import InvalidSpanError
from trio_spanbatch._records import Span, SpanKind, Status, StatusCode
from trio_spanbatch.otlp.encoding import SpanEncoder
from trio_spanbatch.otlp.json import read_request

DATA = Path(__file__).parent / "data"
IDS = ("traceId", "spanId", "parentSpanId", "trace_id", "span_id", "parent_span_id")


def with_base64_ids(value: Any) -> Any:
    """Return OTLP JSON as protobuf's JSON, in which ids are base64 as all bytes are."""
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


def read(document: Any) -> list[Span]:
    """Read a document in which nothing is wrong."""
    spans: list[Span] = []
    for span in read_request(document):
        assert isinstance(span, Span), span
        spans.append(span)
    return spans


def request_of(spans: list[Span]) -> ExportTraceServiceRequest:
    encoder = SpanEncoder()
    return SpanBatch("here", [encoder.encode(span) for span in spans]).to_message()


def same_bytes(message: Message, other: Message) -> bool:
    """Compare messages that may have a NaN in them, and then are not even equal to themselves."""
    return message.SerializeToString(deterministic=True) == other.SerializeToString(deterministic=True)


def envelopes_by_content(request: ExportTraceServiceRequest) -> dict[tuple[bytes, bytes], list[bytes]]:
    """Return the spans under each resource and scope: requests may group them in different ways."""
    spans: dict[tuple[bytes, bytes], list[bytes]] = {}
    for resource_spans in request.resource_spans:
        for scope_spans in resource_spans.scope_spans:
            messages = [span.SerializeToString(deterministic=True) for span in scope_spans.spans]
            scope_spans.ClearField("spans")
            key = scope_spans.SerializeToString(deterministic=True)
            resource_spans.ClearField("scope_spans")
            spans.setdefault((resource_spans.SerializeToString(deterministic=True), key), []).extend(messages)
    return {key: messages for key, messages in spans.items() if messages}


DOCUMENTS = [
    json.loads((DATA / "otlp-example-trace.json").read_text()),
    *(json.loads(line) for line in (DATA / "agent-traces.jsonl").read_text().splitlines()),
]


@pytest.mark.parametrize("document", DOCUMENTS, ids=range(len(DOCUMENTS)))
def test_recorded_requests_come_out_as_they_went_in(document: Any) -> None:
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
def test_a_span_reads_as_protobuf_reads_it(span: dict[str, Any]) -> None:
    document = document_with(span)
    assert same_bytes(request_of(read(document)), read_by_protobuf(document))


@given(REQUESTS)
def test_a_request_reads_as_protobuf_reads_it(document: dict[str, Any]) -> None:
    assert envelopes_by_content(request_of(read(document))) == envelopes_by_content(read_by_protobuf(document))


# Single points


def document_with(*spans: Any, **scope_spans: Any) -> dict[str, Any]:
    return {"resourceSpans": [{"scopeSpans": [{"spans": list(spans), **scope_spans}]}]}


def span_json(**fields: Any) -> dict[str, Any]:
    return {"traceId": "AB" * 16, "spanId": "cd" * 8, "name": "work"} | fields


def read_span(**fields: Any) -> Span:
    (span,) = read(document_with(span_json(**fields)))
    return span


def read_value(**value: Any) -> Any:
    return read_span(attributes=[{"key": "key", "value": value}]).attributes["key"]


def problem_of(*spans: Any) -> str:
    (problem,) = read_request(document_with(*spans))
    assert isinstance(problem, InvalidSpanError)
    return str(problem)


def test_ids_are_hex_in_either_case() -> None:
    span = read_span(traceId="5b8EFFF798038103d269B633813FC60C", parentSpanId="eee19b7ec3c1B173")
    assert span.context.trace_id == 0x5B8EFFF798038103D269B633813FC60C
    assert span.context.span_id == 0xCDCDCDCDCDCDCDCD
    assert span.parent is not None
    assert span.parent.span_id == 0xEEE19B7EC3C1B173


@pytest.mark.parametrize("parent", ["", None])
def test_an_empty_parent_is_none(parent: str | None) -> None:
    assert read_span(parentSpanId=parent).parent is None


def test_flags_are_kept_with_all_their_bits_and_tell_whether_the_parent_is_remote() -> None:
    span = read_span(flags=0x80000301, parentSpanId="01" * 8)
    assert span.flags == 0x80000301
    assert span.context.trace_flags == 1
    assert span.parent is not None
    assert span.parent.is_remote
    assert read_span().flags == 0


def test_what_is_missing_stays_missing_in_the_message() -> None:
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
    assert encoder.encode(first).resource is encoder.encode(third).resource


def test_a_schema_url_is_kept_without_a_resource_or_scope() -> None:
    document = {"resourceSpans": [{"schemaUrl": "r", "scopeSpans": [{"schemaUrl": "s", "spans": [span_json()]}]}]}
    (resource_spans,) = request_of(read(document)).resource_spans
    assert (resource_spans.schema_url, resource_spans.scope_spans[0].schema_url) == ("r", "s")


def test_of_attributes_with_the_same_key_the_last_one_counts() -> None:
    attributes = [{"key": "a", "value": {"intValue": 1}}, {"key": "b"}, {"key": "a", "value": {"intValue": 2}}]
    assert read_span(attributes=attributes).attributes == {"a": 2, "b": None}


@pytest.mark.parametrize(
    ("value", "wanted"),
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
def test_values_are_read(value: dict[str, Any], wanted: object) -> None:
    read_back = read_value(**value)
    assert read_back == wanted
    assert type(read_back) is type(wanted) or isinstance(wanted, Mapping)


def test_lone_surrogates_out_of_json_are_replaced_when_they_are_encoded() -> None:
    span = read_span(**json.loads('{"name": "a\\ud800b"}'))
    assert SpanEncoder().encode(span).to_message().name == "a\ufffdb"


# What is wrong


def nested(depth: int) -> dict[str, Any]:
    value: dict[str, Any] = {"intValue": 1}
    for level in range(depth):
        value = (
            {"arrayValue": {"values": [value]}}
            if level % 2
            else {"kvlistValue": {"values": [{"key": "k", "value": value}]}}
        )
    return value


def attribute(value: object) -> dict[str, Any]:
    return {"attributes": [{"key": "key", "value": value}]}


WRONG_IDS = [
    5,
    True,
    ["ab"],
    "zz" * 16,
    "ab",
    "ab" * 17,
    "a" * 31,
    "00" * 16,
    " " + "ab" * 15 + "a",
    "é" * 32,
    "0x" + "a" * 30,
]
WRONG_NUMBERS = [
    True,
    "",
    "x",
    " 1",
    "1_0",
    "0x1",
    "٣",
    1.5,
    "1.5",
    [1],
    {},
    math.nan,
    math.inf,
    1e300,
    "1e300",
    "1e99999",
    "9" * 5000,
]

WRONG: list[tuple[str, dict[str, Any]]] = [
    *(("traceId", {"traceId": value}) for value in WRONG_IDS),
    *(("spanId", {"spanId": value}) for value in [*WRONG_IDS, "00" * 8]),
    *(("parentSpanId", {"parentSpanId": value}) for value in [*WRONG_IDS, "00" * 8]),
    ("traceId is missing", {"traceId": ""}),
    ("spanId is missing", {"spanId": None}),
    ("links[0].traceId is missing", {"links": [{}]}),
    ("links[1].spanId", {"links": [{"traceId": "ab" * 16, "spanId": "ab" * 8}, {"traceId": "ab" * 16, "spanId": "x"}]}),
    *(("startTimeUnixNano", {"startTimeUnixNano": value}) for value in [*WRONG_NUMBERS, -1, 2**64, "-1", str(2**64)]),
    *(("endTimeUnixNano", {"end_time_unix_nano": value}) for value in [-1, "x"]),
    *(("droppedAttributesCount", {"droppedAttributesCount": value}) for value in [*WRONG_NUMBERS, -1, 2**32]),
    ("droppedEventsCount", {"droppedEventsCount": -1}),
    ("droppedLinksCount", {"droppedLinksCount": -1}),
    ("flags", {"flags": 2**32}),
    *(("name", {"name": value}) for value in [5, True, ["x"], {}]),
    ("traceState", {"traceState": 5}),
    *(
        ("kind", {"kind": value})
        for value in [-1, 6, True, 1.5, "SERVER", "SPAN_KIND_NONE", "6", "x", [1], {}, math.nan]
    ),
    *(("status", {"status": value}) for value in [5, "OK", [1]]),
    *(("status.code", {"status": {"code": value}}) for value in [3, "OK", True]),
    ("status.message", {"status": {"message": 5}}),
    *(("events", {"events": value}) for value in [{}, "x", 5]),
    *(("events[0]", {"events": [value]}) for value in [None, "x", [1]]),
    ("events[0].timeUnixNano", {"events": [{"timeUnixNano": -1}]}),
    ("events[0].name", {"events": [{"name": 5}]}),
    ("events[0].attributes[0].value.intValue", {"events": [attribute({"intValue": "x"})]}),
    ("links", {"links": {"traceId": "ab" * 16}}),
    *(("attributes", {"attributes": value}) for value in [{"key": "value"}, 5]),
    *(("attributes[0]", {"attributes": [value]}) for value in [None, "x", ["key", "value"]]),
    ("attributes[0].key", {"attributes": [{"key": 5}]}),
    *(("attributes[0].value", attribute(value)) for value in ["x", 5, [1]]),
    ("attributes[0].value.stringValue", attribute({"stringValue": 5})),
    *(("attributes[0].value.boolValue", attribute({"boolValue": value})) for value in [0, "true", []]),
    *(
        ("attributes[0].value.intValue", attribute({"intValue": value}))
        for value in [*WRONG_NUMBERS, 2**63, -(2**63) - 1]
    ),
    *(
        ("attributes[0].value.doubleValue", attribute({"doubleValue": value}))
        for value in [True, "x", "nan", "inf", "1_0", " 1", "", [1], 10**400, "9" * 5000]
    ),
    *(("attributes[0].value.bytesValue", attribute({"bytesValue": value})) for value in [5, "a", "a$==", "é"]),
    *(("attributes[0].value.arrayValue", attribute({"arrayValue": value})) for value in [[], "x"]),
    ("attributes[0].value.arrayValue.values", attribute({"arrayValue": {"values": {}}})),
    ("attributes[0].value.arrayValue.values[1]", attribute({"arrayValue": {"values": [{}, None]}})),
    ("attributes[0].value.kvlistValue.values[0].value", attribute({"kvlistValue": {"values": [{"value": 5}]}})),
    ("attributes[0].value.intValue stands beside stringValue", attribute({"stringValue": "", "intValue": 1})),
    ("attributes[0].value.", attribute(nested(100))),
    ("attributes[0].value.", attribute(nested(100_000))),
]


@pytest.mark.parametrize(("field", "fields"), WRONG, ids=[f"{i}-{field}" for i, (field, _) in enumerate(WRONG)])
def test_what_is_wrong_with_a_span_is_told_in_its_place_and_the_others_are_read(
    field: str, fields: dict[str, Any]
) -> None:
    first, problem, last = read_request(document_with(span_json(name="a"), span_json(**fields), span_json(name="z")))
    assert isinstance(first, Span)
    assert isinstance(last, Span)
    assert (first.name, last.name) == ("a", "z")
    assert isinstance(problem, InvalidSpanError)
    assert str(problem).startswith(f"resourceSpans[0].scopeSpans[0].spans[1].{field}")
    assert len(str(problem)) < 3000


@pytest.mark.parametrize("span", [None, "span", 5, [1]])
def test_a_span_that_is_no_object_is_told(span: object) -> None:
    assert problem_of(span).startswith(f"resourceSpans[0].scopeSpans[0].spans[0] is {span!r}: ")


def test_an_empty_span_lacks_its_ids() -> None:
    assert problem_of({}) == "resourceSpans[0].scopeSpans[0].spans[0].traceId is missing"


def test_a_span_nested_too_deep_for_the_stack_that_is_left_is_told() -> None:
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(len(inspect.stack(0)) + 120)
    try:
        problem = problem_of(span_json(**attribute(nested(40))))
    finally:
        sys.setrecursionlimit(limit)
    assert problem.startswith("resourceSpans[0].scopeSpans[0].spans[0].attributes[0].value.")
    assert problem.endswith("is nested too deep")


GOOD = {"scopeSpans": [{"spans": [span_json(name="good")]}]}
TWO_SPANS = {"spans": [span_json(), span_json()]}


@pytest.mark.parametrize(
    ("envelope", "problems"),
    [
        (None, ["resourceSpans[1] is None"]),
        ("x", ["resourceSpans[1] is 'x'"]),
        ({"scopeSpans": "x"}, ["resourceSpans[1].scopeSpans is 'x'"]),
        ({"scopeSpans": [5]}, ["resourceSpans[1].scopeSpans[0] is 5"]),
        ({"scopeSpans": [{"spans": {}}]}, ["resourceSpans[1].scopeSpans[0].spans is {}"]),
        (
            {"resource": 5, "scopeSpans": [TWO_SPANS]},
            [
                "resourceSpans[1].scopeSpans[0].spans[0] cannot be sent: resourceSpans[1].resource is 5",
                "resourceSpans[1].scopeSpans[0].spans[1] cannot be sent: resourceSpans[1].resource is 5",
            ],
        ),
        (
            {"resource": {"attributes": [5]}, "scopeSpans": [TWO_SPANS, {"scope": 5, "spans": [span_json()]}]},
            [
                "resourceSpans[1].scopeSpans[0].spans[0] cannot be sent: resourceSpans[1].resource.attributes[0] is 5",
                "resourceSpans[1].scopeSpans[0].spans[1] cannot be sent: ",
                "resourceSpans[1].scopeSpans[1].spans[0] cannot be sent: resourceSpans[1].resource.attributes[0] is 5",
            ],
        ),
        (
            {"schemaUrl": 5, "scopeSpans": [{"spans": [span_json()]}]},
            ["resourceSpans[1].scopeSpans[0].spans[0] cannot be sent: resourceSpans[1].schemaUrl is 5"],
        ),
        (
            {"scopeSpans": [{"scope": {"name": 5}, "spans": [span_json()]}]},
            ["resourceSpans[1].scopeSpans[0].spans[0] cannot be sent: resourceSpans[1].scopeSpans[0].scope.name is 5"],
        ),
        (
            {"scopeSpans": [{"schemaUrl": [], "spans": [span_json()]}]},
            ["resourceSpans[1].scopeSpans[0].spans[0] cannot be sent: resourceSpans[1].scopeSpans[0].schemaUrl is []"],
        ),
        ({"resource": 5}, []),
        ({"resource": {"droppedAttributesCount": -1}, "scopeSpans": []}, []),
    ],
)
def test_a_bad_envelope_makes_its_spans_invalid_and_no_others(envelope: object, problems: list[str]) -> None:
    first, *found, last = read_request({"resourceSpans": [GOOD, envelope, GOOD]})
    assert isinstance(first, Span)
    assert isinstance(last, Span)
    assert len(found) == len(problems)
    for problem, wanted in zip(found, problems, strict=True):
        assert isinstance(problem, InvalidSpanError)
        assert str(problem).startswith(wanted)


def test_a_bad_scope_leaves_the_other_scopes_of_its_resource() -> None:
    scopes = [{"scope": 5, "spans": [span_json()]}, {"spans": [span_json()]}]
    bad, good = read_request({"resourceSpans": [{"scopeSpans": scopes}]})
    assert isinstance(bad, InvalidSpanError)
    assert isinstance(good, Span)


@pytest.mark.parametrize(
    ("document", "words"),
    [
        (None, "the document is None"),
        ([], r"the document is \[\]"),
        ("resourceSpans", "the document is 'resourceSpans'"),
        ({"resourceLogs": []}, r"the document has no resourceSpans; it has \['resourceLogs'\]"),
        ({"resourceSpans": {}}, r"^resourceSpans is \{\}: it has to be a JSON array"),
        ({"resource_spans": "x"}, "^resourceSpans is 'x'"),
    ],
)
def test_a_document_that_is_no_request_is_a_value_error_of_the_call(document: object, words: str) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        read_request(document)
    assert not isinstance(caught.value, InvalidSpanError)


@pytest.mark.parametrize(
    "document", [{}, {"resourceSpans": []}, {"resourceSpans": [{}]}, {"resource_spans": [{"scope_spans": [{}]}]}]
)
def test_an_empty_request_has_no_spans(document: object) -> None:
    assert list(read_request(document)) == []


JSON_VALUES: st.SearchStrategy[Any] = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5)),
    lambda values: st.lists(values, max_size=3) | st.dictionaries(st.text(max_size=5), values, max_size=3),
    max_leaves=6,
)


@given(st.data())
def test_no_document_does_anything_but_give_spans_and_reasons(data: st.DataObject) -> None:
    """Take a good document and put any JSON in some place of it."""
    document = json.loads(json.dumps(data.draw(st.sampled_from(DOCUMENTS))))
    place: Any = document
    while True:
        key = data.draw(st.sampled_from(sorted(place) if isinstance(place, dict) else range(len(place))))
        deeper = place[key]
        if not isinstance(deeper, dict | list) or not deeper or data.draw(st.integers(0, 9)) == 0:
            break
        place = deeper
    place[key] = data.draw(JSON_VALUES)
    try:
        spans = list(read_request(document))
    except ValueError as error:
        assert not isinstance(error, InvalidSpanError)
        return
    encoder = SpanEncoder()
    for span in spans:
        if isinstance(span, Span):
            encoder.encode(span)
        else:
            assert str(span).startswith("resourceSpans")
