"""Explore every order of events in a small world.

States that differ only in the identity of objects and in the absolute time count as the same state. Each state is
explored once, at the smallest depth at which it is reached. It is stored as the events that led to it: the scheduler
cannot be copied, and repeating ten events is fast.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Hashable, Iterable

import attrs

from tests.unit.scheduler.support import Event, World, WorldConfig, replayed
from trio_spanbatch._scheduler.endpoint import Endpoint
from trio_spanbatch._scheduler.location import Lease, Location

__all__ = ["BadWorldError", "Explored", "explore", "key_of"]


class BadWorldError(Exception):
    """An order of events that broke a rule. The message has the events."""


@attrs.define
class Explored:
    """The result of an exploration.

    Attributes:
        by_depth: How many distinct states are first reached at each depth.
        events: The number of events after which the state was checked: every possible event in each state.
        repeated: The number of events that were repeated to reach a state again.
        orders: The number of orders of events, up to the depth or the end of the world.
        order_steps: The number of events in all these orders together.
        seconds: The CPU time, in seconds.
    """

    by_depth: list[int] = attrs.Factory(lambda: [1])
    events: int = 0
    repeated: int = 0
    orders: int = 0
    order_steps: int = 0
    seconds: float = 0.0

    @property
    def states(self) -> int:
        """The number of distinct states."""
        return sum(self.by_depth)


def explore(config: WorldConfig, depth: int) -> Explored:
    """Carry out every order of events up to ``depth``, check each state, and drain from each state at that depth.

    Raises:
        BadWorldError: A rule was broken.
    """
    found, began = Explored(), time.process_time()
    first = replayed(config, ())
    numbers: dict[Hashable, int] = {key_of(first): 0}
    # For each state, the states to which its events lead.
    following: dict[int, list[int]] = {}
    # The states at the current depth, the events that led to each, and those that may come next.
    edge: list[tuple[int, tuple[Event, ...], list[Event]]] = [(0, (), first.enabled())]
    for left in reversed(range(depth)):
        beyond: list[tuple[int, tuple[Event, ...], list[Event]]] = []
        for number, path, events in edge:
            following[number] = []
            for event in events:
                world = replayed(config, path)
                found.repeated += len(path)
                found.events += 1
                _check(world, event, path)
                key = key_of(world)
                if key not in numbers:
                    numbers[key] = len(numbers)
                    beyond.append((numbers[key], (*path, event), world.enabled()))
                    if not left:
                        _drain(world, (*path, event))
                following[number].append(numbers[key])
        edge = beyond
        found.by_depth.append(len(edge))
    _count_orders(found, following, depth)
    found.seconds = time.process_time() - began
    return found


def _count_orders(found: Explored, following: dict[int, list[int]], depth: int) -> None:
    ways = Counter({0: 1})
    for length in range(depth + 1):
        longer: Counter[int] = Counter()
        for number, count in ways.items():
            after = following.get(number, []) if length < depth else []
            for one in after:
                longer[one] += count
            if not after:
                found.orders += count
                found.order_steps += count * length
        ways = longer


def _drain(world: World, path: tuple[Event, ...]) -> None:
    try:
        world.finish()
    except Exception as failure:
        raise BadWorldError(_describe([*path, ("finish", 0, 0)])) from failure


def _check(world: World, event: Event, path: Iterable[Event]) -> None:
    try:
        world.do(event)
        world.check()
    except Exception as failure:
        raise BadWorldError(_describe([*path, event])) from failure


def _describe(events: Iterable[Event]) -> str:
    return "after " + ", ".join(" ".join(str(part) for part in event if part not in (0, "")) for event in events)


def key_of(world: World) -> Hashable:
    """Return everything on which the future of a world depends, with times relative to now."""
    now, scheduler = world.now, world.scheduler
    admission, slots = scheduler.admission, scheduler.slots
    locations = scheduler.locations
    names: dict[Location, Hashable] = {location: name for name, location in locations.items()}

    def name(location: Location) -> Hashable:
        return names.get(location, (location.name, "old"))

    agenda = scheduler._agenda
    times = {number: at for at, number in agenda._entries}
    entries = [(times[number] - now, number, name(one)) for number, one in agenda._locations.items()]
    ranked = [(size, number, name(one)) for size, number, one in scheduler._ranking._entries if not one.has_ended]
    return (
        world.added,
        world.joined,
        world.flushed,
        world.woken,
        world.closed,
        world.ended,
        scheduler.drain_deadline - now,
        tuple(_location_key(location, now) for location in locations.values()),
        tuple(
            (
                name_,
                account.accepted,
                max(account.not_before - now, 0.0),
                account.refuses_everything,
                scheduler._the_endpoint is not None and account.failed_after == scheduler._the_endpoint.answers,
            )
            for name_, account in scheduler.ledger.accounts().items()
        ),
        tuple(
            (
                delivery.state,
                delivery.state == "running" and delivery.began_after == world.expected.answers,
                *(_lease_key(lease, now) for lease in delivery.leases),
            )
            for delivery in world.deliveries
        ),
        tuple(waiter.location.name for waiter in world.waiters),
        tuple((*sorted(watched.spans.items()), watched.woken, watched.flush.is_done) for watched in world.flushes),
        tuple(map(name, admission.inbox)),
        tuple(map(name, admission.byte_queue)),
        tuple(map(name, admission.unranked)),
        tuple(map(name, slots.queue)),
        tuple(map(name, slots.spare_queue)),
        None if scheduler._the_endpoint is None else _endpoint_key(scheduler._the_endpoint, now),
        tuple(map(name, () if scheduler._the_endpoint is None else scheduler._the_endpoint._well)),
        tuple(map(name, () if scheduler._the_endpoint is None else scheduler._the_endpoint._failed)),
        tuple(map(name, scheduler._empty)),
        frozenset(map(name, scheduler._made_due)),
        tuple(map(name, scheduler._to_close)),
        scheduler._turn,
        tuple((at, one) for at, _, one in sorted(entries, key=_first_two)),
        tuple((size, one) for size, _, one in sorted(ranked, key=_first_two)),
    )


def _first_two(entry: tuple[float, int, Hashable]) -> tuple[float, int]:
    return entry[:2]


def _location_key(location: Location, now: float) -> Hashable:
    account, pace = location.account, location.pace
    return (
        location.name,
        account.queued,
        account.pending_bytes,
        tuple((batch.first, batch.end, batch.opened_at - now) for batch in location.full),
        (location.open.first, location.open.opened_at - now) if account.queued else None,
        pace.active,
        pace.allowed,
        # A success that resets the backoff later has no effect on a location that did not fail.
        (pace.failures, pace._starts_anew_at - now) if pace.failures and now < pace._starts_anew_at else None,
        max(pace._own_wait_until - now, 0.0),
        # While it settles, it matters whether the open batch, or one that is opened now, is from after the backoff.
        (pace._settled_at - now, location.open.opened_at > pace.retry_at, now > pace.retry_at)
        if pace._settled_at > now
        else None,
        pace._smallest_refused,
        pace._largest_passed,
        tuple(lease.first for lease in location.retries or ()),
        # A watermark below the first queued span has no effect.
        max(location.flush_watermark - account.first_queued, 0),
        location.is_made_due,
        location.is_closed,
        location.is_ranked and (location.ranked_bytes, location.ranked_up_to - account.pending_bytes),
        location.next_look_at - now,
        location.idle_since - now if not account.pending else 0.0,
    )


def _endpoint_key(endpoint: Endpoint[Location], now: float) -> Hashable:
    if endpoint.is_up:
        return (endpoint._allowed, endpoint._running, endpoint._unreached, endpoint._failed_locations, endpoint._is_cut)
    return (
        endpoint._probes_running,
        endpoint._probes_failed,
        endpoint._first_probes_failed,
        max(endpoint._probe_at - now, 0.0),
        max(endpoint._first_probe_at - now, 0.0),
        endpoint._is_cut,
    )


def _lease_key(lease: Lease, now: float) -> Hashable:
    return (
        lease.location.name,
        lease.location.has_ended,
        lease.first,
        len(lease),
        lease.opened_at - now,
        lease.attempts > 0,
        lease.ambiguous,
        lease.may_repeat,
        lease.is_probe,
    )
