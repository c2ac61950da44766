"""When one of the batcher's own tasks fails, as it does when an exporter exits the program."""

from __future__ import annotations

import pytest
import trio
from support import make_spans, watched_batcher
from trio.testing import MockClock

from trio_spanbatch import BatchPolicy, ExportResult, Loss, SpanBatch
from trio_spanbatch.testing import Hang, InMemoryExporter


class ExitsAtB(InMemoryExporter):
    """Exports hang, until one to "b" exits the program after a second."""

    def __init__(self) -> None:
        super().__init__(lambda batch: Hang())

    async def export(self, batch: SpanBatch) -> ExportResult:
        if batch.location == "b":
            await trio.sleep(1)
            raise SystemExit(3)
        return await super().export(batch)


async def test_nothing_is_accepted_while_the_other_tasks_hand_back_what_they_hold(autojump_clock: MockClock) -> None:
    refused: list[str] = []

    def add_elsewhere(loss: Loss) -> None:
        if loss.location != "a":
            return
        try:
            batcher.add_spans_nowait("c", loss.batch.spans)
        except trio.ClosedResourceError:
            refused.append(loss.location)

    with pytest.raises(SystemExit):
        async with watched_batcher(ExitsAtB(), BatchPolicy(max_spans=1), on_loss=add_elsewhere) as batcher:
            for location in "ab":
                batcher.add_spans_nowait(location, make_spans(2))
            await trio.sleep(2)
    # One was in flight, one was queued.
    assert refused == ["a", "a"]
    assert batcher.statistics().accepted == batcher.statistics().undelivered == 4
