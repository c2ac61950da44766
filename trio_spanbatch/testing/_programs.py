"""Tests of programs that make their batchers themselves."""

from __future__ import annotations

from collections.abc import Callable
from threading import get_ident
from typing import Self

import trio

from .._arguments import ExporterFor, exporter_in_tests, exporters_for_threads
from .._batcher import SpanBatcher
from .._exporter import ExportResult, SpanExporter
from .._spans.batch import SpanBatch
from ._checks import check_function

# The optional methods and properties of an exporter.
_OPTIONAL = ("check_location", "endpoint_of", "reason_to_hand_back", "timeout")


class exporting_to:  # noqa: N801  # it reads like a call
    """Inside ``with exporting_to(exporter):``, each ``SpanBatcher()`` without an exporter sends to this one.

    This applies to the code inside and to the tasks and threads that it starts, not to other tasks that run at the same
    time. A batcher with an exporter of its own is not affected.

    Args:
        exporter: A `SpanExporter` for all batchers, which do not close it; or a function without parameters that
            returns one for each batcher, such as `OTLPReceiver.exporter`.

    Attributes:
        batchers: The batchers that were made so far.
    """

    def __init__(self, exporter: SpanExporter | Callable[[], SpanExporter]) -> None:
        is_exporter = all(callable(getattr(exporter, name, None)) for name in ("export", "aclose"))
        if isinstance(exporter, type) or not is_exporter:
            check_function("exporter", exporter, "a SpanExporter, or a function that returns one")
        self.batchers: list[SpanBatcher] = []
        self._make: Callable[[], SpanExporter] = (lambda: _Shared(exporter)) if is_exporter else exporter  # type: ignore[arg-type, assignment]  # checked
        self._before: list[ExporterFor | None] = []

    def __enter__(self) -> Self:
        self._before.append(exporter_in_tests.get())
        exporter_in_tests.set(self._exporter_for)
        self._entry = get_ident(), self._exporter_for
        exporters_for_threads.append(self._entry)
        return self

    def __exit__(self, *exc: object) -> None:
        exporters_for_threads.remove(self._entry)
        exporter_in_tests.set(self._before.pop())

    def assert_no_losses(self) -> None:
        """Raise `AssertionError`, in one line, if spans of `batchers` are pending, undelivered or rejected."""
        problems: list[str] = []
        for batcher in self.batchers:
            runtime = batcher._runtime
            if pending := runtime.scheduler.ledger.total.pending:
                problems.append(f"{pending} {'span is' if pending == 1 else 'spans are'} pending")
            if (error := runtime.losses_as_error()) is not None:
                problems.append(str(error))
        if problems:
            raise AssertionError("; ".join(problems))

    def _exporter_for(self, batcher: object) -> SpanExporter:
        assert isinstance(batcher, SpanBatcher)
        self.batchers.append(batcher)
        return self._make()


class _Shared:
    """An exporter for several batchers, which they do not close."""

    def __init__(self, exporter: SpanExporter) -> None:
        self._exporter = exporter
        for name in _OPTIONAL:
            if hasattr(exporter, name):
                setattr(self, name, getattr(exporter, name))

    async def export(self, batch: SpanBatch) -> ExportResult:
        return await self._exporter.export(batch)

    async def aclose(self) -> None:
        await trio.lowlevel.checkpoint()
