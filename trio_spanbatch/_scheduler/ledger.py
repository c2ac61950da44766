"""The ledger: counts the spans in each state, conserved at every instant.

Every accepted span is in exactly one column of its location's account: ``queued`` or ``in_flight`` while it is pending,
then ``delivered``, ``rejected`` or ``undelivered``; or ``spooled`` while it is on disk and nowhere in memory.
``accepted`` is counted separately when a span is queued, and ``recovered`` when one is found on disk, so tests can
check that ``accepted + recovered == queued + in_flight + delivered + rejected + spooled + undelivered``. The totals
over all locations are kept as running sums.
"""

from __future__ import annotations

import functools
import math
import operator
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from types import MethodDescriptorType, WrapperDescriptorType
from typing import Any, SupportsIndex

import attrs

from .._reporting.statistics import LocationStatistics, Settlement


@attrs.define(eq=False)
class Account:
    """One location's columns, named as in `LocationStatistics`, or the totals.

    The last six attributes are kept here because the account outlives the live location.

    Attributes:
        opened_at: When the oldest batch with a pending span was opened, in seconds of the clock; `math.inf` if no span
            is pending.
        consecutive_failures: Attempts that failed since the last one that succeeded.
        not_before: The end of the wait that the server asked for, in seconds of the clock.
        refuses_everything: Whether the server refused all parts of a batch and has accepted nothing since.
        failed_after: The endpoint's ``answers`` at its last failure that may concern the endpoint; -1 without one.
        recovered_left: How many of the recovered spans are not accounted for yet.
    """

    accepted: int = 0
    recovered: int = 0
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
    opened_at: float = math.inf
    consecutive_failures: int = 0
    not_before: float = -math.inf
    refuses_everything: bool = False
    failed_after: int = -1
    recovered_left: int = 0

    @property
    def pending(self) -> int:
        """The number of spans that are accepted and not accounted for yet."""
        return self.queued + self.in_flight

    @property
    def first_queued(self) -> int:
        """The number of the oldest span in the queue. A location's spans are numbered as they are accepted."""
        return self.accepted - self.queued

    def counts(self) -> dict[str, int]:
        """Return the counts by name."""
        return dict(zip(_COUNTS, _counts_of(self), strict=True))


_NO_COUNTS = ("opened_at", "consecutive_failures", "not_before", "refuses_everything", "failed_after", "recovered_left")
_COUNTS = tuple(field.name for field in attrs.fields(Account) if field.name not in _NO_COUNTS)
# One call for all columns, as statistics are read often and for many locations.
_counts_of: Callable[[Account], tuple[int, ...]] = operator.attrgetter(*_COUNTS)
_record_of: Callable[[Any], tuple[Any, ...]] = operator.attrgetter("opened_at", "consecutive_failures", *_COUNTS)


class LocationCounts(dict[str, LocationStatistics]):
    """The statistics of all locations at one moment.

    It is a dict so that programs can serialize it. Creating it only copies the counts, which takes 2 ms for 10,000
    locations. A location's record is made when it is first read, so that a loop over all of them has no long step. Only
    a method that needs all records at once, such as a comparison, makes all that are missing.
    """

    __slots__ = ("_counts", "_now")

    def __init__(self, accounts: Mapping[str, Account], now: float) -> None:
        # It holds the accounts until it is first read, as it is faster to copy a dict than to fill one.
        held: Any = accounts
        super().__init__(held)
        self._counts: list[Any] = list(map(_record_of, super().values()))
        self._now = now

    def __reduce_ex__(self, protocol: SupportsIndex) -> tuple[Any, ...]:
        return dict, (dict(self),)

    def __iter__(self) -> Iterator[str]:
        # C code reads a dict that has a method of its own for this through `keys` and `__getitem__`.
        return super().__iter__()

    def __getitem__(self, location: str) -> LocationStatistics:
        if self._counts:
            super().update(list(zip(self, self._counts, strict=True)))
            self._counts = []
        held: Any = super().__getitem__(location)
        if type(held) is tuple:
            opened_at, failures, *columns = held
            held = LocationStatistics(
                **dict(zip(_COUNTS, columns, strict=True)),
                oldest_pending_age=0.0 if opened_at == math.inf else self._now - opened_at,
                consecutive_failures=failures,
            )
            super().__setitem__(location, held)
        return held  # type: ignore[no-any-return]  # a LocationStatistics by now

    # These read through `__getitem__`.
    get, items, values = Mapping.get, Mapping.items, Mapping.values  # type: ignore[assignment]  # of other types


