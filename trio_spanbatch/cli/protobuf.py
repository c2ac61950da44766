"""Read protobuf requests from chunks of bytes. Requests in a row are one request, so they need no separator.

Memory use is bounded by the largest ``ResourceSpans``, which may not be larger than `MAX_DOCUMENT_BYTES`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import ClassVar

import attrs

from .._errors import InvalidSpanError
from .._spans.batch import EncodedSpan, SpanBatch
from .documents import MAX_DOCUMENT_BYTES, Unreadable

# A request begins with the tag of its first field, which JSON takes for an empty line; then comes a control character,
# at the latest between the key and the value of the first attribute. JSON contains none.
_BEGIN = re.compile(rb"\n[^\0-\x08\x0e-\x1f]*[\0-\x08\x0e-\x1f]")
_TAG = 0x0A
# Where the first attribute's value must have begun.
_LOOKED_AT = 16 * 1024


@attrs.frozen
class Envelope:
    """A ``ResourceSpans``: the position of its first byte in the file, and its spans."""

    line: ClassVar[int] = 0  # these files have no lines
    at: int
    spans: Sequence[EncodedSpan]


def is_undecided(data: bytes) -> bool:
    """Whether a file that begins with ``data`` may be either protobuf or JSON."""
    return data[:1] in (b"", b"\n") and len(data) < _LOOKED_AT and not is_protobuf(data)


def is_protobuf(data: bytes) -> bool:
    """Whether a file that begins with ``data`` contains protobuf rather than JSON."""
    return _BEGIN.match(data[:_LOOKED_AT]) is not None


class RequestParser:
    """Turns chunks of bytes into envelopes."""

    line = 0

    def __init__(self) -> None:
        self._data = bytearray()
        self._at = 0
        self._is_lost = False

    def feed(self, data: bytes) -> Iterator[Envelope | Unreadable]:
        """Parse the next bytes, and yield what is complete."""
        if self._is_lost:
            return
        self._data += data
        try:
            while size := _size_of_first(self._data, self._at):
                piece = bytes(self._data[:size])
                try:
                    yield Envelope(self._at, SpanBatch.from_request("", piece).spans)
                except InvalidSpanError as error:
                    place = re.sub(r"^byte (\d+) of the data", lambda at: f"byte {self._at + int(at[1])}", str(error))
                    yield Unreadable(0, place)
                del self._data[:size]
                self._at += size
        except ValueError as error:
            # Where the next envelope begins is not known.
            self._is_lost = True
            yield Unreadable(0, f"{error}; the rest of the file is not read")

    def finish(self) -> Iterator[Envelope | Unreadable]:
        """Yield an error if the file ends inside an envelope."""
        if self._data and not self._is_lost:
            yield Unreadable(0, f"the file is cut off: the envelope that begins at byte {self._at} has no end")


def _size_of_first(data: bytearray, at: int) -> int:
    """Return the size of the first field with its tag, 0 if it is not complete; raise `ValueError` if it is invalid."""
    if data and data[0] != _TAG:
        raise ValueError(f"byte {at} does not begin a ResourceSpans of an ExportTraceServiceRequest")
    size = 0
    for place in range(1, min(len(data), 11)):
        size |= (data[place] & 0x7F) << 7 * (place - 1)
        if size > MAX_DOCUMENT_BYTES:
            raise ValueError(f"byte {at} begins an envelope larger than {MAX_DOCUMENT_BYTES // 1024**2} MiB")
        if data[place] < 0x80:
            return place + 1 + size if place + 1 + size <= len(data) else 0
    if len(data) > 10:
        raise ValueError(f"byte {at} begins an envelope whose size does not end")
    return 0
