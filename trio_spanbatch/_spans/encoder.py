"""Encode spans in protobuf's wire format, in pure Python.

Writing the format directly takes a fifth of the time of building protobuf messages and serializing them, and a span is
encoded in the call that adds it. The result is as long as protobuf's own serialization: fields in ascending order,
lengths in as few bytes as possible, fields with default values left out.
https://github.com/open-telemetry/opentelemetry-proto/blob/main/opentelemetry/proto/trace/v1/trace.proto
"""

from __future__ import annotations

import operator
import struct
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

import attrs

from .._errors import InvalidSpanError
from .attributes import AttributeEncoder, snapshot
from .batch import EncodedSpan
from .checks import (
    COUNT_END,
    SPAN_ID_END,
    TIME_END,
    TRACE_ID_END,
    checked_int,
    checked_number,
    failed,
    invalid,
    lacks,
    pass_on,
    shown,
    within,
)
from .envelopes import HeaderEncoder
from .records import SpanLike
from .wire import TextFields, count_field, delimited, text_field

# Fields of Span, by their tags.
_TRACE_ID: Final = b"\x0a\x10"  # with the length, 16
_SPAN_ID: Final = b"\x12\x08"  # with the length, 8
_TRACE_STATE: Final = b"\x1a"
_PARENT_SPAN_ID: Final = b"\x22\x08"  # with the length, 8
NAME: Final = b"\x2a"
_ATTRIBUTES: Final = b"\x4a"
_DROPPED_ATTRIBUTES: Final = b"\x50"
_EVENTS: Final = b"\x5a"
_DROPPED_EVENTS: Final = b"\x60"
_LINKS: Final = b"\x6a"
_DROPPED_LINKS: Final = b"\x70"
_STATUS: Final = b"\x7a"
# Fields of Span.Event, Span.Link (its first three are those of Span) and Status.
EVENT_NAME: Final = b"\x12"
_EVENT_ATTRIBUTES: Final = b"\x1a"
_EVENT_DROPPED_ATTRIBUTES: Final = b"\x20"
_LINK_ATTRIBUTES: Final = b"\x22"
_LINK_DROPPED_ATTRIBUTES: Final = b"\x28"
STATUS_MESSAGE: Final = b"\x12"

# Span.kind and Status.code by the names of the members, which are the same in all enums of kinds and codes.
_KINDS: Final[Mapping[object, bytes]] = {
    "UNSPECIFIED": b"",
    "INTERNAL": b"\x30\x01",
    "SERVER": b"\x30\x02",
    "CLIENT": b"\x30\x03",
    "PRODUCER": b"\x30\x04",
    "CONSUMER": b"\x30\x05",
}
_STATUS_CODES: Final[Mapping[object, bytes]] = {"UNSET": b"", "OK": b"\x18\x01", "ERROR": b"\x18\x02"}

# Statuses without a description.
_STATUSES: Final = {name: delimited(_STATUS, code) for name, code in _STATUS_CODES.items()}

# The usual links, events and dropped counts of spans. CPython has one object for each, so they are recognized by
# identity, in a tenth of the time; other objects are examined.
_NOTHING: Final[tuple[()]] = ()
_ZERO: Final = 0

# Fields of 64 and 32 bits are packed with their tags in front.
_pack_times: Final = struct.Struct("<BQBQ").pack
_pack_time: Final = struct.Struct("<BQ").pack
_pack_span_flags: Final = struct.Struct("<2sI").pack
_pack_link_flags: Final = struct.Struct("<BI").pack
_START_TIME: Final = 0x39
_END_TIME: Final = 0x41
_EVENT_TIME: Final = 0x09
_SPAN_FLAGS: Final = b"\x85\x01"
_LINK_FLAGS: Final = 0x35

# Nanoseconds. An earlier time is before 1973, and was probably not meant in nanoseconds.
_PLAUSIBLE: Final = 10**17
_UNITS: Final = {"seconds": 1, "milliseconds": 1_000, "microseconds": 1_000_000}

