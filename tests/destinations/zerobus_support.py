"""A fake Zerobus that accepts the tokens of a fake workspace, each for its table, and transports that lead to it."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

import attrs
import httpx
import trio

from tests.destinations.databricks_support import CLIENT_ID, CLIENT_SECRET, TABLE, FakeWorkspace, bearer_of, json_answer
from trio_spanbatch import SpanBatch
from trio_spanbatch._http.auth import AuthError
from trio_spanbatch.destinations.databricks_auth import ServicePrincipal
from trio_spanbatch.destinations.tables import Options
from trio_spanbatch.destinations.zerobus import ZerobusExporter
from trio_spanbatch.destinations.zerobus_fallback import ZerobusFirst
from trio_spanbatch.testing import Answer, OTLPReceiver, Outcome, ReceivedRequest

__all__ = [
    "HEADER",
    "HOST",
    "OTHER_TABLE",
    "FakeAuth",
    "RoutedTransport",
    "Setup",
    "Zerobus",
    "setup_of",
    "zerobus_for",
]

HEADER = "x-databricks-zerobus-table-name"
OTHER_TABLE = "main.agents.other_otel_spans"

# The host of Zerobus for the workspace of databricks_support.
HOST = "12345.zerobus.us-west-2.cloud.databricks.com"
WORKSPACE = "https://dbc-1.cloud.databricks.com"


@attrs.define
class Zerobus:
    """The state of the fake Zerobus, and its failures.

    Attributes:
        workspace: The workspace that issues its tokens.
        answers: Returns the answer to a valid request; None for 200.
        revoked: Tokens that it does not accept.
    """

    workspace: FakeWorkspace
    answers: Callable[[ReceivedRequest], Outcome | None] = lambda request: None
    revoked: set[str] = attrs.Factory(set)
    receiver: OTLPReceiver = attrs.field(init=False)

    @property
    def endpoint(self) -> str:
        return self.receiver.url.removesuffix("/v1/traces")

    @property
    def tokens(self) -> list[str]:
        """The numbers of the tokens in requests, in order."""
        return [bearer_of(request).rpartition("-")[2] for request in self.receiver.requests]

    def stored(self, table: str = TABLE) -> int:
        return len(self.receiver.stored.get(table, ()))

    def answer(self, request: ReceivedRequest) -> Outcome | None:
        token = bearer_of(request)
        if token in self.revoked or self.workspace.scopes.get(token) != request.location:
            return json_answer(401, {"error_code": "UNAUTHENTICATED", "message": "the token is not for this table"})
        if request.location not in self.workspace.tables:
            return json_answer(404, {"error_code": "NOT_FOUND", "message": f"Table '{request.location}' not found"})
        return self.answers(request)


@asynccontextmanager
async def zerobus_for(workspace: FakeWorkspace, **options: Any) -> AsyncIterator[Zerobus]:
    zerobus = Zerobus(workspace)
    zerobus.receiver = OTLPReceiver(location_header=HEADER, answers=zerobus.answer, **options)
    async with zerobus.receiver:
        yield zerobus


class RoutedTransport(httpx.AsyncBaseTransport):
    """Routes requests to receivers by host and records them. Other hosts do not resolve.

    Attributes:
        hosts: The transport to each host.
        asked: The hosts of all requests.
        closed: How often it was closed.
    """

    def __init__(self, hosts: Mapping[str, httpx.AsyncBaseTransport]) -> None:
        self.hosts = dict(hosts)
        self.asked: list[str] = []
        self.closed = 0

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        self.asked.append(request.url.host)
        if request.url.host not in self.hosts:
            raise httpx.ConnectError("the name is not known")
        # The receivers speak plain HTTP.
        assert request.url.scheme == "https"
        request.url = request.url.copy_with(scheme="http")
        return await self.hosts[request.url.host].handle_async_request(request)

    async def aclose(self) -> None:
        self.closed += 1
        for transport in self.hosts.values():
            await transport.aclose()


@attrs.define
class FakeAuth:
    """Stands in for `DatabricksAuth` on a mock clock: it uses no thread.

    Attributes:
        secret: The client secret; None if there is no service principal.
        delay: Seconds that each call takes.
        reads: The number of times that the service principal was read, because it was not cached.
    """

    workspace: FakeWorkspace
    secret: str | None = CLIENT_SECRET
    delay: float = 0.0
    reads: int = 0
    _kept: ServicePrincipal | None = None

    async def headers(self, location: str) -> Mapping[str, str]:
        await trio.sleep(self.delay)
        self.workspace.issued.append("token-of-the-workspace")
        return {"Authorization": "Bearer token-of-the-workspace"}

    def invalidate(self, location: str, headers: Mapping[str, str]) -> None:
        pass

    async def service_principal(self) -> ServicePrincipal:
        await trio.sleep(self.delay)
        if self.secret is None:
            raise AuthError("Zerobus accepts only service principals", retry=False)
        if self._kept is None:
            self.reads += 1
            self._kept = ServicePrincipal(CLIENT_ID, self.secret, "12345")
        return self._kept

    def forget_principal(self, principal: ServicePrincipal) -> None:
        if self._kept is principal:
            self._kept = None


@attrs.define
class Setup:
    """An exporter whose requests go to a fake workspace and a fake Zerobus, on any clock."""

    workspace: FakeWorkspace
    zerobus: Zerobus
    auth: FakeAuth
    transport: RoutedTransport
    exporter: ZerobusExporter | ZerobusFirst

    async def export(self, batch: SpanBatch) -> Any:
        return await self.exporter.export(batch)

    @property
    def by_workspace(self) -> list[ReceivedRequest]:
        return self.workspace.trace_requests

    def table_tokens(self, table: str = TABLE) -> int:
        """Return the number of tokens that were requested for ``table``."""
        return sum(table in form.get("authorization_details", "") for form in self.workspace.token_requests)


@asynccontextmanager
async def setup_of(
    kind: Any = ZerobusExporter,
    *,
    endpoint: str | None = None,
    decode: bool = False,
    seconds: float = 20.0,
    headers: Mapping[str, str] | None = None,
    **workspace_options: Any,
) -> AsyncIterator[Setup]:
    workspace = FakeWorkspace(**{"tables": {TABLE, OTHER_TABLE}, **workspace_options})
    zerobus = Zerobus(workspace)
    workspace.receiver = OTLPReceiver(
        listen=False, path=None, location_header="X-Databricks-UC-Table-Name", answers=workspace.answer
    )
    zerobus.receiver = OTLPReceiver(listen=False, location_header=HEADER, answers=zerobus.answer)
    async with workspace.receiver, zerobus.receiver:
        transport = RoutedTransport(
            {
                "dbc-1.cloud.databricks.com": workspace.receiver.memory_transport(),
                HOST: zerobus.receiver.memory_transport(),
            }
        )
        auth: Any = FakeAuth(workspace)
        options = Options(headers=headers, timeout=seconds, compression=None, client=None, transport=transport)
        if kind is ZerobusFirst:
            exporter: Any = ZerobusFirst(WORKSPACE, auth, decode, options)
        else:
            exporter = ZerobusExporter(WORKSPACE, auth, endpoint, decode, options)
        try:
            yield Setup(workspace, zerobus, auth, transport, exporter)
        finally:
            with trio.move_on_after(math.inf, shield=True):
                await exporter.aclose()


def status_of(status: int, *headers: tuple[str, str]) -> Callable[[ReceivedRequest], Answer]:
    return lambda request: Answer(status, headers=list(headers))
