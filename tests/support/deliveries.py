"""Helpers for tests of deliveries over HTTP: an environment without settings, and batchers with the real exporter."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Span as SpanMessage

from tests.support.batchers import Watched, watched_batcher
from trio_spanbatch import BatchPolicy, OTLPExporter, RetryPolicy
from trio_spanbatch.testing import Answer, OTLPReceiver, ReceivedRequest

__all__ = [
    "AT_ONCE",
    "BIG",
    "LOCATION_HEADER",
    "batcher_to",
    "clear_environment",
    "exporter_to",
    "ids_of_messages",
    "refusing",
    "stored_ids",
]

LOCATION_HEADER = "x-tenant"

# Spans are sent when they are flushed, or at the end.
BIG = BatchPolicy(max_spans=512, max_delay=3600)

# A backoff that takes no time on a real clock.
AT_ONCE = RetryPolicy(initial=1e-6, maximum=1e-6)


def clear_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Remove variables that the machine that runs the tests may have set."""
    for name in list(os.environ):
        if name.startswith("OTEL_") or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)


def exporter_to(receiver: OTLPReceiver, **options: Any) -> OTLPExporter:
    """Return an exporter to ``receiver``: over TCP if it listens, otherwise over memory streams."""
    if not receiver.port:
        options.setdefault("transport", receiver.memory_transport())
    return OTLPExporter(receiver.url, **{"location_header": LOCATION_HEADER, **options})


def batcher_to(
    receiver: OTLPReceiver,
    *,
    batch: BatchPolicy = BIG,
    retry: RetryPolicy = AT_ONCE,
    exporter: dict[str, Any] | None = None,
    **options: Any,
) -> Watched:
    """Return a batcher that sends to ``receiver`` and whose statistics are checked at every step."""
    return watched_batcher(exporter_to(receiver, **(exporter or {})), batch, retry=retry, **options)


def ids_of_messages(spans: Iterable[SpanMessage]) -> list[int]:
    return [int.from_bytes(span.span_id, "big") for span in spans]


def stored_ids(receiver: OTLPReceiver) -> list[int]:
    return sorted(ids_of_messages(span for spans in receiver.stored.values() for span in spans))


def refusing(bad: Iterable[int], status: int) -> Callable[[ReceivedRequest], Answer | None]:
    """Return a server that answers ``status`` to every request that contains a span id in ``bad``."""
    poison = frozenset(bad)

    def answer(request: ReceivedRequest) -> Answer | None:
        found: Iterator[int] = (number for number in ids_of_messages(request.spans) if number in poison)
        first = next(found, None)
        if first is None:
            return None
        body = f'{{"error_code": "BAD_SPAN", "message": "span {first} is bad"}}'.encode()
        return Answer(status, headers=[("content-type", "application/json")], body=body)

    return answer
