"""The scheduler without trio: the queues, the clock and the runtime are plain objects.

A `World` has a scheduler and simulates everything around it: the program, the driver, the deliveries and the clock. It
lists the events that may come next, carries one out, and then checks the state of the scheduler. It counts the spans
itself: what it expects does not depend on the scheduler's own counts.
"""

from __future__ import annotations

import math
import random
from collections import Counter, deque
from collections.abc import Iterable
from functools import partial
from typing import TypeAlias, TypeGuard

import attrs

from trio_spanbatch import (
    BatchPolicy,
    Delivered,
    EncodedSpan,
    Limits,
    Refused,
    RetryPolicy,
    TooManyLocationsError,
    TryLater,
)
from trio_spanbatch._exporter import ExportResult
from trio_spanbatch._reporting.statistics import Settlement
from trio_spanbatch._scheduler.endpoint import Endpoint
from trio_spanbatch._scheduler.flush import Flush
from trio_spanbatch._scheduler.ledger import Account
from trio_spanbatch._scheduler.location import Lease, Location, Waiter
from trio_spanbatch._scheduler.orders import Admit, HandBack, LogEndpoint, Order, Repeat, Start, Wake
from trio_spanbatch._scheduler.scheduler import Scheduler
from trio_spanbatch._scheduler.splitter import NO_BATCH
from trio_spanbatch._spans.batch import SpanHeaders, cost_after, cost_of

__all__ = ["Event", "FakeQueue", "World", "WorldConfig", "make_queue", "replayed"]

Event: TypeAlias = tuple[str, int | str, int]

HEADERS = (SpanHeaders(), SpanHeaders(b"\x0a\x00", b"\x0a\x00"))
COLUMNS = ("accepted", "queued", "in_flight", "delivered", "rejected", "spooled", "undelivered", "pending_bytes")
SHUTDOWN_TIMEOUT = 8.0
# A scheduler that needs more steps than this without an event in between does not end.
MAX_STEPS = 300


class Halves(random.Random):
    """Jitter that is not random: each wait is half of the longest."""

    def uniform(self, a: float, b: float) -> float:
        return (a + b) / 2

    def random(self) -> float:
        return 0.5


_HALVES = Halves(0)

# "cancelled" stands for an attempt that is cancelled, which has no result.
_ANSWERS: dict[str, ExportResult] = {
    "delivered": Delivered(),
    "partly": Delivered(rejected=1),
    "later": TryLater("busy"),
    "unreached": TryLater("refused", endpoint=True),
    "overloaded": TryLater("overloaded", status_code=503),
    "throttled": TryLater("throttled", status_code=429),
    "asked": TryLater("busy", after=3.0, ambiguous=True),
    "refused": Refused("bad", status_code=400, isolate=True),
    "too large": Refused("large", status_code=413, isolate=True),
}


@attrs.frozen
class _Used:
    current_buffer_used: int


