"""Concurrency, backoff and request size of one location.

A location starts with one export at a time. Each success allows one more, and a failure reduces it to one. So a
location whose server hangs occupies few of the slots that all locations share, and after a backoff a single export
probes the server.

When a backoff has ended, the location needs as long as it could have lasted at most to settle. A success meanwhile
resets the backoff only after twice that time, so another failure until then makes it longer; and a new batch is sent
once it is full, but not because of its age. A server that comes back has the backlogs of all of its clients to work on,
and may be overloaded by those that send small batches again before the others are done.
"""

from __future__ import annotations

import math
import random

import attrs

from .._settings.policies import RetryPolicy
from .ledger import Account

# With fewer seconds left until the drain's deadline, a location does not wait for another attempt.
_LAST_MOMENT = 0.1

# The wait that a server asked for is lengthened by at most this part of it.
_SPREAD = 0.1


def jittered_wait(retry: RetryPolicy, rng: random.Random, failures: int, left: float) -> float:
    """Return a random wait in seconds after ``failures`` failures in a row.

    It leaves time for another attempt in the ``left`` seconds of the drain. If that is not possible, it is `math.inf`.
    """
    wait = rng.uniform(0, retry.longest_wait(failures))
    if left == math.inf:
        return wait
    return math.inf if left < _LAST_MOMENT else min(wait, left / 2)


@attrs.define(eq=False)
class Pace:
    """The concurrency, backoff and request size of one location. Times are in seconds of the clock.

    The wait that a server asked for is kept in the location's account, which outlives this object.

    The largest request that the server accepts is learned from its 413 responses. A batch that was too large is halved
    until its parts are accepted. Later batches are halved before they are sent, until they are no larger than the
    largest request that was accepted, or half of the smallest that was refused if that is more. (The latter matters if
    a single large span was refused and tiny ones were accepted.)

    Attributes:
        limit: ``Limits.max_exports_per_location``.
        active: The number of running exports.
        allowed: The number of exports that may run now.
        failures: The number of backoffs since a success reset them.
    """

    _retry: RetryPolicy
    _rng: random.Random
    _account: Account
    limit: int
    active: int = 0
    allowed: int = 1
    failures: int = 0
    _own_wait_until: float = -math.inf
    _settled_at: float = -math.inf
    _starts_anew_at: float = math.inf
    _smallest_refused: float = math.inf
    _largest_passed: float = 0.0

    @property
    def max_size(self) -> float:
        """The largest request to send, in bytes; `math.inf` if none was refused for its size."""
        if self._smallest_refused == math.inf:
            return math.inf
        return max(self._largest_passed, self._smallest_refused / 2)

    def size_refused(self, size: int) -> None:
        """Record that a request was refused for its size. Larger ones that were accepted before no longer count."""
        self._smallest_refused = min(self._smallest_refused, size)
        if self._largest_passed >= size:
            self._largest_passed = 0.0

    def size_passed(self, size: int) -> None:
        """Record that a request was accepted."""
        self._largest_passed = max(self._largest_passed, size)
        if size >= self._smallest_refused:
            # The server accepts more than before.
            self._smallest_refused = math.inf

    @property
    def retry_at(self) -> float:
        """When the backoff ends: no export may begin before."""
        return max(self._own_wait_until, self._account.not_before)

    def next_at(self) -> float:
        """Return when the next export may begin; `math.inf` if a running one must end first."""
        return math.inf if self.active >= self.allowed else self.retry_at

    def holds_until(self, opened_at: float) -> float:
        """Return until when a batch with its first span at ``opened_at`` is not sent just because of its age."""
        return self._settled_at if opened_at > self.retry_at else -math.inf

    def succeeded(self, now: float) -> None:
        """Record that an export succeeded. During a backoff this has no effect: the export began before it."""
        if now >= self.retry_at:
            if now >= self._settled_at:
                self.failures = 0
            self._starts_anew_at = self._settled_at + self._retry.longest_wait(self.failures)
            self.allowed = min(self.allowed + 1, self.limit)

    def failed(self) -> None:
        """Record that an export failed."""
        self.allowed = 1

    def back_off(self, now: float, after: float | None, drain_deadline: float, latest: float = math.inf) -> None:
        """Back off after a temporary failure.

        Exports that fail during a backoff belong to the same failure: they do not extend it, unless their response asks
        for a later time.

        Args:
            now: The current time.
            after: The seconds that the server asked to wait, or None. No more than ``max_elapsed`` is waited.
            drain_deadline: When the drain will stop deliveries; `math.inf` outside a drain. A wait that the server did
                not ask for leaves time for another attempt before that.
            latest: When the attempt that failed can be repeated at the latest.
        """
        is_backing_off = self.retry_at > now
        if not is_backing_off:
            self.failures = 1 if now >= self._starts_anew_at else self.failures + 1
        longest = self._retry.max_elapsed
        if after is not None and after > 0:
            # A batch that was never attempted waits no longer than one that was.
            asked_at = now + min(after, longest)
            # A little more, as the server may have told many clients the same, if there is time for it.
            spread = min(after * _SPREAD * self._rng.random(), max(0.0, min(latest, now + longest) - asked_at))
            self._account.not_before = max(self._account.not_before, asked_at + spread)
        if not is_backing_off and (not after or after > longest):
            self._own_wait_until = now + jittered_wait(self._retry, self._rng, self.failures, drain_deadline - now)
        self._settled_at = self.retry_at + self._retry.longest_wait(self.failures)
        self._starts_anew_at = math.inf

    def cut_short(self, now: float) -> None:
        """End the backoff now, except for a wait that the server asked for."""
        self._own_wait_until = min(self._own_wait_until, now)
