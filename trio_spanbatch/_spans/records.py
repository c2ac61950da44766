"""Spans and their parts as plain records.

They have the attribute names of OpenTelemetry Python's ``ReadableSpan`` and its parts, so that one encoder works for
both, and making a span does not need OpenTelemetry's SDK. Four parts of OTLP that ``ReadableSpan`` lacks are added:
`SpanKind.UNSPECIFIED`, ``flags``, the ``dropped_attributes`` of a resource or scope, and the ``entity_refs`` of a
resource.

Mappings are copied and become read-only, sequences become tuples; values are validated once, when the span is encoded.
Records can be hashed with any values, and copied and pickled if their values can be.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import Enum
from types import MappingProxyType
from typing import Any, Protocol, TypeVar, cast

import attrs

from .hashing import hash_of_record

_T = TypeVar("_T")


class SpanKind(Enum):
    """How a span relates to its parent and children. The values are OpenTelemetry Python's: OTLP's minus one."""

    UNSPECIFIED = -1
    INTERNAL = 0
    SERVER = 1
    CLIENT = 2
    PRODUCER = 3
    CONSUMER = 4


class StatusCode(Enum):
    """Whether an operation succeeded."""

    UNSET = 0
    OK = 1
    ERROR = 2


def _read_only(mapping: Mapping[str, Any] | None) -> Mapping[str, Any]:
    if mapping is None:
        return MappingProxyType({})
    # Anything but a mapping is kept unchanged: the encoder reports it. So is a mapping that raises: the encoder reads
    # the items that can be read.
    try:
        return MappingProxyType(dict(mapping)) if isinstance(cast(object, mapping), Mapping) else mapping
    except Exception:
        return mapping


def _tuple(items: Iterable[_T]) -> tuple[_T, ...]:
    # What is not iterable is kept unchanged: the encoder reports it, with the field's name.
    return tuple(items) if hasattr(type(items), "__iter__") else cast(Any, items)


def _read_only_trace_state(trace_state: str | Mapping[str, str] | None) -> str | Mapping[str, str]:
    if isinstance(trace_state, Mapping):
        return _read_only(trace_state)
    return "" if trace_state is None else trace_state


def _plain(value: Any) -> Any:
    if type(value) is MappingProxyType:
        return {key: _plain(item) for key, item in value.items()}
    return tuple(map(_plain, value)) if type(value) is tuple else value


def _reduced(record: Any) -> tuple[Any, ...]:
    """Implement ``__reduce__`` of records: Python cannot copy or pickle read-only mappings, so they are recreated."""
    fields = {field.name: _plain(getattr(record, field.name)) for field in record.__attrs_attrs__}
    return _recreated, (type(record), fields)


def _recreated(kind: Any, fields: Mapping[str, Any]) -> Any:
    return kind(**fields)


@attrs.frozen
class Status:
    """How an operation ended.

    Attributes:
        status_code: Whether it succeeded.
        description: The error, for human readers.
    """

    status_code: StatusCode = StatusCode.UNSET
    description: str | None = None

    __hash__ = hash_of_record
    __reduce__ = _reduced


@attrs.frozen
class SpanContext:
    """The identity of a span, and the data that is propagated with it between processes.

    Attributes:
        trace_id: 1 to 2**128 - 1.
        span_id: 1 to 2**64 - 1.
        is_remote: Whether the span belongs to another process. It matters for a parent and for a linked span.
        trace_flags: The W3C trace flags, 8 bits.
        trace_state: The W3C trace state: the header's text, or its entries as a mapping.
    """

    trace_id: int
    span_id: int
    is_remote: bool = False
    trace_flags: int = 0
    trace_state: str | Mapping[str, str] = attrs.field(default="", converter=_read_only_trace_state)

    __hash__ = hash_of_record
    __reduce__ = _reduced


@attrs.frozen
class SpanEvent:
    """An event during a span.

    Attributes:
        name: The name of the event.
        timestamp: Its time in nanoseconds since the Unix epoch.
        attributes: Details, see `Span.attributes`.
        dropped_attributes: How many attributes were left out.
    """

    name: str
    timestamp: int
    attributes: Mapping[str, Any] = attrs.field(factory=dict, converter=_read_only)
    dropped_attributes: int = 0

    __hash__ = hash_of_record
    __reduce__ = _reduced


@attrs.frozen
class SpanLink:
    """A pointer from a span to another one, of the same or of another trace.

    Attributes:
        context: The other span.
        attributes: Details, see `Span.attributes`.
        dropped_attributes: How many attributes were left out.
        flags: OTLP's flags, 32 bits, sent unchanged. None: derived from ``context``.
    """

    context: SpanContext
    attributes: Mapping[str, Any] = attrs.field(factory=dict, converter=_read_only)
    dropped_attributes: int = 0
    flags: int | None = None

    __hash__ = hash_of_record
    __reduce__ = _reduced


def _texts(texts: Iterable[str]) -> tuple[str, ...]:
    if isinstance(texts, str | bytes) or not hasattr(type(texts), "__iter__"):
        raise TypeError(
            f"id_keys or description_keys is {texts!r}; it must be a sequence of str, as in ('service.name',)"
        )
    return tuple(texts)


def _entity_refs(refs: Iterable[EntityRef]) -> tuple[EntityRef, ...]:
    return _tuple(refs)


@attrs.frozen
class EntityRef:
    """Names the attributes of a resource that identify and describe an entity: a service, a host (in development).

    https://opentelemetry.io/docs/specs/otel/entities/data-model/

    Attributes:
        type: The type of the entity, such as ``"service"``.
        id_keys: The keys of the attributes that identify it.
        description_keys: The keys of the attributes that describe it.
        schema_url: The schema that the type and the keys follow.
    """

    type: str
    id_keys: tuple[str, ...] = attrs.field(default=(), converter=_texts)
    description_keys: tuple[str, ...] = attrs.field(default=(), converter=_texts)
    schema_url: str = ""

    __hash__ = hash_of_record
    __reduce__ = _reduced


@attrs.frozen
class Resource:
    """The source of spans: a service, a process, a host.

    Attributes:
        attributes: Its attributes, see `Span.attributes`.
        schema_url: The schema of the attribute names.
        dropped_attributes: How many attributes were left out.
        entity_refs: The entities that the attributes identify.
    """

    attributes: Mapping[str, Any] = attrs.field(factory=dict, converter=_read_only)
    schema_url: str = ""
    dropped_attributes: int = 0
    entity_refs: tuple[EntityRef, ...] = attrs.field(default=(), converter=_entity_refs)

    __hash__ = hash_of_record
    __reduce__ = _reduced


@attrs.frozen
class InstrumentationScope:
    """The code that created spans, usually a library.

    Attributes:
        name: The library's name.
        version: Its version.
        schema_url: The schema of its spans' attribute names.
        attributes: Attributes of the scope, see `Span.attributes`.
        dropped_attributes: How many attributes were left out.
    """

    name: str
    version: str | None = None
    schema_url: str | None = None
    attributes: Mapping[str, Any] = attrs.field(factory=dict, converter=_read_only)
    dropped_attributes: int = 0

    __hash__ = hash_of_record
    __reduce__ = _reduced


# A generic converter, such as ``tuple`` itself, leaves type checkers without the type of the items.
def _events(events: Iterable[SpanEvent]) -> tuple[SpanEvent, ...]:
    return _tuple(events)


def _links(links: Iterable[SpanLink]) -> tuple[SpanLink, ...]:
    return _tuple(links)


@attrs.frozen
class Span:
    """One operation that has ended.

    ::

        Span("chat", SpanContext(trace_id, span_id), start_time=started, end_time=time.time_ns())

    Attributes:
        name: The name of the operation. None is sent as an empty name; any other value that is not a string is sent
            as its ``str``. The same holds for the other texts of a span.
        context: The span's ids.
        start_time: Nanoseconds since the Unix epoch.
        end_time: Nanoseconds since the Unix epoch. It may be before ``start_time``, as clocks can be set back.
        kind: Its role in communication between processes.
        parent: The context of the parent span, None for the root of a trace.
        attributes: Strings, bools, ints, floats, bytes, None, and sequences and mappings of those. An int beyond
            64 bits is sent as decimal digits, a value of another type as its ``str``. A value that OTLP cannot express
            (it is nested too deep, contains itself, has more than 16 MiB, raises) is left out, and counted in
            ``dropped_attributes_count``.
        events: The events during the span.
        links: Related spans.
        status: How it ended. None leaves the status out of the message.
        resource: The source of the span. None: the encoder's default resource, if it has one.
        instrumentation_scope: The code that created it.
        dropped_attributes: How many attributes were left out.
        dropped_events: How many events were left out.
        dropped_links: How many links were left out.
        flags: OTLP's flags, 32 bits, sent unchanged. None: derived from ``context`` and ``parent``.
    """

    name: str
    context: SpanContext
    start_time: int = attrs.field(kw_only=True)
    end_time: int = attrs.field(kw_only=True)
    kind: SpanKind = attrs.field(default=SpanKind.INTERNAL, kw_only=True)
    parent: SpanContext | None = attrs.field(default=None, kw_only=True)
    attributes: Mapping[str, Any] = attrs.field(factory=dict, converter=_read_only, kw_only=True)
    events: tuple[SpanEvent, ...] = attrs.field(default=(), converter=_events, kw_only=True)
    links: tuple[SpanLink, ...] = attrs.field(default=(), converter=_links, kw_only=True)
    status: Status | None = attrs.field(default=Status(), kw_only=True)
    resource: Resource | None = attrs.field(default=None, kw_only=True)
    instrumentation_scope: InstrumentationScope | None = attrs.field(default=None, kw_only=True)
    dropped_attributes: int = attrs.field(default=0, kw_only=True)
    dropped_events: int = attrs.field(default=0, kw_only=True)
    dropped_links: int = attrs.field(default=0, kw_only=True)
    flags: int | None = attrs.field(default=None, kw_only=True)

    __hash__ = hash_of_record
    __reduce__ = _reduced


class SpanLike(Protocol):
    """The type of spans for a batcher: `Span`, OpenTelemetry's ``ReadableSpan``, and others with these attributes.

    The attributes are documented in `Span`. Their values are checked when the span is encoded, in the order below.
    """

    @property
    def parent(self) -> Any: ...
    @property
    def context(self) -> Any: ...
    @property
    def name(self) -> str: ...
    @property
    def kind(self) -> Any: ...
    @property
    def start_time(self) -> int | None: ...
    @property
    def end_time(self) -> int | None: ...
    @property
    def attributes(self) -> Any: ...
    @property
    def dropped_attributes(self) -> int: ...
    @property
    def events(self) -> Any: ...
    @property
    def dropped_events(self) -> int: ...
    @property
    def links(self) -> Any: ...
    @property
    def dropped_links(self) -> int: ...
    @property
    def status(self) -> Any: ...
    @property
    def resource(self) -> Any: ...
    @property
    def instrumentation_scope(self) -> Any: ...
