"""When a batcher sends, retries and gives up: `SpanBatcher` and `OTLPExporter` on trio's mock clock.

Most tests run over memory, where the clock jumps by itself. Where a test is about TCP, the clock stands still until the
test moves it: the kernel needs no clock.
"""

from __future__ import annotations

import itertools
import logging
import math
import random
import types
from email.utils import formatdate

import pytest
import trio
import trio.lowlevel
from trio.testing import MockClock

from tests.support import hostile_servers
from tests.support.batchers import ids_of, make_span, make_spans, watched_batcher
from tests.support.deliveries import BIG, batcher_to, clear_environment, ids_of_messages, refusing, stored_ids
from tests.support.receivers import wait_until
from trio_spanbatch import BatchPolicy, OTLPExporter, RetryPolicy
from trio_spanbatch.testing import Answer, Drip, Hang, OTLPReceiver, Outcome, ReceivedRequest, Reset

WALL_CLOCK = 1_800_000_000.0


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    clear_environment(monkeypatch)
    # HTTP-dates are compared to the wall clock, which here goes as trio's does.
    clock = types.SimpleNamespace(time=lambda: WALL_CLOCK + trio.current_time())
    monkeypatch.setattr("trio_spanbatch._http.attempt.time", clock)


def in_memory(*answers: Outcome | None, location_header: str | None = None) -> OTLPReceiver:
    return OTLPReceiver(answers=answers, listen=False, location_header=location_header)


def busy(retry_after: str, status: int = 503) -> Answer:
    return Answer(status, headers=[("retry-after", retry_after)])


def http_date(seconds_from_now: float) -> str:
    return formatdate(WALL_CLOCK + trio.current_time() + seconds_from_now, usegmt=True)


def times(receiver: OTLPReceiver) -> list[float]:
    return [request.at for request in receiver.requests]


# Retry-After.


@pytest.mark.parametrize("status", [429, 502, 503, 504])
@pytest.mark.parametrize("as_date", [False, True])
async def test_retry_after_is_waited_for_as_seconds_and_as_http_date(
    as_date: bool, status: int, autojump_clock: MockClock
) -> None:
    value = http_date(17) if as_date else "17"
    async with in_memory(busy(value, status)) as receiver:
        async with batcher_to(receiver, retry=RetryPolicy()) as batcher:
            batcher.add_spans_nowait("a", make_spans(3))
            report = await batcher.flush()
        assert (report.delivered, times(receiver)) == (3, [0, 17])


@pytest.mark.parametrize("ahead", [-3600, -1, 0, 1, 3600])
async def test_a_retry_after_date_is_honoured_whatever_the_local_clock_says(
    ahead: float, autojump_clock: MockClock
) -> None:
    answer = Answer(503, headers=[("date", http_date(ahead)), ("retry-after", http_date(ahead + 17))])
    async with in_memory(answer) as receiver:
        async with batcher_to(receiver, retry=RetryPolicy()) as batcher:
            batcher.add_spans_nowait("a", make_spans(3))
            report = await batcher.flush()
        assert (report.delivered, times(receiver)) == (3, [0, 17])


async def test_of_two_retry_after_headers_the_longer_one_is_waited_for(autojump_clock: MockClock) -> None:
    answer = Answer(503, headers=[("retry-after", "5"), ("retry-after", "17")])
    async with in_memory(answer) as receiver:
        async with batcher_to(receiver, retry=RetryPolicy()) as batcher:
            batcher.add_spans_nowait("a", make_spans(3))
            report = await batcher.flush()
        assert (report.delivered, times(receiver)) == (3, [0, 17])


async def test_retry_after_is_waited_for_on_tcp_too(mock_clock: MockClock) -> None:
    async with OTLPReceiver(answers=[busy("17")]) as receiver, batcher_to(receiver, retry=RetryPolicy()) as batcher:
        batcher.add_spans_nowait("a", make_spans(3))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(batcher.flush)
            await wait_until(lambda: batcher.statistics().locations["a"].consecutive_failures == 1)
            mock_clock.jump(16.9)
            for _ in range(100):
                await trio.lowlevel.checkpoint()
            assert batcher.statistics().requests == 1
            mock_clock.jump(0.2)
            await wait_until(lambda: batcher.statistics().delivered == 3)


@pytest.mark.parametrize("value", ["-1", "soon", "17.5", "", "Thu, 99 Foo 2099 99:99:99 GMT", formatdate(0), "0"])
async def test_without_a_sensible_retry_after_the_backoff_is_exponential_with_full_jitter(
    value: str, autojump_clock: MockClock
) -> None:
    async with in_memory(*[busy(value)] * 8) as receiver:
        async with batcher_to(receiver, retry=RetryPolicy(), rng=random.Random(3)) as batcher:
            batcher.add_spans_nowait("a", make_spans(3))
            await batcher.flush()
        waits = [later - earlier for earlier, later in itertools.pairwise(times(receiver))]
    rng = random.Random(3)
    assert waits == pytest.approx([rng.uniform(0, longest) for longest in (1, 2, 4, 8, 16, 30, 30, 30)])


