"""`JSONFileExporter`: append spans to a file, as lines of OTLP JSON.

It writes in the event loop, not in a thread. Writing a batch copies it to the operating system's cache, which takes
less time than a garbage collection. A thread would take longer, could not be cancelled, so that it would delay the end
of a drain, and trio's mock clock does not wait for threads. Encoding takes longer than writing, and is done in pieces.
"""

from __future__ import annotations

import fcntl
import io
import json
import os
import stat
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import trio

from .._exporter import Delivered, ExportResult, TryLater
from .._spans.checks import shown

if TYPE_CHECKING:
    from google.protobuf.message import Message
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
    from opentelemetry.proto.trace.v1.trace_pb2 import Span

    from .._spans.batch import SpanBatch

# Encoding a span as JSON takes about 0.1 ms.
_PIECES_PER_CHECKPOINT = 8
_BLOCK = 64 * 1024


class JSONFileExporter:
    """A `SpanExporter` that appends each batch to a file, as one line of OTLP JSON.

    ``trio-spanbatch send`` reads such files, and so does OpenTelemetry's Collector. A line is an
    ``ExportTraceServiceRequest``, with the batch's location in an additional field ``location``.

    A span counts as delivered once its line was written to the operating system: it survives the end of the process,
    however it ends, but not necessarily a power failure. If a process is killed while it writes, the incomplete last
    line is cut off when the file is next opened. If writing fails, for instance because the disk is full, nothing of
    the line remains, and the batcher tries again later.

    Other users cannot read the files that it creates. The file is locked: only one exporter can write to it at a time.

    Args:
        path: The file. It is created if it does not exist; its directory must exist.
        max_bytes: Begin a new file before a line would make this one larger. The full one is renamed: ``.1`` is
            appended to its name, and the older ones become ``.2`` and so on. A line that is larger gets a file of its
            own. By default there is only one file.
        keep: How many files are kept, with the current one. The oldest ones are deleted.

    Raises:
        TypeError: An argument is of the wrong type.
        ValueError: ``max_bytes`` or ``keep`` is less than 1, or the file exists and does not contain JSON lines.
        OSError: The file cannot be opened, or another exporter uses it (`BlockingIOError`).
    """

    def __init__(self, path: str | os.PathLike[str], *, max_bytes: int | None = None, keep: int = 5) -> None:
        if not isinstance(path, str | os.PathLike):
            raise TypeError(f"path is {shown(path)}; it must be a str or a Path")
        numbers: dict[str, object] = {"keep": keep} if max_bytes is None else {"keep": keep, "max_bytes": max_bytes}
        for name, value in numbers.items():
            if isinstance(value, bool) or not isinstance(value, int):
                raise TypeError(f"{name} is {shown(value)}; it must be an int of at least 1")
            if value < 1:
                raise ValueError(f"{name} is {value}; it must be at least 1")
        self.closed: bool = False
        self._path = Path(path).absolute()
        self._max_bytes = max_bytes
        self._keep = keep
        self._file: io.FileIO | None = _opened(self._path)

    async def export(self, batch: SpanBatch) -> ExportResult:
        """Append ``batch`` to the file. If this is cancelled, nothing was written.

        Raises:
            trio.ClosedResourceError: The exporter was closed.
        """
        parts: list[bytes] = []
        for number, piece in enumerate(_pieces(batch.location, batch.to_message())):
            if number % _PIECES_PER_CHECKPOINT == 0:
                await trio.lowlevel.checkpoint()
            # A lone surrogate, as a location may have, becomes an escape of JSON.
            parts.append(piece.encode(errors="backslashreplace"))
        if self.closed:
            raise trio.ClosedResourceError("the exporter was closed")
        try:
            self._append(b"".join(parts))
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            return TryLater(f"cannot write to {self._path}: {reason}", endpoint=True, cause=type(error).__name__)
        return Delivered()

    async def aclose(self) -> None:
        """Close the file, even when cancelled. Closing it again does nothing."""
        self.closed = True
        self._close()
        await trio.lowlevel.checkpoint()

    def _close(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            # Explicitly, as the copy of a forked process would keep the lock.
            fcntl.flock(file, fcntl.LOCK_UN)
            file.close()

    @trio.lowlevel.enable_ki_protection
    def _append(self, line: bytes) -> None:
        """Write a whole line or, with an exception, nothing of it."""
        file, size = self._file_for(len(line))
        try:
            rest = memoryview(line)
            while rest:
                rest = rest[file.write(rest) :]
        except BaseException:
            with suppress(OSError):
                os.ftruncate(file.fileno(), size)
            # If that failed, the line is cut off when the file is opened again.
            self._close()
            raise

    def _file_for(self, more: int) -> tuple[io.FileIO, int]:
        """Return the file to which ``more`` bytes are appended, and its size."""
        if self._file is not None and not _is_at(self._path, self._file):
            # Another program has renamed or deleted it.
            self._close()
        file = self._file = self._file or _opened(self._path)
        size = os.fstat(file.fileno()).st_size
        if size and self._max_bytes is not None and size + more > self._max_bytes:
            self._rotate()
            self._close()
            return self._file_for(more)
        return file, size

    def _rotate(self) -> None:
        names = [self._path, *(Path(f"{self._path}.{number}") for number in range(1, self._keep))]
        # A number is free if a process was killed between these steps.
        free = next((number for number, name in enumerate(names) if not name.exists()), len(names) - 1)
        for number in range(free, 0, -1):
            names[number - 1].replace(names[number])
        if self._keep == 1:
            self._path.unlink()


def _opened(path: Path) -> io.FileIO:
    """Open and lock a file for appending, and cut off an incomplete last line."""
    file = io.FileIO(path, "a+", opener=lambda name, flags: os.open(name, flags, 0o600))
    try:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise ValueError(f"{path} is not a regular file; give the path of a file")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            message = "another exporter or process is writing to this file; use one file for each"
            raise BlockingIOError(error.errno, message, str(path)) from None
        _cut_off_incomplete_line(file.fileno(), path)
    except BaseException:
        file.close()
        raise
    return file


def _cut_off_incomplete_line(descriptor: int, path: Path) -> None:
    end = size = os.fstat(descriptor).st_size
    if size and os.pread(descriptor, 1, 0) != b"{":
        raise ValueError(f"{path} exists and does not contain JSON lines; give the path of another file")
    while end:
        start = max(0, end - _BLOCK)
        if (place := os.pread(descriptor, end - start, start).rfind(b"\n")) >= 0:
            end = start + place + 1
            break
        end = start
    if end < size:
        os.ftruncate(descriptor, end)


def _is_at(path: Path, file: io.FileIO) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False


def _pieces(location: str, request: ExportTraceServiceRequest) -> Iterator[str]:
    """Yield the parts of a line: at least one for each span."""
    yield '{"resourceSpans":['
    for resource_spans, comma in _with_commas(request.resource_spans):
        yield f'{comma}{{{_field(resource_spans, "resource")}"scopeSpans":['
        for scope_spans, scope_comma in _with_commas(resource_spans.scope_spans):
            yield f'{scope_comma}{{{_field(scope_spans, "scope")}"spans":['
            for span, span_comma in _with_commas(scope_spans.spans):
                yield span_comma + _dumps(_span(span))
            yield f'],"schemaUrl":{_dumps(scope_spans.schema_url)}}}'
        yield f'],"schemaUrl":{_dumps(resource_spans.schema_url)}}}'
    yield f'],"location":{_dumps(location)}}}\n'


def _with_commas(items: Iterable[Any]) -> Iterator[tuple[Any, str]]:
    return ((item, "," if number else "") for number, item in enumerate(items))


def _span(span: Span) -> dict[str, Any]:
    document = _document(span)
    # OTLP differs from protobuf's JSON: ids are hex, not base64.
    parts: list[tuple[dict[str, Any], Any]] = [
        *zip(document.get("links", ()), span.links, strict=True),
        (document, span),
    ]
    for fields, part in parts:
        fields |= {"traceId": part.trace_id.hex(), "spanId": part.span_id.hex()}
    if span.parent_span_id:
        document["parentSpanId"] = span.parent_span_id.hex()
    return document


def _document(message: Message) -> dict[str, Any]:
    from google.protobuf.json_format import MessageToDict

    return MessageToDict(message, use_integers_for_enums=True)


def _field(message: Message, name: str) -> str:
    return f'"{name}":{_dumps(_document(getattr(message, name)))},' if message.HasField(name) else ""


def _dumps(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
