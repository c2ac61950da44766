"""Messages about how locations fare: few enough to be read, whatever happens.

Logged are the first failure of a location, its recovery, and in between a summary over all locations at most every 30
seconds. A location that fails again soon after its first failure was logged is counted in the summaries only, so that a
server that fails every second request does not fill a disk. Nothing here keeps a timer: a summary comes with the first
event that is late enough, and the end of the drain has a summary of its own.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable
from typing import TypeVar

import attrs

from .log import AnyLogger

__all__ = ["HealthLog"]

_Value = TypeVar("_Value")

# Seconds.
_INTERVAL = 30.0


@attrs.define(eq=False)
class _Trouble:
    """What a location went through since it last was well.

    Attributes:
        began_at: When it began, in trio's time.
        logged_at: When its first failure was logged last.
        is_logged: Whether this one was.
        is_over: Whether the location is well again. It is remembered for a while, for ``logged_at``.
        last_at: When the last thing went wrong.
    """

    began_at: float
    logged_at: float
    last_at: float
    is_logged: bool = True
    is_over: bool = False
    failures: int = 0
    rejected: int = 0
    undelivered: int = 0


class HealthLog:
    """Logs the health of the locations of one batcher.

    Args:
        logger: Where messages go.
        level: Their level.
        clock: Trio's time.
        max_locations: Of how many locations is remembered how they fare. The ones that were in trouble longest ago are
            forgotten first.
    """

    def __init__(self, logger: AnyLogger, level: int, clock: Callable[[], float], max_locations: int) -> None:
        self._logger = logger
        self._level = level
        self._clock = clock
        self._max_locations = max_locations
        self._troubles: OrderedDict[str, _Trouble] = OrderedDict()
        self._warned_at: OrderedDict[str, float] = OrderedDict()
        self._summarized_at = -math.inf
        self._failed_at = -math.inf
        self._failures = self._rejected = self._undelivered = 0

    def failed(self, location: str, reason: str) -> None:
        """An attempt at sending to a location failed."""
        trouble = self._trouble(location, "exports to %r fail: %s", reason)
        trouble.failures += 1
        self._failures += 1
        self._summarize(location, reason)

    def rejected(self, location: str, count: int, reason: str) -> None:
        """A server rejected spans."""
        trouble = self._trouble(location, "spans for %r are rejected: %s", reason)
        trouble.rejected += count
        self._rejected += count
        self._summarize(location, reason)

    def handed_back(self, location: str, count: int, reason: str) -> None:
        """Spans were handed back undelivered."""
        trouble = self._trouble(location, "spans for %r are handed back undelivered: %s", reason)
        trouble.undelivered += count
        self._undelivered += count
        self._summarize(location, reason)

    def succeeded(self, location: str) -> None:
        """A whole batch was delivered."""
        trouble = self._troubles.get(location)
        if trouble is None or trouble.is_over:
            return
        trouble.is_over = True
        if trouble.is_logged:
            self._logger.log(
                self._level,
                "exports to %r succeed again: %d attempts failed in %.1f s, %d spans were rejected, %d handed back",
                location,
                trouble.failures,
                self._clock() - trouble.began_at,
                trouble.rejected,
                trouble.undelivered,
            )

    def warned(self, location: str, message: str) -> None:
        """A server took a batch and has something to say about it."""
        now = self._clock()
        if now < self._warned_at.get(location, -_INTERVAL) + _INTERVAL:
            return
        _remember(self._warned_at, location, now, self._max_locations)
        self._logger.warning("the server for %r took a batch, with a warning: %s", location, _one_line(message))

    def _trouble(self, location: str, message: str, reason: str) -> _Trouble:
        """Return the location's trouble; begin one with ``message`` if it was well."""
        trouble = self._troubles.get(location)
        now = self._clock()
        if trouble is not None and not trouble.is_over:
            trouble.last_at = now
            return trouble
        is_new = trouble is None or now >= trouble.logged_at + _INTERVAL
        logged_at = now if trouble is None or is_new else trouble.logged_at
        trouble = _Trouble(began_at=now, logged_at=logged_at, last_at=now, is_logged=is_new)
        _remember(self._troubles, location, trouble, self._max_locations)
        if now >= self._failed_at + _INTERVAL:
            # The first one after a quiet time: it is said here, and there is nothing to sum up.
            self._summarized_at = now
            self._failures = self._rejected = self._undelivered = 0
        if is_new:
            self._logger.log(self._level, message, location, _one_line(reason))
        return trouble

    def _failing(self, since: float) -> int:
        """Return how many locations something went wrong with since then, and that are not well again."""
        return sum(not trouble.is_over and trouble.last_at >= since for trouble in self._troubles.values())

    def _summarize(self, location: str, reason: str) -> None:
        now = self._failed_at = self._clock()
        if now < self._summarized_at + _INTERVAL:
            return
        self._logger.log(
            self._level,
            "%d locations are failing: %d attempts failed in the last %.0f s, %d spans were rejected, %d handed back; "
            "the last: %r: %s",
            self._failing(since=self._summarized_at),
            self._failures,
            now - self._summarized_at,
            self._rejected,
            self._undelivered,
            location,
            _one_line(reason),
        )
        self._summarized_at = now
        self._failures = self._rejected = self._undelivered = 0


def _remember(memory: OrderedDict[str, _Value], location: str, value: _Value, limit: int) -> None:
    memory.pop(location, None)
    memory[location] = value
    if len(memory) > limit:
        memory.popitem(last=False)


def _one_line(reason: str) -> str:
    # A reason is somebody else's words: it must not look like several messages.
    return " ".join(reason.split())[:500]
