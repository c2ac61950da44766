"""What goes wrong on the caller's side.

Everything else that can be raised is trio's own: ``trio.WouldBlock`` when there is no room,
``trio.ClosedResourceError`` once the batcher is closed, ``trio.BusyResourceError`` when it is entered twice.
"""

from __future__ import annotations

from contextlib import suppress

import trio

__all__ = [
    "InvalidLocationError",
    "InvalidSpanError",
    "TooManyLocationsError",
    "UndeliveredSpansError",
    "tell_accepted",
]


class InvalidSpanError(ValueError):
    """A span cannot be encoded, or can never fit. The message names the field and the value.

    Attributes:
        accepted: How many spans of the same ``add_spans`` call were accepted before this one.
    """

    accepted: int = 0


class InvalidLocationError(ValueError):
    """A location cannot be sent to.

    Attributes:
        accepted: How many spans of the same ``add_spans`` call were accepted before. Other calls accepted nothing.
    """

    accepted: int = 0


class TooManyLocationsError(ValueError):
    """``Limits.max_locations`` locations all hold spans.

    Attributes:
        accepted: How many spans of the same ``add_spans`` call were accepted before: its location can come to an end
            between two of them, and another one take its place. Other calls accepted nothing.
    """

    accepted: int = 0


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


class _Accepted(int):
    """A number that `tell_accepted` has set, unlike an attribute of that name that the exception has by itself."""


class _AcceptedNote(str):
    """A note that `tell_accepted` has added."""

    __slots__ = ()


@trio.lowlevel.enable_ki_protection
def tell_accepted(exc: BaseException, accepted: int) -> None:
    """Let an exception that leaves ``add_spans`` say how many spans the call had accepted.

    In its attribute ``accepted``. If it takes none, or has one that means something else, in a note. If it takes no
    note either, it stays as it is. An exception that is raised again says the number of the last call.
    """
    if not _set_accepted(exc, accepted):
        _add_accepted_note(exc, accepted)


def _set_accepted(exc: BaseException, accepted: int) -> bool:
    # Exceptions are anybody's classes: looking at an attribute or setting it may raise, or have no effect.
    try:
        ours = isinstance(exc, InvalidSpanError | InvalidLocationError | TooManyLocationsError)
        if not ours and type(getattr(exc, "accepted", _Accepted())) is not _Accepted:
            return False
        value = _Accepted(accepted)
        exc.accepted = value  # type: ignore[attr-defined]  # what is not ours has no such field
        return exc.accepted is value  # type: ignore[attr-defined]
    except Exception:
        return False


def _add_accepted_note(exc: BaseException, accepted: int) -> None:
    spans = "1 span was" if accepted == 1 else f"{accepted} spans were"
    with suppress(Exception):
        notes = getattr(exc, "__notes__", None)
        if isinstance(notes, list):
            notes[:] = [note for note in notes if type(note) is not _AcceptedNote]
        exc.add_note(_AcceptedNote(f"SpanBatcher.add_spans: {spans} accepted before"))
