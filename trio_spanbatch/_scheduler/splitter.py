"""The batch splitter: where one batch of a location's queue ends and the next begins.

The queue is a memory channel, which has no peek. So the splitter decides as spans are accepted: the open batch grows
until it has ``max_spans``, or until another span would take its request over ``max_bytes``. Then it is full, and a new
one is opened. The spans stay in the channel; the splitter has only the numbers that are needed to take a batch out.

An open batch that is due but cannot be sealed yet continues to grow until it is full. So batches are large when a
server is slow.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import attrs

from .._spans.batch import EncodedSpan, RequestSizer

__all__ = ["BatchSplitter", "QueuedBatch"]


@attrs.frozen
class QueuedBatch:
    """A batch that is still in the queue.

    Attributes:
        count: Its number of spans.
        size: The exact size of its request, in bytes.
        opened_at: When its first span was accepted, in trio's time.
    """

    count: int
    size: int
    opened_at: float


class BatchSplitter:
    """Splits one location's queue into batches."""

    __slots__ = ("_clock", "_count", "_full", "_max_bytes", "_max_spans", "_opened_at", "_sizer")

    def __init__(self, max_spans: int, max_bytes: int, clock: Callable[[], float]) -> None:
        self._max_spans = max_spans
        self._max_bytes = max_bytes
        self._clock = clock
        self._full: deque[QueuedBatch] = deque()
        self._sizer = RequestSizer(max_bytes)
        self._count = 0
        self._opened_at = 0.0

    @property
    def has_full(self) -> bool:
        """Whether a batch is full."""
        return bool(self._full)

    @property
    def oldest_opened_at(self) -> float | None:
        """When the first span of the queue's first batch was accepted; None if the queue is empty."""
        if self._full:
            return self._full[0].opened_at
        return self._opened_at if self._count else None

    def add(self, span: EncodedSpan) -> bool:
        """Add a span that enters the queue. Return whether a batch became full."""
        count = self._count
        if not count:
            return self._open(span)
        sizer = self._sizer
        if not sizer.try_add(span):
            self._close()
            self._open(span)
            return True
        self._count = count + 1
        if count + 1 >= self._max_spans or sizer.size >= self._max_bytes:
            self._close()
            return True
        return False

    def pop(self) -> QueuedBatch:
        """Remove the first batch, full or not. The queue must not be empty."""
        if not self._full:
            self._close()
        return self._full.popleft()

    def _open(self, span: EncodedSpan) -> bool:
        self._opened_at = self._clock()
        self._count = 1
        self._sizer = RequestSizer(self._max_bytes)
        self._sizer.add_first(span)
        if self._max_spans > 1 and self._sizer.size < self._max_bytes:
            return False
        self._close()
        return True

    def _close(self) -> None:
        self._full.append(QueuedBatch(self._count, self._sizer.size, self._opened_at))
        self._count = 0
