"""Store received spans in a SQLite file, one row per span.

The primary key is the location, the trace id and the span id, so that a span that is sent twice (delivery is at least
once) is stored once. Attributes, events, links, resource and scope are JSON, for SQLite's functions::

    SELECT name, attributes ->> '$."http.request.method"' FROM spans WHERE location = 'main.agents.spans'
"""

from __future__ import annotations

import base64
import json
import math
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, TypeAlias

import attrs
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, InstrumentationScope, KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

Json: TypeAlias = "bool | int | float | str | list[Json] | dict[str, Json] | None"
Row: TypeAlias = tuple[object, ...]

# The columns for times have no type on purpose. Times are unsigned 64-bit numbers, and SQLite's integers are signed: a
# column of type INTEGER would round larger numbers to a float, but a column without a type keeps them as text.
_SCHEMA = """
CREATE TABLE IF NOT EXISTS spans (
    location TEXT NOT NULL,
    trace_id TEXT NOT NULL,
    span_id TEXT NOT NULL,
    parent_span_id TEXT,
    name TEXT NOT NULL,
    kind TEXT NOT NULL,
    start_ns NOT NULL,
    end_ns NOT NULL,
    status TEXT NOT NULL,
    status_message TEXT NOT NULL,
    trace_state TEXT NOT NULL,
    flags INTEGER NOT NULL,
    attributes TEXT NOT NULL,
    events TEXT NOT NULL,
    links TEXT NOT NULL,
    resource TEXT NOT NULL,
    scope TEXT NOT NULL,
    PRIMARY KEY (location, trace_id, span_id)
)
"""
_COLUMNS = 17
_INSERT = f"INSERT INTO spans VALUES ({', '.join('?' * _COLUMNS)}) ON CONFLICT DO NOTHING"
_LARGEST_INTEGER = 2**63 - 1
# Seconds to wait while another program writes to the file. The receiver's event loop is blocked meanwhile.
_BUSY_TIMEOUT = 0.5


@attrs.frozen
class StoredCounts:
    """The numbers of stored spans of one request."""

    stored: int  # the number of new spans
    repeated: int  # the number of spans that had been stored before


class SpanStore:
    """A SQLite file with a table ``spans``. Its methods block, and may be called by one thread at a time.

    It raises `sqlite3.Error` if the file cannot be opened, is not a SQLite file, or has a different table ``spans``.
    """

    def __init__(self, path: Path | str) -> None:
        self._connection = sqlite3.connect(path, check_same_thread=False, isolation_level=None, timeout=_BUSY_TIMEOUT)
        try:
            # Before anything is written, as the file may belong to another program.
            _check_columns(self._connection)
            self._connection.execute("PRAGMA journal_mode=WAL")
            # A commit survives any end of this process, but it may not survive a power failure.
            self._connection.execute("PRAGMA synchronous=NORMAL")
            self._connection.execute(_SCHEMA)
        except sqlite3.Error:
            self._connection.close()
            raise

    def add(self, location: str, request: ExportTraceServiceRequest) -> StoredCounts:
        """Store and commit the spans of one request that `has_ids`; all or, with a `sqlite3.Error`, none of them."""
        rows = list(_rows(location, request))
        before = self._connection.total_changes
        # Commits at the end, or rolls back.
        with self._connection:
            self._connection.execute("BEGIN IMMEDIATE")
            self._connection.executemany(_INSERT, rows)
        stored = self._connection.total_changes - before
        return StoredCounts(stored, len(rows) - stored)

    def keys(self) -> Iterator[tuple[str, str, str]]:
        """Return the location, trace id and span id of each row, with ids as lower-case hex."""
        return iter(self._connection.execute("SELECT location, trace_id, span_id FROM spans"))

    def close(self) -> None:
        self._connection.close()


def _check_columns(connection: sqlite3.Connection) -> None:
    found = _columns(connection)
    with closing(sqlite3.connect(":memory:")) as empty:
        empty.execute(_SCHEMA)
        expected = _columns(empty)
    if found not in ([], expected):
        raise sqlite3.DatabaseError("its table spans has different columns than trio-spanbatch's")


def _columns(connection: sqlite3.Connection) -> list[tuple[str, int]]:
    """Return each column's name and position in the key (0 if not part of it); empty if there is no table."""
    return [(row[1], row[5]) for row in connection.execute("PRAGMA table_info(spans)")]


def _rows(location: str, request: ExportTraceServiceRequest) -> Iterator[Row]:
    for envelope in request.resource_spans:
        attributes = _attributes(envelope.resource.attributes)
        resource = _dumps({"attributes": attributes, "schema_url": envelope.schema_url})
        for scope_spans in envelope.scope_spans:
            scope = _dumps(_scope(scope_spans.scope, scope_spans.schema_url))
            for span in filter(has_ids, scope_spans.spans):
                yield _row(location, span, resource, scope)


def has_ids(span: Span) -> bool:
    """Whether the ids have 16 and 8 bytes and are not all zero, as OTLP requires."""
    return len(span.trace_id) == 16 and len(span.span_id) == 8 and any(span.trace_id) and any(span.span_id)


def _row(location: str, span: Span, resource: str, scope: str) -> Row:
    return (
        location,
        span.trace_id.hex(),
        span.span_id.hex(),
        span.parent_span_id.hex() or None,
        span.name,
        _enum_name(Span.SpanKind, span.kind, "SPAN_KIND_"),
        _unsigned(span.start_time_unix_nano),
        _unsigned(span.end_time_unix_nano),
        _enum_name(Status.StatusCode, span.status.code, "STATUS_CODE_"),
        span.status.message,
        span.trace_state,
        span.flags,
        _dumps(_attributes(span.attributes)),
        _dumps([_event(event) for event in span.events]),
        _dumps([_link(link) for link in span.links]),
        resource,
        scope,
    )


def _unsigned(value: int) -> int | str:
    return value if value <= _LARGEST_INTEGER else str(value)


def _enum_name(enum: Any, number: int, prefix: str) -> str:
    """Return e.g. ``SERVER`` for 2; unknown numbers of newer protocols are returned as they are."""
    if number not in enum.values():
        return str(number)
    return str(enum.Name(number)).removeprefix(prefix)


def _scope(scope: InstrumentationScope, schema_url: str) -> Json:
    return {
        "name": scope.name,
        "version": scope.version,
        "attributes": _attributes(scope.attributes),
        "schema_url": schema_url,
    }


def _event(event: Span.Event) -> Json:
    return {"name": event.name, "time_ns": event.time_unix_nano, "attributes": _attributes(event.attributes)}


def _link(link: Span.Link) -> Json:
    return {
        "trace_id": link.trace_id.hex(),
        "span_id": link.span_id.hex(),
        "trace_state": link.trace_state,
        "flags": link.flags,
        "attributes": _attributes(link.attributes),
    }


def _attributes(pairs: Iterable[KeyValue]) -> dict[str, Json]:
    return {pair.key: _value(pair.value) for pair in pairs}


def _value(value: AnyValue) -> Json:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [_value(item) for item in value.array_value.values]
    if kind == "kvlist_value":
        return _attributes(value.kvlist_value.values)
    if kind == "bytes_value":
        return base64.b64encode(value.bytes_value).decode()
    if kind == "double_value" and not math.isfinite(value.double_value):
        # JSON has no such numbers. OTLP writes them as these strings.
        return {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}[str(value.double_value)]
    return None if kind is None else getattr(value, kind)


def _dumps(value: Json) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
