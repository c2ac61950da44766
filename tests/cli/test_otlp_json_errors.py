"""Errors in OTLP JSON."""

from __future__ import annotations

import inspect
import json
import math
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.cli.json_support import DOCUMENTS, document_with, problem_of, span_json
from trio_spanbatch._errors import InvalidSpanError
from trio_spanbatch._spans.encoder import SpanEncoder
from trio_spanbatch._spans.records import Span
from trio_spanbatch.cli.otlp_json import read_request


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
    *(("parentSpanId", {"parentSpanId": value}) for value in [*WRONG_IDS, "00" * 7]),
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
    ("attributes[0].value.intValue and stringValue are both set", attribute({"stringValue": "", "intValue": 1})),
]


@pytest.mark.parametrize(("field", "fields"), WRONG, ids=[f"{i}-{field}" for i, (field, _) in enumerate(WRONG)])
def test_an_invalid_span_is_an_error_in_its_place_and_the_others_are_read(field: str, fields: dict[str, Any]) -> None:
    first, problem, last = read_request(document_with(span_json(name="a"), span_json(**fields), span_json(name="z")))
    assert isinstance(first, Span)
    assert isinstance(last, Span)
    assert (first.name, last.name) == ("a", "z")
    assert isinstance(problem, InvalidSpanError)
    assert str(problem).startswith(f"resourceSpans[0].scopeSpans[0].spans[1].{field}")
    assert len(str(problem)) < 3000


@pytest.mark.parametrize("span", [None, "span", 5, [1]])
def test_a_span_that_is_not_an_object_is_an_error(span: object) -> None:
    assert problem_of(span).startswith(f"resourceSpans[0].scopeSpans[0].spans[0] is {span!r}: ")


def test_an_empty_span_lacks_its_ids() -> None:
    assert problem_of({}) == "resourceSpans[0].scopeSpans[0].spans[0].traceId is missing"


def test_a_span_nested_too_deeply_for_the_stack_is_an_error() -> None:
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(len(inspect.stack(0)) + 120)
    try:
        problem = problem_of(span_json(**attribute(nested(40))))
    finally:
        sys.setrecursionlimit(limit)
    assert problem.startswith("resourceSpans[0].scopeSpans[0].spans[0].attributes[0].value.")
    assert problem.endswith("is nested too deeply")


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
    for problem, expected in zip(found, problems, strict=True):
        assert isinstance(problem, InvalidSpanError)
        assert str(problem).startswith(expected)


def test_a_bad_scope_leaves_the_other_scopes_of_its_resource() -> None:
    scopes = [{"scope": 5, "spans": [span_json()]}, {"spans": [span_json()]}]
    bad, good = read_request({"resourceSpans": [{"scopeSpans": scopes}]})
    assert isinstance(bad, InvalidSpanError)
    assert isinstance(good, Span)


@pytest.mark.parametrize(
    ("document", "words"),
    [
        (None, "the document is None"),
        ([], r"the document is \[\]; .*; write one request per line$"),
        ({"resourceSpans": None}, "^the document's resourceSpans is null; it must be a list"),
        ("resourceSpans", "the document is 'resourceSpans'"),
        ({"resourceLogs": []}, r"the document has no resourceSpans; it has \['resourceLogs'\]"),
        ({"resourceSpans": {}}, r"^resourceSpans is \{\}: it must be a JSON array"),
        ({"resource_spans": "x"}, "^resourceSpans is 'x'"),
    ],
)
def test_a_document_that_is_not_a_request_raises_a_value_error_in_the_call(document: object, words: str) -> None:
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
def test_any_document_yields_only_spans_and_errors(data: st.DataObject) -> None:
    """Replace any part of a valid document by any JSON."""
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
