"""``trio-spanbatch spool``: list, send, export, check and delete what batchers have left in a spool.

Only files whose lock is free are opened. Each is locked while it is used, as the batcher that takes it over would do.
"""

from __future__ import annotations

import base64
import math
import os
import struct
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, Final

import attrs
import trio

from .._batcher import SpanBatcher
from .._exporter import SpanExporter
from .._reporting.statistics import Loss
from .._spans.batch import EncodedSpan, SpanBatch
from .._spool.disk import DiskStore
from .._spool.files import OWN_DIRECTORY, Directory, File, cannot_use, is_ours
from .._spool.log import (
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
    scan,
    short_enough,
    unpack_spans,
)
from .._spool.settings import Spool
from .._spool.store import DamagedRecord, Record, SpoolError
from .progress import SendProgress, WorkProgress
from .screen import Screen
from .send import SHUTDOWN_TIMEOUT, SendResult, SendSettings, send
from .tally import Tally

# A batcher drops old dead letters beyond a part of ``max_bytes``. That of its own settings is not known here.
_UNLIMITED: Final = 1 << 62
# Records and bytes that are sent before the next ones are read. They are settled together.
_ROUND_RECORDS: Final = 4096
_ROUND_BYTES: Final = 16 * 1024 * 1024
_MAX_ROWS: Final = 25
# The most locations that are counted separately. The others are counted together.
_MAX_LOCATIONS: Final = 100_000
_OTHERS: Final = "other locations"
_UNITS: Final = ((86_400, "d"), (3600, "h"), (60, "min"))
_COLUMNS: Final = ("location", "spans", "bytes", "oldest", "dead")


@attrs.frozen
class Segment:
    """An open segment of a batcher that has ended."""

    name: str
    file: str
    opened: File
    head: Head

    @property
    def is_dead(self) -> bool:
        """Whether it has dead letters."""
        return self.file.endswith(".dead")

    def found(self, *, settled: bool = False) -> Iterator[tuple[int, Header] | Damage]:
        """Yield the positions and headers of the records that are not settled, or of all, and damage."""
        slots = struct.unpack(f"<{SLOTS}I", self.opened.read(SLOTS_AT, SLOT * SLOTS))
        for item in scan(self.opened.read, self.opened.size(), self.head.marker):
            if isinstance(item, Damage) or settled or slots[item[1].slot % SLOTS] != item[1].mark:
                yield item

    def spans(self, at: int, header: Header) -> list[EncodedSpan] | None:
        """Return the spans of a record, None if they are damaged."""
        data = self.opened.read(at + header.spans_at, header.size - header.spans_at)
        return unpack_spans(data) if is_intact(header, data) else None


