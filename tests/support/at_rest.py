"""Invariants of a batcher at rest, when nothing can run until time passes: no task waits for something available.

A lost wake-up does not show in the final accounting, since the drain would make up for it. It shows at rest: a lane
sleeps though its batch is due, an adder waits though its span would fit, a lane waits for a slot though one is free.
That is not visible from outside, so this module reads the private state of the scheduler, and no other private state.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import trio

from trio_spanbatch import Limits, SpanBatcher
from trio_spanbatch._scheduler.location import Lane


class AtRest:
    """Checks a batcher at rest.

    Args:
        batcher: The batcher.
        limits: Its limits.
        active: The number of running exports of each location, as the exporter counts them; it may change.
    """

    def __init__(self, batcher: SpanBatcher, limits: Limits, active: Mapping[str, int]) -> None:
        self._batcher = batcher
        self._limits = limits
        self._active = active
        self._shared = batcher._shared
        self._admission = batcher._admission
        self._backoffs: dict[Lane, float] = {}

    def faults(self, now: float) -> Iterator[str]:
        """Yield violations at ``now``, when no task can run and no deadline has passed."""
        lanes = list(self._batcher._lanes)
        free = self._shared.slots.free
        if self._limits.max_exports - free != sum(self._active.values()):
            yield f"{free} slots are free while {dict(self._active)} are exporting"
        sleep = self._batcher._supervisor.driver._sleep
        if sleep is not None and sleep.deadline > self._shared.agenda.next_at:
            yield f"the driver sleeps until {sleep.deadline}, and should look at {self._shared.agenda.next_at}"
        for lane in lanes:
            yield from self._lane_faults(lane, now)
            yield from self._line_faults(lane, now, free)
        yield from self._byte_line_faults(lanes, now, free)
        yield from self._budget_faults()

    def faults_at_the_end(self) -> Iterator[str]:
        """Yield violations after the batcher was left."""
        if lanes := list(self._batcher._lanes):
            yield f"lanes are left: {lanes}"
        if self._admission._byte_line:
            yield "lanes are still in the line for bytes"
        if self._shared.slots.free != self._limits.max_exports:
            yield f"{self._shared.slots.free} of {self._limits.max_exports} slots were given back"
        yield from self._budget_faults()

    def _lane_faults(self, lane: Lane, now: float) -> Iterator[str]:
        exporting = lane.pace.active
        if exporting != self._active.get(lane.location, 0):
            yield f"{lane} counts {exporting} exports, {self._active.get(lane.location, 0)} run"
        if (lane in self._batcher._lanes._empty) != (not lane.account.pending and not lane.waiting):
            yield f"{lane} is in the wrong set of empty or occupied lanes"
        if lane._closed and not self._shared.draining:
            yield f"{lane} is closed though the batcher is not being left"
        if lane.look_at > lane._wake_at() or lane._wake_at() <= now:
            yield f"{lane} is looked at {lane.look_at}, there is something to do at {lane._wake_at()}"
        leases = sorted(lane._leases, key=lambda lease: lease.first)
        begins = [lease.first for lease in leases[1:]] + [lane.account.first_queued]
        if any(lease.first + len(lease) > next_one for lease, next_one in zip(leases, begins, strict=False)):
            yield f"{lane} has overlapping leases"
        for part in lane._flushes:
            if part.remaining <= 0:
                yield f"{lane} has not finished a flush that is complete"

    def _reserved(self, lane: Lane) -> bool:
        """Return whether the free slots are kept for locations that have no export running."""
        return lane.pace.active > 0 and not self._shared.has_slot_to_spare()

    def _line_faults(self, lane: Lane, now: float, free: int) -> Iterator[str]:
        if not lane.waiting:
            return
        size = next(iter(lane.waiting)).span.size
        account = lane.account
        full = (
            account.queued >= self._admission._max_queued
            or account.pending_bytes + size > self._admission._max_lane_bytes
        )
        if full == (lane in self._admission._byte_line):
            yield f"the first adder of {lane} waits for the wrong thing (its lane is {'full' if full else 'not full'})"
        if full and free and lane.could_export(now) and not self._reserved(lane):
            yield f"{lane} is full, an adder waits, a slot is free, and it does not export"

    def _byte_line_faults(self, lanes: list[Lane], now: float, free: int) -> Iterator[str]:
        line = list(self._admission._byte_line)
        for lane in line:
            if not lane.waiting or self._batcher._lanes.get(lane.location) is not lane:
                yield f"{lane} is in the line for bytes without an adder"
        if not line or not line[0].waiting:
            return
        size = next(iter(line[0].waiting)).span.size
        if self._shared.ledger.pending_bytes + size <= self._admission._max_bytes:
            yield f"the first adder in the line for bytes, at {line[0]}, would fit"
        idle = [lane for lane in lanes if lane.could_export(now) and not self._reserved(lane)]
        if free and idle:
            yield f"an adder waits for bytes, {free} slots are free, and {idle} do not export"

    def backoff_faults(self, now: float) -> Iterator[str]:
        """Yield the lanes whose backoff was extended before its end; to be called after each step.

        Only a server may extend a backoff. When the drain begins, a backoff ends, and another one may begin at once.
        """
        backoffs = {lane: lane.pace._own_wait_until for lane in self._batcher._lanes if not self._shared.draining}
        for lane, until in backoffs.items():
            if now < self._backoffs.get(lane, now) < until:
                yield f"{lane} was to back off until {self._backoffs[lane]}, now until {until}"
        self._backoffs = backoffs

    def _budget_faults(self) -> Iterator[str]:
        ledger = self._shared.ledger
        pending = sum(account.pending_bytes for _, account in ledger.accounts())
        if ledger.pending_bytes != pending:
            yield f"{ledger.pending_bytes} bytes are taken from the budget, {pending} are pending"
        for lane in self._batcher._lanes:
            leased = sum(lease.cost for lease in lane._leases)
            if lane._leased_bytes != leased:
                yield f"{lane} counts {lane._leased_bytes} bytes in flight, {leased} are"


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
        # other threads, and deadlines that have passed, come first too.
        runner = trio._core._run.GLOBAL_RUN_CONTEXT.runner
        now = runner.clock.current_time()
        if self.failure or runner.runq or runner.entry_queue.queue or runner.deadlines.next_deadline() <= now:
            return
        self.failure = next(self._at_rest.faults(now), None)
