"""Helpers for tests of the encoder."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import attrs
from opentelemetry.proto.common.v1.common_pb2 import AnyValue

from trio_spanbatch._spans.batch import EncodedSpan
from trio_spanbatch._spans.encoder import SpanEncoder
from trio_spanbatch._spans.records import Span, SpanContext

CONTEXT = SpanContext(0xABCDEF0123456789ABCDEF0123456789, 0xABCDEF0123456789)


def make_span(**fields: Any) -> Span:
    minimal: dict[str, Any] = {"name": "work", "context": CONTEXT, "start_time": 1, "end_time": 2}
    return Span(**minimal | fields)


def encode(**fields: Any) -> EncodedSpan:
    return SpanEncoder().encode(make_span(**fields))


def value_of(value: object) -> AnyValue:
    """Return the message of an attribute with ``value``."""
    (attribute,) = encode(attributes={"key": value}).to_message().attributes
    return attribute.value


def assert_same(message: Any, expected: Any) -> None:
    # Messages with a NaN are not equal to themselves; their bytes are.
    assert message.SerializeToString(deterministic=True) == expected.SerializeToString(deterministic=True)


def span_like(**fields: Any) -> Any:
    """Return an object of another type with the attributes of a span."""
    span = make_span()
    return SimpleNamespace(**{name: getattr(span, name) for name in attrs.fields_dict(Span)} | fields)
