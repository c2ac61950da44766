"""What ``OTEL_*`` variables say, as plain values.

The rules are OpenTelemetry's (https://opentelemetry.io/docs/specs/otel/configuration/sdk-environment-variables/ and
https://opentelemetry.io/docs/specs/otel/protocol/exporter/): an empty variable is an unset one; what cannot be parsed
or is out of range is warned about and ignored; times are whole milliseconds. Values of headers are never shown.
Where a variable exists for traces and for all signals, the one for traces counts and the other is not looked at,
also for headers: they are not merged.
"""

from __future__ import annotations

import base64
import logging
import math
import re
import time
from collections.abc import Callable, Mapping
from typing import Required, TypedDict
from urllib.parse import unquote, unquote_to_bytes

from .._reporting.throttle import Throttle
from .._spans.records import Resource
from .header_checks import check_endpoint, check_header_name, has_userinfo

__all__ = [
    "BatchOptions",
    "ExporterOptions",
    "QueueOptions",
    "TLSFiles",
    "batch_options",
    "default_resource",
    "export_timeout",
    "exporter_options",
    "forget_warnings",
    "queue_options",
    "sdk_disabled",
    "variable_of",
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

# What stands before the ``@`` of a URL, https://www.rfc-editor.org/rfc/rfc3986#section-3.2.1.
_USERINFO = re.compile(r"https?://(?P<userinfo>(?:[-._~!$&'()*+,;=:0-9A-Za-z]|%[0-9A-Fa-f]{2})*)@", re.IGNORECASE)

_logger = logging.getLogger("trio_spanbatch")

# Once per process and message, which names the variable, and its value where that may be shown.
_warnings = Throttle(time.monotonic, interval=math.inf, max_keys=1000)


class BatchOptions(TypedDict, total=False):
    """Arguments for `BatchPolicy`."""

    max_spans: int
    max_delay: float


class QueueOptions(TypedDict, total=False):
    """Arguments for `Limits`."""

    max_queued_spans: int


class TLSFiles(TypedDict, total=False):
    """Arguments for `OTLPExporter` that are names of files."""

    certificate: str
    client_certificate: str
    client_key: str


class ExporterOptions(TLSFiles, total=False):
    """Arguments for `OTLPExporter`."""

    endpoint: Required[str]
    headers: dict[str, str]
    timeout: float
    compression: str


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


def exporter_options(environ: Environ, *, endpoint: str | None = None) -> ExporterOptions:
    """Return what ``OTEL_EXPORTER_OTLP_*`` says about `OTLPExporter`, its endpoint always included.

    Args:
        environ: The variables.
        endpoint: An endpoint in place of theirs, which are then not looked at.

    Raises:
        ValueError: A variable with an endpoint may have a password in it, and it cannot be said where that ends.
    """
    authorization = None
    if endpoint is None:
        endpoint, authorization = _endpoint(environ)
    options = ExporterOptions(endpoint=endpoint)
    _check_protocol(environ, endpoint)
    headers = _headers(environ)
    if authorization is not None and "authorization" not in {name.lower() for name in headers or ()}:
        headers = {**(headers or {}), "Authorization": authorization}
    if headers is not None:
        options["headers"] = headers
    timeout = _otlp_timeout(environ)
    if timeout is not None:
        options["timeout"] = timeout
    compression = _compression(environ)
    if compression is not None:
        options["compression"] = compression
    if endpoint[:6].lower() == "https:":
        # Elsewhere nothing is read from these files, so they may be gone.
        return {**options, **_files(environ)}
    return options


def _files(environ: Environ) -> TLSFiles:
    files = TLSFiles()
    certificate = _signal(environ, "CERTIFICATE")
    if certificate is not None:
        files["certificate"] = certificate[1]
    client_certificate = _signal(environ, "CLIENT_CERTIFICATE")
    client_key = _signal(environ, "CLIENT_KEY")
    if client_certificate is not None:
        files["client_certificate"] = client_certificate[1]
        if client_key is not None:
            files["client_key"] = client_key[1]
    elif client_key is not None:
        _ignored(client_key[0], "is set without OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE, which it is the key of")
    return files


def _check_protocol(environ: Environ, endpoint: str) -> None:
    found = _signal(environ, "PROTOCOL")
    if found is None or found[1].lower() == "http/protobuf":
        return
    variable, protocol = found
    port = ""
    # By a pattern: an option may have anything in place of a port, and urlsplit shows it.
    if protocol.lower() == "grpc" and re.search(rf":{_GRPC_PORT}(?:/|\Z)", endpoint):
        port = f" (to port {_GRPC_PORT}, where gRPC is usually spoken; for HTTP it is 4318)"
    warn_once(
        f"{variable} is {_shortened(protocol)}, which is ignored: http/protobuf is sent, the only protocol that is "
        f"supported{port}"
    )


def _endpoint(environ: Environ) -> tuple[str, str | None]:
    """Return the URL to send to, and the ``Authorization`` that stood in it."""
    own, authorization = _url(environ, "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
    if own is not None:
        return own, authorization
    base, authorization = _url(environ, "OTEL_EXPORTER_OTLP_ENDPOINT")
    return _with_traces_path(base or DEFAULT_ENDPOINT), authorization


def _url(environ: Environ, variable: str) -> tuple[str | None, str | None]:
    """Return the URL in ``variable``, without user name, password, query and fragment, if it is one to send to.

    A user name and password become the value of a header, which neither logs nor messages show.

    Raises:
        ValueError: It may have a password in it, and it cannot be said where that ends.
    """
    value = _get(environ, variable)
    if value is None:
        return None, None
    authorization = None
    match = _USERINFO.match(value)
    if match is not None:
        value = value[: match.start("userinfo")] + value[match.end() :]
        authorization = _basic(match["userinfo"])
    if has_userinfo(value):
        raise ValueError(
            f"the endpoint in {variable} (not shown) has an @ that may end a user name or password. In these, other "
            "characters than letters and digits are percent-encoded, as is an @ in a path (%40); or give them in "
            "OTEL_EXPORTER_OTLP_HEADERS"
        )
    url = re.split("[?#]", value, maxsplit=1)[0]
    if not _is_http_url(url):
        _ignored(variable, "is no URL that begins with http:// or https:// and a host")
        return None, None
    if url != value:
        _ignored(variable, "has a query or fragment (not shown), which an endpoint does not have")
    return url, authorization


def _basic(userinfo: str) -> str | None:
    """Return the value of ``Authorization`` for what stands before the ``@`` of a URL."""
    if not userinfo.strip(":"):
        return None
    username, _, password = userinfo.partition(":")
    credentials = b":".join((unquote_to_bytes(username), unquote_to_bytes(password)))
    return f"Basic {base64.b64encode(credentials).decode('ascii')}"


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
    pairs, malformed = _pairs(value, _as_sent)
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
    return {name: value.strip(" \t") for name, value in pairs.items()}


def _as_sent(text: str) -> str:
    """Return the value of a header, percent-decoded. If it is beyond Latin-1, each of its bytes is a character."""
    data = unquote_to_bytes(text.encode("utf-8", "surrogateescape"))
    try:
        value = data.decode()
        value.encode("latin-1")
    except UnicodeError:
        return data.decode("latin-1")
    return value


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


def variable_of(environ: Environ, name: str) -> str:
    """Return which variable counts for ``name``, such as ``CERTIFICATE``: the one for traces, or for all signals."""
    found = _signal(environ, name)
    return f"OTEL_EXPORTER_OTLP_{name}" if found is None else found[0]


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


def _pairs(text: str, decode: Callable[[str], str] = unquote) -> tuple[dict[str, str], int]:
    """Return the pairs of a list like ``k=v,k2=v2``, percent-decoded, and how many parts of it are none."""
    pairs: dict[str, str] = {}
    malformed = 0
    for part in text.split(","):
        if not part.strip():
            continue
        key, equals, value = part.partition("=")
        key = unquote(key.strip())
        if equals and key:
            pairs[key] = decode(value.strip())
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
    """Log a message once per process: every batcher reads the same variables, and a process may make many."""
    if _warnings.allows(message):
        _logger.warning("%s", message)


def forget_warnings() -> None:
    """Log everything again. For tests."""
    _warnings.clear()
