"""The size of batches: the cost of a request, and so the effect of `max_spans` on the CPU time per span."""

from __future__ import annotations

import trio
from opentelemetry.sdk.trace import ReadableSpan

from bench.harness import Bar, Case, Figures, Plot, Round, Row, Setup, Watch, watch
from bench.ids import check_ids
from bench.limits import LARGE_LIMITS
from bench.spans import frozen_agent_spans
from trio_spanbatch import BatchPolicy, OTLPExporter, SpanBatcher

__all__ = ["CASE"]

# The number of batches that are sent, by their number of spans.
_BATCHES = {1: 400, 5: 400, 50: 100, 512: 40, 4_096: 5}


def _prepared(setup: Setup) -> Round:
    spans = frozen_agent_spans(setup.size(20_480, 4_096))

    def run_round() -> Figures:
        figures = {}
        for max_spans, batches in _BATCHES.items():
            some = spans[: max_spans * setup.size(batches, 1)]
            setup.receiver.forget()
            seen = trio.run(_sent, some, setup.receiver.url, max_spans)
            check_ids(setup.receiver.ids(), len(some))
            figures[_name(max_spans)] = seen.cpu / len(some) * 1e6
        return figures

    return run_round


async def _sent(spans: list[ReadableSpan], url: str, max_spans: int) -> Watch:
    async with SpanBatcher(OTLPExporter(url), batch=BatchPolicy(max_spans=max_spans), limits=LARGE_LIMITS) as batcher:
        with watch() as seen:
            for span in spans:
                batcher.add_span_nowait("default", span)
            await batcher.flush()
    return seen


def _name(max_spans: int) -> str:
    return f"{max_spans:,} span{'s' if max_spans > 1 else ''} per batch"


CASE = Case(
    name="batch_sizes",
    title="The size of batches",
    about=(
        "Spans with 11 attributes and an event, from adding the first to the acknowledgement of the last, in batches "
        "of 1 to 4,096. The comparison is the default of 512."
    ),
    sides={"trio-spanbatch": _prepared},
    rows=tuple(
        Row(f"{_name(max_spans)}: CPU per span", _name(max_spans), "µs", f"trio-spanbatch: {_name(512)}")
        for max_spans in _BATCHES
    ),
    plots=(
        Plot(
            "CPU time per span, by spans per batch",
            "µs",
            tuple(Bar(f"{max_spans:,}", f"trio-spanbatch: {_name(max_spans)}") for max_spans in _BATCHES),
            is_logarithmic=True,
        ),
    ),
)
