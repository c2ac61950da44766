"""The name of a location as a plain string."""

from __future__ import annotations

from ._errors import InvalidLocationError

__all__ = ["plain_location"]


def plain_location(location: object) -> str:
    """Return ``location`` as a plain str: a subclass may compare, hash and show itself as it likes.

    Raises:
        InvalidLocationError: It is not a string.
    """
    # By its type, as isinstance() also asks the object itself for its class, and an unbound proxy raises then.
    if not issubclass(type(location), str):
        raise InvalidLocationError(f"a location is a str, not {type(location).__name__}")
    return str.__str__(location)
