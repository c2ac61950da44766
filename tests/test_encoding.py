"""The encoder against opentelemetry-proto, and what it refuses."""

from __future__ import annotations

import enum
import gc
import itertools
import subprocess
import sys
from collections import OrderedDict, UserDict, UserString, deque
from collections.abc import Iterator, Mapping
from fractions import Fraction
from numbers import Integral, Real
from types import MappingProxyType, SimpleNamespace
from typing import Any

import attrs
import expected_messages as expected
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry.proto.common.v1.common_pb2 import AnyValue
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, ScopeSpans
from span_strategies import ATTRIBUTES, SPANS

from trio_spanbatch._batch import EncodedSpan, SpanBatch
from trio_spanbatch._errors import InvalidSpanError
from trio_spanbatch._records import (
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
from trio_spanbatch.otlp.encoding import SpanEncoder

CONTEXT = SpanContext(0xABCDEF0123456789ABCDEF0123456789, 0xABCDEF0123456789)


def make_span(**fields: Any) -> Span:
    minimal: dict[str, Any] = {"name": "work", "context": CONTEXT, "start_time": 1, "end_time": 2}
    return Span(**minimal | fields)


def encode(**fields: Any) -> EncodedSpan:
    return SpanEncoder().encode(make_span(**fields))


def value_of(value: object) -> AnyValue:
    """Return what an attribute with ``value`` is sent as."""
    (attribute,) = encode(attributes={"key": value}).to_message().attributes
    return attribute.value


def assert_same(message: Any, wanted: Any) -> None:
    # Messages with a NaN in them are not equal even to themselves; their bytes are.
    assert message.SerializeToString(deterministic=True) == wanted.SerializeToString(deterministic=True)


# The oracle


@given(SPANS)
def test_a_span_is_the_message_that_protobuf_builds(span: Span) -> None:
    encoded = SpanEncoder().encode(span)
    message = expected.span_message(span)
    assert_same(encoded.to_message(), message)
    assert encoded.size == len(encoded.payload) == message.ByteSize()

    batch = SpanBatch("here", [encoded])
    request = expected.request_message(span)
    assert_same(batch.to_message(), request)
    assert batch.size == len(batch.to_request()) == request.ByteSize()


@settings(max_examples=20)
@given(st.lists(SPANS, min_size=2, max_size=3))
def test_an_encoder_that_has_seen_other_spans_encodes_as_a_new_one(spans: list[Span]) -> None:
    used = SpanEncoder()
    for span in [*spans, *spans]:
        encoded, fresh = used.encode(span), SpanEncoder().encode(span)
        assert encoded.payload == fresh.payload
        assert (encoded.resource, encoded.scope) == (fresh.resource, fresh.scope)


@given(ATTRIBUTES)
def test_attributes_of_spans_events_links_resources_and_scopes_are_encoded_alike(attributes: Mapping[str, Any]) -> None:
    wanted = [attribute.SerializeToString(deterministic=True) for attribute in expected.attributes(attributes)]
    span = make_span(
        attributes=attributes,
        events=[SpanEvent("event", 1, attributes)],
        links=[SpanLink(CONTEXT, attributes)],
        resource=Resource(attributes),
        instrumentation_scope=InstrumentationScope("scope", attributes=attributes),
    )
    (resource_spans,) = SpanBatch("here", [SpanEncoder().encode(span)]).to_message().resource_spans
    (scope_spans,) = resource_spans.scope_spans
    (message,) = scope_spans.spans
    owners: list[Any] = [message, message.events[0], message.links[0], resource_spans.resource, scope_spans.scope]
    for owner in owners:
        assert [attribute.SerializeToString(deterministic=True) for attribute in owner.attributes] == wanted


def test_a_span_needs_no_more_than_a_name_a_context_and_times() -> None:
    message = encode().to_message()
    assert message.kind == message.SPAN_KIND_INTERNAL
    assert message.flags == 0x100
    assert message.parent_span_id == b""
    assert message.HasField("status")
    assert SpanEncoder().encode(make_span()).resource == b""


def test_an_encoded_span_is_returned_as_it_is() -> None:
    encoded = encode()
    assert SpanEncoder().encode(encoded) is encoded


@pytest.mark.parametrize(("start", "end"), [(0, 0), (0, 5), (5, 0), (7, 5), (2**64 - 1, 2**64 - 1)])
def test_an_end_before_the_start_and_times_at_the_limits_are_accepted(start: int, end: int) -> None:
    message = encode(start_time=start, end_time=end).to_message()
    assert (message.start_time_unix_nano, message.end_time_unix_nano) == (start, end)


def test_flags_tell_whether_the_parent_is_remote() -> None:
    assert encode(parent=SpanContext(1, 2)).to_message().flags == 0x100
    assert encode(parent=SpanContext(1, 2, is_remote=True)).to_message().flags == 0x300
    assert encode(flags=0, parent=SpanContext(1, 2, is_remote=True)).to_message().flags == 0


def test_a_link_is_sent_with_its_trace_state_and_trace_flags() -> None:
    link = SpanLink(SpanContext(1, 2, is_remote=True, trace_flags=3, trace_state={"a": "1", "b": "2"}))
    (message,) = encode(links=[link]).to_message().links
    assert (message.trace_state, message.flags) == ("a=1,b=2", 0x303)


# Values


class Color(enum.Enum):
    RED = 1


class Size(enum.IntEnum):
    SMALL = 3


class Fruit(str, enum.Enum):  # noqa: UP042  # unlike StrEnum, its str() is not its value
    APPLE = "apple"


class Shouting(str):
    __slots__ = ()

    def encode(self, *_args: object) -> bytes:
        return b"LOUD"

    def __str__(self) -> str:
        return "LOUD"


class Half(float):
    __slots__ = ()


class Numeral:
    """A number that is no subclass of Python's, such as NumPy's."""

    def __int__(self) -> int:
        return 7

    def __float__(self) -> float:
        return 0.5


class WholeNumeral(Numeral):
    pass


class RealNumeral(Numeral):
    pass


Integral.register(WholeNumeral)
Real.register(RealNumeral)


class Described:
    def __str__(self) -> str:
        return "described \ud800"


@pytest.mark.parametrize(
    ("value", "wanted"),
    [
        (True, AnyValue(bool_value=True)),
        (0, AnyValue(int_value=0)),
        (0.0, AnyValue(double_value=0.0)),
        ("", AnyValue(string_value="")),
        (b"", AnyValue(bytes_value=b"")),
        (2**63, AnyValue(string_value="9223372036854775808")),
        (-(2**63) - 1, AnyValue(string_value="-9223372036854775809")),
        ("a\ud83d\ude00b", AnyValue(string_value="a\ufffd\ufffdb")),
        (float("inf"), AnyValue(double_value=float("inf"))),
        (Size.SMALL, AnyValue(int_value=3)),
        (Fruit.APPLE, AnyValue(string_value="apple")),
        (Color.RED, AnyValue(string_value="Color.RED")),
        (Shouting("quiet"), AnyValue(string_value="quiet")),
        (Half(0.25), AnyValue(double_value=0.25)),
        (WholeNumeral(), AnyValue(int_value=7)),
        (RealNumeral(), AnyValue(double_value=0.5)),
        (Fraction(1, 3), AnyValue(string_value="1/3")),
        (Described(), AnyValue(string_value="described \ufffd")),
        ({1}, AnyValue(string_value="{1}")),
        (UserString("text"), AnyValue(string_value="text")),
        (memoryview(b"ab"), AnyValue(bytes_value=b"ab")),
        (deque([1, None]), expected.any_value([1, None])),
        (range(2), expected.any_value([0, 1])),
        (UserDict(a=1), expected.any_value({"a": 1})),
        (OrderedDict(a=[{}]), expected.any_value({"a": [{}]})),
        (MappingProxyType({"a": ()}), expected.any_value({"a": []})),
        ({Color.RED: 1, Fruit.APPLE: 2, None: 3}, expected.any_value({"Color.RED": 1, "apple": 2, "None": 3})),
    ],
    ids=lambda value: type(value).__name__,
)
def test_values_follow_the_attribute_mapping(value: object, wanted: AnyValue) -> None:
    assert value_of(value) == wanted


def test_ints_of_any_length_become_their_digits() -> None:
    assert value_of(-(10**5000)).string_value == "-1" + "0" * 5000


def test_keys_that_are_no_strings_become_strings_and_the_later_of_two_alike_counts() -> None:
    message = encode(attributes={"a": 0, 1: "int", "b": 1, "1": "str", Fruit.APPLE: 2}).to_message()
    assert [(attribute.key, attribute.value) for attribute in message.attributes] == [
        ("a", AnyValue(int_value=0)),
        ("1", AnyValue(string_value="str")),
        ("b", AnyValue(int_value=1)),
        ("apple", AnyValue(int_value=2)),
    ]


def test_an_empty_key_is_kept() -> None:
    (attribute,) = encode(attributes={"": 1}).to_message().attributes
    assert attribute == expected.attributes({"": 1})[0]


@pytest.mark.parametrize("key_length", [1, 250, 256, 300, 5000])
@pytest.mark.parametrize("size", [0, 1775, 1776, 2046, 2047, 2048, 100_000])
def test_keys_and_texts_of_every_length_have_the_right_lengths_in_front(key_length: int, size: int) -> None:
    attributes = {"k" * key_length: "v" * size, "k" * (key_length + 1): b"v" * size}
    encoded = encode(attributes=attributes)
    assert list(encoded.to_message().attributes) == expected.attributes(attributes)


def test_more_keys_than_are_remembered_are_encoded_too() -> None:
    encoder = SpanEncoder()
    for start in range(0, 5000, 500):
        attributes = {f"key.{number}": number for number in range(start, start + 500)}
        message = encoder.encode(make_span(attributes=attributes)).to_message()
        assert list(message.attributes) == expected.attributes(attributes)


def test_attributes_that_are_none_are_no_attributes() -> None:
    nothing = SimpleNamespace(name="", timestamp=0, attributes=None, dropped_attributes=0)
    span = span_like(attributes=None, events=[nothing])
    assert SpanEncoder().encode(span).to_message() == expected.span_message(make_span(events=[SpanEvent("", 0)]))


def nested(depth: int, wrap: Any) -> Any:
    value: Any = "bottom"
    for _ in range(depth):
        value = wrap(value)
    return value


@pytest.mark.parametrize(
    ("wrap", "deepest"), [(lambda value: [value], 47), (lambda value: {"k": value}, 31)], ids=["lists", "mappings"]
)
def test_nesting_is_accepted_as_deep_as_parsers_go_and_no_deeper(wrap: Any, deepest: int) -> None:
    event = SpanEvent("event", 1, {"deep": nested(deepest, wrap)})
    assert SpanBatch("here", [encode(events=[event])]).to_message().resource_spans
    for depth in (deepest + 1, 100_000):
        with pytest.raises(InvalidSpanError, match=r"^attributes\['deep'\] is .*nested too deep"):
            encode(attributes={"deep": nested(depth, wrap)})


def cyclic_list() -> object:
    cycle: list[object] = []
    cycle.append({"inside": (1, cycle)})
    return cycle


def cyclic_mapping() -> object:
    cycle: dict[str, object] = {"first": ["finite"]}
    cycle["self"] = [cycle]
    return cycle


@pytest.mark.parametrize("cycle", [cyclic_list(), cyclic_mapping()], ids=["list", "mapping"])
def test_a_value_that_contains_itself_is_refused_by_name(cycle: object) -> None:
    with pytest.raises(InvalidSpanError, match=r"^attributes\['loop'\] is .*contains itself"):
        encode(attributes={"fine": 1, "loop": cycle})
    with pytest.raises(InvalidSpanError, match=r"^resource\.attributes\['loop'\] is .*contains itself"):
        encode(resource=Resource({"loop": cycle}))


def test_a_value_that_occurs_twice_is_no_cycle() -> None:
    shared = [1, 2]
    assert value_of([shared, shared, {"again": shared}]) == expected.any_value([[1, 2], [1, 2], {"again": [1, 2]}])


# What is refused


def span_like(**fields: Any) -> Any:
    """Return an object with the attributes of a span, of no type of ours."""
    span = make_span()
    return SimpleNamespace(**{name: getattr(span, name) for name in attrs.fields_dict(Span)} | fields)


def context(**fields: Any) -> SpanContext:
    return attrs.evolve(CONTEXT, **fields)


WRONG_TRACE_IDS: list[Any] = [0, -1, 2**128, "ab" * 16, b"\x01" * 16, None, True, 1.0]
WRONG_SPAN_IDS: list[Any] = [0, -1, 2**64, "ab" * 8, b"\x01" * 8, None, True, 1.0]
WRONG_TIMES: list[Any] = [-1, 2**64, "1", 1.5, True, [1]]
WRONG_COUNTS: list[Any] = [-1, 2**32, None, "1", 0.5, True]
WRONG_TEXTS: list[Any] = [None, 5, b"bytes", ["text"]]

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
    *(("name", value, {"name": value}) for value in WRONG_TEXTS),
    *(("events[0].name", value, {"events": [SpanEvent(value, 1)]}) for value in WRONG_TEXTS),
    *(("status.description", value, {"status": Status(StatusCode.ERROR, value)}) for value in WRONG_TEXTS[1:]),
    *(("context.trace_state", value, {"context": context(trace_state=value)}) for value in WRONG_TEXTS[1:]),
    *(("kind", value, {"kind": value}) for value in [None, 1, "SERVER", Color.RED, StatusCode.OK, SpanKind]),
    *(("status.status_code", value, {"status": Status(value)}) for value in WRONG_CODES),
    *(("attributes", value, {"attributes": value}) for value in [5, "text", ["a"], [("a", 1)]]),
    ("events[0].attributes", 5, {"events": [SpanEvent("e", 1, FIVE)]}),
    ("links[0].attributes", 5, {"links": [SpanLink(CONTEXT, FIVE)]}),
    ("resource.attributes", 5, {"resource": Resource(FIVE)}),
    ("resource.schema_url", 5, {"resource": Resource({}, FIVE)}),
    ("resource.dropped_attributes", -1, {"resource": Resource({}, "", -1)}),
    ("instrumentation_scope.name", 5, {"instrumentation_scope": InstrumentationScope(FIVE)}),
    ("instrumentation_scope.version", 5, {"instrumentation_scope": InstrumentationScope("s", FIVE)}),
    ("instrumentation_scope.schema_url", 5, {"instrumentation_scope": InstrumentationScope("s", "", FIVE)}),
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
    *(
        ("links[0].context.trace_flags", value, {"links": [SpanLink(context(trace_flags=value))]})
        for value in [-1, None, "1"]
    ),
    ("context", None, {"context": None}),
    ("links[0].context", None, {"links": [SpanLink(NOTHING)]}),
    ("end_time", None, {"end_time": None}),
]


