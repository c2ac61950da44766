"""MLflow's own variables, and headers=: they take effect, or a warning is logged once."""

from __future__ import annotations

import json
import logging
import ssl
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import httpx
import pytest
import trustme

from tests.support.exporters import SECRET, batch_of
from trio_spanbatch import Delivered, OTLPExporter, TryLater
from trio_spanbatch.destinations import mlflow
from trio_spanbatch.testing import Answer, OTLPReceiver, ReceivedRequest

URI = "http://mlflow.test"
TLS = "MLFLOW_TRACKING_SERVER_CERT_PATH"
CLIENT = "MLFLOW_TRACKING_CLIENT_CERT_PATH"
INSECURE = "MLFLOW_TRACKING_INSECURE_TLS"

UNREAD = {
    "MLFLOW_TRACKING_AUTH": "kubernetes",
    "MLFLOW_TRACKING_AWS_SIGV4": "true",
    "MLFLOW_EXPERIMENT_NAME": "agents",
    "MLFLOW_TRACING_DESTINATION": "main.agents",
    "MLFLOW_ACTIVE_MODEL_ID": "m-0123",
    "MLFLOW_RUN_ID": "0123",
    "MLFLOW_TRACE_SAMPLING_RATIO": "0.1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "7",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "7",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "2",
    "MLFLOW_HTTP_REQUEST_BACKOFF_JITTER": "1.5",
    "MLFLOW_HTTP_RESPECT_RETRY_AFTER_HEADER": "false",
    "MLFLOW_ALLOW_HTTP_REDIRECTS": "1",
}


@pytest.fixture(autouse=True)
def warnings_are_seen(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "trio_spanbatch")


def found(request: ReceivedRequest) -> Answer | None:
    """Answer a lookup of an experiment's id, and accept traces."""
    if request.method == "POST":
        return None
    document = {"experiment": {"experiment_id": "3", "lifecycle_stage": "active"}}
    return Answer(headers=[("content-type", "application/json")], body=json.dumps(document).encode())


async def requests(environ: dict[str, str], location: str = "3", **options: Any) -> list[ReceivedRequest]:
    """Return the requests that an export makes."""
    async with OTLPReceiver(listen=False, path=None, answers=found) as receiver:
        exporter = mlflow(URI, environ=environ, transport=receiver.memory_transport(), **options)
        assert await exporter.export(batch_of(1, location)) == Delivered()
        await exporter.aclose()
    return list(receiver.requests)


# Headers.


@pytest.mark.parametrize("value", ["team-a", " team-a\n", "default"])
async def test_the_workspace_of_the_environment_is_sent_with_traces_and_with_the_lookup_of_a_name(value: str) -> None:
    (traces,) = await requests({"MLFLOW_WORKSPACE": value})
    assert traces.header("x-mlflow-workspace") == value.strip()
    lookup, traces = await requests({"MLFLOW_WORKSPACE": value}, "agents", experiments="name")
    assert urlsplit(lookup.target).path == "/api/2.0/mlflow/experiments/get-by-name"
    assert [request.header("x-mlflow-workspace") for request in (lookup, traces)] == [value.strip()] * 2


@pytest.mark.parametrize("value", ["", " "])
async def test_an_empty_workspace_counts_as_unset(value: str) -> None:
    (traces,) = await requests({"MLFLOW_WORKSPACE": value})
    assert traces.header("x-mlflow-workspace") is None


@pytest.mark.parametrize("value", ["team a", "team\r\nX-Admin: 1", "é", "a" * 300, "\udcff"])
def test_a_workspace_that_cannot_be_sent_is_an_error_and_not_ignored(value: str) -> None:
    with pytest.raises(ValueError, match=r"^MLFLOW_WORKSPACE is '.*; it must be a workspace's name") as caught:
        mlflow(URI, environ={"MLFLOW_WORKSPACE": value})
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize("name", ["X-MLFLOW-WORKSPACE", "x-mlflow-workspace"])
async def test_a_header_takes_precedence_over_the_variable_for_the_workspace(name: str) -> None:
    environ = {"MLFLOW_WORKSPACE": "team-a"}
    for request in await requests(environ, "agents", experiments="name", headers={name: "team-b"}):
        assert [value for header, value in request.headers if header.lower() == "x-mlflow-workspace"] == ["team-b"]


async def test_headers_are_sent_with_traces_and_with_the_lookup_of_a_name() -> None:
    given = {"X-Gateway-Key": SECRET, "User-Agent": "agents/1"}
    lookup, traces = await requests({}, "agents", experiments="name", headers=given, run_id="7", token="t")
    for request in (lookup, traces):
        assert request.header("x-gateway-key") == SECRET
        assert request.header("authorization") == "Bearer t"
        assert (request.header("user-agent") or "").startswith("agents/1 trio-spanbatch/")
    assert (lookup.header("x-mlflow-run-id"), traces.header("x-mlflow-run-id")) == (None, "7")


