"""mlflow(): the URL, the credentials and the locations. The receiver stands in for MLflow."""

from __future__ import annotations

import base64
import logging
import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio
import trio.testing
import trustme

from tests.support.batchers import make_span
from tests.support.exporters import SECRET, batch_of
from trio_spanbatch import Delivered, InvalidLocationError, OTLPExporter, Refused, SpanBatcher
from trio_spanbatch.destinations import mlflow
from trio_spanbatch.testing import Answer, Hang, OTLPReceiver, ReceivedRequest

URI = "http://mlflow.test"
JSON = [("content-type", "application/json")]
CREDENTIALS_ADVICE = "give the right username and password, or token (MLFLOW_TRACKING_USERNAME, _PASSWORD, _TOKEN)"


async def received(location: str = "3", **options: Any) -> ReceivedRequest:
    """Return the only request that an export makes."""
    async with OTLPReceiver(listen=False, path=None) as receiver:
        exporter = mlflow(**{"tracking_uri": URI, "environ": {}, "transport": receiver.memory_transport(), **options})
        assert await exporter.export(batch_of(3, location)) == Delivered()
        await exporter.aclose()
    (request,) = receiver.requests
    return request


async def answered(*answers: Answer, location: str = "3", **options: Any) -> Any:
    """Return the result of an export that gets this answer."""
    async with OTLPReceiver(listen=False, path=None, answers=answers) as receiver:
        exporter = mlflow(URI, environ={}, transport=receiver.memory_transport(), **options)
        result = await exporter.export(batch_of(1, location))
        await exporter.aclose()
    return result


@pytest.mark.parametrize(
    ("uri", "host", "target"),
    [
        ("http://mlflow.test", "mlflow.test", "/v1/traces"),
        ("http://mlflow.test/", "mlflow.test", "/v1/traces"),
        ("http://mlflow.test:5000", "mlflow.test:5000", "/v1/traces"),
        ("http://mlflow.test/team/mlflow", "mlflow.test", "/team/mlflow/v1/traces"),
        ("http://mlflow.test/team/mlflow//", "mlflow.test", "/team/mlflow/v1/traces"),
    ],
)
@pytest.mark.parametrize("variable", [False, True])
async def test_traces_go_below_the_tracking_uri(uri: str, host: str, target: str, variable: bool) -> None:
    where: dict[str, Any] = {"tracking_uri": uri}
    if variable:
        where = {"tracking_uri": None, "environ": {"MLFLOW_TRACKING_URI": f" {uri}\n"}}
    request = await received(**where)
    assert (request.method, request.target, request.header("host")) == ("POST", target, host)


async def test_the_argument_takes_precedence_over_the_variable() -> None:
    request = await received(environ={"MLFLOW_TRACKING_URI": "http://other.test"})
    assert request.header("host") == "mlflow.test"


async def test_a_request_names_the_experiment_and_is_compressed() -> None:
    request = await received("17")
    assert request.header("x-mlflow-experiment-id") == "17"
    assert request.header("content-encoding") == "gzip"
    assert request.header("x-mlflow-run-id") is None
    assert request.header("authorization") is None
    assert len(request.spans) == 3


async def test_a_request_names_the_run_if_there_is_one() -> None:
    request = await received(run_id="0123abc", compression=None)
    assert request.header("x-mlflow-run-id") == "0123abc"
    assert request.header("content-encoding") is None


