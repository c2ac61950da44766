"""A service that shuts down gracefully on SIGTERM: cancel, deliver the spans, exit with 143."""

import itertools
import random
import sys
import time

import trio

from trio_spanbatch import Loss, Span, SpanBatcher, SpanContext, exit_on_sigterm


async def serve(batcher: SpanBatcher) -> None:
    """Do the service's work, until cancelled."""
    trace_id = random.getrandbits(128)
    for number in itertools.count(1):
        started = time.time_ns()
        await trio.sleep(0.01)
        span = Span("order", SpanContext(trace_id, number), start_time=started, end_time=time.time_ns())
        await batcher.add_span("orders", span)


def tell(loss: Loss) -> None:
    """Print how many spans were lost, and why. A service could write them to a file."""
    print(loss, file=sys.stderr)


async def main() -> None:
    """Serve. The drain ends before Docker sends SIGKILL, after 10 seconds."""
    with exit_on_sigterm():
        async with SpanBatcher(shutdown_timeout=8, on_loss=tell) as batcher:
            await serve(batcher)


if __name__ == "__main__":
    trio.run(main)
