"""A lane: one location's memory channel, its task and its batches.

The task sleeps until there is something to do, and whoever changes what there is to do moves its alarm clock
(`Lane.reconsider`). It never has to be told *what* changed: each time it wakes, it looks at the lane's whole state
again and decides from that alone, and there is no checkpoint between looking and falling asleep. So no wake-up can be
lost. There are two sleeps: inside ``receive`` while the lane holds nothing, which the first span ends; and with an
absolute deadline otherwise. For a batch in a quiet lane that makes two wake-ups, the first span and the deadline (or
the batch getting full, a flush, the drain). A third comes if no slot is free at the deadline: then the lane stands in
the line for slots (`ExportSlots`) and is woken when it has one.

What there is to do, in this order:

1. a delivery of this location that waits for its next attempt gets a slot, the oldest first;
2. the first batch in the queue is sealed, if it is due, and a delivery starts with it;
3. a lane that held nothing for ``location_idle_timeout`` ends.

1 and 2 wait for the location's pace (`Pace`: not backing off, not too many exports at once) and for one of the slots
that all locations share. A slot is held by an export that is running, and for the moment before that by the lane that
takes it and wakes to begin one; never during a backoff, and never while waiting for anything else.

The first span of a batch comes out of ``receive`` and stays in ``_first`` until the batch is sealed; it counts as
queued all the while. The cuts between batches are made on the way in, see `BatchCutter`.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from contextlib import suppress
from http import HTTPStatus
from operator import methodcaller
from typing import TYPE_CHECKING

import trio

from .._exporter import Delivered, ExportResult, Refused, TryLater
from .._reporting.statistics import LocationStatistics, Loss, Settlement
from .._runtime.delivery import Delivery
from .._settings.policies import BatchPolicy
from .._spans.batch import EncodedSpan, SpanBatch, SpanHeaders, cost_of
from .flush import Flush, LocationFlush
from .ledger import Lease
from .pace import Pace, RequestSizeLimit
from .shared import Shared
from .slots import Turns
from .splitter import BatchCutter

if TYPE_CHECKING:
    from .admission import Waiter

__all__ = ["Lane"]


def _wake(_: object) -> trio.lowlevel.Abort:
    return trio.lowlevel.Abort.SUCCEEDED


class Lane:
    """One live location.

    Attributes:
        location: Its name.
        account: Its counts, which outlive the lane.
        waiting: The adders that wait for room here, first come first.
        headers: Those of the span that was accepted last; None if nothing is pending.
    """

    def __init__(self, location: str, policy: BatchPolicy, shared: Shared) -> None:
        limits = shared.limits
        self.location = location
        self.account = shared.ledger.open(location)
        self.waiting: OrderedDict[Waiter, None] = OrderedDict()
        self.pace = Pace(shared.retry, shared.rng, self.account, limits.max_exports_per_location)
        self._shared = shared
        self.headers: SpanHeaders | None = None
        self._sealed_headers: SpanHeaders | None = None
        self._ledger = shared.ledger
        self._request_size = RequestSizeLimit()
        self._max_delay = policy.max_delay
        self._cutter = BatchCutter(min(policy.max_spans, limits.max_queued_spans), policy.max_bytes, trio.current_time)
        self._send, self._receive = trio.open_memory_channel[EncodedSpan](limits.max_queued_spans)
        self._first: EncodedSpan | None = None
        self._leases: dict[Lease, None] = {}
        self._leased_bytes = 0
        # Made when a delivery waits for its next attempt; most lanes never need it.
        self._turns: Turns | None = None
        self._flushes: dict[LocationFlush, Flush] = {}
        self._flush_watermark = 0
        self._pressed = False
        self._closed = False
        self._retired = False
        self._idle_since = trio.current_time()
        self._sleep: trio.CancelScope | None = None
        self._has_slot = False

    def __repr__(self) -> str:
        return f"<Lane {self.location!r}: {self.account.queued} queued, {self.account.in_flight} in flight>"

    # -- what others do to a lane, each in one synchronous step ------------------------------------------------

    def accept(self, span: EncodedSpan, cost: int) -> None:
        """Put a span that fits into the queue. ``cost`` is what it costs after the one before it."""
        account = self.account
        if not account.queued:
            self._shared.lanes.occupied(self)
        # Nothing from here on raises: the channel is as large as the queue may be, and a lane that was closed or
        # retired is not asked. Counted before it is enqueued, so that whoever the span wakes finds it counted.
        self._ledger.accept(account, cost)
        self.headers = span.headers
        became_full = self._cutter.add(span)
        self._send.send_nowait(span)
        if became_full:
            self.reconsider()

    def press(self) -> None:
        """Make the first batch due, if there is one: somebody waits for its bytes."""
        self._pressed = self.account.queued > 0
        self.reconsider()

    def flush(self, flush: Flush) -> None:
        """Make all that is queued now due, and tell ``flush`` when it is accounted for."""
        self._flush_watermark = self.account.accepted
        self._flushes[flush.watch(self.location, self.account)] = flush
        self.reconsider()

    def forget_flush(self, flush: Flush) -> None:
        """Stop telling ``flush``. What is due stays due."""
        self._flushes = {part: other for part, other in self._flushes.items() if other is not flush}

    def close(self) -> None:
        """End the lane once nothing is pending; all that is queued is due."""
        self._closed = True
        self._send.close()
        self.pace.cut_short(trio.current_time())
        self.reconsider()

    def retire(self) -> None:
        """End the lane now. It holds nothing, and its location may have another one before its task ends.

        The two share an account, so a retired lane does not look at it any more.
        """
        self._retired = True
        self._send.close()
        self.reconsider()

    def reconsider(self) -> None:
        """Let the task wake when there is something to do, now that something has changed."""
        if self._sleep is not None:
            self._sleep.deadline = self._wake_at()

    def take_slot(self) -> None:
        """Have an export slot that became free, and wake to use it."""
        self._has_slot = True
        self.reconsider()

    # -- what others ask ---------------------------------------------------------------------------------------

    def queued_bytes(self) -> int:
        """Return the bytes that are queued."""
        return self.account.pending_bytes - self._leased_bytes

    def could_export(self, now: float) -> bool:
        """Return whether an export would begin now if the first batch in the queue were due."""
        return bool(self.account.queued) and not self._turns and self._pace_at() <= now

    def could_export_after_backoff(self) -> bool:
        """Return the same for the time when the location's backoff has ended."""
        return bool(self.account.queued) and not self._turns and self._pace_at() < math.inf

    def statistics(self) -> LocationStatistics:
        """Return a snapshot of the lane's counts."""
        opened_at = [lease.opened_at for lease in self._leases]
        if (queued_since := self._cutter.oldest_opened_at) is not None:
            opened_at.append(queued_since)
        now = trio.current_time()
        return self.account.statistics(now - min(opened_at, default=now))

    # -- the task ----------------------------------------------------------------------------------------------

    @trio.lowlevel.enable_ki_protection
    async def run(self) -> None:
        """Live until the lane ended, or hand back the queue when cancelled."""
        try:
            while self._end_at() > trio.current_time():
                if self._is_hopeless():
                    self._give_up()
                    continue
                wake_at = self._wake_at()
                if self._has_slot:
                    self._use_slot()
                else:
                    await self._sleep_until(wake_at)
        except BaseException as exc:
            self._shared.task_failed(exc)
            raise
        finally:
            self._end()

    def _end(self) -> None:
        # Nobody wakes it from now on, so it takes no slot any more: a cancelled sleep has left its scope here.
        self._sleep = None
        self._shared.crowded_out.pop(self, None)
        self._shared.slots.leave(self)
        if self._has_slot:
            self._has_slot = False
            self._release_slot()
        if not self._retired:
            self._shared.lanes.remove(self)
            self._hand_back_queue(self._shared.stop_reason)
        self._send.close()
        self._receive.close()

    def _wake_at(self) -> float:
        """Return when there will be something to do, as far as is known. Take a slot if one can be used now."""
        if self._is_crowded_out():
            # Then it is not known: whoever makes a slot spare wakes the lanes that stand here.
            self._shared.crowded_out[self] = None
        else:
            self._shared.crowded_out.pop(self, None)
        if self._is_hopeless() or self._has_slot:
            return -math.inf
        export_at = self._export_at()
        if export_at > trio.current_time():
            self._shared.slots.leave(self)
        elif self._shared.slots.try_take(self):
            self._has_slot = True
            return -math.inf
        else:
            # It is not known when there will be a slot: whoever gives one back wakes this lane.
            export_at = math.inf
        return min(export_at, self._end_at())

    def _export_at(self) -> float:
        """Return when an export may begin; `math.inf` if there is none to make."""
        if self._retired or not (self._turns or self.account.queued):
            return math.inf
        return self._pace_at() if self._turns else max(self._due_at(), self._pace_at())

    def _pace_at(self) -> float:
        """Return when the location's pace lets another export begin; `math.inf` if one of its own has to end before."""
        return math.inf if self._is_crowded_out() else self.pace.next_at()

    def _is_crowded_out(self) -> bool:
        return 0 < self.pace.active < self.pace.allowed and not self._shared.has_slot_to_spare(taken=self._has_slot)

    def _end_at(self) -> float:
        """Return when the lane ends, if nothing happens until then."""
        if self._retired:
            return -math.inf
        if self.account.pending or self.waiting:
            return math.inf
        return -math.inf if self._closed else self._idle_since + self._shared.limits.location_idle_timeout

    def _due_at(self) -> float:
        opened_at = self._cutter.oldest_opened_at
        assert opened_at is not None, "a queue that holds spans has a batch"
        flushed = self.account.first_queued < self._flush_watermark
        if self._closed or self._pressed or flushed or self._cutter.has_full:
            return opened_at
        return opened_at + self._max_delay

    async def _sleep_until(self, time: float) -> None:
        # As few coroutines as can be: there may be ten thousand lanes that sleep here, and each coroutine is an object
        # that the garbage collector looks at.
        with trio.CancelScope(deadline=time) as self._sleep:
            if self._closed or self.account.queued:
                await trio.lowlevel.wait_task_rescheduled(_wake)
            else:
                # If it was closed meanwhile, whoever looks next decides what there is to do.
                with suppress(trio.EndOfChannel):
                    self._first = await self._receive.receive()
        self._sleep = None

    def _use_slot(self) -> None:
        """Begin an export, or give the slot back if there is none to make any more."""
        can_export = self._export_at() <= trio.current_time()
        self._has_slot = False
        if can_export:
            self._export()
        else:
            self._release_slot()

    def _release_export(self) -> None:
        self.pace.active -= 1
        self._shared.exporting -= not self.pace.active
        self._release_slot()

    def _release_slot(self) -> None:
        self._shared.slots.give_back()
        self._shared.offer_spare_slot()
        self._shared.admission.keep_slots_busy()

    def _export(self) -> None:
        """Let a delivery begin an export. The slot is its own from now on."""
        self._shared.exporting += not self.pace.active
        self.pace.active += 1
        # That may be one location less to keep a slot free for.
        self._shared.offer_spare_slot()
        if self._turns:
            self._turns.give_first()
            self._shared.admission.keep_slots_busy()
        else:
            delivery = Delivery(self._seal(), self, self._shared)
            self._shared.start(delivery.run, f"trio_spanbatch delivery to {self.location!r}")

    # -- batches -----------------------------------------------------------------------------------------------

    def _seal(self) -> Lease:
        """Take the first batch out of the queue."""
        first = self.account.first_queued
        cut = self._cutter.pop()
        spans = self._take(cut.count)
        # What they cost when they were accepted: they leave the queue in the order in which they came.
        before, self._sealed_headers = self._sealed_headers, spans[-1].headers
        batch = SpanBatch(self.location, spans, size=cut.size)
        lease = Lease(batch, first, cut.opened_at, before, cost_of(spans, before))
        self._ledger.seal(self.account, cut.count)
        self._lease(lease)
        self._pressed = False
        self._shared.admission.sealed(self)
        return lease

    def _take(self, count: int) -> list[EncodedSpan]:
        receive = self._receive.receive_nowait
        if self._first is None:
            return [receive() for _ in range(count)]
        first, self._first = self._first, None
        return [first, *(receive() for _ in range(count - 1))]

    def _lease(self, lease: Lease) -> None:
        self._leases[lease] = None
        self._leased_bytes += lease.cost

    def replace(self, lease: Lease, parts: tuple[Lease, ...]) -> None:
        """Go on with ``parts`` in place of a lease that was cut in two."""
        self.account.splits += 1
        del self._leases[lease]
        self._leased_bytes -= lease.cost
        for part in parts:
            self._lease(part)

    def settle(self, lease: Lease, settlement: Settlement) -> None:
        """Account for all spans of a lease."""
        del self._leases[lease]
        self._leased_bytes -= lease.cost
        self._ledger.settle(self.account, lease, settlement)
        self._note_flushes(lease, settlement)
        if not self.account.pending:
            self.headers = self._sealed_headers = None
            self._idle_since = trio.current_time()
            self._shared.lanes.emptied(self)
        self._shared.admission.settled(self)
        self.reconsider()
        self._report(lease, settlement)

    def _note_flushes(self, lease: Lease, settlement: Settlement) -> None:
        for part, flush in tuple(self._flushes.items()):
            part.note(lease, settlement)
            if not part.remaining:
                del self._flushes[part]
                flush.finished()

    def _report(self, lease: Lease, settlement: Settlement) -> None:
        losses, reason, code = self._shared.losses, settlement.reason, settlement.status_code
        if settlement.rejected:
            self._shared.health.rejected(self.location, settlement.rejected, reason)
            losses.report(Loss(self.location, lease.batch, "rejected", reason, code, count=settlement.rejected))
        if settlement.undelivered:
            if not self._shared.draining:
                # The end of the drain has a summary of its own.
                self._shared.health.handed_back(self.location, settlement.undelivered, reason)
            losses.report(Loss(self.location, lease.batch, "undelivered", reason, code, count=settlement.undelivered))

    # -- deliveries --------------------------------------------------------------------------------------------

    @property
    def largest_request(self) -> float:
        """How large a request may be, in bytes, as far as the server's refusals tell."""
        return self._request_size.limit

    def export_begins(self, lease: Lease) -> None:
        """A delivery begins an export, with a slot of its own."""
        self.account.requests += 1
        self.account.retries += lease.attempts > 0
        lease.attempts += 1

    def export_ended(self, lease: Lease, result: ExportResult | None) -> None:
        """A delivery's export ended, without a result if it was cancelled or raised. Its slot is free again."""
        if isinstance(result, Delivered):
            self._note_success(lease, result)
        else:
            self._note_failure(lease, result)
        self._release_export()
        self.reconsider()

    def _note_success(self, lease: Lease, result: Delivered) -> None:
        self.pace.succeeded(trio.current_time())
        self.account.consecutive_failures = 0
        self.account.refuses_everything = False
        self._request_size.passed(lease.batch.size)
        if result.rejected <= 0:
            self._shared.health.succeeded(self.location)

    def _note_failure(self, lease: Lease, result: TryLater | Refused | None) -> None:
        self.pace.failed()
        self.account.consecutive_failures += 1
        if result is not None:
            self._shared.health.failed(self.location, result.reason)
        if isinstance(result, Refused) and result.status_code == HTTPStatus.REQUEST_ENTITY_TOO_LARGE:
            self._request_size.refused(lease.batch.size)

    def back_off(self, after: float | None) -> float:
        """Hold the location back after a failure that may pass. Return when it will be asked again."""
        self.pace.back_off(trio.current_time(), after, self._shared.drain_deadline)
        self.reconsider()
        self._shared.admission.keep_slots_busy()
        return self.pace.retry_at

    async def wait_for_turn(self, lease: Lease, give_up_at: float) -> bool:
        """Wait until a delivery may make its next attempt, and have a slot for it.

        Returns:
            False if ``give_up_at`` came first, or there will be no turn before the drain's end. Then there is no slot.
        """
        if self._turns is None:
            self._turns = Turns(self.reconsider, self._release_export)
        return await self._turns.wait(lease, give_up_at)

    # -- giving up ---------------------------------------------------------------------------------------------

    def _is_hopeless(self) -> bool:
        """Return whether the location must not be asked again before the drain ends."""
        return (
            self._shared.draining
            and self.pace.retry_at >= self._shared.drain_deadline
            and bool(self._turns or self.account.queued)
        )

    def _give_up(self) -> None:
        if self._turns is not None:
            self._turns.end_all()
        self._hand_back_queue("the location backs off beyond the shutdown deadline")

    def _hand_back_queue(self, reason: str) -> None:
        while self.account.queued:
            lease = self._seal()
            self._shared.tell_observers(methodcaller("handed_back", len(lease)))
            self.settle(lease, Settlement(undelivered=len(lease), reason=reason))
