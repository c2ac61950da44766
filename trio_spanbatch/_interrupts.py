"""Seeing a Ctrl-C that arrives during a drain.

Trio turns SIGINT into a KeyboardInterrupt in the main task. A drain that runs in another task never sees it, and a
drain in the main task waits inside a shield, with KeyboardInterrupt protection on. So while any batcher of a run
drains, SIGINT has a handler of its own, which stops all drains of that run at once.

`trio.open_signal_receiver` would do for one batcher. But it puts back the handler that it found, as if receivers were
always closed in the reverse order of their opening; the drains of two batchers in two tasks overlap in any order, and
would leave a dead handler behind, deaf to every later Ctrl-C. So the batchers of a run share one handler, put in by the
first drain and taken out by the last. A handler that is called with no drain left (somebody else put it back) passes
the signal on to the one that it replaced.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

import trio

__all__ = ["InterruptWatch"]

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
        if not self._stops:
            self._install()
        self._stops[stop] = self._interrupts

    def remove(self, stop: Callable[[], None]) -> bool:
        """End what `add` began. Return whether there was a Ctrl-C since, though ``stop`` may not be called yet."""
        interrupts_before = self._stops.pop(stop)
        # Of this Ctrl-C the handler below has told nobody, if it came after the last `stop` was removed: it passed it
        # on. So the count is read before the handler goes.
        interrupted = self._interrupts > interrupts_before
        if not self._stops and signal.getsignal(signal.SIGINT) == self._handle:
            signal.signal(signal.SIGINT, self._previous)
        return interrupted

    def _install(self) -> None:
        """Handle SIGINT, if this thread may and the process does not ignore it."""
        current = signal.getsignal(signal.SIGINT)
        if threading.current_thread() is not threading.main_thread() or current in (None, signal.SIG_IGN):
            return
        if current != self._handle:
            self._previous = current
            signal.signal(signal.SIGINT, self._handle)

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        if self._stops:
            self._interrupts += 1
            self._token.run_sync_soon(self._stop_all, idempotent=True)
        elif callable(self._previous):
            self._previous(signum, frame)

    def _stop_all(self) -> None:
        for stop in tuple(self._stops):
            stop()
