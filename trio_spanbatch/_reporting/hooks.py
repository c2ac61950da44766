"""The interfaces through which `Intake` and the OpenTelemetry bridge bring in spans and watch deliveries.

All methods are synchronous and are called in the trio thread. An exception from them is logged and has no other effect,
except that one that has to end the program is raised when the batcher is left.
"""

from __future__ import annotations

from typing import Protocol

from .statistics import Settlement


class Feeder(Protocol):
    """Holds spans that are to be added to the batcher."""

    def feed(self) -> None:
        """Add these spans. Called before a flush and before admission closes."""

    def ended(self) -> None:
        """Called once, when every span is accounted for and none will be accepted any more."""


class DeliveryObserver(Protocol):
    """Watches the deliveries of a batcher."""

    def began(self, spans: int) -> None:
        """Called with the number of spans of a batch when its delivery begins."""

    def settled(self, settlement: Settlement) -> None:
        """Called when spans of a delivery are accounted for.

        For each delivery, the sum of these spans and of those that `kept` was told is what `began` was told.
        """

    def kept(self, spans: int) -> None:
        """Called with the number of spans of a delivery that go back to the spool. Another delivery begins later."""

    def ended(self, seconds: float, status_code: int | None, loss: Settlement | None) -> None:
        """Called when a delivery has ended.

        Args:
            seconds: The time from the start of its first attempt to the end of its last one.
            status_code: Of the last response, if its last attempt had one.
            loss: The last settlement with spans that were not delivered, if there is one.
        """

    def handed_back(self, spans: int) -> None:
        """Called with the number of spans that were handed back from a queue, without a delivery."""
