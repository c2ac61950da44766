"""`SpanBatcher`: the public face, the supervisor and the drain.

Ownership
---------
``async with SpanBatcher()`` opens a nursery around its body and starts one task in it, the supervisor. Everything that
works for the batcher (a task for each lane, one for each delivery) runs in an inner nursery of the supervisor, inside a
shield::

    async with trio.open_nursery():                   # cancelled from outside like any other
        +-- the body                                  # so is the body: shielding it would make it deaf
        +-- supervisor: CancelScope(shield=True)      # what delivers is not
              +-- work: CancelScope()                 # until the drain's deadline, or a Ctrl-C in the drain
              |     +-- lanes, deliveries
              +-- the exporter's aclose()             # in the time that is left

A cancel from outside therefore ends the body and nothing else; ``__aexit__`` then begins the drain, which gives the
shield its deadline. Shielding only the waiting in ``__aexit__`` would not do: the cancel would kill the lanes before
``__aexit__`` runs. The shield has no deadline before the drain begins; the drain always begins, as ``__aexit__`` is
called however the body ends.

The drain
---------
``__aexit__`` closes the intake and sets the deadlines in one synchronous step. From then on lanes are due, and end when
they are empty; the inner nursery ends when all of them have. At the work's deadline the work scope is cancelled: each
delivery and each lane settles what it holds as it unwinds, so there is nothing to collect afterwards.

What leaves
-----------
The internal nurseries never show. The body's exception is not handed to them: it leaves as it is. What goes wrong in
the supervisor is kept in ``_failure`` and never raised inside a nursery.
"""

from __future__ import annotations

import logging
import math
import os
import random
from collections.abc import Callable, Iterable, Mapping
from contextvars import Context, copy_context
from types import TracebackType
from typing import TYPE_CHECKING, TypeVar

import trio

from . import _environment as environment
from ._admission import Admission
from ._batch import EncodedSpan
from ._errors import InvalidSpanError, UndeliveredSpansError
from ._exceptions import leaves, split_cancelled
from ._exporter import LimitsItsAttempts
from ._flush import Flush
from ._health_log import HealthLog
from ._interrupts import InterruptWatch
from ._lane import Lane
from ._lanes import Lanes
from ._ledger import Ledger
from ._losses import Losses
from ._policy import BatchPolicy, Limits, RetryPolicy
from ._shared import Shared
from ._statistics import FlushReport, LocationStatistics, Loss, SpanBatcherStatistics
from .otlp.encoding import SpanEncoder

if TYPE_CHECKING:
    from collections.abc import Awaitable
    from typing import Self

    from ._exporter import SpanExporter
    from ._records import SpanLike

__all__ = ["SpanBatcher"]

_T = TypeVar("_T")

# ``add_spans`` lets other tasks run after so many spans: encoding one takes 10 to 20 us.
_SPANS_A_CHECKPOINT = 64

# The drain stops deliveries this long before its deadline, or a tenth of its time if that is less: what is left is
# for accounting and for closing the exporter. Seconds.
_LONGEST_RESERVE = 1.0


# Seconds.
_LATER_THAN_THE_EXPORTER = 1.0


