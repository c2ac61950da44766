"""`ConsoleExporter`: show spans as trees, for development."""

from __future__ import annotations

import io
import os
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import IO, TYPE_CHECKING

import trio

from .._errors import on_one_line
from .._exporter import Delivered, ExportResult, Refused
from .._spans.checks import shown

if TYPE_CHECKING:
    from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
    from opentelemetry.proto.trace.v1.trace_pb2 import Span

    from .._spans.batch import SpanBatch

# Characters.
_MAX_NAME, _MAX_VALUE, _MAX_INDENT = 80, 60, 90
_MAX_ATTRIBUTES = 10
# How many items of a list or mapping are shown.
_MAX_ITEMS = 5
_SPANS_PER_CHECKPOINT = 64

_STATUS_ERROR = 2
_BOLD, _DIM, _RED, _CYAN = "1", "2", "31", "36"


class ConsoleExporter:
    """A `SpanExporter` that prints a line for each span, for development. The spans of a trace are shown as a tree.

    A tree has the spans of one batch, the first line with their location and trace id. A span whose parent is in
    another batch, or another process, begins a tree and names its parent's id. Long names and values are shortened, and
    control characters are not printed. It prints as ``print`` does, and waits if the terminal or pipe does not take
    the text.

    Args:
        file: An open text file, ``sys.stderr`` by default. It is not closed.
        color: Whether to use colors. By default, if ``file`` is a terminal and ``NO_COLOR`` is not set.

    Raises:
        TypeError: ``file`` is not an open text file, or ``color`` is neither a bool nor None.
    """

    def __init__(self, file: IO[str] | None = None, *, color: bool | None = None) -> None:
        file = sys.stderr if file is None else file
        # A path or a binary file would otherwise fail with the first batch only.
        binary: tuple[type, ...] = (io.RawIOBase, io.BufferedIOBase)
        if isinstance(file, binary) or not callable(getattr(file, "write", None)):
            raise TypeError(f"file is {shown(file)}; it must be an open text file, such as sys.stderr")
        if not isinstance(color, bool | None):
            raise TypeError(f"color is {shown(color)}; it must be True, False or None")
        self._file = file
        self._color = _wants_color(file) if color is None else color

    async def export(self, batch: SpanBatch) -> ExportResult:
        """Print ``batch``. If this is cancelled, nothing was printed."""
        lines: list[str] = []
        spans = [span.to_message() for span in batch.spans]
        for number, (branch, span) in enumerate(_as_trees(spans)):
            if number % _SPANS_PER_CHECKPOINT == 0:
                await trio.lowlevel.checkpoint()
            lines.append(self._line(branch, span, batch.location))
        encoding = getattr(self._file, "encoding", None) or "utf-8"
        try:
            self._file.write("".join(lines).encode(encoding, "backslashreplace").decode(encoding))
            self._file.flush()
        except (OSError, ValueError) as error:
            # A pipe without a reader, for instance, or a file that was closed.
            return Refused(f"cannot print: {getattr(error, 'strerror', None) or error}", cause=type(error).__name__)
        return Delivered()

    async def aclose(self) -> None:
        """Do nothing, as the file is not closed."""
        await trio.lowlevel.checkpoint()

    def _line(self, branch: str, span: Span, location: str) -> str:
        duration = (span.end_time_unix_nano - span.start_time_unix_nano) / 1e9
        parts = [
            branch + self._styled(on_one_line(span.name, _MAX_NAME) or "(no name)", _BOLD),
            f"{duration:.2f} s" if duration >= 1 else f"{duration * 1e3:.3f} ms",
        ]
        if not branch:
            parts.insert(0, self._styled(on_one_line(location, _MAX_NAME), _CYAN))
        if span.status.code == _STATUS_ERROR:
            parts.append(self._styled(f"ERROR {on_one_line(span.status.message, 2 * _MAX_VALUE)}".rstrip(), _RED))
        parts += [self._styled(pair, _DIM) for pair in _pairs(islice(span.attributes, _MAX_ATTRIBUTES))]
        if len(span.attributes) > _MAX_ATTRIBUTES:
            parts.append(self._styled(f"and {len(span.attributes) - _MAX_ATTRIBUTES} more", _DIM))
        if not branch:
            parent = f" parent={span.parent_span_id.hex()}" if span.parent_span_id else ""
            parts.append(self._styled(f"trace={span.trace_id.hex()}{parent}", _DIM))
        return "  ".join(parts) + "\n"

    def _styled(self, text: str, code: str) -> str:
        return f"\x1b[{code}m{text}\x1b[0m" if self._color else text


def _wants_color(file: IO[str]) -> bool:
    isatty = getattr(file, "isatty", None)
    return callable(isatty) and bool(isatty()) and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def _as_trees(spans: list[Span]) -> Iterator[tuple[str, Span]]:
    """Yield each span once, in the order of trees, with the branch to print in front of it."""
    by_start = sorted(range(len(spans)), key=lambda index: spans[index].start_time_unix_nano)
    known = {(span.trace_id, span.span_id) for span in spans}
    children: defaultdict[tuple[bytes, bytes], list[int]] = defaultdict(list)
    tops: dict[bytes, list[int]] = {}
    for index in by_start:
        parent = spans[index].trace_id, spans[index].parent_span_id
        (children[parent] if parent in known else tops.setdefault(parent[0], [])).append(index)
    seen: set[int] = set()
    # The roots of one trace follow each other. Spans in a circle have none, so all spans follow.
    for top in [*(index for of_trace in tops.values() for index in of_trace), *by_start]:
        stack = [(top, "", "")]
        while stack:
            index, branch, indent = stack.pop()
            if index in seen:
                continue
            seen.add(index)
            yield branch, spans[index]
            below = [child for child in children[spans[index].trace_id, spans[index].span_id] if child not in seen]
            room = len(indent) < _MAX_INDENT
            for child in reversed(below):
                fork, line = ("└─ ", "   ") if child == below[-1] else ("├─ ", "│  ")
                stack.append((child, indent + fork, indent + line if room else indent))


def _pairs(attributes: Iterable[KeyValue]) -> Iterator[str]:
    for pair in attributes:
        yield f"{on_one_line(pair.key, _MAX_NAME)}={on_one_line(_value(pair.value), _MAX_VALUE)}"


def _value(value: AnyValue) -> str:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return f"[{', '.join(_value(item) for item in value.array_value.values[:_MAX_ITEMS])}]"
    if kind == "kvlist_value":
        return f"{{{', '.join(_pairs(value.kvlist_value.values[:_MAX_ITEMS]))}}}"
    if kind == "bytes_value":
        return f"<{len(value.bytes_value)} bytes>"
    if kind == "bool_value":
        return str(value.bool_value).lower()
    return "" if kind is None else str(getattr(value, kind))
