"""Checks of arguments. A message has the parameter, the value, and what is allowed."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import attrs

from .._spans.checks import shown
from .._values import is_number

NONE = type(None)


def check(
    name: str, value: object, allowed: str, *types: type, valid: Callable[[Any], bool] = lambda value: True
) -> None:
    """Raise `TypeError` if ``value`` is not of one of ``types``, `ValueError` if it is not ``valid``."""
    is_of_type = isinstance(value, types) and (bool in types or not isinstance(value, bool))
    if not is_of_type or not valid(value):
        raise (ValueError if is_of_type else TypeError)(f"{name} is {shown(value)}; it must be {allowed}")


def check_function(name: str, value: object, allowed: str = "a function that is not async") -> None:
    # A coroutine, which an async function returns, is true.
    is_function = callable(value) and not isinstance(value, type)
    if not is_function or any(map(inspect.iscoroutinefunction, (value, type(value).__call__))):
        raise TypeError(f"{name} is {shown(value)}; it must be {allowed}")


def check_seconds(name: str, value: object) -> None:
    _check_number(name, value, "at least 0", lambda value: value >= 0)


def check_list(name: str, value: object, allowed: str, of: Callable[[Any], bool]) -> None:
    """Check a value of which only an iterable of certain elements makes sense; an iterator is not consumed."""
    if not isinstance(value, Iterable) or isinstance(value, str | bytes | bytearray | Mapping):
        raise TypeError(f"{name} is {shown(value)}; it must be {allowed}")
    for number, element in enumerate(value if isinstance(value, Sequence) else ()):
        if not of(element):
            raise TypeError(f"{name}[{number}] is {shown(element)}; {name} must be {allowed}")


def is_pair_of_str(value: object) -> bool:
    return isinstance(value, tuple | list) and len(value) == 2 and all(isinstance(part, str) for part in value)


def _check_number(name: str, value: object, allowed: str, test: Callable[[Any], bool], kind: type = object) -> None:
    if not (is_number(value) and isinstance(value, kind) and test(value)):
        raise (ValueError if is_number(value) else TypeError)(f"{name} is {shown(value)}; it must be {allowed}")


# Validators of records, which do the same.


def number(allowed: str, test: Callable[[Any], bool], kind: type = object) -> Any:
    """Return a validator for numbers of type ``kind`` that pass ``test``."""
    return validator(lambda name, value: _check_number(name, value, allowed, test, kind))


def of(allowed: str, *types: type, valid: Callable[[Any], bool] = lambda value: True) -> Any:
    """Return a validator that does the same as `check`."""
    return validator(lambda name, value: check(name, value, allowed, *types, valid=valid))


def validator(check: Callable[[str, Any], None]) -> Any:
    def validate(instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
        check(attribute.name, value)

    return validate


not_negative = validator(check_seconds)
a_bool = of("True or False", bool)
a_str = of("a str", str)
some_bytes = of("bytes", bytes)
