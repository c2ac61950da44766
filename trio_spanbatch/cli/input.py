"""Files of OTLP JSON, read in pieces: one request a line (JSON lines), or one document over many lines.

Memory stays at the size of the largest line, however long the file is. A document over many lines has to be held
as a whole. Neither may be larger than `MAX_DOCUMENT_BYTES`.

Which of the two a file is shows in its first line: if that is an unfinished JSON value, the file is one document,
unless a later line is a whole request by itself; then it was JSON lines with a broken first line.
"""

from __future__ import annotations

import codecs
import gzip
import io
import json
import os
import stat
import zlib
from collections.abc import Iterator
from typing import Any

import attrs
import trio

__all__ = ["MAX_DOCUMENT_BYTES", "Document", "DocumentParser", "InputFile", "InputFileError", "Unreadable"]

MAX_DOCUMENT_BYTES = 256 * 1024 * 1024
_CHUNK = 64 * 1024
_GZIP_MAGIC = b"\x1f"  # no JSON begins with it, and a pipe may give one byte at first
_JSON_SPACE = " \t\r\n"
_TOO_LARGE = f"larger than {MAX_DOCUMENT_BYTES // 1024**2} MiB; write it as JSON lines, one smaller request a line"


@attrs.frozen
class Document:
    """A JSON value, and the line (from 1) on which it begins."""

    line: int
    value: Any


@attrs.frozen
class Unreadable:
    """A line (from 1) that is no JSON, and why.

    Attributes:
        line: The line.
        reason: Why it cannot be read.
        unfinished: Whether it is the beginning of a JSON value that may go on in the next line.
    """

    line: int
    reason: str
    unfinished: bool = attrs.field(default=False, eq=False)


class InputFileError(Exception):
    """A file cannot be opened or read on. The message says why."""


class _AsItComes(io.BufferedReader):
    """Gives what comes through a pipe as soon as it comes. ``GzipFile`` calls ``read``, which would wait for more."""

    def read(self, size: int | None = -1, /) -> bytes:
        return self.read1(-1 if size is None else size)


class InputFile:
    """The bytes of a file, or of standard input for ``-``; unpacked if they begin like gzip.

    Reading waits in a thread, as a pipe may take its time; a cancel leaves the thread behind.
    """

    def __init__(self, name: str) -> None:
        self.name: str = "<stdin>" if name == "-" else name
        self._path = 0 if name == "-" else name
        self._buffered: io.BufferedReader | None = None
        self._unpacked: io.BufferedReader | gzip.GzipFile | None = None
        self._in_thread = False

    async def read(self) -> bytes:
        """Return the next bytes, at most 64 KiB, and none at the end of the file.

        Raises:
            InputFileError: The file cannot be opened, or its gzip data is damaged.
        """
        self._in_thread = True
        try:
            data = await trio.to_thread.run_sync(self._read, abandon_on_cancel=True)
        except InputFileError:
            self._in_thread = False
            raise
        self._in_thread = False
        return data

    def _read(self) -> bytes:
        try:
            if self._unpacked is None:
                self._unpacked = self._open()
            return self._unpacked.read1(_CHUNK)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise InputFileError(f"the gzip data is damaged: {error}") from error
        except OSError as error:
            raise InputFileError(f"cannot be read: {error.strerror or error}") from error

    def _open(self) -> io.BufferedReader | gzip.GzipFile:
        self._buffered = _AsItComes(io.FileIO(self._path, closefd=self._path != 0), _CHUNK)
        packed = self._buffered.peek(1)[:1] == _GZIP_MAGIC
        return gzip.GzipFile(fileobj=self._buffered) if packed else self._buffered

    @property
    def position(self) -> int:
        """How many bytes of the file were read, packed as they are; 0 where that cannot be known (a pipe)."""
        try:
            return 0 if self._buffered is None else self._buffered.raw.tell()
        except OSError:
            return 0

    def size(self) -> int | None:
        """Return the size of the file in bytes, or None if it is no regular file."""
        try:
            status = os.stat(self._path)  # noqa: PTH116 - the path may be a file descriptor
        except OSError:
            return None
        return status.st_size if stat.S_ISREG(status.st_mode) else None

    def close(self) -> None:
        """Close the file, unless a cancelled `read` still uses it in its thread."""
        if self._buffered is not None and not self._in_thread:
            self._buffered.close()


