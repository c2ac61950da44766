"""An oracle for long runs: it follows every span by its id, and forgets spans that are settled.

Its rules are those of ``tests/support/oracle.py``: the accepted spans are the disjoint union of those delivered,
rejected and undelivered; delivered spans are stored once, at their location; spans that are stored otherwise had an
attempt of unknown outcome; and the batcher's statistics agree. In a long run, however, the oracle itself must not grow.
So a span has a `Record` only until nothing more can happen to it:

- a span without an ambiguous attempt, until it is accounted for and, if delivered, was reported as stored;
- an ambiguous one until ``patience`` seconds after it was accounted for, far longer than the server needs for a
  request.

Any later event of a span without a record is a violation, whether the span was never accepted or was forgotten. So
the oracle still notices repetitions.
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

__all__ = ["ForgettingOracle", "TrackedBatcher"]

_MAX_VIOLATIONS = 20

Outcome = Literal["delivered", "rejected", "undelivered"]


@attrs.define(eq=False)
class Record:
    """The record of one span.

    Attributes:
        tracked: Its batcher.
        location: Its location.
        kind: Its kind, which decides how the server treats it.
        since: The time at which it was passed to the batcher.
        accepted: Whether it is known to be accepted; not while its adder waits, nor for a while if that is cancelled.
        running: Whether it is in an export.
        ambiguous: Whether it had an attempt of unknown outcome.
        outcome: How it was accounted for.
        settled_at: The time at which it was accounted for.
        stored: How many times the server stored it.
    """

    tracked: TrackedBatcher
    location: str
    kind: str
    since: float
    accepted: bool = False
    running: bool = False
    ambiguous: bool = False
    outcome: Outcome | None = None
    settled_at: float = 0.0
    stored: int = 0

    @property
    def is_untouched(self) -> bool:
        return not (self.running or self.ambiguous or self.outcome or self.stored)


class ForgettingOracle:
    """Watches all batchers of a run.

    Args:
        clock: Trio's time.
        patience: Seconds after which the server has finished every request.
        longest_pending: Seconds within which every accepted span must be accounted for.

    Attributes:
        violations: The first violations.
        accepted: The number of accepted spans.
        outcomes: The number of spans that were accounted for, by outcome.
        counts: Figures: attempts, ambiguous spans, spans stored twice, good spans rejected.
    """

    def __init__(
        self,
        clock: Callable[[], float] = trio.current_time,
        *,
        patience: float = 30.0,
        longest_pending: float = 180.0,
    ) -> None:
        self.violations: list[str] = []
        self.accepted = 0
        self.outcomes: Counter[str] = Counter()
        self.counts: Counter[str] = Counter()
        self._clock = clock
        self._patience = patience
        self._longest_pending = longest_pending
        self._span_ids = itertools.count(1)
        self._records: dict[int, Record] = {}

    def __len__(self) -> int:
        """Return the number of remembered spans."""
        return len(self._records)

    def make_span(self, kind: str = PLAIN, *, size: int = 0) -> Span:
        """Return a span with a unique id, padded by about ``size`` bytes."""
        attributes = {"pad": "x" * size} if size else {}
        return Span(kind, SpanContext(1, next(self._span_ids)), start_time=1, end_time=2, attributes=attributes)

    def report(self, words: str) -> None:
        """Record a violation."""
        if len(self.violations) < _MAX_VIOLATIONS:
            self.violations.append(words)

    def offer(self, tracked: TrackedBatcher, location: str, spans: Iterable[Span]) -> None:
        """Record that spans are passed to a batcher."""
        now = self._clock()
        for span in spans:
            self._records[span.context.span_id] = Record(tracked, location, span.name, now)

    def accept(self, ids: Iterable[int]) -> None:
        """Record that spans were accepted."""
        for span_id in ids:
            record = self._records[span_id]
            record.accepted = True
            record.tracked.accepted += 1
            self.accepted += 1
            self._forget_if_settled(span_id, record)

    def withdraw(self, ids: Iterable[int]) -> None:
        """Record that spans were not accepted."""
        for span_id in ids:
            if not self._records.pop(span_id).is_untouched:
                self.report(f"span {span_id} was not accepted, and yet has an outcome")

    def get(self, span_id: int, what: str) -> Record | None:
        """Return a span's record; if there is none, report ``what`` as a violation."""
        record = self._records.get(span_id)
        if record is None:
            self.report(f"span {span_id} is {what}, though it was never accepted, or was accounted for before")
        return record

    def settle(self, ids: Iterable[int], outcome: Outcome) -> None:
        """Record the outcome of spans."""
        for span_id in ids:
            record = self.get(span_id, outcome)
            if record is None:
                continue
            if record.outcome is not None:
                self.report(f"span {span_id} is {outcome} and was {record.outcome}")
            if outcome == "delivered" and record.kind != PLAIN:
                self.report(f"span {span_id} is delivered, though the server accepts no {record.kind} spans")
            self.counts["good spans rejected"] += outcome == "rejected" and record.kind == PLAIN
            record.outcome = outcome
            record.settled_at = self._clock()
            record.tracked.outcomes[outcome] += 1
            self.outcomes[outcome] += 1
            self._forget_if_settled(span_id, record)

    def stored(self, location: str, ids: Iterable[int]) -> None:
        """Record that the server stored spans."""
        for span_id in ids:
            record = self.get(span_id, "stored")
            if record is None:
                continue
            if record.location != location:
                self.report(f"span {span_id} of {record.location} is stored at {location}")
            record.stored += 1
            self.counts["spans stored again after an ambiguous attempt"] += record.stored > 1
            self._forget_if_settled(span_id, record)

    def pending(self, tracked: TrackedBatcher, location: str | None) -> list[int]:
        """Return the ids of a batcher's spans that are accepted and not accounted for."""
        return [
            span_id
            for span_id, record in self._records.items()
            if record.tracked is tracked
            and record.accepted
            and record.outcome is None
            and (location is None or record.location == location)
        ]

    def is_settled(self, span_id: int) -> bool:
        """Return whether a span that was accepted is accounted for."""
        record = self._records.get(span_id)
        return record is None or record.outcome is not None

    def sweep(self) -> None:
        """Forget settled spans; report those that should have been settled by now."""
        now = self._clock()
        for span_id, record in tuple(self._records.items()):
            if record.outcome is None:
                if now > record.since + self._longest_pending:
                    self.report(f"span {span_id} of {record.location} is pending for {now - record.since:.0f} s")
            elif record.accepted and now > record.settled_at + self._patience:
                self._forget(span_id, record)

    def finish(self) -> None:
        """Check the remaining spans after all batchers were left and the server has ended."""
        for span_id, record in tuple(self._records.items()):
            if record.outcome is None:
                self.report(f"span {span_id} of {record.location} was accepted and never accounted for")
            self._forget(span_id, record)

    def _forget_if_settled(self, span_id: int, record: Record) -> None:
        expected = 1 if record.outcome == "delivered" else 0
        if record.accepted and record.outcome is not None and not record.ambiguous and record.stored >= expected:
            self._forget(span_id, record)

    def _forget(self, span_id: int, record: Record) -> None:
        del self._records[span_id]
        if record.outcome == "delivered" and not record.stored:
            self.report(f"span {span_id} of {record.location} is delivered, and the server never stored it")
        if not record.ambiguous and record.stored > (record.outcome == "delivered"):
            self.report(
                f"span {span_id} is {record.outcome} and stored {record.stored} times, though no attempt was ambiguous"
            )


