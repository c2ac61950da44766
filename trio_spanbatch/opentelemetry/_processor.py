"""`BatcherSpanProcessor`: OpenTelemetry's spans into a batcher. What it consists of is told in the other modules.

What ``force_flush`` says
-------------------------
True only if every span that had ended before is delivered. One that was lost (dropped here, rejected by the server,
handed back) cannot be delivered by any later flush, so while the batcher is open each loss is told once: the call that
finds it returns False, the next one speaks of what came after. A program that flushes at the end of each request is so
told which one lost something, and not False for the rest of its life. After the batcher was left, the answer is about
everything, and stays what it is.
"""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING

import trio
from opentelemetry.context import Context
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor

from .._batcher import SpanBatcher
from .._spans.checks import shown
from ._force_flush import WaitingFlush
from ._intake import Intake
from ._location import LocationFunction, Locations, NoLocation
from ._metrics import BatcherMetrics
from ._tally import Drop, SpanProcessorStatistics, Tally

if TYPE_CHECKING:
    from opentelemetry.metrics import MeterProvider

    from .._runtime.supervisor import Supervisor

__all__ = ["BatcherSpanProcessor"]


class BatcherSpanProcessor(SpanProcessor):
    """Puts the spans of OpenTelemetry's SDK into a `SpanBatcher`, each to its location.

    It can be made and added to a ``TracerProvider`` before or after the batcher is entered, in any thread. Spans that
    end before that, or after the batcher was left, are dropped.

    The location of a span is fixed where it starts, by the first of these that applies: the location of its local
    parent, as long as that has not ended; the innermost `use_location`; ``location``. A `use_location` that a live
    parent at another location overrules is warned about, once for each pair of locations.

    A span that ends is never waited for, and nothing is raised into the program. What the batcher does not take is
    dropped and counted: ``queue_full``; ``already_shutdown`` (the batcher is not entered, or closed, or the processor
    was shut down); ``invalid`` (the span or its location cannot be sent, the span started before the processor was
    added, or there are more locations than ``Limits.max_locations``). A warning says how many, at most every 30
    seconds; the rest is said at the end.

    Spans may end in any thread. In another one than trio's they are encoded there and handed over. A forked process
    has no trio loop that could send anything: spans that end there are dropped as ``already_shutdown``.

    Args:
        batcher: Where the spans go.
        location: The location of spans that have none by their parent or by `use_location`: a string, or a function
            of the span that starts and its parent context. What the function raises is logged; the span and its
            children are counted as ``invalid``.
        meter_provider: Where the batcher's own metrics go, if anywhere: those that OpenTelemetry's semantic
            conventions name ``otel.sdk.processor.span.*`` and ``otel.sdk.exporter.*``.
        clock: What tells the seconds between warnings.

    Raises:
        TypeError: ``batcher`` is no `SpanBatcher`.
        InvalidLocationError: ``location`` is neither a function nor a string, or empty.
    """

    def __init__(
        self,
        batcher: SpanBatcher,
        location: str | LocationFunction = "default",
        *,
        meter_provider: MeterProvider | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if not isinstance(batcher, SpanBatcher):
            raise TypeError(f"batcher is {shown(batcher)}; it must be a SpanBatcher")
        self._batcher = batcher
        self._supervisor = batcher._supervisor
        self._logger = batcher._shared.logger
        self._tally = Tally(self._logger, clock)
        self._locations = Locations(location, _while_it_matters(self._tally.overruled, self._supervisor))
        self._intake = Intake(batcher, self._tally)
        self._is_shut_down = self._is_in_child = False
        self._has_said_to_await = False
        # How many losses force_flush has told of.
        self._told = 0
        self._told_lock = threading.Lock()
        batcher._shared.feeders.append(self._intake)
        if meter_provider is not None:
            batcher._shared.observers.append(BatcherMetrics(meter_provider, batcher._shared, self._tally))
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=_weakly(self._after_fork_in_child))

    def __repr__(self) -> str:
        counts = self._tally.statistics()
        dropped = sum(counts.dropped.values())
        return f"<BatcherSpanProcessor for {self._batcher!r}: {counts.ended} ended, {dropped} dropped>"

    @property
    def dropped(self) -> Mapping[str, int]:
        """How many spans were dropped so far, by reason: ``queue_full``, ``already_shutdown`` and ``invalid``."""
        return self._tally.statistics().dropped

    def statistics(self) -> SpanProcessorStatistics:
        """Return a snapshot of all counts, in any thread.

        At every instant ``ended == accepted + handed_over + sum(dropped.values())``.
        """
        return self._tally.statistics()

    # -- what the SDK calls ------------------------------------------------------------------------------------

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        """Fix where ``span`` belongs."""
        if self._is_shut_down or self._is_in_child:
            # It is dropped when it ends, wherever it belongs.
            return
        try:
            self._locations.start(span, parent_context)
        except Exception:
            # Then it is dropped when it ends.
            self._logger.exception("SpanBatcher: the location of a span could not be fixed when it started")

    def on_end(self, span: ReadableSpan) -> None:
        """Put ``span`` into the batcher if it is sampled, or drop it. Neither blocks nor raises."""
        context = span.context
        if context is None:
            return
        if context.trace_flags.sampled:
            self._take(span, directly=self._intake.may_add_here())
        else:
            # It may have children that are sampled.
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
            # Also if a SystemExit came out of a value of the span, which is not ours to hold back.
            self._account(drop, directly=directly)

    def _account(self, drop: Drop | None, *, directly: bool) -> None:
        if drop is not None:
            self._tally.dropped(drop)
        elif directly:
            self._tally.accepted()

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
        """Drop spans that end from now on. Never blocks, and may be called in any thread, twice, or at exit.

        What was accepted before is delivered: the batcher belongs to its ``async with``, which waits for that.
        """
        self._is_shut_down = True
        self._tally.say_rest()

    def force_flush(self, timeout_millis: int = 30000) -> bool:
        """Wait until every span that ended before this call is delivered.

        For other threads than trio's. There it returns False at once, and the log says once to
        ``await batcher.flush()`` instead. After the batcher was left there is nothing to wait for.

        Args:
            timeout_millis: Milliseconds after which it returns False. The spans are delivered all the same, later.

        Returns:
            Whether all of them were delivered. A span that was lost makes one call return False; the next one tells
            of those that ended after it. After the batcher was left: whether all were delivered that ever ended.
        """
        if self._is_in_child:
            return False
        if self._supervisor.token is None or self._supervisor.has_ended:
            return self._judge_at_rest()
        # In guest mode this is so in all of the host's loop.
        if trio.lowlevel.in_trio_run():
            self._say_to_await()
            return False
        try:
            return WaitingFlush(self._flush, self._logger).wait(self._supervisor.token, timeout_millis / 1000)
        except trio.RunFinishedError:
            return self._judge_at_rest()

    def _after_fork_in_child(self) -> None:
        self._is_in_child = True
        self._tally.renew_lock()
        self._intake.reset()

    def _say_to_await(self) -> None:
        if not self._has_said_to_await:
            self._has_said_to_await = True
            self._logger.warning(
                "SpanBatcher: force_flush cannot wait in the thread that trio runs in and returns False there: "
                "use `await batcher.flush()`"
            )

    # -- telling the truth -------------------------------------------------------------------------------------

    async def _flush(self) -> bool:
        self._intake.feed()
        lost = self._lost()
        try:
            report = await self._batcher.flush()
        except trio.ClosedResourceError:
            await self._supervisor.wait_until_ended()
            return self._judge_at_rest()
        lost += report.rejected + report.undelivered
        with self._told_lock:
            told, self._told = self._told, max(self._told, lost)
        return lost <= told

    def _judge_at_rest(self) -> bool:
        """Return whether all was delivered, when nothing moves any more."""
        return not (
            self._lost() or self._tally.statistics().handed_over or self._batcher._shared.ledger.total().pending
        )

    def _lost(self) -> int:
        total = self._batcher._shared.ledger.total()
        return total.rejected + total.undelivered + sum(self.dropped.values())


def _while_it_matters(overruled: Callable[[str, str], None], supervisor: Supervisor) -> Callable[[str, str], None]:
    """Return a function that calls ``overruled`` unless the batcher was left: a provider keeps its processors."""

    def call(wanted: str, parents: str) -> None:
        if not supervisor.has_ended:
            overruled(wanted, parents)

    return call


def _weakly(method: Callable[[], None]) -> Callable[[], None]:
    """Return a function that calls ``method`` as long as its object is there."""
    reference = weakref.WeakMethod(method)

    def call() -> None:
        if (method := reference()) is not None:
            method()

    return call
