"""Progress while a command runs: on a terminal it moves, in a pipe there is none."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Self

import trio
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

from .._statistics import SpanBatcherStatistics
from .input import InputFile
from .screen import Screen

__all__ = ["SendProgress"]

# Seconds between two pictures. With very many locations, counting takes its time: at most a twentieth of all.
_INTERVAL = 0.1
_REST = 20


class SendProgress:
    """How much of the files is read, then how much of what was read is delivered.

    Attributes:
        position: How many bytes of the current file are read.
        read_whole: Whether all files are read.
    """

    def __init__(self, files: Sequence[str], screen: Screen) -> None:
        self.position: int = 0
        self.read_whole: bool = False
        self._before = 0
        sizes = [InputFile(name).size() for name in files]
        total = sum(size for size in sizes if size is not None) if None not in sizes else None
        self._progress = Progress(
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
        self._task = self._progress.add_task("reading", total=total, counts="")

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._progress.stop()

    def end_file(self, file: InputFile) -> None:
        """Note that ``file`` is read whole."""
        self._before += file.size() or 0
        self.position = 0

    async def run(self, statistics: Callable[[], SpanBatcherStatistics]) -> None:
        """Draw until cancelled."""
        if self._progress.disable:
            return
        while True:
            began = trio.current_time()
            self._draw(statistics())
            await trio.sleep(max(_INTERVAL, _REST * (trio.current_time() - began)))

    def _draw(self, counts: SpanBatcherStatistics) -> None:
        if self.read_whole:
            self._progress.update(
                self._task,
                description="delivering",
                total=counts.accepted,
                completed=counts.accepted - counts.queued - counts.in_flight,
            )
        else:
            self._progress.update(self._task, completed=self._before + self.position)
        words = f"{counts.delivered:,} of {counts.accepted:,} delivered"
        if counts.rejected:
            words += f", {counts.rejected:,} rejected"
        self._progress.update(self._task, counts=words, refresh=True)
