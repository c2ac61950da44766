"""Where one batch ends and the next begins, decided span by span as they are accepted.

A lane's queue is a memory channel, and a channel has no peek: who wants to know how large the next batch would be has
to know it without looking. So the cuts are made on the way in. The open batch takes spans until it has ``max_spans``
or another one would take its request over ``max_bytes``; then it is full and a new one is opened. The spans stay in
the channel; here are only the numbers that a lane needs to take a batch out of it: how many spans, how many bytes, and
when the first of them came.

An open batch that is due but cannot be sealed yet goes on growing until it is full. That is what makes batches large
when a server is slow.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import attrs

from .._spans.batch import EncodedSpan, RequestSizer

__all__ = ["BatchCutter", "Cut"]


@attrs.frozen
class Cut:
    """A batch as it lies in the queue.

    Attributes:
        count: How many spans it has.
        size: The exact size of its request, in bytes.
        opened_at: When its first span was accepted, in trio's time.
    """

    count: int
    size: int
    opened_at: float


class BatchCutter:
    """Cuts one location's queue into batches."""

    __slots__ = ("_clock", "_count", "_full", "_max_bytes", "_max_spans", "_opened_at", "_sizer")

    def __init__(self, max_spans: int, max_bytes: int, clock: Callable[[], float]) -> None:
        self._max_spans = max_spans
        self._max_bytes = max_bytes
        self._clock = clock
        self._full: deque[Cut] = deque()
        self._sizer = RequestSizer(max_bytes)
        self._count = 0
        self._opened_at = 0.0

    @property
    def has_full(self) -> bool:
        """Whether a batch is full."""
        return bool(self._full)

    @property
    def oldest_opened_at(self) -> float | None:
        """When the first span in the queue's first batch was accepted; None if the queue is empty."""
        if self._full:
            return self._full[0].opened_at
        return self._opened_at if self._count else None

    def add(self, span: EncodedSpan) -> bool:
        """Note that ``span`` goes into the queue. Return whether that made a batch full."""
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

    def pop(self) -> Cut:
        """Take out the first batch, full or not. The queue must not be empty."""
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
        self._full.append(Cut(self._count, self._sizer.size, self._opened_at))
        self._count = 0
