"""`use_location`, and which of them applies in the current context.

Entering adds an element to a chain, from the innermost to the outermost; a context variable holds the innermost.
Resetting the variable on exit would not be enough: trio closes an abandoned async generator in another task, where the
variable of the original context cannot be reset, and the garbage collector may close a generator inside another
``with``. So exiting marks the element, and elements that were left are skipped, but only in the context in which they
were entered: tasks that were started inside have a copy of the context and keep their location.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from contextlib import AbstractContextManager, ContextDecorator
from contextvars import ContextVar, Token
from threading import get_ident
from typing import Any, Final, TypeVar, cast

import attrs

from .._values import checked_location

_Function = TypeVar("_Function", bound=Callable[..., Any])

_innermost: Final[ContextVar[_Use | None]] = ContextVar("trio_spanbatch.opentelemetry.use_location", default=None)
# Only its tokens are used: each belongs to the context in which it was made.
_here: Final[ContextVar[None]] = ContextVar("trio_spanbatch.opentelemetry.here", default=None)
# Threads that are changing the context. A finalizer that exits a `use_location` meanwhile only marks it: the code which
# it interrupts may put the element back into the chain, and CPython 3.11, which may collect garbage while it sets a
# variable, crashes if a finalizer sets another variable of the same context.
_changing: Final[set[int]] = set()


def use_location(location: str) -> LocationContext:
    """Set the location of spans that start inside the ``with``, unless they have a live local parent.

    It is a context variable: tasks that trio or anyio starts inside inherit it, and so do the threads of
    ``trio.to_thread``. The innermost one applies::

        with use_location("main.agents.spans"):
            nursery.start_soon(agent)

    It is also a decorator, of functions and async functions.

    Do not ``yield`` inside it, except in a function decorated with ``contextlib.asynccontextmanager`` or
    ``contextmanager``: it would also apply to the code that iterates over the generator.

    Raises:
        InvalidLocationError: ``location`` is not a string, is empty or has more than 1,024 characters. If only the
            exporter rejects it, the spans that end there are counted as ``invalid``.
    """
    return LocationContext(checked_location(location))


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
    return None if use is None else use.owner.location


@attrs.define(eq=False)
class _Use:
    """An element of the chain: a ``with use_location(...)`` that was entered."""

    owner: LocationContext
    outer: _Use | None
    _round: int
    is_left: bool = False
    _asked_by: int | None = None
    _entered_here: Token[None] | None = attrs.field(init=False, factory=lambda: _here.set(None))

    def has_left(self) -> bool:
        return self.is_left or self._round != self.owner.round

    def was_entered_here(self) -> bool:
        """Return whether this is the context in which it was entered, not a copy."""
        thread = get_ident()
        interrupted, self._asked_by = self._asked_by, thread
        try:
            token = self._entered_here
            if token is None:
                return False
            # A token can be used once, and only in the context in which it was made.
            _here.reset(token)
            self._entered_here = _here.set(None)
        except ValueError:
            return False
        except RuntimeError:
            # The token is in use: by this thread, interrupted by a signal handler or finalizer in the same context,
            # or by another thread, in another context.
            return interrupted == thread
        finally:
            self._asked_by = interrupted
        return True

    def forget_where(self) -> None:
        """Release the context in which it was entered, and the outer elements.

        In copies of that context it stays and hides the outer ones. Otherwise tasks that each start the next one
        inside their ``with`` would make the chain ever longer.
        """
        self._entered_here = self.outer = None


class LocationContext(ContextDecorator, AbstractContextManager[None]):
    """The result of `use_location`. It can be entered repeatedly, also by several tasks at once."""

    def __init__(self, location: str) -> None:
        self.location = location
        self._inside = 0
        # Incremented when the last one exits: elements of earlier rounds were all left.
        self.round: int = 0

    def __enter__(self) -> None:
        thread = get_ident()
        interrupts = thread in _changing
        _changing.add(thread)
        try:
            # Atomic, as no function is called in between.
            self._inside += 1
            in_round = self.round
            outer = _innermost_use()
            if outer is not None and outer.outer is not None:
                # Otherwise a loop over generators that are left early would make the chain ever longer.
                outer.outer = _skip_left(outer.outer)
            _innermost.set(_Use(self, outer, in_round))
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
            # An element that was not found was entered in another context. If there are several, it is unknown which
            # one is left until all are.
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

    def __call__(self, function: _Function) -> _Function:
        """Decorate a function or an async function, so that the location is set while it runs.

        Raises:
            TypeError: ``function`` is a generator, which would set the location of the code that iterates over it.
        """
        if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
            raise TypeError(f"{function.__qualname__} is a generator; use `with {self!r}:` inside it, around no yield")
        if not inspect.iscoroutinefunction(function):
            return super().__call__(function)

        @functools.wraps(function)
        async def run(*args: Any, **kwargs: Any) -> Any:
            with self:
                return await function(*args, **kwargs)

        return cast(_Function, run)

    def __repr__(self) -> str:
        return f"use_location({self.location!r})"


def _innermost_use() -> _Use | None:
    innermost = _innermost.get()
    use = _skip_left(innermost)
    if use is not innermost:
        # Tasks that start later must not inherit it: in a copy of the context it does not count as left.
        _innermost.set(use)
    return use


def _skip_left(use: _Use | None) -> _Use | None:
    while use is not None and use.has_left() and use.was_entered_here():
        use = use.outer
    return use