class DocumentParser:
    """Bytes in, JSON documents out. Knows nothing of files."""

    def __init__(self) -> None:
        self.line: int = 1  # the line that comes next
        self._parts: list[bytes] = []  # the beginning of that line
        self._parts_size = 0
        self._skip_line = False
        self._skip_rest = False
        self._lines_only = False  # JSON lines for sure
        self._held: list[bytes] = []  # the lines so far of what may be a document over many lines
        self._held_size = 0
        self._held_from = 1

    def feed(self, data: bytes) -> Iterator[Document | Unreadable]:
        """Take in the next bytes, and yield what is complete."""
        *ended, rest = data.split(b"\n")
        for piece in ended:
            yield from self._extend_line(piece)
            yield from self._end_line()
        yield from self._extend_line(rest)

    def finish(self) -> Iterator[Document | Unreadable]:
        """Yield what the end of the input completes."""
        if self._parts:
            yield from self._end_line()
        if self._held:
            yield from self._held_documents()

    def _extend_line(self, piece: bytes) -> Iterator[Unreadable]:
        if self._skip_line or self._skip_rest or not piece:
            return
        self._parts.append(piece)
        self._parts_size += len(piece)
        if self._parts_size > MAX_DOCUMENT_BYTES:
            self._skip_line = True
            self._parts, self._parts_size = [], 0
            yield Unreadable(self.line, _TOO_LARGE)

    def _end_line(self) -> Iterator[Document | Unreadable]:
        line, number = b"".join(self._parts), self.line
        self._parts, self._parts_size, self._skip_line = [], 0, False
        self.line += 1
        if number == 1:
            line = line.removeprefix(codecs.BOM_UTF8)
        if self._held:
            yield from self._hold(line, number)
        elif line and not line.isspace():
            yield from self._line(line, number)

    def _line(self, line: bytes, number: int) -> Iterator[Document | Unreadable]:
        parsed = _parse(line, number)
        if isinstance(parsed, Document):
            self._lines_only = True
            yield parsed
        elif parsed.unfinished and not self._lines_only:
            self._held, self._held_size, self._held_from = [line], len(line), number
        else:
            yield parsed

    def _hold(self, line: bytes, number: int) -> Iterator[Document | Unreadable]:
        if _may_be_request(line) and isinstance(request := _parse(line, number), Document):
            for offset, broken in enumerate(self._held):
                if broken and not broken.isspace():
                    yield _parse(broken, self._held_from + offset)
            self._held, self._lines_only = [], True
            yield request
            return
        self._held.append(line)
        self._held_size += len(line) + 1
        if self._held_size > MAX_DOCUMENT_BYTES:
            self._held, self._skip_rest = [], True
            yield Unreadable(self._held_from, _TOO_LARGE)

    def _held_documents(self) -> Iterator[Document | Unreadable]:
        """Yield the documents of what was held: one, or several one after the other, as ``jq`` writes them."""
        data, self._held = b"\n".join(self._held), []
        try:
            text = data.decode()
        except UnicodeDecodeError as error:
            yield Unreadable(self._held_from + data.count(b"\n", 0, error.start), _not_utf8(error))
            return
        decoder, position, text = json.JSONDecoder(), 0, text.rstrip(_JSON_SPACE)
        while position < len(text):
            if text[position] in _JSON_SPACE:
                position += 1
                continue
            line = self._held_from + text.count("\n", 0, position)
            try:
                value, position = decoder.raw_decode(text, position)
            except (ValueError, RecursionError) as error:
                at = error.lineno - 1 if isinstance(error, json.JSONDecodeError) else line - self._held_from
                yield Unreadable(self._held_from + at, _reason(error))
                return
            yield Document(line, value)


def _parse(line: bytes, number: int) -> Document | Unreadable:
    try:
        return Document(number, json.loads(line.decode()))
    except UnicodeDecodeError as error:
        return Unreadable(number, _not_utf8(error))
    except json.JSONDecodeError as error:
        return Unreadable(number, _reason(error), unfinished=error.pos >= len(error.doc.rstrip(_JSON_SPACE)))
    except (ValueError, RecursionError) as error:
        return Unreadable(number, _reason(error))


def _may_be_request(line: bytes) -> bool:
    line = line.strip()
    return line.startswith(b"{") and line.endswith(b"}") and (b'"resourceSpans"' in line or b'"resource_spans"' in line)


def _reason(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"not JSON: {error.msg.removesuffix(' at')} at column {error.colno}"
    if isinstance(error, RecursionError):
        return "not read: nested too deeply"
    # Python's advice is for programs.
    return f"not read: {str(error).partition('; use sys.')[0]}"


def _not_utf8(error: UnicodeDecodeError) -> str:
    return f"not UTF-8: byte 0x{error.object[error.start]:02x}"
