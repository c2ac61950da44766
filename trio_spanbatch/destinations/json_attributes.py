"""Decode span attributes whose values are JSON.

MLflow stores each attribute of a span as JSON, so that the number 3 is the string ``3`` and a string has quotes around
it. Its own exporters decode them before they send a span, and so does `decoded`. Only the attributes of spans are
decoded: MLflow does not encode those of events, links and resources.

A string stays as it is if it is not JSON (``NaN`` is not), or if decoding would lose information or cost too much: an
object with duplicate names, a lone surrogate, more than 1 MiB or 10,000 commas and brackets, or nested too deep for
servers. A number without a 64-bit form becomes a string of its digits.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import Any

import trio
from google.protobuf.message import DecodeError
from opentelemetry.proto.common.v1.common_pb2 import AnyValue

from .._spans.batch import EncodedSpan, SpanBatch

__all__ = ["decoded"]

_MAX_CHARACTERS = 1024 * 1024
_MAX_ITEMS = 10_000

# protobuf's parsers accept 100 nested messages. The value of a span's attribute is at level 6; a list adds two levels
# (ArrayValue, AnyValue), an object three (KeyValueList, KeyValue, AnyValue).
_MAX_LEVELS = 94
_LIST_LEVELS = 2
_OBJECT_LEVELS = 3

# Characters decoded between two checkpoints. A value counts as 128 characters, which take two microseconds.
_CHARACTERS_PER_VALUE = 128
_STEP = 64 * 1024

# The first characters of JSON, white space included.
_FIRST_CHARACTERS = frozenset('{["-0123456789tfn \t\n\r')


async def decoded(batch: SpanBatch) -> SpanBatch:
    """Return ``batch`` with the attributes of its spans decoded where they are JSON."""
    budget = _Budget()
    spans = [await _decoded_span(span, budget) for span in batch.spans]
    await trio.lowlevel.checkpoint()
    return SpanBatch(batch.location, spans)


class _Budget:
    def __init__(self) -> None:
        self._left = _STEP

    async def spend(self, characters: int) -> None:
        self._left -= characters
        if self._left < 0:
            self._left = _STEP
            await trio.lowlevel.checkpoint()


async def _decoded_span(span: EncodedSpan, budget: _Budget) -> EncodedSpan:
    await budget.spend(span.size)
    try:
        message = span.to_message()
    except DecodeError:
        # The server reports the error.
        return span
    changed = False
    for attribute in message.attributes:
        if attribute.value.WhichOneof("value") == "string_value":
            value = await _decoded_text(attribute.value.string_value, budget)
            if value is not None:
                attribute.value.CopyFrom(value)
                changed = True
    return EncodedSpan(message.SerializeToString(), span.headers) if changed else span


async def _decoded_text(text: str, budget: _Budget) -> AnyValue | None:
    """Return the decoded value of ``text``, or None if it stays as it is."""
    if text[:1] not in _FIRST_CHARACTERS or not _is_bounded(text):
        return None
    await budget.spend(len(text))
    try:
        document = json.loads(
            text, parse_int=_integer, parse_float=_float, parse_constant=_refuse_constant, object_pairs_hook=_object
        )
        value = AnyValue()
        for _ in _fill(value, document):
            await budget.spend(_CHARACTERS_PER_VALUE)
    except (ValueError, RecursionError):
        return None
    return value


def _is_bounded(text: str) -> bool:
    return len(text) <= _MAX_CHARACTERS and text.count(",") + text.count("[") + text.count("{") <= _MAX_ITEMS


def _fill(target: AnyValue, document: Any) -> Iterator[None]:
    """Write ``document`` into ``target``, and yield after each value in it."""
    todo = [(target, document, _MAX_LEVELS)]
    while todo:
        target, value, levels = todo.pop()
        if levels < 0:
            raise ValueError("it is nested too deeply")
        if isinstance(value, bool):
            target.bool_value = value
        elif isinstance(value, str):
            target.string_value = value
        elif isinstance(value, int):
            target.int_value = value
        elif isinstance(value, float):
            target.double_value = value
        elif isinstance(value, list):
            target.array_value.SetInParent()
            todo += [(target.array_value.values.add(), item, levels - _LIST_LEVELS) for item in value]
        elif isinstance(value, dict):
            target.kvlist_value.SetInParent()
            for key, item in value.items():
                todo.append((target.kvlist_value.values.add(key=key).value, item, levels - _OBJECT_LEVELS))
        # None is an empty AnyValue, which must still be present as a member of an object.
        if value is None:
            target.SetInParent()
        yield


def _integer(digits: str) -> int | str:
    # int() refuses thousands of digits; an int64 has at most 19.
    number = int(digits) if len(digits) <= 20 else None
    return number if number is not None and -(2**63) <= number < 2**63 else digits


def _float(digits: str) -> float | str:
    number = float(digits)
    return number if math.isfinite(number) else digits


def _refuse_constant(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ValueError("an object has duplicate names")
    return members
