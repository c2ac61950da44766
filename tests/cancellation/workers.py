"""The work of each process: runs of one scenario with a cancel after some of its steps.

It is a module apart from ``__main__``, which multiprocessing does not import in the processes that it spawns.
"""

from __future__ import annotations

import gc
import os
import signal
import traceback
from collections.abc import Callable, Iterator
from types import FrameType

import attrs

from tests.cancellation.run import Model, Plan, run

__all__ = ["Done", "Unit", "prepare", "run_in_time", "work"]

# A run takes some hundredths of a second. CPU time, so that a busy machine makes no difference.
_STUCK_AFTER = 5.0


@attrs.frozen
class Unit:
    """Work for one process: one scenario, one scope, some of the steps.

    Attributes:
        steps: The steps after which to cancel the scope.
        second: The scope of a second cancel, which comes after each later step; none if empty.
        spool: Whether there is a spool in memory.
    """

    scenario: str
    http: bool
    scope: str
    steps: range
    second: str = ""
    spool: bool = False

    @property
    def row(self) -> tuple[str, str]:
        return self.scenario, f"{self.scope}, then {self.second}" if self.second else self.scope

    def plans(self, model: Model) -> Iterator[Plan]:
        for step in self.steps:
            plan = Plan(self.scenario, self.http, self.scope, step, spool=self.spool)
            if not self.second:
                yield plan
                continue
            length = run_in_time(plan, model).steps
            for then in range(step + 1, length + 1):
                yield attrs.evolve(plan, then=then, second=self.second)


@attrs.frozen
class Done:
    """The result of a unit.

    Attributes:
        runs: The number of runs that passed.
        failed: The run that failed.
        failure: Its traceback.
    """

    unit: Unit
    runs: int
    failed: Plan | None = None
    failure: str = ""


class Stuck(BaseException):
    """A run does not end."""


def prepare() -> None:
    """Make runs independent of the environment, and have a run that hangs interrupted."""
    for name in list(os.environ):
        if name.startswith("OTEL_") or name.lower().endswith("_proxy"):
            del os.environ[name]
    signal.signal(signal.SIGPROF, _complain)
    # A shell makes its background processes ignore SIGINT.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    # Exempt the objects that exist by now from the collections after each run.
    gc.collect()
    gc.freeze()


def _complain(signum: int, frame: FrameType | None) -> None:
    raise Stuck(f"still running after {_STUCK_AFTER:g} s of CPU time")


def work(unit: Unit) -> Done:
    runs = 0
    failure = ""
    plan = Plan(unit.scenario, unit.http, spool=unit.spool)
    try:
        model = run_in_time(plan)
        for plan in unit.plans(model):
            run_in_time(plan, model)
            runs += 1
    except BaseException:  # noqa: ASYNC103  # nothing here runs in trio
        failure = traceback.format_exc()
    return Done(unit, runs, plan if failure else None, failure)


def run_in_time(plan: Plan, model: Model | None = None, *, tell: Callable[[str], None] | None = None) -> Model:
    """Run ``plan``, and end it if it hangs."""
    # Repeatedly, in case the exception is caught where it is raised.
    signal.setitimer(signal.ITIMER_PROF, _STUCK_AFTER, 1.0)
    try:
        return run(plan, model, tell=tell)
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
