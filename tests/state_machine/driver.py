"""The batcher that the state machine drives: its body, its exporter, and the tasks that add and flush.

The driver carries out a rule, tells the model, and lets the model check the statistics after each step of each task.
The exporter does not answer by itself: each export waits until a rule answers it.
"""

from __future__ import annotations

import logging
import math
import random
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import cast

import attrs
import trio

from tests.state_machine.location import Export, Settings
from tests.state_machine.model import FlushModel, Model
from tests.state_machine.rest import RestCheck
from tests.state_machine.support import MANY_STEPS, RunByHand, TaskWatch
from trio_spanbatch import EncodedSpan, ExportResult, SpanBatch, SpanBatcher
from trio_spanbatch._scheduler.location import Location

__all__ = ["Driver"]


class _LeavingError(Exception):
    """Raised by the body of the batcher, if it is to raise."""


class _FixedJitter(random.Random):
    """A random number generator that always returns the same number."""

    def __init__(self, number: float) -> None:
        super().__init__(0)
        self._number = number

    def random(self) -> float:
        return self._number


class _Live(dict[str, Location]):
    """The batcher's live locations. It tells when one is opened or ends."""

    def __init__(self, opened: Callable[[str], object], ended: Callable[[str], object]) -> None:
        super().__init__()
        self._opened = opened
        self._ended = ended

    def setdefault(self, name: str, location: Location) -> Location:
        if name not in self:
            self[name] = location
            self._opened(name)
        return self[name]

    def __delitem__(self, name: str) -> None:
        super().__delitem__(name)
        self._ended(name)

    def pop(self, name: str, default: Location | None = None) -> Location | None:  # type: ignore[override]  # without dict.pop's overloads
        location = super().pop(name, default)
        if location is not None:
            self._ended(name)
        return location


class _Remembered(OrderedDict[str, None]):
    """The ended locations whose counts are kept. It tells when one ends: the scheduler does so in its next step."""

    def __init__(self, added: Callable[[str], object]) -> None:
        super().__init__()
        self._added = added

    def __setitem__(self, name: str, _: None) -> None:
        super().__setitem__(name, None)
        self._added(name)


