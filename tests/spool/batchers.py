"""Helpers for tests of a batcher with a spool in memory, on the mock clock."""

from __future__ import annotations

from typing import Any

import trio

from tests.spool.memory import MemoryDisk, MemoryStore
from tests.support.batchers import NoSpread, Watched, span_ids
from trio_spanbatch import SpanBatcher, SpanExporter, Spool
from trio_spanbatch._scheduler.spooling import SpoolingScheduler


def spooling_batcher(
    exporter: SpanExporter,
    store: MemoryStore | MemoryDisk | None = None,
    *,
    spool: dict[str, Any] | None = None,
    **options: Any,
) -> SpanBatcher:
    """Return a batcher whose spool is ``store``, and whose ages are those of trio's clock."""
    if not isinstance(store, MemoryStore):
        store = MemoryStore(store or MemoryDisk())
    settings = Spool("/nowhere", **(spool or {}))
    store.max_bytes = min(store.max_bytes, settings.max_bytes)
    batcher = SpanBatcher(exporter, spool=settings, **{"rng": NoSpread(), **options})
    use_store(batcher, store)
    return batcher


def use_store(batcher: SpanBatcher, store: MemoryStore) -> None:
    batcher._use_store(store)
    assert isinstance(batcher._scheduler, SpoolingScheduler)
    batcher._scheduler.wall = lambda: trio.current_time() if trio.lowlevel.in_trio_run() else 0.0


def watched_spooling_batcher(
    exporter: SpanExporter, store: MemoryStore | MemoryDisk | None = None, **options: Any
) -> Watched:
    return Watched(spooling_batcher(exporter, store, **options))


def stored_ids(disk: MemoryDisk) -> set[int]:
    """Return the ids of the spans that are committed and not forgotten."""
    return {span_id for _, spans in disk.records.values() for span_id in span_ids(spans)}
