"""The soak's program: tasks that add, wait, are cancelled, and flush, at changing locations.

One batcher is open during the whole run. Others, the generations, follow each other and end in every way in which a
batcher can be left. Each location belongs to the lasting batcher or to the generations, and is replaced by one with a
new name after a while; now and then an old name returns.
"""

from __future__ import annotations

import itertools
import logging
import random
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

import attrs
import trio

from tests.soak.figures import live_locations
from tests.soak.oracle import ForgettingOracle, TrackedBatcher
from tests.soak.support import LOCATION_HEADER, MAX_REQUEST_BYTES, PLAIN, POISON, UNWANTED
from trio_spanbatch import (
    BatchPolicy,
    Limits,
    OTLPExporter,
    RetryPolicy,
    Span,
    SpanBatcher,
    SpanBatcherStatistics,
    SpanExporter,
)

__all__ = ["Load", "Program", "send_over_http"]

# Probabilities.
POISONOUS = 0.003
NOT_WANTED = 0.003
TOO_LARGE = 0.0005
BURSTS = 0.01
CANCELLED_ADDERS = 0.15
CANCELLED_FLUSHES = 0.4
RETURNING = 0.1

BURST = 300
LONGEST_LIST = 8
FLUSHERS = 2
OLD_NAMES = 50
RESTING_PLACE = "main.soak.rest"

# Seconds after which an adder counts as having waited.
SHORTEST_WAIT = 0.1
# Seconds between two checks whether everything is at rest.
SECONDS_BETWEEN_CHECKS = 0.1
# Seconds until the client notices that the server has broken a connection.
BREAKING = 0.5

# The same for all batchers: random settings would make the number of pending spans vary, which would hide a leak.
BATCHES = BatchPolicy(max_spans=64, max_bytes=64 * 1024, max_delay=3.0)
RETRY = RetryPolicy(initial=0.2, maximum=3.0, max_elapsed=20.0, attempt_timeout=3.0)
# The batcher keeps statistics of as many ended locations as may be live. So many names are used that this bound is
# reached during the warm-up.
LIMITS = Limits(
    max_queued_spans=128,
    max_pending_bytes=512 * 1024,
    max_pending_bytes_per_location=128 * 1024,
    max_locations=400,
    max_exports=32,
)

MakeExporter = Callable[[str, random.Random], SpanExporter]


def send_over_http(url: str, rng: random.Random) -> SpanExporter:
    """Return the real exporter, with a timeout that suits a soak."""
    return OTLPExporter(url, location_header=LOCATION_HEADER, timeout=2.0, compression=rng.choice(["gzip", None, None]))


@attrs.frozen(kw_only=True)
class Load:
    """The load of a soak.

    Attributes:
        spans_per_second: The average number of spans added per second.
        locations: The number of locations at a time.
        location_life: The average number of seconds until a location is replaced.
        generation: The duration of a generation of the batcher, in seconds.
        adders: The number of tasks that add spans.
        longest_drain: The longest ``shutdown_timeout``, in seconds. Some generations get less.
        idle_timeout: Seconds after which an idle location is removed.
    """

    spans_per_second: float = 300.0
    locations: int = 200
    location_life: float = 12.0
    generation: float = 60.0
    adders: int = 20
    longest_drain: float = 30.0
    idle_timeout: float = 5.0

    @property
    def pause(self) -> float:
        """Seconds between two calls of an adder."""
        spans_a_call = (1 + LONGEST_LIST) / 2 + BURSTS * BURST
        return self.adders * spans_a_call / self.spans_per_second


@attrs.define(eq=False)
class _Place:
    name: str
    in_generations: bool


class _GenerationFails(Exception):
    """Raised by the body of a generation."""


