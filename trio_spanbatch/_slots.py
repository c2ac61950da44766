"""The export slots that all locations share, and the line of lanes that wait for one.

A lane that could export and finds no slot stands in the line and sleeps on. Whoever gives a slot back hands it to the
lane that has stood there longest, and wakes it: a lane is woken when there is a slot for it, not to look for one. While
lanes stand in the line, no slot is free, so nobody overtakes them.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ._lane import Lane

__all__ = ["ExportSlots"]


class ExportSlots:
    """Slots, one for each export that may run now.

    Attributes:
        free: How many are free.
    """

    def __init__(self, count: int) -> None:
        self.free = count
        self._line: OrderedDict[Lane, None] = OrderedDict()

    def try_take(self, lane: Lane) -> bool:
        """Take a slot for ``lane`` if one is free; else let it stand in the line, where it may stand already."""
        if not self.free:
            self._line.setdefault(lane)
            return False
        self.free -= 1
        return True

    def leave(self, lane: Lane) -> None:
        """Let ``lane`` leave the line. Nothing happens if it does not stand there."""
        self._line.pop(lane, None)

    def give_back(self) -> None:
        """Give a slot back: the first lane in the line gets it."""
        if self._line:
            lane, _ = self._line.popitem(last=False)
            lane.take_slot()
        else:
            self.free += 1
