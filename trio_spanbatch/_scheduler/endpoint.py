"""The endpoint: the server that locations share, whether it is down, and how many exports may begin.

A location that fails backs off by itself (`Pace`). If the whole server is down, all of its locations would do so, each
asking again and again. So what the results of all attempts say about the server is put together here. Each result is
one of four signs (`sign_of`). The server is down after

- three attempts of which nothing left: it could not be connected to;
- or failures of three different locations: it was overloaded, broke the exchange or did not answer.

Only attempts that began after the last answer count, an answer being any result that proves the server up. So a
location that fails among others that succeed never stops them.

While the server is down, one attempt at a time is made for all locations: a probe. Its failure makes the wait for the
next one longer, as `RetryPolicy` says, with full jitter. A location that has not failed since the last answer waits
shorter, as only the probes of such locations count for it: if in truth just a few locations fail, the first healthy
one that has something to send ends this soon. An answer to any attempt ends it. From then on one export runs at a time,
and each success allows one more, up to ``Limits.max_exports``.

Locations that may not export yet for this reason wait in two queues, each first in, first out. The scheduler looks at
the first one when its time comes, and then at the next, so nothing here takes longer with more locations.
"""

from __future__ import annotations

import math
import random
from collections import OrderedDict
from enum import Enum
from http import HTTPStatus
from typing import Generic, Protocol, TypeVar

from .._exporter import Delivered, ExportResult, TryLater
from .._reporting.statistics import EndpointStatistics
from .._settings.policies import RetryPolicy
from .ledger import Account
from .pace import jittered_wait


class _HasFailed(Protocol):
    @property
    def account(self) -> Account: ...


_Location = TypeVar("_Location", bound=_HasFailed)

# So many attempts of which nothing left, or so many locations that fail, mean that an endpoint is down.
_ENOUGH = 3

_OVERLOADED = (HTTPStatus.BAD_GATEWAY, HTTPStatus.SERVICE_UNAVAILABLE, HTTPStatus.GATEWAY_TIMEOUT)


class Sign(Enum):
    """What the result of an attempt says about the endpoint."""

    UP = "it answered"
    UNREACHED = "nothing of the request left"
    FAILED = "it is overloaded, broke the exchange, or did not answer"
    NONE = "nothing"


def sign_of(result: ExportResult | None) -> Sign:
    """Return what a result says about the endpoint; None is that of an attempt that was cancelled or raised."""
    if result is None:
        return Sign.NONE
    if isinstance(result, Delivered):
        return Sign.UP
    status = result.status_code
    if isinstance(result, TryLater) and (result.endpoint or status in _OVERLOADED):
        return Sign.UNREACHED if result.endpoint else Sign.FAILED
    if status is not None:
        # Throttling (429) is for one location. A 500 may be about the batch.
        return Sign.UP if status < HTTPStatus.INTERNAL_SERVER_ERROR else Sign.NONE
    # Otherwise the server was not asked: there were no credentials, for instance.
    return Sign.FAILED if isinstance(result, TryLater) and result.ambiguous else Sign.NONE


