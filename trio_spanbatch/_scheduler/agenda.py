"""The agenda: when each location next has something to do.

A change of a location's state puts it on the agenda for an earlier time if necessary. A later time needs no entry: the
look at the earlier time finds nothing to do, and puts the location on the agenda again.
"""

from __future__ import annotations

import heapq
import math
from itertools import count

from .location import Location

__all__ = ["Agenda"]


class Agenda:
    """A heap of (time, number, location). An entry whose time is not its location's ``next_look_at`` is outdated."""

    def __init__(self) -> None:
        self._entries: list[tuple[float, int, Location]] = []
        self._numbers = count()

    @property
    def next_at(self) -> float:
        """When the next location has to be looked at; `math.inf` if there is none."""
        return self._entries[0][0] if self._entries else math.inf

    def put(self, location: Location, at: float) -> None:
        """Have ``location`` looked at no later than ``at``."""
        if at < location.next_look_at:
            location.next_look_at = at
            heapq.heappush(self._entries, (at, next(self._numbers), location))

    def pop(self, now: float) -> Location | None:
        """Take the next location that has to be looked at by ``now`` off the agenda; None if there is none."""
        while self._entries and self._entries[0][0] <= now:
            at, _, location = heapq.heappop(self._entries)
            if at == location.next_look_at:
                location.next_look_at = math.inf
                return location
        return None
