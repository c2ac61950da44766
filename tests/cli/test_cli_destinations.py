"""``send --to``: each destination, and one-line errors that name the problem and the remedy."""

from __future__ import annotations

import math
import re
import ssl
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import trio
import trustme
from click.testing import CliRunner

from tests.cli.support import (
    Ended,
    give_up_after_the_first_failure,
    request_line,
    run_command,
    run_in_process,
    span_document,
)
from tests.destinations.databricks_support import (
    CLIENT_ID,
    CLIENT_SECRET,
    PERSONAL_TOKEN,
    TABLE,
    FakeWorkspace,
    forget_databricks,
    workspace_of,
)
from tests.support.processes import reserved_port
from trio_spanbatch._http.exporter import DisabledExporter
from trio_spanbatch.cli import commands
from trio_spanbatch.cli.destinations import Destination, attempt_timeout, make_exporter
from trio_spanbatch.testing import Answer, OTLPReceiver, ReceivedRequest

EXPERIMENT = "x-mlflow-experiment-id"


@pytest.fixture(autouse=True)
def nothing_of_this_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    forget_databricks(monkeypatch, tmp_path)
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_TRACKING_TOKEN", "MLFLOW_TRACKING_USERNAME", "MLFLOW_EXPERIMENT_ID"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(autouse=True)
def gives_up_after_the_first_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    give_up_after_the_first_failure(monkeypatch)


@pytest.fixture
def spans(tmp_path: Path) -> Path:
    path = tmp_path / "spans.jsonl"
    path.write_bytes(
        request_line(span_document(1, tenant=TABLE), span_document(2, tenant=TABLE))
        + request_line(span_document(3, tenant="main.agents.other"))
    )
    return path


async def send(spans: Path, *arguments: object, **environ: str) -> Ended:
    return await run_in_process("send", spans, *arguments, environ=environ)


def only_line(ended: Ended) -> str:
    """The one line on stderr of a command that failed."""
    assert ended.exit_code == 1
    (line,) = ended.err.splitlines()
    assert "Traceback" not in line
    return line


# Where spans are sent.


async def test_spans_go_to_tables_of_unity_catalog(spans: Path) -> None:
    async with workspace_of(tables={TABLE, "main.agents.other"}) as workspace:
        ended = await send(
            spans,
            *("--to", "unity-catalog", "--location-attribute", "tenant", "--compression", "gzip", "--json"),
            DATABRICKS_HOST=workspace.host,
            DATABRICKS_CLIENT_ID=CLIENT_ID,
            DATABRICKS_CLIENT_SECRET=CLIENT_SECRET,
            # Settings for other servers are not sent to this one.
            OTEL_EXPORTER_OTLP_HEADERS="X-Key=s3cret",
            OTEL_EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:1",
        )
    assert (ended.exit_code, ended.err) == (0, "")
    assert {table: len(stored) for table, stored in workspace.receiver.stored.items()} == {
        TABLE: 2,
        "main.agents.other": 1,
    }
    assert ended.document["delivered"] == 3
    for request in workspace.trace_requests:
        assert request.header("x-key") is None
        assert request.header("content-encoding") == "gzip"


async def test_the_workspace_and_headers_may_be_options(spans: Path) -> None:
    async with workspace_of() as workspace:
        ended = await run_command(
            *("send", spans, "--to", "unity-catalog", "--endpoint", workspace.host, "--location", TABLE),
            *("--header", "X-Databricks-Org-Id=7", "--timeout", 60),
            environ={"DATABRICKS_TOKEN": PERSONAL_TOKEN},
        )
    assert (ended.exit_code, ended.err) == (0, "")
    assert len(workspace.receiver.stored[TABLE]) == 3
    assert workspace.trace_requests[0].header("x-databricks-org-id") == "7"


def as_mlflow(request: ReceivedRequest) -> Answer | None:
    """Answer like an MLflow server with the experiment 3, called "support agent"."""
    json = [("content-type", "application/json")]
    if request.header("authorization") == "Bearer wrong":
        return Answer(401, headers=json, body=b'{"message": "You are not authenticated."}')
    if "get-by-name" in request.target:
        if "support" in request.target:
            body = b'{"experiment": {"experiment_id": "3", "name": "support agent", "lifecycle_stage": "active"}}'
            return Answer(200, headers=json, body=body)
        body = b'{"error_code": "RESOURCE_DOES_NOT_EXIST", "message": "Could not find experiment with name \'x\'"}'
        return Answer(404, headers=json, body=body)
    if request.location != "3":
        body = b'{"error_code": "RESOURCE_DOES_NOT_EXIST", "message": "No Experiment with id=9 exists"}'
        return Answer(404, headers=json, body=body)
    return None


