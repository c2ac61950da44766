"""Where the bridge to OpenTelemetry touches the core: who brings spans in from outside, and who watches deliveries.

Both are told of things in single synchronous calls in the trio thread, and must not raise. The core knows neither
OpenTelemetry nor threads.
"""

from __future__ import annotations

from typing import Protocol

from .statistics import Settlement

__all__ = ["DeliveryObserver", "Feeder"]


class Feeder(Protocol):
    """Holds spans that are on their way into the batcher."""

    def feed(self) -> None:
        """Add what is there. Called before a flush begins and before the intake closes."""
        ...

    def ended(self) -> None:
        """Take note that everything is accounted for, and nothing will be accepted any more. Called once."""
        ...


class DeliveryObserver(Protocol):
    """Watches the deliveries of a batcher."""

    def began(self, spans: int) -> None:
        """A batch was sealed; its delivery begins in the same step."""
        ...

    def settled(self, settlement: Settlement) -> None:
        """Spans of a delivery are accounted for. A delivery's settlements add up to what `began` said."""
        ...

    def ended(self, seconds: float, status_code: int | None, loss: Settlement | None) -> None:
        """A delivery ended.

        Args:
            seconds: From the start of its first attempt to the end of its last one.
            status_code: Of the last response, if its last attempt had one.
            loss: The last settlement with spans that were not delivered, if there is one.
        """
        ...

    def handed_back(self, spans: int) -> None:
        """Spans were handed back out of the queue. No delivery had begun with them."""
        ...
