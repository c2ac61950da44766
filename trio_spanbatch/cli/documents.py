"""Parse JSON documents from chunks of bytes: one per line (JSON lines), over several lines, or a mix of both.

Memory use is bounded by the largest line, or the largest document over several lines. Neither may be larger than
`MAX_DOCUMENT_BYTES`.

A line whose last value is incomplete begins a document over several lines. Its lines are held until all brackets are
closed, and parsed once, so that the time grows linearly with the document's size. If a line is a complete request by
itself, the lines held so far are parsed separately, as JSON lines of which some are broken.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import attrs

MAX_DOCUMENT_BYTES = 256 * 1024 * 1024
_TOO_LARGE = (
    f"larger than {MAX_DOCUMENT_BYTES // 1024**2} MiB; write it as JSON lines, with a smaller request in each line"
)

_DECODER = json.JSONDecoder()
# Allowed between two documents. Concatenated files contain byte order marks.
_BETWEEN = " \t\r\n\f\v\ufeff"
_FIRST = re.compile(f"[^{_BETWEEN}]")
# A string ends at the end of its line at the latest. The quantifiers are possessive, so that unclosed quotation marks
# cause no backtracking.
_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"?')
_BRACKETS = re.compile(rb"[][{}]")
_STEPS = {b"{": 1, b"[": 1, b"}": -1, b"]": -1}


@attrs.frozen
class Document:
    """A JSON value, and the line (from 1) on which it begins."""

    line: int
    value: Any


@attrs.frozen
class Unreadable:
    """A line that cannot be read."""

    line: int  # the number of the line, from 1; 0 in a file without lines
    reason: str
    # The data, if it may be the beginning of a JSON value that continues in the next line.
    unfinished: bytes = attrs.field(default=b"", eq=False, repr=False)


class _Held:
    """The lines so far of a value over several lines."""

    def __init__(self, line: int) -> None:
        self.line = line  # the number of the first line
        self._depth = 0
        self._lines: list[bytes] = []
        self._size = -1  # with a line break between two lines

    @property
    def is_too_large(self) -> bool:
        """Whether the lines were discarded. Brackets are still counted, to find the end of the value."""
        return self._size > MAX_DOCUMENT_BYTES

    def add(self, line: bytes) -> bool:
        """Add a line. Return whether the value ends in this line."""
        lowest = self._depth
        for bracket in _BRACKETS.findall(_STRING.sub(b"", line)):
            self._depth += _STEPS[bracket]
            lowest = min(lowest, self._depth)
        self._lines.append(line)
        self._size += len(line) + 1
        if self.is_too_large:
            self._lines.clear()
        return lowest <= 0

    def data(self) -> bytes:
        return b"\n".join(self._lines)

    def by_line(self) -> Iterator[Document | Unreadable]:
        """Yield the values of each line, parsed separately."""
        for number, line in enumerate(self._lines, self.line):
            yield from _values(line, number)


class DocumentParser:
    """Turns chunks of bytes into JSON documents."""

    def __init__(self) -> None:
        self.line: int = 1  # the number of the next line
        self._data = bytearray()  # the beginning of that line
        self._skip_line = False
        self._held: _Held | None = None

    def feed(self, data: bytes) -> Iterator[Document | Unreadable]:
        """Parse the next bytes, and yield what is complete."""
        *ended, rest = data.split(b"\n")
        for piece in ended:
            yield from self._extend_line(piece)
            yield from self._end_line()
        yield from self._extend_line(rest)

    def finish(self) -> Iterator[Document | Unreadable]:
        """Yield what remains at the end of the input."""
        if self._data:
            yield from self._end_line()
        held, self._held = self._held, None
        if held is not None:
            yield from _values(held.data(), held.line)

    def _extend_line(self, piece: bytes) -> Iterator[Unreadable]:
        if self._skip_line:
            return
        self._data += piece
        if len(self._data) > MAX_DOCUMENT_BYTES:
            self._skip_line = True
            self._data.clear()
            yield Unreadable(self.line, _TOO_LARGE)

    def _end_line(self) -> Iterator[Document | Unreadable]:
        line, number = bytes(self._data), self.line
        self._data.clear()
        self._skip_line = False
        self.line += 1
        if self._held is None:
            yield from self._take(line, number)
        else:
            yield from self._hold(self._held, line, number)

    def _take(self, data: bytes, number: int) -> Iterator[Document | Unreadable]:
        """Yield the values in complete lines from ``number`` on. The beginning of an incomplete one is held."""
        for item in _values(data, number):
            if isinstance(item, Unreadable) and item.unfinished:
                self._held = _Held(self.line - 1 - item.unfinished.count(b"\n"))
                self._held.add(item.unfinished)
            else:
                yield item

    def _hold(self, held: _Held, line: bytes, number: int) -> Iterator[Document | Unreadable]:
        if (requests := _whole_requests(line, number)) is not None:
            self._held = None
            yield from held.by_line()
            yield from requests
            return
        was_too_large = held.is_too_large
        is_complete = held.add(line)
        if held.is_too_large and not was_too_large:
            yield Unreadable(held.line, _TOO_LARGE)
        if is_complete:
            self._held = None
            yield from self._take(held.data(), held.line)


def _values(data: bytes, first: int) -> Iterator[Document | Unreadable]:
    """Yield the values in ``data``, which begins with the line ``first``, up to the first that cannot be read."""
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        yield Unreadable(first + data.count(b"\n", 0, error.start), f"not UTF-8: byte 0x{data[error.start]:02x}")
        return
    line, end = first, 0
    while (first_character := _FIRST.search(text, end)) is not None:
        position = first_character.start()
        line += text.count("\n", end, position)
        try:
            value, after = _DECODER.raw_decode(text, position)
        except json.JSONDecodeError as error:
            goes_on = error.pos >= len(text.rstrip(_BETWEEN))
            yield Unreadable(
                first + error.lineno - 1, _reason(error), unfinished=text[position:].encode() if goes_on else b""
            )
            return
        except (ValueError, RecursionError) as error:
            yield Unreadable(line, _reason(error))
            return
        yield Document(line, value)
        line += text.count("\n", position, after)
        end = after


def _whole_requests(line: bytes, number: int) -> list[Document | Unreadable] | None:
    """Return the values in ``line`` if all of them are complete requests, else None."""
    line = line.strip()
    if not (line.startswith(b"{") and line.endswith(b"}")):
        return None
    if b'"resourceSpans"' not in line and b'"resource_spans"' not in line:
        return None
    items = list(_values(line, number))
    return items if all(isinstance(item, Document) for item in items) else None


def _reason(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"not JSON: {error.msg.removesuffix(' at')} at column {error.colno}"
    if isinstance(error, RecursionError):
        return "not read: nested too deeply"
    # Python adds advice that is meant for programs.
    return f"not read: {str(error).partition('; use sys.')[0]}"
