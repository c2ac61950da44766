"""Rate-limited log messages about failing and recovering locations.

The first failure of a location and its recovery are logged, and in between a summary over all locations, at most every
30 seconds. If a location recovers and fails again within 30 seconds of its last logged failure, that is only counted in
the summaries, so that a server that fails every second request does not fill a disk. There is no timer: a summary is
logged with the first event after the 30 seconds. The drain ends with a separate summary, which `Supervisor` logs.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable

import attrs

from .log import AnyLogger
from .throttle import WARNING_INTERVAL, Throttle


@attrs.define(eq=False)
class _Counts:
    """The failures in a period.

    Attributes:
        since: When the period began, in seconds of trio's clock.
    """

    since: float = -math.inf
    failures: int = 0
    rejected: int = 0
    undelivered: int = 0


@attrs.define(eq=False)
class _Trouble(_Counts):
    """The failures of a location since its last success.

    Attributes:
        is_logged: Whether the first failure was logged.
        last_at: When the last failure happened, in seconds of trio's clock.
    """

    is_logged: bool = True
    last_at: float = -math.inf


class HealthLog:
    """Logs the health of the locations of one batcher.

    Args:
        logger: The logger for the messages.
        level: Their level.
        clock: Returns the current time in seconds.
        max_locations: The maximum number of locations that are remembered. Those that began to fail longest ago are
            forgotten first.
    """

    def __init__(self, logger: AnyLogger, level: int, clock: Callable[[], float], max_locations: int) -> None:
        self._logger = logger
        self._level = level
        self._clock = clock
        self._max_locations = max_locations
        self._troubles: OrderedDict[str, _Trouble] = OrderedDict()
        self._first_failures = Throttle(clock, max_keys=max_locations)
        self._warnings = Throttle(clock, max_keys=max_locations)
        self._failed_at = -math.inf
        self._unreported = _Counts()

    def failed(self, location: str, reason: str) -> None:
        """Record a failed export."""
        self._note(location, "exports to %r fail: %s", reason, failures=1)

    def rejected(self, location: str, count: int, reason: str) -> None:
        """Record that a server rejected spans."""
        self._note(location, "spans for %r are rejected: %s", reason, rejected=count)

    def handed_back(self, location: str, count: int, reason: str) -> None:
        """Record that spans were handed back undelivered."""
        self._note(location, "spans for %r are handed back undelivered: %s", reason, undelivered=count)

    def succeeded(self, location: str) -> None:
        """Record that a whole batch was delivered."""
        trouble = self._troubles.pop(location, None)
        if trouble is not None and trouble.is_logged:
            self._logger.log(
                self._level,
                "exports to %r succeed again: %d attempts failed in %.1f s, %d spans were rejected, %d handed back",
                location,
                trouble.failures,
                self._clock() - trouble.since,
                trouble.rejected,
                trouble.undelivered,
            )

    def warned(self, location: str, message: str) -> None:
        """Record that a server accepted a batch with a warning."""
        if self._warnings.allows(location):
            self._logger.warning("the server for %r accepted a batch with a warning: %s", location, _one_line(message))

    def _note(
        self, location: str, message: str, reason: str, *, failures: int = 0, rejected: int = 0, undelivered: int = 0
    ) -> None:
        now = self._clock()
        trouble = self._troubles.get(location) or self._begin_trouble(location, message, reason, now)
        trouble.last_at = self._failed_at = now
        for counts in (trouble, self._unreported):
            counts.failures += failures
            counts.rejected += rejected
            counts.undelivered += undelivered
        if now >= self._unreported.since + WARNING_INTERVAL:
            self._summarize(location, reason, now)

    def _begin_trouble(self, location: str, message: str, reason: str, now: float) -> _Trouble:
        trouble = _Trouble(since=now, is_logged=self._first_failures.allows(location))
        self._troubles[location] = trouble
        if len(self._troubles) > self._max_locations:
            self._troubles.popitem(last=False)
        if now >= self._failed_at + WARNING_INTERVAL:
            # The first failure after a period without any is logged here, so there is nothing to summarize.
            self._unreported = _Counts(since=now)
        if trouble.is_logged:
            self._logger.log(self._level, message, location, _one_line(reason))
        return trouble

    def _summarize(self, location: str, reason: str, now: float) -> None:
        counts, self._unreported = self._unreported, _Counts(since=now)
        self._logger.log(
            self._level,
            "%d locations are failing: %d attempts failed in the last %.0f s, %d spans were rejected, %d handed back; "
            "the last: %r: %s",
            sum(trouble.last_at >= counts.since for trouble in self._troubles.values()),
            counts.failures,
            now - counts.since,
            counts.rejected,
            counts.undelivered,
            location,
            _one_line(reason),
        )


def _one_line(reason: str) -> str:
    # A reason may come from the server, and must not look like several messages.
    return " ".join(reason.split())[:500]
