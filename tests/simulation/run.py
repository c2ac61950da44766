"""Run one seed: a program, the batcher, the whole HTTP path and a failing server, reproducible step by step.

All random numbers come from the seed: those of the plan, and those of separate generators for the program, the server
and the batcher's jitter, so that additional draws by one do not change the others. trio's scheduler is seeded too, and
the clock is a mock clock. So a seed that failed fails again, at the same step.

Checked are:

- the oracle's rules, after every step and at the end;
- that no task waits for something that is available, whenever the run rests;
- that the drain keeps its deadline, and that the exception that leaves the batcher is the one that was raised;
- that no task and no connection is left, and no warning was issued;
- that only exceptions of the program's own ``on_loss`` were logged with a traceback;
- that everything is delivered before the drain begins, if the plan ends with a calm;
- that of the exports that began while the endpoint was known to be down, one runs at a time.
"""

from __future__ import annotations

import logging
import math
import os
import random
import signal
import sys
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from http import HTTPStatus

import attrs
import trio

from tests.spool.batchers import use_store
from tests.spool.memory import MemoryStore
from tests.support.at_rest import AtRest, RestWatch
from tests.support.batchers import span_ids
from tests.support.oracle import ObservedExporter, Oracle, OracleWatch
from tests.support.seeded_trio import run_seeded
from trio_spanbatch import (
    Delivered,
    EncodedSpan,
    ExportResult,
    Loss,
    OTLPExporter,
    Span,
    SpanBatch,
    SpanBatcher,
    Spool,
    UndeliveredSpansError,
)
from trio_spanbatch._scheduler.orders import Lost
from trio_spanbatch._scheduler.scheduler import Scheduler
from trio_spanbatch._spans.batch import cost_of
from trio_spanbatch._spans.encoder import SpanEncoder
from trio_spanbatch._spool.store import NewRecord, Record

from .plan import MIB, Plan, draw_plan
from .server import LOCATION_HEADER, Server

# Far more than any run takes: a run that reaches this number would not end.
_MAX_STEPS = 300_000
# Seconds of CPU time after which the process is killed, in case a single step does not end.
_MAX_SECONDS = 60
# Seconds; longer than any wait for a healthy server.
_CALM = 2000.0


@attrs.frozen
class Outcome:
    """The outcome of a seed.

    Attributes:
        seed: The seed.
        failure: The failed checks, or None.
        steps: The number of scheduling steps.
        spans: The number of accepted spans.
        requests: The number of attempts.
        faults: The number of injected faults, by kind.
        digest: A checksum of the steps: equal for two runs of a seed unless they differ in a step.
        seconds: The duration on the mock clock.
    """

    seed: int
    failure: str | None
    steps: int
    spans: int
    requests: int
    faults: dict[str, int]
    digest: int
    seconds: float


