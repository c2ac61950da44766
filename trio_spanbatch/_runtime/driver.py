"""The driver: the task that calls the scheduler's `step` and carries out its orders.

It sleeps until the earliest time at which any location has something to do, or until it is woken. After a wake-up the
scheduler decides from the whole state, so a superfluous wake-up is harmless. There is no checkpoint between the last
decision and the next sleep, so no wake-up is lost.

It is a separate task with a shallow stack, so recursion in the program does not affect it. A program that adds a span
wakes it with `trio.lowlevel.TrioToken.run_sync_soon`, which is made to be called from signal handlers and may be
interrupted anywhere. (Moving the deadline of its sleep would be cheaper. But a `RecursionError` or a signal handler's
exception in the middle of that leaves trio's count of deadlines wrong, and trio ends the run when it notices.)
"""

from __future__ import annotations

import trio

from .._scheduler.scheduler import Scheduler
from .runtime import Runtime


class Driver:
    """Runs the scheduler until all locations have ended in the drain.

    Attributes:
        runtime: Carries out the orders.
        is_awake: Whether `step` will be called soon.
        has_ended: Whether `step` will not be called again.
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
        """Schedule a call of `step`. May be called on the program's stack, and by a signal handler."""
        if self.is_awake:
            return
        assert self._token is not None, "the driver has run"
        self._token.run_sync_soon(self._rouse, idempotent=True)
        self.is_awake = True

    def wake(self) -> None:
        """Schedule a call of `step`. Must be called on the shallow stack of one of the batcher's tasks."""
        if self.has_ended:
            # Nothing remains to be decided, but a flush may be complete.
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
        """Call `step` until all locations have ended in the drain. If this is cancelled, end them immediately."""
        self._token = trio.lowlevel.current_trio_token()
        can_wait = True
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
            # If trio has crashed, nothing can be waited for.
            can_wait = not isinstance(exc, GeneratorExit)
            if not isinstance(exc, trio.Cancelled):
                # It may have come in the middle of a step, and then not all spans are accounted for.
                self.runtime.abandon_flushes()
            raise
        finally:
            self.has_ended = self.is_awake = True
            while self._scheduler.hand_back(self.runtime.stop_reason):
                self.runtime.carry_out_orders()
                if can_wait:
                    await trio.lowlevel.cancel_shielded_checkpoint()
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
