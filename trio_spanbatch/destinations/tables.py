"""Common parts of the exporters for Unity Catalog through a workspace and through Zerobus."""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import Mapping
from typing import ClassVar, TypedDict

import attrs
import trio

from .._arguments import checked_bool, checked_function
from .._errors import InvalidLocationError
from .._exporter import Delivered, ExportResult, Refused
from .._http.exporter import OTLPExporter
from .._http.sender import AsyncClient, AsyncTransport
from .._http.tls import TLSSettings
from .._settings.header_checks import check_endpoint, checked_str, has_header, has_userinfo
from .._spans.batch import SpanBatch
from .._spans.checks import shown
from .databricks_auth import DatabricksAuth, DatabricksConfig, MakeConfig
from .databricks_failures import MISSING_EXTRA
from .json_attributes import decoded

LOCATION_HEADER = "X-Databricks-UC-Table-Name"

TRACES_PATH = "/api/2.0/otel/v1/traces"

# https://docs.databricks.com/aws/en/sql/language-manual/sql-ref-names: names have at most 255 characters, and no
# period, space, slash or control character. Characters beyond ASCII cannot be sent in a header. Backquotes are SQL's
# quotes, not part of a name: if they were allowed, one table could be two locations.
_MAX_NAME_LENGTH = 255
_FORBIDDEN = re.compile(r"[^\x21-\x7e]|[/`]")
_RULE = (
    f"it must be <catalog>.<schema>.<table>, each of 1 to {_MAX_NAME_LENGTH} characters of printable ASCII, without "
    "spaces, periods, slashes and backquotes"
)

# Found in a 404 of Unity Catalog, but not in that of a server that does not know the path.
_ABOUT_A_NAME = re.compile(r"(?<![a-z])(table|schema|catalog)(?![a-z])", re.IGNORECASE)

# Seconds the SDK may take for one request for the token endpoint, and altogether for repeating a failed request.
# The batcher itself repeats attempts.
_SDK_HTTP_TIMEOUT = 10
_SDK_RETRY_TIMEOUT = 1


class Options(TypedDict):
    """The user's arguments for `OTLPExporter`."""

    headers: Mapping[str, str] | None
    timeout: float
    compression: str | None
    client: AsyncClient | None
    transport: AsyncTransport | None


class TableExporter(OTLPExporter):
    """Sends to tables of Unity Catalog."""

    _tls_settings = TLSSettings((), "a client certificate is given with client=")

    # Remedies by status code, which Databricks' messages do not name.
    _advice: ClassVar[Mapping[int | None, str]]
    # Whether attributes that are JSON are decoded.
    _decodes: bool = False
    # Closed together with this exporter.
    _zerobus: trio.abc.AsyncResource | None = None

    def check_location(self, location: str) -> None:
        """Raise `InvalidLocationError` if ``location`` is not the three-part name of a table."""
        check_table_name(location)

    async def export(self, batch: SpanBatch) -> ExportResult:
        """Make one attempt at sending ``batch``; see `OTLPExporter`."""
        self._check_open()
        self.check_location(batch.location)
        if not batch.size:
            await trio.lowlevel.checkpoint()
            return Delivered()
        began = trio.current_time()
        sent = await decoded(batch) if self._decodes else batch
        return await self._send(batch, sent, max(self.timeout - (trio.current_time() - began), 0.0))

    async def aclose(self) -> None:
        """Close the clients and their connections, unless the client was given; see `OTLPExporter`."""
        try:
            if self._zerobus is not None:
                await self._zerobus.aclose()
        finally:
            # Even when cancelled, this closes its client, within a second.
            await super().aclose()  # noqa: ASYNC102  # see above

    async def _send(self, batch: SpanBatch, sent: SpanBatch, seconds: float) -> ExportResult:
        """Make one attempt at sending ``sent``, which is ``batch`` or its decoded form."""
        result = await self._export_within(sent, seconds)
        if not isinstance(result, Refused) or result.status_code not in self._advice:
            return result
        advice = self._advice[result.status_code]
        if result.status_code == 404 and _ABOUT_A_NAME.search(result.reason):
            advice = "create the table, or correct its name"
        return attrs.evolve(result, reason=f"{result.reason}; {advice}")


