"""The OTEL_ variables, one by one."""

from __future__ import annotations

import base64
import logging
import math
from importlib.metadata import version

import pytest

from tests.support.exporters import batch_of
from trio_spanbatch import Delivered, OTLPExporter, Refused
from trio_spanbatch._http.exporter import DisabledExporter
from trio_spanbatch._settings import environment as _environment
from trio_spanbatch._settings.environment import (
    batch_options,
    default_resource,
    export_timeout,
    exporter_options,
    queue_options,
    sdk_disabled,
)
from trio_spanbatch._version import __version__
from trio_spanbatch.testing import OTLPReceiver

PREFIX = "OTEL_EXPORTER_OTLP_"
TRACES = "OTEL_EXPORTER_OTLP_TRACES_"
SECRET = "dapi-0123456789abcdef"


@pytest.fixture(autouse=True)
def every_warning_is_seen(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "trio_spanbatch")


def endpoint(**variables: str) -> str:
    variables = {f"OTEL_EXPORTER_OTLP_{name}": value for name, value in variables.items()}
    return str(exporter_options(variables)["endpoint"])


def test_the_version_is_that_of_the_package() -> None:
    assert version("trio-spanbatch") == __version__


def test_an_empty_environment_sets_nothing(caplog: pytest.LogCaptureFixture) -> None:
    assert exporter_options({}) == {"endpoint": "http://localhost:4318/v1/traces"}
    assert batch_options({}) == {}
    assert queue_options({}) == {}
    assert export_timeout({}) == 30.0
    assert default_resource({}) is None
    assert not sdk_disabled({})
    assert caplog.records == []


@pytest.mark.parametrize("value", ["", " ", "\t\n"])
def test_an_empty_variable_counts_as_unset(value: str, caplog: pytest.LogCaptureFixture) -> None:
    names = (
        "ENDPOINT", "HEADERS", "TIMEOUT", "COMPRESSION", "CERTIFICATE", "CLIENT_KEY", "CLIENT_CERTIFICATE", "PROTOCOL"
    )  # fmt: skip
    environ = {f"{prefix}{name}": value for prefix in (PREFIX, TRACES) for name in names}
    for name in ("SCHEDULE_DELAY", "MAX_EXPORT_BATCH_SIZE", "MAX_QUEUE_SIZE", "EXPORT_TIMEOUT"):
        environ[f"OTEL_BSP_{name}"] = value
    for name in ("SDK_DISABLED", "SERVICE_NAME", "RESOURCE_ATTRIBUTES"):
        environ[f"OTEL_{name}"] = value
    assert exporter_options(environ) == {"endpoint": "http://localhost:4318/v1/traces"}
    assert (batch_options(environ), queue_options(environ), export_timeout(environ)) == ({}, {}, 30.0)
    assert default_resource(environ) is None
    assert not sdk_disabled(environ)
    assert caplog.records == []


# Endpoints.


@pytest.mark.parametrize(
    ("base", "url"),
    [
        ("http://collector:4318", "http://collector:4318/v1/traces"),
        ("http://collector:4318/", "http://collector:4318/v1/traces"),
        ("https://collector/otlp", "https://collector/otlp/v1/traces"),
        ("https://collector/otlp/", "https://collector/otlp/v1/traces"),
        (" http://collector ", "http://collector/v1/traces"),
    ],
)
def test_a_base_endpoint_gets_the_path_for_traces_with_exactly_one_slash(base: str, url: str) -> None:
    assert endpoint(ENDPOINT=base) == url


@pytest.mark.parametrize("own", ["http://collector", "http://collector/", "http://collector/v2/spans"])
def test_the_endpoint_for_traces_is_used_unchanged_and_takes_precedence(own: str) -> None:
    assert endpoint(TRACES_ENDPOINT=own, ENDPOINT="http://other") == own


