"""`SpanBatcher`: the public face. What happens behind it is told in `_supervisor`, `_admission` and `_lane`."""

from __future__ import annotations

import logging
import os
import random
from collections.abc import Callable, Iterable, Sized
from threading import get_ident
from types import TracebackType
from typing import TYPE_CHECKING

import attrs
import trio

from ._arguments import (
    checked,
    checked_function,
    checked_level,
    checked_timeout,
    exporter_or_default,
    limits_or_default,
    policy_function,
    retry_or_default,
)
from ._errors import tell_accepted
from ._exporter import is_closed
from ._reporting.health_log import HealthLog
from ._reporting.log import Log
from ._reporting.losses import Losses
from ._reporting.statistics import FlushReport, Loss, SpanBatcherStatistics
from ._runtime.supervisor import IN_A_FORKED_CHILD, Supervisor
from ._scheduler.admission import Admission
from ._scheduler.flush import Flush
from ._scheduler.ledger import Ledger
from ._scheduler.location import Lane
from ._scheduler.locations import Lanes
from ._scheduler.shared import Shared
from ._scheduler.slots import ExportSlots
from ._settings.environment import default_resource
from ._settings.policies import BatchPolicy, Limits, RetryPolicy
from ._spans.batch import EncodedSpan, cost_after, cost_of
from ._spans.encoder import SpanEncoder

if TYPE_CHECKING:
    from typing import Self

    from ._exporter import SpanExporter
    from ._spans.records import SpanLike

__all__ = ["SpanBatcher"]

_NOT_ENTERED = "the batcher is not entered: use `async with SpanBatcher(...) as batcher:`"

# ``add_spans`` lets other tasks run after so many spans: encoding one takes 10 to 20 us.
_SPANS_A_CHECKPOINT = 64


@attrs.define
class _Progress:
    """How many spans an ``add_spans`` has accepted."""

    accepted: int = 0


