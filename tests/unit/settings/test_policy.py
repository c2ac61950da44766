"""Policies validate their values."""

from __future__ import annotations

import math
from typing import Any

import attrs
import pytest

from trio_spanbatch import BatchPolicy, Limits, RetryPolicy

COUNTS = [
    (BatchPolicy, "max_spans"),
    (BatchPolicy, "max_bytes"),
    *[(Limits, field.name) for field in attrs.fields(Limits) if field.name != "location_idle_timeout"],
]
SECONDS = [
    (BatchPolicy, "max_delay"),
    (Limits, "location_idle_timeout"),
    *[(RetryPolicy, field.name) for field in attrs.fields(RetryPolicy) if field.name != "multiplier"],
]


def test_the_defaults_are_those_of_the_design() -> None:
    assert BatchPolicy() == BatchPolicy(max_spans=512, max_bytes=4 * 2**20, max_delay=5.0)
    assert Limits() == Limits(
        max_queued_spans=2048,
        max_pending_bytes=64 * 2**20,
        max_pending_bytes_per_location=16 * 2**20,
        max_locations=10_000,
        max_exports=64,
        max_exports_per_location=4,
        location_idle_timeout=90.0,
    )
    assert RetryPolicy() == RetryPolicy(
        initial=1.0, maximum=30.0, multiplier=2.0, max_elapsed=600.0, attempt_timeout=30.0
    )


@pytest.mark.parametrize(("policy", "field"), COUNTS)
@pytest.mark.parametrize("value", [0, -1])
def test_a_count_below_one_names_the_field_and_the_allowed_range(policy: Any, field: str, value: int) -> None:
    with pytest.raises(ValueError, match=rf"{policy.__name__}\.{field} is {value}; it must be at least 1"):
        policy(**{field: value})


@pytest.mark.parametrize(("policy", "field"), COUNTS)
@pytest.mark.parametrize("value", [1.5, math.nan, "7", True, None])
def test_a_count_that_is_not_an_int_names_the_field(policy: Any, field: str, value: object) -> None:
    with pytest.raises((TypeError, ValueError), match=rf"{policy.__name__}\.{field} is .*at least 1"):
        policy(**{field: value})


@pytest.mark.parametrize(("policy", "field"), SECONDS)
@pytest.mark.parametrize("value", [0, 0.0, -0.5, math.nan, -math.inf])
def test_a_time_that_is_not_positive_names_the_field_and_the_allowed_range(
    policy: Any, field: str, value: float
) -> None:
    with pytest.raises(ValueError, match=rf"{policy.__name__}\.{field} is {value!r}; it must be above 0"):
        policy(**{field: value})


@pytest.mark.parametrize(("policy", "field"), SECONDS)
@pytest.mark.parametrize("value", ["7", True, None])
def test_a_time_that_is_not_a_number_names_the_field(policy: Any, field: str, value: object) -> None:
    with pytest.raises(TypeError, match=rf"{policy.__name__}\.{field} is .*must be a number"):
        policy(**{field: value})


@pytest.mark.parametrize("value", [0, 0.5, -1, math.nan, math.inf])
def test_a_multiplier_below_one_or_infinite_names_the_field(value: float) -> None:
    with pytest.raises(ValueError, match=r"RetryPolicy\.multiplier is .*finite and at least 1"):
        RetryPolicy(multiplier=value)


def test_times_may_be_infinite() -> None:
    assert BatchPolicy(max_delay=math.inf).max_delay == math.inf
    assert RetryPolicy(max_elapsed=math.inf).max_elapsed == math.inf


def test_the_longest_wait_grows_to_the_maximum_and_never_overflows() -> None:
    retry = RetryPolicy(initial=1, maximum=30, multiplier=2)
    assert [retry.longest_wait(failures) for failures in (1, 2, 3, 5, 6, 100, 100_000)] == [1, 2, 4, 16, 30, 30, 30]


def test_policies_are_frozen() -> None:
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        BatchPolicy().max_spans = 7  # type: ignore[misc]  # wrong on purpose


@pytest.mark.parametrize(("policy", "field"), [*SECONDS, (RetryPolicy, "multiplier")])
def test_a_time_that_is_larger_than_any_float_names_the_field(policy: Any, field: str) -> None:
    with pytest.raises(TypeError, match=rf"{policy.__name__}\.{field} is .*must be a number"):
        policy(**{field: 10**5000})


@pytest.mark.parametrize("value", [math.inf, 10**400])
def test_the_first_wait_is_finite(value: float) -> None:
    with pytest.raises((TypeError, ValueError), match=r"RetryPolicy\.initial is .*above 0 and finite"):
        RetryPolicy(initial=value)


def test_without_a_maximum_the_longest_wait_is_still_finite() -> None:
    retry = RetryPolicy(maximum=math.inf)
    assert math.isfinite(retry.longest_wait(100_000))
