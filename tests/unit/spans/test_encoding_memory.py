"""The encoder's caches: never the wrong bytes, and bounded."""

from __future__ import annotations

import random
import tracemalloc
from collections.abc import Iterator
from typing import Any

import pytest

from tests.unit.spans.support import make_span
from trio_spanbatch import InstrumentationScope, Resource, SpanContext, SpanEvent, SpanLink
from trio_spanbatch._spans.encoder import SpanEncoder

# Equal in Python, or of the same text, but different values.
ALIKE: list[Any] = [
    1,
    True,
    1.0,
    "1",
    b"1",
    0,
    False,
    0.0,
    -0.0,
    "0",
    "",
    b"",
    None,
    "True",
    "None",
    (1,),
    (True,),
    (1.0,),
]


def tables(encoder: SpanEncoder) -> list[dict[Any, Any]]:
    """Return all tables of an encoder and of its parts, each once."""
    return list({id(table): table for table in _inside(encoder)}.values())


def _inside(value: object) -> Iterator[dict[Any, Any]]:
    if isinstance(value, dict):
        yield value
        for item in value.values():
            yield from _inside(item)
    elif isinstance(value, tuple):
        for item in value:
            yield from _inside(item)
    elif type(value).__module__.startswith("trio_spanbatch._spans"):
        for name in getattr(type(value), "__slots__", ()):
            yield from _inside(getattr(value, name))


def entries(encoder: SpanEncoder) -> int:
    return sum(map(len, tables(encoder)))


def test_equal_values_of_different_types_are_distinguished() -> None:
    encoder, rng = SpanEncoder(), random.Random(1)
    for _ in range(40):
        for value in rng.sample(ALIKE, len(ALIKE)):
            span = make_span(attributes={"key": value, "other": value})
            assert encoder.encode(span).payload == SpanEncoder().encode(span).payload


def test_a_key_with_a_new_value_in_each_span_is_encoded_correctly() -> None:
    encoder = SpanEncoder()
    for number in range(100):
        for value in (f"id-{number}", number, f"id-{number % 3}", number % 3):
            span = make_span(attributes={"key": value})
            assert encoder.encode(span).payload == SpanEncoder().encode(span).payload


def test_the_same_attribute_of_spans_events_and_links_is_distinguished() -> None:
    encoder, attributes = SpanEncoder(), {"key": "value", "number": 7}
    span = make_span(
        attributes=attributes,
        events=[SpanEvent("event", 1, attributes)],
        links=[SpanLink(SpanContext(1, 2), attributes)],
        resource=Resource(attributes),
        instrumentation_scope=InstrumentationScope("scope", attributes=attributes),
    )
    for _ in range(3):
        encoded, fresh = encoder.encode(span), SpanEncoder().encode(span)
        assert (encoded.payload, encoded.headers) == (fresh.payload, fresh.headers)
        message = encoded.to_message()
        assert len(message.attributes) == 2
        assert message.attributes == message.events[0].attributes == message.links[0].attributes


@pytest.mark.parametrize("what", ["values", "keys", "names", "resources", "scopes"])
def test_the_number_of_cached_entries_is_bounded(what: str) -> None:
    encoder = SpanEncoder()
    most = 0
    for number in range(10_000):
        encoder.encode(
            make_span(
                name=f"name {number}" if what == "names" else "work",
                attributes={f"key {number}" if what == "keys" else "key": number if what == "values" else "value"},
                resource=Resource({"number": number}) if what == "resources" else None,
                instrumentation_scope=InstrumentationScope(f"scope {number}") if what == "scopes" else None,
            )
        )
        if number % 500 == 0:
            most = max(most, entries(encoder))
    assert most <= 6_000


@pytest.mark.parametrize("what", ["resources", "mutable resources", "scopes", "both"])
def test_the_cache_of_large_resources_and_scopes_is_bounded_by_bytes(what: str) -> None:
    encoder = SpanEncoder()
    tracemalloc.start()
    try:
        for number in range(1000):
            attributes = {"number": [number] if what == "mutable resources" else number, "text": "x" * 60_000}
            encoder.encode(
                make_span(
                    resource=None if what == "scopes" else Resource(attributes),
                    instrumentation_scope=InstrumentationScope("scope", attributes=attributes)
                    if what in ("scopes", "both")
                    else None,
                )
            )
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most <= 8_000_000


@pytest.mark.parametrize("value", [10**5000, -(10**5000), "x" * 100_000], ids=["int", "negative int", "text"])
def test_a_large_value_is_not_remembered(value: object) -> None:
    encoder = SpanEncoder()
    before = entries(encoder)
    for key in ("one", "two"):
        encoder.encode(make_span(attributes={key: value}))
    assert not any(value in table for table in tables(encoder))
    assert before < entries(encoder), "the keys are"
