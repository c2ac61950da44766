"""How a location settles after a backoff."""

from __future__ import annotations

import math
import random

import pytest

from trio_spanbatch import RetryPolicy
from trio_spanbatch._scheduler.ledger import Account
from trio_spanbatch._scheduler.pace import Pace


class _Halves(random.Random):
    """Half of the longest wait."""

    def uniform(self, a: float, b: float) -> float:
        return (a + b) / 2


def make_pace(failures: int = 0) -> Pace:
    """Make a pace that has failed so many times, each as soon as it could, the last time at its ``retry_at``."""
    pace = Pace(RetryPolicy(), _Halves(), Account(), 4)
    pace.back_off(0.0, None, math.inf)
    for _ in range(failures - 1):
        pace.back_off(pace.retry_at, None, math.inf)
    return pace


@pytest.mark.parametrize(("failures", "longest"), [(1, 1.0), (2, 2.0), (3, 4.0), (6, 30.0), (20, 30.0)])
def test_a_location_settles_for_as_long_as_its_backoff_could_have_lasted(failures: int, longest: float) -> None:
    pace = make_pace(failures)
    opened_at = pace.retry_at + 0.001
    assert pace.holds_until(opened_at) == pace.retry_at + longest


def test_a_location_that_never_failed_holds_no_batch() -> None:
    assert Pace(RetryPolicy(), _Halves(), Account(), 4).holds_until(5.0) == -math.inf


def test_a_batch_from_before_the_end_of_a_backoff_is_not_held() -> None:
    pace = make_pace(3)
    assert pace.holds_until(pace.retry_at) == -math.inf


def test_a_failure_of_a_location_that_has_not_settled_lengthens_its_backoff() -> None:
    pace = make_pace(3)
    now = pace.retry_at + 3.9
    pace.succeeded(now)
    pace.back_off(now, None, math.inf)
    assert (pace.failures, pace.retry_at) == (4, now + 4.0)


def test_a_success_of_a_location_that_has_settled_resets_its_backoff() -> None:
    pace = make_pace(3)
    now = pace.retry_at + 4.0
    pace.succeeded(now)
    pace.back_off(now, None, math.inf)
    assert (pace.failures, pace.retry_at) == (1, now + 0.5)


def test_each_success_allows_one_more_export_although_the_location_has_not_settled() -> None:
    pace = make_pace(6)
    for expected in (2, 3, 4, 4):
        pace.succeeded(pace.retry_at)
        assert pace.allowed == expected


def test_a_location_settles_after_a_wait_that_its_server_asked_for() -> None:
    pace = Pace(RetryPolicy(), _Halves(), Account(), 4)
    pace.back_off(0.0, 100.0, math.inf)
    assert pace.holds_until(pace.retry_at + 0.001) == pace.retry_at + 1.0