class SpoolFiles:
    """The files in a spool.

    Args:
        path: The directory that batchers are given.
        screen: For messages and progress.

    Attributes:
        problems: How many parts could not be read. Each was reported.
        in_use: How many batchers have the spool open.

    Raises:
        SpoolError: It cannot be used.
    """

    def __init__(self, path: Path, screen: Screen) -> None:
        self.path = path
        self.problems = 0
        self.in_use = 0
        self._screen = screen
        self._directory: Directory | None = None
        try:
            path.stat()
            # If no batcher has used it yet, it stays as it is.
            if os.path.lexists(path / OWN_DIRECTORY) or not path.is_dir():
                self._directory = Directory(path)
        except FileNotFoundError as error:
            raise SpoolError(f"{path} does not exist; name the one that the program gives to Spool") from error
        except OSError as error:
            raise cannot_use(path, error) from error

    @property
    def directory(self) -> Directory:
        """The open directory."""
        assert self._directory is not None, "there are no files"
        return self._directory

    def report(self, file: str, problem: str) -> None:
        self.problems += 1
        self._screen.warn(f"{self.path / OWN_DIRECTORY / file}: {problem}")

    def say_what_is_in_use(self) -> None:
        if self.in_use:
            batchers = "a batcher has" if self.in_use == 1 else f"{self.in_use:,} batchers have"
            self._screen.warn(f"{self.path}: {batchers} it open; the files that are in use were left alone")

    def segments(self, work: str = "reading") -> Iterator[Segment]:
        """Yield all segments that are not in use, the oldest of each batcher first, with a progress bar."""
        if self._directory is None:
            return
        sizes = 0
        for file in self._directory.names():
            with suppress(OSError):
                sizes += self._directory.size_and_age(file, 0)[0]
        progress = WorkProgress(work, sizes, self._screen)
        with progress.bars:
            for name in self._directory.batchers():
                yield from self._segments_of(name, progress)

    def _segments_of(self, name: str, progress: WorkProgress) -> Iterator[Segment]:
        try:
            lock = self.directory.try_lock(name)
        except OSError as error:
            raise cannot_use(self.path, error) from error
        if lock is None:
            self.in_use += 1
            return
        with closing(lock):
            for file in self.directory.files_of(name, "spans", "dead"):
                try:
                    with closing(self.directory.open(file, os.O_RDWR)) as opened:
                        size = opened.size()
                        if not is_ours(opened):
                            self.report(file, "it belongs to another user; it was left alone")
                        elif size >= RECORDS_AT:  # else no record was ever committed to it
                            yield Segment(name, file, opened, Head.unpack(opened.read(0, RECORDS_AT)))
                        progress.advance(size)
                except (UnreadableSegment, NewerFormat) as error:
                    self.report(file, f"{error}; it was left alone")
                except OSError as error:
                    self.report(file, error.strerror or str(error))
            # Removed by its holder only.
            self.directory.unlink(f"{name}.lock")

    def records(
        self, *, dead: bool | None = None, location: str | None = None
    ) -> Iterator[tuple[Segment, int, Header]]:
        """Yield the records that are not settled, of all kinds and locations or of some. Report damage."""
        for segment in self.segments():
            if dead is None or segment.is_dead == dead:
                for item in segment.found():
                    if isinstance(item, Damage):
                        self.report(segment.file, f"{item.size:,} bytes from byte {item.at} on are damaged")
                    elif location is None or item[1].location == location:
                        yield segment, *item

    def kept_aside(self) -> list[str]:
        """Return the files with what was damaged when a batcher took it over."""
        names = [] if self._directory is None else self._directory.names()
        return sorted(name for name in names if name.endswith((".damaged", ".unreadable")))


@attrs.define
class Counts:
    """What is in a spool, or of one location."""

    spans: int = 0
    bytes: int = 0
    oldest: float = math.inf  # in seconds of Unix time
    dead: int = 0

    def add(self, other: Counts) -> None:
        self.spans += other.spans
        self.bytes += other.bytes
        self.oldest = min(self.oldest, other.oldest)
        self.dead += other.dead

    def document(self, now: float) -> dict[str, Any]:
        age = round(max(now - self.oldest, 0), 3) if self.spans else None
        return {"spans": self.spans, "bytes": self.bytes, "oldest_seconds": age, "dead": self.dead}

    def cells(self, now: float) -> list[str]:
        age = _age(max(now - self.oldest, 0)) if self.spans else "-"
        return [f"{self.spans:,}", f"{self.bytes:,}", age, f"{self.dead:,}"]


@attrs.frozen
class Summary:
    """What is in a spool."""

    total: Counts = attrs.Factory(Counts)
    locations: dict[str, Counts] = attrs.Factory(dict)
    endpoints: set[str] = attrs.Factory(set)  # the servers that the spans are for
    reasons: Counter[tuple[str, str]] = attrs.Factory(Counter)  # of dead letters, by location and reason

    def document(self, batchers_open: int) -> dict[str, Any]:
        now = time.time()
        locations = {name: counts.document(now) for name, counts in sorted(self.locations.items())}
        more = {"endpoints": sorted(self.endpoints), "batchers_open": batchers_open, "locations": locations}
        return {**self.total.document(now), **more}

    def show(self, screen: Screen) -> None:
        now = time.time()
        rows = [[name, *counts.cells(now)] for name, counts in sorted(self.locations.items())]
        total = [] if len(rows) == 1 else [["total", *self.total.cells(now)]]
        screen.table(_COLUMNS, rows[:_MAX_ROWS] + total)
        if len(rows) > _MAX_ROWS:
            screen.say(f"and {len(rows) - _MAX_ROWS:,} more locations; --json shows them all")
        for endpoint in sorted(self.endpoints)[:_MAX_ROWS]:
            screen.say(f"for {endpoint}")
        for (location, reason), count in self.reasons.most_common():
            screen.say(f"{location}: {count:,} dead: {reason}")


def summary_of(files: SpoolFiles) -> Summary:
    """Return what is in a spool. Only headers are read."""
    summary = Summary()
    for segment, _, header in files.records():
        counts = Counts(header.count, header.size, header.oldest)
        if segment.is_dead:
            counts = Counts(dead=header.count)
            if len(summary.reasons) < _MAX_ROWS or (header.location, header.reason) in summary.reasons:
                summary.reasons[header.location, header.reason] += header.count
        else:
            summary.endpoints.add(segment.head.endpoint)
        known = header.location in summary.locations or len(summary.locations) < _MAX_LOCATIONS
        summary.locations.setdefault(header.location if known else _OTHERS, Counts()).add(counts)
        summary.total.add(counts)
    files.say_what_is_in_use()
    return summary


