"""The scheduler of a batcher with a spool.

States of a span
----------------
::

    queue --1--> held: uncommitted --2--> held: committed --4--> delivery --> settled
                        |      ^3             |5    ^            |   |
                        +------+              v     |            |7  +--8--> dead letters, forgotten
                                            shelf --6------------+
                                              ^------- recovered from an earlier process

1. A *commit* takes whole queues, as many as make up a few hundred spans, and seals each as leases. So a lease is at
   first a record. It begins ``commit_interval`` after the first span of the queue that waits for longest, or as soon
   as a queue is full, `_SPANS` spans or `_BYTES` are queued in all, an adder waits, or at a sync, a flush or the drain.
   One is under way at a time. (`Commit`)
2. The store has committed it: each lease gets the record's token, in `Lease.pieces`. It stays in ``held``, the second
   queue of its location. (`SpoolingScheduler.committed`)
3. The commit has failed: the lease may be sent although it is not committed, as a failing disk must not stop
   deliveries, and is tried again with the next commit, unless it was sent by then. Until its uncommitted leases are
   committed or sent, a location's queue stays as it is. (`SpoolingScheduler.commit_failed`)
4. When the location may export, the first leases that are held are joined to a batch, up to the limits of its policy.
5. When memory is short, the oldest committed leases leave it: they become pieces of records on the location's *shelf*,
   and count as ``spooled``. Only the places of records are in memory then.
6. A location whose shelf is not empty sends from it first: it takes a slot, the spans are read, and they are delivered.
   They never enter a queue, so this needs no space in one. (`PageIn`)
7. A committed lease whose delivery would hand its spans back (attempts or the isolation budget used up, the drain's
   deadline) returns to the shelf. The location backs off, and in the drain it is *parked*: it sends nothing more.
8. When the last span of a record is settled, the record is forgotten, never before: with the next commit, or alone if
   there is none for a while (`Settle`). If spans were rejected, they are written as dead letters first (`Bury`).

Spans leave the queue, ``held`` and the shelf at the front and enter at the back, except for 7, which puts them back
where their numbers belong. So a location's spans are sent in order: the shelf first, then ``held``, then the queue.
In the ledger they are ``queued``, then ``in_flight`` up to their settlement, or ``spooled`` on the shelf. What is to be
dropped leaves from the shelf, without being read (`Lost`).

An exception or a cancel loses nothing: all of this happens on the runtime's stack, and `Spooler` ends each order with
exactly one event. Until then its spans are somewhere else: those of a commit are held, those to be read are
``spooled``, a record to be forgotten is only on disk. A commit whose end is unknown may be on disk: its spans count as
ambiguous.

If the spool is full of the batcher's own records, that is backpressure: a sync waits, and what a commit has taken in
vain stays in memory even if its delivery gives up. It may be sent, since only sending makes space, and the spool may be
full of records that nobody can send.
"""

from __future__ import annotations

import heapq
import math
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from typing import Any

import attrs

from .._reporting.statistics import Settlement
from .._spans.batch import EncodedSpan, SpanBatch, cost_of
from .location import Lease, Location, first_span
from .orders import Bury, CannotOpen, Commit, HandBack, Lost, PageIn, Settle, Start, Sync
from .records import CommittedRecord, Piece, Shelf, split, take
from .scheduler import ORDERS_PER_STEP, Scheduler

# With so many spans or bytes, a commit begins, and takes no further location. No record has more, unless one span does.
_SPANS = 512
_BYTES = 256 * 1024
# The most locations of a commit, and the most locations that one step opens.
_LOCATIONS = 64
_OPENED = 16
# Seconds until a failed commit is tried again.
_AGAIN_AFTER = 1.0
# The part of ``max_bytes`` that is dropped in addition to what is needed.
_DROPPED_PART = 16


