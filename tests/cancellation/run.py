"""One run of a scenario, with a cancel after one of its scheduling steps, and all that has to hold then.

A run without a cancel is the model. It tells how many steps there are and leaves a trail: after each step a checksum of
the names of the tasks that ran. A run with a cancel has to have the same trail until then: so the n-th step is the same
moment in each repetition, and cancelling after each of them leaves none out.

What can be cancelled, a `SCOPES` name each:

- ``everything``: a scope around the whole ``async with``, so that the drain is under the cancel too;
- ``body``: a scope inside of it, so that the drain is not;
- ``error``: as ``body``, but then the body raises an exception instead of ending well;
- ``adder`` and ``flusher``: one call of many;
- ``ctrl-c``: a SIGINT, which interrupts the body, or the deliveries of the drain.
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

# Everything takes minutes at most, on the mock clock.
_A_DAY = 86400.0


class BodyError(Exception):
    """What the body of the ``async with`` raises."""


@attrs.frozen
class Plan:
    """What to run, and what to cancel.

    Attributes:
        scenario: Its name.
        http: Whether it goes over the whole HTTP path.
        scope: What is cancelled.
        step: After which step; 0 is before the first. None does not cancel.
        then: After which step there is another cancel; None is for no other.
        second: What is cancelled then.
    """

    scenario: str
    http: bool = False
    scope: str = "everything"
    step: int | None = None
    then: int | None = None
    second: str = "everything"


@attrs.frozen
class Model:
    """What a run without a cancel was like, or any other run.

    Attributes:
        trail: A checksum for each number of steps, from 0.
        scopes: What can be cancelled in it.
        outcomes: What became of each span, by its id.
    """

    trail: Sequence[int]
    scopes: Sequence[str]
    outcomes: Mapping[int, str]

    @property
    def steps(self) -> int:
        return len(self.trail) - 1


def run(plan: Plan, model: Model | None = None, *, tell: Callable[[str], None] | None = None) -> Model:
    """Run a scenario and assert that everything holds.

    Args:
        plan: What to run.
        model: What the scenario is like without a cancel; needed if ``plan`` has one.
        tell: Called with a line about each step.
    """
    scenario = SCENARIOS[plan.scenario]
    with no_complaints(scenario.tracebacks):
        one = _Run(plan, tell)
        try:
            run_seeded(_SEED, one.live)
        except KeyboardInterrupt:
            # Where it came after the batcher was left; if not, this is looked at below.
            assert "ctrl-c" in (plan.scope, plan.second)
    facts = one.check()
    outcomes = _outcomes(facts)
    if model is not None:
        assert one.trail_at_cancel == model.trail[plan.step or 0], "the steps before the cancel were not those before"
        _check_others(plan, one.world, model.outcomes, outcomes)
    scopes = [name for name in SCOPES if name in one.world.entered | {"everything", "body", "error", "ctrl-c"}]
    return Model(one.trail, scopes, outcomes)


def _outcomes(facts: Facts) -> dict[int, str]:
    rejected = facts.left_out | set(facts.rejected)
    outcomes = dict.fromkeys(facts.accepted, "delivered")
    return outcomes | dict.fromkeys(rejected, "rejected") | dict.fromkeys(facts.undelivered, "undelivered")


def _check_others(plan: Plan, world: World, before: Mapping[int, str], now: Mapping[int, str]) -> None:
    """Assert that nobody else was disturbed when an adder or a flusher was cancelled."""
    if plan.scope not in ("adder", "flusher") or not SCENARIOS[plan.scenario].steady:
        return
    disturbed = world.victims if plan.scope == "adder" else set()
    for span_id in before.keys() | now.keys():
        was, is_now = before.get(span_id, "not accepted"), now.get(span_id, "not accepted")
        assert span_id in disturbed or was == is_now, f"span {span_id} was {was} and is {is_now}, for another's cancel"


class _Run(trio.abc.Instrument):
    """Lives through one run, and cancels in it."""

    def __init__(self, plan: Plan, tell: Callable[[str], None] | None) -> None:
        self._plan = plan
        self._tell = tell
        self._scenario = SCENARIOS[plan.scenario]
        self.world = (HTTPWorld if plan.http else MemoryWorld)(self._scenario.settings)
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
        # When there was a Ctrl-C, and whether everything was cancelled, before the batcher was left.
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
                except BaseException as exc:  # noqa: ASYNC103  # what is not raised again is no Cancelled
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
        # What comes before the cancel was looked at in the model.
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

    # -- what has to hold --------------------------------------------------------------------------------------

    def check(self) -> Facts:
        """Assert what has to hold at the end, and held at each step."""
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
        )

    def _check_times(self) -> None:
        # Entering that is cancelled closes the exporter, for which it has the same time.
        began_at = self._cancelled_at if self._body_ended_at is None else self._body_ended_at
        assert began_at is not None, "there was no cancel, and the body did not begin"
        assert self._left_at is not None
        timeout = self._scenario.settings.shutdown_timeout
        assert self._left_at <= began_at + timeout, f"leaving took {self._left_at - began_at} s, more than {timeout}"
        if self._body_ended_at is None or self._cancelled_at is None:
            return
        if self._first_scope in ("body", "everything", "ctrl-c"):
            assert self._body_ended_at <= self._cancelled_at, "the body did not hear of its cancel at once"
        if self._interrupted_at is not None and not _is_interrupt(self._body_raised):
            # The drain was stopped; what is left of its time is for closing the exporter.
            assert self._left_at <= self._interrupted_at + min(1.0, timeout / 10), "the drain was not stopped at once"

    def _check_exceptions(self) -> None:
        if self._body_raised is not None:
            assert self._raised is self._body_raised, (
                f"the body raised {self._body_raised!r}, out came {self._raised!r}"
            )
        elif self._must_be_cancelled:
            assert isinstance(self._raised, trio.Cancelled), f"cancelled, and out came {self._raised!r}"
        elif self._interrupted_at is not None:
            assert isinstance(self._raised, KeyboardInterrupt), f"interrupted, and out came {self._raised!r}"
        else:
            assert self._raised is None, f"nothing was to be raised, and out came {self._raised!r}"
        if self._plan.scope == "error":
            was_cancelled = self.world.scopes["body"].cancelled_caught
            assert isinstance(self._body_raised, BodyError) == was_cancelled, "no run of what was planned"


def _is_interrupt(exc: BaseException | None) -> bool:
    """Whether it is a KeyboardInterrupt, as it is or in the groups of the body's own nurseries."""
    return isinstance(exc, KeyboardInterrupt) or (
        isinstance(exc, BaseExceptionGroup) and exc.split(KeyboardInterrupt)[1] is None
    )


def _counts(world: World) -> str:
    counts = world.batcher.statistics()
    names = ("accepted", "queued", "in_flight", "delivered", "rejected", "undelivered", "ambiguous")
    return ", ".join(f"{getattr(counts, name)} {name}" for name in names if getattr(counts, name))
