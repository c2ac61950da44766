from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, ArrayValue, KeyValue, KeyValueList
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from trio_spanbatch.cli.store import SpanStore, StoredCounts

TRACE_ID = bytes(range(16))
SPAN_ID = bytes(range(8))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "spans.db"


@pytest.fixture
def store(path: Path) -> Iterator[SpanStore]:
    store = SpanStore(path)
    yield store
    store.close()


def request_of(*spans: Span) -> ExportTraceServiceRequest:
    request = ExportTraceServiceRequest()
    resource_spans = request.resource_spans.add(schema_url="https://example.org/resource")
    resource_spans.resource.attributes.append(text("service.name", "shop"))
    scope_spans = resource_spans.scope_spans.add(schema_url="https://example.org/scope")
    scope_spans.scope.name, scope_spans.scope.version = "shop.tracing", "2"
    scope_spans.scope.attributes.append(text("team", "a"))
    scope_spans.spans.extend(spans)
    return request


def text(key: str, value: str) -> KeyValue:
    return KeyValue(key=key, value=AnyValue(string_value=value))


def span_of(**fields: Any) -> Span:
    return Span(**{"trace_id": TRACE_ID, "span_id": SPAN_ID, "name": "chat", **fields})


def rows_of(path: Path) -> list[dict[str, Any]]:
    connection = sqlite3.connect(path)
    connection.row_factory = sqlite3.Row
    try:
        return [dict(row) for row in connection.execute("SELECT * FROM spans")]
    finally:
        connection.close()


def test_a_span_is_a_row_with_nested_fields_as_json(store: SpanStore, path: Path) -> None:
    span = span_of(
        parent_span_id=b"\xff" * 8,
        kind=Span.SPAN_KIND_CLIENT,
        start_time_unix_nano=10,
        end_time_unix_nano=20,
        status=Status(code=Status.STATUS_CODE_ERROR, message="no answer"),
        trace_state="a=b",
        flags=257,
        attributes=[text("http.request.method", "GET"), text("größe", "häßlich")],
        events=[Span.Event(name="retry", time_unix_nano=15, attributes=[text("why", "timeout")])],
        links=[Span.Link(trace_id=TRACE_ID, span_id=SPAN_ID, trace_state="c=d", flags=1, attributes=[text("k", "v")])],
    )
    assert store.add("main.agents.spans", request_of(span)) == StoredCounts(1, 0)
    (row,) = rows_of(path)
    nested = {name: json.loads(row.pop(name)) for name in ("attributes", "events", "links", "resource", "scope")}
    assert row == {
        "location": "main.agents.spans",
        "trace_id": TRACE_ID.hex(),
        "span_id": SPAN_ID.hex(),
        "parent_span_id": "ff" * 8,
        "name": "chat",
        "kind": "CLIENT",
        "start_ns": 10,
        "end_ns": 20,
        "status": "ERROR",
        "status_message": "no answer",
        "trace_state": "a=b",
        "flags": 257,
    }
    assert nested == {
        "attributes": {"http.request.method": "GET", "größe": "häßlich"},
        "events": [{"name": "retry", "time_ns": 15, "attributes": {"why": "timeout"}}],
        "links": [
            {
                "trace_id": TRACE_ID.hex(),
                "span_id": SPAN_ID.hex(),
                "trace_state": "c=d",
                "flags": 1,
                "attributes": {"k": "v"},
            }
        ],
        "resource": {"attributes": {"service.name": "shop"}, "schema_url": "https://example.org/resource"},
        "scope": {
            "name": "shop.tracing",
            "version": "2",
            "attributes": {"team": "a"},
            "schema_url": "https://example.org/scope",
        },
    }


def test_attributes_of_every_type_are_json(store: SpanStore, path: Path) -> None:
    values = {
        "string": AnyValue(string_value="x"),
        "bool": AnyValue(bool_value=True),
        "int": AnyValue(int_value=-(2**63)),
        "double": AnyValue(double_value=0.5),
        "nan": AnyValue(double_value=float("nan")),
        "infinity": AnyValue(double_value=float("inf")),
        "minus infinity": AnyValue(double_value=float("-inf")),
        "bytes": AnyValue(bytes_value=b"\x00\xff"),
        "none": AnyValue(),
        "array": AnyValue(array_value=ArrayValue(values=[AnyValue(int_value=1), AnyValue()])),
        "map": AnyValue(kvlist_value=KeyValueList(values=[text("k", "v")])),
    }
    store.add("a", request_of(span_of(attributes=[KeyValue(key=key, value=value) for key, value in values.items()])))
    (row,) = rows_of(path)
    assert json.loads(row["attributes"]) == {
        "string": "x",
        "bool": True,
        "int": -(2**63),
        "double": 0.5,
        "nan": "NaN",
        "infinity": "Infinity",
        "minus infinity": "-Infinity",
        "bytes": "AP8=",
        "none": None,
        "array": [1, None],
        "map": {"k": "v"},
    }


