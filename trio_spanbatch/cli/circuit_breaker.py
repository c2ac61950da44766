"""A circuit breaker for ``send``: it stops sending if no server answers, or if a location keeps failing.

A batcher that lost its server retries each batch for minutes, one after the other, because servers come back. A command
has to end, even if the address is wrong or the server does not recover.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import attrs
import trio

from .._exporter import ExportResult, LocationChecker, SpanExporter, TryLater
from .._spans.batch import SpanBatch


@attrs.define(eq=False)
class FailingLocation:
    """A location whose last attempt failed."""

    location: str
    since: float  # when the first attempt that failed began, in trio's time
    give_up_at: float  # when its batches begin to be handed back without an attempt
    reason: str = ""  # why the last attempt failed
    is_reported: bool = False  # whether it was reported to the user


@attrs.define(eq=False)
class CircuitBreaker:
    """A `SpanExporter` that wraps another one and stops sending to locations that keep failing.

    It gives up altogether if no request was ever answered within ``patience`` seconds of the first attempt. It gives up
    a location if its attempts have failed for ``max_elapsed`` seconds in a row, or if the server asks to wait for
    longer than that. From then on it has the batcher hand batches back without an attempt.
    """

    _exporter: SpanExporter
    _patience: float
    _server: str = "the server"
    _max_elapsed: float = math.inf
    answered: bool = attrs.field(default=False, init=False)  # whether any request was answered, with any status
    failure: str = attrs.field(default="", init=False)  # why the last attempt without an answer failed
    gave_up: bool = attrs.field(default=False, init=False)  # whether it gave up altogether
    _attempted: trio.Event = attrs.field(factory=trio.Event, init=False)
    _attempts: set[trio.CancelScope] = attrs.field(factory=set, init=False)
    _failing: dict[str, FailingLocation] = attrs.field(factory=dict, init=False)

    def check_location(self, location: str) -> None:
        if isinstance(self._exporter, LocationChecker):
            self._exporter.check_location(location)

    def failing(self) -> Iterator[FailingLocation]:
        """Yield the locations that fail now, in the order in which they began to fail."""
        yield from self._failing.values()

    def reason_to_hand_back(self, location: str) -> str | None:
        """Return why batches for ``location`` are handed back without an attempt; None if they are not."""
        if self.gave_up:
            return self.failure
        failing = self._failing.get(location)
        if failing is None or trio.current_time() < failing.give_up_at:
            return None
        # Worded like the batcher's own reason, so that all losses of a location have the same.
        return f"retries exhausted: {failing.reason}"

    async def export(self, batch: SpanBatch) -> ExportResult:
        self._attempted.set()
        began = trio.current_time()
        with trio.CancelScope() as attempt:
            self._attempts.add(attempt)
            try:
                result = await self._exporter.export(batch)
            finally:
                self._attempts.discard(attempt)
            self._note(result, batch.location, began)
            return result
        return TryLater(self.failure, ambiguous=True)

    async def aclose(self) -> None:
        await self._exporter.aclose()

    async def wait_to_give_up(self) -> None:
        """Give up altogether once ``patience`` has run out; wait forever if any request was answered by then."""
        await self._attempted.wait()
        await trio.sleep(self._patience)
        if self.answered:
            await trio.sleep_forever()
        self.give_up()

    def give_up(self) -> None:
        """Cancel the attempts under way, and have all batches handed back from now on."""
        self.gave_up = True
        self.failure = self.failure or f"no answer from {self._server} within {self._patience:g} s"
        for attempt in self._attempts:
            attempt.cancel()

    def _note(self, result: ExportResult, location: str, began: float) -> None:
        if not isinstance(result, TryLater):
            self.answered = True
            self._failing.pop(location, None)
            return
        if result.status_code is None:
            self.failure = result.reason
        else:
            self.answered = True
        new = FailingLocation(location, began, began + self._max_elapsed)
        failing = self._failing.setdefault(location, new)
        failing.reason = result.reason
        now = trio.current_time()
        if now + (result.after or 0) >= failing.give_up_at:
            failing.give_up_at = now
