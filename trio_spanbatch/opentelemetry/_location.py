"""Determine the location of a span when it starts.

The first of these that applies: the location of the local parent, if it has not ended; the innermost `use_location`;
the function ``location=``; the location of the local parent that has ended; the string ``location=``. A parent that has
ended comes late because a generator that is left early leaves its span current for the code that runs next, which may
work for another tenant.

The location is stored in the attributes of the span's ``SpanContext``. The span of ``on_start``, the ``ReadableSpan``
of ``on_end`` and a ``NonRecordingSpan`` that carries the parent to another task share that object, and it is still
there when a finalizer ends the span and all weak references to it are dead. A span that never ends leaks nothing.

A context rebuilt from its ids is found by a table, which also remembers the last `MAX_GONE` spans that have not ended
but whose context is gone. If two spans share their ids, these give no location. A span that is not found is dropped,
as any location would be a guess.

A local parent that this processor has not seen was dropped by a sampler. It has the location of its trace and has ended
when all spans of the trace have; the last `MAX_TRACES` traces are remembered. The trace has no location if it entered
this process twice at different locations, or if the processor did not see its first span here: a dropped root, such as
the loop of a worker, may have children of many tenants.
"""

from __future__ import annotations

import itertools
import weakref
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Final, TypeAlias

import attrs
from opentelemetry.context import Context, get_current
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import SpanContext, get_current_span

from .._errors import InvalidLocationError
from .._spans.checks import shown
from .._values import checked_location
from ._use_location import used_location

LocationFunction: TypeAlias = Callable[[ReadableSpan, Context], str]

MAX_TRACES: Final = 10_000
MAX_GONE: Final = 10_000

_numbers: Final = itertools.count()


@attrs.frozen
class NoLocation:
    """Stands for a location that could not be determined."""

    why: str  # the reason, for the log


_Place: TypeAlias = "str | NoLocation"
_Key: TypeAlias = tuple[int, int]

_UNSEEN: Final = NoLocation(
    "its location is unknown, as the processor did not see it start: add the processor to the TracerProvider before "
    "spans start"
)
_SAME_IDS: Final = NoLocation("another span with the same ids belongs to another location")


@attrs.define(eq=False)
class _Trace:
    """A trace of which the processor has seen spans."""

    place: _Place | None  # the location of its spans; None if it has none, see above
    open: set[_Started] = attrs.Factory(set)  # its spans that have not ended


@attrs.define(eq=False)
class _Started:
    place: _Place
    trace: _Trace
    # To ask the span itself whether it has ended: another processor may withhold on_end.
    span: Callable[[], Any]
    has_ended: bool = False

    def is_live(self, context: Context | None) -> bool:
        """Return whether it has not ended. ``context`` is that of a child which starts."""
        if self.has_ended:
            return False
        span = self.span()
        if span is None:
            # In a finalizer weak references are dead already, but the context still has the span.
            span = get_current_span(context)
        return bool(span.is_recording())


@attrs.define(eq=False)
class _Mark:
    """An attribute of a ``SpanContext``, which lives as long as the context does."""

    started: _Started

    def __reduce__(self) -> tuple[type[bool], tuple[()]]:
        # A context may be unpickled in a process that does not have this module.
        return bool, ()


class _Reference(weakref.ref[_Mark]):
    """Leads from the ids of a span to its `_Started`, as long as its mark exists."""

    __slots__ = ("key", "started")
    key: _Key
    started: _Started


