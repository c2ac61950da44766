"""What people see: errors and progress on stderr, results on stdout, each fit for a terminal or for a pipe."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence

import attrs
from rich.console import Console
from rich.table import Table

__all__ = ["LogLines", "Screen"]

# Wide enough for any table: where nobody looks, nothing is to be folded.
_PIPE_WIDTH = 1000


def _console(*, stderr: bool) -> Console:
    console = Console(stderr=stderr, highlight=False, markup=False, emoji=False)
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
        """Print a line of results."""
        self.out.print(_one_line(line), soft_wrap=True)

    def warn(self, line: str) -> None:
        """Print a line about something that is wrong."""
        self.err.print(_one_line(line), soft_wrap=True)

    def table(self, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
        """Print a table: the first column is text, the others are numbers."""
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
        for index, column in enumerate(columns):
            # Names may be folded on a narrow terminal; numbers never.
            table.add_column(column, justify="right" if index else "left", no_wrap=index > 0, overflow="fold")
        for row in rows:
            table.add_row(*map(_one_line, row))
        self.out.print(table)


# What a batcher logs at its end. Commands show the same for each location, and with counts.
_SHOWN_ANYWAY = ("spans were handed back undelivered", "spans were rejected")


class LogLines(logging.Handler):
    """Prints what the library logs as single lines, without tracebacks."""

    def __init__(self, screen: Screen) -> None:
        super().__init__(logging.WARNING)
        self._screen = screen

    def emit(self, record: logging.LogRecord) -> None:
        """Print one record."""
        message = record.getMessage()
        if not any(shown in message for shown in _SHOWN_ANYWAY):
            self._screen.warn(message)


def _one_line(text: str) -> str:
    """Return ``text`` with what would break the line, or drive the terminal, made visible."""
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)
