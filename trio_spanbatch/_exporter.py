"""What sends batches: the interface between the batcher and any destination."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, TypeAlias, runtime_checkable

import attrs

from ._spans.batch import SpanBatch
from ._spans.checks import shown
from ._values import is_number

__all__ = [
    "Delivered",
    "ExportResult",
    "HandsBack",
    "LimitsItsAttempts",
    "LocationChecker",
    "Refused",
    "SpanExporter",
    "TryLater",
    "is_closed",
]

# What one export ended with. Expected failures are values, not exceptions.


def _of_type(*types: type | None) -> Callable[[object, attrs.Attribute[Any], object], None]:
    names = " or ".join("None" if kind is None else kind.__name__ for kind in types)
    kinds = tuple(type(None) if kind is None else kind for kind in types)

    def check(instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            raise TypeError(f"{type(instance).__name__}.{attribute.name} is {value!r}; it must be {names}")

    return check


def _seconds(instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
    if value is None:
        return
    if not is_number(value) or not value >= 0:
        raise ValueError(
            f"{type(instance).__name__}.{attribute.name} is {shown(value)}; it must be 0 or more seconds, or None"
        )


@attrs.frozen
class Delivered:
    """The server has the batch, less the spans that it says it rejected.

    Attributes:
        rejected: How many spans of the batch the server rejected (OTLP's partial success). They are not
            sent again. The batcher clips it to 0 and the length of the batch.
        message: The server's words about them, or a warning where ``rejected`` is 0.
        status_code: The HTTP status code, where there was a response. It does not count when two are compared: any
            2xx means the same.
    """

    rejected: int = attrs.field(default=0, validator=_of_type(int))
    message: str = attrs.field(default="", validator=_of_type(str))
    status_code: int | None = attrs.field(default=None, validator=_of_type(int, None), eq=False, kw_only=True)


@attrs.frozen
class TryLater:
    """The batch was not delivered, as far as anybody knows; the same request may succeed later.

    Attributes:
        reason: What happened, in a few words, without credentials.
        after: Seconds to wait at least, where the server said so (``Retry-After``).
        ambiguous: Whether the server may have taken the batch all the same: a connection that broke after
            the request was sent, a timeout.
        status_code: The HTTP status code, where there was a response.
        cause: What kind of failure it was if there was no response: ``timeout``, or an exception's name. Metrics have
            it as ``error.type``, so there should be few different ones. It does not count when two are compared.
    """

    reason: str = attrs.field(validator=_of_type(str))
    after: float | None = attrs.field(default=None, validator=_seconds)
    ambiguous: bool = attrs.field(default=False, validator=_of_type(bool))
    status_code: int | None = attrs.field(default=None, validator=_of_type(int, None))
    cause: str = attrs.field(default="", validator=_of_type(str), eq=False, kw_only=True)


@attrs.frozen
class Refused:
    """The server will never take this request. Its spans are accounted for as rejected.

    Attributes:
        reason: What the server said, in a few words, without credentials.
        status_code: The HTTP status code, where there is one.
        isolate: Whether a part of the batch may be to blame, so that the rest is worth another request.
        cause: What kind of failure it was if there was no response, as in `TryLater`.
    """

    reason: str = attrs.field(validator=_of_type(str))
    status_code: int | None = attrs.field(default=None, validator=_of_type(int, None))
    isolate: bool = attrs.field(default=False, validator=_of_type(bool))
    cause: str = attrs.field(default="", validator=_of_type(str), eq=False, kw_only=True)


ExportResult: TypeAlias = Delivered | TryLater | Refused


class SpanExporter(Protocol):
    """Sends batches. Implement this to send spans anywhere."""

    async def export(self, batch: SpanBatch) -> ExportResult:
        """Make one attempt at sending ``batch``.

        Expected failures are returned. An exception is taken for a bug: it is logged with its traceback and the
        batch is handed back. The batcher cancels an attempt that takes longer than ``RetryPolicy.attempt_timeout``,
        and all that are still under way at the end of the drain; an exporter must neither shield itself from that
        nor swallow ``trio.Cancelled``. Several exports run at once, also of one location.
        """
        ...

    async def aclose(self) -> None:
        """Close what the exporter has opened. Called once, at the end of the drain.

        An exporter that cannot be used after that may have an attribute ``closed``, which is then ``True``: the next
        batcher that is given it says so when it is entered.
        """
        ...


@runtime_checkable
class LimitsItsAttempts(Protocol):
    """What an exporter has besides `SpanExporter` if it ends its attempts by itself.

    Where the user gave no `RetryPolicy`, an attempt gets at least this time, so that a slow destination's exporter need
    not be given twice how slow it is.

    Attributes:
        timeout: Seconds that one attempt may take.
    """

    @property
    def timeout(self) -> float:
        """Seconds that one attempt may take."""
        ...


@runtime_checkable
class LocationChecker(Protocol):
    """What an exporter has besides `SpanExporter` if not every string is a location for it."""

    def check_location(self, location: str) -> None:
        """Raise `InvalidLocationError` if nothing can be sent to ``location``."""
        ...


@runtime_checkable
class HandsBack(Protocol):
    """An optional addition to `SpanExporter`, for an exporter that knows when further attempts are pointless."""

    def reason_to_hand_back(self, location: str) -> str | None:
        """Return why batches for ``location`` are to be handed back without an attempt; None if they are not.

        The batcher asks before each attempt, and again before it waits for the next one.
        """
        ...


def is_closed(exporter: SpanExporter) -> bool:
    """Return whether an exporter says that it is closed."""
    # Nothing else than True: somebody else's ``closed`` may be a method, or anything.
    return getattr(exporter, "closed", False) is True
