"""The state that all locations and deliveries of one batcher share."""

from __future__ import annotations

import math
import random
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, TypeVar

import attrs

from .._exceptions import leaves, split_cancelled
from .._exporter import HandsBack, SpanExporter
from .._reporting.health_log import HealthLog
from .._reporting.hooks import DeliveryObserver, Feeder
from .._reporting.log import Log
from .._reporting.losses import Losses
from .._settings.policies import Limits, RetryPolicy
from .ledger import Ledger
from .slots import ExportSlots

if TYPE_CHECKING:
    from .admission import Admission
    from .agenda import Agenda
    from .location import Lane
    from .locations import Lanes

__all__ = ["Shared"]

_Listener = TypeVar("_Listener")


@attrs.define(eq=False)
class Shared:
    """The state that all locations and deliveries of one batcher share.

    Attributes:
        exporter: Sends the batches.
        limits: The limits on pending spans and running exports.
        retry: How often an attempt is repeated.
        rng: The source of jitter.
        logger: The logger for messages.
        ledger: The accounts.
        losses: Reports spans that were not delivered.
        health: Logs failing and recovering locations.
        slots: One for each export that may run at a time, over all locations.
        exporting: How many locations have a running export.
        over_share: The locations over their share: they have a running export and could begin another one if a slot
            could be spared. There are at most as many as slots.
        start: Starts a task in the batcher's context, which runs until the end of the drain at most.
        draining: Whether the drain has begun.
        drain_deadline: When the drain stops deliveries, in trio's time; `math.inf` outside a drain.
        stopped: Whether the work ends without a drain.
        stop_reason: Why deliveries are stopped, as the reason for the spans that they hand back.
        stop_cause: The same in one word, for metrics.
        feeders: Bring in spans from outside.
        observers: Watch deliveries.
        reason_to_hand_back: The exporter's, if it has one: see `HandsBack`.
        lanes: The live locations.
        admission: Admits spans.
        agenda: When each location has to be looked at.
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
    start: Callable[[Callable[[], Awaitable[None]], str], None]
    exporting: int = 0
    over_share: dict[Lane, None] = attrs.Factory(dict)
    draining: bool = False
    drain_deadline: float = math.inf
    stopped: bool = False
    stop_reason: str = "the batcher was stopped"
    stop_cause: str = "Cancelled"
    feeders: list[Feeder] = attrs.Factory(list)
    observers: list[DeliveryObserver] = attrs.Factory(list)
    # Checked once: whether an object matches a protocol takes 10 us to find out, and each attempt asks.
    reason_to_hand_back: Callable[[str], str | None] | None = attrs.field(init=False)
    lanes: Lanes = attrs.field(init=False)
    admission: Admission = attrs.field(init=False)
    agenda: Agenda = attrs.field(init=False)

    @reason_to_hand_back.default
    def _reason_to_hand_back_of_exporter(self) -> Callable[[str], str | None] | None:
        return self.exporter.reason_to_hand_back if isinstance(self.exporter, HandsBack) else None

    def feed(self) -> None:
        """Admit the spans that are on their way from outside."""
        self._call_each(self.feeders, lambda feeder: feeder.feed(), "SpanBatcher: letting in spans from outside failed")

    def end_feeding(self) -> None:
        """Tell the feeders that every span is accounted for."""
        self._call_each(self.feeders, lambda feeder: feeder.ended(), "SpanBatcher: telling of the end failed")

    def tell_observers(self, tell: Callable[[DeliveryObserver], None]) -> None:
        """Call ``tell`` with each observer."""
        self._call_each(self.observers, tell, "SpanBatcher: an observer of deliveries failed")

    def _call_each(self, listeners: list[_Listener], call: Callable[[_Listener], None], message: str) -> None:
        for listener in listeners:
            try:
                call(listener)
            except BaseException as exc:  # noqa: ASYNC103  # a synchronous call raises no Cancelled of this task
                self.logger.caught(exc, message)

    def stop(self, reason: str) -> None:
        """Close admission, as all tasks are about to end and hand back their spans."""
        if not self.stopped:
            self.stopped, self.stop_reason = True, reason
        self.admission.close()

    def task_failed(self, exc: BaseException) -> None:
        """Stop because ``exc`` ends a task. Call this before the task hands back its spans."""
        _, failure = split_cancelled(exc)
        if failure is not None:
            self.stop(f"a task of the batcher failed with {type(leaves(failure)[0]).__name__}")
        self.admission.close()

    def has_slot_to_spare(self, *, taken: bool = False) -> bool:
        """Return whether a location that has a running export may begin another one.

        Locations that had several exports running when they began to hang must not hold the slots that healthy and new
        locations need. So if several locations export, half of all slots are kept free for locations that have none
        running. A location that exports alone leaves one slot for each other live location.

        Args:
            taken: Whether the location has already taken a slot for it.
        """
        half = self.limits.max_exports // 2
        without_any = min(len(self.lanes) - self.exporting, half)
        # No location is opened in the drain.
        is_for_newcomers = self.exporting > 1 and not self.draining
        return self.slots.free + taken > (half if is_for_newcomers else without_any)

    def offer_spare_slot(self) -> None:
        """Let the locations over their share reconsider, if a slot can be spared now."""
        if self.over_share and self.has_slot_to_spare():
            over_share, self.over_share = self.over_share, {}
            for lane in over_share:
                lane.reconsider()
