"""A flush: waits until all spans that were pending when it began are accounted for.

For each location it has a watermark: the number of spans that were accepted when it began. Spans with a lower number
are counted as they are accounted for. Later spans delay it only if they share a batch with one of these.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import attrs

from .._reporting.statistics import FlushCounts, FlushReport, Settlement
from .ledger import Account


@attrs.define(eq=False)
class LocationFlush:
    """One location's part of a flush.

    Attributes:
        flush: The flush.
        location: The location's name.
        parts: The location's parts of all flushes. This one is among them until it is finished or abandoned.
        watermark: The number of the first span that the flush does not wait for.
        remaining: The number of pending spans below the watermark.
    """

    flush: Flush
    location: str
    parts: dict[LocationFlush, None]
    watermark: int
    remaining: int
    delivered: int = 0
    rejected: int = 0
    undelivered: int = 0
    spooled: int = 0

    def note(self, first: int, count: int, settlement: Settlement) -> None:
        """Count the outcome of spans below the watermark, among ``count`` spans from number ``first`` on."""
        below = max(0, min(self.watermark - first, count))
        rejected = min(settlement.rejected, below)
        undelivered = min(settlement.undelivered, below - rejected)
        self.rejected += rejected
        self.undelivered += undelivered
        self.delivered += below - rejected - undelivered
        self.remaining -= below


class Flush:
    """The state of one call of ``flush``.

    Attributes:
        unwatched: The locations for which `Scheduler.watch` was not called yet.
        watches_all: Whether it was called for all of them.
    """

    def __init__(self, locations: Iterable[Any] = ()) -> None:
        self.unwatched: dict[Any, None] = dict.fromkeys(locations)
        self.watches_all = False
        self._open: dict[LocationFlush, None] = {}
        self._finished: dict[str, FlushCounts] = {}
        self._delivered = self._rejected = self._undelivered = self._spooled = 0

    @property
    def is_done(self) -> bool:
        """Whether every span is accounted for."""
        return self.watches_all and not self._open

    def watch(self, location: str, account: Account, parts: dict[LocationFlush, None]) -> int:
        """Also wait for a location's pending spans. ``parts`` has its parts of all flushes. Return the watermark."""
        # No call between reading these counts, so no span can be added in between.
        remaining = account.queued + account.in_flight + account.spooled - account.recovered_left
        part = LocationFlush(self, location, parts, account.accepted, remaining)
        self._open[part] = None
        parts[part] = None
        return part.watermark

    def finished(self, part: LocationFlush) -> None:
        """Record that no span below the watermark is pending at a location any more."""
        del self._open[part], part.parts[part]
        self._finished[part.location] = FlushCounts(
            delivered=part.delivered, rejected=part.rejected, undelivered=part.undelivered, spooled=part.spooled
        )
        self._delivered += part.delivered
        self._rejected += part.rejected
        self._undelivered += part.undelivered
        self._spooled += part.spooled

    def end(self) -> None:
        """Wait no longer, as the batcher is left: what it still waits for is in the spool."""
        for part in tuple(self._open):
            part.spooled, part.remaining = part.remaining, 0
            self.finished(part)

    def forget(self) -> None:
        """Stop waiting. Takes time in proportion to the number of unfinished locations."""
        self.unwatched.clear()
        for part in self._open:
            part.parts.pop(part, None)
        self._open.clear()

    def report(self) -> FlushReport:
        """Return the outcome of the spans. Complete only if `is_done`."""
        return FlushReport(
            delivered=self._delivered,
            rejected=self._rejected,
            undelivered=self._undelivered,
            spooled=self._spooled,
            locations=self._finished,
        )
