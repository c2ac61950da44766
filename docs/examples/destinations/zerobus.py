"""Send a span to each of several tables through Zerobus: python zerobus.py main.agents.a_otel_spans main.agents.b_...

DATABRICKS_HOST names the workspace; DATABRICKS_CLIENT_ID and DATABRICKS_CLIENT_SECRET are those of a service principal.
"""

import random
import sys
import time
from collections.abc import Sequence

import trio

from trio_spanbatch import Loss, Span, SpanBatcher, SpanContext
from trio_spanbatch.destinations import zerobus


def tell(loss: Loss) -> None:
    """Report spans that were not stored."""
    print(f"{loss.location}: {loss.count} {loss.outcome}: {loss.reason}", file=sys.stderr)


async def main(tables: Sequence[str]) -> None:
    """Trace a nap, once for each table."""
    async with SpanBatcher(zerobus(compression="gzip"), on_loss=tell) as batcher:
        for table in tables:
            started = time.time_ns()
            await trio.sleep(0.01)
            context = SpanContext(random.getrandbits(128), random.getrandbits(64))
            await batcher.add_span(table, Span("nap", context, start_time=started, end_time=time.time_ns()))
    print(f"delivered: {batcher.statistics().delivered}")


if __name__ == "__main__":
    trio.run(main, sys.argv[1:])
