"""Helpers for cases without a server: an exporter that keeps ids, and a program that adds spans and waits for space."""

from __future__ import annotations

from collections.abc import Iterable

import trio

from bench.ids import ids_of_batch
from trio_spanbatch import Delivered, SpanBatch, SpanBatcher, SpanLike

__all__ = ["KeepsIds", "add_all"]


class KeepsIds:
    """A `SpanExporter` that accepts every batch, after ``seconds``.

    Attributes:
        ids: The ids of all spans that it received.
        requests: How many batches it received.
    """

    def __init__(self, seconds: float = 0.0) -> None:
        self._seconds = seconds
        self.ids: list[int] = []
        self.requests = 0

    async def export(self, batch: SpanBatch) -> Delivered:
        """Keep the ids of ``batch``."""
        await trio.sleep(self._seconds)
        self.ids += ids_of_batch(batch)
        self.requests += 1
        return Delivered()

    async def aclose(self) -> None:
        """Do nothing."""
        await trio.lowlevel.checkpoint()


async def add_all(batcher: SpanBatcher, spans: Iterable[tuple[str, SpanLike]]) -> None:
    """Add spans, each with its location, as fast as possible: at once if there is space, otherwise waiting."""
    for location, span in spans:
        try:
            batcher.add_span_nowait(location, span)
        except trio.WouldBlock:
            await batcher.add_span(location, span)
