"""Admission: who may put a span into a lane, and who waits.

Three things are limited: the spans queued for a location, its pending bytes, and the pending bytes over all. Nobody
ever waits inside a channel's ``send``. An adder that finds no room stands in its location's line (``lane.waiting``),
first come first served. The one at the head of such a line waits either for its own lane, or, if that has room, for the
byte budget: then its lane stands in the line for bytes (``_byte_line``), first come first served as well. So a full
location holds up nobody but its own adders, and a large span is not starved by small ones.

Whoever frees room admits on behalf of those who wait: a seal frees places in the queue, a settlement frees bytes. The
span enters the lane and the counts in that same step, and only then is its adder woken. An adder that is cancelled
leaves the line; its span was never in.

While adders wait for bytes, no export slot stands idle that a lane may use: as many lanes as there are free slots,
fullest first, are pressed, which makes them due. Otherwise a budget spread over many lanes that are not due would stall
everybody while the exporter idles. (Traps: rooms and slots have one owner each, and no lock is held across an await.)
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
    """An adder that waits, and its span."""

    task: trio.lowlevel.Task
    span: EncodedSpan


class Admission:
    """Admits spans, at once or later.

    Attributes:
        thread_id: Of the thread whose trio run may add spans; None while nothing is let in. It is up to the callers to
            look.
    """

    def __init__(self, shared: Shared) -> None:
        limits = shared.limits
        self._shared = shared
        self._ledger = shared.ledger
        self._max_queued = limits.max_queued_spans
        self._max_bytes = limits.max_pending_bytes
        self._max_lane_bytes = min(limits.max_pending_bytes_per_location, limits.max_pending_bytes)
        self._byte_line: OrderedDict[Lane, None] = OrderedDict()
        self._pressed: set[Lane] = set()
        self.thread_id: int | None = None

    @property
    def is_open(self) -> bool:
        """Whether spans are let in."""
        return self.thread_id is not None

    # -- adding ------------------------------------------------------------------------------------------------

    def try_admit(self, lane: Lane, span: EncodedSpan) -> bool:
        """Admit ``span`` if there is room and nobody waits for it already."""
        account = lane.account
        # `cost_after` written out for nearly all spans: each call here takes a twentieth of the time of accepting one.
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
        """Wait until ``span`` was admitted. If this is cancelled, it was not.

        Raises:
            trio.ClosedResourceError: The batcher was closed meanwhile.
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
        """Let nothing in any more. Wakes everybody who waits with ``trio.ClosedResourceError``."""
        if self.thread_id is None:
            return
        self.thread_id = None
        self._byte_line.clear()
        for lane in self._shared.lanes:
            while lane.waiting:
                waiter, _ = lane.waiting.popitem(last=False)
                trio.lowlevel.reschedule(waiter.task, outcome.Error(trio.ClosedResourceError("the batcher is closed")))

    # -- what lanes and deliveries tell ------------------------------------------------------------------------

    def sealed(self, lane: Lane) -> None:
        """Places in a lane's queue became free."""
        self._pressed.discard(lane)
        if lane.waiting:
            self._serve(lane)
        self.keep_slots_busy()

    def settled(self, lane: Lane) -> None:
        """Bytes became free, of the lane and of the budget."""
        if self._byte_line:
            self._serve_byte_line()
        if lane.waiting:
            self._serve(lane)

    def keep_slots_busy(self) -> None:
        """A slot became free, or a lane can use one that could not before."""
        if self._byte_line:
            self._press_fullest()

    # -- the lines ---------------------------------------------------------------------------------------------

    def _serve(self, lane: Lane) -> None:
        """Admit a lane's waiting spans as far as there is room, and put the lane in the right line."""
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
            lane.press()
            return False
        if self._others_are_first(lane) or self._ledger.pending_bytes + cost > self._max_bytes:
            self._byte_line.setdefault(lane)
            self._press_fullest()
            return False
        self._admit(lane, waiter, cost)
        return True

    def _others_are_first(self, lane: Lane) -> bool:
        return bool(self._byte_line) and next(iter(self._byte_line)) is not lane

    def _serve_byte_line(self) -> None:
        """Admit one span of each lane in the line for bytes, in turns, as far as the budget goes."""
        while self._byte_line:
            lane = next(iter(self._byte_line))
            if not self._serve_first(lane) and lane in self._byte_line:
                return
            self._byte_line.pop(lane, None)
            if lane.waiting:
                self._serve_first_or_stand_last(lane)

    def _serve_first_or_stand_last(self, lane: Lane) -> None:
        if self._byte_line:
            self._serve_first(lane)
        else:
            self._serve(lane)

    def _admit(self, lane: Lane, waiter: Waiter, cost: int) -> None:
        del lane.waiting[waiter]
        lane.accept(waiter.span, cost)
        trio.lowlevel.reschedule(waiter.task)

    def _withdraw(self, lane: Lane, waiter: Waiter) -> None:
        was_first = next(iter(self._byte_line), None) is lane
        del lane.waiting[waiter]
        if not (was_first and lane.waiting):
            self._serve(lane)
        # The lane's next adder has its turn here, one like everybody's: in `_serve` all of them would come first.
        self._serve_byte_line()

    # -- pressing ----------------------------------------------------------------------------------------------

    def _press_fullest(self) -> None:
        """Make as many lanes due as there are free slots, unless some are pressed already and not sealed yet."""
        now = trio.current_time()
        self._pressed = {lane for lane in self._pressed if lane.could_export(now)}
        free = self._shared.slots.free
        if self._pressed or not free:
            return
        ready = []
        for lane in self._shared.lanes:
            if lane.could_export(now):
                ready.append(lane)
            elif lane.could_export_after_backoff():
                lane.press()
        for lane in heapq.nlargest(free, ready, key=Lane.queued_bytes):
            self._pressed.add(lane)
            lane.press()