async def test_an_authorization_header_takes_precedence_over_the_variables_for_credentials() -> None:
    environ = {"MLFLOW_TRACKING_TOKEN": "other", "MLFLOW_TRACKING_USERNAME": "me", "MLFLOW_TRACKING_AUTH": "plugin"}
    for request in await requests(environ, "agents", experiments="name", headers={"authorization": f"Own {SECRET}"}):
        assert request.header("authorization") == f"Own {SECRET}"


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"headers": {"authorization": SECRET}, "token": SECRET}, ValueError, "headers has Authorization as well"),
        ({"headers": {"Authorization": SECRET}, "password": SECRET}, ValueError, "headers has Authorization as well"),
        ({"headers": {"X-MLflow-Run-Id": "1"}, "run_id": "2"}, ValueError, "run_id is given, and headers has"),
        ({"headers": {"X-MLflow-Experiment-Id": "1"}}, ValueError, "a batch's location names its experiment"),
        ({"headers": {"Content-Type": "text/plain"}}, ValueError, "set by the exporter itself"),
        ({"headers": {"X-Key": f"{SECRET}\n"}}, ValueError, "the value of header 'X-Key'"),
        ({"headers": {1: SECRET}}, TypeError, "a header's name is of type int"),
        ({"headers": [("X-Key", SECRET)]}, TypeError, "headers is of type list"),
    ],
)
def test_headers_that_cannot_be_sent_are_refused_and_not_shown(
    options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message) as caught:
        mlflow(URI, environ={}, **options)
    assert SECRET not in str(caught.value)


# TLS.


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def ca(authority: trustme.CA, tmp_path: Path) -> str:
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    return str(tmp_path / "ca.pem")


def tls_of(authority: trustme.CA, *, asks_for_certificate: bool = False) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    if asks_for_certificate:
        authority.configure_trust(context)
        context.verify_mode = ssl.CERT_REQUIRED
    return context


async def sent_to(context: ssl.SSLContext, environ: dict[str, str], **options: Any) -> Any:
    """Return the results of two exports to a server with TLS, the second after the lookup of a name."""
    async with OTLPReceiver(ssl_context=context, path=None, answers=found) as receiver:
        root = receiver.url.removesuffix("/v1/traces")
        results = []
        kinds: dict[Literal["id", "name"], str] = {"id": "3", "name": "agents"}
        for kind, location in kinds.items():
            exporter = mlflow(root, environ=environ, experiments=kind, **options)
            results.append(await exporter.export(batch_of(1, location)))
            await exporter.aclose()
    return results


async def test_the_cas_that_mlflow_trusts_are_trusted(authority: trustme.CA, ca: str) -> None:
    assert await sent_to(tls_of(authority), {TLS: f" {ca}\n"}) == [Delivered()] * 2


async def test_an_argument_for_cas_takes_precedence_over_the_variables(authority: trustme.CA, ca: str) -> None:
    environ = {TLS: "/nonexistent", INSECURE: "true"}
    assert await sent_to(tls_of(authority), environ, certificate=ca) == [Delivered()] * 2


@pytest.mark.parametrize("value", ["true", "TRUE", "1"])
async def test_no_certificate_is_verified_if_the_environment_says_so_and_one_warning_is_logged(
    value: str, authority: trustme.CA, caplog: pytest.LogCaptureFixture
) -> None:
    assert await sent_to(tls_of(authority), {INSECURE: value}) == [Delivered()] * 2
    (record,) = caplog.records
    assert record.getMessage().startswith(f"{INSECURE} is true: the server's certificate is not verified")


@pytest.mark.parametrize(("value", "warnings"), [("false", 0), ("0", 0), ("", 0), ("yes", 1), ("a\r\nb" * 99, 1)])
async def test_a_certificate_is_verified_unless_the_environment_says_true(
    value: str, warnings: int, authority: trustme.CA, caplog: pytest.LogCaptureFixture
) -> None:
    results = await sent_to(tls_of(authority), {INSECURE: value})
    assert len(caplog.records) == warnings
    for result in results:
        assert isinstance(result, TryLater)
        assert "is not trusted" in result.reason
        assert f"{TLS} or certificate= names the file with its CA" in result.reason


