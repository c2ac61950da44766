"""What both ways into Unity Catalog share, a workspace and Zerobus: tables, the workspace, advice about failures."""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import Mapping
from typing import ClassVar, TypedDict

import attrs
import trio

from .._errors import InvalidLocationError
from .._exporter import Delivered, ExportResult, Refused
from .._http.client import AsyncClient, AsyncTransport, TLSSettings
from .._http.exporter import OTLPExporter
from .._settings.header_checks import check_endpoint, has_userinfo
from .._spans.batch import SpanBatch
from .databricks_auth import DatabricksAuth, DatabricksConfig, MakeConfig
from .databricks_failures import MISSING_EXTRA
from .json_attributes import decoded

__all__ = [
    "LOCATION_HEADER",
    "TRACES_PATH",
    "Options",
    "TableExporter",
    "UnityCatalogExporter",
    "check_table_name",
    "checked_workspace",
    "default_config",
    "workspace_url",
]

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


class Options(TypedDict):
    """Arguments of `OTLPExporter` that are the user's."""

    headers: Mapping[str, str] | None
    timeout: float
    compression: str | None
    client: AsyncClient | None
    transport: AsyncTransport | None


class TableExporter(OTLPExporter):
    """Sends to tables of Unity Catalog."""

    _tls_settings = TLSSettings((), "a client certificate is given with client=")

    # What to do about a failure, where Databricks' own words do not say that.
    _advice: ClassVar[Mapping[int | None, str]]
    _decodes: bool = False

    def check_location(self, location: str) -> None:
        """Raise `InvalidLocationError` if ``location`` is no three-part name of a table."""
        check_table_name(location)

    async def export(self, batch: SpanBatch) -> ExportResult:
        """Make one attempt at sending ``batch``; see `OTLPExporter`."""
        self._check_open()
        self.check_location(batch.location)
        if not batch.spans:
            await trio.lowlevel.checkpoint()
            return Delivered()
        began = trio.current_time()
        sent = await decoded(batch) if self._decodes else batch
        return await self._send(batch, sent, max(self.timeout - (trio.current_time() - began), 0.0))

    async def _send(self, batch: SpanBatch, sent: SpanBatch, seconds: float) -> ExportResult:
        """Make one attempt at sending ``sent``, which is what became of ``batch``."""
        return self._advised(await self._export_within(sent, seconds))

    def _advised(self, result: ExportResult) -> ExportResult:
        if not isinstance(result, Refused) or result.status_code not in self._advice:
            return result
        advice = self._advice[result.status_code]
        if result.status_code == 404 and _ABOUT_A_NAME.search(result.reason):
            advice = "create the table, or correct its name"
        return attrs.evolve(result, reason=f"{result.reason}; {advice}")


class UnityCatalogExporter(TableExporter):
    """Sends to tables of Unity Catalog through the workspace."""

    _advice: ClassVar = {
        401: "the workspace does not take these credentials, also not fresh ones: are they for this workspace? Where "
        "several have one host, DATABRICKS_WORKSPACE_ID says which one is meant",
        403: "these credentials need USE CATALOG, USE SCHEMA, SELECT and MODIFY for the table",
        404: "is it a Databricks workspace that takes OpenTelemetry (a preview that can be switched on)?",
    }

    def __init__(self, workspace: str, auth: DatabricksAuth, decodes: bool, options: Options) -> None:
        super().__init__(workspace + TRACES_PATH, location_header=LOCATION_HEADER, auth=auth, **options)
        self._decodes = decodes


def checked_workspace(host: str | None, headers: Mapping[str, str] | None) -> str:
    """Return the workspace of an exporter that databricks-sdk authenticates.

    Raises:
        ModuleNotFoundError: databricks-sdk is not installed.
        ValueError: There is no workspace, or ``headers`` authenticate.
    """
    if not _has_sdk():
        raise ModuleNotFoundError(MISSING_EXTRA, name="databricks")
    workspace = workspace_url(host)
    if any(str(name).lower() == "authorization" for name in headers or ()):
        raise ValueError(
            "headers has Authorization (not shown), but databricks-sdk authenticates: give DATABRICKS_TOKEN or "
            "make_config=, or make an OTLPExporter"
        )
    return workspace


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


def default_config(workspace: str) -> MakeConfig:
    """Return the function that makes the ``Config`` of databricks-sdk for ``workspace``."""

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
