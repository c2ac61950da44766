"""`Tracer`, and the spans that it makes.

A span knows the live span around it, so that a span that a generator left behind in its consumer's context is skipped
once it has ended. A span that ends forgets the ended spans around it; otherwise tasks that each start the next one
inside a span would make an ever longer chain.
"""

from __future__ import annotations

import random
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Mapping
from contextvars import ContextVar
from threading import get_ident
from types import TracebackType
from typing import TYPE_CHECKING, Any, ClassVar, Final, TypeVar, overload

import attrs
import trio

from .._batcher import SpanBatcher
from .._exceptions import error_part, is_cancellation
from .._intake import Drop, Intake
from .._reporting.throttle import Throttle
from .._spans.checks import shown
from .._spans.records import (
    InstrumentationScope,
    Resource,
    SpanContext,
    SpanEvent,
    SpanKind,
    SpanLink,
    Status,
    StatusCode,
)
from .._values import checked_location
from ._traced import Function, decorator

if TYPE_CHECKING:
    from typing import Self

_current: Final[ContextVar[ActiveSpan | None]] = ContextVar("trio_spanbatch.tracing.current_span", default=None)

_SAMPLED: Final = 1

_T = TypeVar("_T")


def current_span() -> ActiveSpan | None:
    """Return the innermost span of a `Tracer` that the caller is in and that has not ended; None if there is none."""
    return _first_live(_current.get())


def _first_live(span: ActiveSpan | None) -> ActiveSpan | None:
    while span is not None and span.end_time is not None:
        span = span._outer
    return span


@attrs.define(eq=False, repr=False)
class ActiveSpan:
    """A span of a `Tracer`, as a context manager that is entered once. It has the attributes of `Span`.

    It may be changed until it ends, in any thread; later changes have no effect on what is sent.
    """

    _tracer: Tracer
    name: str
    context: SpanContext
    parent: SpanContext | None
    location: str
    kind: SpanKind
    attributes: dict[str, Any]
    links: tuple[SpanLink, ...]
    events: list[SpanEvent] = attrs.field(factory=list, init=False)
    status: Status = attrs.field(default=Status(), init=False)
    start_time: int | None = attrs.field(default=None, init=False)
    end_time: int | None = attrs.field(default=None, init=False)
    _outer: ActiveSpan | None = attrs.field(default=None, init=False)

    dropped_attributes: ClassVar[int] = 0
    dropped_events: ClassVar[int] = 0
    dropped_links: ClassVar[int] = 0

    @property
    def resource(self) -> Resource | None:
        """The tracer's resource."""
        return self._tracer.resource

    @property
    def instrumentation_scope(self) -> InstrumentationScope | None:
        """The tracer's scope."""
        return self._tracer.scope

    def set_attribute(self, key: str, value: Any) -> None:
        """Set an attribute. See `Span` for the types of values."""
        self.attributes[_checked("key", key, str)] = value

    def set_attributes(self, attributes: Mapping[str, Any]) -> None:
        """Set several attributes."""
        self.attributes.update(_checked("attributes", attributes, Mapping))

    def add_event(self, name: str, attributes: Mapping[str, Any] | None = None, timestamp: int | None = None) -> None:
        """Add an event; ``timestamp`` is in nanoseconds since the Unix epoch, by default now."""
        name, attributes = _checked("name", name, str), _checked("attributes", attributes or {}, Mapping)
        timestamp = time.time_ns() if timestamp is None else _checked("timestamp", timestamp, int)
        self.events.append(SpanEvent(name, timestamp, attributes))

    def record_exception(self, error: BaseException, attributes: Mapping[str, Any] | None = None) -> None:
        """Add the event ``exception`` with the type, message and traceback of ``error``. The status does not change."""
        details = {
            "exception.type": _name_of(_checked("error", error, BaseException)),
            "exception.message": _message_of(error),
            "exception.stacktrace": "".join(traceback.format_exception(error)),
        }
        self.add_event("exception", {**details, **_checked("attributes", attributes or {}, Mapping)})

    def set_status(self, status: StatusCode | Status, description: str | None = None) -> None:
        """Set the status. An exception that leaves the span's block sets it too, unless it is ``StatusCode.OK``."""
        if not isinstance(status, Status):
            description = None if description is None else _checked("description", description, str)
            status = Status(_checked("status", status, StatusCode, ", for instance StatusCode.ERROR"), description)
        self.status = status

    @trio.lowlevel.enable_ki_protection
    def __enter__(self) -> Self:
        if self.start_time is not None:
            raise RuntimeError(f"the span {self.name!r} was entered before; call tracer.span() again for another span")
        self._outer = current_span()
        self.start_time = time.time_ns()
        _current.set(self)
        return self

    @trio.lowlevel.enable_ki_protection
    def __exit__(
        self, _kind: type[BaseException] | None, error: BaseException | None, _traceback: TracebackType | None
    ) -> None:
        if error is not None:
            self._note(error)
        self.end_time = time.time_ns()
        self._outer = _first_live(self._outer)
        self._tracer._take(self)
        # If there was a `yield` in the block, this may be another context, and another span may be current here. And a
        # finalizer must not set context variables: CPython 3.11 may crash. A span that stays current is skipped.
        if _current.get() is self and not isinstance(error, GeneratorExit):
            _current.set(self._outer)

    def _note(self, error: BaseException) -> None:
        """Record why the block ended: an error, or a cancellation; closing a generator is neither."""
        try:
            failure = error_part(error)
            if failure is not None:
                self.record_exception(failure)
                if self.status.status_code is not StatusCode.OK:
                    self.status = Status(StatusCode.ERROR, f"{_name_of(failure)}: {_message_of(failure)}")
            elif is_cancellation(error):
                self.set_attribute("trio.cancelled", True)
        except Exception:
            # An exception may be of any class, with any behavior.
            self.status = Status(StatusCode.ERROR, type(error).__qualname__)

    def __repr__(self) -> str:
        state = "not entered" if self.start_time is None else "active" if self.end_time is None else "ended"
        return f"<ActiveSpan {shown(self.name)} at {self.location!r}, {state}>"