@pytest.mark.parametrize(
    ("field", "value", "fields"), INVALID, ids=[f"{field}={value!r:.20}" for field, value, _ in INVALID]
)
def test_what_otlp_cannot_express_is_refused_with_the_field_and_the_value(
    field: str, value: object, fields: dict[str, Any]
) -> None:
    for span in (make_span(**fields), span_like(**fields)):
        with pytest.raises(InvalidSpanError) as caught:
            SpanEncoder().encode(span)
        assert str(caught.value).startswith(f"{field} is ")
        assert repr(value)[:40] in str(caught.value)


def test_a_span_that_has_not_ended_is_refused_with_these_words() -> None:
    with pytest.raises(InvalidSpanError, match=r"^end_time is None: the span has not ended$"):
        encode(end_time=None)


@pytest.mark.parametrize(
    "value", ["x" * 10_000_000, 10**5000, list(range(100_000)), {str(n): n for n in range(1000)}], ids=range(4)
)
def test_the_message_stays_short_whatever_the_value(value: object) -> None:
    with pytest.raises(InvalidSpanError, match=r"^context\.span_id is ") as caught:
        encode(context=context(span_id=value))
    assert len(str(caught.value)) < 300


class Broken(Exception):
    pass


class Raising:
    """Raises whatever one does with it."""

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


