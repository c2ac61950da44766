"""Send a span to each table, through Zerobus if it accepts them: python prefer_zerobus.py main.agents.a_...

DATABRICKS_HOST names the workspace. With DATABRICKS_CLIENT_ID and DATABRICKS_CLIENT_SECRET of a service principal,
spans go through Zerobus; with other credentials, or where Zerobus fails, they go through the workspace.
"""

import logging
import random
import sys
import time
from collections.abc import Sequence

import trio

from trio_spanbatch import Span, SpanBatcher, SpanContext
from trio_spanbatch.destinations import unity_catalog


async def main(tables: Sequence[str]) -> None:
    """Trace a nap, once for each table."""
    exporter = unity_catalog(prefer_zerobus=True, decode_json_attributes=True)
    async with SpanBatcher(exporter) as batcher:
        for table in tables:
            started = time.time_ns()
            await trio.sleep(0.01)
            context = SpanContext(random.getrandbits(128), random.getrandbits(64))
            span = Span("nap", context, start_time=started, end_time=time.time_ns(), attributes={"minutes": "20"})
            await batcher.add_span(table, span)
    print(f"delivered: {batcher.statistics().delivered}")


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    trio.run(main, sys.argv[1:])
