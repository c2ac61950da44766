"""What all lanes and deliveries of one batcher share."""

from __future__ import annotations

import math
import random
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, TypeAlias

import attrs

from .._exceptions import leaves, split_cancelled
from .._exporter import SpanExporter
from .._reporting.health_log import HealthLog
from .._reporting.hooks import DeliveryObserver, Feeder
from .._reporting.log import Log
from .._reporting.losses import Losses
from .._settings.policies import Limits, RetryPolicy
from .ledger import Ledger
from .slots import ExportSlots

if TYPE_CHECKING:
    from .admission import Admission
    from .location import Lane
    from .locations import Lanes

__all__ = ["Shared", "TaskStarter"]

TaskStarter: TypeAlias = Callable[[Callable[[], Awaitable[None]], str], None]


@attrs.define(eq=False)
class Shared:
    """The parts of one batcher that its lanes and deliveries work with.

    Attributes:
        exporter: Sends the batches.
        limits: What may wait and run at once.
        retry: How often an attempt is repeated.
        rng: Where jitter comes from.
        logger: Where messages go.
        ledger: The accounts.
        losses: Told of spans that were not delivered.
        health: Told of how locations fare.
        slots: One for each export that may run now, over all locations.
        exporting: How many locations have an export that runs now.
        crowded_out: The lanes that could begin another export if there were a slot to spare. All of them have one
            running, so there are at most as many as slots.
        start: Starts a task that lives until the drain ends, in the batcher's own context.
        draining: Whether the drain has begun.
        drain_deadline: When the drain stops deliveries, in trio's time; `math.inf` before it began.
        stopped: Whether the work ends without a drain.
        stop_reason: Why deliveries are being stopped, for the spans that they hand back.
        stop_cause: The same in a word, for metrics.
        feeders: Who brings in spans from outside.
        observers: Who watches deliveries.
        lanes: The live locations.
        admission: Lets spans in.
    """

    exporter: SpanExporter
    limits: Limits
    retry: RetryPolicy
    rng: random.Random
    logger: Log
    ledger: Ledger
    losses: Losses
    health: HealthLog
    slots: ExportSlots
    start: TaskStarter
    exporting: int = 0
    crowded_out: dict[Lane, None] = attrs.Factory(dict)
    draining: bool = False
    drain_deadline: float = math.inf
    stopped: bool = False
    stop_reason: str = "the batcher was stopped"
    stop_cause: str = "Cancelled"
    feeders: list[Feeder] = attrs.Factory(list)
    observers: list[DeliveryObserver] = attrs.Factory(list)
    lanes: Lanes = attrs.field(init=False)
    admission: Admission = attrs.field(init=False)

    def feed(self) -> None:
        """Let in what is on its way from outside."""
        for feeder in self.feeders:
            try:
                feeder.feed()
            except BaseException as exc:  # noqa: ASYNC103  # it is synchronous: no Cancelled of ours comes out of it
                self.logger.caught(exc, "SpanBatcher: letting in spans from outside failed")

    def tell_observers(self, tell: Callable[[DeliveryObserver], None]) -> None:
        """Tell all observers of something. What they raise is logged, so that it cannot end a delivery."""
        for observer in self.observers:
            try:
                tell(observer)
            except BaseException as exc:  # noqa: ASYNC103  # it is synchronous: no Cancelled of ours comes out of it
                self.logger.caught(exc, "SpanBatcher: an observer of deliveries failed")

    def stop(self, reason: str) -> None:
        """Let nothing in any more: all tasks are about to end, and hand back what they hold."""
        if not self.stopped:
            self.stopped, self.stop_reason = True, reason
        self.admission.close()

    def task_failed(self, exc: BaseException) -> None:
        """Stop, because of what is about to end one of the tasks. To be called before it hands back what it holds."""
        _, failure = split_cancelled(exc)
        if failure is not None:
            self.stop(f"a task of the batcher failed with {type(leaves(failure)[0]).__name__}")
        self.admission.close()

    def has_slot_to_spare(self, *, taken: bool = False) -> bool:
        """Return whether a location that has an export running may begin another one.

        Locations that had grown to several exports and then hang must not hold the slots of those that are well, nor
        of those that come alive only then. So from the second location on, half of all slots are kept free for
        locations that have none running. A location that exports alone leaves one for each other that is live.

        Args:
            taken: Whether the location has taken a slot for it already.
        """
        half = self.limits.max_exports // 2
        without_any = min(len(self.lanes) - self.exporting, half)
        # Nobody comes alive in the drain.
        is_for_newcomers = self.exporting > 1 and not self.draining
        return self.slots.free + taken > (half if is_for_newcomers else without_any)

    def offer_spare_slot(self) -> None:
        """Let the lanes that wait for a slot to spare look again, if there is one now."""
        if self.crowded_out and self.has_slot_to_spare():
            crowded_out, self.crowded_out = self.crowded_out, {}
            for lane in crowded_out:
                lane.reconsider()
