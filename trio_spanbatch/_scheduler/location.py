"""A location: its memory channel and its batches.

A location is not a task. The driver looks at it (`Lane.step`) when the agenda says so, and any change of its state
moves that time (`Lane.reconsider`). So a batch in a quiet location takes two looks: for the first span, and for the
deadline (or a full batch, a flush, the drain). If no slot is free then, the location waits for one (`ExportSlots`), and
a third look comes with the slot.

A look does these, in this order, until there is nothing to do:

1. give a slot to the oldest delivery that waits for its next attempt;
2. seal the first batch in the queue, if it is due, and start its delivery;
3. end, if the location has been empty for ``location_idle_timeout``.

1 and 2 require that the location's concurrency and backoff allow an export (`Pace`), and one of the slots that all
locations share. Only a running export holds a slot, and for a moment before it the location that is about to begin it:
never a backoff, nor any other wait.

`BatchSplitter` decides where batches end as spans are accepted.
"""

from __future__ import annotations

import math
from collections import OrderedDict
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
from .slots import RetryQueue
from .splitter import BatchSplitter

if TYPE_CHECKING:
    from .admission import Waiter

__all__ = ["Lane"]


class Lane:
    """One live location.

    Attributes:
        location: Its name.
        account: Its counts, which outlive this object.
        waiting: The adders that wait for space here, first in, first out.
        headers: The headers of the span accepted last; None if no span is pending.
        look_at: When the driver looks at it next; `-math.inf` once it has ended. Only the agenda changes it before.
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
        max_spans = min(policy.max_spans, limits.max_queued_spans)
        self._splitter = BatchSplitter(max_spans, policy.max_bytes, trio.current_time)
        self._send, self._receive = trio.open_memory_channel[EncodedSpan](limits.max_queued_spans)
        self.look_at = math.inf
        self._leases: dict[Lease, None] = {}
        self._leased_bytes = 0
        # Made when a delivery first waits for its next attempt, as most locations never need it.
        self._retries: RetryQueue | None = None
        self._flushes: dict[LocationFlush, Flush] = {}
        self._flush_watermark = 0
        self._made_due = False
        self._closed = False
        self._ended = False
        self._idle_since = trio.current_time()
        self._has_slot = False

    def __repr__(self) -> str:
        return f"<Lane {self.location!r}: {self.account.queued} queued, {self.account.in_flight} in flight>"

    # -- events, each handled in one synchronous step ----------------------------------------------------------

    def accept(self, span: EncodedSpan, cost: int) -> None:
        """Queue a span that fits. ``cost`` is its cost after the span before it."""
        account = self.account
        is_first = not account.queued
        if is_first:
            self._shared.lanes.occupied(self)
        # Nothing below raises: the channel is as large as the queue may be, and no span is admitted to a location that
        # was closed or has ended.
        self._ledger.accept(account, cost)
        self.headers = span.headers
        became_full = self._splitter.add(span)
        self._send.send_nowait(span)
        if became_full or is_first:
            self.reconsider()

    def make_due(self) -> None:
        """Make the first batch due, if there is one, as an adder waits for its bytes."""
        self._made_due = self.account.queued > 0
        self.reconsider()

    def flush(self, flush: Flush) -> LocationFlush:
        """Make all queued spans due, and tell ``flush`` when all pending spans are accounted for."""
        self._flush_watermark = self.account.accepted
        part = flush.watch(self.location, self.account)
        self._flushes[part] = flush
        self.reconsider()
        return part

    def forget_flush(self, part: LocationFlush) -> None:
        """Stop telling the flush of ``part``. Spans that are due stay due."""
        self._flushes.pop(part, None)

    def close(self) -> None:
        """Make all queued spans due, and end once no span is pending."""
        self._closed = True
        self._send.close()
        self.pace.cut_short(trio.current_time())
        self.reconsider()

    def reconsider(self) -> None:
        """Have the driver look at the location in time after a change of state."""
        if not self._ended:
            self._shared.agenda.put(self, self._wake_at())

    def take_slot(self) -> None:
        """Take an export slot that became free, and have the driver use it."""
        self._has_slot = True
        self.reconsider()

    # -- queries -----------------------------------------------------------------------------------------------

    def queued_bytes(self) -> int:
        """Return the number of queued bytes."""
        return self.account.pending_bytes - self._leased_bytes

    def could_export(self, now: float) -> bool:
        """Return whether an export would begin now if the first batch in the queue were due."""
        return bool(self.account.queued) and not self._retries and self._allowed_at() <= now

    def could_export_after_backoff(self) -> bool:
        """Return whether it would once the location's backoff has ended."""
        return bool(self.account.queued) and not self._retries and self._allowed_at() < math.inf

    def statistics(self) -> LocationStatistics:
        """Return a snapshot of the location's counts."""
        opened_at = [lease.opened_at for lease in self._leases]
        if (queued_since := self._splitter.oldest_opened_at) is not None:
            opened_at.append(queued_since)
        now = trio.current_time()
        return self.account.statistics(now - min(opened_at, default=now))

    # -- what the driver does ----------------------------------------------------------------------------------

    def step(self) -> None:
        """Do everything that there is to do now, and put the location on the agenda for what comes next."""
        while self._end_at() > trio.current_time():
            if self._is_hopeless():
                self._give_up()
                continue
            look_at = self._wake_at()
            if not self._has_slot:
                self._shared.agenda.put(self, look_at)
                return
            self._use_slot()
        self.end()

    def end(self) -> None:
        """End the location, and hand back its queue. Has no effect if it has ended."""
        if self._ended:
            return
        self._ended = True
        self.look_at = -math.inf
        self._shared.over_share.pop(self, None)
        self._shared.slots.leave(self)
        if self._has_slot:
            self._has_slot = False
            self._release_slot()
        self._shared.lanes.remove(self)
        self._hand_back_queue(self._shared.stop_reason)
        self._send.close()
        self._receive.close()

    def _wake_at(self) -> float:
        """Return when there will be something to do, as far as is known. Take a slot if it can be used now."""
        if self._is_over_share():
            # Woken once a slot can be spared.
            self._shared.over_share[self] = None
        else:
            self._shared.over_share.pop(self, None)
        if self._is_hopeless() or self._has_slot:
            return -math.inf
        export_at = self._export_at()
        if export_at > trio.current_time():
            self._shared.slots.leave(self)
        elif self._shared.slots.try_take(self):
            self._has_slot = True
            return -math.inf
        else:
            # Woken once a slot is given back.
            export_at = math.inf
        return min(export_at, self._end_at())

    def _export_at(self) -> float:
        """Return when an export may begin; `math.inf` if there is nothing to export."""
        if not (self._retries or self.account.queued):
            return math.inf
        return self._allowed_at() if self._retries else max(self._due_at(), self._allowed_at())

    def _allowed_at(self) -> float:
        """Return when the location may begin another export; `math.inf` if a running export must end first."""
        return math.inf if self._is_over_share() else self.pace.next_at()

    def _is_over_share(self) -> bool:
        return 0 < self.pace.active < self.pace.allowed and not self._shared.has_slot_to_spare(taken=self._has_slot)

    def _end_at(self) -> float:
        """Return when the location ends if nothing happens until then."""
        if self.account.pending or self.waiting:
            return math.inf
        return -math.inf if self._closed else self._idle_since + self._shared.limits.location_idle_timeout

    def _due_at(self) -> float:
        opened_at = self._splitter.oldest_opened_at
        assert opened_at is not None, "a non-empty queue has a batch"
        flushed = self.account.first_queued < self._flush_watermark
        if self._closed or self._made_due or flushed or self._splitter.has_full:
            return opened_at
        return opened_at + self._max_delay

    def _use_slot(self) -> None:
        """Begin an export, or give the slot back if there is nothing to export any more."""
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
        """Let a delivery begin an export, with the slot."""
        self._shared.exporting += not self.pace.active
        self.pace.active += 1
        # One location fewer may need a slot to be kept free.
        self._shared.offer_spare_slot()
        if self._retries:
            self._retries.start_first()
            self._shared.admission.keep_slots_busy()
        else:
            delivery = Delivery(self._seal(), self, self._shared)
            self._shared.start(delivery.run, f"trio_spanbatch delivery to {self.location!r}")

    # -- batches -----------------------------------------------------------------------------------------------

    def _seal(self) -> Lease:
        """Move the first batch from the queue into a lease."""
        first = self.account.first_queued
        queued = self._splitter.pop()
        spans = [self._receive.receive_nowait() for _ in range(queued.count)]
        # As when the spans were accepted: they leave the queue in the same order.
        before, self._sealed_headers = self._sealed_headers, spans[-1].headers
        batch = SpanBatch(self.location, spans, size=queued.size)
        lease = Lease(batch, first, queued.opened_at, before, cost_of(spans, before))
        self._ledger.seal(self.account, queued.count)
        self._lease(lease)
        self._made_due = False
        self._shared.admission.sealed(self)
        return lease

    def _lease(self, lease: Lease) -> None:
        self._leases[lease] = None
        self._leased_bytes += lease.cost

    def replace(self, lease: Lease, parts: tuple[Lease, ...]) -> None:
        """Replace a lease that was split by its parts."""
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
                # At the end of the drain there is a summary.
                self._shared.health.handed_back(self.location, settlement.undelivered, reason)
            losses.report(Loss(self.location, lease.batch, "undelivered", reason, code, count=settlement.undelivered))

    # -- deliveries --------------------------------------------------------------------------------------------

    @property
    def largest_request(self) -> float:
        """The size of the largest request to send, in bytes, learned from refusals; `math.inf` without any."""
        return self._request_size.limit

    def export_begins(self, lease: Lease) -> None:
        """Note that a delivery begins an export, with its slot."""
        self.account.requests += 1
        self.account.retries += lease.attempts > 0
        lease.attempts += 1

    def export_ended(self, lease: Lease, result: ExportResult | None) -> None:
        """Note that an export ended, without a result if it was cancelled or raised. Its slot is given back."""
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
        """Back off after a temporary failure. Return when the backoff ends."""
        self.pace.back_off(trio.current_time(), after, self._shared.drain_deadline)
        self.reconsider()
        self._shared.admission.keep_slots_busy()
        return self.pace.retry_at

    async def wait_for_retry(self, lease: Lease, give_up_at: float) -> bool:
        """Wait for the next attempt of a delivery, and for its slot.

        Returns:
            False, without a slot, if there will be no attempt before ``give_up_at`` and the end of the drain.
        """
        if self._retries is None:
            self._retries = RetryQueue(self.reconsider, self._release_export)
        return await self._retries.wait(lease, give_up_at)

    # -- giving up ---------------------------------------------------------------------------------------------

    def _is_hopeless(self) -> bool:
        """Return whether spans wait for a backoff that ends after the drain."""
        return (
            self._shared.draining
            and self.pace.retry_at >= self._shared.drain_deadline
            and bool(self._retries or self.account.queued)
        )

    def _give_up(self) -> None:
        if self._retries is not None:
            self._retries.cancel_all()
        self._hand_back_queue("the location backs off beyond the shutdown deadline")

    def _hand_back_queue(self, reason: str) -> None:
        while self.account.queued:
            lease = self._seal()
            self._shared.tell_observers(methodcaller("handed_back", len(lease)))
            self.settle(lease, Settlement(undelivered=len(lease), reason=reason))
