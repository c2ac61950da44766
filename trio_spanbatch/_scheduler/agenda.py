"""The agenda: when each location next has something to do.

The driver looks at a location (`Lane.step`) when its time has come, and the location then says when to look again. A
change of a location's state puts it on the agenda for an earlier time if necessary. A later time needs no entry: the
look at the earlier time finds nothing to do, and puts the location on the agenda again.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable
from itertools import count
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .location import Lane

__all__ = ["Agenda"]


class Agenda:
    """A heap of (time, number, location). An entry whose time is not its location's ``look_at`` is outdated.

    Args:
        wake: Called with a time before which the driver must look at the agenda.
    """

    def __init__(self, wake: Callable[[float], None]) -> None:
        self._wake = wake
        self._entries: list[tuple[float, int, Lane]] = []
        self._numbers = count()

    @property
    def next_at(self) -> float:
        """When the next location has to be looked at; `math.inf` if there is none."""
        return self._entries[0][0] if self._entries else math.inf

    def put(self, lane: Lane, at: float) -> None:
        """Have ``lane`` looked at no later than ``at``."""
        if at < lane.look_at:
            lane.look_at = at
            heapq.heappush(self._entries, (at, next(self._numbers), lane))
            self._wake(at)

    def pop(self, now: float) -> Lane | None:
        """Take the next location that has to be looked at by ``now`` off the agenda; None if there is none."""
        while self._entries and self._entries[0][0] <= now:
            at, _, lane = heapq.heappop(self._entries)
            if at == lane.look_at:
                lane.look_at = math.inf
                return lane
        return None
