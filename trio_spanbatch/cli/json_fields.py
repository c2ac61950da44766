"""Read fields of protobuf's JSON: numbers, bytes, enums, ids, and their defaults.

The rules are in https://protobuf.dev/programming-guides/json/. A field may be named in lowerCamelCase
or in its original snake_case. If it is null or missing, it has its default value.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping
from enum import Enum
from functools import cache
from typing import Any, Final, TypeAlias, TypeVar

from .._spans.checks import invalid

JSONObject: TypeAlias = dict[str, Any]
_Enum = TypeVar("_Enum", bound=Enum)
_Type = TypeVar("_Type")

_CAPITAL: Final = re.compile("[A-Z]")
_NUMBER: Final = re.compile(r"-?[0-9]+(\.[0-9]+)?([eE][+-]?[0-9]+)?|NaN|-?Infinity")
_MAX_NUMBER_LENGTH: Final = 400  # the longest double without an exponent has 309 digits
_TYPES: Final = {dict: "a JSON object", list: "a JSON array", str: "a string", bool: "true or false"}


def field_of(message: JSONObject, name: str) -> Any:
    """Return the value of the field ``name`` (in lowerCamelCase), None if it is missing."""
    value = message.get(name)
    return message.get(snake_case(name)) if value is None else value


@cache
def snake_case(name: str) -> str:
    """Return the original name of a field."""
    return _CAPITAL.sub(lambda capital: f"_{capital.group().lower()}", name)


def as_type(value: object, name: str, kind: type[_Type]) -> _Type:
    """Return ``value`` if it is an instance of ``kind``, one of `_TYPES`."""
    if not isinstance(value, kind):
        raise invalid(name, value, f"it must be {_TYPES[kind]}")
    return value


def typed_field(message: JSONObject, name: str, kind: type[_Type]) -> _Type:
    """Return a field of the type ``kind``, which is empty if it is missing."""
    value = field_of(message, name)
    return kind() if value is None else as_type(value, name, kind)


def as_int(value: object, first: int, end: int, name: str) -> int:
    """Convert ``value``, a number or a string, to an int from ``first`` to ``end - 1``."""
    number = _number(value)
    if isinstance(number, float) and number.is_integer():
        number = int(number)
    if isinstance(number, int) and first <= number < end:
        return number
    raise invalid(name, value, f"it must be a whole number from {first} to {end - 1}")


def as_float(value: object, name: str) -> float:
    """Convert ``value``, a number or a string, to a float."""
    number = _number(value)
    try:
        if number is not None:
            return float(number)
    except OverflowError:
        pass
    raise invalid(name, value, "it must be a number, or 'NaN', 'Infinity' or '-Infinity'")


def _number(value: object) -> int | float | None:
    """Return a number, or the one that a string contains; None for everything else."""
    if not isinstance(value, str):
        return value if isinstance(value, int | float) and not isinstance(value, bool) else None
    if len(value) > _MAX_NUMBER_LENGTH or not _NUMBER.fullmatch(value):
        return None
    return int(value) if value.removeprefix("-").isdigit() else float(value)


def as_bytes(value: object, name: str) -> bytes:
    """Decode ``value`` from base64, standard or URL-safe, with or without padding."""
    text = as_type(value, name, str).replace("-", "+").replace("_", "/").rstrip("=")
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except (binascii.Error, ValueError) as error:
        raise invalid(name, value, f"it is not base64 ({error})") from error


def int_field(message: JSONObject, name: str, end: int) -> int:
    """Return an unsigned integer field, which must be below ``end``."""
    value = field_of(message, name)
    return 0 if value is None else as_int(value, 0, end, name)


def id_field(message: JSONObject, name: str, size: int, *, may_be_zero: bool = False) -> int:
    """Return an id of ``size`` bytes as an int; 0 if it is missing or empty, or all zero with ``may_be_zero``.

    Raises:
        InvalidSpanError: If the id is not hex, has another size, or is all zero.
    """
    value = field_of(message, name)
    if value is None or value == "" or (may_be_zero and value == "0" * (2 * size)):
        return 0
    is_hex = isinstance(value, str) and re.fullmatch(f"[0-9A-Fa-f]{{{2 * size}}}", value)
    number = int(value, 16) if is_hex else 0
    if not number:
        raise invalid(name, value, f"it must be {2 * size} hex digits, not all zero")
    return number


def enum_field(message: JSONObject, name: str, numbers: Mapping[int, _Enum], prefix: str) -> _Enum:
    """Return the enum member for a field, which contains its number or its OTLP name.

    Args:
        message: The object with the field.
        name: The field's name.
        numbers: The members by their numbers in OTLP; 0 is the default.
        prefix: The prefix of OTLP's names before the members' names.
    """
    value = field_of(message, name)
    named = [number for number, member in numbers.items() if value == prefix + member.name]
    number = 0 if value is None else _number(named[0] if named else value)
    if number is not None and number in numbers:
        return numbers[int(number)]
    names = ", ".join(f"{number} ({prefix}{member.name})" for number, member in numbers.items())
    raise invalid(name, value, f"it must be one of {names}")