@pytest.mark.parametrize("seconds", [61, 3600, 10**12, 10**400])
@pytest.mark.parametrize("as_date", [False, True])
async def test_a_batch_is_handed_back_at_once_if_its_retry_after_ends_after_max_elapsed(
    seconds: int, as_date: bool, autojump_clock: MockClock
) -> None:
    # A date is relative to now, not to the response.
    value = http_date(40 + min(seconds, 10**9)) if as_date else str(seconds)
    async with in_memory(busy("40"), busy(value)) as receiver:
        async with batcher_to(receiver, retry=RetryPolicy(max_elapsed=100)) as batcher:
            batcher.add_spans_nowait("a", make_spans(3))
            report = await batcher.flush()
            # There is no wait for an attempt that will not be made.
            assert (report.undelivered, trio.current_time()) == (3, 40)
        assert times(receiver) == [0, 40]


async def test_a_batch_that_comes_later_does_not_wait_for_longer_than_max_elapsed(autojump_clock: MockClock) -> None:
    async with in_memory(busy("100000")) as receiver:
        async with batcher_to(receiver, retry=RetryPolicy(max_elapsed=100)) as batcher:
            batcher.add_spans_nowait("a", make_spans(3))
            assert (await batcher.flush()).undelivered == 3
            await trio.sleep(30)
            batcher.add_spans_nowait("a", make_spans(2))
            assert (await batcher.flush()).delivered == 2
        assert times(receiver) == [0, 100]


async def test_a_retry_after_beyond_max_elapsed_causes_no_more_requests_than_none(
    autojump_clock: MockClock,
) -> None:
    took = []
    for after in ("", "3600"):
        began = trio.current_time()
        async with in_memory(*[Answer(503, headers=[("retry-after", after)] if after else [])] * 1000) as receiver:
            retry = RetryPolicy(max_elapsed=0.5)
            policy = BatchPolicy(max_spans=1)
            async with batcher_to(receiver, batch=policy, retry=retry, rng=random.Random(1)) as batcher:
                batcher.add_spans_nowait("a", make_spans(50))
                assert (await batcher.flush()).undelivered == 50
        took.append(trio.current_time() - began)
    assert took[1] > 0.8 * took[0] > 100


async def test_spans_for_which_the_drain_has_no_time_are_handed_back_with_that_reason(
    autojump_clock: MockClock,
) -> None:
    async with in_memory(*[Answer(503)] * 1000) as receiver:
        async with batcher_to(receiver, retry=RetryPolicy(), shutdown_timeout=30) as batcher:
            batcher.add_spans_nowait("a", make_spans(3))
        assert trio.current_time() <= 30
    reason = "no time for another attempt before the shutdown deadline: 503 Service Unavailable"
    assert [(loss.reason, loss.status_code) for loss in batcher.undelivered] == [(reason, 503)]


@pytest.mark.parametrize(("seconds", "delivered", "ended"), [(20, 3, 20), (28, 3, 28), (60, 0, 5)])
async def test_a_retry_after_is_honoured_in_the_drain_if_it_ends_before_the_deadline(
    seconds: int, delivered: int, ended: float, autojump_clock: MockClock
) -> None:
    async with in_memory(busy(str(seconds))) as receiver:
        async with batcher_to(receiver, retry=RetryPolicy(), shutdown_timeout=30) as batcher:
            batcher.add_spans_nowait("a", make_spans(3))
            with trio.move_on_after(5):
                await batcher.flush()
        assert trio.current_time() == ended
    statistics = batcher.statistics()
    assert (statistics.delivered, statistics.undelivered) == (delivered, 3 - delivered)


# Unknown outcomes.


@pytest.mark.parametrize("store", [False, True])
async def test_a_timeout_is_retried_and_its_spans_are_counted_as_ambiguous_once(
    store: bool, autojump_clock: MockClock
) -> None:
    spans = make_spans(3)
    async with in_memory(Hang(store=store), Hang(store=store)) as receiver:
        async with batcher_to(receiver) as batcher:
            batcher.add_spans_nowait("a", spans)
            report = await batcher.flush()
        assert times(receiver) == pytest.approx([0, 10, 20], abs=0.01)
        assert stored_ids(receiver) == sorted(ids_of(spans) * (3 if store else 1))
    statistics = batcher.statistics()
    assert (report.delivered, statistics.ambiguous, statistics.retries) == (3, 3, 2)


