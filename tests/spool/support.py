"""Helpers for tests of stores: spans and records, and places that outlive a store."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import attrs

from tests.spool.memory import MemoryDisk, MemoryStore
from trio_spanbatch import EncodedSpan, Spool
from trio_spanbatch._spans.batch import SpanHeaders, cost_of
from trio_spanbatch._spool.disk import DiskStore
from trio_spanbatch._spool.store import NewRecord, Record, Store

ENDPOINT = "http://collector.test/v1/traces"
_NUMBERS = itertools.count(1)
_HEADERS = [SpanHeaders(b"resource one", b"scope"), SpanHeaders(b"resource two"), SpanHeaders()]


def make_spans(count: int, size: int = 20) -> list[EncodedSpan]:
    """Return spans with unique content, two in a row with the same resource and scope."""
    numbers = [next(_NUMBERS) for _ in range(count)]
    return [EncodedSpan(b"%08d" % number + b"x" * size, _HEADERS[number // 2 % 3]) for number in numbers]


def make_record(location: str = "main.spans", count: int = 3, size: int = 20) -> NewRecord:
    spans = make_spans(count, size)
    return NewRecord(location, spans, cost_of(spans), 1_700_000_000.5)


def is_of(record: Record, new: NewRecord) -> bool:
    """Return whether a committed record describes what was to be committed."""
    found = (record.location, record.count, record.nbytes, record.oldest)
    return found == (new.location, len(new.spans), new.nbytes, new.oldest)


async def adopted(store: Store) -> list[Record]:
    return [record async for piece in store.adopted() for record in piece]


async def contents(store: Store) -> list[tuple[str, list[EncodedSpan]]]:
    """Return the location and the spans of each record that a store has taken over."""
    return [(record.location, list(await store.read(record.token))) for record in await adopted(store)]


def content_of(records: Iterable[NewRecord]) -> list[tuple[str, list[EncodedSpan]]]:
    return [(record.location, list(record.spans)) for record in records]


def wait_until_released() -> None:
    """Return once the files of abandoned stores are closed."""
    for thread in threading.enumerate():
        store = getattr(getattr(thread, "_target", None), "__self__", None)
        if isinstance(store, DiskStore) and not store._is_open:
            thread.join()


class Place:
    """Where stores keep their records, in memory or on disk."""

    def store(self, endpoint: str = ENDPOINT, **settings: Any) -> Store:
        """Return a store that is not open yet."""
        raise NotImplementedError

    def end(self, store: Store) -> None:
        """End the process that a store belongs to."""
        store.abandon()
        wait_until_released()


class MemoryPlace(Place):
    def __init__(self) -> None:
        self.disk = MemoryDisk()

    def store(self, endpoint: str = ENDPOINT, **settings: Any) -> MemoryStore:
        return MemoryStore(self.disk, endpoint, **settings)


@attrs.define
class DiskPlace(Place):
    directory: Path
    messages: list[str] = attrs.Factory(list)

    def store(self, endpoint: str = ENDPOINT, **settings: Any) -> DiskStore:
        return DiskStore(Spool(self.directory, **settings), endpoint, tell=self.messages.append)

    @property
    def own(self) -> Path:
        return self.directory / "trio-spanbatch"

    def files(self, kind: str = "*") -> Sequence[Path]:
        return sorted(self.own.glob(f"*.{kind}"))

    async def opened(self, endpoint: str = ENDPOINT, **settings: Any) -> DiskStore:
        store = self.store(endpoint, **settings)
        await store.open()
        return store

    async def next(self) -> tuple[DiskStore, list[tuple[str, list[EncodedSpan]]]]:
        """Return an open store, and the contents that it has taken over."""
        store = await self.opened()
        return store, await contents(store)
