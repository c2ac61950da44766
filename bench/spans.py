"""The spans of the measurements, like those that OpenTelemetry's SDK creates for an agent's work.

Their ids are 1, 2, 3 and so on, so that the arrival of each can be checked.
"""

from __future__ import annotations

import gc
from collections.abc import Callable

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.id_generator import IdGenerator
from opentelemetry.trace import SpanKind, Tracer

__all__ = ["SPANS", "agent_spans", "frozen_agent_spans", "prompt_spans", "small_spans", "started_agent_spans"]

_RESOURCE = Resource.create({"service.name": "support-agent", "service.version": "1.4.2", "host.name": "worker-7"})
# In characters, some of which take two or three bytes.
_PROMPT = ("You are a careful assistant. Le café est déjà fermé. 计划 is a plan. Answer in a sentence. " * 120)[:10_000]


class _Counting(IdGenerator):
    """Generates span ids from 1; each twenty consecutive spans share a trace."""

    def __init__(self) -> None:
        self._last = 0

    def generate_span_id(self) -> int:
        self._last += 1
        return self._last

    def generate_trace_id(self) -> int:
        return (0x5EED << 112) + self._last // 20 + 1


class _Collector(SpanProcessor):
    def __init__(self) -> None:
        self.ended: list[ReadableSpan] = []

    def on_end(self, span: ReadableSpan) -> None:
        self.ended.append(span)


def agent_spans(count: int) -> list[ReadableSpan]:
    """Return spans of model calls: 11 attributes and one event, 530 bytes each."""
    return _made(count, _agent_span)


def frozen_agent_spans(count: int) -> list[ReadableSpan]:
    """Return the same as `agent_spans`, hidden from the garbage collector.

    Real programs do not keep thousands of ended spans, so their collector does not visit any.
    """
    spans = agent_spans(count)
    gc.freeze()
    return spans


def small_spans(count: int) -> list[ReadableSpan]:
    """Return spans with 3 attributes, 150 bytes each."""
    return _made(count, _small_span)


def prompt_spans(count: int) -> list[ReadableSpan]:
    """Return spans like `agent_spans`, with a prompt of 10,000 characters as well."""
    return _made(count, _prompt_span)


SPANS: dict[str, Callable[[int], list[ReadableSpan]]] = {
    "11 attributes and an event": agent_spans,
    "3 attributes": small_spans,
    "a 10 KB prompt": prompt_spans,
}


def started_agent_spans(count: int, processor: SpanProcessor) -> list[Span]:
    """Return spans like `agent_spans` that have not ended; ``processor`` gets them."""
    tracer = _tracer(processor)
    return [_agent_span(tracer, number) for number in range(count)]


def _made(count: int, make: Callable[[Tracer, int], Span]) -> list[ReadableSpan]:
    collector = _Collector()
    tracer = _tracer(collector)
    for number in range(count):
        make(tracer, number).end()
    return collector.ended


def _tracer(processor: SpanProcessor) -> Tracer:
    provider = TracerProvider(resource=_RESOURCE, id_generator=_Counting(), shutdown_on_exit=False)
    provider.add_span_processor(processor)
    return provider.get_tracer("agent.framework", "2.1.0")


def _small_span(tracer: Tracer, number: int) -> Span:
    attributes = {"db.system": "sqlite", "db.statement": "insert into notes values (?)", "db.rows": number % 50}
    return _started(tracer, "insert", attributes)


def _agent_span(tracer: Tracer, number: int) -> Span:
    span = _started(tracer, "chat gpt-4o", _agent_attributes(number))
    span.add_event("gen_ai.choice", {"index": 0, "gen_ai.response.finish_reason": "stop"})
    return span


def _prompt_span(tracer: Tracer, number: int) -> Span:
    # The last characters differ, so that no string is encoded only once.
    prompt = f"{_PROMPT}{number:08}"
    span = _started(tracer, "chat gpt-4o", {**_agent_attributes(number), "gen_ai.input.messages": prompt})
    span.add_event("gen_ai.choice", {"index": 0, "gen_ai.response.finish_reason": "stop"})
    return span


def _started(tracer: Tracer, name: str, attributes: dict[str, object]) -> Span:
    span = tracer.start_span(name, kind=SpanKind.CLIENT, attributes=attributes)  # type: ignore[arg-type]  # its values are
    assert isinstance(span, Span), "it is sampled"
    return span


def _agent_attributes(number: int) -> dict[str, object]:
    return {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "openai",
        "gen_ai.request.model": "gpt-4o",
        "gen_ai.request.temperature": 0.7,
        "gen_ai.request.max_tokens": 4096,
        "gen_ai.usage.input_tokens": 800 + number % 500,
        "gen_ai.usage.output_tokens": 60 + number % 90,
        "gen_ai.response.id": f"chatcmpl-{number:016x}",
        "gen_ai.response.finish_reasons": ("stop",),
        "user.id": f"u-{number % 1000:06}",
        "stream": True,
    }
