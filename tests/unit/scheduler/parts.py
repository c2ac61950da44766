"""Single parts of the scheduler."""

from __future__ import annotations

import random

from tests.unit.scheduler.support import HEADERS, make_queue
from trio_spanbatch import BatchPolicy, EncodedSpan, Limits, RetryPolicy
from trio_spanbatch._scheduler.endpoint import Endpoint
from trio_spanbatch._scheduler.location import Location
from trio_spanbatch._scheduler.pace import Pace
from trio_spanbatch._scheduler.scheduler import Scheduler

__all__ = ["Clock", "make_location", "make_scheduler", "make_span"]


class Clock:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def make_span(size: int = 10, headers: int = 0) -> EncodedSpan:
    return EncodedSpan(b"x" * size, HEADERS[headers])


def make_scheduler(
    limits: Limits | None = None, policy: BatchPolicy | None = None, clock: Clock | None = None
) -> Scheduler:
    return Scheduler(
        limits or Limits(),
        RetryPolicy(),
        lambda _: policy or BatchPolicy(),
        None,
        None,
        random.Random(0),
        clock or Clock(),
        make_queue,
        lambda: None,
    )


def make_location(name: str) -> Location:
    """Return a location that no scheduler knows."""
    account = make_scheduler().ledger.open(name)
    pace = Pace(RetryPolicy(), random.Random(0), account, 4)
    endpoint = Endpoint[Location]("", RetryPolicy(), random.Random(0), 4, 0.0)
    return Location(name, account, endpoint, BatchPolicy(), 100, make_queue(100), pace, 0.0)