def test_a_root_span_has_no_parent_and_default_enums_have_their_names(store: SpanStore, path: Path) -> None:
    store.add("a", request_of(span_of()))
    (row,) = rows_of(path)
    assert row["parent_span_id"] is None
    assert (row["kind"], row["status"], row["status_message"]) == ("UNSPECIFIED", "UNSET", "")


def test_numbers_of_a_newer_protocol_are_kept_as_they_are(store: SpanStore, path: Path) -> None:
    request = ExportTraceServiceRequest.FromString(request_of(span_of()).SerializeToString())
    request.resource_spans[0].scope_spans[0].spans[0].MergeFromString(b"\x30\x63")  # kind, field 6: 99
    store.add("a", request)
    (row,) = rows_of(path)
    assert row["kind"] == "99"


def test_times_beyond_63_bits_are_kept_to_the_last_digit(store: SpanStore, path: Path) -> None:
    store.add("a", request_of(span_of(start_time_unix_nano=2**63 - 1, end_time_unix_nano=2**64 - 1)))
    (row,) = rows_of(path)
    assert (row["start_ns"], row["end_ns"]) == (2**63 - 1, str(2**64 - 1))


def test_a_repeated_span_is_stored_once_for_each_location(store: SpanStore) -> None:
    other = span_of(span_id=b"\x01" * 8)
    assert store.add("a", request_of(span_of(), span_of(name="again"))) == StoredCounts(1, 1)
    assert store.add("a", request_of(span_of(), other)) == StoredCounts(1, 1)
    assert store.add("b", request_of(span_of())) == StoredCounts(1, 0)
    assert sorted(store.keys()) == [
        ("a", TRACE_ID.hex(), SPAN_ID.hex()),
        ("a", TRACE_ID.hex(), "01" * 8),
        ("b", TRACE_ID.hex(), SPAN_ID.hex()),
    ]


@pytest.mark.parametrize(
    "ids",
    [{"trace_id": b"x"}, {"trace_id": bytes(16)}, {"span_id": b""}, {"span_id": bytes(8)}, {"span_id": b"x" * 9}],
    ids=["short trace id", "zero trace id", "no span id", "zero span id", "long span id"],
)
def test_spans_with_invalid_ids_are_left_out(store: SpanStore, ids: dict[str, bytes]) -> None:
    assert store.add("a", request_of(span_of(**ids), span_of())) == StoredCounts(1, 0)


def test_stored_spans_are_there_when_the_file_is_opened_again(path: Path) -> None:
    for expected in (StoredCounts(1, 0), StoredCounts(0, 1)):
        store = SpanStore(path)
        assert store.add("a", request_of(span_of())) == expected
        store.close()


def test_spans_are_committed_when_add_returns(store: SpanStore, path: Path) -> None:
    store.add("a", request_of(span_of()))
    assert len(rows_of(path)) == 1


def test_a_store_that_another_program_writes_to_is_an_error_and_works_again_afterwards(
    store: SpanStore, path: Path
) -> None:
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(sqlite3.OperationalError, match="locked"):
        store.add("a", request_of(span_of()))
    other.execute("ROLLBACK")
    other.close()
    assert store.add("a", request_of(span_of())) == StoredCounts(1, 0)


def test_a_full_disk_is_an_error_and_nothing_is_stored(store: SpanStore, path: Path) -> None:
    store._connection.execute("PRAGMA max_page_count=8")
    large = span_of(attributes=[text("pad", "x" * 1_000_000)])
    with pytest.raises(sqlite3.OperationalError, match="full"):
        store.add("a", request_of(span_of(span_id=b"\x02" * 8), large))
    assert rows_of(path) == []
    assert store.add("a", request_of(span_of())) == StoredCounts(1, 0)


def test_a_request_that_fails_half_way_leaves_nothing_behind(store: SpanStore) -> None:
    with pytest.raises(UnicodeEncodeError):
        store.add("\ud800", request_of(span_of()))
    assert store.add("a", request_of(span_of())) == StoredCounts(1, 0)


def test_a_file_that_is_not_a_database_cannot_be_opened(tmp_path: Path) -> None:
    (tmp_path / "text.db").write_text("no database, but text that is long enough to be read as a header" * 10)
    with pytest.raises(sqlite3.DatabaseError, match="not a database"):
        SpanStore(tmp_path / "text.db")


def test_closing_twice_is_allowed(path: Path) -> None:
    store = SpanStore(path)
    store.close()
    store.close()


@pytest.mark.parametrize(
    "sql",
    [
        "CREATE TABLE spans (a, b)",
        "CREATE VIEW spans AS SELECT 1 AS location",
        "CREATE TABLE spans AS SELECT 1 AS location, 2 AS trace_id, 3 AS span_id",
    ],
)
def test_a_different_table_spans_is_refused_and_left_unchanged(sql: str, path: Path) -> None:
    connection = sqlite3.connect(path)
    connection.execute(sql)
    connection.close()
    before = path.read_bytes()
    with pytest.raises(sqlite3.DatabaseError, match="its table spans has different columns"):
        SpanStore(path)
    assert path.read_bytes() == before


def test_the_table_is_created_in_a_database_without_it(path: Path) -> None:
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE other (a)")
    connection.close()
    SpanStore(path).close()
    assert rows_of(path) == []
