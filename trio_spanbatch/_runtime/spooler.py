"""The spooler: a task that carries out the scheduler's orders to the spool, one after the other, commits first.

The task is in a nursery around that of the driver and the deliveries, inside the same shield. So it goes on in the time
that the drain reserves, in which the last spans are committed, and ends with the shield at the latest. The scheduler is
told how each order ended, however that was: if it is cancelled, nobody knows whether the disk carried it out.

The disk may hang. No order is waited for longer than `_TIMEOUT`: a commit then counts as failed, so its spans are sent
without being committed.
"""

from __future__ import annotations

import errno
import math
import os
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import TypeVar, TypeVarTuple

import attrs
import trio

from .._reporting.statistics import SpoolStatistics
from .._reporting.throttle import Throttle
from .._scheduler.orders import Bury, Commit, PageIn, Settle, SpoolOrder, Sync
from .._scheduler.records import CommittedRecord
from .._scheduler.spooling import SpoolingScheduler
from .._spans.batch import EncodedSpan
from .._spool.store import DamagedRecord, NewRecord, SpoolFullError, Store
from .runtime import Runtime

_T = TypeVar("_T")
_Ts = TypeVarTuple("_Ts")

# Seconds. Once the disk has not answered, it is asked for less long.
_TIMEOUT = 10.0
_SHORT_TIMEOUT = 1.0
# The time to settle and close after a second Ctrl-C, which a disk that works does not need.
_STOPPED_TIMEOUT = 0.1


class _NoAnswer(OSError):
    """The disk did not answer in time, or its answer is not waited for any more."""


