"""The interface between the batcher and its exporter."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, TypeAlias, runtime_checkable

import attrs

from ._spans.batch import SpanBatch
from ._spans.checks import shown
from ._values import is_number

# The results of an export. Expected failures are values, not exceptions.


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
    """The server accepted the batch, except for the spans that it reports as rejected.

    Attributes:
        rejected: How many spans of the batch the server rejected (OTLP's partial success). They are not
            sent again. The batcher clips it to 0 and the length of the batch.
        message: The server's message about them, or a warning if ``rejected`` is 0.
        status_code: The HTTP status code, if there was a response. It is not compared, as any 2xx means the same.
    """

    rejected: int = attrs.field(default=0, validator=_of_type(int))
    message: str = attrs.field(default="", validator=_of_type(str))
    status_code: int | None = attrs.field(default=None, validator=_of_type(int, None), eq=False, kw_only=True)


@attrs.frozen
class TryLater:
    """The batch was not delivered, as far as is known; the same request may succeed later.

    Attributes:
        reason: What happened, in a few words, without credentials.
        after: The minimum number of seconds to wait, if the server gave one (``Retry-After``).
        ambiguous: Whether the server may have accepted the batch, for instance after a timeout, or if the connection
            broke after the request was sent.
        status_code: The HTTP status code, if there was a response.
        endpoint: Whether nothing of the request left, so that the failure says something about the server and not about
            this location: it could not be connected to, for instance. After three of these in a row, all locations
            of the server wait for one probe of it at a time.
        cause: The kind of failure if there was no response: ``timeout``, or an exception's name. Metrics have it as
            ``error.type``, so there should be few different ones. It is not compared.
    """

    reason: str = attrs.field(validator=_of_type(str))
    after: float | None = attrs.field(default=None, validator=_seconds)
    ambiguous: bool = attrs.field(default=False, validator=_of_type(bool))
    status_code: int | None = attrs.field(default=None, validator=_of_type(int, None))
    endpoint: bool = attrs.field(default=False, validator=_of_type(bool), kw_only=True)
    cause: str = attrs.field(default="", validator=_of_type(str), eq=False, kw_only=True)


@attrs.frozen
class Refused:
    """The server will never accept this request. Its spans are accounted for as rejected.

    Attributes:
        reason: What the server said, in a few words, without credentials.
        status_code: The HTTP status code, if there was a response.
        isolate: Whether the server may have refused the batch because of some of its spans, so that the others may
            succeed in another request.
        cause: The kind of failure if there was no response, as in `TryLater`.
    """

    reason: str = attrs.field(validator=_of_type(str))
    status_code: int | None = attrs.field(default=None, validator=_of_type(int, None))
    isolate: bool = attrs.field(default=False, validator=_of_type(bool))
    cause: str = attrs.field(default="", validator=_of_type(str), eq=False, kw_only=True)


ExportResult: TypeAlias = Delivered | TryLater | Refused


class SpanExporter(Protocol):
    """Sends batches. Implement this to send spans anywhere."""

    async def export(self, batch: SpanBatch) -> ExportResult:
        """Make one attempt to send ``batch``.

        Expected failures are returned. An exception is treated as a bug: it is logged with its traceback, and the batch
        is handed back. The batcher cancels an attempt that takes longer than ``RetryPolicy.attempt_timeout``, and all
        attempts that are still running at the end of the drain. An exporter must not shield itself from that or swallow
        ``trio.Cancelled``. Several exports run concurrently, including several of one location.
        """

    async def aclose(self) -> None:
        """Close the exporter's resources. Called once, at the end of the drain.

        If the exporter cannot be used after that, it may have an attribute ``closed`` that is then ``True``, so that a
        batcher that uses it again raises an error when it is entered.
        """


@runtime_checkable
class LimitsItsAttempts(Protocol):
    """Optional part of a `SpanExporter` that limits the time of its attempts.

    Without a `RetryPolicy` from the user, an attempt may take at least this long, so that the time limit for a slow
    destination is set only once.
    """

    @property
    def timeout(self) -> float:
        """The maximum number of seconds that one attempt may take."""


@runtime_checkable
class LocationChecker(Protocol):
    """Optional part of a `SpanExporter` that can send only to some locations."""

    def check_location(self, location: str) -> None:
        """Raise `InvalidLocationError` if nothing can be sent to ``location``."""


@runtime_checkable
class TellsEndpoints(Protocol):
    """Optional part of a `SpanExporter` that sends to several servers."""

    def endpoint_of(self, location: str) -> str:
        """Return a name for the server of ``location``. If a server is down, only its locations wait for it.

        Called when a location gets its first span, or its first one after it was idle. Without this method, all
        locations are of one server.
        """


@runtime_checkable
class HandsBack(Protocol):
    """Optional part of a `SpanExporter` that knows when further attempts are pointless."""

    def reason_to_hand_back(self, location: str) -> str | None:
        """Return why batches for ``location`` are to be handed back without an attempt; None if they are not.

        The batcher asks before each attempt, and again before it waits for the next one.
        """


def is_closed(exporter: SpanExporter) -> bool:
    """Return whether an exporter says that it is closed."""
    # Only True counts: in other exporters ``closed`` may be a method.
    return getattr(exporter, "closed", False) is True
