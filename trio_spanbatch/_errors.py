"""The exceptions that this package defines.

A batcher also raises exceptions of trio: ``trio.WouldBlock`` if the queue is full, ``trio.ClosedResourceError`` once
the batcher is closed, ``trio.BusyResourceError`` if it is entered twice.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Literal

# The most reasons in a message, and the most characters of each reason.
_MAX_REASONS_SHOWN = 5
_MAX_REASON_LENGTH = 300

# The reason under which further spans are counted once there are too many different reasons.
OTHER_REASONS = "other reasons"


class InvalidSpanError(ValueError):
    """A span cannot be encoded, or can never fit. The message names the field and the value.

    Attributes:
        accepted: How many spans of the same ``add_spans`` call were accepted before this one.
    """

    accepted: int = 0


class InvalidLocationError(ValueError):
    """A location is not a str of 1 to 1,024 characters, or the exporter cannot send to it.

    Attributes:
        accepted: How many spans of the same ``add_spans`` call were accepted before. Other calls accepted nothing.
    """

    accepted: int = 0


class TooManyLocationsError(ValueError):
    """A location cannot be opened, as ``Limits.max_locations`` locations already hold spans.

    Attributes:
        accepted: How many spans of the same ``add_spans`` call were accepted before: between two of them, the location
            can end and another one can take its place. Other calls accepted nothing.
    """

    accepted: int = 0


class UndeliveredSpansError(Exception):
    """Raised at the end of a strict batcher if spans were rejected or handed back. The message has the reasons.

    Attributes:
        rejected: How many spans servers rejected.
        undelivered: How many spans were handed back.
        reasons: For ``"rejected"`` and ``"undelivered"``, each reason with its number of spans, most frequent first.
            Reasons beyond the first 20 are counted together as ``"other reasons"``.
    """

    def __init__(
        self,
        rejected: int,
        undelivered: int,
        reasons: Mapping[Literal["rejected", "undelivered"], Mapping[str, int]] | None = None,
    ) -> None:
        super().__init__(rejected, undelivered, reasons)
        self.rejected = rejected
        self.undelivered = undelivered
        self.reasons: Mapping[Literal["rejected", "undelivered"], Mapping[str, int]] = (
            {"rejected": {}, "undelivered": {}} if reasons is None else reasons
        )

    def __str__(self) -> str:
        why_rejected = _reasons_text(self.reasons.get("rejected", {}))
        why_handed_back = _reasons_text(self.reasons.get("undelivered", {}))
        if not self.undelivered:
            return f"{_count(self.rejected)} rejected{why_rejected and f': {why_rejected}'}"
        if not self.rejected:
            return f"{_count(self.undelivered)} handed back undelivered{why_handed_back and f': {why_handed_back}'}"
        was = "was" if self.undelivered == 1 else "were"
        both = f"{_count(self.rejected)} rejected and {self.undelivered} {was} handed back undelivered"
        why = [f"rejected: {why_rejected}"] if why_rejected else []
        why += [f"handed back: {why_handed_back}"] if why_handed_back else []
        return "; ".join([both, *why])


def _count(spans: int) -> str:
    return "1 span was" if spans == 1 else f"{spans} spans were"


def _reasons_text(reasons: Mapping[str, int]) -> str:
    """Return the most frequent reasons, each with its number of spans, on one line."""
    named = [reason for reason in reasons if reason != OTHER_REASONS]
    parts = [f"{on_one_line(reason)} ({reasons[reason]})" for reason in named[:_MAX_REASONS_SHOWN]]
    others = sum(reasons.values()) - sum(reasons[reason] for reason in named[:_MAX_REASONS_SHOWN])
    if others:
        number = len(named) - _MAX_REASONS_SHOWN
        # The number of different reasons in OTHER_REASONS is unknown.
        how_many = f"more than {number}" if OTHER_REASONS in reasons else f"{number}"
        parts.append(f"and {how_many} other reason{'' if how_many == '1' else 's'} ({others})")
    return ", ".join(parts)


def on_one_line(text: str, length: int = _MAX_REASON_LENGTH) -> str:
    """Return ``text`` shortened to about ``length`` characters, as it may come from a server or a user.

    It must look neither like several messages nor like a terminal's control sequences.
    """
    line = " ".join("".join(character if character.isprintable() else " " for character in text[:2000]).split())
    return line if len(line) <= length else f"{line[:length]}…"


class _Accepted(int):
    """A number set by `tell_accepted`, as opposed to the exception's own attribute of that name."""


class _AcceptedNote(str):
    """A note added by `tell_accepted`."""

    __slots__ = ()


def tell_accepted(exc: BaseException, accepted: int) -> None:
    """Add the number of accepted spans to an exception that leaves ``add_spans``.

    It is stored in the attribute ``accepted``, or in a note if the exception already has an attribute of that name or
    cannot be given one. If ``__notes__`` is not a list, nothing is added. If the exception is raised again, the last
    call's number replaces the earlier one.
    """
    if not _set_accepted(exc, accepted):
        _add_accepted_note(exc, accepted)


def _set_accepted(exc: BaseException, accepted: int) -> bool:
    # The exception may be of any class: getting or setting the attribute may raise, or have no effect.
    try:
        ours = isinstance(exc, InvalidSpanError | InvalidLocationError | TooManyLocationsError)
        if not ours and type(getattr(exc, "accepted", _Accepted())) is not _Accepted:
            return False
        value = _Accepted(accepted)
        exc.accepted = value  # type: ignore[attr-defined]  # only our exceptions declare it
        return exc.accepted is value  # type: ignore[attr-defined]  # the same
    except Exception:
        return False


def _add_accepted_note(exc: BaseException, accepted: int) -> None:
    note = _AcceptedNote(f"SpanBatcher.add_spans: {_count(accepted)} accepted before")
    with suppress(Exception):
        notes = getattr(exc, "__notes__", None)
        if notes is None:
            # add_note() sets the attribute in the normal way, which a frozen exception refuses or ignores.
            object.__setattr__(exc, "__notes__", [note])
        elif isinstance(notes, list):
            notes[:] = [*(old for old in notes if type(old) is not _AcceptedNote), note]
