"""The export slots: which locations may begin an export now.

There is one slot for each export that may run at a time, over all locations. A location that wants to export and finds
none free waits in line. As long as locations wait in line, the first of them gets the next free slot.

A location that has an export running may begin another one only while a slot can be spared. Several locations that had
many exports running when they began to hang must not hold the slots that healthy and new locations need. How many
slots are kept free for locations that have none running is a function of four numbers, `kept_free`.
"""

from __future__ import annotations

from collections import OrderedDict

from .location import Location

__all__ = ["Slots", "kept_free"]


def kept_free(slots: int, live: int, exporting: int, *, draining: bool) -> int:
    """Return how many slots only locations without a running export may take.

    Args:
        slots: How many there are.
        live: How many locations are live.
        exporting: How many of them have an export running.
        draining: Whether the drain has begun: no other location will be opened.
    """
    half = slots // 2
    if exporting > 1 and not draining:
        return half
    # A location that exports alone leaves one for each other location.
    return min(live - exporting, half)


class Slots:
    """The slots, and the locations that wait for one.

    Attributes:
        count: How many there are.
        free: How many are free.
        exporting: How many locations have a running export.
        queue: The locations that wait for a free slot, first come first served.
        spare_queue: The locations over their share: they have an export running and could begin another one if a slot
            could be spared. There are at most as many as slots.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self.free = count
        self.exporting = 0
        self.queue: OrderedDict[Location, None] = OrderedDict()
        self.spare_queue: dict[Location, None] = {}

    def can_spare(self, live: int, *, draining: bool) -> bool:
        """Return whether a location that has a running export may begin another one."""
        return self.free > kept_free(self.count, live, self.exporting, draining=draining)

    def take(self, location: Location) -> None:
        """Count an export that begins. A slot must be free."""
        self.free -= 1
        self.exporting += not location.pace.active
        location.pace.active += 1
        self.queue.pop(location, None)

    def give_back(self, location: Location) -> None:
        """Count an export that has ended."""
        self.free += 1
        location.pace.active -= 1
        self.exporting -= not location.pace.active

    def forget(self, location: Location) -> None:
        """Let a location wait no longer."""
        self.queue.pop(location, None)
        self.spare_queue.pop(location, None)
