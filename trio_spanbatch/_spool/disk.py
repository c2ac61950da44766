"""The store on disk.

All work is done in a thread of the store's own, one job after the other (`DiskStore._run`), as a disk can block and the
program's threads may be busy. With `trio.to_thread` each job would cost some 60 us of CPU time, four times what a small
commit itself takes; with a queue it is about 35, and 10 with ten jobs at a time. A job that hangs cannot be
interrupted. So a cancelled call leaves its job alone, and what that commits is settled afterwards; one that has not
begun does not begin any more. After `DiskStore.abandon` no further one begins, and the thread closes the files and
ends. It is a daemon, since it may never end. Everything that a job changes is changed by jobs only, apart from the
tokens to settle, which are handed over in a deque. A mock clock that jumps does not wait for threads, so with one, jobs
are done in the trio run.

A token is the number of a segment and a slot. Of a record, memory holds where it is and its size.
"""

from __future__ import annotations

import errno
import itertools
import math
import os
import re
import secrets
import sys
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Generator, Sequence
from contextlib import closing, suppress
from functools import partial
from queue import SimpleQueue
from typing import Any, Final, TypeVar, TypeVarTuple, cast

import attrs
import trio

from .._settings.policies import MIB
from .._spans.batch import EncodedSpan
from . import log
from .files import Directory, File, cannot_use, is_ours
from .log import RECORDS_AT, SLOT, SLOTS, SLOTS_AT, Head
from .settings import Spool
from .store import DamagedRecord, NewRecord, Pieces, Record, SpoolError, SpoolFullError, StoreStatistics

_T = TypeVar("_T")
_Ts = TypeVarTuple("_Ts")

# Bytes after which a new segment is begun; less if ``max_bytes`` is small, as a segment is removed as a whole.
_SEGMENT_SIZE: Final = 8 * MIB
_SEGMENTS_OF_MAX_BYTES: Final = 16
# Records of one job, so that none takes long.
_RECORDS_OF_JOB: Final = 256
# Seconds for which dead letters and damaged pieces are kept, after which they are looked for again, and after which
# dead letters go to a new file; and the part of ``max_bytes`` that dead letters may take.
_KEPT: Final = 7 * 24 * 3600.0
_LOOKED_FOR_AFTER: Final = 3600.0
_DEAD_TOGETHER: Final = 24 * 3600.0
_DEAD_PART: Final = 8
# New random names to try. Another process may take one over before it is locked.
_NAMES: Final = 10


@attrs.define(eq=False)
class _Call:
    """A job for the thread, and how it ended.

    Attributes:
        job: None if nobody waits for it any more.
        undo: Called in the trio run with the result if it comes after that.
    """

    job: Callable[[], object] | None
    undo: Callable[[Any], object]
    result: Any = None
    error: BaseException | None = None
    done: trio.Event = attrs.Factory(trio.Event)


@attrs.define(eq=False)
class _Segment:
    """A segment that is known, and the records in it that are not settled.

    Attributes:
        number: Its number in tokens.
        appending: Its file, while records are appended, where ``end`` is.
        slots: How many slots are used.
        live: Position and size of each record that is not settled, by its slot.
        live_bytes: The sum of these sizes.
        nbytes: Bytes of all records, settled ones included; 0 if there is no other.
        is_known: Whether all of its records are known. If not, its file is kept.
    """

    file: str
    number: int
    head: Head
    appending: File | None = None
    slots: int = 0
    end: int = RECORDS_AT
    live: dict[int, tuple[int, int]] = attrs.Factory(dict)
    live_bytes: int = 0
    nbytes: int = 0
    is_known: bool = True


