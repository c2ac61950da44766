"""The export slots: which locations may begin an export now.

There is one slot for each export that may run at the same time, over all locations. A location that wants to export
while no slot is free waits in a queue, whose first location gets the next free slot.

A location with a running export may begin another one only if a slot can be spared: some slots are kept free for
locations without one (`kept_free`). Otherwise, several locations with many running exports whose server begins to hang
would hold the slots that healthy and new locations need.
"""

from __future__ import annotations

from collections import OrderedDict

from .location import Location


def kept_free(slots: int, live: int, exporting: int, *, draining: bool) -> int:
    """Return the number of slots that are reserved for locations without a running export.

    Args:
        slots: The number of all slots.
        live: The number of live locations.
        exporting: The number of locations with a running export.
        draining: Whether the drain has begun, in which no location is opened.
    """
    half = slots // 2
    if exporting > 1 and not draining:
        return half
    # One for each other location is enough: a single location exports, or no other one will be opened.
    return min(live - exporting, half)


class Slots:
    """The slots, and the locations that wait for one.

    Attributes:
        count: The number of all slots.
        free: The number of free slots.
        exporting: The number of locations with a running export.
        queue: The locations that wait for a free slot, first in, first out.
        spare_queue: The locations with a running export that wait until a slot can be spared for another one.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self.free = count
        self.exporting = 0
        self.queue: OrderedDict[Location, None] = OrderedDict()
        self.spare_queue: dict[Location, None] = {}

    def can_spare(self, live: int, *, draining: bool) -> bool:
        """Return whether a location with a running export may begin another one."""
        return self.free > kept_free(self.count, live, self.exporting, draining=draining)

    def take(self, location: Location) -> None:
        """Take a slot for an export. One must be free."""
        self.free -= 1
        self.exporting += not location.pace.active
        location.pace.active += 1
        self.queue.pop(location, None)

    def give_back(self, location: Location) -> None:
        """Give back the slot of an export that ended."""
        self.free += 1
        location.pace.active -= 1
        self.exporting -= not location.pace.active

    def forget(self, location: Location) -> None:
        """Remove a location from both queues."""
        self.queue.pop(location, None)
        self.spare_queue.pop(location, None)