class RaisingMapping(Mapping[str, object]):
    def __getitem__(self, key: str) -> object:
        raise Broken(key)

    def __iter__(self) -> Iterator[str]:
        return iter(["key"])

    def __len__(self) -> int:
        return 1


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        (r"attributes\['key'\]", {"attributes": {"fine": 1, "key": Raising()}}),
        (r"attributes\['key'\]", {"attributes": {"key": [{"deep": Raising()}]}}),
        (r"attributes\['key'\]", {"attributes": {"key": {Raising(): 1}}}),
        (r"attributes\['key'\]", {"attributes": {"key": RaisingMapping()}}),
        (r"attributes", {"attributes": {Raising(): 1}}),
        (r"attributes", {"attributes": RaisingMapping()}),
        (r"events\[1\]\.attributes\['key'\]", {"events": [SpanEvent("e", 1), SpanEvent("e", 1, {"key": Raising()})]}),
        (r"links\[0\]\.attributes\['key'\]", {"links": [SpanLink(CONTEXT, {"key": Raising()})]}),
        (r"events\[0\]", {"events": [Raising()]}),
        (r"links\[0\]", {"links": [Raising()]}),
        (r"resource", {"resource": Raising()}),
        (r"resource\.attributes\['key'\]", {"resource": Resource({"key": Raising()})}),
        (r"instrumentation_scope", {"instrumentation_scope": Raising()}),
        (
            r"instrumentation_scope\.attributes",
            {"instrumentation_scope": InstrumentationScope("s", attributes={"a": Raising()})},
        ),
        (r"the span", {"status": Raising()}),
        (r"the span", {"parent": Raising()}),
        (r"the span", {"events": Raising()}),
    ],
)
def test_whatever_raises_inside_of_a_span_makes_it_invalid(path: str, fields: dict[str, Any]) -> None:
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
def test_what_is_no_span_is_refused_like_a_bad_one(thing: Any) -> None:
    with pytest.raises(
        InvalidSpanError, match=r"is no span: .* has no attribute 'parent'|^(parent|the span) cannot be read"
    ):
        SpanEncoder().encode(thing)


