"""What has to hold when nothing can run until time passes: nobody waits for something that is there.

That every span is accounted for at the end says nothing about a wake-up that was lost on the way: the drain would mend
it. A lost wake-up shows when everything rests: a lane asleep though its batch is due, an adder that waits though its
span would fit, a slot that is free though a lane waits for it. Nobody can see that from outside, so this looks at the
private state of the core, and at nothing else that is private.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import trio

from trio_spanbatch import Limits, SpanBatcher
from trio_spanbatch._scheduler.location import Lane


class AtRest:
    """Says what is wrong with a batcher that rests.

    Args:
        batcher: The batcher.
        limits: Its limits.
        active: How many exports run at each location, as the exporter sees it. Read anew each time.
    """

    def __init__(self, batcher: SpanBatcher, limits: Limits, active: Mapping[str, int]) -> None:
        self._batcher = batcher
        self._limits = limits
        self._active = active
        self._shared = batcher._shared
        self._admission = batcher._admission
        self._backoffs: dict[Lane, float] = {}

    def faults(self, now: float) -> Iterator[str]:
        """Yield what does not hold at ``now``, when no task can run and no deadline has passed."""
        lanes = list(self._batcher._lanes)
        free = self._shared.slots.free
        if self._limits.max_exports - free != sum(self._active.values()):
            yield f"{free} slots are free while {dict(self._active)} are exporting"
        for lane in lanes:
            yield from self._lane_faults(lane, now, free)
            yield from self._line_faults(lane, now, free)
        yield from self._byte_line_faults(lanes, now, free)
        yield from self._budget_faults()

    def faults_at_the_end(self) -> Iterator[str]:
        """Yield what does not hold once the batcher was left."""
        if lanes := list(self._batcher._lanes):
            yield f"lanes are left: {lanes}"
        if self._admission._byte_line:
            yield "lanes stand in the line for bytes"
        if self._shared.slots.free != self._limits.max_exports:
            yield f"{self._shared.slots.free} of {self._limits.max_exports} slots came back"
        yield from self._budget_faults()

    def _lane_faults(self, lane: Lane, now: float, free: int) -> Iterator[str]:
        exporting = lane.pace.active
        if exporting != self._active.get(lane.location, 0):
            yield f"{lane} counts {exporting} exports, {self._active.get(lane.location, 0)} run"
        if (lane in self._batcher._lanes._empty) != (not lane.account.pending and not lane.waiting):
            yield f"{lane} is in the wrong set of empty or occupied lanes"
        if lane._closed and not self._shared.draining:
            yield f"{lane} is closed though nobody leaves"
        if lane._sleep is None:
            if free and not self._reserved(lane):
                yield f"{lane} waits for a slot, and {free} are free"
        elif lane._sleep.deadline > lane._wake_at() or lane._wake_at() <= now:
            yield f"{lane} sleeps until {lane._sleep.deadline}, there is something to do at {lane._wake_at()}"
        leases = sorted(lane._leases, key=lambda lease: lease.first)
        begins = [lease.first for lease in leases[1:]] + [lane.account.first_queued]
        if any(lease.first + len(lease) > next_one for lease, next_one in zip(leases, begins, strict=False)):
            yield f"{lane} has leases for the same spans"
        for part in lane._flushes:
            if part.remaining <= 0:
                yield f"{lane} has not told a flush that is complete"

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
                yield f"{lane} stands in the line for bytes for nobody"
        if not line or not line[0].waiting:
            return
        size = next(iter(line[0].waiting)).span.size
        if self._shared.ledger.pending_bytes + size <= self._admission._max_bytes:
            yield f"the first adder in the line for bytes, at {line[0]}, would fit"
        idle = [lane for lane in lanes if lane.could_export(now) and not self._reserved(lane)]
        if free and idle:
            yield f"an adder waits for bytes, {free} slots are free, and {idle} do not export"

    def backoff_faults(self, now: float) -> Iterator[str]:
        """Yield the lanes whose backoff was made longer while it went on; asked after each step.

        Only a server may do that. When the drain begins, a backoff ends, and another one may begin at once.
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
    """Looks at a batcher whenever its run rests, and at its backoffs after each step.

    Attributes:
        failure: The first that went wrong, None if nothing did.
    """

    def __init__(self, at_rest: AtRest) -> None:
        self._at_rest = at_rest
        self.failure: str | None = None

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        if self.failure is None:
            self.failure = next(self._at_rest.backoff_faults(trio.current_time()), None)

    def before_io_wait(self, timeout: float) -> None:
        # A mock clock jumps only after all tasks have been seen to rest: until then trio has something to run. What
        # other threads have asked for, and deadlines that have passed, come first too.
        runner = trio._core._run.GLOBAL_RUN_CONTEXT.runner
        now = runner.clock.current_time()
        if self.failure or runner.runq or runner.entry_queue.queue or runner.deadlines.next_deadline() <= now:
            return
        self.failure = next(self._at_rest.faults(now), None)
