"""``OTEL_*`` variables, parsed into arguments.

The rules are OpenTelemetry's (https://opentelemetry.io/docs/specs/otel/configuration/sdk-environment-variables/ and
https://opentelemetry.io/docs/specs/otel/protocol/exporter/): an empty variable counts as unset; values that cannot
be parsed or are out of range are ignored with a warning; times are whole milliseconds. Values of headers are never
shown. If a variable is set for traces, the one for all signals is ignored, also for headers: they are not merged.
"""

from __future__ import annotations

import base64
import logging
import math
import re
import time
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias
from urllib.parse import unquote, unquote_to_bytes

from .._reporting.throttle import Throttle
from .._spans.records import Resource
from .header_checks import check_endpoint, check_header_name, has_header, has_userinfo

Environ = Mapping[str, str]
# Takes a variable's name and text; returns its value, or None after a warning if it cannot be used.
_Parser: TypeAlias = Callable[[str, str], Any]

DEFAULT_ENDPOINT = "http://localhost:4318"
TRACES_PATH = "v1/traces"
_GRPC_PORT = 4317

# Milliseconds. OpenTelemetry sets no maximum; more than a century is a mistake.
_MAX_MILLISECONDS = 100 * 365 * 24 * 3600 * 1000
_MAX_COUNT = 2**31 - 1
# Below this many milliseconds, a timeout was probably meant in seconds.
_SUSPICIOUS_MILLISECONDS = 100

# User name and password in a URL, https://www.rfc-editor.org/rfc/rfc3986#section-3.2.1.
_USERINFO = re.compile(r"https?://(?P<userinfo>(?:[-._~!$&'()*+,;=:0-9A-Za-z]|%[0-9A-Fa-f]{2})*)@", re.IGNORECASE)

_logger = logging.getLogger("trio_spanbatch")

# Arguments of `OTLPExporter` that are names of files.
TLS_FILES = ("certificate", "client_certificate", "client_key")

# Once per process and message, which names the variable, and its value where that may be shown.
_warnings = Throttle(time.monotonic, interval=math.inf, max_keys=1000)


def batch_options(environ: Environ) -> dict[str, Any]:
    """Return the arguments of `BatchPolicy` that ``OTEL_BSP_*`` sets."""
    max_spans, max_delay = "OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "OTEL_BSP_SCHEDULE_DELAY"
    return _options(environ, max_spans=(_count, max_spans), max_delay=(_seconds, max_delay))


def queue_options(environ: Environ) -> dict[str, Any]:
    """Return the arguments of `Limits` that ``OTEL_BSP_*`` sets."""
    return _options(environ, max_queued_spans=(_count, "OTEL_BSP_MAX_QUEUE_SIZE"))


def export_timeout(environ: Environ, default: float = 30.0) -> float:
    """Return ``OTEL_BSP_EXPORT_TIMEOUT`` in seconds; `math.inf` for its 0, which means no timeout."""
    timeout: float | None = _first(environ, _timeout, "OTEL_BSP_EXPORT_TIMEOUT")
    return default if timeout is None else timeout


def default_resource(environ: Environ) -> Resource | None:
    """Return the resource of spans that have none: ``OTEL_RESOURCE_ATTRIBUTES`` and ``OTEL_SERVICE_NAME``.

    ``OTEL_SERVICE_NAME`` takes precedence over an attribute ``service.name``. As the specification says, a list of
    attributes with a mistake in it is ignored as a whole.
    """
    attributes: dict[str, str] = {}
    listed = value_of(environ, "OTEL_RESOURCE_ATTRIBUTES")
    if listed is not None:
        pairs, malformed = _pairs(listed)
        if malformed:
            _ignored("OTEL_RESOURCE_ATTRIBUTES", "is not a list of key=value pairs, separated by commas")
        elif not _is_percent_encoded(listed):
            _ignored(
                "OTEL_RESOURCE_ATTRIBUTES", "cannot be percent-decoded as UTF-8 (a percent sign itself is written %25)"
            )
        else:
            attributes.update(pairs)
    service_name = value_of(environ, "OTEL_SERVICE_NAME")
    if service_name is not None:
        attributes["service.name"] = service_name
    return Resource(attributes) if attributes else None


