"""A live location: its queue, its batches, its leases, and when it may export next.

A lease is a sealed batch, or a part of one, until each of its spans is accounted for.

It holds state and answers questions about it. It decides nothing about other locations: `Admission` puts spans in, and
the `Scheduler` takes batches out.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from typing import Protocol

import attrs

from .._settings.policies import BatchPolicy
from .._spans.batch import EncodedSpan, SpanBatch, SpanHeaders, cost_of, cost_of_headers
from .flush import LocationFlush
from .ledger import Account
from .pace import Pace
from .splitter import NO_BATCH, OpenBatch, QueuedBatch, runs_of

__all__ = ["Lease", "Location", "QueueIn", "QueueOut", "Waiter", "first_span"]


class _QueueStatistics(Protocol):
    @property
    def current_buffer_used(self) -> int: ...


class QueueIn(Protocol):
    """The end of a queue into which spans go. A memory channel's sending end."""

    def send_nowait(self, value: bytes, /) -> None:
        """Put the bytes of a span in. Nobody waits for them."""
        ...

    def close(self) -> None:
        """Put no more in."""
        ...


class QueueOut(Protocol):
    """The end of a queue out of which spans come, first in first out. A memory channel's receiving end."""

    def receive_nowait(self) -> bytes:
        """Take the bytes of a span out."""
        ...

    def statistics(self) -> _QueueStatistics:
        """Return how many spans are in the queue."""
        ...

    def close(self) -> None:
        """Take no more out."""
        ...


@attrs.define(eq=False)
class Lease:
    """A batch, or a part of one, from its sealing until each of its spans is accounted for.

    Attributes:
        location: The live location of its spans.
        batch: The spans.
        count: How many they are.
        first: The number of its first span in its location; the others follow without a gap.
        opened_at: When its first span was accepted, in seconds of the clock.
        headers_before: The headers of the span accepted before its first one; None if no span was pending then.
        cost: The bytes of the budgets that its spans take.
        ambiguous: Whether an attempt of unknown outcome was counted for its spans.
        attempts: How many attempts were made with exactly these spans.
        may_repeat: Whether its next attempt may begin, with an export slot.
    """

    location: Location
    batch: SpanBatch
    count: int
    first: int
    opened_at: float
    headers_before: SpanHeaders | None
    cost: int
    ambiguous: bool = False
    attempts: int = 0
    may_repeat: bool = False

    def __len__(self) -> int:
        return self.count

    def split(self, at: int) -> tuple[Lease, Lease]:
        """Return a lease for the first ``at`` spans and one for the others."""
        left, right = self.batch.spans[:at], self.batch.spans[at:]
        return self._part(left, self.first, self.headers_before), self._part(right, self.first + at, left[-1].headers)

    def _part(self, spans: tuple[EncodedSpan, ...], first: int, headers: SpanHeaders | None) -> Lease:
        batch = SpanBatch(self.batch.location, spans)
        cost = cost_of(spans, headers)
        return attrs.evolve(
            self, batch=batch, count=len(spans), first=first, headers_before=headers, cost=cost, attempts=0
        )


@attrs.frozen(eq=False)
class Waiter:
    """An adder that waits at a location, and its span."""

    location: Location
    span: EncodedSpan


