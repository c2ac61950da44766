"""Where a span belongs: fixed when it starts, kept until it ends, and as long as it may become somebody's parent.

The rules, the first that applies: the location of the local parent; the innermost `use_location`; what the processor
was given; ``"default"``, which is what it is given if it is given nothing.

Why a span is found again by its ids
------------------------------------
The SDK calls ``on_start`` with the span and ``on_end`` with another object, a ``ReadableSpan`` made on the spot. A
parent, too, may be known by its ids only: programs carry a ``NonRecordingSpan(context)`` to another thread or task. So
the place of a span stands under its trace id and span id, in an entry that goes away with the span object itself. A
span that is never ended leaks nothing, and one that has ended still lends its location to children for as long as
anybody can name it as their parent, which takes a context that holds it.

Local parents that are not known
--------------------------------
A parent that is local, and of which this processor has seen nothing, was not recorded (a sampler dropped it), or is a
bare context that has outlived its span. Its location is that of its trace, if this process has fixed one: otherwise a
grandchild of a recorded root could go elsewhere than the root. Traces are remembered for that, the last
`MAX_TRACES`. Where a trace has come in twice from outside (a client and a server in one process, two tenants), there is
no such thing as the location of the trace in this process, and the other rules apply: they know the tenant.

A span whose location cannot be told (``location()`` raised) is dropped when it ends, and so are its local children:
each of them might be put elsewhere, and a trace is never split.
"""

from __future__ import annotations

import weakref
from collections import OrderedDict
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from contextvars import ContextVar, Token
from typing import Any, Final, TypeAlias

import attrs
from opentelemetry.context import Context, get_current
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import SpanContext

from .._errors import InvalidLocationError
from .._location_name import plain_location as checked_location
from ..otlp.checks import shown

__all__ = ["LocationFunction", "Locations", "NoLocation", "use_location"]

LocationFunction: TypeAlias = Callable[[ReadableSpan, Context], str]

MAX_TRACES: Final = 10_000

_innermost: Final[ContextVar[str | None]] = ContextVar("trio_spanbatch.opentelemetry.use_location", default=None)


def use_location(location: str) -> AbstractContextManager[None]:
    """Have spans that start inside of the ``with`` belong to ``location``, unless they have a local parent.

    Tasks that are started inside inherit it (it is a context variable), whether by trio or by anyio, and so do the
    threads of ``trio.to_thread``. The innermost one counts::

        with use_location("main.agents.spans"):
            nursery.start_soon(agent)

    Raises:
        InvalidLocationError: ``location`` is no string, empty, or has more than 1,024 characters. What the exporter
            cannot send is found when a span ends there, and counted as ``invalid``.
    """
    return _UsedLocation(checked_location(location))


class _UsedLocation(AbstractContextManager[None]):
    def __init__(self, location: str) -> None:
        self._location = location
        self._tokens: list[Token[str | None]] = []

    def __enter__(self) -> None:
        self._tokens.append(_innermost.set(self._location))

    def __exit__(self, *_: object) -> None:
        # An async generator may be closed in another context than it ran in. There is nothing to put back there.
        with suppress(ValueError):
            _innermost.reset(self._tokens.pop())

    def __repr__(self) -> str:
        return f"use_location({self._location!r})"


@attrs.frozen
class NoLocation:
    """In place of a location that could not be told.

    Attributes:
        why: What went wrong.
    """

    why: str


_Place: TypeAlias = "str | NoLocation"
_Key: TypeAlias = tuple[int, int]


class _Started(weakref.ref[Any]):
    """A span that has started, and its place."""

    __slots__ = ("key", "place")
    key: _Key
    place: _Place


class Locations:
    """Fixes the locations of spans when they start.

    Called in any thread, and inside of itself (by a finalizer or a signal handler that traces): everything that it
    remembers is read and written in single steps, and there is no lock.
    """

    def __init__(self, location: str | LocationFunction) -> None:
        self._location = location if callable(location) else checked_location(location)
        self._started: dict[_Key, _Started] = {}
        # None for a trace that has come in twice, to different places.
        self._traces: OrderedDict[int, _Place | None] = OrderedDict()
        started = self._started

        def forget(entry: _Started) -> None:
            if started.get(entry.key) is entry:
                started.pop(entry.key, None)

        self._forget = forget

    def __len__(self) -> int:
        return len(self._started)

    def start(self, span: ReadableSpan, parent_context: Context | None) -> None:
        """Fix the location of a span that starts now."""
        context = span.context
        entry = _Started(span, self._forget)
        entry.key = context.trace_id, context.span_id
        entry.place = self._place(span, parent_context)
        self._started[entry.key] = entry

    def of(self, span: ReadableSpan) -> _Place:
        """Return where a span that has ended belongs.

        One that had started before the processor was there is placed now.
        """
        context = span.context
        entry = self._started.get((context.trace_id, context.span_id))
        return self._place(span, None) if entry is None else entry.place

    def _place(self, span: ReadableSpan, parent_context: Context | None) -> _Place:
        parent = span.parent
        if parent is not None and not parent.is_remote:
            place = self._place_of_parent(parent)
            if place is not None:
                return place
        place = _innermost.get() or self._given(span, parent_context)
        self._remember_trace(span.context.trace_id, place)
        return place

    def _place_of_parent(self, parent: SpanContext) -> _Place | None:
        entry = self._started.get((parent.trace_id, parent.span_id))
        return self._traces.get(parent.trace_id) if entry is None else entry.place

    def _given(self, span: ReadableSpan, parent_context: Context | None) -> _Place:
        if not callable(self._location):
            return self._location
        try:
            location = self._location(span, get_current() if parent_context is None else parent_context)
        except Exception as error:
            return NoLocation(f"location() raised {shown(error)}")
        try:
            return checked_location(location)
        except InvalidLocationError as error:
            return NoLocation(f"location() returned {shown(location)}: {error}")

    def _remember_trace(self, trace_id: int, place: _Place) -> None:
        if self._traces.setdefault(trace_id, place) != place:
            self._traces[trace_id] = None
        if len(self._traces) > MAX_TRACES:
            # Another thread may have made it shorter meanwhile, but not empty.
            self._traces.popitem(last=False)
