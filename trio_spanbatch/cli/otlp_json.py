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

import attrs

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
from .json_fields import (
    JSONObject,
    as_bytes,
    as_float,
    as_int,
    as_object,
    as_text,
    enum_field,
    field_of,
    id_field,
    int_field,
    list_field,
    snake_case,
    text_field,
)

__all__ = ["has_old_spans", "read_request"]

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
        return _read_envelopes(list_field(document, "resourceSpans"))
    except InvalidSpanError as error:
        raise ValueError(str(error)) from error


def has_old_spans(document: object) -> bool:
    """Whether a document has spans in the field of OTLP before 0.15 (2022), which is not read."""
    envelopes = field_of(document, "resourceSpans") if isinstance(document, dict) else None
    return isinstance(envelopes, list) and any(
        bool(field_of(envelope, "instrumentationLibrarySpans")) for envelope in envelopes if isinstance(envelope, dict)
    )


@attrs.frozen
class _Envelope:
    """The resource and scope that the spans of one ScopeSpans share, and the error if either is invalid."""

    resource: Resource | None = None
    scope: InstrumentationScope | None = None
    problem: InvalidSpanError | None = None


def _read_envelopes(envelopes: list[Any]) -> Iterator[Span | InvalidSpanError]:
    for index, envelope in enumerate(envelopes):
        path = f"resourceSpans[{index}]"
        try:
            message = as_object(envelope, path)
            scopes = _inside(path, list_field, message, "scopeSpans")
        except InvalidSpanError as error:
            yield error
            continue
        try:
            shared = _Envelope(_inside(path, _resource, message))
        except InvalidSpanError as error:
            shared = _Envelope(problem=error)
        for scope_index, scope in enumerate(scopes):
            yield from _read_scope(f"{path}.scopeSpans[{scope_index}]", scope, shared)


def _read_scope(path: str, envelope: object, shared: _Envelope) -> Iterator[Span | InvalidSpanError]:
    try:
        message = as_object(envelope, path)
        spans = _inside(path, list_field, message, "spans")
    except InvalidSpanError as error:
        yield error
        return
    try:
        shared = attrs.evolve(shared, scope=_inside(path, _scope, message))
    except InvalidSpanError as error:
        shared = attrs.evolve(shared, problem=shared.problem or error)
    for index, span in enumerate(spans):
        yield _read_span(f"{path}.spans[{index}]", span, shared)


def _read_span(path: str, span: object, shared: _Envelope) -> Span | InvalidSpanError:
    if shared.problem is not None:
        return InvalidSpanError(f"{path} cannot be sent: {shared.problem}")
    try:
        return _inside(path, _span, as_object(span, path), shared)
    except InvalidSpanError as error:
        return error


def _inside(path: str, read: Callable[..., _Part], *args: object) -> _Part:
    """Call ``read``, and put ``path`` in front of the fields that its errors name."""
    try:
        return read(*args)
    except InvalidSpanError as error:
        raise within(path, error) from error.__cause__
    except RecursionError as error:
        raise InvalidSpanError(f"{path} is nested too deeply") from error


def _span(message: JSONObject, shared: _Envelope) -> Span:
    flags = int_field(message, "flags", COUNT_END)
    context = _context(message, flags=flags & _TRACE_FLAGS_MASK)
    # Some producers write an all-zero parent id for a root span.
    parent_id = id_field(message, "parentSpanId", 8, may_be_zero=True)
    events: list[SpanEvent] = _items(message, "events", _event)
    links: list[SpanLink] = _items(message, "links", _link)
    return Span(
        text_field(message, "name"),
        context,
        start_time=int_field(message, "startTimeUnixNano", TIME_END),
        end_time=int_field(message, "endTimeUnixNano", TIME_END),
        kind=enum_field(message, "kind", _KINDS, "SPAN_KIND_"),
        parent=SpanContext(context.trace_id, parent_id, bool(flags & _IS_REMOTE)) if parent_id else None,
        attributes=_attributes(message),
        events=events,
        links=links,
        status=_status(message),
        resource=shared.resource,
        instrumentation_scope=shared.scope,
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
        trace_state=text_field(message, "traceState"),
    )


