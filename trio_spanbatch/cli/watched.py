"""Noticing that sending leads nowhere: no request was ever answered, or nothing gets through to a location.

A batcher that lost its server is patient, as servers come back: it repeats each batch for minutes, one after the other.
A command is not. Whoever waits for it is to see its end, also where the address is wrong or a server is ill for good.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator

import attrs
import trio

from .._exporter import ExportResult, LocationChecker, Refused, SpanExporter, TryLater
from .._spans.batch import SpanBatch

__all__ = ["GIVEN_UP", "Trouble", "WatchedExporter"]

# The status of what was handed back without being sent. No server has it.
GIVEN_UP = -1


@attrs.define(eq=False)
class Trouble:
    """A location to which nothing gets through.

    Attributes:
        location: Its name.
        since: When the first attempt that failed began, in trio's time.
        reason: What the last one failed with.
        is_told: Whether somebody was told of it.
        is_hopeless: Whether it was given up.
    """

    location: str
    since: float
    reason: str = ""
    is_told: bool = False
    is_hopeless: bool = False


class WatchedExporter:
    """A `SpanExporter` around another one that gives up sooner.

    It gives up as a whole when no request was ever answered. After that it hands every batch back at once, so that the
    drain takes no time. And it gives a location up when attempts at it have failed for ``max_elapsed`` in a row, or
    when the server asks to be left alone for longer: each further batch would take as long again, and is handed back
    at once instead.

    The batcher cannot be told to hand back a batch and go on with the next one. So what is handed back for a location
    is refused with the status `GIVEN_UP`, and who counts takes that for undelivered.

    Args:
        exporter: What sends.
        patience: Seconds from the first attempt after which it gives up.
        server: Who does not answer, as in ``localhost:4318``.
        max_elapsed: Seconds after which it gives a location up.

    Attributes:
        answered: Whether any request was answered, by whatever status.
        failure: What the last attempt failed with that was not answered.
        gave_up: Whether it gave up as a whole.
        not_sent: For each location, how many batches it handed back without an attempt, though the batcher counts one.
        not_repeated: How many of these it had attempted before.
    """

    def __init__(
        self,
        exporter: SpanExporter,
        patience: float,
        server: str = "the server",
        max_elapsed: float = math.inf,
    ) -> None:
        self.answered: bool = False
        self.failure: str = ""
        self.gave_up: bool = False
        self.not_sent: Counter[str] = Counter()
        self.not_repeated: Counter[str] = Counter()
        self._exporter = exporter
        self._patience = patience
        self._max_elapsed = max_elapsed
        self._silence = f"no answer from {server} within {patience:g} s"
        self._attempted = trio.Event()
        self._attempts: set[trio.CancelScope] = set()
        self._troubles: dict[str, Trouble] = {}
        # For each location, batches with an attempt since the last that got through. Kept, as the id of one that is
        # gone may come again.
        self._attempted_batches: dict[str, dict[int, SpanBatch]] = {}

    def check_location(self, location: str) -> None:
        """Raise `InvalidLocationError` if nothing can be sent to ``location``."""
        if isinstance(self._exporter, LocationChecker):
            self._exporter.check_location(location)

    def troubles(self) -> Iterator[Trouble]:
        """Yield the locations that fail now, the one that failed first before the others."""
        yield from self._troubles.values()

    async def export(self, batch: SpanBatch) -> ExportResult:
        """Make one attempt at sending ``batch``, unless it gave up."""
        self._attempted.set()
        trouble = self._troubles.get(batch.location)
        if self.gave_up or (trouble is not None and self._is_hopeless(trouble, trio.current_time())):
            await trio.lowlevel.checkpoint()
            self._count_as_not_sent(batch)
            return self._no_answer(ambiguous=False) if trouble is None or self.gave_up else _handed_back(trouble)
        began = trio.current_time()
        self._attempted_batches.setdefault(batch.location, {})[id(batch)] = batch
        with trio.CancelScope() as attempt:
            self._attempts.add(attempt)
            try:
                result = await self._exporter.export(batch)
            finally:
                self._attempts.discard(attempt)
            return self._noted(result, batch.location, began)
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

    def _noted(self, result: ExportResult, location: str, began: float) -> ExportResult:
        """Return the result, or what stands for it where a wait would be in vain."""
        if not isinstance(result, TryLater):
            self.answered = True
            self._troubles.pop(location, None)
            self._attempted_batches.pop(location, None)
            return result
        if result.status_code is None:
            self.failure = result.reason
        else:
            self.answered = True
        trouble = self._troubles.setdefault(location, Trouble(location, began))
        trouble.reason = result.reason
        in_vain = not result.ambiguous and self._is_hopeless(trouble, trio.current_time() + (result.after or 0))
        return _handed_back(trouble) if in_vain else result

    def _is_hopeless(self, trouble: Trouble, at: float) -> bool:
        trouble.is_hopeless = trouble.is_hopeless or at >= trouble.since + self._max_elapsed
        return trouble.is_hopeless

    def _count_as_not_sent(self, batch: SpanBatch) -> None:
        self.not_sent[batch.location] += 1
        self.not_repeated[batch.location] += id(batch) in self._attempted_batches.get(batch.location, {})

    def _no_answer(self, *, ambiguous: bool) -> TryLater:
        # A wait without an end is one for which there is no time: the batch is handed back at once.
        return TryLater(self.failure, after=math.inf, ambiguous=ambiguous)


def _handed_back(trouble: Trouble) -> Refused:
    # In the words of the batcher, so that all of a location have one reason.
    return Refused(f"retries exhausted: {trouble.reason}", GIVEN_UP)
