"""Output for terminals and pipes: lines, tables, log messages, and errors of standard output."""

from __future__ import annotations

import errno
import io
import json
import logging
import os
import sys
import textwrap
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress

import attrs
from rich.cells import cell_len, set_cell_size
from rich.console import Console

from .._exceptions import leaves

# A table of names and numbers fits any width without cutting a number or a name. Of three layouts, the first that fits
# is used: a name and its numbers on one line; the same without columns of zeros, which a line below the table names; a
# name with ``label number`` pairs below it, as many on a line as fit.

# The space between columns: the first that fits.
_GAPS = ("  ", " ")
_INDENT = "  "


@attrs.frozen
class Line:
    """A line of a table. Only names may be longer than the width."""

    text: str
    heading: bool = False  # whether the line is part of the table's heading


def table_lines(
    columns: Sequence[str], rows: Sequence[Sequence[str]], width: int, optional: Collection[str] = ()
) -> list[Line]:
    """Return the lines of a table of names and numbers, whose rows begin with the name.

    Columns that are ``optional`` may be left out if the table does not fit and they contain only zeros.
    """
    table = [columns, *rows]
    lines = _beside_if_it_fits(table, width)
    if lines is not None:
        return lines
    by_column = list(zip(*table, strict=True))
    empty = [label for label, *cells in by_column if label in optional and set(cells) <= {"0"}]
    if empty:
        table = list(zip(*(column for column in by_column if column[0] not in empty), strict=True))
        lines = _beside_if_it_fits(table, width)
    if lines is None:
        lines = [line for row in table[1:] for line in _pairs(table[0][1:], row, width)]
    note = textwrap.wrap(f"all zero: {', '.join(empty)}", width) if empty else []
    return [*lines, *map(Line, note)]


def _beside_if_it_fits(table: Sequence[Sequence[str]], width: int) -> list[Line] | None:
    names, *columns = zip(*table, strict=True)
    # A label may be wrapped at its spaces; a number may not.
    widths = [max(map(cell_len, [*label.split(), *cells])) for label, *cells in columns]
    widths.insert(0, max(map(cell_len, names)))
    for gap in _GAPS:
        if sum(widths) + len(gap) * len(columns) <= width:
            headings = [Line(_joined(line, widths, gap), heading=True) for line in _folded(table[0], widths)]
            return [*headings, *(Line(_joined(row, widths, gap)) for row in table[1:])]
    return None


def _pairs(labels: Sequence[str], row: Sequence[str], width: int) -> Iterator[Line]:
    yield Line(row[0])
    # Lines are not broken at this kind of space, so that a label and its number stay together.
    pairs = [f"{label} {number}".replace(" ", "\xa0") for label, number in zip(labels, row[1:], strict=True)]
    for line in textwrap.wrap(
        ", ".join(pairs), width, initial_indent=_INDENT, subsequent_indent=_INDENT, break_long_words=False
    ):
        yield Line(line.replace("\xa0", " "))


def _folded(labels: Sequence[str], widths: Sequence[int]) -> list[list[str]]:
    """Return the lines of the heading, aligned at the bottom."""
    cells = list(map(textwrap.wrap, labels, widths))
    height = max(map(len, cells))
    return [list(line) for line in zip(*([""] * (height - len(cell)) + cell for cell in cells), strict=True)]


def _joined(cells: Sequence[str], widths: Sequence[int], gap: str) -> str:
    """Return a line with the first cell aligned to the left, and the others to the right."""
    numbers = [" " * (width - cell_len(cell)) + cell for cell, width in zip(cells[1:], widths[1:], strict=True)]
    return gap.join([set_cell_size(cells[0], widths[0]), *numbers]).rstrip()


# Results go to stdout; errors and progress go to stderr.

# Colours, which rich leaves out where there is no terminal and where NO_COLOR is set: words must say the same.
GOOD, BAD, FAILS = "green", "bold red", "yellow"

# Wide enough for any table, so that output to a pipe is never wrapped.
_PIPE_WIDTH = 1_000_000


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Raise the error again. Rich would exit silently."""
        raise


def _console(*, stderr: bool) -> Console:
    console = _Console(stderr=stderr, highlight=False, markup=False, emoji=False)
    if not console.is_terminal:
        console.width = _PIPE_WIDTH
    return console


@attrs.frozen
class Screen:
    """Both output streams."""

    out: Console = attrs.field(factory=lambda: _console(stderr=False))
    err: Console = attrs.field(factory=lambda: _console(stderr=True))

    def say(self, line: str, style: str | None = None) -> None:
        """Print a line of results."""
        with output_errors():
            _print(self.out, one_line(line), style)

    def warn(self, line: str) -> None:
        """Print a warning or an error. Nothing happens if standard error cannot be written to."""
        with suppress(OSError):
            _print(self.err, one_line(line))

    def document(self, document: object) -> None:
        """Print a JSON document in one line, with escapes only if the stream cannot encode its characters."""
        text = json.dumps(document, ensure_ascii=False)
        try:
            text.encode(getattr(self.out.file, "encoding", None) or "utf-8")
        except UnicodeEncodeError:
            text = json.dumps(document)
        with output_errors():
            self.out.file.write(f"{text}\n")
            self.out.file.flush()

    def table(
        self,
        columns: Sequence[str],
        rows: Iterable[Sequence[str]],
        optional: Collection[str] = (),
        *,
        failing: str | None = None,
    ) -> None:
        """Print a table. The row whose name is ``failing`` has another colour."""
        lines = table_lines(columns, [[*map(one_line, row)] for row in rows], self.out.width, optional)
        for line in lines:
            style = FAILS if line.text.split(" ")[0] == failing else None
            with output_errors():
                self.out.print(line.text, style="bold" if line.heading else style, soft_wrap=True)


def _print(console: Console, line: str, style: str | None = None) -> None:
    # Rich wraps between words for a terminal; in a pipe, a line must stay one line.
    console.print(line, style=style, soft_wrap=not console.is_terminal)


class LogLines(logging.Handler):
    """Prints log messages in one line each, but not a batcher's summary, as the command prints its own."""

    def __init__(self, screen: Screen) -> None:
        super().__init__(logging.WARNING)
        self._screen = screen

    def emit(self, record: logging.LogRecord) -> None:
        if not getattr(record, "summary", False):
            self._screen.warn(record.getMessage())


def one_line(text: str) -> str:
    """Return ``text`` with line breaks and control characters escaped."""
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)


_ERRNOS = frozenset({errno.EPIPE, errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EBADF})


class OutputError(Exception):
    """Standard output cannot be written to. The message says why."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"cannot write the result: {reason}")


def check_output() -> None:
    """Make both streams escape characters that they cannot encode. Raise `OutputError` if standard output is closed."""
    # If it is closed, it is None, despite its annotation.
    if getattr(sys, "stdout", None) is None:
        raise OutputError("standard output is closed")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


@contextmanager
def output_errors() -> Iterator[None]:
    """Raise an `OutputError` instead of exceptions that mean that standard output cannot be written to.

    Standard output is then redirected to the null device, because Python flushes it once more when it exits.
    """
    try:
        yield
    except (OSError, OutputError, BaseExceptionGroup) as error:
        for leaf in leaves(error):
            failure = leaf
            if isinstance(leaf, OSError) and leaf.errno in _ERRNOS:
                failure = OutputError(os.strerror(leaf.errno))
            if isinstance(failure, OutputError):
                _close_stdout()
                raise failure from error
        raise


def _close_stdout() -> None:
    # A stream that is not a file has no descriptor.
    with suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
