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
from typing import Any

import trio
from google.protobuf.message import DecodeError

from .._spans.attributes import encoded_value
from .._spans.batch import EncodedSpan, SpanBatch

_MAX_CHARACTERS = 1024 * 1024
_MAX_ITEMS = 10_000

# Characters decoded between two checkpoints. A value counts as 128 characters, which take two microseconds.
_CHARACTERS_PER_VALUE = 128
_STEP = 64 * 1024

# Field 2 (value) of KeyValue.
_VALUE_TAG = b"\x12"

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
                attribute.value.Clear()
                attribute.MergeFromString(_VALUE_TAG + value)
                changed = True
    return EncodedSpan(message.SerializeToString(), span.headers) if changed else span


async def _decoded_text(text: str, budget: _Budget) -> bytes | None:
    """Return the encoded value of ``text``, with its length in front, or None if it stays as it is."""
    if text[:1] not in _FIRST_CHARACTERS or len(text) > _MAX_CHARACTERS:
        return None
    items = sum(map(text.count, ",[{"))
    if items > _MAX_ITEMS:
        return None
    await budget.spend(len(text))
    try:
        document = json.loads(
            text, parse_int=_integer, parse_float=_float, parse_constant=_refuse_constant, object_pairs_hook=_object
        )
        # Encoding the value takes about as long as parsing it, so other tasks may run in between.
        await budget.spend(_CHARACTERS_PER_VALUE * items)
        if "\\u" in text:
            # Raises an error for a lone surrogate, which would be replaced.
            json.dumps(document, ensure_ascii=False).encode()
        return encoded_value(document)
    except (ValueError, RecursionError):
        return None


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
