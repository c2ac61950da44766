"""Run a scenario with a cancel after one of its scheduling steps, and check its outcome.

A run without a cancel is the model. It gives the number of steps and a trail: after each step, a checksum of the names
of the tasks that ran. A run with a cancel must have the same trail up to the cancel. So the n-th step is the same
moment in each repetition, and cancelling after every step misses no moment.

`SCOPES` names what can be cancelled:

- ``everything``: a scope around the whole ``async with``, drain included;
- ``body``: a scope inside the ``async with``, without the drain;
- ``error``: the same scope as ``body``, but the body then raises an exception;
- ``adder`` and ``flusher``: one of several calls;
- ``ctrl-c``: a SIGINT, which interrupts the body or the deliveries of the drain.
"""

from __future__ import annotations

import signal
import zlib
from collections.abc import Callable, Mapping, Sequence

import attrs
import pytest
import trio

from tests.cancellation.scenarios import SCENARIOS
from tests.cancellation.support import HTTPWorld, MemoryWorld, World
from tests.support.at_rest import AtRest, RestWatch
from tests.support.leftovers import Rest, no_complaints, tasks_of_batchers
from tests.support.oracle import Facts, OracleWatch
from tests.support.seeded_trio import run_seeded

__all__ = ["SCOPES", "Model", "Plan", "run"]

SCOPES = ("everything", "body", "error", "adder", "flusher", "ctrl-c")

_SEED = 1

# A run takes minutes at most on the mock clock.
_A_DAY = 86400.0


class BodyError(Exception):
    """Raised by the body of the ``async with``."""


@attrs.frozen
class Plan:
    """A scenario and its cancels.

    Attributes:
        scenario: The scenario's name.
        http: Whether spans go through the whole HTTP path.
        scope: The scope to cancel.
        step: The step after which to cancel it; 0 is before the first step, None is never.
        then: The step after which to cancel ``second`` too, or None.
        second: The scope of the second cancel.
        spool: Whether there is a spool in memory.
    """

    scenario: str
    http: bool = False
    scope: str = "everything"
    step: int | None = None
    then: int | None = None
    second: str = "everything"
    spool: bool = False


@attrs.frozen
class Model:
    """The record of a run, mostly of one without a cancel.

    Attributes:
        trail: A checksum for each number of steps, from 0.
        scopes: The scopes that can be cancelled in the scenario.
        outcomes: Each span's outcome, by its id.
    """

    trail: Sequence[int]
    scopes: Sequence[str]
    outcomes: Mapping[int, str]

    @property
    def steps(self) -> int:
        return len(self.trail) - 1


def run(plan: Plan, model: Model | None = None, *, tell: Callable[[str], None] | None = None) -> Model:
    """Run a scenario and check its outcome.

    Args:
        plan: The scenario and its cancels.
        model: The record of the same scenario without a cancel; required if ``plan`` has one.
        tell: Called with a line of text for each step.
    """
    scenario = SCENARIOS[plan.scenario]
    with no_complaints(scenario.tracebacks):
        one = _Run(plan, tell)
        try:
            run_seeded(_SEED, one.live)
        except KeyboardInterrupt:
            # The interrupt came after the batcher was left; an earlier one is checked below.
            assert "ctrl-c" in (plan.scope, plan.second)
    facts = one.check()
    outcomes = _outcomes(facts)
    if model is not None:
        assert one.trail_at_cancel == model.trail[plan.step or 0], "the steps before the cancel differ from the model's"
        _check_others(plan, one.world, model.outcomes, outcomes)
    scopes = [name for name in SCOPES if name in one.world.entered | {"everything", "body", "error", "ctrl-c"}]
    return Model(one.trail, scopes, outcomes)


def _outcomes(facts: Facts) -> dict[int, str]:
    rejected = facts.left_out | set(facts.rejected)
    # How long a program runs decides whether a span that nobody takes is handed back or left in the spool.
    outcomes = dict.fromkeys(facts.accepted, "delivered") | dict.fromkeys(facts.spooled, "undelivered")
    return outcomes | dict.fromkeys(rejected, "rejected") | dict.fromkeys(facts.undelivered, "undelivered")


