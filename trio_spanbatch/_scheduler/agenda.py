"""The agenda: when each location next has something to do.

If a change of a location's state makes something due earlier, the location gets another entry for that time. If it
makes something due later, it needs none: at the earlier time there is nothing to do, and the location gets an entry
again.
"""

from __future__ import annotations

import heapq
import math
from itertools import count

from .location import Location

__all__ = ["Agenda"]


class Agenda:
    """A heap of (time, number, location). An entry is outdated if its time is not its location's ``next_look_at``."""

    def __init__(self) -> None:
        self._entries: list[tuple[float, int, Location]] = []
        self._numbers = count()

    @property
    def next_at(self) -> float:
        """The earliest time of an entry, in seconds of the clock; `math.inf` if there is none."""
        return self._entries[0][0] if self._entries else math.inf

    def put(self, location: Location, at: float) -> None:
        """Have ``location`` looked at no later than ``at``."""
        if at < location.next_look_at:
            location.next_look_at = at
            heapq.heappush(self._entries, (at, next(self._numbers), location))

    def pop(self, now: float) -> Location | None:
        """Remove and return the next location whose time has come at ``now``; None if there is none."""
        while self._entries and self._entries[0][0] <= now:
            at, _, location = heapq.heappop(self._entries)
            if at == location.next_look_at:
                location.next_look_at = math.inf
                return location
        return None
