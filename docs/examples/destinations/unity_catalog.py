"""Send a span to a table of Unity Catalog: python unity_catalog.py main.agents.demo_otel_spans.

DATABRICKS_HOST names the workspace. databricks-sdk finds the credentials, for instance DATABRICKS_TOKEN, or
DATABRICKS_CLIENT_ID and DATABRICKS_CLIENT_SECRET.
"""

import random
import sys
import time

import trio

from trio_spanbatch import Loss, Span, SpanBatcher, SpanContext
from trio_spanbatch.destinations import unity_catalog


def tell(loss: Loss) -> None:
    """Report spans that were not stored."""
    print(f"{loss.location}: {loss.count} {loss.outcome}: {loss.reason}", file=sys.stderr)


async def main(table: str) -> None:
    """Trace a nap."""
    async with SpanBatcher(unity_catalog(compression="gzip"), on_loss=tell) as batcher:
        started = time.time_ns()
        await trio.sleep(0.01)
        context = SpanContext(random.getrandbits(128), random.getrandbits(64))
        await batcher.add_span(table, Span("nap", context, start_time=started, end_time=time.time_ns()))
    print(f"delivered: {batcher.statistics().delivered}")


if __name__ == "__main__":
    trio.run(main, sys.argv[1])
