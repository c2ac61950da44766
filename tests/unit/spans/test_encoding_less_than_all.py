"""If a part of a span cannot be expressed, only that part is dropped."""

from __future__ import annotations

import contextlib
import decimal
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from opentelemetry.proto.common.v1 import common_pb2
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, ScopeSpans

from tests.unit.spans.support import CONTEXT, encode, make_span, span_like
from trio_spanbatch import (
    EncodedSpan,
    InstrumentationScope,
    InvalidSpanError,
    Resource,
    SpanContext,
    SpanEvent,
    SpanLink,
    Status,
    StatusCode,
)
from trio_spanbatch._spans import checks
from trio_spanbatch._spans.encoder import SpanEncoder


class Index:
    def __init__(self, value: int) -> None:
        self._value = value

    def __index__(self) -> int:
        return self._value


class Described:
    def __str__(self) -> str:
        return "described"


class Mute:
    def __str__(self) -> str:
        raise ValueError("no str")


class Masked:
    @property  # type: ignore[misc]  # on purpose
    def __class__(self) -> type:
        raise ValueError("no class")


class Endless(Mapping[str, int]):
    """Has a length of two, and endless items."""

    def __getitem__(self, key: str) -> int:
        return len(key)

    def __iter__(self) -> Iterator[str]:
        number = 0
        while True:
            yield f"key {number}"
            number += 1

    def __len__(self) -> int:
        return 2


class Partial(Mapping[str, int]):
    """Raises for one of its keys."""

    def __getitem__(self, key: str) -> int:
        if key == "bad":
            raise LookupError(key)
        return 1

    def __iter__(self) -> Iterator[str]:
        return iter(["first", "bad", "last"])

    def __len__(self) -> int:
        return 3


class Broken(Partial):
    """Raises after its first key."""

    def __iter__(self) -> Iterator[str]:
        yield "first"
        raise OSError("gone")


class Unmeasured(Partial):
    def __len__(self) -> int:
        raise OSError("gone")


class Recursive:
    def __str__(self) -> str:
        return str(self)


def twice(depth: int) -> tuple[Any, ...]:
    value: tuple[Any, ...] = ()
    for _ in range(depth):
        value = (value, value)
    return value


def released() -> memoryview:
    view = memoryview(b"text")
    view.release()
    return view


def owners(encoded: EncodedSpan) -> list[Any]:
    """The five messages that have attributes."""
    message = encoded.to_message()
    resource = ResourceSpans.FromString(encoded.headers.resource).resource
    scope = ScopeSpans.FromString(encoded.headers.scope).scope
    return [message, message.events[0], message.links[0], resource, scope]


def with_attributes(attributes: Any, dropped: int = 0) -> EncodedSpan:
    span = make_span(
        attributes=attributes,
        events=[SpanEvent("event", 1, attributes, dropped)],
        links=[SpanLink(CONTEXT, attributes, dropped)],
        resource=Resource(attributes, "", dropped),
        instrumentation_scope=InstrumentationScope("scope", attributes=attributes, dropped_attributes=dropped),
        dropped_attributes=dropped,
    )
    return SpanEncoder().encode(span)


BAD: dict[str, Callable[[], object]] = {
    "str raises": Mute,
    "in a list": lambda: [1, [Mute()]],
    "in a mapping": lambda: {"a": {"b": Mute()}},
    "a key in a mapping": lambda: {Mute(): 1},
    "class raises": Masked,
    "recursive str": Recursive,
    "endless mapping": Endless,
    "partial mapping": Partial,
    "released memory": released,
    "a str that fills memory": lambda: {1: twice(60)}.values(),
}


@pytest.mark.parametrize("make", BAD.values(), ids=BAD.keys())
def test_only_attributes_that_cannot_be_expressed_are_dropped(
    make: Callable[[], object],
) -> None:
    for owner in owners(with_attributes({"first": 1, "bad": make(), "last": "text"}, dropped=2)):
        assert [attribute.key for attribute in owner.attributes] == ["first", "last"]
        assert owner.dropped_attributes_count == 3


def test_an_attribute_whose_key_raises_in_str_is_dropped() -> None:
    for owner in owners(with_attributes({"first": 1, Mute(): 2, 5: 3})):
        assert [attribute.key for attribute in owner.attributes] == ["first", "5"]
        assert owner.dropped_attributes_count == 1


