"""The orders of the scheduler. The runtime carries them out, oldest first, and then removes each from the outbox."""

from __future__ import annotations

from typing import TypeAlias

import attrs

from .flush import Flush
from .location import Lease, Waiter


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
    """Account for spans from the queue as undelivered."""

    lease: Lease
    reason: str


@attrs.frozen
class LogEndpoint:
    """Log that an endpoint has gone down, or up again after ``attempts`` attempts and ``seconds`` seconds."""

    name: str
    is_up: bool
    reason: str
    attempts: int
    seconds: float


Order: TypeAlias = Start | Repeat | Admit | Wake | HandBack | LogEndpoint