@attrs.define(eq=False)
class Spooler:
    """Carries out orders to the spool.

    Attributes:
        store: Keeps the records.
        scheduler: The scheduler.
        runtime: The state that all tasks share.
    """

    store: Store
    scheduler: SpoolingScheduler
    runtime: Runtime
    _orders: deque[SpoolOrder] = attrs.Factory(deque)
    _idle: trio.lowlevel.ParkingLot = attrs.Factory(trio.lowlevel.ParkingLot)
    _scope: trio.CancelScope | None = None
    _recovery: trio.CancelScope = attrs.Factory(trio.CancelScope)
    _is_ending: bool = False
    _has_ended: bool = False
    _is_stopped: bool = False
    _is_hanging: bool = False
    _is_failing: bool = False
    _messages: Throttle = attrs.field(init=False, factory=lambda: Throttle(trio.current_time, max_keys=8))

    def carry_out(self, order: SpoolOrder) -> None:
        """Have an order carried out."""
        if self._has_ended:
            self._give_up(order)
        elif isinstance(order, Commit):
            self._orders.appendleft(order)
        else:
            self._orders.append(order)
        self._idle.unpark()

    def finish(self) -> None:
        """Have the task end once all orders are carried out."""
        self._is_ending = True
        self._idle.unpark()

    def stop(self) -> None:
        """Wait for no order any more, after a Ctrl-C in the drain."""
        self._is_stopped = True
        if self._scope is not None:
            self._scope.cancel()

    async def sync(self) -> None:
        """Wait until all that is accepted is committed or settled.

        Raises:
            OSError: It could not be committed.
        """
        done = trio.Event()
        sync = Sync(done.set)
        self.scheduler.begin_sync(sync)
        await done.wait()
        if sync.error is not None:
            raise OSError(errno.EIO, f"the spool cannot commit: {_said(sync.error)}") from sync.error

    @trio.lowlevel.enable_ki_protection
    async def recover(self) -> None:
        """Take over what the spools of ended processes have left."""
        try:
            with self._recovery:
                async for piece in self.store.adopted():
                    for found in piece:
                        record = CommittedRecord(found.token, found.count, found.count, found.nbytes, found.oldest)
                        self.scheduler.recovered(found.location, record)
                    self.runtime.wake()
                    await trio.lowlevel.checkpoint()
        except OSError as error:
            self._tell("recover", f"the spool cannot read what earlier processes have left: {_said(error)}")

    def end_recovery(self) -> None:
        """Leave what was not taken over yet to the next process."""
        self._recovery.cancel()

    def statistics(self) -> SpoolStatistics:
        """Return a snapshot."""
        known, oldest = self.store.statistics(), self.scheduler.oldest()
        return SpoolStatistics(
            **attrs.asdict(known),
            oldest_age=0.0 if oldest == math.inf else max(0.0, self.scheduler.wall() - oldest),
            uncommitted=self.scheduler.uncommitted,
            unsendable=self.scheduler.unsendable(),
        )

    async def close(self) -> None:
        """Close the store, as far as there is time. Nothing is touched after that."""
        try:
            with trio.move_on_after(_STOPPED_TIMEOUT if self._is_stopped else math.inf):
                if tokens := self.scheduler.take_unsettled():
                    with suppress(OSError):
                        await self.store.settle(tokens)
                await self.store.close()
        finally:
            self.store.abandon()

    # -- orders ------------------------------------------------------------------------------------------------

    @trio.lowlevel.enable_ki_protection
    async def run(self) -> None:
        """Carry out orders until `finish` is called."""
        try:
            while True:
                while self._orders:
                    await self._carry_out(self._orders.popleft())
                    self.runtime.wake()
                if self._is_ending:
                    return
                await self._idle.park()
        finally:
            self._has_ended = True
            while self._orders:
                self._give_up(self._orders.popleft())
            self.runtime.wake()

    def _give_up(self, order: SpoolOrder) -> None:
        """End an order that is not begun any more."""
        if isinstance(order, Commit):
            error = OSError(errno.EINTR, os.strerror(errno.EINTR))
            self.scheduler.commit_failed(order, error, self.runtime.stop_reason, trio.current_time())
        elif isinstance(order, PageIn):
            self.scheduler.paged_in(order, (), trio.current_time())

    async def _carry_out(self, order: SpoolOrder) -> None:
        if isinstance(order, Commit):
            await self._commit(order)
        elif isinstance(order, PageIn):
            await self._page_in(order)
        elif isinstance(order, Bury):
            batch = order.batch
            await self._try("write dead letters", self.store.bury, batch.location, batch.spans, order.reason)
            # If this was cancelled, the records are left, and their spans will be rejected again.
            self.scheduler.settle(order.tokens)
        elif isinstance(order, Settle):
            await self._try("remove what is accounted for", self.store.settle, order.tokens)
            self.scheduler.forgotten()
        else:
            why = f"recovered spans stay in the spool, as nothing can be sent to {order.name!r}"
            if isinstance(order.error, Exception):
                self._tell("open", f"{why} ({_said(order.error)})")
            else:
                self.runtime.logger.caught(order.error, why)

    async def _commit(self, commit: Commit) -> None:
        at = self.scheduler.accepted_at
        records = [
            NewRecord(lease.location.name, lease.batch.spans_in_runs(), lease.cost, at(lease))
            for lease in commit.leases
        ]
        try:
            committed = await self._call(self.store.commit, records, commit.settled)
        except BaseException as error:  # noqa: ASYNC103  # an OSError only is not raised again
            is_unknown = isinstance(error, _NoAnswer) or not isinstance(error, OSError)
            is_full = isinstance(error, SpoolFullError)
            why = f"the spool cannot commit: {_said(error)}"
            if not is_unknown:
                # A full spool is not an error: spans wait, or old ones are dropped.
                self._is_failing = not is_full
                self._tell("commit", why)
            reason = why if isinstance(error, OSError) and not self._is_stopped else self.runtime.stop_reason
            now = trio.current_time()
            self.scheduler.commit_failed(commit, error, reason, now, full=is_full, ambiguous=is_unknown)
            if not isinstance(error, OSError):
                raise
        else:
            if self._is_failing:
                self._is_failing = False
                self._messages.clear()
                self.runtime.logger.warning("the spool can commit again")
            self.scheduler.committed(commit, [record.token for record in committed], trio.current_time())

    async def _page_in(self, page: PageIn) -> None:
        found: list[Sequence[EncodedSpan] | None] = []
        try:
            for piece in page.pieces:
                try:
                    spans = await self._call(self.store.read, piece.record.token)
                    found.append(spans[piece.start : piece.start + piece.count])
                except DamagedRecord as error:
                    found.append(None)
                    self.runtime.logger.error("%s", error)
        except OSError as error:
            self._tell("read", f"the spool cannot read: {_said(error)}")
        finally:
            self.scheduler.paged_in(page, found, trio.current_time())

    async def _try(self, what: str, method: Callable[[*_Ts], Awaitable[object]], *args: *_Ts) -> None:
        try:
            await self._call(method, *args)
        except OSError as error:
            self._tell(what, f"the spool cannot {what}: {_said(error)}")

    async def _call(self, method: Callable[[*_Ts], Awaitable[_T]], *args: *_Ts) -> _T:
        """Call a method of the store. Raise `_NoAnswer` if it takes too long, or after `stop`."""
        timeout = _SHORT_TIMEOUT if self._is_hanging else _TIMEOUT
        with trio.move_on_after(0 if self._is_stopped else timeout) as self._scope:
            try:
                result = await method(*args)
            except (OSError, DamagedRecord, trio.Cancelled):
                raise
            except Exception as exc:
                self.runtime.logger.caught(exc, "the spool has failed")
                raise OSError(errno.EIO, f"{type(exc).__name__} in the spool") from exc
            self._is_hanging = False
            # First, as what follows would wake the driver in a more expensive way.
            self.runtime.wake()
            return result
        self._is_hanging = True
        why = os.strerror(errno.EINTR) if self._is_stopped else f"the disk does not answer within {timeout:g} s"
        self._tell("answer", f"the spool cannot do anything: {why}")
        raise _NoAnswer(errno.ETIMEDOUT, why)

    def _tell(self, kind: str, message: str) -> None:
        if not self._is_stopped and self._messages.allows(kind):
            self.runtime.logger.error("%s", message)


def _said(error: BaseException) -> str:
    return (isinstance(error, OSError) and error.strerror) or str(error) or type(error).__name__