@pytest.mark.parametrize(
    ("attributes", "keys", "dropped"),
    [
        (Partial(), ["first", "last"], 1),
        (Broken(), ["first"], 2),
        (Endless(), ["key 0", "key 1"], 1),
        (Unmeasured(), [], 1),
    ],
    ids=lambda value: type(value).__name__,
)
def test_attributes_that_can_be_read_are_sent_if_others_cannot(attributes: Any, keys: list[str], dropped: int) -> None:
    message = SpanEncoder().encode(span_like(attributes=attributes)).to_message()
    assert [attribute.key for attribute in message.attributes] == keys
    assert message.dropped_attributes_count == dropped


def test_dropped_counts_are_limited_to_32_bits() -> None:
    for owner in owners(with_attributes({"a": Mute(), "b": Mute()}, dropped=2**32 - 2)):
        assert owner.dropped_attributes_count == 2**32 - 1


def test_an_encoder_that_dropped_an_attribute_encodes_the_next_span_as_a_new_one() -> None:
    encoder, good = SpanEncoder(), make_span(attributes={"key": 1, "other": "text"})
    encoder.encode(make_span(attributes={"key": Mute(), "other": [Mute()]}))
    assert encoder.encode(good).payload == SpanEncoder().encode(good).payload


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_exceptions_that_end_a_program_propagate(error: type[BaseException]) -> None:
    class Ending:
        def __str__(self) -> str:
            raise error

    for fields in ({"attributes": {"a": Ending()}}, {"name": Ending()}):
        with pytest.raises(error):
            SpanEncoder().encode(span_like(**fields))


def deep_value() -> object:
    value: object = Described()
    for _ in range(40):
        value = [value]
    return value


def test_a_recursion_error_from_the_callers_full_stack_is_raised_and_drops_nothing() -> None:
    encoder, span = SpanEncoder(), make_span(attributes={"deep": deep_value()})
    expected = encoder.encode(span).payload
    outcomes: list[object] = []

    def descend() -> None:
        with contextlib.suppress(RecursionError):
            descend()
        try:
            outcomes.append(encoder.encode(span).payload)
        except RecursionError:
            outcomes.append(None)

    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(600)
    try:
        descend()
    finally:
        sys.setrecursionlimit(limit)
    assert None in outcomes
    assert set(outcomes) == {None, expected}


def test_times_counts_and_flags_may_be_any_type_with_index() -> None:
    message = encode(
        start_time=Index(5),
        end_time=Index(6),
        events=[SpanEvent("event", Index(7), {}, Index(1))],  # type: ignore[arg-type]  # on purpose
        links=[SpanLink(SpanContext(1, 2, trace_flags=Index(1)), {}, Index(2)), SpanLink(CONTEXT, flags=Index(9))],  # type: ignore[arg-type]  # on purpose
        dropped_attributes=Index(3),
        dropped_events=Index(4),
        dropped_links=Index(0),
        flags=Index(0x301),
    ).to_message()
    (event,), (link, other) = message.events, message.links
    assert (message.start_time_unix_nano, message.end_time_unix_nano, event.time_unix_nano) == (5, 6, 7)
    assert (event.dropped_attributes_count, link.dropped_attributes_count) == (1, 2)
    assert (message.dropped_attributes_count, message.dropped_events_count, message.dropped_links_count) == (3, 4, 0)
    assert (message.flags, link.flags, other.flags) == (0x301, 0x101, 9)


class BrokenFlags:
    trace_id, span_id, is_remote, trace_state = 1, 2, False, ""

    @property
    def trace_flags(self) -> int:
        raise ValueError("no flags")


@pytest.mark.parametrize("flags", [-1, "1", 1.5, [1], Mute(), Index(-1)], ids=range(6))
def test_no_span_is_lost_for_the_trace_flags_of_a_context(flags: Any) -> None:
    context = SpanContext(1, 2, trace_flags=flags)
    for odd in (context, BrokenFlags()):
        message = encode(context=odd, links=[SpanLink(odd)]).to_message()  # type: ignore[arg-type]  # on purpose
        assert (message.flags, message.links[0].flags) == (0x100, 0x100)


def test_trace_flags_are_the_lowest_8_bits_of_a_number_for_a_span_and_a_link_alike() -> None:
    for flags, sent in ((0x1FF, 0xFF), (2**32 + 3, 3), (True, 1), (Index(2**70 + 1), 1)):
        context = SpanContext(1, 2, trace_flags=flags)  # type: ignore[arg-type]  # on purpose
        message = encode(context=context, links=[SpanLink(context)]).to_message()
        assert (message.flags, message.links[0].flags) == (0x100 | sent, 0x100 | sent)


