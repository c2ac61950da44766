"""The format of a segment: the file that records are appended to.

::

    head | slots | head | record | record | ...

The *head* has the format's version, the endpoint that the spans are for, the time at which the segment was made, and a
random *marker*. It is there twice, so that damage to one leaves the other. It has no credentials.

A *record* is a fixed part, the location, a reason (of dead letters only) and the spans. The fixed part begins with the
marker and has its own checksum, one of the location and reason, and one of the spans. So the length of a record can
be trusted even if the rest is damaged, and a reader that only wants to know what there is skips the spans. After a
damaged fixed part, the reader searches for the next marker with a valid fixed part. As nobody outside knows the marker,
no span can contain something that a reader would take for a record of another location.

Each record has a number in its segment, and *slots* has four bytes for each number: zero at first, and `mark_of` the
record once it is settled. Anything else means that it is not settled, so damage to a slot at worst sends spans again.
The slots are written as zeros when the segment is made. Settling overwrites them and therefore needs no space: it works
on a disk that others have filled. When all records of a segment are settled, the file is removed.

What is on disk if the process ends or the disk fails, at each point:

- *While a segment is made.* A file that ends before its first record is removed.
- *While a commit is written.* A record whose end is missing is ignored. Whole records are there, and sent by the next
  process: the outcome of this commit was unknown. If writing or syncing failed and the process goes on, its records are
  settled, now or later, and nothing more is appended to that segment: there may be a part of a record at its end, and
  after a failed sync the kernel may have dropped what it could not write, and later syncs would not tell.
- *After a commit.* The records are in the file, which the kernel writes even if the process is killed. With
  ``durability="power"`` the file was synced, and its directory once, after the segment was made.
- *After spans were delivered, before their record is settled,* and while its slot is written. They are sent again:
  delivery is at least once. Slots are never synced, so a power failure has the same effect.
- *While a segment is rewritten without its settled records.* The new file has another name until it is complete, and
  then replaces the old one in one step. Numbers and slots stay as they are.
- *While files of an ended process are taken over.* They are renamed one by one, under that process's lock and this
  one's. Each has one name or the other, and both names can be taken over by the next process.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Iterator
from typing import Final, TypeAlias
from zlib import crc32

import attrs

from .._spans.batch import EncodedSpan, SpanHeaders, runs_of_spans
from .store import NewRecord

VERSION: Final = 1
# Slots of a segment, and so the most records of one.
SLOTS: Final = 4096
SLOT: Final = 4
# The most bytes that are read or written in one call.
PIECE: Final = 256 * 1024

_HEAD_SIZE: Final = 1024
SLOTS_AT: Final = _HEAD_SIZE
RECORDS_AT: Final = 2 * _HEAD_SIZE + SLOT * SLOTS

_MAGIC: Final = b"tsbspool"
# Magic number, version, checksum of what follows; length of the endpoint, marker, time.
_HEAD_BEGIN = struct.Struct("<8sHI")
_HEAD = struct.Struct("<H8sd")
_HEAD_AT: Final = _HEAD_BEGIN.size
_MAX_ENDPOINT: Final = _HEAD_SIZE - _HEAD_AT - _HEAD.size

# Marker and checksum; then the slot, the checksums of the names and of the spans, the size of the spans, their number,
# their cost in the batcher's byte budgets, the time of the first one, and the sizes of the location and of the reason.
_BEGIN = struct.Struct("<8sI")
_FIXED = struct.Struct("<IIIIIQdHH")
FIXED_SIZE: Final = _BEGIN.size + _FIXED.size
# Nearly all locations fit in what is read along with the fixed part.
_READ_AHEAD: Final = 256
# Consecutive spans with the same resource and scope: their number, and the sizes of resource and scope; then each
# span's size, and then the bytes of all these.
_RUN = struct.Struct("<III")
_MAX_REASON: Final = 2000

ReadAt: TypeAlias = Callable[[int, int], bytes]


class UnreadableSegment(Exception):
    """Neither head of a segment can be read."""


class NewerFormat(UnreadableSegment):
    """A newer version of this package has written the segment."""


@attrs.frozen
class Head:
    """The head of a segment."""

    endpoint: str
    marker: bytes
    created: float

    def pack(self) -> bytes:
        """Return what a segment begins with: both heads and the slots."""
        endpoint = self.endpoint.encode(errors="surrogatepass")
        content = _HEAD.pack(len(endpoint), self.marker, self.created) + endpoint
        content = content.ljust(_HEAD_SIZE - _HEAD_AT, b"\0")
        head = _HEAD_BEGIN.pack(_MAGIC, VERSION, crc32(content)) + content
        return head + bytes(SLOT * SLOTS) + head

    @classmethod
    def unpack(cls, begin: bytes) -> Head:
        """Return the head out of what a segment begins with.

        Raises:
            UnreadableSegment: Both heads are damaged, or a newer version has written it (`NewerFormat`).
        """
        newer = 0
        begin = begin.ljust(RECORDS_AT, b"\0")
        for at in (0, RECORDS_AT - _HEAD_SIZE):
            magic, version, checksum = _HEAD_BEGIN.unpack_from(begin, at)
            content = begin[at + _HEAD_AT : at + _HEAD_SIZE]
            if magic == _MAGIC and version > VERSION:
                newer = version
            elif magic == _MAGIC and crc32(content) == checksum:
                size, marker, created = _HEAD.unpack_from(content)
                endpoint = content[_HEAD.size : _HEAD.size + size]
                return cls(endpoint.decode(errors="surrogatepass"), marker, created)
        if newer:
            raise NewerFormat(
                f"it has format {newer}, and this version of trio-spanbatch reads formats up to {VERSION}"
            )
        raise UnreadableSegment("it does not begin like a file of a spool")


def short_enough(endpoint: str) -> str:
    """Return ``endpoint`` as it is stored in a head: without what does not fit."""
    return endpoint.encode(errors="surrogatepass")[:_MAX_ENDPOINT].decode(errors="ignore")


@attrs.frozen
class Header:
    """What is known of a record without its spans, which begin at ``spans_at``."""

    slot: int
    spans_crc: int
    count: int
    nbytes: int
    oldest: float
    location: str
    reason: str
    spans_at: int
    size: int


def pack_spans(spans: Iterable[EncodedSpan]) -> bytes:
    """Return the spans as they are in a record."""
    parts: list[bytes] = []
    for headers, payloads in runs_of_spans(spans):
        parts.append(_RUN.pack(len(payloads), len(headers.resource), len(headers.scope)))
        parts.append(struct.pack(f"<{len(payloads)}I", *map(len, payloads)))
        parts += headers.resource, headers.scope, *payloads
    return b"".join(parts)


def unpack_spans(data: bytes) -> list[EncodedSpan]:
    """Return the spans out of a record whose checksum is right."""
    spans = []
    at = 0
    while at < len(data):
        count, resource, scope = _RUN.unpack_from(data, at)
        sizes = struct.unpack_from(f"<{count}I", data, at + _RUN.size)
        at += _RUN.size + 4 * count
        headers = SpanHeaders(data[at : at + resource], data[at + resource : at + resource + scope])
        at += resource + scope
        for size in sizes:
            spans.append(EncodedSpan(data[at : at + size], headers))
            at += size
    return spans


def pack_record(marker: bytes, slot: int, new: NewRecord, reason: str = "") -> bytes:
    """Return a record."""
    spans = pack_spans(new.spans)
    location = new.location.encode(errors="surrogatepass")
    why = reason[:_MAX_REASON].encode(errors="surrogatepass")
    names = location + why
    checksums = crc32(names), crc32(spans)
    sizes = len(location), len(why)
    fixed = _FIXED.pack(slot, *checksums, len(spans), len(new.spans), new.nbytes, new.oldest, *sizes)
    return b"".join((_BEGIN.pack(marker, crc32(fixed)), fixed, names, spans))


def mark_of(marker: bytes, slot: int) -> bytes:
    """Return what the slot of a settled record contains: never zeros, and nothing that damage brings about."""
    return (crc32(marker + slot.to_bytes(SLOT, "little")) | 1).to_bytes(SLOT, "little")


def settled_slots(read: ReadAt, marker: bytes) -> set[int]:
    """Return the slots of a segment whose records are settled."""
    slots = enumerate(struct.iter_unpack(f"{SLOT}s", read(SLOTS_AT, SLOT * SLOTS)))
    return {slot for slot, (mark,) in slots if any(mark) and mark == mark_of(marker, slot)}


def is_intact(header: Header, spans: bytes) -> bool:
    """Return whether the checksum of a record's spans is right."""
    return crc32(spans) == header.spans_crc and len(spans) == header.size - header.spans_at