@attrs.define(eq=False)
class _Adder:
    """A task that adds spans and waits for space.

    Attributes:
        current: The span that it is adding.
        expected: The name of the error that must end it.
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


class Driver:
    """One batcher, the actions on it, and the model of it.

    Attributes:
        broken: Whether a check failed.
    """

    def __init__(self, settings: Settings) -> None:
        self.broken = False
        self.model = Model(settings)
        self.rest = RestCheck(self.model)
        self.adders: list[_Adder] = []
        self.flushers: list[_Flusher] = []
        self._ended_adders: list[tuple[_Adder, int | None]] = []
        self._entered = False
        self._left = False
        self._raises = False
        self._exporter_is_closed = False
        self._leave = trio.Event()
        self._finish = trio.Event()
        self._body_scope = trio.CancelScope()
        logger = logging.getLogger("trio_spanbatch.state_machine")
        logger.setLevel(logging.CRITICAL + 1)
        self._batcher = SpanBatcher(
            self,
            batch=lambda location: settings.policies[location],
            limits=settings.limits,
            retry=settings.retry,
            shutdown_timeout=settings.shutdown_timeout,
            on_loss=lambda loss: self._watch.guard(self.model.told_of, loss),
            rng=_FixedJitter(settings.jitter),
            logger=logger,
        )
        self._watch = TaskWatch(self._see)
        live = _Live(
            partial(self._watch.guard, self.model.location_opened),
            partial(self._watch.guard, self.model.location_ended),
        )
        self._batcher._live = self._batcher._scheduler.locations = live
        remembered = _Remembered(partial(self._watch.guard, self.model.location_is_remembered))
        self._batcher._scheduler.ledger._ended = remembered
        self.run = RunByHand(self._main, self._watch)

    # -- what is run -------------------------------------------------------------------------------------------

    async def _main(self) -> None:
        self._main_task = trio.lowlevel.current_task()
        async with trio.open_nursery() as self._nursery:
            self._living = trio.lowlevel.current_statistics().tasks_living
            try:
                with self._body_scope:
                    await self._body()
            except _LeavingError:
                pass
            self._left = True
            await self._finish.wait()

    async def _body(self) -> None:
        async with self._batcher:
            self._entered = True
            try:
                await self._leave.wait()
                if self._raises:
                    raise _LeavingError
            finally:
                # There is no checkpoint between here and the beginning of the drain.
                self.model.drain_begins()

    async def export(self, batch: SpanBatch) -> ExportResult:
        """Wait until a rule answers."""
        export = self._watch.guard(self.model.export_begins, batch)
        if export is None:
            raise AssertionError("this export must not begin")
        try:
            await export.answered.wait()
        except trio.Cancelled as cancelled:
            self._watch.guard(self.model.export_ends, export, cancelled)
            raise
        self._watch.guard(self.model.export_ends, export, export.answer)
        if isinstance(export.answer, Exception):
            raise export.answer
        # It may not be an ExportResult: some exporters return something else.
        return cast(ExportResult, export.answer)

    def endpoint_of(self, location: str) -> str:
        """Return an endpoint for each location: the model knows no outages, which `tests/unit/scheduler` has."""
        return location

    async def aclose(self) -> None:
        """Close the exporter."""
        self._exporter_is_closed = True
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
            self._watch.guard(_assert, closed or name == adder.expected, f"an adder got {error!r}")
            accepted = getattr(error, "accepted", None)
        if adder.scope.cancelled_caught and adder.current is not None:
            self.model.withdraw(adder.where, adder.current)
        self.adders.remove(adder)
        self._ended_adders.append((adder, accepted))

    async def _add_all(self, adder: _Adder) -> None:
        if len(adder.spans) == 1:
            self._begin_to_add(adder, adder.spans[0])
            await self._batcher.add_span(adder.where, adder.spans[0])
        else:
            adder.expected = "ClosedResourceError" if self.model.draining else None
            await self._batcher.add_spans(adder.where, self._each(adder))

    def _each(self, adder: _Adder) -> Iterator[EncodedSpan]:
        for span in adder.spans:
            self._begin_to_add(adder, span)
            yield span

    def _begin_to_add(self, adder: _Adder, span: EncodedSpan) -> None:
        adder.current = span
        adder.expected = self.model.expected_error(adder.where, [span])
        if adder.expected is not None:
            return
        has_to_wait = not self.model.admits(adder.where, [span])
        self.model.stand_in_line(adder.where, [span])
        if has_to_wait and len(adder.spans) == 1:
            # Of several spans, those before it may be in the line until the end of this step.
            self.model.has_to_wait(adder.where, span)
        if has_to_wait and adder.scope.cancel_called:
            # It was cancelled before it joined the line, so it leaves at once.
            self.model.withdraw(adder.where, span)

    async def _flush(self, flusher: _Flusher) -> None:
        flush: FlushModel | None = None
        try:
            with flusher.scope:
                await trio.lowlevel.checkpoint_if_cancelled()
                if not self.model.draining:
                    flush = self.model.flush_begins(flusher.where)
                report = await self._batcher.flush(flusher.where)
                self._watch.guard(self.model.flush_returns, flush, report)
        except trio.ClosedResourceError:
            self._watch.guard(_assert, flush is None, "a flush ended early because the batcher was closed")
        if flusher.scope.cancelled_caught and flush is not None:
            self.model.flushes.remove(flush)
        self.flushers.remove(flusher)

    # -- the frame of every rule -------------------------------------------------------------------------------

    @contextmanager
    def acting(self, steps: int | None) -> Iterator[None]:
        """Carry out an action, check, and let the run continue: for some steps, or until it is blocked."""
        self.broken = True
        yield
        self._see()
        self._go_on(steps)
        self.broken = False

    def _see(self) -> None:
        if self._entered:
            self.model.see(self._batcher.statistics())
            while self._ended_adders:
                self._check_ended(*self._ended_adders.pop())

    def _check_ended(self, adder: _Adder, accepted: int | None) -> None:
        """Check that the spans were accepted that an adder reports, and no later ones."""
        begun = 0 if adder.current is None else adder.spans.index(adder.current)
        number = begun if accepted is None else accepted
        spans = self.model.locations[adder.where].spans
        was_accepted = [any(one is span for one in spans) for span in adder.spans]
        assert was_accepted == [True] * number + [False] * (len(adder.spans) - number)

    def _go_on(self, steps: int | None) -> None:
        for _ in range(MANY_STEPS if steps is None else steps):
            if self.run.is_blocked():
                break
            self.model.scheduled += 1
            self.run.step()
        if self.run.outcome is not None:
            return
        if self.run.is_blocked():
            self._look_at_rest()
        elif steps is None:
            raise AssertionError(f"the run does not come to rest within {MANY_STEPS} steps")

    def _look_at_rest(self) -> None:
        self.rest.look(self._batcher.statistics())
        self.model.check_rest()
        lines = sum(len(location.line) for location in self.model.locations.values())
        assert len(self.adders) == lines, "an adder waits in vain, or returned too early"
        assert len(self.flushers) == len(self.model.flushes), "a flush waits in vain, or returned too early"
        if self._left:
            self._look_at_end()
            return
        now = trio.current_time()
        if self.model.draining:
            assert self.model.unsettled, "the drain does not end"
            assert now < self.model.drain_began_at + self.model.settings.shutdown_timeout, "the drain takes too long"
        # Only time can wake a run at rest: if its next timer is too late, a deadline will be missed.
        assert self.run.next_timer() <= self.rest.next_time() - now + 1e-9, "no timer will wake the run in time"

    def _look_at_end(self) -> None:
        assert not self.model.unsettled, "spans were lost"
        assert not self.model.exports
        assert not self.model.live
        assert self._exporter_is_closed
        assert self.run.next_timer() == math.inf, "a timer is left"
        assert trio.lowlevel.current_statistics().tasks_living == self._living, "a task is left"

    # -- what rules do, inside that frame ----------------------------------------------------------------------

    def add_nowait(self, where: str, spans: list[EncodedSpan]) -> bool:
        """Add spans without waiting. Return whether they were accepted."""
        expected = self.model.expected_error(where, spans)
        if expected is None and not self.model.admits(where, spans):
            expected = "WouldBlock"
        error = self._try_to_add(where, spans)
        assert error == expected, f"adding without waiting ended with {error}, not {expected}"
        if expected is None:
            self.model.stand_in_line(where, spans)
        return expected is None

    def _try_to_add(self, where: str, spans: list[EncodedSpan]) -> str | None:
        try:
            if len(spans) == 1:
                self._batcher.add_span_nowait(where, spans[0])
            else:
                self._batcher.add_spans_nowait(where, spans)
        except (ValueError, trio.WouldBlock, trio.ClosedResourceError) as error:
            return type(error).__name__
        return None

    def fill(self, where: str, spans: list[EncodedSpan]) -> None:
        """Add spans until one does not fit."""
        for span in spans:
            if not self.add_nowait(where, [span]):
                return
            self._see()

    def start_adder(self, where: str, spans: list[EncodedSpan]) -> None:
        self.adders.append(adder := _Adder(where, spans))
        self._nursery.start_soon(self._add, adder)

    def cancel_adder(self, which: int) -> None:
        """Cancel an adder. If it waits, it leaves the line in this call, and others may take its place."""
        adder = self.adders[which % len(self.adders)]
        adder.scope.cancel()
        if adder.current is not None:
            self.model.withdraw(adder.where, adder.current)

    def start_flush(self, where: str | None) -> None:
        self.flushers.append(flusher := _Flusher(where))
        self._nursery.start_soon(self._flush, flusher)

    def cancel_flush(self, which: int) -> None:
        self.flushers[which % len(self.flushers)].scope.cancel()

    def leave_body(self, how: str) -> None:
        """Begin the drain, because the body ends, raises, or is cancelled."""
        self._raises = how == "raise"
        if how == "cancel":
            self._body_scope.cancel()
        else:
            self._leave.set()

    def unanswered(self) -> list[Export]:
        return [export for export in self.model.exports if not export.answered.is_set()]

    def answer(self, export: Export, answer: object) -> None:
        export.answer = answer
        export.answered.set()

    def let_time_pass(self, seconds: float) -> None:
        self.run.clock.jump(seconds)

    def seconds_to_next_time(self) -> float:
        """Return the seconds until the next event that needs no action, according to the run or to the model."""
        next_time = self.rest.next_time() - trio.current_time() if self._entered else math.inf
        return min(self.run.next_timer(), next_time)

    # -- the end -----------------------------------------------------------------------------------------------

    def end(self, answer: object | None) -> None:
        """Leave the body, unless it was left before, and drain to the end.

        Args:
            answer: The answer to all exports; None leaves them without one, so that the drain ends at its deadline.
        """
        with self.acting(None):
            self._leave.set()
        for _ in range(MANY_STEPS):
            if self._left:
                break
            with self.acting(None):
                self._help_to_end(answer)
        assert self._left, "the drain does not end"
        self._finish.set()
        self._go_on(None)
        assert self.run.outcome is not None
        self.run.outcome.unwrap()

    def _help_to_end(self, answer: object | None) -> None:
        if (exports := self.unanswered()) and answer is not None:
            self.answer(exports[0], answer)
        else:
            self.let_time_pass(self.run.next_timer())

    def abandon(self) -> None:
        """End the run, whatever its state."""
        self.run.abandon(self._main_task)


def _assert(condition: bool, message: str) -> None:
    assert condition, message