class FakeQueue:
    """Both ends of a queue."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.items: deque[bytes] = deque()
        self.is_closed = False

    def send_nowait(self, value: bytes, /) -> None:
        assert not self.is_closed, "a span was added to a closed queue"
        assert len(self.items) < self.size, "a span was added to a full queue"
        self.items.append(value)

    def receive_nowait(self) -> bytes:
        return self.items.popleft()

    def statistics(self) -> _Used:
        return _Used(len(self.items))

    def close(self) -> None:
        self.is_closed = True


class FakeQueueOut(FakeQueue):
    """The other end of a queue. It is closed once, as its location ends once."""

    def __init__(self, queue: FakeQueue) -> None:
        super().__init__(queue.size)
        self.items = queue.items

    def close(self) -> None:
        assert not self.is_closed, "a location ends twice"
        super().close()


def make_queue(size: int) -> tuple[FakeQueue, FakeQueueOut]:
    queue = FakeQueue(size)
    return queue, FakeQueueOut(queue)


def _takes_slot(order: Order) -> TypeGuard[Start | Repeat]:
    return isinstance(order, Start) or (isinstance(order, Repeat) and order.lease.may_repeat)


@attrs.frozen
class WorldConfig:
    """The contents of a world, and the events that may happen in it.

    Attributes:
        sizes: The sizes of spans.
        spans: How many spans are added at most.
        adders: How many adders may wait, over all time.
        flushes: How many flushes may begin, over all time.
        answers: The results of attempts: by name, as in `World.answer`.
        begins_later: Whether a delivery begins its attempt, and goes on after its answer, in separate events.
        pauses: The times that may pass other than until the scheduler has something to do.
        before: The events that have happened already.
    """

    locations: tuple[str, ...] = ("a", "b")
    sizes: tuple[int, ...] = (10,)
    spans: int = 3
    adders: int = 1
    flushes: int = 1
    answers: tuple[str, ...] = ("delivered", "later", "refused", "cancelled")
    begins_later: bool = False
    pauses: tuple[float, ...] = ()
    before: tuple[Event, ...] = ()
    limits: Limits = attrs.field(factory=partial(Limits, max_queued_spans=2, max_exports=1, max_exports_per_location=2))
    retry: RetryPolicy = attrs.field(factory=partial(RetryPolicy, initial=2.0, maximum=4.0, max_elapsed=30.0))
    policy: BatchPolicy = attrs.field(factory=partial(BatchPolicy, max_spans=2, max_delay=4.0))


class FakeDelivery:
    """A delivery: its open leases, the next one last.

    It has a slot, waits for one, or has one and has not begun. Or it is idle: it has given its slot back, and will go
    on after an answer, or else give up.
    """

    def __init__(self, lease: Lease) -> None:
        self.leases = [lease]
        self.state = "starting"
        self.answer: str | None = None
        self.began_after = 0
        self.is_probe = False

    @property
    def part(self) -> Lease:
        return self.leases[-1]


class ExpectedEndpoint:
    """What the results of all attempts say about the endpoint, counted by the world itself."""

    def __init__(self, max_exports: int) -> None:
        self.max_exports = max_exports
        self.is_up = True
        self.allowed = math.inf
        self.answers = 0
        self.unreached = 0
        self.failed: set[str] = set()
        self.outages = 0

    def ended(self, delivery: FakeDelivery, answer: str) -> None:
        """Note the end of an attempt."""
        if answer in ("delivered", "partly", "refused", "too large", "throttled"):
            self.answers += 1
            self.unreached = 0
            self.failed.clear()
            if not self.is_up:
                self.is_up, self.allowed = True, 1
            elif answer in ("delivered", "partly"):
                self.allowed += 1
            if self.allowed >= self.max_exports:
                self.allowed = math.inf
        elif answer in ("unreached", "overloaded", "asked") and delivery.began_after == self.answers:
            self.unreached += answer == "unreached"
            self.failed.add(delivery.part.location.name)
            if self.is_up and (self.unreached >= 3 or len(self.failed) >= 3):
                self.is_up = False
                self.outages += 1


class WatchedFlush:
    """A flush, and the spans that it waits for according to the world's own count."""

    def __init__(self) -> None:
        self.flush = Flush()
        self.spans: dict[str, int] = {}
        self.woken = False


