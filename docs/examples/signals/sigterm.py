"""A service that shuts down gracefully on SIGTERM: cancel, deliver the spans, exit with 143."""

import itertools
import random
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import trio

from trio_spanbatch import Loss, Span, SpanBatcher, SpanContext


@contextmanager
def exits_on_sigterm() -> Iterator[None]:
    """Cancel the code inside on SIGTERM, and exit with 128 + 15 once it has ended.

    Use it around everything else in the main task. Only the main thread can handle signals.
    """
    token = trio.lowlevel.current_trio_token()
    scope = trio.CancelScope()
    terminated = False

    def terminate(_signum: int, _frame: FrameType | None) -> None:
        nonlocal terminated
        terminated = True
        # A signal can interrupt anything, so let trio cancel when it is ready.
        token.run_sync_soon(scope.cancel, idempotent=True)

    before = signal.signal(signal.SIGTERM, terminate)
    try:
        with scope:
            yield
    finally:
        signal.signal(signal.SIGTERM, before)
    if terminated:
        sys.exit(128 + signal.SIGTERM)


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
    print(f"{loss.location}: {loss.count} {loss.outcome}: {loss.reason}", file=sys.stderr)


async def main() -> None:
    """Serve. The drain ends before Docker sends SIGKILL, after 10 seconds."""
    with exits_on_sigterm():
        async with SpanBatcher(shutdown_timeout=8, on_loss=tell) as batcher:
            await serve(batcher)


if __name__ == "__main__":
    trio.run(main)
