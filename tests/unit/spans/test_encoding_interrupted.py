"""An exception of the program's own, not of a value: a signal handler's, or a `RecursionError` of a deep stack."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable
from functools import partial
from types import FrameType
from typing import Any

import attrs
import pytest

from tests.support.interruptions import AtLine, Interrupted, near_stack_limit
from trio_spanbatch import InstrumentationScope, InvalidSpanError, Resource, Span, SpanContext, SpanEvent
from trio_spanbatch._spans.encoder import SpanEncoder


class Shown:
    """A value of no known type, which is encoded as its ``str``."""

    def __init__(self, text: Callable[[], str] = lambda: "shown") -> None:
        self._text = text

    def __str__(self) -> str:
        return self._text()


def span_of(value: object = None, number: int = 1) -> Span:
    return Span(
        f"work {number}",
        SpanContext(1, number),
        start_time=1,
        end_time=2,
        attributes={"a": "text", "b": number, "c": [1, "two", {"three": 3.0}], "d": value or Shown(), Shown(): 1},  # type: ignore[dict-item]  # a key of another type
        events=(SpanEvent("event", 1, {"e": "text"}),),
        resource=Resource({"service.name": f"service {number}"}),
        instrumentation_scope=InstrumentationScope("scope", f"{number}"),
    )


WANTED = SpanEncoder().encode(span_of())


def raise_interrupted(*_: object) -> None:
    raise Interrupted


def test_an_exception_of_a_signal_handler_at_any_line_leaves_as_it_is_and_the_caches_are_right() -> None:
    encoder = SpanEncoder()
    number = 0
    while True:
        number += 1
        span = span_of()
        try:
            with AtLine(number, raise_interrupted):
                encoder.encode(span)
        except Interrupted:
            encoded = encoder.encode(span_of())
            assert (encoded.payload, encoded.headers) == (WANTED.payload, WANTED.headers), number
            # In half of the cases, the next one begins with empty caches.
            encoder = encoder if number % 2 else SpanEncoder()
        else:
            break
    assert number > 50


class Handler:
    def __call__(self, signum: int, frame: FrameType | None) -> None:
        raise Interrupted


def named(signum: int, frame: FrameType | None) -> None:
    raise_interrupted()


@pytest.mark.parametrize("handler", [named, raise_interrupted, Handler(), partial(named), Handler().__call__])
@pytest.mark.parametrize("broken", [False, True], ids=["a valid value", "a value that raises"])
def test_an_exception_of_a_signal_handler_inside_a_value_is_not_taken_for_the_values(
    handler: Any, broken: bool
) -> None:
    def text() -> str:
        if broken:
            try:
                raise ValueError("mine")
            finally:
                signal.raise_signal(signal.SIGUSR1)
        signal.raise_signal(signal.SIGUSR1)
        return "shown"

    before = signal.signal(signal.SIGUSR1, handler)
    try:
        with pytest.raises(Interrupted):
            SpanEncoder().encode(span_of(Shown(text)))
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_an_exception_of_a_signal_handler_inside_a_field_is_not_taken_for_the_spans() -> None:
    class Broken:
        @property
        def parent(self) -> None:
            signal.raise_signal(signal.SIGUSR1)

    before = signal.signal(signal.SIGUSR1, named)
    try:
        with pytest.raises(Interrupted):
            SpanEncoder().encode(Broken())  # type: ignore[arg-type]  # not a span
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_an_exception_of_a_value_is_still_the_values() -> None:
    def text() -> str:
        raise Interrupted

    encoded = SpanEncoder().encode(span_of(Shown(text)))
    assert encoded.to_message().dropped_attributes_count == 1


@pytest.mark.parametrize("height", range(0, 120, 3))
def test_a_recursion_error_at_any_depth_leaves_as_it_is_and_the_caches_are_right(height: int) -> None:
    encoder = SpanEncoder()
    with contextlib.suppress(RecursionError):
        near_stack_limit(height, lambda: encoder.encode(span_of()))
    encoded = encoder.encode(span_of())
    assert (encoded.payload, encoded.headers) == (WANTED.payload, WANTED.headers)
    with pytest.raises(InvalidSpanError):
        encoder.encode(attrs.evolve(span_of(), end_time=-1))
