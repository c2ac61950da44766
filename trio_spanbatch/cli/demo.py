"""``trio-spanbatch demo``: cancel an agent program half-way, while its server fails, and show that no span is lost.

Spans are sent over real HTTP to a receiver that stores them in SQLite. At the end, the ids of the accepted spans are
compared with those in the file.
"""

from __future__ import annotations

import logging
import signal
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from statistics import quantiles

import attrs
import trio

from .. import Delivered, ExportResult, LocationStatistics, Loss, OTLPExporter, SpanBatch, SpanBatcher
from ..testing import Answer, OTLPReceiver, Outcome, ReceivedRequest
from .agent import BATCH, LOCATION_HEADER, LOCATIONS, RETRY, Key, RecordingTracer, planned_spans, run_agents
from .progress import DemoProgress
from .receive import Collector
from .screen import FAILS, GOOD, Screen
from .signals import Interrupt
from .store import SpanStore

FAILING = "main.finance.agent_spans"

_QUESTIONS_PER_AGENT = 30
PLANNED_SPANS = planned_spans(_QUESTIONS_PER_AGENT)

# Seconds until the server begins to answer 503 for one location, and until it stops after the cancellation.
_FAILS_AFTER = 1.0
_FAILS_BEYOND_CANCEL = 1.0

_SHUTDOWN_TIMEOUT = 15.0


class MeasuringExporter:
    """An exporter that measures another exporter's requests."""

    def __init__(self, exporter: OTLPExporter) -> None:
        # For each location, the age of each batch at its acknowledgement: seconds since its first span ended.
        self.ages: dict[str, list[float]] = {location: [] for location in LOCATIONS}
        # For each location, the number of spans in each request.
        self.sent: dict[str, list[int]] = {location: [] for location in LOCATIONS}
        self._exporter = exporter

    async def export(self, batch: SpanBatch) -> ExportResult:
        self.sent[batch.location].append(len(batch.spans))
        result = await self._exporter.export(batch)
        if isinstance(result, Delivered):
            began = batch.spans[0].to_message().end_time_unix_nano
            self.ages[batch.location].append((time.time_ns() - began) / 1e9)
        return result

    async def aclose(self) -> None:
        await self._exporter.aclose()


@attrs.define
class FailingServer:
    """Answers 503 for one location while it fails."""

    collector: Collector  # answers all other requests
    is_failing: bool = False
    cancelled: float | None = None  # when the program was cancelled, in trio's time
    accepted: int = 0  # how many spans had been accepted then

    def answer(self, request: ReceivedRequest) -> Outcome | None:
        """Used as `OTLPReceiver`'s ``answers``."""
        if self.is_failing and request.location == FAILING:
            return Answer(503, body=b"temporarily unavailable")
        return self.collector.answer(request)


@attrs.frozen(kw_only=True)
class DemoResult:
    """The outcome of the spans."""

    accepted: Sequence[Key]  # location, trace id and span id of each accepted span
    stored: Sequence[Key]  # location, trace id and span id of each row in the store
    interrupted: int  # 128 plus the number of the signal that ended the demo, 0 if there was none
    handed_back: Collection[Key] = ()  # location, trace id and span id of each span that was handed back undelivered
    reason: str = ""  # why spans were handed back

    @property
    def holds(self) -> bool:
        """Whether each accepted span is stored exactly once, and no other span is."""
        return sorted(self.accepted) == sorted(self.stored)

    @property
    def verdict(self) -> str:
        """The result of the comparison, in a sentence."""
        if self.holds:
            return f"nothing was lost: all {len(self.accepted):,} accepted spans are in the store, one row each"
        # Spans that were handed back may be stored too, if their request was cancelled before its answer.
        missing = len(set(self.accepted) - set(self.stored) - set(self.handed_back))
        unknown = len(set(self.stored) - set(self.accepted))
        if not missing and not unknown and len(self.stored) == len(set(self.stored)):
            return (
                f"{'interrupted: ' if self.interrupted else ''}{len(self.handed_back):,} spans were handed back "
                f"undelivered ({self.reason}); all others are in the store"
            )
        return (
            f"spans were LOST or duplicated: {len(self.accepted):,} spans accepted, {len(self.stored):,} rows, "
            f"{missing:,} spans missing, {unknown:,} unexpected rows"
        )

    @property
    def exit_code(self) -> int:
        """0 if nothing was lost or duplicated, else 1 or ``interrupted``."""
        return self.interrupted or (0 if self.holds else 1)


async def demo(path: Path, screen: Screen) -> DemoResult:
    """Run the demo with a new store in ``path``."""
    with closing(SpanStore(path)) as store:
        server = FailingServer(Collector(store, screen.warn))
        interrupt = Interrupt()
        tracers: list[RecordingTracer] = []
        losses: list[Loss] = []
        receiver = OTLPReceiver(
            location_header=LOCATION_HEADER, answers=server.answer, on_request=server.collector.count, keep=False
        )
        with interrupt.absorb(), interrupt.on(signal.SIGTERM):
            async with receiver:
                screen.say(f"receiver on {receiver.url}, {len(LOCATIONS)} locations")
                await _run_program(receiver.url, server, interrupt, tracers, losses, screen)
        return DemoResult(
            accepted=[key for tracer in tracers for key in tracer.accepted],
            stored=list(store.keys()),
            handed_back=list(handed_back(losses)),
            reason="; ".join(dict.fromkeys(loss.reason for loss in losses)),
            interrupted=interrupt.exit_code,
        )


