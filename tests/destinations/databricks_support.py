"""A Databricks workspace for tests: its discovery documents, its token endpoint and its OTLP endpoint, on one port."""

from __future__ import annotations

import base64
import json
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import parse_qs

import attrs
import pytest

from trio_spanbatch.testing import Answer, OTLPReceiver, Outcome, ReceivedRequest

CLIENT_ID = "11111111-2222-3333-4444-555555555555"
CLIENT_SECRET = "dose-0123456789abcdef0123456789abcdef"
PERSONAL_TOKEN = "dapi-0123456789abcdef0123456789abcdef"
TABLE = "main.agents.demo_otel_spans"
TRACES_PATH = "/api/2.0/otel/v1/traces"
SUMMARY_PATH = "/api/2.1/unity-catalog/metastore_summary"
METASTORE: dict[str, object] = {
    "metastore_id": "6f2a",
    "cloud": "aws",
    "region": "us-west-2",
    "global_metastore_id": "aws:us-west-2:6f2a",
}

# databricks-sdk leaves its connections to the garbage collector, which warns about open ones.
JSON = [("content-type", "application/json"), ("connection", "close")]


def json_answer(status: int, document: object, *headers: tuple[str, str]) -> Answer:
    return Answer(status, headers=[*JSON, *headers], body=json.dumps(document).encode())


def bearer_of(request: ReceivedRequest) -> str:
    return (request.header("authorization") or "").removeprefix("Bearer ")


def table_of(form: dict[str, str], workspace_id: str) -> str | None:
    """Return the table for which a token is requested; None if the request does not follow the documentation."""
    try:
        details = json.loads(form["authorization_details"])
        table = str(details[2]["object_full_path"])
        catalog, schema, _ = table.split(".")
    except (KeyError, ValueError, IndexError, TypeError):
        return None
    objects = [
        ("CATALOG", catalog, ["USE CATALOG"]),
        ("SCHEMA", f"{catalog}.{schema}", ["USE SCHEMA"]),
        ("TABLE", table, ["SELECT", "MODIFY"]),
    ]
    expected = {
        "grant_type": "client_credentials",
        "scope": "all-apis",
        "resource": f"api://databricks/workspaces/{workspace_id}/zerobusDirectWriteApi",
        "authorization_details": [
            {"type": "unity_catalog_privileges", "object_type": kind, "object_full_path": path, "privileges": rights}
            for kind, path, rights in objects
        ],
    }
    return table if {**form, "authorization_details": details} == expected else None


