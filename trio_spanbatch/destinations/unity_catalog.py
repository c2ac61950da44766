"""Databricks Unity Catalog: a location is a table, and credentials come from databricks-sdk.

https://docs.databricks.com/aws/en/mlflow3/genai/tracing/trace-unity-catalog says how tables are made and who may write
to them.
"""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import Mapping

import attrs

from .._batch import SpanBatch
from .._errors import InvalidLocationError
from .._results import ExportResult, Refused
from ..otlp.clients import AsyncClient, AsyncTransport
from ..otlp.http import OTLPExporter
from ..otlp.http_headers import check_endpoint, has_userinfo
from ..otlp.tls import TLSSettings
from .databricks_auth import DatabricksAuth, DatabricksConfig, MakeConfig
from .databricks_failures import MISSING_EXTRA

__all__ = ["LOCATION_HEADER", "TRACES_PATH", "check_table_name", "unity_catalog", "workspace_url"]

LOCATION_HEADER = "X-Databricks-UC-Table-Name"
TRACES_PATH = "/api/2.0/otel/v1/traces"

# https://docs.databricks.com/aws/en/sql/language-manual/sql-ref-names: names have at most 255 characters, and no
# period, space, slash or control character. What is beyond ASCII cannot be sent in a header. Backquotes are how SQL
# writes a name, not part of it: with and without them, one table would be two locations.
_MAX_NAME_LENGTH = 255
_FORBIDDEN = re.compile(r"[^\x21-\x7e]|[/`]")
_RULE = (
    f"it is <catalog>.<schema>.<table>, each of 1 to {_MAX_NAME_LENGTH} characters of printable ASCII without space, "
    "period, slash and backquote"
)

# What a 404 is about that comes from Unity Catalog, rather than from a server that knows no such path.
_ABOUT_A_NAME = re.compile(r"(?<![a-z])(table|schema|catalog)(?![a-z])", re.IGNORECASE)

# Seconds the SDK may take for one answer about where tokens come from, and in all for repeating a failed question.
# The batcher repeats by itself.
_SDK_HTTP_TIMEOUT = 10
_SDK_RETRY_TIMEOUT = 1


def unity_catalog(
    host: str | None = None,
    *,
    make_config: MakeConfig | None = None,
    headers: Mapping[str, str] | None = None,
    timeout: float = 20.0,
    compression: str | None = None,
    client: AsyncClient | None = None,
    transport: AsyncTransport | None = None,
) -> OTLPExporter:
    """Return an exporter that sends to tables of Unity Catalog; a location is ``<catalog>.<schema>.<table>``.

    It needs the extra ``databricks``. Credentials are those that databricks-sdk finds: ``DATABRICKS_TOKEN``,
    ``DATABRICKS_CLIENT_ID`` and ``DATABRICKS_CLIENT_SECRET``, ``DATABRICKS_CONFIG_PROFILE``, the ways of the clouds.
    They are looked for when the first batch is sent, in a thread; a token is kept, replaced before it ends, and
    replaced once when the server answers 401.

    Args:
        host: The workspace, e.g. ``https://dbc-a1b2c3d4-e5f6.cloud.databricks.com``; by default ``DATABRICKS_HOST``.
        make_config: Makes the ``databricks.sdk.core.Config`` that authenticates, for instance
            ``lambda: Config(profile="production")``. Called in a thread, for the first token and after a 401.
        headers: Headers for every request, without ``Authorization``.
        timeout: Seconds for a whole attempt. The first one includes databricks-sdk's import and its first token.
        compression: ``"gzip"``, or ``None`` for none.
        client: As for `OTLPExporter`.
        transport: As for `OTLPExporter`.

    Raises:
        ModuleNotFoundError: databricks-sdk is not installed.
        ValueError: There is no host, or it is more than a host; ``headers`` authenticate; or see `OTLPExporter`.
    """
    if not _has_sdk():
        raise ModuleNotFoundError(MISSING_EXTRA, name="databricks")
    workspace = workspace_url(host)
    if any(str(name).lower() == "authorization" for name in headers or ()):
        raise ValueError(
            "headers has Authorization (not shown), but databricks-sdk authenticates: give DATABRICKS_TOKEN or "
            "make_config=, or make an OTLPExporter"
        )
    return _UnityCatalogExporter(
        workspace + TRACES_PATH,
        location_header=LOCATION_HEADER,
        headers=headers,
        auth=DatabricksAuth(make_config or _default_config(workspace), workspace),
        timeout=timeout,
        compression=compression,
        client=client,
        transport=transport,
    )


