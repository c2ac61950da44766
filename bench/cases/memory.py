"""Memory: a million pending spans, compared with their bytes on the wire."""

from __future__ import annotations

import resource
import sys
from itertools import cycle
from pathlib import Path

import trio

from bench.harness import Case, Figures, Round, Row, Setup
from bench.ids import check_ids, ids_of_batch
from trio_spanbatch import (
    Delivered,
    InstrumentationScope,
    Limits,
    Resource,
    Span,
    SpanBatch,
    SpanBatcher,
    SpanContext,
    SpanEvent,
    SpanKind,
)

__all__ = ["CASE"]

_LOCATIONS = [f"main.agents.spans_{number}" for number in range(50)]
_HUGE = 1 << 40
_LIMITS = Limits(max_queued_spans=_HUGE, max_pending_bytes=_HUGE, max_pending_bytes_per_location=_HUGE)

_STARTED = 1_760_000_000_000_000_000
_RESOURCE = Resource({"service.name": "support-agent", "service.version": "1.4.2", "host.name": "worker-7"})
_SCOPE = InstrumentationScope("agent.framework", "2.1.0")


class _Holds:
    """A `SpanExporter` that accepts no batch until it is told to. It keeps ids, and counts bytes."""

    def __init__(self) -> None:
        self.told = trio.Event()
        self.ids: list[int] = []
        self.bytes = 0

    async def export(self, batch: SpanBatch) -> Delivered:
        await self.told.wait()
        self.ids += ids_of_batch(batch)
        self.bytes += batch.size
        return Delivered()

    async def aclose(self) -> None:
        await trio.lowlevel.checkpoint()


def _prepared(setup: Setup) -> Round:
    def run_round() -> Figures:
        return trio.run(_held, setup.size(1_000_000, 20_000))

    return run_round


async def _held(count: int) -> Figures:
    exporter = _Holds()
    async with SpanBatcher(exporter, limits=_LIMITS) as batcher:
        before = _process_bytes()
        for number, location in zip(range(1, count + 1), cycle(_LOCATIONS), strict=False):
            batcher.add_span_nowait(location, _span(number))
            if number % 512 == 0:
                # The tasks of the locations seal their first batches and export them.
                await trio.lowlevel.checkpoint()
        held = _process_bytes() - before
        exporter.told.set()
        await batcher.flush()
    check_ids(exporter.ids, count)
    return {
        "held": held / 2**20,
        "limit": (1.25 * exporter.bytes + 120 * count) / 2**20,
        "wire": exporter.bytes / count,
        "beyond": (held - exporter.bytes) / count,
    }


def _span(number: int) -> Span:
    """Return a span of a model call, about 500 bytes. Nothing refers to it once it has been added."""
    started = _STARTED + number * 1_000_000
    return Span(
        "chat gpt-4o",
        SpanContext((0x5EED << 112) + number // 20 + 1, number),
        start_time=started,
        end_time=started + 900_000_000,
        kind=SpanKind.CLIENT,
        attributes={
            "gen_ai.operation.name": "chat",
            "gen_ai.provider.name": "openai",
            "gen_ai.request.model": "gpt-4o",
            "gen_ai.usage.input_tokens": 800 + number % 500,
            "gen_ai.usage.output_tokens": 60 + number % 90,
            "gen_ai.response.id": f"chatcmpl-{number:016x}",
            "gen_ai.response.model": "gpt-4o-2026-08-06",
            "server.address": "api.openai.com",
            "session.id": f"{number // 20:032x}",
            "user.id": f"u-{number % 1000:06}",
        },
        events=(SpanEvent("gen_ai.choice", started + 800_000_000, {"gen_ai.response.finish_reason": "stop"}),),
        resource=_RESOURCE,
        instrumentation_scope=_SCOPE,
    )


def _process_bytes() -> int:
    statm = Path("/proc/self/statm")
    if statm.exists():
        return int(statm.read_text().split()[1]) * resource.getpagesize()
    # The peak, which is the current size until all spans have been added.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


CASE = Case(
    name="memory",
    title="Memory",
    about=(
        "1,000,000 spans of about 500 bytes, distributed in turn over 50 locations, with an exporter that holds its "
        "batches: how much the process grows while they are added. Only the batcher keeps them. Then all are delivered."
    ),
    sides={"trio-spanbatch": _prepared},
    rows=(
        Row("1,000,000 pending spans: memory", "held", "MiB", "trio-spanbatch: limit", goal=1.0),
        Row("1,000,000 pending spans: wire bytes per span", "wire", "bytes"),
        Row("1,000,000 pending spans: memory per span, less its wire bytes", "beyond", "bytes"),
    ),
    fresh=True,
)