# SpanFlags of trace.proto.
_TRACE_FLAGS_MASK: Final = 0xFF
_HAS_IS_REMOTE: Final = 0x100
_IS_REMOTE: Final = 0x200
# By the trace flags of the span, or of the linked span.
_NO_REMOTE_PARENT: Final = {own: _pack_span_flags(_SPAN_FLAGS, _HAS_IS_REMOTE | own) for own in range(256)}
_REMOTE_PARENT: Final = {own: _pack_span_flags(_SPAN_FLAGS, _HAS_IS_REMOTE | _IS_REMOTE | own) for own in range(256)}
_LOCAL_LINK: Final = {own: _pack_link_flags(_LINK_FLAGS, _HAS_IS_REMOTE | own) for own in range(256)}
_REMOTE_LINK: Final = {own: _pack_link_flags(_LINK_FLAGS, _HAS_IS_REMOTE | _IS_REMOTE | own) for own in range(256)}


@attrs.frozen
class _Parts:
    """A field with parts of a span.

    Attributes:
        name: The name of the field.
        kind: The type of its items.
        attribute: An attribute that these have, unlike what is given by mistake.
    """

    name: str
    kind: str
    attribute: str


_EVENT_PARTS: Final = _Parts("events", "SpanEvent", "timestamp")
_LINK_PARTS: Final = _Parts("links", "SpanLink", "context")
_A_CONTEXT: Final = "it must be a SpanContext, such as the `context` of a span"


class SpanEncoder:
    """Encodes spans. Those without a resource get ``default_resource``.

    ``on_wrong_unit`` is called for a time that was probably not meant in nanoseconds, with a message and the unit.

    It caches attribute keys, resources and scopes, within bounds, as the spans of a program share them. It reads the
    attributes of `Span`, which are those of OpenTelemetry's ``ReadableSpan``, and does not check the span's type.
    """

    __slots__ = (
        *("_attributes", "_default_resource", "_event_names", "_headers", "_messages", "_names", "_on_wrong_unit"),
    )

    def __init__(
        self, default_resource: object | None = None, on_wrong_unit: Callable[[str, str], object] | None = None
    ) -> None:
        self._on_wrong_unit = on_wrong_unit
        self._default_resource = default_resource
        self._attributes = AttributeEncoder()
        self._headers = HeaderEncoder(self._attributes)
        self._names = TextFields(NAME)
        self._event_names = TextFields(EVENT_NAME)
        self._messages = TextFields(STATUS_MESSAGE)

    @property
    def cut(self) -> int:
        """The number of values that were cut."""
        return 0

    def encode(self, span: SpanLike | EncodedSpan) -> EncodedSpan:
        """Return ``span`` encoded. An `EncodedSpan` is returned unchanged.

        An attribute that OTLP cannot express is left out and counted in ``dropped_attributes_count``. If that is so for
        another field, if the span has not ended or is no span, `InvalidSpanError` names the field and the value. A
        `RecursionError` says that the caller's stack is nearly full; the span may be valid.
        """
        try:
            return span if type(span) is EncodedSpan else self._encode(span)
        except InvalidSpanError:
            raise
        except Exception as error:
            pass_on(error)
            raise _failed_span(span, error) from error

    def _encode(self, span: Any) -> EncodedSpan:
        parent, context = span.parent, span.context
        fields = _context(context)
        if parent is not None:
            fields += (_PARENT_SPAN_ID, _parent_span_id(parent.span_id))
        fields += (self._names.field(span.name), _kind(span.kind), self._times(span))
        lost = self._attributes.append_fields(fields, _ATTRIBUTES, span.attributes, "attributes")
        dropped = span.dropped_attributes
        if lost or dropped is not _ZERO:
            fields.append(count_field(_DROPPED_ATTRIBUTES, dropped, "dropped_attributes", lost))
        events = span.events
        if events is not _NOTHING:
            _append_each(fields, _EVENTS, _EVENT_PARTS, self._event, events)
        dropped = span.dropped_events
        if dropped is not _ZERO:
            fields.append(count_field(_DROPPED_EVENTS, dropped, "dropped_events"))
        links = span.links
        if links is not _NOTHING:
            _append_each(fields, _LINKS, _LINK_PARTS, self._link, links)
        dropped = span.dropped_links
        if dropped is not _ZERO:
            fields.append(count_field(_DROPPED_LINKS, dropped, "dropped_links"))
        flags = getattr(span, "flags", None)
        if flags is None:
            # The span's own trace flags, and whether its parent is remote.
            flag_fields = _REMOTE_PARENT if parent is not None and parent.is_remote else _NO_REMOTE_PARENT
            try:
                flags_field = flag_fields[context.trace_flags]
            except Exception as error:
                pass_on(error)
                flags_field = flag_fields[_trace_flags(context)]
        else:
            flags = checked_number(flags, COUNT_END, "flags", "a set of flags")
            flags_field = _pack_span_flags(_SPAN_FLAGS, flags) if flags else b""
        fields += (_status(span.status, self._messages), flags_field)
        resource = span.resource
        return EncodedSpan(
            b"".join(fields),
            self._headers.headers(self._default_resource if resource is None else resource, span.instrumentation_scope),
        )

    def _times(self, span: Any) -> bytes:
        start, end = span.start_time, span.end_time
        if end is None:
            raise InvalidSpanError("end_time is None: the span has not ended")
        if type(start) is int and type(end) is int and _PLAUSIBLE < start < TIME_END and _PLAUSIBLE < end < TIME_END:
            return _pack_times(_START_TIME, start, _END_TIME, end)
        fields = _time(_START_TIME, start, "start_time") + _time(_END_TIME, end, "end_time")
        if self._on_wrong_unit is not None and type(start) is int and (unit := _unit_of(start)):
            self._on_wrong_unit(f"start_time is {start}, which is in 1970", unit)
        return fields

    def _event(self, event: Any) -> list[bytes]:
        fields = [_time(_EVENT_TIME, event.timestamp, "timestamp"), self._event_names.field(event.name)]
        lost = self._attributes.append_fields(fields, _EVENT_ATTRIBUTES, event.attributes, "attributes")
        dropped = event.dropped_attributes
        if lost or dropped is not _ZERO:
            fields.append(count_field(_EVENT_DROPPED_ATTRIBUTES, dropped, "dropped_attributes", lost))
        return fields

    def _link(self, link: Any) -> list[bytes]:
        context = link.context
        fields = _context(context, link)
        lost = self._attributes.append_fields(fields, _LINK_ATTRIBUTES, link.attributes, "attributes")
        dropped = link.dropped_attributes
        if lost or dropped is not _ZERO:
            fields.append(count_field(_LINK_DROPPED_ATTRIBUTES, dropped, "dropped_attributes", lost))
        fields.append(_link_flags(getattr(link, "flags", None), context))
        return fields


