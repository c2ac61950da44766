"""Attributes as bytes: OpenTelemetry's mapping of arbitrary values to OTLP's ``AnyValue``.

https://opentelemetry.io/docs/specs/otel/common/attribute-type-mapping/

A span is mostly attributes, and an attribute is mostly a short string under a key seen before. So that case is
written out where attributes are appended; everything else goes through a table of types.

``AnyValue`` is a oneof: exactly one of its fields is there, also if it holds a zero or is empty, and none for None.
Subclasses are taken for what they derive from. ``bytearray`` and ``memoryview`` are bytes, every other sequence is an
array. Numbers that only say they are some (``numbers.Integral``, ``numbers.Real``: NumPy's) are converted. Sets,
enums, dates, decimals and everything else become their ``str``. Keys that are no strings become their ``str`` too.
"""

from __future__ import annotations

import struct
from collections import UserString
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from itertools import islice
from numbers import Integral, Rational, Real
from typing import Any, Final, TypeAlias

from .._errors import InvalidSpanError
from .checks import failed, invalid, shown, utf8
from .fields import TABLE_SIZE, VARINTS, delimited
from .wire import varint

__all__ = ["AttributeEncoder"]

# Parsers refuse what is nested deeper than 100 messages below the request (protobuf's own default), and with it
# the whole request. The AnyValue of an event's attribute is at level 6. A list takes two levels more (ArrayValue
# and AnyValue), a mapping three (KeyValueList, KeyValue and AnyValue).
_VALUE_LEVELS: Final = 94
_LIST_LEVELS: Final = 2
_MAPPING_LEVELS: Final = 3

# Bytes. A list may hold the same list twice, which holds the same list twice, and so on: what YAML makes of a page of
# aliases would be written out until memory is full. And so would ``range(10**9)``. A location holds no more than this
# by default, and no server takes that much in one request.
_MAX_CONTAINER_SIZE: Final = 16 * 1024 * 1024
_MIN_ITEM_SIZE: Final = 2  # a tag and a length

# Keys are few and come again and again; that there are more is data taken for keys.
_MAX_KEYS: Final = 4096

_Ancestors: TypeAlias = tuple[object, ...]


def _text_head(size: int) -> bytes:
    """Return what stands in front of ``size`` bytes of text: the length of its AnyValue, the field's tag and length."""
    length = varint(size)
    return b"".join((varint(1 + len(length) + size), b"\x0a", length))


_TEXT_HEADS: Final = tuple(map(_text_head, range(TABLE_SIZE)))
_SMALL_INTS: Final = tuple(delimited(b"", b"\x18" + varint(value)) for value in range(TABLE_SIZE))
# A text and a key, both of them short, are together with their heads still within the table of lengths.
_SHORT_KEY_HEAD: Final = 256
_SHORT_TEXT: Final = TABLE_SIZE - _SHORT_KEY_HEAD - 16

_double: Final = struct.Struct("<2sd").pack


# Each of the functions that follow returns an AnyValue with its length in front.


def _text(value: str) -> bytes:
    data = utf8(value)
    size = len(data)
    return (_TEXT_HEADS[size] if size < TABLE_SIZE else _text_head(size)) + data


def _bool(value: bool) -> bytes:
    return b"\x02\x10\x01" if value else b"\x02\x10\x00"


def _int(value: int) -> bytes:
    if 0 <= value < TABLE_SIZE:
        return _SMALL_INTS[value]
    if -(1 << 63) <= value < 1 << 63:
        return delimited(b"", b"\x18" + varint(value & 0xFFFF_FFFF_FFFF_FFFF))
    # Decimal writes out any int; str() refuses one of more than 4,300 digits.
    return _text(f"{Decimal(value):f}")


def _float(value: float) -> bytes:
    return _double(b"\x09\x21", value)


def _bytes(value: bytes | bytearray | memoryview) -> bytes:
    return delimited(b"", delimited(b"\x3a", bytes(value)))


def _none(_value: None) -> bytes:
    return b"\x00"


_SCALARS: Final[Mapping[type, Callable[[Any], bytes]]] = {
    str: _text,
    bool: _bool,
    int: _int,
    float: _float,
    bytes: _bytes,
    type(None): _none,
}


def _any_value(value: Any, levels: int, ancestors: _Ancestors) -> bytes:
    kind = type(value)
    encode = _SCALARS.get(kind)
    if encode is not None:
        return encode(value)
    return _list(value, levels, ancestors) if kind is list or kind is tuple else _other(value, levels, ancestors)


def _other(value: Any, levels: int, ancestors: _Ancestors) -> bytes:
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, int):
        return _int(int.__int__(value))
    if isinstance(value, float):
        return _float(float.__float__(value))
    if isinstance(value, bytes | bytearray | memoryview):
        return _bytes(value)
    if isinstance(value, Mapping):
        return _mapping(value, levels, ancestors)
    if isinstance(value, Sequence) and not isinstance(value, UserString):
        return _list(value, levels, ancestors)
    if isinstance(value, Integral):
        return _int(int(value))
    if isinstance(value, Real) and not isinstance(value, Rational):
        return _float(float(value))
    return _text(str(value))


def _list(value: Any, levels: int, ancestors: _Ancestors) -> bytes:
    levels, ancestors = _deeper(value, levels - _LIST_LEVELS, ancestors), (*ancestors, value)
    fields: list[bytes] = []
    for item in _items(value):
        encode = _SCALARS.get(type(item))
        fields += (b"\x0a", encode(item) if encode is not None else _any_value(item, levels, ancestors))
    return _container(b"\x2a", b"".join(fields))


