"""``trio-spanbatch spool``: list, send, export, check and delete what batchers have left in a spool.

Only files whose lock is free are opened. Each is locked while it is used, as the batcher that takes it over would do.
"""

from __future__ import annotations

import base64
import math
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, Final

import attrs
import trio

from .._batcher import SpanBatcher
from .._exporter import SpanExporter
from .._reporting.statistics import Loss
from .._spans.batch import EncodedSpan, SpanBatch
from .._spool.disk import DiskStore, endpoint_of
from .._spool.files import OWN_DIRECTORY, Directory, File, check_given, is_ours
from .._spool.log import (
    RECORDS_AT,
    Head,
    Header,
    UnreadableSegment,
    is_intact,
    scan,
    settled_slots,
    short_enough,
    unpack_spans,
)
from .._spool.settings import Spool
from .._spool.store import DamagedRecord, Record, SpoolError
from .progress import SendProgress, work_bar
from .screen import Screen
from .send import SHUTDOWN_TIMEOUT, SendResult, SendSettings, send
from .tally import Tally

# Records and bytes that are sent before the next ones are read. They are settled together.
_ROUND_RECORDS: Final = 4096
_ROUND_BYTES: Final = 16 * 1024 * 1024
_MAX_ROWS: Final = 25
# The most locations that are counted separately. The others are counted together.
_MAX_LOCATIONS: Final = 100_000
_OTHERS: Final = "other locations"
_UNITS: Final = ((86_400, "d"), (3600, "h"), (60, "min"))


@attrs.frozen
class Segment:
    """An open segment of a batcher that has ended."""

    file: str
    opened: File
    head: Head

    @property
    def is_dead(self) -> bool:
        """Whether it has dead letters."""
        return self.file.endswith(".dead")

    def records(self, *, settled: bool = False) -> Iterator[tuple[int, int, Header | None]]:
        """Yield position, size and header of the records that are not settled, or of all, and None for damage."""
        omitted = set() if settled else settled_slots(self.opened.read, self.head.marker)
        for at, size, header in scan(self.opened.read, self.opened.size(), self.head.marker):
            if header is None and not self.opened.read(at, size).strip(b"\0"):
                # Not synced before a power failure, or moved aside by a batcher.
                continue
            if header is None or header.slot not in omitted:
                yield at, size, header


class SpoolFiles:
    """The files in a spool.

    Args:
        path: The directory that batchers are given.
        screen: For messages and progress.

    Attributes:
        directory: The open directory; None if no batcher has used it yet.
        problems: How many parts could not be read. Each was reported.
        in_use: How many batchers have the spool open.

    Raises:
        SpoolError: It cannot be used.
    """

    def __init__(self, path: Path, screen: Screen) -> None:
        self.path = path
        self.problems: int = 0
        self.in_use: int = 0
        self._screen = screen
        self.directory: Directory | None = None
        try:
            path.stat()
        except FileNotFoundError as error:
            raise SpoolError(f"{path} does not exist; name the one that the program gives to Spool") from error
        # If no batcher has used it yet, it stays as it is.
        if os.path.lexists(path / OWN_DIRECTORY) or not path.is_dir():
            self.directory = Directory(path)
        elif path.name == OWN_DIRECTORY:
            raise SpoolError(f"{path} is a spool's own directory; name the one that it is in, {path.parent}")
        else:
            check_given(path)

    def report(self, file: str, problem: str) -> None:
        self.problems += 1
        self._screen.warn(f"{self.path / OWN_DIRECTORY / file}: {problem}")

    def report_damage(self, file: str, at: int, size: int) -> None:
        self.report(file, f"{size:,} bytes from byte {at} on are damaged")

    def segments(self, work: str = "reading") -> Iterator[Segment]:
        """Yield all segments that are not in use, the oldest of each batcher first, with a progress bar."""
        directory = self.directory
        if directory is None:
            return
        sizes = 0
        for file in directory.names():
            with suppress(OSError):
                sizes += directory.size_and_age(file, 0)[0]
        with work_bar(work, sizes, self._screen) as advance:
            for name in directory.batchers():
                lock = directory.try_lock(name)
                if lock is None:
                    self.in_use += 1
                    continue
                with closing(lock):
                    yield from self._segments_of(name, directory, advance)
                    # Removed by its holder only.
                    directory.unlink(f"{name}.lock")
        if self.in_use:
            batchers = "a batcher has" if self.in_use == 1 else f"{self.in_use:,} batchers have"
            self._screen.warn(f"{self.path}: {batchers} it open; the files that are in use were left alone")

    def _segments_of(self, name: str, directory: Directory, advance: Callable[[int], None]) -> Iterator[Segment]:
        for file in directory.files_of(name, "spans", "dead"):
            try:
                with closing(directory.open(file)) as opened:
                    size = opened.size()
                    if not is_ours(opened):
                        self.report(file, "it belongs to another user; it was left alone")
                    elif size >= RECORDS_AT:  # else no record was ever committed to it
                        yield Segment(file, opened, Head.unpack(opened.read(0, RECORDS_AT)))
                    advance(size)
            except UnreadableSegment as error:
                self.report(file, f"{error}; it was left alone")
            except OSError as error:
                self.report(file, error.strerror or str(error))

    def records(
        self, *, dead: bool | None = None, location: str | None = None
    ) -> Iterator[tuple[Segment, int, Header]]:
        """Yield the records that are not settled, of all kinds and locations or of some. Report damage."""
        for segment in self.segments():
            if dead is None or segment.is_dead == dead:
                for at, size, header in segment.records():
                    if header is None:
                        self.report_damage(segment.file, at, size)
                    elif location is None or header.location == location:
                        yield segment, at, header

    def contents(
        self, *, dead: bool | None = None, location: str | None = None
    ) -> Iterator[tuple[Segment, int, Header, list[EncodedSpan]]]:
        """Yield the same with their spans."""
        for segment, at, header in self.records(dead=dead, location=location):
            data = segment.opened.read(at + header.spans_at, header.size - header.spans_at)
            if is_intact(header, data):
                yield segment, at, header, unpack_spans(data)
            else:
                self.report(segment.file, f"the record at byte {at}, with {header.count:,} spans, is damaged")

    def report_kept_aside(self, problem: str) -> None:
        """Report the files with what was damaged when a batcher took it over."""
        for name in sorted(self.directory.names() if self.directory else ()):
            if name.endswith((".damaged", ".unreadable")):
                self.report(name, problem)


