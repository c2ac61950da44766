"""Hashes of frozen records with unhashable values, such as mappings and lists in attributes.

Equal records must have equal hashes, and values of different types may be equal: ``1`` and ``1.0``, bytes and a
bytearray, a frozenset and a set. So a hash is made of keys, and of values that are hashable and never equal to an
unhashable value.
"""

from __future__ import annotations

from collections import UserString
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Any


def hash_of_record(record: Any) -> int:
    """Return a hash of an attrs record that is consistent with its equality. Records use it as ``__hash__``."""
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
    # Containers may hold unhashable values, and text is the only sequence that never equals an unhashable value.
    if isinstance(value, Mapping | AbstractSet):
        return 0
    if isinstance(value, Sequence) and not isinstance(value, str | UserString):
        return 0
    try:
        return hash(value)
    except Exception:
        return 0
