"""Spools for tests of the command line, with spans that a server can read."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from opentelemetry.proto.trace.v1.trace_pb2 import Span as SpanMessage

from tests.spool.support import DiskPlace
from trio_spanbatch import EncodedSpan
from trio_spanbatch._spans.batch import SpanHeaders, cost_of
from trio_spanbatch._spool.store import NewRecord

RESOURCE = b"\x0a\x16\x0a\x14\x0a\x04name\x12\x0c\x0a\x0athe agents"


def span(number: int, name: str = "step") -> EncodedSpan:
    message = SpanMessage(name=name, trace_id=b"t" * 16, span_id=number.to_bytes(8, "big"), end_time_unix_nano=1)
    return EncodedSpan(message.SerializeToString(), SpanHeaders(RESOURCE, b""))


def record(location: str, *spans: EncodedSpan, age: float = 0.0) -> NewRecord:
    return NewRecord(location, spans, cost_of(spans), time.time() - age)


async def leave(
    directory: Path, endpoint: str, records: Sequence[NewRecord], dead: Sequence[tuple[NewRecord, str]] = ()
) -> DiskPlace:
    """Leave records and dead letters in a spool, as a process that is killed does."""
    place = DiskPlace(directory)
    store = await place.opened(endpoint)
    for new in records:
        await store.commit([new])
    for letters, reason in dead:
        await store.bury(letters.location, letters.spans, reason)
    place.end(store)
    return place


def tenants(count: int, spans: int = 3) -> list[NewRecord]:
    """Return records of three locations in turn, with spans numbered from 1 on."""
    return [
        record(f"tenant-{number % 3}", *(span(number * spans + each + 1) for each in range(spans)))
        for number in range(count)
    ]