@attrs.define
class Counts:
    """What is in a spool, or of one location."""

    spans: int = 0
    bytes: int = 0
    oldest: float = math.inf  # in seconds of Unix time
    dead: int = 0

    def add(self, segment: Segment, header: Header) -> None:
        if segment.is_dead:
            self.dead += header.count
        else:
            self.spans += header.count
            self.bytes += header.size
            self.oldest = min(self.oldest, header.oldest)

    def document(self) -> dict[str, Any]:
        age = round(max(time.time() - self.oldest, 0), 3) if self.spans else None
        return {"spans": self.spans, "bytes": self.bytes, "oldest_seconds": age, "dead": self.dead}

    def cells(self) -> list[str]:
        age = _age(max(time.time() - self.oldest, 0)) if self.spans else "-"
        return [f"{self.spans:,}", f"{self.bytes:,}", age, f"{self.dead:,}"]


def _age(seconds: float) -> str:
    size, unit = next((part for part in _UNITS if seconds >= 2 * part[0]), (1, "s"))
    return f"{seconds // size:,.0f} {unit}"


@attrs.frozen
class Summary:
    """What is in a spool."""

    total: Counts = attrs.Factory(Counts)
    locations: dict[str, Counts] = attrs.Factory(dict)
    endpoints: set[str] = attrs.Factory(set)  # the servers that the spans are for
    reasons: Counter[tuple[str, str]] = attrs.Factory(Counter)  # of dead letters, by location and reason

    def add(self, segment: Segment, header: Header) -> None:
        known = header.location in self.locations or len(self.locations) < _MAX_LOCATIONS
        location = header.location if known else _OTHERS
        for counts in (self.total, self.locations.setdefault(location, Counts())):
            counts.add(segment, header)
        if not segment.is_dead:
            self.endpoints.add(segment.head.endpoint)
        elif len(self.reasons) < _MAX_ROWS or (location, header.reason) in self.reasons:
            self.reasons[location, header.reason] += header.count

    def document(self, batchers_open: int) -> dict[str, Any]:
        locations = {name: counts.document() for name, counts in sorted(self.locations.items())}
        more = {"endpoints": sorted(self.endpoints), "batchers_open": batchers_open, "locations": locations}
        return {**self.total.document(), **more}

    def show(self, screen: Screen) -> None:
        rows = [[name, *counts.cells()] for name, counts in sorted(self.locations.items())]
        total = [] if len(rows) == 1 else [["total", *self.total.cells()]]
        screen.table(("location", "spans", "bytes", "oldest", "dead"), rows[:_MAX_ROWS] + total)
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
        summary.add(segment, header)
    return summary


def export(files: SpoolFiles, *, dead: bool, location: str | None) -> Iterator[dict[str, Any]]:
    """Yield the spans, or the dead letters, as OTLP JSON, one request a record."""
    from google.protobuf.json_format import MessageToDict
    from google.protobuf.message import DecodeError

    for segment, at, header, spans in files.contents(dead=dead, location=location):
        try:
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


