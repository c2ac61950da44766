"""Attributes as bytes: OpenTelemetry's mapping of arbitrary values to OTLP's ``AnyValue``.

https://opentelemetry.io/docs/specs/otel/common/attribute-type-mapping/

A span is mostly attributes, and an attribute is mostly a short string under a key seen before. So that case is
written out where attributes are appended; everything else goes through a table of types.

``AnyValue`` is a oneof: exactly one of its fields is there, also if it holds a zero or is empty, and none for None.
Subclasses are taken for what they derive from. ``bytearray`` and ``memoryview`` are bytes, every other sequence is an
array. Numbers that only say they are some (``numbers.Integral``, ``numbers.Real``: NumPy's) are converted. Sets,
enums, dates, decimals and everything else become their ``str``. Keys that are no strings become their ``str`` too.

What cannot be expressed so is left out and counted, each attribute by itself: a value that is nested too deep, contains
itself or is too large, and one that raises when it is read or when its ``str`` is asked for.
"""

from __future__ import annotations

import struct
from collections import UserString
from collections.abc import Callable, Iterable, Mapping, Sequence
from decimal import Decimal
from itertools import islice
from numbers import Integral, Rational, Real
from typing import Any, Final, TypeAlias

from .._errors import InvalidSpanError
from .checks import failed, invalid, pass_on, str_of, utf8
from .wire import TABLE_SIZE, VARINTS, delimited, varint

__all__ = ["AttributeEncoder", "snapshot"]

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
# How much of a mapping is looked at that is no dict. What it says of its own length may be anything.
_MAX_ITEMS: Final = 1024 * 1024

# Keys are few and come again and again; that there are more is data taken for keys. What is remembered of keys and
# values takes 6 MiB at most in each of the four places where attributes stand.
_MAX_KEYS: Final = 4096
_LONGEST_KEY_HEAD: Final = 256  # bytes
_KEYS_WITH_VALUES: Final = 256
_VALUES_A_KEY: Final = 16
_SHORT_TEXT: Final = 64  # characters
_LONGEST_ATTRIBUTE: Final = 1024  # bytes: an int may have any number of digits

_Ancestors: TypeAlias = tuple[object, ...]
# The bytes in front of a key's value, and whole attributes by their values; None if those are not remembered.
_Key: TypeAlias = tuple[bytes, dict[str | int, bytes] | None]


def _head(tag: bytes, size: int) -> bytes:
    """Return what stands in front of a value of ``size`` bytes: its AnyValue's length, the field's tag and length."""
    length = varint(size)
    return b"".join((varint(1 + len(length) + size), tag, length))


def _heads(tag: bytes) -> tuple[bytes, ...]:
    return tuple(_head(tag, size) for size in range(TABLE_SIZE))


_TEXT: Final = b"\x0a"
_ARRAY: Final = b"\x2a"
_TEXT_HEADS: Final = _heads(_TEXT)
_ARRAY_HEADS: Final = _heads(_ARRAY)
_SMALL_INTS: Final = tuple(delimited(b"", b"\x18" + varint(value)) for value in range(TABLE_SIZE))

_double: Final = struct.Struct("<2sd").pack


# Each of the functions that follow returns an AnyValue with its length in front.


def _text(value: str) -> bytes:
    data = utf8(value)
    size = len(data)
    return (_TEXT_HEADS[size] if size < TABLE_SIZE else _head(_TEXT, size)) + data


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
    if isinstance(value, bytes | bytearray):
        # A subclass may have a ``__bytes__`` of its own.
        return _bytes(b"".join((value,)))
    if isinstance(value, memoryview):
        return _bytes(value)
    if isinstance(value, Mapping):
        return _mapping(value, levels, ancestors)
    if isinstance(value, Sequence) and not isinstance(value, UserString):
        return _list(value, levels, ancestors)
    if isinstance(value, Integral):
        return _int(int(value))
    if isinstance(value, Real) and not isinstance(value, Rational):
        return _float(float(value))
    return _text(str_of(value))