def _age(seconds: float) -> str:
    size, unit = next((part for part in _UNITS if seconds >= 2 * part[0]), (1, "s"))
    return f"{seconds // size:,.0f} {unit}"


def export(files: SpoolFiles, *, dead: bool, location: str | None) -> Iterator[dict[str, Any]]:
    """Yield the spans, or the dead letters, as OTLP JSON, one request a record."""
    from google.protobuf.json_format import MessageToDict
    from google.protobuf.message import DecodeError

    for segment, at, header in files.records(dead=dead, location=location):
        spans = segment.spans(at, header)
        try:
            if spans is None:
                raise ValueError("its checksum is wrong")
            message = SpanBatch(header.location, spans).to_message()
            document = MessageToDict(message, use_integers_for_enums=True)
        except (DecodeError, ValueError, RecursionError) as error:
            files.report(segment.file, f"the record at byte {at}, with {header.count:,} spans, cannot be read: {error}")
            continue
        for resource_spans in document.get("resourceSpans", ()):
            for scope_spans in resource_spans.get("scopeSpans", ()):
                for span in scope_spans.get("spans", ()):
                    for part in (span, *span.get("links", ())):
                        _make_ids_hex(part)
        yield document
    files.say_what_is_in_use()


def _make_ids_hex(part: dict[str, Any]) -> None:
    # Unlike protobuf's JSON, that of OTLP has ids in hex.
    for name in ("traceId", "spanId", "parentSpanId"):
        if name in part:
            part[name] = base64.b64decode(part[name]).hex()


def check(files: SpoolFiles, screen: Screen) -> None:
    """Read everything and compare the checksums. Each problem is reported and counted."""
    records, spans = Counter[bool](), Counter[bool]()
    for segment, at, header in files.records():
        if segment.spans(at, header) is None:
            files.report(segment.file, f"the record at byte {at}, with {header.count:,} spans, is damaged")
        else:
            records[segment.is_dead] += 1
            spans[segment.is_dead] += header.count
    for name in files.kept_aside():
        files.report(name, "a batcher has moved this aside, as it was damaged; it is removed after a week")
    files.say_what_is_in_use()
    screen.say(f"intact: {spans[False]:,} spans in {records[False]:,} records, and {spans[True]:,} dead letters")


def delete(files: SpoolFiles, location: str, screen: Screen) -> None:
    """Remove the spans and dead letters of a location, also those that are settled. Each file is replaced in one step.

    Raises:
        SpoolError: The disk failed.
    """
    deleted = Counter[bool]()
    for segment in files.segments("deleting"):
        items = list(segment.found(settled=True))
        for item in items:
            if isinstance(item, Damage):
                files.report(segment.file, f"{item.size:,} bytes from byte {item.at} on are damaged")
        if any(not isinstance(item, Damage) and item[1].location == location for item in items):
            live = [item for item in segment.found() if not isinstance(item, Damage)]
            kept = [item for item in live if item[1].location != location]
            try:
                _write_without(files.directory, segment, kept)
            except OSError as error:
                raise cannot_use(files.path, error) from error
            deleted[segment.is_dead] += sum(item[1].count for item in live) - sum(item[1].count for item in kept)
    for name in files.kept_aside():
        files.report(name, "it is damaged, and may contain spans of any location; remove it if it must not be kept")
    files.say_what_is_in_use()
    screen.say(f"{location}: {deleted[False]:,} spans and {deleted[True]:,} dead letters deleted")


def _write_without(directory: Directory, segment: Segment, kept: Sequence[tuple[int, Header]]) -> None:
    """Replace a segment by one with the ``kept`` records only."""
    if kept:
        temporary = f"{segment.name}.tmp"
        directory.unlink(temporary)
        with closing(directory.make(temporary)) as new:
            new.write(segment.opened.read(0, RECORDS_AT), 0)
            end = RECORDS_AT
            for at, header in kept:
                for begin in range(0, header.size, PIECE):
                    data = segment.opened.read(at + begin, min(PIECE, header.size - begin))
                    new.write(data, end)
                    end += len(data)
            new.sync()
        directory.rename(temporary, segment.file)
    else:
        directory.unlink(segment.file)
    directory.sync()