class Endpoint(Generic[_Location]):
    """One endpoint. Times are in seconds of the clock.

    Attributes:
        name: Its name; empty if the exporter does not tell several apart.
        is_up: Whether it is up, as far as is known.
        since: When it was made, or last went up or down.
        attempts: How many attempts have ended since then.
        answers: How many results have proved it up. An account's ``failed_after`` is this number at its location's
            last failure.
        reason: The reason of the failure that it went down with, or of the last one since.
    """

    def __init__(
        self, name: str, retry: RetryPolicy, rng: random.Random, max_exports: int, now: float, answers: int = 0
    ) -> None:
        self.name = name
        self.is_up = True
        self.since = now
        self.attempts = 0
        self.answers = answers
        self.reason = ""
        self._retry = retry
        self._rng = rng
        self._max_exports = max_exports
        self._allowed: float = math.inf
        self._running = 0
        # Since the last answer: attempts of which nothing left, and locations that failed.
        self._unreached = self._failed_locations = 0
        self._probes_running = self._probes_failed = self._first_probes_failed = 0
        self._probe_at = self._first_probe_at = -math.inf
        self._is_cut = False
        # The locations that have not failed since the last answer when they were looked at, and the others.
        self._well: OrderedDict[_Location, None] = OrderedDict()
        self._failed: OrderedDict[_Location, None] = OrderedDict()

    # -- who may export ----------------------------------------------------------------------------------------

    @property
    def first(self) -> _Location | None:
        """The location that may export next, of those that wait."""
        return next(iter(self._well or self._failed), None)

    def lets(self, location: _Location, now: float) -> bool:
        """Return whether a location may begin an export now."""
        if self.is_up and self._allowed == math.inf:
            return True
        return self.opens_at(location) <= now and (self.first or location) is location

    def opens_at(self, location: _Location) -> float:
        """Return when a location may begin an export, if no other waits; `math.inf` if one must end first."""
        if self.is_up:
            return -math.inf if self._running < self._allowed else math.inf
        return math.inf if self._probes_running else self.waits_until(location)

    def waits_until(self, location: _Location) -> float:
        """Return when the next probe is due, for a location."""
        if self.is_up:
            return -math.inf
        return self._probe_at if self._has_failed(location) else self._first_probe_at

    def has_waiting(self, location: _Location) -> bool:
        """Return whether a location waits."""
        return location in self._well or location in self._failed

    def join(self, location: _Location) -> bool:
        """Have a location wait, if it does not already. Return whether it was the first, and is no longer."""
        was_first, has_failed = self.first is location, self._has_failed(location)
        (self._well if has_failed else self._failed).pop(location, None)
        (self._failed if has_failed else self._well).setdefault(location)
        return was_first and self.first is not location

    def leave(self, location: _Location) -> bool:
        """Stop the wait of a location. Return whether it was the first that waited."""
        if not (self._well or self._failed):
            return False
        was_first = self.first is location
        self._well.pop(location, None)
        self._failed.pop(location, None)
        return was_first

    # -- events ------------------------------------------------------------------------------------------------

    def begin(self) -> bool:
        """Count an export that begins. Return whether it is a probe."""
        self._running += 1
        self._probes_running += not self.is_up
        return not self.is_up

    def end(self, *, is_probe: bool) -> None:
        """Count an export that has ended."""
        self._running -= 1
        self._probes_running -= is_probe

    def note(
        self,
        result: ExportResult | None,
        location: _Location,
        now: float,
        *,
        began_after: int,
        is_probe: bool,
        drain_deadline: float,
    ) -> bool:
        """Record the result of an attempt, and return whether the endpoint has gone up or down with it.

        Args:
            result: The result; None if the attempt was cancelled or raised.
            location: Whose attempt it was.
            now: The current time.
            began_after: ``answers`` as of its beginning.
            is_probe: What `begin` returned.
            drain_deadline: When the drain will stop deliveries; `math.inf` outside a drain.
        """
        sign = sign_of(result)
        self.attempts += 1
        if sign is Sign.UP:
            return self._answered(now, is_success=isinstance(result, Delivered))
        if sign is Sign.NONE or began_after != self.answers:
            return False
        assert isinstance(result, TryLater), "only it is one of the other signs"
        self.reason = result.reason
        is_first = not self._has_failed(location)
        location.account.failed_after = self.answers
        self._unreached += sign is Sign.UNREACHED
        self._failed_locations += is_first
        went_down = self.is_up and max(self._unreached, self._failed_locations) >= _ENOUGH
        if went_down:
            self._turn(now, is_up=False)
            self._probes_failed = self._first_probes_failed = 0
        elif is_probe and not self.is_up:
            self._probes_failed += 1
            self._first_probes_failed += is_first
        else:
            return False
        self._probe_at = now + self._wait(self._probes_failed, drain_deadline - now)
        self._first_probe_at = min(self._probe_at, now + self._wait(self._first_probes_failed, drain_deadline - now))
        return went_down

    def cut_short(self, now: float) -> None:
        """End the wait for the next probe, as the drain has begun. Has an effect only once."""
        if not self._is_cut:
            self._is_cut = True
            self._probe_at = min(self._probe_at, now)
            self._first_probe_at = min(self._first_probe_at, now)

    def _has_failed(self, location: _Location) -> bool:
        return location.account.failed_after == self.answers

    def _answered(self, now: float, *, is_success: bool) -> bool:
        self.answers += 1
        self._unreached = self._failed_locations = 0
        went_up = not self.is_up
        if went_up:
            self._turn(now, is_up=True)
            self._allowed = 1
        elif is_success:
            self._allowed += 1
        if self._allowed >= self._max_exports:
            self._allowed = math.inf
        return went_up

    def _turn(self, now: float, *, is_up: bool) -> None:
        self.is_up, self.since, self.attempts = is_up, now, 0

    def _wait(self, failures: int, left: float) -> float:
        return jittered_wait(self._retry, self._rng, failures + 1, left)

    def statistics(self) -> EndpointStatistics:
        """Return a snapshot."""
        return EndpointStatistics(
            name=self.name,
            is_up=self.is_up,
            since=self.since,
            attempts=self.attempts,
            next_probe_at=None if self.is_up else self._first_probe_at,
        )
