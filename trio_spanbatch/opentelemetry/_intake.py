"""The way of a span that ended into the batcher: directly in the batcher's trio thread, else handed over.

In the trio thread a span is added at once, so that whoever looks at the batcher next finds it there. With one
exception: code that interrupted something else. A finalizer, or a handler of a signal, may run between any two
instructions of the batcher or of trio itself, and must not change what they are just changing. So the stack is looked
at: if between here and the bottom of the current task there is a frame of either, the span is handed over, like one of
another thread. (Trio's ``currently_ki_protected`` would tell nearly the same, in five times the time for each frame.)

A span of another thread is encoded there, which is what takes time. Its bytes stand in a queue with two bounds, and
`trio.lowlevel.TrioToken.run_sync_soon` has the trio thread take all that is there; asked for again before that
happened, it is still asked for once. Flushes and the end of the intake take what is there themselves, so neither
overtakes a span that had ended before. When a run ends, trio still makes all calls that it had promised; what comes
later is refused with ``RunFinishedError``, and counted.
"""

from __future__ import annotations

import sys
import threading
from collections import deque
from types import FrameType
from typing import TYPE_CHECKING

import trio

from .._spans.batch import EncodedSpan
from .._spans.checks import shown
from ._tally import Drop, Tally

if TYPE_CHECKING:
    from .._batcher import SpanBatcher
    from .._spans.records import SpanLike

__all__ = ["Intake"]


class Intake:
    """Puts spans into a batcher, from any thread. A `Feeder` of the batcher."""

    def __init__(self, batcher: SpanBatcher, tally: Tally) -> None:
        self._batcher = batcher
        self._supervisor = batcher._supervisor
        self._admission = batcher._admission
        self._tally = tally
        limits = batcher._shared.limits
        self._max_spans = limits.max_queued_spans
        self._max_bytes = limits.max_pending_bytes
        self._not_to_interrupt = _globals_of_the_core()
        self.reset()

    def reset(self) -> None:
        """Hold nothing, and count nothing of it: it is a copy in a forked process."""
        # For the bounds. An RLock, as a finalizer may end a span while its thread holds it.
        self._lock = threading.RLock()
        self._queue: deque[tuple[str, EncodedSpan]] = deque()
        self._bytes = 0

    def is_open(self) -> bool:
        """Return whether the batcher takes spans. May be asked in any thread."""
        return self._admission.is_open

    def may_add_here(self) -> bool:
        """Return whether the caller is in a task of the batcher's trio run, and interrupts nothing there."""
        try:
            bottom = trio.lowlevel.current_task().coro.cr_frame
        except RuntimeError:
            return False
        if trio.lowlevel.current_trio_token() is not self._supervisor.token:
            return False
        frame: FrameType | None = sys._getframe(1)
        while frame is not bottom:
            if frame is None or id(frame.f_globals) in self._not_to_interrupt:
                return False
            frame = frame.f_back
        return True

    def add(self, location: str, span: SpanLike | EncodedSpan) -> Drop | None:
        """Add a span in the trio thread. Return why that did not work."""
        try:
            self._batcher.add_span_nowait(location, span)
        except trio.WouldBlock:
            return Drop("queue_full", f"no room for {location!r}")
        except trio.ClosedResourceError:
            return Drop("already_shutdown", "the batcher is closed")
        except ValueError as error:
            # An invalid span or location, or more locations than there may be.
            return Drop("invalid", shown_message(error))
        return None

    def hand_over(self, location: str, span: SpanLike) -> Drop | None:
        """Encode a span and have the trio thread add it. Return why that did not work."""
        token = self._supervisor.token
        assert token is not None, "it is open"
        try:
            encoded = self._batcher._encoder.encode(span)
        except ValueError as error:
            return Drop("invalid", shown_message(error))
        if not self._enqueue(location, encoded):
            return Drop("queue_full", "the trio thread does not come to take spans of other threads")
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
        """Add what other threads have handed over. Never raises: trio ends the run if a callback does."""
        # Not more than is there now. For whatever comes meanwhile, this is asked for again.
        for _ in range(len(self._queue)):
            if (entry := self._dequeue()) is None:
                return
            try:
                drop = self.add(*entry)
            except BaseException as error:  # noqa: ASYNC103  # adding is synchronous: no Cancelled comes out of it
                # A SystemExit out of a policy function, for instance, leaves when the batcher is left.
                drop = Drop("invalid", shown(error))
                if not isinstance(error, Exception):
                    self._batcher._shared.logger.caught(error, "SpanBatcher: a span of another thread was not taken")
            self._account(drop)

    def ended(self) -> None:
        """Refuse what is still there: nothing is accepted any more. Say what has not been said."""
        self.abandon()
        self._tally.say_rest()

    @trio.lowlevel.enable_ki_protection
    def abandon(self) -> None:
        """Count what was handed over and will never be taken. May be called in any thread."""
        while self._dequeue() is not None:
            self._account(Drop("already_shutdown", "the batcher is closed"))

    def _account(self, drop: Drop | None) -> None:
        if drop is None:
            self._tally.accepted()
        else:
            self._tally.dropped(drop)


def _globals_of_the_core() -> frozenset[int]:
    """Return the identities of the namespaces of trio's modules and of the batcher's. Modules live for ever."""
    return frozenset(id(vars(module)) for name, module in sys.modules.copy().items() if _is_core(name))


def _is_core(module: str) -> bool:
    package, _, rest = module.partition(".")
    return package == "trio" or (package == "trio_spanbatch" and rest.startswith(("_", "destinations")))


def shown_message(error: Exception) -> str:
    """Return the message of an error, shortened."""
    message = str(error)
    return message if len(message) <= 200 else f"{message[:200]}..."
