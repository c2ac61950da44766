"""docs/migrating.md and docs/opentelemetry.md are true, about this package and about those that users migrate from.

A test fails if a new version of any of them adds, renames or changes a setting.
"""

from __future__ import annotations

import ast
import inspect
import re
import sys
import sysconfig
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio
from opentelemetry.exporter.otlp.proto.http import _common as otlp_common
from opentelemetry.exporter.otlp.proto.http import trace_exporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk import environment_variables
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import Gauge, Histogram, InMemoryMetricReader
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from trio.testing import MockClock

import trio_spanbatch
from tests.cli.support import run_command
from tests.destinations.mlflow_support import MLFLOW
from tests.opentelemetry.support import end_spans, tracer_of
from tests.support.batchers import watched_batcher
from tests.support.paths import PROJECT
from trio_spanbatch import BatchPolicy, Limits, OTLPExporter, RetryPolicy, SpanBatcher
from trio_spanbatch._settings.environment import batch_options, export_timeout, exporter_options, queue_options
from trio_spanbatch.destinations import mlflow, unity_catalog
from trio_spanbatch.opentelemetry import BatcherSpanProcessor
from trio_spanbatch.opentelemetry._tally import REASONS
from trio_spanbatch.testing import InMemoryExporter, OTLPReceiver, outage

DOCS = PROJECT / "docs"
MIGRATING = (DOCS / "migrating.md").read_text()
OPENTELEMETRY = (DOCS / "opentelemetry.md").read_text()

# The names that the pages describe.
OURS: Mapping[str, Any] = {
    made.__name__: made
    for made in (BatchPolicy, BatcherSpanProcessor, Limits, OTLPExporter, RetryPolicy, SpanBatcher, mlflow)
}

# For each argument: the value of its variable, and the expected value of the argument.
SAMPLES: Mapping[str, tuple[str, object]] = {
    "max_queued_spans": ("7000", 7000),
    "max_spans": ("7000", 7000),
    "max_delay": ("7000", 7.0),
    "attempt_timeout": ("7000", 7.0),
    "timeout": ("7000", 7.0),
    "headers": ("name=value", {"name": "value"}),
    "compression": ("gzip", "gzip"),
    "certificate": ("ca.pem", "ca.pem"),
    "client_certificate": ("client.pem", "client.pem"),
    "client_key": ("key.pem", "key.pem"),
}


@attrs.frozen
class Row:
    """A row of a package's table: its settings, and their equivalents in this package."""

    there: tuple[str, ...]
    default_there: str
    here: tuple[str, ...]
    defaults_here: tuple[str, ...]

    @property
    def variables(self) -> list[str]:
        return [name for name in self.there if name.isupper()]


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


def table(page: str, marker: str) -> list[list[str]]:
    """Return the cells of the table that follows ``marker``, without the heading."""
    _, found, rest = page.partition(f"{marker}\n")
    assert found, f"{marker!r} is not in the page"
    lines = rest.lstrip("\n").splitlines()
    ended = next((number for number, line in enumerate(lines) if not line.startswith("|")), len(lines))
    return [cells(line) for line in lines[2:ended]]


def coded(cell: str) -> tuple[str, ...]:
    return tuple(re.findall(r"`([^`]+)`", cell))


def rows(name: str) -> list[Row]:
    return [
        Row(coded(there), default, coded(here), tuple(defaults.split("<br>")) if defaults else ())
        for there, default, here, defaults, _ in table(MIGRATING, f"<!-- table: {name} -->")
    ]