def test_the_entity_refs_of_a_resource_may_be_none() -> None:
    resource: Any = SimpleNamespace(attributes={"a": 1}, schema_url="", entity_refs=None)
    assert ResourceSpans.FromString(encode(resource=resource).headers.resource).resource.attributes[0].key == "a"


def test_a_subclass_of_bytes_that_overrides_bytes_is_sent_by_its_content() -> None:
    class Bytes(bytes):
        def __bytes__(self) -> bytes:
            raise ValueError("no bytes")

    class Array(bytearray):
        def __bytes__(self) -> bytes:
            raise ValueError("no bytes")

    message = encode(attributes={"a": Bytes(b"x"), "b": Array(b"y"), "c": [Bytes(b"z")]}).to_message()
    assert message.dropped_attributes_count == 0
    assert [attribute.value.bytes_value for attribute in message.attributes] == [b"x", b"y", b""]
    assert message.attributes[2].value.array_value.values[0].bytes_value == b"z"


def test_a_float_is_refused_as_a_time_with_the_remedy() -> None:
    with pytest.raises(
        InvalidSpanError, match=r"^start_time is 1\.5: .* an int from 0 to .*; round a float with int\("
    ):
        encode(start_time=1.5)


def test_ids_must_be_ints() -> None:
    with pytest.raises(InvalidSpanError, match=r"^context\.span_id is "):
        encode(context=SpanContext(1, Index(2)))  # type: ignore[arg-type]  # on purpose


@pytest.mark.parametrize(
    ("given", "sent"),
    [
        (None, ""),
        (5, "5"),
        (b"bytes", "b'bytes'"),
        (["text"], "['text']"),
        (Path("a"), "a"),
        (decimal.Decimal("1.50"), "1.50"),
        (Described(), "described"),
        (Mute(), ""),
        (twice(60), ""),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_name_of_none_is_empty_and_other_types_are_sent_as_their_str(given: Any, sent: str) -> None:
    span = make_span(
        name=given,
        context=SpanContext(1, 2, trace_state=given),
        events=[SpanEvent(given, 1)],
        status=Status(StatusCode.ERROR, given),
        resource=Resource({}, given),
        instrumentation_scope=InstrumentationScope(given, given, given),
    )
    encoded = SpanEncoder().encode(span)
    message, scope = encoded.to_message(), ScopeSpans.FromString(encoded.headers.scope)
    texts = [message.name, message.trace_state, message.events[0].name, message.status.message]
    texts += [ResourceSpans.FromString(encoded.headers.resource).schema_url]
    texts += [scope.scope.name, scope.scope.version, scope.schema_url]
    assert texts == [sent] * len(texts)


def test_a_trace_state_that_cannot_be_read_is_left_out() -> None:
    states: list[Any] = [Broken(), Endless(), Unmeasured()]
    for state in states:
        context = SpanContext(1, 2)
        object.__setattr__(context, "trace_state", state)  # the record would read it
        message = encode(context=context, links=[SpanLink(context)]).to_message()
        assert (message.trace_state, message.links[0].trace_state) == ("", "")


def test_the_length_of_a_str_is_checked_before_it_is_created(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "_MAX_STR_SIZE", 3000)
    assert encode(name={"a": (1, 2)}).to_message().name == "{'a': (1, 2)}"
    assert encode(name=["x" * 3000]).to_message().name == ""


@pytest.mark.parametrize("kind", [list, tuple])
def test_a_list_that_is_too_large_by_its_length_is_dropped_before_an_item_is_encoded(kind: type[Any]) -> None:
    class Counted:
        seen = 0

        def __str__(self) -> str:
            self.seen += 1
            return ""

    item = Counted()
    items = kind([item]) * (8 * 1024 * 1024 + 1)

    message = encode(attributes={"list": items, "nested": [items], "good": 1}).to_message()

    assert [attribute.key for attribute in message.attributes] == ["good"]
    assert message.dropped_attributes_count == 2
    assert item.seen == 0


def test_unusual_values_that_can_be_expressed_are_not_dropped() -> None:
    message = encode(attributes={"generator": iter(()), "nan": float("nan"), "none": None, "": 1}).to_message()
    assert message.dropped_attributes_count == 0
    assert [attribute.key for attribute in message.attributes] == ["generator", "nan", "none", ""]
    assert message.attributes[2].value == common_pb2.AnyValue()
