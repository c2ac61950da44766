"""A flush: waits until all spans that were pending when it began are accounted for.

For each location it has a watermark, the number of spans accepted when it began, and counts down as spans below it are
accounted for. Later spans do not matter, unless they share a batch with one below the watermark.
"""

from __future__ import annotations

import attrs
import trio

from .._reporting.statistics import FlushCounts, FlushReport, Settlement
from .ledger import Account, Lease

__all__ = ["Flush", "LocationFlush"]


@attrs.define(eq=False)
class LocationFlush:
    """One location's part of a flush.

    Attributes:
        watermark: The number of the first span that the flush does not wait for.
        remaining: The number of pending spans below the watermark.
    """

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
    """The state of one call of ``flush``."""

    def __init__(self) -> None:
        self._done = trio.Event()
        self._locations: dict[str, LocationFlush] = {}
        self._open = 0

    def watch(self, location: str, account: Account) -> LocationFlush:
        """Wait for the pending spans of another location."""
        part = self._locations[location] = LocationFlush(account.accepted, account.pending)
        self._open += 1
        return part

    def finished(self) -> None:
        """Note that one location has no pending span below its watermark."""
        self._open -= 1
        if not self._open:
            self._done.set()

    async def wait(self) -> None:
        """Wait until every location is finished. Always a checkpoint."""
        if not self._open:
            self._done.set()
        await self._done.wait()

    def report(self) -> FlushReport:
        """Return the outcome of the spans."""
        locations = {
            location: FlushCounts(delivered=part.delivered, rejected=part.rejected, undelivered=part.undelivered)
            for location, part in self._locations.items()
        }
        return FlushReport(
            delivered=sum(counts.delivered for counts in locations.values()),
            rejected=sum(counts.rejected for counts in locations.values()),
            undelivered=sum(counts.undelivered for counts in locations.values()),
            locations=locations,
        )
