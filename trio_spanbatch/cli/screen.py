"""Standard output that cannot be written to: a full disk, a closed pipe."""

from __future__ import annotations

import errno
import io
import logging
import os
import sys
import textwrap
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress

import attrs
from rich.cells import cell_len
from rich.console import Console

from .._exceptions import leaves

__all__ = [
    "Line",
    "LogLines",
    "OutputError",
    "Screen",
    "check_output",
    "one_line",
    "output_errors",
    "table_lines",
]

# A table of names and numbers in whatever width there is: no number is ever cut, and no name lost.
#
# Three layouts, the first that fits: a name and its numbers on one line; the same without columns that have nothing to
# tell, which a line below names; a name with ``label number`` pairs below, as many on a line as fit.

# How far columns stand apart: as far as there is room for.
_GAPS = ("  ", " ")
_INDENT = "  "


@attrs.frozen
class Line:
    """A line of a table. Names may be longer than the width; everything else fits.

    Attributes:
        text: What it says.
        heading: Whether it names columns.
    """

    text: str
    heading: bool = False


def table_lines(
    columns: Sequence[str], rows: Sequence[Sequence[str]], width: int, optional: Collection[str] = ()
) -> list[Line]:
    """Return the lines of a table whose first column holds names, and whose others hold numbers.

    Args:
        columns: What stands above them.
        rows: A name and its numbers each.
        width: How many characters there are to a line.
        optional: Columns that may be left out where there is nothing but zeros in them, if the table does not fit.
    """
    lines = _beside_if_it_fits(columns, rows, width)
    if lines is not None:
        return lines
    empty = [label for place, label in enumerate(columns) if label in optional and all(r[place] == "0" for r in rows)]
    if empty:
        kept = [place for place, label in enumerate(columns) if label not in empty]
        columns, rows = [columns[place] for place in kept], [[row[place] for place in kept] for row in rows]
        lines = _beside_if_it_fits(columns, rows, width)
    if lines is None:
        lines = [line for row in rows for line in _pairs(columns[1:], row, width)]
    note = textwrap.wrap(f"0 everywhere: {', '.join(empty)}", width) if empty else []
    return [*lines, *map(Line, note)]


def _beside_if_it_fits(columns: Sequence[str], rows: Sequence[Sequence[str]], width: int) -> list[Line] | None:
    labels, names = columns[1:], [columns[0], *(row[0] for row in rows)]
    # A label may be folded at its spaces; a number may not.
    widths = [
        max(map(cell_len, [*label.split(), *cells]))
        for label, *cells in zip(labels, *(row[1:] for row in rows), strict=True)
    ]
    name_width = max(map(cell_len, names))
    for gap in _GAPS:
        numbers_width = sum(widths) + len(gap) * (len(widths) - 1)
        if name_width + len(gap) + numbers_width <= width:
            return list(_beside(columns, rows, [name_width, *widths], gap))
    return None


def _beside(columns: Sequence[str], rows: Iterable[Sequence[str]], widths: Sequence[int], gap: str) -> Iterator[Line]:
    for heading in _folded(columns, widths):
        yield Line(_joined(heading, widths, gap), heading=True)
    for row in rows:
        yield Line(_joined(row, widths, gap))


def _pairs(labels: Sequence[str], row: Sequence[str], width: int) -> Iterator[Line]:
    yield Line(row[0])
    line = ""
    for label, number in zip(labels, row[1:], strict=True):
        pair = f"{label} {number}"
        longer = f"{line}, {pair}" if line else f"{_INDENT}{pair}"
        if line and cell_len(longer) + len(",") > width:
            yield Line(f"{line},")
            longer = f"{_INDENT}{pair}"
        line = longer
    yield Line(line)


def _folded(labels: Sequence[str], widths: Sequence[int]) -> list[list[str]]:
    """Return the lines of a heading, the short labels on the last of them."""
    cells = [_fold(label, width) for label, width in zip(labels, widths, strict=True)]
    height = max(map(len, cells))
    return [list(line) for line in zip(*([""] * (height - len(cell)) + cell for cell in cells), strict=True)]


def _fold(label: str, width: int) -> list[str]:
    lines: list[str] = []
    for word in label.split():
        if lines and cell_len(f"{lines[-1]} {word}") <= width:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return lines


