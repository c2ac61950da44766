"""The model: a loop over events. It has the package's rules for backoff and endpoints, but neither spans nor trio.

`_Model.look` and `_Model.end` follow `Scheduler._export` and `Scheduler.attempt_ended`. Spans are added at regular
intervals, so they are counted when a location is looked at. Left out, as a client with so few locations does not meet
them: the slots that are kept free for other locations, the byte budget, and ``max_elapsed``.
"""

from __future__ import annotations

import heapq
import itertools
import math
import random
from bisect import insort
from collections import deque

import attrs

from tests.herd.policies import Policy
from tests.herd.server import Figures, Server
from tests.herd.setting import Setting
from trio_spanbatch import Delivered, ExportResult, TryLater
from trio_spanbatch._scheduler.endpoint import Endpoint
from trio_spanbatch._scheduler.ledger import Account
from trio_spanbatch._scheduler.pace import Pace

__all__ = ["run"]

# Against rounding, where the number of a span is computed from the time.
_EPSILON = 1e-6


@attrs.define(eq=False, slots=True)
class _Batch:
    opened_at: float
    spans: int
    began_after: int = 0
    is_probe: bool = False


def _opened_at(batch: _Batch) -> float:
    return batch.opened_at


@attrs.define(eq=False, slots=True)
class _Location:
    client: int
    endpoint: Endpoint[_Location]
    pace: Pace
    first_at: float
    account: Account = attrs.Factory(Account)
    seen: int = 0
    queued: int = 0
    queue: deque[_Batch] = attrs.Factory(deque)
    retries: list[_Batch] = attrs.Factory(list)
    running: dict[_Batch, None] = attrs.Factory(dict)
    look_at: float = math.inf


def run(setting: Setting, policy: Policy, seed: int = 1) -> Figures:
    """Run the model."""
    if setting.locations * setting.limits.max_exports_per_location > setting.limits.max_exports // 2:
        raise ValueError("the model has no slots that are kept free; give it fewer locations")
    if setting.outage + setting.after > policy.retry.max_elapsed:
        raise ValueError("the model does not know max_elapsed; make the run shorter")
    return _Model(setting, policy, seed).run()


class _Model:
    def __init__(self, setting: Setting, policy: Policy, seed: int) -> None:
        self._setting = setting
        self._server = Server(setting)
        self._events: list[tuple[float, int, _Location, _Batch | None, ExportResult | None]] = []
        self._numbers = itertools.count()
        rng = random.Random(seed)
        self._locations = []
        for client in range(setting.clients):
            jitter = policy.rng(rng.getrandbits(64))
            endpoint = policy.endpoint(jitter, setting.limits)
            for _ in range(setting.locations):
                pace = policy.pace(jitter, setting.limits)
                first_at = rng.uniform(0, setting.policy.max_delay)
                location = _Location(client, endpoint, pace, first_at)
                self._locations.append(location)
                self._plan(location, first_at + setting.window)

    def run(self) -> Figures:
        setting, events = self._setting, self._events
        has_recovered = False
        while events and events[0][0] < setting.end:
            now, _, location, batch, result = heapq.heappop(events)
            if not has_recovered and now >= setting.up_at:
                has_recovered = True
                self._recover()
            if batch is not None:
                self._end(location, batch, result, now)
            elif now != location.look_at:
                continue
            location.look_at = math.inf
            self._look(location, now)
        for location in self._locations:
            self._count(location, setting.end)
        self._server.ended()
        return self._server.figures

    def _plan(self, location: _Location, at: float) -> None:
        """Have a location looked at."""
        location.look_at = at
        if at < math.inf:
            heapq.heappush(self._events, (at, next(self._numbers), location, None, None))

    def _plan_first(self, endpoint: Endpoint[_Location], now: float) -> None:
        if (first := endpoint.first) is not None:
            self._plan(first, now)

    def _count(self, location: _Location, now: float) -> None:
        """Add the spans that have been added until now to the queue."""
        setting = self._setting
        number = location.seen
        seen = location.seen = max(number, math.floor((now - location.first_at) * setting.rate + _EPSILON) + 1)
        accepted = min(seen - number, setting.limits.max_queued_spans - location.queued)
        self._server.figures.lost += seen - number - accepted
        location.queued += accepted
        while accepted:
            last = location.queue[-1] if location.queue else None
            if last is None or last.spans == setting.policy.max_spans:
                last = _Batch(location.first_at + number / setting.rate, 0)
                location.queue.append(last)
            spans = min(accepted, setting.policy.max_spans - last.spans)
            last.spans += spans
            number += spans
            accepted -= spans

    def _due_at(self, location: _Location) -> float:
        """Return when the first batch in the queue, or the next that is opened, is due."""
        setting = self._setting
        next_at = location.first_at + location.seen / setting.rate
        opened_at = location.queue[0].opened_at if location.queue else next_at
        aged_at = max(opened_at + setting.policy.max_delay, location.pace.holds_until(opened_at))
        return min(aged_at, opened_at + (setting.policy.max_spans - 1) / setting.rate)

    def _old(self, batch: _Batch) -> int:
        """Return how many spans of a batch were added before the end of the outage."""
        old = math.floor((self._setting.up_at - batch.opened_at) * self._setting.rate + _EPSILON) + 1
        return max(0, min(batch.spans, old))

    def _recover(self) -> None:
        backlogs: dict[int, int] = {}
        for location in self._locations:
            self._count(location, self._setting.up_at)
            batches = (*location.queue, *location.retries, *location.running)
            backlogs[location.client] = backlogs.get(location.client, 0) + sum(map(self._old, batches))
        self._server.recovered(backlogs)

    def _look(self, location: _Location, now: float) -> None:
        self._count(location, now)
        endpoint, pace = location.endpoint, location.pace
        while True:
            at = pace.next_at()
            if not location.retries:
                at = max(at, self._due_at(location))
            if at > now + _EPSILON:
                if endpoint.leave(location):
                    self._plan_first(endpoint, now)
                self._plan(location, at)
                return
            if not endpoint.lets(location, now):
                endpoint.join(location)
                if endpoint.first is location:
                    self._plan(location, max(now, endpoint.opens_at(location)))
                return
            if endpoint.leave(location):
                self._plan_first(endpoint, now)
            self._begin(location, now)

    def _begin(self, location: _Location, now: float) -> None:
        if location.retries:
            batch = location.retries.pop(0)
        else:
            batch = location.queue.popleft()
            location.queued -= batch.spans
        location.running[batch] = None
        location.pace.active += 1
        batch.is_probe = location.endpoint.begin()
        batch.began_after = location.endpoint.answers
        at, result = self._server.request(now, location.client, batch.spans, self._old(batch))
        heapq.heappush(self._events, (at, next(self._numbers), location, batch, result))

    def _end(self, location: _Location, batch: _Batch, result: ExportResult | None, now: float) -> None:
        endpoint, pace = location.endpoint, location.pace
        del location.running[batch]
        if isinstance(result, Delivered):
            pace.succeeded(now)
        else:
            pace.failed()
        endpoint.note(
            result,
            location,
            now,
            began_after=batch.began_after,
            is_probe=batch.is_probe,
            drain_deadline=math.inf,
        )
        pace.active -= 1
        endpoint.end(is_probe=batch.is_probe)
        self._plan_first(endpoint, now)
        if isinstance(result, TryLater):
            pace.back_off(now, result.after, math.inf)
            insort(location.retries, batch, key=_opened_at)
