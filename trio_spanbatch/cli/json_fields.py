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

__all__ = [
    "JSONObject",
    "as_bytes",
    "as_float",
    "as_int",
    "as_object",
    "as_text",
    "enum_field",
    "field_of",
    "id_field",
    "int_field",
    "list_field",
    "snake_case",
    "text_field",
]

JSONObject: TypeAlias = dict[str, Any]
_Enum = TypeVar("_Enum", bound=Enum)

_CAPITAL: Final = re.compile("[A-Z]")
_NUMBER: Final = re.compile(r"-?[0-9]+(\.[0-9]+)?([eE][+-]?[0-9]+)?")
_MAX_NUMBER_LENGTH: Final = 400  # the longest double without an exponent has 309 digits
_FLOATS: Final[Mapping[str, float]] = {
    "NaN": float("nan"),
    "Infinity": float("inf"),
    "-Infinity": float("-inf"),
}


def field_of(message: JSONObject, name: str) -> Any:
    """Return the value of the field ``name`` (in lowerCamelCase), None if it is missing."""
    value = message.get(name)
    return message.get(snake_case(name)) if value is None else value


@cache
def snake_case(name: str) -> str:
    """Return the original name of a field."""
    return _CAPITAL.sub(lambda capital: f"_{capital.group().lower()}", name)


def as_object(value: object, name: str) -> JSONObject:
    """Return ``value`` if it is an object."""
    if not isinstance(value, dict):
        raise invalid(name, value, "it must be a JSON object")
    return value


def as_text(value: object, name: str) -> str:
    """Return ``value`` if it is a string."""
    if not isinstance(value, str):
        raise invalid(name, value, "it must be a string")
    return value


def as_int(value: object, first: int, end: int, name: str) -> int:
    """Convert ``value``, a number or a string, to an int from ``first`` to ``end - 1``."""
    if isinstance(value, str):
        number = _number(value)
    else:
        number = value if isinstance(value, int | float) and not isinstance(value, bool) else None
    if isinstance(number, float) and number.is_integer():
        number = int(number)
    if isinstance(number, int) and first <= number < end:
        return number
    raise invalid(name, value, f"it must be a whole number from {first} to {end - 1}")


def as_float(value: object, name: str) -> float:
    """Convert ``value``, a number or a string, to a float."""
    number: object = value
    if isinstance(value, str):
        number = _FLOATS.get(value)
        number = _number(value) if number is None else number
    if isinstance(number, int | float) and not isinstance(number, bool):
        try:
            return float(number)
        except OverflowError:
            pass
    raise invalid(name, value, "it must be a number, or 'NaN', 'Infinity' or '-Infinity'")


def _number(text: str) -> int | float | None:
    if len(text) > _MAX_NUMBER_LENGTH:
        return None
    match = _NUMBER.fullmatch(text)
    if match is None:
        return None
    return float(text) if match.group(1) or match.group(2) else int(text)


def as_bytes(value: object, name: str) -> bytes:
    """Decode ``value`` from base64, standard or URL-safe, with or without padding."""
    text = as_text(value, name).replace("-", "+").replace("_", "/").rstrip("=")
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except (binascii.Error, ValueError) as error:
        raise invalid(name, value, f"it is not base64 ({error})") from error


def text_field(message: JSONObject, name: str) -> str:
    """Return a string field."""
    value = field_of(message, name)
    return "" if value is None else as_text(value, name)


def int_field(message: JSONObject, name: str, end: int) -> int:
    """Return an unsigned integer field, which must be below ``end``."""
    value = field_of(message, name)
    return 0 if value is None else as_int(value, 0, end, name)


def list_field(message: JSONObject, name: str) -> list[Any]:
    """Return a repeated field."""
    value = field_of(message, name)
    if value is None:
        return []
    if not isinstance(value, list):
        raise invalid(name, value, "it must be a JSON array")
    return value


def id_field(message: JSONObject, name: str, size: int, *, may_be_zero: bool = False) -> int:
    """Return an id of ``size`` bytes as an int; 0 if it is missing or empty, or all zero with ``may_be_zero``.

    Raises:
        InvalidSpanError: If the id is not hex, has another size, or is all zero.
    """
    value = field_of(message, name)
    if value is None or value == "" or (may_be_zero and value == "0" * (2 * size)):
        return 0
    number = _hex(value, size) if isinstance(value, str) else 0
    if not number:
        raise invalid(name, value, f"it must be {2 * size} hex digits, not all zero")
    return number


def _hex(text: str, size: int) -> int:
    try:
        data = bytes.fromhex(text)
    except ValueError:
        return 0
    # fromhex() skips spaces.
    return int.from_bytes(data, "big") if len(data) == size and len(text) == 2 * size else 0


def enum_field(message: JSONObject, name: str, numbers: Mapping[int, _Enum], prefix: str) -> _Enum:
    """Return the enum member for a field, which contains its number or its OTLP name.

    Args:
        message: The object with the field.
        name: The field's name.
        numbers: The members by their numbers in OTLP; 0 is the default.
        prefix: The prefix of OTLP's names before the members' names.
    """
    value = field_of(message, name)
    if value is None:
        return numbers[0]
    if isinstance(value, str):
        for member in numbers.values():
            if value == prefix + member.name:
                return member
        value = _number(value) if _NUMBER.fullmatch(value) else value
    if isinstance(value, int | float) and not isinstance(value, bool) and value in numbers:
        return numbers[int(value)]
    names = ", ".join(f"{number} ({prefix}{member.name})" for number, member in numbers.items())
    raise invalid(name, field_of(message, name), f"it must be one of {names}")