class _UnityCatalogExporter(OTLPExporter):
    _tls_settings = TLSSettings((), "a client certificate is given with client=")

    def check_location(self, location: str) -> None:
        """Raise `InvalidLocationError` if ``location`` is no three-part name of a table."""
        check_table_name(location)

    async def export(self, batch: SpanBatch) -> ExportResult:
        """Make one attempt at sending ``batch``; see `OTLPExporter`."""
        return _advised(await super().export(batch))


def _advised(result: ExportResult) -> ExportResult:
    """Return ``result`` with what to do about it, where Databricks' own words do not say that."""
    if not isinstance(result, Refused):
        return result
    if result.status_code == 401:
        advice = "the workspace does not take these credentials, also not fresh ones: are they for this workspace?"
    elif result.status_code == 403:
        advice = "these credentials need USE CATALOG, USE SCHEMA, SELECT and MODIFY for the table"
    elif result.status_code == 404 and _ABOUT_A_NAME.search(result.reason):
        advice = "create the table, or correct its name"
    elif result.status_code == 404:
        advice = "is it a Databricks workspace that takes OpenTelemetry (a preview that can be switched on)?"
    else:
        return result
    return attrs.evolve(result, reason=f"{result.reason}; {advice}")


def check_table_name(location: str) -> None:
    """Raise `InvalidLocationError` if ``location`` is no ``<catalog>.<schema>.<table>``, or cannot be in a header."""
    problem = _problem(location)
    if problem is not None:
        shown = repr(location if len(location) <= 100 else location[:100] + "…")
        raise InvalidLocationError(f"location {shown} is no table of Unity Catalog: {problem}; {_RULE}")


def workspace_url(host: str | None) -> str:
    """Return ``https://`` and the host of a workspace, or of ``DATABRICKS_HOST`` if ``host`` is ``None``.

    Raises:
        ValueError: There is none, or it is no host. Credentials in it are not shown.
    """
    given = (os.environ.get("DATABRICKS_HOST", "") if host is None else host).strip()
    if not given:
        raise ValueError(
            "no workspace is named: give host=, as in https://dbc-a1b2c3d4-e5f6.cloud.databricks.com, or set "
            "DATABRICKS_HOST"
        )
    if has_userinfo(given):
        raise ValueError(
            "host (not shown) has a user name or password in it; databricks-sdk authenticates, for instance with "
            "DATABRICKS_TOKEN"
        )
    scheme, _, rest = given.partition("://") if "://" in given else ("", "", given)
    authority = re.split(r"[/\\?#]", rest, maxsplit=1)[0]
    workspace = f"{(scheme or 'https').lower()}://{authority.lower()}"
    url = check_endpoint(workspace)
    if rest[len(authority) :].strip("/"):
        raise ValueError(f"host must be a workspace alone, as in {workspace}; what follows it (not shown) is too much")
    # As databricks-sdk writes it.
    return workspace.removesuffix(":443") if url.scheme == "https" else workspace


def _problem(location: str) -> str | None:
    parts = location.split(".")
    found = _FORBIDDEN.search(location)
    if found is not None:
        return f"it has {found[0]!r} in it"
    if len(parts) != 3:
        return f"it has {len(parts)} part{'s' if len(parts) > 1 else ''}"
    if not all(parts):
        return "a part of it is empty"
    longest = max(map(len, parts))
    return f"a part of it has {longest} characters" if longest > _MAX_NAME_LENGTH else None


def _has_sdk() -> bool:
    try:
        return importlib.util.find_spec("databricks.sdk") is not None
    except ModuleNotFoundError:
        return False


def _default_config(workspace: str) -> MakeConfig:
    def make_config() -> DatabricksConfig:
        # Its import takes a second, so it happens here, in the thread.
        from databricks.sdk.core import Config

        return Config(
            host=workspace,
            http_timeout_seconds=_SDK_HTTP_TIMEOUT,
            retry_timeout_seconds=_SDK_RETRY_TIMEOUT,
            # It would fetch tokens in threads of its own, for which Python waits when it ends.
            disable_async_token_refresh=True,
        )

    return make_config
