"""A delivery: sends a batch until all of its spans are accounted for.

It owns the batch as a lease, and always settles it: however the delivery's task ends, it settles the remaining spans,
so a cancelled delivery hands its spans back. If a server refuses the batch because of some spans, `Isolation` decides
which parts to send instead, each as a separate lease.

It starts with an export slot, and gives it back as soon as the attempt has ended, so that it does not occupy one during
a backoff. The scheduler assigns it another slot for the next attempt.
"""

from __future__ import annotations

import math

import trio

from .._exceptions import cause_of, fatal_part, is_cancelled_here, raise_for_open_nurseries, split_cancelled
from .._exporter import Delivered, ExportResult, Refused, TryLater, is_closed
from .._reporting.statistics import Settlement
from .._scheduler.isolation import Isolation, Verdict
from .._scheduler.location import Lease
from .runtime import Runtime


class _ExporterBug(Exception):
    """An exporter raised, or returned something other than a result. The message is the reason for the spans."""


class _GaveUp(Exception):
    """No further attempt is made. The message says why."""

    def __init__(self, reason: str, last: TryLater | None = None) -> None:
        super().__init__(reason)
        self.status_code = None if last is None else last.status_code


class Delivery:
    """The delivery of one batch."""

    def __init__(self, lease: Lease, runtime: Runtime) -> None:
        self._runtime = runtime
        self._scheduler = runtime.scheduler
        self._location = lease.location
        self._isolation = Isolation(lease, runtime.scheduler.split)
        self._has_slot = True
        self._first_attempt_at: float | None = None
        self._last_result: ExportResult | None = None
        self._last_loss: Settlement | None = None
        self._seconds = 0.0
        runtime.tell_observers("began", len(lease))

    @trio.lowlevel.enable_ki_protection
    async def run(self) -> None:
        """Deliver the batch. If this is cancelled, hand back the remaining spans."""
        try:
            if self._location.account.refuses_everything:
                self._isolation.probe_first()
            while (part := self._next_part()) is not None:
                for verdict in await self._deliver(part):
                    self._settle(*verdict)
            if self._isolation.refused_everything:
                self._location.account.refuses_everything = True
        except BaseException as exc:
            self._runtime.task_failed(exc)
            raise
        finally:
            for lease in tuple(self._isolation.open):
                reason = self._runtime.stop_reason
                self._settle(lease, Settlement(undelivered=len(lease), reason=reason, cause=self._cause()))
            self._tell_observers()
            if trio.lowlevel.in_trio_task() and trio.lowlevel.current_task().child_nurseries:
                self._runtime.stop("the exporter left a nursery open")
                raise_for_open_nurseries()

    # -- parts -------------------------------------------------------------------------------------------------

    def _next_part(self) -> Lease | None:
        """Return the part to send next, halved until it is within the location's request size limit."""
        part = self._isolation.next()
        while part is not None and len(part) > 1 and part.batch.size > self._location.pace.max_size:
            self._isolation.halve()
            part = self._isolation.next()
        return part

    def _settle(self, lease: Lease, settlement: Settlement) -> None:
        del self._isolation.open[lease]
        if settlement.delivered < len(lease):
            self._last_loss = settlement
        self._runtime.settle(lease, settlement)

    def _tell_observers(self) -> None:
        status_code = None if self._last_result is None else self._last_result.status_code
        self._runtime.tell_observers("ended", self._seconds, status_code, self._last_loss)

    def _cause(self) -> str:
        """Return the kind of the last attempt's failure, in one word; empty if there is none."""
        if self._first_attempt_at is None or isinstance(self._last_result, Delivered):
            return ""
        if self._last_result is None:
            return self._runtime.stop_cause
        return self._last_result.cause or str(self._last_result.status_code or "")

    async def _deliver(self, part: Lease) -> list[Verdict]:
        """Send a part until the server accepts or refuses it. Return the verdicts that follow from that."""
        try:
            result = await self._answer(part)
        except _GaveUp as exc:
            return self._isolation.given_up(
                Settlement(undelivered=len(part), reason=str(exc), status_code=exc.status_code, cause=self._cause())
            )
        except _ExporterBug as bug:
            cause = cause_of(bug.__cause__ or bug)
            return self._isolation.given_up(Settlement(undelivered=len(part), reason=str(bug), cause=cause))
        if isinstance(result, Refused):
            return self._isolation.refused(result, give_up=self._location.account.refuses_everything)
        if result.message and result.rejected <= 0:
            self._runtime.health.warned(part.batch.location, result.message)
        return self._isolation.passed(result)

    async def _answer(self, part: Lease) -> Delivered | Refused:
        """Send a part until the server accepts or refuses it, within the limits on retries."""
        while True:
            if not self._has_slot:
                await self._get_slot(part)
            self._give_up_if_asked(part)
            result = await self._attempt(part)
            if not isinstance(result, TryLater):
                return result
            self._give_up_if_asked(part, result)
            await self._wait_to_repeat(part, result)

    # -- attempts ----------------------------------------------------------------------------------------------

    async def _get_slot(self, part: Lease) -> None:
        """Wait for a slot."""
        if not await self._runtime.wait_for_retry(part, self._give_up_at):
            raise _GaveUp(self._why_no_retry())
        self._has_slot = True

    def _give_up_if_asked(self, part: Lease, last: TryLater | None = None) -> None:
        reason = self._reason_to_hand_back(part)
        if reason is None:
            return
        if self._has_slot:
            # Recorded as a failed attempt without a request, which gives back the slot.
            self._has_slot = False
            self._note_end(part, TryLater(reason), trio.current_time())
        raise _GaveUp(reason, last)

    def _reason_to_hand_back(self, part: Lease) -> str | None:
        if self._runtime.reason_to_hand_back is None:
            return None
        try:
            return self._runtime.reason_to_hand_back(part.batch.location)
        except Exception as exc:
            self._runtime.logger.caught(exc, "the exporter raised for %r", part.batch)
            return f"the exporter raised {type(exc).__name__}"

    async def _wait_to_repeat(self, part: Lease, result: TryLater) -> None:
        now = trio.current_time()
        backs_off_until = self._scheduler.back_off(self._location, result.after, now, self._give_up_at)
        asked_again_at = max(backs_off_until, now + (result.after or 0))
        is_in_time = asked_again_at <= self._give_up_at
        self._has_slot = is_in_time and await self._runtime.wait_for_retry(part, self._give_up_at)
        if not self._has_slot:
            raise _GaveUp(f"{self._why_no_retry()}: {result.reason}", result)

    @property
    def _give_up_at(self) -> float:
        began_at = self._first_attempt_at
        return math.inf if began_at is None else began_at + self._scheduler.retry.max_elapsed

    def _why_no_retry(self) -> str:
        if self._scheduler.draining and self._scheduler.drain_deadline <= self._give_up_at:
            return "no time for another attempt before the shutdown deadline"
        return "retries exhausted"

    async def _attempt(self, part: Lease) -> ExportResult:
        """Make one attempt in the slot that is held, and give the slot back."""
        now = trio.current_time()
        if self._first_attempt_at is None:
            self._first_attempt_at = now
        self._scheduler.attempt_began(part)
        result: ExportResult | None = None
        try:
            result = await self._export(part, now)
        finally:
            now = trio.current_time()
            self._has_slot = False
            self._last_result, self._seconds = result, now - self._first_attempt_at
            self._note_end(part, result, now)
        return result

    def _note_end(self, part: Lease, result: ExportResult | None, now: float) -> None:
        """Give the slot back, and log a failure or a recovery."""
        # The request of an attempt that was cancelled or raised may have arrived nevertheless.
        ambiguous = result is None or (isinstance(result, TryLater) and result.ambiguous)
        self._scheduler.attempt_ended(part, result, now, ambiguous=ambiguous)
        self._runtime.wake()
        location = part.batch.location
        if isinstance(result, Delivered):
            if result.rejected <= 0:
                self._runtime.health.succeeded(location)
        elif result is not None:
            endpoint_is_up = self._location.endpoint.is_up
            self._runtime.health.failed(location, result.reason, endpoint_is_up=endpoint_is_up)

    async def _export(self, part: Lease, now: float) -> ExportResult:
        """Call the exporter within the time that an attempt may take."""
        timeout = self._scheduler.retry.attempt_timeout
        result: ExportResult | None = None
        fatal: BaseException | None = None
        try:
            with trio.CancelScope(deadline=now + timeout) as scope:
                try:
                    result = await self._runtime.exporter.export(part.batch)
                except BaseException as exc:
                    # Determined here, because the scope replaces the exception if the exporter left a scope open.
                    fatal = fatal_part(exc)
                    raise
        except BaseException as exc:
            self._raise_classified(exc, fatal, part)
            raise
        if scope.cancelled_caught:
            return TryLater(f"no answer within {timeout:g} s", ambiguous=True, cause="timeout")
        if not isinstance(result, ExportResult):
            self._runtime.logger.error("the exporter returned %s for %r", type(result).__name__, part.batch)
            message = f"the exporter returned {type(result).__name__}, which is not an ExportResult"
            raise _ExporterBug(message) from TypeError(message)
        return result

    def _raise_classified(self, exc: BaseException, fatal: BaseException | None, part: Lease) -> None:
        """Raise an exporter's exception, possibly a group, as fatal, as a cancel of this task, or as a bug."""
        if isinstance(exc, GeneratorExit) and not trio.lowlevel.in_trio_run():
            # The run has ended, and this coroutine is being closed.
            return
        if fatal is not None:
            # Stopped before the attempt is accounted for, which calls on_loss and wakes other tasks.
            self._runtime.stop(f"the exporter raised {type(fatal).__name__}")
            # Kept now, because trio may replace it at the end of this task.
            self._runtime.logger.keep_if_fatal(fatal)
            if fatal is not exc:
                self._runtime.logger.error("the exporter raised for %r", part.batch, exc_info=exc)
            raise fatal
        cancelled, failure = split_cancelled(exc)
        # A Cancelled that was not raised for a cancel of this task would end all tasks of the batcher.
        ours = cancelled if is_cancelled_here() else None
        bug = exc if ours is None else failure
        if bug is not None:
            self._runtime.logger.caught(bug, "the exporter raised for %r", part.batch)
        if ours is not None:
            raise ours from None
        raise _ExporterBug(self._name_bug(failure)) from exc

    def _name_bug(self, failure: BaseException | None) -> str:
        if failure is None:
            return "the exporter raised Cancelled, though its attempt was not cancelled"
        if isinstance(failure, trio.ClosedResourceError) and is_closed(self._runtime.exporter):
            return "the exporter is closed; make an exporter for each batcher"
        return f"the exporter raised {type(failure).__name__}"
