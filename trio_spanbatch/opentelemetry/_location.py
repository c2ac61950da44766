"""Where a span belongs: fixed when it starts.

The rules, the first that applies: the location of the local parent, if that has not ended; the innermost
`use_location`; the function ``location=``; the location of the local parent that has ended; the string ``location=``.

A parent that has ended does not bind anybody: a generator that is left early leaves its span behind as the current one,
for whatever runs in that context next, perhaps for another tenant. It only decides where nobody says anything.

Where the location of a span is kept
------------------------------------
The SDK calls ``on_start`` with the span and ``on_end`` with a ``ReadableSpan`` made on the spot, perhaps from a
finalizer of cyclic garbage, when all weak references to the span are dead. Both objects have the same ``SpanContext``,
and so has a ``NonRecordingSpan`` that carries the parent to another task. So the location is stored in the attributes
of that object, and lives as long as it does: a span that is never ended leaks nothing.

A context that was made again from the ids leads there too, by a table. If the original is gone and the span has not
ended, the table remembers it all the same, for the last `MAX_GONE` spans. Ids that two spans have at once lead nowhere.
A span that is not found was not seen starting, and has no location: it is dropped, since any guess could be wrong.

Local parents that are not known
--------------------------------
A parent that is local, and of which this processor has seen nothing, was not recorded: a sampler dropped it. Its
location is that of its trace, if this process has fixed one: otherwise a grandchild of a recorded root could go
elsewhere than the root. It counts as ended when all spans of the trace have. Traces are remembered for that, the last
`MAX_TRACES`. Where a trace has come in twice from outside (a client and a server in one process, two tenants), there is
no such thing as the location of the trace in this process, and the other rules apply: they know the tenant. Nor is
there where the processor has not seen how the trace began here: a root that was dropped, such as the loop of a worker,
may have children of many tenants, and none of them is a parent of another one.

A span whose location cannot be told (``location()`` raised) is dropped when it ends, and so are the children that
start before that: each of them might be put elsewhere.
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

__all__ = ["LocationFunction", "Locations", "NoLocation"]

LocationFunction: TypeAlias = Callable[[ReadableSpan, Context], str]

MAX_TRACES: Final = 10_000
MAX_GONE: Final = 10_000

_numbers: Final = itertools.count()


@attrs.frozen
class NoLocation:
    """In place of a location that could not be told.

    Attributes:
        why: What went wrong.
    """

    why: str


_Place: TypeAlias = "str | NoLocation"
_Key: TypeAlias = tuple[int, int]

_UNSEEN: Final = NoLocation(
    "it was not seen starting, and its location is unknown: add the processor to the TracerProvider before spans start"
)
_SAME_IDS: Final = NoLocation("another span with the same ids belongs to another location")


@attrs.define(eq=False)
class _Trace:
    """A trace that has been seen.

    Attributes:
        place: Where its spans belong; None if it has come in twice, to different places.
        open: Its spans that have not ended.
    """

    place: _Place | None
    open: set[_Started] = attrs.Factory(set)


@attrs.define(eq=False)
class _Started:
    """A span that has started."""

    place: _Place
    trace: _Trace
    # Asked whether the span still records: another processor may keep its end from us.
    span: Callable[[], Any]
    has_ended: bool = False

    def is_live(self, context: Context | None) -> bool:
        """Return whether it has not ended, as far as can be seen by what has it as its parent in ``context``."""
        if self.has_ended:
            return False
        span = self.span()
        if span is None:
            # A finalizer may start children of a span that weak references do not lead to any more, but the context.
            span = get_current_span(context)
        return bool(span.is_recording())


class _Mark:
    """Stands in the attributes of a ``SpanContext``, and lives as long as that does."""

    __slots__ = ("__weakref__", "started")

    def __init__(self, started: _Started) -> None:
        self.started = started

    def __reduce__(self) -> tuple[type[bool], tuple[()]]:
        # A context may be pickled, for a process that knows nothing of this module.
        return bool, ()


class _Reference(weakref.ref[_Mark]):
    """The way from the ids of a span to what is known about it."""

    __slots__ = ("key", "started")
    key: _Key
    started: _Started


class Locations:
    """Fixes the locations of spans when they start.

    Called in any thread, and inside of itself (by a finalizer or a signal handler that traces): everything that it
    remembers is read and written in single steps, and there is no lock.

    Args:
        location: A location, or a function that returns one.
        overruled: Called with the location of a `use_location` and the one of the live local parent, where they differ.
    """

    def __init__(self, location: str | LocationFunction, overruled: Callable[[str, str], None]) -> None:
        self._location = location if callable(location) else checked_location(location)
        self._overruled = overruled
        # The name of the attribute that marks are stored as: each processor has its own.
        self._name = f"_trio_spanbatch_{next(_numbers)}"
        self._by_ids: dict[_Key, _Reference] = {}
        self._gone: OrderedDict[_Key, _Started] = OrderedDict()
        self._traces: OrderedDict[int, _Trace] = OrderedDict()
        # Not as globals, which are gone when a span outlives them at the end of the program.
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

    def __len__(self) -> int:
        return len(self._by_ids)

    def start(self, span: ReadableSpan, parent_context: Context | None) -> None:
        """Fix the location of a span that starts now."""
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
            place, trace = wanted or self._said(span, parent_context) or place, None
        if place is None:
            assert isinstance(self._location, str), "a function always says something"
            place = self._location
        self._remember(span, context, place, trace or self._trace(context.trace_id, place, is_unknown))
        if wanted is not None and place != wanted and isinstance(place, str) and context.trace_flags.sampled:
            self._overruled(wanted, place)

    def end(self, span: ReadableSpan) -> _Place:
        """Return where a span that has ended belongs."""
        started = self._find(span.context)
        if started is None:
            return _UNSEEN
        started.has_ended = True
        started.trace.open.discard(started)
        self._gone.pop(_key(span.context), None)
        return started.place

    # -- the rules ---------------------------------------------------------------------------------------------

    def _said(self, span: ReadableSpan, parent_context: Context | None) -> _Place | None:
        """Return what the function says, if there is one."""
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

    # -- what is remembered ------------------------------------------------------------------------------------

    def _find(self, context: SpanContext) -> _Started | None:
        if (mark := self._mark(context)) is not None:
            return mark.started
        return self._find_by_ids(_key(context))

    def _find_by_ids(self, key: _Key) -> _Started | None:
        reference = self._by_ids.get(key)
        return self._gone.get(key) if reference is None else reference.started

    def _mark(self, context: SpanContext) -> _Mark | None:
        mark = getattr(context, self._name, None)
        # Of a context that was unpickled, it is something else.
        return mark if isinstance(mark, _Mark) else None

    def _remember(self, span: ReadableSpan, context: SpanContext, place: _Place, trace: _Trace) -> None:
        key = _key(context)
        started = by_ids = _Started(place, trace, _weakly(span))
        mark = self._mark(context)
        twin = self._find_by_ids(key) if mark is None else mark.started
        if twin is not None and not twin.has_ended and twin.place != place:
            by_ids = _Started(_SAME_IDS, trace, started.span)
            if mark is not None:
                # They even share the context, and nothing tells one from the other.
                started = by_ids
        if started is by_ids:
            trace.open.add(started)
        mark = _Mark(started)
        reference = _Reference(mark, self._forget)
        reference.key, reference.started = key, by_ids
        self._by_ids[key] = reference
        self._gone.pop(key, None)
        # If it has no attributes, the mark is gone at once.
        getattr(context, "__dict__", {})[self._name] = mark

    def _trace(self, trace_id: int, place: _Place, is_unknown: bool) -> _Trace:
        trace = self._traces.get(trace_id)
        if trace is None:
            trace = self._traces.setdefault(trace_id, _Trace(None if is_unknown else place))
            if len(self._traces) > MAX_TRACES:
                # Another thread may have made it shorter meanwhile, but not empty.
                self._traces.popitem(last=False)
        if trace.place != place:
            trace.place = None
        return trace


def _key(context: SpanContext) -> _Key:
    return context.trace_id, context.span_id


def _weakly(span: ReadableSpan) -> Callable[[], Any]:
    try:
        return weakref.ref(span)
    except TypeError:
        return _nothing


def _nothing() -> None:
    return None
