"""Telling a forked child that the batchers in it are copies of its parent's.

A child has its parent's trio run in its memory, and shares its epoll instance and its sockets. A task of ours that ran
or was cancelled there would take the parent's sockets out of the epoll instance, and the parent would wait for them for
ever. So a batcher that was open when its process was forked does nothing in the child.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Final, Protocol
from weakref import WeakSet

__all__ = ["Forkable", "forget", "remember"]


class Forkable(Protocol):
    """Something that a forked child must not use."""

    @property
    def forked(self) -> Callable[[], None]:
        """Called in the child."""
        ...


# Functions that are called at a fork cannot be removed again: there is one for all batchers.
_OPEN: Final[WeakSet[Forkable]] = WeakSet()


def remember(what: Forkable) -> None:
    """Tell ``what`` of a fork, until it is forgotten or gone."""
    _OPEN.add(what)


def forget(what: Forkable) -> None:
    """End what `remember` began."""
    _OPEN.discard(what)


def _after_fork_in_child() -> None:
    for what in tuple(_OPEN):
        what.forked()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