@pytest.mark.parametrize("name", [field for field in attrs.fields_dict(Span) if field != "flags"])
def test_an_object_without_one_of_the_attributes_is_refused_by_its_name(name: str) -> None:
    span = span_like()
    delattr(span, name)
    with pytest.raises(InvalidSpanError, match=f"is no span: .* has no attribute '{name}'"):
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
    assert (encoded.payload, encoded.resource, encoded.scope) == (fresh.payload, fresh.resource, fresh.scope)


# Headers


def resource_of(encoded: EncodedSpan) -> Any:
    return ResourceSpans.FromString(encoded.resource).resource


def test_spans_without_a_resource_get_the_default_one() -> None:
    own, default = Resource({"service.name": "own"}), Resource({"service.name": "default"}, "https://schema")
    encoder = SpanEncoder(default)
    assert encoder.encode(make_span()).resource == SpanEncoder().encode(make_span(resource=default)).resource
    assert resource_of(encoder.encode(make_span(resource=own))).attributes[0].value.string_value == "own"


def test_an_empty_resource_and_scope_are_sent_and_none_is_not() -> None:
    empty = encode(resource=Resource(), instrumentation_scope=InstrumentationScope(""))
    assert ResourceSpans.FromString(empty.resource).HasField("resource")
    assert ScopeSpans.FromString(empty.scope).HasField("scope")
    assert (encode().resource, encode().scope) == (b"", b"")


