"""Admission: decides which spans may enter a location's queue, and which adders wait.

Three things are limited: a location's queued spans, its pending bytes, and the pending bytes of all locations. An adder
that cannot add its span joins the adders that wait at its location. The first adder there waits either for space in
its location, or for the byte budget that all locations share; in the latter case its location waits in
``byte_queue``. Both are first in, first out, so a full location delays only its own adders, and small spans do not
starve a large one. `Scheduler.step` admits waiting spans as space becomes free. If an adder is cancelled while it
waits, its span was never queued.

The caller's stack
------------------
`try_admit`, `try_admit_all`, `join` and `withdraw` are called by the program, at any depth of its stack, and a signal
handler of the program may raise between any two of their steps. So a span is added in three stages:

1. everything that it changes is computed, as new values. This changes nothing;
2. the new values are kept in ``_unfinished``, and the span goes into the queue. That one step is the commit;
3. the new values are stored. Doing so twice is the same as once.

A call that raises before the commit has accepted nothing. One that raises after it leaves ``_unfinished`` set. The next
call, on any stack, then completes stage 3 first (`finish`): the length of the queue tells whether the span went in. The
same holds if a finalizer or signal handler adds a span between two stages of another one.

Nothing else happens on the caller's stack. A location that the scheduler has to look at goes into the inbox before the
commit; looking at one that did not change is harmless.
"""

from __future__ import annotations

import math
from collections import OrderedDict, deque
from collections.abc import Callable
from typing import TypeAlias

import attrs

from .._errors import InvalidSpanError
from .._settings.policies import Limits
from .._spans.batch import EncodedSpan, SpanHeaders, cost_after, cost_of, framed_size
from .ledger import Account
from .location import UNRANKED, Location, Waiter
from .orders import Admit, Order
from .splitter import Growth, grow

# The number of orders after which the next step admits waiting spans.
_MOST_ORDERS = 64


@attrs.define(eq=False)
class _Bulk:
    """Spans that are admitted together, until all of them are in the queue.

    Attributes:
        location: Their location.
        spans: The spans.
        clock: Returns the current time in seconds.
        count: The number of spans.
        cost: Their bytes of the budgets.
        added: How many of them have been added.
        is_interrupted: Whether an exception ended the call that was adding them.
    """

    location: Location
    spans: list[EncodedSpan]
    clock: Callable[[], float]
    count: int
    cost: int
    added: int = 0
    is_interrupted: bool = False


# The values that adding a span stores: its location and headers; its effect on the batches, None if only the size of
# the open one changes; that size; with an effect, when the oldest batch of the location was opened; then ``accepted``,
# ``queued`` and ``pending_bytes`` of its account and of the totals; the `_Bulk` that it belongs to, and its new
# ``added``.
_Change: TypeAlias = tuple[
    Location, SpanHeaders, Growth | None, int, float, int, int, int, tuple[int, int, int], _Bulk | None, int
]


