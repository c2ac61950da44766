"""Progress of the demo: bars on a terminal, a line once a second otherwise."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Self

import trio
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from .. import SpanBatcher, SpanBatcherStatistics
from .screen import Screen

# Seconds between two redraws, and between two lines.
_REDRAW_INTERVAL = 0.1
_LINE_INTERVAL = 1.0
# On a narrower terminal, bars do not fit beside the numbers.
_WIDE = 80


class DemoProgress:
    """Shows how many spans were accepted and delivered, by location."""

    def __init__(self, batcher: SpanBatcher, planned: int, screen: Screen) -> None:
        self._batcher = batcher
        self._planned = planned
        self._screen = screen
        self._moves = screen.out.is_terminal
        self._progress = Progress(
            TextColumn("{task.description:<26}"),
            *([BarColumn()] if screen.out.width >= _WIDE else []),
            TextColumn("{task.fields[counts]}"),
            TimeElapsedColumn(),
            console=screen.out,
            auto_refresh=False,
            disable=not self._moves,
            transient=True,
        )
        self._tasks = {"total": self._progress.add_task("total", total=planned, counts="")}

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

    def say(self, line: str) -> None:
        """Print a line above the bars."""
        self._screen.say(line)

    async def run(self) -> None:
        """Show progress until cancelled."""
        while True:
            self._draw(self._batcher.statistics())
            await trio.sleep(_REDRAW_INTERVAL if self._moves else _LINE_INTERVAL)

    def _draw(self, statistics: SpanBatcherStatistics) -> None:
        if not self._moves:
            self.say(f"  {statistics.delivered:,} of {statistics.accepted:,} delivered")
            return
        for location, counts in statistics.locations.items():
            if location not in self._tasks:
                self._tasks[location] = self._progress.add_task(location, counts="")
            self._update(location, self._planned // 4, counts.accepted, counts.delivered)
        self._update("total", self._planned, statistics.accepted, statistics.delivered)
        self._progress.refresh()

    def _update(self, name: str, planned: int, accepted: int, delivered: int) -> None:
        self._progress.update(
            self._tasks[name],
            completed=delivered,
            total=max(planned, accepted, 1),
            counts=f"{delivered:>5,} of {accepted:>5,} delivered",
        )
