"""One token per table: cached, shared and replaced without delaying other tables. On the mock clock."""

from __future__ import annotations

import base64
import json
from typing import Any

import httpx
import pytest
import trio
import trio.testing

from tests.destinations.databricks_support import CLIENT_SECRET, TABLE, json_answer
from tests.destinations.zerobus_support import OTHER_TABLE, FakeAuth, Setup, setup_of
from tests.support.batchers import make_spans
from tests.support.exporters import batch_of
from trio_spanbatch import Delivered, InvalidLocationError, OTLPExporter, Refused, SpanBatcher, TryLater
from trio_spanbatch._http.auth import Auth, AuthError
from trio_spanbatch.destinations import shared_fetch, zerobus_auth
from trio_spanbatch.destinations.zerobus import ZerobusExporter
from trio_spanbatch.destinations.zerobus_auth import Workspace
from trio_spanbatch.destinations.zerobus_fallback import ZerobusFirst
from trio_spanbatch.testing import Answer, Hang, Outcome, ReceivedRequest, Reset

ENDPOINT = "https://12345.zerobus.us-west-2.cloud.databricks.com"


def tokens_of(setup: Setup) -> Any:
    return setup.exporter._zerobus.tokens


async def export(setup: Setup, table: str = TABLE) -> Any:
    return await setup.exporter.export(batch_of(1, table))


