"""Spans that the encoder refuses, and its messages."""

from __future__ import annotations

import enum
from collections.abc import Iterator
from typing import Any

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.batchers import UnboundProxy
from tests.support.span_strategies import SPANS
from tests.unit.spans.support import CONTEXT, encode, make_span, span_like
from trio_spanbatch._errors import InvalidSpanError
from trio_spanbatch._spans.encoder import SpanEncoder
from trio_spanbatch._spans.records import (
    InstrumentationScope,
    Resource,
    Span,
    SpanContext,
    SpanEvent,
    SpanKind,
    SpanLink,
    Status,
    StatusCode,
)


class Color(enum.Enum):
    RED = 1


def context(**fields: Any) -> SpanContext:
    return attrs.evolve(CONTEXT, **fields)


WRONG_TRACE_IDS: list[Any] = [0, -1, 2**128, "ab" * 16, b"\x01" * 16, None, True, 1.0]
WRONG_SPAN_IDS: list[Any] = [0, -1, 2**64, "ab" * 8, b"\x01" * 8, None, True, 1.0]
WRONG_TIMES: list[Any] = [-1, 2**64, "1", 1.5, True, [1]]
WRONG_COUNTS: list[Any] = [-1, 2**32, None, "1", 0.5, True]
WRONG_CODES: list[Any] = [None, 1, "OK", Color.RED, SpanKind.SERVER]
FIVE: Any = 5
NOTHING: Any = None

INVALID: list[tuple[str, object, Any]] = [
    *(("context.trace_id", value, {"context": context(trace_id=value)}) for value in WRONG_TRACE_IDS),
    *(("context.span_id", value, {"context": context(span_id=value)}) for value in WRONG_SPAN_IDS),
    *(("parent.span_id", value, {"parent": context(span_id=value)}) for value in WRONG_SPAN_IDS),
    *(
        ("links[0].context.trace_id", value, {"links": [SpanLink(context(trace_id=value))]})
        for value in WRONG_TRACE_IDS
    ),
    *(("links[0].context.span_id", value, {"links": [SpanLink(context(span_id=value))]}) for value in WRONG_SPAN_IDS),
    *(("start_time", value, {"start_time": value}) for value in [*WRONG_TIMES, None]),
    *(("end_time", value, {"end_time": value}) for value in WRONG_TIMES),
    *(("events[0].timestamp", value, {"events": [SpanEvent("e", value)]}) for value in [*WRONG_TIMES, None]),
    *(("dropped_attributes", value, {"dropped_attributes": value}) for value in WRONG_COUNTS),
    *(("dropped_events", value, {"dropped_events": value}) for value in WRONG_COUNTS),
    *(("dropped_links", value, {"dropped_links": value}) for value in WRONG_COUNTS),
    *(
        ("events[1].dropped_attributes", value, {"events": [SpanEvent("e", 1), SpanEvent("e", 1, {}, value)]})
        for value in WRONG_COUNTS
    ),
    *(
        ("links[0].dropped_attributes", value, {"links": [SpanLink(CONTEXT, dropped_attributes=value)]})
        for value in WRONG_COUNTS
    ),
    *(("kind", value, {"kind": value}) for value in [None, 1, "SERVER", Color.RED, StatusCode.OK, SpanKind]),
    *(("status.status_code", value, {"status": Status(value)}) for value in WRONG_CODES),
    *(("attributes", value, {"attributes": value}) for value in [5, "text", ["a"], [("a", 1)]]),
    ("events[0].attributes", 5, {"events": [SpanEvent("e", 1, FIVE)]}),
    ("links[0].attributes", 5, {"links": [SpanLink(CONTEXT, FIVE)]}),
    ("resource.attributes", 5, {"resource": Resource(FIVE)}),
    ("resource.dropped_attributes", -1, {"resource": Resource({}, "", -1)}),
    (
        "instrumentation_scope.dropped_attributes",
        2**32,
        {"instrumentation_scope": InstrumentationScope("s", "", "", {}, 2**32)},
    ),
    *(("flags", value, {"flags": value}) for value in [-1, 2**32, "1", True]),
    *(
        ("links[0].flags", value, {"links": [SpanLink(CONTEXT, flags=value)]})
        for value in WRONG_COUNTS
        if value is not None
    ),
    ("context", None, {"context": None}),
    ("links[0].context", None, {"links": [SpanLink(NOTHING)]}),
    ("end_time", None, {"end_time": None}),
]


@pytest.mark.parametrize(
    ("field", "value", "fields"), INVALID, ids=[f"{field}={value!r:.20}" for field, value, _ in INVALID]
)
def test_a_value_that_otlp_cannot_express_is_refused_with_its_field(
    field: str, value: object, fields: dict[str, Any]
) -> None:
    for span in (make_span(**fields), span_like(**fields)):
        with pytest.raises(InvalidSpanError) as caught:
            SpanEncoder().encode(span)
        assert str(caught.value).startswith(f"{field} is ")
        assert repr(value)[:40] in str(caught.value)


def test_a_span_that_has_not_ended_is_refused_with_this_message() -> None:
    with pytest.raises(InvalidSpanError, match=r"^end_time is None: the span has not ended$"):
        encode(end_time=None)


