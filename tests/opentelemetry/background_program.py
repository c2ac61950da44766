"""A program that traces with `background_batcher`, for tests with real signals.

Run as python -m tests.opentelemetry.background_program SCENARIO. It reports its progress, a word per line, and finally
one line of JSON: the names of the spans that the exporter delivered and of those that were handed back.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import attrs
import trio

from opentelemetry.sdk.trace import TracerProvider
from trio_spanbatch import BatchPolicy, Delivered, ExportResult, Loss, SpanBatch
from trio_spanbatch.opentelemetry import BatcherSpanProcessor, background_batcher

SPANS = 20


def say(word: str) -> None:
    os.write(1, f"{word}\n".encode())


@attrs.define
class Exporter:
    """Delivers, or hangs. It says when it begins."""

    hangs: bool
    delivered: list[str] = attrs.Factory(list)

    async def export(self, batch: SpanBatch) -> ExportResult:
        say("exporting")
        if self.hangs:
            await trio.sleep_forever()
        await trio.lowlevel.checkpoint()
        self.delivered += names(batch)
        return Delivered()

    async def aclose(self) -> None:
        await trio.lowlevel.checkpoint()


def names(batch: SpanBatch) -> list[str]:
    return [span.to_message().name for span in batch.spans]


def end_spans(provider: TracerProvider) -> None:
    tracer = provider.get_tracer("tests")
    for number in range(SPANS):
        tracer.start_span(f"span {number}").end()
    say("ready")


def wait() -> None:
    """Wait for a signal."""
    while True:
        time.sleep(60)


async def wait_async(provider: TracerProvider) -> None:
    end_spans(provider)
    await asyncio.sleep(3600)


async def use_inside(use: Callable[[], None]) -> None:
    """Call ``use`` in a task of asyncio, which it blocks."""
    loop_ran = asyncio.get_running_loop().create_future()
    loop_ran.set_result(None)
    await loop_ran
    use()


def work(scenario: str, provider: TracerProvider) -> None:
    match scenario.split():
        case ["asyncio", *_]:
            asyncio.run(wait_async(provider))
        case ["thread", *_]:
            thread = threading.Thread(target=end_spans, args=[provider])
            thread.start()
            thread.join()
            wait()
        case ["ends", *_]:
            end_spans(provider)
        case ["raises", *_]:
            end_spans(provider)
            raise ValueError("of the body")
        case _:
            end_spans(provider)
            wait()


def main(scenario: str) -> None:
    exporter = Exporter(hangs="hangs" in scenario)
    lost: list[str] = []

    def on_loss(loss: Loss) -> None:
        lost.extend(names(loss.batch))
        say(f"lost: {loss}")

    provider = TracerProvider(shutdown_on_exit=False)
    error: BaseException | None = None
    options: dict[str, Any] = {"batch": BatchPolicy(max_delay=3600), "shutdown_timeout": 3600, "on_loss": on_loss}
    processors: list[BatcherSpanProcessor] = []

    def use() -> None:
        with background_batcher(exporter, **options) as processor:
            processors.append(processor)
            provider.add_span_processor(processor)
            work(scenario.removeprefix("inside "), provider)

    # As docs/frameworks.md says.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        if scenario.startswith("inside "):
            asyncio.run(use_inside(use))
        else:
            use()
    except BaseException as exc:  # noqa: ASYNC103  # reported
        error = exc
    statistics = processors[0].batcher.statistics()
    report = {
        "error": None if error is None else type(error).__name__,
        "notes": getattr(error, "__notes__", []),
        "context": type(error.__context__).__name__ if error is not None else None,
        "delivered": exporter.delivered,
        "lost": lost,
        "accepted": statistics.accepted,
        "pending": statistics.queued + statistics.in_flight,
        "threads": [thread.name for thread in threading.enumerate() if "trio_spanbatch" in thread.name],
    }
    say(json.dumps(report))


if __name__ == "__main__":
    main(sys.argv[1])
