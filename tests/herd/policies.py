"""The policies that are compared: this package's own rules, and others that are made from them."""

from __future__ import annotations

import math
import random
from typing import Any

import attrs

from trio_spanbatch import ExportResult, Limits, RetryPolicy
from trio_spanbatch._scheduler.endpoint import Endpoint
from trio_spanbatch._scheduler.ledger import Account
from trio_spanbatch._scheduler.pace import Pace

__all__ = ["OURS", "POLICIES", "Policy"]


class _NoJitter(random.Random):
    """Always the longest wait."""

    def uniform(self, a: float, b: float) -> float:
        return b


class _Unsettled(Pace):
    """A pace that a success resets, and that goes on at once as usual."""

    def holds_until(self, opened_at: float) -> float:
        return -math.inf

    def succeeded(self, now: float) -> None:
        if now >= self.retry_at:
            self.failures = 0
        super().succeeded(now)


class _Unmoved(_Unsettled):
    """A pace that does not reduce the concurrency after a failure either."""

    def failed(self) -> None:
        pass


class _Unknown(Endpoint[Any]):
    """An endpoint of which nothing is known: each location backs off by itself."""

    def note(self, result: ExportResult | None, location: Any, now: float, **_: Any) -> bool:
        return False


@attrs.frozen
class Policy:
    """A policy.

    Attributes:
        name: Its name.
        retry: How long the backoffs are.
        has_jitter: Whether they have full jitter.
        falls_to_one: Whether a failure reduces a location's concurrency to one export.
        settles: Whether a location settles after a backoff. It does not if its concurrency is kept.
        shares_endpoint: Whether a client that is not answered makes one attempt at a time for all locations.
        every: How many clients one client of the model stands for, to limit the time of a run.
    """

    name: str
    retry: RetryPolicy = attrs.Factory(RetryPolicy)
    has_jitter: bool = True
    falls_to_one: bool = True
    settles: bool = True
    shares_endpoint: bool = True
    every: int = 1

    def rng(self, seed: int) -> random.Random:
        """Return a client's source of jitter."""
        return random.Random(seed) if self.has_jitter else _NoJitter()

    def endpoint(self, rng: random.Random, limits: Limits) -> Endpoint[Any]:
        """Return a client's endpoint."""
        return (Endpoint if self.shares_endpoint else _Unknown)("", self.retry, rng, limits.max_exports, 0.0)

    def pace(self, rng: random.Random, limits: Limits) -> Pace:
        """Return a location's pace."""
        kind = _Unmoved if not self.falls_to_one else Pace if self.settles else _Unsettled
        return kind(self.retry, rng, Account(), limits.max_exports_per_location)


OURS = Policy("trio-spanbatch")

POLICIES = (
    OURS,
    Policy("full jitter, concurrency kept", falls_to_one=False, shares_endpoint=False),
    Policy("backoff without jitter", has_jitter=False, settles=False, shares_endpoint=False),
    Policy(
        "a retry every second",
        RetryPolicy(initial=1.0, maximum=1.0, multiplier=1.0),
        has_jitter=False,
        falls_to_one=False,
        shares_endpoint=False,
        every=10,
    ),
)