def test_equal_resources_and_scopes_have_the_same_bytes_object() -> None:
    encoder = SpanEncoder()
    resources = [Resource({"service.name": "x", "numbers": [1]}) for _ in range(3)]
    scopes = [InstrumentationScope("x", attributes={"numbers": [1]}) for _ in range(3)]
    encoded = [
        encoder.encode(make_span(resource=resource, instrumentation_scope=scope))
        for resource, scope in itertools.product(resources, scopes)
    ]
    assert len({id(span.resource) for span in encoded}) == 1
    assert len({id(span.scope) for span in encoded}) == 1


class CountingResource:
    """A resource that knows how often it was read."""

    schema_url = ""

    def __init__(self, attributes: Any) -> None:
        self._attributes = attributes
        self.reads = 0

    @property
    def attributes(self) -> Any:
        self.reads += 1
        return self._attributes


@pytest.mark.parametrize(
    "attributes",
    [None, MappingProxyType({"a": 1, "b": (1, ("x", None)), "c": MappingProxyType({"d": b"x"})})],
    ids=["none", "constant"],
)
def test_a_resource_that_cannot_change_is_read_once(attributes: Any) -> None:
    resource, encoder = CountingResource(attributes), SpanEncoder()
    other = CountingResource(MappingProxyType({"other": 1}))
    for _ in range(3):
        encoder.encode(make_span(resource=resource))
        encoder.encode(make_span(resource=other))
    assert (resource.reads, other.reads) == (1, 1)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda value: {"key": value},
        lambda value: UserDict(key=value),
        lambda value: MappingProxyType({"key": [value]}),
        lambda value: MappingProxyType({"key": (1, [value])}),
        lambda value: MappingProxyType({"key": MappingProxyType({"k": [value]})}),
    ],
)
def test_a_change_to_a_mutable_resource_is_seen(wrap: Any) -> None:
    resource = CountingResource(wrap("before"))
    encoder = SpanEncoder()
    assert resource_of(encoder.encode(make_span(resource=resource))).attributes == expected.attributes(wrap("before"))
    resource._attributes = wrap("after")
    assert resource_of(encoder.encode(make_span(resource=resource))).attributes == expected.attributes(wrap("after"))


