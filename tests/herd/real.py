"""The same run with real batchers on trio's mock clock, one for each client."""

from __future__ import annotations

import itertools
import random

import trio
from trio.testing import MockClock

from tests.herd.server import Figures, Server
from tests.herd.setting import Setting
from tests.support.batchers import make_span
from trio_spanbatch import ExportResult, Loss, SpanBatch, SpanBatcher

__all__ = ["run"]


class _Exporter:
    def __init__(self, server: Server, client: int, up_at: float) -> None:
        self._server = server
        self._client = client
        self._up_at = up_at

    async def export(self, batch: SpanBatch) -> ExportResult:
        now = trio.current_time()
        # A span's name is the time at which it was added.
        old = sum(float(span.to_message().name) <= self._up_at for span in batch.spans)
        at, result = self._server.request(now, self._client, len(batch.spans), old)
        await trio.sleep_until(at)
        return result

    async def aclose(self) -> None:
        await trio.lowlevel.checkpoint()


def _ignore(loss: Loss) -> None:
    pass


def run(setting: Setting, seed: int = 1) -> Figures:
    """Run the setting with real batchers."""
    return trio.run(_main, setting, seed, clock=MockClock(autojump_threshold=0))


async def _main(setting: Setting, seed: int) -> Figures:
    server, rng = Server(setting), random.Random(seed)
    batchers: list[SpanBatcher] = []
    async with trio.open_nursery() as nursery:
        for client in range(setting.clients):
            batchers.append(
                SpanBatcher(
                    _Exporter(server, client, setting.up_at),
                    batch=setting.policy,
                    limits=setting.limits,
                    rng=random.Random(rng.getrandbits(64)),
                    shutdown_timeout=0,
                    on_loss=_ignore,
                )
            )
            first_at = [rng.uniform(0, setting.policy.max_delay) for _ in range(setting.locations)]
            nursery.start_soon(_client, batchers[-1], first_at, setting, server.figures)
        await trio.sleep_until(setting.up_at)
        statistics = [batcher.statistics() for batcher in batchers]
        server.recovered({client: each.queued + each.in_flight for client, each in enumerate(statistics)})
        await trio.sleep_until(setting.end)
        server.ended()
        nursery.cancel_scope.cancel()
    return server.figures


async def _client(batcher: SpanBatcher, first_at: list[float], setting: Setting, figures: Figures) -> None:
    async with batcher, trio.open_nursery() as nursery:
        for number, at in enumerate(first_at):
            nursery.start_soon(_add, batcher, f"location-{number}", at, setting, figures)


async def _add(batcher: SpanBatcher, location: str, first_at: float, setting: Setting, figures: Figures) -> None:
    for number in itertools.count():
        await trio.sleep_until(first_at + number / setting.rate)
        try:
            batcher.add_span_nowait(location, make_span(repr(trio.current_time())))
        except trio.WouldBlock:
            figures.lost += 1