class World:
    """A scheduler and everything around it."""

    def __init__(self, config: WorldConfig) -> None:
        self.config = config
        self.now = 0.0
        self.woken = False
        self.scheduler = Scheduler(
            config.limits, config.retry, self.policy, None, None, _HALVES, self.clock, make_queue, self.wake
        )
        # The accounts of all ended locations are kept, to be checked.
        self.scheduler.ledger.kept_ended = 1000
        self.added = 0
        self.joined = 0
        self.flushed = 0
        self.deliveries: list[FakeDelivery] = []
        self.waiters: list[Waiter] = []
        self.flushes: list[WatchedFlush] = []
        self.closed = self.ended = False
        self.expected = ExpectedEndpoint(config.limits.max_exports)
        # The endpoint lives as long as the scheduler, so its queue can be looked at.
        self.is_endpoint_up = True
        # When the drain began, until the first attempt that ends in it.
        self.drain_began_at = math.inf
        # By location: the queued spans; the number of accepted spans; the number of spans with each outcome.
        self.queued: dict[str, deque[EncodedSpan]] = {name: deque() for name in config.locations}
        self.accepted: Counter[str] = Counter()
        self.outcomes: dict[str, Counter[str]] = {name: Counter() for name in config.locations}
        # The spans that are accounted for, by number.
        self.settled: dict[str, set[int]] = {name: set() for name in config.locations}

    def policy(self, _: str) -> BatchPolicy:
        return self.config.policy

    def clock(self) -> float:
        return self.now

    def wake(self) -> None:
        self.woken = True

    # -- events ------------------------------------------------------------------------------------------------

    def enabled(self) -> list[Event]:
        """Return the events that may come next."""
        config, events = self.config, list[Event]()
        if not self.ended:
            if self.woken:
                events.append(("step", 0, 0))
            elif self.now < self.scheduler.next_at() < math.inf:
                events.append(("time", 0, 0))
            events += [("pause", 0, number) for number in range(len(config.pauses))]
            events.append(("drain" if not self.closed else "stop", 0, 0))
        if not self.closed:
            if self.added < config.spans:
                events += [("add", name, size) for name in config.locations for size in config.sizes]
            if self.flushed < config.flushes:
                events += [("flush", name, 0) for name in (*config.locations, "")]
        events += [("withdraw", number, 0) for number in range(len(self.waiters))]
        events += [("forget", number, 0) for number in range(len(self.flushes))]
        for number, delivery in enumerate(self.deliveries):
            if delivery.state == "running":
                events += [(answer, number, 0) for answer in config.answers]
            elif delivery.state in ("waiting", "idle"):
                events.append(("give up" if delivery.answer is None else "go on", number, 0))
            else:
                events.append(("begin", number, 0))
                if delivery.state == "repeating":
                    events.append(("leave slot", number, 0))
        return events

    def do(self, event: Event) -> None:
        """Carry out an event."""
        kind, which, size = event
        if kind == "step":
            self.step()
        elif kind == "add":
            self.add(str(which), size)
        elif kind == "time":
            self.now = max(self.now, self.scheduler.next_at())
            self.woken = True
        elif kind == "pause":
            self.now += self.config.pauses[size]
            self.woken = True
        elif kind == "flush":
            self.begin_flush(str(which))
        elif kind == "drain":
            self.drain()
        elif kind == "stop":
            self.stop()
        elif kind == "forget":
            self.flushes.pop(int(which)).flush.forget()
        elif kind == "withdraw":
            self.scheduler.admission.withdraw(self.waiters.pop(int(which)))
        elif kind == "begin":
            self.begin(self.deliveries[int(which)])
        elif kind == "leave slot":
            self.leave_slot(self.deliveries[int(which)])
        elif kind == "go on":
            self.go_on(self.deliveries[int(which)])
        elif kind == "give up":
            self.give_up(self.deliveries[int(which)])
        else:
            self.answer(self.deliveries[int(which)], kind)
        if self.ended:
            self.carry_out_orders()

    # -- the program -------------------------------------------------------------------------------------------

    def add(self, name: str, size: int) -> None:
        """Add a span as `SpanBatcher.add_span` does, waiting if necessary and allowed."""
        # Each span has its own bytes, so that the order can be seen.
        span = EncodedSpan(bytes([self.added % 256]) * size, HEADERS[size % len(HEADERS)])
        self.added += 1
        scheduler = self.scheduler
        if (location := scheduler.get(name)) is None:
            is_full = self._are_locations_full()
            try:
                location = scheduler.open(name)
            except TooManyLocationsError:
                assert is_full, f"{name} is not opened though max_locations allows it"
                return
            assert not is_full, f"{name} is opened beyond max_locations"
        assert not location.has_ended
        must_wait = self._must_wait(location, span)
        admitted = scheduler.admission.try_admit(location, span, self.clock)
        assert admitted is not must_wait, f"{name}: a span was {'admitted' if admitted else 'refused'}"
        if admitted:
            self._accept(name, span)
            known = location.is_in_inbox or self._has_grown_little(location)
            assert known or not location.is_ranked, f"the ranking is taken to know the bytes of {location}"
        elif self.joined < self.config.adders:
            self.joined += 1
            self.waiters.append(Waiter(location, span))
            scheduler.admission.join(self.waiters[-1])

    def _are_locations_full(self) -> bool:
        """Return whether max_locations locations hold spans or waiting adders, so that no other one can be opened."""
        live = self.scheduler.locations
        occupied = {name for name in live if self._pending(name)} | {one.location.name for one in self.waiters}
        return len(occupied) >= self.config.limits.max_locations

    def _pending(self, name: str) -> int:
        return self.accepted[name] - len(self.settled[name])

    def _must_wait(self, location: Location, span: EncodedSpan) -> bool:
        """Return whether the limits, or adders that wait already, keep a span from being admitted."""
        limits, cost = self.config.limits, cost_after(location.headers, span)
        return (
            any(waiter.location is location for waiter in self.waiters)
            or len(self.queued[location.name]) >= limits.max_queued_spans
            or location.account.pending_bytes + cost > limits.max_pending_bytes_per_location
            or self.scheduler.ledger.total.pending_bytes + cost > limits.max_pending_bytes
            or any(not self._is_full(*first) for first in self._first_waiters().items())
        )

    def _first_waiters(self) -> dict[Location, Waiter]:
        return {waiter.location: waiter for waiter in reversed(self.waiters)}

    def _is_full(self, location: Location, waiter: Waiter) -> bool:
        """Return whether an adder waits for space in its location rather than for the shared byte budget."""
        limits, account, cost = self.config.limits, location.account, cost_after(location.headers, waiter.span)
        most = min(limits.max_pending_bytes_per_location, limits.max_pending_bytes)
        return account.queued >= limits.max_queued_spans or account.pending_bytes + cost > most

    def _accept(self, name: str, span: EncodedSpan) -> None:
        self.accepted[name] += 1
        self.queued[name].append(span)

    def begin_flush(self, name: str) -> None:
        """Begin a flush of a location, or of all."""
        self.flushed += 1
        watched = WatchedFlush()
        for location in tuple(self.scheduler.locations.values()):
            if name in ("", location.name):
                self.scheduler.watch(location, watched.flush)
                watched.spans[location.name] = self.accepted[location.name]
        watched.flush.watches_all = True
        if not watched.flush.is_done:
            self.flushes.append(watched)

    def drain(self) -> None:
        """Close the batcher."""
        refused = self.scheduler.close_admission()
        assert set(refused) == set(self.waiters), "not all waiting adders are returned"
        self.waiters.clear()
        self.closed = True
        self.scheduler.begin_drain(self.now + SHUTDOWN_TIMEOUT)
        self.drain_began_at = self.now
        self.woken = True

    def stop(self) -> None:
        """End the driver, and then all deliveries."""
        self.ended = True
        while self.scheduler.hand_back("stopped"):
            pass
        self.carry_out_orders()
        for delivery in tuple(self.deliveries):
            self.answer(delivery, "cancelled") if delivery.state in ("running", "starting") else self.give_up(delivery)

    # -- the driver --------------------------------------------------------------------------------------------

    def step(self) -> None:
        """Have the scheduler decide until it has nothing to decide."""
        self.woken = False
        for _ in range(MAX_STEPS):
            line = self._line()
            goes_on = self.scheduler.step(self.now)
            self._check_line(line)
            self.carry_out_orders()
            if not goes_on:
                break
        else:
            raise AssertionError("the scheduler always has something to do")
        self.check_nothing_left_to_do()
        # Carrying out an order may have been an event.
        self.woken = bool(self.scheduler.admission.inbox or self.scheduler.outbox)
        if self.scheduler.is_over:
            self.ended = True

    def carry_out_orders(self) -> None:
        outbox = self.scheduler.outbox
        while outbox:
            order = outbox[0]
            if isinstance(order, HandBack):
                self._take(order.lease)
                self.settle(order.lease, Settlement(undelivered=len(order.lease), reason=order.reason))
                outbox.popleft()
            else:
                self._carry_out(order)
                outbox.popleft()

    def _carry_out(self, order: Order) -> None:
        if isinstance(order, Start):
            self._check_share(order.lease.location)
            self._take(order.lease)
            self.deliveries.append(FakeDelivery(order.lease))
            self._export_begins(self.deliveries[-1])
            if not self.config.begins_later:
                self.begin(self.deliveries[-1])
        elif isinstance(order, Repeat):
            delivery = next(one for one in self.deliveries if one.part is order.lease)
            assert delivery.state == "waiting", "an attempt is repeated, and no delivery waits for it"
            if not order.lease.may_repeat:
                self.give_up(delivery)
            else:
                location = order.lease.location
                self._check_share(location)
                waiting = [
                    one.part for one in self.deliveries if one.state == "waiting" and one.part.location is location
                ]
                assert order.lease.first == min(one.first for one in waiting), "older spans must go first"
                delivery.state = "repeating"
                self._export_begins(delivery)
                if not self.config.begins_later:
                    self.begin(delivery)
        elif isinstance(order, Admit):
            self._admitted(order.waiter)
        elif isinstance(order, LogEndpoint):
            assert order.is_up is not self.is_endpoint_up, "the endpoint goes up or down twice"
            self.is_endpoint_up = order.is_up
        else:
            assert isinstance(order, Wake)
            for watched in self.flushes:
                watched.woken |= watched.flush is order.flush

    def _export_begins(self, delivery: FakeDelivery) -> None:
        """Check that the endpoint allows an export, which is among the running ones already."""
        expected = self.expected
        delivery.is_probe = not expected.is_up
        if expected.is_up:
            running = len(self._exporting())
            assert running <= expected.allowed, f"{running} exports run after an outage, {expected.allowed} are allowed"
        else:
            probes = [one for one in self._exporting() if one.is_probe]
            assert probes == [delivery], "more than one probe runs while the endpoint is down"

    def _exporting(self) -> list[FakeDelivery]:
        return [one for one in self.deliveries if one.state not in ("waiting", "idle")]

    def _check_share(self, location: Location) -> None:
        """Check that an export may begin, given the running ones."""
        running = Counter(one.part.location for one in self.deliveries if one.state not in ("waiting", "idle"))
        slots = self.scheduler.slots.count
        kept = self._kept(len(running)) if running[location] else 0
        assert slots - running.total() > kept, f"{location} exports with a slot that is kept for others"

    def _line(self) -> list[Location]:
        """Return the locations without an export that wait for a slot and could use it now."""
        if self.closed and self.now >= self.scheduler.drain_deadline:
            return []
        line = self.scheduler.slots.queue
        return [one for one in line if not one.pace.active and self._exports_at(one) <= self.now]

    def _check_line(self, line: list[Location]) -> None:
        """Check that the slots of a step went first to the locations in line, in their order."""
        given = [order.lease.location for order in self.scheduler.outbox if _takes_slot(order)]
        for location, first in zip(given, line, strict=False):
            assert location is first, f"{location} overtakes {first}, which waits for a slot"

    def _take(self, lease: Lease) -> None:
        """Take the spans of a sealed batch out of the world's own queue."""
        name = lease.location.name
        expected = [self.queued[name].popleft() for _ in range(len(lease))]
        assert [span.payload for span in lease.batch.spans] == [span.payload for span in expected], "wrong order"
        assert [span.headers for span in lease.batch.spans] == [span.headers for span in expected]
        assert lease.first + len(lease) + len(self.queued[name]) == self.accepted[name]
        assert len(lease) <= self.config.policy.max_spans, "a batch has too many spans"

    def _admitted(self, waiter: Waiter) -> None:
        """Note that an adder's span was admitted."""
        first = next(one for one in self.waiters if one.location is waiter.location)
        assert first is waiter, "an adder has overtaken another one"
        self.waiters.remove(waiter)
        self._accept(waiter.location.name, waiter.span)

    # -- deliveries --------------------------------------------------------------------------------------------

    def begin(self, delivery: FakeDelivery) -> None:
        self.scheduler.attempt_began(delivery.part)
        delivery.began_after = self.expected.answers
        delivery.state = "running"

    def answer(self, delivery: FakeDelivery, answer: str) -> None:
        """End an attempt with an answer."""
        result = _ANSWERS.get(answer)
        ambiguous = result is None or (isinstance(result, TryLater) and result.ambiguous)
        delivery.state, delivery.answer = "idle", answer
        self.expected.ended(delivery, answer)
        self.drain_began_at = math.inf
        self.scheduler.attempt_ended(delivery.part, result, self.now, ambiguous=ambiguous)
        endpoint = delivery.part.location.endpoint
        assert endpoint.is_up is self.expected.is_up, f"the endpoint is {'up' if endpoint.is_up else 'down'}"
        self.woken = True
        if not self.config.begins_later or self.ended:
            self.go_on(delivery)

    def go_on(self, delivery: FakeDelivery) -> None:
        """Do what follows from an answer."""
        scheduler, part = self.scheduler, delivery.part
        result, delivery.answer = _ANSWERS.get(delivery.answer or ""), None
        if isinstance(result, TryLater):
            scheduler.back_off(part.location, result.after, self.now)
            self._wait(delivery)
        elif isinstance(result, Refused) and len(part) > 1:
            left, right = scheduler.split(part, len(part) // 2)
            delivery.leases[-1:] = [right, left]
            self._wait(delivery)
        elif isinstance(result, Delivered):
            rejected = min(result.rejected, len(part))
            self._settle_part(delivery, Settlement(delivered=len(part) - rejected, rejected=rejected))
        elif isinstance(result, Refused):
            self._settle_part(delivery, Settlement(rejected=1, reason="bad"))
        else:
            self._settle_all(delivery)

    def give_up(self, delivery: FakeDelivery) -> None:
        """Hand back the spans of a delivery that waits for its next attempt, or that will not make it."""
        if delivery.state == "repeating":
            self.leave_slot(delivery)
        delivery.state = "idle"
        self.scheduler.wants_no_retry(delivery.part)
        self._settle_all(delivery)

    def leave_slot(self, delivery: FakeDelivery) -> None:
        """Make no use of the slot that a delivery was given for its next attempt."""
        self.scheduler.slot_unused(delivery.part)
        delivery.state = "idle"
        self.woken = True

    def _wait(self, delivery: FakeDelivery) -> None:
        delivery.state = "waiting"
        self.scheduler.wants_retry(delivery.part)

    def _settle_all(self, delivery: FakeDelivery) -> None:
        for lease in tuple(delivery.leases):
            self.settle(lease, Settlement(undelivered=len(lease), reason="given up"))
        self.deliveries.remove(delivery)

    def _settle_part(self, delivery: FakeDelivery, settlement: Settlement) -> None:
        self.settle(delivery.leases.pop(), settlement)
        if not delivery.leases:
            self.deliveries.remove(delivery)
        elif self.ended:
            self._settle_all(delivery)
        else:
            self._wait(delivery)

    def settle(self, lease: Lease, settlement: Settlement) -> None:
        self.woken = True
        name = lease.location.name
        numbers = set(range(lease.first, lease.first + len(lease)))
        assert numbers.isdisjoint(self.settled[name]), "spans are accounted for twice"
        self.settled[name] |= numbers
        outcomes = self.outcomes[name]
        outcomes["delivered"] += settlement.delivered
        outcomes["rejected"] += settlement.rejected
        outcomes["undelivered"] += settlement.undelivered
        self.scheduler.settled(lease, settlement, self.now)

    # -- checks ------------------------------------------------------------------------------------------------

    def check(self) -> None:
        """Check the invariants that hold after each event."""
        scheduler = self.scheduler
        # Settling the last spans of a flush, and an answer, are events that give an order. The others come from a step.
        assert all(isinstance(order, Wake | LogEndpoint) for order in scheduler.outbox), (
            f"orders are left: {scheduler.outbox}"
        )
        assert not scheduler.outbox or (self.woken and not self.ended), "an order is left, and the driver was not woken"
        running = Counter(one.part.location for one in self.deliveries if one.state not in ("waiting", "idle"))
        self._check_slots(running)
        accounts = scheduler.ledger.accounts()
        for column in COLUMNS:
            total = sum(getattr(account, column) for account in accounts.values())
            assert getattr(scheduler.ledger.total, column) == total, f"the total of {column} is not the sum"
        for name, account in accounts.items():
            self._check_account(name, account)
        assert scheduler.ledger.total.pending_bytes <= self.config.limits.max_pending_bytes, (
            "the byte budget is exceeded"
        )
        leases: dict[Location, set[Lease]] = {}
        for delivery in self.deliveries:
            for lease in delivery.leases:
                leases.setdefault(lease.location, set()).add(lease)
        for location in scheduler.locations.values():
            self._check_location(location, leases.pop(location, set()))
        assert not any(leases.values()), "a location ended while its spans were in flight"
        for watched in self.flushes:
            self._check_flush(watched)
        if not self.woken and not self.ended:
            # Nobody will decide anything until the clock does.
            assert self.now < scheduler.next_at(), "nobody wakes the driver"
            self.check_nothing_left_to_do()

    def _check_slots(self, running: Counter[Location]) -> None:
        slots = self.scheduler.slots
        assert slots.free == slots.count - running.total() >= 0, f"{slots.free} slots are free, {running} run"
        assert slots.exporting == len(running)
        most = self.config.limits.max_exports_per_location
        for location in {*self.scheduler.locations.values(), *running}:
            assert location.pace.active == running[location] <= most, f"{location} counts its exports wrongly"

    def _check_account(self, name: str, account: Account) -> None:
        outcomes = self.outcomes[name]
        assert account.accepted == self.accepted[name], f"{name}: {account.accepted} accepted"
        assert account.queued == len(self.queued[name]), f"{name}: {account.queued} queued"
        assert account.in_flight == self._pending(name) - account.queued, f"{name}: {account.in_flight} in flight"
        found = (account.delivered, account.rejected, account.spooled, account.undelivered)
        assert found == (outcomes["delivered"], outcomes["rejected"], 0, outcomes["undelivered"]), f"{name}: {found}"
        done = sum(found)
        assert account.accepted == account.queued + account.in_flight + done, f"{name}: spans are not conserved"

    def _check_location(self, location: Location, leases: set[Lease]) -> None:
        limits, account = self.config.limits, location.account
        assert not location.has_ended
        assert location.queue_out.statistics().current_buffer_used == account.queued <= limits.max_queued_spans
        assert set(location.leases) == leases, f"{location} has other leases than its deliveries"
        queued = cost_of(self.queued[location.name], location.sealed_headers)
        assert account.pending_bytes == queued + sum(lease.cost for lease in leases), f"{location}: bytes are wrong"
        assert account.pending_bytes <= limits.max_pending_bytes_per_location
        assert list(location.waiting or ()) == [one for one in self.waiters if one.location is location]
        assert location.has_queued == bool(account.queued)

    def _check_flush(self, watched: WatchedFlush) -> None:
        open_ = any(not self.settled[name].issuperset(range(below)) for name, below in watched.spans.items())
        assert watched.flush.is_done is not open_, "a flush is done too early or too late"
        # The order is carried out by the driver's next step.
        assert not watched.woken or watched.flush.is_done, "a flush is woken too early"

    def check_nothing_left_to_do(self) -> None:
        """Check that the scheduler, after its last step, has nothing left to do now."""
        scheduler, now = self.scheduler, self.now
        if scheduler.outbox:
            return
        for watched in self.flushes:
            assert watched.woken or not watched.flush.is_done, "a flush is not woken"
        if scheduler.admission.inbox:
            # An order that was carried out is an event that the next step looks at.
            return
        for location in scheduler.locations.values():
            at = self._exports_at(location)
            if at <= now:
                free = scheduler.slots.free if not location.pace.active else self._spare()
                if free > 0:
                    self._check_waits_for_endpoint(location)
            elif at < math.inf and (not location.pace.active or self._spare() > 0):
                # Otherwise it is looked at when a slot can be spared.
                assert scheduler.next_at() <= at, f"{location} may export before the scheduler looks at it"
            idle = not self._pending(location.name) and not location.waiting
            if idle:
                end_at = location.idle_since + self.config.limits.location_idle_timeout
                assert now < end_at, f"{location} is empty and does not end"
                assert not self.closed, f"{location} is empty and lives on in the drain"
                assert scheduler.next_at() <= end_at
            if location.waiting:
                self._check_first_waiter(location, next(iter(location.waiting)))
            self._check_ranking(location)
        self._check_endpoint_queue()
        for name, queued in self.queued.items():
            assert not queued or name in scheduler.locations, f"{name} ended with spans in its queue"

    def _check_waits_for_endpoint(self, location: Location) -> None:
        """Check that a location that is due, and that has a slot, waits for its endpoint."""
        first = location.endpoint.first
        assert first is not None, f"{location} does not export, though a slot is free for it"
        assert location in _queue_of(location.endpoint), f"{location} does not wait for its endpoint"
        opens_at = self._opens_at(first)
        assert self.now < opens_at, f"{first} does not export, though its endpoint lets it"
        is_looked_at = first.is_in_inbox or first.next_look_at <= opens_at
        assert is_looked_at, f"the endpoint lets {first} before the scheduler looks at it"

    def _check_endpoint_queue(self) -> None:
        """Check that only such locations wait for their endpoint as could export otherwise."""
        for location in self.scheduler.locations.values():
            for one in _queue_of(location.endpoint):
                assert not one.has_ended, f"{one} has ended, and waits for its endpoint"
                assert self._exports_at(one) <= self.now, f"{one} waits for its endpoint, and is not due"
            if self.drain_began_at < math.inf:
                cut = location.endpoint.waits_until(location) <= self.now
                assert cut, f"{location} waits in the drain for a probe that was due before it"

    def _opens_at(self, location: Location) -> float:
        """Return when the endpoint lets the first location that waits for it, by the world's own count of exports."""
        running = self._exporting()
        if self.expected.is_up:
            return -math.inf if len(running) < self.expected.allowed else math.inf
        return math.inf if any(one.is_probe for one in running) else location.endpoint.waits_until(location)

    def _spare(self) -> int:
        """Return how many slots a location with a running export may take, as `slots.py` describes."""
        return self.scheduler.slots.free - self._kept(self.scheduler.slots.exporting)

    def _kept(self, exporting: int) -> int:
        half = self.scheduler.slots.count // 2
        if exporting > 1 and not self.closed:
            return half
        return min(half, len(self.scheduler.locations) - exporting)

    def _exports_at(self, location: Location) -> float:
        """Return when a location may export next, slots aside."""
        pace = location.pace
        queue = self.queued[location.name]
        waiting = any(one.state == "waiting" and one.part.location is location for one in self.deliveries)
        if pace.active >= pace.allowed or not (queue or waiting):
            return math.inf
        if waiting:
            return pace.retry_at
        first = location.account.first_queued
        flushed = first < location.flush_watermark
        first_waiter = self._first_waiters().get(location)
        needed = location.is_made_due or (first_waiter is not None and self._is_full(location, first_waiter))
        if flushed or location.full or location.is_closed or needed:
            return pace.retry_at
        assert location.open is not NO_BATCH
        opened_at = location.open.opened_at
        return max(pace.retry_at, opened_at + self.config.policy.max_delay, pace.holds_until(opened_at))

    def _check_first_waiter(self, location: Location, waiter: Waiter) -> None:
        limits, cost, total = self.config.limits, cost_after(location.headers, waiter.span), self.scheduler.ledger.total
        full = self._is_full(location, waiter)
        line = self.scheduler.admission.byte_queue
        assert (location in line) is not full, f"{location}: its first adder waits for the wrong thing"
        if not full and next(iter(line)) is location:
            assert total.pending_bytes + cost > limits.max_pending_bytes, f"{location}: an adder would fit"
            idle = [one for one in self.scheduler.locations.values() if self._could_export(one)]
            assert not idle, f"adders wait for bytes, and {idle} could export"

    def _check_ranking(self, location: Location) -> None:
        """Check that a location would be made due if adders waited for the bytes of its queue."""
        admission, ranking = self.scheduler.admission, self.scheduler._ranking
        if location in admission.unranked:
            is_needed = admission.byte_queue and self.scheduler.slots.free and location.endpoint.first is None
            assert not is_needed, f"the ranking does not know the bytes of {location}"
            return
        assert location.is_ranked, f"{location} is never ranked"
        if self._could_export(location) and not location.is_made_due:
            ranked = [-size for size, _, one in ranking._entries if one is location]
            size = location.ranked_bytes
            assert size in ranked, f"{location} is ranked by {size} bytes, and the entries are {ranked}"
            assert self._has_grown_little(location), f"{location} has grown, and is ranked by {size} bytes"

    def _has_grown_little(self, location: Location) -> bool:
        """Return whether a location may stay ranked; with the largest average, as the one at the time is not known."""
        growth = location.queued_bytes - location.ranked_bytes
        return 0 <= 4 * growth <= max(location.ranked_bytes, self.config.limits.max_pending_bytes)

    def _could_export(self, location: Location) -> bool:
        pace = location.pace
        waiting = any(one.state == "waiting" and one.part.location is location for one in self.deliveries)
        if waiting or not self.queued[location.name] or pace.active >= pace.allowed or pace.retry_at > self.now:
            return False
        # If another one is the first that waits for the endpoint, that has something to send.
        lets = self._opens_at(location) <= self.now and (location.endpoint.first or location) is location
        return lets and (self._spare() if pace.active else self.scheduler.slots.free) > 0

    # -- the end -----------------------------------------------------------------------------------------------

    def finish(self) -> None:
        """Drain with a server that accepts everything, and check that every span is accounted for."""
        if not self.closed:
            self.drain()
        for _ in range(MAX_STEPS):
            if self.ended:
                break
            self.step()
            for delivery in tuple(self.deliveries):
                if delivery.state in ("starting", "repeating"):
                    self.begin(delivery)
                if delivery.state == "running":
                    self.answer(delivery, "delivered")
                if delivery.state == "idle" and delivery in self.deliveries:
                    self.give_up(delivery) if delivery.answer is None else self.go_on(delivery)
            if not self.woken and not self.ended:
                assert self.scheduler.next_at() < math.inf, "the drain never ends"
                self.now = max(self.now, self.scheduler.next_at())
        assert self.ended, "the drain does not end"
        self.carry_out_orders()
        self.check_end()

    def check_end(self) -> None:
        """Check that nothing is left."""
        self.check()
        scheduler = self.scheduler
        assert not scheduler.locations
        assert not self.deliveries
        assert not scheduler.ledger.total.pending
        assert not scheduler.ledger.total.pending_bytes
        assert not scheduler.slots.queue
        assert not scheduler.slots.spare_queue
        assert not scheduler.admission.byte_queue
        assert all(watched.woken for watched in self.flushes), "a flush is never woken"
        assert all(len(self.settled[name]) == self.accepted[name] for name in self.config.locations)


def _queue_of(endpoint: Endpoint[Location]) -> list[Location]:
    """Return the locations that wait for an endpoint, the first one first."""
    return [*endpoint._well, *endpoint._failed]


def replayed(config: WorldConfig, events: Iterable[Event]) -> World:
    """Return a new world in which ``events`` have happened."""
    world = World(config)
    for event in (*config.before, *events):
        world.do(event)
    return world
