"""The fields of protobuf's JSON: what may stand for a number, bytes, an enum, and what stands for nothing.

https://protobuf.dev/programming-guides/json/ has the rules. A field is looked for under its name in lowerCamelCase
and under the original one in snake_case; null and a missing field are the default.
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
    """Return the field ``name`` (in lowerCamelCase) as it stands there, None if it is missing."""
    value = message.get(name)
    return message.get(snake_case(name)) if value is None else value


@cache
def snake_case(name: str) -> str:
    """Return the original name of a field."""
    return _CAPITAL.sub(lambda capital: f"_{capital.group().lower()}", name)


def as_object(value: object, name: str) -> JSONObject:
    """Return ``value``, an object."""
    if not isinstance(value, dict):
        raise invalid(name, value, "it has to be a JSON object")
    return value


def as_text(value: object, name: str) -> str:
    """Return ``value``, a string."""
    if not isinstance(value, str):
        raise invalid(name, value, "it has to be a string")
    return value


def as_int(value: object, first: int, end: int, name: str) -> int:
    """Return the whole number from ``first`` to ``end - 1`` that ``value``, a number or a string, stands for."""
    if isinstance(value, str):
        number = _number(value)
    else:
        number = value if isinstance(value, int | float) and not isinstance(value, bool) else None
    if isinstance(number, float) and number.is_integer():
        number = int(number)
    if isinstance(number, int) and first <= number < end:
        return number
    raise invalid(name, value, f"it has to be a whole number from {first} to {end - 1}")


def as_float(value: object, name: str) -> float:
    """Return the number that ``value``, a number or a string, stands for."""
    number: object = value
    if isinstance(value, str):
        number = _FLOATS.get(value)
        number = _number(value) if number is None else number
    if isinstance(number, int | float) and not isinstance(number, bool):
        try:
            return float(number)
        except OverflowError:
            pass
    raise invalid(name, value, "it has to be a number, or 'NaN', 'Infinity' or '-Infinity'")


def _number(text: str) -> int | float | None:
    if len(text) > _MAX_NUMBER_LENGTH:
        return None
    match = _NUMBER.fullmatch(text)
    if match is None:
        return None
    return float(text) if match.group(1) or match.group(2) else int(text)


def as_bytes(value: object, name: str) -> bytes:
    """Return the bytes that ``value`` stands for: base64, also of the URL-safe kind and without padding."""
    text = as_text(value, name).replace("-", "+").replace("_", "/").rstrip("=")
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except (binascii.Error, ValueError) as error:
        raise invalid(name, value, f"it is no base64 ({error})") from error


def text_field(message: JSONObject, name: str) -> str:
    """Return a field of text."""
    value = field_of(message, name)
    return "" if value is None else as_text(value, name)


def int_field(message: JSONObject, name: str, end: int) -> int:
    """Return an unsigned number below ``end``."""
    value = field_of(message, name)
    return 0 if value is None else as_int(value, 0, end, name)


def list_field(message: JSONObject, name: str) -> list[Any]:
    """Return a repeated field."""
    value = field_of(message, name)
    if value is None:
        return []
    if not isinstance(value, list):
        raise invalid(name, value, "it has to be a JSON array")
    return value


def id_field(message: JSONObject, name: str, size: int, *, may_be_zero: bool = False) -> int:
    """Return an id of ``size`` bytes; 0 if it is missing or empty, or all zero where it may be.

    Raises:
        InvalidSpanError: It is no hex, of another size, or all zero.
    """
    value = field_of(message, name)
    if value is None or value == "" or (may_be_zero and value == "0" * (2 * size)):
        return 0
    number = _hex(value, size) if isinstance(value, str) else 0
    if not number:
        raise invalid(name, value, f"it has to be {2 * size} hex digits, not all zero")
    return number


def _hex(text: str, size: int) -> int:
    try:
        data = bytes.fromhex(text)
    except ValueError:
        return 0
    # fromhex() skips spaces.
    return int.from_bytes(data, "big") if len(data) == size and len(text) == 2 * size else 0


def enum_field(message: JSONObject, name: str, numbers: Mapping[int, _Enum], prefix: str) -> _Enum:
    """Return the member that a field stands for by its number, or by its name after ``prefix``.

    Args:
        message: The object with the field.
        name: The field's name.
        numbers: The members by their numbers in OTLP; 0 is the default.
        prefix: What OTLP's names have in front of the names of the members.
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
    raise invalid(name, field_of(message, name), f"known are {names}")