class Locations:
    """Determines and remembers the locations of spans.

    It is thread-safe and reentrant (a finalizer or a signal handler may trace): its state is read and written in single
    steps, without a lock. ``overruled`` is called with the locations of the `use_location` and of the live local parent
    if they differ.
    """

    def __init__(self, location: str | LocationFunction, overruled: Callable[[str, str], None]) -> None:
        self._location = location if callable(location) else checked_location(location)
        self._overruled = overruled
        # Each processor stores its marks under a different attribute name.
        self._name = f"_trio_spanbatch_{next(_numbers)}"
        self._by_ids: dict[_Key, _Reference] = {}
        self._gone: OrderedDict[_Key, _Started] = OrderedDict()
        self._traces: OrderedDict[int, _Trace] = OrderedDict()
        # Captured here: globals may be gone when the interpreter exits and a span outlives them.
        by_ids, gone, most = self._by_ids, self._gone, MAX_GONE

        def forget(reference: _Reference) -> None:
            started = reference.started
            if by_ids.get(reference.key) is reference:
                by_ids.pop(reference.key, None)
                if not started.has_ended:
                    gone[reference.key] = started
                    if len(gone) > most:
                        gone.popitem(last=False)
            started.trace.open.discard(started)

        self._forget = forget

    def start(self, span: ReadableSpan, parent_context: Context | None) -> None:
        wanted = used_location()
        context = span.context
        parent = span.parent
        place: _Place | None = None
        trace: _Trace | None = None
        is_live = is_unknown = False
        if parent is not None and not parent.is_remote:
            started = self._find(parent)
            if started is not None:
                place, trace, is_live = started.place, started.trace, started.is_live(parent_context)
            elif (trace := self._traces.get(parent.trace_id)) is not None:
                place, is_live = trace.place, trace.place is not None and bool(trace.open)
            else:
                is_unknown = True
        if not is_live:
            place, trace = wanted or self._call_location(span, parent_context) or place, None
        if place is None:
            assert isinstance(self._location, str), "a function always returns a location or raises"
            place = self._location
        self._remember(span, context, place, trace or self._trace(context.trace_id, place, is_unknown))
        if wanted is not None and place != wanted and isinstance(place, str) and context.trace_flags.sampled:
            self._overruled(wanted, place)

    def end(self, span: ReadableSpan) -> _Place:
        started = self._find(span.context)
        if started is None:
            return _UNSEEN
        started.has_ended = True
        started.trace.open.discard(started)
        self._gone.pop(_key(span.context), None)
        return started.place

    def _call_location(self, span: ReadableSpan, parent_context: Context | None) -> _Place | None:
        """Return the result of the function ``location=``; None if it is a string."""
        if not callable(self._location):
            return None
        try:
            location = self._location(span, get_current() if parent_context is None else parent_context)
        except Exception as error:
            return NoLocation(f"location() raised {shown(error)}")
        try:
            return checked_location(location)
        except InvalidLocationError as error:
            return NoLocation(f"location() returned {shown(location)}: {error}")

    def _find(self, context: SpanContext) -> _Started | None:
        if (mark := self._mark(context)) is not None:
            return mark.started
        key = _key(context)
        reference = self._by_ids.get(key)
        return self._gone.get(key) if reference is None else reference.started

    def _mark(self, context: SpanContext) -> _Mark | None:
        mark = getattr(context, self._name, None)
        # An unpickled context has a bool there.
        return mark if isinstance(mark, _Mark) else None

    def _remember(self, span: ReadableSpan, context: SpanContext, place: _Place, trace: _Trace) -> None:
        key = _key(context)
        started = by_ids = _Started(place, trace, _weakly(span))
        twin = self._find(context)
        if twin is not None and not twin.has_ended and twin.place != place:
            by_ids = _Started(_SAME_IDS, trace, started.span)
            if self._mark(context) is not None:
                # They share the context itself, so they cannot be told apart.
                started = by_ids
        if started is by_ids:
            trace.open.add(started)
        mark = _Mark(started)
        reference = _Reference(mark, self._forget)
        reference.key, reference.started = key, by_ids
        self._by_ids[key] = reference
        self._gone.pop(key, None)
        # If the context cannot have attributes, the mark is freed here, and the span is in the table of gone ones.
        getattr(context, "__dict__", {})[self._name] = mark

    def _trace(self, trace_id: int, place: _Place, is_unknown: bool) -> _Trace:
        trace = self._traces.get(trace_id)
        if trace is None:
            trace = self._traces.setdefault(trace_id, _Trace(None if is_unknown else place))
            if len(self._traces) > MAX_TRACES:
                # Another thread may have removed a trace meanwhile, but the mapping is never empty.
                self._traces.popitem(last=False)
        if trace.place != place:
            trace.place = None
        return trace


def locations_of(context: SpanContext) -> set[str]:
    """Return the locations that processors have determined for a span."""
    marks = (value for value in tuple(getattr(context, "__dict__", {}).values()) if isinstance(value, _Mark))
    return {mark.started.place for mark in marks if isinstance(mark.started.place, str)}


def _key(context: SpanContext) -> _Key:
    return context.trace_id, context.span_id


def _weakly(span: ReadableSpan) -> Callable[[], Any]:
    try:
        return weakref.ref(span)
    except TypeError:
        return lambda: None
