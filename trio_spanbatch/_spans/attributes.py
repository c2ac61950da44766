"""Encode attributes: OpenTelemetry's mapping of arbitrary values to OTLP's ``AnyValue``.

https://opentelemetry.io/docs/specs/otel/common/attribute-type-mapping/

Most of a span is attributes, and most attributes are short strings under known keys. So that case is inlined where
attributes are appended; all other types are handled by a table of types.

``AnyValue`` is a oneof: exactly one of its fields is present, also for zero and empty values, and none for None.
Subclasses are encoded as their base classes. ``bytearray`` and ``memoryview`` are bytes, every other sequence is an
array. Numeric types of other packages (``numbers.Integral``, ``numbers.Real``: NumPy's) are converted. Sets, enums,
dates, decimals and everything else become their ``str``, as do keys that are not strings.

Each attribute that cannot be expressed is left out and counted: values that are nested too deep, contain themselves or
are too large, and values that raise when they are read or converted to ``str``.
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

# Parsers refuse the whole request if messages are nested more than 100 levels deep below it (protobuf's own default).
# The AnyValue of an event's attribute is at level 6. A list adds two levels (ArrayValue and AnyValue), a mapping three
# (KeyValueList, KeyValue and AnyValue).
_VALUE_LEVELS: Final = 94
_LIST_LEVELS: Final = 2
_MAPPING_LEVELS: Final = 3

# In bytes. A list may contain another list twice, which contains a third list twice, and so on: encoding a page of YAML
# aliases would exhaust memory, and so would ``range(10**9)``. By default a location holds no more than this, and no
# server accepts that much in one request.
_MAX_CONTAINER_SIZE: Final = 16 * 1024 * 1024
_MIN_ITEM_SIZE: Final = 2  # a tag and a length
# The most items that are read from a mapping other than a dict, whose ``len()`` may be wrong.
_MAX_ITEMS: Final = 1024 * 1024

# Most programs use few keys, again and again. If there are more, the keys contain data. Cached keys and values take at
# most 6 MiB for each of the four kinds of attributes.
_MAX_KEYS: Final = 4096
_LONGEST_KEY_HEAD: Final = 256  # bytes
_KEYS_WITH_VALUES: Final = 256
_VALUES_A_KEY: Final = 16
_SHORT_TEXT: Final = 64  # characters
_LONGEST_ATTRIBUTE: Final = 1024  # bytes: an int may have any number of digits

_Ancestors: TypeAlias = tuple[object, ...]
# The bytes in front of a key's value, and encoded attributes by value; None if values are not remembered.
_Key: TypeAlias = tuple[bytes, dict[str | int, bytes] | None]


def _head(tag: bytes, size: int) -> bytes:
    """Return the bytes in front of a value of ``size`` bytes: its AnyValue's length, the field's tag and length."""
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


# Each of these functions returns an AnyValue with its length in front.


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
    # Decimal converts any int; str() refuses more than 4,300 digits.
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


def encoded_value(value: Any) -> bytes:
    """Return the value of a span's attribute as an AnyValue with its length in front, or raise `InvalidSpanError`."""
    return _any_value(value, _VALUE_LEVELS, ())


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
        # A subclass may override ``__bytes__``.
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
    """Encode a list that is the value of an attribute, so it has no ancestors."""
    fields: list[bytes] = []
    for item in _items(value):
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
    """Return the items of a sequence as a tuple, which other threads cannot change while it is read."""
    count = len(value)
    _check_size(_MIN_ITEM_SIZE * count)
    if type(value) is list or type(value) is tuple:
        return tuple(value)
    # A sequence that never raises IndexError is endless.
    items = tuple(islice(value, count + 1))
    if len(items) > count:
        raise InvalidSpanError(f"it has more items than its length, {count}")
    return items


def _container(tag: bytes, content: bytes) -> bytes:
    _check_size(len(content))
    return delimited(b"", delimited(tag, content))


def _check_size(size: int) -> None:
    if size > _MAX_CONTAINER_SIZE:
        raise InvalidSpanError(f"its encoding has more than {_MAX_CONTAINER_SIZE} bytes")


