"""What people see: errors and progress on stderr, results on stdout, each fit for a terminal or for a pipe."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Sequence
from contextlib import suppress

import attrs
from rich.console import Console

from .output import output_errors
from .tables import table_lines

__all__ = ["LogLines", "Screen", "one_line"]

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
