"""Thread-safe counts of the spans that ended, by outcome, and warnings about dropped spans.

Each span that ended has exactly one outcome: on its way, accepted, or dropped for one of three reasons. ``ended`` is
counted separately, so that tests can check the sum.

The lock is an ``RLock``, as a finalizer or a signal handler may end a span in the thread that holds it. Counts are
changed by additions during which CPython neither collects garbage nor handles signals, so reentrant code finds them
consistent. Code that reads several counts checks whether it was interrupted, and reads again. Nothing is logged while
the lock is held.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from types import MappingProxyType
from typing import Final

import attrs

from .._intake import Drop, Reason
from .._reporting.log import AnyLogger
from .._reporting.throttle import Throttle
from .._spans.hashing import hash_of_record
from .._values import counted, were

REASONS: Final[tuple[Reason, ...]] = ("queue_full", "already_shutdown", "invalid")

# The number of pairs of locations that are warned about.
MAX_PAIRS: Final = 10_000


@attrs.frozen(kw_only=True)
class SpanProcessorStatistics:
    """A snapshot of the counts of sampled spans that ended.

    At every instant ``ended == accepted + handed_over + sum(dropped.values())``.

    Attributes:
        ended: Spans that ended.
        accepted: Spans that the batcher accepted; its own statistics account for them.
        handed_over: Spans on their way from another thread to the batcher.
        dropped: Spans that were dropped, by reason: ``queue_full``, ``already_shutdown`` and ``invalid``.
        overruled: Spans that started in a `use_location` but have the location of a live local parent. Counted when
            they start.
    """

    ended: int
    accepted: int
    handed_over: int
    dropped: Mapping[str, int]
    overruled: int = 0

    __hash__ = hash_of_record


class Tally:
    """Counts spans that ended, and warns of those that were dropped, at most every 30 seconds."""

    def __init__(self, logger: AnyLogger, clock: Callable[[], float]) -> None:
        self._logger = logger
        self._warnings = Throttle(clock)
        self.renew_lock()
        self._ended = self._on_their_way = self._accepted = self._overruled = 0
        self._pairs: dict[tuple[str, str], tuple[str, str]] = {}
        self._dropped: dict[Reason, int] = dict.fromkeys(REASONS, 0)
        self._said: dict[Reason, int] = dict.fromkeys(REASONS, 0)
        self._details: dict[Reason, str] = {}

    def renew_lock(self) -> None:
        """Replace the lock: in a forked process a thread that no longer exists may hold the old one."""
        self._lock = threading.RLock()

    def ended(self) -> None:
        """Count a span that ended; `account` must follow."""
        with self._lock:
            self._ended += 1
            self._on_their_way += 1

    def account(self, drop: Drop | None) -> None:
        """Count a span as accepted, or as dropped."""
        with self._lock:
            self._on_their_way -= 1
            if drop is None:
                self._accepted += 1
                return
            self._dropped[drop.reason] += 1
            if drop.detail:
                self._details[drop.reason] = drop.detail
        if self._warnings.allows():
            self.log_rest()

    def overruled(self, wanted: str, parents: str) -> None:
        """Count a span that started in a `use_location` but has its parent's location. Warn once for each pair."""
        pair = wanted, parents
        with self._lock:
            self._overruled += 1
            # setdefault tests and inserts in one step.
            is_new = len(self._pairs) < MAX_PAIRS and self._pairs.setdefault(pair, pair) is pair
        if is_new:
            self._logger.warning(
                "a span that started in use_location(%.300r) goes to %.300r, the location of its parent, "
                "which has not ended: start the span with context=Context() to begin a new trace; if a generator that "
                "was left early started the parent, close that generator first (logged once for these two locations)",
                wanted,
                parents,
            )

    def log_rest(self) -> None:
        """Log a warning about the dropped spans not yet logged, if any. Never raises, even if a log handler does."""
        no_details: dict[Reason, str] = {}
        with self._lock:
            dropped = self._dropped.copy()
            while dropped != self._dropped:
                dropped = self._dropped.copy()
            said, self._said = self._said, dropped
            details, self._details = self._details, no_details
        counts = {reason: dropped[reason] - said[reason] for reason in REASONS}
        number = sum(counts.values())
        if not number:
            return
        parts = [f"{count} {reason}" for reason, count in counts.items() if count]
        parts += [f"the last {reason} one: {detail}" for reason, detail in details.items()]
        with suppress(Exception):
            self._logger.warning(
                "%s that had ended %s dropped (%s)", counted(number, "span"), were(number), "; ".join(parts)
            )

    def statistics(self) -> SpanProcessorStatistics:
        with self._lock:
            while True:
                ended = self._ended
                dropped: dict[str, int] = {reason: self._dropped[reason] for reason in REASONS}
                statistics = SpanProcessorStatistics(
                    ended=ended,
                    accepted=self._accepted,
                    handed_over=self._on_their_way,
                    dropped=MappingProxyType(dropped),
                    overruled=self._overruled,
                )
                # A finalizer or a signal handler that changes any count also changes this one.
                if ended == self._ended:
                    return statistics
