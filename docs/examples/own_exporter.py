"""An exporter that appends each batch to a file per location, as one base64-encoded OTLP request per line."""

import base64
import tempfile
from pathlib import Path

import trio

from trio_spanbatch import Delivered, ExportResult, Refused, Span, SpanBatch, SpanBatcher, SpanContext, TryLater


class FileExporter:
    """A `SpanExporter` that writes files."""

    def __init__(self, directory: Path) -> None:
        self._directory = trio.Path(directory)

    async def export(self, batch: SpanBatch) -> ExportResult:
        """Append ``batch`` to its file."""
        line = base64.b64encode(batch.to_request()) + b"\n"
        try:
            async with await trio.open_file(self._directory / f"{batch.location}.otlp", "ab") as file:
                await file.write(line)
        except PermissionError as error:
            return Refused(str(error))
        except OSError as error:
            return TryLater(str(error))
        return Delivered()

    async def aclose(self) -> None:
        """Do nothing, as no file stays open."""
        await trio.lowlevel.checkpoint()


async def main() -> None:
    """Write a span."""
    directory = Path(tempfile.mkdtemp())
    async with SpanBatcher(FileExporter(directory)) as batcher:
        await batcher.add_span("orders", Span("order", SpanContext(1, 1), start_time=1, end_time=2))
    print(f"delivered: {batcher.statistics().delivered}")


trio.run(main)