class SpanBatcher:
    """Batches spans by location, and accounts for every one that it accepted.

    An async context manager, entered once::

        async with SpanBatcher() as batcher:
            batcher.add_span_nowait("main.agents.spans", span)

    When the ``async with`` ends, for whatever reason and within ``shutdown_timeout``, each accepted span is delivered,
    rejected by the server with its reason, or handed back undelivered with its reason. Adding is possible from the trio
    thread only, inside the ``async with``.

    Args:
        exporter: What sends the batches; by default `OTLPExporter.from_env`. The batcher closes it at the end.
        batch: When a batch is due, or a function of the location that returns that, called once for each location that
            comes to life. By default as the ``OTEL_BSP_*`` variables say.
        limits: What may wait and run at once. By default as the ``OTEL_BSP_*`` variables say.
        retry: How often an export is repeated. By default ``OTEL_BSP_EXPORT_TIMEOUT`` bounds an attempt, else 30 s, or
            what the exporter needs if that is more (`OTLPExporter.timeout`).
        shutdown_timeout: Seconds that leaving the ``async with`` may take; `math.inf` for no limit.
        strict: Raise `UndeliveredSpansError` at the end if spans were rejected or undelivered, the body ended cleanly
            and no cancel is pending.
        on_loss: Called at once, in the trio thread, with each `Loss`. It is synchronous and may add spans. What it
            raises is logged.
        rng: Where the jitter of backoffs comes from, to make a run repeatable.
        logger: Where messages go; by default the logger ``trio_spanbatch``.
        log_level: The level of messages about locations that fail and recover. Lost spans and bugs are errors.

    Raises:
        TypeError: An argument is of the wrong type.
        ValueError: ``shutdown_timeout`` is negative or NaN, or the environment names what cannot be done.
    """

    def __init__(
        self,
        exporter: SpanExporter | None = None,
        *,
        batch: BatchPolicy | Callable[[str], BatchPolicy] | None = None,
        limits: Limits | None = None,
        retry: RetryPolicy | None = None,
        shutdown_timeout: float = 30.0,
        strict: bool = False,
        on_loss: Callable[[Loss], object] | None = None,
        rng: random.Random | None = None,
        logger: logging.Logger | None = None,
        log_level: int = logging.WARNING,
    ) -> None:
        self._shutdown_timeout = _checked_timeout(shutdown_timeout)
        self._reserve = min(_LONGEST_RESERVE, self._shutdown_timeout / 10)
        self._strict = strict
        env = os.environ
        logger = logger or logging.getLogger("trio_spanbatch")
        limits = _checked("limits", limits, Limits) or Limits(**environment.queue_options(env))
        exporter = exporter if exporter is not None else _exporter_from_env()
        retry = _checked("retry", retry, RetryPolicy) or _default_retry(exporter, env)
        self._shared = Shared(
            exporter=exporter,
            limits=limits,
            retry=retry,
            rng=rng or random.Random(),
            logger=logger,
            ledger=Ledger(kept_ended=limits.max_locations),
            losses=Losses(on_loss, limits.max_pending_bytes, logger),
            health=HealthLog(logger, log_level, trio.current_time, limits.max_locations),
            slots=trio.Semaphore(limits.max_exports, max_value=limits.max_exports),
            start=self._start,
        )
        self._lanes = self._shared.lanes = Lanes(self._shared, _policy_function(batch))
        self._admission = self._shared.admission = Admission(self._shared)
        self._encoder = SpanEncoder(environment.default_resource(env))
        self._entered = False
        self._open = False
        self._closing = trio.Event()
        self._done = trio.Event()
        self._work = trio.CancelScope()
        self._shield = trio.CancelScope(shield=True)
        self._failure: BaseException | None = None
        self._troubles: list[str] = []
        self._interrupted = False
        self._context: Context
        self._nursery: trio.Nursery

    def __repr__(self) -> str:
        state = "open" if self._open else "closed" if self._entered else "not entered"
        total = self._shared.ledger.total()
        return f"<SpanBatcher, {state}: {total.accepted} accepted, {total.pending} pending>"

    # -- adding ------------------------------------------------------------------------------------------------

    def add_span_nowait(self, location: str, span: SpanLike | EncodedSpan) -> None:
        """Accept a span, if there is room for it now.

        Args:
            location: Where the span belongs.
            span: A `Span`, OpenTelemetry's ``ReadableSpan``, or an `EncodedSpan` out of a `Loss`.

        Raises:
            trio.WouldBlock: There is no room, or others wait for it already. Nothing was accepted.
            InvalidSpanError: The span cannot be encoded, or is larger than the byte budget.
            InvalidLocationError: Nothing can be sent to the location.
            TooManyLocationsError: ``Limits.max_locations`` locations all hold spans.
            trio.ClosedResourceError: The batcher is closed.
        """
        self._check_open()
        encoded = self._encoder.encode(span)
        if not self._try_admit(location, encoded):
            raise trio.WouldBlock

    def add_spans_nowait(self, location: str, spans: Iterable[SpanLike | EncodedSpan]) -> None:
        """Accept all of ``spans``, or none.

        Raises:
            ValueError: So many spans can never fit at once.
            trio.WouldBlock: There is no room for all of them now.
            InvalidSpanError: One of them cannot be encoded.
            InvalidLocationError: Nothing can be sent to the location.
            TooManyLocationsError: ``Limits.max_locations`` locations all hold spans.
            trio.ClosedResourceError: The batcher is closed.
        """
        self._check_open()
        encoded = [self._encoder.encode(span) for span in spans]
        self._admission.check_can_ever_fit(encoded)
        if encoded and not self._try_admit_all(location, encoded):
            raise trio.WouldBlock

    async def add_span(self, location: str, span: SpanLike | EncodedSpan) -> None:
        """Accept a span, waiting for room.

        Adders are served in the order in which they came, for each location. Always a checkpoint. If it is cancelled,
        the span was not accepted.

        Args:
            location: Where the span belongs.
            span: A `Span`, OpenTelemetry's ``ReadableSpan``, or an `EncodedSpan` out of a `Loss`.

        Raises:
            InvalidSpanError: The span cannot be encoded, or is larger than the byte budget.
            InvalidLocationError: Nothing can be sent to the location.
            TooManyLocationsError: ``Limits.max_locations`` locations all hold spans.
            trio.ClosedResourceError: The batcher is closed, or was closed while this waited.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        self._check_open()
        encoded = self._encoder.encode(span)
        if not await self._admit(location, encoded):
            await trio.lowlevel.cancel_shielded_checkpoint()

    async def add_spans(self, location: str, spans: Iterable[SpanLike | EncodedSpan]) -> None:
        """Accept spans one after the other, waiting for room.

        What was accepted when it raises is a prefix of ``spans``, as with ``SendStream.send_all``. Spans are encoded
        just before they are accepted. Other adders may come in between. Always a checkpoint.

        Raises:
            InvalidSpanError: A span cannot be encoded. Its ``accepted`` says how many were accepted before it.
            trio.ClosedResourceError: The batcher is closed. Its ``accepted`` says how many were accepted before.
            InvalidLocationError: Nothing can be sent to the location.
            TooManyLocationsError: ``Limits.max_locations`` locations all hold spans.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        accepted = 0
        waited = False
        try:
            self._check_open()
            for span in spans:
                if accepted and accepted % _SPANS_A_CHECKPOINT == 0:
                    await trio.lowlevel.checkpoint()
                # Again for each span: the batcher may have been closed by whoever ran meanwhile.
                self._check_open()
                encoded = self._encoder.encode(span)
                waited = await self._admit(location, encoded)
                accepted += 1
        except (InvalidSpanError, trio.ClosedResourceError) as exc:
            exc.accepted = accepted  # type: ignore[union-attr]  # trio's error has no such field of its own
            raise
        if not waited:
            await trio.lowlevel.cancel_shielded_checkpoint()

    def _check_open(self) -> None:
        if self._open:
            if not trio.lowlevel.in_trio_run():
                raise RuntimeError("spans are added in the trio thread; elsewhere use trio.from_thread.run_sync")
            return
        if self._entered:
            raise trio.ClosedResourceError("the batcher is closed")
        raise RuntimeError("the batcher is not entered: use `async with SpanBatcher(...) as batcher:`")

    @trio.lowlevel.enable_ki_protection
    def _try_admit(self, location: str, span: EncodedSpan) -> bool:
        lane = self._lanes.get(location)
        if lane is not None and self._admission.try_admit(lane, span):
            return True
        return self._try_admit_first(location, lane, span)

    def _try_admit_first(self, location: str, lane: Lane | None, span: EncodedSpan) -> bool:
        """Admit a span to a lane that may have to be opened."""
        self._admission.check_can_ever_fit([span])
        if lane is not None:
            return False
        return self._admission.try_admit(self._lanes.open(location), span)

    @trio.lowlevel.enable_ki_protection
    def _try_admit_all(self, location: str, spans: list[EncodedSpan]) -> bool:
        lane = self._lanes.get(location) or self._lanes.open(location)
        return self._admission.try_admit_all(lane, spans)

    @trio.lowlevel.enable_ki_protection
    async def _admit(self, location: str, span: EncodedSpan) -> bool:
        """Admit a span, waiting if need be. Return whether this was a checkpoint."""
        if self._try_admit(location, span):
            return False
        lane = self._lanes.get(location)
        assert lane is not None, "the lane was found or opened just now"
        await self._admission.wait(lane, span)
        return True

    # -- flushing and counting ---------------------------------------------------------------------------------

    async def flush(self, location: str | None = None) -> FlushReport:
        """Wait until every span accepted before this call is accounted for.

        Makes them due at once, for all locations or for one. It waits through retries and backoffs; use
        ``trio.move_on_after`` to bound it. Always a checkpoint. If it is cancelled, the spans are delivered all the
        same, later.

        Returns:
            What became of these spans.

        Raises:
            trio.ClosedResourceError: The batcher is closed.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        self._check_open()
        flush = Flush()
        lanes = tuple(self._lanes) if location is None else (self._lanes.get(location),)
        watched = [lane for lane in lanes if lane is not None and lane.account.pending]
        try:
            for lane in watched:
                lane.flush(flush)
            await flush.wait()
        finally:
            for lane in watched:
                lane.forget_flush(flush)
        return flush.report()

    def statistics(self) -> SpanBatcherStatistics:
        """Return a snapshot of all counts. Takes time in proportion to the number of locations."""
        locations = {
            location: LocationStatistics(**account.counts(), consecutive_failures=account.consecutive_failures)
            for location, account in self._shared.ledger.accounts()
        }
        locations.update((lane.location, lane.statistics()) for lane in self._lanes)
        return SpanBatcherStatistics(**self._shared.ledger.total().counts(), locations=locations)

    @property
    def undelivered(self) -> tuple[Loss, ...]:
        """The batches that were handed back, for a program that gave no ``on_loss``: keep them, or add them again.

        At most ``Limits.max_pending_bytes`` of them; the rest is counted and logged.
        """
        return self._shared.losses.kept

    # -- entering ----------------------------------------------------------------------------------------------

    @trio.lowlevel.enable_ki_protection
    async def __aenter__(self) -> Self:
        if self._entered:
            raise trio.BusyResourceError("a SpanBatcher is entered once; make another one")
        self._entered = True
        self._context = copy_context()
        self._manager = trio.open_nursery()
        nursery = await self._manager.__aenter__()
        try:
            await nursery.start(self._supervise)
        except BaseException:
            await self._manager.__aexit__(None, None, None)  # noqa: ASYNC102  # nothing is in the nursery
            self._shield.deadline = trio.current_time() + self._shutdown_timeout
            with self._shield:
                await self._close_exporter()  # noqa: ASYNC102  # the shield has a deadline, set above
            raise
        self._open = True
        return self

    def _start(self, async_fn: Callable[[], Awaitable[None]], name: str) -> None:
        # `start_soon` gives the task a copy of the current context: here the batcher's, not that of the adder whose
        # span opened a lane. A lane must not keep a request's context alive, nor trace under its span.
        self._context.run(lambda: self._nursery.start_soon(self._guarded, async_fn, name=name))

    @trio.lowlevel.enable_ki_protection
    async def _guarded(self, async_fn: Callable[[], Awaitable[None]]) -> None:
        try:
            await async_fn()
        except BaseException as exc:
            _, failure = split_cancelled(exc)
            if failure is not None:
                # Before any other task is cancelled: they hand back what they hold, so nothing may come in any more.
                self._shared.stop_reason = f"a task of the batcher failed with {type(leaves(failure)[0]).__name__}"
                self._close_intake()
            raise

    # -- the supervisor ----------------------------------------------------------------------------------------

    @trio.lowlevel.enable_ki_protection
    async def _supervise(self, task_status: trio.TaskStatus[None]) -> None:  # noqa: ASYNC128  # passed on
        await trio.lowlevel.checkpoint_if_cancelled()
        # No checkpoint from here to `started`: a cancelled `start` would wait for a shielded task that never ends.
        try:
            with self._shield:
                await self._supervise_work(task_status)
                await self._close_exporter()
            if self._shield.cancelled_caught:
                self._trouble("closing the exporter took longer than shutdown_timeout left for it")
        finally:
            self._done.set()

    async def _supervise_work(self, task_status: trio.TaskStatus[None]) -> None:
        try:
            with self._work:
                async with trio.open_nursery() as self._nursery:
                    task_status.started()
                    await self._closing.wait()
        except BaseException as exc:  # noqa: ASYNC103  # if the shield is cancelled, the next checkpoint says so again
            _, failure = split_cancelled(exc)
            if failure is not None:
                self._note_failure("one of its tasks failed", failure, is_bug=True)

    async def _close_exporter(self) -> None:
        try:
            await self._shared.exporter.aclose()
        except BaseException as exc:  # noqa: ASYNC103  # what is cancelled is raised again
            cancelled, failure = split_cancelled(exc)
            if failure is not None:
                self._note_failure("closing the exporter failed", failure, is_bug=False)
            if cancelled is not None:
                raise cancelled from None  # noqa: ASYNC104  # that is what happens here

    def _note_failure(self, what: str, failure: BaseException, *, is_bug: bool) -> None:
        """Log what went wrong. A bug of ours is raised at the end, and so is what is no Exception (a SystemExit)."""
        self._close_intake()
        for exc in leaves(failure):
            self._trouble(f"{what} with {type(exc).__name__}", exc)
            if is_bug or not isinstance(exc, Exception):
                self._failure = self._failure or exc

    # -- leaving -----------------------------------------------------------------------------------------------

    @trio.lowlevel.enable_ki_protection
    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        watch = InterruptWatch.of_this_run()
        watch.add(self._interrupt)
        try:
            self._begin_drain()
            await self._wait_until_done()  # noqa: ASYNC102  # shielded; the supervisor has the deadline
            await self._manager.__aexit__(None, None, None)  # noqa: ASYNC102  # the supervisor has ended
        finally:
            self._interrupted |= watch.remove(self._interrupt)
        self._conclude(exc)
        if exc is None:
            await self._conclude_clean_end()  # noqa: ASYNC102  # here a cancel from outside is let through

    def _begin_drain(self) -> None:
        self._close_intake()
        self._shield.deadline = trio.current_time() + self._shutdown_timeout
        self._work.deadline = self._shared.drain_deadline = self._shield.deadline - self._reserve
        self._shared.draining = True
        self._shared.stop_reason = "the shutdown deadline passed"
        self._closing.set()
        for lane in self._lanes:
            lane.close()

    def _close_intake(self) -> None:
        self._open = False
        self._admission.close()

    async def _wait_until_done(self) -> None:
        with trio.CancelScope(shield=True):
            while not self._done.is_set():
                try:
                    await self._done.wait()
                except KeyboardInterrupt:
                    # It came before the watch was set up, in the main task's protected code.
                    self._interrupt()

    def _interrupt(self) -> None:
        self._interrupted = True
        self._shared.stop_reason = "Ctrl-C during the drain"
        self._work.cancel()
        self._shield.deadline = min(self._shield.deadline, trio.current_time() + self._reserve)

    def _conclude(self, exc: BaseException | None) -> None:
        """Say what went wrong. Raise what has to be raised even in place of the body's exception."""
        total = self._shared.ledger.total()
        if total.rejected:
            reasons = self._shared.losses.summary("rejected")
            self._shared.logger.error(
                "SpanBatcher: %d of %d spans were rejected (%s)", total.rejected, total.accepted, reasons
            )
        if total.undelivered:
            reasons = self._shared.losses.summary("undelivered")
            self._trouble(f"{total.undelivered} of {total.accepted} spans were handed back undelivered ({reasons})")
        if exc is not None:
            for trouble in self._troubles:
                exc.add_note(f"SpanBatcher: {trouble}")
        if self._interrupted and not isinstance(exc, KeyboardInterrupt):
            raise KeyboardInterrupt

    async def _conclude_clean_end(self) -> None:
        if (failure := self._failure or self._shared.losses.fatal) is not None:
            raise failure
        await trio.lowlevel.checkpoint_if_cancelled()
        total = self._shared.ledger.total()
        if self._strict and (total.rejected or total.undelivered):
            raise UndeliveredSpansError(total.rejected, total.undelivered)

    def _trouble(self, message: str, exc: BaseException | None = None) -> None:
        self._troubles.append(message)
        self._shared.logger.error("SpanBatcher: %s", message, exc_info=exc)


