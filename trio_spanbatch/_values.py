"""Checks of locations and numbers."""

from __future__ import annotations

from typing import Final, TypeGuard

from ._errors import InvalidLocationError

# Characters. The name is often chosen by a tenant. Statistics keep it, log lines repeat it, and a header carries it.
# The longest names of the known destinations are Unity Catalog's, with three parts of 255 characters each. In UTF-8, a
# location has at most 4 KiB; servers accept at least 8 KiB of headers.
MAX_LOCATION_LENGTH: Final = 1024

# How many characters of a name that is too long are shown.
_SHOWN_LENGTH = 60


def plain_location(location: object) -> str:
    """Return ``location`` as a plain str, as a subclass may override ``__eq__``, ``__hash__`` and ``__repr__``."""
    # By type, as isinstance() also looks at __class__, for which an unbound proxy raises.
    if not issubclass(type(location), str):
        raise InvalidLocationError(f"location must be a str, not {type(location).__name__}")
    return str.__str__(location)


def checked_location(location: object) -> str:
    """Return ``location`` as a plain str, not empty and not longer than `MAX_LOCATION_LENGTH`."""
    plain = plain_location(location)
    if not plain:
        raise InvalidLocationError("location must be a non-empty str")
    if len(plain) > MAX_LOCATION_LENGTH:
        raise InvalidLocationError(
            f"location {plain[:_SHOWN_LENGTH]!r}... has {len(plain)} characters; at most {MAX_LOCATION_LENGTH} are "
            "allowed: give a name or an id, not the data itself"
        )
    return plain


def counted(number: int, noun: str) -> str:
    """Return ``number`` with ``noun``, in the plural unless it is 1."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def were(number: int) -> str:
    """Return the verb after `counted`."""
    return "was" if number == 1 else "were"


def is_number(value: object) -> TypeGuard[int | float]:
    """Return whether ``value`` is a float, or an int that fits in a float. A bool is not a number."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        float(value)
    except OverflowError:
        return False
    return True
