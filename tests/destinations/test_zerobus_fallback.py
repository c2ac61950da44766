"""``unity_catalog(prefer_zerobus=True)``: when and for how long spans fall back to the workspace, and ambiguous ones.

On the mock clock: the workspace and Zerobus are two receivers without sockets.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from random import Random
from typing import Any

import pytest
import trio
import trio.testing

from tests.destinations.databricks_support import TABLE, json_answer
from tests.destinations.zerobus_support import HOST, OTHER_TABLE, Setup, setup_of, status_of
from tests.support.batchers import make_spans
from tests.support.exporters import batch_of
from trio_spanbatch import Delivered, Refused, RetryPolicy, SpanBatcher, TryLater
from trio_spanbatch.destinations.zerobus_fallback import ZerobusFirst
from trio_spanbatch.testing import Answer, Hang, Outcome, Reset, partial_success

LOGGER = "trio_spanbatch.destinations.zerobus_fallback"
HOUR = 3600.0


@asynccontextmanager
async def fake_servers(**options: Any) -> AsyncIterator[Setup]:
    async with setup_of(ZerobusFirst, **options) as setup:
        yield setup


async def export(setup: Setup, count: int = 1, table: str = TABLE) -> Any:
    return await setup.export(batch_of(count, table))


def requests_to_each(setup: Setup) -> tuple[int, int]:
    """Return the numbers of requests with spans that Zerobus and the workspace received."""
    return len(setup.zerobus.receiver.requests), len(setup.by_workspace)


def lines(caplog: pytest.LogCaptureFixture, level: int = logging.WARNING) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == LOGGER and record.levelno == level]


async def test_everything_goes_to_zerobus_as_long_as_it_accepts_it(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, LOGGER)
    async with fake_servers() as setup:
        for _ in range(3):
            assert await export(setup, 2) == Delivered()
        assert requests_to_each(setup) == (3, 0)
        assert setup.exporter.endpoint == "https://dbc-1.cloud.databricks.com/api/2.0/otel/v1/traces"
        assert setup.exporter.timeout == 20.0
    assert [record for record in caplog.records if record.name == LOGGER] == []


@pytest.mark.parametrize("status", [408, 413, 429])
async def test_a_batch_goes_to_the_workspace_for_a_408_413_or_429_and_the_next_to_zerobus_again(
    status: int, autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, LOGGER)
    async with fake_servers() as setup:
        setup.zerobus.answers = status_of(status, ("retry-after", "600"))
        for _ in range(3):
            assert await export(setup, 2) == Delivered()
        assert requests_to_each(setup) == (3, 3)
        assert setup.zerobus.stored() == 0
        setup.zerobus.answers = lambda request: None
        assert await export(setup, 2) == Delivered()
        assert requests_to_each(setup) == (4, 3)
    (line,) = lines(caplog)
    assert line.startswith(f"Zerobus did not accept a batch ({status} ")
    assert len(lines(caplog, logging.DEBUG)) == 2


@pytest.mark.parametrize(
    "answer",
    [json_answer(403, {"error": "access_denied"}), json_answer(503, {}), json_answer(200, {}), Reset(), Hang()],
    ids=["refused", "unavailable", "no token", "broken", "hanging"],
)
async def test_a_batch_without_a_token_goes_to_the_workspace_and_other_tables_do_not(
    answer: Any, autojump_clock: trio.testing.MockClock
) -> None:
    async with fake_servers() as setup:
        setup.workspace.table_answers[TABLE] = answer
        began = trio.current_time()
        assert await export(setup, 2) == Delivered()
        # This leaves half of the attempt's time.
        assert trio.current_time() - began <= 10
        assert await export(setup, 2, OTHER_TABLE) == Delivered()
        assert requests_to_each(setup) == (1, 1)
        assert [request.location for request in setup.by_workspace] == [TABLE]


async def test_a_token_that_cannot_be_replaced_after_a_401_affects_only_its_batch(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with fake_servers() as setup:
        assert await export(setup) == Delivered()
        setup.zerobus.revoked = set(setup.workspace.scopes)
        setup.workspace.table_answers[TABLE] = json_answer(503, {})
        assert await export(setup) == Delivered()
        assert requests_to_each(setup) == (2, 1)
        setup.workspace.table_answers.clear()
        assert await export(setup) == Delivered()
        assert requests_to_each(setup) == (3, 1)


@pytest.mark.parametrize("status", [400, 401, 403, 404, 405, 409, 415, 422, 451, 302])
async def test_everything_goes_to_the_workspace_for_any_other_4xx(
    status: int, autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with fake_servers() as setup:
        setup.zerobus.answers = status_of(status)
        assert await export(setup, 2) == Delivered()
        asked = requests_to_each(setup)[0]
        # A 401 is tried once more with another token.
        assert asked == (2 if status == 401 else 1)
        for table in (TABLE, OTHER_TABLE, OTHER_TABLE):
            assert await export(setup, 2, table) == Delivered()
        assert requests_to_each(setup) == (asked, 4)
        assert setup.zerobus.stored() == 0
    (line,) = lines(caplog)
    assert line.startswith(f"Zerobus does not accept spans ({status} ")
    assert line.endswith("instead, and Zerobus is tried again in an hour")


async def test_everything_goes_to_the_workspace_if_zerobus_cannot_be_connected_to(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with fake_servers() as setup:
        assert await export(setup) == Delivered()
        setup.zerobus.receiver.network.refuse_connections = True
        await setup.transport.hosts[HOST].aclose()
        setup.transport.hosts[HOST] = setup.zerobus.receiver.memory_transport()
        for table in (TABLE, OTHER_TABLE):
            assert await export(setup, 2, table) == Delivered()
        assert requests_to_each(setup) == (1, 2)
        # Only the first export tried.
        assert setup.transport.asked.count(HOST) == 2
    (line,) = lines(caplog)
    assert "cannot connect to" in line


async def test_a_connection_that_takes_the_whole_attempt_leaves_the_batch_to_the_next_attempt(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with fake_servers() as setup:
        setup.zerobus.receiver.network.connect_delay = 1e9
        began = trio.current_time()
        batch = batch_of(2, TABLE)
        result = await setup.export(batch)
        assert trio.current_time() - began == 20
        assert result == TryLater(f"no connection to {HOST}:80 within 20 s")
        assert not result.ambiguous
        assert await setup.export(batch) == Delivered()
        assert requests_to_each(setup) == (0, 1)


async def test_everything_goes_to_the_workspace_once_zerobus_rejects_all_of_a_batch(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with fake_servers() as setup:
        setup.zerobus.answers = lambda request: partial_success(2, "the table has another schema")
        assert await export(setup, 2) == Delivered()
        assert await export(setup, 2, OTHER_TABLE) == Delivered()
        assert requests_to_each(setup) == (1, 2)
        assert {table: len(spans) for table, spans in setup.workspace.receiver.stored.items()} == {
            TABLE: 2,
            OTHER_TABLE: 2,
        }
    (line,) = lines(caplog)
    assert "(all spans of a batch were rejected: the table has another schema)" in line


async def test_some_spans_that_zerobus_rejects_are_rejected_and_not_sent_to_the_workspace(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with fake_servers() as setup:
        setup.zerobus.answers = lambda request: partial_success(2, "two are bad")
        assert await export(setup, 3) == Delivered(2, "two are bad")
        assert requests_to_each(setup) == (1, 0)


async def test_more_rejected_spans_than_were_sent_leave_the_outcome_unknown(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with fake_servers() as setup:
        setup.zerobus.answers = lambda request: partial_success(7, "what?")
        batch = batch_of(3, TABLE)
        assert await setup.export(batch) == TryLater(
            "Zerobus reported 7 of 3 spans as rejected", ambiguous=True, status_code=200
        )
        assert await setup.export(batch) == Delivered()
        assert requests_to_each(setup) == (1, 1)


@pytest.mark.parametrize("status", [500, 502, 503, 504])
async def test_a_5xx_is_repeated_at_zerobus_and_not_sent_to_the_workspace(
    status: int, autojump_clock: trio.testing.MockClock
) -> None:
    async with fake_servers() as setup:
        setup.zerobus.answers = status_of(status)
        batch = batch_of(2, TABLE)
        result = await setup.export(batch)
        assert isinstance(result, TryLater)
        assert (result.status_code, result.ambiguous) == (status, status == 500)
        assert requests_to_each(setup) == (1, 0)
        setup.zerobus.answers = lambda request: None
        assert await setup.export(batch) == Delivered()
        assert requests_to_each(setup) == (2, 0)


@pytest.mark.parametrize("outcome", [Hang(store=True), Reset(store=True), Hang(), Reset()])
async def test_a_batch_whose_outcome_at_zerobus_is_unknown_is_ambiguous_and_then_goes_to_the_workspace(
    outcome: Any, autojump_clock: trio.testing.MockClock
) -> None:
    async with fake_servers() as setup:
        setup.zerobus.answers = lambda request: outcome
        async with SpanBatcher(setup.exporter, shutdown_timeout=300) as batcher:
            await batcher.add_spans(TABLE, make_spans(3))
            await batcher.flush()
            statistics = batcher.statistics()
            assert (statistics.delivered, statistics.ambiguous, statistics.requests) == (3, 3, 2)
            assert requests_to_each(setup) == (1, 1)
            # Other batches are not affected.
            setup.zerobus.answers = lambda request: None
            await batcher.add_spans(TABLE, make_spans(3))
        assert requests_to_each(setup) == (2, 1)
        assert batcher.statistics().ambiguous == 3


@pytest.mark.parametrize("where_it_hangs", ["answer", "connection", "token"])
async def test_after_the_batcher_ends_an_attempt_at_zerobus_the_next_one_goes_to_the_workspace(
    where_it_hangs: str, autojump_clock: trio.testing.MockClock
) -> None:
    async with fake_servers() as setup:
        if where_it_hangs == "answer":
            setup.zerobus.answers = lambda request: Hang(store=True)
        elif where_it_hangs == "connection":
            setup.zerobus.receiver.network.connect_delay = 1e9
        else:
            setup.workspace.table_answers[TABLE] = Hang()
        retry = RetryPolicy(initial=0.1, attempt_timeout=5)
        async with SpanBatcher(setup.exporter, shutdown_timeout=60, retry=retry) as batcher:
            await batcher.add_spans(TABLE, make_spans(3))
        statistics = batcher.statistics()
        assert (statistics.delivered, statistics.ambiguous, statistics.retries) == (3, 3, 1)
        assert requests_to_each(setup) == (int(where_it_hangs == "answer"), 1)


async def test_a_batch_whose_outcome_is_unknown_does_not_depend_on_the_workspace_alone(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with fake_servers() as setup:
        outcomes = iter([Reset(store=False)])
        setup.zerobus.answers = lambda request: next(outcomes, None)
        setup.workspace.traces = status_of(503)
        async with SpanBatcher(setup.exporter, shutdown_timeout=60, retry=RetryPolicy(initial=0.1)) as batcher:
            await batcher.add_spans(TABLE, make_spans(3))
        statistics = batcher.statistics()
        assert (statistics.delivered, statistics.ambiguous, setup.zerobus.stored()) == (3, 3, 3)
        assert requests_to_each(setup) == (2, 1)


async def test_a_web_page_in_place_of_an_answer_leaves_the_outcome_unknown(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with fake_servers() as setup:
        setup.zerobus.answers = lambda request: Answer(200, headers=[("content-type", "text/html")], body=b"<html>")
        batch = batch_of(2, TABLE)
        result = await setup.export(batch)
        assert isinstance(result, TryLater)
        assert result.ambiguous
        assert await setup.export(batch) == Delivered()
        assert requests_to_each(setup) == (1, 1)


async def test_no_batch_is_sent_to_both_unless_it_is_counted_as_ambiguous(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Try every failure in turn; where the outcome is unknown, the server has stored the spans."""
    outcomes = [
        Answer(400),
        Answer(413),
        Answer(429),
        Answer(500, store=True),
        Answer(503),
        Hang(store=True),
        Reset(store=True),
        partial_success(1, "bad"),
        Answer(403),
        None,
    ]
    for outcome in outcomes:
        async with fake_servers() as setup:
            answers = iter([outcome])
            setup.zerobus.answers = lambda request, answers=answers: next(answers, None)  # type: ignore[misc]  # bound now
            async with SpanBatcher(setup.exporter, shutdown_timeout=300, retry=RetryPolicy(initial=0.1)) as batcher:
                await batcher.add_spans(TABLE, make_spans(1))
            statistics = batcher.statistics()
            stored = setup.zerobus.stored() + len(setup.workspace.receiver.stored.get(TABLE, ()))
            assert statistics.delivered == 1
            assert stored == 1 + statistics.ambiguous or (statistics.ambiguous and stored == 1)


