"""The scheduler: decides what is admitted, sealed, sent and repeated, and when. The runtime carries this out.

How it works
------------
It uses neither trio nor HTTP, and no clock but the one that it is given. Events are method calls, and orders are put
into ``outbox``. The runtime removes an order only after carrying it out, so an exception between a decision and its
execution loses no order.

Events come from two sides:

- **The caller's stack**: a program adds a span, waits for space, or flushes. Such a call may fail at any depth of the
  stack and between any two of its steps, so it does little: it puts the location into the inbox, wakes the driver, and
  commits in one step (see `Admission`).
- **The runtime's stack**, which is shallow: a delivery's attempt began or ended, spans are settled, or the drain
  begins. These events change the counts at once, and put the location into the inbox.

All decisions are made in `step`, which only the driver calls. It looks at one location after the other, from these
sources, in this order:

1. the queue of locations that wait for an export slot, as long as one is free;
2. the agenda: locations whose time has come;
3. the inbox: locations where something has happened;
4. the queue of locations that wait for a spare slot, if one can be spared;
5. in the drain, all locations, once;
6. the locations that are touched because adders wait for the byte budget of all locations.

In a busy program, none may ever be empty. So after a step that ends early, the next one begins with the next source.

`_look` decides from the whole state of a location, so the reason for the call does not matter, and a superfluous call
is harmless. It admits waiting spans. It begins exports, of deliveries that wait for their next attempt and then of the
first batches in the queue, as long as these are due, the location's concurrency and backoff allow it (`Pace`) and there
is a slot (`Slots`). It ends the location if that has been idle for long enough, or puts it on the agenda.

While adders wait for that budget, the fullest locations are made due (`Ranking`), as many as there
are free slots. Otherwise, if the budget was used up by locations that are not due, all adders would wait although the
exporter is idle.

The locations of one server share an `Endpoint`. While it is down, and for some time after that, a location that could
otherwise begin an export waits in the queue of its endpoint first, and then in the one for a slot. Only the first
location in the endpoint's queue is looked at when the endpoint may allow another export; when it leaves, the next is.
"""

from __future__ import annotations

import math
import random
from bisect import insort
from collections import OrderedDict, deque
from collections.abc import Callable
from itertools import islice
from weakref import WeakValueDictionary

from .._errors import TooManyLocationsError
from .._exporter import Delivered, ExportResult, Refused
from .._reporting.statistics import EndpointStatistics, Settlement
from .._settings.policies import BatchPolicy, Limits, RetryPolicy
from .._spans.checks import shown
from .._values import MAX_LOCATION_LENGTH, checked_location, plain_location
from .admission import Admission
from .agenda import Agenda
from .endpoint import Endpoint
from .flush import Flush
from .ledger import Ledger, LocationCounts
from .location import Lease, Location, QueueIn, QueueOut, Waiter, first_span
from .orders import HandBack, LogEndpoint, Lost, Order, Repeat, Start, Wake
from .pace import Pace
from .ranking import Ranking
from .slots import Slots

# The number of locations that `step` looks at, and of those that are ranked in the time of a look.
_LOOKS_PER_STEP, _RANKED_PER_LOOK = 64, 8
# The number of orders after which `step` returns. So few exports that are over after a few checkpoints leave little to
# the garbage collector, which looks at the youngest objects after every 700 new ones (in Python 3.11).
ORDERS_PER_STEP = 12
_SOURCES = 6

_TOO_LARGE = 413


