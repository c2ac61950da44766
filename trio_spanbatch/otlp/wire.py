"""The few rules of protobuf's wire format that a request is built with.

A message is a run of fields. A field is a tag (its number and wire type, as a varint) and a value; a
length-delimited value (a string, bytes, a message) is its length as a varint and then its bytes. Repeated
fields are simply repeated, so the bytes of many spans, each encoded by itself, can be joined afterwards.
https://protobuf.dev/programming-guides/encoding/
"""

from __future__ import annotations

from typing import Final

__all__ = ["TABLE_SIZE", "VARINTS", "varint", "varint_size"]


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