def block(page: str, marker: str, language: str = "python") -> str:
    found = re.search(rf"{re.escape(marker)}\n+```{language}\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    assert found, f"{marker!r} is not in the page"
    return found[1]


def value(text: str) -> object:
    """Return the value of a default as written in the page."""
    number, _, unit = text.strip("`").partition(" ")
    if unit:
        return float(number) if unit == "s" else int(number) * {"MiB": 1024 * 1024}[unit]
    try:
        return {"none": None, "true": True}.get(number) if number in ("none", "true") else ast.literal_eval(number)
    except (SyntaxError, ValueError):
        return number


def parameters(function: Any) -> dict[str, inspect.Parameter]:
    return dict(inspect.signature(function).parameters)


def names(table: list[Row]) -> list[str]:
    return [name for row in table for name in row.there]


# -- their settings: OpenTelemetry -----------------------------------------------------------------------------------


def variables_of_opentelemetry() -> set[str]:
    return {name for name in vars(environment_variables).values() if isinstance(name, str) and name.isupper()}


def test_the_table_of_the_span_processor_has_exactly_its_settings() -> None:
    there = {name for name in variables_of_opentelemetry() if name.startswith("OTEL_BSP_")}
    there |= parameters(BatchSpanProcessor).keys()
    assert sorted(names(rows("BatchSpanProcessor"))) == sorted(there)


def test_the_table_of_the_exporter_has_exactly_its_settings() -> None:
    of_traces = re.compile(r"OTEL_EXPORTER_OTLP_(?!METRICS_|LOGS_)\w+|OTEL_PYTHON_EXPORTER_OTLP_HTTP_(TRACES_)?CRED\w+")
    there = {name for name in variables_of_opentelemetry() if of_traces.fullmatch(name)}
    there |= {name for name in parameters(OTLPSpanExporter) if not name.startswith("_")}
    assert sorted(names(rows("OTLPSpanExporter"))) == sorted(there)


def test_the_documented_defaults_of_the_span_processor_are_true(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in variables_of_opentelemetry():
        monkeypatch.delenv(variable, raising=False)
    for row in rows("BatchSpanProcessor"):
        if row.default_there:
            default = getattr(BatchSpanProcessor, f"_default_{row.there[0]}")()
            assert default == value(row.default_there), row.there


def test_the_documented_defaults_of_the_exporter_are_true(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in variables_of_opentelemetry():
        monkeypatch.delenv(variable, raising=False)
    defaults: dict[str, object] = {
        "endpoint": otlp_common._resolve_endpoint("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "v1/traces"),
        "timeout": float(trace_exporter.DEFAULT_TIMEOUT),
        "max_request_size": otlp_common._DEFAULT_MAX_REQUEST_SIZE,
    }
    for row in rows("OTLPSpanExporter"):
        if row.default_there:
            name = row.there[0]
            default = defaults.get(name, parameters(OTLPSpanExporter)[name].default)
            assert default == value(row.default_there), name


def test_the_timeout_is_seconds_there_and_milliseconds_here(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "7")
    assert otlp_common._resolve_timeout("OTEL_EXPORTER_OTLP_TRACES_TIMEOUT") == 7.0
    assert exporter_options({"OTEL_EXPORTER_OTLP_TIMEOUT": "7"})["timeout"] == 0.007
    assert "milliseconds" in caplog.text


@pytest.mark.long
def test_the_pages_name_the_versions_that_are_tested() -> None:
    for package in ("opentelemetry-sdk", "opentelemetry-exporter-otlp-proto-http"):
        assert version(package) == "1.45.2", f"read the pages again with {package} {version(package)}"
    assert "opentelemetry-exporter-otlp-proto-http 1.45.2" in MIGRATING
    assert "in version 1.45.2 of both packages" in OPENTELEMETRY
    assert (mlflow_package().parent / "mlflow-3.17.2.dist-info").exists(), "read the page again with this MLflow"
    assert "MLflow 3.17.2" in MIGRATING


# -- their settings: MLflow ------------------------------------------------------------------------------------------


def mlflow_package() -> Path:
    if not MLFLOW.exists():
        raise FileNotFoundError(f"{MLFLOW} is not there: `make test-all` makes it")
    (package,) = (MLFLOW.parent.parent / "lib").glob("python*/site-packages/mlflow")
    return package


def mlflow_variables() -> dict[str, object]:
    """Return the defaults of MLflow's variables by name. They are parsed, because importing MLflow takes seconds."""
    found: dict[str, object] = {}
    for node in ast.walk(ast.parse((mlflow_package() / "environment_variables.py").read_text())):
        if isinstance(node, ast.Call) and len(node.args) >= 2 and isinstance(node.func, ast.Name):
            name, default = node.args[0], node.args[-1]
            if isinstance(name, ast.Constant) and isinstance(default, ast.Constant):
                found[str(name.value)] = default.value
    return found


@pytest.mark.long
def test_the_table_of_mlflows_span_batcher_has_exactly_its_variables_with_their_defaults() -> None:
    variables = mlflow_variables()
    export = mlflow_package() / "tracing" / "export"
    used = {
        name
        for module in ("span_batcher.py", "async_export_queue.py", "uc_table.py")
        for name in re.findall(r"\bMLFLOW_[A-Z_]+\b", (export / module).read_text())
    }
    asked_for = {name for name in variables if "ASYNC_TRACE_LOGGING" in name or "BATCH_SPAN_PROCESSOR" in name}
    table = rows("mlflow")
    assert sorted(names(table)) == sorted(asked_for | used)
    assert {row.there[0]: value(row.default_there) for row in table} == {name: variables[name] for name in names(table)}


@pytest.mark.long
def test_every_method_of_mlflows_span_batcher_is_in_its_table() -> None:
    tree = ast.parse((mlflow_package() / "tracing" / "export" / "span_batcher.py").read_text())
    (batcher,) = (node for node in tree.body if isinstance(node, ast.ClassDef))
    methods = {node.name: node for node in batcher.body if isinstance(node, ast.FunctionDef)}
    found = table(MIGRATING, "<!-- methods: mlflow -->")
    assert [name for there, _ in found for name in coded(there)] == [name for name in methods if name[0] != "_"]
    assert [argument.arg for argument in methods["add_span"].args.args] == list(parameters(SpanBatcher.add_span))


# -- our settings ---------------------------------------------------------------------------------------------------


def test_our_settings_in_the_tables_exist_with_the_documented_defaults() -> None:
    for row in [row for name in ("BatchSpanProcessor", "OTLPSpanExporter", "mlflow") for row in rows(name)]:
        found = []
        for here in row.here:
            made, argument = re.fullmatch(r"(\w+)\((\w+)=\)", here).groups()  # type: ignore[union-attr]  # fails if None
            found.append(parameters(OURS[made])[argument].default)
        if row.defaults_here or inspect.Parameter.empty not in found:
            assert [value(default) for default in row.defaults_here] == found, row.here


def test_mlflows_two_variables_for_zerobus_are_documented_with_our_arguments() -> None:
    row = r"^\| `(MLFLOW_\w*DATABRICKS_OTEL_COLLECTOR_\w+(?:=\w+)?)`.*? \| `(.*?)`"
    found = dict(re.findall(row, MIGRATING, re.MULTILINE))
    assert found == {
        "MLFLOW_ENABLE_DATABRICKS_OTEL_COLLECTOR_EXPORT=true": "unity_catalog(prefer_zerobus=True)",
        "MLFLOW_ENABLE_DATABRICKS_OTEL_COLLECTOR_EXPORT=false": "unity_catalog()",
        "MLFLOW_DATABRICKS_OTEL_COLLECTOR_ENDPOINT": "zerobus(endpoint=...)",
    }
    assert parameters(unity_catalog)["prefer_zerobus"].default is False


def our_names(page: str) -> Iterator[tuple[str, ...]]:
    """Yield this package's names in the text of a page, as in ``Limits.max_locations`` or ``OTLPExporter(auth=)``."""
    for code in coded(re.sub(r"^```.*?^```", "", page, flags=re.MULTILINE | re.DOTALL)):
        if match := re.fullmatch(r"(\w+)(?:\.(\w+)(?:\(\))?|\((?:\w+, )?(\w+)=(.*)\))", code):
            name, attribute, argument, default = match.groups()
            # `mlflow.trace` is MLflow's; the function `mlflow` is ours.
            if name in OURS and not (attribute and name == "mlflow"):
                yield name, attribute or "", argument or "", default or ""


@pytest.mark.parametrize("page", [MIGRATING, OPENTELEMETRY], ids=["migrating", "opentelemetry"])
def test_every_name_of_this_package_in_the_pages_exists(page: str) -> None:
    found = list(our_names(page))
    assert len(found) > 5
    for name, attribute, argument, default in found:
        if attribute:
            assert hasattr(OURS[name], attribute), f"{name}.{attribute}"
            continue
        parameter = parameters(OURS[name])[argument]
        if default and default != "...":
            assert parameter.default == value(default), f"{name}({argument}={default})"


def test_each_variable_sets_the_documented_argument() -> None:
    seen = 0
    for row in [*rows("BatchSpanProcessor"), *rows("OTLPSpanExporter")]:
        argument = row.here[0].partition("(")[2].rstrip("=)") if row.here else ""
        for variable in row.variables:
            if argument in SAMPLES:
                text, wanted = SAMPLES[argument]
                # A key is used only with its certificate, and files only if the endpoint is https.
                environ = {"OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE": "c.pem", variable: text}
                options: dict[str, object] = {**batch_options(environ), **queue_options(environ)}
                options |= {**exporter_options(environ, endpoint="https://collector"), **exporter_options(environ)}
                options |= {"attempt_timeout": export_timeout(environ)}
                assert options[argument] == wanted, variable
                seen += 1
    assert seen == 4 + 2 * 6


def test_protocol_and_endpoint_work_as_documented(caplog: pytest.LogCaptureFixture) -> None:
    (url,) = coded(rows("OTLPSpanExporter")[0].default_there)
    assert exporter_options({})["endpoint"] == url
    assert exporter_options({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://own/path"})["endpoint"] == "http://own/path"
    assert exporter_options({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://base"})["endpoint"] == "http://base/v1/traces"
    exporter_options({"OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"})
    assert caplog.records == []
    exporter_options({"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"})
    assert "http/protobuf is sent" in caplog.text
    assert "compression" not in exporter_options({"OTEL_EXPORTER_OTLP_COMPRESSION": "deflate"})
    assert "deflate" in caplog.text
    with pytest.raises(ValueError, match="max_request_bytes"):
        OTLPExporter(url, max_request_bytes=0)


# -- programs --------------------------------------------------------------------------------------------------------


async def test_the_example_of_the_rules_prints_the_documented_output() -> None:
    marker = "<!-- rules: run by tests/docs/test_migrating.py -->"
    ended = await run_command(program=[sys.executable, "-W", "error", "-c", block(OPENTELEMETRY, marker)])
    assert (ended.exit_code, ended.err) == (0, "")
    assert ended.out == block(OPENTELEMETRY.partition(marker)[2], "trio.run(main)\n```", "text")


async def test_the_program_migrated_from_the_span_processor_sends_its_spans() -> None:
    async with OTLPReceiver() as receiver:
        ended = await run_command(
            program=[sys.executable, "-W", "error", "-c", block(MIGRATING, "## From `BatchSpanProcessor`")],
            environ={"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": receiver.url},
        )
    assert (ended.exit_code, ended.err) == (0, "")
    assert [span.name for span in receiver.stored["default"]] == ["work"]


@pytest.mark.long
@pytest.mark.parametrize(
    ("example", "sent", "traces"),
    [
        ("alongside", {"acme": ["agent", "look_up"], "globex": ["agent", "look_up"]}, 2),
        ("instead", {"acme": ["a span of OpenTelemetry", "agent", "look up"]}, 0),
    ],
)
async def test_the_spans_of_mlflows_tracing_are_sent(
    tmp_path: Path, example: str, sent: dict[str, list[str]], traces: int
) -> None:
    # MLflow's packages come first; ours add those that it does not have.
    path = [sysconfig.get_path("purelib"), str(Path(trio_spanbatch.__file__).parent.parent)]
    code = f"import sys; sys.path += {path!r}\n{block(MIGRATING, f'<!-- mlflow: {example} -->')}"
    async with OTLPReceiver(location_header="X-Scope-OrgID") as receiver:
        ended = await run_command(
            program=[str(MLFLOW.parent / "python"), "-c", code],
            environ={
                "HOME": str(tmp_path),
                "MLFLOW_ALLOW_FILE_STORE": "true",
                "MLFLOW_DISABLE_TELEMETRY": "true",
                "MLFLOW_ENABLE_OTLP_EXPORTER": "false",
                "MLFLOW_TRACKING_URI": f"file://{tmp_path}/runs",
                "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": receiver.url,
            },
        )
    assert ended.exit_code == 0, ended.err
    assert {location: sorted(span.name for span in spans) for location, spans in receiver.stored.items()} == sent
    assert len(list(tmp_path.glob("runs/*/traces/tr-*"))) == traces


# -- the bridge ------------------------------------------------------------------------------------------------------


def test_the_table_has_exactly_the_reasons_for_drops() -> None:
    assert [coded(reason) for reason, _ in table(OPENTELEMETRY, "<!-- table: reasons -->")] == [
        (name,) for name in REASONS
    ]


async def test_the_table_has_exactly_the_metrics(autojump_clock: MockClock) -> None:
    reader = InMemoryMetricReader()
    provider = MeterProvider([reader], shutdown_on_exit=False)
    found: dict[str, Any] = {}

    def read() -> None:
        data: Any = reader.get_metrics_data()
        found.update({metric.name: metric for metric in data.resource_metrics[0].scope_metrics[0].metrics})

    async with watched_batcher(InMemoryExporter([outage(100)])) as batcher:
        end_spans(tracer_of(BatcherSpanProcessor(batcher, meter_provider=provider)), 1)
        # One of the metrics is only there while the server is down, and one after a delivery.
        await trio.sleep(90)
        read()
    read()
    documented = table(OPENTELEMETRY, "<!-- table: metrics -->")
    assert sorted((coded(name)[0], kind, unit) for name, kind, unit, _ in documented) == sorted(
        (metric.name, kind_of(metric.data), metric.unit) for metric in found.values()
    )


def kind_of(data: Any) -> str:
    if isinstance(data, Histogram):
        return "histogram"
    if isinstance(data, Gauge):
        return "gauge"
    return "counter" if data.is_monotonic else "up-down counter"
