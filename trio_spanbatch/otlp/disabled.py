"""The exporter that sends nothing."""

from __future__ import annotations

import attrs
import trio

from .._batch import SpanBatch
from .._results import ExportResult, Refused

__all__ = ["DisabledExporter"]


@attrs.frozen
class DisabledExporter:
    """Refuses every batch, as ``OTEL_SDK_DISABLED=true`` asks for.

    Attributes:
        reason: What is said about each batch.
    """

    reason: str = "OTEL_SDK_DISABLED is true: nothing is sent"

    async def export(self, batch: SpanBatch) -> ExportResult:
        """Refuse ``batch``."""
        await trio.lowlevel.checkpoint()
        return Refused(self.reason)

    async def aclose(self) -> None:
        """Do nothing: there is nothing to close."""
        await trio.lowlevel.checkpoint()
