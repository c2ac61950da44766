"""The plan of a seed: limits, policies, a program and a server's faults, all drawn from one random generator.

Numbers are small, so that a run of a few dozen spans reaches every limit: a batch of one, a queue of one, a budget of
three spans, one slot. One seed in forty uses a few spans of megabytes instead.
"""

from __future__ import annotations

import math
import random
from typing import Any, Literal, TypeAlias, get_args

import attrs

from trio_spanbatch import BatchPolicy, Limits, RetryPolicy

KIB = 1024
MIB = 1024 * KIB

# A little more than the size of a span without padding in a request.
SPAN_BYTES = 50

Fault: TypeAlias = Literal[
    "broken body",
    "drip",
    "half a response",
    "hang",
    "misdirected",
    "partial success",
    "refused",
    "refused connections",
    "reset",
    "restart",
    "retry after",
    "slow",
    "too large",
    "try later",
]
FAULTS: tuple[Fault, ...] = get_args(Fault)

# What the whole server does in an outage.
Outage: TypeAlias = Literal["refused connections", "503", "hang"]
OUTAGES: tuple[Outage, ...] = get_args(Outage)

End: TypeAlias = Literal["end", "raise", "cancel the body", "cancel in the drain", "calm"]


@attrs.frozen
class SpoolPlan:
    """A spool in memory, and how its disk misbehaves until the plan's faults end.

    Attributes:
        settings: Arguments of `Spool`.
        slow: The seconds that an operation takes, one of which is drawn for each.
        failing: The probability that an operation fails.
        damage: The probability that a record cannot be read.
        lands: Whether a commit that is cancelled takes effect.
        syncers: The number of tasks that call ``sync``.
        left: The number of records that an earlier process has left, each of up to three spans.
    """

    settings: dict[str, Any]
    slow: tuple[float, ...]
    failing: float
    damage: float
    lands: bool
    syncers: int
    left: int


@attrs.frozen
class Plan:
    """Everything about a run that is drawn before it begins; the rest is drawn during the run.

    Attributes:
        seed: The seed of the plan.
        locations: The names of the locations.
        limits: The batcher's argument.
        retry: The batcher's argument.
        policies: A policy for each location.
        shutdown_timeout: The batcher's argument.
        strict: The batcher's argument.
        timeout: The exporter's argument.
        gzip: Whether requests are compressed.
        span_sizes: The sizes to which spans are padded.
        weather: The probability of each fault, for each request.
        request_limit: The size of the largest request that the server accepts, when it has a limit.
        is_always_limited: Whether it always has one, and not only as a fault.
        poison: The probability that the server refuses a span.
        keeps_cancelled: The probability that the exporter raises a Cancelled that it has kept from another attempt.
        heals_at: When all faults end, in seconds of the mock clock; `math.inf` is never.
        end: How the body ends.
        ends_at: When it is told to end, if its tasks have not ended before.
        adders: The numbers of tasks that add spans, inside and outside of the body.
        flushers: The numbers of tasks that flush, inside and outside of the body.
        spool: The batcher's spool; None for none, as in half of the plans.
        outages: The outages of the whole server: when each begins and ends, in seconds of the mock clock, and its kind.
        cancel_at_step: The scheduling step after which one of the scopes is cancelled, or None.
    """

    seed: int
    locations: tuple[str, ...]
    limits: Limits
    retry: RetryPolicy
    policies: dict[str, BatchPolicy]
    shutdown_timeout: float
    strict: bool
    timeout: float
    gzip: bool
    span_sizes: tuple[int, ...]
    weather: dict[Fault, float]
    request_limit: int
    is_always_limited: bool
    poison: float
    keeps_cancelled: float
    heals_at: float
    end: End
    ends_at: float
    adders: tuple[int, int]
    flushers: tuple[int, int]
    cancel_at_step: int | None
    outages: tuple[tuple[float, float, Outage], ...]
    spool: SpoolPlan | None


