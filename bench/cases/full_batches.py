"""Full batches: a slow destination, small batches, many locations, and a program that adds as fast as it can."""

from __future__ import annotations

import logging
import time
from itertools import cycle
from typing import Any, cast

import trio
from mlflow.environment_variables import MLFLOW_ASYNC_TRACE_LOGGING_MAX_SPAN_BATCH_SIZE
from mlflow.tracing.export.async_export_queue import AsyncTraceExportQueue
from mlflow.tracing.export.span_batcher import SpanBatcher as MLflowSpanBatcher
from opentelemetry.sdk.trace import ReadableSpan

from bench.harness import Bar, Case, Figures, Limit, Plot, Round, Row, Setup, Watch, watch
from bench.ids import SpansLost, check_ids
from bench.in_memory import KeepsIds, add_all
from bench.spans import agent_spans
from trio_spanbatch import BatchPolicy, Limits, SpanBatcher

__all__ = ["CASE"]

_BATCH = 5
_SECONDS_PER_REQUEST = 0.05
_LOCATIONS = [f"main.agents.spans_{number}" for number in range(50)]

# Holds about 1,000 spans, so that the program has to wait with most of its spans.
_SMALL_BUDGET = Limits(max_pending_bytes=530_000)


def _prepared(setup: Setup, limits: Limits) -> Round:
    spans = agent_spans(setup.size(10_000, 300))

    def run_round() -> Figures:
        exporter = KeepsIds(_SECONDS_PER_REQUEST)
        seen = trio.run(_sent, exporter, spans, limits)
        check_ids(exporter.ids, len(spans))
        return _figures(seen, len(spans), len(exporter.ids), exporter.requests)

    return run_round


async def _sent(exporter: KeepsIds, spans: list[ReadableSpan], limits: Limits) -> Watch:
    async with SpanBatcher(exporter, batch=BatchPolicy(max_spans=_BATCH), limits=limits) as batcher:
        with watch() as seen:
            await add_all(batcher, zip(cycle(_LOCATIONS), spans, strict=False))
            await batcher.flush()
    return seen


def _prepared_mlflow(setup: Setup) -> Round:
    spans = agent_spans(setup.size(10_000, 300))
    MLFLOW_ASYNC_TRACE_LOGGING_MAX_SPAN_BATCH_SIZE.set(_BATCH)
    # It warns when its queue is full. The table shows how many spans are lost.
    logging.getLogger("mlflow.tracing.export.async_export_queue").setLevel(logging.ERROR)

    def run_round() -> Figures:
        requests: list[list[int]] = []

        def handle(location: str, batch: list[Any]) -> None:
            time.sleep(_SECONDS_PER_REQUEST)  # in a worker's thread, as a request would
            requests.append([span.context.span_id for span in batch])

        queue = AsyncTraceExportQueue()
        # It declares a function of one argument and MLflow's own spans, but passes two, and never examines the spans.
        batcher = MLflowSpanBatcher(queue, cast(Any, handle))
        with watch() as seen:
            for location, span in zip(cycle(_LOCATIONS), spans, strict=False):
                batcher.add_span(location, cast(Any, span))
            batcher.shutdown()
            queue.flush(terminate=True)
        ids = [span_id for request in requests for span_id in request]
        if len(set(ids)) < len(ids) or not set(ids) <= set(range(1, len(spans) + 1)):
            raise SpansLost("MLflow sent a span twice, or a span that was never added")
        return _figures(seen, len(spans), len(ids), len(requests))

    return run_round


def _figures(seen: Watch, added: int, delivered: int, requests: int) -> Figures:
    return {
        "lost": (added - delivered) / added * 100,
        "spans per request": delivered / requests,
        "wall": seen.wall,
        "wall per span": seen.wall / delivered * 1e6,
    }


_SIDE, _TIGHT_SIDE, _MLFLOW = "trio-spanbatch", "trio-spanbatch, small budget", "MLflow"

CASE = Case(
    name="full_batches",
    title="Full batches",
    about=(
        "10,000 spans, distributed in turn over 50 locations, in batches of 5, with 50 ms per request. The program "
        "adds in a tight loop. Here it waits for space, once with default limits and once with a byte budget of about "
        "1,000 spans. The comparison is MLflow's `SpanBatcher` with its queue of 1,000 batches and 10 workers: adding "
        "never waits, and spans that do not fit into the queue are dropped."
    ),
    sides={
        _SIDE: lambda setup: _prepared(setup, Limits()),
        _TIGHT_SIDE: lambda setup: _prepared(setup, _SMALL_BUDGET),
        _MLFLOW: _prepared_mlflow,
    },
    rows=(
        *(
            row
            for title, side in (("Full batches", _SIDE), ("Full batches, small budget", _TIGHT_SIDE))
            for row in (
                Row(f"{title}: lost spans", "lost", "%", side=side),
                Row(f"{title}: spans per request", "spans per request", "", Limit(4), 1.0, at_least=True, side=side),
                Row(f"{title}: wall time", "wall", "s", _MLFLOW, side=side),
                Row(f"{title}: wall time per delivered span", "wall per span", "µs", _MLFLOW, side=side),
            )
        ),
        Row("Full batches, MLflow: lost spans", "lost", "%", side=_MLFLOW),
        Row("Full batches, MLflow: spans per request", "spans per request", "", side=_MLFLOW),
    ),
    plots=tuple(
        Plot(
            title,
            unit,
            tuple(Bar(side, f"{side}: {figure}", is_ours=side != _MLFLOW) for side in (_SIDE, _TIGHT_SIDE, _MLFLOW)),
        )
        for title, figure, unit in (
            ("Lost spans", "lost", "%"),
            ("Spans per request, at most 5", "spans per request", ""),
        )
    ),
)
