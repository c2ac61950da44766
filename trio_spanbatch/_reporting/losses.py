"""Reports spans that were not delivered, to ``on_loss`` or by keeping their batches."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from .._errors import OTHER_REASONS
from .._spans.batch import SpanHeaders
from .._values import counted
from .log import Log
from .statistics import Loss
from .throttle import Throttle

# Exporters may produce any number of different reasons. This many are counted separately, the others together.
_MAX_REASONS = 20


class Losses:
    """Calls ``on_loss`` with each loss. Without an ``on_loss``, keeps the undelivered batches."""

    def __init__(
        self, on_loss: Callable[[Loss], object] | None, max_kept_bytes: int, logger: Log, clock: Callable[[], float]
    ) -> None:
        self._on_loss = on_loss
        self._max_kept_bytes = max_kept_bytes
        self._logger = logger
        self._warnings = Throttle(clock)
        self._kept: list[Loss] = []
        self._kept_bytes = 0
        # By id: headers that several spans share are in memory only once, and counted only once.
        self._kept_headers: dict[int, SpanHeaders] = {}
        self._not_kept = 0
        self._reasons: Counter[tuple[str, str]] = Counter()

    @property
    def kept(self) -> tuple[Loss, ...]:
        """The undelivered batches."""
        return tuple(self._kept)

    def report(self, loss: Loss) -> None:
        """Report a loss. Its spans must be accounted for already, as ``on_loss`` may use the batcher."""
        self._count(loss)
        if self._on_loss is None:
            self._keep(loss)
            return
        try:
            self._on_loss(loss)
        except BaseException as exc:  # noqa: ASYNC103  # a synchronous call raises no Cancelled of this task
            self._logger.caught(exc, "on_loss raised for %d %s spans of %r", loss.count, loss.outcome, loss.location)

    def reasons(self, outcome: str) -> dict[str, int]:
        """Return the number of spans for each reason of one outcome, most frequent reason first."""
        return {reason: count for (of, reason), count in self._reasons.most_common() if of == outcome}

    def summary(self, outcome: str) -> str:
        """Return the reasons for one outcome, with the number of spans for each, as text."""
        reasons = [f"{reason}: {count}" for reason, count in self.reasons(outcome).items()]
        if self._not_kept and outcome == "undelivered":
            reasons.append(f"{self._not_kept} of them beyond max_pending_bytes and not kept")
        return "; ".join(reasons)

    def _count(self, loss: Loss) -> None:
        key = (loss.outcome, loss.reason)
        if key not in self._reasons and len(self._reasons) >= _MAX_REASONS:
            key = (loss.outcome, OTHER_REASONS)
        self._reasons[key] += loss.count

    def _keep(self, loss: Loss) -> None:
        if loss.outcome != "undelivered":
            return
        spans = loss.batch.spans
        headers = {id(span.headers): span.headers for span in spans if id(span.headers) not in self._kept_headers}
        cost = sum(span.size for span in spans) + sum(own.size for own in headers.values())
        if self._kept_bytes + cost > self._max_kept_bytes:
            self._not_kept += loss.count
            if self._warnings.allows():
                self._logger.error(
                    "%s of %r %s not kept, %d in all: SpanBatcher.undelivered holds "
                    "max_pending_bytes already; give on_loss= to receive all of them",
                    counted(loss.count, "undelivered span"),
                    loss.location,
                    "is" if loss.count == 1 else "are",
                    self._not_kept,
                )
            return
        self._kept_bytes += cost
        self._kept_headers.update(headers)
        self._kept.append(loss)
