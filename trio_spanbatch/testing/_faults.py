"""Faults that last for a time, for a receiver and an exporter alike. They have no state; `Script` has it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from operator import length_hint
from typing import Any, Generic, TypeAlias, TypeVar

import attrs
import trio
from opentelemetry.proto.trace.v1.trace_pb2 import Span as SpanMessage

from .._spans.checks import shown
from ._answers import Answer
from ._checks import check_function, not_negative, number, validator
from ._requests import refusal


# They read like calls, so they are in lower case.
@attrs.frozen
class outage:  # noqa: N801  # it is used like a function
    """For ``seconds`` from the first attempt to reach it, the server is down: nothing of a request arrives.

    All connections break, and new ones are refused; over TCP, one with which the outage begins is reset. If a function
    returns it, only some requests fail, so they are answered 503 instead.
    """

    seconds: float = attrs.field(validator=number("above 0", lambda value: value > 0))


@attrs.frozen
class rate_limited:  # noqa: N801  # it is used like a function
    """The next ``requests`` requests are answered 429, with ``Retry-After`` if ``retry_after`` is given."""

    requests: int = attrs.field(validator=number("an int of at least 1", lambda value: value >= 1, int))
    retry_after: int | None = attrs.field(
        default=None,
        kw_only=True,
        validator=attrs.validators.optional(number("an int >= 0", lambda value: value >= 0, int)),
    )


@attrs.frozen
class slow:  # noqa: N801  # it is used like a function
    """From now on, each answer takes ``seconds`` longer; ``math.inf`` means forever."""

    seconds: float = attrs.field(validator=not_negative)


@attrs.frozen
class poison:  # noqa: N801  # it is used like a function
    """From now on, the default answer to a request is 400 if ``predicate`` is true for one of its spans.

    A batcher then divides the batch until only those spans are rejected. ``predicate`` is a sync function of the span
    as an OpenTelemetry ``Span`` message.
    """

    predicate: Callable[[SpanMessage], object] = attrs.field(validator=validator(check_function))


Fault: TypeAlias = outage | rate_limited | slow | poison
T = TypeVar("T")
R = TypeVar("R")
Answers: TypeAlias = Fault | Iterable[T | Fault | None] | Callable[[R], T | Fault | None]


class Script(Generic[T]):
    """Answers in order, or a function that chooses another script for each request.

    Args:
        answers: The answers.
        name: The name of the parameter that gave them, for messages.
        convert: Returns an answer that is not a fault, or raises an error with its name.
    """

    def __init__(
        self, answers: Answers[Any, Any] | None, name: str, convert: Callable[[str, object], T | None]
    ) -> None:
        self._check(answers, name, convert)
        self._name, self._convert = name, convert
        self.down_until, self.delay = -math.inf, 0.0
        self._choose = answers if callable(answers) else None
        listed = () if answers is None or callable(answers) else [answers] if isinstance(answers, Fault) else answers
        self._entries = iter(listed)
        self._entry: T | Fault | None = None
        self._uses_left = 0
        self._lasting: list[slow | poison] = []
        self._scripts: dict[Fault, Script[T]] = {}

    @staticmethod
    def _check(answers: object, name: str, convert: Callable[[str, object], object]) -> None:
        if answers is None or isinstance(answers, Fault):
            return
        if not isinstance(answers, Iterable) or isinstance(answers, str | bytes | bytearray | Mapping | type):
            check_function(name, answers, "a list of answers, a function that is not async, a fault or None")
        elif isinstance(answers, Sequence):
            for number, answer in enumerate(answers):
                if answer is not None and not isinstance(answer, Fault):
                    convert(f"{name}[{number}]", answer)

    @property
    def unused(self) -> int:
        """How many answers have not been used, or not to the end; 0 if that is not known, as for a function."""
        is_pending = self._uses_left > 0 and self._entry is not None
        return length_hint(self._entries) + is_pending

    def of(self, request: Any) -> Script[T]:
        """Return the script for ``request``. A function may return new, equal faults, which are one."""
        if self._choose is None:
            return self
        answer = self._choose(request)
        if not isinstance(answer, Fault):
            return Script(iter([answer]), self._name, self._convert)
        return self._scripts.setdefault(answer, Script(answer, self._name, self._convert))

    def is_down(self) -> bool:
        """Return whether there is an outage. If it is the turn of one, it begins."""
        while not self._uses_left and trio.current_time() >= self.down_until:
            self._entry = entry = next(self._entries, None)
            if isinstance(entry, outage):
                self.down_until = trio.current_time() + entry.seconds
            elif isinstance(entry, slow | poison) and entry not in self._lasting:
                self._lasting.append(entry)
                self.delay += entry.seconds if isinstance(entry, slow) else 0.0
            else:
                # An equal fault that lasts already counts as one answer, so that an endless iterable can repeat it.
                self._uses_left = entry.requests if isinstance(entry, rate_limited) else 1
        return not self._uses_left

    def take(self) -> T | Fault | None:
        if not self.is_down():
            self._uses_left -= 1
        return self._entry

    def outcome(self, entry: T | Fault | None, spans: Callable[[], Iterable[SpanMessage]]) -> T | Answer | None:
        """Return the answer to a request with ``spans``; None means the default answer."""
        if isinstance(entry, outage):
            return refusal(503, "the server is down")
        if isinstance(entry, rate_limited):
            after = entry.retry_after
            return refusal(429, "too many requests", [] if after is None else [("retry-after", str(after))])
        if entry is not None and not isinstance(entry, slow | poison):
            return self._convert(f"an answer of {self._name}", entry)
        predicates = [fault.predicate for fault in self._lasting if isinstance(fault, poison)]
        bad = next((span for predicate in predicates for span in spans() if predicate(span)), None)
        return None if bad is None else refusal(400, f"the span {shown(bad.name)} is poison")