class SpanBatcher:
    """Batches spans by location, and accounts for every one that it accepted.

    An async context manager, entered once::

        async with SpanBatcher() as batcher:
            batcher.add_span_nowait("main.agents.spans", span)

    When the ``async with`` ends, for whatever reason and within ``shutdown_timeout``, each accepted span is delivered,
    rejected by the server with its reason, or handed back undelivered with its reason. Adding is possible inside the
    ``async with``, in the trio run in which it was entered: in another one, and in a forked child, it is a
    `RuntimeError`. The batcher is left by the task that entered it.

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
            raises is logged; a `SystemExit` or the like is also raised when the batcher is left.
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
        log = Log(checked("logger", logger, logging.Logger) or logging.getLogger("trio_spanbatch"))
        limits = limits_or_default(limits)
        exporter = exporter_or_default(exporter)
        on_loss = checked_function("on_loss", on_loss)
        self._supervisor = Supervisor(checked_timeout(shutdown_timeout), strict)
        self._shared = self._supervisor.shared = Shared(
            exporter=exporter,
            limits=limits,
            retry=retry_or_default(retry, exporter),
            rng=checked("rng", rng, random.Random) or random.Random(),
            logger=log,
            ledger=Ledger(kept_ended=limits.max_locations),
            losses=Losses(on_loss, limits.max_pending_bytes, log, trio.current_time),
            health=HealthLog(log, checked_level(log_level), trio.current_time, limits.max_locations),
            slots=ExportSlots(limits.max_exports),
            start=self._supervisor.start,
        )
        self._lanes = self._shared.lanes = Lanes(self._shared, policy_function(batch))
        self._live = self._lanes.by_location
        self._admission = self._shared.admission = Admission(self._shared)
        self._encoder = SpanEncoder(default_resource(os.environ))
        self._entered = False

    def __repr__(self) -> str:
        state = "open" if self._admission.is_open else "closed" if self._entered else "not entered"
        total = self._shared.ledger.total()
        return f"<SpanBatcher, {state}: {total.accepted} accepted, {total.pending} pending>"

    # -- adding ------------------------------------------------------------------------------------------------

    def add_span_nowait(self, location: str, span: SpanLike | EncodedSpan) -> None:
        """Accept a span, if there is room for it now.

        Args:
            location: Where the span belongs: a str of 1 to 1,024 characters that the exporter can send.
            span: A `Span`, OpenTelemetry's ``ReadableSpan``, or an `EncodedSpan` out of a `Loss`.

        Raises:
            trio.WouldBlock: There is no room, or others wait for it already. Nothing was accepted.
            InvalidSpanError: The span cannot be encoded, or is larger than the byte budget.
            InvalidLocationError: Nothing can be sent to the location.
            TooManyLocationsError: ``Limits.max_locations`` locations all hold spans.
            trio.ClosedResourceError: The batcher is closed.
        """
        if get_ident() != self._admission.thread_id:
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
        encoded = self._encoded_if_they_fit(spans)
        if not encoded:
            self._lanes.check(location)
        elif not self._try_admit_all(location, encoded):
            raise trio.WouldBlock

    def _encoded_if_they_fit(self, spans: Iterable[SpanLike | EncodedSpan]) -> list[EncodedSpan]:
        """Encode no more than may ever be pending together."""
        if isinstance(spans, Sized):
            self._admission.check_can_ever_fit(len(spans), 0)
        encoded: list[EncodedSpan] = []
        cost, headers = 0, None
        for span in map(self._encoder.encode, spans):
            encoded.append(span)
            cost += cost_after(headers, span)
            headers = span.headers
            self._admission.check_can_ever_fit(len(encoded), cost)
        return encoded

    async def add_span(self, location: str, span: SpanLike | EncodedSpan) -> None:
        """Accept a span, waiting for room.

        Adders are served in the order in which they came, for each location. Always a checkpoint. If it is cancelled,
        the span was not accepted.

        Args:
            location: Where the span belongs: a str of 1 to 1,024 characters that the exporter can send.
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

        What was accepted when it raises is a prefix of ``spans``, as with ``SendStream.send_all``. Whatever it raises,
        `trio.Cancelled` and exceptions of ``spans`` itself included, says how many that were: in an attribute
        ``accepted``, or in a note if the exception takes no attribute. Spans are encoded just before they are accepted.
        Other adders may come in between. Always a checkpoint.

        Raises:
            InvalidSpanError: A span cannot be encoded.
            InvalidLocationError: Nothing can be sent to the location.
            TooManyLocationsError: ``Limits.max_locations`` locations all hold spans.
            trio.ClosedResourceError: The batcher is closed.
        """
        progress = _Progress()
        try:
            await self._add_spans(location, spans, progress)
        except BaseException as exc:
            tell_accepted(exc, progress.accepted)
            raise

    async def _add_spans(self, location: str, spans: Iterable[SpanLike | EncodedSpan], progress: _Progress) -> None:
        await trio.lowlevel.checkpoint_if_cancelled()
        self._check_open()
        waited = False
        for span in spans:
            if progress.accepted and progress.accepted % _SPANS_A_CHECKPOINT == 0:
                await trio.lowlevel.checkpoint()
            # Again for each span: the batcher may have been closed by whoever ran meanwhile.
            self._check_open()
            waited = await self._admit_next(location, self._encoder.encode(span), progress)
        if not progress.accepted:
            self._lanes.check(location)
        if not waited:
            await trio.lowlevel.cancel_shielded_checkpoint()

    def _check_open(self) -> None:
        if self._admission.is_open:
            if not self._supervisor.is_here():
                raise RuntimeError(
                    "a batcher is used in the trio run in which it was entered; in a thread of that run use "
                    "trio.from_thread.run_sync, with the trio_token of that run where the thread has another run"
                )
            return
        if self._supervisor.is_forked:
            raise RuntimeError(IN_A_FORKED_CHILD)
        if self._entered:
            raise trio.ClosedResourceError("the batcher is closed")
        raise RuntimeError(_NOT_ENTERED)

    @trio.lowlevel.enable_ki_protection
    def _try_admit(self, location: str, span: EncodedSpan) -> bool:
        # In place of `Lanes.get`, as each call here takes a twentieth of the time of accepting a span. But not for a
        # subclass of str, which might be found as another location, by an equality of its own.
        lane = self._live.get(location) if type(location) is str else self._lanes.get(location)
        if lane is not None and self._admission.try_admit(lane, span):
            return True
        return self._try_admit_first(location, lane, span)

    def _try_admit_first(self, location: str, lane: Lane | None, span: EncodedSpan) -> bool:
        """Admit a span to a lane that may have to be opened."""
        self._admission.check_can_ever_fit(1, cost_of([span]))
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

    @trio.lowlevel.enable_ki_protection
    async def _admit_next(self, location: str, span: EncodedSpan, progress: _Progress) -> bool:
        """Do the same, and count the span before a Ctrl-C can come."""
        waited = await self._admit(location, span)
        progress.accepted += 1
        return waited

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
            InvalidLocationError: Nothing can be sent to ``location``.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        self._check_open()
        if location is not None:
            self._lanes.check(location)
        self._shared.feed()
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
        """Return a snapshot of all counts. Takes time in proportion to the number of locations.

        It can be read before, in and after the ``async with``; while there are locations, in the batcher's trio run.

        Raises:
            RuntimeError: This is a thread, or another trio run.
        """
        if self._live and not self._supervisor.is_here():
            raise RuntimeError(
                "statistics() is read in the batcher's trio run until the batcher was left; in a thread use "
                "trio.from_thread.run_sync(batcher.statistics)"
            )
        live = {lane.location: lane for lane in self._lanes}
        locations = {
            location: live[location].statistics() if location in live else account.statistics()
            for location, account in self._shared.ledger.accounts()
        }
        return SpanBatcherStatistics(**self._shared.ledger.total().counts(), locations=locations)

    @property
    def undelivered(self) -> tuple[Loss, ...]:
        """The batches that were handed back, for a program that gave no ``on_loss``: keep them, or add them again.

        At most ``Limits.max_pending_bytes`` of them; the rest is counted and logged.
        """
        return self._shared.losses.kept

    # -- entering and leaving ----------------------------------------------------------------------------------

    @trio.lowlevel.enable_ki_protection
    async def __aenter__(self) -> Self:
        if self._entered:
            raise trio.BusyResourceError("a SpanBatcher is entered once; make another one")
        if is_closed(exporter := self._shared.exporter):
            raise trio.ClosedResourceError(
                f"the {type(exporter).__name__} is closed, as a batcher closes its exporter when it is left; "
                "make an exporter for each batcher"
            )
        self._entered = True
        await self._supervisor.open()
        return self

    @trio.lowlevel.enable_ki_protection
    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if not self._entered:
            raise RuntimeError(_NOT_ENTERED)
        self._supervisor.check_may_close()
        await self._supervisor.close(exc)  # noqa: ASYNC102  # shielded inside, with the drain's deadline
