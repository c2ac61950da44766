"""Hide parts of spans, and cut long values, before anything is encoded, cached or logged.

Every text and attribute of a span passes through one of the classes below, instead of through its base class. Values
are first converted to what would be sent, so that a function that looks for strings also finds the ones that other
objects become: a URL, an exception, a subclass of str.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from decimal import Decimal
from types import CoroutineType
from typing import Any, Final

import attrs

from .._errors import InvalidSpanError
from .attributes import DROP, AttributeEncoder, encoded_value, plain_value, readable_items, snapshot, text_key
from .batch import EncodedSpan
from .checks import pass_on, text_of, utf8
from .encoder import EVENT_NAME, NAME, STATUS_MESSAGE, SpanEncoder
from .envelopes import HeaderEncoder
from .records import SpanLike
from .wire import TextFields

# The tags and lengths of an item in a list, or of a key and an item in a mapping, take at most this many bytes.
_ITEM_SIZE: Final = 12
_PAIR_SIZE: Final = 24


@attrs.define(eq=False)
class Redactor:
    """Applies ``redact`` and ``max_attribute_bytes``. Thread-safe.

    Args:
        redact: The program's function.
        max_bytes: The limit on the size of values.
        log_error: Logs a message unless it has logged one about the same place, its first argument, recently.
    """

    redact: Callable[[str, Any], Any] | None
    _max_bytes: int | None
    _log_error: Callable[..., None]
    cut: int = 0
    # Reentrant, as a finalizer may end a span while its thread holds it.
    _lock: threading.RLock = attrs.Factory(threading.RLock)

    def value(self, key: str, value: Any) -> Any:
        """Return what is sent in place of ``value``, or `DROP`. Raise `InvalidSpanError` if it cannot be expressed."""
        value = plain_value(value)
        if self.redact is not None:
            try:
                value = self.redact(key, value)
                if type(value) is CoroutineType:
                    value.close()
                    raise TypeError("redact is async")
                if value is DROP:
                    return DROP
                value = plain_value(value)
            except Exception as error:
                pass_on(error)
                self._tell(key, error)
                return DROP
        return value if self._max_bytes is None else self._shortened(value, self._max_bytes)

    def _shortened(self, value: Any, max_bytes: int) -> Any:
        shortened = _cut(value, max_bytes)
        if shortened is not value:
            with self._lock:
                self.cut += 1
        return shortened

    def _tell(self, key: str, error: Exception) -> None:
        # Neither the message of the exception nor a traceback, as both may contain the value.
        place = "an unknown place"
        traceback = error.__traceback__
        while traceback is not None:
            place = f"{traceback.tb_frame.f_code.co_filename}, line {traceback.tb_lineno}"
            traceback = traceback.tb_next
        self._log_error(
            place,
            "redact raised %s for the key %.100r (%s): the attribute is left out, or the name or message "
            "sent empty. Logged at most every 30 s",
            type(error).__name__,
            key,
            place,
        )


def _cut(value: Any, limit: int) -> Any:
    """Return ``value`` cut to ``limit`` bytes, marker included; ``value`` itself if it is not longer."""
    if type(value) is str:
        if 4 * len(value) <= limit:
            return value
        data = utf8(value)
        return value if len(data) <= limit else data[: _room(data, limit)].decode(errors="ignore") + _marker(data)
    if type(value) is bytes:
        return value if len(value) <= limit else value[: _room(value, limit)] + _marker(value).encode()
    if type(value) is int and value.bit_length() > 64:
        # It is sent as text.
        text = f"{Decimal(value):f}"
        return value if len(text) <= limit else _cut(text, limit)
    if type(value) is list or type(value) is dict:
        data = encoded_value(value)
        return value if len(data) <= limit else _cut_items(value, limit, data)
    return value


def _cut_items(value: list[Any] | dict[str, Any], limit: int, data: bytes) -> Any:
    """Return the first items that fit, the next one cut, and a marker for the others."""
    is_mapping = isinstance(value, dict)
    items = list(value.items()) if isinstance(value, dict) else [("", item) for item in value]
    left = limit - len(_marker(data)) - _PAIR_SIZE
    kept: list[tuple[str, Any]] = []
    for key, item in items:
        shortened = _cut(item, max(0, left - len(utf8(key)) - (_PAIR_SIZE if is_mapping else _ITEM_SIZE)))
        left -= len(encoded_value(shortened)) + (len(utf8(key)) + _ITEM_SIZE if is_mapping else 1)
        if left < 0:
            break
        kept.append((key, shortened))
        if shortened is not item:
            break
    if len(kept) < len(items):
        kept.append(("...", _marker(data)))
    return dict(kept) if is_mapping else [item for _, item in kept]


def _marker(data: bytes) -> str:
    return f"... [cut, {len(data):,} bytes]"


def _room(data: bytes, limit: int) -> int:
    return max(0, limit - len(_marker(data)))


class _Attributes(AttributeEncoder):
    __slots__ = ("_redactor",)

    def __init__(self, redactor: Redactor) -> None:
        super().__init__()
        self._redactor = redactor

    def append_fields(self, fields: list[bytes], tag: bytes, attributes: Mapping[Any, Any] | None, field: str) -> int:
        if attributes is None:
            return 0
        lost = 0
        try:
            items: Any = snapshot(attributes).items()
        except Exception as error:
            pass_on(error)
            items, lost = readable_items(attributes, field)
        kept: dict[str, Any] = {}
        for key, value in items:
            try:
                key = text_key(key)
                value = self._redactor.value(key, value)
            except Exception as error:
                pass_on(error)
                value = DROP
            if value is DROP:
                lost += 1
            else:
                kept[key] = value
        return lost + super().append_fields(fields, tag, kept, field)


class _Texts(TextFields):
    __slots__ = ("_key", "_redactor")

    def __init__(self, tag: bytes, key: str, redactor: Redactor) -> None:
        super().__init__(tag)
        self._key = key
        self._redactor = redactor

    def field(self, text: Any) -> bytes:
        if text is None:
            return b""
        value = self._redactor.value(self._key, text_of(text).decode())
        return b"" if value is DROP else super().field(value)


class RedactingEncoder(SpanEncoder):
    """A `SpanEncoder` with a `Redactor`."""

    __slots__ = ("_is_redacting", "_redactor")

    def __init__(
        self, default_resource: object | None, on_wrong_unit: Callable[[str, str], object], redactor: Redactor
    ) -> None:
        super().__init__(default_resource, on_wrong_unit)
        self._redactor = redactor
        self._attributes = _Attributes(redactor)
        self._headers = HeaderEncoder(self._attributes, is_redacted=redactor.redact is not None)
        self._names = _Texts(NAME, "span.name", redactor)
        self._event_names = _Texts(EVENT_NAME, "event.name", redactor)
        self._messages = _Texts(STATUS_MESSAGE, "status.message", redactor)

    @property
    def cut(self) -> int:
        return self._redactor.cut

    def encode(self, span: SpanLike | EncodedSpan) -> EncodedSpan:
        encoded = super().encode(span)
        if self._redactor.redact is not None and not encoded.headers.is_redacted:
            raise InvalidSpanError(
                "the span is already encoded, so redact cannot be applied to it: add the span itself, or use a batcher "
                "without redact (spans from a Loss of a batcher with redact can be added again)"
            )
        return encoded