def _make_ids_hex(part: dict[str, Any]) -> None:
    # Unlike protobuf's JSON, that of OTLP has ids in hex.
    for name in ("traceId", "spanId", "parentSpanId"):
        if name in part:
            part[name] = base64.b64decode(part[name]).hex()


def check(files: SpoolFiles, screen: Screen) -> None:
    """Read everything and compare the checksums. Each problem is reported and counted."""
    records, spans = Counter[bool](), Counter[bool]()
    for segment, _, header, _ in files.contents():
        records[segment.is_dead] += 1
        spans[segment.is_dead] += header.count
    files.report_kept_aside("a batcher has moved this aside, as it was damaged; it is removed after a week")
    screen.say(f"intact: {spans[False]:,} spans in {records[False]:,} records, and {spans[True]:,} dead letters")


def delete(files: SpoolFiles, location: str, screen: Screen) -> None:
    """Remove the spans and dead letters of a location, also those that are settled. Each file is replaced in one step.

    Raises:
        OSError: The disk failed.
    """
    deleted = Counter[bool]()
    for segment in files.segments("deleting"):
        live, is_gone = [], False
        settled = settled_slots(segment.opened.read, segment.head.marker)
        for at, size, header in segment.records(settled=True):
            if header is None:
                files.report_damage(segment.file, at, size)
            elif header.location == location:
                is_gone = True
                deleted[segment.is_dead] += 0 if header.slot in settled else header.count
            elif header.slot not in settled:
                live.append((at, size))
        if is_gone and files.directory is not None:
            if live:
                files.directory.rewrite(segment.file, segment.opened, live, sync=True)
            else:
                files.directory.unlink(segment.file)
            files.directory.sync()
    files.report_kept_aside("it is damaged, and may contain spans of any location; remove it if it must not be kept")
    screen.say(f"{location}: {deleted[False]:,} spans and {deleted[True]:,} dead letters deleted")


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
    store = DiskStore(Spool(files.path), endpoint, tell=screen.warn, keep_all_dead=True)
    await store.open()
    try:
        return await send(settings, exporter, screen, _SpoolSource(store, files, screen, summary.total.spans))
    finally:
        with trio.move_on_after(SHUTDOWN_TIMEOUT, shield=True):
            await store.close()
        store.abandon()


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
    _undelivered: set[tuple[str, bytes]] = attrs.field(factory=set, init=False)
    _rejected: list[Loss] = attrs.field(factory=list, init=False)
    _reported: set[str] = attrs.field(factory=set, init=False)

    async def send(self, batcher: SpanBatcher, tally: Tally, progress: SendProgress) -> None:
        nbytes = 0
        async for piece in self._store.adopted():
            for record in piece:
                await self._send_record(batcher, tally, record)
                progress.position += record.count
                nbytes += record.nbytes
                if len(self._round) >= _ROUND_RECORDS or nbytes >= _ROUND_BYTES:
                    nbytes = 0
                    await batcher.flush()
                    await self.finish()

    async def _send_record(self, batcher: SpanBatcher, tally: Tally, record: Record) -> None:
        try:
            spans = await self._store.read(record.token)
            await batcher.add_spans(record.location, spans)
        except (DamagedRecord, ValueError, OSError) as error:
            left = record.count - getattr(error, "accepted", 0)
            tally.add_invalid(record.location, left)
            self._say(f"{record.location}: {left:,} spans were not sent: {error}")
        else:
            self._round.append((record, spans))

    def add_loss(self, loss: Loss) -> None:
        if loss.outcome == "rejected":
            self._rejected.append(loss)
        else:
            self._keep(loss)

    def _keep(self, loss: Loss) -> None:
        self._undelivered.update((loss.location, span.payload) for span in loss.batch.spans)

    async def finish(self) -> None:
        """Settle the records of this round, and keep its rejected spans as dead letters."""
        for loss in self._rejected:
            all_of_them = loss.count == len(loss.batch.spans)
            reason = loss.reason if all_of_them else f"{loss.count} of {len(loss.batch.spans)} spans: {loss.reason}"
            try:
                await self._store.bury(loss.location, loss.batch.spans, reason)
            except OSError as error:
                self._say(f"{loss.location}: rejected spans stay in the spool, as dead letters cannot be kept: {error}")
                self._keep(loss)
        kept = self._undelivered
        settled = [
            record.token
            for record, spans in self._round
            if not kept or not any((record.location, span.payload) in kept for span in spans)
        ]
        self._round, self._undelivered, self._rejected = [], set(), []
        try:
            await self._store.settle(settled)
        except OSError as error:
            self._say(f"{len(settled):,} delivered records stay in the spool, and will be sent again: {error}")

    def _say(self, problem: str) -> None:
        self._files.problems += 1
        if problem not in self._reported and len(self._reported) < _MAX_LOCATIONS:
            self._reported.add(problem)
            self._screen.warn(problem)