@pytest.mark.parametrize(
    "value", ["x" * 10_000_000, 10**5000, list(range(100_000)), {str(n): n for n in range(1000)}], ids=range(4)
)
def test_the_message_is_short_for_any_value(value: object) -> None:
    with pytest.raises(InvalidSpanError, match=r"^context\.span_id is ") as caught:
        encode(context=context(span_id=value))
    assert len(str(caught.value)) < 300


class Broken(Exception):
    pass


class Raising:
    """Raises in every operation."""

    def __str__(self) -> str:
        raise Broken("str")

    def __repr__(self) -> str:
        raise Broken("repr")

    def __iter__(self) -> Iterator[object]:
        raise Broken("iter")

    def __bool__(self) -> bool:
        raise Broken("bool")

    def __getattr__(self, name: str) -> object:
        raise Broken(name)


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        (r"events\[0\]", {"events": [Raising()]}),
        (r"links\[0\]", {"links": [Raising()]}),
        (r"resource", {"resource": Raising()}),
        (r"instrumentation_scope", {"instrumentation_scope": Raising()}),
        (r"the span", {"status": Raising()}),
        (r"the span", {"parent": Raising()}),
        (r"the span", {"events": Raising()}),
    ],
)
def test_any_exception_raised_by_a_field_makes_the_span_invalid(path: str, fields: dict[str, Any]) -> None:
    with pytest.raises(InvalidSpanError, match=rf"^{path}.* cannot be read: ") as caught:
        SpanEncoder().encode(span_like(**fields))
    assert isinstance(caught.value.__cause__, Broken)


def test_a_property_that_raises_makes_the_span_invalid_and_is_named() -> None:
    class RaisingSpan:
        def __getattr__(self, name: str) -> object:
            if name == "dropped_links":
                raise Broken("no count")
            return getattr(make_span(), name)

    with pytest.raises(InvalidSpanError, match=r"^dropped_links cannot be read: Broken\('no count'\)$") as caught:
        SpanEncoder().encode(RaisingSpan())  # type: ignore[arg-type]  # on purpose
    assert isinstance(caught.value.__cause__, Broken)


@pytest.mark.parametrize("thing", [None, "a span", 5, {"name": "x"}, object(), Span, Raising()], ids=range(7))
def test_an_object_that_is_not_a_span_is_refused_like_an_invalid_span(thing: Any) -> None:
    is_no_span = r"is not a span: (.* has no attribute 'parent'|it is a class)"
    with pytest.raises(InvalidSpanError, match=rf"{is_no_span}|^(parent|the span) cannot be read"):
        SpanEncoder().encode(thing)


def test_an_object_whose_class_cannot_be_read_is_refused() -> None:
    thing: Any = UnboundProxy()
    with pytest.raises(InvalidSpanError, match="is not a span"):
        SpanEncoder().encode(thing)


def test_an_object_whose_missing_attributes_cannot_be_found_is_refused() -> None:
    class Silent(AttributeError):
        def __str__(self) -> str:
            raise Broken("str")

    class NoSpan:
        def __getattr__(self, name: str) -> object:
            raise Silent

    thing: Any = NoSpan()
    with pytest.raises(InvalidSpanError, match=r"is not a span: it has no attribute 'parent'$"):
        SpanEncoder().encode(thing)


def test_an_int_that_overrides_comparison_is_checked_by_its_value() -> None:
    class Modest(int):
        def __ge__(self, other: object) -> bool:
            return True

        __gt__ = __le__ = __lt__ = __ge__

    with pytest.raises(InvalidSpanError, match=r"^dropped_links is .*: a count is an int from 0 to 0xffffffff$"):
        encode(dropped_links=Modest(2**40))


def test_an_object_that_only_resembles_a_set_is_not_sorted_for_its_message() -> None:
    def count_on(self: object) -> Iterator[int]:
        yield from range(1000)
        raise AssertionError("it was read to its end")

    misnamed: Any = type("set", (), {"__iter__": count_on, "__len__": lambda self: 5, "__repr__": lambda self: "odd"})
    with pytest.raises(InvalidSpanError, match=r"^start_time is odd: "):
        SpanEncoder().encode(span_like(start_time=misnamed()))


@pytest.mark.parametrize("name", [field for field in attrs.fields_dict(Span) if field != "flags"])
def test_an_object_without_one_of_the_attributes_is_refused_by_its_name(name: str) -> None:
    span = span_like()
    delattr(span, name)
    with pytest.raises(InvalidSpanError, match=f"is not a span: .* has no attribute '{name}'"):
        SpanEncoder().encode(span)


@settings(max_examples=25)
@given(st.lists(st.sampled_from(INVALID), min_size=1, max_size=5), SPANS)
def test_a_refused_span_leaves_nothing_behind(refused: list[tuple[str, object, Any]], span: Span) -> None:
    encoder = SpanEncoder()
    for _, _, fields in refused:
        with pytest.raises(InvalidSpanError):
            encoder.encode(
                make_span(attributes={"http.method": "GET"}, **fields)
                if "attributes" not in fields
                else make_span(**fields)
            )
    fresh, encoded = SpanEncoder().encode(span), encoder.encode(span)
    assert (encoded.payload, encoded.headers) == (fresh.payload, fresh.headers)
