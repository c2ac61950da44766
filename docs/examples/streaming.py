"""Answers that are streamed and left early: later spans of the task still get the right location."""

from collections.abc import AsyncGenerator
from contextlib import aclosing

import trio
from opentelemetry.sdk.trace import TracerProvider

from trio_spanbatch import SpanBatcher
from trio_spanbatch.opentelemetry import BatcherSpanProcessor, use_location
from trio_spanbatch.testing import InMemoryExporter

provider = TracerProvider()
tracer = provider.get_tracer("streaming")


@trio.as_safe_channel
async def answer(tenant: str) -> AsyncGenerator[str]:
    """Stream an answer. It runs in a separate task, so its context variables do not affect the reader."""
    with use_location(tenant), tracer.start_as_current_span(f"answer of {tenant}"):
        for word in ("It", "depends"):
            with tracer.start_as_current_span(f"{word} of {tenant}"):
                await trio.lowlevel.checkpoint()
            yield word  # noqa: ASYNC119  # as_safe_channel makes it safe


async def plain_answer(tenant: str) -> AsyncGenerator[str]:
    """Stream an answer. No context variable is set while the reader runs: the span keeps the location of its start."""
    with use_location(tenant):
        span = tracer.start_span(f"plain answer of {tenant}")
    try:
        for word in ("It", "depends"):
            await trio.lowlevel.checkpoint()
            yield word
    finally:
        span.end()


async def main() -> None:
    """Read the first words of some answers."""
    exporter = InMemoryExporter()
    async with SpanBatcher(exporter) as batcher:
        provider.add_span_processor(BatcherSpanProcessor(batcher))
        async with answer("acme") as words:
            async for word in words:
                tracer.start_span(f"reader got {word}").end()
                break
        async with aclosing(plain_answer("globex")) as plain_words:
            async for word in plain_words:
                tracer.start_span(f"reader got {word} too").end()
                break
        with use_location("initech"):
            tracer.start_span("of initech").end()
    for location, spans in sorted(exporter.delivered.items()):
        print(location, sorted(span.to_message().name for span in spans))


trio.run(main)