def read_header(read: ReadAt, at: int, marker: bytes) -> Header | int | None:
    """Return the header of the record at ``at``; if only its names are damaged, its size; otherwise None."""
    data = read(at, FIXED_SIZE + _READ_AHEAD)
    if not _is_fixed_part(data, 0, marker):
        return None
    slot, names_crc, spans_crc, size, count, nbytes, oldest, *sizes = _FIXED.unpack_from(data, _BEGIN.size)
    spans_at = FIXED_SIZE + sum(sizes)
    names = data[FIXED_SIZE:spans_at] if spans_at <= len(data) else read(at + FIXED_SIZE, spans_at - FIXED_SIZE)
    if crc32(names) != names_crc:
        return int(spans_at + size)
    location, reason = (part.decode(errors="surrogatepass") for part in (names[: sizes[0]], names[sizes[0] :]))
    return Header(slot, spans_crc, count, nbytes, oldest, location, reason, spans_at, spans_at + size)


def _is_fixed_part(data: bytes, at: int, marker: bytes) -> bool:
    fixed = data[at + _BEGIN.size : at + FIXED_SIZE]
    return data[at : at + _BEGIN.size] == _BEGIN.pack(marker, crc32(fixed)) and len(fixed) == _FIXED.size


def scan(read: ReadAt, size: int, marker: bytes) -> Iterator[tuple[int, int, Header | None]]:
    """Yield position, size and header of each record, without a look at its spans, and damage in between with None.

    The end of a commit that was not written completely is no damage.
    """
    at = before = RECORDS_AT
    while size - at >= FIXED_SIZE:
        header = read_header(read, at, marker)
        record_size = header.size if isinstance(header, Header) else header
        is_torn = record_size is not None and at + record_size > size
        if isinstance(header, Header) and not is_torn:
            yield at, header.size, header
            before = at
            at += header.size
            continue
        # If bytes of a record are missing, the next one begins inside the place that it had.
        following = _next_record(read, before + 1, size, marker)
        if following == at:
            following = _next_record(read, at + 1, size, marker)
        if following > at and not (is_torn and following == size):
            yield at, following - at, None
        at = before = following


def _next_record(read: ReadAt, at: int, size: int, marker: bytes) -> int:
    """Return where the next fixed part from ``at`` on is, or ``size``."""
    while size - at >= FIXED_SIZE:
        data = read(at, PIECE)
        if len(data) < FIXED_SIZE:
            break
        found = data.find(marker)
        while found >= 0:
            if _is_fixed_part(data, found, marker):
                return at + found
            found = data.find(marker, found + 1)
        # A fixed part may begin in this piece and end in the next one.
        at += len(data) - FIXED_SIZE + 1
    return size
