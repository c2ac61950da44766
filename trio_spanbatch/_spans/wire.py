"""The parts of protobuf's wire format that requests need.

https://protobuf.dev/programming-guides/encoding/

A message is a sequence of fields. A field is a tag (``field number << 3 | wire type``, as a varint) and a value; the
wire types are 0 (varint), 1 (64 bits), 2 (length-delimited) and 5 (32 bits). A length-delimited value (a string, bytes,
a message) is its length as a varint and then its bytes. Repeated fields are simply repeated, so spans can be encoded
one by one and joined afterwards. Text and counts with proto3's default value are omitted, as protobuf does.
"""

from __future__ import annotations

from typing import Any, Final

from .checks import COUNT_END, checked_number, text_of

# Most programs use few and short names. If there are more, the names contain data and are not worth caching.
_MAX_REMEMBERED: Final = 1024
_LONGEST_REMEMBERED: Final = 128


def delimited(tag: bytes, content: bytes) -> bytes:
    """Return a length-delimited field. If ``tag`` is empty, return only the length and the content."""
    size = len(content)
    return tag + (VARINTS[size] if size < TABLE_SIZE else varint(size)) + content


def text_field(tag: bytes, text: Any) -> bytes:
    """Return a string field (see `text_of`); ``b""`` if the text is empty."""
    content = text_of(text)
    return delimited(tag, content) if content else b""


def count_field(tag: bytes, count: Any, field: str, more: int = 0) -> bytes:
    """Return a uint32 field with the sum of two counts, at most 2**32 - 1; ``b""`` if the sum is 0."""
    total = checked_number(count, COUNT_END, field, "a count") + more
    return tag + varint(min(total, COUNT_END - 1)) if total else b""


class TextFields:
    """A string field whose values recur, such as a span's name, and are cached."""

    __slots__ = ("_known", "_tag")

    def __init__(self, tag: bytes) -> None:
        self._tag = tag
        self._known: dict[str, bytes] = {}

    def field(self, text: Any) -> bytes:
        """Return the field with ``text`` (see `text_of`); ``b""`` if the text is empty."""
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


# Nearly all lengths are short, and looking one up takes a tenth of the time of encoding it.
TABLE_SIZE: Final = 2048
VARINTS: Final = tuple(map(varint, range(TABLE_SIZE)))