async def test_a_token_is_cached_for_its_table_until_a_minute_before_it_expires(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with setup_of(endpoint=ENDPOINT) as setup:
        assert isinstance(tokens_of(setup), Auth)
        for table in (TABLE, OTHER_TABLE, TABLE, OTHER_TABLE):
            assert await export(setup, table) == Delivered()
        assert setup.zerobus.tokens == ["1", "2", "1", "2"]
        await trio.sleep(3600 - 60 - 1)
        assert await export(setup) == Delivered()
        await trio.sleep(2)
        assert await export(setup) == Delivered()
        assert setup.zerobus.tokens[4:] == ["1", "3"]


async def test_the_lifetime_of_a_token_is_counted_from_its_request(autojump_clock: trio.testing.MockClock) -> None:
    async with setup_of(endpoint=ENDPOINT) as setup:
        slow = setup.workspace.answer

        def answer(request: ReceivedRequest) -> Outcome | None:
            given = slow(request)
            return (
                Answer(given.status, headers=given.headers, body=given.body, delay=9)
                if isinstance(given, Answer)
                else given
            )

        setup.workspace.receiver.set_answers(answer)
        assert await export(setup) == Delivered()
        await trio.sleep(3600 - 60 - 9 + 1)
        assert await export(setup) == Delivered()
        assert setup.zerobus.tokens == ["1", "2"]


@pytest.mark.parametrize(
    ("expires_in", "kept_for"),
    [
        (100, 75),
        (40, 30),
        ("3600", 3540),
        (None, 240),
        (True, 240),
        ("soon", 240),
        (-1, 240),
        (float("nan"), 240),
        (10**400, 86340),
        (1e12, 86340),
    ],
)
def test_a_token_is_cached_for_as_long_as_the_response_allows(expires_in: object, kept_for: float) -> None:
    if expires_in == 10**400:
        # Too large for a float, so the lifetime is unknown.
        kept_for = 240
    assert zerobus_auth._good_for(expires_in) == kept_for


async def test_exports_of_one_table_share_one_fetch_and_other_tables_do_not_wait_for_it(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with setup_of(endpoint=ENDPOINT) as setup:
        setup.workspace.table_answers[TABLE] = Answer(
            headers=[("content-type", "application/json")],
            body=json.dumps({"access_token": "token-slow", "expires_in": 3600}).encode(),
            delay=8,
        )
        setup.workspace.scopes["token-slow"] = TABLE
        finished: list[tuple[str, float]] = []
        began = trio.current_time()

        async def one(table: str) -> None:
            assert await export(setup, table) == Delivered()
            finished.append((table, trio.current_time() - began))

        async with trio.open_nursery() as nursery:
            for table in [TABLE] * 8 + [OTHER_TABLE] * 8:
                nursery.start_soon(one, table)
    assert sorted(finished) == [(TABLE, 8.0)] * 8 + [(OTHER_TABLE, 0.0)] * 8
    assert (setup.table_tokens(TABLE), setup.table_tokens(OTHER_TABLE)) == (1, 1)


async def test_exports_that_wait_for_one_fetch_share_its_failure_and_the_next_one_fetches_again(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with setup_of(endpoint=ENDPOINT) as setup:
        setup.workspace.token_answer = Answer(503, delay=5)
        results: list[Any] = []

        async def one() -> None:
            results.append(await export(setup))

        async with trio.open_nursery() as nursery:
            for _ in range(8):
                nursery.start_soon(one)
        reason = "no credentials: the token endpoint of https://dbc-1.cloud.databricks.com answered 503"
        assert results == [TryLater(reason)] * 8
        assert len(setup.workspace.token_requests) == 1
        setup.workspace.token_answer = None
        assert await export(setup) == Delivered()


async def test_a_failure_is_a_new_exception_for_each_waiting_export(autojump_clock: trio.testing.MockClock) -> None:
    async with setup_of(endpoint=ENDPOINT) as setup:
        setup.workspace.token_answer = Answer(503, delay=5)
        raised: list[AuthError] = []

        async def one() -> None:
            with pytest.raises(AuthError) as caught:
                await tokens_of(setup).headers(TABLE)
            raised.append(caught.value)

        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(one)
    assert len(set(map(id, raised))) == 3
    assert all(error.__cause__ is error.__context__ is None for error in raised)


async def test_a_cancelled_fetch_is_taken_over_by_a_waiting_export(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with setup_of(endpoint=ENDPOINT) as setup:
        hanging = setup.workspace.answer
        asked: list[str] = []

        def answer(request: ReceivedRequest) -> Outcome | None:
            asked.append(request.target)
            return Hang() if len(asked) == 1 else hanging(request)

        setup.workspace.receiver.set_answers(answer)
        results: list[Any] = []

        async def one() -> None:
            results.append(await export(setup))

        async with trio.open_nursery() as nursery:
            with trio.CancelScope() as scope:
                async with trio.open_nursery() as first:
                    first.start_soon(one)
                    await setup.workspace.receiver.wait_for_requests(1)
                    for _ in range(3):
                        nursery.start_soon(one)
                    await trio.testing.wait_all_tasks_blocked()
                    scope.cancel()
        assert results == [Delivered()] * 3
        assert setup.workspace.issued == ["token-0123456789-1"]


async def test_a_401_of_zerobus_replaces_the_token_of_that_table_once(autojump_clock: trio.testing.MockClock) -> None:
    async with setup_of(endpoint=ENDPOINT) as setup:
        for table in (TABLE, OTHER_TABLE):
            assert await export(setup, table) == Delivered()
        setup.zerobus.revoked = {"token-0123456789-1"}
        assert await export(setup) == Delivered()
        assert await export(setup, OTHER_TABLE) == Delivered()
        assert setup.zerobus.tokens == ["1", "2", "1", "3", "2"]
        setup.zerobus.revoked = set(setup.workspace.scopes) | {"token-0123456789-4", "token-0123456789-5"}
        result = await export(setup)
        assert isinstance(result, Refused)
        assert result.status_code == 401
        assert result.reason.endswith("not even a fresh one: is it the endpoint of this workspace?")
        assert setup.zerobus.tokens[5:] == ["3", "4"]


async def test_requests_for_tokens_and_for_the_endpoint_name_the_workspace(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with setup_of() as setup:
        assert await export(setup) == Delivered()
        named = [request.header("x-databricks-workspace-id") for request in setup.workspace.receiver.requests]
        assert named == [setup.workspace.workspace_id] * 2


async def test_concurrent_exports_that_get_a_401_share_one_new_token(autojump_clock: trio.testing.MockClock) -> None:
    async with setup_of(endpoint=ENDPOINT) as setup:
        assert await export(setup) == Delivered()
        setup.zerobus.revoked = {"token-0123456789-1"}
        results: list[Any] = []

        async def one() -> None:
            results.append(await export(setup))

        async with trio.open_nursery() as nursery:
            for _ in range(64):
                nursery.start_soon(one)
        assert results == [Delivered()] * 64
        assert len(setup.workspace.issued) == 2


async def test_a_401_to_a_token_that_was_replaced_in_the_meantime_does_not_replace_the_new_one(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with setup_of(endpoint=ENDPOINT) as setup:
        assert await export(setup) == Delivered()
        tokens_of(setup).invalidate(TABLE, {"Authorization": "Bearer token-0123456789-0"})
        tokens_of(setup).invalidate(OTHER_TABLE, {"Authorization": "Bearer token-0123456789-1"})
        assert await export(setup) == Delivered()
        assert setup.zerobus.tokens == ["1", "1"]


async def test_no_more_tokens_are_kept_than_a_batcher_has_locations(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
) -> None:
    monkeypatch.setattr(shared_fetch, "_MAX_KEYS", 3)
    tables = [f"main.agents.spans_{number}" for number in range(5)]
    async with setup_of(endpoint=ENDPOINT, tables=set(tables)) as setup:
        for table in (*tables[:3], tables[0], *tables[3:], tables[0]):
            assert await export(setup, table) == Delivered()
        # The first table was used again before a token had to be dropped.
        assert setup.zerobus.tokens == ["1", "2", "3", "1", "4", "5", "1"]
        assert len(tokens_of(setup)._tokens._fetches) == 3


async def test_a_token_that_is_being_fetched_is_not_dropped_for_another_table(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
) -> None:
    monkeypatch.setattr(shared_fetch, "_MAX_KEYS", 1)
    async with setup_of(endpoint=ENDPOINT) as setup:
        setup.workspace.table_answers[TABLE] = Answer(
            headers=[("content-type", "application/json")],
            body=b'{"access_token": "token-slow", "expires_in": 3600}',
            delay=5,
        )
        setup.workspace.scopes["token-slow"] = TABLE
        async with trio.open_nursery() as nursery:
            nursery.start_soon(export, setup, TABLE)
            await trio.sleep(1)
            assert await export(setup, OTHER_TABLE) == Delivered()
            assert await export(setup, TABLE) == Delivered()
        assert setup.table_tokens(TABLE) == 1


HOST = "https://dbc-1.cloud.databricks.com"


@pytest.mark.parametrize(
    ("answer", "result"),
    [
        (json_answer(408, {}), TryLater(f"no credentials: the token endpoint of {HOST} answered 408")),
        (json_answer(429, {}), TryLater(f"no credentials: the token endpoint of {HOST} answered 429")),
        (json_answer(500, {}), TryLater(f"no credentials: the token endpoint of {HOST} answered 500")),
        (Answer(503, body=b"<html>down"), TryLater(f"no credentials: the token endpoint of {HOST} answered 503")),
        (json_answer(200, {}), TryLater(f"no credentials: the token endpoint of {HOST} answered 200, without a token")),
        (json_answer(200, []), TryLater(f"no credentials: the token endpoint of {HOST} answered 200, without a token")),
        (Answer(200), TryLater(f"no credentials: the token endpoint of {HOST} answered 200, without a token")),
        (
            json_answer(200, {"access_token": "two words", "expires_in": 9}),
            TryLater(f"no credentials: the token endpoint of {HOST} answered 200, without a token"),
        ),
        (
            json_answer(200, {"access_token": 7, "expires_in": 9}),
            TryLater(f"no credentials: the token endpoint of {HOST} answered 200, without a token"),
        ),
        (
            Answer(200, headers=[("content-type", "application/json")], body=b"[" * 100_000),
            TryLater(f"no credentials: the token endpoint of {HOST} answered 200, without a token"),
        ),
        (
            Answer(302, headers=[("location", "https://evil.example")]),
            Refused(
                f"no credentials: the token endpoint of {HOST} answered 302, a redirect: is it a Databricks workspace?"
            ),
        ),
        (
            json_answer(403, {"error": "access_denied"}),
            Refused(
                f"no credentials: the token endpoint of {HOST} answered 403 access_denied: does the table exist, with "
                "USE CATALOG, USE SCHEMA, SELECT, MODIFY for the service principal?"
            ),
        ),
        (
            Reset(),
            TryLater(f"no credentials: {HOST}: the exchange with dbc-1.cloud.databricks.com:80 broke"),
        ),
        (
            Hang(),
            TryLater(f"no credentials: {HOST}: no complete answer from dbc-1.cloud.databricks.com"),
        ),
    ],
)
async def test_a_refusal_of_the_token_endpoint_is_distinguished_from_a_malfunction(
    answer: Any, result: Any, autojump_clock: trio.testing.MockClock
) -> None:
    async with setup_of(endpoint=ENDPOINT, token_answer=answer) as setup:
        got = await export(setup)
        assert type(got) is type(result)
        assert got.reason.startswith(result.reason)
        assert len(got.reason) <= 200
        assert setup.zerobus.receiver.requests == []
        setup.workspace.token_answer = None
        assert await export(setup) == Delivered()


async def test_a_batcher_repeats_batches_without_a_token_and_delivers_them(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with setup_of(endpoint=ENDPOINT, token_answer=json_answer(503, {})) as setup:

        async def mend() -> None:
            await trio.sleep(40)
            setup.workspace.token_answer = None

        async with trio.open_nursery() as nursery, SpanBatcher(setup.exporter, shutdown_timeout=200) as batcher:
            nursery.start_soon(mend)
            await batcher.add_spans(TABLE, make_spans(3))
            await batcher.flush()
        statistics = batcher.statistics()
        assert (statistics.delivered, statistics.ambiguous) == (3, 0)
        assert statistics.retries > 0


async def test_a_secret_that_the_workspace_does_not_know_is_read_again_before_the_batch_is_refused(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with setup_of(endpoint=ENDPOINT) as setup:
        assert await export(setup) == Delivered()
        assert setup.auth.reads == 1
        setup.workspace.secret = setup.auth.secret = "dose-new-new-new"
        assert await export(setup, OTHER_TABLE) == Delivered()
        assert setup.auth.reads == 2
        setup.workspace.secret = CLIENT_SECRET
        tokens_of(setup)._tokens.forget(TABLE)
        result = await export(setup)
        assert isinstance(result, Refused)
        # The same secret is not sent twice.
        assert len(setup.workspace.token_requests) == 4


async def test_a_token_of_the_workspace_that_cannot_be_sent_is_reported_without_being_shown(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def headers(self: Any, location: str) -> Any:
        await trio.lowlevel.checkpoint()
        return {"Authorization": "Bearer s3cret-\u20ac"}

    monkeypatch.setattr(FakeAuth, "headers", headers)
    async with setup_of() as setup:
        result = await export(setup)
    assert isinstance(result, Refused)
    assert "the value of header 'Authorization' (not shown)" in result.reason
    assert "s3cret" not in repr(result)


async def test_a_secret_that_is_not_utf8_is_sent_unchanged(autojump_clock: trio.testing.MockClock) -> None:
    async with setup_of(endpoint=ENDPOINT) as setup:
        setup.auth.secret = "dose-\udcff-0123456789"
        result = await export(setup)
        assert isinstance(result, Refused)
        assert "invalid_client" in result.reason
        (request, *_) = setup.workspace.receiver.requests
        basic = base64.b64decode((request.header("authorization") or "").removeprefix("Basic "))
        assert basic.endswith(b":dose-\xff-0123456789")


@pytest.mark.parametrize("kind", [ZerobusExporter, ZerobusFirst])
async def test_a_bad_table_a_closed_exporter_and_an_empty_batch_send_nothing(
    kind: Any, autojump_clock: trio.testing.MockClock
) -> None:
    async with setup_of(kind) as setup:
        with pytest.raises(InvalidLocationError):
            await export(setup, "agents.spans")
        with trio.testing.assert_checkpoints():
            assert await setup.exporter.export(batch_of(0, TABLE)) == Delivered()
        await setup.exporter.aclose()
        with pytest.raises(trio.ClosedResourceError):
            await export(setup)
        assert setup.transport.asked == []


@pytest.mark.parametrize("page", [b"busy", b"x" * 300_000], ids=["small", "too large to read"])
async def test_a_503_of_the_token_endpoint_is_repeated_however_large_its_page_is(
    page: bytes, autojump_clock: trio.testing.MockClock
) -> None:
    async with setup_of() as setup:
        setup.workspace.token_answer = Answer(503, body=page)
        result = await setup.export(batch_of(1, TABLE))
        assert isinstance(result, TryLater)
        assert "answered 503" in result.reason


async def test_a_401_of_the_token_endpoint_with_a_page_too_large_to_read_makes_the_secret_be_read_again(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with setup_of() as setup:
        setup.workspace.token_answer = Answer(401, body=b"x" * 300_000)
        result = await setup.export(batch_of(1, TABLE))
        assert isinstance(result, Refused)
        assert "answered 401" in result.reason
        assert setup.auth.reads == 2


async def test_a_client_that_is_given_is_asked_for_nothing_that_cannot_be_read() -> None:
    asked: list[str] = []

    def handler(request: httpx.Request) -> httpx.Response:
        asked.append(request.headers["accept-encoding"])
        return httpx.Response(200, json={})

    client = httpx.AsyncClient(transport=httpx.MockTransport(handler), headers={"accept-encoding": "br, zstd"})
    workspace = Workspace("https://workspace.test", OTLPExporter("https://workspace.test", client=client))
    await workspace.ask("GET", "/api", {})
    assert asked == ["gzip, deflate"]
