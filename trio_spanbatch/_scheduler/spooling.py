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
   as a queue is full, `_SPANS` spans are queued in all, an adder waits, or at a sync, a flush or the drain. One is
   under way at a time. (`Commit`)
2. The store has committed it: each lease gets the record's token, in `Lease.pieces`. It stays in ``held``, the second
   queue of its location. (`SpoolingScheduler.committed`)
3. The commit has failed: the lease may be sent although it is not committed, as a failing disk must not stop
   deliveries, and is tried again with the next commit, unless it was sent by then. (`SpoolingScheduler.commit_failed`)
4. When the location may export, the first leases that are held are joined to a batch, up to the limits of its policy.
5. When memory is short, the oldest committed leases leave it: they become pieces of records on the location's *shelf*,
   and count as ``spooled``. Only the places of records are in memory then.
6. A location whose shelf is not empty sends from it first: it takes a slot, the spans are read, and they are delivered.
   They never enter a queue, so this needs no space in one. (`PageIn`)
7. A committed lease whose delivery would hand its spans back (attempts or the isolation budget used up, the drain's
   deadline) returns to the shelf, unless they are too old. The location backs off, and in the drain it is *parked*: it
   sends nothing more.
8. When the last span of a record is settled, the record is forgotten (`Settle`), never before; if spans were rejected,
   after they were written as dead letters (`Bury`).

Spans leave the queue, ``held`` and the shelf at the front and enter at the back, except for 7, which puts them back
where their numbers belong. So a location's spans are sent in order: the shelf first, then ``held``, then the queue.
In the ledger they are ``queued``, then ``in_flight`` up to their settlement, or ``spooled`` on the shelf.

Why an exception or a cancel loses nothing
------------------------------------------
All of this happens on the runtime's stack; adding spans is unchanged. The orders are carried out by tasks of `Spooler`,
and each ends with exactly one event, however it ends. Until then its spans are somewhere else: those of a commit are
held leases, which count as in flight; those to be read are ``spooled``; a record to be forgotten is only on disk. A
commit whose end is unknown, because it was cancelled or took too long, may be on disk: its spans are counted as
ambiguous. A record that is not forgotten in time is sent again by the next process: at least once.

In the drain the queues are committed at once, and what is delivered until its deadline is delivered as usual. After
that, `hand_back_all` leaves what is committed on the shelves. What is not is committed in the time that is left; what
even then is not, is handed back.

