"""Convert OTLP JSON to records.

OTLP's JSON is protobuf's with two changes: ids are hex, and enums are numbers
(https://opentelemetry.io/docs/specs/otlp/#json-protobuf-encoding). Both forms are accepted: ids in upper or lower case,
enums as numbers or names, 64-bit numbers as strings or numbers. Unknown fields are ignored.

If a span is invalid, the iterator yields an error in its place and continues with the next span.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, Final, TypeVar

from .._errors import InvalidSpanError
from .._spans.checks import COUNT_END, TIME_END, shown, within
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
from .json_fields import (
    JSONObject,
    as_bytes,
    as_float,
    as_int,
    as_type,
    enum_field,
    field_of,
    id_field,
    int_field,
    snake_case,
    typed_field,
)

_Part = TypeVar("_Part")

_KINDS: Final = MappingProxyType({kind.value + 1: kind for kind in SpanKind})
_STATUS_CODES: Final = MappingProxyType({code.value: code for code in StatusCode})

# SpanFlags of trace.proto.
_TRACE_FLAGS_MASK: Final = 0xFF
_IS_REMOTE: Final = 0x200

# Deeper than the encoder allows: it drops such values and counts them.
_MAX_DEPTH: Final = 48


def read_request(document: object) -> Iterator[Span | InvalidSpanError]:
    """Read an ``ExportTraceServiceRequest`` from a parsed JSON document.

    Spans of one envelope share their `Resource` and `InstrumentationScope` objects. Of several attributes with the same
    key, the last one counts.

    Args:
        document: The result of ``json.loads``.

    Returns:
        An iterator over the spans in their order. For an invalid span it yields, but does not raise, an
        `InvalidSpanError` that contains the span's place in the document, the field and its value. If an envelope
        is invalid, each of its spans is; if its spans cannot be read either, it counts as one span.

    Raises:
        ValueError: If the document is not such a request. Raised by the call, not by the iterator.
    """
    if not isinstance(document, dict):
        advice = "; write one request per line" if isinstance(document, list) else ""
        raise ValueError(f"the document is {shown(document)}; a request is a JSON object with resourceSpans{advice}")
    envelopes = field_of(document, "resourceSpans")
    if envelopes is None and ("resourceSpans" in document or "resource_spans" in document):
        raise ValueError("the document's resourceSpans is null; it must be a list")
    if envelopes is None and document:
        raise ValueError(f"the document has no resourceSpans; it has {shown(list(document))}")
    try:
        return _read_envelopes(typed_field(document, "resourceSpans", list))
    except InvalidSpanError as error:
        raise ValueError(str(error)) from error


def has_old_spans(document: object) -> bool:
    """Whether a document has spans in the field of OTLP before 0.15 (2022), which is not read."""
    envelopes = field_of(document, "resourceSpans") if isinstance(document, dict) else None
    return isinstance(envelopes, list) and any(
        bool(field_of(envelope, "instrumentationLibrarySpans")) for envelope in envelopes if isinstance(envelope, dict)
    )


def _read_envelopes(envelopes: list[Any]) -> Iterator[Span | InvalidSpanError]:
    for index, envelope in enumerate(envelopes):
        path = f"resourceSpans[{index}]"
        scopes = _tried(path, typed_field, envelope, "scopeSpans", list)
        if isinstance(scopes, InvalidSpanError):
            yield scopes
            continue
        resource = _tried(path, _resource, envelope)
        for scope_index, scope in enumerate(scopes):
            yield from _read_scope(f"{path}.scopeSpans[{scope_index}]", scope, resource)


def _read_scope(
    path: str, envelope: object, resource: Resource | InvalidSpanError | None
) -> Iterator[Span | InvalidSpanError]:
    spans = _tried(path, typed_field, envelope, "spans", list)
    if isinstance(spans, InvalidSpanError):
        yield spans
        return
    scope = _tried(path, _scope, envelope)
    for index, span in enumerate(spans):
        place = f"{path}.spans[{index}]"
        if isinstance(resource, InvalidSpanError):
            yield InvalidSpanError(f"{place} cannot be sent: {resource}")
        elif isinstance(scope, InvalidSpanError):
            yield InvalidSpanError(f"{place} cannot be sent: {scope}")
        else:
            yield _tried(place, _span, span, resource, scope)


def _tried(path: str, read: Callable[..., _Part], value: object, *args: object) -> _Part | InvalidSpanError:
    """Return the result of `_inside`, or its error."""
    try:
        return _inside(path, read, value, *args)
    except InvalidSpanError as error:
        return error


def _inside(path: str, read: Callable[..., _Part], value: object, *args: object) -> _Part:
    """Call ``read`` with the object ``value`` at ``path``, and put ``path`` in front of the fields in its errors."""
    message = as_type(value, path, dict)
    try:
        return read(message, *args)
    except InvalidSpanError as error:
        raise within(path, error) from error.__cause__
    except RecursionError as error:
        raise InvalidSpanError(f"{path} is nested too deeply") from error


def _span(message: JSONObject, resource: Resource | None, scope: InstrumentationScope | None) -> Span:
    flags = int_field(message, "flags", COUNT_END)
    context = _context(message, flags=flags & _TRACE_FLAGS_MASK)
    # Some producers write an all-zero parent id for a root span.
    parent_id = id_field(message, "parentSpanId", 8, may_be_zero=True)
    events: list[SpanEvent] = _items(message, "events", _event)
    links: list[SpanLink] = _items(message, "links", _link)
    return Span(
        typed_field(message, "name", str),
        context,
        start_time=int_field(message, "startTimeUnixNano", TIME_END),
        end_time=int_field(message, "endTimeUnixNano", TIME_END),
        kind=enum_field(message, "kind", _KINDS, "SPAN_KIND_"),
        parent=SpanContext(context.trace_id, parent_id, bool(flags & _IS_REMOTE)) if parent_id else None,
        attributes=_attributes(message),
        events=events,
        links=links,
        status=_status(message),
        resource=resource,
        instrumentation_scope=scope,
        dropped_attributes=int_field(message, "droppedAttributesCount", COUNT_END),
        dropped_events=int_field(message, "droppedEventsCount", COUNT_END),
        dropped_links=int_field(message, "droppedLinksCount", COUNT_END),
        flags=flags,
    )


def _context(message: JSONObject, flags: int) -> SpanContext:
    trace_id, span_id = id_field(message, "traceId", 16), id_field(message, "spanId", 8)
    if not trace_id:
        raise InvalidSpanError("traceId is missing")
    if not span_id:
        raise InvalidSpanError("spanId is missing")
    return SpanContext(
        trace_id,
        span_id,
        is_remote=bool(flags & _IS_REMOTE),
        trace_flags=flags & _TRACE_FLAGS_MASK,
        trace_state=typed_field(message, "traceState", str),
    )


def _event(message: JSONObject) -> SpanEvent:
    return SpanEvent(
        typed_field(message, "name", str),
        int_field(message, "timeUnixNano", TIME_END),
        _attributes(message),
        int_field(message, "droppedAttributesCount", COUNT_END),
    )


def _link(message: JSONObject) -> SpanLink:
    flags = int_field(message, "flags", COUNT_END)
    return SpanLink(
        _context(message, flags),
        _attributes(message),
        int_field(message, "droppedAttributesCount", COUNT_END),
        flags,
    )


def _status(message: JSONObject) -> Status | None:
    status = field_of(message, "status")
    return None if status is None else _inside("status", _given_status, status)


def _given_status(message: JSONObject) -> Status:
    return Status(enum_field(message, "code", _STATUS_CODES, "STATUS_CODE_"), typed_field(message, "message", str))


def _resource(envelope: JSONObject) -> Resource | None:
    def given(message: JSONObject) -> Resource:
        entity_refs: list[EntityRef] = _items(message, "entityRefs", _entity_ref)
        dropped = int_field(message, "droppedAttributesCount", COUNT_END)
        return Resource(_attributes(message), schema_url, dropped, entity_refs)

    schema_url, resource = typed_field(envelope, "schemaUrl", str), field_of(envelope, "resource")
    if resource is None:
        return Resource(schema_url=schema_url) if schema_url else None
    return _inside("resource", given, resource)


def _entity_ref(message: JSONObject) -> EntityRef:
    return EntityRef(
        typed_field(message, "type", str),
        _texts(message, "idKeys"),
        _texts(message, "descriptionKeys"),
        typed_field(message, "schemaUrl", str),
    )


def _texts(message: JSONObject, name: str) -> list[str]:
    return [as_type(text, f"{name}[{index}]", str) for index, text in enumerate(typed_field(message, name, list))]


def _scope(envelope: JSONObject) -> InstrumentationScope | None:
    def given(message: JSONObject) -> InstrumentationScope:
        name, version = typed_field(message, "name", str), typed_field(message, "version", str)
        dropped = int_field(message, "droppedAttributesCount", COUNT_END)
        return InstrumentationScope(name, version, schema_url, _attributes(message), dropped)

    schema_url, scope = typed_field(envelope, "schemaUrl", str), field_of(envelope, "scope")
    if scope is None and not schema_url:
        return None
    return _inside("scope", given, {} if scope is None else scope)


def _items(message: JSONObject, name: str, read: Callable[[JSONObject], _Part]) -> list[_Part]:
    items = enumerate(typed_field(message, name, list))
    return [_inside(f"{name}[{index}]", read, item) for index, item in items]


def _attributes(message: JSONObject) -> dict[str, Any]:
    return dict(_items(message, "attributes", _key_value))


def _key_value(message: JSONObject, depth: int = 0) -> tuple[str, Any]:
    key, value = typed_field(message, "key", str), field_of(message, "value")
    return key, None if value is None else _inside("value", _any_value, value, depth)


def _any_value(message: JSONObject, depth: int) -> Any:
    present = [name for name, value in message.items() if value is not None and name in _VALUES]
    if len(present) > 1:
        raise InvalidSpanError(f"{present[1]} and {present[0]} are both set; a value must have only one of them")
    return _VALUES[present[0]](message[present[0]], present[0], depth) if present else None


def _values(value: object, name: str, depth: int, read: Callable[[JSONObject, int], _Part]) -> list[_Part]:
    if depth == _MAX_DEPTH:
        return []
    return _inside(name, _items, value, "values", lambda item: read(item, depth + 1))


_READERS: Final[Mapping[str, Callable[[Any, str, int], Any]]] = {
    "stringValue": lambda value, name, _depth: as_type(value, name, str),
    "boolValue": lambda value, name, _depth: as_type(value, name, bool),
    "intValue": lambda value, name, _depth: as_int(value, -(1 << 63), 1 << 63, name),
    "doubleValue": lambda value, name, _depth: as_float(value, name),
    "bytesValue": lambda value, name, _depth: as_bytes(value, name),
    "arrayValue": lambda value, name, depth: tuple(_values(value, name, depth, _any_value)),
    "kvlistValue": lambda value, name, depth: MappingProxyType(dict(_values(value, name, depth, _key_value))),
}
_VALUES: Final = MappingProxyType({**_READERS, **{snake_case(name): read for name, read in _READERS.items()}})
