"""An exporter that keeps batches in memory and answers as scripted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import TypeAlias

import trio

from .._exporter import Delivered, ExportResult, Refused, TryLater
from .._http.responses import interpret_response
from .._spans.batch import EncodedSpan, SpanBatch
from ._answers import Answer, Hang
from ._checks import check, check_function, check_seconds
from ._faults import Answers, Script, outage

Step: TypeAlias = ExportResult | Exception | Hang


def _checked_step(name: str, value: object) -> Step | None:
    kinds = (Delivered, TryLater, Refused, Exception, Hang)
    check(name, value, "an ExportResult such as TryLater('503'), an exception, a fault, Hang() or None", *kinds)
    return value  # type: ignore[return-value]  # checked


class InMemoryExporter:
    """A `SpanExporter` for tests. It keeps every batch and answers as scripted, on trio's clock.

    Args:
        results: By default every batch is delivered. Otherwise an iterable of steps, one for each call of `export`,
            followed by `Delivered`; or a sync function of the batch that returns a step or raises. A step is an
            `ExportResult`, an exception to raise, `Hang` (the export never ends), None (`Delivered`), or a fault as for
            an `OTLPReceiver`. It is determined when `export` is called and takes effect after ``delay``.
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
        self, results: Answers[Step, SpanBatch] | None = None, *, delay: float | Callable[[SpanBatch], float] = 0.0
    ) -> None:
        self.batches: list[SpanBatch] = []
        self.delivered: dict[str, list[EncodedSpan]] = {}
        self.rejected: dict[str, list[EncodedSpan]] = {}
        self.active: int = 0
        self.max_active: int = 0
        self.max_active_by_location: dict[str, int] = {}
        self.closed: bool = False
        self._active_by_location: Counter[str] = Counter()
        self._script: Script[Step] = Script(results, "results", _checked_step)
        if callable(delay):
            check_function("delay", delay)
        else:
            check_seconds("delay", delay)
        self._delay = delay

    async def export(self, batch: SpanBatch) -> ExportResult:
        """Answer ``batch`` as scripted. A cancelled export delivers nothing.

        Raises:
            trio.ClosedResourceError: The exporter was closed.
        """
        check("batch", batch, "a SpanBatch", SpanBatch)
        if self.closed:
            await trio.lowlevel.checkpoint()
            raise trio.ClosedResourceError("the exporter was closed")
        self.batches.append(batch)
        location = batch.location
        self.active += 1
        self.max_active = max(self.max_active, self.active)
        self._active_by_location[location] += 1
        most = max(self.max_active_by_location.get(location, 0), self._active_by_location[location])
        self.max_active_by_location[location] = most
        try:
            return await self._answer(batch)
        finally:
            self.active -= 1
            self._active_by_location[location] -= 1

    async def aclose(self) -> None:
        """Close the exporter, even when cancelled. Closing it again does nothing."""
        self.closed = True
        await trio.lowlevel.checkpoint()

    async def _answer(self, batch: SpanBatch) -> ExportResult:
        script = self._script
        step: Step | Answer | None
        delay = 0.0
        try:
            script = script.of(batch)
            entry = script.take()
            if isinstance(entry, outage) and script is self._script:
                # As an `OTLPExporter` whose connection is refused.
                step = TryLater("cannot connect: Connection refused", endpoint=True, cause="ConnectError")
            else:
                delay = script.delay
                step = script.outcome(entry, lambda: (span.to_message() for span in batch.spans))
        except Exception as error:
            step = error
        delay += self._delay(batch) if callable(self._delay) else self._delay
        await trio.sleep(delay)  # sleep(0) is a checkpoint.
        if step is None:
            step = Delivered()
        elif isinstance(step, Answer):
            step = interpret_response(step.status, dict(step.headers), step.body, now=0)
        if isinstance(step, Hang):
            await trio.sleep_forever()
        if isinstance(step, Exception):
            raise step
        if isinstance(step, Delivered):
            self._acknowledge(batch, step.rejected)
        return step

    def _acknowledge(self, batch: SpanBatch, rejected: int) -> None:
        taken = min(len(batch.spans), max(0, len(batch.spans) - rejected))
        self.delivered.setdefault(batch.location, []).extend(batch.spans[:taken])
        if taken < len(batch.spans):
            self.rejected.setdefault(batch.location, []).extend(batch.spans[taken:])