def sdk_disabled(environ: Environ) -> bool:
    """Return whether ``OTEL_SDK_DISABLED`` is ``true``, in any letter case. No other value disables."""
    value = (value_of(environ, "OTEL_SDK_DISABLED") or "false").lower()
    if value not in ("true", "false"):
        _ignored("OTEL_SDK_DISABLED", "is neither true nor false")
    return value == "true"


def exporter_options(environ: Environ, *, endpoint: str | None = None) -> dict[str, Any]:
    """Return the arguments of `OTLPExporter` that ``OTEL_EXPORTER_OTLP_*`` sets, and always its endpoint.

    An ``endpoint`` that is given is used instead. One in a variable raises `ValueError` if it may contain a password
    whose end is ambiguous.
    """
    authorization = None
    if endpoint is None:
        endpoint, authorization = _endpoint(environ)
    _check_protocol(environ, endpoint)
    parsers: dict[str, _Parser] = {"headers": _headers, "timeout": _request_timeout, "compression": _compression}
    if endpoint[:6].lower() == "https:":
        # These files are read for https only, so otherwise they need not exist.
        parsers |= dict.fromkeys(TLS_FILES, lambda _variable, name: name)
    table: dict[str, tuple[Any, ...]] = {name: (parse, *_variables(name.upper())) for name, parse in parsers.items()}
    options = _options(environ, **table)
    options["endpoint"] = endpoint
    if authorization is not None and not has_header(options.get("headers"), "authorization"):
        options["headers"] = {**options.get("headers", {}), "Authorization": authorization}
    if options.get("compression") == "none":
        del options["compression"]
    if "client_key" in options and "client_certificate" not in options:
        del options["client_key"]
        variable = variable_of(environ, "CLIENT_KEY")
        _ignored(variable, "is set without OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE")
    return options


def _options(environ: Environ, **table: tuple[Any, ...]) -> dict[str, Any]:
    """Return the arguments in ``table`` for which a variable is valid; its rows are a parser and variables."""
    found = {argument: _first(environ, parse, *variables) for argument, (parse, *variables) in table.items()}
    return {argument: value for argument, value in found.items() if value is not None}


def _first(environ: Environ, parse: _Parser, *variables: str) -> Any:
    """Return the value of the first of ``variables`` that is set and valid; None if none is."""
    for variable in variables:
        text = value_of(environ, variable)
        if text is not None and (value := parse(variable, text)) is not None:
            return value
    return None


def _check_protocol(environ: Environ, endpoint: str) -> None:
    variable = variable_of(environ, "PROTOCOL")
    protocol = (value_of(environ, variable) or "http/protobuf").lower()
    if protocol == "http/protobuf":
        return
    port = ""
    # Matched by a pattern: an option may have anything in place of a port, and urlsplit's error shows it.
    if protocol == "grpc" and re.search(rf":{_GRPC_PORT}(?:/|\Z)", endpoint):
        port = f" (to port {_GRPC_PORT}, where gRPC is usually spoken; for HTTP it is 4318)"
    warn_once(
        f"{variable} is {_shortened(environ[variable].strip())}, which is ignored: http/protobuf is sent, the only "
        f"protocol that is supported{port}"
    )


def _endpoint(environ: Environ) -> tuple[str, str | None]:
    """Return the URL to send to, and the ``Authorization`` that was in it."""
    for_traces, general = _variables("ENDPOINT")
    found: tuple[str, str | None] | None = _first(environ, _url, for_traces)
    if found is not None:
        return found
    base, authorization = _first(environ, _url, general) or (DEFAULT_ENDPOINT, None)
    return f"{base.rstrip('/')}/{TRACES_PATH}", authorization


def _url(variable: str, value: str) -> tuple[str, str | None] | None:
    """Return the URL without user name, password, query and fragment, and the ``Authorization`` made of the first two.

    As a header, a user name and password appear in no log and no message. If it may contain a password whose end is
    ambiguous, this raises `ValueError`.
    """
    authorization = None
    match = _USERINFO.match(value)
    if match is not None:
        value = value[: match.start("userinfo")] + value[match.end() :]
        authorization = _basic(match["userinfo"])
    if has_userinfo(value):
        raise ValueError(
            f"the endpoint in {variable} (not shown) has an @ that may end a user name or password: percent-encode "
            "all characters of these except letters and digits, and an @ in a path (%40); or give them in "
            "OTEL_EXPORTER_OTLP_HEADERS"
        )
    url = re.split("[?#]", value, maxsplit=1)[0]
    try:
        check_endpoint(url)
    except ValueError:
        _ignored(variable, "is not a URL that begins with http:// or https:// and a host")
        return None
    if url != value:
        _ignored(variable, "has a query or fragment (not shown), which an endpoint does not have")
    return url, authorization


