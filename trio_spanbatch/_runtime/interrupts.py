"""Stops drains on Ctrl-C.

Trio turns SIGINT into a KeyboardInterrupt in the main task. A drain in another task never sees it, and a drain in the
main task waits inside a shield, with KeyboardInterrupt protection. So while any batcher of a run drains, SIGINT has a
handler that stops all drains of that run at once.

It replaces only Python's default handler, or trio's in place of that. Any other handler belongs to the program, which
decides what Ctrl-C does, during the drain as at any other time. This includes handlers from `signal.signal`, from
`trio.open_signal_receiver`, and from a host of trio in guest mode such as asyncio.

`trio.open_signal_receiver` is not suitable: it restores the handler that it found, which is right only if receivers are
closed in the reverse order of their opening. The drains of two batchers in two tasks may overlap in any order, and
would leave behind a handler that ignores every later Ctrl-C. So the batchers of a run share one handler, which the
first drain installs and the last one removes. If other code restores it after that, it removes itself at the next
signal, and passes that signal on.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import FrameType, FunctionType, MethodType
from typing import Any

import trio

# The module of the handler that `trio.run` installs in place of Python's default. There is no public way to recognize
# that handler. If a version of trio has it elsewhere, it is treated as the program's: Ctrl-C then stops a drain in the
# main task, where trio raises it, but not one in another task.
_MODULE_OF_TRIOS_HANDLER = "trio._core._ki"

_WATCH: trio.lowlevel.RunVar[InterruptWatch] = trio.lowlevel.RunVar("trio_spanbatch interrupt watch")


class InterruptWatch:
    """Stops the drains of one trio run on Ctrl-C."""

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
        """Call ``stop`` in the trio thread on each Ctrl-C until it is removed."""
        self._stops[stop] = self._interrupts
        self._install()

    def remove(self, stop: Callable[[], None]) -> bool:
        """Remove ``stop``. Return whether there was a Ctrl-C since `add`, even if ``stop`` was not called yet."""
        interrupts_before = self._stops.pop(stop)
        # The count is read before the handler is removed: a Ctrl-C after the last `stop` was removed is passed on and
        # not counted.
        interrupted = self._interrupts > interrupts_before
        if not self._stops:
            self._put_back(self._previous)
        return interrupted

    def _install(self) -> None:
        """Handle SIGINT if this is the main thread and the present handler is Python's or trio's."""
        if threading.current_thread() is not threading.main_thread():
            return
        current = signal.getsignal(signal.SIGINT)
        if current != self._handle and _is_replaceable(current):
            self._previous = current
            signal.signal(signal.SIGINT, self._handle)

    def _put_back(self, handler: Any) -> None:
        # If other code has installed a handler meanwhile, that stays.
        if signal.getsignal(signal.SIGINT) == self._handle:
            signal.signal(signal.SIGINT, handler)

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        try:
            self._token.run_sync_soon(self._stop_all, idempotent=True)
        except trio.RunFinishedError:
            # Trio's handler has no effect once its run has ended.
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
    """Return whether a handler of SIGINT is Python's default, trio's in its place, or a restored one of a watch."""
    if isinstance(handler, FunctionType):
        # Not by __module__, which functools.wraps copies to a handler of the program that calls this one.
        return handler.__globals__.get("__name__") == _MODULE_OF_TRIOS_HANDLER
    owner = getattr(handler, "__self__", None) if isinstance(handler, MethodType) else None
    return handler is signal.default_int_handler or isinstance(owner, InterruptWatch)
