"""The interface between the batcher and the place where it keeps spans: `DiskStore`, or one in memory in our tests.

A store keeps *records*. A record holds consecutive spans of one location, and is identified by its ``token`` as long as
the store is open. It is *committed* when `Store.commit` returns it, stays until its token is given to `Store.settle`,
and is returned by `Store.adopted` of a later store if this process ends before that.
"""

from __future__ import annotations

import errno
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Protocol

import attrs

from .._spans.batch import EncodedSpan


class SpoolError(Exception):
    """The spool cannot be opened. The message names the directory or the file, and what to do."""


class SpoolFullError(OSError):
    """The records do not fit in ``Spool.max_bytes``. Nothing was committed; settling records makes room."""

    def __init__(self, needed: int, used: int, max_bytes: int) -> None:
        message = f"the spool is full: {needed:,} bytes more than {used:,} exceed max_bytes={max_bytes:,}"
        super().__init__(errno.ENOSPC, message)


class DamagedRecord(Exception):
    """The spans of a record cannot be read back. They were moved aside and counted, and the record is settled."""


@attrs.frozen
class NewRecord:
    """Spans of one location to be committed.

    Attributes:
        location: Their location.
        spans: The spans, in the order in which they were accepted.
        nbytes: What they count as in the batcher's byte budgets.
        oldest: When the first of them was accepted, in seconds of Unix time.
    """

    location: str
    spans: Sequence[EncodedSpan]
    nbytes: int
    oldest: float


@attrs.frozen
class Record:
    """A committed record.

    Attributes:
        token: Identifies it in this store.
        location: As in `NewRecord`, like ``nbytes`` and ``oldest``.
        count: The number of its spans.
    """

    token: int
    location: str
    count: int
    nbytes: int
    oldest: float


@attrs.frozen
class StoreStatistics:
    """What a store holds and what it has met.

    Attributes:
        nbytes: Bytes of the records that are not removed yet, settled ones that share a segment with others included.
            This is what ``Spool.max_bytes`` limits.
        damaged: Damaged records or pieces of a file that were moved aside.
        set_aside: Files that could not be read, or that a newer version has written.
        dead: Spans that `Store.bury` has written.
    """

    nbytes: int = 0
    damaged: int = 0
    set_aside: int = 0
    dead: int = 0


class Pieces:
    """An asynchronous iterator that, unlike an async generator, may be left at any point.

    Args:
        next_piece: Returns the next piece, or None if there are no more.
    """

    def __init__(self, next_piece: Callable[[], Awaitable[Sequence[Record] | None]]) -> None:
        self._next_piece = next_piece

    def __aiter__(self) -> Pieces:
        return self

    async def __anext__(self) -> Sequence[Record]:
        piece = await self._next_piece()
        if piece is None:
            raise StopAsyncIteration
        return piece


class Store(Protocol):
    """Keeps records. All calls are made from one trio run, and may run concurrently.

    A call that is cancelled may have taken effect or not, or may do so later, as a disk cannot be interrupted. An
    `OSError` says that the disk failed or is full; the same call may succeed later.
    """

    async def open(self) -> None:
        """Make and lock this batcher's own files, and take over those of processes that have ended.

        Raises:
            SpoolError: The directory cannot be used, or it holds spans for another endpoint.
        """

    def adopted(self) -> AsyncIterator[Sequence[Record]]:
        """Iterate over the records that were taken over, in pieces, the oldest of each location first.

        A piece may be empty. Nothing is raised for damage, or if the store is closed meanwhile. Only one iteration is
        possible.
        """
        ...

    async def commit(self, records: Sequence[NewRecord], settled: Sequence[int] = ()) -> Sequence[Record]:
        """Commit all ``records``, and return them in the same order.

        Args:
            records: The records.
            settled: Tokens to settle first, as `settle` does, which costs less than a call of its own. An error of the
                disk is then not raised.

        Raises:
            SpoolFullError: They do not fit. None was committed.
            OSError: The disk failed. None was committed.
        """
        ...

    async def settle(self, tokens: Sequence[int]) -> None:
        """Forget records whose spans are all accounted for. This works on a full disk.

        Raises:
            OSError: The disk failed. The tokens are kept, and tried again with the next call of `settle` or `commit`.
        """

    async def read(self, token: int) -> Sequence[EncodedSpan]:
        """Return the spans of a record.

        Raises:
            DamagedRecord: They cannot be read, now or later.
            OSError: The disk failed.
        """
        ...

    async def bury(self, location: str, spans: Sequence[EncodedSpan], reason: str) -> None:
        """Keep rejected spans as dead letters, for a limited time.

        Raises:
            OSError: The disk failed or is full.
        """

    async def close(self) -> None:
        """Remove what is settled, and leave the rest for the next store."""

    def abandon(self) -> None:
        """Touch nothing any more: calls under way may never return, later ones raise `OSError`."""

    def statistics(self) -> StoreStatistics:
        """Return a snapshot, from memory."""
        ...
