"""The ledger: counts the spans in each state, conserved at every instant.

Every accepted span is in exactly one column of its location's account: ``queued`` or ``in_flight`` while it is pending,
then ``delivered``, ``rejected``, ``spooled`` or ``undelivered`` for good. A move from one column to another is one
synchronous step, so no task and no statistics ever see a span in two columns or in none. ``accepted`` is counted
separately when a span is queued, so the identity
``accepted == queued + in_flight + delivered + rejected + spooled + undelivered`` can fail, and tests check it.
"""

from __future__ import annotations

import math
import operator
from collections import OrderedDict
from collections.abc import Callable, Iterator

import attrs

from .._reporting.statistics import LocationStatistics, Settlement
from .._spans.batch import EncodedSpan, SpanBatch, SpanHeaders, cost_of

__all__ = ["Account", "Lease", "Ledger"]


@attrs.define(eq=False)
class Account:
    """One location's columns, named as in `LocationStatistics`.

    The last three attributes are kept here because the account outlives the live location.

    Attributes:
        consecutive_failures: Attempts that failed since the last one that succeeded.
        not_before: The end of the wait that the server asked for, in trio's time.
        refuses_everything: Whether the server refused all parts of a batch and has accepted nothing since.
    """

    accepted: int = 0
    queued: int = 0
    in_flight: int = 0
    delivered: int = 0
    rejected: int = 0
    spooled: int = 0
    undelivered: int = 0
    ambiguous: int = 0
    pending_bytes: int = 0
    requests: int = 0
    retries: int = 0
    splits: int = 0
    consecutive_failures: int = 0
    not_before: float = -math.inf
    refuses_everything: bool = False

    @property
    def pending(self) -> int:
        """How many spans are accepted and not accounted for yet."""
        return self.queued + self.in_flight

    @property
    def first_queued(self) -> int:
        """The number of the oldest span in the queue. A location's spans are numbered as they are accepted."""
        return self.accepted - self.queued

    def counts(self) -> dict[str, int]:
        """Return the counts by name."""
        return dict(zip(_COUNTS, _counts_of(self), strict=True))

    def statistics(self, oldest_pending_age: float = 0.0) -> LocationStatistics:
        """Return a snapshot. ``oldest_pending_age`` is needed if spans are pending."""
        return LocationStatistics(
            **self.counts(),
            oldest_pending_age=oldest_pending_age,
            consecutive_failures=self.consecutive_failures,
        )


_NO_COUNTS = ("consecutive_failures", "not_before", "refuses_everything")
_COUNTS = tuple(field.name for field in attrs.fields(Account) if field.name not in _NO_COUNTS)
# One function for all columns, as statistics are read often and over many locations.
_counts_of: Callable[[Account], tuple[int, ...]] = operator.attrgetter(*_COUNTS)


@attrs.define(eq=False)
class Lease:
    """A batch, or a part of one, from its sealing until each of its spans is accounted for.

    Attributes:
        batch: The spans.
        first: The number of its first span in its location; the others follow without a gap.
        opened_at: When its first span was accepted, in trio's time.
        headers_before: The headers of the span accepted before its first one; None if no span was pending then.
        cost: The bytes of the budgets that its spans take.
        ambiguous: Whether an attempt of unknown outcome was counted for its spans.
        attempts: How many attempts were made with exactly these spans.
    """

    batch: SpanBatch
    first: int
    opened_at: float
    headers_before: SpanHeaders | None
    cost: int
    ambiguous: bool = False
    attempts: int = 0

    def __len__(self) -> int:
        return len(self.batch.spans)

    def split(self, at: int) -> tuple[Lease, Lease]:
        """Return a lease for the first ``at`` spans and one for the others."""
        left, right = self.batch.spans[:at], self.batch.spans[at:]
        return self._part(left, self.first, self.headers_before), self._part(right, self.first + at, left[-1].headers)

    def _part(self, spans: tuple[EncodedSpan, ...], first: int, headers: SpanHeaders | None) -> Lease:
        batch = SpanBatch(self.batch.location, spans)
        cost = cost_of(spans, headers)
        return attrs.evolve(self, batch=batch, first=first, headers_before=headers, cost=cost, attempts=0)


@attrs.define(eq=False)
class Ledger:
    """The accounts of all locations.

    Attributes:
        pending_bytes: The sum of all accounts' ``pending_bytes``, for the byte budget.
        kept_ended: How many accounts of ended locations are kept. Older ones are added to one account without a name.
    """

    kept_ended: int
    pending_bytes: int = 0
    _accounts: dict[str, Account] = attrs.Factory(dict)
    _ended: OrderedDict[str, None] = attrs.Factory(OrderedDict)
    _forgotten: Account = attrs.Factory(Account)

    def open(self, location: str) -> Account:
        """Return the account of a location that becomes live."""
        self._ended.pop(location, None)
        return self._accounts.setdefault(location, Account())

    def end(self, location: str) -> None:
        """Note that a location is no longer live."""
        self._ended[location] = None
        if len(self._ended) > self.kept_ended:
            oldest, _ = self._ended.popitem(last=False)
            self._forgotten = _sum(self._forgotten, self._accounts.pop(oldest))

    def accept(self, account: Account, cost: int) -> None:
        """Count a span of ``cost`` bytes as queued."""
        account.accepted += 1
        account.queued += 1
        account.pending_bytes += cost
        self.pending_bytes += cost

    def seal(self, account: Account, count: int) -> None:
        """Count the oldest ``count`` queued spans as in flight."""
        account.queued -= count
        account.in_flight += count

    def settle(self, account: Account, lease: Lease, settlement: Settlement) -> None:
        """Account for the spans of a lease."""
        account.in_flight -= len(lease)
        account.delivered += settlement.delivered
        account.rejected += settlement.rejected
        account.undelivered += settlement.undelivered
        account.pending_bytes -= lease.cost
        self.pending_bytes -= lease.cost

    def ambiguous(self, account: Account, lease: Lease) -> None:
        """Count the spans of a lease as ambiguous, once."""
        if not lease.ambiguous:
            lease.ambiguous = True
            account.ambiguous += len(lease)

    @property
    def queued(self) -> int:
        """The sum of all accounts' ``queued``. Safe to read from other threads, as making the tuple is atomic."""
        return sum([account.queued for account in tuple(self._accounts.values())])

    def accounts(self) -> Iterator[tuple[str, Account]]:
        """Yield each location with a kept account, and the account."""
        yield from self._accounts.items()

    def total(self) -> Account:
        """Return the sum over all accounts."""
        return _sum(self._forgotten, *self._accounts.values())


def _sum(*accounts: Account) -> Account:
    total = Account()
    for name, column in zip(_COUNTS, zip(*map(_counts_of, accounts), strict=True), strict=True):
        setattr(total, name, sum(column))
    return total
