"""How fast one location may be sent to: how many exports at once, and when the next may begin.

A location starts with one export at a time, gains one with each success and falls back to one with a failure. So a
location that hangs holds few of the slots that all locations share, and one that backs off sends a single probe.
"""

from __future__ import annotations

import math
import random

import attrs

from ._policy import RetryPolicy

__all__ = ["Pace"]

# When less than this is left of the drain, a wait for another attempt is not worth its while. Seconds.
_LAST_MOMENT = 0.1


@attrs.define(eq=False)
class Pace:
    """The pace of one location.

    Attributes:
        limit: How many exports may ever run at once.
        active: How many run now.
        allowed: How many may run now.
        retry_at: Before this time, in trio's time, none may begin.
        asked_by_server: Whether the server named that time.
        failures: How many times in a row the location had to back off.
    """

    _retry: RetryPolicy
    _rng: random.Random
    limit: int
    active: int = 0
    allowed: int = 1
    retry_at: float = -math.inf
    asked_by_server: bool = False
    failures: int = 0

    def next_at(self) -> float:
        """Return when the next export may begin; `math.inf` if one has to end before."""
        return math.inf if self.active >= self.allowed else self.retry_at

    def succeeded(self) -> None:
        """An export was answered well."""
        self.failures = 0
        self.allowed = min(self.allowed + 1, self.limit)

    def failed(self) -> None:
        """An export was not answered well."""
        self.allowed = 1

    def back_off(self, now: float, after: float | None, drain_deadline: float) -> None:
        """Set ``retry_at`` after a failure that may pass.

        Exports that fail while the location is backing off already belong to the same failure: they do not make the
        wait longer, unless their answer names a later time.

        Args:
            now: The current time.
            after: Seconds to wait at least, as the server said.
            drain_deadline: When the drain will stop deliveries, `math.inf` if there is no drain. Our own wait leaves
                time for another attempt before; the server's word is kept as it is.
        """
        if after:
            if now + after >= self.retry_at:
                self.retry_at, self.asked_by_server = now + after, True
            self.failures += 1
        elif self.retry_at <= now:
            self.failures += 1
            self.retry_at, self.asked_by_server = now + self._own_wait(drain_deadline - now), False

    def cut_short(self, now: float) -> None:
        """End a wait of our own now; one that the server asked for stays."""
        if not self.asked_by_server:
            self.retry_at = min(self.retry_at, now)

    def _own_wait(self, left: float) -> float:
        wait = self._rng.uniform(0, self._retry.longest_wait(self.failures))
        if left == math.inf:
            return wait
        return math.inf if left < _LAST_MOMENT else min(wait, left / 2)
