"""An exporter for Databricks Unity Catalog, where a location is a table and databricks-sdk finds the credentials.

How tables are created and who may write to them:
https://docs.databricks.com/aws/en/mlflow3/genai/tracing/trace-unity-catalog.
"""

from __future__ import annotations

from collections.abc import Mapping

from .._arguments import checked_bool
from .._http.exporter import OTLPExporter
from .._http.sender import AsyncClient, AsyncTransport
from .._settings.header_checks import has_header
from .databricks_auth import WORKSPACE_HEADER, MakeConfig
from .tables import Options, UnityCatalogExporter, checked_workspace, databricks_auth
from .zerobus_fallback import ZerobusFirst

# Headers that name the workspace; the second is the older name of the first.
_WORKSPACE_HEADERS = (WORKSPACE_HEADER.lower(), "x-databricks-org-id")


def unity_catalog(
    host: str | None = None,
    *,
    prefer_zerobus: bool = False,
    make_config: MakeConfig | None = None,
    decode_json_attributes: bool = False,
    headers: Mapping[str, str] | None = None,
    timeout: float = 20.0,
    compression: str | None = None,
    client: AsyncClient | None = None,
    transport: AsyncTransport | None = None,
) -> OTLPExporter:
    """Return an exporter that sends to tables of Unity Catalog; a location is ``<catalog>.<schema>.<table>``.

    This needs the extra ``databricks``. databricks-sdk finds the credentials: ``DATABRICKS_TOKEN``,
    ``DATABRICKS_CLIENT_ID`` and ``DATABRICKS_CLIENT_SECRET``, ``DATABRICKS_CONFIG_PROFILE``, or those that a cloud
    provides. It looks for them in a thread when the first batch is sent. A token is cached, replaced before it expires,
    and replaced once when the server answers 401. Requests carry the workspace's id, if databricks-sdk knows it and
    ``headers`` has none.

    Args:
        host: The workspace, e.g. ``https://dbc-a1b2c3d4-e5f6.cloud.databricks.com``; by default ``DATABRICKS_HOST``.
        prefer_zerobus: Whether to send through Zerobus first, as `zerobus` does, and fall back to the workspace: for
            a single batch if Zerobus answers 408, 413 or 429 or there is no token, and for everything during the next
            hour if Zerobus answers any other 4xx, cannot be reached, or rejects all spans of a batch. A batch whose
            outcome at Zerobus is unknown is counted as ambiguous and repeated through the workspace.
        make_config: Makes the ``databricks.sdk.core.Config`` that authenticates, for instance
            ``lambda: Config(profile="production")``. Called in a thread, for the first token and after a 401.
        decode_json_attributes: Whether to decode span attributes whose values are JSON, which is how MLflow stores
            them.
        headers: Headers for every request, without ``Authorization``.
        timeout: Seconds for a whole attempt, the fallback included. The first attempt includes databricks-sdk's
            import and its first token.
        compression: ``"gzip"``, or ``None`` for none.
        client: As for `OTLPExporter`. With ``prefer_zerobus``, tokens are fetched with it too.
        transport: As for `OTLPExporter`. With ``prefer_zerobus``, tokens are fetched with it too.

    Raises:
        ModuleNotFoundError: databricks-sdk is not installed.
        ValueError: There is no host, or it has more parts than a host; ``headers`` has ``Authorization``; or as for
            `OTLPExporter`.
    """
    workspace = checked_workspace(host, headers)
    names_workspace = not has_header(headers, *_WORKSPACE_HEADERS)
    auth = databricks_auth(make_config, workspace, names_workspace=names_workspace)
    options = Options(headers=headers, timeout=timeout, compression=compression, client=client, transport=transport)
    if not checked_bool("prefer_zerobus", prefer_zerobus):
        return UnityCatalogExporter(workspace, auth, decode_json_attributes, options)
    return ZerobusFirst(workspace, auth, decode_json_attributes, options)
