"""`SpanBatcher`, the public interface of the supervisor and the scheduler."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Iterable, Sized
from itertools import islice
from threading import get_ident
from types import TracebackType
from typing import TYPE_CHECKING, Any

import attrs
import trio

from ._arguments import (
    checked,
    checked_bool,
    checked_function,
    checked_level,
    checked_timeout,
    encoder_for,
    exporter_or_default,
    limits_or_default,
    policy_function,
    retry_or_default,
)
from ._errors import tell_accepted
from ._exporter import LocationChecker, TellsEndpoints, is_closed
from ._reporting.health_log import HealthLog
from ._reporting.log import Log
from ._reporting.losses import Losses
from ._reporting.statistics import FlushReport, Loss, SpanBatcherStatistics
from ._runtime.driver import Driver
from ._runtime.runtime import Runtime
from ._runtime.supervisor import IN_A_FORKED_CHILD, Supervisor
from ._scheduler.flush import Flush
from ._scheduler.location import Location
from ._scheduler.scheduler import Scheduler
from ._settings.policies import BatchPolicy, Limits, RetryPolicy
from ._spans.batch import EncodedSpan, cost_after, cost_of
from ._spans.checks import check_spans

if TYPE_CHECKING:
    from typing import Self

    from ._exporter import SpanExporter
    from ._runtime.spooler import Spooler
    from ._spans.records import SpanLike
    from ._spool.settings import Spool
    from ._spool.store import Store

__all__ = ["SpanBatcher"]

_NOT_ENTERED = "the batcher is not entered: use `async with SpanBatcher(...) as batcher:`"

_NEEDS_TRIO = (
    "SpanBatcher needs trio: run the program with trio.run, or use "
    "trio_spanbatch.opentelemetry.background_batcher, which runs trio in a thread, in a program on asyncio"
)

# ``add_spans`` executes a checkpoint after this many spans: encoding one takes 10 to 20 us.
_SPANS_PER_CHECKPOINT = 64

# ``flush`` executes a checkpoint after this many locations: each takes 2 us.
_LOCATIONS_PER_CHECKPOINT = 256

_tell_accepted = trio.lowlevel.enable_ki_protection(tell_accepted)


@attrs.define
class _Progress:
    """The number of spans that a call of ``add_spans`` has accepted."""

    accepted: int = 0


class SpanBatcher:
    """Batches spans by location, and accounts for every span that it accepts.

    An async context manager, entered once::

        async with SpanBatcher() as batcher:
            batcher.add_span_nowait("main.agents.spans", span)

    When the ``async with`` ends, for any reason and within ``shutdown_timeout``, each accepted span has been delivered,
    rejected by the server, or handed back undelivered, the latter two with a reason; or it is on disk, if there is a
    spool. Spans can be added inside the
    ``async with``, in the trio run in which it was entered. Adding spans or flushing before it is entered, in another
    run or in a forked child raises `RuntimeError`. The batcher must be left by the task that entered it.

    Args:
        exporter: Sends the batches; by default `OTLPExporter.from_env`. The batcher closes it at the end.
        batch: When a batch is due, or a function of the location that returns such a policy. The function is called
            when a location becomes live. By default from the ``OTEL_BSP_*`` variables.
        limits: Limits on pending spans and running exports. By default from the ``OTEL_BSP_*`` variables.
        retry: The backoff between attempts, and the limits on their time. By default, an attempt may take
            ``OTEL_BSP_EXPORT_TIMEOUT`` (30 s if that is not set), or longer if the exporter needs that
            (`OTLPExporter.timeout`).
        shutdown_timeout: The maximum time for leaving the ``async with``, in seconds; `math.inf` for no limit.
        strict: Raise `UndeliveredSpansError` at the end if spans were rejected or undelivered, the body ended cleanly
            and no cancel is pending.
        on_loss: Called with each `Loss` as soon as it happens, in the trio thread. It must be synchronous, and may add
            spans. An exception from it is logged; a `SystemExit` or similar is also raised when the batcher is left.
        redact: Called with the key and value of each attribute of a span, its events, links, resource and scope, before
            the span is encoded; returns the value to send, or `DROP` to leave the attribute out. Names and the status
            message have the keys ``"span.name"``, ``"event.name"`` and ``"status.message"``. If it raises, the
            attribute is left out, the name or message is sent empty, and an error without the value is logged. Called
            in the thread in which the span is added or ends; once for a resource or scope that spans share. See
            `scrub`.
        max_attribute_bytes: The size in UTF-8 to which each of these values is cut, after ``redact``. A value that was
            cut ends with ``... [cut, 1,234,567 bytes]``, which has its size before. Values in lists and mappings
            are cut so that the whole is not larger. None: no limit.
        spool: A directory in which spans are kept until they are accounted for, so that they outlive the process. Each
            span is committed to it before it is sent.
        rng: The source of the jitter of backoffs, to make a run repeatable.
        logger: The logger for messages; by default the logger ``trio_spanbatch``.
        log_level: The level of messages about failing and recovering locations. Lost spans and bugs are logged at
            `logging.ERROR`.

    Raises:
        TypeError: An argument is of the wrong type.
        ValueError: ``shutdown_timeout`` is negative or NaN, or an environment variable has an unusable value.
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
        redact: Callable[[str, Any], Any] | None = None,
        max_attribute_bytes: int | None = None,
        spool: Spool | None = None,
        rng: random.Random | None = None,
        logger: logging.Logger | None = None,
        log_level: int = logging.WARNING,
    ) -> None:
        log = Log(checked("logger", logger, logging.Logger) or logging.getLogger("trio_spanbatch"))
        limits = limits_or_default(limits)
        exporter = exporter_or_default(exporter, self)
        on_loss = checked_function("on_loss", on_loss)
        self._driver = Driver()
        self._supervisor = Supervisor(checked_timeout(shutdown_timeout), checked_bool("strict", strict), self._driver)
        arguments = (
            limits,
            retry_or_default(retry, exporter),
            policy_function(batch),
            # Checked once, as an isinstance check against a protocol is slow.
            exporter.check_location if isinstance(exporter, LocationChecker) else None,
            exporter.endpoint_of if isinstance(exporter, TellsEndpoints) else None,
            checked("rng", rng, random.Random) or random.Random(),
            trio.current_time,
            trio.open_memory_channel,
            self._driver.wake_from_anywhere,
        )
        self._scheduler = Scheduler(*arguments) if spool is None else self._spooling_scheduler(spool, *arguments)
        self._runtime = self._supervisor.runtime = self._driver.runtime = Runtime(
            exporter=exporter,
            scheduler=self._scheduler,
            logger=log,
            losses=Losses(on_loss, limits.max_pending_bytes, log, trio.current_time),
            health=HealthLog(log, checked_level(log_level), trio.current_time, limits.max_locations),
            start_delivery=self._supervisor.start_delivery,
            wake=self._driver.wake,
        )
        self._spooler: Spooler | None = None
        if spool is not None:
            self._use_store(_disk_store(spool, exporter, log))
        self._live = self._scheduler.locations
        self._admission = self._scheduler.admission
        self._encoder = encoder_for(redact, max_attribute_bytes, log)
        self._entered = False

    @staticmethod
    def _spooling_scheduler(spool: Spool, *arguments: Any) -> Scheduler:
        # Imported only if it is used, like the other parts of the spool.
        from ._scheduler.spooling import SpoolingScheduler
        from ._spool.settings import Spool

        checked("spool", spool, Spool)
        return SpoolingScheduler(*arguments, spool=spool, wall=time.time)

    def _use_store(self, store: Store) -> None:
        """Keep spans in ``store``. Tests replace the one on disk."""
        from ._runtime.spooler import Spooler
        from ._scheduler.spooling import SpoolingScheduler

        assert isinstance(self._scheduler, SpoolingScheduler), "there is a spool"
        self._spooler = self._supervisor.spooler = Spooler(store, self._scheduler, self._runtime)
        self._runtime.spool = self._spooler.carry_out

    def __repr__(self) -> str:
        state = "open" if self._runtime.thread_id is not None else "closed" if self._entered else "not entered"
        total = self._scheduler.ledger.total
        return f"<SpanBatcher, {state}: {total.accepted} accepted, {total.pending} pending>"

    # -- adding ------------------------------------------------------------------------------------------------

    def add_span_nowait(self, location: str, span: SpanLike | EncodedSpan) -> None:
        """Accept a span if there is space for it now. Does not wait.

        Args:
            location: The span's location, a str of 1 to 1,024 characters that the exporter can send to.
            span: A `Span`, OpenTelemetry's ``ReadableSpan``, or an `EncodedSpan` from a `Loss`.

        Raises:
            trio.WouldBlock: There is no space, or other adders wait for it. Nothing was accepted.
            InvalidSpanError: The span cannot be encoded, or is larger than the byte budget.
            InvalidLocationError: Nothing can be sent to the location.
            TooManyLocationsError: ``Limits.max_locations`` other locations already hold spans.
            trio.ClosedResourceError: The batcher is closed.
        """
        if get_ident() != self._runtime.thread_id:
            self._check_open()
        encoded = self._encoder.encode(span)
        if not self._try_admit(location, encoded):
            raise trio.WouldBlock

    def add_spans_nowait(self, location: str, spans: Iterable[SpanLike | EncodedSpan]) -> None:
        """Accept all of ``spans`` or none. Does not wait.

        Raises:
            ValueError: The limits never allow all of them to be pending at once.
            trio.WouldBlock: There is no space for all of them now.
            InvalidSpanError: One of them cannot be encoded.
            InvalidLocationError: Nothing can be sent to the location.
            TooManyLocationsError: ``Limits.max_locations`` other locations already hold spans.
            trio.ClosedResourceError: The batcher is closed.
        """
        self._check_open()
        encoded = self._encoded_if_they_fit(spans)
        if not encoded:
            self._scheduler.check(location)
        elif not self._try_admit_all(location, encoded):
            raise trio.WouldBlock

    def _encoded_if_they_fit(self, spans: Iterable[SpanLike | EncodedSpan]) -> list[EncodedSpan]:
        """Encode the spans. Raise `ValueError` as soon as they are more than may ever be pending at once."""
        check_spans(spans)
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
        """Accept a span, waiting until there is space.

        Waiting callers are served in order of arrival for each location. This is always a checkpoint. If it is
        cancelled, the span was not accepted.

        Args:
            location: The span's location, a str of 1 to 1,024 characters that the exporter can send to.
            span: A `Span`, OpenTelemetry's ``ReadableSpan``, or an `EncodedSpan` from a `Loss`.

        Raises:
            InvalidSpanError: The span cannot be encoded, or is larger than the byte budget.
            InvalidLocationError: Nothing can be sent to the location.
            TooManyLocationsError: ``Limits.max_locations`` other locations already hold spans.
            trio.ClosedResourceError: The batcher is closed, or was closed while this waited.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        self._check_open()
        encoded = self._encoder.encode(span)
        if not await self._admit(location, encoded):
            await trio.lowlevel.cancel_shielded_checkpoint()

    async def add_spans(self, location: str, spans: Iterable[SpanLike | EncodedSpan]) -> None:
        """Accept spans one after the other, waiting until there is space.

        If this raises, a prefix of ``spans`` was accepted, as with ``SendStream.send_all``. The exception, even a
        `trio.Cancelled` or one from ``spans``, has the number of accepted spans in an attribute ``accepted``, or in a
        note if it takes no attribute. Spans are encoded just before they are accepted. Spans of other callers may be
        accepted in between. This is always a checkpoint.

        Raises:
            InvalidSpanError: A span cannot be encoded.
            InvalidLocationError: Nothing can be sent to the location.
            TooManyLocationsError: ``Limits.max_locations`` other locations already hold spans.
            trio.ClosedResourceError: The batcher is closed.
        """
        progress = _Progress()
        try:
            await self._add_spans(location, spans, progress)
        except BaseException as exc:
            _tell_accepted(exc, progress.accepted)
            raise

    async def _add_spans(self, location: str, spans: Iterable[SpanLike | EncodedSpan], progress: _Progress) -> None:
        await trio.lowlevel.checkpoint_if_cancelled()
        self._check_open()
        check_spans(spans)
        waited = False
        for span in spans:
            if progress.accepted and progress.accepted % _SPANS_PER_CHECKPOINT == 0:
                await trio.lowlevel.checkpoint()
            # Checked for each span, as the batcher may have been closed meanwhile.
            self._check_open()
            waited = await self._admit_next(location, self._encoder.encode(span), progress)
        if not progress.accepted:
            self._scheduler.check(location)
        if not waited:
            await trio.lowlevel.cancel_shielded_checkpoint()

    def _check_open(self) -> None:
        if self._runtime.thread_id is not None:
            if not self._supervisor.is_here():
                raise RuntimeError(
                    "a batcher can be used only in the trio run in which it was entered; in another thread use "
                    "trio.from_thread.run_sync, with the trio_token of that run if the run has not started the thread"
                )
            return
        if self._supervisor.is_forked:
            raise RuntimeError(IN_A_FORKED_CHILD)
        if self._entered:
            raise trio.ClosedResourceError("the batcher is closed")
        raise RuntimeError(_NOT_ENTERED)

    @trio.lowlevel.enable_ki_protection
    def _try_admit(self, location: str, span: EncodedSpan) -> bool:
        # `Scheduler.get` inlined, as each call takes 5% of the time of accepting a span. Not for a subclass of str,
        # which might compare equal to another location.
        live = self._live.get(location) if type(location) is str else self._scheduler.get(location)
        try:
            if live is not None and self._admission.try_admit(live, span, trio.current_time):
                return True
            return self._try_admit_first(location, live, span)
        except trio.WouldBlock:
            # A finalizer or signal handler took the space after it was checked.
            return False

    def _try_admit_first(self, location: str, live: Location | None, span: EncodedSpan) -> bool:
        """Open the location if necessary, and admit a span."""
        self._admission.check_can_ever_fit(1, cost_of([span]))
        while live is None or live.is_evicted:
            live = self._scheduler.open(location)
            if self._admission.try_admit(live, span, trio.current_time):
                return True
        return False

    @trio.lowlevel.enable_ki_protection
    def _try_admit_all(self, location: str, spans: list[EncodedSpan]) -> bool:
        while True:
            live = self._scheduler.get(location) or self._scheduler.open(location)
            if self._admission.try_admit_all(live, spans, trio.current_time):
                return True
            if not live.is_evicted:
                return False

    @trio.lowlevel.enable_ki_protection
    async def _admit(self, location: str, span: EncodedSpan) -> bool:
        """Admit a span, waiting if necessary. Return whether this was a checkpoint."""
        while not self._try_admit(location, span):
            live = self._scheduler.get(location)
            # A finalizer or signal handler may have added to another location, and so had this one evicted.
            if live is not None and await self._runtime.wait_until_admitted(live, span):
                return True
        return False

    @trio.lowlevel.enable_ki_protection
    async def _admit_next(self, location: str, span: EncodedSpan, progress: _Progress) -> bool:
        """Call `_admit`, and count the span before a Ctrl-C can interrupt."""
        waited = await self._admit(location, span)
        progress.accepted += 1
        return waited

    # -- flushing and counting ---------------------------------------------------------------------------------

    async def flush(self, location: str | None = None) -> FlushReport:
        """Wait until every span accepted before this call is accounted for.

        Makes the spans due immediately, of all locations or of one. This includes retries and backoffs; use
        ``trio.move_on_after`` for a time limit. This is always a checkpoint. If it is cancelled, the spans stay due and
        are delivered as usual.

        Args:
            location: The location; None for all.

        Returns:
            The outcome of these spans.

        Raises:
            trio.ClosedResourceError: The batcher is closed.
            InvalidLocationError: Nothing can be sent to ``location``.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        self._check_open()
        if location is not None:
            self._scheduler.check(location)
        self._runtime.feed()
        live = tuple(self._live.values()) if location is None else (self._scheduler.get(location),)
        flush = Flush(one for one in live if one is not None)
        try:
            self._scheduler.beginning[flush] = None
            while flush.unwatched:
                for one in list(islice(flush.unwatched, _LOCATIONS_PER_CHECKPOINT)):
                    self._scheduler.watch(one, flush)
                if flush.unwatched:
                    await trio.lowlevel.checkpoint()
            del self._scheduler.beginning[flush]
            flush.watches_all = True
            await self._runtime.wait_until_flushed(flush)
        finally:
            self._scheduler.beginning.pop(flush, None)
            flush.forget()
        return flush.report()

    async def sync(self) -> None:
        """Wait until every span accepted before this call is committed to the spool, or accounted for.

        This is always a checkpoint. If it is cancelled, the spans are committed as usual.

        Raises:
            OSError: The spool cannot commit. The spans are sent nevertheless, and committed as soon as it can.
            RuntimeError: The batcher has no spool.
            trio.ClosedResourceError: The batcher is closed.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        self._check_open()
        if self._spooler is None:
            raise RuntimeError("the batcher has no spool: use SpanBatcher(..., spool=Spool(directory))")
        self._runtime.feed()
        await self._spooler.sync()

    def statistics(self) -> SpanBatcherStatistics:
        """Return a snapshot of all counts. Takes time proportional to the number of locations.

        Can be called before, inside and after the ``async with``.

        Raises:
            RuntimeError: There are live locations, and the caller is in another thread or trio run.
        """
        if self._live and not self._supervisor.is_here():
            raise RuntimeError(
                "statistics() can be called only in the batcher's trio run until the batcher is left; in a thread use "
                "trio.from_thread.run_sync(batcher.statistics)"
            )
        locations = self._scheduler.counts(trio.current_time() if self._supervisor.is_here() else 0.0)
        totals, endpoints = self._scheduler.ledger.total.counts(), self._scheduler.endpoints()
        spool = None if self._spooler is None else self._spooler.statistics()
        cut = self._encoder.cut
        return SpanBatcherStatistics(**totals, cut=cut, locations=locations, endpoints=endpoints, spool=spool)

    @property
    def undelivered(self) -> tuple[Loss, ...]:
        """The batches that were handed back, to be stored or added again. Empty if there is an ``on_loss``.

        Batches of at most ``Limits.max_pending_bytes`` in all are kept; others are counted and logged.
        """
        return self._runtime.losses.kept

    # -- entering and leaving ----------------------------------------------------------------------------------

    @trio.lowlevel.enable_ki_protection
    async def __aenter__(self) -> Self:
        if not trio.lowlevel.in_trio_run():
            raise RuntimeError(_NEEDS_TRIO)
        if self._entered:
            raise trio.BusyResourceError("a SpanBatcher can be entered only once; create another one")
        if is_closed(exporter := self._runtime.exporter):
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


def _disk_store(spool: Spool, exporter: SpanExporter, log: Log) -> Store:
    from ._spool.disk import DiskStore, endpoint_of

    return DiskStore(spool, endpoint_of(exporter), tell=lambda message: log.error("%s", message))