def run_seed(seed: int, tell: Callable[[str], None] | None = None) -> Outcome:
    """Run ``seed``. It takes some 20 ms.

    Args:
        seed: Any int.
        tell: Called with a line of text for each event.
    """
    run = Run(draw_plan(seed), tell)
    signal.setitimer(signal.ITIMER_VIRTUAL, _MAX_SECONDS)
    failures: list[str] = []
    hook, sys.unraisablehook = sys.unraisablehook, lambda args: failures.append(f"not raised: {args.exc_value!r}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            run_seeded(seed, run.main)
    except Exception:
        failures.append(traceback.format_exc())
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        sys.unraisablehook = hook
    return run.outcome([*run.failures, *failures])


class PlannedError(Exception):
    """Raised by the program on purpose."""


class Run:
    """One seed's run.

    Args:
        plan: The plan of the seed.
        tell: Called with each event.
    """

    def __init__(self, plan: Plan, tell: Callable[[str], None] | None) -> None:
        self.failures: list[str] = []
        self._plan = plan
        self._tell_line = tell
        self._rng = random.Random(f"{plan.seed} program")
        self._remembers = len(plan.locations) <= plan.limits.max_locations
        self._oracle = Oracle(forgets_locations=not self._remembers, longest_wait=plan.retry.max_elapsed)
        self._server = Server(plan, random.Random(f"{plan.seed} server"), self._oracle, self._tell)
        self._active: Counter[str] = Counter()
        # The number of spans that each location has refused since its last success.
        self._refused: Counter[str] = Counter()
        self._watch = OracleWatch(self._oracle)
        self._steps = _Steps(plan.cancel_at_step, self._cancel_something, self._end_a_standstill)
        self._scopes: dict[str, trio.CancelScope] = {}
        self._added_in_on_loss = 0
        self._drain_began = math.inf
        self._ended = 0.0
        # The running exports that began while the endpoint was down.
        self._probes = 0
        self._store = None if plan.spool is None else _PlannedStore(plan, self._oracle)

    def outcome(self, failures: list[str]) -> Outcome:
        return Outcome(
            seed=self._plan.seed,
            failure="\n".join(failures) or None,
            steps=self._steps.count,
            spans=self._oracle.batcher.statistics().accepted,
            requests=self._oracle.attempts,
            faults=dict(self._server.faults),
            digest=self._steps.digest,
            seconds=self._ended,
        )

    async def main(self) -> None:
        """Run the program against the server, and check the outcome of its spans."""
        plan = self._plan
        exporter = OTLPExporter(
            "http://receiver.test/v1/traces",
            location_header=LOCATION_HEADER,
            timeout=plan.timeout,
            compression="gzip" if plan.gzip else None,
            transport=self._server.transport(),
        )
        self._oracle.batcher = batcher = SpanBatcher(
            _Counted(
                self._oracle.observe(_Keeps(exporter, await _kept_cancelled(), self._raises_it)),
                self._active,
                self._refused,
                self._tell,
                self._begins,
            ),
            batch=plan.policies.__getitem__,
            limits=plan.limits,
            retry=plan.retry,
            shutdown_timeout=plan.shutdown_timeout,
            strict=plan.strict,
            on_loss=self._on_loss,
            rng=random.Random(f"{plan.seed} jitter"),
            logger=self._logger(),
            spool=None if plan.spool is None else Spool("/nowhere", **plan.spool.settings),
        )
        if self._store is not None:
            self._store.fill(plan.locations)
            use_store(batcher, self._store)
            self._store.watch_losses(batcher._scheduler)
        at_rest = AtRest(batcher, plan.limits, self._active)
        rest_watch = RestWatch(at_rest)
        tasks = trio.lowlevel.current_statistics().tasks_living
        instruments: list[trio.abc.Instrument] = [self._steps, self._watch, rest_watch]
        async with self._server.receiver:
            for instrument in instruments:
                trio.lowlevel.add_instrument(instrument)
            await self._use(batcher)
            for instrument in instruments:
                trio.lowlevel.remove_instrument(instrument)
            self._ended = trio.current_time()
            self._expect(not self._active.total(), f"exports are still running: {self._active}")
        self._expect(trio.lowlevel.current_statistics().tasks_living == tasks, "tasks are left")
        self._expect(trio.lowlevel.current_statistics().seconds_to_next_deadline == math.inf, "a timer is left")
        self._expect(self._watch.failure is None, f"after a step: {self._watch.failure!r}")
        self._expect(rest_watch.failure is None, f"at rest: {rest_watch.failure}")
        for fault in at_rest.faults_at_the_end():
            self._expect(False, f"at the end: {fault}")
        self._oracle.check_end(
            batcher.statistics(), self._server.stored(), by_location=self._remembers, on_disk=self._on_disk()
        )

    # -- the program -------------------------------------------------------------------------------------------

    async def _use(self, batcher: SpanBatcher) -> None:
        """Enter the batcher, with tasks inside and outside of its body, and leave it as planned."""
        with trio.CancelScope() as everything:
            self._scopes["everything"] = everything
            async with trio.open_nursery() as outside:
                with trio.CancelScope() as body:
                    self._scopes["body and drain"] = body
                    await self._live(batcher, outside, body)
                self._expect_in_time()

    async def _live(self, batcher: SpanBatcher, outside: trio.Nursery, scope: trio.CancelScope) -> None:
        error = PlannedError("the body ends with this")
        try:
            async with batcher:
                try:
                    await self._body(outside)
                finally:
                    self._drain_began = trio.current_time()
                    self._tell(f"program: the body ends, {batcher.statistics()}")
                if self._plan.end == "raise":
                    raise error
                if self._plan.end == "cancel in the drain":
                    scope.deadline = trio.current_time() + self._rng.uniform(0, 5)
        except PlannedError as raised:
            self._expect(raised is error, f"another error left: {raised!r}")
        except UndeliveredSpansError:
            self._expect(self._plan.strict and self._has_lost(batcher), "UndeliveredSpansError without a reason")
            self._expect(trio.current_effective_deadline() > -math.inf, "a cancel in the drain was swallowed")
        else:
            self._expect(not (self._plan.strict and self._has_lost(batcher)), "strict, but a loss raised nothing")
        self._tell("program: the batcher is left")

    def _has_lost(self, batcher: SpanBatcher) -> bool:
        statistics = batcher.statistics()
        return statistics.rejected + statistics.undelivered > 0

    async def _body(self, outside: trio.Nursery) -> None:
        plan = self._plan
        async with trio.open_nursery() as nursery:
            for nurseries, workers in ((nursery, 0), (outside, 1)):
                for number in range(plan.adders[workers]):
                    nurseries.start_soon(self._adder, f"adder {workers}{number}")
                for number in range(plan.flushers[workers]):
                    nurseries.start_soon(self._flusher, f"flusher {workers}{number}")
            for number in range(0 if plan.spool is None else plan.spool.syncers):
                nursery.start_soon(self._syncer, f"syncer {number}")
            if plan.end == "cancel the body":
                await trio.sleep(plan.ends_at)
                nursery.cancel_scope.cancel()
        if plan.end == "calm":
            await self._wait_for_calm()

    async def _wait_for_calm(self) -> None:
        """Wait until the server has healed and everything is delivered, without the help of a drain."""
        if self._plan.heals_at == math.inf:
            return
        await trio.sleep(max(0.0, self._plan.heals_at - trio.current_time()))
        await trio.sleep(_CALM)
        if all(policy.max_delay < _CALM for policy in self._plan.policies.values()):
            waiting = self._oracle.pending(None)
            self._expect(not waiting, f"spans {sorted(waiting)} are still pending though the server is healthy")
        with trio.fail_after(_CALM):
            await self._flush("program", None)

    async def _adder(self, name: str) -> None:
        rng = self._rng
        with trio.CancelScope() as self._scopes[name]:
            for _ in range(rng.randint(1, 8)):
                location = rng.choice(self._plan.locations)
                try:
                    with trio.move_on_after(rng.choice([0, 0.2, 2, math.inf, math.inf])):
                        await self._add(name, location)
                    if rng.random() < 0.5:
                        await trio.sleep(rng.choice([0, 0.1, 1, 5]))
                except trio.ClosedResourceError:
                    return
                except ValueError as error:
                    # The span can never fit, or there are too many locations.
                    self._tell(f"{name}: {error}")

    async def _add(self, name: str, location: str) -> None:
        how = self._rng.choice(["nowait", "nowait", "one", "one", "many", "some nowait"])
        if how == "nowait":
            took = self._oracle.add_nowait(location, self._spans(1))
            self._tell(f"{name}: add_span_nowait to {location}: {took}")
        elif how == "some nowait":
            took = self._oracle.add_nowait(location, self._spans(self._rng.randint(0, 4)))
            self._tell(f"{name}: add_spans_nowait to {location}: {took}")
        else:
            spans = self._spans(1 if how == "one" else self._rng.choice([0, 2, 5, 15]))
            self._tell(f"{name}: add {[span.context.span_id for span in spans]} to {location}")
            await self._oracle.add(location, spans)
            self._tell(f"{name}: added")

    def _spans(self, count: int) -> list[Span]:
        size = self._rng.choice(self._plan.span_sizes)
        return self._oracle.make_spans(min(count, 3) if size >= MIB else count, size=size)

    async def _syncer(self, name: str) -> None:
        rng = random.Random(f"{self._plan.seed} {name}")
        with trio.CancelScope() as self._scopes[name]:
            for _ in range(rng.randint(1, 3)):
                await trio.sleep(rng.uniform(0, 6))
                before = self._oracle.pending(None)
                with trio.move_on_after(rng.choice([0, 0.5, 5, math.inf])):
                    try:
                        await self._oracle.batcher.sync()
                    except trio.ClosedResourceError:
                        return
                    except OSError as error:
                        self._tell(f"{name}: {error}")
                        continue
                    left = before & self._oracle.pending(None) - self._committed()
                    self._expect(not left, f"sync returned before spans {sorted(left)} were committed")
                    self._tell(f"{name}: {len(before)} spans are committed or settled")

    def _committed(self) -> set[int]:
        """Return the spans of records on disk, and of those that were found to be damaged."""
        damaged = set() if self._store is None else self._store.damaged_spans()
        return self._on_disk() | damaged

    def _on_disk(self) -> set[int]:
        if self._store is None:
            return set()
        return {span_id for _, spans in self._store.disk.records.values() for span_id in span_ids(spans)}

    async def _flusher(self, name: str) -> None:
        rng = self._rng
        with trio.CancelScope() as self._scopes[name]:
            for _ in range(rng.randint(1, 3)):
                await trio.sleep(rng.uniform(0, 6))
                with trio.move_on_after(rng.choice([0, 0.5, 5, math.inf])):
                    try:
                        await self._flush(name, rng.choice([None, *self._plan.locations]))
                    except trio.ClosedResourceError:
                        return

    async def _flush(self, name: str, location: str | None) -> None:
        before = self._oracle.pending(location)
        self._tell(f"{name}: flush {location}")
        report = await self._oracle.batcher.flush(location)
        told = report.delivered + report.rejected + report.undelivered + report.spooled
        self._tell(f"{name}: flushed {told}, {len(before)} were pending")
        self._expect(told >= len(before), f"a flush reported {told} spans, {len(before)} were pending")
        left = before & self._oracle.pending(location)
        if self._drain_began < math.inf:
            left -= self._on_disk()
        self._expect(not left, f"a flush returned before spans {sorted(left)} were accounted for")

    def _on_loss(self, loss: Loss) -> None:
        self._expect_just(loss)
        self._oracle.on_loss(loss)
        self._tell(f"on_loss: {loss.outcome} {loss.count} of {loss.batch}: {loss.reason}")
        chance = self._rng.random()
        if chance < 0.1 and self._added_in_on_loss < 10:
            self._added_in_on_loss += 1
            try:
                self._oracle.add_nowait(self._rng.choice(self._plan.locations), self._spans(1))
            except (trio.ClosedResourceError, ValueError) as error:
                self._tell(f"on_loss: {error}")
        elif chance < 0.15:
            raise PlannedError("on_loss raises")
        elif chance < 0.2:
            self._cancel_something()

    # -- checks ------------------------------------------------------------------------------------------------

    def _raises_it(self) -> bool:
        """Return whether the exporter raises the Cancelled that it has kept, instead of making an attempt."""
        plan = self._plan
        raises = trio.current_time() < plan.heals_at and self._rng.random() < plan.keeps_cancelled
        if raises:
            self._server.injected("a kept Cancelled")
        return raises

    def _begins(self) -> Callable[[], None]:
        """Check that an export may begin. Return what to call at its end."""
        endpoint = self._oracle.batcher.statistics().endpoint
        # An export that was started in the step in which the endpoint went down may begin a moment later.
        is_probe = not endpoint.is_up and trio.current_time() > endpoint.since
        self._expect(not (is_probe and self._probes), "more than one export runs though the endpoint is down")
        self._probes += is_probe

        def ends() -> None:
            self._probes -= is_probe

        return ends

    def _cancel_something(self) -> None:
        name = self._rng.choice(sorted(self._scopes)) if self._scopes else None
        if name is not None:
            self._tell(f"program: cancel {name}")
            self._scopes[name].cancel()

    def _expect_just(self, loss: Loss) -> None:
        """Expect that there is a reason for a loss."""
        if loss.outcome == "undelivered":
            had_to_be = self._drain_began < math.inf or loss.reason.startswith(
                ("retries exhausted", "isolation budget", "the exporter raised Cancelled", *self._spool_reasons())
            )
            self._expect(had_to_be, f"handed back before the drain: {loss.reason}")
        elif loss.status_code is not None and loss.status_code >= HTTPStatus.BAD_REQUEST:
            unjust = self._server.without_fault(loss.batch)
            self._expect(not unjust or self._refused[loss.location] > 0, f"good spans {unjust} were rejected")
            self._refused[loss.location] += len(loss.batch.spans)

    def _spool_reasons(self) -> list[str]:
        """Return the reasons for which committed spans may be handed back."""
        if self._plan.spool is None:
            return []
        reasons = {"damage": "the record in the spool is damaged"}
        if self._plan.spool.settings["max_age"]:
            reasons["max_age"] = "older than Spool.max_age"
        if self._plan.spool.settings["when_full"] == "drop_oldest":
            reasons["when_full"] = "the spool is full"
        return list(reasons.values())

    def _end_a_standstill(self) -> None:
        self._expect(False, "all tasks wait, and nothing will ever wake one")
        self._scopes["everything"].cancel()

    def _expect_in_time(self) -> None:
        took = trio.current_time() - self._drain_began
        allowed = self._plan.shutdown_timeout
        self._expect(took <= allowed + 1e-6 or self._drain_began == math.inf, f"the drain took {took} of {allowed} s")

    def _expect(self, holds: bool, otherwise: str) -> None:
        if not holds:
            self.failures.append(otherwise)

    def _tell(self, event: str) -> None:
        if self._tell_line is not None:
            at = trio.current_time() if trio.lowlevel.in_trio_run() else 0.0
            self._tell_line(f"{self._steps.count:6} {at:10.3f}  {event}")

    def _logger(self) -> logging.Logger:
        # Not from getLogger(), which would keep it after the run.
        logger = logging.Logger("simulation", logging.DEBUG)  # noqa: LOG001  # see above
        logger.addHandler(_Log(self._logged))
        return logger

    def _logged(self, record: logging.LogRecord) -> None:
        self._tell(f"log: {record.levelname} {record.getMessage()}")
        in_time = "cut short" not in record.getMessage() or not self._plan.shutdown_timeout
        self._expect(in_time, "the drain left no time for closing the exporter")
        error = record.exc_info[1] if record.exc_info else None
        is_planned = isinstance(error, PlannedError | trio.Cancelled)
        self._expect(error is None or is_planned, f"logged: {record.getMessage()}: {error!r}")
        if self._rng.random() < 0.02:
            self._cancel_something()


async def _kept_cancelled() -> trio.Cancelled:
    """Return a Cancelled from a cancel that is over."""
    kept: list[trio.Cancelled] = []
    with trio.CancelScope() as scope:
        scope.cancel()
        try:
            await trio.lowlevel.checkpoint()
        except trio.Cancelled as cancelled:
            kept.append(cancelled)
            raise
    return kept[0]


class _PlannedStore(MemoryStore):
    """A spool in memory that fails as planned, and tells the oracle of commits whose end is unknown."""

    def __init__(self, plan: Plan, oracle: Oracle) -> None:
        assert plan.spool is not None
        super().__init__(max_bytes=plan.spool.settings["max_bytes"])
        self._plan = plan
        self._spool = plan.spool
        self._oracle = oracle
        self._rng = random.Random(f"{plan.seed} disk")
        self.lands = plan.spool.lands
        self._ids: dict[int, list[int]] = {}

    def fill(self, locations: Sequence[str]) -> None:
        """Leave records, as an earlier process does."""
        for _ in range(self._spool.left):
            location, spans = self._rng.choice(locations), self._oracle.make_spans(self._rng.randint(1, 3))
            encoded = tuple(map(SpanEncoder().encode, spans))
            self.disk.tokens += 1
            record = Record(self.disk.tokens, location, len(spans), cost_of(encoded), self._rng.choice([-1e4, -1.0]))
            self.disk.records[record.token] = record, encoded
            self.disk.owners[record.token] = None
            self.disk.nbytes += record.nbytes
            self._ids[record.token] = span_ids(encoded)
            self._oracle.left_in_spool(location, spans)

    def watch_losses(self, scheduler: Scheduler) -> None:
        """Tell the oracle which spans are dropped, as a loss of spans that were not read has only their number."""
        lost = scheduler.lost

        def tell(order: Lost, now: float) -> None:
            piece = order.piece
            ids = self._ids[piece.record.token][piece.start : piece.start + piece.count]
            self._oracle.cannot_be_read(order.name, ids)
            lost(order, now)

        scheduler.lost = tell  # type: ignore[method-assign, assignment]  # it watches the scheduler

    def damaged_spans(self) -> set[int]:
        return {span_id for token in self.damaged for span_id in self._ids[token]}

    def _misbehave(self) -> None:
        is_faulty = trio.current_time() < self._plan.heals_at
        self.slow = self._rng.choice(self._spool.slow) if is_faulty else 0
        is_failing = is_faulty and self._rng.random() < self._spool.failing
        self.failing = {"commit", "settle", "read", "bury"} if is_failing else set()

    async def commit(self, records: Sequence[NewRecord], settled: Sequence[int] = ()) -> Sequence[Record]:
        self._misbehave()
        try:
            committed = await super().commit(records, settled)
            self._ids.update((one.token, span_ids(new.spans)) for one, new in zip(committed, records, strict=True))
            return committed
        except trio.Cancelled:
            self._oracle.commit_is_doubtful(span_id for record in records for span_id in span_ids(record.spans))
            raise

    async def settle(self, settled: Sequence[int]) -> None:
        self._misbehave()
        await super().settle(settled)

    async def read(self, token: int) -> Sequence[EncodedSpan]:
        self._misbehave()
        is_damaged = trio.current_time() < self._plan.heals_at and self._rng.random() < self._spool.damage
        if is_damaged and token not in self.damaged:
            self.damaged.add(token)
        return await super().read(token)

    async def bury(self, location: str, spans: Sequence[EncodedSpan], reason: str) -> None:
        self._misbehave()
        await super().bury(location, spans, reason)


class _Keeps:
    """An exporter with a bug: now and then it raises a Cancelled that it has kept."""

    def __init__(self, exporter: OTLPExporter, kept: trio.Cancelled, raises_it: Callable[[], bool]) -> None:
        self._exporter = exporter
        self._kept = kept
        self._raises_it = raises_it

    async def export(self, batch: SpanBatch) -> ExportResult:
        if self._raises_it():
            raise self._kept
        return await self._exporter.export(batch)

    async def aclose(self) -> None:
        await self._exporter.aclose()


class _Counted:
    """An exporter that counts how many of its exports run at each location, and forgets refusals when one succeeds."""

    def __init__(
        self,
        exporter: ObservedExporter,
        active: Counter[str],
        refused: Counter[str],
        tell: Callable[[str], None],
        begins: Callable[[], Callable[[], None]],
    ) -> None:
        self._exporter = exporter
        self._active = active
        self._refused = refused
        self._tell = tell
        self._begins = begins

    async def export(self, batch: SpanBatch) -> ExportResult:
        self._active[batch.location] += 1
        result: ExportResult | None = None
        self._tell(f"export: {batch}")
        ends = self._begins()
        try:
            result = await self._exporter.export(batch)
            if isinstance(result, Delivered):
                self._refused[batch.location] = 0
            return result
        finally:
            self._active[batch.location] -= 1
            ends()
            self._tell(f"export: {batch} -> {result}")

    async def aclose(self) -> None:
        await self._exporter.aclose()


class _Log(logging.Handler):
    def __init__(self, take: Callable[[logging.LogRecord], None]) -> None:
        super().__init__()
        self._take = take

    def emit(self, record: logging.LogRecord) -> None:
        self._take(record)


class _Steps(trio.abc.Instrument):
    """Counts the scheduling steps, acts after one of them, and ends a run in which nothing can happen any more."""

    def __init__(self, act_at: int | None, act: Callable[[], None], end_a_standstill: Callable[[], None]) -> None:
        self.count = 0
        self.digest = 0
        self._act_at = act_at
        self._act = act
        self._end_a_standstill = end_a_standstill
        self._stood_still_at: int | None = None

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        self.count += 1
        self.digest = hash((self.digest, len(task.name), trio.current_time()))
        if self.count == self._act_at:
            self._act()
        if self.count > _MAX_STEPS:
            self._exit(f"no end after {self.count} steps")

    def before_io_wait(self, timeout: float) -> None:
        # Continue if a task is ready, a call is queued (by a thread, or to wake the driver), or there is a deadline to
        # which the clock can jump.
        runner = trio._core._run.GLOBAL_RUN_CONTEXT.runner
        if runner.runq or runner.entry_queue.size() or runner.deadlines.next_deadline() < math.inf:
            return
        if self._stood_still_at == self.count:
            self._exit("all tasks wait, and not even a cancel wakes one")
        self._stood_still_at = self.count
        self._end_a_standstill()

    def _exit(self, why: str) -> None:
        # trio would catch and log an exception of an instrument.
        os.write(2, f"{why}\n".encode())
        os._exit(1)
