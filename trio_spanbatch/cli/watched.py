"""Noticing that nobody is there: no request was ever answered.

A batcher that lost its server is patient, as servers come back. A command is not, when the address is wrong.
"""

from __future__ import annotations

import math
from collections import Counter

import trio

from .._batch import SpanBatch
from .._exporter import LocationChecker, SpanExporter
from .._results import ExportResult, TryLater

__all__ = ["WatchedExporter"]


class WatchedExporter:
    """A `SpanExporter` around another one that gives up when no request was ever answered.

    After that it hands every batch back at once, so that the drain takes no time.

    Args:
        exporter: What sends.
        patience: Seconds from the first attempt after which it gives up.
        server: Who does not answer, as in ``localhost:4318``.

    Attributes:
        answered: Whether any request was answered, by whatever status.
        failure: What the last attempt failed with.
        gave_up: Whether it gave up.
        not_sent: For each location, how many batches it handed back without an attempt, though the batcher counts one.
        not_repeated: How many of these it had attempted before.
    """

    def __init__(self, exporter: SpanExporter, patience: float, server: str = "the server") -> None:
        self.answered: bool = False
        self.failure: str = ""
        self.gave_up: bool = False
        self.not_sent: Counter[str] = Counter()
        self.not_repeated: Counter[str] = Counter()
        self._exporter = exporter
        self._patience = patience
        self._silence = f"no answer from {server} within {patience:g} s"
        self._attempted = trio.Event()
        self._attempts: set[trio.CancelScope] = set()
        # Batches with an attempt, as long as none was answered. Kept, as the id of one that is gone may come again.
        self._attempted_batches: dict[int, SpanBatch] = {}

    def check_location(self, location: str) -> None:
        """Raise `InvalidLocationError` if nothing can be sent to ``location``."""
        if isinstance(self._exporter, LocationChecker):
            self._exporter.check_location(location)

    async def export(self, batch: SpanBatch) -> ExportResult:
        """Make one attempt at sending ``batch``, unless it gave up."""
        self._attempted.set()
        if self.gave_up:
            await trio.lowlevel.checkpoint()
            self.not_sent[batch.location] += 1
            self.not_repeated[batch.location] += id(batch) in self._attempted_batches
            return self._no_answer(ambiguous=False)
        if not self.answered:
            self._attempted_batches[id(batch)] = batch
        with trio.CancelScope() as attempt:
            self._attempts.add(attempt)
            try:
                result = await self._exporter.export(batch)
            finally:
                self._attempts.discard(attempt)
            self._note(result)
            return result
        return self._no_answer(ambiguous=True)

    async def aclose(self) -> None:
        """Close the exporter."""
        await self._exporter.aclose()

    async def wait_to_give_up(self) -> None:
        """Return once it has given up. That may never happen."""
        await self._attempted.wait()
        await trio.sleep(self._patience)
        if self.answered:
            await trio.sleep_forever()
        self.give_up()

    def give_up(self) -> None:
        """Cut short what is under way, and hand everything back from now on."""
        self.gave_up = True
        self.failure = self.failure or self._silence
        for attempt in self._attempts:
            attempt.cancel()

    def _note(self, result: ExportResult) -> None:
        if isinstance(result, TryLater) and result.status_code is None:
            self.failure = result.reason
        else:
            self.answered = True
            self._attempted_batches.clear()

    def _no_answer(self, *, ambiguous: bool) -> TryLater:
        # A wait without an end is one for which there is no time: the batch is handed back at once.
        return TryLater(self.failure, after=math.inf, ambiguous=ambiguous)
