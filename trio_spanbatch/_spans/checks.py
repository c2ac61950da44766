"""What may stand in a span's fields, and how an `InvalidSpanError` says that something else was there.

The message names the field, as a path into the span, and the value, shortened: ``events[2].timestamp is -1: ...``.

A ``RecursionError`` says nothing about a span if the caller's own stack was nearly full: see `pass_on`.
"""

from __future__ import annotations

import operator
import re
from collections import deque
from reprlib import Repr
from types import MappingProxyType
from typing import Any, Final

from .._errors import InvalidSpanError

__all__ = [
    "COUNT_END",
    "SPAN_ID_END",
    "TIME_END",
    "TRACE_ID_END",
    "checked_int",
    "checked_number",
    "failed",
    "invalid",
    "pass_on",
    "shown",
    "str_of",
    "text_of",
    "utf8",
    "within",
]

TRACE_ID_END: Final = 1 << 128
SPAN_ID_END: Final = 1 << 64
TIME_END: Final = 1 << 64
COUNT_END: Final = 1 << 32

_SHOWN_LENGTH: Final = 120
# The deepest value takes 140 frames of the encoder, and what it is made of needs a few of its own.
_FRAMES: Final = 250
# Python writes these out part by part, and a part that occurs twice twice.
_MAPPINGS: Final[tuple[Any, ...]] = (dict, MappingProxyType)
_CONTAINERS: Final[tuple[Any, ...]] = (
    *(list, tuple, set, frozenset, deque, *_MAPPINGS),
    *(type({}.keys()), type({}.values()), type({}.items())),
)
_MAX_STR_SIZE: Final = 16 * 1024 * 1024
# What a part counts for beside its text. Looking at a container takes long, and thousands of them are no name.
_PART_SIZE: Final = 16
_CONTAINER_SIZE: Final = 1024
_LONE_SURROGATE: Final = re.compile("[\ud800-\udfff]")


class _ShortRepr(Repr):
    def repr1(self, x: Any, level: int) -> str:
        # Before Python 3.12 it goes by the type's name alone, and sorts whatever is called "set" or "dict".
        ours = type(x).__module__ == "builtins"
        return super().repr1(x, level) if ours else self.repr_instance(x, level)

    def repr_instance(self, x: Any, level: int) -> str:
        try:
            text = repr(x)
        except Exception:
            # Reprlib asks the object itself for its class then, which may fail or lie as well.
            text = object.__repr__(x)
        return text if len(text) <= self.maxother else f"{text[: self.maxother]}..."


def _short_repr() -> Repr:
    short = _ShortRepr()
    short.maxstring = short.maxother = short.maxlong = 80
    short.maxlevel = 2
    return short


_repr: Final = _short_repr().repr


def shown(value: object) -> str:
    """Return a ``repr`` of ``value`` that is never long and never fails."""
    try:
        text = _repr(value)
    except Exception:
        # Such as an int of more digits than Python writes.
        text = object.__repr__(value)
    return text if len(text) <= _SHOWN_LENGTH else f"{text[:_SHOWN_LENGTH]}..."


def invalid(field: str, value: object, problem: str) -> InvalidSpanError:
    """Return the error that says what is wrong with ``value`` in ``field``."""
    return InvalidSpanError(f"{field} is {shown(value)}: {problem}")


def failed(field: str, error: Exception) -> InvalidSpanError:
    """Return the error for ``field``, where something raised that was not expected to.

    Raise it from ``error``, which is then its cause.
    """
    return InvalidSpanError(f"{field} cannot be read: {shown(error)}")


def within(path: str, error: InvalidSpanError) -> InvalidSpanError:
    """Return ``error`` as seen from outside: its field is a part of ``path``."""
    outer = InvalidSpanError(f"{path}.{error}")
    outer.__cause__ = error.__cause__
    return outer


def pass_on(error: Exception) -> None:
    """Raise ``error`` again if it is a ``RecursionError`` that comes from the caller's deep stack, not from a value.

    With more room on the stack the same span would have been encoded. So neither it nor an attribute is to blame.
    """
    if isinstance(error, RecursionError) and not _has_room():
        raise error


def _has_room() -> bool:
    try:
        return _reach(_FRAMES)
    except RecursionError:
        return False


def _reach(frames: int) -> bool:
    return frames == 0 or _reach(frames - 1)


def checked_int(value: Any, first: int, end: int, field: str, meaning: str) -> int:
    """Return ``value`` as a plain int if it is one from ``first`` to ``end - 1``.

    Raises:
        InvalidSpanError: It is something else; a bool is no number here.
    """
    if isinstance(value, int) and not isinstance(value, bool):
        # A subclass may compare as it likes.
        number = int.__int__(value)
        if first <= number < end:
            return number
    raise invalid(field, value, f"{meaning} is an int from {first} to {end - 1:#x}")


def checked_number(value: Any, end: int, field: str, meaning: str) -> int:
    """Return ``value`` as a plain int if it is a whole number from 0 to ``end - 1``, by ``__index__`` too.

    Raises:
        InvalidSpanError: It is something else; a bool is not a number here, and a float is never rounded.
    """
    problem = f"{meaning} is an int from 0 to {end - 1:#x}"
    try:
        number = -1 if isinstance(value, bool) else operator.index(value)
    except Exception as error:
        pass_on(error)
        if type(value) is float:
            problem += "; round a float with int() first, and get times from time.time_ns()"
        raise invalid(field, value, problem) from error
    if 0 <= number < end:
        return number
    raise invalid(field, value, problem)


def text_of(value: Any) -> bytes:
    """Return the text that ``value`` stands for, in UTF-8.

    A string stands for itself, None for no text, and anything else for its ``str``. If that raises, there is no text:
    a span is not lost for the lack of a name.
    """
    if value is None:
        return b""
    try:
        return utf8(value if isinstance(value, str) else str_of(value))
    except Exception as error:
        pass_on(error)
        return b""


def str_of(value: Any) -> str:
    """Return ``str(value)``.

    Raises:
        InvalidSpanError: It would fill memory: a list that holds the same list twice, which holds the same list twice,
            and so on.
    """
    parts, room = [value], _MAX_STR_SIZE
    while parts:
        part = parts.pop()
        kind = type(part)
        room -= _PART_SIZE + (len(part) if kind is str or kind is bytes else 0)
        if issubclass(kind, _CONTAINERS):
            container = next(base for base in _CONTAINERS if issubclass(kind, base))
            room -= _CONTAINER_SIZE
            parts += container.__iter__(part)
            if container in _MAPPINGS:
                parts += container.values(part)
        if room < 0:
            raise InvalidSpanError(f"its str has more than {_MAX_STR_SIZE} characters")
    return str(value)


def utf8(text: str) -> bytes:
    """Return ``text`` in UTF-8, with U+FFFD for each lone surrogate, which UTF-8 has no form for."""
    # Called on the class, as a subclass may have an ``encode`` of its own.
    try:
        return str.encode(text)
    except UnicodeEncodeError:
        return _LONE_SURROGATE.sub("\ufffd", text).encode()
