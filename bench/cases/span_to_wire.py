"""Span to wire: from adding the first span to the acknowledgement of the last. One location, batches of 512."""

from __future__ import annotations

import trio
from opentelemetry.exporter.otlp.proto.http import Compression
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import BatchSpanProcessor

from bench.harness import Bar, Case, Figures, Plot, Round, Row, Setup, Watch, watch
from bench.ids import check_ids
from bench.limits import LARGE_LIMITS
from bench.spans import agent_spans
from trio_spanbatch import BatchPolicy, OTLPExporter, SpanBatcher

__all__ = ["CASE", "case", "prepared", "prepared_opentelemetry"]


def prepared(setup: Setup, compression: str | None, max_spans: int, count: int) -> Round:
    """Return the round of this library, with ``count`` spans in batches of ``max_spans``."""
    spans = agent_spans(count)

    def run_round() -> Figures:
        setup.receiver.forget()
        seen = trio.run(_sent, spans, setup.receiver.url, compression, max_spans)
        return _figures(setup, seen, spans)

    return run_round


async def _sent(spans: list[ReadableSpan], url: str, compression: str | None, max_spans: int) -> Watch:
    exporter = OTLPExporter(url, compression=compression)
    async with SpanBatcher(exporter, batch=BatchPolicy(max_spans=max_spans), limits=LARGE_LIMITS) as batcher:
        with watch() as seen:
            for span in spans:
                batcher.add_span_nowait("default", span)
            await batcher.flush()
    return seen


def prepared_opentelemetry(setup: Setup, compression: Compression, max_spans: int, count: int) -> Round:
    """Return the round of OpenTelemetry, with ``count`` spans in batches of ``max_spans``."""
    spans = agent_spans(count)

    def run_round() -> Figures:
        setup.receiver.forget()
        exporter = OTLPSpanExporter(setup.receiver.url, compression=compression)
        # The queue holds all spans, as it drops spans that do not fit.
        processor = BatchSpanProcessor(exporter, max_queue_size=len(spans), max_export_batch_size=max_spans)
        with watch() as seen:
            for span in spans:
                processor.on_end(span)
            processor.force_flush()
        processor.shutdown()  # type: ignore[no-untyped-call]  # it has no annotations
        return _figures(setup, seen, spans)

    return run_round


def _figures(setup: Setup, seen: Watch, spans: list[ReadableSpan]) -> Figures:
    check_ids(setup.receiver.ids(), len(spans))
    return {"cpu": seen.cpu / len(spans) * 1e6, "wall": seen.wall / len(spans) * 1e6}


def case(name: str, title: str, about: str, compression: str | None, theirs: Compression) -> Case:
    """Return the case with or without compression."""
    return Case(
        name=name,
        title=title,
        about=about,
        sides={
            "trio-spanbatch": lambda setup: prepared(setup, compression, 512, setup.size(20_480, 1_024)),
            "OpenTelemetry": lambda setup: prepared_opentelemetry(setup, theirs, 512, setup.size(20_480, 1_024)),
        },
        rows=(
            Row(f"{title}: CPU per span", "cpu", "µs", "OpenTelemetry", goal=1 / 3),
            Row(f"{title}: wall time per span", "wall", "µs", "OpenTelemetry"),
        ),
        plots=(
            Plot(
                f"{title}: CPU time per span",
                "µs",
                (
                    Bar("trio-spanbatch", "trio-spanbatch: cpu"),
                    Bar("OpenTelemetry", "OpenTelemetry: cpu", is_ours=False),
                ),
            ),
        ),
    )


CASE = case(
    "span_to_wire",
    "Span to wire",
    "20,480 spans with 11 attributes and an event, from `add_span_nowait` to the last acknowledgement: one location, "
    "batches of 512, no compression. The comparison is `BatchSpanProcessor` with its OTLP/HTTP exporter, from `on_end` "
    "to the end of `force_flush`, with a queue that holds all spans, as it drops spans that do not fit.",
    None,
    Compression.NoCompression,
)