def _check_others(plan: Plan, world: World, before: Mapping[int, str], now: Mapping[int, str]) -> None:
    """Check that cancelling an adder or a flusher changed no other task's spans."""
    if plan.scope not in ("adder", "flusher") or not SCENARIOS[plan.scenario].steady:
        return
    disturbed = world.victims if plan.scope == "adder" else set()
    for span_id in before.keys() | now.keys():
        was, is_now = before.get(span_id, "not accepted"), now.get(span_id, "not accepted")
        assert span_id in disturbed or was == is_now, f"cancelling another task made span {span_id} {is_now}, not {was}"


class _Run(trio.abc.Instrument):
    """One run and its cancels."""

    def __init__(self, plan: Plan, tell: Callable[[str], None] | None) -> None:
        self._plan = plan
        self._tell = tell
        self._scenario = SCENARIOS[plan.scenario]
        self.world = (HTTPWorld if plan.http else MemoryWorld)(self._scenario.settings, spool=plan.spool)
        self._watch = OracleWatch(self.world.oracle)
        self._at_rest = AtRest(self.world.batcher, self.world.limits, self.world.active)
        self._rest_watch = RestWatch(self._at_rest)
        self.trail = [0]
        self.trail_at_cancel: int | None = None
        self._cancelled_at: float | None = None
        self._body_ended_at: float | None = None
        self._body_raised: BaseException | None = None
        self._left_at: float | None = None
        self._raised: BaseException | None = None
        self._left_over: list[str] = []
        # The time of a Ctrl-C, and whether "everything" was cancelled, before the batcher was left.
        self._interrupted_at: float | None = None
        self._must_be_cancelled = False

    # -- the run -----------------------------------------------------------------------------------------------

    async def live(self) -> None:
        async with self.world.opened():
            rest = Rest.now()
            if self._plan.step == 0:
                self._cancel(self._first_scope)
            for instrument in (self, self._rest_watch):
                trio.lowlevel.add_instrument(instrument)
            try:
                with trio.fail_after(_A_DAY):
                    await self._live_in_scope()
            finally:
                for instrument in (self, self._rest_watch):
                    trio.lowlevel.remove_instrument(instrument)
            await self.world.come_to_rest()
            rest.assert_again()

    async def _live_in_scope(self) -> None:
        with self.world.scopes["everything"]:
            async with trio.open_nursery() as self.world.outside:
                try:
                    await self._live_with_batcher()
                except BaseException as exc:  # noqa: ASYNC103  # only a Cancelled is raised again
                    self._raised = exc
                    if not (isinstance(exc, BodyError) or _is_interrupt(exc)):
                        raise
                finally:
                    self._left_at = trio.current_time()
                    self._left_over = [
                        *tasks_of_batchers(),
                        *self.world.what_the_exporter_left(),
                        *self._at_rest.faults_at_the_end(),
                    ]

    async def _live_with_batcher(self) -> None:
        async with self.world.batcher:
            try:
                await self._live_in_body()
            except BaseException as exc:
                self._body_raised = exc
                raise
            finally:
                self._body_ended_at = trio.current_time()

    async def _live_in_body(self) -> None:
        with self.world.scopes["body"] as body:
            await self._scenario.program(self.world)
        if self._plan.scope == "error" and body.cancelled_caught:
            raise BodyError

    # -- the cancel --------------------------------------------------------------------------------------------

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        step = len(self.trail)
        self.trail.append(zlib.crc32(task.name.encode(), self.trail[-1]))
        if self._tell is not None:
            self._tell(f"{step:4} {trio.current_time():8.3f} s  {task.name:50} {_counts(self.world)}")
        if step == self._plan.step:
            self._cancel(self._first_scope)
        if step == self._plan.then:
            self._cancel(self._plan.second)
        # The model checked the steps before the cancel.
        if step >= (self._plan.step or 0):
            self._watch.after_task_step(task)

    @property
    def _first_scope(self) -> str:
        return "body" if self._plan.scope == "error" else self._plan.scope

    def _cancel(self, name: str) -> None:
        now = trio.current_time()
        if self._tell is not None:
            self._tell(f"     cancel: {name}")
        if self.trail_at_cancel is None:
            self.trail_at_cancel = self.trail[-1]
            self._cancelled_at = now
        is_inside = self._left_at is None
        if name == "ctrl-c":
            self._interrupted_at = now if is_inside else None
            signal.raise_signal(signal.SIGINT)
        else:
            self._must_be_cancelled |= is_inside and name == "everything"
            self.world.scopes[name].cancel()

    # -- checks ------------------------------------------------------------------------------------------------

    def check(self) -> Facts:
        """Check the end of the run, and raise what the checks after each step found."""
        if self._watch.failure is not None:
            raise self._watch.failure
        assert self._rest_watch.failure is None, self._rest_watch.failure
        assert not self._left_over, f"left over: {self._left_over}"
        self._check_times()
        self._check_exceptions()
        with pytest.raises(trio.ClosedResourceError):
            self.world.batcher.add_span_nowait("a", self.world.spans(1)[0])
        return self.world.oracle.check_end(
            self.world.batcher.statistics(),
            self.world.stored(),
            by_location=not self._scenario.forgets_locations,
            on_disk=self.world.on_disk(),
        )

    def _check_times(self) -> None:
        # A cancelled entry closes the exporter, which may take the same time.
        began_at = self._cancelled_at if self._body_ended_at is None else self._body_ended_at
        assert began_at is not None, "the body did not begin without a cancel"
        assert self._left_at is not None
        timeout = self._scenario.settings.shutdown_timeout
        assert self._left_at <= began_at + timeout, f"leaving took {self._left_at - began_at} s, more than {timeout}"
        if self._body_ended_at is None or self._cancelled_at is None:
            return
        if self._first_scope in ("body", "everything", "ctrl-c"):
            assert self._body_ended_at <= self._cancelled_at, "the body did not end as soon as it was cancelled"
        if self._interrupted_at is not None and not _is_interrupt(self._body_raised):
            # The drain was stopped; the rest of its time is for closing the exporter.
            assert self._left_at <= self._interrupted_at + min(1.0, timeout / 10), "the drain was not stopped at once"

    def _check_exceptions(self) -> None:
        if self._body_raised is not None:
            assert self._raised is self._body_raised, (
                f"the body raised {self._body_raised!r}, the batcher raised {self._raised!r}"
            )
        elif self._must_be_cancelled:
            assert isinstance(self._raised, trio.Cancelled), f"cancelled, and the batcher raised {self._raised!r}"
        elif self._interrupted_at is not None:
            assert isinstance(self._raised, KeyboardInterrupt), f"interrupted, and the batcher raised {self._raised!r}"
        else:
            assert self._raised is None, f"the batcher should raise nothing and raised {self._raised!r}"
        if self._plan.scope == "error":
            was_cancelled = self.world.scopes["body"].cancelled_caught
            assert isinstance(self._body_raised, BodyError) == was_cancelled, "the body did not end as planned"


def _is_interrupt(exc: BaseException | None) -> bool:
    """Return whether ``exc`` is a KeyboardInterrupt, or a group of nothing else."""
    return isinstance(exc, KeyboardInterrupt) or (
        isinstance(exc, BaseExceptionGroup) and exc.split(KeyboardInterrupt)[1] is None
    )


def _counts(world: World) -> str:
    counts = world.batcher.statistics()
    names = ("accepted", "queued", "in_flight", "delivered", "rejected", "undelivered", "ambiguous")
    return ", ".join(f"{getattr(counts, name)} {name}" for name in names if getattr(counts, name))
