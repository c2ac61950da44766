"""Traces with everything that MLflow stores, and their comparison with the traces that it returns."""

from __future__ import annotations

import base64
import json
import random
from collections.abc import Callable, Iterable, Sequence

from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span as SpanMessage

from tests.unit.spans.expected_messages import any_value, span_message
from trio_spanbatch import (
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

BEGIN = 1_790_000_000_123_456_789

TEXTS = [
    "",
    "plan",
    "répondre à l'élève",
    "検索する",
    "ответ",
    "البحث",
    "खोज",
    "👩‍🔬 🧪",
    'quoted "text" \\ \n\t end',
    "x" * 3000,
]
VALUES: dict[str, object] = {
    "text": "größer",
    "empty": "",
    "looks.like.json": '{"a": [1, 2]}',
    "looks.like.a.number": "123",
    "yes": True,
    "no": False,
    "zero": 0,
    "small": -(2**63),
    "large": 2**63 - 1,
    "ratio": 0.1,
    "whole": 3.0,
    "tiny": 5e-324,
    "infinite": float("inf"),
    "nothing": None,
    "bytes": b"\x00\xff",
    "texts": ["a", "é", "日本"],
    "numbers": [1, -2, 3],
    "ratios": [0.5, 2.0],
    "flags": [True, False],
    "mixed": [1, "a", None, [2.5]],
    "none.in.it": [],
    "nested": {"model": {"name": "一", "sizes": [1, 2]}},
    "gen_ai.request.model": "m-1",
    "mlflow.spanType": "LLM",
}
STATUSES = [Status(), Status(StatusCode.OK), Status(StatusCode.ERROR, "zu spät, 遅い"), Status(StatusCode.ERROR)]
RESOURCE = Resource({"service.name": "agent", "host.cpus": 2})
SCOPE = InstrumentationScope("tests.mlflow", "1.0")


class TraceMaker:
    """Generates traces; the same seed gives the same traces."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def trace(self, spans: int) -> list[Span]:
        """Return a trace: a root, and spans whose parents are any earlier spans."""
        trace_id = self._random.getrandbits(127) + 1
        contexts = [SpanContext(trace_id, self._random.getrandbits(63) + 1) for _ in range(spans)]
        parents = [None, *(self._random.choice(contexts[:number]) for number in range(1, spans))]
        return [self._span(context, parent) for context, parent in zip(contexts, parents, strict=True)]

    def traces(self, count: int) -> list[list[Span]]:
        """Return ``count`` traces of one to twelve spans."""
        return [self.trace(self._random.randint(1, 12)) for _ in range(count)]

    def _span(self, context: SpanContext, parent: SpanContext | None) -> Span:
        choose = self._random
        start = BEGIN + choose.randrange(10**12)
        end = start + choose.randrange(10**11)
        return Span(
            f"{choose.choice(TEXTS)[:80]} #{choose.randrange(1000)}",
            context,
            parent=parent,
            kind=choose.choice(list(SpanKind)),
            start_time=start,
            end_time=end,
            attributes=self._attributes(choose.randrange(12)) | {"prompt": choose.choice(TEXTS)},
            events=[
                SpanEvent(choose.choice(TEXTS)[:80] or "event", choose.randrange(start, end + 1), self._attributes(3))
                for _ in range(choose.randrange(4))
            ],
            links=[
                SpanLink(SpanContext(choose.getrandbits(127) + 1, choose.getrandbits(63) + 1), self._attributes(2))
                for _ in range(choose.randrange(3))
            ],
            status=choose.choice(STATUSES),
            resource=RESOURCE,
            instrumentation_scope=SCOPE,
        )

    def _attributes(self, count: int) -> dict[str, object]:
        return {key: VALUES[key] for key in self._random.sample(sorted(VALUES), count)}


def assert_stored(stored: Sequence[SpanMessage], sent: Sequence[Span]) -> None:
    """Assert that MLflow has exactly these spans of a trace, with all the fields that it returns."""
    by_id = {message.span_id: message for message in stored}
    assert len(by_id) == len(stored)
    expected = {message.span_id: message for message in map(span_message, sent)}
    assert by_id.keys() == expected.keys()
    for span_id, message in expected.items():
        _assert_same(by_id[span_id], message)


def _assert_same(stored: SpanMessage, sent: SpanMessage) -> None:
    for field in ("trace_id", "parent_span_id", "name", "start_time_unix_nano", "end_time_unix_nano"):
        assert getattr(stored, field) == getattr(sent, field), field
    assert (stored.status.code, stored.status.message) == (sent.status.code, sent.status.message)
    # MLflow adds its own attributes.
    found = _values(stored.attributes)
    expected = {key: _parsed(value) for key, value in _values_without_bytes(sent.attributes).items()}
    assert not {key: found.get(key) for key, value in expected.items() if found.get(key) != value}, sent.name
    assert [(event.name, event.time_unix_nano, _values(event.attributes)) for event in stored.events] == [
        (event.name, event.time_unix_nano, _values_without_bytes(event.attributes)) for event in sent.events
    ]
    assert [(link.trace_id, link.span_id, _values(link.attributes)) for link in stored.links] == [
        (link.trace_id, link.span_id, _values_without_bytes(link.attributes, _base64)) for link in sent.links
    ]


def _values(attributes: Iterable[KeyValue]) -> dict[str, AnyValue]:
    return {attribute.key: attribute.value for attribute in attributes}


def _values_without_bytes(attributes: Iterable[KeyValue], text_of: Callable[[bytes], str] = str) -> dict[str, AnyValue]:
    """Return bytes as MLflow stores them: their ``repr``, or base64 in a link."""
    return {
        key: any_value(text_of(value.bytes_value)) if value.HasField("bytes_value") else value
        for key, value in _values(attributes).items()
    }


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def _parsed(value: AnyValue) -> AnyValue:
    """Return text as MLflow stores it: a JSON object becomes that object."""
    return any_value(json.loads(value.string_value)) if value.string_value.startswith("{") else value
