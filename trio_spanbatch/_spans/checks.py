"""Checks of the values of a span's fields, and the messages of `InvalidSpanError`.

A message names the field, as a path into the span, and the shortened value: ``events[2].timestamp is -1: ...``.

An exception of a signal handler is not the span's fault, nor is a ``RecursionError`` if the caller's stack was nearly
full: see `pass_on`.
"""

from __future__ import annotations

import operator
import re
from collections import deque
from collections.abc import Mapping
from inspect import CO_VARARGS
from reprlib import Repr
from types import FrameType, MappingProxyType
from typing import Any, Final

from .._errors import InvalidSpanError

TRACE_ID_END: Final = 1 << 128
SPAN_ID_END: Final = 1 << 64
TIME_END: Final = 1 << 64
COUNT_END: Final = 1 << 32

_SHOWN_LENGTH: Final = 120
# The deepest value takes 140 frames of the encoder, and its parts need a few more.
_FRAMES: Final = 250
# The ``str`` of these contains the ``repr`` of each part, twice if a part occurs twice.
_MAPPINGS: Final[tuple[Any, ...]] = (dict, MappingProxyType)
_CONTAINERS: Final[tuple[Any, ...]] = (
    *(list, tuple, set, frozenset, deque, *_MAPPINGS),
    *(type({}.keys()), type({}.values()), type({}.items())),
)
_MAX_STR_SIZE: Final = 16 * 1024 * 1024
# Each part, and each container, counts as this many characters besides its text: iterating over containers is slow.
_PART_SIZE: Final = 16
_CONTAINER_SIZE: Final = 1024
_LONE_SURROGATE: Final = re.compile("[\ud800-\udfff]")


class _ShortRepr(Repr):
    def __init__(self) -> None:
        super().__init__()
        self.maxstring = self.maxother = self.maxlong = 80
        self.maxlevel = 2

    def repr1(self, x: Any, level: int) -> str:
        # Before Python 3.12, Repr dispatches by the type's name alone, and sorts any object whose type is named "set".
        ours = type(x).__module__ == "builtins"
        return super().repr1(x, level) if ours else self.repr_instance(x, level)

    def repr_instance(self, x: Any, level: int) -> str:
        try:
            text = repr(x)
        except Exception as error:
            pass_on(error)
            # Here reprlib would use the object's ``__class__``, which may fail or be wrong as well.
            text = object.__repr__(x)
        return text if len(text) <= self.maxother else f"{text[: self.maxother]}..."


_repr: Final = _ShortRepr().repr


def shown(value: object) -> str:
    """Return a ``repr`` of ``value`` that is never long and never fails."""
    try:
        text = _repr(value)
    except Exception as error:
        pass_on(error)
        # For example an int with more digits than Python converts.
        text = object.__repr__(value)
    return text if len(text) <= _SHOWN_LENGTH else f"{text[:_SHOWN_LENGTH]}..."


def check_spans(spans: object) -> None:
    """Raise `TypeError` if ``spans`` is not an iterable of spans: a span itself, or a text."""
    is_iterable = hasattr(type(spans), "__iter__") or hasattr(type(spans), "__getitem__")
    if not is_iterable or isinstance(spans, str | bytes | Mapping):
        raise TypeError(f"spans is of type {type(spans).__name__}; it must be an iterable of spans, such as a list")


def invalid(field: str, value: object, problem: str) -> InvalidSpanError:
    """Return the error for an invalid ``value`` of ``field``."""
    return InvalidSpanError(f"{field} is {shown(value)}: {problem}")


def failed(field: str, error: Exception) -> InvalidSpanError:
    """Return the error for a ``field`` that raised ``error`` when it was read. Callers raise it from ``error``."""
    return InvalidSpanError(f"{field} cannot be read: {shown(error)}")


def of_wrong_kind(field: str, value: object, problem: str) -> InvalidSpanError:
    """Return the error for a part of a span of a wrong type. Only a str is shown: others may contain private data."""
    what = shown(value) if type(value) is str else f"of type {type(value).__name__}"
    return InvalidSpanError(f"{field} is {what}: {problem}")


