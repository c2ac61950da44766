"""Invariants of a batcher at rest, when nothing can run until time passes: no task waits for something available.

A lost wake-up does not show in the final accounting, since the drain would make up for it. It shows at rest: the driver
sleeps though a batch is due, an adder waits though its span would fit, a location is in line though a slot is free.
That is not visible from outside, so this module reads the private state of the scheduler, of the driver and of what
waits for them, and no other private state. It changes nothing, and decides for itself what there is to do.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import trio

from trio_spanbatch import Limits, SpanBatcher
from trio_spanbatch._scheduler.ledger import Account
from trio_spanbatch._scheduler.location import Lease, Location
from trio_spanbatch._scheduler.records import Piece
from trio_spanbatch._scheduler.splitter import NO_BATCH
from trio_spanbatch._scheduler.spooling import SpooledLocation, SpoolingScheduler
from trio_spanbatch._spans.batch import cost_after

# The columns of the totals that no ended location contributes to.
_PENDING = ("queued", "in_flight", "pending_bytes")
_SETTLED = ("delivered", "rejected", "spooled", "undelivered")


class AtRest:
    """Checks a batcher at rest.

    Args:
        batcher: The batcher.
        limits: Its limits.
        active: The number of running exports of each location, as the exporter counts them; it may change.
    """

    def __init__(self, batcher: SpanBatcher, limits: Limits, active: Mapping[str, int]) -> None:
        self._limits = limits
        self._active = active
        self._runtime = batcher._runtime
        self._driver = batcher._supervisor.driver
        self._scheduler = batcher._scheduler
        self._admission = self._scheduler.admission
        self._slots = self._scheduler.slots
        self._backoffs: dict[Location, float] = {}

    @property
    def _locations(self) -> list[Location]:
        return list(self._scheduler.locations.values())

    def _all_active(self) -> int:
        return sum(self._active.values()) + sum(map(_pages_of, self._locations))

    def faults(self, now: float) -> Iterator[str]:
        """Yield violations at ``now``, when no task can run and no deadline has passed."""
        free = self._slots.free
        if isinstance(self._scheduler, SpoolingScheduler) and self._driver.has_ended:
            # Locations have ended whose last spans are being committed or read.
            return
        if self._limits.max_exports - free != self._all_active():
            yield f"{free} slots are free while {dict(self._active)} are exporting"
        yield from self._driver_faults()
        yield from self._unfinished_faults()
        yield from self._slot_faults(now)
        for location in self._locations:
            yield from self._location_faults(location, now)
            yield from self._endpoint_faults(location, now)
            yield from self._queue_faults(location)
            yield from self._lease_faults(location)
            yield from self._line_faults(location, now, free)
        yield from self._byte_queue_faults(now, free)
        yield from self._ranking_faults(now)
        yield from self._waiting_faults()
        yield from self._flush_faults()
        yield from self._budget_faults()

    def faults_at_the_end(self) -> Iterator[str]:
        """Yield violations after the batcher was left."""
        if self._locations:
            yield f"locations are left: {self._locations}"
        if self._admission.byte_queue:
            yield "locations still wait for bytes"
        if self._slots.free != self._limits.max_exports:
            yield f"{self._slots.free} of {self._limits.max_exports} slots were given back"
        if self._slots.queue or self._slots.spare_queue:
            yield "locations still wait for slots"
        if self._scheduler.outbox:
            yield f"orders are left: {list(self._scheduler.outbox)}"
        yield from self._waiting_faults()
        yield from self._budget_faults()

    # -- the driver and its orders -----------------------------------------------------------------------------

    def _driver_faults(self) -> Iterator[str]:
        driver, next_at = self._driver, self._scheduler.next_at()
        if driver._token is None or driver.has_ended:
            return
        if driver._asleep is None:
            yield "the driver waits for something, but nothing can wake it"
            return
        deadline = driver._asleep._cancel_status._scope.deadline
        if deadline > next_at:
            yield f"the driver sleeps until {deadline}, and should look at {next_at}"
        if driver.is_awake:
            yield "the driver sleeps, and nothing wakes it as it is taken to be awake"

    def _unfinished_faults(self) -> Iterator[str]:
        scheduler, admission = self._scheduler, self._admission
        if scheduler.outbox:
            yield f"orders are not carried out: {list(scheduler.outbox)}"
        if self._driver.has_ended:
            return
        if admission.inbox:
            yield f"nobody looks at {list(admission.inbox)}"
        if scheduler._to_close:
            yield f"the drain has not reached {list(scheduler._to_close)}"
        if admission._unfinished is not None or admission._bulk is not None:
            yield "adding spans was not finished"

    def _waiting_faults(self) -> Iterator[str]:
        """Yield the tasks that wait for an order that the scheduler does not know of, and the other way round."""
        runtime, locations = self._runtime, self._locations
        waiting = {waiter for location in locations for waiter in location.waiting or ()}
        if waiting != runtime.adders.keys():
            yield f"{len(runtime.adders)} adders wait, the scheduler knows {len(waiting)}"
        retries = {lease for location in locations for lease in location.retries or ()}
        if retries != runtime.retries.keys():
            yield f"{len(runtime.retries)} deliveries wait for their next attempt, the scheduler knows {len(retries)}"

    def _flush_faults(self) -> Iterator[str]:
        parts = {part for location in self._locations for part in location.flushes or ()}
        for flush, done in self._runtime.flushes.items():
            if not done.statistics().tasks_waiting:
                # It was cancelled, and its exception keeps it.
                continue
            if flush.is_done:
                yield "a flush waits though all of its spans are accounted for"
            is_left = isinstance(self._scheduler, SpoolingScheduler) and self._scheduler.draining
            # In the drain, what a location leaves in the spool is reported when the batcher is left.
            if not parts.issuperset(flush._open) and not is_left:
                yield "a flush waits for spans of a location that does not know of it"

    # -- slots -------------------------------------------------------------------------------------------------

    def _can_spare(self) -> bool:
        return self._slots.can_spare(len(self._locations), draining=self._scheduler.draining)

    def _reserved(self, location: Location) -> bool:
        """Return whether the free slots are kept for locations that have no export running."""
        return location.pace.active > 0 and not self._can_spare()

    def _could_export(self, location: Location, now: float) -> bool:
        """Return whether an export would begin now if the first batch in the queue were due."""
        has_queued = location.account.queued
        if isinstance(location, SpooledLocation):
            # The spans in its queue are committed first, and then leave memory if it is short.
            has_queued = location.ready and location.due_at() <= now
        if not has_queued or location.retries or location.pace.next_at() > now:
            return False
        return not self._reserved(location) and location.endpoint.lets(location, now)

    def _slot_faults(self, now: float) -> Iterator[str]:
        slots, locations = self._slots, self._locations
        running = [location.pace.active for location in locations if location.pace.active]
        if slots.count != self._limits.max_exports or slots.free + sum(running) != slots.count:
            yield f"{slots.free} of {slots.count} slots are free, {sum(running)} are used"
        if slots.exporting != len(running):
            yield f"{slots.exporting} locations are counted as exporting, {len(running)} are"
        if slots.free and slots.queue:
            yield f"{slots.free} slots are free, and {list(slots.queue)} wait for one"
        if slots.spare_queue and self._can_spare():
            yield f"a slot can be spared, and {list(slots.spare_queue)} do not get it"
        if not slots.spare_queue.keys() | slots.queue.keys() <= set(locations):
            yield "a location that has ended waits for a slot"
        if slots.spare_queue.keys() & slots.queue.keys():
            yield "a location waits for a free slot and for a spare one"
        for location in slots.queue:
            if location.export_at() > now:
                yield f"{location} waits for a slot and would not use it"
        for location in slots.spare_queue:
            if not 0 < location.pace.active < location.pace.allowed:
                yield f"{location} waits for a spare slot and could not use it"

    # -- one location ------------------------------------------------------------------------------------------

    def _work_at(self, location: Location, now: float) -> float:
        """Return when there will be something to do at a location, as far as is known."""
        endpoint = location.endpoint
        wants_to_export = location.has_unsent
        if isinstance(location, SpooledLocation) and location.is_parked:
            # It has given up, and its last spans are being committed.
            wants_to_export = False
        waits_until = location.pace.retry_at
        if location.export_at() <= now:
            # Only then does it wait for its endpoint. Before, it is looked at when its backoff or its export has ended.
            waits_until = max(waits_until, endpoint.waits_until(location))
        if self._scheduler.draining and wants_to_export and waits_until >= self._scheduler.drain_deadline:
            # It is to give up.
            return -math.inf
        export_at = location.export_at()
        if location in self._slots.spare_queue or (location in self._slots.queue and export_at <= now):
            # Whether it waits for a slot in vain, `_slot_faults` finds out.
            export_at = math.inf
        elif export_at <= now and (location in endpoint._well or location in endpoint._failed):
            export_at = endpoint.opens_at(location) if endpoint.first is location else math.inf
        return min(export_at, location.end_at(self._limits.location_idle_timeout))

    def _location_faults(self, location: Location, now: float) -> Iterator[str]:
        exporting = location.pace.active
        if exporting != self._active.get(location.name, 0) + _pages_of(location):
            yield f"{location} counts {exporting} exports, {self._active.get(location.name, 0)} run"
        if (location in self._scheduler._empty) != location.is_empty:
            yield f"{location} is in the wrong set of empty or occupied locations"
        if location.is_closed != self._scheduler.draining:
            yield f"{location} is {'closed' if location.is_closed else 'open'}, contrary to the batcher"
        if location.has_ended or location.is_in_inbox:
            yield f"{location} is live, and will not be looked at"
        if location.next_look_at > (work_at := self._work_at(location, now)) or work_at <= now:
            yield f"{location} is looked at {location.next_look_at}, there is something to do at {work_at}"

    def _endpoint_faults(self, location: Location, now: float) -> Iterator[str]:
        endpoint = location.endpoint
        if endpoint._running != self._all_active():
            yield f"the endpoint counts {endpoint._running} exports, {dict(self._active)} run"
        for one in (*endpoint._well, *endpoint._failed):
            if one.has_ended or one.export_at() > now:
                yield f"{one} waits for its endpoint, and would not export"
        if location in self._slots.queue and endpoint.first is location:
            yield f"{location} waits for its endpoint and for a slot"

    def _queue_faults(self, location: Location) -> Iterator[str]:
        account = location.account
        if (used := location.queue_out.statistics().current_buffer_used) != account.queued:
            yield f"{location} has {used} spans in its queue"
        if account is not self._scheduler.ledger.accounts().get(location.name):
            yield f"{location} has an account that the ledger does not know"
        next_one = account.first_queued
        for batch in location.full:
            if batch.first != next_one or batch.end <= batch.first:
                yield f"{location} has a batch from {batch.first} to {batch.end} where {next_one} is next"
            next_one = batch.end
        open_spans = account.accepted - next_one
        if (open_spans > 0) != (location.open is not NO_BATCH) or open_spans < 0:
            yield f"{location} has {open_spans} spans in the batch that grows: {location.open}"
        elif open_spans and location.open.first != next_one:
            yield f"the batch that grows in {location} begins at {location.open.first}, not at {next_one}"

    def _lease_faults(self, location: Location) -> Iterator[str]:
        leases = sorted(location.leases, key=lambda lease: lease.first)
        begins = [lease.first for lease in leases[1:]] + [location.account.first_queued]
        if any(lease.first + len(lease) > next_one for lease, next_one in zip(leases, begins, strict=False)):
            yield f"{location} has overlapping leases"
        if sum(map(len, leases)) != location.account.in_flight:
            yield f"{location} has leases for {sum(map(len, leases))} spans"
        if not location.leases.keys() >= set(location.retries or ()):
            yield f"{location} has a lease that waits for its next attempt though it is settled"
        for part in location.flushes or ():
            if part.remaining <= 0:
                yield f"{location} has not finished a flush that is complete"

    # -- waiting adders ----------------------------------------------------------------------------------------

    def _line_faults(self, location: Location, now: float, free: int) -> Iterator[str]:
        if not location.waiting:
            return
        cost = cost_after(location.headers, next(iter(location.waiting)).span)
        account = location.account
        full = (
            account.queued >= self._admission._max_queued
            or account.pending_bytes + cost > self._admission._max_location_bytes
        )
        if full == (location in self._admission.byte_queue):
            yield f"the first adder of {location} waits for the wrong thing (it is {'full' if full else 'not full'})"
        if full and free and self._could_export(location, now):
            yield f"{location} is full, an adder waits, a slot is free, and it does not export"

    def _byte_queue_faults(self, now: float, free: int) -> Iterator[str]:
        line = list(self._admission.byte_queue)
        for location in line:
            if not location.waiting or self._scheduler.locations.get(location.name) is not location:
                yield f"{location} waits for bytes without an adder"
        if not line or not line[0].waiting:
            return
        cost = cost_after(line[0].headers, next(iter(line[0].waiting)).span)
        if self._scheduler.ledger.total.pending_bytes + cost <= self._admission._max_bytes:
            yield f"the first adder that waits for bytes, at {line[0]}, would fit"
        idle = [location for location in self._locations if self._could_export(location, now)]
        if free and idle:
            yield f"an adder waits for bytes, {free} slots are free, and {idle} do not export"

    def _ranking_faults(self, now: float) -> Iterator[str]:
        """Yield locations that would never be made due, as their queued bytes are not known."""
        unranked = self._admission.unranked
        if self._driver.has_ended or isinstance(self._scheduler, SpoolingScheduler):
            # With a spool, there is no ranking.
            return
        if (
            self._admission.byte_queue
            and unranked
            and self._slots.free
            and not any(one.endpoint.first for one in unranked)
        ):
            yield f"an adder waits for bytes, and the ranking does not know those of {list(unranked)}"
        if not unranked.keys() <= set(self._locations):
            yield "a location that has ended is to be ranked"
        for location in self._locations:
            if not location.is_ranked and location not in unranked:
                yield f"{location} is never ranked"
            elif location.is_ranked and location not in unranked and self._could_export(location, now):
                known = any(one is location for _, _, one in self._scheduler._ranking._entries)
                growth = location.queued_bytes - location.ranked_bytes
                # The average when it was ranked is not known any more.
                is_small = 0 <= 4 * growth <= max(location.ranked_bytes, self._admission._max_bytes)
                if not (is_small and known) and not location.is_made_due:
                    yield f"the ranking does not know the {location.queued_bytes} bytes of {location}"
        if not self._scheduler._made_due <= set(self._locations):
            yield "a location that has ended is made due"

    def backoff_faults(self, now: float) -> Iterator[str]:
        """Yield the locations whose backoff was extended before its end; to be called after each step.

        Only a server may extend a backoff. When the drain begins, a backoff ends, and another one may begin at once.
        """
        draining = self._scheduler.draining
        backoffs = {} if draining else {location: location.pace._own_wait_until for location in self._locations}
        for location, until in backoffs.items():
            if now < self._backoffs.get(location, now) < until:
                yield f"{location} was to back off until {self._backoffs[location]}, now until {until}"
        self._backoffs = backoffs

    # -- sums --------------------------------------------------------------------------------------------------

    def _budget_faults(self) -> Iterator[str]:
        ledger = self._scheduler.ledger
        total, accounts = ledger.total, list(ledger.accounts().values())
        for column in _PENDING:
            if getattr(total, column) != (pending := sum(getattr(account, column) for account in accounts)):
                yield f"the total of {column} is {getattr(total, column)}, the sum is {pending}"
        for account in [total, *accounts]:
            if account.accepted + account.recovered != account.pending + sum(
                getattr(account, column) for column in _SETTLED
            ):
                yield f"spans are missing in {account}"
        yield from self._settled_faults(total, accounts)
        yield from self._recovered_faults()
        for location in self._locations:
            leased = sum(lease.cost for lease in location.leases)
            if location.leased_bytes != leased:
                yield f"{location} counts {location.leased_bytes} bytes in flight, {leased} are"

    def _recovered_faults(self) -> Iterator[str]:
        """Yield locations that count more or fewer recovered spans as left than there are."""
        scheduler = self._scheduler
        if not isinstance(scheduler, SpoolingScheduler):
            return
        for name, account in scheduler.ledger.accounts().items():
            live = scheduler.locations.get(name)
            if live is not None and _pages_of(live):
                continue
            parts: list[Piece | Lease] = [*scheduler.shelves.get(name, ()), *(live.leases if live else ())]
            if account.recovered_left != (left := sum(len(part) for part in parts if part.first < 0)):
                yield f"{name} counts {account.recovered_left} recovered spans that are left, {left} are"

    def _settled_faults(self, total: Account, accounts: list[Account]) -> Iterator[str]:
        """Yield totals that are less than the sums. They may be more, as not all accounts of the ended are kept."""
        for column in ("accepted", "recovered", "ambiguous", "requests", "retries", "splits", *_SETTLED):
            if getattr(total, column) < (settled := sum(getattr(account, column) for account in accounts)):
                yield f"the total of {column} is {getattr(total, column)}, the sum is {settled}"


def _pages_of(location: Location) -> int:
    """Return how many slots of a location are used to read spans back from the spool."""
    return int(isinstance(location, SpooledLocation) and location.is_paging)


class RestWatch(trio.abc.Instrument):
    """Checks a batcher whenever its run is at rest, and its backoffs after each step.

    Attributes:
        failure: The first violation, or None.
    """

    def __init__(self, at_rest: AtRest) -> None:
        self._at_rest = at_rest
        self.failure: str | None = None

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        if self.failure is None:
            self.failure = next(self._at_rest.backoff_faults(trio.current_time()), None)

    def before_io_wait(self, timeout: float) -> None:
        # A mock clock jumps only when all tasks are at rest; until then trio has something to run. Calls queued by
        # other threads and by adders, which wake the driver so, and deadlines that have passed, come first too.
        runner = trio._core._run.GLOBAL_RUN_CONTEXT.runner
        now = runner.clock.current_time()
        if self.failure or runner.runq or runner.entry_queue.size() or runner.deadlines.next_deadline() <= now:
            return
        self.failure = next(self._at_rest.faults(now), None)
