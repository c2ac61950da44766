"""The supervisor: owns the tasks of a batcher and ends them.

Ownership
---------
``async with SpanBatcher()`` opens a nursery around its body and starts one task in it, the supervisor. All other tasks
of the batcher (the driver, and one for each delivery) run in an inner nursery of the supervisor, inside a shield::

    async with trio.open_nursery():                   # cancelled from outside like any other
        +-- the body                                  # not shielded, so it can be cancelled
        +-- supervisor: CancelScope(shield=True)
              +-- work: CancelScope()                 # until the drain's deadline, or a Ctrl-C in the drain
              |     +-- driver, deliveries
              +-- the exporter's aclose()             # in the remaining time

With a spool, its tasks (`Spooler`) are in another nursery around that of the work, so that they go on in the remaining
time, in which the last spans are committed.

A cancel from outside therefore ends only the body. ``__aexit__``, which is called however the body ends, then begins
the drain, which gives the shield its deadline. A shield around the wait in ``__aexit__`` alone would be too late: the
cancel would end the driver before ``__aexit__`` runs.

A failure before the drain
--------------------------
If a task fails, trio raises at a task's exit, or something cancels the inner nursery, that nursery is cancelled. The
supervisor waits for the drain in the same nursery, so trio calls its abort function in the step of the cancel. That
function closes admission and wakes all adders, because a span admitted later would never be sent.

The drain
---------
``__aexit__`` closes admission and sets the deadlines in one synchronous step. Then all locations are due, and end when
they are empty; the driver ends with the last of them. At the deadline of the work, its scope is cancelled: each
delivery settles its spans as it unwinds, and the driver those in the queues, so nothing is left to collect.

Exceptions
----------
No exception group of the internal nurseries reaches the program. The body's exception is not passed to them, so it
propagates unchanged. Failures in the supervisor are kept in ``_failure`` and never raised inside a nursery. An
exception that has to end the program (such as a `SystemExit` from the exporter, ``on_loss`` or a log handler) may occur
anywhere in the accounting, so `Log` keeps it. It is raised instead of the body's exception, which becomes its context
and is logged, unless the body's exception ends the program itself.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, suppress
from contextvars import Context, copy_context
from threading import get_ident
from typing import TYPE_CHECKING, TypeVar

import attrs
import trio

from .._exceptions import is_cancelled_here, leaves, raise_for_open_nurseries, split_cancelled
from .._scheduler.location import Lease
from .._values import counted, were
from . import forks as _forks
from .delivery import Delivery
from .driver import Driver
from .interrupts import InterruptWatch
from .runtime import Runtime
from .suppression import suppress_instrumentation

if TYPE_CHECKING:
    from .spooler import Spooler

IN_A_FORKED_CHILD = (
    "this is a forked child of the process in which the batcher was entered, and shares its sockets; it may only exec "
    "or os._exit"
)

_MISPLACED = (
    "the batcher was left inside a nursery or cancel scope that was opened after it; leave in the reverse order of "
    "entering: use `async with`"
)

_Exc = TypeVar("_Exc", bound=BaseException)

# The drain stops deliveries this long before its deadline, or a tenth of its time if that is less, to leave time for
# accounting and for closing the exporter. Seconds.
_LONGEST_RESERVE = 1.0


@attrs.frozen(eq=False)
class _EndOfRun(trio.abc.Instrument):
    """Calls a function when the trio run has ended, however it ended."""

    _callback: Callable[[], None]

    def after_run(self) -> None:
        self._callback()


@attrs.define(eq=False)
class Supervisor:
    """Runs the tasks of one batcher, from `open` to `close`.

    Attributes:
        shutdown_timeout: The maximum number of seconds that `close` may take.
        strict: Whether `close` raises if spans were lost.
        driver: Runs the scheduler.
        runtime: The state that the tasks share.
        token: The token of the trio run in which it was opened; None before that.
        is_forked: Whether this is a copy in a forked child.
        spooler: Carries out orders to the spool; None without one.
    """

    shutdown_timeout: float
    strict: bool
    driver: Driver
    runtime: Runtime = attrs.field(init=False)
    token: trio.lowlevel.TrioToken | None = attrs.field(init=False, default=None)
    is_forked: bool = attrs.field(init=False, default=False)
    spooler: Spooler | None = attrs.field(init=False, default=None)
    # Identifies the trio run until that ends, as a thread has one run at a time. No other identifier is compared
    # faster.
    _thread_id: int | None = attrs.field(init=False, default=None)
    _end_of_run: _EndOfRun = attrs.field(init=False)
    _owner: trio.lowlevel.Task | None = attrs.field(init=False, default=None)
    _waits_for_drain: trio.lowlevel.Task | None = attrs.field(init=False, default=None)
    _done: trio.Event = attrs.field(init=False, factory=trio.Event)
    _work: trio.CancelScope = attrs.field(init=False, factory=trio.CancelScope)
    _shield: trio.CancelScope = attrs.field(init=False, factory=lambda: trio.CancelScope(shield=True))
    _failure: BaseException | None = attrs.field(init=False, default=None)
    _troubles: list[str] = attrs.field(init=False, factory=list)
    _exporter_is_closed: bool = attrs.field(init=False, default=False)
    _interrupted: bool = attrs.field(init=False, default=False)
    _manager: AbstractAsyncContextManager[trio.Nursery] = attrs.field(init=False)
    _nursery: trio.Nursery = attrs.field(init=False)
    _spool_nursery: trio.Nursery = attrs.field(init=False)
    _context: Context = attrs.field(init=False)

    @property
    def has_ended(self) -> bool:
        """Whether all tasks have ended, so that every span is accounted for. May be read in any thread."""
        return self._done.is_set()

    async def wait_until_ended(self) -> None:
        """Wait until every span is accounted for. This is always a checkpoint."""
        await self._done.wait()

    def is_here(self) -> bool:
        """Return whether the caller is in the trio run of the tasks."""
        return get_ident() == self._thread_id

    def forked(self) -> None:
        """Disable this copy, which is in a forked child."""
        self.is_forked = True
        # Admission is not closed, as that would wake tasks of the parent process.
        self.runtime.thread_id = None

    def _run_ended(self) -> None:
        """Record that the run ended before the batcher was left, for instance because trio crashed."""
        # Admission is not closed, as no task is left to wake.
        self.runtime.thread_id = self._thread_id = None
        self.runtime.logger.is_running = False

    @property
    def _reserve(self) -> float:
        return min(_LONGEST_RESERVE, self.shutdown_timeout / 10)

    # -- opening -----------------------------------------------------------------------------------------------

    @trio.lowlevel.enable_ki_protection
    async def open(self) -> None:
        """Start the supervisor. If this raises, no task is left, and the exporter is closed."""
        _forks.remember(self)
        self.token = trio.lowlevel.current_trio_token()
        self._thread_id = get_ident()
        self._end_of_run = _EndOfRun(self._run_ended)
        trio.lowlevel.add_instrument(self._end_of_run)
        self.runtime.logger.is_running = True
        self._manager = trio.open_nursery()
        nursery = await self._manager.__aenter__()
        try:
            if self.spooler is not None:
                await self.spooler.store.open()
            await nursery.start(self._supervise)
        except BaseException:
            await self._manager.__aexit__(None, None, None)  # noqa: ASYNC102  # nothing is in the nursery
            self._shield.deadline = trio.current_time() + self.shutdown_timeout
            with self._shield:
                await self._close_exporter()  # noqa: ASYNC102  # the shield has a deadline, set above
                await self._close_spool()  # noqa: ASYNC102  # the same
            self.runtime.end_feeding()
            self._end()
            if (fatal := self.runtime.logger.fatal) is not None:
                # A Ctrl-C that came while the exporter was being closed has precedence over a cancel.
                raise fatal from None  # noqa: ASYNC104  # a Ctrl-C ends the program anyway
            raise
        self._owner = trio.lowlevel.current_task()
        self.runtime.thread_id = self._thread_id

    def _end(self) -> None:
        self._done.set()
        self.runtime.logger.is_running = False
        self._thread_id = None
        trio.lowlevel.remove_instrument(self._end_of_run)
        _forks.forget(self)

    def start(self, async_fn: Callable[[], Awaitable[None]], name: str) -> None:
        """Start a task that runs until the end of the drain at most."""
        # In the batcher's context, as `start_soon` would otherwise copy the caller's.
        self._context.run(lambda: self._nursery.start_soon(async_fn, name=name))

    def start_delivery(self, lease: Lease) -> None:
        """Start the delivery of a batch."""
        self.start(Delivery(lease, self.runtime).run, f"trio_spanbatch delivery to {lease.batch.location!r}")

    # -- the supervisor's task ---------------------------------------------------------------------------------

    @trio.lowlevel.enable_ki_protection
    async def _supervise(self, task_status: trio.TaskStatus[None]) -> None:  # noqa: ASYNC128  # passed on
        await trio.lowlevel.checkpoint_if_cancelled()
        # In this task's context, a copy of the one in which the batcher was entered. All other tasks get copies of it.
        suppress_instrumentation()
        self._context = copy_context()
        # No checkpoint from here to `started`: a cancelled `start` would wait for a shielded task that never ends.
        try:
            with self._shield:
                if self.spooler is None:
                    await self._supervise_work(task_status)
                    await self._close_exporter()
                else:
                    await self._supervise_with_spool(self.spooler, task_status)
            if self._shield.cancelled_caught and not self._exporter_is_closed:
                why = "a Ctrl-C" if self._interrupted else "shutdown_timeout"
                self._trouble(f"closing the exporter was cut short by {why}")
        finally:
            self._done.set()

    async def _supervise_with_spool(self, spooler: Spooler, status: trio.TaskStatus[None]) -> None:  # noqa: ASYNC128  # passed on
        try:
            async with trio.open_nursery() as self._spool_nursery:
                self._context.run(lambda: self._spool_nursery.start_soon(spooler.run, name="trio_spanbatch spool"))
                await self._supervise_work(status)
                # What is not committed yet is committed meanwhile.
                await self._close_exporter()
                spooler.finish()
        except BaseException as exc:  # noqa: ASYNC103  # as in `_supervise_work`
            cancelled, failure = split_cancelled(exc)
            if failure is not None:
                self._note_failure("a task of its spool failed", failure, is_bug=True)
            if cancelled is not None:
                raise cancelled from None  # noqa: ASYNC104  # this raises it again
        finally:
            self.runtime.end_flushes()
            await self._close_spool()  # noqa: ASYNC102  # inside the shield

    async def _close_spool(self) -> None:
        if self.spooler is not None:
            await self.spooler.close()

    async def _supervise_work(self, task_status: trio.TaskStatus[None]) -> None:
        try:
            with self._work:
                async with trio.open_nursery() as self._nursery:
                    self.start(self.driver.run, "trio_spanbatch driver")
                    if self.spooler is not None:
                        self.start(self.spooler.recover, "trio_spanbatch spool: recover")
                    task_status.started()
                    await self._wait_for_drain()
        except BaseException as exc:  # noqa: ASYNC103  # if the shield is cancelled, the next checkpoint says so again
            _, failure = split_cancelled(exc)
            if failure is not None:
                self._note_failure("one of its tasks failed", failure, is_bug=True)
        if self.runtime.stopped and not self._troubles:
            self._trouble(f"it stopped before it was left: {self.runtime.stop_reason}")

    async def _wait_for_drain(self) -> None:
        def abort(_: trio.lowlevel.RaiseCancelT) -> trio.lowlevel.Abort:
            self._waits_for_drain = None
            self.runtime.stop("the tasks of the batcher were cancelled")
            return trio.lowlevel.Abort.SUCCEEDED

        self._waits_for_drain = trio.lowlevel.current_task()
        await trio.lowlevel.wait_task_rescheduled(abort)

    async def _close_exporter(self) -> None:
        try:
            # In a separate task, so that trio raises at the end of that one if it leaves a nursery open.
            async with trio.open_nursery() as nursery:  # noqa: ASYNC112  # see above
                nursery.start_soon(self._call_aclose, name="trio_spanbatch closing the exporter")
            self._exporter_is_closed = True
        except BaseException as exc:  # noqa: ASYNC103  # Cancelled is raised again
            cancelled, failure = split_cancelled(exc)
            if failure is not None:
                self._note_failure("closing the exporter failed", failure, is_bug=False)
            if cancelled is not None:
                raise cancelled from None  # noqa: ASYNC104  # this raises it again

    @trio.lowlevel.enable_ki_protection
    async def _call_aclose(self) -> None:
        try:
            await self.runtime.exporter.aclose()
            if trio.lowlevel.current_task().child_nurseries:
                raise_for_open_nurseries()
        except BaseException as exc:  # noqa: ASYNC103  # Cancelled is raised again
            if is_cancelled_here():
                raise
            # A Cancelled is an error like any other here, because no scope around this task is cancelled.
            self._note_failure("closing the exporter failed", exc, is_bug=False)

    def _note_failure(self, what: str, failure: BaseException, *, is_bug: bool) -> None:
        """Log a failure. A bug of the batcher, or an exception that has to end the program, is raised at the end."""
        self.runtime.close_admission()
        for exc in leaves(failure):
            self._trouble(f"{what} with {type(exc).__name__}", exc)
            if not self.runtime.logger.keep_if_fatal(exc) and is_bug:
                self._failure = self._failure or exc

    # -- closing -----------------------------------------------------------------------------------------------

    def check_may_close(self) -> None:
        """Raise `RuntimeError` if `close` must not be called here or was called before."""
        if self.is_forked:
            raise RuntimeError(IN_A_FORKED_CHILD)
        if self._owner is None:
            raise RuntimeError("the batcher was left already, or is being left; it can be left only once")
        if not self.is_here():
            raise RuntimeError("the batcher must be left in the trio run in which it was entered")
        if trio.lowlevel.current_task() is not self._owner:
            raise RuntimeError("the batcher must be left by the task that entered it: use `async with`")

    @trio.lowlevel.enable_ki_protection
    async def close(self, exc: BaseException | None) -> None:
        """Drain within ``shutdown_timeout``, and raise the kept exceptions. ``exc`` is the body's exception."""
        self._owner = None
        watch = InterruptWatch.of_this_run()
        watch.add(self.interrupt)
        try:
            self._begin_drain()
            if self._interrupted:
                self.interrupt()
            await self._wait_until_done()
            # The supervisor has ended. The body's exception is not passed, so that it is not wrapped in a group.
            await self._manager.__aexit__(None, None, None)
        except BaseExceptionGroup as group:  # noqa: ASYNC103  # no Cancelled: the wait is shielded
            # Trio raises this about the supervisor itself: other code has closed one of its scopes.
            self._note_failure("its supervisor failed", group, is_bug=True)
        except (RuntimeError, AssertionError) as error:
            # Trio raises these if the nursery is closed in the wrong place. Every span is accounted for by now.
            misplaced = RuntimeError(_MISPLACED)
            misplaced.__cause__ = error
            self._note_failure("leaving it failed", misplaced, is_bug=True)
        finally:
            self._interrupted |= watch.remove(self.interrupt)
            self.runtime.end_feeding()
        try:
            self._conclude(exc)
        finally:
            self._end()
        if exc is None:
            await self._conclude_clean_end()

    def _begin_drain(self) -> None:
        self.runtime.feed()
        self.runtime.close_admission()
        self._shield.deadline = trio.current_time() + self.shutdown_timeout
        self._work.deadline = self._shield.deadline - self._reserve
        self.runtime.scheduler.begin_drain(self._work.deadline)
        if not self.runtime.stopped:
            self.runtime.stop_reason, self.runtime.stop_cause = "the shutdown deadline passed", "timeout"
        if self.spooler is not None:
            self.spooler.end_recovery()
        if self._waits_for_drain is not None:
            trio.lowlevel.reschedule(self._waits_for_drain)
            self._waits_for_drain = None
        self.driver.wake()

    async def _wait_until_done(self) -> None:
        with trio.CancelScope(shield=True):
            while not self._done.is_set():
                try:
                    await self._done.wait()
                except KeyboardInterrupt:
                    # It arrived before the watch was set up, while protected code of the main task was running.
                    self.interrupt()

    def interrupt(self) -> None:
        """Stop the drain, as a Ctrl-C does. Before the drain this has an effect once it begins."""
        self._interrupted = True
        if self._owner is not None:
            return
        self.runtime.stop_reason, self.runtime.stop_cause = "Ctrl-C during the drain", "KeyboardInterrupt"
        self._work.cancel()
        if self.spooler is not None:
            self.spooler.stop()
        self._shield.deadline = min(self._shield.deadline, trio.current_time() + self._reserve)

    def _conclude(self, exc: BaseException | None) -> None:
        """Log lost spans. Raise an exception if it takes precedence over the body's."""
        total = self.runtime.scheduler.ledger.total
        taken = total.accepted + total.recovered
        if total.rejected:
            reasons = self.runtime.losses.summary("rejected")
            message = f"{total.rejected} of {counted(taken, 'span')} {were(total.rejected)} rejected ({reasons})"
            self.runtime.logger.error("%s", message, extra={"summary": True})
        if total.undelivered:
            reasons = self.runtime.losses.summary("undelivered")
            message = f"{_part(total.undelivered, taken)} handed back undelivered ({reasons})"
            self._trouble(message, is_summary=True)
        if total.spooled:
            self.runtime.logger.info("%s in the spool, to be sent by the next one", counted(total.spooled, "span"))
        if exc is not None:
            self.add_notes(exc)
        if self._interrupted and not isinstance(exc, KeyboardInterrupt):
            raise self.add_notes(KeyboardInterrupt())
        if (fatal := self.runtime.logger.fatal) is not None and not isinstance(exc, KeyboardInterrupt | SystemExit):
            if exc is not None and not isinstance(exc, GeneratorExit) and split_cancelled(exc)[1] is not None:
                # Python does not print the context of a SystemExit.
                self.runtime.logger.error(
                    "%s is raised in place of the body's exception", type(fatal).__name__, exc_info=exc
                )
            raise fatal

    def add_notes(self, exc: _Exc) -> _Exc:
        """Add a note to ``exc`` for each failure, and for lost spans. Return it."""
        for trouble in self._troubles:
            # Some exceptions, such as frozen ones, accept no notes. The log contains the same messages.
            with suppress(Exception):
                exc.add_note(f"SpanBatcher: {trouble}")
        return exc

    async def _conclude_clean_end(self) -> None:
        if (failure := self._failure) is not None:
            raise failure
        await trio.lowlevel.checkpoint_if_cancelled()
        if self.strict and (error := self.runtime.losses_as_error()) is not None:
            raise error

    def _trouble(self, message: str, exc: BaseException | None = None, *, is_summary: bool = False) -> None:
        self._troubles.append(message)
        # The record is marked if it counts lost spans: a program that shows the counts itself can filter it out.
        self.runtime.logger.error("%s", message, exc_info=exc, extra={"summary": is_summary})


def _part(number: int, total: int) -> str:
    return f"{number} of {counted(total, 'span')} {were(number)}"