class UnityCatalogExporter(TableExporter):
    """Sends to tables of Unity Catalog through the workspace."""

    _advice: ClassVar = {
        401: "the workspace does not accept these credentials, not even fresh ones: are they for this workspace? If "
        "several workspaces share one host, set DATABRICKS_WORKSPACE_ID",
        403: "these credentials need USE CATALOG, USE SCHEMA, SELECT and MODIFY for the table",
        404: "is it a Databricks workspace with OpenTelemetry enabled (a preview)?",
    }

    def __init__(self, workspace: str, auth: DatabricksAuth, decodes: bool, options: Options) -> None:
        super().__init__(workspace + TRACES_PATH, location_header=LOCATION_HEADER, auth=auth, **options)
        self._decodes = checked_bool("decode_json_attributes", decodes)


def check_table_name(location: str) -> None:
    """Raise `InvalidLocationError` unless ``location`` is ``<catalog>.<schema>.<table>`` and can be in a header."""
    parts = location.split(".")
    forbidden = _FORBIDDEN.search(location)
    longest = max(map(len, parts))
    if forbidden is not None:
        problem = f"it contains {forbidden[0]!r}"
    elif len(parts) != 3:
        problem = f"it has {len(parts)} part{'s' if len(parts) > 1 else ''}"
    elif not all(parts):
        problem = "a part of it is empty"
    elif longest > _MAX_NAME_LENGTH:
        problem = f"a part of it has {longest} characters"
    else:
        return
    raise InvalidLocationError(f"location {shown(location)} is not a table of Unity Catalog: {problem}; {_RULE}")


def checked_workspace(host: str | None, headers: Mapping[str, str] | None) -> str:
    """Return ``https://`` and the host of a workspace (as users write it), by default ``DATABRICKS_HOST``.

    Without databricks-sdk this raises `ModuleNotFoundError`. It raises `ValueError`, which shows no credentials, if
    there is no workspace, if it is not a host, or if ``headers`` has ``Authorization``.
    """
    try:
        has_sdk = importlib.util.find_spec("databricks.sdk") is not None
    except ModuleNotFoundError:
        has_sdk = False
    if not has_sdk:
        raise ModuleNotFoundError(MISSING_EXTRA, name="databricks")
    if has_header(headers, "authorization"):
        raise ValueError(
            "headers has Authorization (not shown), but databricks-sdk authenticates: set DATABRICKS_TOKEN, give "
            "make_config=, or use OTLPExporter"
        )
    given, name = given_url(host, "host", "DATABRICKS_HOST", "DATABRICKS_TOKEN, for instance")
    if not given:
        raise ValueError(
            "there is no workspace: give host=, as in https://dbc-a1b2c3d4-e5f6.cloud.databricks.com, or set "
            "DATABRICKS_HOST"
        )
    scheme, _, rest = given.partition("://") if "://" in given else ("", "", given)
    authority = re.split(r"[/\\?#]", rest, maxsplit=1)[0]
    workspace = f"{(scheme or 'https').lower()}://{authority.lower()}"
    url = check_endpoint(workspace, name)
    if rest[len(authority) :].strip("/"):
        raise ValueError(f"{name} must be a workspace alone, as in {workspace}; remove the rest (not shown)")
    # The form that databricks-sdk uses.
    return workspace.removesuffix(":443") if url.scheme == "https" else workspace


def given_url(value: str | None, name: str, variable: str, instead: str) -> tuple[str, str]:
    """Return the URL in an argument or, if that is None, in a variable; and the name of that argument or variable.

    Raise `ValueError`, which asks for the variables ``instead``, if the URL may contain a user name or password.
    """
    if value is None:
        value, name = os.environ.get(variable, ""), variable
    given = checked_str(value, name).strip()
    if has_userinfo(given):
        raise ValueError(
            f"{name} (not shown) contains a user name or password; databricks-sdk authenticates: remove it, and set "
            f"{instead}"
        )
    return given, name


def databricks_auth(make_config: MakeConfig | None, workspace: str, *, names_workspace: bool = True) -> DatabricksAuth:
    """Return what authenticates with ``make_config``, by default with databricks-sdk's ``Config``."""

    def default_config() -> DatabricksConfig:
        # Imported here, in the thread, because the import takes a second.
        from databricks.sdk.core import Config

        return Config(
            host=workspace,
            http_timeout_seconds=_SDK_HTTP_TIMEOUT,
            retry_timeout_seconds=_SDK_RETRY_TIMEOUT,
            # Otherwise the SDK starts threads to fetch tokens, and Python waits for them at exit.
            disable_async_token_refresh=True,
        )

    make_config = checked_function("make_config", make_config) or default_config
    return DatabricksAuth(make_config, workspace, names_workspace=names_workspace)
