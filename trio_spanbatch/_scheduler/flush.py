"""A flush: waits until all spans that were pending when it began are accounted for.

For each location it has a watermark, the number of spans accepted when it began, and counts down as spans below it are
accounted for. Later spans do not matter, unless they share a batch with one below the watermark.
"""

from __future__ import annotations

import attrs

from .._reporting.statistics import FlushCounts, FlushReport, Settlement
from .ledger import Account

__all__ = ["Flush", "LocationFlush"]


@attrs.define(eq=False)
class LocationFlush:
    """One location's part of a flush.

    Attributes:
        flush: The flush.
        location: The location's name.
        parts: All flushes' parts at the location, this one included until it is finished or forgotten.
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

    def note(self, first: int, count: int, settlement: Settlement) -> None:
        """Count those of ``count`` spans from the number ``first`` on that are below the watermark, by outcome."""
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
        watches_all: Whether no other location will be watched.
    """

    def __init__(self) -> None:
        self.watches_all = False
        self._open: dict[LocationFlush, None] = {}
        self._finished: dict[str, FlushCounts] = {}
        self._delivered = self._rejected = self._undelivered = 0

    @property
    def is_done(self) -> bool:
        """Whether every span is accounted for."""
        return self.watches_all and not self._open

    def watch(self, location: str, account: Account, parts: dict[LocationFlush, None]) -> int:
        """Wait for the pending spans of another location. Its flushes are in ``parts``. Return the watermark."""
        # Read without a call between, so that no span can be added between.
        part = LocationFlush(self, location, parts, account.accepted, account.queued + account.in_flight)
        self._open[part] = None
        parts[part] = None
        return part.watermark

    def finished(self, part: LocationFlush) -> None:
        """Note that a location has no pending span below its watermark."""
        del self._open[part], part.parts[part]
        self._finished[part.location] = FlushCounts(
            delivered=part.delivered, rejected=part.rejected, undelivered=part.undelivered
        )
        self._delivered += part.delivered
        self._rejected += part.rejected
        self._undelivered += part.undelivered

    def forget(self) -> None:
        """Wait no longer. Takes time in proportion to the locations that are not finished."""
        for part in self._open:
            part.parts.pop(part, None)
        self._open.clear()

    def report(self) -> FlushReport:
        """Return the outcome of the spans."""
        return FlushReport(
            delivered=self._delivered,
            rejected=self._rejected,
            undelivered=self._undelivered,
            locations=self._finished,
        )
