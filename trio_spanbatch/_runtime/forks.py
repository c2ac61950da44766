"""Disables copies of open batchers in forked child processes.

A child has a copy of its parent's trio run and shares its epoll instance and its sockets. A task of the batcher that
ran or was cancelled there would remove the parent's sockets from the epoll instance, and the parent would wait for them
forever. So a batcher that was open when its process was forked does nothing in the child.
"""

from __future__ import annotations

import os
from typing import Final, Protocol
from weakref import WeakSet


class Forkable(Protocol):
    """An object that a forked child must not use."""

    def forked(self) -> None:
        """Called in the child."""


# Functions registered with os.register_at_fork cannot be removed, so one serves all batchers.
_OPEN: Final[WeakSet[Forkable]] = WeakSet()


def remember(forkable: Forkable) -> None:
    """Call ``forkable.forked`` in forked children, until it is forgotten or garbage-collected."""
    _OPEN.add(forkable)


def forget(forkable: Forkable) -> None:
    """Undo `remember`."""
    _OPEN.discard(forkable)


def _after_fork_in_child() -> None:
    for forkable in tuple(_OPEN):
        forkable.forked()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
