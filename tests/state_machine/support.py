"""A trio run that is moved by hand, one scheduling step at a time, from synchronous code.

Hypothesis calls the rules of a state machine as plain functions, one after the other, so the batcher cannot run in a
`trio.run` around them. It runs as a guest instead, and the host's loop is a deque: whoever wants trio to do something
takes the next step out of it and calls it. Between two steps the whole run stands still, and rules may call everything
that is synchronous, as trio allows a host to do.

A guest run that has nothing to do would wait for I/O in a thread. Here its clock says that there is no time to sleep,
so it looks for I/O once and asks for its next step at once: no thread, and every run of the same rules is the same.
(Under Hypothesis trio shuffles the tasks of a step by a random number generator that Hypothesis seeds.)
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import outcome
import trio
from trio.testing import MockClock

__all__ = ["MANY_STEPS", "RunByHand", "TaskWatch"]

_T = TypeVar("_T")

# A run that is not blocked after so many steps is busy for nothing: a few tasks, none of which does much.
MANY_STEPS = 500


class _NoTimeToSleep(trio.abc.Clock):
    """A clock that somebody else moves, and for which the run never sleeps."""

    def __init__(self, clock: MockClock) -> None:
        self._clock = clock

    def start_clock(self) -> None:
        pass

    def current_time(self) -> float:
        return self._clock.current_time()

    def deadline_to_sleep_time(self, deadline: float) -> float:
        return 0.0


class TaskWatch(trio.abc.Instrument):
    """Looks on after each step of each task. Trio only logs what an instrument raises, so it is kept for the host."""

    def __init__(
        self,
        spawned: Callable[[trio.lowlevel.Task], object],
        exited: Callable[[trio.lowlevel.Task], object],
        stepped: Callable[[], object],
    ) -> None:
        self._spawned = spawned
        self._exited = exited
        self._stepped = stepped
        self.failure: Exception | None = None

    def task_spawned(self, task: trio.lowlevel.Task) -> None:
        self.guard(self._spawned, task)

    def task_exited(self, task: trio.lowlevel.Task) -> None:
        self.guard(self._exited, task)

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        self.guard(self._stepped)

    def guard(self, function: Callable[..., _T], *args: object) -> _T | None:
        """Call a function whose exceptions nobody but the host may see."""
        try:
            return function(*args)
        except Exception as failure:
            # Of several the first: the others follow from it.
            self.failure = self.failure or failure
            return None


class RunByHand:
    """A trio run on a mock clock, which stands still unless it is moved.

    Attributes:
        clock: The clock of the run.
        outcome: What the main task ended with; None as long as the run lasts.
    """

    def __init__(self, main: Callable[[], Awaitable[object]], watch: TaskWatch) -> None:
        self.clock = MockClock()
        self.outcome: outcome.Outcome[Any] | None = None
        self._watch = watch
        self._host: deque[Callable[[], object]] = deque()
        trio.lowlevel.start_guest_run(
            main,
            run_sync_soon_threadsafe=self._host.append,
            done_callback=self._finish,
            clock=_NoTimeToSleep(self.clock),
            instruments=[watch],
            host_uses_signal_set_wakeup_fd=True,
        )

    def _finish(self, result: outcome.Outcome[Any]) -> None:
        self.outcome = result

    def is_blocked(self) -> bool:
        """Return whether nothing will happen unless time passes or somebody does something."""
        if self.outcome is not None:
            return True
        statistics = trio.lowlevel.current_statistics()
        return (
            not statistics.tasks_runnable
            and not statistics.run_sync_soon_queue_size
            and statistics.seconds_to_next_deadline > 0
        )

    def next_timer(self) -> float:
        """Return the seconds until the next deadline; `math.inf` if there is none."""
        return math.inf if self.outcome is not None else trio.lowlevel.current_statistics().seconds_to_next_deadline

    def step(self) -> None:
        """Let every task that can run do so once, up to its next checkpoint."""
        self._host.popleft()()
        if self._watch.failure is not None:
            raise self._watch.failure

    def abandon(self, main: trio.lowlevel.Task) -> None:
        """End the run somehow, shields or not, so that there can be another one in this thread."""
        for _ in range(MANY_STEPS):
            if self.outcome is not None:
                return
            _cancel_below(main)
            self._host.popleft()()
        raise RuntimeError("a trio run could not be ended; no other one can begin in this thread")


def _cancel_below(task: trio.lowlevel.Task) -> None:
    for nursery in task.child_nurseries:
        nursery.cancel_scope.cancel()
        for child in nursery.child_tasks:
            _cancel_below(child)
