"""The locations by their queued bytes, the fullest first, for a byte budget that is used up.

It is a heap of entries that may be outdated: an entry counts only if its bytes are still those of its location. While
no adder waits, nobody asks for the fullest location, and spans enter queues without telling the ranking; so a location
whose bytes changed is in `Admission.unranked` until an adder waits again. The cost is in proportion to the changes,
and not to the number of locations.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from itertools import count

from .location import Location

__all__ = ["Ranking"]

# The heap is made anew when it has this many times as many entries as locations were ranked, and this many more.
_OUTDATED = 4
_SLACK = 64


class Ranking:
    """A heap of (queued bytes, number, location), with the most bytes first."""

    def __init__(self) -> None:
        self._entries: list[tuple[int, int, Location]] = []
        self._numbers = count()

    def put(self, location: Location, live: int) -> None:
        """Rank a location by its present bytes. ``live`` is how many locations are live."""
        location.is_ranked = True
        if location.account.queued:
            heapq.heappush(self._entries, (-location.queued_bytes, next(self._numbers), location))
        if len(self._entries) > _OUTDATED * live + _SLACK:
            self._rebuild()

    def take(self, most: int, is_ready: Callable[[Location], bool]) -> list[Location]:
        """Return up to ``most`` of the fullest locations for which ``is_ready`` is true.

        They leave the ranking, and so do fuller ones that are not ready. These must be ranked again when they are.
        """
        found: dict[Location, None] = {}
        while self._entries and len(found) < most:
            entry = heapq.heappop(self._entries)
            if _is_current(entry) and is_ready(entry[2]):
                found[entry[2]] = None
        return list(found)

    def _rebuild(self) -> None:
        current = {entry[2]: entry for entry in self._entries if _is_current(entry)}
        self._entries = sorted(current.values())


def _is_current(entry: tuple[int, int, Location]) -> bool:
    size, _, location = entry
    return -size == location.queued_bytes and not location.has_ended