def _after_filling(method: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(method)
    def call(self: LocationCounts, *args: Any, **kwargs: Any) -> Any:
        for location in self:
            self[location]
        return method(self, *args, **kwargs)

    return call


# Methods that read no record, or read through `__getitem__`.
_PIECEWISE = {"__getattribute__", "__sizeof__", "__len__", "__contains__", "keys", *vars(LocationCounts)}
for _name, _method in vars(dict).items():
    if isinstance(_method, MethodDescriptorType | WrapperDescriptorType) and _name not in _PIECEWISE:
        setattr(LocationCounts, _name, _after_filling(_method))


@attrs.define(eq=False)
class Ledger:
    """The accounts of all locations.

    Attributes:
        kept_ended: The maximum number of accounts of ended locations that are kept.
        total: The sums over all locations, including those whose accounts are no longer kept.
        leased_bytes: The bytes of the budgets that the spans in flight take.
    """

    kept_ended: int
    total: Account = attrs.Factory(Account)
    leased_bytes: int = 0
    _accounts: dict[str, Account] = attrs.Factory(dict)
    _ended: OrderedDict[str, None] = attrs.Factory(OrderedDict)

    def open(self, location: str) -> Account:
        """Return the account of a location that becomes live, the kept one if there is one."""
        self._ended.pop(location, None)
        return self._accounts.setdefault(location, Account())

    def end(self, location: str) -> None:
        """Record that a location is no longer live. It may have been evicted and opened several times in one step."""
        if location in self._accounts:
            self._ended[location] = None
        if len(self._ended) > self.kept_ended:
            oldest, _ = self._ended.popitem(last=False)
            del self._accounts[oldest]

    def seal(self, account: Account, count: int, cost: int) -> None:
        """Count the oldest ``count`` queued spans, which take ``cost`` bytes of the budgets, as in flight."""
        self.leased_bytes += cost
        for columns in (account, self.total):
            columns.queued -= count
            columns.in_flight += count

    def settle(self, account: Account, count: int, cost: int, settlement: Settlement) -> None:
        """Account for ``count`` spans in flight, which take ``cost`` bytes of the budgets."""
        self.leased_bytes -= cost
        for columns in (account, self.total):
            columns.in_flight -= count
            columns.delivered += settlement.delivered
            columns.rejected += settlement.rejected
            columns.undelivered += settlement.undelivered
            columns.pending_bytes -= cost

    def recover(self, account: Account, count: int) -> None:
        """Count spans that were found on disk."""
        account.recovered_left += count
        for columns in (account, self.total):
            columns.recovered += count
            columns.spooled += count

    def spool(self, account: Account, count: int, cost: int) -> None:
        """Count ``count`` spans in flight, of ``cost`` bytes, as on disk only; negative ones, as read back."""
        self.leased_bytes -= cost
        for columns in (account, self.total):
            columns.in_flight -= count
            columns.spooled += count
            columns.pending_bytes -= cost

    def lose(self, account: Account, count: int) -> None:
        """Count spans on disk, which cannot be read, as undelivered."""
        for columns in (account, self.total):
            columns.spooled -= count
            columns.undelivered += count

    def attempt(self, account: Account, *, is_retry: bool) -> None:
        """Count an attempt."""
        for columns in (account, self.total):
            columns.requests += 1
            columns.retries += is_retry

    def split(self, account: Account) -> None:
        """Count a batch that was split in two."""
        for columns in (account, self.total):
            columns.splits += 1

    def ambiguous(self, account: Account, count: int) -> None:
        """Count spans that had an attempt of unknown outcome."""
        for columns in (account, self.total):
            columns.ambiguous += count

    def accounts(self) -> Mapping[str, Account]:
        """Return the kept accounts by location."""
        return self._accounts
