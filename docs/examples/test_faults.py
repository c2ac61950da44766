"""A test of a program whose server is down, then limits requests, is slow, and refuses some spans."""

import trio
import trio.testing

from trio_spanbatch import OTLPExporter, Span, SpanBatcher, SpanContext
from trio_spanbatch.testing import InMemoryExporter, OTLPReceiver, outage, poison, rate_limited, slow

FAULTS = (outage(30), rate_limited(5, retry_after=2), slow(3), poison(lambda span: span.name == "bad"))


async def program(batcher: SpanBatcher) -> None:
    """Add ten spans, of which the server will not accept one."""
    for number in range(1, 11):
        name = "bad" if number == 4 else "order"
        await batcher.add_span("orders", Span(name, SpanContext(1, number), start_time=1, end_time=2))


async def test_only_the_bad_span_is_rejected() -> None:
    """Over HTTP, and without it."""
    async with OTLPReceiver(listen=False, answers=FAULTS) as receiver:
        over_http = OTLPExporter(receiver.url, transport=receiver.memory_transport())
        for exporter in (over_http, InMemoryExporter(FAULTS)):
            async with SpanBatcher(exporter, shutdown_timeout=600) as batcher:
                await program(batcher)
            assert (batcher.statistics().delivered, batcher.statistics().rejected) == (9, 1)


async def test_one_tenant_does_not_wait_for_another() -> None:
    """A function can give a fault to one location."""
    exporter = InMemoryExporter(lambda batch: outage(20) if batch.location == "orders" else None)
    async with SpanBatcher(exporter, shutdown_timeout=600) as batcher:
        await program(batcher)
        await batcher.add_span("bills", Span("bill", SpanContext(2, 1), start_time=1, end_time=2))
        with trio.fail_after(19):
            await batcher.flush("bills")
    assert len(exporter.delivered["orders"]) == 10


for test in (test_only_the_bad_span_is_rejected, test_one_tenant_does_not_wait_for_another):
    trio.run(test, clock=trio.testing.MockClock(autojump_threshold=0))
