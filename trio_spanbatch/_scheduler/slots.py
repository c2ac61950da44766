"""The export slots that all locations share, and the deliveries that wait for a retry.

If a location can export and no slot is free, it waits for one and sleeps on. A slot that is given back goes to the
location that has waited longest, which is only then woken. No slot is free while locations wait, so none is overtaken.
"""

from __future__ import annotations

from bisect import insort
from collections import OrderedDict
from collections.abc import Callable
from typing import TYPE_CHECKING

import attrs
import trio

from .ledger import Lease

if TYPE_CHECKING:
    from .location import Lane

__all__ = ["ExportSlots", "RetryQueue"]


@attrs.define(eq=False)
class _Retry:
    lease: Lease
    may_start: bool = False
    decided: trio.Event = attrs.Factory(trio.Event)

    def first(self) -> int:
        return self.lease.first


class RetryQueue:
    """One location's deliveries that wait for their next attempt, oldest spans first.

    Args:
        changed: Called when a delivery joins the queue, or leaves it without an attempt.
        give_back: Called when a delivery that may make its attempt cannot any more.
    """

    def __init__(self, changed: Callable[[], None], give_back: Callable[[], None]) -> None:
        self._changed = changed
        self._give_back = give_back
        self._waiting: list[_Retry] = []

    def __len__(self) -> int:
        return len(self._waiting)

    def start_first(self) -> None:
        """Let the first delivery make its attempt."""
        retry = self._waiting.pop(0)
        retry.may_start = True
        retry.decided.set()

    def cancel_all(self) -> None:
        """Tell all deliveries that there will be no other attempt."""
        for retry in self._waiting:
            retry.decided.set()
        self._waiting.clear()

    async def wait(self, lease: Lease, give_up_at: float) -> bool:
        """Wait for the next attempt. Return False if there will be none before ``give_up_at``."""
        retry = _Retry(lease)
        insort(self._waiting, retry, key=_Retry.first)
        self._changed()
        try:
            with trio.CancelScope(deadline=give_up_at):
                await retry.decided.wait()
        except trio.Cancelled:
            if retry.may_start:
                # `start_first` was called after the cancel, before this task ran.
                self._give_back()
            raise
        finally:
            if not retry.decided.is_set():
                self._waiting.remove(retry)
                self._changed()
        return retry.may_start


class ExportSlots:
    """Slots, one for each export that may run at a time.

    Attributes:
        free: How many are free.
    """

    def __init__(self, count: int) -> None:
        self.free = count
        self._waiting: OrderedDict[Lane, None] = OrderedDict()

    def try_take(self, lane: Lane) -> bool:
        """Take a slot for ``lane`` if one is free; otherwise let it wait, unless it waits already."""
        if not self.free:
            self._waiting.setdefault(lane)
            return False
        self.free -= 1
        return True

    def leave(self, lane: Lane) -> None:
        """Let ``lane`` wait no longer, if it does."""
        self._waiting.pop(lane, None)

    def give_back(self) -> None:
        """Give a slot back. The location that has waited longest gets it."""
        if self._waiting:
            lane, _ = self._waiting.popitem(last=False)
            lane.take_slot()
        else:
            self.free += 1
