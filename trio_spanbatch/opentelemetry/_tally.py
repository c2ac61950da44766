"""What became of the spans that ended: counted by thread-safe steps, conserved, and said now and then.

A span that ended stands in exactly one column: on its way, accepted, or dropped for one of three reasons. ``ended`` is
counted by itself, so that the sum can fail and tests can see it.

The lock is an ``RLock``: a finalizer or a signal handler may end a span in the very thread that holds it. What happens
under it is a few additions in which CPython neither collects garbage nor handles signals, so re-entrance finds the
counts in order. What reads several of them and may be interrupted looks whether it was, and reads again. Nothing is
logged under it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from types import MappingProxyType
from typing import Final, Literal, TypeAlias

import attrs

from .._reporting.log import AnyLogger
from .._reporting.throttle import Throttle
from .._spans.hashing import hash_of_record

__all__ = ["REASONS", "Drop", "Reason", "SpanProcessorStatistics", "Tally"]

Reason: TypeAlias = Literal["queue_full", "already_shutdown", "invalid"]
REASONS: Final[tuple[Reason, ...]] = ("queue_full", "already_shutdown", "invalid")

# Pairs of locations that a warning is given about.
MAX_PAIRS: Final = 10_000


@attrs.frozen
class Drop:
    """Why a span is dropped.

    Attributes:
        reason: What it is counted as.
        detail: More about it, for the log.
    """

    reason: Reason
    detail: str = ""


@attrs.frozen(kw_only=True)
class SpanProcessorStatistics:
    """A snapshot of what became of the sampled spans that ended.

    At every instant ``ended == accepted + handed_over + sum(dropped.values())``.

    Attributes:
        ended: Spans that ended, sampled ones only.
        accepted: Spans that the batcher accepted, and accounts for.
        handed_over: Spans on their way from another thread into the batcher.
        dropped: Spans that were dropped, by reason: ``queue_full``, ``already_shutdown`` and ``invalid``.
        overruled: Spans that started in a `use_location`, but belong to another location, that of a live local parent.
            They are counted when they start.
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
        """Have another lock: in a forked process the old one may be held by a thread that is not there."""
        self._lock = threading.RLock()

    def ended(self) -> None:
        """A span ended. Whatever becomes of it has to be told."""
        with self._lock:
            self._ended += 1
            self._on_their_way += 1

    def accepted(self) -> None:
        """A span that ended was accepted by the batcher."""
        with self._lock:
            self._on_their_way -= 1
            self._accepted += 1

    def dropped(self, drop: Drop) -> None:
        """A span that ended was dropped."""
        with self._lock:
            self._on_their_way -= 1
            self._dropped[drop.reason] += 1
            if drop.detail:
                self._details[drop.reason] = drop.detail
        if self._warnings.allows():
            self.say_rest()

    def overruled(self, wanted: str, parents: str) -> None:
        """A span started in a `use_location`, and belongs to another location, that of its parent."""
        pair = wanted, parents
        with self._lock:
            self._overruled += 1
            # Asked and added in one step.
            is_new = len(self._pairs) < MAX_PAIRS and self._pairs.setdefault(pair, pair) is pair
        if is_new:
            self._logger.warning(
                "SpanBatcher: a span that started in use_location(%.300r) goes to %.300r, where its parent belongs, "
                "which has not ended: start it with context=Context() for a trace of its own; if the parent is of a "
                "generator that was left early, close that first (told once for these two locations)",
                wanted,
                parents,
            )

    def say_rest(self) -> None:
        """Warn of the spans that no warning has told of yet, if there are any. Never raises, whoever handles logs."""
        no_details: dict[Reason, str] = {}
        with self._lock:
            dropped = self._dropped.copy()
            while dropped != self._dropped:
                dropped = self._dropped.copy()
            said, self._said = self._said, dropped
            details, self._details = self._details, no_details
        counts = {reason: dropped[reason] - said[reason] for reason in REASONS}
        if not any(counts.values()):
            return
        parts = [f"{count} {reason}" for reason, count in counts.items() if count]
        parts += [f"the last {reason} one: {detail}" for reason, detail in details.items()]
        number = sum(counts.values())
        with suppress(Exception):
            self._logger.warning(
                "SpanBatcher: %d %s that had ended %s dropped (%s)",
                number,
                "span" if number == 1 else "spans",
                "was" if number == 1 else "were",
                "; ".join(parts),
            )

    def statistics(self) -> SpanProcessorStatistics:
        """Return a snapshot of the counts."""
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
                # A finalizer or a signal handler that changes anything has a span that ends.
                if ended == self._ended:
                    return statistics
