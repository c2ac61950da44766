"""Pass spans that have ended to the batcher: directly in its trio thread, through a queue from elsewhere.

Another thread encodes its span itself, which is the expensive part, and puts the bytes into a queue bounded in spans
and bytes. `trio.lowlevel.TrioToken.run_sync_soon` schedules one call in the trio thread that takes everything from it.
Flushing and closing the batcher empty the queue first, so that they include every span that ended before. When a run
ends, trio still makes all scheduled calls; later ones fail with ``RunFinishedError``, and the spans are counted.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import Literal, TypeAlias

import attrs
import trio

from ._batcher import SpanBatcher
from ._spans.batch import EncodedSpan
from ._spans.checks import shown
from ._spans.records import SpanLike

Reason: TypeAlias = Literal["queue_full", "already_shutdown", "invalid"]


@attrs.frozen
class Drop:
    reason: Reason  # the count to which it is added
    detail: str = ""  # for the log


class Intake:
    """Adds spans to a batcher from any thread. A `Feeder` of the batcher once it is registered.

    Args:
        batcher: The batcher.
        account: Called for each span that was handed over, with None once it is accepted, and otherwise with why it was
            dropped. It may be called in any thread, and must not raise.
        at_end: Called when the batcher has ended.
    """

    def __init__(
        self, batcher: SpanBatcher, account: Callable[[Drop | None], None], at_end: Callable[[], None] | None = None
    ) -> None:
        self._batcher = batcher
        self._runtime = batcher._runtime
        self._account = account
        self._at_end = at_end
        limits = batcher._scheduler.limits
        self._max_spans = limits.max_queued_spans
        self._max_bytes = limits.max_pending_bytes
        self._is_registered = False
        self.reset()

    def register(self) -> None:
        """Become a feeder of the batcher, as handing over a span does, too.

        Without ``at_end`` it remains one only while it holds spans: a program may make many.
        """
        with self._lock:
            if not self._is_registered:
                self._is_registered = True
                self._runtime.feeders.append(self)

    def reset(self) -> None:
        """Forget all spans without counting them: in a forked process they are copies."""
        # Guards the bounds. Reentrant, as a finalizer may end a span while its thread holds it.
        self._lock = threading.RLock()
        self._queue: deque[tuple[str, EncodedSpan]] = deque()
        self._bytes = 0

    def is_open(self) -> bool:
        return self._runtime.thread_id is not None

    def add(self, location: str, span: SpanLike | EncodedSpan) -> Drop | None:
        """Add a span in the trio thread. Return why it was dropped, if it was."""
        try:
            self._batcher.add_span_nowait(location, span)
        except trio.WouldBlock:
            return Drop("queue_full", f"no space for {location!r}")
        except trio.ClosedResourceError:
            return Drop("already_shutdown", "the batcher is closed")
        except Exception as error:
            return _invalid(error)
        return None

    def hand_over(self, location: str, span: SpanLike) -> Drop | None:
        """Encode a span and let the trio thread add it. Return why it was dropped, if it was."""
        token = self._batcher._supervisor.token
        assert token is not None, "it is open"
        try:
            encoded = self._batcher._encoder.encode(span)
        except Exception as error:
            return _invalid(error)
        if not self._enqueue(location, encoded):
            return Drop("queue_full", "the trio thread has not yet taken earlier spans of other threads")
        try:
            token.run_sync_soon(self.feed, idempotent=True)
        except trio.RunFinishedError:
            self.abandon()
        return None

    def _enqueue(self, location: str, span: EncodedSpan) -> bool:
        # Not within the addition: it is a call, in which a signal handler may add to the count.
        size = span.size
        with self._lock:
            self.register()
            if len(self._queue) >= self._max_spans or self._bytes + size > self._max_bytes:
                return False
            self._bytes += size
            self._queue.append((location, span))
        return True

    def _dequeue(self) -> tuple[str, EncodedSpan] | None:
        with self._lock:
            if not self._queue:
                return None
            location, span = self._queue.popleft()
            size = span.size
            self._bytes -= size
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
            self._account(drop)
        with self._lock:
            if self._at_end is None and self._is_registered and not self._queue:
                self._is_registered = False
                self._runtime.feeders.remove(self)

    def ended(self) -> None:
        """Drop the spans that are still there, as the batcher is closed."""
        self.abandon()
        if self._at_end is not None:
            self._at_end()

    @trio.lowlevel.enable_ki_protection
    def abandon(self) -> None:
        """Drop and count the spans that were handed over and will never be taken. Thread-safe."""
        while self._dequeue() is not None:
            self._account(Drop("already_shutdown", "the batcher is closed"))


def _invalid(error: Exception) -> Drop:
    # A ValueError is about an invalid span or location, or too many locations.
    message = str(error) if isinstance(error, ValueError) else shown(error)
    return Drop("invalid", message if len(message) <= 200 else f"{message[:200]}...")