async def test_after_an_hour_one_batch_tries_zerobus_again_and_the_others_do_not_wait_for_it(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, LOGGER)
    async with fake_servers() as setup:
        setup.zerobus.answers = status_of(403)
        assert await export(setup) == Delivered()
        began = trio.current_time()
        await trio.sleep(HOUR - 1)
        assert await export(setup) == Delivered()
        assert requests_to_each(setup) == (1, 2)
        await trio.sleep(2)
        setup.zerobus.answers = lambda request: Answer(403, delay=5)
        finished: list[float] = []

        async def one() -> None:
            assert await export(setup) == Delivered()
            finished.append(trio.current_time() - began - HOUR - 1)

        async with trio.open_nursery() as nursery:
            for _ in range(64):
                nursery.start_soon(one)
        assert requests_to_each(setup) == (2, 66)
        assert sorted(finished) == [0.0] * 63 + [5.0]
        # For another hour, without another warning.
        await trio.sleep(HOUR - 1)
        assert await export(setup) == Delivered()
        assert requests_to_each(setup)[0] == 2
        await trio.sleep(2)
        setup.zerobus.answers = lambda request: None
        for _ in range(3):
            assert await export(setup) == Delivered()
        assert requests_to_each(setup) == (5, 67)
    assert len(lines(caplog)) == 1
    assert lines(caplog, logging.INFO) == ["Zerobus accepts spans again"]


