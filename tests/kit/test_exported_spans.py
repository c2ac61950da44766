"""Delivered spans as plain data that is the same in each run."""

from __future__ import annotations

import random
import time
from typing import Any

import pytest
import trio

from trio_spanbatch import Span, SpanBatcher, SpanContext, SpanEvent, SpanKind, SpanLink, Status, StatusCode
from trio_spanbatch.testing import ExportedSpans, InMemoryExporter


def context(trace_id: int, span_id: int) -> SpanContext:
    return SpanContext(trace_id, span_id)


def span(name: str, span_id: int, start: int, end: int, parent: int = 0, trace: int = 7, **fields: Any) -> Span:
    above = context(trace, parent) if parent else None
    return Span(name, context(trace, span_id), start_time=start, end_time=end, parent=above, **fields)


async def exported(*spans: Span) -> ExportedSpans:
    exporter = InMemoryExporter()
    async with SpanBatcher(exporter) as batcher:
        await batcher.add_spans("acme", spans)
    return ExportedSpans(exporter)


def outline(nodes: list[dict[str, Any]]) -> list[Any]:
    return [(node["name"], outline(node["children"])) if node["children"] else node["name"] for node in nodes]


async def outline_of(*spans: Span) -> list[Any]:
    return outline((await exported(*spans)).at("acme").tree())


async def test_a_span_is_a_plain_dict_with_stable_ids_and_times() -> None:
    agent = span("agent", 0x1234, 10_000, 20_000, kind=SpanKind.SERVER, status=Status(StatusCode.OK))
    chat = span(
        "chat",
        0x99,
        11_000,
        12_000,
        0x1234,
        attributes={"text": "hi", "n": 1, "x": 0.5, "ok": True, "raw": b"\0", "list": ["a", 2], "map": {"k": "v"}},
        events=[SpanEvent("retry", timestamp=11_500, attributes={"after": 2})],
        links=[SpanLink(context(7, 0x1234)), SpanLink(context(8, 1), attributes={"why": "cause"})],
        status=Status(StatusCode.ERROR, "too long"),
    )
    spans = (await exported(chat, agent)).at("acme")
    assert spans == [
        {
            "name": "agent",
            "trace_id": 1,
            "span_id": 1,
            "parent_span_id": None,
            "start_time": 1,
            "end_time": 4,
            "kind": "server",
            "status": "ok",
            "status_message": "",
            "attributes": {},
            "events": [],
            "links": [],
        },
        {
            "name": "chat",
            "trace_id": 1,
            "span_id": 2,
            "parent_span_id": 1,
            "start_time": 2,
            "end_time": 3,
            "kind": "internal",
            "status": "error",
            "status_message": "too long",
            "attributes": {
                "text": "hi",
                "n": 1,
                "x": 0.5,
                "ok": True,
                "raw": b"\0",
                "list": ["a", 2],
                "map": {"k": "v"},
            },
            "events": [{"name": "retry", "attributes": {"after": 2}}],
            "links": [
                {"trace_id": 1, "span_id": 1, "attributes": {}},
                {"trace_id": 2, "span_id": 3, "attributes": {"why": "cause"}},
            ],
        },
    ]
    assert all(type(one) is dict for one in spans)


async def test_a_tree_has_names_attributes_and_children_and_the_fields_that_are_wanted() -> None:
    spans = await exported(span("agent", 1, 1, 9), span("chat", 2, 2, 3, 1, attributes={"model": "m"}))
    chat = {"name": "chat", "attributes": {"model": "m"}, "children": []}
    tree = [{"name": "agent", "attributes": {}, "children": [chat]}]
    assert spans.at("acme").tree() == tree
    assert spans.tree() == {"acme": tree}
    (agent,) = spans.at("acme").tree("status", "span_id")
    assert (agent["status"], agent["span_id"], agent["children"][0]["span_id"]) == ("unset", 1, 2)
    with pytest.raises(ValueError, match="fields is 'statsu'; it must be names of fields: name, trace_id"):
        spans.at("acme").tree("statsu")


async def test_a_location_without_spans_is_empty() -> None:
    spans = await exported()
    assert (spans.at("acme"), spans.at("acme").tree(), spans.locations) == ([], [], [])


async def test_spans_that_ran_one_after_the_other_are_in_that_order() -> None:
    spans = [
        span("agent", 1, 1, 100),
        span("tool", 2, 10, 20, 1),
        span("chat", 3, 20, 30, 1),
        span("tool", 4, 40, 50, 1),
    ]
    for _ in range(5):
        random.shuffle(spans)
        assert await outline_of(*spans) == [("agent", ["tool", "chat", "tool"])]


async def test_spans_that_ran_at_the_same_time_are_in_the_order_of_names_attributes_and_children() -> None:
    agent = span("agent", 1, 1, 100)
    at_once = [span("tool", 2, 10, 40, 1), span("tool", 3, 11, 20, 1), span("chat", 4, 39, 50, 1)]
    below = [span("b", 5, 12, 13, 2), span("a", 6, 12, 13, 3)]
    later = span("after", 7, 50, 60, 1)
    expected = [("agent", ["chat", ("tool", ["a"]), ("tool", ["b"]), "after"])]
    assert await outline_of(agent, *at_once, *below, later) == expected
    swapped = [span("tool", 3, 10, 40, 1), span("tool", 2, 11, 20, 1), span("chat", 4, 39, 50, 1)]
    assert await outline_of(later, *below, *swapped, agent) == expected


async def test_two_runs_of_a_concurrent_program_are_equal() -> None:
    async def run() -> tuple[Any, Any]:
        exporter, ids = InMemoryExporter(), random.Random()
        async with SpanBatcher(exporter) as batcher, trio.open_nursery() as nursery:

            async def agent(name: str) -> None:
                trace, own = ids.getrandbits(128) | 1, ids.getrandbits(64) | 1
                start = time.time_ns()
                for step in ("plan", "chat"):
                    await trio.lowlevel.checkpoint()
                    inner = ids.getrandbits(64) | 1
                    await batcher.add_span("acme", span(step, inner, time.time_ns(), time.time_ns() + 1, own, trace))
                attributes = {"city": name}
                await batcher.add_span(
                    "acme", span("agent", own, start, time.time_ns(), trace=trace, attributes=attributes)
                )

            for name in ("Rome", "Oslo", "Paris"):
                nursery.start_soon(agent, name)
        spans = ExportedSpans(exporter)
        return spans.at("acme"), spans.tree()

    first = await run()
    assert [node["attributes"]["city"] for node in first[1]["acme"]] == ["Oslo", "Paris", "Rome"]
    assert [node["name"] for node in first[1]["acme"][0]["children"]] == ["plan", "chat"]
    for _ in range(5):
        assert await run() == first


async def test_no_span_is_left_out_though_parents_are_missing_circular_or_delivered_twice() -> None:
    orphan = span("orphan", 2, 1, 2, parent=99)
    spans = (await exported(orphan)).at("acme")
    assert (spans[0]["parent_span_id"], spans.tree()[0]["name"]) == (2, "orphan")
    assert await outline_of(span("own parent", 1, 1, 2, parent=1)) == ["own parent"]
    assert await outline_of(span("a", 1, 1, 4, parent=2), span("b", 2, 2, 3, parent=1)) == [("a", ["b"])]
    twice = span("agent", 1, 1, 9)
    assert await outline_of(twice, span("chat", 2, 2, 3, 1), twice) == [("agent", ["chat"]), "agent"]
    other_trace = span("chat", 3, 5, 6, parent=1, trace=8)
    assert await outline_of(span("agent", 1, 1, 4), other_trace) == ["agent", "chat"]