class DiskStore:
    """A `Store` in a directory.

    Args:
        spool: The settings.
        endpoint: Identifies the server that the spans are for, without credentials. What was kept for another one is
            not taken over.
        tell: Called, in the trio run, with messages about files that were set aside.
        keep_all_dead: Keep dead letters whatever ``max_bytes`` is, as somebody does who does not know the program's.
    """

    def __init__(
        self,
        spool: Spool,
        endpoint: str,
        *,
        tell: Callable[[str], object] = lambda _: None,
        keep_all_dead: bool = False,
    ) -> None:
        self._spool = spool
        self._dead_bytes = math.inf if keep_all_dead else spool.max_bytes // _DEAD_PART
        self._endpoint = log.short_enough(endpoint)
        self._tell = tell
        self._is_open = False
        self._has_thread = True
        self._calls: SimpleQueue[_Call | None] = SimpleQueue()
        self._messages: deque[str] = deque()
        self._unsettled: deque[int] = deque()
        # By segment, the slots of those tokens that are to be settled.
        self._to_settle: dict[int, set[int]] = {}

        self._directory: Directory | None = None
        self._lock: File | None = None
        self._name = ""
        self._files_made, self._last_created, self._look_for_old_at = 0, 0.0, 0.0
        self._segments: dict[int, _Segment] = {}
        self._current: dict[str, _Segment] = {}
        self._scanner: Generator[Record | None] | None = None
        self._nbytes = self._damaged = self._set_aside = self._dead = 0

    # -- calls from the trio run -------------------------------------------------------------------------------

    async def open(self) -> None:
        testing = sys.modules.get("trio.testing")
        if testing is not None and isinstance(trio.lowlevel.current_clock(), testing.MockClock):
            self._has_thread = False
        else:
            token = trio.lowlevel.current_trio_token()
            thread = threading.Thread(target=self._work, args=[token], name="trio-spanbatch spool", daemon=True)
            try:
                thread.start()
            except RuntimeError as error:
                raise SpoolError(f"the spool cannot use {self._spool.directory}: {error}") from error
        self._is_open = True
        try:
            await self._run(self._open)
        except BaseException:
            self.abandon()
            raise

    def adopted(self) -> AsyncIterator[Sequence[Record]]:
        return Pieces(self._next_piece)

    async def _next_piece(self) -> Sequence[Record] | None:
        try:
            return await self._run(self._scan_piece)
        except OSError:
            # The store was closed.
            return None

    async def commit(self, records: Sequence[NewRecord], settled: Sequence[int] = ()) -> Sequence[Record]:
        self._unsettled.extend(settled)
        committed: list[Record] = []
        try:
            for start in range(0, len(records), _RECORDS_OF_JOB):
                part = partial(self._commit, records[start : start + _RECORDS_OF_JOB])
                committed += await self._run(part, undo=self._undo)
        except BaseException:
            # None of them is committed if one is not.
            self._undo(committed)
            raise
        return committed

    def _undo(self, committed: Sequence[Record]) -> None:
        self._unsettled.extend(record.token for record in committed)

    async def settle(self, tokens: Sequence[int]) -> None:
        self._unsettled.extend(tokens)
        await self._run(self._settle)

    async def read(self, token: int) -> Sequence[EncodedSpan]:
        return await self._run(self._read, token)

    async def bury(self, location: str, spans: Sequence[EncodedSpan], reason: str) -> None:
        await self._run(self._bury, location, spans, reason)

    async def close(self) -> None:
        with suppress(OSError):
            await self._run(self._close)
        self.abandon()

    def abandon(self) -> None:
        self._is_open = False
        if self._has_thread:
            self._calls.put(None)
        else:
            self._release()

    def statistics(self) -> StoreStatistics:
        return StoreStatistics(self._nbytes, self._damaged, self._set_aside, self._dead)

    async def _run(self, job: Callable[[*_Ts], _T], *args: *_Ts, undo: Callable[[Any], object] = lambda _: None) -> _T:
        """Run a job in the thread. If this is cancelled, a job that has begun goes on, and is undone afterwards."""
        if not self._is_open:
            raise OSError(errno.EBADF, "the spool is closed")
        call = _Call(partial(job, *args), undo)
        if self._has_thread:
            self._calls.put(call)
        else:
            self._do(call)
            call.done.set()
        try:
            await call.done.wait()
        except BaseException:
            call.job = None
            if call.done.is_set():
                self._finish(call)
            raise
        while self._messages:
            self._tell(self._messages.popleft())
        if call.error is not None:
            raise call.error
        return cast(_T, call.result)

    # -- the thread --------------------------------------------------------------------------------------------

    def _work(self, token: trio.lowlevel.TrioToken) -> None:
        """Do jobs until the store is abandoned or the trio run has ended, and then close all files."""
        with suppress(trio.RunFinishedError):
            while (call := self._calls.get()) is not None:
                self._do(call)
                token.run_sync_soon(self._finish, call)
        self._release()

    @staticmethod
    def _finish(call: _Call) -> None:
        call.done.set()
        if call.job is None and call.error is None:
            call.undo(call.result)

    def _do(self, call: _Call) -> None:
        try:
            job = call.job
            if job is None or not self._is_open:
                raise OSError(errno.EBADF, "the spool is closed")
            call.result = job()
        except BaseException as error:  # noqa: ASYNC103  # raised where the job is waited for
            call.error = error

    def _release(self) -> None:
        """Close all files, and with them the lock."""
        if self._scanner is not None:
            self._scanner.close()
        for segment in self._current.values():
            if segment.appending is not None:
                segment.appending.close()
        if self._lock is not None:
            with suppress(OSError):
                self._files.unlink(f"{self._name}.lock")
            self._lock.close()
            self._lock = None
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
            raise cannot_use(self._spool.directory, error) from error
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
            self._say_set_aside(f"{name}.*", error, "what is left of it was left as it is")

    def _refuse_if_unsettled(self, file: str, head: Head) -> None:
        with closing(self._files.open(file)) as opened:
            settled = log.settled_slots(opened.read, head.marker)
            records = log.scan(opened.read, opened.size(), head.marker)
            if any(header is not None and header.slot not in settled for _, _, header in records):
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
        except (log.NewerFormat, OSError) as error:
            self._say_set_aside(file, error, "it was left as it is")
        except log.UnreadableSegment as error:
            self._files.rename(file, f"{file.rpartition('.')[0]}.unreadable")
            self._say_set_aside(file, error, "it is now called .unreadable")
        return None

    def _say_set_aside(self, file: str, error: Exception, done: str) -> None:
        self._set_aside += 1
        why = (isinstance(error, OSError) and error.strerror) or error
        self._messages.append(f"the spool cannot read {self._files.path / file}: {why}; {done}")

    def _remove_old_files(self) -> None:
        """Remove what was kept aside for too long, and the oldest dead letters if there are too many."""
        now = time.time()
        self._look_for_old_at = now + _LOOKED_FOR_AFTER
        aside = (".damaged", ".unreadable")
        old = [file for file in self._files.names() if file.endswith(aside)] + self._files.files_of(self._name, "dead")
        allowed = self._dead_bytes
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
                    yield from self._scan_segment(segment, file)
                self._remove_if_settled(segment)
            except OSError as error:
                self._say_set_aside(segment.file, error, "it was left as it is")

    def _scan_segment(self, segment: _Segment, file: File) -> Generator[Record | None]:
        settled = log.settled_slots(file.read, segment.head.marker)
        is_known, damaged = True, 0
        for at, size, header in log.scan(file.read, file.size(), segment.head.marker):
            if header is None:
                try:
                    damaged += self._move_aside(file, at, size)
                except OSError:
                    is_known = False
                continue
            segment.nbytes += size
            self._nbytes += size
            slot = header.slot
            if slot >= SLOTS or slot in segment.live or slot in settled:
                yield None
            else:
                yield _add(segment, slot, at, size, header.location, header.count, header.nbytes, header.oldest)
        segment.is_known = is_known
        if damaged:
            where = f"{self._files.path / segment.file}; they were moved to {self._name}.damaged"
            self._messages.append(f"spans are lost: {damaged:,} damaged bytes were found in {where}")

    def _move_aside(self, file: File, at: int, size: int) -> int:
        """Copy damaged bytes to another file, and overwrite them, so that they are counted once. Return how many."""
        data = file.read(at, size)
        # A power failure can leave zeros in place of what was not synced: there is nothing to keep.
        if not data.strip(b"\0"):
            return 0
        self._keep_aside(data)
        file.write(bytes(len(data)), at)
        return len(data)

    def _keep_aside(self, data: bytes) -> None:
        self._damaged += 1
        with closing(self._files.open(f"{self._name}.damaged", os.O_RDWR | os.O_CREAT)) as aside:
            aside.write(data, aside.size())

    # -- records -----------------------------------------------------------------------------------------------

    def _commit(self, records: Sequence[NewRecord]) -> list[Record]:
        with suppress(OSError):
            self._settle()
        segment = self._segment_with_room("spans", len(records))
        self._segments[segment.number] = segment
        marker = segment.head.marker
        packed = [log.pack_record(marker, slot, new) for slot, new in enumerate(records, segment.slots)]
        needed = sum(map(len, packed))
        if self._nbytes + needed > self._spool.max_bytes:
            raise SpoolFullError(needed, self._nbytes, self._spool.max_bytes)
        committed: list[Record] = []
        at = segment.end
        for slot, (new, data) in enumerate(zip(records, packed, strict=True), segment.slots):
            committed.append(_add(segment, slot, at, len(data), new.location, len(new.spans), new.nbytes, new.oldest))
            at += len(data)
        segment.nbytes += needed
        self._nbytes += needed
        try:
            self._append(segment, packed)
        except OSError:
            # Some of them may be complete in the file.
            self._unsettled.extend(record.token for record in committed)
            with suppress(OSError):
                self._settle()
            raise
        return committed

    def _bury(self, location: str, spans: Sequence[EncodedSpan], reason: str) -> None:
        segment = self._segment_with_room("dead", 1, _DEAD_TOGETHER)
        new = NewRecord(location, spans, 0, time.time())
        self._append(segment, [log.pack_record(segment.head.marker, segment.slots, new, reason)])
        self._dead += len(spans)

    def _append(self, segment: _Segment, records: Sequence[bytes]) -> None:
        """Append records. If this fails, nothing can be appended behind what was written of them."""
        assert segment.appending is not None
        data = b"".join(records)
        at, slots = segment.end, segment.slots
        segment.slots = SLOTS
        segment.appending.write(data, at)
        if self._spool.durability == "power":
            segment.appending.sync()
        segment.end, segment.slots = at + len(data), slots + len(records)

    def _segment_with_room(self, kind: str, records: int, max_age: float = math.inf) -> _Segment:
        """Return the segment to append to: a new one if the current one is full or too old."""
        segment = self._current.get(kind)
        size = min(_SEGMENT_SIZE, self._spool.max_bytes // _SEGMENTS_OF_MAX_BYTES)
        if segment is not None and segment.slots + records <= SLOTS and segment.end - RECORDS_AT < size:
            is_too_old = time.time() >= segment.head.created + max_age
            if not is_too_old:
                return segment
        made = self._current[kind] = self._make_segment(kind)
        if segment is not None:
            self._stop_appending(segment)
        return made

    def _stop_appending(self, segment: _Segment) -> None:
        if segment.appending is not None:
            segment.appending.close()
            segment.appending = None
        if segment.file.endswith(".dead"):
            self._remove_old_files()
        else:
            self._remove_if_settled(segment)

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

    def _read(self, token: int) -> list[EncodedSpan]:
        segment, slot = self._segments.get(token // SLOTS), token % SLOTS
        if segment is None or slot not in segment.live:
            raise DamagedRecord(f"record {token} is not in the spool")
        at, size = segment.live[slot]
        try:
            with closing(self._files.open(segment.file)) as file:
                header = log.read_header(file.read, at, segment.head.marker)
                if isinstance(header, log.Header):
                    spans = file.read(at + header.spans_at, size - header.spans_at)
                    if log.is_intact(header, spans):
                        return log.unpack_spans(spans)
                try:
                    self._keep_aside(file.read(at, size))
                    self._write_slots(segment, [slot])
                except OSError:
                    # The next process may be able to.
                    segment.is_known = False
        except FileNotFoundError:
            self._damaged += 1
        self._settled(segment, [slot])
        raise DamagedRecord(f"a record of {self._files.path / segment.file} is damaged")

    def _settle(self) -> None:
        """Settle the records whose tokens were handed over."""
        while self._unsettled:
            number, slot = divmod(self._unsettled.popleft(), SLOTS)
            self._to_settle.setdefault(number, set()).add(slot)
        for number, slots in tuple(self._to_settle.items()):
            segment = self._segments.get(number)
            if segment is not None and (known := sorted(slots & segment.live.keys())):
                with suppress(FileNotFoundError):
                    self._write_slots(segment, known)
                self._settled(segment, known)
            del self._to_settle[number]
        self._rewrite_sparsest()
        if time.time() >= self._look_for_old_at:
            with suppress(OSError):
                self._remove_old_files()

    def _write_slots(self, segment: _Segment, slots: Sequence[int]) -> None:
        """Mark records as settled. Those whose slots are next to each other cost one operation."""
        file = segment.appending or self._files.open(segment.file)
        try:
            for _, run in itertools.groupby(enumerate(slots), lambda place: place[1] - place[0]):
                adjacent = [slot for _, slot in run]
                marks = b"".join(log.mark_of(segment.head.marker, slot) for slot in adjacent)
                file.write(marks, SLOTS_AT + SLOT * adjacent[0])
        finally:
            if file is not segment.appending:
                file.close()

    def _settled(self, segment: _Segment, slots: Sequence[int]) -> None:
        segment.live_bytes -= sum(segment.live.pop(slot)[1] for slot in slots)
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
        """If the spool is more than half full, rewrite the segment with the most settled bytes, if most of it is."""
        if self._nbytes <= self._spool.max_bytes // 2:
            return
        complete = [segment for segment in self._segments.values() if segment.is_known and segment.appending is None]
        segment = max(complete, key=lambda segment: segment.nbytes - segment.live_bytes, default=None)
        if segment is None or 2 * segment.live_bytes > segment.nbytes:
            return
        with suppress(OSError), closing(self._files.open(segment.file)) as old:
            is_synced = self._spool.durability == "power"
            moved = self._files.rewrite(segment.file, old, segment.live.values(), sync=is_synced)
            segment.live = dict(zip(segment.live, moved, strict=True))
            self._nbytes -= segment.nbytes - segment.live_bytes
            segment.nbytes = segment.live_bytes

    def _close(self) -> None:
        try:
            with suppress(OSError):
                self._settle()
            for segment in self._current.values():
                self._stop_appending(segment)
        finally:
            self._release()

    @property
    def _files(self) -> Directory:
        assert self._directory is not None, "the spool is not open"
        return self._directory


def endpoint_of(exporter: object) -> str:
    """Return how a spool names the server that ``exporter`` sends to: spans for one are not to be sent to another."""
    endpoint = getattr(exporter, "endpoint", None)
    if isinstance(endpoint, str):
        # The exporters of this package refuse URLs with credentials. Another one may not.
        return re.sub(r"(?<=//)[^/]*@", "", endpoint.partition("?")[0])
    return f"{type(exporter).__module__}.{type(exporter).__qualname__}"


def _add(
    segment: _Segment, slot: int, at: int, size: int, location: str, count: int, nbytes: int, oldest: float
) -> Record:
    """Remember a record that is not settled, and return what is known of it."""
    segment.live[slot] = at, size
    segment.live_bytes += size
    return Record(segment.number * SLOTS + slot, location, count, nbytes, oldest)
