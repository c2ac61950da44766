"""The driver: the one task that has the scheduler decide, and carries out its orders.

It sleeps until the earliest time at which any location has something to do, or until it is woken. After a wake-up the
scheduler decides from the whole state, and there is no checkpoint between that and the next sleep, so no wake-up is
lost, and one for nothing does no harm.

It runs on a shallow stack of its own, so no recursion of the program reaches it. A program that adds a span wakes it by
`trio.lowlevel.TrioToken.run_sync_soon`, the one call of trio's that may be interrupted anywhere: it is made for signal
handlers. (Moving the deadline of its sleep would be cheaper. But a `RecursionError` or an exception of a signal handler
in the middle of that leaves trio's count of deadlines wrong, and trio ends the run when it notices.)
"""

from __future__ import annotations

import trio

from .._scheduler.scheduler import Scheduler
from .runtime import Runtime

__all__ = ["Driver"]


class Driver:
    """Has the scheduler decide until all locations have ended in the drain.

    Attributes:
        runtime: Carries out the orders.
        is_awake: Whether the scheduler will decide soon.
        has_ended: Whether it will decide no more.
    """

    runtime: Runtime

    def __init__(self) -> None:
        self.is_awake = True
        self.has_ended = False
        self._token: trio.lowlevel.TrioToken | None = None
        self._asleep: trio.lowlevel.Task | None = None

    @property
    def _scheduler(self) -> Scheduler:
        return self.runtime.scheduler

    def wake_from_anywhere(self) -> None:
        """Have the scheduler decide soon. Called on the caller's stack."""
        if self.is_awake:
            return
        assert self._token is not None, "it has slept"
        self._token.run_sync_soon(self._rouse, idempotent=True)
        self.is_awake = True

    def wake(self) -> None:
        """Have the scheduler decide soon. Called on the shallow stack of a task of the batcher."""
        if self.has_ended:
            # Nothing is left to decide, but a flush may be complete.
            self.runtime.carry_out_orders()
        elif not self.is_awake:
            self.is_awake = True
            self._rouse()

    def _rouse(self) -> None:
        task, self._asleep = self._asleep, None
        if task is not None:
            trio.lowlevel.reschedule(task)

    @trio.lowlevel.enable_ki_protection
    async def run(self) -> None:
        """Have the scheduler decide until all locations have ended in the drain. When cancelled, end them."""
        self._token = trio.lowlevel.current_trio_token()
        try:
            while True:
                while self._scheduler.step(trio.current_time()):
                    self.runtime.carry_out_orders()
                    await trio.lowlevel.checkpoint()
                self.runtime.carry_out_orders()
                if self._scheduler.is_over:
                    return
                await self._sleep()
        except BaseException as exc:
            self.runtime.task_failed(exc)
            raise
        finally:
            self.has_ended = self.is_awake = True
            self._scheduler.hand_back_all(self.runtime.stop_reason)
            self.runtime.carry_out_orders()

    async def _sleep(self) -> None:
        self.is_awake = False
        with trio.CancelScope(deadline=self._scheduler.next_at()):
            self._asleep = trio.lowlevel.current_task()
            await trio.lowlevel.wait_task_rescheduled(self._abort)
        self.is_awake = True

    def _abort(self, _: trio.lowlevel.RaiseCancelT) -> trio.lowlevel.Abort:
        self._asleep = None
        return trio.lowlevel.Abort.SUCCEEDED