class TrackedBatcher:
    """A batcher whose adders, exports and losses are recorded, to be compared with its statistics.

    Attributes:
        batcher: The batcher; to be set before spans are added.
        accepted: The number of accepted spans.
        outcomes: The number of spans that were accounted for, by outcome.
        ambiguous: The number of spans that had an attempt of unknown outcome.
        attempts: The number of exports that have begun.
        in_doubt: Lists whose adder was cancelled: a prefix of each was accepted.
    """

    batcher: SpanBatcher

    def __init__(self, oracle: ForgettingOracle) -> None:
        self.accepted = 0
        self.outcomes: Counter[str] = Counter()
        self.ambiguous = 0
        self.attempts = 0
        self.in_doubt: list[list[int]] = []
        self._waiting = 0
        self._oracle = oracle

    # -- the program's side ------------------------------------------------------------------------------------

    def add_nowait(self, location: str, spans: Sequence[Span]) -> None:
        """Add ``spans``, all or none; exceptions propagate."""
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
        """Add ``spans``, waiting for space; exceptions propagate."""
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
                # If add_span raises Cancelled, it has accepted nothing.
                self._decide(ids, 0)
            raise
        except trio.ClosedResourceError as error:
            self._decide(ids, getattr(error, "accepted", 0))
            raise
        self._decide(ids, len(ids))

    async def flush(self, location: str | None) -> None:
        """Flush, and report a violation if a span accepted before is still pending; exceptions propagate."""
        before = self._oracle.pending(self, location)
        in_doubt = list(self.in_doubt) if location is None else []
        await self.batcher.flush(location)
        if late := [span_id for span_id in before if not self._oracle.is_settled(span_id)]:
            self._oracle.report(f"{len(late)} spans are pending after a flush, the first is {late[0]}")
        for ids in in_doubt:
            # Accepted spans are accounted for by now; the others were not accepted.
            self._resolve(ids)

    def on_loss(self, loss: Loss) -> None:
        """Record spans that were not delivered; the batcher's ``on_loss``."""
        ids = span_ids(loss.batch.spans)
        if loss.outcome == "undelivered":
            self._oracle.settle(ids, "undelivered")
        elif loss.count == len(ids) and loss.status_code is not None:
            # A loss of a partial success has no status: it was recorded with the answer.
            self._oracle.settle(ids, "rejected")

    def compare(self) -> SpanBatcherStatistics:
        """Report a violation if the batcher's statistics differ. Return them."""
        statistics = self.batcher.statistics()
        try:
            assert_conserved(statistics)
        except AssertionError as error:
            self._oracle.report(f"the statistics are not conserved: {error}")
        in_doubt = self._waiting + sum(map(len, self.in_doubt))
        if not self.accepted <= statistics.accepted <= self.accepted + in_doubt:
            most = self.accepted + in_doubt
            self._oracle.report(f"accepted: {statistics.accepted} counted, {self.accepted} to {most} seen")
        seen = {"ambiguous": self.ambiguous, "requests": self.attempts}
        seen |= {outcome: self.outcomes[outcome] for outcome in ("delivered", "rejected", "undelivered")}
        for name, count in seen.items():
            if getattr(statistics, name) != count:
                self._oracle.report(f"{name}: {getattr(statistics, name)} counted, {count} seen")
        return statistics

    def close(self) -> SpanBatcherStatistics:
        """Report a violation if a span is pending after the batcher was left. Return its last statistics."""
        for ids in tuple(self.in_doubt):
            self._resolve(ids)
        if pending := self._oracle.pending(self, None):
            self._oracle.report(f"{len(pending)} spans are pending after the end, the first is {pending[0]}")
        statistics = self.compare()
        if statistics.queued or statistics.in_flight or statistics.pending_bytes:
            self._oracle.report(f"after the end: {attrs.evolve(statistics, locations={})!r}")
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
            self._oracle.report(f"spans {ids[0]} to {ids[-1]} were not accepted in order")
        self._oracle.accept(itertools.compress(ids, settled))
        self._oracle.withdraw(span_id for span_id, was in zip(ids, settled, strict=True) if not was)

    # -- the exporter's side -----------------------------------------------------------------------------------

    def attempt_begins(self, batch: SpanBatch) -> list[int]:
        """Record the beginning of an export. Return the ids of its spans."""
        ids = span_ids(batch.spans)
        self.attempts += 1
        for span_id in ids:
            record = self._oracle.get(span_id, "exported")
            if record is None:
                continue
            if record.running or record.outcome or record.tracked is not self or record.location != batch.location:
                self._oracle.report(f"span {span_id} is exported to {batch.location}: {record}")
            record.running = True
        return ids

    def attempt_ends(self, ids: Sequence[int], result: ExportResult | None) -> None:
        """Record the result of an export; None if it was cancelled or raised."""
        records = [(span_id, record) for span_id in ids if (record := self._oracle.get(span_id, "exported"))]
        ambiguous = result is None or (isinstance(result, TryLater) and result.ambiguous)
        for _, record in records:
            record.running = False
            self.ambiguous += ambiguous and not record.ambiguous
            record.ambiguous |= ambiguous
        if isinstance(result, Delivered):
            left_out = [span_id for span_id, record in records if record.kind == UNWANTED]
            if result.rejected != len(left_out):
                self._oracle.report(f"{len(left_out)} spans were left out of a request: {result}")
            self._oracle.settle([span_id for span_id, record in records if record.kind != UNWANTED], "delivered")
            self._oracle.settle(left_out, "rejected")

    def observe(self, exporter: SpanExporter) -> SpanExporter:
        """Wrap ``exporter`` so that its exports are recorded."""
        return _ObservedExporter(self, exporter)


class _ObservedExporter:
    def __init__(self, tracked: TrackedBatcher, exporter: SpanExporter) -> None:
        self._tracked = tracked
        self._exporter = exporter

    async def export(self, batch: SpanBatch) -> ExportResult:
        ids = self._tracked.attempt_begins(batch)
        result: ExportResult | None = None
        try:
            result = await self._exporter.export(batch)
            return result
        finally:
            self._tracked.attempt_ends(ids, result)

    async def aclose(self) -> None:
        await self._exporter.aclose()