def _checked(name: str, value: _T, kind: Any, remedy: str = "") -> _T:
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        article = "an" if kind.__name__[0] in "AEIOUaeiou" else "a"
        raise TypeError(f"{name} is {shown(value)}; it must be {article} {kind.__name__}{remedy}")
    return value


def _name_of(error: BaseException) -> str:
    kind = type(error)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def _message_of(error: BaseException) -> str:
    try:
        return str(error)
    except Exception as failure:
        return f"<its message raised {type(failure).__qualname__}>"


class Tracer:
    """Makes spans, and adds them to a batcher when they end.

    Make one for a batcher, before or after it is entered. A span's parent is the innermost span of the same batcher
    that the code is in and that has not ended; tasks inherit it from the code that starts them. A span that the batcher
    does not accept, because a queue is full or it is not open, is dropped and counted in `dropped`; a warning is logged
    at most every 30 seconds. Ending a span never blocks, never raises and is no checkpoint. Spans may end in any
    thread; outside of trio's they are handed over.

    Args:
        batcher: The batcher.
        location: The location of spans without one and without a parent.
        resource: The source of the spans; by default the one that the ``OTEL_*`` variables describe.
        scope: The code that makes the spans.
        rng: The source of ids, to make a run repeatable; by default the operating system.

    Raises:
        TypeError: An argument is of the wrong type.
        InvalidLocationError: ``location`` is not a string of 1 to 1,024 characters.
    """

    def __init__(
        self,
        batcher: SpanBatcher,
        *,
        location: str = "default",
        resource: Resource | None = None,
        scope: InstrumentationScope | None = None,
        rng: random.Random | None = None,
    ) -> None:
        self.batcher: SpanBatcher = _checked("batcher", batcher, SpanBatcher)
        self.location: str = checked_location(location)
        self.resource: Resource | None = resource
        if resource is not None:
            _checked("resource", resource, Resource, ", for instance Resource({'service.name': 'shop'})")
        self.scope: InstrumentationScope | None = scope
        if scope is not None:
            _checked("scope", scope, InstrumentationScope, ", for instance InstrumentationScope('shop', '1.0')")
        self._ids = random.SystemRandom() if rng is None else _checked("rng", rng, random.Random)
        self._runtime = batcher._runtime
        self._intake = Intake(batcher, self._account)
        self._dropped = 0
        # Reentrant, as a finalizer may end a span while its thread holds it.
        self._lock = threading.RLock()
        self._warnings = Throttle(time.monotonic)

    @property
    def dropped(self) -> int:
        """The number of spans that the batcher did not accept."""
        return self._dropped

    def span(
        self,
        name: str,
        *,
        location: str | None = None,
        kind: SpanKind = SpanKind.INTERNAL,
        attributes: Mapping[str, Any] | None = None,
        links: Iterable[SpanLink] = (),
        parent: SpanContext | None = None,
    ) -> ActiveSpan:
        """Return a span that lasts as long as its ``with`` block.

        If an exception leaves the block, the status is ``StatusCode.ERROR``, with an event ``exception``. If the block
        is cancelled, the attribute ``trio.cancelled`` is true instead and the status is unchanged; an exception group
        is cancelled if it contains only cancellations, else its other exceptions are the error. Closing a generator
        that waits inside is no error. Do not ``yield`` inside it, except in functions decorated with
        ``contextlib.contextmanager`` or ``asynccontextmanager``: use `traced` for generators.

        Args:
            name: Its name.
            location: Its location; by default the parent's, or the tracer's. If it differs from the parent's, the span
                begins a trace of its own.
            kind: Its role in communication between processes.
            attributes: Its first attributes.
            links: Related spans.
            parent: A parent in another process, instead of the span that the code is in.

        Raises:
            TypeError: An argument is of the wrong type.
            InvalidLocationError: ``location`` is not a string of 1 to 1,024 characters.
        """
        name, kind = _checked("name", name, str), _checked("kind", kind, SpanKind, ", for instance SpanKind.CLIENT")
        attributes = _checked("attributes", {} if attributes is None else attributes, Mapping)
        links = [_checked("an item of links", link, SpanLink) for link in _checked("links", links, Iterable)]
        if parent is not None:
            _checked("parent", parent, SpanContext, "; the context of a span is span.context")
        above = current_span() if parent is None else None
        while above is not None and above._tracer.batcher is not self.batcher:
            above = _first_live(above._outer)
        if location is not None:
            location = checked_location(location)
        else:
            location = self.location if above is None else above.location
        if above is not None and location == above.location:
            parent = above.context
        context = SpanContext(
            self._new_id(128) if parent is None else parent.trace_id,
            self._new_id(64),
            trace_flags=_SAMPLED if parent is None else parent.trace_flags | _SAMPLED,
            trace_state="" if parent is None else parent.trace_state,
        )
        return ActiveSpan(self, name, context, parent, location, kind, dict(attributes), tuple(links))

    @overload
    def traced(self, function: Function, /) -> Function: ...

    @overload
    def traced(
        self,
        name: str | None = None,
        /,
        *,
        location: str | None = None,
        kind: SpanKind = SpanKind.INTERNAL,
        attributes: Mapping[str, Any] | None = None,
        arguments: bool | Iterable[str] = False,
    ) -> Callable[[Function], Function]: ...

    def traced(
        self,
        given: Callable[..., Any] | str | None = None,
        /,
        *,
        location: str | None = None,
        kind: SpanKind = SpanKind.INTERNAL,
        attributes: Mapping[str, Any] | None = None,
        arguments: bool | Iterable[str] = False,
    ) -> Any:
        """Decorate a function so that each call is a span: a function, async function, generator or async generator.

        A generator's span lasts from its first step until it ends or is closed. It runs in a copy of the context in
        which the first step is made, so its span and all other context variables that it sets do not reach its
        consumer; nor do variables that the consumer sets later reach the generator. Its consumer should close it with
        ``contextlib.aclosing``, like any async generator. ::

            @tracer.traced
            async def agent(question): ...

            @tracer.traced("chat", kind=SpanKind.CLIENT)
            async def tokens(prompt):
                yield ...

        Args:
            given: The name of the spans; by default the qualified name of the function.
            location: See `span`.
            kind: See `span`.
            attributes: See `span`.
            arguments: True to record all arguments as attributes ``argument.NAME``, or the names of those to record.
        """

        def open_span(name: str, attributes: Mapping[str, Any]) -> ActiveSpan:
            return self.span(name, location=location, kind=kind, attributes=attributes)

        return decorator(given, open_span, attributes, arguments)

    def _new_id(self, bits: int) -> int:
        return self._ids.getrandbits(bits) or 1

    def _take(self, span: ActiveSpan) -> None:
        if not self._intake.is_open():
            self._account(Drop("already_shutdown", "the batcher is not open"))
        elif self._runtime.thread_id == get_ident():
            self._account(self._intake.add(span.location, span))
        else:
            self._account(self._intake.hand_over(span.location, span))

    def _account(self, drop: Drop | None) -> None:
        if drop is None:
            return
        with self._lock:
            self._dropped += 1
        if self._warnings.allows():
            self._runtime.logger.warning(
                "a Tracer dropped a span, %d so far: %s; logged at most every 30 s", self._dropped, drop.detail
            )

    def __repr__(self) -> str:
        return f"<Tracer for {self.batcher!r}: {self._dropped} dropped>"
