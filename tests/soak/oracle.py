"""An oracle for long runs: it knows by identity what became of every span, and forgets what is settled.

It asks for the same as the one in ``oracle.py``: the accepted spans are the disjoint union of those delivered, rejected
and undelivered; what is delivered is stored, once, at its location; what is stored otherwise had an attempt of unknown
outcome; and the batcher's statistics say so too. But the run is long, and the oracle must not be what grows. So a span
has a `Record` only until nothing more can come:

- a span none of whose attempts was doubtful, once it is accounted for and, if delivered, was seen stored;
- a doubtful one ``patience`` seconds after it was accounted for. The server works at a request for a much shorter time.

Whatever is told later of a span without a record is an objection, whether it never was accepted or was forgotten. So
forgetting does not make the oracle blind for repetitions.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Literal

import attrs
import trio

from tests.soak.support import PLAIN, UNWANTED
from tests.support.batchers import assert_conserved, ids_of, span_ids
from trio_spanbatch import (
    Delivered,
    ExportResult,
    Loss,
    Span,
    SpanBatch,
    SpanBatcher,
    SpanBatcherStatistics,
    SpanContext,
    SpanExporter,
    TryLater,
)

__all__ = ["Book", "ForgettingOracle"]

_MAX_OBJECTIONS = 20

Outcome = Literal["delivered", "rejected", "undelivered"]


@attrs.define(eq=False)
class Record:
    """What is known of one span.

    Attributes:
        book: The book of the batcher that it was given to.
        location: Where it belongs.
        kind: What the server makes of it.
        since: When it was given to the batcher.
        accepted: Whether it is known to be accepted; not while its adder waits, nor for a while if that is cancelled.
        running: Whether it is in an export.
        doubtful: Whether it had an attempt of unknown outcome.
        outcome: How it was accounted for.
        settled_at: When that was.
        stored: How many times the server stored it.
    """

    book: Book
    location: str
    kind: str
    since: float
    accepted: bool = False
    running: bool = False
    doubtful: bool = False
    outcome: Outcome | None = None
    settled_at: float = 0.0
    stored: int = 0

    @property
    def is_untouched(self) -> bool:
        return not (self.running or self.doubtful or self.outcome or self.stored)


class ForgettingOracle:
    """Watches all batchers of a run.

    Args:
        clock: Trio's time.
        patience: Seconds after which what was to happen at the server has happened.
        longest_pending: Seconds within which every accepted span is accounted for.

    Attributes:
        objections: What does not hold, the first of it.
        accepted: How many spans were accepted.
        outcomes: How many were accounted for, by outcome.
        counts: Figures: attempts, doubtful spans, spans stored twice, good spans rejected.
    """

    def __init__(
        self,
        clock: Callable[[], float] = trio.current_time,
        *,
        patience: float = 30.0,
        longest_pending: float = 180.0,
    ) -> None:
        self.objections: list[str] = []
        self.accepted = 0
        self.outcomes: Counter[str] = Counter()
        self.counts: Counter[str] = Counter()
        self._clock = clock
        self._patience = patience
        self._longest_pending = longest_pending
        self._span_ids = itertools.count(1)
        self._records: dict[int, Record] = {}

    def __len__(self) -> int:
        """Return how many spans are remembered."""
        return len(self._records)

    def make_span(self, kind: str = PLAIN, *, size: int = 0) -> Span:
        """Return a span with an id of its own, padded to about ``size`` bytes more."""
        attributes = {"pad": "x" * size} if size else {}
        return Span(kind, SpanContext(1, next(self._span_ids)), start_time=1, end_time=2, attributes=attributes)

    def object(self, words: str) -> None:
        """Take note of something that does not hold."""
        if len(self.objections) < _MAX_OBJECTIONS:
            self.objections.append(words)

    def offer(self, book: Book, location: str, spans: Iterable[Span]) -> None:
        """Spans are given to a batcher."""
        now = self._clock()
        for span in spans:
            self._records[span.context.span_id] = Record(book, location, span.name, now)

    def accept(self, ids: Iterable[int]) -> None:
        """Spans were accepted."""
        for span_id in ids:
            record = self._records[span_id]
            record.accepted = True
            record.book.accepted += 1
            self.accepted += 1
            self._forget_if_settled(span_id, record)

    def withdraw(self, ids: Iterable[int]) -> None:
        """Spans were not accepted."""
        for span_id in ids:
            if not self._records.pop(span_id).is_untouched:
                self.object(f"span {span_id} was not accepted, and something became of it")

    def get(self, span_id: int, what: str) -> Record | None:
        """Return a span's record; object to ``what`` if there is none."""
        record = self._records.get(span_id)
        if record is None:
            self.object(f"span {span_id} is {what}, though it was never accepted, or was accounted for before")
        return record

    def settle(self, ids: Iterable[int], outcome: Outcome) -> None:
        """Spans were accounted for."""
        for span_id in ids:
            record = self.get(span_id, outcome)
            if record is None:
                continue
            if record.outcome is not None:
                self.object(f"span {span_id} is {outcome} and was {record.outcome}")
            if outcome == "delivered" and record.kind != PLAIN:
                self.object(f"span {span_id} is delivered, though the server takes no {record.kind} one")
            self.counts["good spans rejected"] += outcome == "rejected" and record.kind == PLAIN
            record.outcome = outcome
            record.settled_at = self._clock()
            record.book.outcomes[outcome] += 1
            self.outcomes[outcome] += 1
            self._forget_if_settled(span_id, record)

    def stored(self, location: str, ids: Iterable[int]) -> None:
        """The server stored spans."""
        for span_id in ids:
            record = self.get(span_id, "stored")
            if record is None:
                continue
            if record.location != location:
                self.object(f"span {span_id} of {record.location} is stored at {location}")
            record.stored += 1
            self.counts["spans stored again after a doubtful attempt"] += record.stored > 1
            self._forget_if_settled(span_id, record)

    def pending(self, book: Book, location: str | None) -> list[int]:
        """Return the ids of a batcher's spans that are accepted and not accounted for."""
        return [
            span_id
            for span_id, record in self._records.items()
            if record.book is book
            and record.accepted
            and record.outcome is None
            and (location is None or record.location == location)
        ]

    def is_settled(self, span_id: int) -> bool:
        """Return whether a span that was accepted is accounted for."""
        record = self._records.get(span_id)
        return record is None or record.outcome is not None

    def sweep(self) -> None:
        """Forget what nothing more can come of; object to what should have come by now."""
        now = self._clock()
        for span_id, record in tuple(self._records.items()):
            if record.outcome is None:
                if now > record.since + self._longest_pending:
                    self.object(f"span {span_id} of {record.location} is pending for {now - record.since:.0f} s")
            elif record.accepted and now > record.settled_at + self._patience:
                self._forget(span_id, record)

    def finish(self) -> None:
        """All batchers were left and the server has ended: nothing more can come."""
        for span_id, record in tuple(self._records.items()):
            if record.outcome is None:
                self.object(f"span {span_id} of {record.location} was accepted and never accounted for")
            self._forget(span_id, record)

    def _forget_if_settled(self, span_id: int, record: Record) -> None:
        expected = 1 if record.outcome == "delivered" else 0
        if record.accepted and record.outcome is not None and not record.doubtful and record.stored >= expected:
            self._forget(span_id, record)

    def _forget(self, span_id: int, record: Record) -> None:
        del self._records[span_id]
        if record.outcome == "delivered" and not record.stored:
            self.object(f"span {span_id} of {record.location} is delivered, and the server never stored it")
        if not record.doubtful and record.stored > (record.outcome == "delivered"):
            self.object(
                f"span {span_id} is {record.outcome} and stored {record.stored} times, though no attempt was doubtful"
            )