def basic(username: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{username}:{password}".encode()).decode()


@pytest.mark.parametrize(
    ("options", "environ", "expected"),
    [
        ({"token": "abc"}, {}, "Bearer abc"),
        ({}, {"TOKEN": "abc"}, "Bearer abc"),
        ({"username": "müller", "password": "pa:ss wörd"}, {}, basic("müller", "pa:ss wörd")),
        ({"username": "me", "password": ""}, {}, basic("me", "")),
        ({}, {"USERNAME": "me", "PASSWORD": "secret"}, basic("me", "secret")),
        ({"username": "you"}, {"USERNAME": "me", "PASSWORD": "secret"}, basic("you", "secret")),
        ({"password": "known"}, {"USERNAME": "me", "PASSWORD": "secret"}, basic("me", "known")),
        ({"token": "abc"}, {"USERNAME": "me", "PASSWORD": "secret"}, "Bearer abc"),
        ({"username": "me", "password": "secret"}, {"TOKEN": "abc"}, basic("me", "secret")),
        ({}, {"TOKEN": "", "USERNAME": "", "PASSWORD": ""}, None),
    ],
)
async def test_credentials_come_from_arguments_or_else_from_the_environment(
    options: dict[str, Any], environ: Mapping[str, str], expected: str | None
) -> None:
    variables = {f"MLFLOW_TRACKING_{name}": value for name, value in environ.items()}
    request = await received(environ=variables, **options)
    assert request.header("authorization") == expected


@pytest.mark.parametrize(
    ("options", "environ", "message"),
    [
        ({"token": SECRET, "username": "me"}, {}, "token is given, and username or password as well"),
        ({}, {"TOKEN": SECRET, "PASSWORD": "x"}, "MLFLOW_TRACKING_TOKEN is set, and MLFLOW_TRACKING_USERNAME or"),
        ({}, {"TOKEN": SECRET, "USERNAME": "x"}, "MLFLOW_TRACKING_TOKEN is set, and MLFLOW_TRACKING_USERNAME or"),
        ({"username": "me"}, {}, "there is a username, but no password: give password= or set MLFLOW_TRACKING_PASS"),
        ({}, {"PASSWORD": SECRET}, "there is a password, but no username: give username= or set MLFLOW_TRACKING_USER"),
        ({"token": ""}, {}, "the token .not shown. is empty"),
        ({"token": f"{SECRET}\n"}, {}, "the token .not shown. is empty, or has a space, a line break"),
        ({}, {"TOKEN": f"{SECRET}\n"}, "the token .not shown. is empty, or has a space, a line break"),
        ({"token": f"{SECRET}é"}, {}, "a character beyond ASCII"),
        ({"username": "me", "password": f"{SECRET}\n"}, {}, "the password .not shown. has a line break"),
        ({"username": f"{SECRET}\r", "password": ""}, {}, "the username .not shown. has a line break"),
        ({"username": f"{SECRET}:", "password": ""}, {}, "the username .not shown. is empty or has a colon"),
        ({"username": "", "password": SECRET}, {}, "the username .not shown. is empty or has a colon"),
        ({"run_id": "a\nb"}, {}, "header 'x-mlflow-run-id' .not shown. has"),
    ],
)
def test_credentials_that_cannot_be_used_are_refused_and_not_shown(
    options: dict[str, Any], environ: Mapping[str, str], message: str
) -> None:
    variables = {f"MLFLOW_TRACKING_{name}": value for name, value in environ.items()}
    with pytest.raises(ValueError, match=message) as caught:
        mlflow(URI, environ=variables, **options)
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"token": 5}, "token is of type int"),
        ({"username": 5, "password": "x"}, "username is of type int"),
        ({"username": "x", "password": b"x"}, "password is of type bytes"),
        ({"tracking_uri": 5}, "tracking_uri is of type int"),
    ],
)
def test_arguments_of_the_wrong_type_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        mlflow(**{"tracking_uri": URI, "environ": {}, **options})


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("", "there is no tracking URI: give tracking_uri= or set MLFLOW_TRACKING_URI"),
        ("mlflow.test:5000", "has no scheme; it must be the URL of a tracking server"),
        ("databricks", "has no scheme; .*for Databricks, use unity_catalog"),
        (f"postgresql://user:{SECRET}@db/mlflow", "begins with 'postgresql'; it must be the URL"),
        ("sqlite:///mlflow.db", "begins with 'sqlite'"),
        ("file:///mlruns", "begins with 'file'"),
        (f"http://user:{SECRET}@mlflow.test", "give them as username= and password=, or as MLFLOW_TRACKING_USERNAME"),
        (f"http://user:{SECRET}?x@mlflow.test", "user name or password"),
        (f"http://user:{SECRET}/x@mlflow.test", "user name or password"),
        (f"http://user:1234/{SECRET}@mlflow.test", "user name or password"),
        (f"http://user:{SECRET}%40mlflow.test", "user name or password"),
        (f"http://user:{SECRET}", "is not a URL"),
        (f"user:{SECRET}@mlflow://test", "has no scheme"),
        (f"http://mlflow.test/?token={SECRET}", "has a query or fragment"),
        (f"http://mlflow.test/#{SECRET}", "has a query or fragment"),
        ("http://", "must begin with http:// or https:// and a host"),
        ("http://mlflow.test:99999", "has an invalid host or port|is not a URL"),
    ],
)
@pytest.mark.parametrize("variable", [False, True])
def test_a_tracking_uri_that_is_not_that_of_a_server_is_refused(uri: str, message: str, variable: bool) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        mlflow(None if variable else uri, environ={"MLFLOW_TRACKING_URI": uri} if variable else {})
    assert SECRET not in str(caught.value)