def _list(value: Any, levels: int, ancestors: _Ancestors) -> bytes:
    levels, ancestors = _deeper(value, levels - _LIST_LEVELS, ancestors), (*ancestors, value)
    fields: list[bytes] = []
    for item in _items(value):
        encode = _SCALARS.get(type(item))
        fields += (b"\x0a", encode(item) if encode is not None else _any_value(item, levels, ancestors))
    return _container(_ARRAY, b"".join(fields))


def _outer_list(value: list[Any] | tuple[Any, ...]) -> bytes:
    """Return a list that is an attribute's value itself: it has room for any level, and no ancestors."""
    fields: list[bytes] = []
    for item in tuple(value):
        encode = _SCALARS.get(type(item))
        if encode is None:
            return _list(value, _VALUE_LEVELS, ())
        fields += (b"\x0a", encode(item))
    content = b"".join(fields)
    size = len(content)
    return _ARRAY_HEADS[size] + content if size < TABLE_SIZE else _container(_ARRAY, content)


_OUTER_VALUES: Final[Mapping[type, Callable[[Any], bytes]]] = {**_SCALARS, list: _outer_list, tuple: _outer_list}


def _mapping(value: Mapping[Any, object], levels: int, ancestors: _Ancestors) -> bytes:
    levels, ancestors = _deeper(value, levels - _MAPPING_LEVELS, ancestors), (*ancestors, value)
    content = b"".join(
        [
            delimited(b"\x0a", _key_head(key) + _any_value(item, levels, ancestors))
            for key, item in _with_text_keys(snapshot(value)).items()
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


def snapshot(attributes: Mapping[Any, Any]) -> dict[Any, Any]:
    """Return the attributes as a dict of our own, which nobody changes while it is being read.

    Raises:
        InvalidSpanError: They go on and on.
    """
    try:
        # OpenTelemetry's own mapping, a proxy of it and dicts all have this: one call in C instead of two calls
        # in Python for each key.
        copied = attributes.copy()  # type: ignore[attr-defined]  # Mapping has none
    except AttributeError:
        copied = None
    if type(copied) is dict:
        return copied
    most = min(len(attributes), _MAX_ITEMS) if hasattr(attributes, "__len__") else _MAX_ITEMS
    items = list(islice(attributes.items(), most + 1))
    if len(items) > most:
        raise InvalidSpanError(f"it goes on after the {most} items that are its length")
    return dict(items)


def _readable_items(attributes: Mapping[Any, Any]) -> tuple[list[tuple[Any, Any]], int]:
    """Return what can be read of a mapping of which not everything can, and how many items cannot."""
    items: list[tuple[Any, Any]] = []
    unread = found = most = 0
    try:
        most = min(len(attributes), _MAX_ITEMS)
        for key in attributes:
            if found == most:
                return items, unread + 1
            found += 1
            try:
                items.append((key, attributes[key]))
            except Exception as error:
                pass_on(error)
                unread += 1
    except Exception as error:
        pass_on(error)
        return items, unread + max(1, most - found)
    return items, unread


def _text_key(key: Any) -> str:
    # str() returns what ``__str__`` returns, which may be of a subclass again.
    return str.__str__(key if isinstance(key, str) else str_of(key))


def _with_text_keys(attributes: dict[Any, Any]) -> dict[str, Any]:
    """Return the attributes under keys that are plain strings; of two that are the same as strings the later counts."""
    return {_text_key(key): value for key, value in attributes.items()}


class AttributeEncoder:
    """Encodes attributes, and remembers what it has seen of them, within bounds.

    Most attributes of a program's spans were there before, key and value: the name of an operation, of a model, of a
    tenant. Their bytes are looked up. A key whose values are always new (an id, a prompt) is known by that after
    `_VALUES_A_KEY` of them; from then on only the key's own bytes are.
    """

    __slots__ = ("_keys",)

    def __init__(self) -> None:
        # By the tag of the field of attributes, and by key.
        self._keys: dict[bytes, dict[str, _Key]] = {}

    def append_fields(self, fields: list[bytes], tag: bytes, attributes: Mapping[Any, Any] | None, field: str) -> int:
        """Append each attribute to ``fields``: ``tag``, a length and a KeyValue. Return how many could not be.

        Args:
            fields: The fields of a message so far.
            tag: The tag of that message's field of attributes.
            attributes: The attributes; None is none.
            field: The name of the field, for messages.

        Raises:
            InvalidSpanError: ``attributes`` is no mapping.
        """
        if attributes is None:
            return 0
        start = len(fields)
        copied = None
        try:
            copied = snapshot(attributes)
            if not self._append_all(fields, tag, copied):
                del fields[start:]
                self._append_all(fields, tag, _with_text_keys(copied))
        except Exception as error:
            pass_on(error)
            del fields[start:]
            if copied is not None:
                return self._append_each(fields, tag, copied.items())
            # Looked at here only, as it would take longer than reading them.
            if not _is_mapping(attributes, field):
                raise invalid(field, attributes, "attributes are a mapping") from None
            items, unread = _readable_items(attributes)
            return unread + self._append_each(fields, tag, items)
        return 0

    def _append_each(self, fields: list[bytes], tag: bytes, items: Iterable[tuple[Any, Any]]) -> int:
        """Append what can be expressed, each attribute by itself. Return how many cannot."""
        lost = 0
        under_texts: dict[str, Any] = {}
        for key, value in items:
            try:
                under_texts[_text_key(key)] = value
            except Exception as error:
                pass_on(error)
                lost += 1
        for attribute in under_texts.items():
            try:
                self._append_all(fields, tag, dict((attribute,)))
            except Exception as error:
                pass_on(error)
                lost += 1
        return lost

    def _append_all(self, fields: list[bytes], tag: bytes, attributes: dict[Any, Any]) -> bool:
        """Append the attributes; return False, with some left out, if there is a key that is not a plain string."""
        keys = self._keys.get(tag)
        if keys is None:
            keys = self._keys[tag] = {}
        for key, value in attributes.items():
            known = keys.get(key)
            if known is None:
                if type(key) is not str:
                    return False
                known = _note_key(keys, key)
            head, seen = known
            kind = type(value)
            if seen is not None and (kind is int or (kind is str and len(value) <= _SHORT_TEXT)):
                # Exact types only, of which no two values are equal and yet not the same, as 0.0, -0.0 and 0 are.
                attribute = seen.get(value)
                fields.append(_noted(keys, key, known, tag, value) if attribute is None else attribute)
            elif kind is str:
                try:
                    data = value.encode()
                except UnicodeEncodeError:
                    data = utf8(value)
                size = len(data)
                text_head = _TEXT_HEADS[size] if size < TABLE_SIZE else _head(_TEXT, size)
                size += len(head) + len(text_head)
                fields += (tag, VARINTS[size] if size < TABLE_SIZE else varint(size), head, text_head, data)
            else:
                encode = _OUTER_VALUES.get(kind)
                encoded = encode(value) if encode is not None else _any_value(value, _VALUE_LEVELS, ())
                size = len(head) + len(encoded)
                fields += (tag, VARINTS[size] if size < TABLE_SIZE else varint(size), head, encoded)
        return True


def _is_mapping(attributes: object, field: str) -> bool:
    try:
        return isinstance(attributes, Mapping)
    except Exception as error:
        pass_on(error)
        raise failed(field, error) from error


def _note_key(keys: dict[str, _Key], key: str) -> _Key:
    """Return what is known of a key that was not seen before, or was forgotten."""
    head = _key_head(key)
    if len(head) > _LONGEST_KEY_HEAD:
        return head, None
    if len(keys) >= _MAX_KEYS:
        keys.clear()
    known = keys[key] = head, ({} if len(keys) < _KEYS_WITH_VALUES else None)
    return known


def _noted(keys: dict[str, _Key], key: str, known: _Key, tag: bytes, value: str | int) -> bytes:
    """Return the attribute, and remember it, unless its key has had many values already."""
    head, seen = known
    attribute = delimited(tag, head + _SCALARS[type(value)](value))
    if seen is None or len(seen) >= _VALUES_A_KEY:
        keys[key] = head, None
    elif len(attribute) <= _LONGEST_ATTRIBUTE:
        seen[value] = attribute
    return attribute
