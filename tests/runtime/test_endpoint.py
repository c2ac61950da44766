"""An endpoint that is down, and locations that fail alone: the whole batcher on trio's mock clock."""

from __future__ import annotations

import logging
import math
import random
from collections import Counter
from collections.abc import Callable
from functools import cache, partial

import pytest
import trio
from trio.testing import MockClock

from tests.support.batchers import make_span, watched_batcher
from tests.support.long_tests import run_long
from trio_spanbatch import (
    BatchPolicy,
    Delivered,
    ExportResult,
    Limits,
    OTLPExporter,
    Refused,
    RetryPolicy,
    SpanBatch,
    SpanBatcher,
    TryLater,
)
from trio_spanbatch.testing import OTLPReceiver

UNREACHED = TryLater("cannot connect to collector.test:4318: Connection refused", endpoint=True)
OVERLOADED = TryLater("503 Service Unavailable", status_code=503)
DOWN = "SpanBatcher: the endpoint is down"


class Server:
    """An exporter whose result is a function of the location. It notes when each attempt began, and how old spans were.

    A span's name is the time at which it was added.
    """

    def __init__(self, answer: Callable[[str], ExportResult], seconds: Callable[[], float] = lambda: 0.0) -> None:
        self.answer = answer
        self.seconds = seconds
        self.began_at: list[float] = []
        self.asked: Counter[str] = Counter()
        self.running = self.most_running = 0
        self.ages: list[float] = []

    async def export(self, batch: SpanBatch) -> ExportResult:
        self.began_at.append(trio.current_time())
        self.asked[batch.location] += 1
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        try:
            await trio.sleep(self.seconds())
        finally:
            self.running -= 1
        result = self.answer(batch.location)
        if isinstance(result, Delivered):
            self.ages += [trio.current_time() - float(span.to_message().name) for span in batch.spans]
        return result

    async def aclose(self) -> None:
        await trio.lowlevel.checkpoint()


class RoutingServer(Server):
    """Sends to several servers: a location's name begins with its server's."""

    def endpoint_of(self, location: str) -> str:
        return location.split("/")[0]


class SlowToFail(RoutingServer):
    """It takes 20 s until a connection to a server that is down fails."""

    def __init__(self, answer: Callable[[str], ExportResult]) -> None:
        super().__init__(answer)
        self.begins_to_fail = trio.Event()

    async def export(self, batch: SpanBatch) -> ExportResult:
        if batch.location.startswith("down/"):
            self.begins_to_fail.set()
            await trio.sleep(20)
        return await super().export(batch)


def add_to_all(batcher: SpanBatcher, count: int) -> None:
    for number in range(count):
        batcher.add_span_nowait(f"location-{number}", make_span(str(trio.current_time())))


def delivered(_: str) -> ExportResult:
    return Delivered()


