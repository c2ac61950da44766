"""A delivery: everything that happens to a batch until its spans are accounted for.

It owns the batch (a lease) and leaves it in one way only: by settling it with its lane. Whatever ends the delivery's
task settles what is left, so that a cancelled delivery hands its spans back.

It starts with an export slot, which its lane took for it. The slot is given back as soon as the attempt has ended, so
that a backoff never holds one, and the lane gives another for the next attempt.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from ._exceptions import split_cancelled
from ._ledger import Lease, Settlement
from ._results import Delivered, ExportResult, Refused, TryLater
from ._shared import Shared

if TYPE_CHECKING:
    from ._lane import Lane

__all__ = ["Delivery"]


class _ExporterBug(Exception):
    """An exporter raised, or returned what is no result. The message says which, for the spans' reason."""


class Delivery:
    """Delivers one batch."""

    def __init__(self, lease: Lease, lane: Lane, shared: Shared) -> None:
        self._lane = lane
        self._shared = shared
        self._open: dict[Lease, None] = {lease: None}

    @trio.lowlevel.enable_ki_protection
    async def run(self) -> None:
        """Deliver, and hand back what is left when cancelled."""
        try:
            while self._open:
                lease = next(iter(self._open))
                self._settle(lease, await self._deliver(lease))
        finally:
            for lease in tuple(self._open):
                self._settle(lease, Settlement(undelivered=len(lease), reason=self._shared.stop_reason))

    def _settle(self, lease: Lease, settlement: Settlement) -> None:
        del self._open[lease]
        self._lane.settle(lease, settlement)

    async def _deliver(self, lease: Lease) -> Settlement:
        while True:
            try:
                result = await self._attempt(lease)
            except _ExporterBug as bug:
                return Settlement(undelivered=len(lease), reason=str(bug))
            match result:
                case Delivered():
                    return self._delivered(lease, result)
                case Refused():
                    return Settlement(rejected=len(lease), reason=result.reason, status_code=result.status_code)
                case TryLater():
                    if (why := await self._why_not_again(lease, result)) is not None:
                        reason = f"{why}: {result.reason}"
                        return Settlement(undelivered=len(lease), reason=reason, status_code=result.status_code)

    def _delivered(self, lease: Lease, result: Delivered) -> Settlement:
        rejected = max(0, min(result.rejected, len(lease)))
        if result.message and not rejected:
            self._shared.logger.warning("a server warns for %r: %s", lease.batch.location, result.message)
        reason = result.message or "the server gave no reason"
        return Settlement(delivered=len(lease) - rejected, rejected=rejected, reason=reason)

    async def _why_not_again(self, lease: Lease, result: TryLater) -> str | None:
        """Wait until the attempt may be repeated, and return None then; else why it may not."""
        retry_at = self._lane.back_off(result.after)
        assert lease.first_attempt_at is not None, "a lease that is to be tried again was tried before"
        give_up_at = lease.first_attempt_at + self._shared.retry.max_elapsed
        if retry_at <= give_up_at and await self._lane.wait_for_turn(lease, give_up_at):
            return None
        if self._shared.draining and trio.current_time() < give_up_at:
            return "no time for another attempt before the shutdown deadline"
        return "retries exhausted"

    async def _attempt(self, lease: Lease) -> ExportResult:
        """Make one attempt, with the slot that is held, and give the slot back."""
        self._count_attempt(lease)
        result: ExportResult | None = None
        try:
            result = await self._export(lease)
        finally:
            # An attempt that was cancelled or raised may have arrived all the same.
            if result is None or (isinstance(result, TryLater) and result.ambiguous):
                self._shared.ledger.ambiguous(self._lane.account, lease)
            self._lane.export_ended(well=isinstance(result, Delivered))
        return result

    async def _export(self, lease: Lease) -> ExportResult:
        """Call the exporter within the time that an attempt may take."""
        timeout = self._shared.retry.attempt_timeout
        result: ExportResult | None = None
        try:
            with trio.move_on_after(timeout) as scope:
                result = await self._shared.exporter.export(lease.batch)
        except BaseException as exc:
            self._sort_out(exc, lease)
            raise
        if scope.cancelled_caught:
            return TryLater(f"no answer within {timeout:g} s", ambiguous=True)
        if not isinstance(result, Delivered | TryLater | Refused):
            self._shared.logger.error("the exporter returned %s for %r", type(result).__name__, lease.batch)
            raise _ExporterBug(f"the exporter returned {type(result).__name__}, which is no ExportResult")
        return result

    def _sort_out(self, exc: BaseException, lease: Lease) -> None:
        """Take a bug of the exporter for what it is, also when its own nursery wrapped it together with a cancel."""
        cancelled, failure = split_cancelled(exc)
        if failure is None or not isinstance(failure, Exception):
            return
        self._shared.logger.error("the exporter raised for %r", lease.batch, exc_info=failure)
        if cancelled is not None:
            raise cancelled from None
        raise _ExporterBug(f"the exporter raised {type(failure).__name__}") from failure

    def _count_attempt(self, lease: Lease) -> None:
        self._lane.account.requests += 1
        if lease.first_attempt_at is None:
            lease.first_attempt_at = trio.current_time()
        else:
            self._lane.account.retries += 1