def _checked_timeout(value: float) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"shutdown_timeout is {value!r}; it must be a number of seconds, 0 or more")
    if not value >= 0:
        raise ValueError(f"shutdown_timeout is {value!r}; it must be 0 or more seconds (math.inf means no limit)")
    return value


def _checked(name: str, value: _T | None, kind: type[_T]) -> _T | None:
    if value is not None and not isinstance(value, kind):
        raise TypeError(f"{name} is {value!r}; it must be of type {kind.__name__}")
    return value


def _policy_function(batch: BatchPolicy | Callable[[str], BatchPolicy] | None) -> Callable[[str], BatchPolicy]:
    if callable(batch):
        return batch
    policy = _checked("batch", batch, BatchPolicy) or BatchPolicy(**environment.batch_options(os.environ))
    return lambda location: policy


def _default_retry(exporter: SpanExporter, env: Mapping[str, str]) -> RetryPolicy:
    default = RetryPolicy().attempt_timeout
    if isinstance(exporter, LimitsItsAttempts) and default <= exporter.timeout < math.inf:
        # A little later than the exporter's own limit: its reason says more than ours.
        default = exporter.timeout + _LATER_THAN_THE_EXPORTER
    return RetryPolicy(attempt_timeout=environment.export_timeout(env, default))


def _exporter_from_env() -> SpanExporter:
    from .otlp.http import OTLPExporter

    return OTLPExporter.from_env()
