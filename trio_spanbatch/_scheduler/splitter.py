"""The batch splitter: where one batch of a location's queue ends and the next begins.

The queue is a memory channel, which has no peek. So it is decided as spans are accepted: the open batch grows until it
has ``max_spans``, or until another span would take its request over ``max_bytes``. Then it is full, and a new one is
opened. The spans stay in the queue; here are only the numbers that are needed to take a batch out, and the headers of
the spans, as the queue holds nothing but their bytes.

An open batch that is due but cannot be sealed yet continues to grow until it is full. So batches are large when a
server is slow.

Adding a span is planned first and carried out when the span is in the queue (`Admission`). A plan changes nothing, and
carrying it out twice is the same as once.
"""

from __future__ import annotations

import attrs

from .._spans.batch import EncodedSpan, RequestSizer, Runs, SpanHeaders

__all__ = ["NO_BATCH", "Growth", "OpenBatch", "QueuedBatch", "Run", "grow", "runs_of"]


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


@attrs.define(eq=False)
class OpenBatch:
    """The batch that grows. Only the size in ``sizer`` changes; for everything else there is a new object.

    Attributes:
        first: The number of its first span in its location.
        full_at: The number of the span that makes it full.
        opened_at: When its first span was accepted, in seconds of the clock.
        sizer: The exact size of its request.
        run: The last run of spans with the same headers.
    """

    first: int
    full_at: int
    opened_at: float
    sizer: RequestSizer
    run: Run | None

    def closed(self, end: int) -> QueuedBatch:
        """Return the batch as a full one that ends before the span with the number ``end``."""
        return QueuedBatch(self.first, end, self.sizer.size, self.opened_at, self.run)


# In place of an open batch where there is none: no span is added to it without a plan.
NO_BATCH = OpenBatch(first=0, full_at=0, opened_at=0.0, sizer=RequestSizer(0), run=None)


@attrs.frozen(eq=False)
class QueuedBatch:
    """A batch that is still in the queue and grows no more.

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
    run: Run | None


@attrs.frozen(eq=False)
class Growth:
    """What another span does to the batches of a queue.

    Attributes:
        full: The batches that become full.
        open: The batch that is open then; `NO_BATCH` if there is none.
    """

    full: tuple[QueuedBatch, ...]
    open: OpenBatch


def grow(batch: OpenBatch, span: EncodedSpan, number: int, max_spans: int, max_bytes: int, now: float) -> Growth:
    """Return what a span does to the open batch.

    Args:
        batch: The open batch, or `NO_BATCH`.
        span: The span.
        number: Its number in its location.
        max_spans: The most spans of a batch.
        max_bytes: The largest request, if a batch has several spans.
        now: The time.
    """
    full: tuple[QueuedBatch, ...] = ()
    sizer = batch.sizer.copy()
    if batch is NO_BATCH or not sizer.try_add(span):
        if batch is not NO_BATCH:
            full = (batch.closed(number),)
        sizer = RequestSizer(max_bytes)
        sizer.add_first(span)
        batch = OpenBatch(number, number + max_spans - 1, now, sizer, Run(span.headers, number, None))
    else:
        run = batch.run
        if run is None or run.headers is not span.headers:
            run = Run(span.headers, number, run)
        batch = OpenBatch(batch.first, batch.full_at, batch.opened_at, sizer, run)
    if number >= batch.full_at or sizer.size >= max_bytes:
        return Growth((*full, batch.closed(number + 1)), NO_BATCH)
    return Growth(full, batch)


def runs_of(batch: QueuedBatch, payloads: list[bytes]) -> Runs:
    """Return the runs of a batch, whose bytes are ``payloads``."""
    runs: Runs = []
    run, end = batch.run, batch.end
    while run is not None:
        runs.append((run.headers, payloads[run.first - batch.first : end - batch.first]))
        end, run = run.first, run.before
    runs.reverse()
    return runs
