"""An exporter for Zerobus, Databricks' ingestion service, which writes to tables of Unity Catalog directly.

Its endpoint, and how tables are created: https://docs.databricks.com/aws/en/ingestion/opentelemetry/configure. If no
endpoint is given, it is derived from the cloud and region of the workspace's metastore, as described there.
"""

from __future__ import annotations

import ipaddress
import math
import re
import time
from collections.abc import Mapping
from typing import ClassVar

import trio

from .._arguments import checked_bool
from .._exporter import ExportResult, Refused, TryLater
from .._http.attempt import Attempt
from .._http.auth import AuthError
from .._http.exporter import OTLPExporter
from .._http.failures import cause_of
from .._http.responses import retry_after
from .._http.sender import AsyncClient, AsyncTransport
from .._settings.header_checks import check_endpoint, has_header
from .._spans.batch import SpanBatch
from .databricks_auth import WORKSPACE_HEADER, DatabricksAuth, MakeConfig
from .shared_fetch import SharedFetch
from .tables import Options, TableExporter, checked_workspace, databricks_auth, given_url
from .zerobus_auth import Answer, TableTokens, Workspace

LOCATION_HEADER = "x-databricks-zerobus-table-name"
TRACES_PATH = "/v1/traces"

_GIVE_ENDPOINT = "set ZEROBUS_ENDPOINT, or give the endpoint"

_SUMMARY_PATH = "/api/2.1/unity-catalog/metastore_summary"

# A server's response cannot cause a token to be sent to a host outside these domains.
_DOMAINS = {"aws": "cloud.databricks.com", "azure": "azuredatabricks.net", "gcp": "gcp.databricks.com"}
_LABEL = re.compile("[0-9a-z](?:[0-9a-z-]{0,61}[0-9a-z])?")


def zerobus(
    host: str | None = None,
    *,
    endpoint: str | None = None,
    make_config: MakeConfig | None = None,
    decode_json_attributes: bool = False,
    headers: Mapping[str, str] | None = None,
    timeout: float = 20.0,
    compression: str | None = None,
    client: AsyncClient | None = None,
    transport: AsyncTransport | None = None,
) -> OTLPExporter:
    """Return an exporter that sends to tables of Unity Catalog through Zerobus; a location is a table.

    This needs the extra ``databricks`` and a service principal: ``DATABRICKS_CLIENT_ID`` and
    ``DATABRICKS_CLIENT_SECRET``, or a profile with both. There is one token per table, which only allows writing to
    that table. Tokens are fetched when they are needed, cached, replaced before they expire, and replaced once when
    Zerobus answers 401. Any 5xx is retried, as is 429.

    Args:
        host: The workspace, e.g. ``https://dbc-a1b2c3d4-e5f6.cloud.databricks.com``; by default ``DATABRICKS_HOST``.
        endpoint: Zerobus' endpoint, e.g. ``https://1234567890123456.zerobus.us-west-2.cloud.databricks.com``; by
            default ``ZEROBUS_ENDPOINT``. Without either, it is looked up in the workspace when the first batch is
            sent, and is then always a host in one of Databricks' three domains.
        make_config: As for `unity_catalog`.
        decode_json_attributes: As for `unity_catalog`.
        headers: Headers for every request with spans, without ``Authorization``.
        timeout: Seconds for a whole attempt. The first includes databricks-sdk's import, the endpoint and a token.
        compression: ``"gzip"``, or ``None`` for none.
        client: As for `OTLPExporter`. Tokens are fetched with it too.
        transport: As for `OTLPExporter`. Tokens are fetched with it too.

    Raises:
        ModuleNotFoundError: databricks-sdk is not installed.
        ValueError: There is no host, or it or the endpoint has more parts than a host; the endpoint is not https
            (http is allowed for this machine, or with ``client`` or ``transport``); ``headers`` has ``Authorization``;
            or as for `OTLPExporter`.
    """
    workspace = checked_workspace(host, headers)
    auth = databricks_auth(make_config, workspace)
    options = Options(headers=headers, timeout=timeout, compression=compression, client=client, transport=transport)
    return ZerobusExporter(workspace, auth, endpoint, decode_json_attributes, options)


