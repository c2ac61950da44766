"""A progress bar for ``send``. It is shown on a terminal only."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import trio
from rich.console import RenderableType
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.text import Text

from .._reporting.statistics import SpanBatcherStatistics
from .circuit_breaker import FailingLocation
from .input import InputFile
from .screen import Screen, one_line

# Seconds between two redraws. With very many locations, counting is slow: it may take a twentieth of the time.
_INTERVAL = 0.1
_REST = 20


class _Progress(Progress):
    """Bars, and a line below them that is cut at the width of the terminal."""

    below: str = ""

    def get_renderables(self) -> Iterable[RenderableType]:
        """Return what to draw."""
        yield from super().get_renderables()
        if self.below:
            yield Text(self.below, no_wrap=True, overflow="ellipsis")


class SendProgress:
    """The share of the files that has been read, then the share of the accepted spans that has been delivered.

    Attributes:
        bars: The bars, a context manager inside which they are shown.
        position: How many bytes of the current file have been read.
        read_whole: Whether all files have been read.
    """

    def __init__(self, files: Sequence[str], screen: Screen) -> None:
        self.position: int = 0
        self.read_whole: bool = False
        self._before = 0
        sizes = [InputFile(name).size() for name in files]
        total = sum(size for size in sizes if size is not None) if None not in sizes else None
        self.bars: _Progress = _Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[counts]}"),
            console=screen.err,
            auto_refresh=False,
            transient=True,
            disable=not screen.err.is_terminal,
        )
        self._task = self.bars.add_task("reading", total=total, counts="")

    def end_file(self, file: InputFile) -> None:
        """Record that all of ``file`` has been read."""
        self._before += file.size() or 0
        self.position = 0

    @property
    def is_shown(self) -> bool:
        """Whether standard error is a terminal."""
        return not self.bars.disable

    async def run(
        self, statistics: Callable[[], SpanBatcherStatistics], failing: Callable[[], Iterable[FailingLocation]]
    ) -> None:
        """Draw until cancelled.

        Args:
            statistics: Returns the batcher's counts.
            failing: Returns the locations that fail now.
        """
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
            self.bars.update(self._task, completed=self._before + self.position)
        words = f"{counts.delivered:,} of {counts.accepted:,} delivered"
        for count, outcome in ((counts.rejected, "rejected"), (counts.undelivered, "undelivered")):
            words += f", {count:,} {outcome}" if count else ""
        self.bars.update(self._task, counts=words, refresh=True)


def _line_of(failing: Sequence[FailingLocation]) -> str:
    """Return a line about the locations that fail, ``""`` if there are none."""
    if not failing:
        return ""
    more = f" and {len(failing) - 1:,} more" if len(failing) > 1 else ""
    return one_line(f"{failing[0].location}{more}: failing: {failing[0].reason}")
