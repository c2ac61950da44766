"""Scale: the cost of many locations and of many pending spans, in CPU time, memory, and the longest step of a task."""

from __future__ import annotations

import gc
import math
import time
import tracemalloc
from collections import deque
from collections.abc import Callable
from itertools import cycle

import trio
import trio.testing
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans

from bench.cases.locations import LARGE_BUDGET, sent
from bench.harness import Case, Figures, Limit, Round, Row, Setup, watch
from bench.ids import check_ids
from bench.in_memory import KeepsIds
from bench.spans import agent_spans, frozen_agent_spans
from trio_spanbatch import BatchPolicy, EncodedSpan, ExportResult, Limits, SpanBatch, SpanBatcher
from trio_spanbatch._spans.encoder import SpanEncoder

__all__ = ["CASE"]

_SPANS_PER_LOCATION = 20
_BATCH = 512
_HUGE = 1 << 40
_NO_LIMITS = Limits(
    max_queued_spans=_HUGE, max_pending_bytes=_HUGE, max_pending_bytes_per_location=_HUGE, max_locations=1 << 20
)


def _locations(count: int) -> list[str]:
    return [f"main.agents.spans_{number}" for number in range(count)]


# -- the CPU time of many locations, relative to that of the SDK's encoder -----------------------------------------


def _prepared_share(setup: Setup) -> Round:
    many = setup.size(10_000, 100)
    spans = frozen_agent_spans(many * _SPANS_PER_LOCATION)

    def cost(count: int, limits: Limits) -> float:
        return trio.run(sent, spans, count, limits).cpu

    def run_round() -> Figures:
        with watch() as seen:
            for at in range(0, len(spans), _BATCH):
                encode_spans(spans[at : at + _BATCH]).SerializeToString()
        return {
            "share": (cost(many, LARGE_BUDGET) - cost(1, LARGE_BUDGET)) / seen.cpu,
            "share, default budget": (cost(many, Limits()) - cost(1, Limits())) / seen.cpu,
        }

    return run_round


# -- the memory of a live location ---------------------------------------------------------------------------------


def _prepared_objects(setup: Setup) -> Round:
    spans = _encoded(setup.size(10_000, 100))

    def run_round() -> Figures:
        return trio.run(_live, spans)

    return run_round


async def _live(spans: list[EncodedSpan]) -> Figures:
    """Measure the memory of a location with a pending span, excluding the span, which is created before."""
    exporter = KeepsIds()
    locations = _locations(len(spans))
    async with SpanBatcher(exporter, limits=_NO_LIMITS, batch=BatchPolicy(max_delay=1000)) as batcher:
        gc.collect()
        objects = len(gc.get_objects())
        tracemalloc.start()
        for location, span in zip(locations, spans, strict=True):
            batcher.add_span_nowait(location, span)
        await trio.testing.wait_all_tasks_blocked()
        gc.collect()
        held = tracemalloc.get_traced_memory()[0]
        tracemalloc.stop()
        objects = len(gc.get_objects()) - objects
        await batcher.flush()
    check_ids(exporter.ids, len(spans))
    return {"objects": objects / len(spans), "bytes": held / len(spans)}


# -- the longest step ----------------------------------------------------------------------------------------------


class _Steps:
    """An instrument that measures the longest step of any task, in milliseconds of CPU time."""

    def __init__(self) -> None:
        self.longest = 0.0
        self._began = time.process_time()

    def before_task_step(self, _: trio.lowlevel.Task) -> None:
        self._began = time.process_time()

    def after_task_step(self, _: trio.lowlevel.Task) -> None:
        self.longest = max(self.longest, (time.process_time() - self._began) * 1e3)

    def take(self) -> float:
        longest, self.longest = self.longest, 0.0
        self._began = time.process_time()
        return longest


class _Instrument(_Steps, trio.abc.Instrument):
    pass


def _prepared_steps(setup: Setup) -> Round:
    spans = _encoded(setup.size(10_000, 100))

    def run_round() -> Figures:
        gc.collect()
        gc.disable()
        try:
            figures = trio.run(_stepped, spans, True)
            due, handed_back = trio.run(_stepped, spans, False)["due"], trio.run(_handed_back, spans)
            return {**figures, "all due at once": due, "leaving at the deadline": handed_back}
        finally:
            gc.enable()

    return run_round


async def _stepped(spans: list[EncodedSpan], is_flushed: bool) -> Figures:
    exporter, steps = KeepsIds(), _Instrument()
    locations = _locations(len(spans))
    figures: Figures = {}
    batcher = SpanBatcher(exporter, limits=_NO_LIMITS, batch=BatchPolicy(max_delay=1000 if is_flushed else 2))
    await batcher.__aenter__()
    try:
        trio.lowlevel.add_instrument(steps)
        if is_flushed:
            await _add(batcher, locations, spans[: len(locations)])
            figures["adding"] = steps.take()
            await batcher.flush()
            figures["flush"] = steps.take()
            began = time.process_time()
            statistics = batcher.statistics()
            figures["statistics"] = (time.process_time() - began) * 1e3
            if statistics.delivered != len(spans):
                raise AssertionError("a flush returned too early")
            steps.take()
        else:
            await _add(batcher, locations, spans)
            steps.take()
            # By then, all of them are due.
            await trio.sleep(4)
            figures["due"] = steps.longest
    finally:
        if is_flushed:
            steps.take()
        await batcher.__aexit__(None, None, None)  # noqa: ASYNC102  # bounded by its timeout
        figures["leaving"] = steps.take()
        trio.lowlevel.remove_instrument(steps)
    check_ids(exporter.ids, len(spans))
    return figures


