"""`BatcherSpanProcessor`: put OpenTelemetry's spans into a batcher.

No later flush can deliver a lost span (dropped here, rejected by the server, handed back), so while the batcher is open
each loss makes one call of ``force_flush`` return False: a program that flushes after each request learns which request
lost spans.
"""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from contextlib import suppress

import trio
from opentelemetry.context import Context
from opentelemetry.metrics import MeterProvider
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor

from .._arguments import checked_function
from .._batcher import SpanBatcher
from .._intake import Drop, Intake
from .._spans.checks import shown
from ._interruption import InterruptionCheck
from ._location import LocationFunction, Locations, NoLocation
from ._metrics import BatcherMetrics
from ._tally import SpanProcessorStatistics, Tally


class BatcherSpanProcessor(SpanProcessor):
    """Puts the spans of OpenTelemetry's SDK into a `SpanBatcher`, each to its location.

    It can be created and added to a ``TracerProvider`` before or after the batcher is entered, in any thread. Spans
    that end before the batcher is entered, or after it was left, are dropped.

    The location of a span is fixed when it starts, by the first of these that applies: the location of its local
    parent, if that has not ended; the innermost `use_location`; ``location``. If a live parent at another location
    overrules a `use_location`, a warning is logged, once for each pair of locations.

    Ending a span never blocks or raises. Spans that the batcher does not accept are dropped and counted as
    ``queue_full``; ``already_shutdown`` (the batcher is not entered, or closed, or the processor was shut down); or
    ``invalid`` (the span or its location cannot be sent, the span started before the processor was added, or there
    are more locations than ``Limits.max_locations``). A warning with the counts is logged at most every 30 seconds,
    and at the end.

    Spans may end in any thread; outside of the trio thread they are encoded there and handed over. A forked process
    has no trio loop: spans that end there are dropped as ``already_shutdown``.

    Args:
        batcher: The batcher that receives the spans.
        location: The location of spans that get none from their parent or `use_location`: a string, or a function
            of the span that starts and its parent context. Its exceptions are logged; the span and its children are
            counted as ``invalid``.
        meter_provider: Receives the batcher's own metrics, which OpenTelemetry's semantic conventions name
            ``otel.sdk.processor.span.*`` and ``otel.sdk.exporter.*``. There are none by default.
        clock: Returns seconds, for the interval between warnings.

    Raises:
        TypeError: ``batcher`` is not a `SpanBatcher`.
        InvalidLocationError: ``location`` is neither a function nor a string, or is empty.
    """

    def __init__(
        self,
        batcher: SpanBatcher,
        location: str | LocationFunction = "default",
        *,
        meter_provider: MeterProvider | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if meter_provider is not None and not isinstance(meter_provider, MeterProvider):
            raise TypeError(f"meter_provider is {shown(meter_provider)}; it must be a MeterProvider of OpenTelemetry")
        checked_function("clock", clock)
        if not isinstance(batcher, SpanBatcher):
            raise TypeError(f"batcher is {shown(batcher)}; it must be a SpanBatcher")
        self._batcher = batcher
        self._supervisor = batcher._supervisor
        self._logger = batcher._runtime.logger
        self._tally = Tally(self._logger, clock)
        supervisor, overruled = batcher._supervisor, self._tally.overruled
        # Not after the batcher was left: providers keep their processors.
        self._locations = Locations(location, lambda *pair: None if supervisor.has_ended else overruled(*pair))
        self._intake = Intake(batcher, self._tally.account, self._tally.log_rest)
        self._intake.register()
        self._interruption = InterruptionCheck(batcher)
        self._is_shut_down = self._is_in_child = False
        self._has_warned_to_await = False
        # How many losses force_flush has reported.
        self._reported = 0
        self._reported_lock = threading.Lock()
        if meter_provider is not None:
            batcher._runtime.observers.append(BatcherMetrics(meter_provider, batcher._runtime, self._tally))
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=_weakly(self._after_fork_in_child))

    def __repr__(self) -> str:
        counts = self._tally.statistics()
        dropped = sum(counts.dropped.values())
        return f"<BatcherSpanProcessor for {self._batcher!r}: {counts.ended} ended, {dropped} dropped>"

    @property
    def batcher(self) -> SpanBatcher:
        """The batcher that receives the spans."""
        return self._batcher

    @property
    def dropped(self) -> Mapping[str, int]:
        """The number of spans dropped so far, by reason: ``queue_full``, ``already_shutdown`` and ``invalid``."""
        return self._tally.statistics().dropped

    def statistics(self) -> SpanProcessorStatistics:
        """Return a snapshot of all counts. Thread-safe."""
        return self._tally.statistics()

    # -- called by the SDK -------------------------------------------------------------------------------------

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        """Determine the location of ``span``."""
        if self._is_shut_down or self._is_in_child:
            # The span will be dropped when it ends, regardless of its location.
            return
        try:
            self._locations.start(span, parent_context)
        except Exception:
            # The span will be dropped when it ends.
            self._logger.exception("determining the location of a span failed")

    def on_end(self, span: ReadableSpan) -> None:
        """Put ``span`` into the batcher, or drop it, if it is sampled. Never blocks or raises."""
        context = span.context
        if context is None:
            return
        if context.trace_flags.sampled:
            self._take(span, directly=self._interruption.may_add_here())
        else:
            # Its end is noted too, as it may have sampled children.
            with suppress(Exception):
                self._locations.end(span)

    @trio.lowlevel.enable_ki_protection
    def _take(self, span: ReadableSpan, *, directly: bool) -> None:
        self._tally.ended()
        drop: Drop | None = Drop("invalid", "it was interrupted")
        try:
            drop = self._put(span, directly=directly)
        except Exception as error:
            drop = Drop("invalid", shown(error))
        finally:
            # Also if an attribute of the span raised a SystemExit, which is not caught here.
            if drop is not None or directly:
                self._tally.account(drop)

    def _put(self, span: ReadableSpan, *, directly: bool) -> Drop | None:
        location = self._locations.end(span)
        if (closed := self._why_closed()) is not None:
            return Drop("already_shutdown", closed)
        if isinstance(location, NoLocation):
            return Drop("invalid", location.why)
        return self._intake.add(location, span) if directly else self._intake.hand_over(location, span)

    def _why_closed(self) -> str | None:
        if self._is_in_child:
            return "this is a forked process, without the batcher's trio run"
        if self._is_shut_down:
            return "shutdown was called"
        if not self._intake.is_open():
            return "the batcher is not entered" if self._supervisor.token is None else "the batcher is closed"
        return None

    def shutdown(self) -> None:
        """Drop spans that end from now on. Never blocks; can be called in any thread, repeatedly, and at exit.

        Spans accepted before are delivered: the ``async with`` of the batcher waits for them.
        """
        self._is_shut_down = True
        self._tally.log_rest()

    def force_flush(self, timeout_millis: int = 30000) -> bool:
        """Wait until every span that ended before this call is delivered.

        Only for threads other than trio's. In trio's thread it returns False immediately and logs once to use
        ``await batcher.flush()`` instead. After the batcher was left it does not wait.

        Args:
            timeout_millis: Milliseconds after which it returns False. The spans are still delivered later.

        Returns:
            Whether all of them were delivered. A lost span makes one call return False; the next call covers the
            spans that ended after that one. After the batcher was left: whether all spans ever ended were delivered.
        """
        if self._is_in_child:
            return False
        if self._supervisor.token is None or self._supervisor.has_ended:
            return self._judge_at_rest()
        # In guest mode this is true everywhere in the host's loop.
        if trio.lowlevel.in_trio_run():
            if not self._has_warned_to_await:
                self._has_warned_to_await = True
                self._logger.warning(
                    "force_flush cannot wait in the thread that trio runs in and returns False there: "
                    "use `await batcher.flush()`"
                )
            return False
        try:
            return self._wait_for_flush(self._supervisor.token, timeout_millis / 1000)
        except trio.RunFinishedError:
            return self._judge_at_rest()

    def _after_fork_in_child(self) -> None:
        self._is_in_child = True
        self._tally.renew_lock()
        self._intake.reset()

    def _wait_for_flush(self, token: trio.lowlevel.TrioToken, seconds: float) -> bool:
        """Return whether everything was delivered within ``seconds``. Called in a thread other than trio's.

        The flush runs in a system task of trio, independent of all nurseries. The calling thread waits on the real
        clock, so that a stalled trio loop makes it time out too. Then the flush is cancelled; the spans are delivered
        later. If the run has ended, `trio.RunFinishedError` is raised.
        """
        scope = trio.CancelScope()
        answer: Future[bool] = Future()

        async def run() -> None:
            delivered = False
            try:
                with scope:
                    delivered = await self._flush()
            except Exception:
                self._logger.exception("force_flush failed")
            finally:
                answer.set_result(delivered)

        def start() -> None:
            try:
                trio.lowlevel.spawn_system_task(run, name="trio_spanbatch force_flush")
            except RuntimeError:
                # The run is ending and starts no more tasks.
                answer.set_exception(trio.RunFinishedError())

        token.run_sync_soon(start)
        try:
            return answer.result(min(max(seconds, 0.0), threading.TIMEOUT_MAX))
        except TimeoutError:
            return False
        finally:
            if not answer.done():
                with suppress(trio.RunFinishedError):
                    token.run_sync_soon(scope.cancel)

    async def _flush(self) -> bool:
        self._intake.feed()
        lost = self._lost()
        try:
            report = await self._batcher.flush()
        except trio.ClosedResourceError:
            await self._supervisor.wait_until_ended()
            return self._judge_at_rest()
        lost += report.rejected + report.undelivered
        with self._reported_lock:
            reported, self._reported = self._reported, max(self._reported, lost)
        return lost <= reported

    def _judge_at_rest(self) -> bool:
        """Return whether everything was delivered, while the batcher is not running."""
        return not (
            self._lost() or self._tally.statistics().handed_over or self._batcher._scheduler.ledger.total.pending
        )

    def _lost(self) -> int:
        total = self._batcher._scheduler.ledger.total
        return total.rejected + total.undelivered + sum(self.dropped.values())


def _weakly(method: Callable[[], None]) -> Callable[[], None]:
    """Return a function that calls ``method`` as long as its object exists."""
    reference = weakref.WeakMethod(method)

    def call() -> None:
        if (method := reference()) is not None:
            method()

    return call
