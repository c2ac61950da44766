"""A limit on how often a message is logged."""

from __future__ import annotations

import math

from trio_spanbatch._reporting.throttle import Throttle


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_an_event_is_allowed_at_once_and_again_after_the_interval() -> None:
    clock = Clock()
    throttle = Throttle(clock, interval=30.0)
    allowed = []
    for second in range(91):
        clock.now = float(second)
        if throttle.allows():
            allowed.append(second)
    assert allowed == [0, 30, 60, 90]


def test_keys_are_limited_independently() -> None:
    throttle = Throttle(Clock(), max_keys=2)
    assert [throttle.allows(key) for key in "abab"] == [True, True, False, False]


def test_with_an_infinite_interval_each_key_is_allowed_once_until_the_keys_are_cleared() -> None:
    clock = Clock()
    throttle = Throttle(clock, interval=math.inf)
    assert throttle.allows("a")
    clock.now = 1e9
    assert not throttle.allows("a")
    throttle.clear()
    assert throttle.allows("a")


def test_the_key_allowed_longest_ago_is_forgotten_beyond_the_limit() -> None:
    throttle = Throttle(Clock(), max_keys=2)
    assert [throttle.allows(key) for key in "abc"] == [True, True, True]
    assert [throttle.allows(key) for key in "cba"] == [False, False, True]
    assert len(throttle._allowed_at) == 2