class Program:
    """Runs the load.

    Args:
        load: The load.
        oracle: Follows the spans.
        rng: The random number generator.
        make_exporter: Makes the exporter of each batcher.
        drop_connections: Makes the server break all connections.
        at_rest: Called between two generations, when everything is at rest.

    Attributes:
        is_resting: Whether adding has paused, so that everything comes to rest.
        names: The number of names of locations so far.
        counts: Figures: adders that waited, were cancelled, found the batcher closed; flushes; ends of generations.
    """

    def __init__(
        self,
        load: Load,
        oracle: ForgettingOracle,
        rng: random.Random,
        make_exporter: Callable[[random.Random], SpanExporter],
        drop_connections: Callable[[], Awaitable[None]],
        at_rest: Callable[[Program], object],
    ) -> None:
        self.is_resting = False
        self.names = 0
        self.counts: Counter[str] = Counter()
        self._load = load
        self._oracle = oracle
        self._rng = rng
        self._make_exporter = make_exporter
        self._drop_connections = drop_connections
        self._at_rest = at_rest
        self._busy = 0
        self._is_idle = trio.Event()
        self._logger = _quiet_logger(oracle)
        self._old_names: deque[str] = deque(maxlen=OLD_NAMES)
        self._places = [_Place(self._new_name(), bool(number % 2)) for number in range(load.locations)]
        self._ended: Counter[str] = Counter()
        self._lasting: TrackedBatcher | None = None
        self._generation: TrackedBatcher | None = None

    def total(self, name: str) -> int:
        """Return one of the counts of `SpanBatcherStatistics` over all batchers so far."""
        alive: list[int] = [getattr(tracked.batcher.statistics(), name) for tracked in self._open_batchers()]
        return self._ended[name] + sum(alive)

    def compare(self) -> None:
        """Let the oracle compare its counts with those of the batchers."""
        for tracked in self._open_batchers():
            tracked.compare()

    def _open_batchers(self) -> Iterator[TrackedBatcher]:
        """Yield the open batchers."""
        if self._lasting is not None:
            yield self._lasting
        if self._generation is not None:
            yield self._generation

    async def run(self, stop: trio.Event) -> None:
        """Run until ``stop``, and leave all batchers."""
        tracked = self._new_batcher(self._load.longest_drain)
        try:
            async with tracked.batcher, trio.open_nursery() as nursery:
                self._lasting = tracked
                nursery.start_soon(self._live_in_generations, tracked, stop)
                nursery.start_soon(self._rename_places)
                for _ in range(self._load.adders):
                    nursery.start_soon(self._add_for_ever)
                for _ in range(FLUSHERS):
                    nursery.start_soon(self._flush_for_ever)
                await stop.wait()
                nursery.cancel_scope.cancel()
        except KeyboardInterrupt:
            # A Ctrl-C during the drain.
            self.counts["drains that were interrupted"] += 1
        finally:
            self._lasting = None
            self._end(tracked)

    # -- batchers ----------------------------------------------------------------------------------------------

    def _new_batcher(self, shutdown_timeout: float) -> TrackedBatcher:
        tracked = TrackedBatcher(self._oracle)
        tracked.batcher = SpanBatcher(
            tracked.observe(self._make_exporter(self._rng)),
            batch=BATCHES,
            limits=attrs.evolve(LIMITS, location_idle_timeout=self._load.idle_timeout),
            retry=RETRY,
            on_loss=tracked.on_loss,
            logger=self._logger,
            shutdown_timeout=shutdown_timeout,
        )
        return tracked

    def _end(self, tracked: TrackedBatcher) -> None:
        last: SpanBatcherStatistics = tracked.close()
        for name in ("requests", "retries", "splits", "ambiguous"):
            self._ended[name] += getattr(last, name)
        self.counts["batchers left"] += 1

    async def _live_in_generations(self, lasting: TrackedBatcher, stop: trio.Event) -> None:
        ways = itertools.cycle([self._ends, self._fails, self._is_cancelled])
        while True:
            tracked = self._new_batcher(self._load.longest_drain * self._rng.choice([0.01, 0.1, 0.5]))
            try:
                await next(ways)(tracked)
            except KeyboardInterrupt:
                # A Ctrl-C while a batcher is being left is raised there.
                self.counts["drains that were interrupted"] += 1
                stop.set()
                return
            finally:
                self._generation = None
                self._end(tracked)
            await self._rest(lasting)

    async def _ends(self, tracked: TrackedBatcher) -> None:
        async with tracked.batcher:
            self._generation = tracked
            await trio.sleep(self._load.generation)
        self.counts["generations that ended"] += 1

    async def _fails(self, tracked: TrackedBatcher) -> None:
        try:
            async with tracked.batcher:
                self._generation = tracked
                await trio.sleep(self._load.generation)
                raise _GenerationFails
        except _GenerationFails:
            self.counts["generations that failed"] += 1

    async def _is_cancelled(self, tracked: TrackedBatcher) -> None:
        with trio.move_on_after(self._load.generation):
            async with tracked.batcher:
                self._generation = tracked
                await trio.sleep_forever()
        self.counts["generations that were cancelled"] += 1

    # -- locations ---------------------------------------------------------------------------------------------

    async def _rename_places(self) -> None:
        while True:
            await trio.sleep(self._rng.expovariate(self._load.locations / self._load.location_life))
            if self.is_resting:
                continue
            place = self._rng.choice(self._places)
            self._old_names.append(place.name)
            returns = self._rng.random() < RETURNING
            place.name = self._rng.choice(self._old_names) if returns else self._new_name()

    def _new_name(self) -> str:
        self.names += 1
        return f"main.soak.spans_{self.names}"

    def _pick(self) -> tuple[TrackedBatcher, str] | None:
        """Return a batcher and a location to use, or None while there is none."""
        if self.is_resting:
            return None
        place = self._rng.choice(self._places)
        tracked = self._generation if place.in_generations else self._lasting
        return None if tracked is None else (tracked, place.name)

    # -- adding and flushing -----------------------------------------------------------------------------------

    async def _add_for_ever(self) -> None:
        while True:
            await trio.sleep(self._rng.expovariate(1 / self._load.pause))
            if (picked := self._pick()) is None:
                continue
            with self._being_busy():
                await self._add(*picked)

    async def _add(self, tracked: TrackedBatcher, location: str) -> None:
        rng = self._rng
        is_burst = rng.random() < BURSTS
        spans = self._make_spans(BURST if is_burst else rng.randint(1, LONGEST_LIST))
        if not is_burst and rng.random() < 0.5:
            try:
                tracked.add_nowait(location, spans)
            except trio.WouldBlock:
                self.counts["adds without space"] += 1
            return
        patience = rng.expovariate(1 / 0.2) if rng.random() < CANCELLED_ADDERS else 120.0
        with trio.move_on_after(patience) as scope:
            began = trio.current_time()
            await tracked.add(location, spans)
            self.counts["adders that waited"] += trio.current_time() > began + SHORTEST_WAIT
        self.counts["cancelled adders"] += scope.cancelled_caught

    def _make_spans(self, count: int) -> list[Span]:
        return [self._make_span() for _ in range(count)]

    def _make_span(self) -> Span:
        rng = self._rng
        if rng.random() < TOO_LARGE:
            return self._oracle.make_span(POISON, size=MAX_REQUEST_BYTES + 1_000)
        (kind,) = rng.choices([PLAIN, POISON, UNWANTED], [1 - POISONOUS - NOT_WANTED, POISONOUS, NOT_WANTED])
        return self._oracle.make_span(kind, size=int(rng.expovariate(1 / 500)))

    async def _flush_for_ever(self) -> None:
        while True:
            await trio.sleep(self._rng.expovariate(1 / 2.0))
            if (picked := self._pick()) is None:
                continue
            with self._being_busy():
                await self._flush(*picked)

    async def _flush(self, tracked: TrackedBatcher, location: str) -> None:
        patience = self._rng.uniform(0, 1) if self._rng.random() < CANCELLED_FLUSHES else 120.0
        with trio.move_on_after(patience) as scope:
            await tracked.flush(location if self._rng.random() < 0.7 else None)
            self.counts["flushes"] += 1
        self.counts["cancelled flushes"] += scope.cancelled_caught

    @contextmanager
    def _being_busy(self) -> Iterator[None]:
        """Count a task as busy. The batcher may be closed in the meantime."""
        self._busy += 1
        try:
            yield
        except trio.ClosedResourceError:
            self.counts["calls of a closed batcher"] += 1
        finally:
            self._busy -= 1
            if not self._busy:
                self._is_idle.set()

    # -- resting -----------------------------------------------------------------------------------------------

    async def _rest(self, lasting: TrackedBatcher) -> None:
        """Let everything come to rest, then continue."""
        self.is_resting = True
        if self._busy:
            self._is_idle = trio.Event()
            await self._is_idle.wait()
        await lasting.flush(None)
        # The number of idle connections is random, so break them all. The pool closes them with the next request.
        await self._drop_connections()
        await trio.sleep(BREAKING)
        await lasting.add(RESTING_PLACE, [self._oracle.make_span()])
        await lasting.flush(None)
        while live_locations() or len(self._oracle):
            await trio.sleep(SECONDS_BETWEEN_CHECKS)
            self._oracle.sweep()
        self._at_rest(self)
        self.counts["rests"] += 1
        self.is_resting = False


class _ViolationHandler(logging.Handler):
    """Reports every message with an exception as a violation: it is a bug in the exporter or in a batcher."""

    def __init__(self, oracle: ForgettingOracle) -> None:
        super().__init__()
        self._oracle = oracle

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info is not None:
            self._oracle.report(f"logged: {self.format(record)}")


def _quiet_logger(oracle: ForgettingOracle) -> logging.Logger:
    logger = logging.getLogger("soak")
    logger.propagate = False
    logger.handlers[:] = [_ViolationHandler(oracle)]
    return logger
