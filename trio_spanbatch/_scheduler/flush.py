"""A flush: waits until all spans that were pending when it began are accounted for.

For each location it has a watermark, the number of spans accepted when it began, and counts down as spans below it are
accounted for. Later spans do not matter, unless they share a batch with one below the watermark.
"""

from __future__ import annotations

import attrs

from .._reporting.statistics import FlushCounts, FlushReport, Settlement
from .lease import Lease
from .location import Location

__all__ = ["Flush", "LocationFlush"]


@attrs.define(eq=False)
class LocationFlush:
    """One location's part of a flush.

    Attributes:
        flush: The flush.
        watermark: The number of the first span that the flush does not wait for.
        remaining: The number of pending spans below the watermark.
    """

    flush: Flush
    watermark: int
    remaining: int
    delivered: int = 0
    rejected: int = 0
    undelivered: int = 0

    def note(self, lease: Lease, settlement: Settlement) -> None:
        """Count the spans of ``lease`` that are below the watermark, by outcome."""
        below = max(0, min(self.watermark - lease.first, len(lease)))
        rejected = min(settlement.rejected, below)
        undelivered = min(settlement.undelivered, below - rejected)
        self.rejected += rejected
        self.undelivered += undelivered
        self.delivered += below - rejected - undelivered
        self.remaining -= below


class Flush:
    """The state of one call of ``flush``.

    Attributes:
        parts: The locations that have pending spans below their watermark.
        watches_all: Whether no other location will be watched.
    """

    def __init__(self) -> None:
        self.parts: dict[Location, LocationFlush] = {}
        self.watches_all = False
        self._finished: dict[str, FlushCounts] = {}
        self._delivered = self._rejected = self._undelivered = 0

    @property
    def is_done(self) -> bool:
        """Whether every span is accounted for."""
        return self.watches_all and not self.parts

    def watch(self, location: Location) -> LocationFlush:
        """Wait for the pending spans of another location."""
        part = LocationFlush(self, location.account.accepted, location.account.pending)
        self.parts[location] = part
        return part

    def finished(self, location: Location) -> None:
        """Note that a location has no pending span below its watermark."""
        part = self.parts.pop(location)
        self._finished[location.name] = FlushCounts(
            delivered=part.delivered, rejected=part.rejected, undelivered=part.undelivered
        )
        self._delivered += part.delivered
        self._rejected += part.rejected
        self._undelivered += part.undelivered

    def report(self) -> FlushReport:
        """Return the outcome of the spans."""
        return FlushReport(
            delivered=self._delivered,
            rejected=self._rejected,
            undelivered=self._undelivered,
            locations=self._finished,
        )
