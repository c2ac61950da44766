"""Store and count the spans that the development receiver gets."""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Callable

import attrs
import trio
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from ..testing import Answer, Outcome, ReceivedRequest, partial_success
from .store import SpanStore, StoredCounts, has_ids

_BAD_IDS = "a trace id must have 16 bytes, a span id 8, and neither may be all zero"


@attrs.define
class CollectorCounts:
    """Counts since the start.

    Attributes:
        requests: All requests that were answered.
        refused: Requests that were answered with an error.
        spans: Spans that were stored.
        repeated: Spans that had been stored before.
        rejected: Spans that were not stored because their ids are invalid.
        locations: Spans that were stored, by location.
    """

    requests: int = 0
    refused: int = 0
    spans: int = 0
    repeated: int = 0
    rejected: int = 0
    locations: Counter[str] = attrs.Factory(Counter)

    def __str__(self) -> str:
        parts = [
            _counted(self.spans, "span"),
            _counted(len(self.locations), "location"),
            _counted(self.requests, "request"),
            *(f"{count:,} {name}" for name in ("repeated", "rejected", "refused") if (count := getattr(self, name))),
        ]
        return ", ".join(parts)


def _counted(count: int, noun: str) -> str:
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


class Collector:
    """Answers a receiver's requests. Spans are committed to the store before their request is acknowledged.

    Args:
        store: The store; if None, spans are only counted.
        warn: Called with a message if the store fails.

    Attributes:
        store: The store.
    """

    def __init__(self, store: SpanStore | None, warn: Callable[[str], object]) -> None:
        self.counts: CollectorCounts = CollectorCounts()
        self.store: SpanStore | None = store
        self._warn = warn
        self._changed = trio.Event()

    def answer(self, request: ReceivedRequest) -> Outcome | None:
        """Answer a request. Used as `OTLPReceiver`'s ``answers``."""
        if request.message is None or request.default_answer.status != 200:
            return None
        rejected = [span for span in request.spans if not has_ids(span)]
        try:
            self._store_spans(request.location, request.message, len(request.spans) - len(rejected))
        except sqlite3.Error as error:
            self._warn(f"cannot store spans: {error}; answered 503, so that clients retry")
            return Answer(503, headers=[("retry-after", "1")], body=b"cannot write to the store")
        self.counts.rejected += len(rejected)
        return partial_success(len(rejected), _BAD_IDS, rejected_spans=rejected) if rejected else None

    def count(self, _request: ReceivedRequest, status: int | None) -> None:
        """Count a request. Used as `OTLPReceiver`'s ``on_request``."""
        self.counts.requests += 1
        if status is None or status >= 300:
            self.counts.refused += 1
        self._changed.set()

    async def wait_for_change(self) -> None:
        """Wait until another request has been counted since the last call."""
        await self._changed.wait()
        self._changed = trio.Event()

    def _store_spans(self, location: str, message: ExportTraceServiceRequest, good: int) -> None:
        stored = StoredCounts(good, 0) if self.store is None else self.store.add(location, message)
        self.counts.spans += stored.stored
        self.counts.repeated += stored.repeated
        self.counts.locations[location] += stored.stored
