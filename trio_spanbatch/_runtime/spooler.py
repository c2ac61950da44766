"""The spooler: carries out the scheduler's orders to the spool, each in a task of its own.

The tasks are in a nursery around that of the driver and the deliveries, inside the same shield. So they go on in the
time that the drain reserves, in which the last spans are committed, and end with the shield at the latest. Each tells
the scheduler how its order ended, however that was: if it is cancelled, nobody knows whether the disk carried it out.

The disk may hang. No order is waited for longer than `_TIMEOUT`: a commit then counts as failed, so its spans are sent
without being committed.
"""

from __future__ import annotations

import errno
import math
import os
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar, TypeVarTuple

import attrs
import trio

from .._reporting.statistics import SpoolStatistics
from .._reporting.throttle import Throttle
from .._scheduler.orders import Bury, Commit, PageIn, Settle, SpoolOrder
from .._scheduler.spooling import SpoolingScheduler, Sync
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


@attrs.define(eq=False)
class Spooler:
    """Carries out orders to the spool.

    Attributes:
        store: Keeps the records.
        scheduler: The scheduler.
        runtime: The state that all tasks share.
        start: Starts a task in the nursery of the spool.
    """

    store: Store
    scheduler: SpoolingScheduler
    runtime: Runtime
    start: Callable[[Callable[[], Awaitable[None]], str], None] = attrs.field(init=False)
    _scopes: set[trio.CancelScope] = attrs.Factory(set)
    _recovery: trio.CancelScope = attrs.Factory(trio.CancelScope)
    _is_stopped: bool = False
    _is_hanging: bool = False
    _is_failing: bool = False
    _messages: Throttle = attrs.field(init=False, factory=lambda: Throttle(trio.current_time, max_keys=8))

    def carry_out(self, order: SpoolOrder) -> None:
        """Begin to carry out an order."""
        if isinstance(order, Commit):
            self.start(lambda: self._commit(order), "trio_spanbatch spool: commit")
        elif isinstance(order, Settle):
            self.start(lambda: self._settle(order.tokens), "trio_spanbatch spool: settle")
        elif isinstance(order, PageIn):
            self.start(lambda: self._page_in(order), "trio_spanbatch spool: read")
        else:
            self.start(lambda: self._bury(order), "trio_spanbatch spool: dead letters")

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
        self.runtime.wake()
        try:
            await done.wait()
        finally:
            self.scheduler.forget_sync(sync)
        if sync.error is not None:
            raise OSError(errno.EIO, f"the spool cannot commit: {_said(sync.error)}") from sync.error

    @trio.lowlevel.enable_ki_protection
    async def recover(self) -> None:
        """Take over what the spools of ended processes have left."""
        try:
            with self._recovery:
                async for piece in self.store.adopted():
                    self.scheduler.recovered(piece)
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
            damaged=known.damaged,
            set_aside=known.set_aside,
            dead=known.dead,
        )

    async def close(self) -> None:
        """Close the store, as far as there is time. Nothing is touched after that."""
        try:
            await self.store.close()
        finally:
            self.store.abandon()

    # -- orders ------------------------------------------------------------------------------------------------

    @trio.lowlevel.enable_ki_protection
    async def _commit(self, commit: Commit) -> None:
        records = [
            NewRecord(lease.location.name, lease.batch.copy_of_spans(), lease.cost, self.scheduler.accepted_at(lease))
            for lease in commit.leases
        ]
        try:
            committed = await self._call(self.store.commit, records)
        except OSError as error:
            self._commit_failed(commit, error, f"the spool cannot commit: {_said(error)}")
        except BaseException as exc:
            self._commit_failed(commit, exc, self.runtime.stop_reason, ambiguous=True)
            raise
        else:
            if self._is_failing:
                self._is_failing = False
                self._messages.clear()
                self.runtime.logger.warning("SpanBatcher: the spool can commit again")
            self.scheduler.committed(commit, committed, trio.current_time())
        finally:
            self.runtime.wake()

    def _commit_failed(self, commit: Commit, error: BaseException, reason: str, *, ambiguous: bool = False) -> None:
        if isinstance(error, _NoAnswer):
            # Whether it began is not known either.
            ambiguous = True
            if self._is_stopped:
                reason = self.runtime.stop_reason
        elif not ambiguous:
            self._is_failing = True
            if self._messages.allows("commit"):
                self.runtime.logger.error("SpanBatcher: the spool cannot commit: %s", _said(error))
        self.scheduler.commit_failed(
            commit, error, reason, trio.current_time(), full=isinstance(error, SpoolFullError), ambiguous=ambiguous
        )

    @trio.lowlevel.enable_ki_protection
    async def _settle(self, tokens: tuple[int, ...]) -> None:
        try:
            await self._call(self.store.settle, tokens)
        except OSError as error:
            self._tell("remove what is accounted for", error)
        finally:
            self.scheduler.forgotten()
            self.runtime.wake()

    @trio.lowlevel.enable_ki_protection
    async def _page_in(self, page: PageIn) -> None:
        found: list[Sequence[EncodedSpan]] = []
        try:
            for piece in page.pieces:
                spans: Sequence[EncodedSpan] = ()
                if not piece.record.is_damaged:
                    try:
                        spans = await self._call(self.store.read, piece.record.token)
                    except DamagedRecord as error:
                        piece.record.is_damaged = True
                        self.runtime.logger.error("SpanBatcher: %s", error)
                found.append(spans[piece.start : piece.start + piece.count])
        except OSError as error:
            self._tell("read", error)
            self.scheduler.page_in_failed(page, trio.current_time())
        except BaseException:
            self.scheduler.page_in_failed(page, trio.current_time())
            raise
        else:
            self.scheduler.paged_in(page, found, trio.current_time())
        finally:
            self.runtime.wake()

    @trio.lowlevel.enable_ki_protection
    async def _bury(self, order: Bury) -> None:
        try:
            await self._call(self.store.bury, order.batch.location, order.batch.spans, order.reason)
        except OSError as error:
            self._tell("write dead letters", error)
        # If this is cancelled, the records are left, and their spans will be rejected again.
        self.scheduler.settle(order.tokens)
        self.runtime.wake()

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
            return result
        if self._is_stopped:
            raise _NoAnswer(errno.EINTR, os.strerror(errno.EINTR))
        self._is_hanging = True
        self._tell("do anything", error := _NoAnswer(errno.ETIMEDOUT, f"the disk does not answer within {timeout:g} s"))
        raise error

    def _tell(self, what: str, error: OSError) -> None:
        if not self._is_stopped and self._messages.allows(what):
            self.runtime.logger.error("SpanBatcher: the spool cannot %s: %s", what, _said(error))


def _said(error: BaseException) -> str:
    return (isinstance(error, OSError) and error.strerror) or str(error) or type(error).__name__
