"""What goes wrong on the caller's side.

Everything else that can be raised is trio's own: ``trio.WouldBlock`` when there is no room,
``trio.ClosedResourceError`` once the batcher is closed, ``trio.BusyResourceError`` when it is entered twice.
"""

from __future__ import annotations

__all__ = [
    "InvalidLocationError",
    "InvalidSpanError",
    "TooManyLocationsError",
    "UndeliveredSpansError",
]


class InvalidSpanError(ValueError):
    """A span cannot be encoded, or can never fit. The message names the field and the value.

    Attributes:
        accepted: How many spans of the same ``add_spans`` call were accepted before this one.
    """

    accepted: int = 0


class InvalidLocationError(ValueError):
    """A location cannot be sent to. Raised before anything is accepted."""


class TooManyLocationsError(ValueError):
    """``Limits.max_locations`` locations all hold spans. Raised before anything is accepted."""


class UndeliveredSpansError(Exception):
    """Raised at the end of a strict batcher when spans were rejected or handed back.

    Attributes:
        rejected: How many spans servers rejected.
        undelivered: How many spans were handed back.
    """

    def __init__(self, rejected: int, undelivered: int) -> None:
        super().__init__(rejected, undelivered)
        self.rejected = rejected
        self.undelivered = undelivered

    def __str__(self) -> str:
        return (
            f"{self.rejected} spans were rejected and {self.undelivered} were handed back undelivered; "
            "on_loss, SpanBatcher.undelivered and the log have the reasons"
        )
