"""`span` and `traced`: spans of OpenTelemetry with the words of `trio_spanbatch.tracing`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from typing import Any, overload

from opentelemetry import trace

from .._exceptions import error_part, is_cancellation
from .._spans.checks import shown
from .._spans.records import SpanKind
from .._values import checked_location
from .._version import __version__
from ..tracing._traced import Function, decorator
from ._location import locations_of
from ._use_location import use_location


def span(
    name: str,
    *,
    location: str | None = None,
    kind: trace.SpanKind | SpanKind = trace.SpanKind.INTERNAL,
    attributes: Mapping[str, Any] | None = None,
    tracer: trace.Tracer | None = None,
) -> AbstractContextManager[trace.Span]:
    """Start a span of OpenTelemetry that lasts as long as the ``with`` block and is the current span inside.

    It differs from ``start_as_current_span`` in the following. If the block is cancelled, the attribute
    ``trio.cancelled`` is true; an exception group is cancelled if it contains only cancellations, else its other
    exceptions are the error. Closing a generator that waits inside is no error, a `KeyboardInterrupt` is one. A span
    that has ended is never its parent.

    Args:
        name: Its name.
        location: Its location and, as with `use_location`, that of all spans inside; by default it is determined as for
            other spans. If it differs from that of the current span, the span begins a trace of its own.
        kind: Its role in communication between processes.
        attributes: Its first attributes.
        tracer: The tracer; by default one with the name ``trio_spanbatch`` of the global provider.

    Raises:
        InvalidLocationError: ``location`` is not a string of 1 to 1,024 characters.
    """
    checks: list[tuple[str, Any, Any, str]] = [
        ("name", name, str, "a str"),
        ("kind", kind, trace.SpanKind | SpanKind, "a SpanKind"),
        ("attributes", attributes, Mapping | None, "a mapping"),
        ("tracer", tracer, trace.Tracer | None, "a Tracer of OpenTelemetry"),
    ]
    for parameter, value, types, meaning in checks:
        if not isinstance(value, types):
            raise TypeError(f"{parameter} is {shown(value)}; it must be {meaning}")
    if location is not None:
        location = checked_location(location)
    return _span(name, location, trace.SpanKind[kind.name], attributes, tracer)


@contextmanager
def _span(
    name: str,
    location: str | None,
    kind: trace.SpanKind,
    attributes: Mapping[str, Any] | None,
    tracer: trace.Tracer | None,
) -> Iterator[trace.Span]:
    if tracer is None:
        tracer = trace.get_tracer("trio_spanbatch", __version__)
    where: AbstractContextManager[None] = nullcontext() if location is None else use_location(location)
    parent = trace.get_current_span()
    is_elsewhere = location is not None and any(place != location for place in locations_of(parent.get_span_context()))
    # What is not a span of the SDK has no end_time: the parent in another process, for instance.
    begins_trace = is_elsewhere or getattr(parent, "end_time", None) is not None
    started: AbstractContextManager[trace.Span] = tracer.start_as_current_span(
        name,
        context=trace.set_span_in_context(trace.INVALID_SPAN) if begins_trace else None,
        kind=kind,
        attributes=attributes,
        record_exception=False,
        set_status_on_exception=False,
    )
    with where, started as current:
        try:
            yield current
        except BaseException as error:
            _note(current, error)
            raise


def _note(current: trace.Span, error: BaseException) -> None:
    # An exception may be of any class: its ``__str__`` may raise.
    with suppress(Exception):
        failure = error_part(error)
        if failure is not None:
            current.set_status(trace.StatusCode.ERROR, type(failure).__name__)
            current.set_status(trace.StatusCode.ERROR, f"{type(failure).__name__}: {failure}")
            current.record_exception(failure)
        elif is_cancellation(error):
            current.set_attribute("trio.cancelled", True)


@overload
def traced(function: Function, /) -> Function: ...


@overload
def traced(
    name: str | None = None,
    /,
    *,
    location: str | None = None,
    kind: trace.SpanKind | SpanKind = trace.SpanKind.INTERNAL,
    attributes: Mapping[str, Any] | None = None,
    arguments: bool | Iterable[str] = False,
    tracer: trace.Tracer | None = None,
) -> Callable[[Function], Function]: ...


def traced(
    given: Callable[..., Any] | str | None = None,
    /,
    *,
    location: str | None = None,
    kind: trace.SpanKind | SpanKind = trace.SpanKind.INTERNAL,
    attributes: Mapping[str, Any] | None = None,
    arguments: bool | Iterable[str] = False,
    tracer: trace.Tracer | None = None,
) -> Any:
    """Decorate a function so that each call is a `span`: a function, async function, generator or async generator.

    A generator runs in a copy of the context in which its first step is made, so its span, its `use_location` and all
    other context variables that it sets do not reach its consumer. See `trio_spanbatch.tracing.Tracer.traced`.

    Args:
        given: The name of the spans; by default the qualified name of the function.
        location: See `span`.
        kind: See `span`.
        attributes: See `span`.
        arguments: True to record all arguments as attributes ``argument.NAME``, or the names of those to record.
        tracer: See `span`.
    """

    def open_span(name: str, attributes: Mapping[str, Any]) -> AbstractContextManager[trace.Span]:
        return span(name, location=location, kind=kind, attributes=attributes, tracer=tracer)

    return decorator(given, open_span, attributes, arguments)