async def _run_program(
    url: str,
    server: FailingServer,
    interrupt: Interrupt,
    tracers: list[RecordingTracer],
    losses: list[Loss],
    screen: Screen,
) -> None:
    """Run agents for all locations, cancel them half-way, and print the outcome of their spans."""
    exporter = MeasuringExporter(OTLPExporter(url, location_header=LOCATION_HEADER))
    batcher = SpanBatcher(
        exporter,
        batch=BATCH,
        retry=RETRY,
        shutdown_timeout=_SHUTDOWN_TIMEOUT,
        on_loss=losses.append,
        log_level=logging.INFO,
    )
    tracers += [RecordingTracer(batcher, location) for location in LOCATIONS]
    began = trio.current_time()
    with DemoProgress(batcher, PLANNED_SPANS, screen).shown() as progress:
        async with trio.open_nursery() as observers:
            observers.start_soon(progress.run)
            observers.start_soon(_cancel_half_way, batcher, server, interrupt.scope, progress)
            # After a second Ctrl-C has ended the drain, the results are printed too.
            with interrupt.absorb(), interrupt.scope:
                async with batcher:
                    with interrupt.on(signal.SIGINT):
                        await run_agents(tracers, _QUESTIONS_PER_AGENT)
            observers.cancel_scope.cancel()
        progress.say(f"left the batcher {trio.current_time() - (server.cancelled or began):.1f} s later")
        if server.cancelled is not None:
            late = batcher.statistics().accepted - server.accepted
            progress.say(f"{late:,} spans were accepted after the cancel: those of the work that it ended")
    show(batcher, exporter, tracers, screen)


async def _cancel_half_way(
    batcher: SpanBatcher, server: FailingServer, scope: trio.CancelScope, progress: DemoProgress
) -> None:
    fails_at = trio.current_time() + _FAILS_AFTER
    while batcher.statistics().accepted < PLANNED_SPANS // 2 and not scope.cancel_called:
        if not server.is_failing and trio.current_time() >= fails_at:
            server.is_failing, progress.failing = True, FAILING
            progress.say(f"the server answers 503 for {FAILING} from now on", FAILS)
        await trio.sleep(0.02)
    server.cancelled = trio.current_time()
    progress.end_plan()
    statistics = batcher.statistics()
    server.accepted = statistics.accepted
    progress.say(
        f"cancelling the whole program: {statistics.accepted:,} of {PLANNED_SPANS:,} planned spans accepted, "
        f"{statistics.queued + statistics.in_flight:,} of them pending"
    )
    scope.cancel()
    await trio.sleep(_FAILS_BEYOND_CANCEL)
    server.is_failing, progress.failing = False, None
    progress.say(f"the server accepts spans for {FAILING} again", GOOD)


def handed_back(losses: Sequence[Loss]) -> Iterator[Key]:
    """Yield the keys of all spans that were handed back undelivered. Rejected spans are not included."""
    for loss in losses:
        if loss.outcome == "undelivered":
            for span in loss.batch.spans:
                message = span.to_message()
                yield loss.location, message.trace_id.hex(), message.span_id.hex()


def show(batcher: SpanBatcher, exporter: MeasuringExporter, tracers: Sequence[RecordingTracer], screen: Screen) -> None:
    """Print a table of the outcomes, by location."""
    statistics = batcher.statistics()
    columns = ["location", "accepted", "delivered", "rejected", "undelivered", "requests", "spans per request"]
    rows = []
    for location in LOCATIONS:
        counts = statistics.locations.get(location, LocationStatistics())
        sent, ages = exporter.sent[location], exporter.ages[location]
        numbers = (counts.accepted, counts.delivered, counts.rejected, counts.undelivered, counts.requests)
        percentiles = quantiles(ages, n=100, method="inclusive") if len(ages) > 1 else ages * 99
        rows.append(
            [location]
            + [f"{number:,}" for number in numbers]
            + [f"{sum(sent) / len(sent):.1f}" if sent else "-"]
            + [f"{percentiles[rank - 1]:.2f} s" if ages else "-" for rank in (50, 99)]
        )
    screen.say("")
    screen.table([*columns, "age p50", "age p99"], rows, optional={"rejected", "undelivered"}, failing=FAILING)
    counted = f"{statistics.retries:,} of the {statistics.requests:,} requests"
    screen.say(f"{counted} are repetitions: the server had not accepted their spans")
    screen.say("age: from the end of a batch's first span to the batch's acknowledgement")
    not_accepted = sum(tracer.dropped for tracer in tracers)
    if not_accepted:
        screen.say(f"{not_accepted:,} more spans were not accepted because a queue was full")