@pytest.mark.parametrize(
    "nonsense",
    [
        "collector:4318",
        "nonsense",
        "ftp://collector",
        "http://",
        "http://h:port",
        "http://h:0",
        "http://h:65536",
        "http://[::",
        "http://a b",
        "http://col\r\nlector",
        "http://collector/\x00",
        f"http://{'a' * 300}",
        "http://\udcff",
    ],
)
def test_an_endpoint_that_is_not_a_url_is_warned_about_and_ignored(
    nonsense: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert endpoint(ENDPOINT=nonsense) == "http://localhost:4318/v1/traces"
    assert endpoint(TRACES_ENDPOINT=nonsense, ENDPOINT="http://collector") == "http://collector/v1/traces"
    assert [record.getMessage().partition(" ")[0] for record in caplog.records] == [
        "OTEL_EXPORTER_OTLP_ENDPOINT",
        "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
    ]


def basic(credentials: str) -> str:
    return f"Basic {base64.b64encode(credentials.encode()).decode()}"


@pytest.mark.parametrize(
    ("userinfo", "credentials"),
    [
        (f"user:{SECRET}", f"user:{SECRET}"),
        (SECRET, f"{SECRET}:"),
        (f":{SECRET}", f":{SECRET}"),
        ("us%40er:p%2Fa%3As%25:s%C3%A9", "us@er:p/a:s%:sé"),
    ],
)
@pytest.mark.parametrize("variable", [f"{PREFIX}ENDPOINT", f"{TRACES}ENDPOINT"])
def test_a_user_name_and_password_in_an_endpoint_are_sent_as_basic_authentication(
    variable: str, userinfo: str, credentials: str, caplog: pytest.LogCaptureFixture
) -> None:
    options = exporter_options({variable: f"HTTPS://{userinfo}@collector:4318/otlp?x", f"{PREFIX}HEADERS": "k=v"})
    path = "/v1/traces" if variable == f"{PREFIX}ENDPOINT" else ""
    assert options["endpoint"] == f"HTTPS://collector:4318/otlp{path}"
    assert options.get("headers") == {"k": "v", "Authorization": basic(credentials)}
    assert [record.getMessage() for record in caplog.records] == [
        f"{variable} has a query or fragment (not shown), which an endpoint does not have: it is ignored"
    ]
    exporter = OTLPExporter.from_env({variable: f"http://{userinfo}@collector"})
    assert not isinstance(exporter, DisabledExporter)
    assert exporter.endpoint == f"http://collector{path}"
    assert SECRET not in f"{exporter!r}{exporter.endpoint}{caplog.text}"


def test_an_authorization_header_takes_precedence_over_the_password_in_an_endpoint() -> None:
    for name in ("Authorization", "authorization"):
        environ = {f"{PREFIX}ENDPOINT": f"http://user:{SECRET}@collector", f"{PREFIX}HEADERS": f"{name}=Bearer%20x"}
        assert exporter_options(environ).get("headers") == {name: "Bearer x"}


def test_credentials_in_an_endpoint_are_used_with_that_endpoint_only() -> None:
    environ = {
        f"{PREFIX}ENDPOINT": f"http://user:{SECRET}@collector",
        f"{TRACES}ENDPOINT": "http://elsewhere/v1/traces",
    }
    assert exporter_options(environ) == {"endpoint": "http://elsewhere/v1/traces"}
    assert exporter_options({f"{PREFIX}ENDPOINT": environ[f"{PREFIX}ENDPOINT"]}, endpoint="http://given/") == {
        "endpoint": "http://given/"
    }
    assert exporter_options({f"{PREFIX}ENDPOINT": "http://@collector", f"{PREFIX}HEADERS": ""}) == {
        "endpoint": "http://collector/v1/traces"
    }


@pytest.mark.parametrize("variable", ["OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"])
@pytest.mark.parametrize(
    "url",
    [
        f"http://user:{SECRET}?x@collector",
        f"http://user:{SECRET}/x@collector",
        f"http://user:{SECRET}@x@collector",
        f"http://user:{SECRET}\\@collector",
        f"http://user:{SECRET}^@collector",
        f"http://user:{SECRET}%4@collector",
        f"http://user:{SECRET}%40collector",
        f"http://a:b@collector?{SECRET}@x",
        f"user:{SECRET}@collector",
        f"ftp://user:{SECRET}@collector",
    ],
)
def test_possible_credentials_in_an_endpoint_are_an_error_that_does_not_show_them(
    variable: str, url: str, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(ValueError, match=f"^the endpoint in {variable} .not shown. has an @ that may end") as caught:
        OTLPExporter.from_env({variable: url})
    assert SECRET not in f"{caught.value!r}{caught.value.__context__!r}{caplog.text}"


@pytest.mark.parametrize(
    ("variable", "url", "used"),
    [
        ("ENDPOINT", f"http://collector/otlp?key={SECRET}", "http://collector/otlp/v1/traces"),
        ("ENDPOINT", f"http://collector?key={SECRET}", "http://collector/v1/traces"),
        ("ENDPOINT", f"http://collector/#{SECRET}", "http://collector/v1/traces"),
        ("TRACES_ENDPOINT", f"http://collector/spans?key={SECRET}#x", "http://collector/spans"),
        ("TRACES_ENDPOINT", f"http://collector/spans#{SECRET}?", "http://collector/spans"),
        ("TRACES_ENDPOINT", "http://collector/spans?", "http://collector/spans"),
    ],
)
def test_a_query_or_fragment_of_an_endpoint_is_warned_about_once_and_ignored(
    variable: str, url: str, used: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert OTLPExporter.from_env({f"{PREFIX}{variable}": url}).endpoint == used  # type: ignore[union-attr]  # not disabled
    assert endpoint(**{variable: url}) == used
    assert [record.getMessage() for record in caplog.records] == [
        f"{PREFIX}{variable} has a query or fragment (not shown), which an endpoint does not have: it is ignored"
    ]
    assert SECRET not in caplog.text


@pytest.mark.parametrize("name", ["PROTOCOL", "TRACES_PROTOCOL"])
@pytest.mark.parametrize("protocol", ["grpc", "http/json", "HTTP/JSON", "carrier pigeon", "é", "a\r\nb", "x" * 10_000])
def test_another_protocol_is_warned_about_once_and_http_protobuf_is_sent(
    name: str, protocol: str, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(2):
        assert exporter_options({f"{PREFIX}{name}": protocol}) == exporter_options({})
    (record,) = caplog.records
    assert record.getMessage().startswith(f"{PREFIX}{name} is '{protocol[:1]}")
    assert "which is ignored: http/protobuf is sent" in record.getMessage()
    assert len(record.getMessage()) < 300
    assert "\n" not in record.getMessage()


@pytest.mark.parametrize(
    ("variables", "is_mentioned"),
    [
        ({"PROTOCOL": "grpc", "ENDPOINT": "http://collector:4317"}, True),
        ({"PROTOCOL": "GRPC", "TRACES_ENDPOINT": "http://collector:4317"}, True),
        ({"PROTOCOL": "grpc", "ENDPOINT": "http://collector:4318"}, False),
        ({"PROTOCOL": "grpc", "TRACES_ENDPOINT": "http://[::1]:4318", "ENDPOINT": "http://collector:4317"}, False),
        ({"PROTOCOL": "http/json", "ENDPOINT": "http://collector:4317"}, False),
    ],
)
def test_the_port_of_grpc_in_the_endpoint_is_pointed_out_if_the_protocol_is_grpc(
    variables: dict[str, str], is_mentioned: bool, caplog: pytest.LogCaptureFixture
) -> None:
    endpoint(**variables)
    assert ("to port 4317, where gRPC is usually spoken; for HTTP it is 4318" in caplog.text) == is_mentioned


@pytest.mark.parametrize("protocol", ["http/protobuf", "HTTP/PROTOBUF", "HTTP/Protobuf"])
def test_the_protocol_may_be_in_any_case(protocol: str) -> None:
    assert exporter_options({f"{PREFIX}PROTOCOL": protocol}) == exporter_options({})


def test_the_protocol_for_traces_takes_precedence() -> None:
    environ = {f"{PREFIX}PROTOCOL": "grpc", f"{TRACES}PROTOCOL": "http/protobuf"}
    assert exporter_options(environ) == exporter_options({})


# Headers, timeouts, compression, files.


@pytest.mark.parametrize(
    ("value", "sent"),
    [
        ("caf%C3%A9", b"caf\xe9"),
        ("caf\u00e9", b"caf\xe9"),
        ("%E2%82%AC", b"\xe2\x82\xac"),
        ("\u20ac%20x", b"\xe2\x82\xac x"),
        ("%FF", b"\xff"),
        ("\udcff", b"\xff"),
        ("100%", b"100%"),
        ("%20spaces around%20", b"spaces around"),
        ("b;meta=1", b"b;meta=1"),
        ("", b""),
    ],
)
def test_any_header_value_is_sent_as_latin_1_or_as_its_utf_8_bytes(value: str, sent: bytes) -> None:
    assert headers(f"k={value}")["k"].encode("latin-1") == sent
    OTLPExporter.from_env({f"{PREFIX}HEADERS": f"k={value},,k2=v2,"})


def headers(value: str) -> dict[str, str]:
    return dict(exporter_options({f"{PREFIX}HEADERS": value})["headers"])


@pytest.mark.parametrize(
    ("value", "pairs"),
    [
        ("k=v,k2=v2", {"k": "v", "k2": "v2"}),
        (" k = v , k2=v2 ,", {"k": "v", "k2": "v2"}),
        ("authorization=Bearer%20a%3Db%2Cc", {"authorization": "Bearer a=b,c"}),
        ("k=a=b==", {"k": "a=b=="}),
        ("k=", {"k": ""}),
        ("k%2D1=v", {"k-1": "v"}),
        ("k=caf%C3%A9", {"k": "caf\xe9"}),
        ("k=a+b", {"k": "a+b"}),
        ("k=1,k=2", {"k": "2"}),
        ("k=50%", {"k": "50%"}),
    ],
)
def test_headers_are_pairs_percent_decoded(value: str, pairs: dict[str, str], caplog: pytest.LogCaptureFixture) -> None:
    assert headers(value) == pairs
    assert caplog.records == []


def test_a_malformed_pair_causes_a_warning_that_does_not_show_it(caplog: pytest.LogCaptureFixture) -> None:
    assert headers(f"k=v,{SECRET},={SECRET},%20,k2=v2") == {"k": "v", "k2": "v2"}
    assert len(caplog.records) == 1
    assert "OTEL_EXPORTER_OTLP_HEADERS has 3 parts that are not key=value pairs" in caplog.text
    assert SECRET not in caplog.text


@pytest.mark.parametrize(
    "entry",
    [
        f"content-type={SECRET}",
        f"Host={SECRET}",
        f"{SECRET} x=y",
        f"authorization: Bearer {SECRET}=",
        f"a%0A{SECRET}=b",
    ],
)
def test_a_header_that_cannot_be_given_is_warned_about_by_its_number_and_ignored(
    entry: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert headers(f"k=v,{entry},k2=v2") == {"k": "v", "k2": "v2"}
    (record,) = caplog.records
    assert record.getMessage() == (
        "OTEL_EXPORTER_OTLP_HEADERS has a pair, number 2, whose key (not shown) is not a valid header name, or a "
        "header that the exporter sets itself: it is ignored"
    )


def test_the_same_mistake_is_warned_about_once_in_a_process_and_another_value_again(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    for value in ("soon", "soon", "later", "soon"):
        batch_options({"OTEL_BSP_SCHEDULE_DELAY": value})
    assert [record.getMessage() for record in caplog.records] == [
        "OTEL_BSP_SCHEDULE_DELAY is 'soon', not a whole number: it is ignored",
        "OTEL_BSP_SCHEDULE_DELAY is 'later', not a whole number: it is ignored",
    ]
    monkeypatch.setattr(_environment._warnings, "_max_keys", 2)
    batch_options({"OTEL_BSP_SCHEDULE_DELAY": "never"})
    assert len(_environment._warnings._allowed_at) == 2


def test_headers_for_traces_replace_those_for_all_signals() -> None:
    environ = {f"{PREFIX}HEADERS": "a=1,b=2", f"{TRACES}HEADERS": "b=3"}
    assert exporter_options(environ).get("headers") == {"b": "3"}


def test_a_header_with_a_line_break_is_an_error_that_does_not_show_it(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(ValueError, match="authorization") as caught:
        OTLPExporter.from_env({f"{PREFIX}HEADERS": f"authorization=Bearer%20{SECRET}%0A"})
    assert SECRET not in str(caught.value)
    assert SECRET not in caplog.text


@pytest.mark.parametrize(("value", "seconds"), [("10000", 10.0), ("2500", 2.5), ("100", 0.1), ("0", math.inf)])
def test_a_timeout_is_in_milliseconds_and_zero_means_none(
    value: str, seconds: float, caplog: pytest.LogCaptureFixture
) -> None:
    assert exporter_options({f"{PREFIX}TIMEOUT": value}).get("timeout") == seconds
    assert export_timeout({"OTEL_BSP_EXPORT_TIMEOUT": value}) == seconds
    assert caplog.records == []


@pytest.mark.parametrize("value", ["1", "10", "99"])
def test_a_timeout_below_100_is_used_with_a_warning_as_it_may_be_meant_in_seconds(
    value: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert exporter_options({f"{TRACES}TIMEOUT": value}).get("timeout") == int(value) / 1000
    assert f"OTEL_EXPORTER_OTLP_TRACES_TIMEOUT is {value}: it is read as milliseconds" in caplog.text
    assert "OpenTelemetry Python reads it as seconds" in caplog.text


def test_the_timeout_for_traces_takes_precedence_unless_it_is_invalid(caplog: pytest.LogCaptureFixture) -> None:
    both = {f"{PREFIX}TIMEOUT": "2000", f"{TRACES}TIMEOUT": "3000"}
    assert exporter_options(both).get("timeout") == 3.0
    assert exporter_options({**both, f"{TRACES}TIMEOUT": "soon"}).get("timeout") == 2.0
    assert len(caplog.records) == 1


@pytest.mark.parametrize("value", ["ten", "1.5", "1e3", "1_000", "٣", "-1", "0x10", "9" * 30, "9" * 5000, "nan"])
@pytest.mark.parametrize(
    "variable",
    [
        "OTEL_EXPORTER_OTLP_TIMEOUT",
        "OTEL_BSP_EXPORT_TIMEOUT",
        "OTEL_BSP_SCHEDULE_DELAY",
        "OTEL_BSP_MAX_EXPORT_BATCH_SIZE",
        "OTEL_BSP_MAX_QUEUE_SIZE",
    ],
)
def test_an_invalid_number_is_warned_about_once_and_ignored(
    variable: str, value: str, caplog: pytest.LogCaptureFixture
) -> None:
    environ = {variable: value}
    assert exporter_options(environ) == exporter_options({})
    assert (batch_options(environ), queue_options(environ), export_timeout(environ)) == ({}, {}, 30.0)
    assert len(caplog.records) == 1
    assert caplog.records[0].getMessage().startswith(f"{variable} is ")
    assert len(caplog.text) < 300


@pytest.mark.parametrize(
    ("name", "value", "options"),
    [
        ("SCHEDULE_DELAY", "250", {"max_delay": 0.25}),
        ("SCHEDULE_DELAY", " +250 ", {"max_delay": 0.25}),
        ("MAX_EXPORT_BATCH_SIZE", "64", {"max_spans": 64}),
        ("SCHEDULE_DELAY", "0", {}),
        ("MAX_EXPORT_BATCH_SIZE", "0", {}),
        ("MAX_EXPORT_BATCH_SIZE", "2147483648", {}),
    ],
)
def test_the_environment_configures_batches(
    name: str, value: str, options: dict[str, float], caplog: pytest.LogCaptureFixture
) -> None:
    assert batch_options({f"OTEL_BSP_{name}": value}) == options
    assert bool(caplog.records) == (not options)


def test_the_environment_configures_the_queue() -> None:
    assert queue_options({"OTEL_BSP_MAX_QUEUE_SIZE": "100"}) == {"max_queued_spans": 100}


@pytest.mark.parametrize(("value", "compression"), [("gzip", "gzip"), ("GZIP", "gzip"), ("none", None)])
def test_compression_is_gzip_or_none(value: str, compression: str | None, caplog: pytest.LogCaptureFixture) -> None:
    assert exporter_options({f"{PREFIX}COMPRESSION": value}).get("compression") == compression
    assert caplog.records == []


def test_compression_for_traces_takes_precedence_and_an_unknown_value_causes_a_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    environ = {f"{PREFIX}COMPRESSION": "gzip", f"{TRACES}COMPRESSION": "none"}
    assert "compression" not in exporter_options(environ)
    assert exporter_options({**environ, f"{TRACES}COMPRESSION": "zstd"}).get("compression") == "gzip"
    assert "compression" not in exporter_options({f"{PREFIX}COMPRESSION": "br"})
    assert [record.getMessage() for record in caplog.records] == [
        "OTEL_EXPORTER_OTLP_TRACES_COMPRESSION is 'zstd', neither gzip nor none: it is ignored",
        "OTEL_EXPORTER_OTLP_COMPRESSION is 'br', neither gzip nor none: it is ignored",
    ]


def test_files_for_traces_take_precedence() -> None:
    names = ("CERTIFICATE", "CLIENT_CERTIFICATE", "CLIENT_KEY")
    environ = {f"{PREFIX}{name}": "general" for name in names} | {f"{TRACES}{name}": "own" for name in names}
    options = exporter_options({**environ, f"{PREFIX}ENDPOINT": "https://collector"})
    assert [options.get(name.lower()) for name in names] == ["own"] * 3


@pytest.mark.parametrize("name", ["CERTIFICATE", "CLIENT_CERTIFICATE"])
@pytest.mark.parametrize("prefix", [PREFIX, TRACES])
def test_a_missing_file_is_an_error_that_names_it_and_its_variable(name: str, prefix: str) -> None:
    environ = {f"{PREFIX}ENDPOINT": "HTTPS://collector", f"{prefix}{name}": "/nowhere.pem"}
    with pytest.raises(ValueError, match=rf"^{prefix}{name}: {name.lower()} '/nowhere\.pem' cannot be read: No such"):
        OTLPExporter.from_env(environ)


@pytest.mark.parametrize("names", [("CERTIFICATE",), ("CLIENT_CERTIFICATE", "CLIENT_KEY"), ("CLIENT_KEY",)])
def test_files_for_tls_are_not_read_for_a_plain_http_endpoint(
    names: tuple[str, ...], caplog: pytest.LogCaptureFixture
) -> None:
    for endpoint_of in ("http://collector", "HTTP://collector", ""):
        environ = {f"{PREFIX}ENDPOINT": endpoint_of} | {f"{PREFIX}{name}": "/nowhere.pem" for name in names}
        OTLPExporter.from_env(environ)
    assert not caplog.records


def test_a_client_key_without_a_certificate_is_warned_about_and_ignored(caplog: pytest.LogCaptureFixture) -> None:
    environ = {f"{PREFIX}ENDPOINT": "https://collector", f"{PREFIX}CLIENT_KEY": "/nowhere.pem"}
    OTLPExporter.from_env(environ)
    assert [record.getMessage() for record in caplog.records] == [
        f"{PREFIX}CLIENT_KEY is set without {PREFIX}CLIENT_CERTIFICATE: it is ignored"
    ]


# The resource, and disabling.


def test_the_service_name_takes_precedence_over_resource_attributes() -> None:
    environ = {"OTEL_RESOURCE_ATTRIBUTES": "service.name=a,host.name=b%2Cc", "OTEL_SERVICE_NAME": "agents"}
    resource = default_resource(environ)
    assert resource is not None
    assert resource.attributes == {"service.name": "agents", "host.name": "b,c"}
    assert resource.schema_url == ""


@pytest.mark.parametrize("value", ["nonsense", "a=b,nonsense", "=b"])
def test_a_list_of_attributes_with_a_mistake_is_ignored_completely(
    value: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert default_resource({"OTEL_RESOURCE_ATTRIBUTES": value}) is None
    assert "OTEL_RESOURCE_ATTRIBUTES is not a list of key=value pairs" in caplog.text


@pytest.mark.parametrize(
    "value", ["a=%zz", "good=1,a=100%", "a=%f", "a=%FF", "good=1,a=%C3%28", "%E2%82=b", "a=\udcff", "a=%ED%B3%BF"]
)
def test_attributes_that_cannot_be_percent_decoded_are_all_ignored_with_a_warning(
    value: str, caplog: pytest.LogCaptureFixture
) -> None:
    resource = default_resource({"OTEL_RESOURCE_ATTRIBUTES": value, "OTEL_SERVICE_NAME": "agents"})
    assert resource is not None
    assert resource.attributes == {"service.name": "agents"}
    (record,) = caplog.records
    assert record.getMessage() == (
        "OTEL_RESOURCE_ATTRIBUTES cannot be percent-decoded as UTF-8 (a percent sign itself is written %25): it is "
        "ignored"
    )


@pytest.mark.parametrize(
    ("value", "attributes"),
    [
        ("a=100%25", {"a": "100%"}),
        ("a=%E2%82%AC,b=€", {"a": "€", "b": "€"}),
        ("a=%0D%0A", {"a": "\r\n"}),
        ("k%2C=v%3D", {"k,": "v="}),
    ],
)
def test_attributes_are_percent_decoded(
    value: str, attributes: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    resource = default_resource({"OTEL_RESOURCE_ATTRIBUTES": value})
    assert resource is not None
    assert resource.attributes == attributes
    assert caplog.records == []


@pytest.mark.parametrize("value", ["true", "True", "TRUE", " true "])
async def test_a_disabled_sdk_sends_nothing_and_refuses_every_batch(value: str) -> None:
    async with OTLPReceiver() as receiver:
        exporter = OTLPExporter.from_env({"OTEL_SDK_DISABLED": value, f"{TRACES}ENDPOINT": receiver.url})
        assert isinstance(exporter, DisabledExporter)
        result = await exporter.export(batch_of())
        assert isinstance(result, Refused)
        assert "OTEL_SDK_DISABLED" in result.reason
        await exporter.aclose()
        assert receiver.requests == []


@pytest.mark.parametrize(("value", "warnings"), [("false", 0), ("False", 0), ("1", 1), ("yes", 1)])
def test_only_true_disables_the_sdk(value: str, warnings: int, caplog: pytest.LogCaptureFixture) -> None:
    assert not sdk_disabled({"OTEL_SDK_DISABLED": value})
    assert len(caplog.records) == warnings


# All variables together.


async def test_the_environment_configures_the_exporter(monkeypatch: pytest.MonkeyPatch) -> None:
    async with OTLPReceiver(location_header="x-tenant") as receiver:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{receiver.port}")
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Bearer%20a,X-Team=green")
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip")
        exporter = OTLPExporter.from_env(location_header="x-tenant", headers={"x-team": "blue"})
        assert await exporter.export(batch_of()) == Delivered()
        request = receiver.requests[0]
        assert request.header("authorization") == "Bearer a"
        assert request.header("x-team") == "blue"
        assert request.header("content-encoding") == "gzip"
        assert request.location == "tenant-1"
        await exporter.aclose()
