"""Keep what was not delivered in files, and send it later."""

import tempfile
from pathlib import Path
from urllib.parse import quote, unquote

import trio

from trio_spanbatch import Loss, RetryPolicy, Span, SpanBatch, SpanBatcher, SpanContext, TryLater
from trio_spanbatch.testing import InMemoryExporter


def keep(folder: Path, loss: Loss) -> None:
    """Append undelivered spans to the file of their location."""
    if loss.outcome == "undelivered":
        # Requests in a row are one request, so nothing is needed between them.
        with (folder / f"{quote(loss.location, safe='')}.pb").open("ab") as file:
            file.write(loss.batch.to_request())


async def send_again(folder: Path, batcher: SpanBatcher) -> None:
    """Add the spans in all files, and remove a file once its spans are accounted for."""
    for file in sorted(await trio.Path(folder).glob("*.pb")):
        location = unquote(file.stem)
        batch = SpanBatch.from_request(location, await file.read_bytes())
        await batcher.add_spans(location, batch.spans)
        report = await batcher.flush(location)
        if report.undelivered == 0:
            await file.unlink()


async def main(folder: Path) -> None:
    """Fail to deliver spans, and deliver them from the files."""
    down = InMemoryExporter(lambda batch: TryLater("connection refused"))
    impatient = RetryPolicy(initial=0.001, max_elapsed=0.01)
    async with SpanBatcher(down, retry=impatient, on_loss=lambda loss: keep(folder, loss)) as batcher:
        for number in range(1, 4):
            await batcher.add_span("eu/orders", Span("order", SpanContext(1, number), start_time=1, end_time=2))

    print("kept:", *[file.name for file in await trio.Path(folder).iterdir()])
    async with SpanBatcher(InMemoryExporter()) as second:
        await send_again(folder, second)
    print(f"delivered after all: {second.statistics().delivered}")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name:
        trio.run(main, Path(name))