def _event(message: JSONObject) -> SpanEvent:
    return SpanEvent(
        text_field(message, "name"),
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
    if status is None:
        return None
    status = as_object(status, "status")
    code = _inside("status", enum_field, status, "code", _STATUS_CODES, "STATUS_CODE_")
    return Status(code, _inside("status", text_field, status, "message"))


def _resource(message: JSONObject) -> Resource | None:
    schema_url, resource = text_field(message, "schemaUrl"), field_of(message, "resource")
    if resource is None and not schema_url:
        return None
    resource = as_object({} if resource is None else resource, "resource")
    return Resource(
        _inside("resource", _attributes, resource),
        schema_url,
        _inside("resource", int_field, resource, "droppedAttributesCount", COUNT_END),
        _inside("resource", _items, resource, "entityRefs", _entity_ref),
    )


def _entity_ref(message: JSONObject) -> EntityRef:
    return EntityRef(
        text_field(message, "type"),
        _texts(message, "idKeys"),
        _texts(message, "descriptionKeys"),
        text_field(message, "schemaUrl"),
    )


def _texts(message: JSONObject, name: str) -> list[str]:
    return [as_text(text, f"{name}[{index}]") for index, text in enumerate(list_field(message, name))]


def _scope(message: JSONObject) -> InstrumentationScope | None:
    schema_url, scope = text_field(message, "schemaUrl"), field_of(message, "scope")
    if scope is None and not schema_url:
        return None
    scope = as_object({} if scope is None else scope, "scope")
    return InstrumentationScope(
        _inside("scope", text_field, scope, "name"),
        _inside("scope", text_field, scope, "version"),
        schema_url,
        _inside("scope", _attributes, scope),
        _inside("scope", int_field, scope, "droppedAttributesCount", COUNT_END),
    )


def _items(message: JSONObject, name: str, read: Callable[[JSONObject], _Part]) -> list[_Part]:
    items: list[_Part] = []
    for index, item in enumerate(list_field(message, name)):
        path = f"{name}[{index}]"
        items.append(_inside(path, read, as_object(item, path)))
    return items


def _attributes(message: JSONObject) -> dict[str, Any]:
    return dict(_items(message, "attributes", _key_value))


def _key_value(message: JSONObject, depth: int = 0) -> tuple[str, Any]:
    key, value = text_field(message, "key"), field_of(message, "value")
    return key, None if value is None else _inside("value", _any_value, as_object(value, "value"), depth)


def _any_value(message: JSONObject, depth: int) -> Any:
    present = [name for name, value in message.items() if value is not None and name in _VALUES]
    if len(present) > 1:
        raise InvalidSpanError(f"{present[1]} and {present[0]} are both set; a value must have only one of them")
    return _VALUES[present[0]](message[present[0]], present[0], depth) if present else None


def _bool(value: object, name: str, _depth: int) -> bool:
    if not isinstance(value, bool):
        raise invalid(name, value, "it must be true or false")
    return value


def _array(value: object, name: str, depth: int) -> tuple[Any, ...]:
    return tuple(_values(value, name, depth, _any_value))


def _mapping(value: object, name: str, depth: int) -> Mapping[str, Any]:
    return MappingProxyType(dict(_values(value, name, depth, _key_value)))


def _values(value: object, name: str, depth: int, read: Callable[[JSONObject, int], _Part]) -> list[_Part]:
    if depth == _MAX_DEPTH:
        return []
    return _inside(name, _items, as_object(value, name), "values", lambda item: read(item, depth + 1))


_READERS: Final[Mapping[str, Callable[[Any, str, int], Any]]] = {
    "stringValue": lambda value, name, _depth: as_text(value, name),
    "boolValue": _bool,
    "intValue": lambda value, name, _depth: as_int(value, -(1 << 63), 1 << 63, name),
    "doubleValue": lambda value, name, _depth: as_float(value, name),
    "bytesValue": lambda value, name, _depth: as_bytes(value, name),
    "arrayValue": _array,
    "kvlistValue": _mapping,
}
_VALUES: Final = MappingProxyType({**_READERS, **{snake_case(name): read for name, read in _READERS.items()}})
