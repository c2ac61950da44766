"""Credentials that are created for each attempt, and secrets, which are never shown."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

import httpx
import pytest
import trio
import trio.testing

from tests.support.exporters import ENDPOINT, SECRET, batch_of, export_once
from trio_spanbatch import Delivered, OTLPExporter, Refused, TryLater
from trio_spanbatch._http.auth import Auth, AuthError
from trio_spanbatch.testing import Answer, OTLPReceiver, Outcome, ReceivedRequest, Reset

# Credentials for each attempt.


def bearer_for(location: str) -> Mapping[str, str]:
    return {"Authorization": f"Bearer for-{location}"}


async def test_auth_is_a_function_of_the_location() -> None:
    async with OTLPReceiver() as receiver:
        exporter = OTLPExporter(receiver.url, auth=bearer_for, headers={"authorization": "replaced"})
        await exporter.export(batch_of(1, "a"))
        await exporter.export(batch_of(1, "b"))
        assert [r.header("authorization") for r in receiver.requests] == ["Bearer for-a", "Bearer for-b"]
        await exporter.aclose()


async def test_auth_may_be_async() -> None:
    async def auth(location: str) -> Mapping[str, str]:
        await trio.lowlevel.checkpoint()
        return {"Authorization": f"Bearer for-{location}"}

    async with OTLPReceiver() as receiver:
        await export_once(receiver, batch_of(1, "a"), auth=auth)
        assert receiver.requests[0].header("authorization") == "Bearer for-a"


class CachedToken:
    """An `Auth` whose token the server stops accepting."""

    def __init__(self) -> None:
        self.serial = 0
        self.invalidated: list[tuple[str, Mapping[str, str]]] = []

    async def headers(self, location: str) -> Mapping[str, str]:
        await trio.lowlevel.checkpoint()
        return {"authorization": f"Bearer {self.serial}"}

    def invalidate(self, location: str, headers: Mapping[str, str]) -> None:
        self.invalidated.append((location, headers))
        self.serial += 1


def only(token: str) -> Callable[[ReceivedRequest], Answer | None]:
    return lambda request: None if request.header("authorization") == token else Answer(401)


async def test_after_a_401_credentials_are_fetched_once_more_and_the_request_repeated() -> None:
    async with OTLPReceiver(answers=only("Bearer 1")) as receiver:
        auth = CachedToken()
        assert isinstance(auth, Auth)
        assert await export_once(receiver, batch_of(2), auth=auth) == Delivered()
        assert auth.invalidated == [("tenant-1", {"authorization": "Bearer 0"})]
        assert len(receiver.requests) == 2


async def test_a_401_is_retried_if_there_are_no_new_credentials() -> None:
    class Expired(CachedToken):
        async def headers(self, location: str) -> Mapping[str, str]:
            if self.invalidated:
                raise AuthError("the token endpoint answered 503")
            return await super().headers(location)

    async with OTLPReceiver(answers=lambda _: Answer(401)) as receiver:
        result = await export_once(receiver, auth=Expired())
        assert result == TryLater("no credentials: the token endpoint answered 503")


async def test_a_401_is_retried_if_new_credentials_time_out(
    autojump_clock: trio.testing.MockClock,
) -> None:
    class Stuck(CachedToken):
        async def headers(self, location: str) -> Mapping[str, str]:
            if self.invalidated:
                await trio.sleep_forever()
            return await super().headers(location)

    async with OTLPReceiver(answers=lambda _: Answer(401), listen=False) as receiver:
        result = await export_once(receiver, auth=Stuck(), transport=receiver.memory_transport())
        assert result == TryLater("no credentials within 10 s: Stuck did not return")


async def test_a_second_401_is_refused() -> None:
    async with OTLPReceiver(answers=lambda _: Answer(401, body=b"no")) as receiver:
        auth = CachedToken()
        assert await export_once(receiver, auth=auth) == Refused("401 Unauthorized: no", 401)
        assert len(receiver.requests) == 2
        assert len(auth.invalidated) == 1


async def test_the_same_credentials_are_not_sent_again_after_a_401() -> None:
    async with OTLPReceiver(answers=lambda _: Answer(401)) as receiver:
        result = await export_once(receiver, auth=lambda _: {"authorization": "Bearer fixed"})
        assert result == Refused("401 Unauthorized", 401)
        assert len(receiver.requests) == 1


@pytest.mark.parametrize(
    ("error", "result"),
    [
        (AuthError("the token endpoint answered 503"), TryLater("no credentials: the token endpoint answered 503")),
        (AuthError("no profile", retry=False), Refused("no credentials: no profile")),
        (httpx.ConnectError(SECRET), TryLater("no credentials: ConnectError while they were fetched")),
        (TimeoutError(SECRET), TryLater("no credentials: TimeoutError while they were fetched")),
        (trio.TooSlowError(), TryLater("no credentials: TooSlowError while they were fetched")),
    ],
)
async def test_without_credentials_nothing_is_sent(error: Exception, result: object) -> None:
    def auth(_location: str) -> Mapping[str, str]:
        raise error

    async with OTLPReceiver() as receiver:
        assert await export_once(receiver, auth=auth) == result
        assert receiver.requests == []


async def test_other_exceptions_of_auth_are_bugs_and_propagate() -> None:
    def auth(_location: str) -> Mapping[str, str]:
        raise ZeroDivisionError

    async with OTLPReceiver() as receiver:
        with pytest.raises(ZeroDivisionError):
            await export_once(receiver, auth=auth)


@pytest.mark.parametrize(
    "headers",
    [
        {"authorization": f"{SECRET}\n"},
        {"authorization": 5},
        {"content-type": SECRET},
        {f"Authorization: Bearer {SECRET}": ""},
        {f"Bearer {SECRET}": ""},
        f"Bearer {SECRET}",
        [("Authorization", SECRET)],
    ],
)
async def test_credentials_that_cannot_be_sent_are_refused_and_not_shown(headers: Any) -> None:
    async with OTLPReceiver() as receiver:
        result = await export_once(receiver, auth=lambda _: headers)
        assert isinstance(result, Refused)
        assert result.reason.startswith("auth: ")
        assert SECRET not in result.reason
        assert receiver.requests == []


async def test_fetching_credentials_counts_towards_the_timeout(autojump_clock: trio.testing.MockClock) -> None:
    async def auth(_location: str) -> Mapping[str, str]:
        await trio.sleep_forever()
        raise AssertionError

    exporter = OTLPExporter(ENDPOINT, auth=auth)
    assert await exporter.export(batch_of()) == TryLater(
        "no credentials within 10 s: auth function auth did not return"
    )
    await exporter.aclose()


# Secrets.


async def test_no_secret_is_in_any_log_not_even_at_debug(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.DEBUG)
    for name in ("httpx", "httpcore", "trio_spanbatch"):
        caplog.set_level(logging.DEBUG, name)
    echo = f"no such token: Bearer {SECRET}".encode()
    answers: list[Outcome] = [Answer(401, body=echo), Reset(), Answer(503), Answer(200)]
    async with OTLPReceiver(answers=answers) as receiver:
        exporter = OTLPExporter(
            receiver.url, headers={"x-api-key": f"key-{SECRET}"}, auth=lambda _: {"authorization": f"Bearer {SECRET}"}
        )
        results = [await exporter.export(batch_of()) for _ in range(4)]
        await exporter.aclose()
        with pytest.raises(ValueError, match="not shown"):
            OTLPExporter(receiver.url, headers={"authorization": f"Bearer {SECRET}\n"})
    assert results[0] == Refused("401 Unauthorized: no such token: ***", 401)
    assert SECRET not in caplog.text
    assert SECRET not in repr((results, exporter, exporter.__dict__.get("_client")))


async def test_no_secret_of_a_proxy_is_in_any_log(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.DEBUG)
    async with OTLPReceiver(answers=[Answer(407)], path=None) as proxy:
        monkeypatch.setenv("ALL_PROXY", f"http://user:{SECRET}@127.0.0.1:{proxy.port}")
        for url in ("http://collector.test", "https://collector.test"):
            exporter = OTLPExporter(url)
            await exporter.export(batch_of())
            await exporter.aclose()
    assert SECRET not in caplog.text


async def test_a_server_that_echoes_a_token_in_its_headers_does_not_get_it_into_the_logs(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    echo = Answer(307, headers=[("Location", f"http://elsewhere.test/{SECRET}"), ("Set-Cookie", f"token={SECRET}")])
    async with OTLPReceiver(answers=[echo]) as receiver:
        result = await export_once(receiver, headers={"Authorization": f"Bearer {SECRET}"})
    assert isinstance(result, Refused)
    assert SECRET not in caplog.text


@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_a_proxy_that_repeats_its_credentials_does_not_get_them_shown(
    scheme: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    echo = Answer(407, body=f"no such user: {SECRET}".encode(), headers=[("X-Said", SECRET)])
    async with OTLPReceiver(answers=[echo], path=None) as proxy:
        monkeypatch.setenv("ALL_PROXY", f"http://user:{SECRET}@127.0.0.1:{proxy.port}")
        exporter = OTLPExporter(f"{scheme}://collector.test/v1/traces")
        result = await exporter.export(batch_of())
        await exporter.aclose()
    assert "407" in repr(result)
    assert SECRET not in repr(result)
