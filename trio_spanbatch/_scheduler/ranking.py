"""The locations with the most queued bytes, needed when the byte budget is used up.

The ranking is a heap of entries that may be outdated: only the last one of a location counts. It is needed only while
an adder waits for bytes. Until then it is not updated, and a location whose queue changes is recorded in
`Admission.unranked`. The cost is proportional to the number of changes, not to the number of locations. A ranked
location may grow by a quarter of its queued bytes, or of what a location has on average, before it is ranked again: if
a program adds to ten thousand locations in turn, each span changes another location, and ranking that one each time
would cost more than sending the span.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from itertools import count

from .location import Location

# The heap is rebuilt when it has more than `_OUTDATED` entries for each live location, plus `_SLACK`.
_OUTDATED = 4
_SLACK = 64
# A location is ranked again when it has grown by this part of its queued bytes or of the average.
_GROWTH = 4


class Ranking:
    """A heap of (queued bytes, number, location), with the most bytes first."""

    def __init__(self) -> None:
        self._entries: list[tuple[int, int, Location]] = []
        self._numbers = count()

    def put(self, location: Location, live: int, all_queued_bytes: int) -> None:
        """Rank a location by its current queued bytes. There are ``live`` locations, with so many queued bytes."""
        size = location.ranked_bytes = location.queued_bytes
        location.ranked_up_to = location.account.pending_bytes + max(size, all_queued_bytes // live) // _GROWTH
        if location.account.queued:
            heapq.heappush(self._entries, (-size, next(self._numbers), location))
        if len(self._entries) > _OUTDATED * live + _SLACK:
            self._rebuild()

    def take(self, most: int, is_ready: Callable[[Location], bool]) -> list[Location]:
        """Return up to ``most`` of the fullest locations for which ``is_ready`` is true.

        They are removed from the ranking, and so are fuller ones that are not ready: these must be ranked again when
        they become ready.
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
    return -size == location.ranked_bytes and not location.has_ended
