"""Add undelivered spans to another batcher."""

import trio

from trio_spanbatch import RetryPolicy, Span, SpanBatcher, SpanContext, TryLater
from trio_spanbatch.testing import InMemoryExporter


async def main() -> None:
    """Fail to deliver a span, then add it to another batcher."""
    down = InMemoryExporter(lambda batch: TryLater("connection refused"))
    impatient = RetryPolicy(initial=0.001, max_elapsed=0.01)
    async with SpanBatcher(down, retry=impatient) as batcher:
        await batcher.add_span("orders", Span("order", SpanContext(1, 1), start_time=1, end_time=2))

    async with SpanBatcher(InMemoryExporter()) as second:
        for loss in batcher.undelivered:
            print(f"{loss.location}: {loss.count} undelivered: {loss.reason}")
            await second.add_spans(loss.location, loss.batch.spans)
    print(f"delivered after all: {second.statistics().delivered}")


trio.run(main)
