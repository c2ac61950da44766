"""The encoding of attribute values."""

from __future__ import annotations

import enum
from collections import OrderedDict, UserDict, UserString, deque
from collections.abc import Callable, Sequence
from fractions import Fraction
from numbers import Integral, Real
from types import MappingProxyType, SimpleNamespace
from typing import Any

import pytest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue

from tests.unit.spans import expected_messages as expected
from tests.unit.spans.support import encode, make_span, span_like, value_of
from trio_spanbatch._spans import attributes
from trio_spanbatch._spans.batch import SpanBatch
from trio_spanbatch._spans.encoder import SpanEncoder
from trio_spanbatch._spans.records import SpanEvent


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
    """A number that is not a subclass of Python's, such as NumPy's."""

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


def test_ints_beyond_64_bits_become_their_digits() -> None:
    assert value_of(-(10**5000)).string_value == "-1" + "0" * 5000


def test_keys_that_are_not_strings_become_strings_and_the_last_of_equal_keys_counts() -> None:
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
def test_keys_and_texts_of_every_length_have_correct_length_prefixes(key_length: int, size: int) -> None:
    attributes = {"k" * key_length: "v" * size, "k" * (key_length + 1): b"v" * size}
    encoded = encode(attributes=attributes)
    assert list(encoded.to_message().attributes) == expected.attributes(attributes)


def test_more_keys_than_the_cache_holds_are_encoded_correctly() -> None:
    encoder = SpanEncoder()
    for start in range(0, 5000, 500):
        attributes = {f"key.{number}": number for number in range(start, start + 500)}
        message = encoder.encode(make_span(attributes=attributes)).to_message()
        assert list(message.attributes) == expected.attributes(attributes)


def test_none_counts_as_no_attributes() -> None:
    nothing = SimpleNamespace(name="", timestamp=0, attributes=None, dropped_attributes=0)
    span = span_like(attributes=None, events=[nothing])
    assert SpanEncoder().encode(span).to_message() == expected.span_message(make_span(events=[SpanEvent("", 0)]))


def assert_dropped(value: object) -> None:
    """Assert that only the attribute with ``value`` is dropped."""
    message = encode(attributes={"fine": 1, "bad": value}, dropped_attributes=3).to_message()
    assert ([attribute.key for attribute in message.attributes], message.dropped_attributes_count) == (["fine"], 4)


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
        message = encode(attributes={"deep": nested(depth, wrap), "fine": 1}).to_message()
        assert ([attribute.key for attribute in message.attributes], message.dropped_attributes_count) == (["fine"], 1)


def cyclic_list() -> object:
    cycle: list[object] = []
    cycle.append({"inside": (1, cycle)})
    return cycle


def cyclic_mapping() -> object:
    cycle: dict[str, object] = {"first": ["finite"]}
    cycle["self"] = [cycle]
    return cycle


@pytest.mark.parametrize("cycle", [cyclic_list(), cyclic_mapping()], ids=["list", "mapping"])
def test_a_value_that_contains_itself_is_dropped(cycle: object) -> None:
    assert_dropped(cycle)


def test_a_value_that_occurs_twice_is_not_a_cycle() -> None:
    shared = [1, 2]
    assert value_of([shared, shared, {"again": shared}]) == expected.any_value([[1, 2], [1, 2], {"again": [1, 2]}])


class Markup(str):
    __slots__ = ()


class Marked:
    def __str__(self) -> str:
        return Markup("marked")


def test_no_attribute_is_lost_if_the_str_of_a_key_is_of_a_subclass() -> None:
    message = encode(attributes={"first": 1, Marked(): 2, "last": 3}).to_message()
    assert [attribute.key for attribute in message.attributes] == ["first", "marked", "last"]


@pytest.mark.parametrize("wrap", [lambda inner: [inner, inner], lambda inner: {"a": inner, "b": inner}])
def test_a_value_with_exponentially_many_references_is_dropped_before_it_fills_memory(
    wrap: Callable[[object], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attributes, "_MAX_CONTAINER_SIZE", 10_000)
    value: object = []
    for _ in range(30):
        value = wrap(value)
    assert_dropped(value)


@pytest.mark.parametrize("count", [10**9, 10**18])
def test_a_huge_range_is_dropped_before_it_fills_memory(count: int) -> None:
    assert_dropped(range(count))


def test_an_endless_sequence_is_dropped() -> None:
    class Wheel(Sequence[int]):
        def __getitem__(self, index: Any) -> Any:
            return index % 3

        def __len__(self) -> int:
            return 3

    assert_dropped(Wheel())
