"""An exporter for MLflow's tracking server, where a location is an experiment."""

from __future__ import annotations

import base64
import logging
import os
import re
import unicodedata
from collections.abc import Mapping
from typing import Any, Literal

import attrs

from .._errors import InvalidLocationError
from .._exporter import ExportResult, Refused
from .._http.exporter import OTLPExporter
from .._http.sender import AsyncClient, AsyncTransport
from .._http.tls import File, TLSSettings
from .._settings.header_checks import checked_environ, checked_headers, checked_str, has_header, has_userinfo
from .._spans.batch import SpanBatch
from .._spans.checks import shown
from ._experiments import NO_EXPERIMENT, ExperimentNames, Found, check_experiment_name, is_experiment_id
from ._mlflow_variables import tls_variables, warn_of_credentials_file, warn_of_ignored_variables, workspace

EXPERIMENT_HEADER = "x-mlflow-experiment-id"
RUN_HEADER = "x-mlflow-run-id"
WORKSPACE_HEADER = "x-mlflow-workspace"

# The location of the experiment that an argument or a variable names.
DEFAULT_LOCATION = "default"

# Seconds. On SQLite, MLflow takes about 5 s for 1,000 spans and 14 s for 8 concurrent requests of 512. If attempts
# ended after 10 s, MLflow would store everything several times, more and more slowly.
TIMEOUT = 60.0

_TOKEN = re.compile(r"[\x21-\x7e]+")
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*")

_logger = logging.getLogger("trio_spanbatch")


def mlflow(
    tracking_uri: str | None = None,
    *,
    experiments: Literal["id", "name"] = "id",
    experiment_id: str | None = None,
    run_id: str | None = None,
    username: str | None = None,
    password: str | None = None,
    token: str | None = None,
    headers: Mapping[str, str] | None = None,
    timeout: float = TIMEOUT,
    compression: str | None = "gzip",
    client: AsyncClient | None = None,
    transport: AsyncTransport | None = None,
    certificate: File | None = None,
    client_certificate: File | None = None,
    client_key: File | None = None,
    environ: Mapping[str, str] | None = None,
) -> OTLPExporter:
    """Return an exporter that sends to an MLflow tracking server. A location is an experiment.

    With ``experiments="id"``, a location is an experiment's id, for instance ``"3"``; ``"default"`` stands for the
    one that ``experiment_id`` or ``MLFLOW_EXPERIMENT_ID`` names. With ``experiments="name"``, every location is an
    experiment's name. Its id is looked up with the first batch and then cached for five minutes. Batches for an
    experiment that does not exist are refused; experiments are never created. MLflow accepts traces for a deleted
    experiment but does not show them: with names, they are refused once the name has been looked up again.

    All spans of a trace belong in one experiment: MLflow stores the whole trace where its first span went.

    An attempt may take 60 seconds. If you give the batcher a `RetryPolicy`, its ``attempt_timeout`` must allow as much.

    Args:
        tracking_uri: The URL of MLflow, by default ``MLFLOW_TRACKING_URI``: http or https, with the path that MLflow
            is served under, if any. It must not contain credentials.
        experiments: Whether a location is an experiment's ``"id"`` or its ``"name"``.
        experiment_id: The experiment that the location ``"default"`` stands for, by default
            ``MLFLOW_EXPERIMENT_ID``; for ``experiments="id"`` only.
        run_id: The MLflow run that the traces are linked to.
        username: For Basic authentication, by default ``MLFLOW_TRACKING_USERNAME``.
        password: For Basic authentication, by default ``MLFLOW_TRACKING_PASSWORD``.
        token: For Bearer authentication, by default ``MLFLOW_TRACKING_TOKEN``. A token, and a user name with a
            password, are mutually exclusive; if arguments give one, the variables for the other are ignored.
        headers: Headers for every request, the lookup of names included, for instance for a gateway in front of
            MLflow. They take precedence over variables: ``Authorization`` over those for credentials,
            ``X-MLFLOW-WORKSPACE`` over ``MLFLOW_WORKSPACE``.
        timeout: Seconds for a whole attempt, and the same again for the lookup of a name.
        compression: ``"gzip"``, or ``None`` for none.
        client: As for `OTLPExporter`.
        transport: As for `OTLPExporter`.
        certificate: As for `OTLPExporter`, by default ``MLFLOW_TRACKING_SERVER_CERT_PATH``. If
            ``MLFLOW_TRACKING_INSECURE_TLS`` is true instead, the server's certificate is not verified.
        client_certificate: As for `OTLPExporter`, by default ``MLFLOW_TRACKING_CLIENT_CERT_PATH``.
        client_key: As for `OTLPExporter`.
        environ: The environment variables, by default those of the process. An empty variable counts as unset.

    Raises:
        ValueError: There is no tracking URI, or an argument or variable is invalid. The message never contains
            credentials.
        TypeError: An argument is of the wrong type.
    """
    environ = checked_environ(environ)
    if experiments not in ("id", "name"):
        raise ValueError(f"experiments is {experiments!r}; it must be 'id' or 'name'")
    if experiments == "name" and experiment_id is not None:
        raise ValueError("experiment_id cannot be given with experiments='name', where every location is a name")
    headers = checked_headers(headers)
    warn_of_ignored_variables(environ, authenticated=client is not None or has_header(headers, "authorization"))
    root = _tracking_root(tracking_uri, environ)
    tls: dict[str, Any] = {
        "certificate": certificate,
        "client_certificate": client_certificate,
        "client_key": client_key,
    }
    verify = True
    # Where TLS files are not used, those that variables name may be missing.
    if client is None and transport is None and root.lower().startswith("https:"):
        files, verify = tls_variables(
            environ, server=certificate is None, client=client_certificate is None and client_key is None
        )
        tls.update(files)
    return _MLflowExporter(
        root,
        by_name=experiments == "name",
        default=_default_experiment(experiment_id, environ) if experiments == "id" else None,
        verify=verify,
        location_header=EXPERIMENT_HEADER,
        headers=_all_headers(headers, run_id, username, password, token, environ),
        timeout=timeout,
        compression=compression,
        client=client,
        transport=transport,
        **tls,
    )