class Admission:
    """Admits spans, at once or later.

    Args:
        limits: The limits.
        total: The sums over all locations.
        outbox: Orders are added here.
        wake: Schedules a call of `Scheduler.step`. It may raise, and is called again then.

    Attributes:
        inbox: The locations that `Scheduler.step` has to look at.
        byte_queue: The locations whose first waiting adder waits for the shared byte budget, first in, first out.
        unranked: The locations whose queued bytes `Ranking` does not know well enough.
    """

    def __init__(self, limits: Limits, total: Account, outbox: deque[Order], wake: Callable[[], None]) -> None:
        self._total = total
        self._outbox = outbox
        self._wake = wake
        self._max_queued = limits.max_queued_spans
        self._max_bytes = limits.max_pending_bytes
        self._max_location_bytes = min(limits.max_pending_bytes_per_location, limits.max_pending_bytes)
        self._unfinished: _Change | None = None
        self._bulk: _Bulk | None = None
        self.inbox: deque[Location] = deque()
        self.byte_queue: OrderedDict[Location, None] = OrderedDict()
        self.unranked: OrderedDict[Location, None] = OrderedDict()

    # -- on the caller's stack ---------------------------------------------------------------------------------

    def try_admit(self, location: Location, span: EncodedSpan, clock: Callable[[], float]) -> bool:
        """Admit ``span`` if there is space and no adder waits for it. Return whether it was admitted."""
        if self._unfinished is not None or self._bulk is not None:
            self.finish()
            if self._bulk is not None and not self._leaves_space(location, self._bulk, span):
                return False
        account, total, headers, payload = location.account, self._total, span.headers, span.payload
        cost = len(payload) if headers is location.headers else cost_after(location.headers, span)
        own_bytes, all_bytes = account.pending_bytes + cost, total.pending_bytes + cost
        if (
            account.queued >= self._max_queued
            or own_bytes > self._max_location_bytes
            or all_bytes > self._max_bytes
            or location.waiting
            or self.byte_queue
        ):
            return False
        batch = location.open
        number, size = account.accepted, batch.size + cost + 3
        if (
            headers is not batch.headers
            or size > batch.simple_up_to
            or number >= batch.full_at
            or own_bytes > location.ranked_up_to
            or not 0x80 <= cost < 0x4000
            or cost != len(payload)
        ):
            return self._accept(location, span, clock)
        # The common case: only numbers change. This is `_accept` with its calls inlined, which takes half the time.
        accepted, queued = number + 1, account.queued + 1
        totals = (total.accepted + 1, total.queued + 1, all_bytes)
        change = (location, headers, None, size, math.inf, accepted, queued, own_bytes, totals, None, 0)
        if total.accepted != totals[0] - 1 or total.pending_bytes + cost != all_bytes:
            # A finalizer or signal handler has added a span meanwhile.
            return self._accept(location, span, clock)
        self._unfinished = change
        location.queue_in.send_nowait(payload)
        if self._unfinished is not change:
            self._accept_late(location, span, clock)
            return True
        batch.size = size
        account.accepted, account.queued, account.pending_bytes = accepted, queued, own_bytes
        total.accepted, total.queued, total.pending_bytes = totals
        self._unfinished = None
        return True

    def try_admit_all(self, location: Location, spans: list[EncodedSpan], clock: Callable[[], float]) -> bool:
        """Admit all of ``spans`` or none. Return whether they were admitted."""
        self.finish()
        return self._finish_bulk(_Bulk(location, spans, clock, len(spans), cost_of(spans, location.headers)))

    def check_can_ever_fit(self, count: int, cost: int) -> None:
        """Raise `ValueError` if the limits never allow ``count`` spans of ``cost`` bytes to be pending at once."""
        if cost > self._max_location_bytes:
            subject = "the span has" if count == 1 else f"the {count} spans have"
            raise InvalidSpanError(
                f"{subject} {cost} bytes with resource and scope, and can never fit: "
                f"Limits.max_pending_bytes_per_location and max_pending_bytes allow {self._max_location_bytes}"
            )
        if count > self._max_queued:
            raise ValueError(
                f"{count} spans can never fit at once: Limits.max_queued_spans is {self._max_queued}; "
                "use add_spans, which waits, or a shorter list"
            )

    def join(self, waiter: Waiter) -> bool:
        """Add an adder to those that wait at its location. Return False if that was evicted."""
        location = waiter.location
        if location.waiting is None:
            location.waiting = OrderedDict()
        self.touch(location)
        # The commit: a location at which an adder waits is not evicted.
        location.waiting[waiter] = None
        if location.is_evicted:
            # By a finalizer or signal handler that has opened another one, since it was opened for this adder.
            return False
        self.update_byte_queue(location)
        return True

    def withdraw(self, waiter: Waiter) -> None:
        """Remove a waiting adder. Its span was not admitted."""
        location = waiter.location
        self.touch(location)
        if location.waiting is not None:
            location.waiting.pop(waiter, None)
        self.update_byte_queue(location)

    def update_byte_queue(self, location: Location) -> None:
        """Add a location to ``byte_queue`` or remove it, by what its first adder waits for."""
        # This is not left to the next step, because other spans could overtake the adder until then.
        if location.waiting and not self._is_full(location, next(iter(location.waiting))):
            self.byte_queue.setdefault(location)
        elif self.byte_queue:
            self.byte_queue.pop(location, None)

    def _is_full(self, location: Location, waiter: Waiter) -> bool:
        account, cost = location.account, cost_after(location.headers, waiter.span)
        return account.queued >= self._max_queued or account.pending_bytes + cost > self._max_location_bytes

    def touch(self, location: Location) -> None:
        """Have the scheduler look at a location soon. To be called before the location is changed."""
        self._wake()
        if not (location.is_in_inbox or location.has_ended):
            self.inbox.append(location)
            location.is_in_inbox = True

    def is_adding_to(self, location: Location) -> bool:
        """Return whether an unfinished call may still add a span to a location's queue."""
        change, bulk = self._unfinished, self._bulk
        return (change is not None and change[0] is location) or (bulk is not None and bulk.location is location)

    def unrank(self, location: Location) -> None:
        """Record that `Ranking` does not know a location's queued bytes well enough."""
        self.unranked[location] = None
        location.ranked_up_to = UNRANKED

    def finish(self) -> None:
        """Complete a call that an exception interrupted."""
        change = self._unfinished
        if change is not None:
            location, queued = change[0], change[6]
            if location.queue_out.statistics().current_buffer_used >= queued:
                self._store(change)
            elif self._unfinished is change:
                self._unfinished = None
        if (bulk := self._bulk) is not None and bulk.is_interrupted:
            self._finish_bulk(bulk)

    def _finish_bulk(self, bulk: _Bulk) -> bool:
        """Add the remaining spans. If this raises, the next call of `finish` does. Return False if they do not fit."""
        location, account = bulk.location, bulk.location.account
        if self._bulk is not None and self._bulk is not bulk:
            # A finalizer or signal handler adds these spans while others are being added.
            return False
        try:
            bulk.is_interrupted = False
            if not bulk.added and (
                location.is_evicted
                or location.waiting
                or self.byte_queue
                or account.queued + bulk.count > self._max_queued
                or account.pending_bytes + bulk.cost > self._max_location_bytes
                or self._total.pending_bytes + bulk.cost > self._max_bytes
            ):
                self._bulk = None
                return False
            # The commit. There is no call since the limits were checked, so no span can have been added since.
            self._bulk = bulk
            while bulk.added < bulk.count:
                self._accept(location, bulk.spans[bulk.added], bulk.clock, bulk)
            self._bulk = None
            return True
        except BaseException:
            if self._bulk is bulk or bulk.added:
                bulk.is_interrupted, self._bulk = True, bulk
            raise

    def _leaves_space(self, location: Location, bulk: _Bulk, span: EncodedSpan) -> bool:
        """Return whether a span surely fits in addition to those that are being added."""
        account, cost = location.account, bulk.cost + cost_of([span])
        if location is bulk.location and (
            account.queued + bulk.count - bulk.added >= self._max_queued
            or account.pending_bytes + cost > self._max_location_bytes
        ):
            return False
        return self._total.pending_bytes + cost <= self._max_bytes

    def _accept(
        self, location: Location, span: EncodedSpan, clock: Callable[[], float], bulk: _Bulk | None = None
    ) -> bool:
        """Add a span. Return False if its location is evicted."""
        change = self._planned(location, span, clock, bulk)
        if change is None:
            return False
        location.queue_in.send_nowait(span.payload)
        if self._unfinished is change:
            self._store(change)
        else:
            self._accept_late(location, span, clock, bulk)
        return True

    def _accept_late(
        self, location: Location, span: EncodedSpan, clock: Callable[[], float], bulk: _Bulk | None = None
    ) -> None:
        """Count a span in the queue after another one was added during `send_nowait`."""
        if location.queue_out.statistics().current_buffer_used > location.account.queued:
            # The span was not in the queue when the other one was added; otherwise it was counted then.
            change = self._planned(location, span, clock, bulk)
            assert change is not None, "a location that holds a span is not evicted"
            self._store(change)

    def _planned(
        self, location: Location, span: EncodedSpan, clock: Callable[[], float], bulk: _Bulk | None
    ) -> _Change | None:
        """Plan the addition of a span, and set ``_unfinished``. Return None if the location is evicted."""
        while True:
            change = self._plan(location, span, clock, bulk)
            # No call from here until it is set, so no other span can be added in between.
            if location.is_evicted:
                return None
            if self._total.accepted == change[8][0] - 1:
                self._unfinished = change
                return change

    def _plan(self, location: Location, span: EncodedSpan, clock: Callable[[], float], bulk: _Bulk | None) -> _Change:
        account, batch, total, headers = location.account, location.open, self._total, span.headers
        # Read first, so that `_planned` notices if another span is added meanwhile.
        all_accepted = total.accepted + 1
        cost = cost_after(location.headers, span)
        number, queued = account.accepted, account.queued
        growth: Growth | None = None
        opened_at = account.opened_at
        size = batch.size + framed_size(span.payload)
        if headers is not batch.headers or size > batch.simple_up_to or number >= batch.full_at:
            growth = grow(batch, span, number, location.max_spans, location.policy.max_bytes, now := clock())
            opened_at = min(opened_at, now)
            if growth.full or not queued:
                self.touch(location)
        if (own_bytes := account.pending_bytes + cost) > location.ranked_up_to:
            self.unrank(location)
        totals = (all_accepted, total.queued + 1, total.pending_bytes + cost)
        added = 0 if bulk is None else bulk.added + 1
        return location, headers, growth, size, opened_at, number + 1, queued + 1, own_bytes, totals, bulk, added

    def _store(self, change: _Change) -> None:
        location, headers, growth, size, opened_at, accepted, queued, own_bytes, totals, bulk, added = change
        account, total = location.account, self._total
        if growth is not None:
            for batch in growth.full:
                if not location.full or location.full[-1].end < batch.end:
                    location.full.append(batch)
        if self._unfinished is not change:
            # Another span was added meanwhile, which completed this change.
            return
        # No call from here on, so nothing can interrupt.
        if growth is None:
            location.open.size = size
        else:
            location.open, account.opened_at = growth.open, opened_at
        account.accepted, account.queued, account.pending_bytes = accepted, queued, own_bytes
        location.headers = headers
        total.accepted, total.queued, total.pending_bytes = totals
        if bulk is not None:
            bulk.added = added
        self._unfinished = None

    # -- in the scheduler's step -------------------------------------------------------------------------------

    def serve(self, location: Location, clock: Callable[[], float]) -> None:
        """Admit a location's waiting spans while there is space. Its next adder then waits for queue space or bytes."""
        # `serve_byte_queue` serves the first location of that queue, in turns with the others.
        if next(iter(self.byte_queue), None) is not location:
            self._serve_all(location, clock)

    def serve_byte_queue(self, clock: Callable[[], float]) -> None:
        """Admit one span per location that waits for bytes, round-robin, while the budget lasts."""
        while self.byte_queue and len(self._outbox) < _MOST_ORDERS:
            location = next(iter(self.byte_queue))
            if location.waiting and not self._serve_first(location, clock) and location in self.byte_queue:
                return
            self.byte_queue.pop(location, None)
            if location.waiting and self.byte_queue:
                # It goes to the end.
                self._serve_first(location, clock)
            else:
                self._serve_all(location, clock)
            self.touch(location)

    def _serve_all(self, location: Location, clock: Callable[[], float]) -> None:
        while location.waiting and self._serve_first(location, clock):
            if len(self._outbox) >= _MOST_ORDERS:
                self.touch(location)
                break
        if not location.waiting:
            self.byte_queue.pop(location, None)

    def _serve_first(self, location: Location, clock: Callable[[], float]) -> bool:
        """Admit a location's first waiting span, if there is space."""
        assert location.waiting, "an adder waits"
        waiter = next(iter(location.waiting))
        account = location.account
        if self._is_full(location, waiter):
            self.byte_queue.pop(location, None)
            location.is_made_due = account.queued > 0
            return False
        cost = cost_after(location.headers, waiter.span)
        others_are_first = next(iter(self.byte_queue), location) is not location
        if others_are_first or self._total.pending_bytes + cost > self._max_bytes:
            self.byte_queue.setdefault(location)
            return False
        # Removed only afterwards, so that a signal handler's span cannot overtake it.
        is_accepted = self._accept(location, waiter.span, clock)
        assert is_accepted, "a location at which an adder waits is not evicted"
        del location.waiting[waiter]
        self._outbox.append(Admit(waiter))
        return True
