"""A program that adds spans to a batcher with a spool on disk until it is killed.

Run it as ``python -m tests.spool.agent DIRECTORY URL FIRST COUNT SEED``. It adds ``COUNT`` spans (-1: no end) whose
ids begin with ``FIRST``. With a ``COUNT`` it then leaves the batcher and ends. Its requests have a header with
``FIRST``. It writes a line

- ``entering`` before it enters the batcher, ``leaving`` before it leaves it, and ``done`` afterwards;
- ``adding N`` before it adds spans up to the id N;
- ``committed N`` after a `sync`, where N is the id of the last span before it.
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
LIFE_HEADER = "x-life"


def location_of(span_id: int) -> str:
    return f"team-{span_id % 3}"


def _span(span_id: int, rng: random.Random) -> Span:
    attributes = {"pad": "x" * rng.choice([0, 0, 50, 2000])}
    return Span("work", SpanContext(1, span_id), start_time=1, end_time=2, attributes=attributes)


def _say(line: str) -> None:
    os.write(1, f"{line}\n".encode())


async def main(directory: str, url: str, first: int, count: int, seed: int) -> None:
    logging.disable(logging.WARNING)
    rng = random.Random(seed)
    batcher = SpanBatcher(
        # No attempt takes that long, so no outcome is unknown unless the server resets a connection.
        OTLPExporter(url, location_header=LOCATION_HEADER, headers={LIFE_HEADER: str(first)}, timeout=60),
        spool=Spool(directory, commit_interval=0.01, max_bytes=64 * 1024 * 1024),
        batch=BatchPolicy(max_spans=20, max_delay=0.02),
        # A part of the spans leaves memory.
        limits=Limits(max_queued_spans=40, max_pending_bytes=200_000),
        retry=RetryPolicy(initial=0.01, maximum=0.05),
        shutdown_timeout=math.inf if count >= 0 else 30,
    )
    _say("entering")
    async with batcher:
        ids = itertools.count(first) if count < 0 else iter(range(first, first + count))
        while some := list(itertools.islice(ids, rng.randint(1, 30))):
            _say(f"adding {some[-1]}")
            for span_id in some:
                await batcher.add_span(location_of(span_id), _span(span_id, rng))
            if rng.random() < 0.5:
                await batcher.sync()
                _say(f"committed {some[-1]}")
        _say("leaving")
    statistics = batcher.statistics()
    assert statistics.spooled == statistics.undelivered == statistics.rejected == 0, statistics
    _say("done")


if __name__ == "__main__":
    directory, url, *numbers = sys.argv[1:]
    first, count, seed = map(int, numbers)
    trio.run(main, directory, url, first, count, seed)
