"""The agenda: when each location next has something to do.

If a change of a location's state makes something due earlier, the location gets another entry for that time. If it
makes something due later, it gets none: at the earlier time nothing is due, and the location gets an entry again.
"""

from __future__ import annotations

import heapq
import math
from itertools import count

from .location import Location


class Agenda:
    """A heap of (time, number). An entry is outdated if no location has its number any more."""

    def __init__(self) -> None:
        self._entries: list[tuple[float, int]] = []
        self._numbers = count()
        self._locations: dict[int, Location] = {}

    @property
    def next_at(self) -> float:
        """The earliest time of an entry, in seconds of the clock; `math.inf` if there is none."""
        return self._entries[0][0] if self._entries else math.inf

    def put(self, location: Location, at: float) -> None:
        """Have ``location`` looked at no later than ``at``."""
        if at < location.next_look_at:
            self._locations.pop(location.agenda_number, None)
            location.next_look_at, location.agenda_number = at, next(self._numbers)
            self._locations[location.agenda_number] = location
            heapq.heappush(self._entries, (at, location.agenda_number))
            if len(self._entries) > 64 + 4 * len(self._locations):
                # Most of them are outdated.
                self._entries = [(one.next_look_at, number) for number, one in self._locations.items()]
                heapq.heapify(self._entries)

    def pop(self, now: float) -> Location | None:
        """Remove and return the next location whose time has come at ``now``; None if there is none."""
        while self._entries and self._entries[0][0] <= now:
            _, number = heapq.heappop(self._entries)
            if (location := self._locations.pop(number, None)) is not None:
                location.next_look_at = math.inf
                return location
        return None

    def remove(self, location: Location) -> None:
        """Do not look at a location any more, which has ended."""
        location.next_look_at = -math.inf
        self._locations.pop(location.agenda_number, None)
