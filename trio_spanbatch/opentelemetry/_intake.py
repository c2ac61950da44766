"""Pass spans that have ended to the batcher: directly in its trio thread, through a queue from elsewhere.

In the trio thread a span is added immediately, unless the calling code interrupted something: a finalizer or a signal
handler may run between any two instructions of the batcher or of trio, and must not change their state. If the stack
of the current task has a frame of either, the span is handed over like one of another thread. (Trio's
``currently_ki_protected`` would answer nearly the same, but takes five times as long per frame.)

Another thread encodes its span itself, which is the expensive part, and puts the bytes into a queue bounded in spans
and bytes. `trio.lowlevel.TrioToken.run_sync_soon` schedules one call in the trio thread that takes everything from it.
Flushing and closing the batcher empty the queue first, so that they include every span that ended before. When a run
ends, trio still makes all scheduled calls; later ones fail with ``RunFinishedError``, and the spans are counted.
"""

from __future__ import annotations

import sys
import threading
from collections import deque
from types import FrameType

import trio

from .._batcher import SpanBatcher
from .._spans.batch import EncodedSpan
from .._spans.checks import shown
from .._spans.records import SpanLike
from ._tally import Drop, Tally


class Intake:
    """Adds spans to a batcher from any thread. A `Feeder` of the batcher."""

    def __init__(self, batcher: SpanBatcher, tally: Tally) -> None:
        self._batcher = batcher
        self._supervisor = batcher._supervisor
        self._runtime = batcher._runtime
        self._tally = tally
        limits = batcher._scheduler.limits
        self._max_spans = limits.max_queued_spans
        self._max_bytes = limits.max_pending_bytes
        self._modules = 0
        # The ids of the globals of trio's modules and of the batcher's.
        self._core_globals: frozenset[int] = frozenset()
        self.reset()

    def reset(self) -> None:
        """Forget all spans without counting them: in a forked process they are copies."""
        # Guards the bounds. Reentrant, as a finalizer may end a span while its thread holds it.
        self._lock = threading.RLock()
        self._queue: deque[tuple[str, EncodedSpan]] = deque()
        self._bytes = 0

    def is_open(self) -> bool:
        return self._runtime.thread_id is not None

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
            self._core_globals = frozenset(id(vars(module)) for name, module in modules.items() if _is_core(name))
        frame: FrameType | None = sys._getframe(1)
        while frame is not bottom:
            if frame is None or id(frame.f_globals) in self._core_globals:
                return False
            frame = frame.f_back
        return True

    def add(self, location: str, span: SpanLike | EncodedSpan) -> Drop | None:
        """Add a span in the trio thread. Return why it was dropped, if it was."""
        try:
            self._batcher.add_span_nowait(location, span)
        except trio.WouldBlock:
            return Drop("queue_full", f"no space for {location!r}")
        except trio.ClosedResourceError:
            return Drop("already_shutdown", "the batcher is closed")
        except ValueError as error:
            # An invalid span or location, or too many locations.
            return Drop("invalid", shown_message(error))
        return None

    def hand_over(self, location: str, span: SpanLike) -> Drop | None:
        """Encode a span and let the trio thread add it. Return why it was dropped, if it was."""
        token = self._supervisor.token
        assert token is not None, "it is open"
        try:
            encoded = self._batcher._encoder.encode(span)
        except ValueError as error:
            return Drop("invalid", shown_message(error))
        if not self._enqueue(location, encoded):
            return Drop("queue_full", "the trio thread has not yet taken earlier spans of other threads")
        try:
            token.run_sync_soon(self.feed, idempotent=True)
        except trio.RunFinishedError:
            self.abandon()
        return None

    def _enqueue(self, location: str, span: EncodedSpan) -> bool:
        with self._lock:
            if len(self._queue) >= self._max_spans or self._bytes + span.size > self._max_bytes:
                return False
            self._bytes += span.size
            self._queue.append((location, span))
        return True

    def _dequeue(self) -> tuple[str, EncodedSpan] | None:
        with self._lock:
            if not self._queue:
                return None
            location, span = self._queue.popleft()
            self._bytes -= span.size
        return location, span

    @trio.lowlevel.enable_ki_protection
    def feed(self) -> None:
        """Add the spans that other threads have handed over. Never raises: that would crash the trio run."""
        # Only those that are there now: for later ones another call is scheduled.
        for _ in range(len(self._queue)):
            if (entry := self._dequeue()) is None:
                return
            try:
                drop = self.add(*entry)
            except BaseException as error:  # noqa: ASYNC103  # adding is synchronous: no Cancelled comes out of it
                # A SystemExit from a policy function, for instance, is raised again when the batcher is left.
                drop = Drop("invalid", shown(error))
                if not isinstance(error, Exception):
                    self._batcher._runtime.logger.caught(error, "a span of another thread was not taken")
            self.account(drop)

    def ended(self) -> None:
        """Drop the spans that are still there, as the batcher is closed, and log all counts not yet logged."""
        self.abandon()
        self._tally.log_rest()

    @trio.lowlevel.enable_ki_protection
    def abandon(self) -> None:
        """Drop and count the spans that were handed over and will never be taken. Thread-safe."""
        while self._dequeue() is not None:
            self.account(Drop("already_shutdown", "the batcher is closed"))

    def account(self, drop: Drop | None) -> None:
        if drop is None:
            self._tally.accepted()
        else:
            self._tally.dropped(drop)


def _is_core(module: str) -> bool:
    package, _, rest = module.partition(".")
    return package == "trio" or (package == "trio_spanbatch" and rest.startswith(("_", "destinations")))


def shown_message(error: Exception) -> str:
    message = str(error)
    return message if len(message) <= 200 else f"{message[:200]}..."
