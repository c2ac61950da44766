"""The size of batches: what a request costs, and so what `max_spans` does to the CPU time of a span."""

from __future__ import annotations

import trio
from opentelemetry.sdk.trace import ReadableSpan

from bench.harness import Bar, Case, Figures, Plot, Round, Row, Setup, Watch, watch
from bench.ids import check_ids
from bench.limits import ROOM_FOR_ALL
from bench.spans import frozen_agent_spans
from trio_spanbatch import BatchPolicy, OTLPExporter, SpanBatcher

__all__ = ["CASE"]

# How many spans a batch has, and how many of such batches are sent.
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
    async with SpanBatcher(OTLPExporter(url), batch=BatchPolicy(max_spans=max_spans), limits=ROOM_FOR_ALL) as batcher:
        with watch() as seen:
            for span in spans:
                batcher.add_span_nowait("default", span)
            await batcher.flush()
    return seen


def _name(max_spans: int) -> str:
    return f"{max_spans:,} span{'s' if max_spans > 1 else ''} a batch"


CASE = Case(
    name="batch_sizes",
    title="The size of batches",
    about=(
        "Spans with 11 attributes and an event, from adding the first to the acknowledgement of the last, in batches "
        "of 1 to 4,096. The ratio is to the default of 512."
    ),
    sides={"trio-spanbatch": _prepared},
    rows=tuple(
        Row(f"{_name(max_spans)}: CPU a span", _name(max_spans), "µs", f"trio-spanbatch: {_name(512)}")
        for max_spans in _BATCHES
    ),
    plots=(
        Plot(
            "CPU time a span, by spans a batch",
            "µs",
            tuple(Bar(_name(max_spans), f"trio-spanbatch: {_name(max_spans)}") for max_spans in _BATCHES),
            is_logarithmic=True,
        ),
    ),
)