class ZerobusExporter(TableExporter):
    """Sends to tables through an `EndpointExporter` for Zerobus, after asking the workspace for the endpoint."""

    _zerobus: Zerobus

    def __init__(
        self, workspace: str, auth: DatabricksAuth, endpoint: str | None, decodes: bool, options: Options
    ) -> None:
        super().__init__(workspace, **options)
        self._decodes = checked_bool("decode_json_attributes", decodes)
        self._zerobus = Zerobus(workspace, self, auth, endpoint, options)

    @property
    def endpoint(self) -> str:
        """The URL that is sent to; the workspace, until the endpoint has been looked up."""
        found = self._zerobus.exporter
        return super().endpoint if found is None else found.endpoint

    async def _send(self, batch: SpanBatch, sent: SpanBatch, seconds: float) -> ExportResult:
        began = trio.current_time()
        exporter = None
        with trio.move_on_after(seconds):
            try:
                exporter = await self._zerobus.find()
            except AuthError as error:
                cause = cause_of(error)
                return TryLater(error.reason, cause=cause) if error.retry else Refused(error.reason, cause=cause)
        if exporter is None:
            reason = f"no endpoint of Zerobus within {seconds:g} s: {self.endpoint} did not answer"
            return TryLater(reason, cause="timeout")
        return await exporter._send(batch, sent, max(seconds - (trio.current_time() - began), 0.0))

    def __repr__(self) -> str:
        return f"<ZerobusExporter for {self.endpoint}>"


class EndpointExporter(TableExporter):
    """Sends to a known endpoint of Zerobus."""

    _advice: ClassVar = {
        401: "Zerobus does not accept this token, not even a fresh one: is it the endpoint of this workspace?",
        403: "the service principal needs USE CATALOG, USE SCHEMA, SELECT and MODIFY for the table",
        404: "is it the endpoint of Zerobus, <workspace id>.zerobus.<region>.<domain>?",
    }

    async def _exchange(
        self, location: str, body: bytes, credentials: Mapping[str, str], attempt: Attempt
    ) -> ExportResult:
        return _retried(await super()._exchange(location, body, credentials, attempt), attempt)

    def _timed_out(self, attempt: Attempt, seconds: float) -> ExportResult:
        return _retried(super()._timed_out(attempt, seconds), attempt)


def _retried(result: ExportResult, attempt: Attempt) -> ExportResult:
    """Return `TryLater` for 408 and any 5xx."""
    status = result.status_code
    if not isinstance(result, Refused) or status is None or not (status == 408 or 500 <= status < 600):
        return result
    after = None if attempt.head is None else retry_after(attempt.head[1], now=time.time())
    # 502, 503 and 504 are TryLater already and mean that the request was not processed. Other 5xx do not.
    return TryLater(result.reason, after, ambiguous=status != 408, status_code=status)


