"""How fast one location may be sent to: how many exports at once, and when the next may begin.

A location starts with one export at a time, gains one with each success and falls back to one with a failure. So a
location that hangs holds few of the slots that all locations share, and one that backs off sends a single probe.
"""

from __future__ import annotations

import math
import random

import attrs

from .._settings.policies import RetryPolicy
from .ledger import Account

__all__ = [
    "Pace",
    "RequestSizeLimit",
]

# How large a request one location takes, learnt from its refusals.


@attrs.define(eq=False)
class RequestSizeLimit:
    """Remembers, after a 413, the size that passed.

    A batch that was too large is halved until its parts pass. The next batch need not be refused again: it is halved
    beforehand, until it is no larger than the largest request that passed, or than half of the smallest that was
    refused, if that is more. (The latter for the case that a single large span was refused and tiny ones passed.)
    """

    _smallest_refused: float = math.inf
    _largest_passed: float = 0.0

    @property
    def limit(self) -> float:
        """The largest request to send, in bytes; `math.inf` if none was refused for its size."""
        if self._smallest_refused == math.inf:
            return math.inf
        return max(self._largest_passed, self._smallest_refused / 2)

    def refused(self, size: int) -> None:
        """A request was refused for its size. What a larger one did before counts no more."""
        self._smallest_refused = min(self._smallest_refused, size)
        if self._largest_passed >= size:
            self._largest_passed = 0.0

    def passed(self, size: int) -> None:
        """A request was taken."""
        self._largest_passed = max(self._largest_passed, size)
        if size >= self._smallest_refused:
            # The server takes more than it did.
            self._smallest_refused = math.inf


# When less than this is left of the drain, a wait for another attempt is not worth its while. Seconds.
_LAST_MOMENT = 0.1


@attrs.define(eq=False)
class Pace:
    """The pace of one location. Times are trio's.

    What the server asked for is kept in the location's account, which outlives its lane.

    Attributes:
        limit: How many exports may ever run at once.
        active: How many run now.
        allowed: How many may run now.
        failures: How many times in a row the location had to back off.
    """

    _retry: RetryPolicy
    _rng: random.Random
    _account: Account
    limit: int
    active: int = 0
    allowed: int = 1
    failures: int = 0
    _own_wait_until: float = -math.inf

    @property
    def retry_at(self) -> float:
        """Before this time no export may begin."""
        return max(self._own_wait_until, self._account.not_before)

    def next_at(self) -> float:
        """Return when the next export may begin; `math.inf` if one has to end before."""
        return math.inf if self.active >= self.allowed else self.retry_at

    def succeeded(self, now: float) -> None:
        """An export was answered well. While the location backs off, one from before says nothing of its health."""
        if now >= self.retry_at:
            self.failures = 0
            self.allowed = min(self.allowed + 1, self.limit)

    def failed(self) -> None:
        """An export was not answered well."""
        self.allowed = 1

    def back_off(self, now: float, after: float | None, drain_deadline: float) -> None:
        """Begin a wait after a failure that may pass.

        Exports that fail while the location is backing off already belong to the same failure: they do not make the
        wait longer, unless their answer names a later time.

        Args:
            now: The current time.
            after: Seconds to wait at least, as the server said; more than ``max_elapsed`` is not waited for.
            drain_deadline: When the drain will stop deliveries, `math.inf` if there is no drain. Our own wait leaves
                time for another attempt before; the server's word is kept as it is.
        """
        backing_off_already = self.retry_at > now
        if not backing_off_already:
            self.failures += 1
        longest = self._retry.max_elapsed
        if after is not None and after > 0:
            # Batches that come later do not wait for longer than one would that is tried already.
            self._account.not_before = max(self._account.not_before, now + min(after, longest))
        if not backing_off_already and (not after or after > longest):
            self._own_wait_until = now + self._own_wait(drain_deadline - now)

    def cut_short(self, now: float) -> None:
        """End a wait of our own now; one that the server asked for stays."""
        self._own_wait_until = min(self._own_wait_until, now)

    def _own_wait(self, left: float) -> float:
        wait = self._rng.uniform(0, self._retry.longest_wait(self.failures))
        if left == math.inf:
            return wait
        return math.inf if left < _LAST_MOMENT else min(wait, left / 2)
