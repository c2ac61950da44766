"""Admission: decides which spans may enter a location's queue, and which adders wait.

Three things are limited: a location's queued spans, its pending bytes, and the pending bytes of all locations. An adder
that cannot add its span joins the adders that wait at its location. The first adder there waits either for space in
its location, or for the byte budget of all; in the latter case its location waits in ``byte_queue``. Both are first in,
first out, so a full location delays only its own adders, and small spans do not starve a large one. `Scheduler.step`
admits waiting spans as space becomes free. If an adder is cancelled while it waits, its span was never queued.

The caller's stack
------------------
`try_admit`, `try_admit_all`, `join` and `withdraw` are called by the program, at any depth of its stack, and a signal
handler of the program may raise between any two of their steps. So a span is added in three stages:

1. everything that it changes is computed, as new values. This changes nothing;
2. the new values are kept in ``_unfinished``, and the span goes into the queue. That one step is the commit;
3. the new values are stored. Doing so twice is the same as once.

What raises before the commit has accepted nothing. What raises after it leaves ``_unfinished`` behind, and whoever
comes next, on whatever stack, completes stage 3 first (`finish`): the length of the queue says whether the span went
in. The same holds for a finalizer or signal handler that adds a span in the middle of another one's stages.

Nothing else happens on the caller's stack. What the scheduler has to look at goes into the inbox before the commit, and
a look at a location where nothing has changed does no harm.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable
from typing import TypeAlias

import attrs

from .._errors import InvalidSpanError
from .._settings.policies import Limits
from .._spans.batch import EncodedSpan, SpanHeaders, cost_after, cost_of, framed_size
from .ledger import Account
from .location import Location, Waiter
from .orders import Admit, Order
from .splitter import Growth, grow

__all__ = ["Admission"]


@attrs.define(eq=False)
class _Bulk:
    """Spans that were admitted together, while not all are in the queue yet.

    Attributes:
        location: Their location.
        spans: The spans.
        clock: Tells the time.
        count: How many they are.
        added: How many of them were added.
        is_given_up: Whether an exception has ended the call that was adding them.
    """

    location: Location
    spans: list[EncodedSpan]
    clock: Callable[[], float]
    count: int
    added: int = 0
    is_given_up: bool = False


# What adding a span stores: its location and headers; what it does to the batches, None if only the size of the open
# one changes; that size; when the location's oldest batch was opened; then ``accepted``, ``queued`` and
# ``pending_bytes`` of its account and of the totals; the spans with which it was admitted, and how many are added then.
_Change: TypeAlias = tuple[
    Location, SpanHeaders, Growth | None, int, float, int, int, int, tuple[int, int, int], _Bulk | None, int
]


class Admission:
    """Admits spans, at once or later.

    Args:
        limits: The limits.
        total: The sums over all locations.
        outbox: Orders are added here.
        wake: Has `Scheduler.step` called soon. May raise, and is then called again.

    Attributes:
        inbox: The locations to look at.
        byte_queue: The locations whose first waiting adder waits for the byte budget of all.
        unranked: The locations whose queued bytes the ranking by them does not know.
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
        self.unranked: dict[Location, None] = {}

    # -- on the caller's stack ---------------------------------------------------------------------------------

    def try_admit(self, location: Location, span: EncodedSpan, clock: Callable[[], float]) -> bool:
        """Admit ``span`` if there is space for which no adder waits already."""
        if self._unfinished is not None or self._bulk is not None:
            self.finish()
            if self._bulk is not None and not self._leaves_space(location, self._bulk):
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
        sizer, number = batch.sizer, account.accepted
        size = sizer.size + cost + 3
        if (
            headers is not sizer.headers
            or size > sizer.simple_up_to
            or number >= batch.full_at
            or location.is_ranked
            or not 0x80 <= cost < 0x4000
        ):
            return self._accept(location, span, clock)
        # The usual case: only numbers change. It is `_accept` with everything inlined, as calls would double its time.
        accepted, queued = number + 1, account.queued + 1
        totals = (total.accepted + 1, total.queued + 1, all_bytes)
        change = (location, headers, None, size, account.opened_at, accepted, queued, own_bytes, totals, None, 0)
        if total.accepted != totals[0] - 1 or total.pending_bytes + cost != all_bytes:
            # Another span was added meanwhile.
            return self._accept(location, span, clock)
        self._unfinished = change
        location.queue_in.send_nowait(payload)
        if self._unfinished is not change:
            self._accept_late(location, span, clock)
            return True
        sizer.size = size
        account.accepted, account.queued, account.pending_bytes = accepted, queued, own_bytes
        total.accepted, total.queued, total.pending_bytes = totals
        self._unfinished = None
        return True

    def try_admit_all(self, location: Location, spans: list[EncodedSpan], clock: Callable[[], float]) -> bool:
        """Admit all of ``spans``, or none."""
        self.finish()
        cost = cost_of(spans, location.headers)
        account = location.account
        if (
            location.waiting
            or self.byte_queue
            or account.queued + len(spans) > self._max_queued
            or account.pending_bytes + cost > self._max_location_bytes
            or self._total.pending_bytes + cost > self._max_bytes
        ):
            return False
        return self._finish_bulk(_Bulk(location, spans, clock, len(spans)))

    def check_can_ever_fit(self, count: int, cost: int) -> None:
        """Raise `ValueError` if ``count`` spans that cost ``cost`` bytes in all can never be pending together."""
        if cost > self._max_location_bytes:
            what = "the span has" if count == 1 else f"the {count} spans have"
            raise InvalidSpanError(
                f"{what} {cost} bytes with resource and scope, and can never fit: "
                f"Limits.max_pending_bytes_per_location and max_pending_bytes allow {self._max_location_bytes}"
            )
        if count > self._max_queued:
            raise ValueError(
                f"{count} spans can never fit at once: Limits.max_queued_spans is {self._max_queued}; "
                "use add_spans, which waits, or a shorter list"
            )

    def join(self, waiter: Waiter) -> None:
        """Let an adder wait until its span is admitted."""
        location = waiter.location
        if location.waiting is None:
            location.waiting = OrderedDict()
        self.touch(location)
        location.waiting[waiter] = None
        self.update_byte_queue(location)

    def withdraw(self, waiter: Waiter) -> None:
        """Let an adder wait no longer. Its span was not admitted."""
        location = waiter.location
        self.touch(location)
        if location.waiting is not None:
            location.waiting.pop(waiter, None)
        self.update_byte_queue(location)

    def update_byte_queue(self, location: Location) -> None:
        """Have a location wait for bytes if its first adder does, from now on: no span may overtake it meanwhile."""
        if location.waiting and not self._is_full(location, next(iter(location.waiting))):
            self.byte_queue.setdefault(location)
        elif self.byte_queue:
            self.byte_queue.pop(location, None)

    def _is_full(self, location: Location, waiter: Waiter) -> bool:
        account, cost = location.account, cost_after(location.headers, waiter.span)
        return account.queued >= self._max_queued or account.pending_bytes + cost > self._max_location_bytes

    def touch(self, location: Location) -> None:
        """Have the scheduler look at a location soon. The caller changes it after this call, in the same step."""
        self._wake()
        if not location.is_in_inbox:
            self.inbox.append(location)
            location.is_in_inbox = True

    def is_adding_to(self, location: Location) -> bool:
        """Return whether a span may be about to enter a location's queue."""
        change, bulk = self._unfinished, self._bulk
        return (change is not None and change[0] is location) or (bulk is not None and bulk.location is location)

    def unrank(self, location: Location) -> None:
        """Note that the ranking does not know a location's queued bytes."""
        self.unranked[location] = None
        location.is_ranked = False

    def finish(self) -> None:
        """Complete what an exception has interrupted."""
        change = self._unfinished
        if change is not None:
            location, queued = change[0], change[6]
            if location.queue_out.statistics().current_buffer_used >= queued:
                self._store(change)
            elif self._unfinished is change:
                self._unfinished = None
        if (bulk := self._bulk) is not None and bulk.is_given_up:
            self._finish_bulk(bulk)

    def _finish_bulk(self, bulk: _Bulk) -> bool:
        """Add the spans that are not added yet. If this raises, whoever comes next does. Return False if none fits."""
        account = bulk.location.account
        try:
            bulk.is_given_up = False
            if not bulk.added and (bulk.location.is_evicted or account.queued + bulk.count > self._max_queued):
                # Another span was added meanwhile.
                self._bulk = None
                return False
            # The commit. No call between this and the look at the queue, so no span can be added between.
            self._bulk = bulk
            while bulk.added < bulk.count:
                self._accept(bulk.location, bulk.spans[bulk.added], bulk.clock, bulk)
            self._bulk = None
            return True
        except BaseException:
            if self._bulk is bulk or bulk.added:
                bulk.is_given_up, self._bulk = True, bulk
            raise

    def _leaves_space(self, location: Location, bulk: _Bulk) -> bool:
        """Return whether there is room for a span besides those that are being added."""
        if location is not bulk.location:
            return True
        return location.account.queued + bulk.count - bulk.added < self._max_queued

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
        """Count a span in the queue after another one was added in the middle of `send_nowait`."""
        if location.queue_out.statistics().current_buffer_used > location.account.queued:
            # It was not in the queue when the other one was added. Otherwise it was counted then.
            change = self._planned(location, span, clock, bulk)
            assert change is not None, "a location that holds a span is not evicted"
            self._store(change)

    def _planned(
        self, location: Location, span: EncodedSpan, clock: Callable[[], float], bulk: _Bulk | None
    ) -> _Change | None:
        """Plan, and keep the plan in ``_unfinished``. Return None if the location is evicted."""
        while True:
            change = self._plan(location, span, clock, bulk)
            # No call between this and keeping it, so no other span can be added between.
            if location.is_evicted:
                return None
            if self._total.accepted == change[8][0] - 1:
                self._unfinished = change
                return change

    def _plan(self, location: Location, span: EncodedSpan, clock: Callable[[], float], bulk: _Bulk | None) -> _Change:
        account, batch, total, headers = location.account, location.open, self._total, span.headers
        # Read first: if another span is added before the end of this, the plan is seen to be outdated.
        all_accepted = total.accepted + 1
        cost = cost_after(location.headers, span)
        number, queued = account.accepted, account.queued
        growth: Growth | None = None
        opened_at = account.opened_at
        size = batch.sizer.size + framed_size(span.payload)
        if headers is not batch.sizer.headers or size > batch.sizer.simple_up_to or number >= batch.full_at:
            growth = grow(batch, span, number, location.max_spans, location.policy.max_bytes, now := clock())
            opened_at = min(opened_at, now)
            if growth.full or not queued:
                self.touch(location)
        if location.is_ranked:
            self.unrank(location)
        own_bytes, totals = account.pending_bytes + cost, (all_accepted, total.queued + 1, total.pending_bytes + cost)
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
            # Another span was added meanwhile, and this one was finished then.
            return
        # No call from here on, so nothing can come between.
        if growth is None:
            location.open.sizer.size = size
        else:
            location.open = growth.open
        account.accepted, account.queued, account.pending_bytes = accepted, queued, own_bytes
        account.opened_at, location.headers = opened_at, headers
        total.accepted, total.queued, total.pending_bytes = totals
        if bulk is not None:
            bulk.added = added
        self._unfinished = None

    # -- in the scheduler's step -------------------------------------------------------------------------------

    def serve(self, location: Location, clock: Callable[[], float]) -> None:
        """Admit a location's waiting spans while there is space. Then have it wait for what is short."""
        # A location that is first in line is served in turns with the others, by `serve_byte_queue`.
        if next(iter(self.byte_queue), None) is not location:
            self._serve_all(location, clock)

    def serve_byte_queue(self, clock: Callable[[], float]) -> None:
        """Admit one span per location that waits for bytes, round-robin, while the budget lasts."""
        while self.byte_queue:
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
            pass
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
        # It waits until then, so that no other span is added before it.
        self._accept(location, waiter.span, clock)
        del location.waiting[waiter]
        self._outbox.append(Admit(waiter))
        return True