class Scheduler:
    """The scheduler of one batcher.

    Args:
        limits: The limits on pending spans and running exports.
        retry: The backoff, and the limits on retries.
        policy: Returns the policy of a location that is opened.
        check_location: Raises `InvalidLocationError` if nothing can be sent to a location.
        endpoint_of: Returns the name of a location's endpoint; None if there is only one endpoint.
        rng: The source of jitter.
        clock: Returns the current time in seconds. Methods for rare events take the time as an argument instead.
        open_queue: Opens a queue that holds at most the given number of spans.
        wake: Schedules a call of `step`. It is called on the caller's stack. It may raise, and is called again then.

    Attributes:
        limits: The limits.
        retry: The backoff, and the limits on retries.
        ledger: The accounts.
        slots: The export slots.
        admission: Admits spans.
        locations: The live locations by name.
        outbox: The orders that are not carried out yet, oldest first.
        draining: Whether the drain has begun.
        drain_deadline: When the drain stops deliveries, in seconds of the clock; `math.inf` outside a drain.
        guests: How many locations are live in addition to ``Limits.max_locations``, to send what a spool had.
        beginning: The flushes that have not come to all locations yet.
    """

    def __init__(
        self,
        limits: Limits,
        retry: RetryPolicy,
        policy: Callable[[str], BatchPolicy],
        check_location: Callable[[str], object] | None,
        endpoint_of: Callable[[str], object] | None,
        rng: random.Random,
        clock: Callable[[], float],
        open_queue: Callable[[int], tuple[QueueIn, QueueOut]],
        wake: Callable[[], None],
    ) -> None:
        self.limits = limits
        self.retry = retry
        self.ledger = Ledger(kept_ended=limits.max_locations)
        self.slots = Slots(limits.max_exports)
        self.outbox: deque[Order] = deque()
        self.admission = Admission(limits, self.ledger.total, self.outbox, wake)
        self.locations: dict[str, Location] = {}
        self.draining = False
        self.drain_deadline = math.inf
        self.guests = 0
        self.beginning: dict[Flush, None] = {}
        self._location_class: Callable[..., Location] = Location
        self._policy = policy
        self._check_location = check_location
        self._endpoint_of = endpoint_of
        # Those that have live locations, and the only one if there is only one.
        self._endpoints: WeakValueDictionary[str, Endpoint[Location]] = WeakValueDictionary()
        self._the_endpoint: Endpoint[Location] | None = None
        self._rng = rng
        self._clock = clock
        self._open_queue = open_queue
        self._wake = wake
        self._agenda = Agenda()
        self._ranking = Ranking()
        self._made_due: set[Location] = set()
        # The location that has been empty for longest is first. Any of them may have received a span since.
        self._empty: OrderedDict[Location, None] = OrderedDict()
        self._to_close: deque[Location] = deque()
        self._turn = 0

    # -- on the caller's stack ---------------------------------------------------------------------------------

    def get(self, location: str) -> Location | None:
        """Return a live location; None if it is not live."""
        return self.locations.get(plain_location(location))

    def check(self, location: str) -> None:
        """Raise `InvalidLocationError` if nothing can be sent to ``location``."""
        if self.get(location) is None:
            self._checked(location)

    def open(self, location: str) -> Location:
        """Open a location that is not live.

        Raises:
            InvalidLocationError: Nothing can be sent to ``location``.
            TooManyLocationsError: ``Limits.max_locations`` locations all hold spans.
        """
        name = self._checked(location)
        policy = self._policy(name)
        if not isinstance(policy, BatchPolicy):
            raise TypeError(f"batch({name!r}) returned {policy!r}; it must return a BatchPolicy")
        if (opened := self.locations.get(name)) is not None:
            # The policy function or the exporter's check has added a span.
            return opened
        endpoint = self._endpoint(name)
        self._evict_one_if_needed()
        account = self.ledger.open(name)
        limits = self.limits
        pace = Pace(self.retry, self._rng, account, limits.max_exports_per_location)
        queue = self._open_queue(limits.max_queued_spans)
        opened = self._location_class(
            name, account, endpoint, policy, limits.max_queued_spans, queue, pace, self._clock()
        )
        self.admission.touch(opened)
        self._empty[opened] = None
        # The commit. If the driver looks at the location before this, it ends it. If a signal handler has opened the
        # same location meanwhile, that one stays.
        return self.locations.setdefault(name, opened)

    def watch(self, location: Location, flush: Flush) -> None:
        """Make all queued spans of a location due, and have ``flush`` wait for its pending spans."""
        self.admission.finish()
        flush.unwatched.pop(location, None)
        # Not `account.pending`: if the location has ended and was opened again, its account has the new one's spans.
        if not self._has_spans(location):
            return
        self.admission.touch(location)
        if location.flushes is None:
            location.flushes = {}
        location.flush_watermark = flush.watch(location.name, location.account, location.flushes)

    def _has_spans(self, location: Location) -> bool:
        return bool(location.leases) or location.has_queued

    def counts(self, now: float) -> LocationCounts:
        """Return the counts of all locations at ``now``. Takes 0.3 ms for 1,000 of them."""
        self.admission.finish()
        return LocationCounts(self.ledger.accounts(), now)

    def _checked(self, location: str) -> str:
        name = checked_location(location)
        if self._check_location is not None:
            self._check_location(name)
        return name

    def _endpoint(self, location: str) -> Endpoint[Location]:
        if self._the_endpoint is not None:
            return self._the_endpoint
        returned = "" if self._endpoint_of is None else self._endpoint_of(location)
        # A plain str and not long, because log messages, statistics and metrics contain it.
        name = str.__str__(returned) if issubclass(type(returned), str) else None
        if name is None or len(name) > MAX_LOCATION_LENGTH:
            raise (TypeError if name is None else ValueError)(
                f"endpoint_of({location!r}) of the exporter returned {shown(returned)}; it must return a str of at "
                f"most {MAX_LOCATION_LENGTH} characters"
            )
        # Accounts outlive an endpoint without live locations. The count goes on beyond the numbers that they have.
        answers = self.ledger.total.requests
        opened = Endpoint[Location](name, self.retry, self._rng, self.limits.max_exports, self._clock(), answers)
        endpoint = self._endpoints.setdefault(name, opened)
        if self._endpoint_of is None:
            self._the_endpoint = endpoint
        return endpoint

    def endpoints(self) -> dict[str, EndpointStatistics]:
        """Return what is known about each endpoint that has live locations, or about the only one."""
        # A copy made in one step, because metrics are read in other threads.
        known = [endpoint for reference in self._endpoints.valuerefs() if (endpoint := reference()) is not None]
        return {endpoint.name: endpoint.statistics() for endpoint in sorted(known, key=lambda known: known.name)}

    def _evict_one_if_needed(self) -> None:
        """If the limit is reached, evict the location that has been empty for longest; raise if none is empty."""
        limit = self.limits.max_locations
        if len(self.locations) < limit + self.guests:
            return
        while self._empty:
            # Not `next(iter(...))`: a signal handler may open another location between the two calls.
            for location in self._empty:  # noqa: B007  # it is used below
                break
            is_evicted = self._evict_if_empty(location)
            self._empty.pop(location, None)
            if is_evicted:
                return
        # A location whose last adder has just withdrawn is empty, but not yet in `_empty`.
        if any(self._evict_if_empty(location) for location in self.admission.inbox.copy()):
            return
        raise TooManyLocationsError(
            f"{limit} locations hold spans or wait to, as many as Limits.max_locations allows; "
            "raise it, or flush before adding for another location"
        )

    def _evict_if_empty(self, location: Location) -> bool:
        """Evict a location if it is live and empty. Return whether it was."""
        self.admission.touch(location)
        account, is_adding = location.account, self.admission.is_adding_to(location)
        # The inbox may also contain one that was never live, because an exception ended `open`.
        is_live = self.locations.get(location.name) is location
        if not is_live or location.is_evicted or is_adding or location.waiting:
            return False
        if account.queued or account.in_flight or account.spooled:
            return False
        # The commit. There is no call since its state was read, so no span can have been added since.
        del self.locations[location.name]
        location.is_evicted = True
        return True

    # -- events of the runtime ---------------------------------------------------------------------------------

    def close_admission(self) -> list[Waiter]:
        """Stop admitting spans. Return the adders that waited, which the caller must wake."""
        self.admission.finish()
        refused = [waiter for location in self.locations.values() for waiter in location.waiting or ()]
        for waiter in refused:
            self.admission.withdraw(waiter)
        return refused

    def begin_drain(self, deadline: float) -> None:
        """Make all queued spans due, and end each location once it has no pending span."""
        self.draining = True
        self.drain_deadline = deadline
        self._to_close.extend(self.locations.values())

    def attempt_began(self, lease: Lease) -> None:
        """Record that a delivery begins an attempt, in the slot that it holds."""
        self.ledger.attempt(lease.location.account, is_retry=lease.attempts > 0)
        lease.attempts += 1
        lease.began_after = lease.location.endpoint.answers

    def attempt_ended(self, lease: Lease, result: ExportResult | None, now: float, *, ambiguous: bool = False) -> None:
        """Record that an attempt ended, without a result if it was cancelled or raised. Gives back its slot."""
        location = lease.location
        # Only a backoff that began before the drain is cut short.
        self._close_in_drain(location, now)
        if ambiguous and not lease.ambiguous:
            lease.ambiguous = True
            self.ledger.ambiguous(location.account, len(lease))
        pace, account = location.pace, location.account
        if isinstance(result, Delivered):
            pace.succeeded(now)
            pace.size_passed(lease.batch.size)
            account.consecutive_failures = 0
            account.refuses_everything = False
        else:
            pace.failed()
            account.consecutive_failures += 1
            if isinstance(result, Refused) and result.status_code == _TOO_LARGE:
                pace.size_refused(lease.batch.size)
        self._note_endpoint(lease, result, now)
        self._give_back(lease)
        if account.pending > lease.count or account.spooled or location.waiting:
            # Otherwise nothing can begin before the lease is settled, split or repeated.
            self.admission.touch(location)

    def slot_unused(self, lease: Lease) -> None:
        """Record that a lease with ``may_repeat`` makes no attempt. Gives back its slot."""
        self._give_back(lease)
        self.admission.touch(lease.location)

    def _give_back(self, lease: Lease) -> None:
        self.slots.give_back(lease.location)
        lease.location.endpoint.end(is_probe=lease.is_probe)
        lease.may_repeat = lease.is_probe = False
        self._touch_first(lease.location.endpoint)

    def _note_endpoint(self, lease: Lease, result: ExportResult | None, now: float) -> None:
        endpoint, location = lease.location.endpoint, lease.location
        since, attempts = endpoint.since, endpoint.attempts
        began_after, deadline = lease.began_after, self.drain_deadline
        if endpoint.note(
            result, location, now, began_after=began_after, is_probe=lease.is_probe, drain_deadline=deadline
        ):
            reason = "" if endpoint.is_up else endpoint.reason
            self.outbox.append(LogEndpoint(endpoint.name, endpoint.is_up, reason, attempts, now - since))

    def _touch_first(self, endpoint: Endpoint[Location]) -> None:
        """Have the first location in an endpoint's queue looked at, as it may be able to export now."""
        if (first := endpoint.first) is not None:
            self.admission.touch(first)

    def _leave_endpoint_queue(self, location: Location) -> None:
        if location.endpoint.leave(location):
            self._touch_first(location.endpoint)

    def back_off(self, location: Location, after: float | None, now: float, latest: float = math.inf) -> float:
        """Back off after a temporary failure. Return when the backoff ends, in seconds of the clock.

        ``latest`` is when the attempt that failed can be repeated at the latest.
        """
        location.pace.back_off(now, after, self.drain_deadline, min(latest, self.drain_deadline))
        self.admission.touch(location)
        return location.pace.retry_at

    def wants_retry(self, lease: Lease) -> None:
        """Have a lease wait for its next attempt. A `Repeat` order ends the wait."""
        location = lease.location
        if location.retries is None:
            location.retries = []
        insort(location.retries, lease, key=first_span)
        self.admission.touch(location)

    def wants_no_retry(self, lease: Lease) -> None:
        """Stop the wait of a lease for its next attempt. Does nothing if it does not wait."""
        retries = lease.location.retries
        if retries and lease in retries:
            retries.remove(lease)
            self.admission.touch(lease.location)

    def split(self, lease: Lease, at: int) -> tuple[Lease, Lease]:
        """Replace a lease by one for its first ``at`` spans and one for the others."""
        parts = lease.split(at)
        self.ledger.split(lease.location.account)
        lease.location.drop_lease(lease)
        for part in parts:
            lease.location.add_lease(part)
        return parts

    def settled(self, lease: Lease, settlement: Settlement, now: float) -> None:
        """Account for all spans of a lease."""
        self.admission.finish()
        location = lease.location
        self._watch_first(location)
        location.drop_lease(lease)
        self.ledger.settle(location.account, lease.count, lease.cost, settlement)
        self._note_flushes(location, lease.first, lease.count, settlement)
        self._note_departure(location, now)

    def keep(self, lease: Lease, settlement: Settlement, now: float) -> bool:
        """Keep the spans of a lease in the spool if they would be handed back. Return whether this was done."""
        return False

    def lost(self, lost: Lost, now: float) -> None:
        """Account for spans that are dropped from the spool. Without a spool, there are none."""
        raise NotImplementedError

    def _note_departure(self, location: Location, now: float) -> None:
        """Record that spans have left the memory of a location."""
        location.update_opened_at()
        if not location.account.pending:
            location.headers = location.sealed_headers = None
            location.idle_since = now
        is_live = self.locations.get(location.name) is location
        if is_live and location.is_empty and not self.draining:
            self._wait_to_end(location)
        else:
            self.admission.touch(location)
        if location.waiting:
            self.admission.update_byte_queue(location)

    def _wait_to_end(self, location: Location) -> None:
        """Do what a look at a live, empty location would do, which takes longer."""
        self._empty.setdefault(location)
        self.slots.forget(location)
        self._leave_endpoint_queue(location)
        self._agenda.put(location, location.end_at(self.limits.location_idle_timeout))

    def _watch_first(self, location: Location) -> None:
        """Have the flushes that begin in pieces wait for a location now, as its spans are about to be accounted for."""
        for flush in tuple(self.beginning):
            if location in flush.unwatched:
                self.watch(location, flush)

    def _note_flushes(self, location: Location, first: int, count: int, settlement: Settlement) -> None:
        for part in tuple(location.flushes or ()):
            part.note(first, count, settlement)
            if not part.remaining:
                part.flush.finished(part)
                if part.flush.is_done:
                    self.outbox.append(Wake(part.flush))
        if not location.flushes:
            location.flushes = None

    # -- decisions ---------------------------------------------------------------------------------------------

    @property
    def is_over(self) -> bool:
        """Whether all locations have ended in the drain."""
        return self.draining and not self.locations and not self.admission.inbox

    def next_at(self) -> float:
        """Return when `step` has to be called next if nothing happens until then."""
        return -math.inf if self.admission.inbox else self._agenda.next_at

    def step(self, now: float) -> bool:
        """Look at locations that have something to do, but not at too many. Return whether to call this again."""
        self.admission.finish()
        for _ in range(max(_LOOKS_PER_STEP, len(self.admission.inbox) // _LOOKS_PER_STEP)):
            if not self._look_at_next(now):
                self._turn = 0
                return False
            if len(self.outbox) >= ORDERS_PER_STEP:
                break
        self._turn = (self._turn + 1) % _SOURCES
        return True

    def hand_back(self, reason: str) -> bool:
        """End up to `_LOOKS_PER_STEP` locations without a further step. Return whether to call this again.

        Queued spans are handed back, and the batches that were not started.
        """
        self.admission.finish()
        for number, order in enumerate(self.outbox):
            if isinstance(order, Start):
                self.outbox[number] = HandBack(order.lease, reason)
                self._give_back(order.lease)
        for location in list(islice(self.locations.values(), _LOOKS_PER_STEP)):
            if len(self.outbox) >= _LOOKS_PER_STEP:
                break
            self._hand_back_queue(location, reason)
            self._end(location)
        if self.locations:
            return True
        # They may still have locations that have ended.
        self._ranking = Ranking()
        self.admission.inbox.clear()
        return False

    def _look_at_next(self, now: float) -> bool:
        """Look at a location of the first source that has one. Return False if none has."""
        slots, inbox = self.slots, self.admission.inbox
        for turn in range(self._turn, self._turn + _SOURCES):
            location: Location | None = None
            match turn % _SOURCES:
                case 0 if slots.free:
                    location = next(iter(slots.queue), None)
                case 1:
                    location = self._agenda.pop(now)
                case 2 if inbox:
                    location = inbox.popleft()
                    location.is_in_inbox = False
                case 3 if slots.spare_queue and self._can_spare():
                    location = next(iter(slots.spare_queue))
                case 4 if self._to_close:
                    location = self._to_close.popleft()
                case 5:
                    # While others have something, once is enough.
                    self._turn = 0
                    if self._serve_waiting(now):
                        return True
            if location is not None:
                self._look(location, now)
                return True
        return False

    def _can_spare(self) -> bool:
        return self.slots.can_spare(len(self.locations), draining=self.draining)

    def _look(self, location: Location, now: float) -> None:
        """Do everything that is to be done at a location now, and put it on the agenda for the rest."""
        if location.has_ended:
            return
        if self.locations.get(location.name) is not location:
            self._hand_back_queue(location, "the location was closed")
            self._end(location)
            return
        self._close_in_drain(location, now)
        self._note_empty(location)
        export_at = self._export(location, now)
        end_at = location.end_at(self.limits.location_idle_timeout)
        if end_at <= now and location.is_empty:
            # There is no call since its state was read, so no span can have been added since.
            self.locations.pop(location.name, None)
            self._end(location)
            return
        self._agenda.put(location, min(export_at, end_at, self._rank(location, now)))

    def _close_in_drain(self, location: Location, now: float) -> None:
        if self.draining and not location.is_closed:
            location.is_closed = True
            location.pace.cut_short(now)
            location.endpoint.cut_short(now)

    def _note_empty(self, location: Location) -> None:
        if location.is_empty:
            self._empty.setdefault(location)
        else:
            self._empty.pop(location, None)

    def _export(self, location: Location, now: float) -> float:
        """Begin the exports that a location may begin now. Return when to look at it for the next one."""
        slots, endpoint = self.slots, location.endpoint
        while True:
            if location.waiting or self.admission.byte_queue:
                self.admission.serve(location, self._clock)
            if self._is_hopeless(location):
                self._give_up(location)
            if 0 < location.pace.active < location.pace.allowed and not self._can_spare():
                # It is looked at when a slot can be spared.
                slots.queue.pop(location, None)
                self._leave_endpoint_queue(location)
                slots.spare_queue[location] = None
                return math.inf
            slots.spare_queue.pop(location, None)
            export_at = location.export_at()
            if export_at > now:
                slots.queue.pop(location, None)
                self._leave_endpoint_queue(location)
                return export_at
            if not endpoint.lets(location, now):
                # It is touched when it is first.
                slots.queue.pop(location, None)
                if endpoint.join(location):
                    self._touch_first(endpoint)
                return endpoint.opens_at(location) if endpoint.first is location else math.inf
            self._leave_endpoint_queue(location)
            if not slots.free or next(iter(slots.queue), location) is not location:
                # It is looked at when it is its turn.
                slots.queue.setdefault(location)
                return math.inf
            self._begin_export(location)

    def _begin_export(self, location: Location) -> None:
        self.slots.take(location)
        is_probe = location.endpoint.begin()
        if location.retries:
            lease = location.retries.pop(0)
            lease.may_repeat = True
            self.outbox.append(Repeat(lease))
        else:
            lease = self._next_batch(location)
            self.outbox.append(Start(lease))
        lease.is_probe = is_probe

    def _next_batch(self, location: Location) -> Lease:
        return self._seal(location)

    def _seal(self, location: Location) -> Lease:
        lease = location.seal()
        self.ledger.seal(location.account, lease.count, lease.cost)
        self._made_due.discard(location)
        return lease

    def _end(self, location: Location) -> None:
        """End a location that holds no span."""
        location.has_ended = True
        self._agenda.remove(location)
        self.slots.forget(location)
        self._leave_endpoint_queue(location)
        self._empty.pop(location, None)
        self._made_due.discard(location)
        self.admission.unranked.pop(location, None)
        if self.locations.get(location.name) is location:
            del self.locations[location.name]
        # With a spool, spans for it may have been found after it was evicted.
        if location.name not in self.locations and not location.account.spooled:
            self.ledger.end(location.name)
        location.queue_in.close()
        location.queue_out.close()

    # -- giving up ---------------------------------------------------------------------------------------------

    def _is_hopeless(self, location: Location) -> bool:
        """Return whether spans wait for a time after the drain's deadline."""
        if not self.draining or not location.has_unsent:
            return False
        return max(location.pace.retry_at, location.endpoint.waits_until(location)) >= self.drain_deadline

    def _give_up(self, location: Location) -> None:
        for lease in location.retries or ():
            self.outbox.append(Repeat(lease))
        location.retries = None
        self._hand_back_queue(location, "the location backs off beyond the shutdown deadline")

    def _hand_back_queue(self, location: Location, reason: str) -> None:
        if self.draining and not location.endpoint.is_up:
            reason = f"endpoint down ({location.endpoint.reason}): {reason}"
        while location.has_queued:
            self.outbox.append(HandBack(self._seal(location), reason))

    # -- adders that wait for bytes ----------------------------------------------------------------------------

    def _serve_waiting(self, now: float) -> bool:
        """Serve the adders that wait for bytes. Return whether something was done."""
        admission = self.admission
        touched = len(admission.inbox)
        admission.serve_byte_queue(self._clock)
        if len(self.outbox) >= ORDERS_PER_STEP:
            return True
        # If another location could not begin an export even if it were due, no ranking is needed.
        can_make_due = self.slots.free and (self._the_endpoint is None or self._the_endpoint.first is None)
        if not admission.byte_queue or not can_make_due:
            return len(admission.inbox) > touched
        if admission.unranked:
            for _ in range(min(_RANKED_PER_LOOK, len(admission.unranked))):
                location, _ = admission.unranked.popitem(last=False)
                self._agenda.put(location, self._rank(location, now))
            return True
        self._make_fullest_due(now)
        return len(admission.inbox) > touched

    def _make_fullest_due(self, now: float) -> None:
        """Make as many locations due as there are free slots, unless an earlier one still has to begin its export."""
        self._made_due = {location for location in self._made_due if self._could_export(location, now)}
        if self._made_due:
            return
        for location in self._ranking.take(self.slots.free, lambda location: self._could_export(location, now)):
            self._made_due.add(location)
            location.is_made_due = True
            self.admission.touch(location)

    def _could_export(self, location: Location, now: float) -> bool:
        """Return whether a location would begin an export, or to wait for its endpoint, if its first batch were due."""
        if not location.account.queued or location.retries or location.pace.next_at() > now:
            return False
        if location.endpoint.has_waiting(location):
            return False
        if location.pace.active and not self._can_spare():
            # It is looked at when a slot can be spared, and ranked again.
            self.slots.spare_queue[location] = None
            return False
        return True

    def _rank(self, location: Location, now: float) -> float:
        """Rank a location if adders wait for bytes; otherwise record that its queued bytes are not known.

        Returns:
            The end of its backoff if its first batch was made due, so that it is exported then; `math.inf` otherwise.
        """
        backs_off_until = math.inf
        if not self.admission.byte_queue:
            if location.is_ranked:
                self.admission.unrank(location)
            return backs_off_until
        if now < location.pace.next_at() < math.inf and location.account.queued and not location.retries:
            # Its first batch is exported as soon as the backoff has ended.
            location.is_made_due = True
            backs_off_until = location.pace.next_at()
        all_queued_bytes = self.ledger.total.pending_bytes - self.ledger.leased_bytes
        self._ranking.put(location, len(self.locations), all_queued_bytes)
        return backs_off_until
