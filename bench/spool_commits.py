"""How long commits to a spool take.

    python -m bench.spool_commits DIRECTORY

prints the median and the 99th percentile for commits of 5 and of 512 spans with each durability, in a new directory
inside DIRECTORY.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Literal

import trio

from trio_spanbatch import EncodedSpan, Spool
from trio_spanbatch._spool.disk import DiskStore
from trio_spanbatch._spool.store import NewRecord

SPAN = EncodedSpan(bytes(1000))
COMMITS = 300


async def measure(directory: Path, durability: Literal["process", "power"], spans: int) -> list[float]:
    """Return how many seconds each commit took, in ascending order. What it commits is settled along with the next."""
    store = DiskStore(Spool(directory, durability=durability), "http://collector")
    await store.open()
    taken: list[float] = []
    tokens: list[int] = []
    for _ in range(COMMITS):
        new = NewRecord("main.spans", [SPAN] * spans, 1000 * spans, time.time())
        began = time.perf_counter()
        committed = await store.commit([new], tokens)
        taken.append(time.perf_counter() - began)
        tokens = [record.token for record in committed]
    await store.close()
    return sorted(taken)


def main(parent: str) -> None:
    """Measure and print."""
    for durability in ("process", "power"):
        for spans in (5, 512):
            with tempfile.TemporaryDirectory(dir=parent) as name:
                taken = trio.run(measure, Path(name), durability, spans)
            median, slow = 1000 * statistics.median(taken), 1000 * taken[len(taken) * 99 // 100]
            print(
                f"{durability:8}{spans:4} spans of 1,000 bytes: median {median:.2f} ms, 99th percentile {slow:.2f} ms"
            )


if __name__ == "__main__":
    main(sys.argv[1])