def _append_each(
    fields: list[bytes], tag: bytes, parts: _Parts, encode: Callable[[Any], list[bytes]], items: Iterable[Any]
) -> None:
    for index, item in enumerate(items):
        try:
            fields.append(delimited(tag, b"".join(encode(item))))
        except InvalidSpanError as error:
            raise within(f"{parts.name}[{index}]", error) from error.__cause__
        except Exception as error:
            pass_on(error)
            raise _failed_item(f"{parts.name}[{index}]", item, parts, error) from error


def _failed_item(path: str, item: Any, parts: _Parts, error: Exception) -> InvalidSpanError:
    if lacks(item, parts.attribute):
        return invalid(path, item, f"it must be a {parts.kind}")
    if parts is _LINK_PARTS and lacks(item, "context.trace_id"):
        return invalid(f"{path}.context", item.context, _A_CONTEXT)
    return failed(path, error)


def _first_id(link: Any) -> int:
    """Return the smallest valid id: 0 for a link with attributes or a trace state, else 1.

    Such a link is recorded even if its ids are invalid: https://opentelemetry.io/docs/specs/otel/trace/api/#add-link
    """
    if link is None:
        return 1
    try:
        return 0 if link.attributes or link.dropped_attributes or link.context.trace_state else 1
    except Exception as error:
        pass_on(error)
        return 0  # it has an attribute or a trace state that cannot be read


