"""Make the exporter for ``send --to``, and check the options that apply to it."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

import attrs

from .._exporter import ExportResult, LocationChecker, Refused, SpanExporter
from .._http.exporter import DisabledExporter, OTLPExporter
from .._settings.environment import export_timeout, exporter_options, sdk_disabled
from .._spans.batch import SpanBatch
from .._spans.checks import shown
from ..destinations import mlflow, unity_catalog, zerobus
from ..destinations._experiments import is_experiment_id
from ..destinations.tables import LOCATION_HEADER
from ..destinations.zerobus import LOCATION_HEADER as ZEROBUS_HEADER
from .send import NO_SERVER

DESTINATIONS = ("otlp", "mlflow", "unity-catalog", "zerobus")

# Seconds that an attempt may take unless --timeout says otherwise.
_TIMEOUTS = {"mlflow": 60.0, "unity-catalog": 20.0, "zerobus": 20.0}

# Advice for the case that no request was ever answered.
NO_SERVER_ADVICE = {
    "otlp": NO_SERVER,
    "mlflow": "start MLflow there, or name its tracking URI with --endpoint",
    "unity-catalog": "name the right workspace with --endpoint",
    "zerobus": "set DATABRICKS_HOST to the right workspace, or name Zerobus' endpoint with --endpoint",
}

# Advice for refusals, by status code.
_ADVICE: Mapping[int | None, str] = {
    **dict.fromkeys((401, 403), "set the right credentials with --header or OTEL_EXPORTER_OTLP_HEADERS"),
    **dict.fromkeys(
        (404, 405), "--endpoint must be the whole URL including its path, as in http://localhost:4318/v1/traces"
    ),
    **dict.fromkeys(range(300, 400), "if the redirect's target is right, name it with --endpoint"),
}

# The options for arguments of the library. A message names an argument in its first word, or with a "=" after it.
_OPTIONS = {
    "endpoint": "--endpoint",
    "host": "--endpoint",
    "tracking_uri": "--endpoint",
    "location_header": "--location-header",
    "headers": "--header",
}
_ARGUMENT = re.compile(rf"^({'|'.join(_OPTIONS)})(?= )|\b({'|'.join(_OPTIONS)})=")

# Remedies in messages that name an argument for which there is no option, and the replacements.
_REMEDIES = (
    (r"is also among headers", "is also given with --header or OTEL_EXPORTER_OTLP_HEADERS"),
    (r"\bgive them as username= and password=, or as ", "give them as "),
    (r"\bgive (username|password)= or set ", "set "),
    (r"\buse unity_catalog;", "use --to unity-catalog;"),
    (r"give experiment_id=, or use an experiment's id as the location", "or name an experiment with --location"),
    (r"; to use names, give experiments='name'", "; a name can only be given with --location"),
    (r"Limits\.max_pending_bytes_per_location and max_pending_bytes allow (\d+)", r"no request has more than \1"),
)


@attrs.frozen(kw_only=True)
class Destination:
    """The options of ``send`` about its destination."""

    to: str  # one of `DESTINATIONS`
    endpoint: str | None  # ``--endpoint``: a URL, MLflow's tracking URI, a workspace, or Zerobus' endpoint
    location: str | None
    location_attribute: str | None
    location_header: str | None
    headers: Mapping[str, str] = attrs.field(repr=False)  # the headers of all ``--header``
    compression: str | None  # ``gzip``, ``none``, or None for the destination's default
    timeout: float | None


def make_exporter(destination: Destination) -> SpanExporter:
    """Return an exporter for ``destination``. Options that are not given come from the environment.

    It raises `ValueError` or `TypeError` if an option or variable is invalid, or if options cannot be combined, and
    `ModuleNotFoundError` if a library is missing.
    """
    if destination.location is not None and destination.location_attribute is not None:
        raise ValueError("--location and --location-attribute are mutually exclusive")
    if sdk_disabled(os.environ):
        return DisabledExporter()
    make = {"otlp": _otlp, "mlflow": _mlflow, "unity-catalog": _unity_catalog, "zerobus": _zerobus}[destination.to]
    exporter = make(destination)
    if destination.location_attribute is None and isinstance(exporter, LocationChecker):
        # Otherwise each span would be reported as invalid.
        exporter.check_location(destination.location or "default")
    return exporter


def attempt_timeout(destination: Destination) -> float:
    """Return the batcher's timeout for an attempt: longer than the exporter's, whose messages are more specific."""
    if destination.timeout is not None:
        return destination.timeout + 1.0
    if destination.to in _TIMEOUTS:
        return max(export_timeout(os.environ), _TIMEOUTS[destination.to] + 1.0)
    if sdk_disabled(os.environ):
        return export_timeout(os.environ)
    timeout = exporter_options(os.environ, endpoint=destination.endpoint).get("timeout", 0.0)
    return export_timeout(os.environ, max(30.0, timeout + 1.0))


def server_of(exporter: SpanExporter) -> str:
    """Return host and port of the server that ``exporter`` sends to."""
    url = urlsplit(str(getattr(exporter, "endpoint", "")))
    if not url.hostname:
        return "the server"
    host = f"[{url.hostname}]" if ":" in url.hostname else url.hostname
    return f"{host}:{url.port or {'https': 443}.get(url.scheme, 80)}"


def in_words_of_options(message: str) -> str:
    """Return a message of the library that names options instead of arguments."""
    for pattern, replacement in _REMEDIES:
        message = re.sub(pattern, replacement, message)
    return _ARGUMENT.sub(lambda match: _OPTIONS[match[1] or match[2]], message)


def _otlp(destination: Destination) -> SpanExporter:
    return _AdvisedExporter.from_env(
        endpoint=destination.endpoint,
        location_header=destination.location_header,
        headers=destination.headers,
        timeout=destination.timeout,
        compression=destination.compression,
    )


def _mlflow(destination: Destination) -> SpanExporter:
    _refuse(destination.location_header is not None, "--location-header", destination, "it is x-mlflow-experiment-id")
    _check_mlflows_variables(destination)
    location = destination.location or "default"
    by_name = location != "default" and re.fullmatch(r"[0-9]+", location) is None
    return mlflow(
        destination.endpoint,
        experiments="name" if by_name else "id",
        headers=destination.headers,
        timeout=destination.timeout or _TIMEOUTS["mlflow"],
        compression=None if destination.compression == "none" else "gzip",
    )


def _check_mlflows_variables(destination: Destination) -> None:
    """Raise `ValueError` where the library reports a programming error, or only logs a warning."""
    name, uri = "--endpoint", destination.endpoint
    if uri is None:
        name, uri = "MLFLOW_TRACKING_URI", os.environ.get("MLFLOW_TRACKING_URI", "")
    if re.fullmatch(r"https?:[/\\]*", uri.strip(), re.IGNORECASE):
        raise ValueError(f"{name} has no host; it must be the URL of a tracking server, as in http://localhost:5000")
    experiment = os.environ.get("MLFLOW_EXPERIMENT_ID", "").strip()
    by_variable = destination.location is None and destination.location_attribute is None
    if by_variable and experiment and not is_experiment_id(experiment):
        raise ValueError(
            f"MLFLOW_EXPERIMENT_ID is {shown(experiment)}; it must be the id of an experiment, a whole number such as "
            "'3'; correct it, or name an experiment with --location"
        )


def _unity_catalog(destination: Destination) -> SpanExporter:
    return unity_catalog(destination.endpoint, **_options_for_tables(destination, LOCATION_HEADER))


def _zerobus(destination: Destination) -> SpanExporter:
    options = _options_for_tables(destination, ZEROBUS_HEADER)
    if not os.environ.get("DATABRICKS_HOST", "").strip():
        raise ValueError(
            "--to zerobus needs a workspace that issues tokens: set DATABRICKS_HOST, as in "
            "https://dbc-a1b2c3d4-e5f6.cloud.databricks.com"
        )
    return zerobus(endpoint=destination.endpoint, **options)


def _options_for_tables(destination: Destination, header: str) -> dict[str, Any]:
    """Return the arguments that `unity_catalog` and `zerobus` share."""
    names = {name.lower() for name in destination.headers}
    _refuse(destination.location_header is not None, "--location-header", destination, f"it is {header}")
    sdk = "databricks-sdk authenticates, for instance with DATABRICKS_CLIENT_ID and DATABRICKS_CLIENT_SECRET"
    _refuse("authorization" in names, "--header Authorization=", destination, sdk)
    by_option = "--location or --location-attribute names the table"
    _refuse(header.lower() in names, f"--header {header}=", destination, by_option)
    if destination.location is None and destination.location_attribute is None:
        raise ValueError(
            f"--to {destination.to} needs a table: name it with --location <catalog>.<schema>.<table>, or name the "
            "attribute that contains it with --location-attribute"
        )
    return {
        "headers": destination.headers,
        "timeout": destination.timeout or _TIMEOUTS[destination.to],
        "compression": "gzip" if destination.compression == "gzip" else None,
    }


def _refuse(given: bool, option: str, destination: Destination, reason: str) -> None:
    if given:
        raise ValueError(f"{option} cannot be used with --to {destination.to}: {reason}")


class _AdvisedExporter(OTLPExporter):
    """Adds advice to the reasons of refusals."""

    async def export(self, batch: SpanBatch) -> ExportResult:
        result = await super().export(batch)
        if isinstance(result, Refused) and (advice := _ADVICE.get(result.status_code)):
            return attrs.evolve(result, reason=f"{result.reason}; {advice}")
        return result
