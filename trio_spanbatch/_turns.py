"""The line of deliveries of one location that wait for their next attempt."""

from __future__ import annotations

from bisect import insort
from collections.abc import Callable

import attrs
import trio

from ._ledger import Lease

__all__ = ["Turns"]


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