def test_the_environment_of_the_process_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://from.environment.test")
    exporter = mlflow()
    assert isinstance(exporter, OTLPExporter)
    assert exporter.endpoint == "http://from.environment.test/v1/traces"


@pytest.mark.parametrize("location", ["0", "3", "9223372036854775807"])
def test_ids_of_experiments_are_locations(location: str) -> None:
    mlflow(URI, environ={}).check_location(location)


@pytest.mark.parametrize(
    "location",
    ["", " 3", "3\n", "3\r", "\x00", "-1", "+1", "007", "1_0", "1.5", "٣", "support", "x" * 300, "9223372036854775808"],
)
async def test_a_location_that_cannot_be_an_id_is_refused_before_anything_is_accepted(location: str) -> None:
    exporter = mlflow(URI, environ={})
    with pytest.raises(InvalidLocationError, match=r"not an MLflow experiment's id.*experiments='name'") as caught:
        exporter.check_location(location)
    assert len(str(caught.value)) < 300
    async with SpanBatcher(exporter) as batcher:
        with pytest.raises(InvalidLocationError):
            batcher.add_span_nowait(location, make_span())
        assert batcher.statistics().accepted == 0


@pytest.mark.parametrize("location", ["", " a", "a ", "a\nb", "\x00", "a\x7f", "\ud800", "x" * 501])
async def test_a_location_that_cannot_be_a_name_is_refused_before_anything_is_accepted(location: str) -> None:
    exporter = mlflow(URI, experiments="name", environ={})
    with pytest.raises(InvalidLocationError, match="is not a name of an MLflow experiment"):
        exporter.check_location(location)
    async with SpanBatcher(exporter) as batcher:
        with pytest.raises(InvalidLocationError):
            batcher.add_span_nowait(location, make_span())
        assert batcher.statistics().accepted == 0


@pytest.mark.parametrize("location", ["a", "3", "default", "für alle 👩‍🔬", "東京　支店", "x" * 500])
def test_names_of_experiments_are_locations(location: str) -> None:
    mlflow(URI, experiments="name", environ={}).check_location(location)


@pytest.mark.parametrize(
    ("options", "environ", "experiment"),
    [
        ({"experiment_id": "5"}, {}, "5"),
        ({}, {"MLFLOW_EXPERIMENT_ID": " 6 "}, "6"),
        ({"experiment_id": "5"}, {"MLFLOW_EXPERIMENT_ID": "6"}, "5"),
    ],
)
async def test_default_is_the_experiment_that_is_configured(
    options: dict[str, Any], environ: Mapping[str, str], experiment: str
) -> None:
    request = await received("default", environ=environ, **options)
    assert request.header("x-mlflow-experiment-id") == experiment


def test_the_location_default_is_refused_if_no_experiment_is_configured() -> None:
    with pytest.raises(InvalidLocationError, match="set MLFLOW_EXPERIMENT_ID, give experiment_id="):
        mlflow(URI, environ={"MLFLOW_EXPERIMENT_ID": ""}).check_location("default")