class SpooledLocation(Location):
    """A location of a batcher with a spool.

    ``max_spans`` and ``policy.max_bytes`` are those of a record, ``batch_spans`` and ``batch_policy`` those of a batch.

    Attributes:
        shelf: Its spans that are on disk and nowhere in memory.
        held: The leases that are committed, or are to be, and were not sent.
        ready: How many of the first ones may be sent.
        ready_spans: Their spans.
        ready_bytes: The size of their requests.
        is_paging: Whether spans are being read to be sent.
        is_parked: Whether it sends nothing more in the drain.
        is_guest: Whether it was opened to send recovered spans.
    """

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.batch_policy, self.batch_spans = self.policy, self.max_spans
        self.max_spans = min(self.max_spans, _SPANS)
        self.policy = attrs.evolve(self.policy, max_bytes=min(self.policy.max_bytes, _BYTES))
        self.held: deque[Lease] = deque()
        self.ready = self.ready_spans = self.ready_bytes = 0
        self.is_paging = self.is_parked = self.is_guest = False
        self.shelf: Shelf = []

    @property
    def is_empty(self) -> bool:
        """Whether no span is pending or waits on the shelf, and no adder waits."""
        if self.account.pending or self.waiting or self.is_paging:
            return False
        return self.is_parked or not self.account.spooled

    @property
    def has_unsent(self) -> bool:
        """Whether spans wait for an export."""
        return bool(self.retries or self.account.queued or self.held or (self.shelf and not self.is_parked))

    @property
    def has_uncommitted(self) -> bool:
        """Whether it holds leases that are not committed. They were committed in turn, so one of these is the last."""
        return bool(self.held) and not (self.held[0].pieces and self.held[-1].pieces)

    def export_at(self) -> float:
        """Return when an export may begin, given a free slot; `math.inf` if there is nothing to export."""
        return self.pace.next_at() if self.retries else max(self.due_at(), self.pace.next_at())

    def due_at(self) -> float:
        """Return when the next batch is due; `math.inf` if there is none that may be sent."""
        if self.is_paging or self.is_parked:
            return math.inf
        if self.shelf:
            return -math.inf
        if not self.ready:
            return math.inf
        first, policy = self.held[0], self.batch_policy
        is_full = self.ready_spans >= self.batch_spans or self.ready_bytes >= policy.max_bytes
        is_flushed = first.first < self.flush_watermark
        if self.is_closed or is_full or is_flushed or not first.pieces:
            return first.opened_at
        return first.opened_at + policy.max_delay

    def update_ready(self, *, from_scratch: bool = False) -> None:
        """Count the first leases that may be sent, after some of them were committed."""
        if from_scratch:
            self.ready = self.ready_spans = self.ready_bytes = 0
        while self.ready < len(self.held) and (lease := self.held[self.ready]).may_go:
            self.ready += 1
            self.ready_spans += len(lease)
            self.ready_bytes += lease.batch.size

    def unhold(self) -> Lease:
        """Remove and return the first lease that is held. It must be ready."""
        lease = self.held.popleft()
        self.ready -= 1
        self.ready_spans -= len(lease)
        self.ready_bytes -= lease.batch.size
        return lease

    def next_batch(self) -> Lease:
        """Remove the first leases that make up one batch, and return them as one."""
        leases = [last := self.unhold()]
        spans, size = len(last), last.batch.size
        while self.ready:
            lease = self.held[0]
            spans, size = spans + len(lease), size + lease.batch.size
            # The size of a batch is no more than the sum of its parts.
            if spans > self.batch_spans or size > self.batch_policy.max_bytes:
                break
            is_alike = bool(lease.pieces) == bool(last.pieces) and lease.ambiguous == last.ambiguous
            if not is_alike or lease.first != last.first + len(last):
                break
            leases.append(last := self.unhold())
        joined = leases[0]
        if len(leases) > 1:
            for lease in leases:
                self.drop_lease(lease)
            joined.batch = SpanBatch.joined([lease.batch for lease in leases])
            joined.count, joined.cost = sum(map(len, leases)), sum(lease.cost for lease in leases)
            joined.pieces = tuple(piece for lease in leases for piece in lease.pieces)
            self.add_lease(joined)
        return joined


