"""A program's own tests, on trio's mock clock, of a batcher with a spool on disk."""

from __future__ import annotations

import threading
from pathlib import Path

import trio
from trio.testing import MockClock

from tests.spool.support import make_spans
from trio_spanbatch import RetryPolicy, SpanBatcher, Spool, TryLater
from trio_spanbatch.testing import InMemoryExporter


async def test_on_a_mock_clock_the_disk_is_used_without_a_thread_and_no_time_passes(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    began, spans = trio.current_time(), make_spans(50)
    exporter = InMemoryExporter()
    async with SpanBatcher(exporter, spool=Spool(tmp_path / "spool")) as batcher:
        await batcher.add_spans("a", spans)
        await batcher.sync()
        assert trio.current_time() == began
        assert batcher.statistics().spool is not None
        assert any((tmp_path / "spool" / "trio-spanbatch").glob("*.spans"))
        assert "trio-spanbatch spool" not in {thread.name for thread in threading.enumerate()}
    assert batcher.statistics().delivered == 50
    assert list((tmp_path / "spool" / "trio-spanbatch").iterdir()) == []


async def test_on_a_mock_clock_the_next_batcher_delivers_what_was_left(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    spool, retry = Spool(tmp_path / "spool"), RetryPolicy(max_elapsed=5)
    down = InMemoryExporter(lambda batch: TryLater("down"))
    async with SpanBatcher(down, spool=spool, retry=retry, shutdown_timeout=1) as batcher:
        await batcher.add_spans("a", make_spans(50))
    assert batcher.statistics().spooled == 50
    exporter = InMemoryExporter()
    async with SpanBatcher(exporter, spool=spool) as batcher:
        await trio.sleep(60)
    assert (batcher.statistics().recovered, batcher.statistics().delivered) == (50, 50)