def _mapping(value: Mapping[Any, object], levels: int, ancestors: _Ancestors) -> bytes:
    levels, ancestors = _deeper(value, levels - _MAPPING_LEVELS, ancestors), (*ancestors, value)
    content = b"".join(
        [
            delimited(b"\x0a", _key_head(key) + _any_value(item, levels, ancestors))
            for key, item in _with_text_keys(_snapshot(value)).items()
        ]
    )
    return _container(b"\x32", content)


def _items(value: Any) -> tuple[Any, ...]:
    """Return the items of a sequence, as a tuple that nobody changes while it is being read."""
    if type(value) is list or type(value) is tuple:
        return tuple(value)
    count = len(value)
    _check_size(_MIN_ITEM_SIZE * count)
    # One that never raises IndexError would go on for ever.
    items = tuple(islice(value, count + 1))
    if len(items) > count:
        raise InvalidSpanError(f"it goes on after the {count} items that are its length")
    return items


def _container(tag: bytes, content: bytes) -> bytes:
    _check_size(len(content))
    return delimited(b"", delimited(tag, content))


def _check_size(size: int) -> None:
    if size > _MAX_CONTAINER_SIZE:
        raise InvalidSpanError(f"it has more than {_MAX_CONTAINER_SIZE} bytes, written out")


def _deeper(value: object, levels: int, ancestors: _Ancestors) -> int:
    for ancestor in ancestors:
        if value is ancestor:
            raise InvalidSpanError("it contains itself")
    if levels < 0:
        raise InvalidSpanError(
            f"it is nested too deep; {_VALUE_LEVELS // _MAPPING_LEVELS} mappings or {_VALUE_LEVELS // _LIST_LEVELS} "
            "lists within each other is what parsers of protobuf take"
        )
    return levels


def _key_head(key: str) -> bytes:
    """Return the field ``key`` of a KeyValue (left out if empty) and the tag of its field ``value``."""
    return delimited(b"\x0a", utf8(key)) + b"\x12" if key else b"\x12"


def _snapshot(attributes: Mapping[Any, Any]) -> dict[Any, Any]:
    """Return the attributes as a dict of our own, which nobody changes while it is being read."""
    try:
        # OpenTelemetry's own mapping, a proxy of it and dicts all have this: one call in C instead of two calls
        # in Python for each key.
        copied = attributes.copy()  # type: ignore[attr-defined]  # Mapping has none
    except AttributeError:
        copied = None
    return copied if type(copied) is dict else dict(attributes.items())


def _with_text_keys(attributes: dict[Any, Any]) -> dict[str, Any]:
    """Return the attributes under keys that are plain strings; of two that are the same as strings the later counts."""
    # str() returns what ``__str__`` returns, which may be of a subclass again.
    return {str.__str__(key if isinstance(key, str) else str(key)): value for key, value in attributes.items()}


class AttributeEncoder:
    """Encodes attributes, and remembers the bytes of keys."""

    __slots__ = ("_key_heads",)

    def __init__(self) -> None:
        self._key_heads: dict[str, bytes] = {}

    def append_fields(self, fields: list[bytes], tag: bytes, attributes: Mapping[Any, Any] | None, field: str) -> None:
        """Append each attribute to ``fields``: ``tag``, a length and a KeyValue.

        Args:
            fields: The fields of a message so far.
            tag: The tag of that message's field of attributes.
            attributes: The attributes; None is none.
            field: The name of the field, for messages.

        Raises:
            InvalidSpanError: ``attributes`` is no mapping, or one of them cannot be encoded.
        """
        if attributes is None:
            return
        start = len(fields)
        try:
            snapshot = _snapshot(attributes)
            if not self._append_all(fields, tag, snapshot, field):
                del fields[start:]
                self._append_all(fields, tag, _with_text_keys(snapshot), field)
        except InvalidSpanError:
            raise
        except Exception as error:
            # Looked at here only, as it would take longer than reading them.
            if not isinstance(attributes, Mapping):
                raise invalid(field, attributes, "attributes are a mapping") from None
            raise failed(field, error) from error

    def _append_all(self, fields: list[bytes], tag: bytes, attributes: dict[Any, Any], field: str) -> bool:
        """Append the attributes; return False, with some left out, if there is a key that is not a plain string."""
        key = value = None
        key_heads = self._key_heads
        try:
            for key, value in attributes.items():
                head = key_heads.get(key)
                if head is None:
                    if type(key) is not str:
                        return False
                    head = self._key_head(key)
                if type(value) is str:
                    try:
                        data = value.encode()
                    except UnicodeEncodeError:
                        data = utf8(value)
                    size = len(data)
                    if size < _SHORT_TEXT and len(head) < _SHORT_KEY_HEAD:
                        text_head = _TEXT_HEADS[size]
                        fields += (tag, VARINTS[len(head) + len(text_head) + size], head, text_head, data)
                    else:
                        text_head = _text_head(size)
                        fields += (tag, varint(len(head) + len(text_head) + size), head, text_head, data)
                else:
                    encode = _SCALARS.get(type(value))
                    encoded = encode(value) if encode is not None else _any_value(value, _VALUE_LEVELS, ())
                    size = len(head) + len(encoded)
                    fields += (tag, VARINTS[size] if size < TABLE_SIZE else varint(size), head, encoded)
        except InvalidSpanError as error:
            raise InvalidSpanError(f"{field}[{shown(key)}] is {shown(value)}: {error}") from error.__cause__
        except Exception as error:
            raise failed(f"{field}[{shown(key)}]", error) from error
        return True

    def _key_head(self, key: str) -> bytes:
        head = _key_head(key)
        if len(head) < _SHORT_KEY_HEAD:
            if len(self._key_heads) >= _MAX_KEYS:
                self._key_heads.clear()
            self._key_heads[key] = head
        return head
