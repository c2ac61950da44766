"""Spans of a program on trio, without OpenTelemetry: a parent for each task, and marks for failures."""

from __future__ import annotations

import random
import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar

import trio

from trio_spanbatch import Span, SpanBatcher, SpanContext, Status, StatusCode

current: ContextVar[tuple[str, SpanContext] | None] = ContextVar("current", default=None)


class OpenSpan:
    """A span that has not ended."""

    def __init__(self, attributes: Mapping[str, object]) -> None:
        self.attributes = dict(attributes)

    def set_attribute(self, key: str, value: object) -> None:
        """Set an attribute."""
        self.attributes[key] = value


class Tracer:
    """Adds a span to ``batcher`` for each ``with tracer.span(...)``. Inner spans go where their parents go.

    Attributes:
        dropped: How many spans the batcher had no space for.
    """

    def __init__(self, batcher: SpanBatcher) -> None:
        self.dropped = 0
        self._batcher = batcher

    @contextmanager
    def span(
        self, name: str, *, location: str | None = None, attributes: Mapping[str, object] | None = None
    ) -> Generator[OpenSpan, None, None]:
        """Trace the code inside."""
        inherited, parent = current.get() or ("default", None)
        place = location or inherited
        trace_id = parent.trace_id if parent else random.getrandbits(128)
        context = SpanContext(trace_id, random.getrandbits(64))
        span, status, start = OpenSpan(attributes or {}), Status(), time.time_ns()
        token = current.set((place, context))
        try:
            yield span
        except trio.Cancelled:
            span.set_attribute("trio.cancelled", True)
            raise
        except Exception as error:
            status = Status(StatusCode.ERROR, str(error))
            raise
        finally:
            current.reset(token)
            ended = Span(
                name,
                context,
                parent=parent,
                start_time=start,
                end_time=time.time_ns(),
                attributes=span.attributes,
                status=status,
            )
            # It never waits, so it works in a cancelled task.
            try:
                self._batcher.add_span_nowait(place, ended)
            except trio.WouldBlock:
                self.dropped += 1
