"""An exporter that keeps batches in memory and answers as scripted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import TypeAlias

import trio

from .._exporter import Delivered, ExportResult, Refused, TryLater
from .._spans.batch import EncodedSpan, SpanBatch
from ._answers import Hang

__all__ = ["InMemoryExporter"]

Step: TypeAlias = ExportResult | Exception | Hang


class InMemoryExporter:
    """A `SpanExporter` for tests. It keeps every batch and answers as scripted, on trio's clock.

    Args:
        results: By default every batch is delivered. Otherwise an iterable of steps, one for each call of `export`,
            followed by `Delivered`; or a sync function of the batch that returns a step or raises. A step is an
            `ExportResult`, an exception to raise, or `Hang` (the export never ends). It is determined when `export`
            is called and takes effect after ``delay``.
        delay: Seconds that each export takes, or a function of the batch; ``math.inf`` means forever.

    Attributes:
        batches: All batches that `export` was called with, in the order of the calls.
        delivered: For each location the acknowledged spans, the same objects, in the order of acknowledgement.
        rejected: For each location the spans rejected by `Delivered.rejected`: the last ones of their batch.
        active: The number of exports running now.
        max_active: The largest number of exports that ran at once.
        max_active_by_location: The same for each location.
        closed: Whether `aclose` was called.
    """

    def __init__(
        self,
        results: Iterable[Step] | Callable[[SpanBatch], Step] | None = None,
        *,
        delay: float | Callable[[SpanBatch], float] = 0.0,
    ) -> None:
        self.batches: list[SpanBatch] = []
        self.delivered: dict[str, list[EncodedSpan]] = {}
        self.rejected: dict[str, list[EncodedSpan]] = {}
        self.active: int = 0
        self.max_active: int = 0
        self.max_active_by_location: dict[str, int] = {}
        self.closed: bool = False
        self._active_by_location: Counter[str] = Counter()
        self._decide = results if callable(results) else _in_order(iter(results or ()))
        self._delay = delay

    async def export(self, batch: SpanBatch) -> ExportResult:
        """Answer ``batch`` as scripted. A cancelled export delivers nothing.

        Raises:
            trio.ClosedResourceError: The exporter was closed.
        """
        if self.closed:
            await trio.lowlevel.checkpoint()
            raise trio.ClosedResourceError("the exporter was closed")
        self.batches.append(batch)
        self._enter(batch.location)
        try:
            return await self._answer(batch)
        finally:
            self.active -= 1
            self._active_by_location[batch.location] -= 1

    async def aclose(self) -> None:
        """Close the exporter, even when cancelled. Closing it again does nothing."""
        self.closed = True
        await trio.lowlevel.checkpoint()

    async def _answer(self, batch: SpanBatch) -> ExportResult:
        try:
            step = self._decide(batch)
        except Exception as error:
            step = error
        # sleep(0) is a checkpoint.
        await trio.sleep(self._delay(batch) if callable(self._delay) else self._delay)
        if isinstance(step, Hang):
            await trio.sleep_forever()
        if isinstance(step, Exception):
            raise step
        if not isinstance(step, Delivered | TryLater | Refused):
            raise TypeError(f"results gave {step!r}; it must give an ExportResult, an exception or Hang()")
        if isinstance(step, Delivered):
            self._acknowledge(batch, step.rejected)
        return step

    def _enter(self, location: str) -> None:
        self.active += 1
        self.max_active = max(self.max_active, self.active)
        self._active_by_location[location] += 1
        most = self.max_active_by_location.get(location, 0)
        self.max_active_by_location[location] = max(most, self._active_by_location[location])

    def _acknowledge(self, batch: SpanBatch, rejected: int) -> None:
        taken = min(len(batch.spans), max(0, len(batch.spans) - rejected))
        self.delivered.setdefault(batch.location, []).extend(batch.spans[:taken])
        if taken < len(batch.spans):
            self.rejected.setdefault(batch.location, []).extend(batch.spans[taken:])


def _in_order(steps: Iterator[Step]) -> Callable[[SpanBatch], Step]:
    return lambda _batch: next(steps, Delivered())
