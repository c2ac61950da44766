"""Admission: decides which spans may enter a location's queue, and which adders wait.

Three things are limited: a location's queued spans, its pending bytes, and the pending bytes of all locations. An
adder never waits inside a channel's ``send``: it joins its location's queue of adders (``lane.waiting``). The first
adder there waits either for space in its location, or for the byte budget; in the latter case its location waits in
``_byte_line``. Both are first in, first out, so a full location delays only its own adders, and small spans do not
starve a large one.

The step that frees space also admits the waiting spans: a seal frees places in a queue, a settlement frees bytes. The
span is queued and counted in that step, and only then is its adder woken. If an adder is cancelled while it waits, its
span was never queued.

While adders wait for bytes, no export slot stays idle that a location may use: as many locations as there are free
slots are made due, the fullest ones first. Otherwise a budget that is spread over locations that are not due would
stall all adders while the exporter is idle.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict

import attrs
import outcome
import trio

from .._errors import InvalidSpanError
from .._spans.batch import EncodedSpan, cost_after, cost_of
from .location import Lane
from .shared import Shared

__all__ = ["Admission", "Waiter"]


@attrs.frozen(eq=False)
class Waiter:
    """A waiting adder and its span."""

    task: trio.lowlevel.Task
    span: EncodedSpan


class Admission:
    """Admits spans, at once or later.

    Attributes:
        thread_id: The id of the thread whose trio run may add spans; None while admission is closed. The callers check
            it.
    """

    def __init__(self, shared: Shared) -> None:
        limits = shared.limits
        self._shared = shared
        self._ledger = shared.ledger
        self._max_queued = limits.max_queued_spans
        self._max_bytes = limits.max_pending_bytes
        self._max_lane_bytes = min(limits.max_pending_bytes_per_location, limits.max_pending_bytes)
        self._byte_line: OrderedDict[Lane, None] = OrderedDict()
        self._made_due: set[Lane] = set()
        self.thread_id: int | None = None

    @property
    def is_open(self) -> bool:
        """Whether spans are admitted."""
        return self.thread_id is not None

    # -- adding ------------------------------------------------------------------------------------------------

    def try_admit(self, lane: Lane, span: EncodedSpan) -> bool:
        """Admit ``span`` if there is space for which no adder waits already."""
        account = lane.account
        # `cost_after` inlined for the usual case: each call takes 5% of the time of accepting a span.
        cost = len(span.payload) if span.headers is lane.headers else cost_after(lane.headers, span)
        if (
            account.queued < self._max_queued
            and account.pending_bytes + cost <= self._max_lane_bytes
            and self._ledger.pending_bytes + cost <= self._max_bytes
            and not lane.waiting
            and not self._byte_line
        ):
            lane.accept(span, cost)
            return True
        return False

    def try_admit_all(self, lane: Lane, spans: list[EncodedSpan]) -> bool:
        """Admit all of ``spans``, or none."""
        cost = cost_of(spans, lane.headers)
        if (
            lane.waiting
            or self._byte_line
            or lane.account.queued + len(spans) > self._max_queued
            or lane.account.pending_bytes + cost > self._max_lane_bytes
            or self._ledger.pending_bytes + cost > self._max_bytes
        ):
            return False
        for span in spans:
            lane.accept(span, cost_after(lane.headers, span))
        return True

    def check_can_ever_fit(self, count: int, cost: int) -> None:
        """Raise `ValueError` if ``count`` spans that cost ``cost`` bytes in all can never be pending together."""
        if cost > self._max_lane_bytes:
            what = "the span has" if count == 1 else f"the {count} spans have"
            raise InvalidSpanError(
                f"{what} {cost} bytes with resource and scope, and can never fit: "
                f"Limits.max_pending_bytes_per_location and max_pending_bytes allow {self._max_lane_bytes}"
            )
        if count > self._max_queued:
            raise ValueError(
                f"{count} spans can never fit at once: Limits.max_queued_spans is {self._max_queued}; "
                "use add_spans, which waits, or a shorter list"
            )

    async def wait(self, lane: Lane, span: EncodedSpan) -> None:
        """Wait until ``span`` is admitted. If this is cancelled, it was not admitted.

        Raises:
            trio.ClosedResourceError: The batcher was closed while this waited.
        """
        waiter = Waiter(trio.lowlevel.current_task(), span)
        lane.waiting[waiter] = None
        self._shared.lanes.occupied(lane)
        self._serve(lane)

        def abort(_: trio.lowlevel.RaiseCancelT) -> trio.lowlevel.Abort:
            self._withdraw(lane, waiter)
            return trio.lowlevel.Abort.SUCCEEDED

        await trio.lowlevel.wait_task_rescheduled(abort)

    def close(self) -> None:
        """Admit no more spans, and wake all waiting adders with ``trio.ClosedResourceError``."""
        if self.thread_id is None:
            return
        self.thread_id = None
        self._byte_line.clear()
        for lane in self._shared.lanes:
            while lane.waiting:
                waiter, _ = lane.waiting.popitem(last=False)
                trio.lowlevel.reschedule(waiter.task, outcome.Error(trio.ClosedResourceError("the batcher is closed")))

    # -- events ------------------------------------------------------------------------------------------------

    def sealed(self, lane: Lane) -> None:
        """Note that places in a location's queue became free."""
        self._made_due.discard(lane)
        if lane.waiting:
            self._serve(lane)
        self.keep_slots_busy()

    def settled(self, lane: Lane) -> None:
        """Note that bytes of a location and of the budget became free."""
        if self._byte_line:
            self._serve_byte_line()
        if lane.waiting:
            self._serve(lane)

    def keep_slots_busy(self) -> None:
        """Note that a slot became free, or that another location can use one."""
        if self._byte_line:
            self._make_fullest_due()

    # -- waiting adders ----------------------------------------------------------------------------------------

    def _serve(self, lane: Lane) -> None:
        """Admit a location's waiting spans while there is space. Then have it wait for the resource that is short."""
        while lane.waiting and self._serve_first(lane):
            pass
        if not lane.waiting:
            self._byte_line.pop(lane, None)
            if not lane.account.pending:
                self._shared.lanes.emptied(lane)
                lane.reconsider()

    def _serve_first(self, lane: Lane) -> bool:
        waiter = next(iter(lane.waiting))
        cost = cost_after(lane.headers, waiter.span)
        if lane.account.queued >= self._max_queued or lane.account.pending_bytes + cost > self._max_lane_bytes:
            self._byte_line.pop(lane, None)
            lane.make_due()
            return False
        others_are_first = next(iter(self._byte_line), lane) is not lane
        if others_are_first or self._ledger.pending_bytes + cost > self._max_bytes:
            self._byte_line.setdefault(lane)
            self._make_fullest_due()
            return False
        del lane.waiting[waiter]
        lane.accept(waiter.span, cost)
        trio.lowlevel.reschedule(waiter.task)
        return True

    def _serve_byte_line(self) -> None:
        """Admit one span per location that waits for bytes, round-robin, while the budget lasts."""
        while self._byte_line:
            lane = next(iter(self._byte_line))
            if not self._serve_first(lane) and lane in self._byte_line:
                return
            self._byte_line.pop(lane, None)
            if lane.waiting and self._byte_line:
                # It goes to the end.
                self._serve_first(lane)
            elif lane.waiting:
                self._serve(lane)

    def _withdraw(self, lane: Lane, waiter: Waiter) -> None:
        was_first = next(iter(self._byte_line), None) is lane
        del lane.waiting[waiter]
        if not (was_first and lane.waiting):
            self._serve(lane)
        # Round-robin for the location's other adders too: `_serve` would admit all of them first.
        self._serve_byte_line()

    # -- making locations due ----------------------------------------------------------------------------------

    def _make_fullest_due(self) -> None:
        """Make as many locations due as there are free slots, unless some that were made due are not sealed yet."""
        now = trio.current_time()
        self._made_due = {lane for lane in self._made_due if lane.could_export(now)}
        free = self._shared.slots.free
        if self._made_due or not free:
            return
        ready = []
        for lane in self._shared.lanes:
            if lane.could_export(now):
                ready.append(lane)
            elif lane.could_export_after_backoff():
                lane.make_due()
        for lane in heapq.nlargest(free, ready, key=Lane.queued_bytes):
            self._made_due.add(lane)
            lane.make_due()
