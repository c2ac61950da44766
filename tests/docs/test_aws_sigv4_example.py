"""The recipe for signed requests: its signatures equal AWS's, and a server can verify them for the received request."""

from __future__ import annotations

import hashlib
import hmac
import importlib.util
import logging
import re
import sys
from datetime import UTC, datetime, timedelta
from types import ModuleType
from typing import Any
from urllib.parse import quote

import httpx
import pytest

from tests.cli.support import run_command
from tests.support.exporters import batch_of
from tests.support.paths import PROJECT
from trio_spanbatch import Delivered, OTLPExporter, Refused, TryLater
from trio_spanbatch.destinations import mlflow
from trio_spanbatch.testing import Answer, OTLPReceiver, ReceivedRequest

EXAMPLE = PROJECT / "docs" / "examples" / "destinations" / "aws_sigv4.py"

# From AWS's documentation.
ACCESS_KEY = "AKIDEXAMPLE"
SECRET_KEY = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY"
TOKEN = "token/with+signs=="
REGION = "eu-central-1"

BODY = bytes(range(256)) * 4
PROTOBUF = {"Content-Type": "application/x-protobuf"}


@pytest.fixture(scope="module")
def example() -> ModuleType:
    spec = importlib.util.spec_from_file_location("aws_sigv4", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def signed(example: ModuleType, request: httpx.Request, at: datetime, region: str, service: str, token: Any) -> str:
    credentials = example.Credentials(ACCESS_KEY, SECRET_KEY, token)
    auth = example.SigV4(region, service, credentials=lambda: credentials, now=lambda: at)
    next(auth.auth_flow(request))
    return str(request.headers["authorization"])


@pytest.mark.parametrize(
    ("request_", "names", "signature"),
    [
        # AWS's test suite for Signature Version 4: get-vanilla, post-vanilla, post-x-www-form-urlencoded.
        (
            httpx.Request("GET", "https://example.amazonaws.com/"),
            "host;x-amz-date",
            "5fa00fa31553b73ebf1942676e86291e8372ff2a2260956d9b8aae1d763fbf31",
        ),
        (
            httpx.Request("POST", "https://example.amazonaws.com/"),
            "host;x-amz-date",
            "5da7c1a2acd57cee7505fc6676e4e544621c30862966e37dddb68e92efbe5d6b",
        ),
        (
            httpx.Request(
                "POST",
                "https://example.amazonaws.com/",
                headers={"Content-Type": "application/x-www-form-urlencoded"},
                content=b"Param1=value1",
            ),
            "content-type;host;x-amz-date",
            "ff11897932ad3f4e8b18135d722051e5ac45fc38421b1da7b9d196a0fe09473a",
        ),
    ],
    ids=["get-vanilla", "post-vanilla", "post-x-www-form-urlencoded"],
)
def test_signatures_equal_those_of_awss_test_suite(
    request_: httpx.Request, names: str, signature: str, example: ModuleType
) -> None:
    at = datetime(2015, 8, 30, 12, 36, tzinfo=UTC)
    assert signed(example, request_, at, "us-east-1", "service", None) == (
        f"AWS4-HMAC-SHA256 Credential={ACCESS_KEY}/20150830/us-east-1/service/aws4_request, SignedHeaders={names}, "
        f"Signature={signature}"
    )


@pytest.mark.parametrize(
    ("request_", "region", "service", "token", "names", "signature"),
    [
        (
            httpx.Request(
                "POST",
                "https://xray.eu-central-1.amazonaws.com/v1/traces",
                headers={**PROTOBUF, "Content-Encoding": "gzip", "X-Tenant": "acme"},
                content=BODY,
            ),
            "eu-central-1",
            "xray",
            None,
            "content-encoding;content-type;host;x-amz-date;x-tenant",
            "4826c551c520443d72e1550a75404097a2496df1f647ca6fb1c999c6e85a3262",
        ),
        (
            httpx.Request(
                "POST",
                "https://xray.eu-central-1.amazonaws.com/v1/traces",
                headers={**PROTOBUF, "X-Tenant": "acme  corp"},
                content=BODY,
            ),
            "eu-central-1",
            "xray",
            TOKEN,
            "content-type;host;x-amz-date;x-amz-security-token;x-tenant",
            "a75973430be4ed34955190ea334a590d750f4f682a27a4f08887dfb76523c6f7",
        ),
        (
            httpx.Request("POST", "https://api.test:8443/team%20a/v1/traces", headers=PROTOBUF, content=BODY),
            "us-east-1",
            "execute-api",
            None,
            "content-type;host;x-amz-date",
            "dd944564fc5cbf9ee8cd7a3e686b8c62a1569cf7d25f23bc5f291e41a3e59ecd",
        ),
        (
            httpx.Request("GET", "https://api.test/api/2.0/mlflow/experiments/get-by-name?experiment_name=a%20b&a=1"),
            "us-east-1",
            "execute-api",
            None,
            "host;x-amz-date",
            "d6570534855baa6f19e3fec0da023b8795e9430eb42adac575c128dd260f9574",
        ),
    ],
    ids=["gzip and a tenant", "a session token", "port and path", "a query"],
)
def test_signatures_equal_those_of_botocore(
    request_: httpx.Request,
    region: str,
    service: str,
    token: str | None,
    names: str,
    signature: str,
    example: ModuleType,
) -> None:
    """The expected signatures are from botocore 1.44.8."""
    at = datetime(2026, 3, 1, 12, 30, 45, tzinfo=UTC)
    authorization = signed(example, request_, at, region, service, token)
    assert f"SignedHeaders={names}, Signature={signature}" in authorization
    assert f"Credential={ACCESS_KEY}/20260301/{region}/{service}/aws4_request" in authorization


def is_right(request: ReceivedRequest, service: str = "xray") -> bool:
    """Return whether the signature of ``request`` is valid for the received content and the known secret."""
    parts = re.fullmatch(
        r"AWS4-HMAC-SHA256 Credential=([^/]+)/(.*), SignedHeaders=(.*), Signature=([0-9a-f]{64})",
        request.header("authorization") or "",
    )
    assert parts is not None
    access_key, scope, names, signature = parts.groups()
    date = request.header("x-amz-date") or ""
    assert (access_key, scope) == (ACCESS_KEY, f"{date[:8]}/{REGION}/{service}/aws4_request")
    path, _, query = request.target.partition("?")
    lines = [request.method, quote(path), query]
    lines += [f"{name}:{request.header(name)}" for name in names.split(";")]
    lines += ["", names, hashlib.sha256(request.body).hexdigest()]
    hashed = hashlib.sha256("\n".join(lines).encode()).hexdigest()
    key = b"AWS4" + SECRET_KEY.encode()
    for part in scope.split("/"):
        key = hmac.new(key, part.encode(), hashlib.sha256).digest()
    text = f"AWS4-HMAC-SHA256\n{date}\n{scope}\n{hashed}"
    return hmac.new(key, text.encode(), hashlib.sha256).hexdigest() == signature


class Checking:
    """A server that is busy once and then accepts requests with a valid signature."""

    def __init__(self, service: str = "xray") -> None:
        self.service = service
        self.seen: list[ReceivedRequest] = []

    def __call__(self, request: ReceivedRequest) -> Answer | None:
        self.seen.append(request)
        if not is_right(request, self.service):
            return Answer(403, body=b"the signature is not right")
        if len(self.seen) == 1:
            return Answer(503)
        if request.method == "GET":
            body = b'{"experiment": {"experiment_id": "3", "lifecycle_stage": "active"}}'
            return Answer(headers=[("content-type", "application/json")], body=body)
        return None


@pytest.mark.parametrize("compression", [None, "gzip"])
@pytest.mark.parametrize("token", [None, TOKEN])
async def test_each_attempt_signs_the_body_as_sent_and_the_location(
    compression: str | None, token: str | None, example: ModuleType, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    times = iter(datetime(2026, 3, 1, 23, 59, 58, tzinfo=UTC) + timedelta(seconds=2 * number) for number in range(9))
    auth = example.SigV4(
        REGION, "xray", lambda: example.Credentials(ACCESS_KEY, SECRET_KEY, token), lambda: next(times)
    )
    server = Checking()
    receiver = OTLPReceiver(answers=server, location_header="x-tenant")
    async with receiver, httpx.AsyncClient(auth=auth) as client:
        exporter = OTLPExporter(receiver.url, client=client, compression=compression, location_header="x-tenant")
        first = await exporter.export(batch_of(50, "acme"))
        second = await exporter.export(batch_of(50, "acme"))
    assert isinstance(first, TryLater)
    assert (second, len(receiver.stored["acme"])) == (Delivered(), 50)
    # The day changes between the attempts, and with it the key.
    assert [request.header("x-amz-date") for request in server.seen] == ["20260301T235958Z", "20260302T000000Z"]
    for request in server.seen:
        assert request.header("x-amz-security-token") == token
        assert ("x-tenant" in (request.header("authorization") or "")) is True
        assert request.header("content-encoding") == compression
    for secret in (SECRET_KEY, TOKEN):
        assert secret not in caplog.text
        assert secret not in repr((auth, first, example.Credentials(ACCESS_KEY, SECRET_KEY, token)))


async def test_the_server_of_these_tests_refuses_an_invalid_signature(example: ModuleType) -> None:
    auth = example.SigV4(REGION, "xray", lambda: example.Credentials(ACCESS_KEY, "another secret key"))
    async with OTLPReceiver(answers=Checking()) as receiver, httpx.AsyncClient(auth=auth) as client:
        result = await OTLPExporter(receiver.url, client=client).export(batch_of(1, "acme"))
    assert isinstance(result, Refused)
    assert result.status_code == 403


async def test_mlflows_lookups_of_names_are_also_signed(example: ModuleType) -> None:
    auth = example.SigV4(REGION, "execute-api", lambda: example.Credentials(ACCESS_KEY, SECRET_KEY))
    server = Checking("execute-api")
    async with OTLPReceiver(answers=server, path=None) as receiver, httpx.AsyncClient(auth=auth) as client:
        root = receiver.url.removesuffix("/v1/traces")
        exporter = mlflow(root, experiments="name", client=client, environ={"MLFLOW_TRACKING_AWS_SIGV4": "true"})
        assert isinstance(await exporter.export(batch_of(1, "agents & more")), TryLater)
        assert await exporter.export(batch_of(1, "agents & more")) == Delivered()
    assert [request.method for request in server.seen] == ["GET", "GET", "POST"]
    assert server.seen[0].target.endswith("get-by-name?experiment_name=agents%20%26%20more")


async def test_the_example_runs_unchanged() -> None:
    server = Checking()
    server.seen = [None]  # type: ignore[list-item]  # it has been busy already
    async with OTLPReceiver(answers=server) as receiver:
        environ = {
            "AWS_REGION": REGION,
            "AWS_ACCESS_KEY_ID": ACCESS_KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
            "AWS_SESSION_TOKEN": TOKEN,
            "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": receiver.url,
        }
        ended = await run_command(program=[sys.executable, "-W", "error", str(EXAMPLE)], environ=environ)
    assert (ended.exit_code, ended.out, ended.err) == (0, "delivered: 1\n", "")
    assert [span.name for span in receiver.stored["default"]] == ["nap"]
