"""Batches and exporters for tests of the exporter."""

from __future__ import annotations

import itertools
from typing import Any

import trio
from opentelemetry.proto.trace.v1.trace_pb2 import Span as SpanMessage

from tests.support.processes import DEADLINE
from trio_spanbatch import EncodedSpan, OTLPExporter, SpanBatch
from trio_spanbatch.testing import OTLPReceiver

__all__ = [
    "ENDPOINT",
    "SECRET",
    "batch_of",
    "encoded_span",
    "export_once",
    "no_connections_left",
    "over_memory",
    "stored",
]

ENDPOINT = "http://localhost:4318/v1/traces"
SECRET = "dapi-0123456789abcdef"


def encoded_span(number: int = 1, name: str = "step") -> EncodedSpan:
    message = SpanMessage(trace_id=number.to_bytes(16, "big"), span_id=number.to_bytes(8, "big"), name=name)
    return EncodedSpan(message.SerializeToString())


def batch_of(count: int = 1, location: str = "tenant-1", name: str = "step") -> SpanBatch:
    return SpanBatch(location, tuple(encoded_span(number, name) for number in range(1, count + 1)))


async def no_connections_left(receiver: OTLPReceiver) -> None:
    """Return once the receiver has noticed that all its clients have disconnected."""
    with trio.fail_after(DEADLINE):
        for _ in itertools.count():
            await trio.lowlevel.checkpoint()
            if not receiver.open_connections:
                return


async def export_once(receiver: OTLPReceiver, batch: SpanBatch | None = None, **options: Any) -> Any:
    exporter = OTLPExporter(receiver.url, **options)
    try:
        return await exporter.export(batch or batch_of())
    finally:
        await exporter.aclose()


def stored(receiver: OTLPReceiver) -> list[SpanMessage]:
    return [span for spans in receiver.stored.values() for span in spans]


def over_memory(receiver: OTLPReceiver, **options: Any) -> OTLPExporter:
    return OTLPExporter(receiver.url, transport=receiver.memory_transport(), **options)