def lacks(value: object, attribute: str) -> bool:
    """Return whether ``value`` has no such attribute, so that it is of a wrong type."""
    try:
        operator.attrgetter(attribute)(value)
    except AttributeError:
        return True
    except Exception as error:
        pass_on(error)
    return False


def within(path: str, error: InvalidSpanError) -> InvalidSpanError:
    """Return ``error`` with ``path`` in front of its field."""
    outer = InvalidSpanError(f"{path}.{error}")
    outer.__cause__ = error.__cause__
    return outer


def pass_on(error: Exception) -> None:
    """Re-raise ``error`` if it was caused by the caller's deep stack, or by a signal handler, rather than by a value.

    With a deeper stack, or without the signal, the same span could have been encoded.
    """
    if (isinstance(error, RecursionError) and not _has_deep_stack()) or _is_from_a_signal_handler(error):
        raise error


def _is_from_a_signal_handler(error: Exception) -> bool:
    """Return whether ``error`` went through a function that had the frame of its caller as an argument.

    Python calls signal handlers so, and trace functions. Nothing else tells them from functions that the encoder calls.
    """
    traceback = error.__traceback__
    while traceback is not None:
        frame, traceback = traceback.tb_frame, traceback.tb_next
        if frame.f_back is not None and any(argument is frame.f_back for argument in _positional(frame)):
            return True
    return False


def _positional(frame: FrameType) -> tuple[object, ...]:
    code, values = frame.f_code, frame.f_locals
    arguments = tuple(values.get(name) for name in code.co_varnames[: code.co_argcount])
    if code.co_flags & CO_VARARGS:
        rest = values.get(code.co_varnames[code.co_argcount + code.co_kwonlyargcount])
        return arguments + rest if type(rest) is tuple else arguments
    return arguments


def _has_deep_stack() -> bool:
    try:
        return _reach(_FRAMES)
    except RecursionError:
        return False


def _reach(frames: int) -> bool:
    return frames == 0 or _reach(frames - 1)


def checked_int(value: Any, first: int, end: int, field: str, meaning: str) -> int:
    """Return ``value`` as a plain int if it is an int, and no bool, from ``first`` to ``end - 1``."""
    if isinstance(value, int) and not isinstance(value, bool):
        # A subclass may override comparison.
        number = int.__int__(value)
        if first <= number < end:
            return number
    raise invalid(field, value, f"{meaning} is an int from {first} to {end - 1:#x}")


def checked_number(value: Any, end: int, field: str, meaning: str) -> int:
    """Return ``value`` as a plain int if it is an int from 0 to ``end - 1``, or has such an ``__index__``.

    A bool does not count as an int, and a float is never rounded.
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
    """Return ``value``, or its ``str``, in UTF-8; empty for None, and if ``str`` raises, as a span needs no name."""
    if value is None:
        return b""
    try:
        return utf8(value if isinstance(value, str) else str_of(value))
    except Exception as error:
        pass_on(error)
        return b""


def str_of(value: Any) -> str:
    """Return ``str(value)``; raise `InvalidSpanError` if it would exhaust memory, as nested containers can."""
    parts, characters_left = [value], _MAX_STR_SIZE
    while parts:
        part = parts.pop()
        kind = type(part)
        characters_left -= _PART_SIZE + (len(part) if kind is str or kind is bytes else 0)
        if issubclass(kind, _CONTAINERS):
            container = next(base for base in _CONTAINERS if issubclass(kind, base))
            characters_left -= _CONTAINER_SIZE
            parts += container.__iter__(part)
            if container in _MAPPINGS:
                parts += container.values(part)
        if characters_left < 0:
            raise InvalidSpanError(f"its text would have more than {_MAX_STR_SIZE} characters")
    return str(value)


def utf8(text: str) -> bytes:
    """Return ``text`` in UTF-8, with U+FFFD for each lone surrogate, which UTF-8 cannot represent."""
    # Called on the class, as a subclass may override ``encode``.
    try:
        return str.encode(text)
    except UnicodeEncodeError:
        return _LONE_SURROGATE.sub("\ufffd", text).encode()
