"""The store on disk.

All work is done in a thread, one job after the other (`DiskStore._run`): trio's own would block, and a limiter of its
own keeps the spool from waiting for the program's threads. A job that hangs cannot be interrupted. So a cancelled call
leaves its job alone, and `DiskStore.abandon` says that no further one begins. Everything that a job changes is changed
by jobs only, apart from the tokens to settle, which are handed over in a deque.

A token is the number of a segment and a slot. Of a record, memory holds its place, its size and its checksum, in arrays
of its segment.
"""

from __future__ import annotations

import errno
import itertools
import os
import secrets
import struct
import threading
import time
from array import array
from collections import deque
from collections.abc import AsyncIterator, Callable, Generator, Iterator, Sequence
from contextlib import ExitStack, closing, suppress
from typing import Final, TypeVar, TypeVarTuple

import attrs
import trio

from .._settings.policies import MIB
from .._spans.batch import EncodedSpan
from .files import Directory, File, cannot_use, is_ours
from .log import (
    FIXED_SIZE,
    PIECE,
    RECORDS_AT,
    SLOT,
    SLOTS,
    SLOTS_AT,
    Damage,
    Head,
    Header,
    NewerFormat,
    UnreadableSegment,
    is_intact,
    pack_record,
    pack_spans,
    read_header,
    scan,
    short_enough,
    unpack_spans,
)
from .settings import Spool
from .store import DamagedRecord, NewRecord, Pieces, Record, SpoolError, SpoolFullError, StoreStatistics

_T = TypeVar("_T")
_Ts = TypeVarTuple("_Ts")

# Bytes after which a new segment is begun; less if ``max_bytes`` is small, as a segment is removed as a whole.
_SEGMENT_SIZE: Final = 8 * MIB
_SEGMENTS_OF_MAX_BYTES: Final = 16
# Records of one job, so that none takes long.
_RECORDS_OF_JOB: Final = 256
# Seconds for which dead letters and damaged pieces are kept, and the part of ``max_bytes`` that dead letters may take.
_KEPT: Final = 7 * 24 * 3600.0
_DEAD_PART: Final = 8

# New random names to try. Another process may take one over before it is locked.
_NAMES: Final = 10

_SLOT_BITS: Final = (SLOTS - 1).bit_length()


@attrs.define(eq=False)
class _Segment:
    """A segment that is known, and the records in it that are not settled.

    Attributes:
        file: The name of its file.
        number: Its number in tokens.
        head: Its head.
        appending: Its file, while records are appended.
        end: Where the next record begins.
        is_torn: Whether there may be something behind ``end``.
        slots: How many slots are used.
        offsets: Where the record of each slot begins.
        sizes: The size of each record; 0 for one that is settled.
        marks: What the slot of each record contains once it is settled.
        live: The number of records that are not settled.
        live_bytes: The sum of ``sizes``.
        nbytes: Bytes of all records, settled ones included; 0 if there is no other.
        is_known: Whether all of its records are known. If not, its file is kept.
    """

    file: str
    number: int
    head: Head
    appending: File | None = None
    end: int = RECORDS_AT
    is_torn: bool = False
    slots: int = 0
    offsets: array[int] = attrs.Factory(lambda: array("Q"))
    sizes: array[int] = attrs.Factory(lambda: array("I"))
    marks: array[int] = attrs.Factory(lambda: array("I"))
    live: int = 0
    live_bytes: int = 0
    nbytes: int = 0
    is_known: bool = True

    def add(self, slot: int, at: int, size: int, mark: int) -> None:
        """Remember a record that is not settled."""
        for values in (self.offsets, self.sizes, self.marks):
            values.extend([0] * (slot + 1 - len(values)))
        self.offsets[slot], self.sizes[slot], self.marks[slot] = at, size, mark
        self.live += 1
        self.live_bytes += size

    @property
    def may_be_rewritten(self) -> bool:
        """Whether most of its bytes would go if its settled records were left out."""
        return self.is_known and self.appending is None and 2 * self.live_bytes <= self.nbytes

    def holds(self, slot: int) -> bool:
        """Return whether there is a record in ``slot`` that is not settled."""
        return slot < len(self.sizes) and self.sizes[slot] > 0


