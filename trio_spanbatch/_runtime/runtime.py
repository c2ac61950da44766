"""The state that the tasks of one batcher share, and the execution of its scheduler's orders."""

from __future__ import annotations

from collections.abc import Callable
from operator import methodcaller
from typing import Literal, TypeVar
from weakref import WeakKeyDictionary

import attrs
import outcome
import trio

from .._errors import UndeliveredSpansError
from .._exceptions import leaves, split_cancelled
from .._exporter import HandsBack, SpanExporter
from .._reporting.health_log import HealthLog
from .._reporting.hooks import DeliveryObserver, Feeder
from .._reporting.log import Log
from .._reporting.losses import Losses
from .._reporting.statistics import Loss, Settlement
from .._scheduler.flush import Flush
from .._scheduler.location import Lease, Location, Waiter
from .._scheduler.orders import Admit, HandBack, LogEndpoint, Lost, Order, Repeat, SpoolOrder, Start, Wake
from .._scheduler.scheduler import Scheduler
from .._spans.batch import EncodedSpan, SpanBatch

_Listener = TypeVar("_Listener")


@attrs.define(eq=False)
class Runtime:
    """The state that the tasks of one batcher share.

    Attributes:
        exporter: Sends the batches.
        scheduler: The scheduler.
        logger: The logger for messages.
        losses: Reports spans that were not delivered.
        health: Logs failing and recovering locations.
        start_delivery: Starts the task of a delivery, in the batcher's context; it ends with the drain at the latest.
        wake: Wakes the driver. Must not be called on the program's stack.
        thread_id: The id of the thread whose trio run may add spans; None while admission is closed.
        stopped: Whether the tasks end without a drain.
        is_torn: Whether the driver has failed, so that flushes do not end by themselves.
        stop_reason: The reason for spans that are handed back because deliveries are stopped.
        stop_cause: The same in one word, for metrics.
        feeders: Bring in spans from outside.
        observers: Watch deliveries.
        adders: The tasks of waiting adders.
        flushes: The flushes that wait.
        retries: The leases whose deliveries wait for their next attempt.
        spool: Begins to carry out an order to the spool.
        reason_to_hand_back: The exporter's method, if it has one (see `HandsBack`).
    """

    exporter: SpanExporter
    scheduler: Scheduler
    logger: Log
    losses: Losses
    health: HealthLog
    start_delivery: Callable[[Lease], None]
    wake: Callable[[], None]
    thread_id: int | None = None
    stopped: bool = False
    is_torn: bool = False
    stop_reason: str = "the batcher was stopped"
    stop_cause: str = "Cancelled"
    feeders: list[Feeder] = attrs.Factory(list)
    observers: list[DeliveryObserver] = attrs.Factory(list)
    adders: dict[Waiter, trio.lowlevel.Task] = attrs.Factory(dict)
    flushes: WeakKeyDictionary[Flush, trio.Event] = attrs.Factory(WeakKeyDictionary)
    retries: dict[Lease, trio.Event] = attrs.Factory(dict)
    spool: Callable[[SpoolOrder], None] = attrs.field(init=False)
    # Looked up once, as an isinstance check against a protocol takes 10 us, and this is needed for each attempt.
    reason_to_hand_back: Callable[[str], str | None] | None = attrs.field(init=False)

    @reason_to_hand_back.default
    def _reason_to_hand_back_of_exporter(self) -> Callable[[str], str | None] | None:
        return self.exporter.reason_to_hand_back if isinstance(self.exporter, HandsBack) else None

    # -- orders ------------------------------------------------------------------------------------------------

    def carry_out_orders(self) -> None:
        """Carry out the scheduler's orders, oldest first."""
        outbox = self.scheduler.outbox
        while outbox:
            order = outbox[0]
            if isinstance(order, HandBack):
                settlement = Settlement(undelivered=len(order.lease), reason=order.reason)
                now = trio.current_time()
                is_kept = not order.for_good and self.scheduler.keep(order.lease, settlement, now)
                if not is_kept:
                    self.scheduler.settled(order.lease, settlement, now)
                outbox.popleft()
                if not is_kept:
                    self.tell_observers("handed_back", len(order.lease))
                    self.report(order.lease, settlement)
            else:
                self._carry_out(order)
                outbox.popleft()

    def _carry_out(self, order: Order) -> None:
        if isinstance(order, Start):
            self.start_delivery(order.lease)
        elif isinstance(order, Admit):
            if (task := self.adders.pop(order.waiter, None)) is not None:
                trio.lowlevel.reschedule(task)
        elif isinstance(order, Repeat):
            if (retry := self.retries.get(order.lease)) is not None:
                retry.set()
        elif isinstance(order, LogEndpoint):
            self.health.endpoint_changed(order.name, order.reason, order.attempts, order.seconds, is_up=order.is_up)
        elif isinstance(order, Wake):
            if (done := self.flushes.get(order.flush)) is not None:
                done.set()
        elif isinstance(order, Lost):
            self.scheduler.lost(order, trio.current_time())
            self.tell_observers("handed_back", len(order.piece))
            lost = SpanBatch(order.name, ())
            self.losses.report(Loss(order.name, lost, "undelivered", order.reason, count=len(order.piece)))
        elif not isinstance(order, HandBack):
            self.spool(order)

    def settle(self, lease: Lease, settlement: Settlement) -> None:
        """Account for the spans of a lease, and report those that were not delivered."""
        now = trio.current_time()
        is_kept = self.scheduler.keep(lease, settlement, now)
        if is_kept:
            self.tell_observers("kept", len(lease))
        else:
            self.scheduler.settled(lease, settlement, now)
            self.tell_observers("settled", settlement)
        self.wake()
        if not is_kept:
            # Last, as on_loss may take long.
            self.report(lease, settlement)

    def report(self, lease: Lease, settlement: Settlement) -> None:
        """Report spans that were not delivered. They must be accounted for: ``on_loss`` may use the batcher."""
        location, reason, code = lease.batch.location, settlement.reason, settlement.status_code
        if settlement.rejected:
            self.health.rejected(location, settlement.rejected, reason)
            self.losses.report(Loss(location, lease.batch, "rejected", reason, code, count=settlement.rejected))
        if settlement.undelivered:
            if not self.scheduler.draining:
                # The drain ends with a summary.
                self.health.handed_back(location, settlement.undelivered, reason)
            self.losses.report(Loss(location, lease.batch, "undelivered", reason, code, count=settlement.undelivered))

    def losses_as_error(self) -> UndeliveredSpansError | None:
        """Return an error that counts all losses so far, with their reasons; None if there are none."""
        total, reasons = self.scheduler.ledger.total, self.losses.reasons
        if not total.rejected and not total.undelivered:
            return None
        why: dict[Literal["rejected", "undelivered"], dict[str, int]] = {
            "rejected": reasons("rejected"),
            "undelivered": reasons("undelivered"),
        }
        return UndeliveredSpansError(total.rejected, total.undelivered, why)

    # -- waiting -----------------------------------------------------------------------------------------------

    async def wait_until_admitted(self, location: Location, span: EncodedSpan) -> bool:
        """Wait until a span is admitted. If this is cancelled, the span was not admitted.

        Returns:
            False if the location was evicted before this could wait. This was then no checkpoint.

        Raises:
            trio.ClosedResourceError: The batcher was closed while this waited.
        """

        def abort(_: trio.lowlevel.RaiseCancelT) -> trio.lowlevel.Abort:
            if waiter not in (location.waiting or ()):
                # Admitted, and cancelled by what is called before the order to wake this task, such as ``on_loss``.
                return trio.lowlevel.Abort.FAILED
            self._withdraw(waiter)
            return trio.lowlevel.Abort.SUCCEEDED

        waiter = Waiter(location, span)
        try:
            self.adders[waiter] = trio.lowlevel.current_task()
            if not self.scheduler.admission.join(waiter):
                self._withdraw(waiter)
                return False
            await trio.lowlevel.wait_task_rescheduled(abort)
        except BaseException:
            # The waiter has not been withdrawn yet if an exception prevented the wait.
            self._withdraw(waiter)
            raise
        return True

    def _withdraw(self, waiter: Waiter) -> None:
        self.scheduler.admission.withdraw(waiter)
        self.adders.pop(waiter, None)

    async def wait_for_retry(self, lease: Lease, give_up_at: float) -> bool:
        """Wait until a delivery may make its next attempt, and for a slot. If this is cancelled, no slot is held.

        Returns:
            Whether it has a slot. It has none if there will be no attempt before ``give_up_at``, in seconds of trio's
            clock, and the drain's deadline.
        """
        decided = self.retries[lease] = trio.Event()
        self.scheduler.wants_retry(lease)
        self.wake()
        try:
            with trio.CancelScope(deadline=give_up_at):
                await decided.wait()
        except trio.Cancelled:
            if lease.may_repeat:
                # The slot was assigned after the cancel, before this task ran.
                self.scheduler.slot_unused(lease)
            raise
        finally:
            del self.retries[lease]
            self.scheduler.wants_no_retry(lease)
            self.wake()
        return lease.may_repeat

    async def wait_until_flushed(self, flush: Flush) -> None:
        """Wait until all spans of a flush are accounted for. This is always a checkpoint."""
        done = self.flushes[flush] = trio.Event()
        if flush.is_done or self.is_torn:
            done.set()
        await done.wait()
        if not flush.is_done:
            raise trio.ClosedResourceError("the batcher has failed: see its log")

    def abandon_flushes(self) -> None:
        """Have the flushes raise an error, as the driver has failed."""
        self.is_torn = True
        for done in self.flushes.values():
            done.set()

    def end_flushes(self) -> None:
        """End the flushes that wait for spans in the spool, as the batcher is left."""
        for flush, done in tuple(self.flushes.items()):
            flush.end()
            if flush.is_done:
                done.set()

    # -- listeners ---------------------------------------------------------------------------------------------

    def feed(self) -> None:
        """Have the feeders add the spans that they hold."""
        self._call_each(self.feeders, lambda feeder: feeder.feed(), "a feeder failed to add its spans")

    def end_feeding(self) -> None:
        """Tell the feeders that every span is accounted for."""
        self._call_each(self.feeders, lambda feeder: feeder.ended(), "a feeder failed when the batcher ended")

    def tell_observers(self, event: str, *args: object) -> None:
        """Call a method of each observer."""
        if self.observers:
            self._call_each(self.observers, methodcaller(event, *args), "an observer of deliveries failed")

    def _call_each(self, listeners: list[_Listener], call: Callable[[_Listener], None], message: str) -> None:
        for listener in tuple(listeners):
            try:
                call(listener)
            except BaseException as exc:  # noqa: ASYNC103  # a synchronous call raises no Cancelled of this task
                self.logger.caught(exc, message)

    # -- stopping ----------------------------------------------------------------------------------------------

    def close_admission(self) -> None:
        """Stop admitting spans, and raise `trio.ClosedResourceError` in all waiting adders."""
        if self.thread_id is None:
            return
        self.thread_id = None
        for waiter in self.scheduler.close_admission():
            if (task := self.adders.pop(waiter, None)) is not None:
                closed = trio.ClosedResourceError("the batcher is closed")
                trio.lowlevel.reschedule(task, outcome.Error(closed))

    def stop(self, reason: str) -> None:
        """Close admission, because all tasks are about to end and to hand back their spans."""
        if not self.stopped:
            self.stopped, self.stop_reason = True, reason
        self.close_admission()

    def task_failed(self, exc: BaseException) -> None:
        """Stop because ``exc`` ends a task. To be called before the task hands back its spans."""
        _, failure = split_cancelled(exc)
        if failure is not None:
            self.stop(f"a task of the batcher failed with {type(leaves(failure)[0]).__name__}")
        self.close_admission()
