"""A trio run that repeats exactly: same seed, same program, same order of every step.

Trio runs the tasks that are ready in random order, on purpose: nobody shall rely on one. For Hypothesis it has two
switches, both private: ``_ALLOW_DETERMINISTIC_SCHEDULING`` sorts the tasks that are ready by their age before they are
shuffled, and ``_r`` is the random generator that shuffles them. With the first on, the second seeded and a mock clock,
the order of steps depends on the seed alone.

Almost. In three places the order comes from memory addresses, which no seed controls, and each is the order in which
one cancel reaches several tasks or scopes. That is invisible where all that a cancel does to a task is to wake it. It
is visible in this project, where an adder that is cancelled while it waits makes room for the next one in that same
step. So for the length of a run these places get numbers in place of addresses: the set of a scope's tasks, the set of
its inner scopes, and the heap of deadlines, whose ties are broken by ``id(scope)``.

What is left out of the seed's control: threads, real sockets, signals, and Python's own hashes of ``str`` (a program
that iterates over a set of those does not repeat from process to process).
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
    """Run ``async_fn`` as `trio.run` does, on a mock clock that jumps, in an order that ``seed`` decides."""
    with seeded(seed):
        return trio.run(async_fn, *args, clock=MockClock(autojump_threshold=0), instruments=instruments)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Let one `trio.run` in here schedule as ``seed`` says. Not to be entered while any trio runs in this process."""
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
        # A module's global goes before the builtin of the same name.
        stack.enter_context(replace(_run, "id", numbers.of, create=True))
        yield


class _Numbers:
    """Numbers in the order in which they are asked for, which is the same in each repetition of a run."""

    def __init__(self) -> None:
        self._numbers: WeakKeyDictionary[object, int] = WeakKeyDictionary()
        self._next = itertools.count()
        self._first_task: int | None = None

    def of(self, thing: object) -> int:
        number = self._numbers.get(thing)
        if number is None:
            number = self._numbers[thing] = next(self._next)
        return number

    # Functions, not methods: what a class has in ``__hash__`` is given the instance only if it is a plain function.
    @property
    def of_task(self) -> Callable[[trio.lowlevel.Task], int]:
        def number(task: trio.lowlevel.Task) -> int:
            # A process numbers its tasks from one run to the next: what repeats is the distance.
            if self._first_task is None:
                self._first_task = task._counter
            return task._counter - self._first_task

        return number

    @property
    def of_status(self) -> Callable[[_run.CancelStatus], int]:
        return lambda status: self.of(status._scope)


def _check_switches() -> None:
    """Tell whoever installs another trio what is missing there, before a run that does not repeat misleads anybody."""
    has_switch = isinstance(getattr(_run, "_ALLOW_DETERMINISTIC_SCHEDULING", None), bool)
    has_generator = isinstance(getattr(_run, "_r", None), random.Random)
    if not (has_switch and has_generator and hasattr(_run.Task, "_counter") and hasattr(_run.CancelStatus, "_scope")):
        raise RuntimeError(
            f"trio {trio.__version__} lacks _ALLOW_DETERMINISTIC_SCHEDULING, _r, Task._counter or CancelStatus._scope "
            "in trio._core._run: seeded runs need them, see the essay in tests/support/seeded_trio.py"
        )
