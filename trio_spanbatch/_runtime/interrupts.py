"""Seeing a Ctrl-C that arrives during a drain.

Trio turns SIGINT into a KeyboardInterrupt in the main task. A drain that runs in another task never sees it, and a
drain in the main task waits inside a shield, with KeyboardInterrupt protection on. So while any batcher of a run
drains, SIGINT has a handler of its own, which stops all drains of that run at once.

Only Python's default handler is replaced, or the one that trio puts in its place. Any other one is the program's: it is
called in the drain as at any other time, and what a Ctrl-C means is the program's decision. That holds for
`signal.signal` and for `trio.open_signal_receiver`, and for a host of trio in guest mode, such as asyncio.

`trio.open_signal_receiver` would do for one batcher. But it puts back the handler that it found, as if receivers were
always closed in the reverse order of their opening; the drains of two batchers in two tasks overlap in any order, and
would leave a dead handler behind, deaf to every later Ctrl-C. So the batchers of a run share one handler, put in by the
first drain and taken out by the last. If somebody else puts it back after that, it takes itself out with the next
signal, which it passes on.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import FrameType, FunctionType, MethodType
from typing import Any

import trio

__all__ = ["InterruptWatch"]

# The module of the handler that `trio.run` puts in place of Python's default. There is no public way to recognize it.
# With a trio that has it elsewhere, it is taken for a handler of the program: a Ctrl-C then stops a drain in the main
# task as before, since trio raises it there, and leaves one in another task alone.
_MODULE_OF_TRIOS_HANDLER = "trio._core._ki"

_WATCH: trio.lowlevel.RunVar[InterruptWatch] = trio.lowlevel.RunVar("trio_spanbatch interrupt watch")


class InterruptWatch:
    """The drains of one trio run that a Ctrl-C stops."""

    def __init__(self) -> None:
        self._stops: dict[Callable[[], None], int] = {}
        self._interrupts = 0
        self._token = trio.lowlevel.current_trio_token()
        self._previous: Any = None

    @classmethod
    def of_this_run(cls) -> InterruptWatch:
        """Return the watch of the current run."""
        try:
            return _WATCH.get()
        except LookupError:
            _WATCH.set(watch := cls())
            return watch

    def add(self, stop: Callable[[], None]) -> None:
        """Have ``stop`` called in the trio thread on a Ctrl-C, any number of times, until it is removed."""
        self._stops[stop] = self._interrupts
        self._install()

    def remove(self, stop: Callable[[], None]) -> bool:
        """End what `add` began. Return whether there was a Ctrl-C since, though ``stop`` may not be called yet."""
        interrupts_before = self._stops.pop(stop)
        # Of this Ctrl-C the handler below has told nobody, if it came after the last `stop` was removed: it passed it
        # on. So the count is read before the handler goes.
        interrupted = self._interrupts > interrupts_before
        if not self._stops:
            self._put_back(self._previous)
        return interrupted

    def _install(self) -> None:
        """Handle SIGINT, if this thread may and nobody but Python and trio does."""
        if threading.current_thread() is not threading.main_thread():
            return
        current = signal.getsignal(signal.SIGINT)
        if current != self._handle and _is_replaceable(current):
            self._previous = current
            signal.signal(signal.SIGINT, self._handle)

    def _put_back(self, handler: Any) -> None:
        # Whoever handles SIGINT by now in place of this watch goes on doing so.
        if signal.getsignal(signal.SIGINT) == self._handle:
            signal.signal(signal.SIGINT, handler)

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        try:
            self._token.run_sync_soon(self._stop_all, idempotent=True)
        except trio.RunFinishedError:
            # Trio's handler of a run that has ended hears nothing any more.
            self._previous = signal.default_int_handler
            self._stops.clear()
        if self._stops:
            self._interrupts += 1
        else:
            self._put_back(self._previous)
            self._previous(signum, frame)

    def _stop_all(self) -> None:
        for stop in tuple(self._stops):
            stop()


def _is_replaceable(handler: Any) -> bool:
    """Return whether a handler of SIGINT is Python's default, trio's in its place, or one of a watch, put back."""
    if isinstance(handler, FunctionType):
        # Not by its __module__, which functools.wraps gives to a handler of the program that calls this one.
        return handler.__globals__.get("__name__") == _MODULE_OF_TRIOS_HANDLER
    owner = getattr(handler, "__self__", None) if isinstance(handler, MethodType) else None
    return handler is signal.default_int_handler or isinstance(owner, InterruptWatch)
