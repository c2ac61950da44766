"""Encode the resources and scopes that spans share.

A process has one resource and a few dozen scopes, and every span refers to one of each. So their headers are encoded
once and cached by the object's identity, and so are the `SpanHeaders` of a resource and a scope. They are also cached
by content, so that equal resources, created anew for each span, have the same headers: batches are then grouped by
identity, and memory holds one copy.

The caches are also bounded in bytes: a program may create a resource for each span, and each may be large. When a bound
is reached, the whole cache is cleared. The caches by identity and by content are cleared separately, so that new but
equal objects keep the same headers.

Several threads may encode spans at once (in the bridge to OpenTelemetry), without a lock: caches are read and written
in atomic steps, and entries that one thread clears between two steps of another are recreated. So the count of the
bytes may be wrong for a while; the count of the entries never is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Final, TypeAlias

from .._errors import InvalidSpanError
from .attributes import AttributeEncoder
from .batch import SpanHeaders
from .checks import failed, invalid, lacks, pass_on, text_of
from .wire import count_field, delimited, text_field

_MAX_REMEMBERED: Final = 1024  # in each table
# Bytes of headers in the caches by content, and again in those by object: an object is about as large as its header. A
# header that is larger than this is not cached.
_MAX_REMEMBERED_SIZE: Final = 2 * 1024 * 1024

_ByObject: TypeAlias = dict[int, tuple[object, bytes]]

# Immutable types of values, besides tuples and read-only mappings of them.
_CONSTANTS: Final = frozenset((str, bool, int, float, bytes, type(None)))

# Field 1 of ResourceSpans (resource) and of ScopeSpans (scope), field 3 of both (schema_url).
_CONTENT: Final = b"\x0a"
_SCHEMA_URL: Final = b"\x1a"
# Fields of Resource, and of InstrumentationScope.
_RESOURCE_ATTRIBUTES: Final = b"\x0a"
_RESOURCE_DROPPED_ATTRIBUTES: Final = b"\x10"
_RESOURCE_ENTITY_REFS: Final = b"\x1a"
# Fields of EntityRef.
_ENTITY_SCHEMA_URL: Final = b"\x0a"
_ENTITY_TYPE: Final = b"\x12"
_ENTITY_ID_KEYS: Final = b"\x1a"
_ENTITY_DESCRIPTION_KEYS: Final = b"\x22"
_SCOPE_NAME: Final = b"\x0a"
_SCOPE_VERSION: Final = b"\x12"
_SCOPE_ATTRIBUTES: Final = b"\x1a"
_SCOPE_DROPPED_ATTRIBUTES: Final = b"\x20"


# By the field of a span.
_MUST_BE: Final = {
    "resource": "it must be a Resource, such as Resource({'service.name': 'agents'})",
    "instrumentation_scope": "it must be an InstrumentationScope, such as InstrumentationScope('agents')",
}


class HeaderEncoder:
    """Encodes resources and scopes, and caches the results."""

    __slots__ = (
        "_attributes",
        "_contents",
        "_headers",
        "_interned",
        "_is_redacted",
        "_objects",
        "_pairs",
        "_resources",
        "_scopes",
    )

    def __init__(self, attributes: AttributeEncoder, *, is_redacted: bool = False) -> None:
        self._attributes = attributes
        self._is_redacted = is_redacted
        # By identity. The objects are kept too, so that their ids are not reused.
        self._resources: _ByObject = {}
        self._scopes: _ByObject = {}
        self._pairs: dict[tuple[int, int], tuple[SpanHeaders, object, object]] = {}
        self._objects = _Bound(self._resources, self._scopes, self._pairs)
        # By content.
        self._headers: dict[bytes, bytes] = {}
        self._interned: dict[SpanHeaders, SpanHeaders] = {}
        self._contents = _Bound(self._headers, self._interned)

    def headers(self, resource: Any, scope: Any) -> SpanHeaders:
        """Return the headers of spans with this resource and this scope; each may be None."""
        pair = self._pairs.get((id(resource), id(scope)))
        return self._other_headers(resource, scope) if pair is None else pair[0]

    def _other_headers(self, resource: Any, scope: Any) -> SpanHeaders:
        headers = SpanHeaders(
            self._header_of(self._resources, resource, self._resource, "resource"),
            self._header_of(self._scopes, scope, self._scope, "instrumentation_scope"),
            self._is_redacted,
        )
        known = self._interned.get(headers)
        if known is not None:
            headers = known
        elif self._is_remembered(headers.resource) and self._is_remembered(headers.scope):
            self._contents.reserve()
            self._interned[headers] = headers
        if _holds(self._resources, resource) and _holds(self._scopes, scope):
            self._objects.reserve()
            self._pairs[id(resource), id(scope)] = headers, resource, scope
        return headers

    def _header_of(
        self, table: _ByObject, owner: Any, encode: Callable[[Any, Mapping[str, Any]], bytes], field: str
    ) -> bytes:
        """Return the fields of ResourceSpans besides its spans, or of ScopeSpans; ``b""`` for None."""
        if owner is None:
            return b""
        known = table.get(id(owner))
        if known is not None:
            return known[1]
        try:
            attributes = owner.attributes
            header = self._intern(encode(owner, attributes))
        except InvalidSpanError:
            raise
        except Exception as error:
            pass_on(error)
            if lacks(owner, "attributes"):
                raise invalid(field, owner, _MUST_BE[field]) from error
            raise failed(field, error) from error
        if _cannot_change(attributes) and self._objects.reserve(len(header)):
            table[id(owner)] = owner, header
        return header

    def _resource(self, resource: Any, attributes: Mapping[str, Any]) -> bytes:
        fields: list[bytes] = []
        lost = self._attributes.append_fields(fields, _RESOURCE_ATTRIBUTES, attributes, "resource.attributes")
        fields.append(_dropped(_RESOURCE_DROPPED_ATTRIBUTES, resource, "resource.dropped_attributes", lost))
        # OpenTelemetry's resources have no entity references.
        refs = getattr(resource, "entity_refs", None) or ()
        if lacks(refs, "__iter__"):
            raise invalid("resource.entity_refs", refs, "it must be a sequence of EntityRef")
        fields += map(_entity_ref, refs)
        return _header(fields, resource.schema_url)

    def _scope(self, scope: Any, attributes: Mapping[str, Any]) -> bytes:
        fields = [text_field(_SCOPE_NAME, scope.name), text_field(_SCOPE_VERSION, scope.version)]
        lost = self._attributes.append_fields(fields, _SCOPE_ATTRIBUTES, attributes, "instrumentation_scope.attributes")
        fields.append(_dropped(_SCOPE_DROPPED_ATTRIBUTES, scope, "instrumentation_scope.dropped_attributes", lost))
        return _header(fields, scope.schema_url)

    def _intern(self, header: bytes) -> bytes:
        known = self._headers.get(header)
        if known is not None:
            return known
        if self._contents.reserve(len(header)):
            self._headers[header] = header
        return header

    def _is_remembered(self, header: bytes) -> bool:
        return not header or header in self._headers


class _Bound:
    """The common bound of several tables, which are cleared when it is reached."""

    __slots__ = ("_size", "_tables")

    def __init__(self, *tables: dict[Any, Any]) -> None:
        self._tables = tables
        self._size = 0

    def reserve(self, size: int = 0) -> bool:
        """Reserve ``size`` bytes for an entry, clearing the tables if necessary. Return False if it is too large."""
        if size > _MAX_REMEMBERED_SIZE:
            return False
        if self._size + size > _MAX_REMEMBERED_SIZE or max(map(len, self._tables)) >= _MAX_REMEMBERED:
            for table in self._tables:
                table.clear()
            self._size = 0
        self._size += size
        return True


def _holds(table: _ByObject, owner: object) -> bool:
    return owner is None or id(owner) in table


def _cannot_change(attributes: Any) -> bool:
    """Return whether attributes are immutable, as far as can be determined."""
    if attributes is None:
        return True
    # OpenTelemetry's mapping of attributes has ``_immutable``.
    read_only = type(attributes) is MappingProxyType or getattr(attributes, "_immutable", None) is True
    return read_only and all(map(_is_constant, attributes.values()))


def _is_constant(value: Any) -> bool:
    if type(value) is tuple:
        return all(map(_is_constant, value))
    return type(value) in _CONSTANTS or (type(value) is MappingProxyType and _cannot_change(value))


def _entity_ref(entity: Any) -> bytes:
    if lacks(entity, "id_keys"):
        raise invalid("resource.entity_refs", entity, "it must be an EntityRef")
    fields = [text_field(_ENTITY_SCHEMA_URL, entity.schema_url), text_field(_ENTITY_TYPE, entity.type)]
    # Unlike a singular field, an item of a repeated field is sent even if it is empty.
    fields += [delimited(_ENTITY_ID_KEYS, text_of(key)) for key in entity.id_keys]
    fields += [delimited(_ENTITY_DESCRIPTION_KEYS, text_of(key)) for key in entity.description_keys]
    return delimited(_RESOURCE_ENTITY_REFS, b"".join(fields))


def _header(fields: list[bytes], schema_url: Any) -> bytes:
    return delimited(_CONTENT, b"".join(fields)) + text_field(_SCHEMA_URL, schema_url)


def _dropped(tag: bytes, owner: object, field: str, lost: int) -> bytes:
    # OpenTelemetry's resources and scopes have no such count.
    return count_field(tag, getattr(owner, "dropped_attributes", 0), field, lost)
