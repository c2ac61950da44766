"""A thread: `background_batcher` compared with the same processor in a trio program, and with `BatchSpanProcessor`."""

from __future__ import annotations

from collections.abc import Callable

import trio
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import SpanProcessor
from opentelemetry.sdk.trace.export import BatchSpanProcessor

from bench.harness import Case, Figures, Round, Row, Setup, Watch, watch
from bench.ids import check_ids
from bench.limits import LARGE_LIMITS
from bench.spans import started_agent_spans
from trio_spanbatch import BatchPolicy, OTLPExporter, SpanBatcher
from trio_spanbatch.opentelemetry import BatcherSpanProcessor, background_batcher

__all__ = ["CASE"]

_POLICY = BatchPolicy(max_spans=512)


def _prepared(setup: Setup, watched: Callable[[str, int], Watch]) -> Round:
    count = setup.size(20_480, 1_024)

    def run_round() -> Figures:
        setup.receiver.forget()
        seen = watched(setup.receiver.url, count)
        check_ids(setup.receiver.ids(), count)
        return {"cpu": seen.cpu / count * 1e6, "wall": seen.wall / count * 1e6}

    return run_round


def _in_a_thread(url: str, count: int) -> Watch:
    with background_batcher(OTLPExporter(url), batch=_POLICY, limits=LARGE_LIMITS) as processor:
        return _end_and_flush(processor, count)


def _opentelemetry(url: str, count: int) -> Watch:
    # The queue holds all spans, as it drops spans that do not fit.
    processor = BatchSpanProcessor(OTLPSpanExporter(url), max_queue_size=count, max_export_batch_size=512)
    seen = _end_and_flush(processor, count)
    processor.shutdown()  # type: ignore[no-untyped-call]  # it has no annotations
    return seen


def _end_and_flush(processor: SpanProcessor, count: int) -> Watch:
    spans = started_agent_spans(count, processor)
    with watch() as seen:
        for span in spans:
            span.end()
        processor.force_flush()
    return seen


def _in_trio(url: str, count: int) -> Watch:
    async def main() -> Watch:
        async with SpanBatcher(OTLPExporter(url), batch=_POLICY, limits=LARGE_LIMITS) as batcher:
            spans = started_agent_spans(count, BatcherSpanProcessor(batcher))
            with watch() as seen:
                for span in spans:
                    span.end()
                await batcher.flush()
        return seen

    return trio.run(main)


CASE = Case(
    name="background",
    title="A thread",
    about="20,480 spans of OpenTelemetry's SDK with 11 attributes and an event, from the end of the first one to the "
    "last acknowledgement: one location, batches of 512, no compression. `background_batcher` in a program without an "
    "event loop is compared with `BatchSpanProcessor`, and with `BatcherSpanProcessor` in a trio program.",
    sides={
        "trio-spanbatch": lambda setup: _prepared(setup, _in_a_thread),
        "in trio": lambda setup: _prepared(setup, _in_trio),
        "OpenTelemetry": lambda setup: _prepared(setup, _opentelemetry),
    },
    rows=(
        Row("A thread: CPU per span", "cpu", "µs", "OpenTelemetry"),
        Row("A thread: CPU per span, and in a trio program", "cpu", "µs", "in trio"),
        Row("A thread: wall time per span", "wall", "µs", "OpenTelemetry"),
    ),
)