class _MLflowExporter(OTLPExporter):
    """An `OTLPExporter` that translates locations to ids of experiments: ``"default"`` to ``default``, or names."""

    _tls_settings = TLSSettings(
        ("MLFLOW_TRACKING_SERVER_CERT_PATH", "certificate="),
        "MLFLOW_TRACKING_CLIENT_CERT_PATH or client_certificate= and client_key= name its files",
    )

    def __init__(self, root: str, *, by_name: bool, default: str | None, verify: bool, **options: Any) -> None:
        self._verify = verify
        super().__init__(f"{root}/v1/traces", **options)
        self._default = default
        self._names: ExperimentNames | None = None
        if by_name:
            headers = {name: value for name, value in self._headers.items() if name != RUN_HEADER.encode("ascii")}
            agent = {b"user-agent": self._headers_always[b"user-agent"], b"accept-encoding": b"gzip, deflate"}
            self._names = ExperimentNames(root, self, {**agent, **headers})

    def check_location(self, location: str) -> None:
        """Raise `InvalidLocationError` if ``location`` is not an id, or a name, of an experiment."""
        if self._names is not None:
            check_experiment_name(location)
        elif location == DEFAULT_LOCATION:
            if self._default is None:
                raise InvalidLocationError(
                    f"location {DEFAULT_LOCATION!r} has no experiment: set MLFLOW_EXPERIMENT_ID, give "
                    "experiment_id=, or use an experiment's id as the location"
                )
        elif not is_experiment_id(location):
            raise InvalidLocationError(
                f"location {shown(location)} is not an MLflow experiment's id, a whole number such as '3'; to "
                "use names, give experiments='name'"
            )

    async def export(self, batch: SpanBatch) -> ExportResult:
        """Make one attempt at sending ``batch``, after looking up its experiment if its id is not cached."""
        self._check_open()
        self.check_location(batch.location)
        experiment: Found = batch.location
        if self._names is not None:
            experiment = await self._names.get(batch.location)
        elif self._default is not None and batch.location == DEFAULT_LOCATION:
            experiment = self._default
        if not isinstance(experiment, str):
            return _advised(experiment)
        result = await super().export(SpanBatch(experiment, batch.spans, size=batch.size))
        if self._names is not None and isinstance(result, Refused) and result.status_code == 404:
            self._names.forget(batch.location)
        return _advised(result)


def _advised(result: ExportResult) -> ExportResult:
    """Append the remedy to the reason of ``result`` if MLflow's message does not name it."""
    if not isinstance(result, Refused):
        return result
    if result.status_code == 401:
        advice = "give the right username and password, or token (MLFLOW_TRACKING_USERNAME, _PASSWORD, _TOKEN)"
    elif result.status_code == 404 and "No Experiment" in result.reason:
        advice = "create it, or correct the location"
    elif result.status_code == 404 and NO_EXPERIMENT not in result.reason and "no experiment" not in result.reason:
        advice = "does the tracking URI lead to MLflow?"
    else:
        return result
    return attrs.evolve(result, reason=f"{result.reason}; {advice}")


