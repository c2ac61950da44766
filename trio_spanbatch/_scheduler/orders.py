"""The orders of the scheduler. The runtime carries them out, oldest first, and takes each out of the outbox then."""

from __future__ import annotations

from typing import TypeAlias

import attrs

from .flush import Flush
from .location import Lease, Waiter

__all__ = ["Admit", "HandBack", "Order", "Repeat", "Start", "Wake"]


@attrs.frozen(eq=False)
class Start:
    """Start the delivery of a batch, with an export slot."""

    lease: Lease


@attrs.frozen(eq=False)
class Repeat:
    """Tell a delivery that its next attempt begins, with an export slot, or that there will be none.

    ``Lease.may_repeat`` says which.
    """

    lease: Lease


@attrs.frozen(eq=False)
class Admit:
    """Wake a waiting adder, whose span was accepted."""

    waiter: Waiter


@attrs.frozen(eq=False)
class Wake:
    """Wake a flush, all of whose spans are accounted for."""

    flush: Flush


@attrs.frozen(eq=False)
class HandBack:
    """Account for spans from the queue as undelivered."""

    lease: Lease
    reason: str


Order: TypeAlias = Start | Repeat | Admit | Wake | HandBack
