"""What counts as a number in what a user gives."""

from __future__ import annotations

from typing import Final, TypeGuard

from ._errors import InvalidLocationError

__all__ = [
    "MAX_LOCATION_LENGTH",
    "checked_location",
    "is_number",
    "plain_location",
]

# What a location may be called.

# Characters. Often a tenant chooses the name, and it is kept for as long as statistics are, repeated in log lines and
# sent in a header. The longest names that destinations know are Unity Catalog's, three parts of 255 characters each.
# In UTF-8 this is at most 4 KiB; servers take 8 KiB of headers or more.
MAX_LOCATION_LENGTH: Final = 1024

# So much of a name that is too long is shown.
_SHOWN_LENGTH = 60


def plain_location(location: object) -> str:
    """Return ``location`` as a plain str: a subclass may compare, hash and show itself as it likes.

    Raises:
        InvalidLocationError: It is not a str.
    """
    # By its type, as isinstance() also asks the object itself for its class, and an unbound proxy raises then.
    if not issubclass(type(location), str):
        raise InvalidLocationError(f"a location is a str, not {type(location).__name__}")
    return str.__str__(location)


def checked_location(location: object) -> str:
    """Return ``location`` as a plain str.

    Raises:
        InvalidLocationError: It is not a str, or it is empty or longer than `MAX_LOCATION_LENGTH`.
    """
    plain = plain_location(location)
    if not plain:
        raise InvalidLocationError("a location is a str that is not empty")
    if len(plain) > MAX_LOCATION_LENGTH:
        raise InvalidLocationError(
            f"location {plain[:_SHOWN_LENGTH]!r}... has {len(plain)} characters; at most {MAX_LOCATION_LENGTH} are "
            "allowed: give a name or an id, not the data itself"
        )
    return plain


def is_number(value: object) -> TypeGuard[int | float]:
    """Return whether ``value`` is an int or a float, no bool, and not too large for a float."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        float(value)
    except OverflowError:
        return False
    return True
