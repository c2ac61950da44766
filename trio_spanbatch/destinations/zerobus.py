"""Zerobus: Databricks' ingestion service, which writes to tables of Unity Catalog by itself.

https://docs.databricks.com/aws/en/ingestion/opentelemetry/configure has its endpoint, and how tables are made. Where
no endpoint is given it is made from what the workspace says of its metastore, as the page does by hand.
"""

from __future__ import annotations

import ipaddress
import math
import os
import re
from collections.abc import Mapping
from typing import ClassVar

import trio

from .._exporter import ExportResult, Refused, TryLater
from .._http.auth import AuthError
from .._http.client import AsyncClient, AsyncTransport
from .._http.exporter import OTLPExporter
from .._http.failures import cause_of
from .._settings.header_checks import check_endpoint
from .._spans.batch import SpanBatch
from .databricks_auth import WORKSPACE_HEADER, DatabricksAuth, MakeConfig
from .databricks_questions import Answer, Workspace
from .shared_fetch import SharedFetch
from .tables import Options, TableExporter, checked_workspace, default_config
from .zerobus_auth import TableTokens

__all__ = ["LOCATION_HEADER", "TRACES_PATH", "EndpointExporter", "Zerobus", "ZerobusExporter", "zerobus", "zerobus_url"]

LOCATION_HEADER = "x-databricks-zerobus-table-name"
TRACES_PATH = "/v1/traces"

_SUMMARY_PATH = "/api/2.1/unity-catalog/metastore_summary"

