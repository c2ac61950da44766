"""The batch splitter: decides where one batch of a location's queue ends and the next begins.

The queue is a memory channel, whose items cannot be inspected before they are received. So the decision is made when a
span is accepted: the open batch grows until it has ``max_spans``, or until another span would take its request over
``max_bytes``. Then it is full, and a new one is opened. The spans stay in the queue; this module has only the numbers
that are needed to take a batch out, and the spans' headers, as the queue holds nothing but bytes.

An open batch that is due but cannot be sealed yet continues to grow until it is full. So batches are large when a
server is slow.

Adding a span is planned first, and the plan is stored when the span is in the queue (see `Admission`). Planning changes
nothing, and storing a plan twice has the same effect as storing it once.
"""

from __future__ import annotations

import attrs

from .._spans.batch import EncodedSpan, RequestSizer, Runs, SpanHeaders


@attrs.frozen(eq=False)
class Run:
    """Consecutive spans of a batch with the same headers.

    Attributes:
        headers: Their headers.
        first: The number of the first of them in its location.
        before: The run before it in the same batch.
    """

    headers: SpanHeaders
    first: int
    before: Run | None


class OpenBatch(RequestSizer):
    """The batch to which spans are added. Only its ``size`` changes; any other change makes a new object.

    Attributes:
        first: The number of its first span in its location.
        full_at: The number of the span that makes it full.
        opened_at: When its first span was accepted, in seconds of the clock.
        run_first: The number of the first of its last spans with the same headers.
        runs_before: The run before these.
    """

    __slots__ = ("first", "full_at", "opened_at", "run_first", "runs_before")

    def __init__(self, first: int, full_at: int, opened_at: float, max_bytes: int) -> None:
        super().__init__(max_bytes)
        self.first = self.run_first = first
        self.full_at = full_at
        self.opened_at = opened_at
        self.runs_before: Run | None = None

    def grown(self, span: EncodedSpan, number: int) -> OpenBatch | None:
        """Return the batch with another span; None if its request would be too large."""
        grown = OpenBatch(self.first, self.full_at, self.opened_at, self._limit)
        grown.copy_from(self)
        grown.run_first, grown.runs_before = self.run_first, self.runs_before
        if not grown.try_add(span):
            return None
        if span.headers is not self.headers:
            grown.run_first, grown.runs_before = number, self._last_run()
        return grown

    def closed(self, end: int) -> QueuedBatch:
        """Return the batch as a full one that ends before the span with the number ``end``."""
        return QueuedBatch(self.first, end, self.size, self.opened_at, self._last_run())

    def _last_run(self) -> Run:
        assert self.headers is not None, "it has a span"
        return Run(self.headers, self.run_first, self.runs_before)


# Stands for "no open batch". Its ``full_at`` is 0, so `Admission` never adds to it without calling `grow`.
NO_BATCH = OpenBatch(first=0, full_at=0, opened_at=0.0, max_bytes=0)


@attrs.frozen(eq=False)
class QueuedBatch:
    """A full batch whose spans are still in the queue.

    Attributes:
        first: The number of its first span in its location.
        end: The number after that of its last span.
        size: The exact size of its request, in bytes.
        opened_at: When its first span was accepted, in seconds of the clock.
        run: The last run of spans with the same headers.
    """

    first: int
    end: int
    size: int
    opened_at: float
    run: Run


@attrs.frozen(eq=False)
class Growth:
    """The effect of another span on the batches of a queue.

    Attributes:
        full: The batches that become full.
        open: The batch that is open afterwards; `NO_BATCH` if there is none.
    """

    full: tuple[QueuedBatch, ...]
    open: OpenBatch


def grow(batch: OpenBatch, span: EncodedSpan, number: int, max_spans: int, max_bytes: int, now: float) -> Growth:
    """Return the effect of adding a span. This changes nothing.

    Args:
        batch: The open batch, or `NO_BATCH`.
        span: The span.
        number: Its number in its location.
        max_spans: The maximum number of spans in a batch.
        max_bytes: The maximum size of a request of several spans.
        now: The current time in seconds.
    """
    full: tuple[QueuedBatch, ...] = ()
    grown = None if batch is NO_BATCH else batch.grown(span, number)
    if grown is None:
        if batch is not NO_BATCH:
            full = (batch.closed(number),)
        grown = OpenBatch(number, number + max_spans - 1, now, max_bytes)
        grown.add_first(span)
    if number >= grown.full_at or grown.size >= max_bytes:
        return Growth((*full, grown.closed(number + 1)), NO_BATCH)
    return Growth(full, grown)


def runs_of(batch: QueuedBatch, payloads: list[bytes]) -> Runs:
    """Return the headers of a batch's spans, each with the bytes of the consecutive spans that share them."""
    runs: Runs = []
    run: Run | None = batch.run
    end = batch.end
    while run is not None:
        runs.append((run.headers, payloads[run.first - batch.first : end - batch.first]))
        end, run = run.first, run.before
    runs.reverse()
    return runs
