"""MLflow's variables besides those for the tracking URI, the experiment and credentials.

Some are honoured; for each of the others, a warning says what to do instead. Their meaning is documented in MLflow's
 ``mlflow/environment_variables.py`` and ``mlflow/utils/rest_utils.py``.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

from .._http.tls import client_context
from .._settings.environment import value_of, warn_once

_SERVER_CERTIFICATE = "MLFLOW_TRACKING_SERVER_CERT_PATH"
_CLIENT_CERTIFICATE = "MLFLOW_TRACKING_CLIENT_CERT_PATH"
_INSECURE = "MLFLOW_TRACKING_INSECURE_TLS"

_WORKSPACE = re.compile(r"[\x21-\x7e]{1,200}")

_BOOLEANS = {"true": True, "1": True, "false": False, "0": False}

# Variables that are not read, and what to do instead.
_AUTHENTICATION = {
    "MLFLOW_TRACKING_AUTH": "give headers=, or a client= with an httpx.Auth",
    "MLFLOW_TRACKING_AWS_SIGV4": "give a client= with an httpx.Auth that signs requests",
}
_RETRIES = "the batcher's RetryPolicy determines when an attempt is repeated"
_OTHERS = {
    "MLFLOW_EXPERIMENT_NAME": "the location is the experiment's id, or its name with experiments='name'",
    "MLFLOW_TRACING_DESTINATION": "the location is the experiment's id; use unity_catalog() for tables",
    "MLFLOW_ACTIVE_MODEL_ID": "spans are linked to no model",
    "MLFLOW_RUN_ID": "give run_id=",
    "MLFLOW_TRACE_SAMPLING_RATIO": "every span is sent",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "give timeout=",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": _RETRIES,
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": _RETRIES,
    "MLFLOW_HTTP_REQUEST_BACKOFF_JITTER": _RETRIES,
    "MLFLOW_HTTP_RESPECT_RETRY_AFTER_HEADER": "Retry-After is always respected",
    "MLFLOW_ALLOW_HTTP_REDIRECTS": "redirects are not followed",
}
# Settings that match the exporter's behaviour.
_MATCHING = {
    ("MLFLOW_TRACKING_AWS_SIGV4", False),
    ("MLFLOW_HTTP_RESPECT_RETRY_AFTER_HEADER", True),
    ("MLFLOW_ALLOW_HTTP_REDIRECTS", False),
}


def tls_variables(environ: Mapping[str, str], *, server: bool, client: bool) -> tuple[dict[str, str], bool]:
    """Read ``MLFLOW_TRACKING_*`` for TLS, those for the server's certificate and that for the client's, if asked for.

    Return arguments of `OTLPExporter`, and whether the server's certificate is verified. A file that cannot be read,
    and variables that contradict each other, raise `ValueError`.
    """
    certificate = value_of(environ, _SERVER_CERTIFICATE) if server else None
    client_certificate = value_of(environ, _CLIENT_CERTIFICATE) if client else None
    value = value_of(environ, _INSECURE) if server else None
    insecure = value is not None and _BOOLEANS.get(value.lower())
    if insecure and certificate is not None:
        raise ValueError(
            f"{_INSECURE} is true, and {_SERVER_CERTIFICATE} is set as well; unset the first to verify the server's "
            "certificate, or the second not to verify it"
        )
    if insecure:
        warn_once(f"{_INSECURE} is true: the server's certificate is not verified, so others may get credentials")
    elif insecure is None and value is not None:
        warn_once(f"{_INSECURE} is {value[:40]!r}, neither true nor false: it is ignored")
    files = {}
    if certificate is not None:
        _check(_SERVER_CERTIFICATE, certificate, None)
        files["certificate"] = certificate
    if client_certificate is not None:
        _check(_CLIENT_CERTIFICATE, None, client_certificate)
        files["client_certificate"] = client_certificate
    return files, not insecure


def _check(variable: str, certificate: str | None, client_certificate: str | None) -> None:
    try:
        client_context(certificate, client_certificate, None)
    except ValueError as error:
        raise ValueError(f"{variable}: {error}") from None


def workspace(environ: Mapping[str, str]) -> str | None:
    """Return ``MLFLOW_WORKSPACE``, or raise `ValueError`: ignoring it would select experiments of another workspace."""
    name = value_of(environ, "MLFLOW_WORKSPACE")
    if name is not None and not _WORKSPACE.fullmatch(name):
        raise ValueError(
            f"MLFLOW_WORKSPACE is {name[:40]!r}; it must be a workspace's name, of letters, digits and hyphens"
        )
    return name


def warn_of_ignored_variables(environ: Mapping[str, str], *, authenticated: bool) -> None:
    """Log once each variable that is set and changes what MLflow's own client does, but has no effect here.

    Their values are not shown. Those for credentials may be set if the program authenticates its requests itself.
    """
    for variable, instead in {**_OTHERS, **({} if authenticated else _AUTHENTICATION)}.items():
        value = value_of(environ, variable)
        if value is not None and (variable, _BOOLEANS.get(value.lower())) not in _MATCHING:
            warn_once(f"{variable} is set, but mlflow() does not read it: {instead}")


def warn_of_credentials_file() -> None:
    """Log once that MLflow's file with a user name and a password exists, which is not read."""
    file = "~/.mlflow/credentials"
    if os.path.exists(os.path.expanduser(file)):  # noqa: PTH110, PTH111  # these never raise
        warn_once(f"{file} exists, but mlflow() does not read it: set MLFLOW_TRACKING_USERNAME and _PASSWORD")