# A token is sent to no host outside of these domains because a server says so.
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

    It needs the extra ``databricks``, and a service principal: ``DATABRICKS_CLIENT_ID`` and
    ``DATABRICKS_CLIENT_SECRET``, or a profile with both. Each table has a token of its own, which allows writing to
    it and nothing else. Tokens are fetched when they are needed, kept, replaced before they end, and replaced once
    when Zerobus answers 401. Any 5xx is repeated, as 429 is.

    Args:
        host: The workspace, e.g. ``https://dbc-a1b2c3d4-e5f6.cloud.databricks.com``; by default ``DATABRICKS_HOST``.
        endpoint: Zerobus' endpoint, e.g. ``https://1234567890123456.zerobus.us-west-2.cloud.databricks.com``; by
            default ``ZEROBUS_ENDPOINT``. Without either, it is found through the workspace when the first batch is
            sent, and then it is a host of Databricks' three domains.
        make_config: As for `unity_catalog`.
        decode_json_attributes: As for `unity_catalog`.
        headers: Headers for every request with spans, without ``Authorization``.
        timeout: Seconds for a whole attempt. The first one includes databricks-sdk's import, the endpoint and a token.
        compression: ``"gzip"``, or ``None`` for none.
        client: As for `OTLPExporter`. Tokens are fetched with it too.
        transport: As for `OTLPExporter`; the same holds.

    Raises:
        ModuleNotFoundError: databricks-sdk is not installed.
        ValueError: There is no host, or it or the endpoint is more than a host; the endpoint is not https (http is for
            this machine, and for a client or transport of your own); ``headers`` authenticate; or see `OTLPExporter`.
    """
    workspace = checked_workspace(host, headers)
    auth = DatabricksAuth(make_config or default_config(workspace), workspace)
    options = Options(headers=headers, timeout=timeout, compression=compression, client=client, transport=transport)
    return ZerobusExporter(workspace, auth, endpoint, decode_json_attributes, options)


class ZerobusExporter(TableExporter):
    """Sends to tables of Unity Catalog through Zerobus, whose endpoint may have to be found first.

    Its own client is used to ask the workspace. Spans are sent by an `EndpointExporter`.
    """

    _advice: ClassVar = {}

    def __init__(
        self, workspace: str, auth: DatabricksAuth, endpoint: str | None, decodes: bool, options: Options
    ) -> None:
        super().__init__(workspace, **options)
        self._decodes = decodes
        self._zerobus = Zerobus(workspace, self, auth, endpoint, options)

    @property
    def endpoint(self) -> str:
        """The URL that is sent to; the workspace, as long as Zerobus has not been found."""
        found = self._zerobus.exporter
        return super().endpoint if found is None else found.endpoint

    async def _send(self, batch: SpanBatch, sent: SpanBatch, seconds: float) -> ExportResult:
        began = trio.current_time()
        exporter = None
        with trio.move_on_after(seconds):
            try:
                exporter = await self._zerobus.find()
            except AuthError as error:
                reason = f"no endpoint of Zerobus: {error.reason}"
                cause = cause_of(error)
                return TryLater(reason, cause=cause) if error.retry else Refused(reason, cause=cause)
        if exporter is None:
            reason = f"no endpoint of Zerobus within {seconds:g} s: {self.endpoint} does not tell it"
            return TryLater(reason, cause="timeout")
        return await exporter._send(batch, sent, max(seconds - (trio.current_time() - began), 0.0))

    async def aclose(self) -> None:
        """Close the clients and their connections, unless the client was given; see `OTLPExporter`."""
        try:
            await self._zerobus.aclose()
        finally:
            # It closes its own also when it is cancelled, within a second.
            await super().aclose()  # noqa: ASYNC102

    def __repr__(self) -> str:
        return f"<ZerobusExporter for {self.endpoint}>"


class EndpointExporter(TableExporter):
    """Sends to a known endpoint of Zerobus."""

    _advice: ClassVar = {
        401: "Zerobus does not take this token, also not a fresh one: is the endpoint that of the workspace?",
        403: "the service principal needs USE CATALOG, USE SCHEMA, SELECT and MODIFY for the table",
        404: "is the endpoint that of Zerobus, <workspace id>.zerobus.<region>.<domain>?",
    }

    async def _send(self, batch: SpanBatch, sent: SpanBatch, seconds: float) -> ExportResult:
        result = await super()._send(batch, sent, seconds)
        status = result.status_code
        if isinstance(result, Refused) and status is not None and (status == 408 or 500 <= status < 600):
            # 502, 503 and 504 are TryLater already, and say that the request was not processed. Another 5xx does not.
            return TryLater(result.reason, ambiguous=status != 408, status_code=status)
        return result


class Zerobus:
    """Finds Zerobus' endpoint, makes the exporter for it, and has the tokens for tables.

    Args:
        workspace: The workspace, as ``https://...``.
        asking: An exporter for the workspace. Its client is used to ask the workspace.
        auth: Knows the service principal.
        endpoint: As for `zerobus`.
        options: For the exporter that sends to it.

    Attributes:
        exporter: The exporter for the endpoint; None until the endpoint is known.
    """

    def __init__(
        self, workspace: str, asking: OTLPExporter, auth: DatabricksAuth, endpoint: str | None, options: Options
    ) -> None:
        self._auth = auth
        self._workspace = Workspace(workspace, asking)
        self.tokens: TableTokens = TableTokens(self._workspace, auth)
        # A transport has one client, which closes it.
        one_client = options["transport"] is not None or options["client"] is not None
        self._client = asking._client if one_client else None
        self._options = options
        self._found = SharedFetch(self._find)
        url = zerobus_url(endpoint, may_be_http=one_client)
        self.exporter: EndpointExporter | None = None if url is None else self._exporter_for(url)

    async def find(self) -> EndpointExporter:
        """Return the exporter that sends to Zerobus.

        Raises:
            AuthError: The endpoint could not be found; ``retry`` says whether that may change.
        """
        if self.exporter is None:
            self.exporter = await self._found.get()
        return self.exporter

    async def ready(self) -> EndpointExporter:
        """Return the exporter that sends to Zerobus, if there is a service principal.

        Raises:
            AuthError: There is none, or see `find`.
        """
        await self._auth.service_principal()
        return await self.find()

    async def aclose(self) -> None:
        """Close the exporter."""
        if self.exporter is not None:
            await self.exporter.aclose()

    def _exporter_for(self, url: str) -> EndpointExporter:
        return EndpointExporter(
            url,
            location_header=LOCATION_HEADER,
            auth=self.tokens,
            headers=self._options["headers"],
            timeout=self._options["timeout"],
            compression=self._options["compression"],
            client=self._client,
        )

    async def _find(self) -> tuple[EndpointExporter, float]:
        workspace_id = (await self._auth.service_principal()).workspace_id
        answer = await self._ask_for_summary(workspace_id)
        if answer.status != 200:
            raise AuthError(
                f"{self._workspace.url} answered {answer.status} when asked for its metastore; set ZEROBUS_ENDPOINT, "
                "or give the endpoint",
                retry=answer.may_change,
            )
        found = _host_in(answer, workspace_id, staging=".staging." in self._workspace.url)
        if found is None:
            raise AuthError(
                f"what {self._workspace.url} says of its metastore's cloud and region names no host of Zerobus; set "
                "ZEROBUS_ENDPOINT, or give the endpoint",
                retry=False,
            )
        try:
            return self._exporter_for(f"https://{found}{TRACES_PATH}"), math.inf
        except ValueError as error:
            # A variable for proxies that counts for this host.
            raise AuthError(str(error), retry=False) from None

    async def _ask_for_summary(self, workspace_id: str) -> Answer:
        headers = await self._auth.headers("")
        answer = await self._workspace.ask("GET", _SUMMARY_PATH, {**headers, WORKSPACE_HEADER: workspace_id})
        if answer.status != 401:
            return answer
        self._auth.invalidate("", headers)
        headers = await self._auth.headers("")
        return await self._workspace.ask("GET", _SUMMARY_PATH, {**headers, WORKSPACE_HEADER: workspace_id})


def _host_in(summary: Answer, workspace_id: str, *, staging: bool) -> str | None:
    """Return the host of Zerobus for a metastore, or None if there is none that a token may be sent to."""
    # A global id is <cloud>:<region>:<id>.
    cloud, _, rest = summary.text("global_metastore_id").partition(":")
    domain = _DOMAINS.get((summary.text("cloud") or cloud).lower())
    region = (summary.text("region") or rest.partition(":")[0]).lower()
    # Neither can have a dot in it, or what ends the name of a host.
    if domain is None or not _LABEL.fullmatch(region) or not _LABEL.fullmatch(workspace_id.lower()):
        return None
    return f"{workspace_id.lower()}.zerobus.{region}.{'staging.' if staging else ''}{domain}"


def zerobus_url(endpoint: str | None, *, may_be_http: bool) -> str | None:
    """Return the URL to send spans to for an endpoint, or for ``ZEROBUS_ENDPOINT``; None if there is none.

    Args:
        endpoint: As for `zerobus`.
        may_be_http: Whether any endpoint may be http.

    Raises:
        ValueError: It is no endpoint. Credentials in it are not shown.
    """
    given = (os.environ.get("ZEROBUS_ENDPOINT", "") if endpoint is None else endpoint).strip()
    if not given and endpoint is None:
        return None
    url = check_endpoint(given if "://" in given else f"https://{given}")
    shown = f"{url.scheme}://{url.netloc.decode('ascii')}"
    if url.path.rstrip("/") not in ("", TRACES_PATH):
        raise ValueError(f"endpoint must be a host alone, as in {shown}; what follows it (not shown) is too much")
    if url.scheme != "https" and not may_be_http and not _is_this_machine(url.host):
        raise ValueError(f"endpoint {shown} must begin with https://: a token is sent there")
    return shown + TRACES_PATH


def _is_this_machine(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