@pytest.fixture
def mlflow_server() -> OTLPReceiver:
    return OTLPReceiver(path=None, location_header=EXPERIMENT, answers=as_mlflow)


def base_of(receiver: OTLPReceiver) -> str:
    return f"http://127.0.0.1:{receiver.port}"


@pytest.mark.parametrize("location", ["3", "support agent"])
async def test_spans_go_to_an_experiment_of_mlflow_by_id_or_name(
    location: str, spans: Path, mlflow_server: OTLPReceiver
) -> None:
    async with mlflow_server:
        ended = await send(spans, "--to", "mlflow", "--endpoint", base_of(mlflow_server), "--location", location)
    assert (ended.exit_code, ended.err) == (0, "")
    assert len(mlflow_server.stored["3"]) == 3
    assert mlflow_server.requests[-1].target == "/v1/traces"


async def test_server_and_experiment_may_come_from_mlflows_variables(spans: Path, mlflow_server: OTLPReceiver) -> None:
    async with mlflow_server:
        ended = await run_command(
            *("send", spans, "--to", "mlflow", "--compression", "none"),
            environ={
                "MLFLOW_TRACKING_URI": base_of(mlflow_server),
                "MLFLOW_TRACKING_TOKEN": "s3cret",
                "MLFLOW_EXPERIMENT_ID": "3",
            },
        )
    assert (ended.exit_code, ended.err) == (0, "")
    (request,) = mlflow_server.requests
    assert request.header("authorization") == "Bearer s3cret"
    assert request.header("content-encoding") is None


async def test_headers_for_mlflow_are_sent_with_traces_and_lookups_and_take_precedence_over_variables(
    spans: Path, mlflow_server: OTLPReceiver
) -> None:
    async with mlflow_server:
        ended = await send(
            *(spans, "--to", "mlflow", "--endpoint", base_of(mlflow_server), "--location", "support agent"),
            *("--header", "X-Gateway=g", "--header", "Authorization=Bearer mine"),
            MLFLOW_TRACKING_TOKEN="theirs",
        )
    assert (ended.exit_code, ended.err) == (0, "")
    sent = [(request.header("x-gateway"), request.header("authorization")) for request in mlflow_server.requests]
    assert sent == [("g", "Bearer mine")] * 2


def test_an_attempt_has_the_time_that_its_server_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OTEL_BSP_EXPORT_TIMEOUT", raising=False)
    assert attempt_timeout(typed("otlp")) == 30
    assert attempt_timeout(typed("mlflow")) == 61
    assert attempt_timeout(typed("unity-catalog")) == 30
    assert attempt_timeout(typed("zerobus")) == 30
    assert attempt_timeout(typed("mlflow", timeout=5)) == 6
    for milliseconds, seconds in (("5000", 30), ("60000", 61), ("0", math.inf)):
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", milliseconds)
        assert attempt_timeout(typed("otlp")) == seconds
    monkeypatch.setenv("OTEL_BSP_EXPORT_TIMEOUT", "7000")
    assert attempt_timeout(typed("otlp")) == 7


async def test_a_password_in_the_environments_endpoint_is_not_sent_to_another_endpoint(spans: Path) -> None:
    async with OTLPReceiver() as receiver:
        environ = {"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://user:s3cr3t@127.0.0.1:{receiver.port}"}
        assert (await send(spans, **environ)).exit_code == 0
        assert (await send(spans, "--endpoint", receiver.url, **environ)).exit_code == 0
    assert [request.header("authorization") is None for request in receiver.requests] == [False, True]


async def test_an_invalid_endpoint_is_not_shown_if_the_protocol_is_grpc(spans: Path) -> None:
    ended = await send(spans, "--endpoint", "http://me:s3cr3t", OTEL_EXPORTER_OTLP_PROTOCOL="grpc")
    assert ended.exit_code != 0
    assert "--endpoint (not shown) is not a URL" in ended.err
    assert "s3cr3t" not in ended.err


async def test_files_for_tls_in_the_environment_do_not_matter_for_plain_http(spans: Path) -> None:
    async with OTLPReceiver() as receiver:
        ended = await send(spans, "--endpoint", receiver.url, OTEL_EXPORTER_OTLP_CERTIFICATE="/nowhere.pem")
    assert (ended.exit_code, ended.err) == (0, "")