async def send_spool(
    files: SpoolFiles, summary: Summary, settings: SendSettings, exporter: SpanExporter, screen: Screen
) -> SendResult:
    """Send what is in a spool. A record is settled once none of its spans can be lost any more.

    Raises:
        SpoolError: The spool cannot be used, or is for another server.
    """
    endpoint = endpoint_of(exporter)
    others = sorted(summary.endpoints - {short_enough(endpoint)})
    if others:
        raise SpoolError(
            f"{files.path} holds spans for {others[0]}, and these options send to {endpoint}; name the same server "
            "with --to and --endpoint, or export the spans with trio-spanbatch spool export and send that file"
        )
    store = DiskStore(Spool(files.path, max_bytes=_UNLIMITED), endpoint, tell=screen.warn)
    await store.open()
    try:
        return await send(settings, exporter, screen, _SpoolSource(store, files, screen, summary.total.spans))
    finally:
        with trio.move_on_after(SHUTDOWN_TIMEOUT, shield=True):
            await store.close()
        store.abandon()


def endpoint_of(exporter: SpanExporter) -> str:
    """Return how a spool names the server that ``exporter`` sends to."""
    endpoint = getattr(exporter, "endpoint", None)
    return endpoint if isinstance(endpoint, str) else f"{type(exporter).__module__}.{type(exporter).__qualname__}"


@attrs.define
class _SpoolSource:
    """Sends the records of a store in rounds, and settles those of a round that were delivered or rejected as a whole.

    The losses of a round are noted by content: a queue holds only the bytes of spans.
    """

    _store: DiskStore
    _files: SpoolFiles
    _screen: Screen
    total: int
    _round: list[tuple[Record, Sequence[EncodedSpan]]] = attrs.field(factory=list, init=False)
    _bytes: int = attrs.field(default=0, init=False)
    _undelivered: set[tuple[str, bytes]] = attrs.field(factory=set, init=False)
    _rejected: list[Loss] = attrs.field(factory=list, init=False)
    _reported: set[str] = attrs.field(factory=set, init=False)

    async def send(self, batcher: SpanBatcher, tally: Tally, progress: SendProgress) -> None:
        async for piece in self._store.adopted():
            for record in piece:
                await self._send_record(batcher, tally, record)
                progress.position += record.count
                if len(self._round) >= _ROUND_RECORDS or self._bytes >= _ROUND_BYTES:
                    await batcher.flush()
                    await self.finish()

    async def _send_record(self, batcher: SpanBatcher, tally: Tally, record: Record) -> None:
        try:
            spans = await self._store.read(record.token)
            await batcher.add_spans(record.location, spans)
        except (DamagedRecord, ValueError, OSError) as error:
            left = record.count - getattr(error, "accepted", 0)
            tally.invalid += left
            tally.invalid_by_location[record.location] += left
            self._say(f"{record.location}: {left:,} spans were not sent: {error}")
        else:
            self._round.append((record, spans))
            self._bytes += record.nbytes

    def add_loss(self, loss: Loss) -> None:
        """Note a loss."""
        if loss.outcome == "rejected":
            self._rejected.append(loss)
        else:
            self._undelivered.update((loss.location, span.payload) for span in loss.batch.spans)

    async def finish(self) -> None:
        """Settle the records of this round, and keep its rejected spans as dead letters."""
        kept = self._undelivered
        for loss in self._rejected:
            all_of_them = loss.count == len(loss.batch.spans)
            reason = loss.reason if all_of_them else f"{loss.count} of {len(loss.batch.spans)} spans: {loss.reason}"
            try:
                await self._store.bury(loss.location, loss.batch.spans, reason)
            except OSError as error:
                self._say(f"{loss.location}: rejected spans stay in the spool, as dead letters cannot be kept: {error}")
                kept.update((loss.location, span.payload) for span in loss.batch.spans)
        settled = [
            record.token
            for record, spans in self._round
            if not any((record.location, span.payload) in kept for span in spans)
        ]
        self._round, self._bytes, self._undelivered, self._rejected = [], 0, set(), []
        try:
            await self._store.settle(settled)
        except OSError as error:
            self._say(f"{len(settled):,} delivered records stay in the spool, and will be sent again: {error}")

    def _say(self, problem: str) -> None:
        self._files.problems += 1
        if problem not in self._reported and len(self._reported) < _MAX_LOCATIONS:
            self._reported.add(problem)
            self._screen.warn(problem)