class DiskStore:
    """A `Store` in a directory.

    Args:
        spool: The settings.
        endpoint: Identifies the server that the spans are for, without credentials. What was kept for another one is
            not taken over.
        tell: Called, in the trio run, with messages about files that were set aside.
    """

    def __init__(self, spool: Spool, endpoint: str, *, tell: Callable[[str], object] = lambda _: None) -> None:
        self._spool = spool
        self._endpoint = short_enough(endpoint)
        self._tell = tell
        self._limiter = trio.CapacityLimiter(1)
        self._abandoned = False
        self._working = threading.Lock()
        self._messages: deque[str] = deque()
        self._unsettled: deque[int] = deque()

        self._directory: Directory | None = None
        self._lock: File | None = None
        self._name = ""
        self._files_made = 0
        self._last_created = 0.0
        self._segments: dict[int, _Segment] = {}
        self._current: dict[str, _Segment] = {}
        self._scanner: Generator[Record | None] | None = None
        self._nbytes = self._damaged = self._set_aside = self._dead = 0

    # -- calls from the trio run -------------------------------------------------------------------------------

    async def open(self) -> None:
        """See `Store.open`."""
        await self._run(self._open)

    def adopted(self) -> AsyncIterator[Sequence[Record]]:
        """See `Store.adopted`."""
        return Pieces(self._next_piece)

    async def _next_piece(self) -> Sequence[Record] | None:
        try:
            return await self._run(self._scan_piece)
        except OSError:
            # The store was closed, or there is no thread.
            return None

    async def commit(self, records: Sequence[NewRecord], settled: Sequence[int] = ()) -> Sequence[Record]:
        """See `Store.commit`."""
        self._unsettled.extend(settled)
        committed: list[Record] = []
        try:
            for piece in _pieces(records):
                committed += await self._run(self._commit, piece)
        except OSError:
            # None of them is committed if one is not.
            self._unsettled.extend(record.token for record in committed)
            raise
        return committed

    async def settle(self, tokens: Sequence[int]) -> None:
        """See `Store.settle`."""
        self._unsettled.extend(tokens)
        await self._run(self._settle)

    async def read(self, token: int) -> Sequence[EncodedSpan]:
        """See `Store.read`."""
        return await self._run(self._read, token)

    async def bury(self, location: str, spans: Sequence[EncodedSpan], reason: str) -> None:
        """See `Store.bury`."""
        await self._run(self._bury, location, spans, reason)

    async def close(self) -> None:
        """See `Store.close`."""
        with suppress(OSError):
            await self._run(self._close)
        self._abandoned = True

    def abandon(self) -> None:
        """See `Store.abandon`. The files are closed, and unlocked, once the job under way has ended."""
        if self._abandoned:
            return
        self._abandoned = True
        # If there is no thread, the end of the process closes them.
        with suppress(RuntimeError):
            threading.Thread(target=self._release_once_idle, name="trio-spanbatch spool", daemon=True).start()

    def statistics(self) -> StoreStatistics:
        """See `Store.statistics`."""
        return StoreStatistics(self._nbytes, self._damaged, self._set_aside, self._dead)

    async def _run(self, job: Callable[[*_Ts], _T], *args: *_Ts) -> _T:
        """Run a job in the thread. If this is cancelled, the job may still begin or go on."""
        try:
            return await trio.to_thread.run_sync(self._work, job, *args, abandon_on_cancel=True, limiter=self._limiter)
        except RuntimeError as error:
            raise OSError(errno.EAGAIN, f"the spool has no thread: {error}") from error
        finally:
            while self._messages:
                self._tell(self._messages.popleft())

    # -- the thread --------------------------------------------------------------------------------------------

    def _work(self, job: Callable[[*_Ts], _T], *args: *_Ts) -> _T:
        with self._working:
            if self._abandoned:
                raise OSError(errno.EBADF, "the spool is closed")
            return job(*args)

    def _release_once_idle(self) -> None:
        with self._working:
            self._release()

    def _release(self) -> None:
        """Close all files, and with them the lock."""
        if self._scanner is not None:
            self._scanner.close()
        for segment in self._current.values():
            if segment.appending is not None:
                segment.appending.close()
        if self._directory is not None and self._lock is not None:
            with suppress(OSError):
                self._directory.unlink(f"{self._name}.lock")
            self._lock.close()
        if self._directory is not None:
            self._directory.close()

    def _open(self) -> None:
        self._directory = Directory(self._spool.directory)
        found: list[_Segment] = []
        try:
            self._lock_new_name()
            for name in self._directory.batchers():
                if name != self._name:
                    self._take_over(name, found)
            self._remove_old_files()
        except OSError as error:
            self._release()
            raise cannot_use(self._spool.directory, error) from error
        except SpoolError:
            self._release()
            raise
        found.sort(key=lambda segment: segment.head.created)
        self._segments.update({segment.number: segment for segment in found})
        self._scanner = self._scan(found)

    def _lock_new_name(self) -> None:
        for _ in range(_NAMES):
            self._name = secrets.token_hex(8)
            self._lock = self._files.try_lock(self._name)
            if self._lock is not None:
                return
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    # -- files of ended processes ------------------------------------------------------------------------------

    def _take_over(self, name: str, found: list[_Segment]) -> None:
        """Rename the files of a batcher that has ended, so that they are this one's. Add its segments to ``found``."""
        try:
            lock = self._files.try_lock(name)
            if lock is None:
                return
            with closing(lock):
                self._files.unlink(f"{name}.tmp")
                heads = [(file, self._head_of(file)) for file in self._files.files_of(name, "spans", "dead")]
                known = [(file, head) for file, head in heads if head is not None]
                for file, head in known:
                    if file.endswith(".spans") and head.endpoint != self._endpoint:
                        self._refuse_if_unsettled(file, head)
                for file, head in known:
                    segment = self._new_segment(file.rpartition(".")[2], head)
                    self._files.rename(file, segment.file)
                    if file.endswith(".spans"):
                        segment.is_known = False
                        found.append(segment)
                self._files.unlink(f"{name}.lock")
        except OSError as error:
            self._say_set_aside(f"{name}.*", f"{_why(error)}; what is left of it was left as it is")

    def _refuse_if_unsettled(self, file: str, head: Head) -> None:
        segment = _Segment(file, 0, head)
        with closing(self._files.open(file)) as opened:
            is_unsettled = any(self._scan_segment(segment, opened))
            self._nbytes -= segment.nbytes
            if is_unsettled:
                raise SpoolError(
                    f"the spool in {self._spool.directory} holds spans for {head.endpoint}, and this batcher sends to "
                    f"{self._endpoint}; send or delete them with trio-spanbatch spool, or give another directory"
                )

    def _head_of(self, file: str) -> Head | None:
        """Return the head of a segment. Remove it if it was never completed, set it aside if it cannot be read."""
        try:
            with closing(self._files.open(file)) as opened:
                if not is_ours(opened):
                    raise PermissionError(errno.EPERM, "it belongs to another user")
                begin, size = opened.read(0, RECORDS_AT), opened.size()
            if size < RECORDS_AT:
                self._files.unlink(file)
                return None
            return Head.unpack(begin)
        except UnreadableSegment as error:
            self._files.rename(file, f"{file.rpartition('.')[0]}.unreadable")
            self._say_set_aside(file, f"{error}; it is now called .unreadable")
        except (NewerFormat, OSError) as error:
            self._say_set_aside(file, f"{_why(error)}; it was left as it is")
        return None

    def _say_set_aside(self, file: str, why: str) -> None:
        self._set_aside += 1
        self._messages.append(f"the spool cannot read {self._files.path / file}: {why}")

    def _remove_old_files(self) -> None:
        """Remove what was kept aside for too long, and the oldest dead letters if there are too many."""
        now = time.time()
        aside = (".damaged", ".unreadable")
        old = [file for file in self._files.names() if file.endswith(aside)] + self._files.files_of(self._name, "dead")
        allowed = self._spool.max_bytes // _DEAD_PART
        for file in reversed(old):
            with suppress(OSError):
                size, age = self._files.size_and_age(file, now)
                allowed -= size
                if age > _KEPT or (allowed < 0 and file.endswith(".dead")):
                    self._files.unlink(file)

    def _scan_piece(self) -> list[Record] | None:
        """Return some of the records that were taken over, or None if there are no more."""
        found = list(itertools.islice(self._scanner or (), _RECORDS_OF_JOB))
        return [record for record in found if record is not None] if found else None

    def _scan(self, segments: Sequence[_Segment]) -> Generator[Record | None]:
        """Yield the records of segments that are not settled, and None for the others."""
        for segment in segments:
            try:
                with closing(self._files.open(segment.file)) as file:
                    segment.is_known = yield from self._scan_segment(segment, file)
                self._remove_if_settled(segment)
            except OSError as error:
                self._say_set_aside(segment.file, f"{_why(error)}; it was left as it is")

    def _scan_segment(self, segment: _Segment, file: File) -> Generator[Record | None, None, bool]:
        """Yield a segment's records like `_scan`. Return whether nothing would be lost with the file."""
        nothing_else = True
        slots = struct.unpack(f"<{SLOTS}I", file.read(SLOTS_AT, SLOT * SLOTS))
        for found in scan(file.read, file.size(), segment.head.marker):
            if isinstance(found, Damage):
                try:
                    self._move_aside(file, found.at, found.size)
                except OSError:
                    nothing_else = False
                continue
            at, header = found
            segment.nbytes += header.size
            self._nbytes += header.size
            if header.slot >= SLOTS or slots[header.slot] == header.mark or segment.holds(header.slot):
                yield None
                continue
            segment.add(header.slot, at, header.size, header.mark)
            yield _record(segment, header.slot, header.location, header.count, header.nbytes, header.oldest)
        return nothing_else

    def _move_aside(self, file: File, at: int, size: int) -> None:
        """Copy damaged bytes to another file, and overwrite them, so that they are counted once."""
        data = file.read(at, size)
        # A power failure can leave zeros in place of what was not synced: there is nothing to keep.
        if data.strip(b"\0"):
            self._keep_aside(data)
            file.write(bytes(len(data)), at)

    def _keep_aside(self, data: bytes) -> None:
        self._damaged += 1
        with closing(self._files.open(f"{self._name}.damaged", os.O_RDWR | os.O_CREAT)) as aside:
            aside.write(data, aside.size())

    # -- records -----------------------------------------------------------------------------------------------

    def _commit(self, records: Sequence[NewRecord]) -> list[Record]:
        with suppress(OSError):
            self._settle()
        packed = [(record, pack_spans(record.spans)) for record in records]
        needed = sum(FIXED_SIZE + len(record.location) + len(spans) for record, spans in packed)
        if self._nbytes + needed > self._spool.max_bytes:
            raise SpoolFullError(needed, self._nbytes, self._spool.max_bytes)
        segment = self._segment_with_room("spans", len(records))
        self._segments[segment.number] = segment
        committed = []
        for (new, _), (slot, at, size, mark) in zip(packed, self._append(segment, packed), strict=True):
            segment.add(slot, at, size, mark)
            segment.nbytes += size
            self._nbytes += size
            committed.append(_record(segment, slot, new.location, len(new.spans), new.nbytes, new.oldest))
        return committed

    def _bury(self, location: str, spans: Sequence[EncodedSpan], reason: str) -> None:
        segment = self._segment_with_room("dead", 1)
        self._append(segment, [(NewRecord(location, spans, 0, time.time()), pack_spans(spans))], reason)
        self._dead += len(spans)

    def _append(
        self, segment: _Segment, packed: Sequence[tuple[NewRecord, bytes]], reason: str = ""
    ) -> list[tuple[int, int, int, int]]:
        """Append records, and return the slot, position, size and mark of each; none of them if this raises."""
        places: list[tuple[int, int, int, int]] = []
        parts: list[bytes] = []
        slot, at, marker = segment.slots, segment.end, segment.head.marker
        for new, spans in packed:
            count = len(new.spans)
            record, mark = pack_record(marker, slot, new.location, spans, count, new.nbytes, new.oldest, reason)
            parts.append(record)
            places.append((slot, at, len(record), mark))
            slot, at = slot + 1, at + len(record)
        self._write(segment, b"".join(parts))
        segment.slots, segment.end = slot, at
        return places

    def _write(self, segment: _Segment, data: bytes) -> None:
        file = segment.appending
        assert file is not None
        try:
            if segment.is_torn:
                file.truncate(segment.end)
            segment.is_torn = True
            file.write(data, segment.end)
            if self._spool.durability == "power":
                self._sync(segment, file)
            segment.is_torn = False
        except OSError:
            with suppress(OSError):
                file.truncate(segment.end)
                segment.is_torn = False
            raise

    def _sync(self, segment: _Segment, file: File) -> None:
        try:
            file.sync()
        except OSError:
            # Nothing that is appended after a failed sync could be trusted.
            segment.slots = SLOTS
            raise

    def _segment_with_room(self, kind: str, records: int) -> _Segment:
        """Return the segment to append to: a new one if the current one is full."""
        segment = self._current.get(kind)
        size = min(_SEGMENT_SIZE, self._spool.max_bytes // _SEGMENTS_OF_MAX_BYTES)
        if segment is not None and segment.slots + records <= SLOTS and segment.end - RECORDS_AT < size:
            return segment
        made = self._make_segment(kind)
        self._current[kind] = made
        if segment is not None and segment.appending is not None:
            segment.appending.close()
            segment.appending = None
            if kind == "dead":
                self._remove_old_files()
            else:
                self._remove_if_settled(segment)
        return made

    def _make_segment(self, kind: str) -> _Segment:
        # The clock may have been set back, and the order of segments is that of their times.
        created = max(time.time(), self._last_created + 1e-3)
        segment = self._new_segment(kind, Head(self._endpoint, os.urandom(8), created))
        file = self._files.make(segment.file)
        try:
            file.write(segment.head.pack(), 0)
            if self._spool.durability == "power":
                self._files.sync()
        except OSError:
            file.close()
            with suppress(OSError):
                self._files.unlink(segment.file)
            raise
        segment.appending = file
        return segment

    def _new_segment(self, kind: str, head: Head) -> _Segment:
        number = self._files_made
        self._files_made += 1
        self._last_created = max(self._last_created, head.created)
        return _Segment(f"{self._name}.{number}.{kind}", number, head)

    def _find(self, token: int) -> tuple[_Segment | None, int]:
        return self._segments.get(token >> _SLOT_BITS), token & (SLOTS - 1)

    def _read(self, token: int) -> list[EncodedSpan]:
        segment, slot = self._find(token)
        if segment is None or not segment.holds(slot):
            raise DamagedRecord(f"record {token} is not in the spool")
        at, size = segment.offsets[slot], segment.sizes[slot]
        try:
            with closing(self._files.open(segment.file)) as file:
                data = file.read(at, size)
                header = read_header(lambda at, size: data[at : at + size], 0, segment.head.marker)
                if isinstance(header, Header) and is_intact(header, spans := data[header.spans_at :]):
                    return unpack_spans(spans)
                try:
                    self._keep_aside(data)
                    self._write_slot(file, segment, slot)
                except OSError:
                    # The next process may be able to.
                    segment.is_known = False
        except FileNotFoundError:
            self._damaged += 1
        self._settled(segment, slot)
        raise DamagedRecord(f"a record of {self._files.path / segment.file} is damaged")

    def _settle(self) -> None:
        """Settle the records whose tokens were handed over."""
        with ExitStack() as opened:
            files: dict[_Segment, File] = {}
            while self._unsettled:
                segment, slot = self._find(self._unsettled[0])
                if segment is not None and segment.holds(slot):
                    with suppress(FileNotFoundError):
                        file = segment.appending or files.get(segment)
                        if file is None:
                            file = files[segment] = opened.enter_context(closing(self._files.open(segment.file)))
                        self._write_slot(file, segment, slot)
                    self._settled(segment, slot)
                self._unsettled.popleft()
        self._rewrite_sparsest()

    def _write_slot(self, file: File, segment: _Segment, slot: int) -> None:
        file.write(segment.marks[slot].to_bytes(SLOT, "little"), SLOTS_AT + SLOT * slot)

    def _settled(self, segment: _Segment, slot: int) -> None:
        segment.live -= 1
        segment.live_bytes -= segment.sizes[slot]
        segment.sizes[slot] = 0
        self._remove_if_settled(segment)

    def _remove_if_settled(self, segment: _Segment) -> None:
        if segment.live or not segment.is_known:
            return
        self._nbytes -= segment.nbytes
        segment.nbytes = 0
        if segment.appending is None and self._segments.pop(segment.number, None) is not None:
            try:
                self._files.unlink(segment.file)
            except OSError as error:
                # The next process removes it.
                self._messages.append(f"the spool cannot remove {self._files.path / segment.file}: {error}")

    def _rewrite_sparsest(self) -> None:
        """If the spool is more than half full, rewrite one segment that mostly consists of settled records."""
        if self._nbytes <= self._spool.max_bytes // 2:
            return
        sparse = [segment for segment in self._segments.values() if segment.may_be_rewritten]
        if sparse:
            segment = max(sparse, key=lambda segment: segment.nbytes - segment.live_bytes)
            try:
                self._rewrite(segment, f"{self._name}.tmp")
            except OSError:
                with suppress(OSError):
                    self._files.unlink(f"{self._name}.tmp")

    def _rewrite(self, segment: _Segment, temporary: str) -> None:
        offsets = segment.offsets[:]
        end = RECORDS_AT
        self._files.unlink(temporary)
        with closing(self._files.open(segment.file)) as old, closing(self._files.make(temporary)) as new:
            new.write(old.read(0, RECORDS_AT), 0)
            for slot, size in enumerate(segment.sizes):
                if size:
                    new.write(old.read(segment.offsets[slot], size), end)
                    offsets[slot], end = end, end + size
            if self._spool.durability == "power":
                new.sync()
            self._files.rename(temporary, segment.file)
        segment.offsets = offsets
        self._nbytes -= segment.nbytes - segment.live_bytes
        segment.nbytes = segment.live_bytes

    def _close(self) -> None:
        try:
            with suppress(OSError):
                self._settle()
            for segment in self._current.values():
                if segment.appending is not None:
                    segment.appending.close()
                    segment.appending = None
                if segment.file.endswith(".spans"):
                    self._remove_if_settled(segment)
        finally:
            self._release()

    @property
    def _files(self) -> Directory:
        assert self._directory is not None, "the spool is not open"
        return self._directory


def _why(error: Exception) -> str:
    return (isinstance(error, OSError) and error.strerror) or str(error)


def _record(segment: _Segment, slot: int, location: str, count: int, nbytes: int, oldest: float) -> Record:
    return Record(segment.number << _SLOT_BITS | slot, location, count, nbytes, oldest)


def _pieces(records: Sequence[NewRecord]) -> Iterator[list[NewRecord]]:
    """Yield the records in pieces that one job can write without taking long."""
    piece: list[NewRecord] = []
    size = 0
    for record in records:
        if piece and (len(piece) == _RECORDS_OF_JOB or size + record.nbytes > PIECE):
            yield piece
            piece, size = [], 0
        piece.append(record)
        size += record.nbytes
    if piece:
        yield piece
