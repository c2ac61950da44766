"""A state machine that drives a batcher through everything that users, servers and the clock can do to it.

Hypothesis picks small limits and then a sequence of rules; `state_machine_model` says after each step of each task
whether what is seen can be, and `state_machine_rest` whether anything was left undone whenever the run stands still. A
rule does one thing and then lets the run go on: until nothing happens any more, or only for a few steps, so that the
next rule falls into the middle of something.

The exporter answers nothing by itself. Each export that runs waits until a rule answers it.

To run the machine against another copy of the package, put that copy in front of ``sys.path`` and call
`run_state_machine`.
"""

from __future__ import annotations

import logging
import math
import random
from collections.abc import Iterator
from contextlib import contextmanager

import attrs
import trio
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test
from state_machine_location import Export, Settings
from state_machine_model import FlushModel, Model
from state_machine_rest import RestCheck
from state_machine_run import MANY_STEPS, RunByHand, TaskWatch

from trio_spanbatch import (
    BatchPolicy,
    Delivered,
    EncodedSpan,
    ExportResult,
    Limits,
    Refused,
    RetryPolicy,
    SpanBatch,
    SpanBatcher,
    TryLater,
)

__all__ = ["SpanBatcherMachine", "run_state_machine"]

LOCATIONS = ("a", "b", "c", "d")

# Resource and scope of spans: a batch may hold spans of several, and its exact size depends on them.
HEADERS = ((b"\x0a\x00", b"\x0a\x00"), (b"\x0a\x00", b"\x0a\x03\x0a\x01x"), (b"\x0a\x02\x10\x01", b"\x0a\x00"))

POLICIES = st.builds(
    BatchPolicy,
    max_spans=st.integers(1, 5),
    max_bytes=st.sampled_from([1, 100, 200, 350, 5000]),
    max_delay=st.sampled_from([1.0, 4.0, math.inf]),
)

LIMITS = st.builds(
    Limits,
    max_queued_spans=st.integers(1, 6),
    max_pending_bytes=st.sampled_from([150, 300, 600, 5000]),
    max_pending_bytes_per_location=st.sampled_from([150, 250, 400, 5000]),
    max_locations=st.integers(1, 4),
    max_exports=st.integers(1, 4),
    max_exports_per_location=st.integers(1, 3),
    location_idle_timeout=st.sampled_from([1.0, 8.0, math.inf]),
)

RETRIES = st.builds(
    RetryPolicy,
    initial=st.sampled_from([0.5, 2.0]),
    maximum=st.sampled_from([2.0, 8.0]),
    multiplier=st.sampled_from([1.0, 2.0]),
    max_elapsed=st.sampled_from([3.0, 20.0, math.inf]),
    attempt_timeout=st.sampled_from([2.0, 10.0, math.inf]),
)

SETTINGS = st.builds(
    Settings,
    limits=LIMITS,
    retry=RETRIES,
    policies=st.fixed_dictionaries(dict.fromkeys(LOCATIONS, POLICIES)),
    jitter=st.sampled_from([0.5, 1.0]),
    shutdown_timeout=st.sampled_from([4.0, 0.0, 0.5, 30.0]),
)

ANSWERS = st.sampled_from(
    [
        *[Delivered()] * 6,
        Delivered(rejected=1),
        Delivered(rejected=3),
        TryLater("busy"),
        TryLater("broken", ambiguous=True),
        TryLater("overloaded", after=1.5),
        TryLater("overloaded", after=6.0),
        Refused("no"),
        Refused("bad spans", status_code=400, isolate=True),
        Refused("too large", status_code=413, isolate=True),
        RuntimeError("a bug"),
        "no result",
    ]
)

# How many steps a rule lets the run go; None: until nothing happens any more.
STEPS = st.sampled_from([None, None, None, 0, 1, 2, 3])

WHICH = st.integers(0, 9)
SIZES = st.integers(1, 140)
WHERE = st.sampled_from(LOCATIONS)


class _LeavingError(Exception):
    """What the body of the batcher raises if that is how it ends."""


class _FixedJitter(random.Random):
    """A random number generator whose numbers are known."""

    def __init__(self, number: float) -> None:
        super().__init__(0)
        self._number = number

    def random(self) -> float:
        return self._number


@attrs.define(eq=False)
class _Adder:
    """A task that adds spans and waits for room.

    Attributes:
        current: The span that it adds now.
        expected: The name of the error that it has to end with.
    """

    where: str
    spans: list[EncodedSpan]
    scope: trio.CancelScope = attrs.Factory(trio.CancelScope)
    current: EncodedSpan | None = None
    expected: str | None = None


