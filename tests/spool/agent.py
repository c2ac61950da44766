"""A program that adds spans to a batcher with a spool on disk until it is killed.

Run it as ``python -m tests.spool.agent DIRECTORY URL FIRST COUNT SEED``. It adds ``COUNT`` spans (-1: no end) whose
ids begin with ``FIRST``, and after each `sync` writes a line with the id of the last one that is committed. With a
``COUNT`` it then leaves the batcher, writes ``done``, and ends.
"""

from __future__ import annotations

import itertools
import logging
import math
import os
import random
import sys

import trio

from trio_spanbatch import BatchPolicy, Limits, OTLPExporter, RetryPolicy, Span, SpanBatcher, SpanContext, Spool

LOCATION_HEADER = "x-scope-orgid"


def location_of(span_id: int) -> str:
    return f"team-{span_id % 3}"


def _span(span_id: int, rng: random.Random) -> Span:
    attributes = {"pad": "x" * rng.choice([0, 0, 50, 2000])}
    return Span("work", SpanContext(1, span_id), start_time=1, end_time=2, attributes=attributes)


async def main(directory: str, url: str, first: int, count: int, seed: int) -> None:
    logging.disable(logging.WARNING)
    rng = random.Random(seed)
    batcher = SpanBatcher(
        OTLPExporter(url, location_header=LOCATION_HEADER, timeout=5),
        spool=Spool(directory, commit_interval=0.01, max_bytes=64 * 1024 * 1024),
        batch=BatchPolicy(max_spans=20, max_delay=0.02),
        # A part of the spans leaves memory.
        limits=Limits(max_queued_spans=40, max_pending_bytes=200_000),
        retry=RetryPolicy(initial=0.01, maximum=0.05),
        shutdown_timeout=math.inf if count >= 0 else 30,
    )
    async with batcher:
        ids = itertools.count(first) if count < 0 else iter(range(first, first + count))
        while some := list(itertools.islice(ids, rng.randint(1, 30))):
            for span_id in some:
                await batcher.add_span(location_of(span_id), _span(span_id, rng))
            if rng.random() < 0.5:
                await batcher.sync()
                os.write(1, f"{some[-1]}\n".encode())
    statistics = batcher.statistics()
    assert statistics.spooled == statistics.undelivered == statistics.rejected == 0, statistics
    os.write(1, b"done\n")


if __name__ == "__main__":
    directory, url, *numbers = sys.argv[1:]
    first, count, seed = map(int, numbers)
    trio.run(main, directory, url, first, count, seed)
