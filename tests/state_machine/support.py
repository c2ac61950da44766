"""A trio run that synchronous code advances by one scheduling step at a time.

Hypothesis calls the rules of a state machine as plain functions, one after the other, so the batcher cannot run in a
`trio.run` around them. It runs as a guest instead. The host's loop is a deque: to advance the run, take the next step
out of it and call it. Between two steps the run stands still, and rules may call synchronous functions, as trio allows
a host to do.

An idle guest run would wait for I/O in a thread. Here its clock never lets it sleep, so it checks for I/O once and asks
for its next step at once: there is no thread, and all runs of the same rules are the same. (Under Hypothesis, trio
shuffles the tasks of a step with a random number generator that Hypothesis seeds.)
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

# With a few tasks that do little, a run that is not blocked after so many steps will never be.
MANY_STEPS = 500


class _NoTimeToSleep(trio.abc.Clock):
    """A clock that is advanced from outside, and with which the run never sleeps."""

    def __init__(self, clock: MockClock) -> None:
        self._clock = clock

    def start_clock(self) -> None:
        pass

    def current_time(self) -> float:
        return self._clock.current_time()

    def deadline_to_sleep_time(self, deadline: float) -> float:
        return 0.0


class TaskWatch(trio.abc.Instrument):
    """Calls a check after each step of each task, and keeps its exception, which trio would only log."""

    def __init__(self, stepped: Callable[[], object]) -> None:
        self._stepped = stepped
        self.failure: Exception | None = None

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        self.guard(self._stepped)

    def guard(self, function: Callable[..., _T], *args: object) -> _T | None:
        """Call a function and keep its exception for the host."""
        try:
            return function(*args)
        except Exception as failure:
            # Keep the first: later ones follow from it.
            self.failure = self.failure or failure
            return None


class RunByHand:
    """A trio run that is advanced by hand, on a mock clock.

    Attributes:
        clock: The clock of the run.
        outcome: The outcome of the main task; None while the run lasts.
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
        """Return whether nothing will happen until time passes or a rule acts."""
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
        """Let every runnable task run once, up to its next checkpoint."""
        self._host.popleft()()
        if self._watch.failure is not None:
            raise self._watch.failure

    def abandon(self, main: trio.lowlevel.Task) -> None:
        """End the run, even through shields, so that this thread can run another one."""
        for _ in range(MANY_STEPS):
            if self.outcome is not None:
                return
            _cancel_below(main)
            self._host.popleft()()
        raise RuntimeError("could not end a trio run; this thread cannot run another one")


def _cancel_below(task: trio.lowlevel.Task) -> None:
    for nursery in task.child_nurseries:
        nursery.cancel_scope.cancel()
        for child in nursery.child_tasks:
            _cancel_below(child)
