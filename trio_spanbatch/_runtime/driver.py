"""The driver: the one task that keeps the agenda of all locations.

It sleeps until the earliest time at which any location has something to do. Changes of state move the deadline of that
sleep and never interrupt it otherwise. After a wake-up it decides from the whole state of each location that is due,
and there is no checkpoint between that and the next sleep, so no wake-up is lost, and one for nothing does no harm.
"""

from __future__ import annotations

import math

import trio

from .._scheduler.agenda import Agenda
from .._scheduler.shared import Shared

__all__ = ["Driver"]

# A look that begins an export takes 20 to 40 us.
_LOOKS_A_STEP = 64


def _wake(_: object) -> trio.lowlevel.Abort:
    return trio.lowlevel.Abort.SUCCEEDED


class Driver:
    """Looks at locations when their time comes, until all have ended in the drain.

    Attributes:
        agenda: When each location has to be looked at.
    """

    def __init__(self, shared: Shared) -> None:
        self._shared = shared
        self._sleep: trio.CancelScope | None = None
        self.agenda = Agenda(self.wake)

    def wake(self, at: float = -math.inf) -> None:
        """Have the driver look at the agenda no later than ``at``."""
        if self._sleep is not None and at < self._sleep.deadline:
            self._sleep.deadline = at

    @trio.lowlevel.enable_ki_protection
    async def run(self) -> None:
        """Look at locations until all have ended in the drain. When cancelled, end them."""
        try:
            while True:
                await self._look()
                if self._shared.draining and not len(self._shared.lanes):
                    return
                with trio.CancelScope(deadline=self.agenda.next_at) as self._sleep:
                    await trio.lowlevel.wait_task_rescheduled(_wake)
                self._sleep = None
        except BaseException as exc:
            self._shared.task_failed(exc)
            raise
        finally:
            self._sleep = None
            for lane in self._shared.lanes:
                lane.end()

    async def _look(self) -> None:
        """Look at all locations whose time has come. Other tasks run after each `_LOOKS_A_STEP` of them."""
        looks = 0
        while (lane := self.agenda.pop(trio.current_time())) is not None:
            lane.step()
            looks += 1
            if looks % _LOOKS_A_STEP == 0:
                await trio.lowlevel.checkpoint()
