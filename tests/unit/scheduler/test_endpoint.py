"""The rules of `Endpoint` as tables, without trio."""

from __future__ import annotations

import math
import random

import pytest

from trio_spanbatch import Delivered, Refused, RetryPolicy, TryLater
from trio_spanbatch._exporter import ExportResult
from trio_spanbatch._scheduler.endpoint import Endpoint, Sign, sign_of
from trio_spanbatch._scheduler.ledger import Account

UNREACHED = TryLater("refused", endpoint=True)
OVERLOADED = TryLater("503", status_code=503)
THROTTLED = TryLater("429", status_code=429, after=600)


class Place:
    """A location, as far as an endpoint knows one."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.account = Account()

    def __repr__(self) -> str:
        return self.name


class Longest(random.Random):
    """Jitter without chance: each wait is the longest."""

    def uniform(self, a: float, b: float) -> float:
        return b


A, B, C, D = "abcd"


class Bench:
    """An endpoint, its locations, and the time."""

    def __init__(self, max_exports: int = 4, retry: RetryPolicy | None = None) -> None:
        self.endpoint = Endpoint[Place]("", retry or RetryPolicy(), Longest(), max_exports, 0.0)
        self.places = {name: Place(name) for name in (A, B, C, D)}
        self.now = 0.0
        self.deadline = math.inf

    def attempt(self, name: str, result: ExportResult | None) -> bool:
        """Make an attempt. Return whether the endpoint has gone up or down with it."""
        is_probe = self.endpoint.begin()
        changed = self.ended(name, result, self.endpoint.answers, is_probe=is_probe)
        self.endpoint.end(is_probe=is_probe)
        return changed

    def ended(self, name: str, result: ExportResult | None, began_after: int, *, is_probe: bool = False) -> bool:
        return self.endpoint.note(
            result,
            self.places[name],
            self.now,
            began_after=began_after,
            is_probe=is_probe,
            drain_deadline=self.deadline,
        )

    def lets(self, name: str) -> bool:
        return self.endpoint.lets(self.places[name], self.now)

    def opens_at(self, name: str) -> float:
        return self.endpoint.opens_at(self.places[name])

    def wait(self, *names: str) -> None:
        for name in names:
            self.endpoint.join(self.places[name])

    @property
    def first(self) -> str | None:
        first = self.endpoint.first
        return None if first is None else first.name


def down(result: ExportResult = OVERLOADED, max_exports: int = 4) -> Bench:
    """Return an endpoint that went down with failures of A, B and C."""
    bench = Bench(max_exports)
    for name in (A, B, C):
        bench.attempt(name, result)
    assert not bench.endpoint.is_up
    return bench


@pytest.mark.parametrize(
    ("result", "sign"),
    [
        (Delivered(), Sign.UP),
        (Delivered(rejected=2, status_code=200), Sign.UP),
        (THROTTLED, Sign.UP),
        (TryLater("408", status_code=408), Sign.UP),
        (Refused("400", status_code=400, isolate=True), Sign.UP),
        (Refused("401", status_code=401), Sign.UP),
        (Refused("413", status_code=413), Sign.UP),
        (Refused("a web page", status_code=200), Sign.UP),
        (UNREACHED, Sign.UNREACHED),
        (TryLater("502", status_code=502), Sign.FAILED),
        (OVERLOADED, Sign.FAILED),
        (TryLater("503", status_code=503, after=30), Sign.FAILED),
        (TryLater("504", status_code=504), Sign.FAILED),
        (TryLater("no answer", ambiguous=True, cause="timeout"), Sign.FAILED),
        (TryLater("the exchange broke", ambiguous=True), Sign.FAILED),
        (TryLater("no credentials"), Sign.NONE),
        (TryLater("no credentials within 10 s", cause="timeout"), Sign.NONE),
        (Refused("no credentials"), Sign.NONE),
        (Refused("500", status_code=500), Sign.NONE),
        (TryLater("500", status_code=500), Sign.NONE),
        (None, Sign.NONE),
    ],
    ids=repr,
)
def test_a_result_says_about_the_endpoint(result: ExportResult | None, sign: Sign) -> None:
    assert sign_of(result) is sign


@pytest.mark.parametrize(
    ("results", "is_up"),
    [
        ([(A, UNREACHED)] * 2, True),
        ([(A, UNREACHED)] * 3, False),
        ([(A, UNREACHED), (B, UNREACHED), (A, UNREACHED)], False),
        ([(A, OVERLOADED)] * 9, True),
        ([(A, OVERLOADED), (B, OVERLOADED)] * 5, True),
        ([(A, OVERLOADED), (B, OVERLOADED), (C, OVERLOADED)], False),
        ([(A, OVERLOADED), (B, TryLater("", ambiguous=True)), (C, UNREACHED)], False),
        ([(A, OVERLOADED), (B, OVERLOADED), (D, Delivered()), (C, OVERLOADED)], True),
        ([(A, OVERLOADED), (B, OVERLOADED), (D, THROTTLED), (C, OVERLOADED)], True),
        ([(A, UNREACHED), (A, UNREACHED), (A, Delivered()), (A, UNREACHED)], True),
        ([(A, THROTTLED), (B, THROTTLED), (C, THROTTLED)], True),
        ([(A, TryLater("no credentials")), (B, TryLater("no credentials")), (C, TryLater("no credentials"))], True),
        ([(A, None), (B, None), (C, None)], True),
    ],
)
def test_an_endpoint_is_down_after(results: list[tuple[str, ExportResult | None]], is_up: bool) -> None:
    bench = Bench()
    for name, result in results:
        bench.attempt(name, result)
    assert bench.endpoint.is_up is is_up


@pytest.mark.parametrize("result", [UNREACHED, OVERLOADED])
def test_an_attempt_that_began_before_the_last_answer_does_not_count(result: ExportResult) -> None:
    bench = Bench()
    before = bench.endpoint.answers
    bench.attempt(D, Delivered())
    assert not any(bench.ended(name, result, before) for name in (A, B, C))
    assert bench.endpoint.is_up


def test_while_it_is_down_there_is_one_probe_at_a_time() -> None:
    bench = down()
    bench.now = 1.0
    assert bench.lets(A)
    is_probe = bench.endpoint.begin()
    assert is_probe
    assert not bench.lets(B)
    assert bench.opens_at(B) == math.inf
    bench.ended(A, OVERLOADED, bench.endpoint.answers, is_probe=True)
    bench.endpoint.end(is_probe=True)
    assert bench.opens_at(B) == 1.0 + 2.0


def test_a_probe_that_fails_makes_the_next_wait_longer_up_to_the_maximum() -> None:
    bench = down()
    waits = []
    for _ in range(7):
        waits.append(bench.opens_at(A) - bench.now)
        bench.now = bench.opens_at(A)
        bench.attempt(A, OVERLOADED)
    assert waits == [1, 2, 4, 8, 16, 30, 30]


def test_a_failure_of_an_attempt_that_is_no_probe_makes_no_wait_longer() -> None:
    bench = down()
    assert not any(bench.ended(name, OVERLOADED, bench.endpoint.answers) for name in (A, D))
    assert bench.opens_at(A) == 1.0


def test_a_location_that_has_not_failed_waits_only_as_long_as_probes_of_such_locations_made_it() -> None:
    bench = down()
    for _ in range(5):
        bench.attempt(A, OVERLOADED)
    assert bench.opens_at(A) == 30
    assert bench.opens_at(D) == 1
    bench.attempt(D, OVERLOADED)
    assert bench.opens_at(D) == 30


def test_probes_rotate_over_the_locations_that_wait_those_that_have_not_failed_first() -> None:
    bench = down()
    bench.wait(A, B, D, A)
    order = []
    for _ in range(5):
        first = bench.first
        assert first is not None
        order.append(first)
        bench.endpoint.leave(bench.places[first])
        bench.attempt(first, OVERLOADED)
        bench.wait(first)
    assert order == [D, A, B, D, A]


@pytest.mark.parametrize("answer", [Delivered(), THROTTLED, Refused("400", status_code=400)])
def test_any_answer_to_any_attempt_ends_an_outage(answer: ExportResult) -> None:
    bench = down()
    bench.now = 7.0
    assert bench.ended(A, answer, 0)
    assert bench.endpoint.is_up
    assert bench.endpoint.since == 7.0


@pytest.mark.parametrize("result", [TryLater("no credentials"), Refused("500", status_code=500), None])
def test_a_probe_that_says_nothing_ends_no_outage_and_makes_no_wait(result: ExportResult | None) -> None:
    bench = down()
    bench.now = 3.0
    assert not bench.attempt(A, result)
    assert not bench.endpoint.is_up
    assert bench.lets(B)


def test_after_an_outage_one_export_runs_and_each_success_allows_one_more() -> None:
    bench = down(max_exports=3)
    bench.attempt(A, Delivered())
    allowed = []
    for _ in range(3):
        running = 0
        while bench.lets(A) and running < 9:
            bench.endpoint.begin()
            running += 1
        allowed.append(running)
        for _ in range(running):
            bench.endpoint.end(is_probe=False)
        bench.attempt(A, Delivered())
    assert allowed == [1, 2, 9]


def test_after_an_outage_a_throttled_export_does_not_allow_one_more() -> None:
    bench = down()
    bench.attempt(A, Delivered())
    bench.attempt(B, THROTTLED)
    bench.endpoint.begin()
    assert not bench.lets(A)


def test_locations_that_wait_go_first_in_first_out_after_an_outage() -> None:
    bench = down()
    bench.wait(A, B)
    bench.attempt(A, Delivered())
    assert not bench.lets(B)
    assert bench.lets(A)
    assert bench.endpoint.leave(bench.places[A])
    assert bench.lets(B)


def test_in_the_drain_the_wait_for_a_probe_is_cut_once_and_later_ones_leave_time_for_another() -> None:
    bench = down()
    for _ in range(6):
        bench.attempt(A, OVERLOADED)
    bench.now, bench.deadline = 10.0, 30.0
    bench.endpoint.cut_short(bench.now)
    assert bench.lets(A)
    bench.attempt(A, OVERLOADED)
    assert bench.opens_at(A) == 20.0
    bench.endpoint.cut_short(bench.now)
    assert bench.opens_at(A) == 20.0
    bench.now = 29.95
    bench.attempt(A, OVERLOADED)
    assert bench.opens_at(A) == math.inf


def test_statistics_tell_since_when_it_is_up_or_down_and_when_the_next_probe_is_due() -> None:
    bench = Bench()
    bench.now = 5.0
    bench.attempt(A, Delivered())
    statistics = bench.endpoint.statistics()
    assert (statistics.is_up, statistics.since, statistics.attempts, statistics.next_probe_at) == (True, 0.0, 1, None)
    for _ in range(3):
        bench.attempt(A, UNREACHED)
    bench.attempt(A, UNREACHED)
    statistics = bench.endpoint.statistics()
    assert (statistics.is_up, statistics.since, statistics.attempts) == (False, 5.0, 1)
    assert statistics.next_probe_at == 6.0