class Zerobus(trio.abc.AsyncResource):
    """Looks up Zerobus' endpoint, creates the exporter for it, and holds the tokens for tables.

    The client of ``asking``, an exporter for the workspace, sends the requests to the workspace.
    """

    def __init__(
        self, workspace: str, asking: OTLPExporter, auth: DatabricksAuth, endpoint: str | None, options: Options
    ) -> None:
        self._auth = auth
        self._workspace = Workspace(workspace, asking)
        self.tokens: TableTokens = TableTokens(self._workspace, auth)
        # A transport is used by one client only, which closes it.
        one_client = options["transport"] is not None or options["client"] is not None
        client = asking._sender if one_client else None
        if has_header(options["headers"], LOCATION_HEADER):
            # Without an endpoint, the exporter that would refuse it is created later.
            raise ValueError(f"location_header {LOCATION_HEADER!r} is also among headers")
        self._options: Options = {**options, "client": client, "transport": None}
        self._found = SharedFetch(self._find)
        url = zerobus_url(endpoint, may_be_http=one_client)
        # The exporter for the endpoint; None until the endpoint is known.
        self.exporter: EndpointExporter | None = None if url is None else self._exporter_for(url)

    async def find(self) -> EndpointExporter:
        """Return the exporter that sends to Zerobus, or raise `AuthError` if its endpoint is not known.

        ``retry`` says whether that may change, the reason whether credentials or the endpoint is missing.
        """
        if self.exporter is None:
            self.exporter = await self._found.get()
        return self.exporter

    async def ready(self) -> EndpointExporter:
        """Return the exporter that sends to Zerobus, as `find`; raise `AuthError` if there is no service principal."""
        await self._auth.service_principal()
        return await self.find()

    async def aclose(self) -> None:
        """Close the exporter."""
        if self.exporter is not None:
            await self.exporter.aclose()

    def _exporter_for(self, url: str) -> EndpointExporter:
        return EndpointExporter(url, location_header=LOCATION_HEADER, auth=self.tokens, **self._options)

    async def _find(self) -> tuple[EndpointExporter, float]:
        missing = "credentials"
        try:
            workspace_id = (await self._auth.service_principal()).workspace_id
            await self._auth.headers("")
            missing = "endpoint of Zerobus"
            return await self._look_up(workspace_id), math.inf
        except AuthError as error:
            raise AuthError(f"no {missing}: {error.reason}", retry=error.retry) from None

    async def _look_up(self, workspace_id: str) -> EndpointExporter:
        answer = await self._metastore_summary(workspace_id)
        if answer.status != 200:
            raise AuthError(
                f"{self._workspace.url} answered {answer.status} to the request for its metastore; {_GIVE_ENDPOINT}",
                retry=answer.may_change,
            )
        found = _host_in(answer, workspace_id, staging=".staging." in self._workspace.url)
        if found is None:
            raise AuthError(
                f"the cloud and region in the metastore summary of {self._workspace.url} are not those of a Zerobus "
                f"host; {_GIVE_ENDPOINT}",
                retry=False,
            )
        try:
            return self._exporter_for(f"https://{found}{TRACES_PATH}")
        except ValueError as error:
            # The proxy that a variable names for this host cannot be used.
            raise AuthError(str(error), retry=False) from None

    async def _metastore_summary(self, workspace_id: str, *, again: bool = False) -> Answer:
        headers = await self._auth.headers("")
        answer = await self._workspace.ask("GET", _SUMMARY_PATH, {**headers, WORKSPACE_HEADER: workspace_id})
        if answer.status != 401 or again:
            return answer
        self._auth.invalidate("", headers)
        return await self._metastore_summary(workspace_id, again=True)


def _host_in(summary: Answer, workspace_id: str, *, staging: bool) -> str | None:
    """Return the host of Zerobus for a metastore; None if it would not be in a known domain."""
    # A global id is <cloud>:<region>:<id>.
    cloud, _, rest = summary.text("global_metastore_id").partition(":")
    domain = _DOMAINS.get((summary.text("cloud") or cloud).lower())
    region = (summary.text("region") or rest.partition(":")[0]).lower()
    # Neither may contain a dot, or a character that ends a host name.
    if domain is None or not _LABEL.fullmatch(region) or not _LABEL.fullmatch(workspace_id.lower()):
        return None
    return f"{workspace_id.lower()}.zerobus.{region}.{'staging.' if staging else ''}{domain}"


def zerobus_url(endpoint: str | None, *, may_be_http: bool) -> str | None:
    """Return the URL for spans at ``endpoint`` or ``ZEROBUS_ENDPOINT``; None if neither is given."""
    instead = "DATABRICKS_CLIENT_ID and DATABRICKS_CLIENT_SECRET"
    given, name = given_url(endpoint, "endpoint", "ZEROBUS_ENDPOINT", instead)
    if not given and endpoint is None:
        return None
    address, *rest = re.split("[?#]", given, maxsplit=1)
    url = check_endpoint(address if "://" in address else f"https://{address}", name)
    shown = f"{url.scheme}://{url.netloc.decode('ascii')}"
    if rest or url.path.rstrip("/") not in ("", TRACES_PATH):
        raise ValueError(f"{name} must be a host alone, as in {shown}; remove the rest (not shown)")
    if url.scheme != "https" and not may_be_http and not _is_this_machine(url.host):
        raise ValueError(f"{name} {shown} must begin with https://, because tokens are sent there")
    return shown + TRACES_PATH


def _is_this_machine(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
