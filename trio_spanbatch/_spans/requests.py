"""Take encoded requests apart. The bytes of spans, resources and scopes stay as they are."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Final, TypeAlias

from .._errors import InvalidSpanError

if TYPE_CHECKING:
    from google.protobuf.descriptor import Descriptor

# Field numbers of resource_spans, scope_spans and spans, and of the spans of OTLP before 0.15.
_RESOURCE_SPANS: Final = 1
_SCOPE_SPANS: Final = 2
_SPANS: Final = 2
_OLD_SPANS: Final = 1000

_VARINT, _FIXED64, _DELIMITED, _FIXED32 = 0, 1, 2, 5
_FIXED_SIZES: Final = {_FIXED64: 8, _FIXED32: 4}
_MAX_NUMBER: Final = (1 << 29) - 1
# The deepest message that protobuf reads.
_MAX_DEPTH: Final = 100

# Where a field begins, its number and wire type, and where its value begins and ends.
Field: TypeAlias = tuple[int, int, int, int, int]


def scopes_of_request(data: bytes) -> Iterator[tuple[bytes, bytes, list[bytes]]]:
    """Yield each ``ScopeSpans`` of an encoded ``ExportTraceServiceRequest``: resource, scope and spans.

    The resource and the scope are all fields of their envelopes except those that contain spans.

    Raises:
        InvalidSpanError: ``data`` is something else. The message has the place of the first bad byte.
    """
    _check(data)
    for resource_spans in _inside(data, 0, len(data), _RESOURCE_SPANS):
        resource = _others(data, *resource_spans, _SCOPE_SPANS)
        for scope_spans in _inside(data, *resource_spans, _SCOPE_SPANS):
            spans = [data[at:end] for at, end in _inside(data, *scope_spans, _SPANS)]
            yield resource, _others(data, *scope_spans, _SPANS), spans


def _inside(data: bytes, at: int, end: int, wanted: int) -> Iterator[tuple[int, int]]:
    """Yield the begin and end of each message in the field ``wanted`` of the message from ``at`` to ``end``."""
    for begin, number, kind, value_at, value_end in fields(data, at, end):
        if number == wanted and kind == _DELIMITED:
            yield value_at, value_end
        elif number == _OLD_SPANS:
            raise _bad(begin, "spans of OTLP before 0.15, which are not read; convert the request")


def _others(data: bytes, at: int, end: int, wanted: int) -> bytes:
    """Return the fields of a message except those that `_inside` yields."""
    found = fields(data, at, end)
    return b"".join(data[begin:end] for begin, number, kind, _, end in found if (number, kind) != (wanted, _DELIMITED))


def fields(data: bytes, at: int, end: int) -> Iterator[Field]:
    """Yield the fields of the message that begins at ``at`` and ends before ``end``."""
    while at < end:
        begin = at
        tag, at = _varint(data, at, end)
        number, kind = tag >> 3, tag & 7
        if not 0 < number <= _MAX_NUMBER:
            raise _bad(begin, f"a field with the number {number}")
        value_at = at
        if kind == _VARINT:
            _, at = _varint(data, at, end)
        elif kind == _DELIMITED:
            size, value_at = _varint(data, at, end)
            at = value_at + size
        elif kind in _FIXED_SIZES:
            at += _FIXED_SIZES[kind]
        else:
            raise _bad(begin, f"a field with the wire type {kind}, which OTLP does not use")
        if at > end:
            raise _bad(begin, f"a field that ends {at - end:,} bytes after its message; the data may be cut off")
        yield begin, number, kind, value_at, at


def _varint(data: bytes, at: int, end: int) -> tuple[int, int]:
    """Return the varint at ``at``, and where it ends."""
    value = 0
    for place in range(at, min(at + 10, end)):
        value |= (data[place] & 0x7F) << 7 * (place - at)
        if data[place] < 0x80:
            return value, place + 1
    raise _bad(at, "a number that does not end" + ("; the data may be cut off" if end < at + 10 else ""))


def _check(data: bytes) -> None:
    from google.protobuf.message import DecodeError
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    try:
        ExportTraceServiceRequest.FromString(data)
    except DecodeError as error:
        # It does not say where.
        _find_bad_byte(data, 0, len(data), ExportTraceServiceRequest.DESCRIPTOR, 0)
        raise InvalidSpanError(f"the data is not an ExportTraceServiceRequest: {error}") from error


def _find_bad_byte(data: bytes, at: int, end: int, message: Descriptor, depth: int) -> None:
    if depth > _MAX_DEPTH:
        raise _bad(at, "a message that is nested too deeply")
    for _begin, number, kind, value_at, value_end in fields(data, at, end):
        field = message.fields_by_number.get(number)
        if field is None or kind != _DELIMITED:
            continue
        if field.message_type is not None:
            _find_bad_byte(data, value_at, value_end, field.message_type, depth + 1)
        elif field.type == field.TYPE_STRING:
            try:
                data[value_at:value_end].decode()
            except UnicodeDecodeError as error:
                raise _bad(value_at + error.start, f"text that is not UTF-8, in the field {field.name}") from error


def _bad(at: int, what: str) -> InvalidSpanError:
    return InvalidSpanError(f"byte {at} of the data begins {what}: it is not an ExportTraceServiceRequest")
