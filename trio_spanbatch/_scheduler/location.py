"""A live location: its queue, its batches, its leases, and when it may export next.

A lease is a sealed batch, or a part of one, until each of its spans is accounted for.

A `Location` holds state and answers questions about it, and knows no other location. `Admission` puts spans in, and
`Scheduler` takes batches out.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from typing import Protocol

import attrs

from .._settings.policies import BatchPolicy
from .._spans.batch import EncodedSpan, SpanBatch, SpanHeaders, cost_of, cost_of_headers
from .endpoint import Endpoint
from .flush import LocationFlush
from .ledger import Account
from .pace import Pace
from .records import Piece
from .splitter import NO_BATCH, OpenBatch, QueuedBatch, runs_of

# More bytes than any location has.
UNRANKED = 1 << 100


class _QueueStatistics(Protocol):
    @property
    def current_buffer_used(self) -> int: ...


class QueueIn(Protocol):
    """The sending end of a queue: of a memory channel, outside unit tests."""

    def send_nowait(self, value: bytes, /) -> None:
        """Add the bytes of a span. No task waits in ``receive``, so this wakes none."""

    def close(self) -> None:
        """Close this end."""


class QueueOut(Protocol):
    """The receiving end of a queue, which is first in, first out."""

    def receive_nowait(self) -> bytes:
        """Remove and return the bytes of the first span."""
        ...

    def statistics(self) -> _QueueStatistics:
        """Return an object whose ``current_buffer_used`` is the number of spans in the queue."""
        ...

    def close(self) -> None:
        """Close this end."""


@attrs.define(eq=False)
class Lease:
    """A batch, or a part of one, from its sealing until each of its spans is accounted for.

    Attributes:
        location: The live location of its spans.
        batch: The spans.
        count: The number of spans.
        first: The number of its first span in its location; the others follow without a gap.
        opened_at: When its first span was accepted, in seconds of the clock.
        headers_before: The headers of the span accepted before its first one; None if no span was pending then.
        cost: The bytes of the budgets that its spans take.
        ambiguous: Whether its spans were counted as ambiguous, after an attempt of unknown outcome.
        attempts: The number of attempts with exactly these spans.
        is_probe: Whether its attempt is a probe of an endpoint that is down.
        began_after: The endpoint's ``answers`` when its last attempt began.
        may_repeat: Whether its next attempt may begin: it has an export slot.
        pieces: With a spool, the committed records of its spans; empty if they are not committed.
        may_go: With a spool, whether it may be sent: it is committed, or that was tried and has failed.
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
    is_probe: bool = False
    began_after: int = 0
    pieces: tuple[Piece, ...] = ()
    may_go: bool = False

    def __len__(self) -> int:
        return self.count

    def split(self, at: int) -> tuple[Lease, Lease]:
        """Return one lease for the first ``at`` spans and one for the others."""
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
        endpoint: The endpoint that it shares with others.
        policy: When its batches are due.
        max_spans: The maximum number of spans in a batch.
        queue_in: The sending end of its queue.
        queue_out: The receiving end of its queue.
        headers: The headers of the span accepted last; None if no span is pending.
        sealed_headers: The headers of the span sealed last; None if no span is pending.
        open: The open batch, to which spans are added; `NO_BATCH` if there is none.
        full: The full batches, oldest first.
        waiting: The adders that wait for space here, first in, first out.
        pace: Its concurrency and backoff.
        leases: Its batches in flight.
        leased_bytes: The bytes of the budgets that the leases take.
        retries: The leases that wait for their next attempt, oldest spans first.
        flushes: Its parts of the flushes that wait for its spans.
        flush_watermark: Spans with a lower number are due.
        is_made_due: Whether its first batch is due because an adder waits for space or bytes.
        is_closed: Whether the drain has begun: everything is due.
        is_evicted: Whether it was removed, while empty, to make room for another one. It accepts no more spans.
        has_ended: Whether it is no longer live.
        idle_since: When it last became empty, in seconds of the clock.
        next_look_at: When the scheduler looks at it next, in seconds of the clock. The agenda sets it.
        agenda_number: The number of its entry in the agenda; outdated if it has none.
        is_in_inbox: Whether it is in the inbox: the scheduler will look at it soon.
        ranked_bytes: The queued bytes by which `Ranking` ranks it.
        ranked_up_to: With more pending bytes it must be ranked again. `UNRANKED` if it has to be anyway.
    """

    __slots__ = (
        "account",
        "agenda_number",
        "endpoint",
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
        "ranked_bytes",
        "ranked_up_to",
        "retries",
        "sealed_headers",
        "waiting",
    )

    def __init__(
        self,
        name: str,
        account: Account,
        endpoint: Endpoint[Location],
        policy: BatchPolicy,
        max_queued_spans: int,
        queue: tuple[QueueIn, QueueOut],
        pace: Pace,
        now: float,
    ) -> None:
        self.name = name
        self.account = account
        self.endpoint = endpoint
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
        self.agenda_number = -1
        self.is_in_inbox = False
        self.ranked_bytes = 0
        self.ranked_up_to = 0

    def __repr__(self) -> str:
        return f"<Location {self.name!r}: {self.account.queued} queued, {self.account.in_flight} in flight>"

    @property
    def queued_bytes(self) -> int:
        """The bytes of the budgets that the queued spans take."""
        return self.account.pending_bytes - self.leased_bytes

    @property
    def is_ranked(self) -> bool:
        """Whether `Ranking` knows its queued bytes well enough."""
        return self.ranked_up_to is not UNRANKED

    @property
    def has_queued(self) -> bool:
        """Whether spans are in the queue."""
        return bool(self.full) or self.open is not NO_BATCH

    @property
    def is_empty(self) -> bool:
        """Whether no span is pending or spooled, and no adder waits."""
        account = self.account
        return not (account.queued or account.in_flight or account.spooled or self.waiting)

    @property
    def has_unsent(self) -> bool:
        """Whether spans wait for an export."""
        return bool(self.retries or self.account.queued)

    def export_at(self) -> float:
        """Return when an export may begin, given a free slot; `math.inf` if there is nothing to export."""
        if self.retries:
            return self.pace.next_at()
        return max(self.due_at(), self.pace.next_at()) if self.account.queued else math.inf

    def due_at(self) -> float:
        """Return when the first batch in the queue is due. The queue must not be empty."""
        opened_at = self.full[0].opened_at if self.full else self.open.opened_at
        is_flushed = self.account.first_queued < self.flush_watermark
        if self.is_closed or self.is_made_due or is_flushed or self.full:
            return opened_at
        return max(opened_at + self.policy.max_delay, self.pace.holds_until(opened_at))

    def end_at(self, idle_timeout: float) -> float:
        """Return when the location ends if nothing happens until then; `math.inf` if it is not empty."""
        if not self.is_empty:
            return math.inf
        return -math.inf if self.is_closed else self.idle_since + idle_timeout

    def seal(self) -> Lease:
        """Move the first batch from the queue into a lease. The queue must not be empty."""
        account = self.account
        first = account.first_queued
        batch = self._first_batch()
        count = batch.end - batch.first
        receive = self.queue_out.receive_nowait
        payloads = [receive() for _ in range(count)]
        runs = runs_of(batch, payloads)
        # The same cost as when they were accepted, as spans leave the queue in the order in which they entered it.
        before, self.sealed_headers = self.sealed_headers, runs[-1][0]
        cost = sum(map(len, payloads)) + cost_of_headers([headers for headers, _ in runs], before)
        sealed = SpanBatch.sealed(self.name, runs, batch.size)
        lease = Lease(self, sealed, count, first, batch.opened_at, before, cost)
        self.add_lease(lease)
        self.is_made_due = False
        return lease

    def _first_batch(self) -> QueuedBatch:
        while not self.full:
            batch = self.open.closed(self.account.accepted)
            # It differs if a finalizer or signal handler has added a span meanwhile.
            if batch.end == self.account.accepted:
                self.open = NO_BATCH
                return batch
        return self.full.pop(0)

    def add_lease(self, lease: Lease) -> None:
        """Add a lease, and count its bytes."""
        self.leases[lease] = None
        self.leased_bytes += lease.cost

    def drop_lease(self, lease: Lease) -> None:
        """Remove a lease, and the bytes that it takes."""
        del self.leases[lease]
        self.leased_bytes -= lease.cost

    def update_opened_at(self) -> None:
        """Update the account's ``opened_at``."""
        account, accepted = self.account, -1
        if not account.queued and not self.leases:
            account.opened_at = math.inf
            return
        while accepted != account.accepted:
            # Repeated if a finalizer or signal handler has added a span meanwhile.
            accepted = account.accepted
            opened_at = [lease.opened_at for lease in self.leases]
            if account.queued:
                opened_at.append(self.full[0].opened_at if self.full else self.open.opened_at)
            account.opened_at = min(opened_at, default=math.inf)


def first_span(lease: Lease) -> int:
    """Return the number of a lease's first span, to sort leases by age."""
    return lease.first