class SpoolingScheduler(Scheduler):
    """A scheduler with a spool.

    Args:
        *args: As for `Scheduler`.
        spool: The settings, a `Spool`.
        wall: Returns the current time in seconds of Unix time.

    Attributes:
        shelves: The shelf of each location that is live or has spans on it.
        refused: The locations that could not be opened to send their recovered spans.
        uncommitted: The number of spans that were sent without having been committed.
        unsettled: The records to be forgotten.
    """

    def __init__(self, *args: Any, spool: Any, wall: Callable[[], float]) -> None:
        super().__init__(*args)
        # So that a commit fits in a small spool once some of it is settled.
        self._commit_bytes = min(_BYTES, spool.max_bytes // 4)
        self._location_class = self._opened
        self.wall = wall
        self.shelves: dict[str, Shelf] = {}
        self.refused: set[str] = set()
        self.uncommitted = 0
        self.unsettled: list[int] = []
        self._spool = spool
        self._max_age = math.inf if spool.max_age is None else spool.max_age
        # What is to be committed, in turn: a queue of a location, since when, or a sync that waits for those before it.
        self._line: OrderedDict[Location | Sync, float] = OrderedDict()
        self._commit: Commit | None = None
        # The syncs that begin with the next step.
        self._new_syncs: list[Sync] = []
        self._is_urgent = self._is_full = self._is_scarce = self._is_settling = False
        self._error: BaseException | None = None
        self._not_before = -math.inf
        self._settle_at = math.inf
        # Spans that are being sent without having been committed.
        self._unsafe = 0
        self._to_open: deque[str] = deque()
        self._last_recovered = -(1 << 62)
        self._stop_reason: str | None = None

    # -- on the caller's stack ---------------------------------------------------------------------------------

    def _opened(self, name: str, *args: Any) -> SpooledLocation:
        location = SpooledLocation(name, *args)
        # The same one for all locations of a name, so that what comes back late is sent by the one that is live then.
        location.shelf = self.shelves.setdefault(name, location.shelf)
        return location

    def begin_sync(self, sync: Sync) -> None:
        """Have a sync end once all that is accepted is committed or settled, or has failed to be committed."""
        self.admission.finish()
        self._new_syncs.append(sync)
        self._wake()

    def _has_spans(self, location: Location) -> bool:
        account = location.account
        own = account.pending + account.spooled - account.recovered_left
        return own > 0 and (super()._has_spans(location) or not location.has_ended)

    # -- decisions ---------------------------------------------------------------------------------------------

    def next_at(self) -> float:
        """Return when `step` has to be called next if nothing happens until then."""
        if self._new_syncs or self._may_open():
            return -math.inf
        return min(super().next_at(), self._commit_at(), math.inf if self._is_settling else self._settle_at)

    def step(self, now: float) -> bool:
        """See `Scheduler.step`. Begins a commit if it is time."""
        more = super().step(now)
        if self._new_syncs:
            for one in self.admission.inbox.copy():
                if one.has_queued and self.locations.get(one.name) is one:
                    self._line.setdefault(one, now)
            self._line.update(dict.fromkeys(self._new_syncs, now))
            self._new_syncs.clear()
            self._is_urgent, self._not_before = True, -math.inf
        if self._commit_at() <= now:
            self._begin_commit()
        if self._settle_at <= now and not self._is_settling:
            self._is_settling = True
            self.outbox.append(Settle(self.take_unsettled()))
        if self._to_open:
            self._open_recovered()
        return more

    def _look(self, location: Location, now: float) -> None:
        assert isinstance(location, SpooledLocation)
        if self.locations.get(location.name) is location:
            if location.has_queued:
                self._line.setdefault(location, now)
                is_flushed = location.account.first_queued < location.flush_watermark
                self._is_urgent |= bool(location.full or location.waiting or self.draining or is_flushed)
            self._make_room(location, now)
        super()._look(location, now)
        waiting = location.shelf or (location.held and location.held[0].pieces)
        if waiting and self._max_age < math.inf and not location.has_ended and not location.is_parked:
            self._agenda.put(location, self._ends_at(waiting[0], now))

    def _commit_at(self) -> float:
        """Return when the next commit begins; `math.inf` if there is nothing to commit, or one is under way."""
        if self._commit is not None or not self._line:
            return math.inf
        first, since = next(iter(self._line.items()))
        total = self.ledger.total
        is_much = total.queued >= _SPANS or total.pending_bytes - self.ledger.leased_bytes >= _BYTES
        # If there are more locations than one commit takes, it is followed by others.
        self._is_urgent |= is_much or bool(self.admission.byte_queue) or isinstance(first, Sync)
        return max(-math.inf if self._is_urgent else since + self._spool.commit_interval, self._not_before)

    def _begin_commit(self) -> None:
        """Take as many locations into a commit as it may have, and the syncs between them."""
        leases: list[Lease] = []
        syncs: list[Sync] = []
        spans = nbytes = locations = 0
        while self._line and locations < _LOCATIONS and spans < _SPANS and nbytes < self._commit_bytes:
            one, since = self._line.popitem(last=False)
            if isinstance(one, Sync):
                syncs.append(one)
                continue
            assert isinstance(one, SpooledLocation)
            locations += 1
            for lease in self._to_commit(one):
                leases.append(lease)
                spans += len(lease)
                nbytes += lease.cost
            if one.waiting:
                self.admission.touch(one)
                self.admission.update_byte_queue(one)
            if one.has_queued:
                # Syncs behind it wait for that, too.
                self._put_first(one, since)
                break
        self._is_urgent = self._is_urgent and bool(self._line)
        if leases:
            self._commit = Commit(leases, syncs, self.take_unsettled())
            self.outbox.append(self._commit)
        else:
            self._end_syncs(syncs)

    def _put_first(self, one: Location | Sync, since: float) -> None:
        self._line[one] = since
        self._line.move_to_end(one, last=False)

    def _to_commit(self, location: SpooledLocation) -> Sequence[Lease]:
        """Return the leases of a location that are not committed, or else those of its queue."""
        if not location.has_uncommitted:
            return self._seal_queue(location)
        leases = [lease for lease in location.held if not lease.pieces]
        for lease in leases:
            lease.may_go = False
        location.update_ready(from_scratch=True)
        self.admission.touch(location)
        return leases

    def _seal_queue(self, location: SpooledLocation) -> list[Lease]:
        leases = []
        while location.has_queued:
            leases.append(self._seal(location))
        location.held.extend(leases)
        return leases

    def _begin_export(self, location: Location) -> None:
        assert isinstance(location, SpooledLocation)
        if location.retries or not location.shelf:
            super()._begin_export(location)
            return
        self.slots.take(location)
        location.is_paging = True
        limits = self.limits
        # All that is read at once fits in a quarter of the budgets. At most half is held, so adders have the rest.
        share = limits.max_pending_bytes // (4 * limits.max_exports)
        own_share = limits.max_pending_bytes_per_location // (4 * limits.max_exports_per_location)
        pieces = take(location.shelf, location.batch_spans, min(location.batch_policy.max_bytes, share, own_share))
        self.outbox.append(PageIn(location, pieces, location.endpoint.begin()))

    def _next_batch(self, location: Location) -> Lease:
        assert isinstance(location, SpooledLocation)
        lease = location.next_batch()
        if not lease.pieces:
            self._unsafe += len(lease)
        return lease

    def split(self, lease: Lease, at: int) -> tuple[Lease, Lease]:
        """See `Scheduler.split`."""
        parts = super().split(lease, at)
        parts[0].pieces, parts[1].pieces = split(lease.pieces, at)
        return parts

    def _hand_back_queue(self, location: Location, reason: str) -> None:
        """Leave everything that waits to be sent to the spool."""
        assert isinstance(location, SpooledLocation)
        if self.draining or self._stop_reason is not None:
            location.is_parked = True
        if location.has_queued or location.has_uncommitted:
            self._line.setdefault(location, self._clock())
            self._is_urgent = True
        self._make_room(location, self._clock())

    def _end(self, location: Location) -> None:
        assert isinstance(location, SpooledLocation)
        # They are committed although their location has ended.
        self._seal_queue(location)
        super()._end(location)
        self.guests -= location.is_guest
        if not location.shelf and location.name not in self.locations:
            self.shelves.pop(location.name, None)

    def hand_back(self, reason: str) -> bool:
        """End locations, and leave what is committed in the spool. What is not is committed if there is time."""
        self._stop_reason = reason
        self._line.update(dict.fromkeys(self._new_syncs, self._clock()))
        self._new_syncs.clear()
        self.admission.finish()
        more = super().hand_back(reason)
        self._go_on()
        return more

    def _serve_waiting(self, now: float) -> bool:
        """Serve the adders that wait for bytes. If there are any, spans leave memory as soon as they are committed."""
        admission = self.admission
        touched = len(admission.inbox)
        if admission.byte_queue:
            admission.serve_byte_queue(self._clock)
            if len(self.outbox) >= ORDERS_PER_STEP:
                return True
        if admission.byte_queue and not self._is_scarce:
            # Commits do the same for their locations.
            for location in self.locations.values():
                assert isinstance(location, SpooledLocation)
                self._make_room(location, now)
        self._is_scarce = bool(admission.byte_queue)
        return len(admission.inbox) > touched

    def _rank(self, location: Location, now: float) -> float:
        # Nothing is made due for adders that wait for bytes.
        return math.inf

    # -- events: commits ---------------------------------------------------------------------------------------

    def accepted_at(self, lease: Lease) -> float:
        """Return when the first span of a lease was accepted, in seconds of Unix time."""
        return self.wall() - (self._clock() - lease.opened_at)

    def committed(self, commit: Commit, tokens: Sequence[int], now: float) -> None:
        """Record that the leases of a commit are committed, as records with these ``tokens``."""
        self._commit, self._is_full = None, False
        for lease, token in zip(commit.leases, tokens, strict=True):
            kept = CommittedRecord(token, len(lease), len(lease), lease.cost, self.accepted_at(lease))
            lease.pieces = (Piece(kept, lease.first, 0, len(lease)),)
            lease.may_go = True
        for location in _locations_of(commit):
            was_due_at = location.due_at()
            location.update_ready()
            self._make_room(location, now)
            # Otherwise nothing is to be done: it is on the agenda, for the first of its leases.
            if was_due_at == math.inf or location.due_at() != was_due_at or location.waiting or self.draining:
                self.admission.touch(location)
        if self._unsafe <= 0:
            self._error = None
        self._end_syncs(commit.syncs)
        self._go_on()

    def commit_failed(
        self,
        commit: Commit,
        error: BaseException,
        reason: str,
        now: float,
        *,
        full: bool = False,
        ambiguous: bool = False,
    ) -> None:
        """Record that a commit has failed with ``error``, which `sync` raises, unless the spool is ``full``.

        If it is ``ambiguous``, its records may be on disk nevertheless. ``reason`` is why spans are handed back if the
        batcher is being left.
        """
        self._commit = None
        is_stopped = self._stop_reason is not None
        self._is_full = full and not is_stopped
        self._error = None if self._is_full else error
        needed = sum(lease.cost for lease in commit.leases)
        is_dropping = self._is_full and self._spool.when_full == "drop_oldest" and self._drop_oldest(needed, now)
        for lease in commit.leases:
            lease.may_go = not is_dropping
            if ambiguous and not lease.ambiguous:
                lease.ambiguous = True
                self.ledger.ambiguous(lease.location.account, len(lease))
        locations = _locations_of(commit)
        for location in locations:
            if is_stopped:
                uncommitted = [lease for lease in location.held if not lease.pieces]
                self.outbox.extend(HandBack(lease, reason, for_good=True) for lease in uncommitted)
                location.held = deque(lease for lease in location.held if lease.pieces)
            location.update_ready(from_scratch=True)
            self._make_room(location, now)
            self.admission.touch(location)
        self._not_before, self._is_urgent = now + _AGAIN_AFTER, False
        if not self._is_full:
            self._end_syncs(commit.syncs, error)
        for one in reversed([*locations, *(commit.syncs if self._is_full else ())] if not is_stopped else []):
            self._put_first(one, now)
        self._go_on()

    def _go_on(self) -> None:
        """Begin the next commit, if the driver does not any more."""
        while self._stop_reason is not None and self._commit is None and self._line:
            self._begin_commit()

    def _end_syncs(self, syncs: Sequence[Sync], error: BaseException | None = None) -> None:
        """End syncs for whose spans a commit was tried."""
        for sync in syncs:
            if self._unsafe <= 0 or error is not None or self._error is not None or self._stop_reason is not None:
                is_safe = self._unsafe <= 0 and self._stop_reason is None
                sync.end(error or (None if is_safe else self._error))
            else:
                # Spans are being sent that were not committed, as the spool is full.
                self._put_first(sync, -math.inf)
                self._not_before = self._clock() + _AGAIN_AFTER

    # -- memory and disk ---------------------------------------------------------------------------------------

    def _is_short(self, location: SpooledLocation) -> bool:
        """Return whether committed spans of a location are to leave memory."""
        limits, account = self.limits, location.account
        return (
            location.is_parked
            or location.has_ended
            or bool(location.waiting or self.admission.byte_queue)
            or 2 * self.ledger.total.pending_bytes > limits.max_pending_bytes
            or 2 * account.pending_bytes > limits.max_pending_bytes_per_location
            or 2 * location.ready_spans > limits.max_queued_spans
        )

    def _make_room(self, location: SpooledLocation, now: float) -> None:
        """If memory is short, leave the oldest spans of a location to the disk. Drop those that are too old."""
        while location.ready and (pieces := location.held[0].pieces):
            if not self._is_short(location) and self._ends_at(pieces[0], now) > now:
                break
            self._shelve(location.unhold(), now)
        if not location.is_parked:
            self._drop_old(location.name, now)

    def _drop_old(self, name: str, now: float) -> None:
        shelf = self.shelves.get(name)
        while shelf and self._ends_at(shelf[0], now) <= now:
            reason = f"older than Spool.max_age, {self._max_age:g} s"
            self.outbox.append(Lost(name, heapq.heappop(shelf), reason))

    def _shelve(self, lease: Lease, now: float) -> None:
        location = lease.location
        assert isinstance(location, SpooledLocation)
        # An addition that was interrupted keeps the sums that it will store.
        self.admission.finish()
        location.drop_lease(lease)
        self.ledger.spool(location.account, len(lease), lease.cost)
        for piece in lease.pieces:
            piece.ambiguous = lease.ambiguous
        self._put_back(location, lease.pieces)
        self._note_departure(location, now)

    def _put_back(self, location: Location, pieces: Sequence[Piece]) -> None:
        """Put pieces on the shelf of a location, or on the one of the location that has its name now."""
        shelf = self.shelves.setdefault(location.name, [])
        for piece in pieces:
            heapq.heappush(shelf, piece)
        if (live := self.locations.get(location.name)) is not None:
            self.admission.touch(live)

    def keep(self, lease: Lease, settlement: Settlement, now: float) -> bool:
        """See `Scheduler.keep`."""
        location, is_leaving = lease.location, self.draining or self._stop_reason is not None
        assert isinstance(location, SpooledLocation)
        if not settlement.undelivered:
            return False
        if lease.pieces and not any(piece.record.is_damaged for piece in lease.pieces):
            self._shelve(lease, now)
        elif not lease.pieces and self._is_full and not is_leaving:
            self._unsafe -= len(lease)
            lease.attempts, lease.may_go = 0, True
            location.held = deque(sorted((lease, *location.held), key=first_span))
            location.update_ready(from_scratch=True)
            # The syncs of the commit that is under way wait for these spans, too.
            syncs = [] if self._commit is None else self._commit.syncs
            while syncs:
                self._put_first(syncs.pop(), now)
            self._put_first(location, now)
        else:
            return False
        if is_leaving:
            location.is_parked = True
            self._make_room(location, now)
        else:
            self.back_off(location, None, now)
        return True

    def paged_in(self, page: PageIn, found: Sequence[Sequence[EncodedSpan] | None], now: float) -> None:
        """Record that spans were read.

        ``found`` has the spans of each piece, None where its record is damaged. It is shorter if reading has failed.
        """
        location, pieces = page.location, page.pieces
        assert isinstance(location, SpooledLocation)
        is_read = len(found) == len(pieces) and None not in found
        # Another batch may have failed while these were read.
        may_go = location.pace.retry_at <= now and (location.endpoint.is_up or page.is_probe)
        if not (is_read and may_go) or self._stop_reason is not None or location.is_parked:
            for piece, spans in zip(pieces, found, strict=False):
                piece.record.is_damaged = spans is None
            self._return_page(page)
            if None in found:
                self._drop_damaged(location.name)
            if len(found) < len(pieces) and self._stop_reason is None:
                self.back_off(location, None, now)
            return
        spans = [span for part in found for span in part or ()]
        cost = cost_of(spans)
        opened_at = now - max(0.0, self.wall() - pieces[0].record.oldest)
        lease = Lease(location, SpanBatch(location.name, spans), len(spans), pieces[0].first, opened_at, None, cost)
        lease.pieces, lease.is_probe, lease.ambiguous = tuple(pieces), page.is_probe, pieces[0].ambiguous
        self.admission.finish()
        self.ledger.spool(location.account, -len(spans), -cost)
        location.add_lease(lease)
        location.update_opened_at()
        location.is_paging = False
        self.outbox.append(Start(lease))
        self.admission.touch(location)

    def _drop_damaged(self, name: str) -> None:
        shelf = self.shelves[name]
        for piece in [piece for piece in shelf if piece.record.is_damaged]:
            shelf.remove(piece)
            self.outbox.append(Lost(name, piece, "the record in the spool is damaged"))
        heapq.heapify(shelf)

    def _return_page(self, page: PageIn) -> None:
        """Put spans back that were to be read, and give back the slot that was taken for them."""
        location = page.location
        assert isinstance(location, SpooledLocation)
        self._put_back(location, page.pieces)
        location.is_paging = False
        self.slots.give_back(location)
        location.endpoint.end(is_probe=page.is_probe)
        self._touch_first(location.endpoint)
        self.admission.touch(location)

    # -- settling ----------------------------------------------------------------------------------------------

    def settled(self, lease: Lease, settlement: Settlement, now: float) -> None:
        """See `Scheduler.settled`. Forgets the records whose last span it was."""
        super().settled(lease, settlement, now)
        if not lease.pieces:
            self._unsafe -= len(lease)
            self.uncommitted += settlement.delivered + settlement.rejected
            # There is space in memory for what is committed next.
            self._not_before = -math.inf
        tokens = self._account_for(lease.pieces)
        if not settlement.rejected:
            self.settle(tokens)
            return
        reason = settlement.reason
        if settlement.rejected < len(lease):
            reason = f"{settlement.rejected} of these {len(lease)} spans were rejected: {reason}"
        self.outbox.append(Bury(lease.batch, reason, tokens))

    def _account_for(self, pieces: Sequence[Piece]) -> list[int]:
        """Count spans of records as accounted for. Return the records of which no other is left."""
        for piece in pieces:
            piece.record.left -= piece.count
        return [piece.record.token for piece in pieces if not piece.record.left]

    def _note_flushes(self, location: Location, first: int, count: int, settlement: Settlement) -> None:
        """See `Scheduler`. No flush waits for recovered spans, whose numbers are negative."""
        if first < 0:
            location.account.recovered_left -= count
        else:
            super()._note_flushes(location, first, count, settlement)

    def settle(self, tokens: Sequence[int]) -> None:
        """Have records forgotten: with the next commit, or alone if there is none within its interval."""
        if tokens:
            self.unsettled += tokens
            self._settle_at = min(
                self._settle_at, self._clock() + (0 if self._is_full else self._spool.commit_interval)
            )

    def take_unsettled(self) -> list[int]:
        """Return the records to be forgotten, which whoever calls this passes on to the store."""
        tokens, self.unsettled, self._settle_at = self.unsettled, [], math.inf
        return tokens

    def forgotten(self) -> None:
        """Record that an order to forget records was carried out, or has failed: the store then keeps it in mind."""
        self._is_settling = False
        if self._is_full:
            # There may be space now.
            self._not_before = -math.inf

    # -- recovery ----------------------------------------------------------------------------------------------

    def recovered(self, name: str, record: CommittedRecord) -> None:
        """Take over a record of an earlier process."""
        self.ledger.recover(self.ledger.open(name), record.count)
        live, shelf = self.locations.get(name), self.shelves.setdefault(name, [])
        if live is None and not shelf:
            self._to_open.append(name)
        heapq.heappush(shelf, Piece(record, self._last_recovered, 0, record.count))
        self._last_recovered += record.count
        if live is not None:
            self.admission.touch(live)

    def _may_open(self) -> bool:
        return bool(self._to_open) and not self.draining and self.guests < max(1, self.limits.max_locations // 2)

    def _open_recovered(self) -> None:
        """Open locations that have recovered spans, as many as may be live."""
        for _ in range(_OPENED):
            if not self._may_open():
                return
            name = self._to_open.popleft()
            if name in self.locations:
                continue
            self.guests += 1
            try:
                location = self.open(name)
            except BaseException as error:  # noqa: ASYNC103, ASYNC104  # the log raises it at the end
                # Nothing can be sent to it, or the policy function has failed.
                self.guests -= 1
                self.refused.add(name)
                self._drop_old(name, self._clock())
                self.outbox.append(CannotOpen(name, error))
            else:
                assert isinstance(location, SpooledLocation)
                location.is_guest = True
                self.admission.touch(location)

    def unsendable(self) -> int:
        """Return how many spans wait on the shelves of locations that could not be opened."""
        return sum(len(piece) for name in self.refused - self.locations.keys() for piece in self.shelves.get(name, ()))

    # -- dropping ----------------------------------------------------------------------------------------------

    def _ends_at(self, piece: Piece, now: float) -> float:
        """Return when a piece is too old, in seconds of the clock."""
        return math.inf if self._max_age == math.inf else now + piece.record.oldest + self._max_age - self.wall()

    def lost(self, lost: Lost, now: float) -> None:
        """See `Scheduler.lost`."""
        live, account, piece = self.locations.get(lost.name), self.ledger.open(lost.name), lost.piece
        if live is not None:
            self._watch_first(live)
        self.ledger.lose(account, len(piece))
        self.settle(self._account_for([piece]))
        if piece.first < 0:
            account.recovered_left -= len(piece)
        elif live is not None:
            self._note_flushes(live, piece.first, len(piece), Settlement(undelivered=len(piece)))
        if live is not None:
            self._note_departure(live, now)
        elif not account.spooled:
            self.ledger.end(lost.name)

    def _drop_oldest(self, needed: int, now: float) -> bool:
        """Drop the oldest records of all locations, as the spool is full. Return whether there were any."""
        for location in self.locations.values():
            assert isinstance(location, SpooledLocation)
            while location.ready and location.held[0].pieces:
                self._shelve(location.unhold(), now)
        oldest = [(shelf[0].record.oldest, name) for name, shelf in self.shelves.items() if shelf]
        heapq.heapify(oldest)
        is_dropping = bool(oldest)
        needed += self._spool.max_bytes // _DROPPED_PART
        while oldest and needed > 0:
            name = heapq.heappop(oldest)[1]
            shelf = self.shelves[name]
            piece = heapq.heappop(shelf)
            needed -= piece.nbytes
            self.outbox.append(Lost(name, piece, "the spool is full, and its oldest spans are dropped"))
            if shelf:
                heapq.heappush(oldest, (shelf[0].record.oldest, name))
        return is_dropping

    # -- statistics --------------------------------------------------------------------------------------------

    def oldest(self) -> float:
        """Return when the oldest committed span was accepted, in seconds of Unix time; `math.inf` without one."""
        found = [shelf[0].record.oldest for shelf in self.shelves.values() if shelf]
        leases = (lease for location in self.locations.values() for lease in location.leases if lease.pieces)
        return min([*found, *(lease.pieces[0].record.oldest for lease in leases)], default=math.inf)


def _locations_of(commit: Commit) -> list[SpooledLocation]:
    locations = dict.fromkeys(lease.location for lease in commit.leases)
    return [location for location in locations if isinstance(location, SpooledLocation)]
