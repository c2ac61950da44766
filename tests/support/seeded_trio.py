"""A trio run that repeats exactly: the same seed and program give the same order of every step.

Trio runs ready tasks in random order on purpose, so that no program relies on an order. For Hypothesis it has two
private switches: ``_ALLOW_DETERMINISTIC_SCHEDULING`` sorts the ready tasks by age before they are shuffled, and ``_r``
is the random generator that shuffles them. With the first on, the second seeded and a mock clock, the order of steps
depends almost only on the seed.

In three places, however, the order comes from memory addresses, which no seed controls: it is the order in which one
cancel reaches several tasks or scopes. That does not matter if a cancel only wakes a task. It matters in this project,
where cancelling a waiting adder makes room for the next one in the same step. So during a run these places use numbers
in place of addresses: the set of a scope's tasks, the set of its inner scopes, and the heap of deadlines, whose ties
are broken by ``id(scope)``.

The seed does not control threads, real sockets, signals, and Python's hashes of ``str`` (a program that iterates over a
set of strings does not repeat from process to process).
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TypeVar, TypeVarTuple
from unittest import mock
from weakref import WeakKeyDictionary

import trio
from trio._core import _run
from trio.testing import MockClock

__all__ = ["run_seeded", "seeded"]

_Result = TypeVar("_Result")
_Args = TypeVarTuple("_Args")


def run_seeded(
    seed: int,
    async_fn: Callable[[*_Args], Awaitable[_Result]],
    *args: *_Args,
    instruments: Sequence[trio.abc.Instrument] = (),
) -> _Result:
    """Run ``async_fn`` like `trio.run`, on a mock clock with autojump, in an order that depends on ``seed``."""
    with seeded(seed):
        return trio.run(async_fn, *args, clock=MockClock(autojump_threshold=0), instruments=instruments)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Make the order of one `trio.run` depend on ``seed``. Do not enter it while trio runs in this process."""
    _check_switches()
    before = _run._r.getstate()
    numbers = _Numbers()
    with ExitStack() as stack:
        stack.callback(_run._r.setstate, before)
        _run._r.seed(seed)
        replace = mock.patch.object
        stack.enter_context(replace(_run, "_ALLOW_DETERMINISTIC_SCHEDULING", True))
        stack.enter_context(replace(_run.Task, "__hash__", numbers.of_task))
        stack.enter_context(replace(_run.CancelStatus, "__hash__", numbers.of_status))
        # A module's global takes precedence over the builtin of the same name.
        stack.enter_context(replace(_run, "id", numbers.of, create=True))
        yield


class _Numbers:
    """Numbers objects in the order of the requests, which is the same in each repetition of a run."""

    def __init__(self) -> None:
        self._numbers: WeakKeyDictionary[object, int] = WeakKeyDictionary()
        self._next = itertools.count()
        self._first_task: int | None = None

    def of(self, thing: object) -> int:
        number = self._numbers.get(thing)
        if number is None:
            number = self._numbers[thing] = next(self._next)
        return number

    # Functions, not methods: as ``__hash__`` of a class, only a plain function gets the instance.
    @property
    def of_task(self) -> Callable[[trio.lowlevel.Task], int]:
        def number(task: trio.lowlevel.Task) -> int:
            # A process numbers the tasks of all its runs consecutively: only the differences repeat.
            if self._first_task is None:
                self._first_task = task._counter
            return task._counter - self._first_task

        return number

    @property
    def of_status(self) -> Callable[[_run.CancelStatus], int]:
        return lambda status: self.of(status._scope)


def _check_switches() -> None:
    """Raise if this version of trio lacks the switches: runs would not repeat."""
    has_switch = isinstance(getattr(_run, "_ALLOW_DETERMINISTIC_SCHEDULING", None), bool)
    has_generator = isinstance(getattr(_run, "_r", None), random.Random)
    if not (has_switch and has_generator and hasattr(_run.Task, "_counter") and hasattr(_run.CancelStatus, "_scope")):
        raise RuntimeError(
            f"trio {trio.__version__} lacks _ALLOW_DETERMINISTIC_SCHEDULING, _r, Task._counter or CancelStatus._scope "
            "in trio._core._run: seeded runs need them, see tests/support/seeded_trio.py"
        )