@attrs.define(eq=False)
class _Flusher:
    """A task that flushes."""

    where: str | None
    scope: trio.CancelScope = attrs.Factory(trio.CancelScope)


class SpanBatcherMachine(RuleBasedStateMachine):
    """A batcher, everything that is done to it, and the model that knows what has to come of it."""

    def __init__(self) -> None:
        super().__init__()
        self.broken = False
        self.entered = False
        self.left_at: float | None = None
        self.exporter_is_closed = False
        self.adders: list[_Adder] = []
        self.flushers: list[_Flusher] = []
        self.ended_adders: list[tuple[_Adder, int | None]] = []

    @initialize(options=SETTINGS, end_by_waiting=st.booleans(), _=st.random_module())
    def enter(self, options: Settings, end_by_waiting: bool, _: object) -> None:
        self.end_by_waiting = end_by_waiting
        self.model = Model(options)
        self.rest = RestCheck(self.model)
        logger = logging.getLogger("trio_spanbatch.state_machine")
        logger.setLevel(logging.CRITICAL + 1)
        self.batcher = SpanBatcher(
            self,
            batch=lambda location: options.policies[location],
            limits=options.limits,
            retry=options.retry,
            shutdown_timeout=options.shutdown_timeout,
            on_loss=lambda loss: self.watch.guard(self.model.told_of, loss),
            rng=_FixedJitter(options.jitter),
            logger=logger,
        )
        self.leave = trio.Event()
        self.finish = trio.Event()
        self.body = trio.CancelScope()
        self.raises = False
        self.watch = TaskWatch(self.model.task_spawned, self.model.task_exited, self._see)
        self.run = RunByHand(self._main, self.watch)
        with self._acting(None):
            pass

    # -- what is run -------------------------------------------------------------------------------------------

    async def _main(self) -> None:
        self.main_task = trio.lowlevel.current_task()
        async with trio.open_nursery() as self.nursery:
            self.living = trio.lowlevel.current_statistics().tasks_living
            try:
                with self.body:
                    await self._body()
            except _LeavingError:
                pass
            self.left_at = trio.current_time()
            await self.finish.wait()

    async def _body(self) -> None:
        async with self.batcher:
            self.entered = True
            try:
                await self.leave.wait()
                if self.raises:
                    raise _LeavingError
            finally:
                # No checkpoint from here to the drain's beginning.
                self.model.drain_begins()

    async def export(self, batch: SpanBatch) -> ExportResult:
        """Wait until a rule answers."""
        export = self.watch.guard(self.model.export_begins, batch)
        if export is None:
            raise AssertionError("an export that must not be")
        try:
            await export.answered.wait()
        except trio.Cancelled as cancelled:
            self.watch.guard(self.model.export_ends, export, cancelled)
            raise
        self.watch.guard(self.model.export_ends, export, export.answer)
        if isinstance(export.answer, Exception):
            raise export.answer
        return export.answer  # type: ignore[return-value]  # a wrong one is what some exporters return

    async def aclose(self) -> None:
        """Close the exporter."""
        self.exporter_is_closed = True
        await trio.lowlevel.checkpoint()

    async def _add(self, adder: _Adder) -> None:
        accepted = None
        try:
            with adder.scope:
                await trio.lowlevel.checkpoint_if_cancelled()
                await self._add_all(adder)
                accepted = len(adder.spans)
        except (ValueError, trio.ClosedResourceError) as error:
            name = type(error).__name__
            closed = self.model.draining and name == "ClosedResourceError"
            self.watch.guard(_assert, closed or name == adder.expected, f"an adder got {error!r}")
            accepted = getattr(error, "accepted", None)
        if adder.scope.cancelled_caught and adder.current is not None:
            self.model.withdraw(adder.where, adder.current)
        self.adders.remove(adder)
        self.ended_adders.append((adder, accepted))

    async def _add_all(self, adder: _Adder) -> None:
        if len(adder.spans) == 1:
            self._begin_to_add(adder, adder.spans[0])
            await self.batcher.add_span(adder.where, adder.spans[0])
        else:
            adder.expected = "ClosedResourceError" if self.model.draining else None
            await self.batcher.add_spans(adder.where, self._each(adder))

    def _each(self, adder: _Adder) -> Iterator[EncodedSpan]:
        for span in adder.spans:
            self._begin_to_add(adder, span)
            yield span

    def _begin_to_add(self, adder: _Adder, span: EncodedSpan) -> None:
        adder.current = span
        adder.expected = self.model.expected_error(adder.where, [span])
        if adder.expected is None:
            self.model.stand_in_line(adder.where, [span])

    async def _flush(self, flusher: _Flusher) -> None:
        flush: FlushModel | None = None
        try:
            with flusher.scope:
                await trio.lowlevel.checkpoint_if_cancelled()
                if not self.model.draining:
                    flush = self.model.flush_begins(flusher.where)
                report = await self.batcher.flush(flusher.where)
                self.watch.guard(self.model.flush_returns, flush, report)
        except trio.ClosedResourceError:
            self.watch.guard(_assert, flush is None, "a flush ended early because the batcher was closed")
        if flusher.scope.cancelled_caught and flush is not None:
            self.model.flushes.remove(flush)
        self.flushers.remove(flusher)

    # -- the frame of every rule -------------------------------------------------------------------------------

    @contextmanager
    def _acting(self, steps: int | None) -> Iterator[None]:
        """Do something, look, and let the run go on."""
        self.broken = True
        yield
        self._see()
        self._go_on(steps)
        self.broken = False

    def _see(self) -> None:
        if self.entered:
            self.model.see(self.batcher.statistics())
            while self.ended_adders:
                self._check_ended(*self.ended_adders.pop())

    def _check_ended(self, adder: _Adder, accepted: int | None) -> None:
        """What an adder was told is what happened. One that ended early was not accepted from there on."""
        begun = 0 if adder.current is None else adder.spans.index(adder.current)
        number = begun if accepted is None else accepted
        was_accepted = [span in self.model.locations[adder.where].spans for span in adder.spans]
        assert was_accepted == [True] * number + [False] * (len(adder.spans) - number)

    def _go_on(self, steps: int | None) -> None:
        for _ in range(MANY_STEPS if steps is None else steps):
            if self.run.is_blocked():
                break
            self.model.scheduled += 1
            self.run.step()
        if self.run.is_blocked():
            self._look_at_rest()
        elif steps is None:
            raise AssertionError(f"the run does not come to rest within {MANY_STEPS} steps")

    def _look_at_rest(self) -> None:
        if self.run.outcome is not None:
            return
        self.rest.look(self.batcher.statistics())
        lines = sum(len(location.line) for location in self.model.locations.values())
        assert len(self.adders) == lines, "an adder waits in vain, or returned too early"
        assert len(self.flushers) == len(self.model.flushes), "a flush waits in vain, or returned too early"
        if self.model.draining and self.left_at is None:
            assert any(location.unsettled for location in self.model.locations.values()), "the drain does not end"
            assert trio.current_time() < self.model.drain_began_at + self.model.settings.shutdown_timeout
        if self.left_at is not None:
            self._look_at_end()

    def _look_at_end(self) -> None:
        assert not any(location.unsettled for location in self.model.locations.values()), "spans were lost"
        assert not self.model.exports
        assert not self.model.live
        assert self.exporter_is_closed
        assert self.run.next_timer() == math.inf, "a timer is left"
        assert trio.lowlevel.current_statistics().tasks_living == self.living, "a task is left"

    # -- rules: programs ---------------------------------------------------------------------------------------

    def _spans(self, sizes: list[int]) -> list[EncodedSpan]:
        return [EncodedSpan(b"x" * size, *HEADERS[size % len(HEADERS)]) for size in sizes]

    @rule(where=WHERE, sizes=st.lists(SIZES, min_size=1, max_size=4), steps=STEPS)
    def add_nowait(self, where: str, sizes: list[int], steps: int | None) -> None:
        spans = self._spans(sizes)
        with self._acting(steps):
            expected = self.model.expected_error(where, spans)
            if expected is None and not self.model.admits(where, spans):
                expected = "WouldBlock"
            assert self._try_to_add(where, spans) == expected
            if expected is None:
                self.model.stand_in_line(where, spans)

    def _try_to_add(self, where: str, spans: list[EncodedSpan]) -> str | None:
        try:
            if len(spans) == 1:
                self.batcher.add_span_nowait(where, spans[0])
            else:
                self.batcher.add_spans_nowait(where, spans)
        except (ValueError, trio.WouldBlock, trio.ClosedResourceError) as error:
            return type(error).__name__
        return None

    @precondition(lambda self: len(self.adders) < 6)
    @rule(where=WHERE, sizes=st.lists(SIZES, min_size=1, max_size=3), steps=STEPS)
    def start_adder(self, where: str, sizes: list[int], steps: int | None) -> None:
        with self._acting(steps):
            self.adders.append(adder := _Adder(where, self._spans(sizes)))
            self.nursery.start_soon(self._add, adder)

    @precondition(lambda self: self.adders)
    @rule(which=WHICH, steps=STEPS)
    def cancel_adder(self, which: int, steps: int | None) -> None:
        with self._acting(steps):
            adder = self.adders[which % len(self.adders)]
            # In this call an adder that waits leaves the line, and others may take its place.
            adder.scope.cancel()
            if adder.current is not None:
                self.model.withdraw(adder.where, adder.current)

    @precondition(lambda self: len(self.flushers) < 3)
    @rule(where=st.none() | WHERE, steps=STEPS)
    def start_flush(self, where: str | None, steps: int | None) -> None:
        with self._acting(steps):
            self.flushers.append(flusher := _Flusher(where))
            self.nursery.start_soon(self._flush, flusher)

    @precondition(lambda self: self.flushers)
    @rule(which=WHICH, steps=STEPS)
    def cancel_flush(self, which: int, steps: int | None) -> None:
        with self._acting(steps):
            self.flushers[which % len(self.flushers)].scope.cancel()

    @precondition(lambda self: self.entered and not self.model.draining)
    @rule(how=st.sampled_from(["stay", "stay", "stay", "stay", "stay", "return", "raise", "cancel"]), steps=STEPS)
    def leave_body(self, how: str, steps: int | None) -> None:
        with self._acting(steps):
            self.raises = how == "raise"
            if how == "cancel":
                self.body.cancel()
            elif how != "stay":
                self.leave.set()

    # -- rules: servers and time -------------------------------------------------------------------------------

    def _unanswered(self) -> list[Export]:
        return [export for export in self.model.exports if not export.answered.is_set()]

    def _answer(self, export: Export, answer: object) -> None:
        export.answer = answer
        export.answered.set()

    @precondition(lambda self: self._unanswered())
    @rule(which=WHICH, answer=ANSWERS, steps=STEPS)
    def answer(self, which: int, answer: object, steps: int | None) -> None:
        with self._acting(steps):
            exports = self._unanswered()
            self._answer(exports[which % len(exports)], answer)

    @precondition(lambda self: len(self._unanswered()) > 1)
    @rule(answer=ANSWERS, steps=STEPS)
    def answer_all(self, answer: object, steps: int | None) -> None:
        with self._acting(steps):
            for export in self._unanswered():
                self._answer(export, answer)

    @rule(seconds=st.sampled_from([0.25, 0.5, 1.0, 2.5, 8.0]), steps=STEPS)
    def let_time_pass(self, seconds: float, steps: int | None) -> None:
        with self._acting(steps):
            self.run.clock.jump(seconds)

    @precondition(lambda self: 0 < self.run.next_timer() < math.inf)
    @rule(steps=STEPS)
    def wait_for_the_next_timer(self, steps: int | None) -> None:
        with self._acting(steps):
            self.run.clock.jump(self.run.next_timer())

    # -- the end -----------------------------------------------------------------------------------------------

    def teardown(self) -> None:
        """End the run: as it should end, or somehow if something was wrong already."""
        if not hasattr(self, "run"):
            return
        try:
            if not self.broken:
                self._end()
        finally:
            self.run.abandon(self.main_task)

    def _end(self) -> None:
        with self._acting(None):
            self.leave.set()
        for _ in range(MANY_STEPS):
            if self.left_at is not None:
                break
            with self._acting(None):
                self._help_to_end()
        assert self.left_at is not None, "the drain does not end"
        self.finish.set()
        self._go_on(None)
        assert self.run.outcome is not None
        self.run.outcome.unwrap()

    def _help_to_end(self) -> None:
        exports = self._unanswered()
        if exports and not self.end_by_waiting:
            self._answer(exports[0], Delivered())
        else:
            self.run.clock.jump(self.run.next_timer())


def _assert(condition: bool, message: str) -> None:
    assert condition, message


def run_state_machine(examples: int, *, steps: int = 40, shrink: bool = True) -> None:
    """Drive batchers through ``examples`` random sequences of at most ``steps`` rules. Raise what is found.

    They are other ones in each run. The message of a failure has the rules that lead to it, the fewest that were found
    if ``shrink``, and a line that makes Hypothesis repeat it.
    """
    phases = set(Phase) - {Phase.explain} - (set() if shrink else {Phase.shrink, Phase.reuse})
    run_state_machine_as_test(
        SpanBatcherMachine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            phases=tuple(phases),
            derandomize=False,
            print_blob=True,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
