"""The interfaces through which the OpenTelemetry bridge brings in spans and watches deliveries.

All methods are synchronous, are called in the trio thread, and should not raise. The core knows neither OpenTelemetry
nor threads.
"""

from __future__ import annotations

from typing import Protocol

from .statistics import Settlement

__all__ = ["DeliveryObserver", "Feeder"]


class Feeder(Protocol):
    """Holds spans on their way into the batcher."""

    def feed(self) -> None:
        """Add these spans. Called before a flush begins and before admission closes."""
        ...

    def ended(self) -> None:
        """Called once, when every span is accounted for and none will be accepted any more."""
        ...


class DeliveryObserver(Protocol):
    """Watches the deliveries of a batcher."""

    def began(self, spans: int) -> None:
        """Called when a batch was sealed, in the step in which its delivery begins."""
        ...

    def settled(self, settlement: Settlement) -> None:
        """Called when spans of a delivery are accounted for. In all, these are as many as `began` was called with."""
        ...

    def ended(self, seconds: float, status_code: int | None, loss: Settlement | None) -> None:
        """Called when a delivery has ended.

        Args:
            seconds: From the start of its first attempt to the end of its last one.
            status_code: Of the last response, if its last attempt had one.
            loss: The last settlement with spans that were not delivered, if there is one.
        """
        ...

    def handed_back(self, spans: int) -> None:
        """Called when spans were handed back from the queue, before any delivery of them began."""
        ...
