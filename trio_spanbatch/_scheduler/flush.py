"""A flush: a barrier over all spans that were pending when it was asked for.

It has a watermark for each location, the number of spans accepted so far, and counts down as the spans below it are
accounted for. Spans above the watermark are none of its business, but for those that share a batch with one below.
"""

from __future__ import annotations

import attrs
import trio

from .._reporting.statistics import FlushCounts, FlushReport, Settlement
from .ledger import Account, Lease

__all__ = ["Flush", "LocationFlush"]


@attrs.define(eq=False)
class LocationFlush:
    """One location's part in a flush.

    Attributes:
        watermark: The number of the first span that is not waited for.
        remaining: How many spans below the watermark are pending.
    """

    watermark: int
    remaining: int
    delivered: int = 0
    rejected: int = 0
    undelivered: int = 0

    def note(self, lease: Lease, settlement: Settlement) -> None:
        """Count what became of the spans of ``lease`` that are below the watermark."""
        below = max(0, min(self.watermark - lease.first, len(lease)))
        rejected = min(settlement.rejected, below)
        undelivered = min(settlement.undelivered, below - rejected)
        self.rejected += rejected
        self.undelivered += undelivered
        self.delivered += below - rejected - undelivered
        self.remaining -= below


class Flush:
    """What a call of ``flush`` waits for."""

    def __init__(self) -> None:
        self._done = trio.Event()
        self._locations: dict[str, LocationFlush] = {}
        self._open = 0

    def watch(self, location: str, account: Account) -> LocationFlush:
        """Wait for what is pending in ``account`` too."""
        part = self._locations[location] = LocationFlush(account.accepted, account.pending)
        self._open += 1
        return part

    def finished(self) -> None:
        """One location has nothing left below its watermark."""
        self._open -= 1
        if not self._open:
            self._done.set()

    async def wait(self) -> None:
        """Return once every location is finished. Always a checkpoint."""
        if not self._open:
            self._done.set()
        await self._done.wait()

    def report(self) -> FlushReport:
        """Return what became of the spans."""
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