def _tracking_root(argument: str | None, environ: Mapping[str, str]) -> str:
    name = "tracking_uri" if argument is not None else "MLFLOW_TRACKING_URI"
    uri = checked_str(environ.get(name, "").strip() if argument is None else argument, name)
    if not uri:
        raise ValueError("there is no tracking URI: give tracking_uri= or set MLFLOW_TRACKING_URI")
    scheme, separator, _ = uri.partition("://")
    if not separator or scheme.lower() not in ("http", "https"):
        # Only the scheme is shown: a database's URI may contain a password.
        problem = f"begins with {scheme[:20]!r}" if separator and _SCHEME.fullmatch(scheme) else "has no scheme"
        raise ValueError(
            f"{name} {problem}; it must be the URL of a tracking server, such as http://localhost:5000 (for "
            "Databricks, use unity_catalog; for files or a database, run `mlflow server` with them)"
        )
    if has_userinfo(uri):
        raise ValueError(
            f"{name} contains a user name or password; give them as username= and password=, or as "
            "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
        )
    if "?" in uri or "#" in uri:
        raise ValueError(f"{name} has a query or fragment, which logs would show; remove it")
    return uri.rstrip("/")


def _default_experiment(argument: str | None, environ: Mapping[str, str]) -> str | None:
    if argument is not None:
        if not is_experiment_id(checked_str(argument, "experiment_id")):
            raise ValueError(f"experiment_id is {argument!r}; it must be a whole number as a str, such as '3'")
        return argument
    variable = environ.get("MLFLOW_EXPERIMENT_ID", "").strip()
    if variable and not is_experiment_id(variable):
        _logger.warning("MLFLOW_EXPERIMENT_ID is %r, not a whole number: it is ignored", variable[:40])
        return None
    return variable or None


def _all_headers(
    headers: Mapping[str, str],
    run_id: str | None,
    username: str | None,
    password: str | None,
    token: str | None,
    environ: Mapping[str, str],
) -> dict[str, str]:
    if has_header(headers, EXPERIMENT_HEADER):
        raise ValueError(f"headers has {EXPERIMENT_HEADER}; a batch's location names its experiment: remove the header")
    if run_id is not None and has_header(headers, RUN_HEADER):
        raise ValueError(f"run_id is given, and headers has {RUN_HEADER} as well; give only one")
    authorized = has_header(headers, "authorization")
    if authorized and (username, password, token) != (None, None, None):
        raise ValueError(
            "username, password or token is given, and headers has Authorization as well; give one of them"
        )
    others = {} if authorized else _authorization(username, password, token, environ)
    if run_id is not None:
        others[RUN_HEADER] = checked_str(run_id, "run_id")
    name = None if has_header(headers, WORKSPACE_HEADER) else workspace(environ)
    if name is not None:
        others[WORKSPACE_HEADER] = name
    return {**others, **headers}


def _authorization(
    username: str | None, password: str | None, token: str | None, environ: Mapping[str, str]
) -> dict[str, str]:
    basic_given = username is not None or password is not None
    if basic_given and token is not None:
        raise ValueError("token is given, and username or password as well; give one kind of credentials")
    if token is None:
        username = environ.get("MLFLOW_TRACKING_USERNAME") or None if username is None else username
        password = environ.get("MLFLOW_TRACKING_PASSWORD") or None if password is None else password
        if not basic_given:
            token = environ.get("MLFLOW_TRACKING_TOKEN") or None
            if token is not None and (username is not None or password is not None):
                raise ValueError(
                    "MLFLOW_TRACKING_TOKEN is set, and MLFLOW_TRACKING_USERNAME or _PASSWORD as well; unset one kind "
                    "of credentials"
                )
    if token is not None:
        if not _TOKEN.fullmatch(checked_str(token, "token")):
            raise ValueError("the token (not shown) is empty, or has a space, a line break or a character beyond ASCII")
        return {"Authorization": f"Bearer {token}"}
    if username is None and password is None:
        if environ is os.environ:
            warn_of_credentials_file()
        return {}
    return _basic(username, password)


def _basic(username: str | None, password: str | None) -> dict[str, str]:
    if username is None or password is None:
        given, missing = ("password", "username") if username is None else ("username", "password")
        raise ValueError(
            f"there is a {given}, but no {missing}: give {missing}= or set MLFLOW_TRACKING_{missing.upper()}"
        )
    for name, value in (("username", username), ("password", password)):
        # https://www.rfc-editor.org/rfc/rfc7617#section-2: no control characters, and no colon in the user name.
        if any(unicodedata.category(character) in ("Cc", "Cs") for character in checked_str(value, name)):
            raise ValueError(f"the {name} (not shown) has a line break or another control character")
    if not username or ":" in username:
        raise ValueError("the username (not shown) is empty or has a colon")
    credentials = base64.b64encode(f"{username}:{password}".encode()).decode("ascii")
    return {"Authorization": f"Basic {credentials}"}