def test_an_invalid_experiment_id_in_the_environment_is_warned_about(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "trio_spanbatch"):
        exporter = mlflow(URI, environ={"MLFLOW_EXPERIMENT_ID": "agents"})
    assert "MLFLOW_EXPERIMENT_ID is 'agents', not a whole number: it is ignored" in caplog.text
    with pytest.raises(InvalidLocationError):
        exporter.check_location("default")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"experiment_id": "agents"}, "experiment_id is 'agents'; it must be a whole number"),
        ({"experiments": "names"}, "experiments is 'names'; it must be 'id' or 'name'"),
        ({"experiments": "name", "experiment_id": "3"}, "experiment_id cannot be given with experiments='name'"),
        ({"timeout": 0}, "timeout is 0"),
        ({"compression": "br"}, "compression is 'br'"),
        ({"certificate": "missing.pem"}, "certificate 'missing.pem' cannot be read"),
        ({"client_certificate": "missing.pem"}, "client_certificate 'missing.pem' cannot be read"),
        ({"client_key": "missing.pem"}, "client_key is given without client_certificate"),
    ],
)
def test_invalid_arguments_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        mlflow(URI, environ={}, **options)


async def test_a_given_certificate_is_trusted(tmp_path: Path) -> None:
    authority = trustme.CA()
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    async with OTLPReceiver(ssl_context=context) as receiver:
        root = receiver.url.removesuffix("/v1/traces")
        exporter = mlflow(root, environ={}, certificate=tmp_path / "ca.pem")
        assert await exporter.export(batch_of(1, "3")) == Delivered()
        await exporter.aclose()


async def test_a_given_client_is_used_and_not_closed() -> None:
    receiver = OTLPReceiver(listen=False)
    async with receiver, httpx.AsyncClient(transport=receiver.memory_transport()) as client:
        exporter = mlflow(URI, environ={}, client=client)
        assert await exporter.export(batch_of(1, "3")) == Delivered()
        await exporter.aclose()
        assert not client.is_closed


async def test_an_attempt_may_take_sixty_seconds(autojump_clock: trio.testing.MockClock) -> None:
    async with OTLPReceiver(listen=False, answers=[Answer(delay=59), Hang()]) as receiver:
        exporter = mlflow(URI, environ={}, transport=receiver.memory_transport())
        assert await exporter.export(batch_of(1, "3")) == Delivered()
        began = trio.current_time()
        result = await exporter.export(batch_of(1, "3"))
        assert trio.current_time() - began == pytest.approx(60)
        await exporter.aclose()
    assert "within 60 s" in getattr(result, "reason", "")


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (
            Answer(404, headers=JSON, body=b'{"error_code": "RESOURCE_DOES_NOT_EXIST", "message": "No Experiment"}'),
            "404 Not Found: RESOURCE_DOES_NOT_EXIST: No Experiment; create it, or correct the location",
        ),
        (
            Answer(404, headers=[("content-type", "text/html")], body=b"<title>Nothing here</title>"),
            "404 Not Found: Nothing here; does the tracking URI lead to MLflow?",
        ),
        (
            Answer(401, body=b"You are not authenticated."),
            f"401 Unauthorized: You are not authenticated.; {CREDENTIALS_ADVICE}",
        ),
        (Answer(403, body=b"Invalid Host header"), "403 Forbidden: Invalid Host header"),
    ],
)
async def test_a_refusal_says_what_to_do(answer: Answer, reason: str) -> None:
    assert await answered(answer) == Refused(reason, answer.status)


async def test_a_closed_exporter_says_so() -> None:
    exporter = mlflow(URI, experiments="name", environ={})
    await exporter.aclose()
    with pytest.raises(trio.ClosedResourceError):
        await exporter.export(batch_of(1, "support"))
    assert repr(exporter) == "<OTLPExporter for http://mlflow.test/v1/traces>"