class Book:
    """What is known about the spans of one batcher, to be compared with its statistics.

    Attributes:
        batcher: The batcher; to be set before anything is added.
        accepted: How many spans were accepted.
        outcomes: How many were accounted for, by outcome.
        doubtful: How many had an attempt of unknown outcome.
        attempts: How many exports have begun.
        in_doubt: Lists whose adder was cancelled: some first part of each was accepted.
    """

    batcher: SpanBatcher

    def __init__(self, oracle: ForgettingOracle) -> None:
        self.accepted = 0
        self.outcomes: Counter[str] = Counter()
        self.doubtful = 0
        self.attempts = 0
        self.in_doubt: list[list[int]] = []
        self._waiting = 0
        self._oracle = oracle

    # -- the program's side ------------------------------------------------------------------------------------

    def add_nowait(self, location: str, spans: Sequence[Span]) -> None:
        """Add ``spans``, all or none. What it raises comes out."""
        self._oracle.offer(self, location, spans)
        try:
            if len(spans) == 1:
                self.batcher.add_span_nowait(location, spans[0])
            else:
                self.batcher.add_spans_nowait(location, spans)
        except Exception:
            self._oracle.withdraw(ids_of(spans))
            raise
        self._oracle.accept(ids_of(spans))

    async def add(self, location: str, spans: Sequence[Span]) -> None:
        """Add ``spans`` and wait for room. What it raises comes out."""
        ids = ids_of(spans)
        self._oracle.offer(self, location, spans)
        self._waiting += len(ids)
        try:
            if len(spans) == 1:
                await self.batcher.add_span(location, spans[0])
            else:
                await self.batcher.add_spans(location, spans)
        except trio.Cancelled:
            if len(ids) > 1:
                self._waiting -= len(ids)
                self.in_doubt.append(ids)
            else:
                # One that raises Cancelled accepted nothing.
                self._decide(ids, 0)
            raise
        except trio.ClosedResourceError as error:
            self._decide(ids, getattr(error, "accepted", 0))
            raise
        self._decide(ids, len(ids))

    async def flush(self, location: str | None) -> None:
        """Flush, and object if anything accepted before is pending. What it raises comes out."""
        before = self._oracle.pending(self, location)
        in_doubt = list(self.in_doubt) if location is None else []
        await self.batcher.flush(location)
        if late := [span_id for span_id in before if not self._oracle.is_settled(span_id)]:
            self._oracle.object(f"{len(late)} spans are pending after a flush, the first is {late[0]}")
        for ids in in_doubt:
            # All that was accepted is accounted for by now; what is not was not accepted.
            self._resolve(ids)

    def on_loss(self, loss: Loss) -> None:
        """Take note of spans that were not delivered; to be given to the batcher."""
        ids = span_ids(loss.batch.spans)
        if loss.outcome == "undelivered":
            self._oracle.settle(ids, "undelivered")
        elif loss.count == len(ids) and loss.status_code is not None:
            # One of a partial success has no status: it was noted when the answer came.
            self._oracle.settle(ids, "rejected")

    def compare(self) -> SpanBatcherStatistics:
        """Object if the batcher's statistics say something else. Return them."""
        statistics = self.batcher.statistics()
        try:
            assert_conserved(statistics)
        except AssertionError as error:
            self._oracle.object(f"the statistics are not conserved: {error}")
        in_doubt = self._waiting + sum(map(len, self.in_doubt))
        if not self.accepted <= statistics.accepted <= self.accepted + in_doubt:
            most = self.accepted + in_doubt
            self._oracle.object(f"accepted: {statistics.accepted} counted, {self.accepted} to {most} seen")
        seen = {"ambiguous": self.doubtful, "requests": self.attempts}
        seen |= {outcome: self.outcomes[outcome] for outcome in ("delivered", "rejected", "undelivered")}
        for name, count in seen.items():
            if getattr(statistics, name) != count:
                self._oracle.object(f"{name}: {getattr(statistics, name)} counted, {count} seen")
        return statistics

    def close(self) -> SpanBatcherStatistics:
        """Object if anything is pending, now that the batcher was left. Return its last statistics."""
        for ids in tuple(self.in_doubt):
            self._resolve(ids)
        if pending := self._oracle.pending(self, None):
            self._oracle.object(f"{len(pending)} spans are pending after the end, the first is {pending[0]}")
        statistics = self.compare()
        if statistics.queued or statistics.in_flight or statistics.pending_bytes:
            self._oracle.object(f"after the end: {attrs.evolve(statistics, locations={})}")
        return statistics

    def _decide(self, ids: Sequence[int], accepted: int) -> None:
        self._waiting -= len(ids)
        self._oracle.accept(ids[:accepted])
        self._oracle.withdraw(ids[accepted:])

    def _resolve(self, ids: list[int]) -> None:
        if ids not in self.in_doubt:
            return  # by another flush
        self.in_doubt.remove(ids)
        settled = [self._oracle.is_settled(span_id) for span_id in ids]
        if settled != sorted(settled, reverse=True):
            self._oracle.object(f"spans {ids[0]} to {ids[-1]} were not accepted in order")
        self._oracle.accept(itertools.compress(ids, settled))
        self._oracle.withdraw(span_id for span_id, was in zip(ids, settled, strict=True) if not was)

    # -- the exporter's side -----------------------------------------------------------------------------------

    def attempt_begins(self, batch: SpanBatch) -> list[int]:
        """Take note of an export. Return the ids of its spans."""
        ids = span_ids(batch.spans)
        self.attempts += 1
        for span_id in ids:
            record = self._oracle.get(span_id, "exported")
            if record is None:
                continue
            if record.running or record.outcome or record.book is not self or record.location != batch.location:
                self._oracle.object(f"span {span_id} is exported to {batch.location}: {record}")
            record.running = True
        return ids

    def attempt_ends(self, ids: Sequence[int], result: ExportResult | None) -> None:
        """Take note of the result of an export, None if it was cancelled or raised."""
        records = [(span_id, record) for span_id in ids if (record := self._oracle.get(span_id, "exported"))]
        doubtful = result is None or (isinstance(result, TryLater) and result.ambiguous)
        for _, record in records:
            record.running = False
            self.doubtful += doubtful and not record.doubtful
            record.doubtful |= doubtful
        if isinstance(result, Delivered):
            left_out = [span_id for span_id, record in records if record.kind == UNWANTED]
            if result.rejected != len(left_out):
                self._oracle.object(f"{len(left_out)} spans were left out of a request: {result}")
            self._oracle.settle([span_id for span_id, record in records if record.kind != UNWANTED], "delivered")
            self._oracle.settle(left_out, "rejected")

    def observe(self, exporter: SpanExporter) -> SpanExporter:
        """Return ``exporter`` as this book can see it; to be given to the batcher."""
        return _ObservedExporter(self, exporter)


class _ObservedExporter:
    def __init__(self, book: Book, exporter: SpanExporter) -> None:
        self._book = book
        self._exporter = exporter

    async def export(self, batch: SpanBatch) -> ExportResult:
        ids = self._book.attempt_begins(batch)
        result: ExportResult | None = None
        try:
            result = await self._exporter.export(batch)
            return result
        finally:
            self._book.attempt_ends(ids, result)

    async def aclose(self) -> None:
        await self._exporter.aclose()
