"""How tokens of databricks-sdk are kept, shared and replaced, with a stand-in for its ``Config``.

The clock is trio's mock clock without autojump, as there are threads: it moves only when a test says so.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import attrs
import pytest
import trio
import trio.testing

from trio_spanbatch._http.auth import Auth, AuthError
from trio_spanbatch.destinations.databricks_auth import DatabricksAuth
from trio_spanbatch.destinations.databricks_failures import auth_error

HOST = "https://dbc-1.cloud.databricks.com"
TABLE = "main.agents.spans"

# The most seconds of the real clock that a thread waits, so that a failing test leaves no thread behind.
_PATIENCE = 60


class Failed(Exception):
    """An exception of the SDK, with a secret in its message."""


@attrs.define
class FakeSDK:
    """Stands in for databricks-sdk. Makes configs with numbered tokens.

    Attributes:
        expires_in: The lifetime of a token in seconds; None if it is not an OAuth token.
        zone: The time zone of a token's expiry; None for local time.
        configs: The number of configs that were made.
        calls: The number of calls of ``authenticate``.
        work: Called in the thread by each ``authenticate``.
        failure: Raised by ``authenticate`` if it is set.
        running: The number of threads in ``authenticate`` now.
        most_running: The largest number of threads in ``authenticate`` so far.
    """

    expires_in: float | None = 3600
    zone: Any = None
    host: str | None = HOST
    configs: int = 0
    calls: int = 0
    work: Callable[[], object] = lambda: None
    failure: Exception | None = None
    running: int = 0
    most_running: int = 0

    def make_config(self) -> FakeConfig:
        self.configs += 1
        return FakeConfig(self, self.configs)


@attrs.define
class FakeConfig:
    sdk: FakeSDK
    number: int
    tokens: int = 0

    @property
    def host(self) -> str | None:
        return self.sdk.host

    @property
    def _token(self) -> str:
        return f"token-{self.number}-{self.tokens}"

    def authenticate(self) -> dict[str, str]:
        assert threading.current_thread() is not threading.main_thread()
        self.sdk.calls += 1
        self.sdk.running += 1
        self.sdk.most_running = max(self.sdk.most_running, self.sdk.running)
        try:
            self.sdk.work()
        finally:
            self.sdk.running -= 1
        if self.sdk.failure is not None:
            raise self.sdk.failure
        return {"Authorization": f"Bearer {self._token}"}

    def oauth_token(self) -> Any:
        if self.sdk.expires_in is None:
            raise ValueError("OAuth tokens are not available for pat authentication")
        if self.sdk.expires_in <= 40:
            self.tokens += 1
        expiry = datetime.now(self.sdk.zone) + timedelta(seconds=self.sdk.expires_in)
        return attrs.make_class("Token", ["access_token", "expiry"])(self._token, expiry)


class Gate:
    """Holds threads until it is opened."""

    def __init__(self) -> None:
        self._open = threading.Event()
        self._arrived = threading.Semaphore(0)

    def wait(self) -> None:
        self._arrived.release()
        assert self._open.wait(_PATIENCE)

    def open(self) -> None:
        self._open.set()

    async def wait_for_arrival(self) -> None:
        assert await trio.to_thread.run_sync(self._arrived.acquire, True, _PATIENCE)


@pytest.fixture
def gate() -> Iterator[Gate]:
    gate = Gate()
    yield gate
    gate.open()


@pytest.fixture
def sdk() -> FakeSDK:
    return FakeSDK()


@pytest.fixture
def auth(sdk: FakeSDK) -> DatabricksAuth:
    return DatabricksAuth(sdk.make_config, HOST)


async def token_of(auth: Auth) -> str:
    headers = await auth.headers(TABLE)
    return headers["Authorization"].removeprefix("Bearer ")


def test_databricks_auth_is_an_auth_whose_repr_shows_only_the_host(auth: DatabricksAuth) -> None:
    assert isinstance(auth, Auth)
    assert repr(auth) == f"<DatabricksAuth for {HOST}>"


@pytest.mark.parametrize("zone", [None, UTC], ids=["local", "UTC"])
async def test_a_token_is_used_for_30_seconds_and_then_the_sdk_is_asked_again(
    zone: Any, sdk: FakeSDK, auth: DatabricksAuth, mock_clock: trio.testing.MockClock
) -> None:
    sdk.zone = zone
    for _ in range(3):
        assert await token_of(auth) == "token-1-0"
    assert sdk.calls == 1
    mock_clock.jump(29.9)
    await token_of(auth)
    assert sdk.calls == 1
    mock_clock.jump(0.2)
    # The SDK keeps its token for as long as it lasts.
    assert await token_of(auth) == "token-1-0"
    assert (sdk.calls, sdk.configs) == (2, 1)


async def test_credentials_that_are_not_an_oauth_token_are_fetched_again_after_30_seconds(
    sdk: FakeSDK, auth: DatabricksAuth, mock_clock: trio.testing.MockClock
) -> None:
    sdk.expires_in = None
    await token_of(auth)
    mock_clock.jump(29.9)
    await token_of(auth)
    assert sdk.calls == 1
    mock_clock.jump(0.2)
    await token_of(auth)
    assert sdk.calls == 2


async def test_a_token_is_not_used_in_its_last_40_seconds(
    sdk: FakeSDK, auth: DatabricksAuth, mock_clock: trio.testing.MockClock
) -> None:
    # The expiry is wall-clock time, so this allows for the time that a slow machine takes between two lines.
    sdk.expires_in = 55
    await token_of(auth)
    mock_clock.jump(15.1)
    await token_of(auth)
    assert sdk.calls == 2


async def test_a_token_that_is_issued_for_less_than_40_seconds_is_fetched_each_time(
    sdk: FakeSDK, auth: DatabricksAuth, mock_clock: trio.testing.MockClock
) -> None:
    sdk.expires_in = 20
    assert [await token_of(auth) for _ in range(3)] == ["token-1-0", "token-1-1", "token-1-1"]
    assert sdk.calls == 3


async def test_returning_a_cached_token_is_a_checkpoint(auth: DatabricksAuth) -> None:
    await token_of(auth)
    with trio.testing.assert_checkpoints():
        await token_of(auth)


async def test_concurrent_exports_share_one_fetch(sdk: FakeSDK, auth: DatabricksAuth, gate: Gate) -> None:
    sdk.work = gate.wait
    tokens = []

    async def export() -> None:
        tokens.append(await token_of(auth))

    async with trio.open_nursery() as nursery:
        for _ in range(10):
            nursery.start_soon(export)
        await gate.wait_for_arrival()
        await trio.testing.wait_all_tasks_blocked()
        gate.open()
    assert tokens == ["token-1-0"] * 10
    assert sdk.calls == 1


async def test_concurrent_exports_share_a_failure_and_the_next_one_starts_again(
    sdk: FakeSDK, auth: DatabricksAuth, gate: Gate
) -> None:
    sdk.work = gate.wait
    sdk.failure = Failed("s3cret")
    errors = []

    async def export() -> None:
        with pytest.raises(AuthError) as caught:
            await auth.headers(TABLE)
        errors.append(caught.value)

    async with trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(export)
        await gate.wait_for_arrival()
        await trio.testing.wait_all_tasks_blocked()
        gate.open()
    assert sdk.calls == 1
    # Each export gets a different exception, and none of them refers to the SDK's.
    assert len(set(map(id, errors))) == 5
    assert {(error.reason, error.retry) for error in errors} == {(errors[0].reason, True)}
    assert "Failed in databricks-sdk" in errors[0].reason
    for error in errors:
        assert "s3cret" not in error.reason
        assert error.__cause__ is None
        assert error.__context__ is None
    sdk.failure = None
    assert await token_of(auth) == "token-2-0"


async def test_invalidating_makes_the_sdk_authenticate_again(sdk: FakeSDK, auth: DatabricksAuth) -> None:
    old = await auth.headers(TABLE)
    auth.invalidate(TABLE, old)
    assert await token_of(auth) == "token-2-0"
    # Another attempt used the old token too, but it has been replaced already.
    auth.invalidate(TABLE, old)
    assert await token_of(auth) == "token-2-0"
    assert (sdk.configs, sdk.calls) == (2, 2)


async def test_invalidating_while_nothing_is_cached_does_nothing(sdk: FakeSDK, auth: DatabricksAuth) -> None:
    auth.invalidate(TABLE, {"Authorization": "Bearer old"})
    assert await token_of(auth) == "token-1-0"


async def test_a_401_during_a_refresh_makes_it_start_again(
    sdk: FakeSDK, auth: DatabricksAuth, gate: Gate, mock_clock: trio.testing.MockClock
) -> None:
    old = await auth.headers(TABLE)
    mock_clock.jump(31)
    sdk.work = gate.wait
    tokens = []

    async def export() -> None:
        tokens.append(await token_of(auth))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(export)
        await gate.wait_for_arrival()
        # The thread is about to return this token.
        auth.invalidate(TABLE, old)
        nursery.start_soon(export)
        await trio.testing.wait_all_tasks_blocked()
        gate.open()
    assert tokens == ["token-2-0"] * 2
    assert sdk.configs == 2


async def test_a_cancelled_export_leaves_the_fetch_to_the_next_one(
    sdk: FakeSDK, auth: DatabricksAuth, gate: Gate
) -> None:
    sdk.work = gate.wait
    async with trio.open_nursery() as nursery:
        nursery.start_soon(auth.headers, TABLE)
        await gate.wait_for_arrival()
        nursery.cancel_scope.cancel()
    # The thread still runs. Another export waits for it instead of starting a second thread.
    tokens = []

    async def export() -> None:
        tokens.append(await token_of(auth))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(export)
        await trio.testing.wait_all_tasks_blocked()
        assert sdk.running == 1
        gate.open()
    assert tokens == ["token-1-0"]
    assert sdk.configs == 1
    assert sdk.most_running == 1


async def test_a_waiting_export_takes_over_when_the_fetching_one_is_cancelled(
    sdk: FakeSDK, auth: DatabricksAuth, gate: Gate
) -> None:
    sdk.work = gate.wait
    tokens = []

    async def export() -> None:
        tokens.append(await token_of(auth))

    async with trio.open_nursery() as nursery:
        first = trio.CancelScope()

        async def cancelled_export() -> None:
            with first:
                await auth.headers(TABLE)

        nursery.start_soon(cancelled_export)
        await gate.wait_for_arrival()
        for _ in range(3):
            nursery.start_soon(export)
        await trio.testing.wait_all_tasks_blocked()
        first.cancel()
        await trio.testing.wait_all_tasks_blocked()
        gate.open()
    assert tokens == ["token-1-0"] * 3
    assert sdk.calls == 2


async def test_a_hanging_thread_is_abandoned_after_a_minute_and_only_a_few_are(
    sdk: FakeSDK, auth: DatabricksAuth, gate: Gate, mock_clock: trio.testing.MockClock
) -> None:
    sdk.work = gate.wait

    async def start_and_cancel() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(auth.headers, TABLE)
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()

    for expected in (1, 2, 3, 4, 5):
        await start_and_cancel()
        await gate.wait_for_arrival()
        assert sdk.running == expected
        mock_clock.jump(59)
        await start_and_cancel()
        mock_clock.jump(2)
    # There are five that hang; the sixth does not start.
    await start_and_cancel()
    assert sdk.running == 5
    assert sdk.configs == 5
    gate.open()
    assert (await token_of(auth)).startswith("token-")
    assert sdk.most_running == 5


async def test_a_401_while_a_thread_hangs_starts_another_thread(
    sdk: FakeSDK, auth: DatabricksAuth, gate: Gate, mock_clock: trio.testing.MockClock
) -> None:
    old = await auth.headers(TABLE)
    mock_clock.jump(31)
    sdk.work = gate.wait
    async with trio.open_nursery() as nursery:
        nursery.start_soon(auth.headers, TABLE)
        await gate.wait_for_arrival()
        nursery.cancel_scope.cancel()
    sdk.work = lambda: None
    auth.invalidate(TABLE, old)
    assert await token_of(auth) == "token-2-0"


@pytest.mark.parametrize("host", [f"{HOST}/", HOST.upper().replace("HTTPS", "https"), None, ""])
async def test_a_config_for_the_same_workspace_is_accepted(
    host: str | None, sdk: FakeSDK, auth: DatabricksAuth
) -> None:
    sdk.host = host
    assert await token_of(auth) == "token-1-0"


class SSLError(OSError):
    pass


class MissingSchema(ValueError):
    pass


def _caused(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "reason", "retry"),
    [
        (ImportError("no module"), 'pip install "trio-spanbatch[databricks]"', False),
        (ValueError("default auth: cannot configure default credentials, please ..."), "found none: set DATA", False),
        (
            ValueError("validate: more than one authorization method configured: oauth and pat"),
            "(oauth and pat)",
            False,
        ),
        (ValueError("resolve: /x/.databrickscfg has no prod profile configured"), "no profile 'prod'", False),
        (ValueError("default auth: oauth-m2m: invalid_client: s3cret"), "answered invalid_client", False),
        (ValueError("unauthorized_client: s3cret"), "answered unauthorized_client", False),
        (ValueError("temporarily_unavailable: s3cret"), "ValueError in databricks-sdk", True),
        (ValueError(b"<html>s3cret</html>"), "contains neither a token", True),
        (KeyError("s3cret"), "contains neither a token", True),
        (NotImplementedError("Not supported yet: 's3cret'"), "contains neither a token", True),
        (_caused(ValueError("x: s3cret"), MissingSchema("s3cret")), "does not name its token endpoint", True),
        (_caused(ValueError("x: s3cret"), SSLError("s3cret")), "no TLS connection", True),
        (ConnectionError("s3cret"), f"cannot connect to {HOST}", True),
        (TimeoutError("Timed out after s3cret"), f"cannot connect to {HOST}", True),
        (RuntimeError("s3cret"), "RuntimeError in databricks-sdk", True),
        (AuthError("as it is", retry=False), "as it is", False),
    ],
)
def test_failures_of_the_sdk_are_reported_without_its_messages(error: Exception, reason: str, retry: bool) -> None:
    failure = auth_error(error, HOST)
    assert reason in failure.reason
    assert failure.retry is retry
    assert "s3cret" not in failure.reason
    assert "\n" not in failure.reason
