"""The orders of the scheduler. The runtime carries them out, oldest first, and then removes each from the outbox."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import attrs

from .._spans.batch import SpanBatch
from .flush import Flush
from .location import Lease, Location, Waiter
from .records import Piece


@attrs.frozen(eq=False)
class Start:
    """Start the delivery of a batch, with an export slot."""

    lease: Lease


@attrs.frozen(eq=False)
class Repeat:
    """Tell a delivery whether its next attempt may begin.

    ``Lease.may_repeat`` is true if it may, with an export slot; otherwise there will be no further attempt.
    """

    lease: Lease


@attrs.frozen(eq=False)
class Admit:
    """Wake a waiting adder whose span was accepted."""

    waiter: Waiter


@attrs.frozen(eq=False)
class Wake:
    """Wake a flush whose spans are all accounted for."""

    flush: Flush


@attrs.frozen(eq=False)
class HandBack:
    """Account for spans from the queue as undelivered.

    Committed ones stay in the spool instead, unless it is ``for_good``.
    """

    lease: Lease
    reason: str
    for_good: bool = False


@attrs.frozen
class LogEndpoint:
    """Log that an endpoint has gone down, or up again after ``attempts`` attempts and ``seconds`` seconds."""

    name: str
    is_up: bool
    reason: str
    attempts: int
    seconds: float


@attrs.frozen(eq=False)
class Lost:
    """Account for spans of a location as undelivered that are on disk, and are dropped or cannot be read."""

    name: str
    piece: Piece
    reason: str


@attrs.frozen(eq=False)
class CannotOpen:
    """Tell that a location with recovered spans could not be opened."""

    name: str
    error: BaseException


@attrs.define(eq=False)
class Sync:
    """The state of one call of ``sync``.

    Attributes:
        wake: Called when it has ended.
        error: Why it has failed.
    """

    wake: Callable[[], None]
    error: BaseException | None = None

    def end(self, error: BaseException | None) -> None:
        """End it."""
        self.error = error
        self.wake()


@attrs.define(eq=False)
class Commit:
    """Commit the spans of leases, each as a record, and forget the records ``settled``. The syncs wait for this."""

    leases: list[Lease]
    syncs: list[Sync]
    settled: list[int]


@attrs.define(eq=False)
class Settle:
    """Forget records whose spans are all accounted for."""

    tokens: list[int]


@attrs.define(eq=False)
class PageIn:
    """Read spans back into memory, to be sent with a slot that is taken already.

    Attributes:
        location: Their location.
        pieces: Where they are.
        is_probe: Whether their export is a probe of an endpoint that is down.
    """

    location: Location
    pieces: list[Piece]
    is_probe: bool


@attrs.define(eq=False)
class Bury:
    """Keep rejected spans as dead letters, and then forget the records with these tokens."""

    batch: SpanBatch
    reason: str
    tokens: Sequence[int]


# Carried out by `Spooler`.
SpoolOrder: TypeAlias = Commit | Settle | PageIn | Bury | CannotOpen

Order: TypeAlias = Start | Repeat | Admit | Wake | HandBack | LogEndpoint | Lost | SpoolOrder