@pytest.mark.parametrize("outcome", [Answer(503), Reset()])
async def test_an_inconclusive_probe_is_followed_by_another(
    outcome: Any, autojump_clock: trio.testing.MockClock
) -> None:
    async with fake_servers() as setup:
        setup.zerobus.answers = status_of(403)
        assert await export(setup) == Delivered()
        await trio.sleep(HOUR + 1)
        setup.zerobus.answers = lambda request: outcome
        assert isinstance(await export(setup), TryLater)
        setup.zerobus.answers = lambda request: None
        assert await export(setup) == Delivered()
        assert requests_to_each(setup) == (3, 1)


async def test_a_cancelled_probe_is_followed_by_another(autojump_clock: trio.testing.MockClock) -> None:
    async with fake_servers() as setup:
        setup.zerobus.answers = status_of(403)
        assert await export(setup) == Delivered()
        await trio.sleep(HOUR + 1)
        setup.zerobus.answers = lambda request: Hang()
        with trio.move_on_after(1):
            await export(setup)
        setup.zerobus.answers = lambda request: None
        assert await export(setup) == Delivered()
        assert requests_to_each(setup) == (3, 1)


async def test_64_exports_under_way_when_the_fallback_begins_are_delivered_and_one_warning_is_logged(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with fake_servers() as setup:
        answers = iter(range(1000))
        # One of the exports under way succeeds, which does not end the fallback.
        setup.zerobus.answers = lambda request: None if next(answers) == 40 else Answer(404, delay=1)
        async with trio.open_nursery() as nursery:
            for _ in range(64):
                nursery.start_soon(export, setup)
        assert requests_to_each(setup) == (64, 63)
        assert setup.zerobus.stored() + len(setup.workspace.receiver.stored[TABLE]) == 64
        assert await export(setup) == Delivered()
        assert requests_to_each(setup) == (64, 64)
    assert len(lines(caplog)) == 1


async def test_without_an_endpoint_everything_goes_to_the_workspace(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with fake_servers(metastore={"cloud": "evil", "region": "r"}) as setup:
        for _ in range(3):
            assert await export(setup) == Delivered()
        assert setup.workspace.summaries == 1
        assert requests_to_each(setup) == (0, 3)
    assert len(lines(caplog)) == 1


async def test_a_look_up_that_may_succeed_later_affects_only_its_batch(autojump_clock: trio.testing.MockClock) -> None:
    async with fake_servers(metastore=Answer(503)) as setup:
        assert await export(setup) == Delivered()
        setup.workspace.metastore = {"cloud": "aws", "region": "us-west-2"}
        assert await export(setup) == Delivered()
        assert requests_to_each(setup) == (1, 1)


async def test_a_refusal_of_the_workspace_is_reported_with_its_message(autojump_clock: trio.testing.MockClock) -> None:
    async with fake_servers(tables=set()) as setup:
        assert await export(setup) == Refused(
            f"404 Not Found: TABLE_DOES_NOT_EXIST: Table '{TABLE}' does not exist.; create the table, or correct its "
            "name",
            404,
        )


async def test_an_attempt_with_a_fallback_ends_within_one_timeout_and_is_one_request(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with fake_servers() as setup:
        setup.zerobus.answers = lambda request: Answer(429, delay=12)
        setup.workspace.traces = lambda request: Hang()
        began = trio.current_time()
        result = await export(setup)
        assert trio.current_time() - began == 20
        assert isinstance(result, TryLater)
        assert result.ambiguous
        setup.workspace.traces = lambda request: None
        async with SpanBatcher(setup.exporter, shutdown_timeout=300) as batcher:
            await batcher.add_spans(TABLE, make_spans(3))
        statistics = batcher.statistics()
        assert (statistics.delivered, statistics.requests, statistics.retries) == (3, 1, 0)


async def test_headers_of_the_user_are_sent_to_both(autojump_clock: trio.testing.MockClock) -> None:
    async with fake_servers(headers={"X-Team": "agents"}) as setup:
        setup.zerobus.answers = status_of(429)
        assert await export(setup) == Delivered()
        (by_zerobus,), (by_workspace,) = setup.zerobus.receiver.requests, setup.by_workspace
        assert by_zerobus.header("x-team") == by_workspace.header("x-team") == "agents"
        assert by_zerobus.header("authorization") != by_workspace.header("authorization")


async def test_closing_closes_a_transport_once(autojump_clock: trio.testing.MockClock) -> None:
    async with fake_servers() as setup:
        assert await export(setup) == Delivered()
        await setup.exporter.aclose()
        assert setup.transport.closed == 1


@pytest.mark.parametrize("seed", range(20))
async def test_every_span_is_stored_once_or_counted_as_ambiguous_despite_failures(
    seed: int, autojump_clock: trio.testing.MockClock
) -> None:
    random = Random(seed)

    def failure() -> Any:
        stores = random.random() < 0.5
        page = Answer(200, headers=[("content-type", "text/html")], body=b"<html>", store=stores)
        status = random.choice([400, 401, 403, 404, 408, 413, 429, 502, 503, 504])
        outcomes: list[Any] = [
            Answer(status),
            Answer(status, delay=random.uniform(0, 25)),
            Answer(500, store=stores),
            page,
        ]
        outcomes += [Hang(store=stores), Reset(store=stores), partial_success(1, "bad"), partial_success(10**6)]
        return random.choice(outcomes)

    tables = [f"main.agents.spans_{number}" for number in range(4)]
    async with fake_servers(tables=set(tables)) as setup:
        setup.zerobus.answers = lambda request: failure() if random.random() < 0.5 else None
        failures: list[Outcome] = [Answer(429), Answer(503), Reset(store=True), Hang()]
        setup.workspace.traces = lambda request: random.choice(failures) if random.random() < 0.3 else None
        no_token: list[Outcome] = [Answer(503), Answer(403), Hang()]
        async with SpanBatcher(
            setup.exporter, retry=RetryPolicy(max_elapsed=1e6, attempt_timeout=30), shutdown_timeout=1e6
        ) as batcher:
            for _ in range(12):
                for table in tables:
                    count = random.randint(1, 5)
                    if random.random() < 0.3:
                        setup.workspace.table_answers[table] = random.choice(no_token)
                    else:
                        setup.workspace.table_answers.pop(table, None)
                    await batcher.add_spans(table, make_spans(count))
                await trio.sleep(random.choice([1, 30, HOUR]))
        statistics = batcher.statistics()
    stored: Counter[tuple[str, bytes]] = Counter()
    for receiver in (setup.zerobus.receiver, setup.workspace.receiver):
        for table, spans in receiver.stored.items():
            stored.update((table, span.span_id) for span in spans)
    assert statistics.accepted == statistics.delivered + statistics.rejected + statistics.undelivered
    assert sum(count > 1 for count in stored.values()) <= statistics.ambiguous
    assert statistics.delivered <= len(stored) <= statistics.accepted
    assert statistics.accepted - len(stored) <= statistics.rejected + statistics.undelivered
