"""Databricks Unity Catalog: a location is a table, and credentials come from databricks-sdk.

https://docs.databricks.com/aws/en/mlflow3/genai/tracing/trace-unity-catalog says how tables are made and who may write
to them.
"""

from __future__ import annotations

from collections.abc import Mapping

from .._http.client import AsyncClient, AsyncTransport
from .._http.exporter import OTLPExporter
from .databricks_auth import WORKSPACE_HEADER, DatabricksAuth, MakeConfig
from .tables import Options, UnityCatalogExporter, check_table_name, checked_workspace, default_config
from .zerobus_fallback import ZerobusFirst

__all__ = ["check_table_name", "unity_catalog"]

# These name the workspace; the second is the name that the first had before.
_NAMES_OF_WORKSPACE = (WORKSPACE_HEADER.lower(), "x-databricks-org-id")


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

    It needs the extra ``databricks``. Credentials are those that databricks-sdk finds: ``DATABRICKS_TOKEN``,
    ``DATABRICKS_CLIENT_ID`` and ``DATABRICKS_CLIENT_SECRET``, ``DATABRICKS_CONFIG_PROFILE``, the ways of the clouds.
    They are looked for when the first batch is sent, in a thread; a token is kept, replaced before it ends, and
    replaced once when the server answers 401. Requests name the workspace by its id, where databricks-sdk knows it,
    unless ``headers`` does.

    Args:
        host: The workspace, e.g. ``https://dbc-a1b2c3d4-e5f6.cloud.databricks.com``; by default ``DATABRICKS_HOST``.
        prefer_zerobus: Whether to send through Zerobus first, as `zerobus` does, and through the workspace what
            Zerobus does not take: a batch for which Zerobus answers 408, 413 or 429 or there is no token, and for an
            hour everything once it answers any other 4xx, cannot be connected to, or rejects all of a batch. A batch
            whose outcome there is unknown is counted as ambiguous and repeated through the workspace.
        make_config: Makes the ``databricks.sdk.core.Config`` that authenticates, for instance
            ``lambda: Config(profile="production")``. Called in a thread, for the first token and after a 401.
        decode_json_attributes: Whether attributes of spans that are JSON texts, as MLflow keeps them, are sent as the
            values that they stand for.
        headers: Headers for every request, without ``Authorization``.
        timeout: Seconds for a whole attempt, also one that goes both ways. The first one includes databricks-sdk's
            import and its first token.
        compression: ``"gzip"``, or ``None`` for none.
        client: As for `OTLPExporter`. With ``prefer_zerobus``, tokens are fetched with it too.
        transport: As for `OTLPExporter`; the same holds.

    Raises:
        ModuleNotFoundError: databricks-sdk is not installed.
        ValueError: There is no host, or it is more than a host; ``headers`` authenticate; or see `OTLPExporter`.
    """
    workspace = checked_workspace(host, headers)
    names = {str(name).lower() for name in headers or ()}
    auth = DatabricksAuth(
        make_config or default_config(workspace), workspace, names_workspace=names.isdisjoint(_NAMES_OF_WORKSPACE)
    )
    options = Options(headers=headers, timeout=timeout, compression=compression, client=client, transport=transport)
    if not prefer_zerobus:
        return UnityCatalogExporter(workspace, auth, decode_json_attributes, options)
    return ZerobusFirst(workspace, auth, decode_json_attributes, options)