def typed(to: str, timeout: float | None = None) -> Destination:
    return Destination(
        to=to,
        endpoint=None,
        location=None,
        location_attribute=None,
        location_header=None,
        headers={},
        compression=None,
        timeout=timeout,
    )


@pytest.mark.parametrize("to", ["otlp", "mlflow", "unity-catalog", "zerobus"])
def test_nothing_is_sent_to_any_destination_if_the_sdk_is_disabled(to: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    assert isinstance(make_exporter(typed(to)), DisabledExporter)


# Usage errors.

MLFLOW = ("--to", "mlflow", "--endpoint", "http://127.0.0.1:5000")
CATALOG = ("--to", "unity-catalog", "--endpoint", "https://w.cloud.databricks.com")


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (("--to", "otpl"), "'otpl' is not one of 'otlp', 'mlflow', 'unity-catalog', 'zerobus'"),
        ((*MLFLOW, "--location", "1", "--location-attribute", "a"), "are mutually exclusive"),
        ((*MLFLOW, "--location-header", "X-A"), "--location-header cannot be used with --to mlflow"),
        ((*MLFLOW, "--header", "X-MLflow-Experiment-Id=4"), "--header has x-mlflow-experiment-id; a batch's location"),
        (MLFLOW, "location 'default' has no experiment: set MLFLOW_EXPERIMENT_ID, or name an experiment with"),
        (("--to", "mlflow", "--location", "1"), "give --endpoint or set MLFLOW_TRACKING_URI"),
        (("--to", "mlflow", "--endpoint", "127.0.0.1:5000"), "--endpoint has no scheme"),
        (("--to", "mlflow", "--endpoint", "databricks"), "for Databricks, use --to unity-catalog;"),
        (
            ("--to", "mlflow", "--endpoint", "http://"),
            "--endpoint has no host; it must be the URL of a tracking server",
        ),
        (("--to", "mlflow", "--endpoint", "http://me:s3cret@h"), "give them as MLFLOW_TRACKING_USERNAME and"),
        (CATALOG, "--to unity-catalog needs a table: name it with --location <catalog>.<schema>.<table>"),
        ((*CATALOG, "--location", "agents.spans"), "location 'agents.spans' is not a table of Unity Catalog: it has 2"),
        ((*CATALOG, "--location", TABLE, "--location-header", "X"), "it is X-Databricks-UC-Table-Name"),
        ((*CATALOG, "--location", TABLE, "--header", "authorization=s3cret"), "databricks-sdk authenticates"),
        (("--to", "unity-catalog", "--location", TABLE), "give --endpoint, as in https://dbc-a1b2c3d4-e5f6.cloud."),
        (("--to", "unity-catalog", "--location", TABLE, "--endpoint", "w.com/?o=s3cret"), "--endpoint must be a works"),
        (
            ("--to", "unity-catalog", "--location", TABLE, "--endpoint", "s3cret@w.com"),
            "--endpoint (not shown) contains a user",
        ),
        (("--endpoint", "http://x/?key=s3cret"), "give credentials with --header"),
        (("--location", "a\nb", "--location-header", "X-T"), r"location 'a\nb' cannot be sent in a header"),
    ],
)
def test_options_that_cannot_be_combined_are_a_one_line_error(arguments: tuple[str, ...], error: str) -> None:
    result = CliRunner().invoke(commands.cli, ["send", "-", *arguments], prog_name="trio-spanbatch")
    assert result.exit_code == 2
    assert error in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert "s3cret" not in result.stderr


def test_a_variable_that_is_not_an_experiment_is_a_one_line_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", "abc")
    result = CliRunner().invoke(commands.cli, ["send", "-", *MLFLOW], prog_name="trio-spanbatch")
    assert result.exit_code == 2
    (line,) = result.stderr.splitlines()
    assert line.startswith(
        "trio-spanbatch send: MLFLOW_EXPERIMENT_ID is 'abc'; it must be the id of an experiment, a whole number"
    )


async def test_an_attribute_that_is_not_an_experiment_is_reported_with_the_names_of_options(spans: Path) -> None:
    ended = await send(spans, *MLFLOW, "--location-attribute", "tenant")
    assert ended.err.splitlines()[0] == (
        f"{spans}:1: span 1: location '{TABLE}' is not an MLflow experiment's id, a whole number such as '3'; a name "
        "can only be given with --location; it is the value of the attribute 'tenant'"
    )
    assert len(ended.err.splitlines()) == 3