def _deeper(value: object, levels: int, ancestors: _Ancestors) -> int:
    for ancestor in ancestors:
        if value is ancestor:
            raise InvalidSpanError("it contains itself")
    if levels < 0:
        raise InvalidSpanError(
            f"it is nested too deep; parsers of protobuf accept {_VALUE_LEVELS // _MAPPING_LEVELS} nested mappings or "
            f"{_VALUE_LEVELS // _LIST_LEVELS} nested lists"
        )
    return levels


def _key_head(key: str) -> bytes:
    """Return the field ``key`` of a KeyValue (left out if empty) and the tag of its field ``value``."""
    return delimited(b"\x0a", utf8(key)) + b"\x12" if key else b"\x12"


def snapshot(attributes: Mapping[Any, Any]) -> dict[Any, Any]:
    """Return a copy of the attributes as a dict, which other threads cannot change while it is read."""
    try:
        # OpenTelemetry's mapping, a proxy of it and dicts all have this: one call in C instead of two calls in Python
        # for each key.
        copied = attributes.copy()  # type: ignore[attr-defined]  # Mapping has none
    except AttributeError:
        copied = None
    if type(copied) is dict:
        return copied
    most = min(len(attributes), _MAX_ITEMS) if hasattr(attributes, "__len__") else _MAX_ITEMS
    items = list(islice(attributes.items(), most + 1))
    if len(items) > most:
        raise InvalidSpanError(f"it has more items than its length, {most}")
    return dict(items)


def _readable_items(attributes: Mapping[Any, Any]) -> tuple[list[tuple[Any, Any]], int]:
    """Return the items of a mapping that can be read, and the number of those that cannot."""
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
    # The result of ``__str__``, and so of str(), may be of a subclass of str.
    return str.__str__(key if isinstance(key, str) else str_of(key))


def _with_text_keys(attributes: dict[Any, Any]) -> dict[str, Any]:
    """Return the attributes with plain strings as keys. If several keys are equal as strings, the last one is used."""
    return {_text_key(key): value for key, value in attributes.items()}


class AttributeEncoder:
    """Encodes attributes, and caches encoded keys and values, within bounds.

    Most attributes of a program's spans recur, key and value: the name of an operation, of a model, of a tenant. Their
    encoding is looked up. After `_VALUES_A_KEY` different values of a key (an id, a prompt), only the encoded key is
    cached.
    """

    __slots__ = ("_keys",)

    def __init__(self) -> None:
        # By the tag of the attributes field, then by key.
        self._keys: dict[bytes, dict[str, _Key]] = {}

    def append_fields(self, fields: list[bytes], tag: bytes, attributes: Mapping[Any, Any] | None, field: str) -> int:
        """Append each attribute to ``fields``: ``tag``, a length and a KeyValue. Return how many were left out.

        None counts as empty; anything else that is not a mapping raises `InvalidSpanError`, which names ``field``.
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
            # Checked only here, as the check takes longer than reading the attributes.
            if not _is_mapping(attributes, field):
                raise invalid(field, attributes, "attributes must be a mapping") from None
            items, unread = _readable_items(attributes)
            return unread + self._append_each(fields, tag, items)
        return 0

    def _append_each(self, fields: list[bytes], tag: bytes, items: Iterable[tuple[Any, Any]]) -> int:
        """Append each attribute that can be expressed. Return how many cannot."""
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
        """Append the attributes. Return False if it stopped at a key that is not a plain string."""
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
                # Only exact types whose equal values have the same encoding, unlike 0.0, -0.0 and 0.
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
                encoded = encode(value) if encode is not None else encoded_value(value)
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
    """Return the entry of a key that is not cached, and cache it."""
    head = _key_head(key)
    if len(head) > _LONGEST_KEY_HEAD:
        return head, None
    if len(keys) >= _MAX_KEYS:
        keys.clear()
    known = keys[key] = head, ({} if len(keys) < _KEYS_WITH_VALUES else None)
    return known


def _noted(keys: dict[str, _Key], key: str, known: _Key, tag: bytes, value: str | int) -> bytes:
    """Return the encoded attribute, and cache it unless its key has had many values already."""
    head, seen = known
    attribute = delimited(tag, head + _SCALARS[type(value)](value))
    if seen is None or len(seen) >= _VALUES_A_KEY:
        keys[key] = head, None
    elif len(attribute) <= _LONGEST_ATTRIBUTE:
        seen[value] = attribute
    return attribute
