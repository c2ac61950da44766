"""Fields that messages are made of, checked and with their tags.

A tag is ``field number << 3 | wire type``; the wire types are 0 (varint), 1 (64 bits), 2 (length-delimited) and
5 (32 bits). Text and counts that have proto3's default are left out, as protobuf does it.
"""

from __future__ import annotations

from typing import Any, Final

from .checks import COUNT_END, checked_int, checked_text
from .wire import varint

__all__ = ["TABLE_SIZE", "VARINTS", "count_field", "delimited", "text_field"]

# Nearly all lengths are short, and looking one up takes a tenth of the time of making it.
TABLE_SIZE: Final = 2048
VARINTS: Final = tuple(map(varint, range(TABLE_SIZE)))


def delimited(tag: bytes, content: bytes) -> bytes:
    """Return a length-delimited field. ``tag`` may be empty, for a length and the content only."""
    size = len(content)
    return tag + (VARINTS[size] if size < TABLE_SIZE else varint(size)) + content


def text_field(tag: bytes, text: Any, field: str) -> bytes:
    """Return a field of text; nothing if it is empty.

    Raises:
        InvalidSpanError: ``text`` is no string; ``field`` is its name.
    """
    return delimited(tag, checked_text(text, field)) if text or type(text) is not str else b""


def count_field(tag: bytes, count: Any, field: str) -> bytes:
    """Return a field of type uint32; nothing if it is 0.

    Raises:
        InvalidSpanError: ``count`` is no int of 32 bits; ``field`` is its name.
    """
    if type(count) is int and count == 0:
        return b""
    count = checked_int(count, 0, COUNT_END, field, "a count")
    return tag + varint(count) if count else b""