def _joined(cells: Sequence[str], widths: Sequence[int], gap: str) -> str:
    places: list[Callable[[str, int], str]] = [_to_the_left, *[_to_the_right] * (len(cells) - 1)]
    return gap.join(place(cell, width) for place, cell, width in zip(places, cells, widths, strict=True)).rstrip()


def _to_the_left(text: str, width: int) -> str:
    return text + " " * (width - cell_len(text))


def _to_the_right(text: str, width: int) -> str:
    return " " * (width - cell_len(text)) + text


# What people see: errors and progress on stderr, results on stdout, each fit for a terminal or for a pipe.

# Wide enough for any table: where nobody looks, nothing is to be folded.
_PIPE_WIDTH = 1_000_000


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Raise what has come, where rich would end the process without a word."""
        raise


def _console(*, stderr: bool) -> Console:
    console = _Console(stderr=stderr, highlight=False, markup=False, emoji=False)
    if not console.is_terminal:
        console.width = _PIPE_WIDTH
    return console


@attrs.frozen
class Screen:
    """Both output streams.

    Attributes:
        out: stdout.
        err: stderr.
    """

    out: Console = attrs.field(factory=lambda: _console(stderr=False))
    err: Console = attrs.field(factory=lambda: _console(stderr=True))

    def say(self, line: str) -> None:
        """Print a line of results.

        Raises:
            OutputError: It cannot be written.
        """
        with output_errors():
            _print(self.out, one_line(line))

    def warn(self, line: str) -> None:
        """Print a line about something that is wrong, if that can be printed anywhere."""
        with suppress(OSError):
            _print(self.err, one_line(line))

    def document(self, text: str) -> None:
        """Print a result for programs, as it is.

        Raises:
            OutputError: As for all results.
        """
        with output_errors():
            self.out.file.write(f"{text}\n")
            self.out.file.flush()

    def table(self, columns: Sequence[str], rows: Iterable[Sequence[str]], optional: Collection[str] = ()) -> None:
        """Print a table: the first column has names, the others numbers. See `table_lines`."""
        lines = table_lines(columns, [[*map(one_line, row)] for row in rows], self.out.width, optional)
        for line in lines:
            with output_errors():
                self.out.print(line.text, style="bold" if line.heading else None, soft_wrap=True)


def _print(console: Console, line: str) -> None:
    # A terminal would break it within a word; what somebody reads from a pipe is one line.
    console.print(line, soft_wrap=not console.is_terminal)


class LogLines(logging.Handler):
    """Prints what the library logs as single lines, without tracebacks.

    What a batcher sums up at its end is left out: commands show the same for each location, and with counts.
    """

    def __init__(self, screen: Screen) -> None:
        super().__init__(logging.WARNING)
        self._screen = screen

    def emit(self, record: logging.LogRecord) -> None:
        """Print one record."""
        if not getattr(record, "summary", False):
            self._screen.warn(record.getMessage())


def one_line(text: str) -> str:
    """Return ``text`` with what would break the line, or drive the terminal, made visible."""
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)


_ERRNOS = frozenset({errno.EPIPE, errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EBADF})


class OutputError(Exception):
    """Standard output cannot be written to. The message says so, and why."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"cannot write the result: {reason}")


def check_output() -> None:
    """Have both streams show whatever comes: what they have no characters for, as escapes.

    Raises:
        OutputError: Standard output is closed.
    """
    # A closed one is None, which its type does not say.
    if getattr(sys, "stdout", None) is None:
        raise OutputError("standard output is closed")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


@contextmanager
def output_errors() -> Iterator[None]:
    """Make one `OutputError` of whatever says that standard output cannot be written to.

    From then on it leads nowhere: Python would try to write what is left of it once more at its end.
    """
    try:
        yield
    except (OSError, OutputError, BaseExceptionGroup) as error:
        failure = next(filter(None, map(_output_error, leaves(error))), None)
        if failure is None:
            raise
        _close_stdout()
        raise failure from error


def _output_error(error: BaseException) -> OutputError | None:
    if isinstance(error, OSError) and error.errno in _ERRNOS:
        return OutputError(os.strerror(error.errno))
    return error if isinstance(error, OutputError) else None


def _close_stdout() -> None:
    # What is no file has no such number.
    with suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