@pytest.mark.parametrize("failure", [UNREACHED, OVERLOADED], ids=["unreached", "503"])
async def test_a_dead_endpoint_is_asked_once_for_all_locations(
    failure: TryLater, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    server = Server(lambda _: failure)
    async with SpanBatcher(server, rng=random.Random(1)) as batcher:
        add_to_all(batcher, 2000)
        await trio.sleep(60)
        assert len([record for record in caplog.records if record.levelno >= logging.WARNING]) <= 5
        for _ in range(3):
            before = len(server.began_at)
            add_to_all(batcher, 2000)
            await trio.sleep(60)
            assert len(server.began_at) - before <= 60
        server.answer = delivered
        with trio.fail_after(60):
            await batcher.flush()
        assert batcher.statistics().delivered == 8000


@pytest.mark.parametrize("failure", [UNREACHED, OVERLOADED], ids=["unreached", "503"])
@pytest.mark.parametrize("locations", [1, 2, 3, 10, 40])
async def test_an_outage_of_five_minutes_loses_nothing(
    failure: TryLater, locations: int, autojump_clock: MockClock
) -> None:
    server = Server(lambda _: failure)
    async with watched_batcher(server, rng=random.Random(locations)) as batcher:
        for _ in range(30):
            add_to_all(batcher, locations)
            await trio.sleep(10)
        server.answer = delivered
        with trio.fail_after(60):
            await batcher.flush()
        statistics = batcher.statistics()
        assert (statistics.delivered, statistics.undelivered) == (30 * locations, 0)


async def test_what_was_never_attempted_is_kept_beyond_max_elapsed_and_what_was_attempted_is_not(
    autojump_clock: MockClock,
) -> None:
    server = Server(lambda _: UNREACHED)
    retry = RetryPolicy(max_elapsed=50)
    async with watched_batcher(server, BatchPolicy(max_spans=1), retry=retry, limits=Limits(max_exports=3)) as batcher:
        add_to_all(batcher, 100)
        await trio.sleep(200)
        undelivered = batcher.statistics().undelivered
        asked_more_than_50_s_ago = {name for name in server.asked if batcher.statistics().locations[name].undelivered}
        assert undelivered == len(asked_more_than_50_s_ago) > 0
        server.answer = delivered
        await batcher.flush()
        assert batcher.statistics().delivered == 100 - batcher.statistics().undelivered


async def test_while_an_endpoint_is_down_one_attempt_runs_at_a_time_and_it_rotates(autojump_clock: MockClock) -> None:
    server = Server(lambda _: OVERLOADED, seconds=lambda: 0.5)
    async with SpanBatcher(server, rng=random.Random(3), shutdown_timeout=0) as batcher:
        add_to_all(batcher, 70)
        await trio.sleep(10)
        assert not batcher.statistics().endpoint.is_up
        server.most_running = 0
        server.asked.clear()
        await trio.sleep(600)
        assert server.most_running == 1
        assert len(server.asked) == sum(server.asked.values()) > 30


async def test_after_an_outage_exports_begin_one_at_a_time_and_each_success_allows_one_more(
    autojump_clock: MockClock,
) -> None:
    server = Server(lambda _: UNREACHED)
    async with SpanBatcher(server, rng=random.Random(3), limits=Limits(max_exports=16)) as batcher:
        add_to_all(batcher, 200)
        await trio.sleep(30)
        server.answer, server.seconds = delivered, lambda: 1.0
        server.began_at.clear()
        server.most_running = 0
        await batcher.flush()
        assert server.most_running == 16
        at_once = list(Counter(server.began_at).values())
        # The probe; one more; then two for each of those that ended.
        assert at_once[:5] == [1, 1, 2, 4, 8]


async def test_a_healthy_location_ends_an_outage_that_it_has_no_part_in(autojump_clock: MockClock) -> None:
    server = Server(lambda location: Delivered() if location == "healthy" else OVERLOADED)
    async with SpanBatcher(server, rng=random.Random(1), shutdown_timeout=0) as batcher:
        add_to_all(batcher, 3)
        await trio.sleep(100)
        assert not batcher.statistics().endpoint.is_up
        batcher.add_span_nowait("healthy", make_span(str(trio.current_time())))
        await trio.sleep(6)
        assert batcher.statistics().locations["healthy"].delivered == 1
        assert batcher.statistics().endpoint.since > 100


def kinds_of_failure() -> dict[str, tuple[int, ExportResult]]:
    return {
        "one that answers 502": (1, TryLater("502", status_code=502)),
        "three that answer 429 for ten minutes": (3, TryLater("429", status_code=429, after=600)),
        "three that answer 503": (3, OVERLOADED),
        "one whose credentials fail": (1, TryLater("no credentials")),
        "three that refuse everything": (3, Refused("403", status_code=403)),
    }


@cache
def ages_beside(seed: int, sick: int, failure: ExportResult) -> list[float]:
    """Return how old the spans of healthy locations were when they were delivered, sorted."""
    healthy, minutes = 3, 2

    async def main() -> list[float]:
        rng = random.Random(seed)
        server = Server(
            lambda location: failure if location.startswith("sick") else Delivered(), lambda: rng.uniform(0.005, 0.05)
        )

        async def add_some(location: str) -> None:
            await trio.sleep(rng.uniform(0, 5))
            while trio.current_time() < 60 * minutes:
                try:
                    batcher.add_span_nowait(location, make_span(str(trio.current_time())))
                except trio.WouldBlock:
                    assert location.startswith("sick")
                await trio.sleep(rng.expovariate(1))

        async with (
            SpanBatcher(server, rng=rng, shutdown_timeout=0, on_loss=lambda loss: None) as batcher,
            trio.open_nursery() as nursery,
        ):
            for number in range(sick):
                nursery.start_soon(add_some, f"sick-{number}")
            for number in range(healthy):
                nursery.start_soon(add_some, f"healthy-{number}")
        return sorted(server.ages)

    return trio.run(main, clock=MockClock(autojump_threshold=0))


def check_isolation(seed: int, kind: str) -> None:
    sick, failure = kinds_of_failure()[kind]
    alone, beside = ages_beside(seed, 0, Delivered()), ages_beside(seed, sick, failure)
    p99 = [ages[math.ceil(0.99 * len(ages)) - 1] for ages in (alone, beside)]
    assert p99[1] <= 1.2 * p99[0], f"seed {seed}, {kind}: {p99}"
    assert beside[-1] <= 20, f"seed {seed}, {kind}: {beside[-1]}"


@pytest.mark.parametrize("kind", kinds_of_failure())
def test_healthy_locations_are_not_held_back_beside(kind: str) -> None:
    check_isolation(0, kind)


@pytest.mark.long
def test_healthy_locations_are_not_held_back_over_sixty_seeds() -> None:
    # In a process of its own: measuring its coverage would take minutes.
    run_long("-c", "from tests.runtime import test_endpoint; test_endpoint.check_sixty_seeds()")


def check_sixty_seeds() -> None:
    """Check each kind of failure with each seed."""
    for seed in range(60):
        for kind in kinds_of_failure():
            check_isolation(seed, kind)


async def test_in_the_drain_what_was_not_asked_is_handed_back_with_the_endpoint_as_the_reason(
    autojump_clock: MockClock,
) -> None:
    server = Server(lambda _: UNREACHED)
    async with watched_batcher(server, rng=random.Random(1), shutdown_timeout=10) as batcher:
        add_to_all(batcher, 100)
        await trio.sleep(60)
        asked = set(server.asked)
        left_at = trio.current_time()
    assert trio.current_time() <= left_at + 10
    # The wait for the probe was cut.
    assert server.began_at[-1] >= left_at
    never_asked = [loss for loss in batcher.undelivered if loss.location not in set(server.asked)]
    assert len(never_asked) == 100 - len(server.asked) > 0
    assert asked
    assert {loss.reason.partition(" (")[0] for loss in never_asked} == {"endpoint down"}
    assert "Connection refused" in never_asked[0].reason


async def test_an_endpoint_that_recovers_in_the_drain_gets_everything(autojump_clock: MockClock) -> None:
    server = Server(lambda _: UNREACHED)
    async with watched_batcher(server, rng=random.Random(1)) as batcher:
        add_to_all(batcher, 100)
        await trio.sleep(300)
        server.answer = delivered
        left_at = trio.current_time()
    assert batcher.statistics().delivered == 100
    assert trio.current_time() < left_at + 5


async def test_an_outage_and_its_end_are_one_message_each(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    server = Server(lambda _: UNREACHED)
    async with SpanBatcher(server, rng=random.Random(1)) as batcher:
        add_to_all(batcher, 50)
        await trio.sleep(100)
        server.answer = delivered
        await batcher.flush()
    messages = [record.getMessage() for record in caplog.records]
    about_endpoint = [message for message in messages if message.startswith("SpanBatcher: the endpoint")]
    assert about_endpoint[0].startswith(DOWN)
    assert "Connection refused" in about_endpoint[0]
    assert about_endpoint[1].startswith("SpanBatcher: the endpoint is up again after ")
    assert len(about_endpoint) == 2
    assert len(messages) <= 2 + 2 * 2 + 3


async def test_statistics_tell_whether_the_endpoint_is_up_since_when_and_when_it_is_asked_next(
    autojump_clock: MockClock,
) -> None:
    server = Server(delivered)
    async with SpanBatcher(server, rng=random.Random(1)) as batcher:
        assert batcher.statistics().endpoint.is_up
        add_to_all(batcher, 4)
        await trio.sleep(10)
        server.answer = lambda _: UNREACHED
        add_to_all(batcher, 4)
        await trio.sleep(20)
        endpoint = batcher.statistics().endpoint
        assert (endpoint.name, endpoint.is_up, endpoint.since) == ("", False, 15.0)
        assert endpoint.attempts == len([began for began in server.began_at if began > 15.0]) + 1
        assert endpoint.next_probe_at is not None
        server.answer = delivered
        await batcher.flush()
        endpoint = batcher.statistics().endpoint
        assert endpoint.is_up
        assert endpoint.since > 30
        assert endpoint.next_probe_at is None


async def test_the_locations_of_one_server_do_not_wait_for_another_one(autojump_clock: MockClock) -> None:
    server = RoutingServer(lambda location: UNREACHED if location.startswith("dead/") else Delivered())
    async with SpanBatcher(server, rng=random.Random(1), shutdown_timeout=0) as batcher:
        for minute in range(3):
            for number in range(20):
                batcher.add_span_nowait(f"dead/{number}", make_span(str(trio.current_time())))
                batcher.add_span_nowait(f"alive/{number}", make_span(str(trio.current_time())))
            await trio.sleep(60)
            assert batcher.statistics().delivered == 20 * (minute + 1)
        statistics = batcher.statistics()
        assert {name: endpoint.is_up for name, endpoint in statistics.endpoints.items()} == {
            "dead": False,
            "alive": True,
        }
        assert statistics.endpoint.name == "dead"
    assert max(server.ages) == 5.0


class NoRepr(str):
    __slots__ = ()

    def __repr__(self) -> str:
        raise RuntimeError("no repr")

    __str__ = __format__ = __repr__  # type: ignore[assignment]  # a mistake


class NamingServer(Server):
    """Its function of the location gives the name of the server, which need not be a valid one."""

    def __init__(self, name_of: Callable[[str], object]) -> None:
        super().__init__(lambda _: UNREACHED)
        self.name_of = name_of

    def endpoint_of(self, location: str) -> str:
        return self.name_of(location)  # type: ignore[return-value]  # on purpose


@pytest.mark.parametrize(
    ("name", "error", "shown"),
    [(4318, TypeError, "4318"), (None, TypeError, "None"), ("x" * 2000, ValueError, "'xx.*xx'")],
    ids=["int", "none", "long"],
)
async def test_endpoint_of_must_return_a_short_str_and_otherwise_nothing_is_accepted(
    name: object, error: type[Exception], shown: str, autojump_clock: MockClock
) -> None:
    async with SpanBatcher(NamingServer(lambda _: name)) as batcher:
        message = (
            rf"endpoint_of\('a'\) of the exporter returned {shown}; it must return a str of at most 1024 characters"
        )
        with pytest.raises(error, match=message) as caught:
            batcher.add_span_nowait("a", make_span())
        assert len(str(caught.value)) < 300
        with pytest.raises(error, match=message):
            await batcher.add_span("a", make_span())
        assert (batcher.statistics().accepted, batcher.statistics().endpoints) == (0, {})


async def test_what_endpoint_of_raises_leaves_the_call_and_nothing_is_accepted(autojump_clock: MockClock) -> None:
    async with SpanBatcher(NamingServer({"a": "eu"}.__getitem__), shutdown_timeout=0) as batcher:
        with pytest.raises(KeyError):
            batcher.add_span_nowait("b", make_span())
        batcher.add_span_nowait("a", make_span())
        assert (batcher.statistics().accepted, list(batcher.statistics().endpoints)) == (1, ["eu"])


async def test_the_name_of_an_endpoint_is_a_plain_str_in_statistics_and_log_messages(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with SpanBatcher(NamingServer(lambda _: NoRepr("eu\n%s")), shutdown_timeout=0) as batcher:
        batcher.add_span_nowait("a", make_span())
        await trio.sleep(60)
        assert [type(name) for name in batcher.statistics().endpoints] == [str]
    messages = [record.getMessage() for record in caplog.records]
    assert [message for message in messages if message.startswith(r"SpanBatcher: the endpoint 'eu\n%s' is down: ")]


async def test_endpoints_that_are_not_used_any_more_are_forgotten_even_if_they_are_down(
    autojump_clock: MockClock,
) -> None:
    server, most = NamingServer(lambda location: f"server of {location}"), 0
    policy, limits = BatchPolicy(max_delay=1), Limits(max_locations=20, location_idle_timeout=5)
    retry, rng = RetryPolicy(max_elapsed=10), random.Random(1)
    async with SpanBatcher(
        server, batch=policy, limits=limits, retry=retry, rng=rng, on_loss=lambda loss: None
    ) as batcher:
        for number in range(300):
            batcher.add_span_nowait(f"location-{number}", make_span())
            most = max(most, len(batcher.statistics().endpoints))
            await trio.sleep(1)
        assert 1 < most <= 20
        await trio.sleep(100)
        assert batcher.statistics().endpoints == {}


async def test_two_batchers_for_one_endpoint_do_not_know_of_each_other(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    server = Server(lambda _: UNREACHED, seconds=lambda: 0.1)
    async with SpanBatcher(server, rng=random.Random(1)) as one, SpanBatcher(server, rng=random.Random(2)) as other:
        add_to_all(one, 50)
        await trio.sleep(20)
        assert (one.statistics().endpoint.is_up, other.statistics().endpoint.is_up) == (False, True)
        add_to_all(other, 50)
        await trio.sleep(40)
        assert not other.statistics().endpoint.is_up
        server.most_running = 0
        await trio.sleep(300)
        assert server.most_running <= 2
        server.answer = delivered
        await one.flush()
        await other.flush()
        for batcher in (one, other):
            assert (batcher.statistics().endpoint.is_up, batcher.statistics().delivered) == (True, 50)
    messages = [record.getMessage() for record in caplog.records]
    assert len([message for message in messages if message.startswith(DOWN)]) == 2
    assert len([message for message in messages if message.startswith("SpanBatcher: the endpoint is up again")]) == 2


async def test_a_byte_budget_that_is_used_up_in_an_outage_is_freed_after_it(autojump_clock: MockClock) -> None:
    server = Server(lambda _: UNREACHED)
    policy = BatchPolicy(max_delay=math.inf, max_spans=3)
    async with watched_batcher(server, policy, rng=random.Random(1), limits=Limits(max_pending_bytes=3000)) as batcher:
        async with trio.open_nursery() as nursery:
            for number in range(60):
                nursery.start_soon(batcher.add_span, f"location-{number % 10}", make_span(str(trio.current_time())))
            await trio.sleep(100)
            assert not batcher.statistics().endpoint.is_up
            server.answer = delivered
        await batcher.flush()
        assert batcher.statistics().delivered == 60


async def test_adders_that_wait_for_bytes_get_those_of_a_server_that_is_up_although_another_one_is_down(
    autojump_clock: MockClock,
) -> None:
    def add(location: str, count: int) -> None:
        for number in range(count):
            batcher.add_span_nowait(location, make_span(str(number)))

    server = SlowToFail(lambda location: UNREACHED if location.startswith("down/") else Delivered())
    limits = Limits(max_pending_bytes=3000, max_exports=2)
    policy, rng = BatchPolicy(max_delay=math.inf), random.Random(1)
    async with SpanBatcher(server, batch=policy, limits=limits, rng=rng, shutdown_timeout=0) as batcher:
        add("down/asked", 1)
        with trio.move_on_after(100):
            await batcher.flush()
        assert not batcher.statistics().endpoints["down"].is_up
        server.begins_to_fail = trio.Event()
        await server.begins_to_fail.wait()
        # The location with the most bytes is chosen first, but has to wait until the probe has ended.
        add("down/fullest", 40)
        add("up/other", 5)
        with trio.fail_after(0.001):
            for number in range(60):
                await batcher.add_span("up/new", make_span(str(number)))
        assert server.asked["down/fullest"] == 0 < server.asked["up/new"]


async def test_a_wait_that_a_server_asked_for_is_lengthened_by_up_to_a_tenth_and_never_shortened(
    autojump_clock: MockClock,
) -> None:
    waits = []
    for seed in range(20):
        server = Server(partial(next, iter([TryLater("429", status_code=429, after=100), Delivered()])))
        async with SpanBatcher(server, batch=BatchPolicy(max_spans=1), rng=random.Random(seed)) as batcher:
            batcher.add_span_nowait("a", make_span(str(trio.current_time())))
            await trio.sleep(120)
        waits.append(server.began_at[1] - server.began_at[0])
    assert 100 <= min(waits) < 103
    assert 107 < max(waits) <= 110


async def test_an_exporter_over_http_tells_that_nothing_of_a_request_left(autojump_clock: MockClock) -> None:
    async with OTLPReceiver(listen=False) as receiver:
        transport = receiver.memory_transport()
    # The receiver has been left: nobody accepts a connection.
    exporter = OTLPExporter("http://receiver.test/v1/traces", transport=transport)
    async with SpanBatcher(exporter, rng=random.Random(1), shutdown_timeout=0) as batcher:
        add_to_all(batcher, 3)
        await trio.sleep(60)
        assert not batcher.statistics().endpoint.is_up