def _basic(userinfo: str) -> str | None:
    """Return the value of ``Authorization`` for the user name and password of a URL."""
    if not userinfo.strip(":"):
        return None
    username, _, password = userinfo.partition(":")
    credentials = b":".join((unquote_to_bytes(username), unquote_to_bytes(password)))
    return f"Basic {base64.b64encode(credentials).decode('ascii')}"


def _headers(variable: str, value: str) -> dict[str, str]:
    pairs, malformed = _pairs(value, _as_sent)
    if malformed:
        _ignored(variable, f"has {malformed} parts that are not key=value pairs (values are not shown)", "they are")
    for number, name in enumerate(tuple(pairs), 1):
        try:
            check_header_name(name)
        except ValueError:
            del pairs[name]
            # The name is not shown either: it may be a credential that was put there by mistake.
            problem = "is not a valid header name, or a header that the exporter sets itself"
            _ignored(variable, f"has a pair, number {number}, whose key (not shown) {problem}")
    return {name: value.strip(" \t") for name, value in pairs.items()}


def _as_sent(text: str) -> str:
    """Percent-decode the value of a header. If it does not fit into Latin-1, each byte becomes a character."""
    data = unquote_to_bytes(text.encode("utf-8", "surrogateescape"))
    try:
        value = data.decode()
        value.encode("latin-1")
    except UnicodeError:
        return data.decode("latin-1")
    return value


def _request_timeout(variable: str, value: str) -> float | None:
    timeout = _timeout(variable, value)
    if timeout is not None and timeout * 1000 < _SUSPICIOUS_MILLISECONDS:
        warn_once(
            f"{variable} is {timeout * 1000:g}: it is read as milliseconds, as the specification says (OpenTelemetry "
            "Python reads it as seconds)"
        )
    return timeout


def _compression(variable: str, value: str) -> str | None:
    if value.lower() in ("gzip", "none"):
        return value.lower()
    _ignored(variable, f"is {_shortened(value)}, neither gzip nor none")
    return None


def variable_of(environ: Environ, name: str) -> str:
    """Return the variable that is used for ``name``, such as ``CERTIFICATE``: the one for traces if it is set."""
    for_traces, general = _variables(name)
    return for_traces if value_of(environ, for_traces) else general


def _variables(name: str) -> tuple[str, str]:
    return f"OTEL_EXPORTER_OTLP_TRACES_{name}", f"OTEL_EXPORTER_OTLP_{name}"


def value_of(environ: Environ, variable: str) -> str | None:
    """Return the stripped value of ``variable``; None if it is unset or empty."""
    return environ.get(variable, "").strip() or None


def _count(variable: str, value: str) -> int | None:
    return _integer(variable, value, minimum=1, maximum=_MAX_COUNT)


def _seconds(variable: str, value: str, minimum: int = 1) -> float | None:
    milliseconds = _integer(variable, value, minimum=minimum, maximum=_MAX_MILLISECONDS)
    return None if milliseconds is None else milliseconds / 1000


def _timeout(variable: str, value: str) -> float | None:
    seconds = _seconds(variable, value, minimum=0)
    return math.inf if seconds == 0 else seconds


def _integer(variable: str, value: str, *, minimum: int, maximum: int) -> int | None:
    # int() accepts more: "1_000", and digits of any script.
    if not re.fullmatch(r"[+-]?[0-9]+", value):
        _ignored(variable, f"is {_shortened(value)}, not a whole number")
        return None
    number = int(value) if len(value) <= 20 else maximum + 1
    if not minimum <= number <= maximum:
        _ignored(variable, f"is {_shortened(value)}, not between {minimum} and {maximum}")
        return None
    return number


def _pairs(text: str, decode: Callable[[str], str] = unquote) -> tuple[dict[str, str], int]:
    """Return the pairs of a list like ``k=v,k2=v2``, percent-decoded, and the number of malformed parts."""
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
    """Log a message once per process: every batcher reads the same variables, and a process may create many."""
    if _warnings.allows(message):
        _logger.warning("%s", message)