def _context(context: Any, link: Any = None) -> list[bytes]:
    """Return trace_id, span_id and trace_state of a span, or of its ``link``: they have the same numbers in both."""
    if context is None:
        raise InvalidSpanError("context is None: every span and link must have a context, with its ids")
    trace_id, span_id, trace_state = context.trace_id, context.span_id, context.trace_state
    if type(trace_id) is not int or not 0 < trace_id < TRACE_ID_END:
        trace_id = checked_int(trace_id, _first_id(link), TRACE_ID_END, "context.trace_id", "a trace id")
    if type(span_id) is not int or not 0 < span_id < SPAN_ID_END:
        span_id = checked_int(span_id, _first_id(link), SPAN_ID_END, "context.span_id", "a span id")
    fields = [_TRACE_ID, trace_id.to_bytes(16), _SPAN_ID, span_id.to_bytes(8)]
    try:
        # The ``__len__`` of OpenTelemetry's TraceState is written in Python, and takes four times as long.
        if getattr(trace_state, "_dict", True) and trace_state:
            fields.append(text_field(_TRACE_STATE, _trace_state_text(trace_state)))
    except Exception as error:
        # Left out, like a name whose ``str`` raises.
        pass_on(error)
    return fields


def _parent_span_id(span_id: Any) -> bytes:
    if type(span_id) is not int or not 0 < span_id < SPAN_ID_END:
        span_id = checked_int(span_id, 1, SPAN_ID_END, "parent.span_id", "a span id")
    encoded: bytes = span_id.to_bytes(8)
    return encoded


def _trace_state_text(trace_state: Any) -> Any:
    if not isinstance(trace_state, Mapping):
        return trace_state
    return ",".join(f"{key}={value}" for key, value in snapshot(trace_state).items())


def _kind(kind: Any) -> bytes:
    # Reading ``name``, a property written in Python, takes ten times as long.
    field = _KINDS.get(getattr(kind, "_name_", None))
    if field is None:
        raise invalid("kind", kind, "it must be a SpanKind")
    return field


def _unit_of(time: int) -> str:
    """Return the unit in which ``time`` would be between 2001 and 2096; empty if that is not a wrong one."""
    return next((unit for unit, second in _UNITS.items() if second <= time // 10**9 < 4 * second), "")


def _time(tag: int, time: Any, field: str) -> bytes:
    if type(time) is not int or not 0 <= time < TIME_END:
        time = checked_number(time, TIME_END, field, "a time in nanoseconds")
    return _pack_time(tag, time) if time else b""


def _status(status: Any, messages: TextFields) -> bytes:
    if status is None:
        return b""
    try:
        code, description = status.status_code, status.description
    except AttributeError:
        raise invalid("status", status, "it must be a Status") from None
    name = getattr(code, "_name_", None)
    if name not in _STATUS_CODES:
        raise invalid("status.status_code", code, "it must be a StatusCode")
    if description is None:
        return _STATUSES[name]
    return delimited(_STATUS, messages.field(description) + _STATUS_CODES[name])


def _link_flags(flags: Any, context: Any) -> bytes:
    """Return the field of the given flags, or of the linked span's trace flags and whether it is remote."""
    if flags is None:
        return (_REMOTE_LINK if context.is_remote else _LOCAL_LINK)[_trace_flags(context)]
    flags = checked_number(flags, COUNT_END, "flags", "a set of flags")
    return _pack_link_flags(_LINK_FLAGS, flags) if flags else b""


def _trace_flags(context: Any) -> int:
    """Return the W3C trace flags of a context, 8 bits; 0 if not an integer: flags never make a span invalid."""
    try:
        return max(operator.index(context.trace_flags), 0) & _TRACE_FLAGS_MASK
    except Exception as error:
        pass_on(error)
        return 0


def _failed_span(span: object, error: Exception) -> InvalidSpanError:
    """Return the error for a span that raised ``error``, with the name of the field if it can be found."""
    if issubclass(type(span), type):
        return InvalidSpanError(f"{shown(span)} is not a span: it is a class")
    for field in (name for name in vars(SpanLike) if not name.startswith("_")):
        try:
            getattr(span, field)
        except AttributeError:
            swapped = "; the location is the first argument, and the span the second" if type(span) is str else ""
            return InvalidSpanError(f"{shown(span)} is not a span: it has no attribute {field!r}{swapped}")
        except Exception as second:
            pass_on(second)
            return failed(field, error)
    for field, attribute in (("parent", "span_id"), ("context", "trace_id")):
        value = getattr(span, field)
        if value is not None and lacks(value, attribute):
            return invalid(field, value, _A_CONTEXT)
    for parts in (_EVENT_PARTS, _LINK_PARTS):
        if lacks(value := getattr(span, parts.name), "__iter__"):
            return invalid(parts.name, value, f"it must be a sequence of {parts.kind}")
    return failed("the span", error)