class _Hangs:
    """An exporter whose server does not answer."""

    async def export(self, batch: SpanBatch) -> ExportResult:
        await trio.sleep_forever()

    async def aclose(self) -> None:
        await trio.lowlevel.checkpoint()


async def _handed_back(spans: list[EncodedSpan]) -> float:
    """Leave a batcher with pending spans in all locations, and return its longest step after that."""
    steps = _Instrument()
    async with SpanBatcher(
        _Hangs(),
        limits=_NO_LIMITS,
        batch=BatchPolicy(max_delay=1000),
        shutdown_timeout=0.5,
        on_loss=lambda loss: None,
    ) as batcher:
        trio.lowlevel.add_instrument(steps)
        await _add(batcher, _locations(len(spans)), spans)
        steps.take()
    longest = steps.take()
    trio.lowlevel.remove_instrument(steps)
    if batcher.statistics().undelivered != len(spans):
        raise AssertionError("spans were not handed back")
    return longest


async def _add(batcher: SpanBatcher, locations: list[str], spans: list[EncodedSpan]) -> None:
    for number, (location, span) in enumerate(zip(locations, spans, strict=True)):
        batcher.add_span_nowait(location, span)
        if number % 20 == 0:
            await trio.lowlevel.checkpoint()


# -- a full garbage collection -------------------------------------------------------------------------------------


def _prepared_collector(setup: Setup) -> Round:
    count = setup.size(1_000_000, 100_000)

    def run_round() -> Figures:
        return trio.run(_collected, count)

    return run_round


async def _collected(count: int) -> Figures:
    gc.collect()
    gc.freeze()
    encoder_span = _encoded(1)[0]
    payload, headers = encoder_span.payload, encoder_span.headers
    objects = deque(EncodedSpan(b"%s" % payload, headers) for _ in range(count))
    before = _full_collection()
    del objects
    exporter = KeepsIds()
    figures = {"as objects": before}
    async with SpanBatcher(exporter, limits=_NO_LIMITS, batch=BatchPolicy(max_delay=math.inf)) as batcher:
        for number, location in zip(range(count), cycle(_locations(50)), strict=False):
            batcher.add_span_nowait(location, EncodedSpan(b"%s" % payload, headers))
            if number % 20_000 == 0:
                # The first batches are exported, and with them the slots of all locations are taken.
                gc.collect(0)
        figures["pending"] = _full_collection()
    if len(exporter.ids) != count:
        raise AssertionError(f"{len(exporter.ids)} of {count} spans arrived")
    gc.unfreeze()
    return figures


def _full_collection() -> float:
    """Return how long a full collection takes, in milliseconds."""
    gc.collect()
    times = []
    for _ in range(3):
        with watch() as seen:
            gc.collect()
        times.append(seen.cpu * 1e3)
    return min(times)


def _encoded(count: int) -> list[EncodedSpan]:
    encoder = SpanEncoder()
    return [encoder.encode(span) for span in agent_spans(count)]


_SHARE, _LIVE, _STEP, _COLLECTOR = "share", "live location", "longest step", "collector"
_KINDS: dict[str, Callable[[Setup], Round]] = {
    _SHARE: _prepared_share,
    _LIVE: _prepared_objects,
    _STEP: _prepared_steps,
    _COLLECTOR: _prepared_collector,
}

CASE = Case(
    name="scale",
    title="Scale",
    about=(
        "10,000 locations and a million pending spans, with an exporter in memory. The cost of the locations is the "
        "CPU time for 200,000 spans in 10,000 locations minus that for the same spans in one, relative to the CPU "
        "time that the SDK's encoder needs for them in the same round. The longest step is that of any task, with the "
        "garbage collector off. A full collection with pending spans is compared with one with as many `EncodedSpan` "
        "objects."
    ),
    sides=_KINDS,
    rows=(
        Row(
            "10,000 locations: CPU in addition to one location, per CPU of the SDK's encoder",
            "share",
            "",
            Limit(1.0),
            0.1,
            side=_SHARE,
        ),
        Row("The same with the default byte budget", "share, default budget", "", Limit(1.0), 0.15, side=_SHARE),
        Row("A live location: objects that the garbage collector tracks", "objects", "", Limit(20), 1.0, side=_LIVE),
        Row("A live location: bytes, without its span", "bytes", "bytes", Limit(4096), 1.0, side=_LIVE),
        *(
            Row(f"Longest step with 10,000 locations: {what}", what, "ms CPU", Limit(5.0), 1.0, side=_STEP)
            for what in ("adding", "flush", "statistics", "all due at once", "leaving", "leaving at the deadline")
        ),
        Row(
            "1,000,000 pending spans: a full garbage collection",
            "pending",
            "ms",
            f"{_COLLECTOR}: as objects",
            0.25,
            side=_COLLECTOR,
        ),
    ),
    rounds=3,
)
