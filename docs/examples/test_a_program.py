"""A test of a program that sends spans, with the complete HTTP code and a mock clock."""

import trio
import trio.testing

from trio_spanbatch import OTLPExporter, Span, SpanBatcher, SpanContext
from trio_spanbatch.testing import Answer, OTLPReceiver


async def program(batcher: SpanBatcher) -> None:
    """Add three spans."""
    for number in range(1, 4):
        await batcher.add_span("orders", Span("order", SpanContext(1, number), start_time=1, end_time=2))


async def test_orders_are_traced_though_the_server_fails_twice() -> None:
    """No span is lost, and none is stored twice."""
    async with OTLPReceiver(
        listen=False, location_header="X-Scope-OrgID", answers=[Answer(503), Answer(503)]
    ) as receiver:
        exporter = OTLPExporter(receiver.url, location_header="X-Scope-OrgID", transport=receiver.memory_transport())
        async with SpanBatcher(exporter) as batcher:
            await program(batcher)
    assert [span.name for span in receiver.stored["orders"]] == ["order"] * 3
    assert batcher.statistics().retries == 2


# With pytest-trio, use its fixture `autojump_clock` instead.
trio.run(test_orders_are_traced_though_the_server_fails_twice, clock=trio.testing.MockClock(autojump_threshold=0))
