"""MLflow's own variables besides those for where and as whom: what can be honoured is, of the others it is told.

What they mean is in MLflow's ``mlflow/environment_variables.py`` and ``mlflow/utils/rest_utils.py``.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

import attrs

from .._http.client import client_context
from .._settings.environment import warn_once

__all__ = ["TLSVariables", "tls_variables", "warn_of_credentials_file", "warn_of_what_is_not_read", "workspace"]

_SERVER_CERTIFICATE = "MLFLOW_TRACKING_SERVER_CERT_PATH"
_CLIENT_CERTIFICATE = "MLFLOW_TRACKING_CLIENT_CERT_PATH"
_INSECURE = "MLFLOW_TRACKING_INSECURE_TLS"

_WORKSPACE = re.compile(r"[\x21-\x7e]{1,200}")

# What is not read, and what to do instead.
_AUTHENTICATION = {
    "MLFLOW_TRACKING_AUTH": "give headers=, or a client= with an httpx.Auth",
    "MLFLOW_TRACKING_AWS_SIGV4": "give a client= with an httpx.Auth that signs requests",
}
_RETRIES = "the batcher's RetryPolicy says when an attempt is repeated"
_OTHERS = {
    "MLFLOW_EXPERIMENT_NAME": "a batch's location is its experiment; with experiments='name', by its name",
    "MLFLOW_RUN_ID": "give run_id=",
    "MLFLOW_TRACE_SAMPLING_RATIO": "every span is sent",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "give timeout=",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": _RETRIES,
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": _RETRIES,
    "MLFLOW_HTTP_REQUEST_BACKOFF_JITTER": _RETRIES,
    "MLFLOW_HTTP_RESPECT_RETRY_AFTER_HEADER": "Retry-After is always respected",
    "MLFLOW_ALLOW_HTTP_REDIRECTS": "redirects are not followed",
}
# These ask for what is done anyway.
_AS_IT_IS = {
    ("MLFLOW_TRACKING_AWS_SIGV4", False),
    ("MLFLOW_HTTP_RESPECT_RETRY_AFTER_HEADER", True),
    ("MLFLOW_ALLOW_HTTP_REDIRECTS", False),
}


@attrs.frozen
class TLSVariables:
    """What the environment says about TLS.

    Attributes:
        certificate: The file, or directory, with the CAs to trust.
        client_certificate: The file with the certificate to show, and its key.
        verify: Whether the server's certificate is checked.
    """

    certificate: str | None = None
    client_certificate: str | None = None
    verify: bool = True


def tls_variables(environ: Mapping[str, str], *, server: bool, client: bool) -> TLSVariables:
    """Return what ``MLFLOW_TRACKING_*`` says about TLS.

    Args:
        environ: The variables.
        server: Whether those about the server's certificate are wanted.
        client: Whether the one about the client's certificate is wanted.

    Raises:
        ValueError: A file cannot be read, or variables contradict each other.
    """
    certificate = _get(environ, _SERVER_CERTIFICATE) if server else None
    client_certificate = _get(environ, _CLIENT_CERTIFICATE) if client else None
    insecure = server and _boolean(environ, _INSECURE) is True
    if insecure and certificate is not None:
        raise ValueError(
            f"{_INSECURE} is true, and {_SERVER_CERTIFICATE} is set as well; unset the first to have the server's "
            "certificate checked, or the second"
        )
    _check(_SERVER_CERTIFICATE, certificate=certificate)
    _check(_CLIENT_CERTIFICATE, client_certificate=client_certificate)
    if insecure:
        warn_once(f"{_INSECURE} is true: whether the server is MLflow is not checked, credentials may go to others")
    return TLSVariables(certificate, client_certificate, not insecure)


def _check(variable: str, *, certificate: str | None = None, client_certificate: str | None = None) -> None:
    try:
        client_context(certificate, client_certificate, None)
    except ValueError as error:
        raise ValueError(f"{variable}: {error}") from None


def workspace(environ: Mapping[str, str]) -> str | None:
    """Return ``MLFLOW_WORKSPACE``.

    Raises:
        ValueError: It cannot be sent. Without it, experiments of another workspace would be meant.
    """
    name = _get(environ, "MLFLOW_WORKSPACE")
    if name is not None and not _WORKSPACE.fullmatch(name):
        raise ValueError(
            f"MLFLOW_WORKSPACE is {name[:40]!r}, no workspace's name; it takes letters, digits and hyphens"
        )
    return name


def warn_of_what_is_not_read(environ: Mapping[str, str], *, authenticated: bool) -> None:
    """Log once which variables are set that change what MLflow's own client does, but nothing here.

    Args:
        environ: The variables. Their values are not shown.
        authenticated: Whether the program authenticates its requests itself.
    """
    for variable, instead in {**_OTHERS, **({} if authenticated else _AUTHENTICATION)}.items():
        value = _get(environ, variable)
        if value is not None and (variable, _as_boolean(value)) not in _AS_IT_IS:
            warn_once(f"{variable} is set, which mlflow() does not read: {instead}")


def warn_of_credentials_file() -> None:
    """Log once that MLflow's file with a user name and a password is there, which is not read."""
    file = "~/.mlflow/credentials"
    if os.path.exists(os.path.expanduser(file)):  # noqa: PTH110, PTH111  # these never raise
        warn_once(f"{file} is there, which mlflow() does not read: set MLFLOW_TRACKING_USERNAME and _PASSWORD")


def _get(environ: Mapping[str, str], variable: str) -> str | None:
    return environ.get(variable, "").strip() or None


def _boolean(environ: Mapping[str, str], variable: str) -> bool | None:
    value = _get(environ, variable)
    if value is None:
        return None
    boolean = _as_boolean(value)
    if boolean is None:
        warn_once(f"{variable} is {value[:40]!r}, neither true nor false: it is ignored")
    return boolean


def _as_boolean(value: str) -> bool | None:
    return {"true": True, "1": True, "false": False, "0": False}.get(value.lower())