@pytest.mark.parametrize("of", ["variable", "argument"])
async def test_the_client_certificate_of_mlflow_is_sent(
    of: str, authority: trustme.CA, ca: str, tmp_path: Path
) -> None:
    pem = tmp_path / "client.pem"
    authority.issue_cert("client.test").private_key_and_cert_chain_pem.write_to_path(pem)
    context = tls_of(authority, asks_for_certificate=True)
    if of == "variable":
        assert await sent_to(context, {TLS: ca, CLIENT: str(pem)}) == [Delivered()] * 2
    else:
        environ = {TLS: ca, CLIENT: "/nonexistent"}
        assert await sent_to(context, environ, client_certificate=pem) == [Delivered()] * 2
    for result in await sent_to(context, {TLS: ca}):
        assert isinstance(result, TryLater)


async def test_a_client_certificate_is_sent_to_a_server_that_is_not_verified(
    authority: trustme.CA, tmp_path: Path
) -> None:
    pem = tmp_path / "client.pem"
    authority.issue_cert("client.test").private_key_and_cert_chain_pem.write_to_path(pem)
    context = tls_of(authority, asks_for_certificate=True)
    assert await sent_to(context, {INSECURE: "1", CLIENT: str(pem)}) == [Delivered()] * 2


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        ({TLS: "/nonexistent"}, f"{TLS}: certificate '/nonexistent' cannot be read: No such file"),
        ({CLIENT: "/nonexistent"}, f"{CLIENT}: client_certificate '/nonexistent' cannot be read: No such file"),
        ({TLS: __file__}, f"{TLS}: certificate '.*' holds no certificates"),
        ({CLIENT: __file__}, f"{CLIENT}: client_certificate '.*' and client_key .* are no certificate"),
        ({TLS: "/nonexistent", INSECURE: "true"}, f"{INSECURE} is true, and {TLS} is set as well; unset"),
        ({CLIENT: f"-----BEGIN PRIVATE KEY-----{SECRET}"}, f"{CLIENT}: client_certificate .not shown. is a PEM"),
    ],
)
def test_files_that_cannot_be_used_are_reported_with_their_variable(environ: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        mlflow("https://mlflow.test", environ=environ)
    assert SECRET not in str(caught.value)
    # They are not read here.
    mlflow("http://mlflow.test", environ=environ)
    mlflow("https://mlflow.test", environ=environ, transport=httpx.AsyncHTTPTransport())


# Variables that are not read.


@pytest.mark.parametrize("variable", UNREAD)
def test_one_warning_names_the_alternative_to_a_variable_that_is_not_read(
    variable: str, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(2):
        mlflow(URI, environ={variable: UNREAD[variable]})
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert record.getMessage().startswith(f"{variable} is set, but mlflow() does not read it: ")
    assert UNREAD[variable] not in record.getMessage().replace(variable, "")


@pytest.mark.parametrize(
    "environ",
    [
        dict.fromkeys(UNREAD, ""),
        {"MLFLOW_TRACKING_AWS_SIGV4": "false"},
        {"MLFLOW_HTTP_RESPECT_RETRY_AFTER_HEADER": "True"},
        {"MLFLOW_ALLOW_HTTP_REDIRECTS": "0"},
    ],
)
def test_a_setting_that_matches_the_behaviour_causes_no_warning(
    environ: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    mlflow(URI, environ=environ)
    assert caplog.records == []


async def test_no_warning_about_mlflows_authentication_if_the_program_authenticates(
    caplog: pytest.LogCaptureFixture,
) -> None:
    environ = {name: UNREAD[name] for name in ("MLFLOW_TRACKING_AUTH", "MLFLOW_TRACKING_AWS_SIGV4")}
    mlflow(URI, environ=environ, headers={"Authorization": "Own"})
    async with httpx.AsyncClient(auth=httpx.BasicAuth("me", SECRET)) as client:
        mlflow(URI, environ=environ, client=client)
    assert caplog.records == []


@pytest.mark.parametrize("options", [{}, {"token": "t"}])
def test_a_warning_names_mlflows_credentials_file_if_there_are_no_other_credentials(
    options: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("USERNAME", "PASSWORD", "TOKEN"):
        monkeypatch.delenv(f"MLFLOW_TRACKING_{name}", raising=False)
    assert isinstance(mlflow(URI, **options), OTLPExporter)
    assert caplog.records == []
    (tmp_path / ".mlflow").mkdir()
    (tmp_path / ".mlflow" / "credentials").write_text(f"[mlflow]\nmlflow_tracking_password = {SECRET}\n")
    mlflow(URI, **options)
    messages = [record.getMessage() for record in caplog.records]
    assert messages == (
        []
        if options
        else ["~/.mlflow/credentials exists, but mlflow() does not read it: set MLFLOW_TRACKING_USERNAME and _PASSWORD"]
    )
