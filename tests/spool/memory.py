"""A store in memory, for tests on the mock clock, whose jumps do not wait for threads."""

from __future__ import annotations

import errno
import os
from collections.abc import AsyncIterator, Sequence

import attrs
import trio

from trio_spanbatch._spans.batch import EncodedSpan
from trio_spanbatch._spool.store import (
    DamagedRecord,
    NewRecord,
    Pieces,
    Record,
    SpoolError,
    SpoolFullError,
    StoreStatistics,
)

# Records in one piece of `MemoryStore.adopted`.
_PIECE = 256


@attrs.define(eq=False)
class MemoryDisk:
    """What survives a `MemoryStore`: its committed records, in order, and its dead letters.

    Attributes:
        owners: The store that each record belongs to; a record of none can be adopted.
        dead: Location, spans and reason of each call of `MemoryStore.bury`.
        tokens: How many tokens were given out.
    """

    endpoint: str = ""
    records: dict[int, tuple[Record, tuple[EncodedSpan, ...]]] = attrs.Factory(dict)
    owners: dict[int, MemoryStore | None] = attrs.Factory(dict)
    dead: list[tuple[str, tuple[EncodedSpan, ...], str]] = attrs.Factory(list)
    nbytes: int = 0
    tokens: int = 0

    def remove(self, token: int) -> None:
        if token in self.records:
            self.nbytes -= self.records.pop(token)[0].nbytes
            del self.owners[token]


@attrs.define(eq=False)
class MemoryStore:
    """A `Store` in memory, with scripted faults. The attributes may be changed at any time.

    Args:
        disk: What an earlier store has left; by default nothing.
        endpoint: The endpoint that this store's spans are for.
        max_bytes: The most bytes (`NewRecord.nbytes`) of records.

    Attributes:
        failing: The operations that raise an `OSError`: ``"open"``, ``"commit"``, ``"settle"``, ``"read"``, ``"bury"``.
        full: Whether the disk is full: ``commit`` and ``bury`` raise an `OSError`, the others work.
        slow: Seconds that each operation takes; `math.inf` to hang.
        damaged: The tokens of records that cannot be read.
        lands: Whether an operation that is cancelled while it is slow takes effect nevertheless.
    """

    disk: MemoryDisk = attrs.Factory(MemoryDisk)
    endpoint: str = ""
    max_bytes: int = 1024**3
    failing: set[str] = attrs.field(init=False, factory=set)
    full: bool = attrs.field(init=False, default=False)
    slow: float = attrs.field(init=False, default=0.0)
    damaged: set[int] = attrs.field(init=False, factory=set)
    lands: bool = attrs.field(init=False, default=False)
    _abandoned: bool = attrs.field(init=False, default=False)
    _found: list[Record] = attrs.field(init=False, factory=list)
    _unsettled: list[int] = attrs.field(init=False, factory=list)
    _damaged: int = attrs.field(init=False, default=0)
    _dead: int = attrs.field(init=False, default=0)

    async def open(self) -> None:
        try:
            await self._operation("open")
        except OSError as error:
            raise SpoolError(f"the spool in memory cannot be opened: {error}") from error
        found = [record for token, (record, _) in self.disk.records.items() if self.disk.owners[token] is None]
        if found and self.disk.endpoint != self.endpoint:
            raise SpoolError(
                f"the spool holds spans for {self.disk.endpoint}, and this batcher sends to {self.endpoint}"
            )
        self.disk.endpoint = self.endpoint
        self.disk.owners.update({record.token: self for record in found})
        self._found = found

    def adopted(self) -> AsyncIterator[Sequence[Record]]:
        return Pieces(self._next_piece)

    async def _next_piece(self) -> Sequence[Record] | None:
        await trio.sleep(self.slow)
        piece, self._found = self._found[:_PIECE], self._found[_PIECE:]
        return None if self._abandoned or not piece else piece

    async def commit(self, records: Sequence[NewRecord], settled: Sequence[int] = ()) -> Sequence[Record]:
        self._unsettled += settled
        try:
            await self._operation("commit")
        except trio.Cancelled:
            if self.lands and not self._abandoned:
                self._commit(records)
            raise
        return self._commit(records)

    def _commit(self, records: Sequence[NewRecord]) -> Sequence[Record]:
        if "settle" not in self.failing:
            self._forget()
        needed, used = sum(record.nbytes for record in records), self.disk.nbytes
        if used + needed > self.max_bytes:
            raise SpoolFullError(needed, used, self.max_bytes)
        committed = []
        for new in records:
            self.disk.tokens += 1
            record = Record(self.disk.tokens, new.location, len(new.spans), new.nbytes, new.oldest)
            self.disk.records[record.token] = record, tuple(new.spans)
            self.disk.owners[record.token] = self
            self.disk.nbytes += record.nbytes
            committed.append(record)
        return committed

    async def settle(self, tokens: Sequence[int]) -> None:
        self._unsettled += tokens
        await self._operation("settle")
        self._forget()

    def _forget(self) -> None:
        for token in self._unsettled:
            self.disk.remove(token)
        self._unsettled.clear()

    async def read(self, token: int) -> Sequence[EncodedSpan]:
        await self._operation("read")
        if token in self.damaged:
            self._damaged += 1
            self.disk.remove(token)
            raise DamagedRecord(f"record {token} is damaged")
        return self.disk.records[token][1]

    async def bury(self, location: str, spans: Sequence[EncodedSpan], reason: str) -> None:
        await self._operation("bury")
        self.disk.dead.append((location, tuple(spans), reason))
        self._dead += len(spans)

    async def close(self) -> None:
        await trio.lowlevel.checkpoint()
        if not self._abandoned:
            self._forget()
            self.abandon()

    def abandon(self) -> None:
        # What is committed can be adopted from now on, as after the end of the process.
        self._abandoned = True
        self.disk.owners.update({token: None for token, owner in self.disk.owners.items() if owner is self})

    def statistics(self) -> StoreStatistics:
        return StoreStatistics(self.disk.nbytes, self._damaged, dead=self._dead)

    async def _operation(self, name: str) -> None:
        """Take some time, and raise what is scripted."""
        await trio.sleep(self.slow)
        if self._abandoned:
            raise OSError(errno.EBADF, "the spool is closed")
        if name in self.failing:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        if self.full and name in ("commit", "bury"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
