"""Throughput: four locations at once, as fast as possible, compared with the encoder alone for the same spans."""

from __future__ import annotations

from itertools import cycle

import trio
from opentelemetry.sdk.trace import ReadableSpan

from bench.harness import Case, Figures, Round, Row, Setup, Watch, watch
from bench.ids import check_ids
from bench.in_memory import add_all
from bench.spans import frozen_agent_spans
from trio_spanbatch import OTLPExporter, SpanBatch, SpanBatcher
from trio_spanbatch._spans.encoder import SpanEncoder

__all__ = ["CASE"]

_OURS = "trio-spanbatch"
_BATCH = 512
_LOCATIONS = [f"main.agents.spans_{number}" for number in range(4)]


def _prepared(setup: Setup) -> Round:
    spans = frozen_agent_spans(setup.size(40_960, 2_048))

    def run_round() -> Figures:
        encoding, requesting = _encoded(spans), _requested(spans)
        setup.receiver.forget()
        sending = trio.run(_sent, spans, setup.receiver.url)
        check_ids(setup.receiver.ids(), len(spans))
        return {
            "rate": len(spans) / sending.wall,
            "encoder's, into requests": len(spans) / requesting.wall,
            "encoder's": len(spans) / encoding.wall,
            "rate by CPU": len(spans) / sending.cpu,
            "encoder's, into requests, by CPU": len(spans) / requesting.cpu,
            "encoder's, by CPU": len(spans) / encoding.cpu,
        }

    return run_round


def _encoded(spans: list[ReadableSpan]) -> Watch:
    """Encode spans and discard the bytes."""
    encoder = SpanEncoder()
    with watch() as seen:
        for span in spans:
            encoder.encode(span)
    return seen


def _requested(spans: list[ReadableSpan]) -> Watch:
    """Encode into requests, as in the case for encoding: one batch after the other."""
    encoder = SpanEncoder()
    with watch() as seen:
        for at in range(0, len(spans), _BATCH):
            SpanBatch("default", [encoder.encode(span) for span in spans[at : at + _BATCH]], size=0).to_request()
    return seen


async def _sent(spans: list[ReadableSpan], url: str) -> Watch:
    async with SpanBatcher(OTLPExporter(url, location_header="x-location")) as batcher:
        with watch() as seen:
            await add_all(batcher, zip(cycle(_LOCATIONS), spans, strict=False))
            await batcher.flush()
    return seen


CASE = Case(
    name="throughput",
    title="Throughput",
    about=(
        "40,960 spans, distributed in turn over four locations, with default settings: batches of 512, no compression, "
        "the location in a header. The program adds as fast as it can and waits if there is no space. The comparison "
        "is the encoder alone with the same spans, in the same process and round: into requests of 512, as in the case "
        "for encoding, and span by span, with the bytes discarded."
    ),
    sides={_OURS: _prepared},
    rows=tuple(
        Row(
            f"Throughput{what}: spans per second{of_cpu}",
            f"rate{by_cpu}",
            "spans/s",
            f"{_OURS}: {beside}",
            goal,
            at_least=True,
        )
        for what, beside, goal, of_cpu, by_cpu in (
            ("", "encoder's, into requests", 0.7, "", ""),
            ("", "encoder's, into requests, by CPU", None, " of CPU time", " by CPU"),
            (", compared with bare encoding", "encoder's", None, "", ""),
            (", compared with bare encoding", "encoder's, by CPU", None, " of CPU time", " by CPU"),
        )
    ),
)