@attrs.define
class FakeWorkspace:
    """The state of the server, and the requests that it received.

    Attributes:
        tables: The existing tables.
        expires_in: The lifetime of tokens in seconds.
        accepted: The tokens that the OTLP endpoint accepts; None for all issued ones and the personal one.
        issued: The tokens that were issued so far.
        token_requests: The forms that the token endpoint received.
        traces: Returns the OTLP endpoint's answer to a valid request; None for ``200 OK``.
        token_answer: The token endpoint's answer instead of a token.
        known: Whether the workspace has a discovery document, which names its token endpoint.
        workspace_id: Its id, which requests for its metastore must name.
        names_id: Whether its discovery document contains its id.
        metastore: Its metastore summary, or an answer in its place.
        summaries: The number of requests for the summary.
        scopes: The table of each token for Zerobus.
        table_answers: For some tables, the token endpoint's answer instead of a token.
    """

    tables: set[str] = attrs.Factory(lambda: {TABLE})
    expires_in: int = 3600
    accepted: set[str] | None = None
    issued: list[str] = attrs.Factory(list)
    token_requests: list[dict[str, str]] = attrs.Factory(list)
    traces: Callable[[ReceivedRequest], Outcome | None] = lambda request: None
    token_answer: Outcome | None = None
    known: bool = True
    secret: str = CLIENT_SECRET
    token_prefix: str = "token-0123456789-"
    workspace_id: str = "12345"
    names_id: bool = True
    metastore: dict[str, object] | Outcome = attrs.Factory(lambda: {**METASTORE})
    summaries: int = 0
    scopes: dict[str, str] = attrs.Factory(dict)
    table_answers: dict[str, Outcome] = attrs.Factory(dict)
    receiver: OTLPReceiver = attrs.field(init=False)

    @property
    def host(self) -> str:
        return self.receiver.url.removesuffix("/v1/traces")

    @property
    def trace_requests(self) -> list[ReceivedRequest]:
        return [request for request in self.receiver.requests if request.target == TRACES_PATH]

    def answer(self, request: ReceivedRequest) -> Outcome | None:
        if request.target == TRACES_PATH:
            return self._take_traces(request)
        if request.target == "/oidc/v1/token":
            return self._give_token(request)
        if request.target == "/.well-known/databricks-config" and self.known:
            id_if_named = {"workspace_id": self.workspace_id} if self.names_id else {}
            return json_answer(200, {"oidc_endpoint": f"{self.host}/oidc", "cloud": "AWS", **id_if_named})
        if request.target == SUMMARY_PATH:
            return self._metastore_answer(request)
        if request.target == "/oidc/.well-known/oauth-authorization-server":
            return json_answer(
                200,
                {
                    "authorization_endpoint": f"{self.host}/oidc/v1/authorize",
                    "token_endpoint": f"{self.host}/oidc/v1/token",
                },
            )
        return json_answer(404, {"error_code": "ENDPOINT_NOT_FOUND", "message": "no such thing"})

    def _metastore_answer(self, request: ReceivedRequest) -> Outcome:
        self.summaries += 1
        if bearer_of(request) not in self.issued:
            return json_answer(401, {"error_code": "401", "message": "Credential was not sent or is not valid"})
        if request.header("x-databricks-workspace-id") != self.workspace_id:
            return json_answer(400, {"error_code": "INVALID_PARAMETER_VALUE", "message": "no such workspace"})
        return json_answer(200, self.metastore) if isinstance(self.metastore, dict) else self.metastore

    def _give_token(self, request: ReceivedRequest) -> Outcome | None:
        form = {key: values[0] for key, values in parse_qs(request.body.decode()).items()}
        self.token_requests.append(form)
        if self.token_answer is not None:
            return self.token_answer
        basic = base64.b64encode(f"{CLIENT_ID}:{self.secret}".encode()).decode()
        if request.header("authorization") != f"Basic {basic}":
            return json_answer(401, {"error": "invalid_client", "error_description": f"not {self.secret}"})
        token = f"{self.token_prefix}{len(self.issued) + 1}"
        if "resource" in form:
            table = table_of(form, self.workspace_id)
            if table is None:
                return json_answer(400, {"error": "invalid_request", "error_description": request.body.decode()})
            if table in self.table_answers:
                return self.table_answers[table]
            self.scopes[token] = table
        self.issued.append(token)
        return json_answer(200, {"access_token": token, "token_type": "Bearer", "expires_in": self.expires_in})

    def _take_traces(self, request: ReceivedRequest) -> Outcome | None:
        accepted = {*self.issued, PERSONAL_TOKEN} if self.accepted is None else self.accepted
        if bearer_of(request) not in accepted or bearer_of(request) in self.scopes:
            return json_answer(401, {"error_code": "401", "message": "Credential was not sent or is not valid"})
        if request.location not in self.tables:
            return json_answer(
                404, {"error_code": "TABLE_DOES_NOT_EXIST", "message": f"Table '{request.location}' does not exist."}
            )
        return self.traces(request) or Answer(200, headers=[("content-type", "text/plain")], body=b"200 OK")


@asynccontextmanager
async def workspace_of(
    location_header: str = "X-Databricks-UC-Table-Name",
    *,
    ssl_context: ssl.SSLContext | None = None,
    **options: Any,
) -> AsyncIterator[FakeWorkspace]:
    workspace = FakeWorkspace(**options)
    receiver = OTLPReceiver(
        path=None, location_header=location_header, answers=workspace.answer, ssl_context=ssl_context
    )
    workspace.receiver = receiver
    async with receiver:
        yield workspace


def forget_databricks(monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> None:
    """Remove this machine's Databricks settings, and proxies that would be used for 127.0.0.1."""
    import os

    for name in list(os.environ):
        if name.upper().startswith(("DATABRICKS_", "ARM_", "GOOGLE_")) or name.upper().endswith("_PROXY"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("DATABRICKS_CONFIG_FILE", f"{tmp_path}/databrickscfg")
    # Where the SDK looks for the command line tools of Databricks and of clouds.
    monkeypatch.setenv("PATH", str(tmp_path))


def as_service_principal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABRICKS_CLIENT_ID", CLIENT_ID)
    monkeypatch.setenv("DATABRICKS_CLIENT_SECRET", CLIENT_SECRET)
