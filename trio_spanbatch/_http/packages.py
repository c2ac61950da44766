"""httpx and its successor httpx2: one interface, and two sets of classes that know nothing of each other.

A client or transport of the user's own may be of either. httpx2 is nothing that we need: it is there if the program has
imported it, and whatever is of it cannot come before that.
"""

from __future__ import annotations

import sys
from typing import Any

import httpx

__all__ = ["classes", "package_of"]


def classes(*names: str, package: str = "httpx") -> tuple[Any, ...]:
    """Return the classes that have these names in ``package`` and in its successor, for ``isinstance`` and ``except``.

    To be called anew each time: httpx2 may be imported later than this module.
    """
    found = [getattr(module, name, None) for module in _loaded(package) for name in names]
    return tuple(cls for cls in found if isinstance(cls, type))


def package_of(thing: object, name: str) -> Any:
    """Return httpx or httpx2, in which the class ``name`` is one of ``thing``; ``None`` if it is of neither."""
    return next((module for module in _loaded("httpx") if isinstance(thing, getattr(module, name, ()))), None)


def _loaded(package: str) -> list[Any]:
    # A module may be None, which is how an import is forbidden.
    own = httpx if package == "httpx" else sys.modules.get(package)
    return [module for module in (own, sys.modules.get(f"{package}2")) if module is not None]