async def test_attempt_timeout_is_a_timeout_like_any_other(autojump_clock: MockClock) -> None:
    retry = RetryPolicy(initial=1e-6, maximum=1e-6, attempt_timeout=4)
    async with in_memory(Hang()) as receiver:
        async with batcher_to(receiver, retry=retry, exporter={"timeout": math.inf}) as batcher:
            batcher.add_spans_nowait("a", make_spans(3))
            report = await batcher.flush()
        assert times(receiver) == pytest.approx([0, 4], abs=0.01)
        # That of the attempt that timed out is closed; leaving the batcher closes the other one.
        assert (receiver.connections, receiver.open_connections) == (2, 0)
    assert (report.delivered, batcher.statistics().ambiguous) == (3, 3)


async def test_a_timeout_is_retried_and_ambiguous_on_tcp_too(mock_clock: MockClock) -> None:
    async with OTLPReceiver(answers=[Hang(store=True)]) as receiver, batcher_to(receiver) as batcher:
        batcher.add_spans_nowait("a", make_spans(3))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(batcher.flush)
            await receiver.wait_for_requests(1)
            mock_clock.jump(10)
            await wait_until(lambda: batcher.statistics().ambiguous == 3)
            mock_clock.jump(1)
            await wait_until(lambda: batcher.statistics().delivered == 3)
    assert batcher.statistics().ambiguous == 3


async def test_a_broken_connection_in_the_middle_of_isolation_costs_no_span(autojump_clock: MockClock) -> None:
    spans = make_spans(64)
    refuse = refusing(ids_of(spans[20:23]), 422)
    rng = random.Random(11)

    def answer(request: ReceivedRequest) -> Outcome | None:
        return Reset("after_body", store=True) if rng.random() < 0.3 else refuse(request)

    async with OTLPReceiver(answers=answer, listen=False) as receiver:
        async with batcher_to(receiver) as batcher:
            batcher.add_spans_nowait("a", spans)
            report = await batcher.flush()
        assert (report.delivered, report.rejected) == (61, 3)
        assert set(stored_ids(receiver)) >= set(ids_of([*spans[:20], *spans[23:]]))
    assert 0 < batcher.statistics().ambiguous <= 64


async def test_spans_whose_attempt_the_shutdown_cut_off_are_handed_back_and_ambiguous(
    autojump_clock: MockClock,
) -> None:
    async with in_memory(Hang()) as receiver:
        async with batcher_to(receiver, shutdown_timeout=5, exporter={"timeout": math.inf}) as batcher:
            batcher.add_spans_nowait("a", make_spans(3))
        assert trio.current_time() <= 5
        assert receiver.open_connections == 0
    statistics = batcher.statistics()
    assert (statistics.undelivered, statistics.ambiguous) == (3, 3)


async def test_a_connection_that_is_never_made_is_retried_and_not_ambiguous(autojump_clock: MockClock) -> None:
    async with in_memory() as receiver:
        receiver.network.connect_delay = math.inf
        async with batcher_to(receiver) as batcher:
            batcher.add_spans_nowait("a", make_spans(3))
            async with trio.open_nursery() as nursery:
                nursery.start_soon(batcher.flush)
                await trio.sleep(25)
                assert batcher.statistics().requests == 3
                receiver.network.connect_delay = 0
        assert len(receiver.requests) == 1
    statistics = batcher.statistics()
    assert (statistics.delivered, statistics.ambiguous) == (3, 0)


async def test_a_server_that_is_down_is_retried_with_backoff_until_it_is_up(autojump_clock: MockClock) -> None:
    async with in_memory() as receiver:
        receiver.network.refuse_connections = True
        async with batcher_to(receiver, retry=RetryPolicy()) as batcher:
            batcher.add_spans_nowait("a", make_spans(3))
            await trio.lowlevel.checkpoint()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(batcher.flush)
                await trio.sleep(100)
                assert 4 < batcher.statistics().requests < 40
                receiver.network.refuse_connections = False
    assert (batcher.statistics().delivered, batcher.statistics().ambiguous) == (3, 0)


# Nothing takes forever.