def test_incomplete_mlflow_credentials_are_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "me")
    result = CliRunner().invoke(commands.cli, ["send", "-", *MLFLOW, "--location", "1"], prog_name="trio-spanbatch")
    assert result.stderr.startswith(
        "trio-spanbatch send: there is a username, but no password: set MLFLOW_TRACKING_PASSWORD"
    )


async def test_without_databricks_sdk_the_error_says_how_to_install_it(
    spans: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("databricks", "databricks.sdk"):
        monkeypatch.setitem(sys.modules, module, None)
    ended = await send(spans, *CATALOG, "--location", TABLE)
    assert only_line(ended) == (
        'trio-spanbatch: databricks-sdk is not installed; get it with: pip install "trio-spanbatch[databricks]"'
    )


# Answers of servers.


def catalog(workspace: FakeWorkspace) -> tuple[str, ...]:
    return ("--to", "unity-catalog", "--endpoint", workspace.host, "--location", TABLE)


async def test_an_unknown_table_is_reported_in_one_line(spans: Path) -> None:
    async with workspace_of(tables=set()) as workspace:
        ended = await send(spans, *catalog(workspace), DATABRICKS_TOKEN=PERSONAL_TOKEN)
    assert only_line(ended) == (
        f"{TABLE}: 3 rejected: 404 Not Found: TABLE_DOES_NOT_EXIST: Table '{TABLE}' does not exist.; create the "
        "table, or correct its name"
    )


async def test_a_wrong_token_for_a_workspace_is_reported_in_one_line(spans: Path) -> None:
    async with workspace_of() as workspace:
        ended = await send(spans, *catalog(workspace), DATABRICKS_TOKEN="dapi-s3cret-s3cret")
    assert re.fullmatch(
        re.escape(TABLE) + ": 3 rejected: 401 Unauthorized: .*; the workspace does not accept these credentials, .*",
        only_line(ended),
    )
    assert "s3cret" not in ended.err + ended.out


async def test_a_wrong_client_secret_is_reported_in_one_line(spans: Path) -> None:
    async with workspace_of() as workspace:
        ended = await send(
            spans, *catalog(workspace), DATABRICKS_CLIENT_ID=CLIENT_ID, DATABRICKS_CLIENT_SECRET="s3cret-s3cret"
        )
    assert only_line(ended) == (
        f"{TABLE}: 3 rejected: no credentials: the token endpoint of {workspace.host} answered invalid_client: check "
        "DATABRICKS_CLIENT_ID and DATABRICKS_CLIENT_SECRET"
    )


async def test_no_credentials_for_a_workspace_are_reported_in_one_line(spans: Path) -> None:
    async with workspace_of() as workspace:
        ended = await send(spans, *catalog(workspace))
    assert only_line(ended) == (
        f"{TABLE}: 3 rejected: no credentials: databricks-sdk found none: set DATABRICKS_TOKEN, or "
        "DATABRICKS_CLIENT_ID and DATABRICKS_CLIENT_SECRET, or DATABRICKS_CONFIG_PROFILE"
    )


async def test_an_unknown_experiment_is_reported_in_one_line(spans: Path, mlflow_server: OTLPReceiver) -> None:
    async with mlflow_server:
        by_id = await send(spans, "--to", "mlflow", "--endpoint", base_of(mlflow_server), "--location", "9")
        by_name = await send(spans, "--to", "mlflow", "--endpoint", base_of(mlflow_server), "--location", "nobody")
    assert only_line(by_id).startswith("9: 3 rejected: 404 Not Found: RESOURCE_DOES_NOT_EXIST: No Experiment with id=9")
    assert only_line(by_id).endswith("; create it, or correct the location")
    assert only_line(by_name).startswith("nobody: 3 rejected: ")
    assert "experiment" in only_line(by_name)


@pytest.fixture
def authority() -> trustme.CA:
    return trustme.CA()


def tls_of(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    return context


async def test_an_unknown_ca_of_mlflow_is_reported_in_one_line_with_advice_that_helps(
    spans: Path, authority: trustme.CA, tmp_path: Path
) -> None:
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    async with OTLPReceiver(
        answers=as_mlflow, path=None, location_header=EXPERIMENT, ssl_context=tls_of(authority)
    ) as receiver:
        arguments = ("--to", "mlflow", "--endpoint", f"https://127.0.0.1:{receiver.port}", "--location", "3")
        ended = await send(spans, *arguments)
        assert f"the certificate of 127.0.0.1:{receiver.port} is not trusted: " in only_line(ended)
        advice = "; SSL_CERT_FILE, MLFLOW_TRACKING_SERVER_CERT_PATH or certificate= names the file with its CA"
        assert advice in only_line(ended)
        advised = await send(spans, *arguments, SSL_CERT_FILE=str(tmp_path / "ca.pem"))
        assert (advised.exit_code, advised.err) == (0, "")


async def test_an_unknown_ca_of_a_workspace_is_reported_in_one_line_with_advice_that_helps(
    spans: Path, authority: trustme.CA, tmp_path: Path
) -> None:
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    async with workspace_of(ssl_context=tls_of(authority)) as workspace:
        ended = await send(spans, *catalog(workspace), DATABRICKS_TOKEN=PERSONAL_TOKEN)
        assert f"the certificate of 127.0.0.1:{workspace.receiver.port} is not trusted: " in only_line(ended)
        assert "; SSL_CERT_FILE names the file with its CA" in only_line(ended)
        advised = await send(
            spans, *catalog(workspace), DATABRICKS_TOKEN=PERSONAL_TOKEN, SSL_CERT_FILE=str(tmp_path / "ca.pem")
        )
        assert (advised.exit_code, advised.err) == (0, "")


async def test_an_unknown_ca_of_a_token_endpoint_is_reported_in_one_line_with_advice_that_helps(
    spans: Path, authority: trustme.CA, tmp_path: Path
) -> None:
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    credentials = {"DATABRICKS_CLIENT_ID": CLIENT_ID, "DATABRICKS_CLIENT_SECRET": CLIENT_SECRET}
    files = {name: str(tmp_path / "ca.pem") for name in ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE")}
    async with workspace_of(ssl_context=tls_of(authority)) as workspace:
        ended = await send(spans, *catalog(workspace), **credentials)
        assert "; name the right workspace with --endpoint" in only_line(ended)
        assert "(REQUESTS_CA_BUNDLE names the file with its CA)" in only_line(ended)
        advised = await send(spans, *catalog(workspace), **credentials, **files)
        assert (advised.exit_code, advised.err) == (0, "")


async def test_a_proxy_that_cannot_be_used_is_reported_in_one_line(spans: Path) -> None:
    ended = await send(spans, "--endpoint", "http://collector.test", HTTP_PROXY="http://me:s3cret#x@proxy.test")
    assert ended.exit_code == 2
    assert "a proxy variable (HTTP_PROXY; not shown) cannot be used: " in ended.err
    assert "unexpected error" not in ended.err
    assert "s3cret" not in ended.err


async def test_a_wrong_token_for_mlflow_is_reported_in_one_line(spans: Path, mlflow_server: OTLPReceiver) -> None:
    async with mlflow_server:
        ended = await send(
            spans,
            *("--to", "mlflow", "--endpoint", base_of(mlflow_server), "--location", "3"),
            MLFLOW_TRACKING_TOKEN="wrong",
        )
    assert only_line(ended).startswith("3: 3 rejected: 401 Unauthorized: You are not authenticated.; give the right ")


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (Answer(401), "401 Unauthorized; set the right credentials with --header or OTEL_EXPORTER_OTLP_HEADERS"),
        (Answer(403), "403 Forbidden; set the right credentials with --header or OTEL_EXPORTER_OTLP_HEADERS"),
        (
            Answer(404),
            "404 Not Found; --endpoint must be the whole URL including its path, as in http://localhost:4318",
        ),
        (
            Answer(307, headers=[("location", "https://collector.test/v1/traces")]),
            "the redirect to https://collector.test/v1/traces was not followed; if the redirect's target is",
        ),
        (Answer(500), "500 Internal Server Error"),
    ],
    ids=lambda value: str(value.status) if isinstance(value, Answer) else "",
)
async def test_a_refusal_is_reported_in_one_line_with_advice(answer: Answer, words: str, spans: Path) -> None:
    async with OTLPReceiver(answers=lambda request: answer) as receiver:
        ended = await send(spans, "--endpoint", receiver.url)
    assert only_line(ended).startswith("default: 3 rejected: ")
    assert words in only_line(ended)


@pytest.mark.parametrize("status", [401, 404, 500])
async def test_with_json_a_refusal_is_one_document_and_one_line(status: int, spans: Path) -> None:
    async with OTLPReceiver(answers=lambda request: Answer(status)) as receiver:
        ended = await send(spans, "--endpoint", receiver.url, "--json")
    assert only_line(ended).startswith(f"default: 3 rejected: {status} ")
    document = ended.document
    for counts in (document, document["locations"]["default"]):
        assert (counts["read"], counts["accepted"], counts["rejected"], counts["requests"]) == (3, 3, 3, 1)
        assert counts["delivered"] == counts["undelivered"] == counts["retries"] == 0


async def test_only_the_table_is_printed_to_a_pipe(spans: Path) -> None:
    async with OTLPReceiver() as receiver:
        ended = await run_command("send", spans, "--endpoint", receiver.url)
    assert (ended.exit_code, ended.err) == (0, "")
    assert [line.split()[0] for line in ended.out.splitlines()] == ["location", "default"]


# No server, or one with another protocol.


async def close_as_tls(stream: trio.SocketStream) -> None:
    """Close without an answer, as OpenSSL does with a plain request."""
    async with stream:
        await stream.receive_some()
        await stream.send_eof()
        # Unread data would reset the connection.
        while await stream.receive_some():
            pass


def to_otlp(base: str) -> tuple[str, ...]:
    return ("--endpoint", f"{base}/v1/traces")


def to_mlflow(base: str) -> tuple[str, ...]:
    return ("--to", "mlflow", "--endpoint", base, "--location", "3")


def to_mlflow_by_name(base: str) -> tuple[str, ...]:
    return ("--to", "mlflow", "--endpoint", base, "--location", "support agent")


def to_catalog(base: str) -> tuple[str, ...]:
    return ("--to", "unity-catalog", "--endpoint", base, "--location", TABLE)


EACH_WITH_ADVICE = pytest.mark.parametrize(
    ("options", "advice"),
    [
        (to_otlp, "start a server there (trio-spanbatch receive is one), or name another one with --endpoint"),
        (to_mlflow, "start MLflow there, or name its tracking URI with --endpoint"),
        (to_mlflow_by_name, "start MLflow there, or name its tracking URI with --endpoint"),
        (to_catalog, "name the right workspace with --endpoint"),
    ],
    ids=["otlp", "mlflow", "mlflow by name", "unity catalog"],
)
EACH = pytest.mark.parametrize(
    "options",
    [to_otlp, to_mlflow, to_mlflow_by_name, to_catalog],
    ids=["otlp", "mlflow", "mlflow by name", "unity catalog"],
)


@EACH_WITH_ADVICE
async def test_a_wrong_port_is_reported_in_one_line(
    options: Callable[[str], tuple[str, ...]], advice: str, spans: Path
) -> None:
    with reserved_port() as port:
        ended = await send(spans, *options(f"http://127.0.0.1:{port}"), DATABRICKS_TOKEN=PERSONAL_TOKEN)
    line = only_line(ended)
    assert line.startswith("no request was ever answered: ")
    assert f"127.0.0.1:{port}" in line
    assert "connect" in line
    assert line.endswith(f"; {advice}")


@EACH
async def test_https_to_an_http_server_is_reported_in_one_line_with_one_piece_of_advice(
    options: Callable[[str], tuple[str, ...]], spans: Path
) -> None:
    async with OTLPReceiver() as receiver:
        base = base_of(receiver).replace("http:", "https:")
        ended = await send(spans, *options(base), DATABRICKS_TOKEN=PERSONAL_TOKEN)
    line = only_line(ended)
    assert "does not speak TLS" in line
    assert line.endswith("http:// instead of https://?")


@EACH
async def test_http_to_a_tls_server_is_reported_in_one_line_with_one_piece_of_advice(
    options: Callable[[str], tuple[str, ...]], spans: Path, nursery: trio.Nursery
) -> None:
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    nursery.start_soon(trio.serve_listeners, close_as_tls, [listener])
    port = listener.socket.getsockname()[1]
    ended = await send(spans, *options(f"http://127.0.0.1:{port}"), DATABRICKS_TOKEN=PERSONAL_TOKEN)
    line = only_line(ended)
    assert line.endswith("if it speaks TLS, the endpoint begins with https://")


async def test_a_workspace_without_a_token_endpoint_is_reported_in_one_line(spans: Path) -> None:
    ended = await send(
        spans,
        *to_catalog("http://127.0.0.1:1"),
        DATABRICKS_CLIENT_ID=CLIENT_ID,
        DATABRICKS_CLIENT_SECRET=CLIENT_SECRET,
    )
    assert only_line(ended) == (
        "no request was ever answered: no credentials: http://127.0.0.1:1 does not name its token endpoint: is it a "
        "Databricks workspace, and is it up?; name the right workspace with --endpoint"
    )
