"""Throughput: four locations at once, as fast as it goes, beside what the encoder alone does with the same spans."""

from __future__ import annotations

import gc
from itertools import cycle

import trio
from opentelemetry.sdk.trace import ReadableSpan

from bench.harness import Case, Figures, Round, Row, Setup, Watch, watch
from bench.ids import check_ids
from bench.in_memory import add_all
from bench.spans import agent_spans
from trio_spanbatch import OTLPExporter, SpanBatcher
from trio_spanbatch.otlp.encoding import SpanEncoder

__all__ = ["CASE"]

_LOCATIONS = [f"main.agents.spans_{number}" for number in range(4)]


def _prepared(setup: Setup) -> Round:
    spans = agent_spans(setup.size(40_960, 2_048))
    # A program does not keep tens of thousands of spans that ended: the collector is not to look through them.
    gc.freeze()

    def run_round() -> Figures:
        encoding = _encoded(spans)
        setup.receiver.forget()
        sending = trio.run(_sent, spans, setup.receiver.url)
        check_ids(setup.receiver.ids(), len(spans))
        return {
            "rate": len(spans) / sending.wall,
            "encoder's rate": len(spans) / encoding.wall,
            "rate by CPU": len(spans) / sending.cpu,
            "encoder's rate by CPU": len(spans) / encoding.cpu,
        }

    return run_round


def _encoded(spans: list[ReadableSpan]) -> Watch:
    encoder = SpanEncoder()
    with watch() as seen:
        for span in spans:
            encoder.encode(span)
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
        "40,960 spans in turns to four locations, with default settings: batches of 512, no compression, the location "
        "in a header. The program adds as fast as it can and waits where there is no room. Beside it the same spans "
        "through the encoder alone, in the same process and round."
    ),
    sides={"trio-spanbatch": _prepared},
    rows=(
        Row(
            "Throughput: spans a second",
            "rate",
            "spans/s",
            "trio-spanbatch: encoder's rate",
            goal=0.7,
            at_least=True,
        ),
        Row(
            "Throughput: spans a second of CPU time", "rate by CPU", "spans/s", "trio-spanbatch: encoder's rate by CPU"
        ),
    ),
)