def test_more_resources_than_are_remembered_are_never_mixed_up() -> None:
    encoder = SpanEncoder()
    kept = [Resource({"number": number}) for number in range(1500)]
    for number, resource in [*enumerate(kept), *enumerate(kept)]:
        header = resource_of(encoder.encode(make_span(resource=resource)))
        assert header.attributes[0].value.int_value == number
    # Short-lived ones would have each other's identity if nobody kept them.
    for number in range(3000):
        header = resource_of(encoder.encode(make_span(resource=Resource({"number": number}))))
        assert header.attributes[0].value.int_value == number
    gc.collect()
    alive = sum(isinstance(thing, Resource) for thing in gc.get_objects()) - len(kept)
    assert alive <= 1100


def test_headers_over_64_kib_are_encoded_but_not_kept() -> None:
    encoder = SpanEncoder()
    large = Resource({"text": "x" * 70_000})
    first, second = (encoder.encode(make_span(resource=large)) for _ in range(2))
    assert first.resource == second.resource
    assert first.resource is not second.resource


def test_the_encoder_needs_no_opentelemetry_sdk() -> None:
    program = """
import sys
for name in ("opentelemetry.sdk", "opentelemetry.trace", "opentelemetry.attributes"):
    sys.modules[name] = None
from trio_spanbatch._records import Span, SpanContext
from trio_spanbatch.otlp.encoding import SpanEncoder
SpanEncoder().encode(Span("x", SpanContext(1, 2), start_time=1, end_time=2, attributes={"a": [1]}))
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
