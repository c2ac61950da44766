"""Convert OTLP JSON to records.

OTLP's JSON is protobuf's with two changes: ids are hex, and enums are numbers
(https://opentelemetry.io/docs/specs/otlp/#json-protobuf-encoding). Both forms are accepted: ids in upper or lower case,
enums as numbers or names, 64-bit numbers as strings or numbers. Unknown fields are ignored.

The rules for fields are in https://protobuf.dev/programming-guides/json/. A field may be named in lowerCamelCase or in
its original _snake_case. If it is null or missing, it has its default value.

If a span is invalid, the iterator yields an error in its place and continues with the next span.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from enum import Enum
from functools import cache
from types import MappingProxyType
from typing import Any, Final, TypeAlias, TypeVar

from .._errors import InvalidSpanError
from .._spans.checks import COUNT_END, TIME_END, invalid, shown, within
from .._spans.records import (
    EntityRef,
    InstrumentationScope,
    Resource,
    Span,
    SpanContext,
    SpanEvent,
    SpanKind,
    SpanLink,
    Status,
    StatusCode,
)

_JSONObject: TypeAlias = dict[str, Any]
_Enum = TypeVar("_Enum", bound=Enum)
_T = TypeVar("_T")

_CAPITAL: Final = re.compile("[A-Z]")
_NUMBER: Final = re.compile(r"-?[0-9]+(\.[0-9]+)?([eE][+-]?[0-9]+)?|NaN|-?Infinity")
_MAX_NUMBER_LENGTH: Final = 400  # the longest double without an exponent has 309 digits
_TYPES: Final = {dict: "a JSON object", list: "a JSON array", str: "a string", bool: "true or false"}

_KINDS: Final = MappingProxyType({kind.value + 1: kind for kind in SpanKind})
_STATUS_CODES: Final = MappingProxyType({code.value: code for code in StatusCode})

# SpanFlags of trace.proto.
_TRACE_FLAGS_MASK: Final = 0xFF
_IS_REMOTE: Final = 0x200

# Deeper than the encoder allows: it drops such values and counts them.
_MAX_DEPTH: Final = 48


def read_request(document: object) -> Iterator[Span | InvalidSpanError]:
    """Read an ``ExportTraceServiceRequest`` from a parsed JSON document. Return an iterator over its spans in order.

    Spans of one envelope share their `Resource` and `InstrumentationScope` objects. Of several attributes with the same
    key, the last one counts. For an invalid span the iterator yields, but does not raise, an `InvalidSpanError` that
    contains the span's place in the document, the field and its value. If an envelope is invalid, each of its spans is;
    if its spans cannot be read either, it counts as one span. If the document is not such a request, the call raises
    `ValueError`, not the iterator.
    """
    if not isinstance(document, dict):
        advice = "; write one request per line" if isinstance(document, list) else ""
        raise ValueError(f"the document is {shown(document)}; a request is a JSON object with resourceSpans{advice}")
    envelopes = _field_of(document, "resourceSpans")
    if envelopes is None and ("resourceSpans" in document or "resource_spans" in document):
        raise ValueError("the document's resourceSpans is null; it must be a list")
    if envelopes is None and document:
        raise ValueError(f"the document has no resourceSpans; it has {shown(list(document))}")
    try:
        return _read_envelopes(_typed_field(document, "resourceSpans", list))
    except InvalidSpanError as error:
        raise ValueError(str(error)) from error


def has_old_spans(document: object) -> bool:
    """Whether a document has spans in the field of OTLP before 0.15 (2022), which is not read."""
    envelopes = _field_of(document, "resourceSpans") if isinstance(document, dict) else None
    return isinstance(envelopes, list) and any(
        bool(_field_of(envelope, "instrumentationLibrarySpans")) for envelope in envelopes if isinstance(envelope, dict)
    )


def _read_envelopes(envelopes: list[Any]) -> Iterator[Span | InvalidSpanError]:
    for index, envelope in enumerate(envelopes):
        path = f"resourceSpans[{index}]"
        scopes = _tried(path, _typed_field, envelope, "scopeSpans", list)
        if isinstance(scopes, InvalidSpanError):
            yield scopes
            continue
        resource = _tried(path, _part_of_envelope, envelope, "resource", _resource)
        for scope_index, scope in enumerate(scopes):
            yield from _read_scope(f"{path}.scopeSpans[{scope_index}]", scope, resource)


def _read_scope(
    path: str, envelope: object, resource: Resource | InvalidSpanError | None
) -> Iterator[Span | InvalidSpanError]:
    spans = _tried(path, _typed_field, envelope, "spans", list)
    if isinstance(spans, InvalidSpanError):
        yield spans
        return
    scope = _tried(path, _part_of_envelope, envelope, "scope", _scope)
    for index, span in enumerate(spans):
        place = f"{path}.spans[{index}]"
        if isinstance(resource, InvalidSpanError):
            yield InvalidSpanError(f"{place} cannot be sent: {resource}")
        elif isinstance(scope, InvalidSpanError):
            yield InvalidSpanError(f"{place} cannot be sent: {scope}")
        else:
            yield _tried(place, _span, span, resource, scope)


def _tried(path: str, read: Callable[..., _T], value: object, *args: object) -> _T | InvalidSpanError:
    """Return the result of `_inside`, or its error."""
    try:
        return _inside(path, read, value, *args)
    except InvalidSpanError as error:
        return error


def _inside(path: str, read: Callable[..., _T], value: object, *args: object) -> _T:
    """Call ``read`` with the object ``value`` at ``path``, and put ``path`` in front of the fields in its errors."""
    message = _as_type(value, path, dict)
    try:
        return read(message, *args)
    except InvalidSpanError as error:
        raise within(path, error) from error.__cause__
    except RecursionError as error:
        raise InvalidSpanError(f"{path} is nested too deeply") from error


def _span(message: _JSONObject, resource: Resource | None, scope: InstrumentationScope | None) -> Span:
    flags = _int_field(message, "flags")
    context = _context(message, flags=flags & _TRACE_FLAGS_MASK)
    # Some producers write an all-zero parent id for a root span.
    parent_id = _id_field(message, "parentSpanId", 8, is_optional=True)
    events: list[SpanEvent] = _items(message, "events", _event)
    links: list[SpanLink] = _items(message, "links", _link)
    return Span(
        _typed_field(message, "name", str),
        context,
        start_time=_int_field(message, "startTimeUnixNano", TIME_END),
        end_time=_int_field(message, "endTimeUnixNano", TIME_END),
        kind=_enum_field(message, "kind", _KINDS, "SPAN_KIND_"),
        parent=SpanContext(context.trace_id, parent_id, bool(flags & _IS_REMOTE)) if parent_id else None,
        attributes=_attributes(message),
        events=events,
        links=links,
        status=_part(message, "status", _status),
        resource=resource,
        instrumentation_scope=scope,
        dropped_attributes=_int_field(message, "droppedAttributesCount"),
        dropped_events=_int_field(message, "droppedEventsCount"),
        dropped_links=_int_field(message, "droppedLinksCount"),
        flags=flags,
    )


def _context(message: _JSONObject, flags: int) -> SpanContext:
    return SpanContext(
        _id_field(message, "traceId", 16),
        _id_field(message, "spanId", 8),
        is_remote=bool(flags & _IS_REMOTE),
        trace_flags=flags & _TRACE_FLAGS_MASK,
        trace_state=_typed_field(message, "traceState", str),
    )


def _event(message: _JSONObject) -> SpanEvent:
    return SpanEvent(
        _typed_field(message, "name", str),
        _int_field(message, "timeUnixNano", TIME_END),
        _attributes(message),
        _int_field(message, "droppedAttributesCount"),
    )


def _link(message: _JSONObject) -> SpanLink:
    flags = _int_field(message, "flags")
    dropped = _int_field(message, "droppedAttributesCount")
    return SpanLink(_context(message, flags), _attributes(message), dropped, flags)


def _status(message: _JSONObject) -> Status:
    code = _enum_field(message, "code", _STATUS_CODES, "STATUS_CODE_")
    return Status(code, _typed_field(message, "message", str))


def _part_of_envelope(envelope: _JSONObject, name: str, read: Callable[[_JSONObject, str], _T]) -> _T | None:
    """Return the resource or the scope of an envelope with its schema URL; None if both are missing."""
    schema_url, part = _typed_field(envelope, "schemaUrl", str), _field_of(envelope, name)
    if part is None and not schema_url:
        return None
    return _inside(name, read, {} if part is None else part, schema_url)


def _resource(message: _JSONObject, schema_url: str) -> Resource:
    entity_refs: list[EntityRef] = _items(message, "entityRefs", _entity_ref)
    dropped = _int_field(message, "droppedAttributesCount")
    return Resource(_attributes(message), schema_url, dropped, entity_refs)


def _scope(message: _JSONObject, schema_url: str) -> InstrumentationScope:
    name, version = _typed_field(message, "name", str), _typed_field(message, "version", str)
    dropped = _int_field(message, "droppedAttributesCount")
    return InstrumentationScope(name, version, schema_url, _attributes(message), dropped)


def _entity_ref(message: _JSONObject) -> EntityRef:
    return EntityRef(
        _typed_field(message, "type", str),
        _texts(message, "idKeys"),
        _texts(message, "descriptionKeys"),
        _typed_field(message, "schemaUrl", str),
    )


def _texts(message: _JSONObject, name: str) -> list[str]:
    return [_as_type(text, f"{name}[{index}]", str) for index, text in enumerate(_typed_field(message, name, list))]


def _items(message: _JSONObject, name: str, read: Callable[[_JSONObject], _T]) -> list[_T]:
    items = enumerate(_typed_field(message, name, list))
    return [_inside(f"{name}[{index}]", read, item) for index, item in items]


def _part(message: _JSONObject, name: str, read: Callable[..., _T], *args: object) -> _T | None:
    """Read a field that is a message; None if it is missing."""
    value = _field_of(message, name)
    return None if value is None else _inside(name, read, value, *args)


def _attributes(message: _JSONObject) -> dict[str, Any]:
    return dict(_items(message, "attributes", _key_value))


def _key_value(message: _JSONObject, depth: int = 0) -> tuple[str, Any]:
    return _typed_field(message, "key", str), _part(message, "value", _any_value, depth)


def _any_value(message: _JSONObject, depth: int) -> Any:
    present = [name for name, value in message.items() if value is not None and name in _VALUES]
    if len(present) > 1:
        raise InvalidSpanError(f"{present[1]} and {present[0]} are both set; a value must have only one of them")
    return _VALUES[present[0]](message[present[0]], present[0], depth) if present else None


def _values(value: object, name: str, depth: int, read: Callable[[_JSONObject, int], _T]) -> list[_T]:
    if depth == _MAX_DEPTH:
        return []
    return _inside(name, _items, value, "values", lambda item: read(item, depth + 1))


def _field_of(message: _JSONObject, name: str) -> Any:
    """Return the value of the field ``name`` (in lowerCamelCase), None if it is missing."""
    value = message.get(name)
    return message.get(_snake_case(name)) if value is None else value


@cache
def _snake_case(name: str) -> str:
    return _CAPITAL.sub(lambda capital: f"_{capital.group().lower()}", name)


def _as_type(value: object, name: str, kind: type[_T]) -> _T:
    if not isinstance(value, kind):
        raise invalid(name, value, f"it must be {_TYPES[kind]}")
    return value


def _typed_field(message: _JSONObject, name: str, kind: type[_T]) -> _T:
    """Return a field of the type ``kind``, which is empty if it is missing."""
    value = _field_of(message, name)
    return kind() if value is None else _as_type(value, name, kind)


def _as_int(value: object, first: int, end: int, name: str) -> int:
    """Convert ``value``, a number or a string, to an int from ``first`` to ``end - 1``."""
    number = _number(value)
    if isinstance(number, float) and number.is_integer():
        number = int(number)
    if isinstance(number, int) and first <= number < end:
        return number
    raise invalid(name, value, f"it must be a whole number from {first} to {end - 1}")


def _as_float(value: object, name: str) -> float:
    number = _number(value)
    if number is not None:
        with suppress(OverflowError):
            return float(number)
    raise invalid(name, value, "it must be a number, or 'NaN', 'Infinity' or '-Infinity'")


def _number(value: object) -> int | float | None:
    """Return a number, or the one that a string contains; None for everything else."""
    if not isinstance(value, str):
        return value if isinstance(value, int | float) and not isinstance(value, bool) else None
    if len(value) > _MAX_NUMBER_LENGTH or not _NUMBER.fullmatch(value):
        return None
    return int(value) if value.removeprefix("-").isdigit() else float(value)


def _as_bytes(value: object, name: str) -> bytes:
    """Decode ``value`` from base64, standard or URL-safe, with or without padding."""
    text = _as_type(value, name, str).replace("-", "+").replace("_", "/").rstrip("=")
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except (binascii.Error, ValueError) as error:
        raise invalid(name, value, f"it is not base64 ({error})") from error


def _int_field(message: _JSONObject, name: str, end: int = COUNT_END) -> int:
    """Return an unsigned integer field, which must be below ``end``."""
    value = _field_of(message, name)
    return 0 if value is None else _as_int(value, 0, end, name)


def _id_field(message: _JSONObject, name: str, size: int, *, is_optional: bool = False) -> int:
    """Return an id of ``size`` bytes as an int. One that ``is_optional`` is 0 if it is missing, empty or all zero."""
    value = _field_of(message, name)
    is_missing = value is None or value == ""
    if is_optional and (is_missing or value == "0" * (2 * size)):
        return 0
    if is_missing:
        raise InvalidSpanError(f"{name} is missing")
    is_hex = isinstance(value, str) and re.fullmatch(f"[0-9A-Fa-f]{{{2 * size}}}", value)
    if is_hex and (number := int(value, 16)):
        return number
    raise invalid(name, value, f"it must be {2 * size} hex digits, not all zero")


def _enum_field(message: _JSONObject, name: str, numbers: Mapping[int, _Enum], prefix: str) -> _Enum:
    """Return the enum member of a field: its number in OTLP (0 is the default), or its name after ``prefix``."""
    value = _field_of(message, name)
    named = [number for number, member in numbers.items() if value == prefix + member.name]
    number = 0 if value is None else _number(named[0] if named else value)
    if number is not None and number in numbers:
        return numbers[int(number)]
    names = ", ".join(f"{number} ({prefix}{member.name})" for number, member in numbers.items())
    raise invalid(name, value, f"it must be one of {names}")


_READERS: Final[Mapping[str, Callable[[Any, str, int], Any]]] = {
    "stringValue": lambda value, name, _depth: _as_type(value, name, str),
    "boolValue": lambda value, name, _depth: _as_type(value, name, bool),
    "intValue": lambda value, name, _depth: _as_int(value, -(1 << 63), 1 << 63, name),
    "doubleValue": lambda value, name, _depth: _as_float(value, name),
    "bytesValue": lambda value, name, _depth: _as_bytes(value, name),
    "arrayValue": lambda value, name, depth: tuple(_values(value, name, depth, _any_value)),
    "kvlistValue": lambda value, name, depth: MappingProxyType(dict(_values(value, name, depth, _key_value))),
}
_VALUES: Final = MappingProxyType({**_READERS, **{_snake_case(name): read for name, read in _READERS.items()}})
