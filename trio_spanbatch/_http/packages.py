"""httpx and its successor httpx2: one interface, but unrelated classes.

A given client or transport may be of either. httpx2 is never imported here: an object of it can only exist once the
program has imported it.
"""

from __future__ import annotations

import sys
from typing import Any

import httpx

__all__ = ["classes", "package_of"]


def classes(*names: str, package: str = "httpx") -> tuple[Any, ...]:
    """Return the classes with these names in ``package`` and in its successor, for ``isinstance`` and ``except``.

    Call it each time anew: httpx2 may be imported later than this module.
    """
    found = [getattr(module, name, None) for module in _loaded(package) for name in names]
    return tuple(cls for cls in found if isinstance(cls, type))


def package_of(thing: object, name: str) -> Any:
    """Return the package, httpx or httpx2, of whose class ``name`` ``thing`` is an instance; ``None`` if neither."""
    return next((module for module in _loaded("httpx") if isinstance(thing, getattr(module, name, ()))), None)


def _loaded(package: str) -> list[Any]:
    # None in sys.modules forbids an import.
    own = httpx if package == "httpx" else sys.modules.get(package)
    return [module for module in (own, sys.modules.get(f"{package}2")) if module is not None]
