"""The spooler: carries out the scheduler's orders to the spool, commits in one task and all others in another one.

The tasks are in a nursery around that of the driver and the deliveries, inside the same shield. So they go on in the
time that the drain reserves, in which the last spans are committed, and end with the shield at the latest. The
scheduler is told how each order ended, however that was: if it is cancelled, nobody knows whether the disk carried it
out.

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
from .._scheduler.orders import Bury, CannotOpen, Commit, PageIn, Settle, SpoolOrder, Sync
from .._scheduler.records import CommittedRecord
from .._scheduler.spooling import SpoolingScheduler
from .._spans.batch import EncodedSpan
from .._spool.store import DamagedRecord, NewRecord, SpoolFullError, Store
from .runtime import Runtime

_T = TypeVar("_T")
_Ts = TypeVarTuple("_Ts")

# Seconds.
_TIMEOUT = 10.0
# Once the disk has not answered, it is asked for less long.
_SHORT_TIMEOUT = 1.0


class _NoAnswer(OSError):
    """The disk did not answer in time, or its answer is not waited for any more."""


class _Line:
    """Orders that one task carries out, one after the other.

    Args:
        carry_out: Carries out an order.
        give_up: Ends an order that is not begun any more.
        wake: Called after that.
    """

    def __init__(
        self,
        carry_out: Callable[[SpoolOrder], Awaitable[None]],
        give_up: Callable[[SpoolOrder], None],
        wake: Callable[[], None],
    ) -> None:
        self._wake = wake
        self._carry_out = carry_out
        self._give_up = give_up
        self._orders: deque[SpoolOrder] = deque()
        self._idle = trio.lowlevel.ParkingLot()
        self._is_ending = self._has_ended = False

    def put(self, order: SpoolOrder) -> None:
        if self._has_ended:
            self._give_up(order)
        else:
            self._orders.append(order)
            self._idle.unpark()

    def finish(self) -> None:
        self._is_ending = True
        self._idle.unpark()

    @trio.lowlevel.enable_ki_protection
    async def run(self) -> None:
        try:
            while True:
                while self._orders:
                    await self._carry_out(self._orders.popleft())
                    self._wake()
                if self._is_ending:
                    return
                await self._idle.park()
        finally:
            self._has_ended = True
            while self._orders:
                self._give_up(self._orders.popleft())
            self._wake()


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
    _commits: _Line = attrs.field(init=False)
    _others: _Line = attrs.field(init=False)
    _scopes: set[trio.CancelScope] = attrs.Factory(set)
    _recovery: trio.CancelScope = attrs.Factory(trio.CancelScope)
    _is_stopped: bool = False
    _is_hanging: bool = False
    _is_failing: bool = False
    _messages: Throttle = attrs.field(init=False, factory=lambda: Throttle(trio.current_time, max_keys=8))

    def __attrs_post_init__(self) -> None:
        self._commits, self._others = (_Line(self._carry_out, self._give_up, self.runtime.wake) for _ in range(2))

    def carry_out(self, order: SpoolOrder) -> None:
        """Have an order carried out."""
        if isinstance(order, CannotOpen):
            if self._messages.allows("open"):
                message = "SpanBatcher: recovered spans stay in the spool, as nothing can be sent to %r (%s)"
                self.runtime.logger.error(message, order.name, _said(order.error))
        else:
            (self._commits if isinstance(order, Commit) else self._others).put(order)

    def start(self, start: Callable[[Callable[[], Awaitable[None]], str], None]) -> None:
        """Start the tasks."""
        start(self._commits.run, "trio_spanbatch spool: commits")
        start(self._others.run, "trio_spanbatch spool: other orders")

    def finish(self) -> None:
        """Have the tasks end once all orders are carried out."""
        self._commits.finish()
        self._others.finish()

    def stop(self) -> None:
        """Wait for no order any more, after a Ctrl-C in the drain."""
        self._is_stopped = True
        for scope in self._scopes:
            scope.cancel()

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
            self._tell("read what earlier processes have left", error)

    def end_recovery(self) -> None:
        """Leave what was not taken over yet to the next process."""
        self._recovery.cancel()

    def statistics(self) -> SpoolStatistics:
        """Return a snapshot."""
        known = self.store.statistics()
        oldest = self.scheduler.oldest()
        return SpoolStatistics(
            nbytes=known.nbytes,
            oldest_age=0.0 if oldest == math.inf else max(0.0, self.scheduler.wall() - oldest),
            uncommitted=self.scheduler.uncommitted,
            unsendable=self.scheduler.unsendable(),
            damaged=known.damaged,
            set_aside=known.set_aside,
            dead=known.dead,
        )

    async def close(self) -> None:
        """Close the store, as far as there is time. Nothing is touched after that."""
        try:
            if tokens := self.scheduler.take_unsettled():
                with suppress(OSError):
                    await self.store.settle(tokens)
            await self.store.close()
        finally:
            self.store.abandon()

    # -- orders ------------------------------------------------------------------------------------------------

    async def _carry_out(self, order: SpoolOrder) -> None:
        if isinstance(order, Commit):
            await self._commit(order)
        elif isinstance(order, PageIn):
            await self._page_in(order)
        elif isinstance(order, Bury):
            await self._bury(order)
        elif isinstance(order, Settle):
            await self._settle(order)

    def _give_up(self, order: SpoolOrder) -> None:
        """End an order that is not begun any more."""
        if isinstance(order, Commit):
            error = OSError(errno.EINTR, os.strerror(errno.EINTR))
            self.scheduler.commit_failed(order, error, self.runtime.stop_reason, trio.current_time())
        elif isinstance(order, PageIn):
            self.scheduler.paged_in(order, (), trio.current_time())

    async def _commit(self, commit: Commit) -> None:
        wall = self.scheduler.accepted_at
        records = [
            NewRecord(lease.location.name, lease.batch.spans_in_runs(), lease.cost, wall(lease))
            for lease in commit.leases
        ]
        try:
            committed = await self._call(self.store.commit, records, commit.settled)
        except OSError as error:
            # If there was no answer, it may have begun.
            self._commit_failed(commit, error, f"the spool cannot commit: {_said(error)}")
        except BaseException as exc:
            self._commit_failed(commit, exc, self.runtime.stop_reason)
            raise
        else:
            if self._is_failing:
                self._is_failing = False
                self._messages.clear()
                self.runtime.logger.warning("SpanBatcher: the spool can commit again")
            self.scheduler.committed(commit, committed, trio.current_time())

    def _commit_failed(self, commit: Commit, error: BaseException, reason: str) -> None:
        ambiguous = isinstance(error, _NoAnswer) or not isinstance(error, OSError)
        full = isinstance(error, SpoolFullError)
        if self._is_stopped:
            reason = self.runtime.stop_reason
        if not ambiguous:
            # A full spool is not an error: spans wait, or old ones are dropped.
            self._is_failing = not full
            self._tell("commit", error)
        self.scheduler.commit_failed(commit, error, reason, trio.current_time(), full=full, ambiguous=ambiguous)

    async def _settle(self, order: Settle) -> None:
        try:
            await self._call(self.store.settle, order.tokens)
        except OSError as error:
            self._tell("remove what is accounted for", error)
        finally:
            self.scheduler.forgotten()

    async def _page_in(self, page: PageIn) -> None:
        found: list[Sequence[EncodedSpan] | None] = []
        try:
            for piece in page.pieces:
                try:
                    spans = await self._call(self.store.read, piece.record.token)
                    found.append(spans[piece.start : piece.start + piece.count])
                except DamagedRecord as error:
                    found.append(None)
                    self.runtime.logger.error("SpanBatcher: %s", error)
        except OSError as error:
            self._tell("read", error)
        finally:
            self.scheduler.paged_in(page, found, trio.current_time())

    async def _bury(self, order: Bury) -> None:
        try:
            await self._call(self.store.bury, order.batch.location, order.batch.spans, order.reason)
        except OSError as error:
            self._tell("write dead letters", error)
        # If this is cancelled, the records are left, and their spans will be rejected again.
        self.scheduler.settle(order.tokens)

    async def _call(self, method: Callable[[*_Ts], Awaitable[_T]], *args: *_Ts) -> _T:
        """Call a method of the store. Raise `_NoAnswer` if it takes too long, or after `stop`."""
        timeout = _SHORT_TIMEOUT if self._is_hanging else _TIMEOUT
        with trio.move_on_after(timeout) as scope:
            if self._is_stopped:
                scope.cancel()
            self._scopes.add(scope)
            try:
                result = await method(*args)
            except (OSError, DamagedRecord, trio.Cancelled):
                raise
            except Exception as exc:
                self.runtime.logger.caught(exc, "SpanBatcher: the spool has failed")
                raise OSError(errno.EIO, f"{type(exc).__name__} in the spool") from exc
            finally:
                self._scopes.discard(scope)
            self._is_hanging = False
            # First, as what follows would wake the driver in a more expensive way.
            self.runtime.wake()
            return result
        if self._is_stopped:
            raise _NoAnswer(errno.EINTR, os.strerror(errno.EINTR))
        self._is_hanging = True
        self._tell("do anything", error := _NoAnswer(errno.ETIMEDOUT, f"the disk does not answer within {timeout:g} s"))
        raise error

    def _tell(self, what: str, error: BaseException) -> None:
        if not self._is_stopped and self._messages.allows(what):
            self.runtime.logger.error("SpanBatcher: the spool cannot %s: %s", what, _said(error))


def _said(error: BaseException) -> str:
    return (isinstance(error, OSError) and error.strerror) or str(error) or type(error).__name__
