"""What spans share: the bytes that stand for their resource and their scope.

A process has one resource and a few dozen scopes, and every span refers to one of each. So a header is made once
for an object and found again by the object's identity, and so are the `SpanHeaders` of a resource and a scope. They are
also kept by content, so that equal resources, made for each span anew, have the same headers: batches are then put
together by identity, and memory holds one.

Spans are encoded in several threads at once (the bridge to OpenTelemetry does), with no lock: what is remembered is
read and written in single steps, and whatever one thread forgets between two steps of another is only made again.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from contextlib import suppress
from types import MappingProxyType
from typing import Any, Final, TypeVar

from .._batch import SpanHeaders
from .._errors import InvalidSpanError
from .attributes import AttributeEncoder
from .checks import failed
from .fields import count_field, delimited, text_field

__all__ = ["HeaderEncoder"]

_Key = TypeVar("_Key")
_Value = TypeVar("_Value")

_MAX_REMEMBERED: Final = 1024
_MAX_REMEMBERED_SIZE: Final = 64 * 1024

# Types of values that nobody can change afterwards, beside tuples and read-only mappings of them.
_CONSTANTS: Final = frozenset((str, bool, int, float, bytes, type(None)))

# Field 1 of ResourceSpans (resource) and of ScopeSpans (scope), field 3 of both (schema_url).
_CONTENT: Final = b"\x0a"
_SCHEMA_URL: Final = b"\x1a"
# Fields of Resource, and of InstrumentationScope.
_RESOURCE_ATTRIBUTES: Final = b"\x0a"
_RESOURCE_DROPPED_ATTRIBUTES: Final = b"\x10"
_SCOPE_NAME: Final = b"\x0a"
_SCOPE_VERSION: Final = b"\x12"
_SCOPE_ATTRIBUTES: Final = b"\x1a"
_SCOPE_DROPPED_ATTRIBUTES: Final = b"\x20"


class HeaderEncoder:
    """Encodes resources and scopes, and remembers the last ones used."""

    __slots__ = ("_attributes", "_headers", "_interned", "_pairs", "_resources", "_scopes")

    def __init__(self, attributes: AttributeEncoder) -> None:
        self._attributes = attributes
        self._resources = _HeadersByObject()
        self._scopes = _HeadersByObject()
        self._headers: OrderedDict[bytes, bytes] = OrderedDict()
        self._interned: dict[SpanHeaders, SpanHeaders] = {}
        # By the identities of a resource and a scope, which are kept too, so that these stay theirs.
        self._pairs: dict[tuple[int, int], tuple[SpanHeaders, object, object]] = {}

    def headers(self, resource: Any, scope: Any) -> SpanHeaders:
        """Return the headers of spans with this resource and this scope; each may be None.

        Raises:
            InvalidSpanError: One of them is not what it has to be, or its attributes cannot be encoded.
        """
        pair = self._pairs.get((id(resource), id(scope)))
        return self._other_headers(resource, scope) if pair is None else pair[0]

    def _other_headers(self, resource: Any, scope: Any) -> SpanHeaders:
        headers = SpanHeaders(self._resource_header(resource), self._scope_header(scope))
        if len(headers.resource) + len(headers.scope) > _MAX_REMEMBERED_SIZE:
            return headers
        if len(self._interned) >= _MAX_REMEMBERED:
            self._interned.clear()
        headers = self._interned.setdefault(headers, headers)
        if self._resources.holds(resource) and self._scopes.holds(scope):
            if len(self._pairs) >= _MAX_REMEMBERED:
                self._pairs.clear()
            self._pairs[id(resource), id(scope)] = headers, resource, scope
        return headers

    def _resource_header(self, resource: Any) -> bytes:
        """Return the fields of ResourceSpans besides its spans; nothing for None."""
        if resource is None:
            return b""
        header = self._resources.get(resource)
        if header is not None:
            return header
        try:
            attributes = resource.attributes
            header = self._intern(self._resource(resource, attributes))
        except InvalidSpanError:
            raise
        except Exception as error:
            raise failed("resource", error) from error
        self._resources.put(resource, attributes, header)
        return header

    def _scope_header(self, scope: Any) -> bytes:
        """Return the fields of ScopeSpans besides its spans; nothing for None."""
        if scope is None:
            return b""
        header = self._scopes.get(scope)
        if header is not None:
            return header
        try:
            attributes = scope.attributes
            header = self._intern(self._scope(scope, attributes))
        except InvalidSpanError:
            raise
        except Exception as error:
            raise failed("instrumentation_scope", error) from error
        self._scopes.put(scope, attributes, header)
        return header

    def _resource(self, resource: Any, attributes: Mapping[str, Any]) -> bytes:
        fields: list[bytes] = []
        self._attributes.append_fields(fields, _RESOURCE_ATTRIBUTES, attributes, "resource.attributes")
        fields.append(_dropped(_RESOURCE_DROPPED_ATTRIBUTES, resource, "resource.dropped_attributes"))
        return _header(fields, resource.schema_url, "resource.schema_url")

    def _scope(self, scope: Any, attributes: Mapping[str, Any]) -> bytes:
        fields = [
            _optional_text(_SCOPE_NAME, scope.name, "instrumentation_scope.name"),
            _optional_text(_SCOPE_VERSION, scope.version, "instrumentation_scope.version"),
        ]
        self._attributes.append_fields(fields, _SCOPE_ATTRIBUTES, attributes, "instrumentation_scope.attributes")
        fields.append(_dropped(_SCOPE_DROPPED_ATTRIBUTES, scope, "instrumentation_scope.dropped_attributes"))
        return _header(fields, scope.schema_url, "instrumentation_scope.schema_url")

    def _intern(self, header: bytes) -> bytes:
        if len(header) > _MAX_REMEMBERED_SIZE:
            return header
        header = self._headers.setdefault(header, header)
        _used(self._headers, header)
        if len(self._headers) > _MAX_REMEMBERED:
            self._headers.popitem(last=False)
        return header


class _HeadersByObject:
    """The headers of the objects last used. The objects are kept too, so that their identities stay theirs."""

    __slots__ = ("_entries",)

    def __init__(self) -> None:
        self._entries: OrderedDict[int, tuple[object, bytes]] = OrderedDict()

    def get(self, owner: object) -> bytes | None:
        entry = self._entries.get(id(owner))
        if entry is None:
            return None
        _used(self._entries, id(owner))
        return entry[1]

    def holds(self, owner: object) -> bool:
        return owner is None or id(owner) in self._entries

    def put(self, owner: object, attributes: object, header: bytes) -> None:
        if len(header) > _MAX_REMEMBERED_SIZE or not _cannot_change(attributes):
            return
        self._entries[id(owner)] = owner, header
        if len(self._entries) > _MAX_REMEMBERED:
            self._entries.popitem(last=False)


def _used(remembered: OrderedDict[_Key, _Value], key: _Key) -> None:
    """Note that ``key`` was used last, unless another thread has just forgotten it."""
    with suppress(KeyError):
        remembered.move_to_end(key)


def _cannot_change(attributes: Any) -> bool:
    """Return whether attributes will always be what they are now, as far as that can be told."""
    if attributes is None:
        return True
    # The second is OpenTelemetry's mapping of attributes, which is mutable or not, one by one.
    read_only = type(attributes) is MappingProxyType or getattr(attributes, "_immutable", None) is True
    return read_only and all(map(_is_constant, attributes.values()))


def _is_constant(value: Any) -> bool:
    if type(value) is tuple:
        return all(map(_is_constant, value))
    return type(value) in _CONSTANTS or (type(value) is MappingProxyType and _cannot_change(value))


def _header(fields: list[bytes], schema_url: Any, field: str) -> bytes:
    return delimited(_CONTENT, b"".join(fields)) + _optional_text(_SCHEMA_URL, schema_url, field)


def _optional_text(tag: bytes, value: Any, field: str) -> bytes:
    return b"" if value is None else text_field(tag, value, field)


def _dropped(tag: bytes, owner: object, field: str) -> bytes:
    # OpenTelemetry's resources and scopes do not say how many.
    return count_field(tag, getattr(owner, "dropped_attributes", 0), field)
