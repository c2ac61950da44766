"""Progress bars for ``send`` and ``demo``, on a terminal only. Otherwise the demo prints a line once a second."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Self

import trio
from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, ProgressColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.text import Text

from .._batcher import SpanBatcher
from .._reporting.statistics import SpanBatcherStatistics
from .circuit_breaker import FailingLocation
from .input import InputFile
from .screen import FAILS, Screen, one_line

# Seconds between two redraws. With very many locations, counting is slow: it may take a twentieth of the time.
_INTERVAL = 0.1
_REST = 20
# Seconds between two lines of the demo.
_LINE_INTERVAL = 1.0
# On a narrower terminal, the demo's bars do not fit beside the numbers.
_WIDE = 80


class _Progress(Progress):
    """Bars, and a line below them that is cut at the width of the terminal."""

    below: str = ""

    def get_renderables(self) -> Iterable[RenderableType]:
        yield from super().get_renderables()
        if self.below:
            yield Text(self.below, no_wrap=True, overflow="ellipsis")


def _bars(console: Console, *columns: ProgressColumn) -> _Progress:
    return _Progress(*columns, console=console, auto_refresh=False, transient=True, disable=not console.is_terminal)


def total_size(files: Sequence[str]) -> int | None:
    """Return the size of all files; None if one is not a regular file."""
    sizes = [InputFile(name).size() for name in files]
    return sum(size for size in sizes if size is not None) if None not in sizes else None


class SendProgress:
    """The share of the source that has been read, then the share of the accepted spans that has been delivered.

    Args:
        total: The size of the source, None if it is not known.
        screen: Where it is shown.
    """

    def __init__(self, total: int | None, screen: Screen) -> None:
        self.position: int = 0  # how much of the source has been read
        self.read_whole: bool = False  # whether all files have been read
        # The bars, a context manager inside which they are shown.
        description, counts = TextColumn("{task.description}"), TextColumn("{task.fields[counts]}")
        columns = (description, BarColumn(), TaskProgressColumn(), TimeElapsedColumn(), counts)
        self.bars: _Progress = _bars(screen.err, *columns)
        self._task = self.bars.add_task("reading", total=total, counts="")

    async def run(
        self, statistics: Callable[[], SpanBatcherStatistics], failing: Callable[[], Iterable[FailingLocation]]
    ) -> None:
        """Draw the batcher's counts and the locations that fail now, until cancelled."""
        while True:
            began = trio.current_time()
            self.bars.below = _line_of(list(failing()))
            self._draw(statistics())
            await trio.sleep(max(_INTERVAL, _REST * (trio.current_time() - began)))

    def _draw(self, counts: SpanBatcherStatistics) -> None:
        if self.read_whole:
            self.bars.update(
                self._task,
                description="delivering",
                total=counts.accepted,
                completed=counts.accepted - counts.queued - counts.in_flight,
            )
        else:
            self.bars.update(self._task, completed=self.position)
        words = f"{counts.delivered:,} of {counts.accepted:,} delivered"
        for count, outcome in ((counts.rejected, "rejected"), (counts.undelivered, "undelivered")):
            words += f", {count:,} {outcome}" if count else ""
        self.bars.update(self._task, counts=words, refresh=True)


@contextmanager
def work_bar(work: str, total: int, screen: Screen) -> Iterator[Callable[[int], None]]:
    """Show a bar during the body, which is given a function that notes that more is done."""
    with _bars(screen.err, TextColumn("{task.description}"), BarColumn(), TaskProgressColumn()) as bar:
        task = bar.add_task(work, total=total)
        yield lambda amount: bar.update(task, advance=amount, refresh=True)


def _line_of(failing: Sequence[FailingLocation]) -> str:
    """Return a line about the locations that fail, ``""`` if there are none."""
    if not failing:
        return ""
    more = f" and {len(failing) - 1:,} more" if len(failing) > 1 else ""
    return one_line(f"{failing[0].location}{more}: failing: {failing[0].reason}")


class DemoProgress:
    """Shows how many spans were accepted and delivered, by location."""

    def __init__(self, batcher: SpanBatcher, planned: int, screen: Screen) -> None:
        self.failing: str | None = None  # the location that fails now: it has a mark and another colour
        self._batcher = batcher
        self._planned = planned
        self._screen = screen
        self._moves = screen.out.is_terminal
        description = TextColumn("[{task.fields[style]}]{task.fields[mark]} {task.description:<24}[/]")
        counts = TextColumn("{task.fields[counts]}")
        # Not rich's own colour, which is a kind of red.
        bar = [BarColumn(complete_style="cyan")] if screen.out.width >= _WIDE else []
        self._progress = _bars(screen.out, description, *bar, counts, TimeElapsedColumn())
        self._tasks = {"total": self._progress.add_task("total", total=planned, counts="", mark=" ", style="none")}

    @contextmanager
    def shown(self) -> Iterator[Self]:
        """Show the bars during the body, and the final counts after it."""
        with self._progress:
            try:
                yield self
            finally:
                self._draw(self._batcher.statistics())

    def end_plan(self) -> None:
        """Make the number of accepted spans the total: no more are planned."""
        self._planned = 0

    def say(self, line: str, style: str | None = None) -> None:
        self._screen.say(line, style)

    async def run(self) -> None:
        """Show progress until cancelled."""
        while True:
            self._draw(self._batcher.statistics())
            await trio.sleep(_INTERVAL if self._moves else _LINE_INTERVAL)

    def _draw(self, statistics: SpanBatcherStatistics) -> None:
        if not self._moves:
            self.say(f"  {statistics.delivered:,} of {statistics.accepted:,} delivered")
            return
        for name, counts in {"total": statistics, **statistics.locations}.items():
            if name not in self._tasks:
                self._tasks[name] = self._progress.add_task(name, counts="", mark=" ", style="none")
            planned = self._planned if name == "total" else self._planned // 4
            self._progress.update(
                self._tasks[name],
                completed=counts.delivered,
                total=max(planned, counts.accepted, 1),
                counts=f"{counts.delivered:>5,} of {counts.accepted:>5,} delivered",
                mark="!" if name == self.failing else " ",
                style=FAILS if name == self.failing else "none",
            )
        self._progress.refresh()
