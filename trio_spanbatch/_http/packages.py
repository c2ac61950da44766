"""httpx and its successor httpx2: one interface, but unrelated classes.

A given client or transport may be of either. httpx2 is never imported here: an object of it can only exist once the
program has imported it.
"""

from __future__ import annotations

import sys
from typing import Any

import httpx


def classes(*names: str) -> tuple[Any, ...]:
    """Return the classes of these names in httpx and in httpx2, which may be imported later: call it each time anew."""
    found = [getattr(package, name, None) for package in _packages() for name in names]
    return tuple(cls for cls in found if isinstance(cls, type))


def package_of(thing: object, name: str) -> Any:
    """Return the package, httpx or httpx2, of whose class ``name`` ``thing`` is an instance; ``None`` if neither."""
    return next((package for package in _packages() if isinstance(thing, getattr(package, name, ()))), None)


def _packages() -> list[Any]:
    # None in sys.modules forbids an import.
    return [package for package in (httpx, sys.modules.get("httpx2")) if package is not None]
