"""Streamed answers as traced generators. Nothing that they set reaches the code that reads them."""

from collections.abc import AsyncGenerator
from contextlib import aclosing

import trio

from trio_spanbatch import SpanBatcher
from trio_spanbatch.testing import InMemoryExporter
from trio_spanbatch.tracing import Tracer, current_span

exporter = InMemoryExporter()
batcher = SpanBatcher(exporter)
tracer = Tracer(batcher)


@tracer.traced("answer", location="acme")
async def answer() -> AsyncGenerator[str]:
    """Stream an answer."""
    for word in ("It", "depends", "on", "you"):
        with tracer.span(f"token {word}"):
            await trio.lowlevel.checkpoint()
        yield word


async def main() -> None:
    """Read the first words of an answer."""
    async with batcher:
        with tracer.span("reader", location="globex") as reader:
            async with aclosing(answer()) as words:
                async for word in words:
                    assert current_span() is reader
                    if word == "depends":
                        break
    for location, spans in sorted(exporter.delivered.items()):
        print(location, [span.to_message().name for span in spans])


trio.run(main)
