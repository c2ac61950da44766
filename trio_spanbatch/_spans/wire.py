"""The few rules of protobuf's wire format that a request is built with.

A message is a run of fields. A field is a tag (its number and wire type, as a varint) and a value; a
length-delimited value (a string, bytes, a message) is its length as a varint and then its bytes. Repeated
fields are simply repeated, so the bytes of many spans, each encoded by itself, can be joined afterwards.
https://protobuf.dev/programming-guides/encoding/
"""

from __future__ import annotations

from typing import Any, Final

from .checks import COUNT_END, checked_number, text_of

__all__ = [
    "TABLE_SIZE",
    "VARINTS",
    "TextFields",
    "count_field",
    "delimited",
    "text_field",
    "varint",
    "varint_size",
]

# Fields that messages are made of, checked and with their tags.
#
# A tag is ``field number << 3 | wire type``; the wire types are 0 (varint), 1 (64 bits), 2 (length-delimited) and
# 5 (32 bits). Text and counts that have proto3's default are left out, as protobuf does it.

# Names are few and short; that there are more is data taken for names.
_MAX_REMEMBERED: Final = 1024
_LONGEST_REMEMBERED: Final = 128


def delimited(tag: bytes, content: bytes) -> bytes:
    """Return a length-delimited field. ``tag`` may be empty, for a length and the content only."""
    size = len(content)
    return tag + (VARINTS[size] if size < TABLE_SIZE else varint(size)) + content


def text_field(tag: bytes, text: Any) -> bytes:
    """Return a field of text (see `text_of`); nothing if it is empty."""
    content = text_of(text)
    return delimited(tag, content) if content else b""


def count_field(tag: bytes, count: Any, field: str, more: int = 0) -> bytes:
    """Return a field of type uint32 with the sum of two counts, or with the largest number if that is too much for it.

    Args:
        tag: The field's tag.
        count: What a span says. Nothing is returned if the sum is 0.
        field: The field's name, for messages.
        more: What is added to it.

    Raises:
        InvalidSpanError: ``count`` is not a whole number of 32 bits.
    """
    total = checked_number(count, COUNT_END, field, "a count") + more
    return tag + varint(min(total, COUNT_END - 1)) if total else b""


class TextFields:
    """A field of text that has the same values again and again, such as a span's name: they are remembered.

    Args:
        tag: The field's tag.
    """

    __slots__ = ("_known", "_tag")

    def __init__(self, tag: bytes) -> None:
        self._tag = tag
        self._known: dict[str, bytes] = {}

    def field(self, text: Any) -> bytes:
        """Return the field with ``text`` (see `text_of`); nothing if it is empty."""
        known = self._known.get(text) if type(text) is str else None
        return self._made(text) if known is None else known

    def _made(self, text: Any) -> bytes:
        made = text_field(self._tag, text)
        if type(text) is str and len(text) <= _LONGEST_REMEMBERED:
            if len(self._known) >= _MAX_REMEMBERED:
                self._known.clear()
            self._known[text] = made
        return made


def varint(value: int) -> bytes:
    """Return ``value`` (0 to 2**64-1) in base 128, least significant group first."""
    if value < 0x80:
        return bytes((value,))
    if value < 0x4000:
        return bytes((value & 0x7F | 0x80, value >> 7))
    groups = bytearray()
    while value > 0x7F:
        groups.append(value & 0x7F | 0x80)
        value >>= 7
    groups.append(value)
    return bytes(groups)


def varint_size(value: int) -> int:
    """Return ``len(varint(value))``."""
    if value < 0x80:
        return 1
    if value < 0x4000:
        return 2
    return (value.bit_length() + 6) // 7


# Nearly all lengths are short, and looking one up takes a tenth of the time of making it.
TABLE_SIZE: Final = 2048
VARINTS: Final = tuple(map(varint, range(TABLE_SIZE)))
