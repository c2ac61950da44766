"""`use_location`, and which one applies in the current context.

What a ``with use_location(...)`` sets is an element of a chain, from the innermost to the outermost one. A context
variable alone would not do, since a generator may leave its ``with`` at any time and anywhere. Trio closes an abandoned
async generator in a task of its own, where the variable of the context that the ``with`` was entered in cannot be put
back; a generator that the garbage collector closes may put it back in the middle of somebody else's ``with``. So
leaving marks the element, and elements that were left are skipped. But only in the context that they were entered in:
tasks that were started inside have a copy of it, and keep their location for as long as they run.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from contextvars import ContextVar, Token
from threading import get_ident
from typing import Final

from .._values import checked_location

__all__ = ["use_location", "used_location"]

_innermost: Final[ContextVar[_Use | None]] = ContextVar("trio_spanbatch.opentelemetry.use_location", default=None)
# Tokens of this variable tell in which context something happened. Its value means nothing.
_here: Final[ContextVar[None]] = ContextVar("trio_spanbatch.opentelemetry.here", default=None)
# Threads that are just changing the context. A finalizer that leaves a `use_location` then does not change it too: what
# it interrupts may put the other one back into the chain, and CPython 3.11, which may collect garbage in the middle of
# setting a variable, crashes if a finalizer sets another one of the same context. It is marked as left, and skipped.
_changing: Final[set[int]] = set()


def use_location(location: str) -> AbstractContextManager[None]:
    """Have spans that start inside of the ``with`` belong to ``location``, unless they have a live local parent.

    Tasks that are started inside inherit it (it is a context variable), whether by trio or by anyio, and so do the
    threads of ``trio.to_thread``. The innermost one counts::

        with use_location("main.agents.spans"):
            nursery.start_soon(agent)

    Do not ``yield`` inside of it, except in a function for ``contextlib.asynccontextmanager`` or ``contextmanager``:
    code that iterates over the generator would be inside too.

    Raises:
        InvalidLocationError: ``location`` is not a string, is empty or has more than 1,024 characters. What the
            exporter cannot send is found when a span ends there, and counted as ``invalid``.
    """
    return _UsedLocation(checked_location(location))


def used_location() -> str | None:
    """Return the location of the innermost `use_location` that the caller is in."""
    use = _innermost.get()
    if use is not None and use.has_left():
        thread = get_ident()
        if thread in _changing:
            use = _skip_left(use)
        else:
            _changing.add(thread)
            try:
                use = _innermost_use()
            finally:
                _changing.discard(thread)
    return None if use is None else use.location


class _Use:
    """One ``with use_location(...)`` that was entered."""

    __slots__ = ("_asked_by", "_entered_here", "_round", "is_left", "location", "outer", "owner")

    def __init__(self, owner: _UsedLocation, location: str, in_round: int, outer: _Use | None) -> None:
        self.owner = owner
        self.location = location
        self.outer = outer
        self._round = in_round
        self.is_left = False
        self._asked_by: int | None = None
        self._entered_here: Token[None] | None = _here.set(None)

    def has_left(self) -> bool:
        """Return whether it was left, here or elsewhere."""
        return self.is_left or self._round != self.owner.round

    def was_entered_here(self) -> bool:
        """Return whether this is the context that it was entered in, and not a copy."""
        thread = get_ident()
        interrupted, self._asked_by = self._asked_by, thread
        try:
            token = self._entered_here
            if token is None:
                return False
            # Possible in its own context only, and once.
            _here.reset(token)
            self._entered_here = _here.set(None)
        except ValueError:
            return False
        except RuntimeError:
            # It is just being asked: by this thread, which a signal handler or a finalizer has interrupted in its own
            # context, or by another one.
            return interrupted == thread
        finally:
            self._asked_by = interrupted
        return True

    def forget_where(self) -> None:
        """Let go of the context that it was entered in, where nothing leads to it any more.

        Nor does anything lead from it to outer ones: in copies of that context it is for good, and hides them. A task
        that starts the next one inside of its ``with``, for ever, would make the chain longer each time.
        """
        self._entered_here = self.outer = None


class _UsedLocation(AbstractContextManager[None]):
    """What `use_location` returns. It may be entered many times, also by several tasks at once."""

    def __init__(self, location: str) -> None:
        self._location = location
        self._inside = 0
        # Goes up whenever nobody is inside any more. What was entered in an earlier round has left, whoever knows it.
        self.round = 0

    def __enter__(self) -> None:
        thread = get_ident()
        interrupts = thread in _changing
        _changing.add(thread)
        try:
            # In one step, as no function is called in between.
            self._inside += 1
            in_round = self.round
            outer = _innermost_use()
            if outer is not None and outer.outer is not None:
                # A loop over generators that are left early would make the chain longer each time.
                outer.outer = _skip_left(outer.outer)
            _innermost.set(_Use(self, self._location, in_round, outer))
        finally:
            if not interrupts:
                _changing.discard(thread)

    def __exit__(self, *_: object) -> None:
        thread = get_ident()
        interrupts = thread in _changing
        _changing.add(thread)
        try:
            if not interrupts:
                self._leave_here()
            # Whatever has not been found is left in another context than it was entered in. If it was entered several
            # times, nobody can know which one is left before all of them are.
            self._inside -= 1
            if not self._inside:
                self.round += 1
        finally:
            if not interrupts:
                _changing.discard(thread)

    def _leave_here(self) -> None:
        use = innermost = _innermost.get()
        while use is not None and not (use.owner is self and not use.has_left() and use.was_entered_here()):
            use = use.outer
        if use is None:
            return
        use.is_left = True
        if use is innermost:
            _innermost.set(_skip_left(use.outer))
            use.forget_where()

    def __repr__(self) -> str:
        return f"use_location({self._location!r})"


def _innermost_use() -> _Use | None:
    innermost = _innermost.get()
    use = _skip_left(innermost)
    if use is not innermost:
        # Tasks that are started from now on do not inherit it: they could not tell that it was left.
        _innermost.set(use)
    return use


def _skip_left(use: _Use | None) -> _Use | None:
    while use is not None and use.has_left() and use.was_entered_here():
        use = use.outer
    return use