Locations whose spans were recovered are opened to send them, up to half of ``Limits.max_locations`` at once, and give
way to others: one that has nothing but recovered spans on its shelf is closed when there is no space for another one.
"""

from __future__ import annotations

import heapq
import math
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import attrs

from .._errors import TooManyLocationsError
from .._reporting.statistics import Settlement
from .._spans.batch import EncodedSpan, SpanBatch, cost_of
from .location import Lease, Location
from .orders import Bury, Commit, HandBack, Lost, PageIn, Settle, Start
from .records import CommittedRecord, Piece, Shelf, split
from .scheduler import Scheduler

# With so many spans or bytes, a commit begins, and takes no further location. No record has more, unless one span does.
_SPANS = 512
_BYTES = 256 * 1024
# The most locations of a commit, and the most locations that one step opens.
_LOCATIONS = 64
# Seconds until a failed commit, or reading records that are to be dropped, is tried again.
_AGAIN_AFTER = 1.0
# The part of ``max_bytes`` that is dropped in addition to what is needed.
_DROPPED_PART = 16


class _Record(Protocol):
    """A record that the store describes."""

    @property
    def token(self) -> int: ...
    @property
    def location(self) -> str: ...
    @property
    def count(self) -> int: ...
    @property
    def nbytes(self) -> int: ...
    @property
    def oldest(self) -> float: ...


class _Settings(Protocol):
    @property
    def max_bytes(self) -> int: ...
    @property
    def max_age(self) -> float | None: ...
    @property
    def commit_interval(self) -> float: ...
    @property
    def when_full(self) -> str: ...


@attrs.define(eq=False)
class Sync:
    """The state of one call of ``sync``.

    Attributes:
        wake: Called when it has ended.
        error: Why it has failed.
    """

    wake: Callable[[], None]
    error: BaseException | None = None

    def end(self, error: BaseException | None) -> None:
        """End it."""
        self.error = error
        self.wake()


class SpooledLocation(Location):
    """A location of a batcher with a spool.

    ``max_spans`` and ``policy.max_bytes`` are those of a record, ``batch_policy`` has those of a batch.

    Attributes:
        batch_policy: When its batches are due.
        held: The leases that are committed, or are to be, and were not sent.
        ready: How many of the first ones may be sent.
        ready_spans: Their spans.
        ready_bytes: The size of their requests.
        shelf: Its spans that are on disk and nowhere in memory.
        is_paging: Whether spans are being read to be sent.
        is_parked: Whether it sends nothing more in the drain.
    """

    __slots__ = (
        "batch_policy",
        "held",
        "is_paging",
        "is_parked",
        "ready",
        "ready_bytes",
        "ready_spans",
        "shelf",
    )

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.batch_policy = attrs.evolve(self.policy, max_spans=self.max_spans)
        self.max_spans = min(self.max_spans, _SPANS)
        self.policy = attrs.evolve(self.policy, max_bytes=min(self.policy.max_bytes, _BYTES))
        self.held: deque[Lease] = deque()
        self.ready = self.ready_spans = self.ready_bytes = 0
        self.shelf = Shelf()
        self.is_paging = False
        self.is_parked = False

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
        is_full = self.ready_spans >= policy.max_spans or self.ready_bytes >= policy.max_bytes
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

    def next_leases(self) -> list[Lease]:
        """Remove and return the first leases that make up one batch."""
        leases = [self.unhold()]
        spans, size = len(leases[0]), leases[0].batch.size
        while self.ready:
            lease, last = self.held[0], leases[-1]
            spans, size = spans + len(lease), size + lease.batch.size
            # The size of a batch is no more than the sum of its parts.
            if spans > self.batch_policy.max_spans or size > self.batch_policy.max_bytes:
                break
            is_alike = bool(lease.pieces) == bool(last.pieces) and lease.ambiguous == last.ambiguous
            if not is_alike or lease.first != last.first + len(last):
                break
            leases.append(self.unhold())
        return leases


class SpoolingScheduler(Scheduler):
    """A scheduler with a spool.

    Args:
        *args: As for `Scheduler`.
        spool: The settings.
        wall: Returns the current time in seconds of Unix time.

    Attributes:
        uncommitted: The number of spans that were sent without having been committed.
    """

    def __init__(self, *args: Any, spool: _Settings, wall: Callable[[], float]) -> None:
        super().__init__(*args)
        self._location_class = SpooledLocation
        self.wall = wall
        self.uncommitted = 0
        self._spool = spool
        self._max_age = math.inf if spool.max_age is None else spool.max_age
        # What is to be committed, in turn: a queue of a location, since when, or a sync that waits for those before it.
        self._line: OrderedDict[Location | Sync, float] = OrderedDict()
        self._commit: Commit | None = None
        # The syncs that wait for the locations in the inbox, and those of the commit under way.
        self._new_syncs: list[Sync] = []
        self._syncs: list[Sync] = []
        self._is_urgent = False
        self._error: BaseException | None = None
        self._is_full = self._was_scanned = False
        self._not_before = self._no_drops_before = -math.inf
        self._uncommitted_leases: set[Lease] = set()
        self._unsettled: list[int] = []
        self._is_settling = False
        self._was_scanned = False
        # Of locations that are not live.
        self._shelves: OrderedDict[str, Shelf] = OrderedDict()
        self._refused: dict[str, Shelf] = {}
        # The live locations that were opened to send their recovered spans.
        self._opened: set[Location] = set()
        self._recovered_up_to: dict[str, int] = {}
        self._stop_reason: str | None = None

    # -- adding, on the caller's stack -------------------------------------------------------------------------

    def begin_sync(self, sync: Sync) -> None:
        """Have a sync end once all that is accepted is committed or settled, or has failed to be committed."""
        self.admission.finish()
        self._new_syncs.append(sync)

    def forget_sync(self, sync: Sync) -> None:
        """Forget a sync, which nobody waits for any more."""
        self._line.pop(sync, None)
        for syncs in (self._new_syncs, self._syncs):
            if sync in syncs:
                syncs.remove(sync)

    def _has_spans(self, location: Location) -> bool:
        account = location.account
        own = account.pending + account.spooled - account.recovered_left
        return own > 0 and (super()._has_spans(location) or not location.has_ended)

    def _evict_one_if_needed(self) -> None:
        try:
            super()._evict_one_if_needed()
        except TooManyLocationsError:
            if not any(self._evict_if_only_spooled(location) for location in tuple(self.locations.values())):
                raise

    def _evict_if_only_spooled(self, location: Location) -> bool:
        """Evict a location that has nothing but recovered spans on its shelf. `_look` then puts that away."""
        assert isinstance(location, SpooledLocation)
        self.admission.touch(location)
        is_adding, account = self.admission.is_adding_to(location), location.account
        if (
            is_adding
            or account.pending
            or location.waiting
            or location.is_paging
            or account.spooled > account.recovered_left
        ):
            return False
        # The commit, as in `_evict_if_empty`.
        del self.locations[location.name]
        location.is_evicted = True
        return True

    # -- decisions ---------------------------------------------------------------------------------------------

    def next_at(self) -> float:
        """Return when `step` has to be called next if nothing happens until then."""
        if self._new_syncs:
            return -math.inf
        return min(super().next_at(), self._commit_at())

    def step(self, now: float) -> bool:
        """See `Scheduler.step`. Begins a commit if it is time."""
        more = super().step(now)
        if not more and self._new_syncs:
            self._line.update(dict.fromkeys(self._new_syncs, now))
            self._new_syncs.clear()
            self._is_urgent, self._not_before = True, -math.inf
        self._begin_commit(now)
        self._open_shelved()
        return more

    def _look(self, location: Location, now: float) -> None:
        assert isinstance(location, SpooledLocation)
        if location.has_ended:
            return
        if self.locations.get(location.name) is location:
            if self._shelves and (shelf := self._shelves.pop(location.name, None)) is not None:
                location.shelf.put(shelf)
            self._line_up(location, now)
            self._make_room(location, now)
            self._drop_old(location, now)
        super()._look(location, now)
        if location.is_parked or self.locations.get(location.name) is not location:
            return
        if location.shelf:
            self._agenda.put(location, max(self._no_drops_before, self._ends_at(location.shelf.first, now)))
        elif location.ready and location.held[0].pieces:
            self._agenda.put(location, location.held[0].opened_at + self._max_age)

    def _line_up(self, location: SpooledLocation, now: float) -> None:
        """Have the queue of a location committed."""
        if not location.has_queued:
            return
        self._line.setdefault(location, now)
        is_flushed = location.account.first_queued < location.flush_watermark
        if location.full or location.waiting or self.draining or is_flushed or self.admission.byte_queue:
            self._is_urgent = True

    def _commit_at(self) -> float:
        """Return when the next commit begins; `math.inf` if there is nothing to commit, or one is under way."""
        if self._commit is not None or not self._line:
            return math.inf
        first, since = next(iter(self._line.items()))
        if isinstance(first, Sync) or self._stop_reason is not None:
            return -math.inf
        if self._is_urgent or self.ledger.total.queued >= _SPANS:
            since = -math.inf
        return max(since + self._spool.commit_interval, self._not_before)

    def _begin_commit(self, now: float) -> None:
        """Take as many locations into a commit as it may have, if it is time."""
        if self._commit_at() > now:
            return
        # If there are more locations than one commit takes, it is followed by others.
        self._is_urgent = self._is_urgent or self.ledger.total.queued >= _SPANS
        leases: list[Lease] = []
        spans = nbytes = locations = 0
        while self._line and locations < _LOCATIONS and spans < _SPANS and nbytes < _BYTES:
            one, _ = self._line.popitem(last=False)
            if isinstance(one, Sync):
                self._syncs.append(one)
                continue
            assert isinstance(one, SpooledLocation)
            locations += 1
            for lease in self._to_commit(one):
                leases.append(lease)
                spans += len(lease)
                nbytes += lease.cost
            self.admission.touch(one)
            self.admission.update_byte_queue(one)
        self._is_urgent = self._is_urgent and bool(self._line)
        if leases:
            self._commit = Commit(leases)
            self.outbox.append(self._commit)
        else:
            self._end_syncs(self._syncs)

    def _to_commit(self, location: SpooledLocation) -> Iterator[Lease]:
        """Yield the leases of a location that are not committed, and seal its queue."""
        for lease in location.held:
            if not lease.pieces:
                lease.may_go = False
                yield lease
        location.update_ready(from_scratch=True)
        while location.has_queued:
            lease = self._seal(location)
            location.held.append(lease)
            yield lease

    def _begin_export(self, location: Location) -> None:
        assert isinstance(location, SpooledLocation)
        if location.retries or not location.shelf:
            super()._begin_export(location)
            return
        self.slots.take(location)
        location.is_paging = True
        limits, policy = self.limits, location.batch_policy
        # All that is read at once fits in half of the budgets, as the other half may be held.
        share = limits.max_pending_bytes // (2 * limits.max_exports)
        own_share = limits.max_pending_bytes_per_location // (2 * limits.max_exports_per_location)
        pieces = location.shelf.take(policy.max_spans, min(policy.max_bytes, share, own_share))
        self.outbox.append(PageIn(location, pieces, location.endpoint.begin()))

    def _next_batch(self, location: Location) -> Lease:
        assert isinstance(location, SpooledLocation)
        leases = location.next_leases()
        lease = leases[0]
        if len(leases) > 1:
            for one in leases:
                location.drop_lease(one)
            lease = attrs.evolve(
                lease,
                batch=SpanBatch.joined([one.batch for one in leases]),
                count=sum(map(len, leases)),
                cost=sum(one.cost for one in leases),
                pieces=tuple(piece for one in leases for piece in one.pieces),
            )
            location.add_lease(lease)
        if not lease.pieces:
            self.uncommitted += len(lease)
            self._uncommitted_leases.add(lease)
        return lease

    def split(self, lease: Lease, at: int) -> tuple[Lease, Lease]:
        """See `Scheduler.split`."""
        parts = super().split(lease, at)
        parts[0].pieces, parts[1].pieces = split(lease.pieces, at)
        if lease in self._uncommitted_leases:
            self._uncommitted_leases.remove(lease)
            self._uncommitted_leases.update(parts)
        return parts

    def _hand_back_queue(self, location: Location, reason: str) -> None:
        """Leave everything that waits to be sent to the spool."""
        assert isinstance(location, SpooledLocation)
        if self.draining or self._stop_reason is not None:
            location.is_parked = True
        if location.has_queued or not all(lease.pieces for lease in location.held):
            self._line.setdefault(location, self._clock())
            self._is_urgent = True
        self._make_room(location, self._clock())

    def _end(self, location: Location) -> None:
        assert isinstance(location, SpooledLocation)
        for lease in self._to_commit(location) if location.has_queued else ():
            # It is committed although its location has ended.
            lease.may_go = False
        super()._end(location)
        self._opened.discard(location)
        self._put_back(location, tuple(location.shelf))
        location.shelf = Shelf()

    def hand_back_all(self, reason: str) -> None:
        """End all locations, and leave what is committed in the spool. What is not is committed if there is time."""
        self._stop_reason = reason
        self._line.update(dict.fromkeys(self._new_syncs, self._clock()))
        self._new_syncs.clear()
        self.admission.finish()
        for order in tuple(self.outbox):
            if isinstance(order, PageIn):
                self.outbox.remove(order)
                self._return_page(order)
        super().hand_back_all(reason)
        self._begin_commit(self._clock())

    def _serve_waiting(self, now: float) -> bool:
        """Serve the adders that wait for bytes. If memory is short, spans leave it as soon as they are committed."""
        admission = self.admission
        if admission.byte_queue:
            admission.serve_byte_queue(self._clock)
        if admission.byte_queue and not self._was_scanned:
            # Commits do the same for their locations.
            for location in self.locations.values():
                assert isinstance(location, SpooledLocation)
                self._line_up(location, now)
                self._make_room(location, now)
        self._was_scanned = bool(admission.byte_queue)
        return bool(admission.inbox)

    def _rank(self, location: Location, now: float) -> float:
        # Spans leave memory as soon as they are committed, whether their location may export or not.
        return math.inf

    # -- events: commits ---------------------------------------------------------------------------------------

    def accepted_at(self, lease: Lease) -> float:
        """Return when the first span of a lease was accepted, in seconds of Unix time."""
        return self.wall() - (self._clock() - lease.opened_at)

    def committed(self, commit: Commit, records: Sequence[_Record], now: float) -> None:
        """Record that the leases of a commit are committed, as ``records``."""
        self._commit = None
        self._is_full = self._was_scanned = False
        for lease, record in zip(commit.leases, records, strict=True):
            kept = CommittedRecord(record.token, len(lease), len(lease), record.nbytes, record.oldest)
            lease.pieces = (Piece(kept, lease.first, 0, len(lease)),)
            lease.may_go = True
        for location in dict.fromkeys(lease.location for lease in commit.leases):
            assert isinstance(location, SpooledLocation)
            location.update_ready()
            self._make_room(location, now)
            self.admission.touch(location)
        self._end_syncs(self._syncs)
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
        """Record that a commit has failed.

        Args:
            commit: The commit.
            error: What `sync` raises.
            reason: Why spans are handed back if the batcher is being left.
            now: The current time.
            full: Whether the spool is full.
            ambiguous: Whether its records may be on disk nevertheless.
        """
        self._commit, self._error, self._is_full = None, error, full
        for lease in commit.leases:
            lease.may_go = True
            if ambiguous and not lease.ambiguous:
                lease.ambiguous = True
                self.ledger.ambiguous(lease.location.account, len(lease))
        locations = dict.fromkeys(lease.location for lease in commit.leases)
        if self._stop_reason is not None:
            for location in locations:
                self._hand_back_uncommitted(location, reason)
        else:
            self._not_before, self._is_urgent = now + _AGAIN_AFTER, False
            for location in reversed(tuple(locations)):
                assert isinstance(location, SpooledLocation)
                location.update_ready()
                self._line[location] = now
                self._line.move_to_end(location, last=False)
                self.admission.touch(location)
            if full and self._spool.when_full == "drop_oldest":
                self._drop_oldest(sum(lease.cost for lease in commit.leases), now)
        self._fail_syncs(error)
        self._go_on()

    def _go_on(self) -> None:
        """Begin the next commit, if the driver does not any more."""
        if self._stop_reason is not None:
            self._begin_commit(self._clock())

    def _hand_back_uncommitted(self, location: Location, reason: str) -> None:
        assert isinstance(location, SpooledLocation)
        held, location.held = location.held, deque()
        for lease in held:
            if not lease.pieces:
                self.outbox.append(HandBack(lease, reason, for_good=True))
            else:
                location.held.append(lease)
        location.update_ready(from_scratch=True)
        self._make_room(location, self._clock())

    def _end_syncs(self, syncs: list[Sync]) -> None:
        # A span that is being sent without having been committed is neither committed nor settled.
        while syncs:
            syncs.pop().end(self._error if self._uncommitted_leases else None)

    def _fail_syncs(self, error: BaseException) -> None:
        waiting = [one for one in self._line if isinstance(one, Sync)] + self._new_syncs + self._syncs
        for sync in waiting:
            self.forget_sync(sync)
            sync.end(error)

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
        """If memory is short, leave the oldest spans of a location to the disk."""
        while location.ready and location.held[0].pieces and self._is_short(location):
            self._shelve(location.unhold(), now)

    def _shelve(self, lease: Lease, now: float) -> None:
        location = lease.location
        location.drop_lease(lease)
        self.ledger.spool(location.account, len(lease), lease.cost)
        self._put_back(location, [attrs.evolve(piece, ambiguous=lease.ambiguous) for piece in lease.pieces])
        self._note_departure(location, now)

    def _put_back(self, location: Location, pieces: Sequence[Piece]) -> None:
        """Put pieces on the shelf of a location, or of the one that is live now."""
        if not pieces:
            return
        if location.has_ended or location.is_evicted:
            live = self.locations.get(location.name)
            if live is None:
                self._shelves.setdefault(location.name, Shelf()).put(pieces)
                return
            self.admission.touch(live)
            location = live
        assert isinstance(location, SpooledLocation)
        location.shelf.put(pieces)

    def keep(self, lease: Lease, settlement: Settlement, now: float) -> bool:
        """See `Scheduler.keep`."""
        if not settlement.undelivered or not lease.pieces or any(piece.record.is_damaged for piece in lease.pieces):
            return False
        location = lease.location
        assert isinstance(location, SpooledLocation)
        self._shelve(lease, now)
        if self.draining:
            location.is_parked = True
            self._make_room(location, now)
        else:
            self.back_off(location, None, now)
        return True

    def paged_in(self, page: PageIn, found: Sequence[Sequence[EncodedSpan]], now: float) -> None:
        """Record that spans were read, unless their record `is_damaged`."""
        location, account = page.location, page.location.account
        assert isinstance(location, SpooledLocation)
        is_damaged = any(piece.record.is_damaged for piece in page.pieces)
        # Another batch may have failed while these were read.
        is_late = not page.reason and not (location.pace.retry_at <= now and (location.endpoint.is_up or page.is_probe))
        if self._stop_reason is not None or location.is_parked or is_late or is_damaged:
            self._return_page(page)
            return
        spans = tuple(span for part in found for span in part)
        opened_at = now - max(0.0, self.wall() - page.pieces[0].record.oldest)
        cost = cost_of(spans)
        batch = SpanBatch(location.name, spans)
        lease = Lease(location, batch, len(spans), page.pieces[0].first, opened_at, None, cost)
        lease.pieces, lease.may_go, lease.is_probe = tuple(page.pieces), True, page.is_probe
        lease.ambiguous = page.pieces[0].ambiguous
        self.ledger.spool(account, -len(spans), -cost)
        location.add_lease(lease)
        location.update_opened_at()
        if page.reason:
            self.outbox.append(HandBack(lease, page.reason, for_good=True))
        else:
            location.is_paging = False
            self.outbox.append(Start(lease))
        self.admission.touch(location)

    def page_in_failed(self, page: PageIn, now: float) -> None:
        """Record that spans could not be read, and are to be read again later."""
        self._no_drops_before = now + _AGAIN_AFTER
        self._return_page(page)
        if self._stop_reason is None and not page.reason:
            self.back_off(page.location, None, now)

    def _return_page(self, page: PageIn) -> None:
        """Put spans back that were to be read, and give back the slot that was taken for them."""
        location = page.location
        assert isinstance(location, SpooledLocation)
        self._put_back(location, page.pieces)
        if any(piece.record.is_damaged for piece in page.pieces):
            for shelf in (location.shelf, self._shelves.get(location.name, Shelf())):
                for piece in shelf.take_damaged():
                    self.outbox.append(Lost(location, piece, "the record in the spool is damaged"))
        if not page.reason:
            location.is_paging = False
            self.slots.give_back(location)
            location.endpoint.end(is_probe=page.is_probe)
            self._touch_first(location.endpoint)
        self.admission.touch(location)

    def lost(self, lost: Lost, now: float) -> None:
        """See `Scheduler.lost`."""
        location, piece = lost.location, lost.piece
        self.ledger.lose(location.account, len(piece))
        self._note_flushes(location, piece.first, len(piece), Settlement(undelivered=len(piece)))
        self._note_departure(location, now)

    # -- settling ----------------------------------------------------------------------------------------------

    def settled(self, lease: Lease, settlement: Settlement, now: float) -> None:
        """See `Scheduler.settled`. Forgets the records whose last span it was."""
        super().settled(lease, settlement, now)
        self._uncommitted_leases.discard(lease)
        tokens = []
        for piece in lease.pieces:
            piece.record.left -= len(piece)
            if not piece.record.left:
                tokens.append(piece.record.token)
        if settlement.rejected:
            reason = settlement.reason
            if settlement.rejected < len(lease):
                reason = f"{settlement.rejected} of these {len(lease)} spans were rejected: {reason}"
            self.outbox.append(Bury(lease.batch, reason, tuple(tokens)))
        else:
            self.settle(tokens)

    def _note_flushes(self, location: Location, first: int, count: int, settlement: Settlement) -> None:
        """See `Scheduler`. No flush waits for recovered spans, whose numbers are negative."""
        if first < 0:
            location.account.recovered_left -= count
        else:
            super()._note_flushes(location, first, count, settlement)

    def settle(self, tokens: Sequence[int]) -> None:
        """Have records forgotten. One order to do so is under way at a time."""
        self._unsettled += tokens
        if self._unsettled and not self._is_settling:
            self._is_settling = True
            self.outbox.append(Settle(tuple(self._unsettled)))
            self._unsettled.clear()

    def forgotten(self) -> None:
        """Record that an order to forget records was carried out, or has failed: the store then keeps it in mind."""
        self._is_settling = False
        self.settle(())
        if self._is_full:
            # There may be space now.
            self._is_full, self._not_before = False, -math.inf

    # -- recovery ----------------------------------------------------------------------------------------------

    def recovered(self, records: Sequence[_Record]) -> None:
        """Take over records of earlier processes."""
        for record in records:
            name = record.location
            account = self.ledger.open(name)
            self.ledger.recover(account, record.count)
            first = self._recovered_up_to.get(name, -(1 << 62))
            self._recovered_up_to[name] = first + record.count
            kept = CommittedRecord(record.token, record.count, record.count, record.nbytes, record.oldest)
            pieces = (Piece(kept, first, 0, record.count),)
            if (live := self.locations.get(name)) is not None:
                assert isinstance(live, SpooledLocation)
                self.admission.touch(live)
                live.shelf.put(pieces)
            else:
                (self._refused.get(name) or self._shelves.setdefault(name, Shelf())).put(pieces)

    def _open_shelved(self) -> None:
        """Open locations that have spans on disk, as many as may be live."""
        for _ in range(_LOCATIONS):
            most = self.limits.max_locations
            if (
                not self._shelves
                or self.draining
                or len(self.locations) >= most
                or len(self._opened) >= max(1, most // 2)
            ):
                return
            name, shelf = self._shelves.popitem(last=False)
            try:
                location = self.open(name)
            except Exception:
                # Nothing can be sent to it, or the policy function has failed. Its spans stay on disk.
                self._refused[name] = shelf
                continue
            assert isinstance(location, SpooledLocation)
            self._opened.add(location)
            self.admission.touch(location)
            location.shelf.put(shelf)

    # -- dropping ----------------------------------------------------------------------------------------------

    def _ends_at(self, piece: Piece, now: float) -> float:
        """Return when a piece is too old, in seconds of the clock."""
        return now + piece.record.oldest + self._max_age - self.wall()

    def _drop_old(self, location: SpooledLocation, now: float) -> None:
        """Hand back what is older than ``Spool.max_age``."""
        if self._max_age == math.inf or location.is_parked or now < self._no_drops_before:
            return
        reason = f"older than Spool.max_age, {self._max_age:g} s"
        while location.shelf and self._ends_at(location.shelf.first, now) <= now:
            self.outbox.append(PageIn(location, location.shelf.take(1 << 62, 0), reason=reason))
        while location.ready and location.held[0].pieces and location.held[0].opened_at + self._max_age <= now:
            self.outbox.append(HandBack(location.unhold(), reason, for_good=True))

    def _drop_oldest(self, needed: int, now: float) -> None:
        """Drop the oldest records of all locations, as the spool is full."""
        if now < self._no_drops_before:
            return
        shelves: list[tuple[float, int, SpooledLocation]] = []
        for number, location in enumerate(self.locations.values()):
            assert isinstance(location, SpooledLocation)
            while location.ready and location.held[0].pieces:
                self._shelve(location.unhold(), now)
            if location.shelf:
                shelves.append((location.shelf.first.record.oldest, number, location))
        heapq.heapify(shelves)
        needed += self._spool.max_bytes // _DROPPED_PART
        while shelves and needed > 0:
            _, number, location = heapq.heappop(shelves)
            pieces = location.shelf.take(1 << 62, 0)
            self.admission.touch(location)
            needed -= sum(piece.nbytes for piece in pieces)
            self.outbox.append(PageIn(location, pieces, reason="the spool is full, and its oldest spans are dropped"))
            if location.shelf:
                heapq.heappush(shelves, (location.shelf.first.record.oldest, number, location))

    # -- statistics --------------------------------------------------------------------------------------------

    def oldest(self) -> float:
        """Return when the oldest committed span was accepted, in seconds of Unix time; `math.inf` without one."""
        found = [shelf.first.record.oldest for shelf in (*self._shelves.values(), *self._refused.values()) if shelf]
        for location in self.locations.values():
            assert isinstance(location, SpooledLocation)
            found += [lease.pieces[0].record.oldest for lease in location.leases if lease.pieces]
            if location.shelf:
                found.append(location.shelf.first.record.oldest)
        return min(found, default=math.inf)
