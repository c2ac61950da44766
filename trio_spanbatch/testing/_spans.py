"""Delivered spans as plain data that is the same in each run, for comparisons."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import count
from typing import Any, TypeAlias

from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span as SpanMessage
from opentelemetry.proto.trace.v1.trace_pb2 import Status

from ._checks import check
from ._memory_exporter import InMemoryExporter
from ._receiver import OTLPReceiver

_Id: TypeAlias = tuple[bytes, bytes]


class SpanDicts(list[dict[str, Any]]):
    """A list of spans as dicts, from `ExportedSpans.at`. A parent comes before its children."""

    def tree(self, *fields: str) -> list[dict[str, Any]]:
        """Return the spans as trees: dicts with ``name``, ``attributes``, ``children`` and, if wanted, more fields."""
        nodes: dict[int, dict[str, Any]] = {}
        tops: list[dict[str, Any]] = []
        for span in self:
            for field in fields:
                check("fields", field, f"names of fields: {', '.join(span)}", str, valid=span.__contains__)
            node = {field: span[field] for field in ("name", "attributes", *fields)} | {"children": []}
            parent = nodes.get(span["parent_span_id"])
            (tops if parent is None else parent["children"]).append(node)
            nodes[span["span_id"]] = node
        return tops


class ExportedSpans:
    """The spans that were delivered to a receiver or an in-memory exporter, as plain data that is equal in each run.

    Ids are the numbers 1, 2, 3 in the order of the tree, and so are times, as if one span ran at a time. Spans with the
    same parent are in the order in which they ran; those that ran at the same time, in the order of their names,
    attributes and children.

    Args:
        source: Where the spans were delivered to.
    """

    def __init__(self, source: OTLPReceiver | InMemoryExporter) -> None:
        check("source", source, "an OTLPReceiver or InMemoryExporter", OTLPReceiver, InMemoryExporter)
        self._source = source

    @property
    def locations(self) -> list[str]:
        """The locations with delivered spans, sorted."""
        return sorted(self._delivered)

    def at(self, location: str) -> SpanDicts:
        """Return the spans of a location as dicts.

        They have the keys ``name``, ``trace_id``, ``span_id``, ``parent_span_id`` (None for a root), ``start_time``,
        ``end_time``, ``kind`` (such as ``"client"``), ``status`` (``"unset"``, ``"ok"`` or ``"error"``),
        ``status_message``, ``attributes``, ``events`` (``name`` and ``attributes``) and ``links`` (``trace_id``,
        ``span_id`` and ``attributes``).
        """
        check("location", location, "a str", str)
        spans = self._delivered.get(location, ())
        return _as_dicts(span if isinstance(span, SpanMessage) else span.to_message() for span in spans)

    def tree(self) -> dict[str, list[dict[str, Any]]]:
        """Return the trees of each location, as from ``at(location).tree()``."""
        return {location: self.at(location).tree() for location in self.locations}

    @property
    def _delivered(self) -> Mapping[str, Sequence[Any]]:
        return self._source.stored if isinstance(self._source, OTLPReceiver) else self._source.delivered


_Node: TypeAlias = tuple[SpanMessage, str, "list[_Node]"]


def _as_dicts(spans: Iterable[SpanMessage]) -> SpanDicts:
    found, clock = SpanDicts(), count(1)
    traces: dict[bytes, int] = {}
    ids: dict[_Id, int] = {}

    def numbers(trace_id: bytes, span_id: bytes) -> dict[str, int]:
        trace = traces.setdefault(trace_id, len(traces) + 1)
        return {"trace_id": trace, "span_id": ids.setdefault((trace_id, span_id), len(ids) + 1)}

    def add(message: SpanMessage, children: list[_Node]) -> None:
        span: dict[str, Any] = {"name": message.name, **numbers(message.trace_id, message.span_id)}
        found.append(span)
        above = numbers(message.trace_id, message.parent_span_id) if message.parent_span_id else {"span_id": None}
        span |= {
            "parent_span_id": above["span_id"],
            "start_time": next(clock),
            "end_time": 0,
            "kind": SpanMessage.SpanKind.Name(message.kind).removeprefix("SPAN_KIND_").lower(),
            "status": Status.StatusCode.Name(message.status.code).removeprefix("STATUS_CODE_").lower(),
            "status_message": message.status.message,
            "attributes": _plain(message.attributes),
            "events": [{"name": event.name, "attributes": _plain(event.attributes)} for event in message.events],
            "links": message.links,
        }
        for child, _, below in children:
            add(child, below)
        span["end_time"] = next(clock)

    for top, _, children in _trees(spans):
        add(top, children)
    for span in found:
        # Now, as a span may link to a later one.
        span["links"] = [
            {**numbers(link.trace_id, link.span_id), "attributes": _plain(link.attributes)} for link in span["links"]
        ]
    return found


def _trees(spans: Iterable[SpanMessage]) -> list[_Node]:
    spans = list(spans)
    present = {(span.trace_id, span.span_id) for span in spans}
    below: dict[_Id | None, list[SpanMessage]] = {}
    for span in spans:
        parent = span.trace_id, span.parent_span_id
        below.setdefault(parent if parent in present else None, []).append(span)

    def nodes(parent: _Id | None) -> list[_Node]:
        # Taken out, so that a span that was delivered twice has its children once, and a circle ends.
        found: list[_Node] = []
        for span in below.pop(parent, ()):
            children = _in_order(nodes((span.trace_id, span.span_id)))
            label = repr((span.name, sorted(_plain(span.attributes).items()), [label for _, label, _ in children]))
            found.append((span, label, children))
        return found

    tops = nodes(None)
    while below:
        tops += nodes(next(iter(below)))
    return _in_order(tops)


def _in_order(nodes: list[_Node]) -> list[_Node]:
    """Sort by time, and spans that ran at the same time by their labels."""
    groups: list[list[_Node]] = []
    first = end = 0
    for node in sorted(nodes, key=lambda node: node[0].start_time_unix_nano):
        start = node[0].start_time_unix_nano
        if not groups or (start >= end and start != first):
            groups.append([])
            first = start
        groups[-1].append(node)
        end = max(end, node[0].end_time_unix_nano)
    return [node for group in groups for node in sorted(group, key=lambda node: node[1])]


def _plain(attributes: Iterable[KeyValue]) -> dict[str, Any]:
    return {pair.key: _plain_value(pair.value) for pair in attributes}


def _plain_value(value: AnyValue) -> Any:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [_plain_value(element) for element in value.array_value.values]
    if kind == "kvlist_value":
        return _plain(value.kvlist_value.values)
    return None if kind is None else getattr(value, kind)
