"""Find out whether the calling code has interrupted the batcher or trio.

A finalizer or a signal handler may run between any two instructions of the batcher or of trio, and must not change
their state. If the stack of the current task has a frame of either, a span is handed over like one of another thread.
(Trio's ``currently_ki_protected`` would answer nearly the same, but takes five times as long per frame.)
"""

from __future__ import annotations

import re
import sys
from types import FrameType

import trio

from .._batcher import SpanBatcher

_CORE = re.compile(r"trio(?:\.|$)|trio_spanbatch\.(?:_|destinations)")


class InterruptionCheck:
    """Tells whether spans may be added to a batcher directly."""

    def __init__(self, batcher: SpanBatcher) -> None:
        self._supervisor = batcher._supervisor
        self._modules = 0
        # The ids of the globals of trio's modules and of the batcher's.
        self._core_globals: frozenset[int] = frozenset()

    def may_add_here(self) -> bool:
        """Return whether the caller runs in a task of the batcher's trio run and does not interrupt the batcher."""
        try:
            bottom = trio.lowlevel.current_task().coro.cr_frame
        except RuntimeError:
            return False
        if trio.lowlevel.current_trio_token() is not self._supervisor.token:
            return False
        if len(sys.modules) != self._modules:
            # Some of the package's modules are imported when they are first used.
            self._modules, modules = len(sys.modules), sys.modules.copy()
            # Modules are never deleted.
            self._core_globals = frozenset(
                id(getattr(module, "__dict__", None)) for name, module in modules.items() if _CORE.match(name)
            )
        frame: FrameType | None = sys._getframe(1)
        while frame is not bottom:
            if frame is None or id(frame.f_globals) in self._core_globals:
                return False
            frame = frame.f_back
        return True
