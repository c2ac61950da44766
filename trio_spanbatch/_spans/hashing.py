"""Hashes of frozen records that hold what cannot be hashed: mappings, lists, whatever a program puts into attributes.

Two records that are equal must have the same hash, and attributes are equal to others that look otherwise: ``1`` to
``1.0``, bytes to a bytearray, a frozenset to a set, in any order. So only what is safe counts: keys, and those values
that can be hashed and equal nothing that cannot.
"""

from __future__ import annotations

from collections import UserString
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Any

__all__ = ["hash_of_record"]


def hash_of_record(record: Any) -> int:
    """Return a hash of an attrs record that is consistent with its equality. It serves as ``__hash__``."""
    return hash(
        (type(record), *(_hash_of(getattr(record, field.name)) for field in record.__attrs_attrs__ if field.eq))
    )


def _hash_of(value: Any) -> int:
    try:
        if isinstance(value, Mapping):
            return hash(frozenset((key, _hash_of_item(item)) for key, item in value.items()))
        if type(value) is tuple:
            return hash(tuple(map(_hash_of_item, value)))
        return _hash_of_item(value)
    except Exception:
        return 0


def _hash_of_item(value: Any) -> int:
    # Containers hold more of the same, and text is the one sequence that equals nothing that cannot be hashed.
    if isinstance(value, Mapping | AbstractSet):
        return 0
    if isinstance(value, Sequence) and not isinstance(value, str | UserString):
        return 0
    try:
        return hash(value)
    except Exception:
        return 0
