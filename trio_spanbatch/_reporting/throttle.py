"""A limit on how often a message is logged."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable

# Minimum number of seconds between two messages of the same kind.
WARNING_INTERVAL = 30.0


class Throttle:
    """Allows an event once per key and interval.

    A signal handler or finalizer may call it in the middle of another call, where a lock would deadlock. There is none,
    so that an event may then be allowed twice.

    Args:
        clock: Returns the current time in seconds.
        interval: Seconds until the same key is allowed again; `math.inf` for never.
        max_keys: The maximum number of keys that are remembered. The key that was allowed longest ago is forgotten
            first.
    """

    def __init__(self, clock: Callable[[], float], interval: float = WARNING_INTERVAL, max_keys: int = 1) -> None:
        self._clock = clock
        self._interval = interval
        self._max_keys = max_keys
        self._allowed_at: OrderedDict[Hashable, float] = OrderedDict()

    def allows(self, key: Hashable = None) -> bool:
        """Return whether the event may happen now. If so, it counts as having happened."""
        now = self._clock()
        allowed_at = self._allowed_at.get(key)
        if allowed_at is not None and now < allowed_at + self._interval:
            return False
        self._allowed_at.pop(key, None)
        self._allowed_at[key] = now
        if len(self._allowed_at) > self._max_keys:
            self._allowed_at.popitem(last=False)
        return True

    def clear(self) -> None:
        """Forget all keys."""
        self._allowed_at.clear()
