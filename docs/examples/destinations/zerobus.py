"""Send spans to tables of Unity Catalog through Zerobus: python zerobus.py main.agents.a_otel_spans main.agents.b_...

Environment: DATABRICKS_HOST (https://<workspace>), DATABRICKS_WORKSPACE_ID, DATABRICKS_CLIENT_ID and
DATABRICKS_CLIENT_SECRET of a service principal, ZEROBUS_ENDPOINT (https://<workspace-id>.zerobus.<region>.<domain>).
"""

import json
import os
import random
import sys
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence

import httpx
import trio

from trio_spanbatch import Loss, OTLPExporter, Span, SpanBatcher, SpanContext
from trio_spanbatch.destinations.unity_catalog import check_table_name
from trio_spanbatch.otlp.auth import AuthError

# A token is replaced so many seconds before it ends.
MARGIN = 60.0


class TableTokens:
    """A token for each table, fetched when it is first needed and kept until shortly before it ends."""

    def __init__(self, client: httpx.AsyncClient, host: str, workspace_id: str) -> None:
        self._client = client
        self._url = f"{host.rstrip('/')}/oidc/v1/token"
        self._resource = f"api://databricks/workspaces/{workspace_id}/zerobusDirectWriteApi"
        self._tokens: dict[str, tuple[Mapping[str, str], float]] = {}
        # Exports of one table share a fetch; other tables do not wait for it.
        self._locks: defaultdict[str, trio.Lock] = defaultdict(trio.Lock)

    async def headers(self, location: str) -> Mapping[str, str]:
        """Return the headers for one attempt at sending to a table."""
        async with self._locks[location]:
            headers, good_until = self._tokens.get(location, ({}, 0.0))
            if not headers or trio.current_time() >= good_until:
                headers, lifetime = await self._fetch(location)
                self._tokens[location] = headers, trio.current_time() + lifetime - MARGIN
            return headers

    def invalidate(self, location: str, headers: Mapping[str, str]) -> None:
        """Forget a token that was answered with 401, unless it was replaced already."""
        if self._tokens.get(location, ({}, 0.0))[0] == headers:
            del self._tokens[location]

    async def _fetch(self, table: str) -> tuple[Mapping[str, str], float]:
        form = {
            "grant_type": "client_credentials",
            "scope": "all-apis",
            "resource": self._resource,
            "authorization_details": json.dumps(authorization_details(table)),
        }
        response = await self._client.post(self._url, data=form)
        if response.status_code != 200:
            # Not the body: it may repeat what was sent.
            status = response.status_code
            raise AuthError(f"the token endpoint answered {status} for {table}", retry=status == 429 or status >= 500)
        try:
            answer = response.json()
            return {"Authorization": f"Bearer {answer['access_token']}"}, float(answer["expires_in"])
        except (ValueError, KeyError, TypeError):
            raise AuthError("the token endpoint's answer has no token in it") from None


def authorization_details(table: str) -> list[dict[str, object]]:
    """Return what a token has to allow, and no more: writing to one table."""
    catalog, schema, _ = table.split(".")
    needed = [
        ("CATALOG", catalog, ["USE CATALOG"]),
        ("SCHEMA", f"{catalog}.{schema}", ["USE SCHEMA"]),
        ("TABLE", table, ["SELECT", "MODIFY"]),
    ]
    return [
        {"type": "unity_catalog_privileges", "object_type": kind, "object_full_path": path, "privileges": privileges}
        for kind, path, privileges in needed
    ]


class ZerobusExporter(OTLPExporter):
    """An `OTLPExporter` whose locations are tables."""

    def check_location(self, location: str) -> None:
        """Raise `InvalidLocationError` if ``location`` is no ``<catalog>.<schema>.<table>``."""
        check_table_name(location)


def tell(loss: Loss) -> None:
    """Say what became of spans that are not in their table."""
    print(f"{loss.location}: {loss.count} {loss.outcome}: {loss.reason}", file=sys.stderr)


async def main(tables: Sequence[str], environ: Mapping[str, str]) -> None:
    """Trace a nap, once for each table."""
    principal = environ["DATABRICKS_CLIENT_ID"], environ["DATABRICKS_CLIENT_SECRET"]
    async with httpx.AsyncClient(auth=principal, timeout=10) as client:
        exporter = ZerobusExporter(
            f"{environ['ZEROBUS_ENDPOINT'].rstrip('/')}/v1/traces",
            location_header="x-databricks-zerobus-table-name",
            auth=TableTokens(client, environ["DATABRICKS_HOST"], environ["DATABRICKS_WORKSPACE_ID"]),
            timeout=20,
        )
        async with SpanBatcher(exporter, on_loss=tell) as batcher:
            for table in tables:
                started = time.time_ns()
                await trio.sleep(0.01)
                context = SpanContext(random.getrandbits(128), random.getrandbits(64))
                await batcher.add_span(table, Span("nap", context, start_time=started, end_time=time.time_ns()))
        print(f"delivered: {batcher.statistics().delivered}")


if __name__ == "__main__":
    trio.run(main, sys.argv[1:], os.environ)
