"""Rate-limited log messages about failing and recovering locations and endpoints.

The first failure of a location and its recovery are logged, and in between a summary over all locations at most every
30 seconds. If a location fails again within 30 seconds of its logged first failure, only the summaries count it, so
that a server that fails every second request does not fill a disk. While an endpoint is down, the summaries count the
failures of its locations: that it goes down or up is one message for all of them. There is no timer: a summary is
logged with the first event that is late enough. The end of the drain has a separate summary.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable

import attrs

from .._values import counted, were
from .log import AnyLogger
from .throttle import WARNING_INTERVAL, Throttle


@attrs.define(eq=False)
class _Counts:
    """The failures in a period.

    Attributes:
        since: When the period began, in seconds of trio's clock.
        locations: How many locations failed in it and have not succeeded since. Not counted for a single location.
    """

    since: float = -math.inf
    locations: int = 0
    failures: int = 0
    rejected: int = 0
    undelivered: int = 0


@attrs.define(eq=False)
class _Trouble(_Counts):
    """The failures of a location since its last success.

    Attributes:
        is_logged: Whether the first failure was logged.
        period: The counts to which its last failure belongs.
    """

    is_logged: bool = True
    period: _Counts | None = None


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

    def failed(self, location: str, reason: str, *, endpoint_is_up: bool = True) -> None:
        """Record that an export failed. If the location's endpoint is down, it is only counted."""
        self._note(location, "exports to %r fail: %s" if endpoint_is_up else "", reason, failures=1)

    def endpoint_changed(self, name: str, reason: str, attempts: int, seconds: float, *, is_up: bool) -> None:
        """Record that an endpoint has gone down, or up after so many attempts and seconds."""
        which = f"the endpoint {name!r}" if name else "the endpoint"
        if is_up:
            self._logger.log(
                self._level, "%s is up again after %s in %.1f s", which, counted(attempts, "attempt"), seconds
            )
        else:
            message = "%s is down: its locations wait while one at a time makes an attempt: %s"
            self._logger.log(self._level, message, which, _one_line(reason))

    def rejected(self, location: str, count: int, reason: str) -> None:
        """Record that a server rejected spans."""
        self._note(location, "spans for %r are rejected: %s", reason, rejected=count)

    def handed_back(self, location: str, count: int, reason: str) -> None:
        """Record that spans were handed back undelivered."""
        self._note(location, "spans for %r are handed back undelivered: %s", reason, undelivered=count)

    def succeeded(self, location: str) -> None:
        """Record that a whole batch was delivered."""
        trouble = self._troubles.pop(location, None)
        if trouble is not None:
            self._forget(trouble)
        if trouble is not None and trouble.is_logged:
            self._logger.log(
                self._level,
                "exports to %r succeed again: %s failed in %.1f s, %s %s rejected, %d handed back",
                location,
                counted(trouble.failures, "attempt"),
                self._clock() - trouble.since,
                counted(trouble.rejected, "span"),
                were(trouble.rejected),
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
        self._failed_at = now
        if trouble.period is not self._unreported:
            trouble.period = self._unreported
            self._unreported.locations += 1
        for counts in (trouble, self._unreported):
            counts.failures += failures
            counts.rejected += rejected
            counts.undelivered += undelivered
        if now >= self._unreported.since + WARNING_INTERVAL:
            self._summarize(location, reason, now)

    def _begin_trouble(self, location: str, message: str, reason: str, now: float) -> _Trouble:
        trouble = _Trouble(since=now, is_logged=message != "" and self._first_failures.allows(location))
        self._troubles[location] = trouble
        if len(self._troubles) > self._max_locations:
            self._forget(self._troubles.popitem(last=False)[1])
        if now >= self._failed_at + WARNING_INTERVAL:
            # The first failure after a period without any is logged here, so there is nothing to summarize.
            self._unreported = _Counts(since=now)
        if trouble.is_logged:
            self._logger.log(self._level, message, location, _one_line(reason))
        return trouble

    def _forget(self, trouble: _Trouble) -> None:
        self._unreported.locations -= trouble.period is self._unreported

    def _summarize(self, location: str, reason: str, now: float) -> None:
        counts, self._unreported = self._unreported, _Counts(since=now)
        self._logger.log(
            self._level,
            "%s %s failing: %s failed in the last %.0f s, %s %s rejected, %d handed back; the last: %r: %s",
            counted(counts.locations, "location"),
            "is" if counts.locations == 1 else "are",
            counted(counts.failures, "attempt"),
            now - counts.since,
            counted(counts.rejected, "span"),
            were(counts.rejected),
            counts.undelivered,
            location,
            _one_line(reason),
        )


def _one_line(reason: str) -> str:
    # A reason may come from the server, and must not look like several messages.
    return " ".join(reason.split())[:500]
