"""The export slots that all locations share, and the line of lanes that wait for one.

A lane that could export and finds no slot stands in the line and sleeps on. Whoever gives a slot back hands it to the
lane that has stood there longest, and wakes it: a lane is woken when there is a slot for it, not to look for one. While
lanes stand in the line, no slot is free, so nobody overtakes them.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .location import Lane
from bisect import insort
from collections.abc import Callable

import attrs
import trio

from .ledger import Lease

__all__ = [
    "ExportSlots",
    "Turns",
]

# The line of deliveries of one location that wait for their next attempt.


@attrs.define(eq=False)
class _Turn:
    lease: Lease
    given: bool = False
    over: trio.Event = attrs.Factory(trio.Event)

    def first(self) -> int:
        return self.lease.first


class Turns:
    """The waiting deliveries, the one with the oldest spans first.

    Args:
        changed: Called when the line has changed by itself.
        give_back: Called when a turn was given that its delivery cannot use any more.
    """

    def __init__(self, changed: Callable[[], None], give_back: Callable[[], None]) -> None:
        self._changed = changed
        self._give_back = give_back
        self._waiting: list[_Turn] = []

    def __len__(self) -> int:
        return len(self._waiting)

    def give_first(self) -> None:
        """Let the first delivery make its attempt."""
        turn = self._waiting.pop(0)
        turn.given = True
        turn.over.set()

    def end_all(self) -> None:
        """Tell all deliveries that there will be no turn."""
        for turn in self._waiting:
            turn.over.set()
        self._waiting.clear()

    async def wait(self, lease: Lease, give_up_at: float) -> bool:
        """Wait for a turn. Return False if ``give_up_at`` came first, or there will be none."""
        turn = _Turn(lease)
        insort(self._waiting, turn, key=_Turn.first)
        self._changed()
        try:
            with trio.CancelScope(deadline=give_up_at):
                await turn.over.wait()
        except trio.Cancelled:
            if turn.given:
                # Cancelled first and then, before this task ran, given its turn.
                self._give_back()
            raise
        finally:
            if not turn.over.is_set():
                self._waiting.remove(turn)
                self._changed()
        return turn.given


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