async def test_an_attempt_at_any_slow_server_ends_at_the_timeout_with_a_reason_and_delays_no_healthy_location(
    autojump_clock: MockClock,
) -> None:
    def answer(request: ReceivedRequest) -> Outcome | None:
        return hostile_servers.SLOW[request.location]() if request.location != "well" else None

    retry = RetryPolicy(initial=3600, maximum=3600, max_elapsed=1e-6)
    receiver = OTLPReceiver(answers=answer, listen=False, location_header="x-tenant", keep=False)
    async with receiver, batcher_to(receiver, retry=retry) as batcher:
        for location in [*hostile_servers.SLOW, "well"]:
            batcher.add_spans_nowait(location, make_spans(3))
        assert (await batcher.flush("well")).delivered == 3
        assert trio.current_time() == 0
        report = await batcher.flush()
        assert trio.current_time() <= 10.01
    assert report.undelivered == 3 * len(hostile_servers.SLOW)
    reasons = {loss.location: loss.reason for loss in batcher.undelivered}
    assert reasons.keys() == hostile_servers.SLOW.keys()
    assert all("no complete answer" in reason or "503" in reason for reason in reasons.values())


async def test_a_connection_that_accepts_and_never_answers_cannot_outlast_the_shutdown_timeout(
    autojump_clock: MockClock,
) -> None:
    async with in_memory(*[Hang()] * 100, location_header="x-tenant") as receiver:
        async with batcher_to(receiver, shutdown_timeout=30) as batcher:
            for location in range(20):
                batcher.add_spans_nowait(str(location), make_spans(3))
        assert trio.current_time() <= 30
    assert batcher.statistics().undelivered == 60


async def test_a_flush_can_be_bounded_and_its_spans_are_delivered_all_the_same(autojump_clock: MockClock) -> None:
    async with in_memory(Answer(delay=8)) as receiver:
        async with batcher_to(receiver) as batcher:
            batcher.add_spans_nowait("a", make_spans(3))
            with pytest.raises(trio.TooSlowError), trio.fail_after(2):
                await batcher.flush()
            assert trio.current_time() == 2
        assert (trio.current_time(), batcher.statistics().delivered) == (8, 3)


async def test_a_failure_response_at_one_byte_a_second_is_judged_by_its_status(autojump_clock: MockClock) -> None:
    drip = Drip(
        itertools.chain([b"HTTP/1.1 404 Not Found\r\ncontent-length: 999999\r\n\r\n"], itertools.repeat(b"x")), 1.0
    )
    async with in_memory(drip) as receiver, batcher_to(receiver) as batcher:
        batcher.add_spans_nowait("a", make_spans(3))
        report = await batcher.flush()
        assert report.rejected == 3
        assert trio.current_time() == pytest.approx(10, abs=0.01)


# Logging.


async def test_between_the_first_failure_and_the_recovery_a_summary_comes_at_most_every_30_seconds(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    down = True
    logged_at: list[float] = []

    class Watch(logging.Filter):
        def filter(self, record: logging.LogRecord) -> bool:
            logged_at.append(trio.current_time())
            return True

    def answer(request: ReceivedRequest) -> Answer | None:
        return Answer(503) if down and request.location == "down" else None

    logger = logging.getLogger("mine")
    watch = Watch()
    logger.addFilter(watch)
    try:
        receiver = OTLPReceiver(answers=answer, listen=False, location_header="x-tenant")
        retry = RetryPolicy(maximum=2, max_elapsed=60)
        async with (
            receiver,
            batcher_to(receiver, batch=BatchPolicy(max_spans=1), retry=retry, logger=logger) as batcher,
        ):
            for second in range(200):
                down = second < 150
                batcher.add_span_nowait("down", make_span())
                batcher.add_span_nowait("well", make_span())
                await trio.sleep(1)
    finally:
        logger.removeFilter(watch)
    messages = [record.getMessage() for record in caplog.records if record.name == "mine"]
    assert messages[0] == "SpanBatcher: exports to 'down' fail: 503 Service Unavailable"
    assert messages[-2].startswith("SpanBatcher: exports to 'down' succeed again")
    summaries = [at for at, message in zip(logged_at, messages, strict=True) if "1 location is failing" in message]
    assert 3 <= len(summaries) <= 5
    assert all(later - earlier >= 30 for earlier, later in itertools.pairwise([0, *summaries]))
    # Only the first failure, summaries, the recovery, and the lost spans at the end.
    assert len(messages) == len(summaries) + 3
    assert not any("'well'" in message for message in messages)


# The exporter by itself has no clock but trio's.


async def test_a_repeated_run_takes_the_same_time(autojump_clock: MockClock) -> None:
    runs = []
    for _ in range(2):
        began = trio.current_time()
        async with in_memory(Answer(503), Hang(), Answer(429), Reset(), busy("9")) as receiver:
            exporter = OTLPExporter(receiver.url, transport=receiver.memory_transport())
            async with watched_batcher(exporter, BIG, rng=random.Random(5)) as batcher:
                batcher.add_spans_nowait("a", make_spans(3))
                await batcher.flush()
            runs.append([at - began for at in times(receiver)])
            assert len(ids_of_messages(receiver.requests[-1].spans)) == 3
    assert runs[0] == pytest.approx(runs[1])
