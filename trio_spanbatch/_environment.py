"""What ``OTEL_*`` variables say, as plain values.

The rules are OpenTelemetry's (https://opentelemetry.io/docs/specs/otel/configuration/sdk-environment-variables/ and
https://opentelemetry.io/docs/specs/otel/protocol/exporter/): an empty variable is an unset one; what cannot be parsed
or is out of range is warned about and ignored; times are whole milliseconds. Values of headers are never shown.
Where a variable exists for traces and for all signals, the one for traces counts and the other is not looked at,
also for headers: they are not merged.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Mapping
from typing import Required, TypedDict
from urllib.parse import unquote, urlsplit

from ._records import Resource
from .otlp.http_headers import check_endpoint, check_header_name, has_userinfo

__all__ = [
    "BatchOptions",
    "ExporterOptions",
    "QueueOptions",
    "batch_options",
    "default_resource",
    "export_timeout",
    "exporter_options",
    "forget_warnings",
    "queue_options",
    "sdk_disabled",
    "warn_once",
]

Environ = Mapping[str, str]

DEFAULT_ENDPOINT = "http://localhost:4318"
TRACES_PATH = "v1/traces"
_GRPC_PORT = 4317

# Milliseconds. The largest number of OpenTelemetry's tables that can be meant: nobody waits for a century.
_MAX_MILLISECONDS = 100 * 365 * 24 * 3600 * 1000
_MAX_COUNT = 2**31 - 1
# Below this many milliseconds, a timeout was probably meant in seconds.
_SUSPICIOUS_MILLISECONDS = 100

_logger = logging.getLogger("trio_spanbatch")

# What was warned of in this process: the variable, and the value where it may be shown.
_warned: set[str] = set()
_MAX_WARNED = 1000


class BatchOptions(TypedDict, total=False):
    """Arguments for `BatchPolicy`."""

    max_spans: int
    max_delay: float


class QueueOptions(TypedDict, total=False):
    """Arguments for `Limits`."""

    max_queued_spans: int


class ExporterOptions(TypedDict, total=False):
    """Arguments for `OTLPExporter`."""

    endpoint: Required[str]
    headers: dict[str, str]
    timeout: float
    compression: str
    certificate: str
    client_certificate: str
    client_key: str


def batch_options(environ: Environ) -> BatchOptions:
    """Return what ``OTEL_BSP_*`` says about `BatchPolicy`."""
    options = BatchOptions()
    max_spans = _integer(environ, "OTEL_BSP_MAX_EXPORT_BATCH_SIZE", minimum=1, maximum=_MAX_COUNT)
    if max_spans is not None:
        options["max_spans"] = max_spans
    max_delay = _integer(environ, "OTEL_BSP_SCHEDULE_DELAY", minimum=1, maximum=_MAX_MILLISECONDS)
    if max_delay is not None:
        options["max_delay"] = max_delay / 1000
    return options


def queue_options(environ: Environ) -> QueueOptions:
    """Return what ``OTEL_BSP_*`` says about `Limits`."""
    max_queued_spans = _integer(environ, "OTEL_BSP_MAX_QUEUE_SIZE", minimum=1, maximum=_MAX_COUNT)
    return QueueOptions() if max_queued_spans is None else QueueOptions(max_queued_spans=max_queued_spans)


def export_timeout(environ: Environ, default: float = 30.0) -> float:
    """Return ``OTEL_BSP_EXPORT_TIMEOUT`` in seconds, `math.inf` for its 0, which means none."""
    timeout = _timeout(environ, "OTEL_BSP_EXPORT_TIMEOUT")
    return default if timeout is None else timeout


def default_resource(environ: Environ) -> Resource | None:
    """Return the resource of spans that have none: ``OTEL_RESOURCE_ATTRIBUTES`` and ``OTEL_SERVICE_NAME``.

    The service name wins over one among the attributes. As the specification asks, a list of attributes with a
    mistake in it is ignored as a whole.
    """
    attributes: dict[str, str] = {}
    listed = _get(environ, "OTEL_RESOURCE_ATTRIBUTES")
    if listed is not None:
        pairs, malformed = _pairs(listed)
        if malformed:
            _ignored("OTEL_RESOURCE_ATTRIBUTES", "is no list of key=value pairs, separated by commas")
        elif not _is_percent_encoded(listed):
            _ignored(
                "OTEL_RESOURCE_ATTRIBUTES", "cannot be percent-decoded as UTF-8 (a percent sign itself is written %25)"
            )
        else:
            attributes.update(pairs)
    service_name = _get(environ, "OTEL_SERVICE_NAME")
    if service_name is not None:
        attributes["service.name"] = service_name
    return Resource(attributes) if attributes else None


def sdk_disabled(environ: Environ) -> bool:
    """Return whether ``OTEL_SDK_DISABLED`` is true, in any case of letters. Nothing else is."""
    value = (_get(environ, "OTEL_SDK_DISABLED") or "false").lower()
    if value not in ("true", "false"):
        _ignored("OTEL_SDK_DISABLED", "is neither true nor false")
    return value == "true"


def exporter_options(environ: Environ) -> ExporterOptions:
    """Return what ``OTEL_EXPORTER_OTLP_*`` says about `OTLPExporter`, its endpoint always included."""
    options = ExporterOptions(endpoint=_endpoint(environ))
    _check_protocol(environ, options["endpoint"])
    headers = _headers(environ)
    if headers is not None:
        options["headers"] = headers
    timeout = _otlp_timeout(environ)
    if timeout is not None:
        options["timeout"] = timeout
    compression = _compression(environ)
    if compression is not None:
        options["compression"] = compression
    certificate = _signal(environ, "CERTIFICATE")
    if certificate is not None:
        options["certificate"] = certificate[1]
    client_certificate = _signal(environ, "CLIENT_CERTIFICATE")
    if client_certificate is not None:
        options["client_certificate"] = client_certificate[1]
    client_key = _signal(environ, "CLIENT_KEY")
    if client_key is not None:
        options["client_key"] = client_key[1]
    return options


def _check_protocol(environ: Environ, endpoint: str) -> None:
    found = _signal(environ, "PROTOCOL")
    if found is None or found[1].lower() == "http/protobuf":
        return
    variable, protocol = found
    port = ""
    if protocol.lower() == "grpc" and urlsplit(endpoint).port == _GRPC_PORT:
        port = f" (to port {_GRPC_PORT}, where gRPC is usually spoken; for HTTP it is 4318)"
    warn_once(
        f"{variable} is {_shortened(protocol)}, which is ignored: http/protobuf is sent, the only protocol that is "
        f"supported{port}"
    )


def _endpoint(environ: Environ) -> str:
    own = _url(environ, "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
    if own is not None:
        return own
    return _with_traces_path(_url(environ, "OTEL_EXPORTER_OTLP_ENDPOINT") or DEFAULT_ENDPOINT)


def _url(environ: Environ, variable: str) -> str | None:
    """Return the URL in ``variable``, without a query or fragment, if it is one that can be sent to.

    One with a user name or password is returned as it is, for the exporter to refuse: without them, it is another URL.
    """
    value = _get(environ, variable)
    if value is None or has_userinfo(value):
        return value
    url = re.split("[?#]", value, maxsplit=1)[0]
    if not _is_http_url(url):
        _ignored(variable, "is no URL that begins with http:// or https:// and a host")
        return None
    if url != value:
        _ignored(variable, "has a query or fragment (not shown), which an endpoint does not have")
    return url


def _with_traces_path(base: str) -> str:
    return f"{base.rstrip('/')}/{TRACES_PATH}"


def _is_http_url(url: str) -> bool:
    try:
        check_endpoint(url)
    except ValueError:
        return False
    return True


def _headers(environ: Environ) -> dict[str, str] | None:
    found = _signal(environ, "HEADERS")
    if found is None:
        return None
    variable, value = found
    pairs, malformed = _pairs(value)
    if malformed:
        _ignored(variable, f"has {malformed} parts that are no key=value pair (values are not shown)", "they are")
    # Not shown either: what stands for a name by mistake may be a credential.
    for number, name in enumerate(tuple(pairs), 1):
        try:
            check_header_name(name)
        except ValueError:
            del pairs[name]
            problem = "is no header's name, or one that the exporter sets itself"
            _ignored(variable, f"has a pair, number {number}, whose key (not shown) {problem}")
    return pairs


def _otlp_timeout(environ: Environ) -> float | None:
    for variable in ("OTEL_EXPORTER_OTLP_TRACES_TIMEOUT", "OTEL_EXPORTER_OTLP_TIMEOUT"):
        timeout = _timeout(environ, variable)
        if timeout is None:
            continue
        if timeout * 1000 < _SUSPICIOUS_MILLISECONDS:
            warn_once(
                f"{variable} is {timeout * 1000:g}: that is milliseconds, as the specification has it (OpenTelemetry "
                "Python reads seconds here)"
            )
        return timeout
    return None


def _compression(environ: Environ) -> str | None:
    for variable in ("OTEL_EXPORTER_OTLP_TRACES_COMPRESSION", "OTEL_EXPORTER_OTLP_COMPRESSION"):
        value = _get(environ, variable)
        if value is None:
            continue
        if value.lower() == "gzip":
            return "gzip"
        if value.lower() == "none":
            return None
        _ignored(variable, f"is {_shortened(value)}, neither gzip nor none")
    return None


def _signal(environ: Environ, name: str) -> tuple[str, str] | None:
    """Return which variable counts and its value: the one for traces if it is set, else the one for all signals."""
    for variable in (f"OTEL_EXPORTER_OTLP_TRACES_{name}", f"OTEL_EXPORTER_OTLP_{name}"):
        value = _get(environ, variable)
        if value is not None:
            return variable, value
    return None


def _get(environ: Environ, variable: str) -> str | None:
    return environ.get(variable, "").strip() or None


def _timeout(environ: Environ, variable: str) -> float | None:
    milliseconds = _integer(environ, variable, minimum=0, maximum=_MAX_MILLISECONDS)
    if milliseconds is None:
        return None
    return milliseconds / 1000 if milliseconds else math.inf


def _integer(environ: Environ, variable: str, *, minimum: int, maximum: int) -> int | None:
    value = _get(environ, variable)
    if value is None:
        return None
    # Not whatever int() takes: it reads "1_000" and digits of any script.
    if not re.fullmatch(r"[+-]?[0-9]+", value):
        _ignored(variable, f"is {_shortened(value)}, no whole number")
        return None
    number = int(value) if len(value) <= 20 else maximum + 1
    if not minimum <= number <= maximum:
        _ignored(variable, f"is {_shortened(value)}, not within {minimum} and {maximum}")
        return None
    return number


def _pairs(text: str) -> tuple[dict[str, str], int]:
    """Return the pairs of a list like ``k=v,k2=v2``, percent-decoded, and how many parts of it are none."""
    pairs: dict[str, str] = {}
    malformed = 0
    for part in text.split(","):
        if not part.strip():
            continue
        key, equals, value = part.partition("=")
        key = unquote(key.strip())
        if equals and key:
            pairs[key] = unquote(value.strip())
        else:
            malformed += 1
    return pairs, malformed


def _is_percent_encoded(text: str) -> bool:
    if re.search("%(?![0-9A-Fa-f]{2})", text):
        return False
    try:
        unquote(text, errors="strict").encode()
    except UnicodeError:
        return False
    return True


def _shortened(value: str) -> str:
    return repr(value if len(value) <= 40 else value[:40] + "…")


def _ignored(variable: str, problem: str, what: str = "it is") -> None:
    warn_once(f"{variable} {problem}: {what} ignored")


def warn_once(message: str) -> None:
    """Log what was not logged before: every batcher reads the same variables, and a process may make many."""
    if message in _warned:
        return
    if len(_warned) >= _MAX_WARNED:
        _warned.clear()
    _warned.add(message)
    _logger.warning("%s", message)


def forget_warnings() -> None:
    """Log everything again. For tests."""
    _warned.clear()