class Location:
    """One live location.

    Attributes:
        name: Its name.
        account: Its counts, which outlive this object.
        policy: When its batches are due.
        max_spans: The most spans of a batch.
        queue_in: Spans go in here.
        queue_out: Spans come out here.
        headers: The headers of the span accepted last; None if no span is pending.
        open: The batch that grows; `NO_BATCH` if there is none.
        full: The full batches, oldest first.
        waiting: The adders that wait for space here, first in, first out.
        pace: Its concurrency and backoff.
        leases: Its batches in flight.
        leased_bytes: The bytes of the budgets that they take.
        retries: The leases that wait for their next attempt, oldest spans first.
        flushes: The flushes that wait for spans of it.
        flush_watermark: Spans with a lower number are due.
        is_made_due: Whether its first batch is due, as an adder waits for its bytes.
        is_closed: Whether the drain has begun: everything is due.
        is_evicted: Whether it was ended early, while empty, to make place for another one. It takes no span.
        has_ended: Whether it is live no more.
        idle_since: When it last became empty, in seconds of the clock.
        next_look_at: When the scheduler looks at it next. Only the agenda changes it.
        is_in_inbox: Whether the scheduler will look at it soon.
        is_ranked: Whether the ranking by queued bytes knows its present bytes.
    """

    __slots__ = (
        "account",
        "flush_watermark",
        "flushes",
        "full",
        "has_ended",
        "headers",
        "idle_since",
        "is_closed",
        "is_evicted",
        "is_in_inbox",
        "is_made_due",
        "is_ranked",
        "leased_bytes",
        "leases",
        "max_spans",
        "name",
        "next_look_at",
        "open",
        "pace",
        "policy",
        "queue_in",
        "queue_out",
        "retries",
        "sealed_headers",
        "waiting",
    )

    def __init__(
        self,
        name: str,
        account: Account,
        policy: BatchPolicy,
        max_queued_spans: int,
        queue: tuple[QueueIn, QueueOut],
        pace: Pace,
        now: float,
    ) -> None:
        self.name = name
        self.account = account
        self.policy = policy
        self.max_spans = min(policy.max_spans, max_queued_spans)
        self.queue_in, self.queue_out = queue
        self.pace = pace
        self.headers: SpanHeaders | None = None
        self.sealed_headers: SpanHeaders | None = None
        self.open: OpenBatch = NO_BATCH
        self.full: list[QueuedBatch] = []
        self.waiting: OrderedDict[Waiter, None] | None = None
        self.leases: dict[Lease, None] = {}
        self.leased_bytes = 0
        self.retries: list[Lease] | None = None
        self.flushes: dict[LocationFlush, None] | None = None
        self.flush_watermark = 0
        self.is_made_due = False
        self.is_closed = False
        self.is_evicted = False
        self.has_ended = False
        self.idle_since = now
        self.next_look_at = math.inf
        self.is_in_inbox = False
        self.is_ranked = False

    def __repr__(self) -> str:
        return f"<Location {self.name!r}: {self.account.queued} queued, {self.account.in_flight} in flight>"

    @property
    def queued_bytes(self) -> int:
        """How many bytes of the budgets the queued spans take."""
        return self.account.pending_bytes - self.leased_bytes

    @property
    def has_queued(self) -> bool:
        """Whether spans are in the queue."""
        return bool(self.full) or self.open is not NO_BATCH

    @property
    def is_empty(self) -> bool:
        """Whether no span is pending and no adder waits."""
        return not self.account.pending and not self.waiting

    def export_at(self) -> float:
        """Return when an export may begin, if a slot is free then; `math.inf` if there is nothing to export."""
        if self.retries:
            return self.pace.next_at()
        return max(self.due_at(), self.pace.next_at()) if self.account.queued else math.inf

    def due_at(self) -> float:
        """Return when the first batch in the queue is due. The queue must not be empty."""
        opened_at = self.full[0].opened_at if self.full else self.open.opened_at
        is_flushed = self.account.first_queued < self.flush_watermark
        if self.is_closed or self.is_made_due or is_flushed or self.full:
            return opened_at
        return opened_at + self.policy.max_delay

    def end_at(self, idle_timeout: float) -> float:
        """Return when the location ends if nothing happens until then."""
        if not self.is_empty:
            return math.inf
        return -math.inf if self.is_closed else self.idle_since + idle_timeout

    def seal(self) -> Lease:
        """Move the first batch from the queue into a lease. The queue must not be empty."""
        account = self.account
        first = account.first_queued
        batch = self.full.pop(0) if self.full else self._close_open()
        count = batch.end - batch.first
        payloads = [self.queue_out.receive_nowait() for _ in range(count)]
        runs = runs_of(batch, payloads)
        # As when the spans were accepted: they leave the queue in the same order.
        before, self.sealed_headers = self.sealed_headers, runs[-1][0]
        cost = sum(map(len, payloads)) + cost_of_headers([headers for headers, _ in runs], before)
        sealed = SpanBatch.sealed(self.name, runs, batch.size)
        lease = Lease(self, sealed, count, first, batch.opened_at, before, cost)
        self.add_lease(lease)
        self.is_made_due = False
        return lease

    def _close_open(self) -> QueuedBatch:
        while True:
            batch = self.open.closed(self.account.accepted)
            # Unless a finalizer or signal handler has added a span meanwhile.
            if batch.end == self.account.accepted:
                self.open = NO_BATCH
                return batch

    def add_lease(self, lease: Lease) -> None:
        """Hold a lease."""
        self.leases[lease] = None
        self.leased_bytes += lease.cost

    def drop_lease(self, lease: Lease) -> None:
        """Hold a lease no more."""
        del self.leases[lease]
        self.leased_bytes -= lease.cost

    def note_oldest(self) -> None:
        """Note when the oldest batch with a pending span was opened."""
        account, accepted = self.account, -1
        while accepted != account.accepted:
            # Again if a finalizer or signal handler has added a span meanwhile.
            accepted = account.accepted
            opened_at = [lease.opened_at for lease in self.leases]
            if account.queued:
                opened_at.append(self.full[0].opened_at if self.full else self.open.opened_at)
            account.opened_at = min(opened_at, default=math.inf)


def first_span(lease: Lease) -> int:
    """Return the number of a lease's first span, to sort leases by age."""
    return lease.first
