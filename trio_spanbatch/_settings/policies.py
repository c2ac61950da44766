"""Settings: how large a batch grows, how many spans may wait, how often an export is repeated.

Each record validates its values. Times are seconds (floats, `math.inf` for no limit), sizes are bytes.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from typing import Any

import attrs

from .._spans.checks import shown
from .._values import is_number

MIB = 1024 * 1024


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _validator(is_of_kind: Callable[[object], bool], kind: str, allowed: str, is_allowed: Callable[[Any], bool]) -> Any:
    def validate(instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
        name = f"{type(instance).__name__}.{attribute.name}"
        if not is_of_kind(value):
            raise TypeError(f"{name} is {shown(value)}; it must be {kind} {allowed}")
        if not is_allowed(value):
            raise ValueError(f"{name} is {value!r}; it must be {allowed}")

    return validate


_count = _validator(_is_int, "an int of", "at least 1", lambda value: value >= 1)
_seconds = _validator(is_number, "a number", "above 0 (math.inf means no limit)", lambda value: value > 0)
_finite = _validator(is_number, "a number", "above 0 and finite", lambda value: 0 < value < math.inf)
_factor = _validator(is_number, "a number", "finite and at least 1", lambda value: 1 <= value < math.inf)


@attrs.frozen
class BatchPolicy:
    """When the batch of a location is due: when it reaches the first of these limits.

    Attributes:
        max_spans: The most spans of a batch. A batch cannot grow beyond ``Limits.max_queued_spans`` either, so the
            smaller of the two counts.
        max_bytes: The most bytes of a batch's request before compression, envelopes included. A single span that is
            larger is sent alone.
        max_delay: Seconds from the batch's first span until it is due. After a backoff, a location sends no new batch
            just because of its age for as long as that backoff could have lasted, at most ``RetryPolicy.maximum``.
    """

    max_spans: int = attrs.field(default=512, validator=_count)
    max_bytes: int = attrs.field(default=4 * MIB, validator=_count)
    max_delay: float = attrs.field(default=5.0, validator=_seconds)


@attrs.frozen
class Limits:
    """How many spans may wait, and how many exports may run at once.

    Attributes:
        max_queued_spans: Spans queued for one location, not counting those in flight.
        max_pending_bytes: Bytes of all spans that are accepted and not accounted for yet: the sum of `EncodedSpan.size`
            and of the bytes of resources and scopes, counted once for consecutive spans that share them.
        max_pending_bytes_per_location: The same for one location.
        max_locations: Locations that are live at once. Each takes up to 4 KB.
        max_exports: Concurrent exports of all locations.
        max_exports_per_location: Concurrent exports of one location. Each location starts with one, gains one with
            each success, and falls back to one after a failure.
        location_idle_timeout: Seconds without a pending span after which a location is closed.
    """

    max_queued_spans: int = attrs.field(default=2048, validator=_count)
    max_pending_bytes: int = attrs.field(default=64 * MIB, validator=_count)
    max_pending_bytes_per_location: int = attrs.field(default=16 * MIB, validator=_count)
    max_locations: int = attrs.field(default=10_000, validator=_count)
    max_exports: int = attrs.field(default=64, validator=_count)
    max_exports_per_location: int = attrs.field(default=4, validator=_count)
    location_idle_timeout: float = attrs.field(default=90.0, validator=_seconds)


@attrs.frozen
class RetryPolicy:
    """How often and how long an export is repeated.

    The n-th repetition waits a random time between 0 and ``initial * multiplier ** (n - 1)``, at most ``maximum``
    (exponential backoff with full jitter, https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/),
    or as long as the server asked for.

    Attributes:
        initial: Seconds; the longest wait before the first repetition.
        maximum: Seconds; the longest wait before any repetition, unless the server asks for more.
        multiplier: The factor by which the longest wait grows with each repetition; at least 1.
        max_elapsed: Seconds after a batch's first attempt until its spans are handed back instead of repeated.
        attempt_timeout: Seconds that one attempt may take with any exporter.
    """

    initial: float = attrs.field(default=1.0, validator=_finite)
    maximum: float = attrs.field(default=30.0, validator=_seconds)
    multiplier: float = attrs.field(default=2.0, validator=_factor)
    max_elapsed: float = attrs.field(default=600.0, validator=_seconds)
    attempt_timeout: float = attrs.field(default=30.0, validator=_seconds)

    def longest_wait(self, failures: int) -> float:
        """Return the upper bound in seconds of the wait after ``failures`` failed attempts in a row (1 or more)."""
        try:
            return min(self.maximum, self.initial * float(self.multiplier) ** (failures - 1))
        except OverflowError:
            return min(self.maximum, sys.float_info.max)