def draw_plan(seed: int) -> Plan:
    """Return the plan of ``seed``."""
    rng = random.Random(seed)
    locations = tuple(f"team-{number}" for number in range(rng.randint(1, 6)))
    large = rng.random() < 1 / 40
    return Plan(
        seed=seed,
        locations=locations,
        limits=_large_limits(rng) if large else _small_limits(rng),
        retry=RetryPolicy(
            initial=rng.choice([0.5, 1, 5]),
            maximum=rng.choice([5, 30]),
            multiplier=rng.choice([1, 2, 3]),
            max_elapsed=rng.choice([3, 20, 300, math.inf]),
            attempt_timeout=rng.choice([2, 10, 30]),
        ),
        policies={location: _policy(rng, large=large) for location in locations},
        shutdown_timeout=rng.choice([0, 0.05, 0.5, 3, 10, 30]),
        strict=rng.random() < 0.2,
        timeout=rng.choice([1, 5, 10]),
        gzip=rng.random() < 0.3,
        span_sizes=(0, MIB, 3 * MIB, 6 * MIB) if large else (0, 0, 20, 100, 400),
        weather=_weather(rng),
        request_limit=rng.choice([2 * MIB, 8 * MIB]) if large else rng.choice([150, 400, 1000]),
        is_always_limited=rng.random() < 0.2,
        poison=rng.choice([0, 0, 0.05, 0.3]),
        keeps_cancelled=rng.choice([0, 0, 0, 0, 0, 0, 0.05, 0.3]),
        heals_at=rng.choice([0, 10, 30, math.inf]),
        end=rng.choice(["end", "end", "raise", "cancel the body", "cancel in the drain", "calm"]),
        ends_at=rng.uniform(0, 15),
        adders=(1, 1) if large else (rng.randint(1, 3), rng.randint(0, 2)),
        flushers=(rng.randint(0, 1), rng.randint(0, 1)),
        cancel_at_step=rng.randint(1, rng.choice([60, 300, 1500])) if rng.random() < 0.5 else None,
        outages=_outages(rng),
        spool=_spool(random.Random(f"{seed} spool")),
    )


def _spool(rng: random.Random) -> SpoolPlan | None:
    # Drawn by another generator, so that plans without a spool are what they were before there was one.
    if rng.random() < 0.5:
        return None
    return SpoolPlan(
        settings={
            "max_bytes": rng.choice([20 * SPAN_BYTES, MIB, 1024 * MIB, 1024 * MIB]),
            "max_age": rng.choice([None, None, None, 30, 500]),
            "commit_interval": rng.choice([0.01, 0.2, 3]),
            "when_full": rng.choice(["wait", "drop_oldest"]),
        },
        slow=rng.choice([(0,), (0,), (0, 0.1), (0, 0, 0.5, 3, 15)]),
        failing=rng.choice([0, 0, 0, 0.1, 0.7]),
        damage=rng.choice([0, 0, 0, 0.1]),
        lands=rng.random() < 0.5,
        syncers=rng.randint(0, 2),
        left=rng.choice([0, 0, 1, 5, 20]),
    )


def _small_limits(rng: random.Random) -> Limits:
    return Limits(
        max_queued_spans=rng.choice([1, 2, 5, 50]),
        max_pending_bytes=rng.choice([10 * SPAN_BYTES, 30 * SPAN_BYTES, MIB]),
        max_pending_bytes_per_location=rng.choice([10 * SPAN_BYTES, 20 * SPAN_BYTES, MIB]),
        max_locations=rng.choice([1, 2, 3, 10]),
        max_exports=rng.choice([1, 2, 3, 10]),
        max_exports_per_location=rng.choice([1, 2, 4]),
        location_idle_timeout=rng.choice([0.5, 3, 90, math.inf]),
    )


def _large_limits(rng: random.Random) -> Limits:
    return Limits(
        max_queued_spans=rng.choice([2, 50]),
        max_pending_bytes=rng.choice([8 * MIB, 64 * MIB]),
        max_pending_bytes_per_location=rng.choice([7 * MIB, 16 * MIB]),
        max_exports=rng.choice([1, 3]),
    )


def _policy(rng: random.Random, *, large: bool) -> BatchPolicy:
    return BatchPolicy(
        max_spans=rng.choice([1, 2, 5, 512, 512]),
        max_bytes=4 * MIB if large else rng.choice([1, 3 * SPAN_BYTES, 10 * SPAN_BYTES, 4 * MIB, 4 * MIB]),
        max_delay=rng.choice([0.01, 1, 5, math.inf]),
    )


def _outages(rng: random.Random) -> tuple[tuple[float, float, Outage], ...]:
    """Return up to two outages; in half of the plans there is none."""
    begins = [rng.choice([0, rng.uniform(0, 12)]) for _ in range(rng.choice([0, 0, 1, 2]))]
    return tuple((begin, begin + rng.choice([5, 30, 200]), rng.choice(OUTAGES)) for begin in begins)


def _weather(rng: random.Random) -> dict[Fault, float]:
    """Return the probabilities of faults in this run: from no faults to many, of few kinds or of all."""
    storm = rng.choice([0, 0.1, 0.3, 0.7, 0.95])
    kinds = rng.sample(FAULTS, rng.randint(1, len(FAULTS)))
    weights = [rng.random() ** 2 for _ in kinds]
    return {kind: storm * weight / sum(weights) for kind, weight in zip(kinds, weights, strict=True)}
