"""Zerobus first, and the workspace for what Zerobus does not take.

One call of `export` sends the batch to Zerobus and, if Zerobus certainly did not store it, to the workspace, within the
timeout of one attempt. The batcher counts that as one request. If too little time is left, or the outcome is unknown,
the result is `TryLater`, and the next attempt goes to the workspace.
"""

from __future__ import annotations

import enum
import logging
import weakref

import trio

from .._exporter import Delivered, ExportResult, Refused, TryLater
from .._http.auth import AuthError
from .._spans.batch import SpanBatch
from .databricks_auth import DatabricksAuth
from .tables import Options, UnityCatalogExporter
from .zerobus import Zerobus

__all__ = ["ZerobusFirst"]

logger = logging.getLogger(__name__)

# Seconds for which everything goes to the workspace.
_AWAY = 3600.0

# The most of an attempt's time that an endpoint and a token may take, and what must be left of it to begin another
# exchange.
_FOR_TOKENS = 1 / 2
_FOR_ANOTHER = 1 / 4

# Answers that are about one batch.
_ABOUT_A_BATCH = (408, 413, 429)


class _Goes(enum.Enum):
    """What goes to the workspace after an attempt at Zerobus."""

    NOTHING = enum.auto()
    THIS_BATCH = enum.auto()
    EVERYTHING = enum.auto()


class ZerobusFirst(UnityCatalogExporter):
    """Sends to tables of Unity Catalog through Zerobus, or else through the workspace."""

    def __init__(self, workspace: str, auth: DatabricksAuth, decodes: bool, options: Options) -> None:
        super().__init__(workspace, auth, decodes, options)
        self._zerobus = Zerobus(workspace, self, auth, None, options)
        # When Zerobus is tried again; None while it is used.
        self._back_at: float | None = None
        self._trying = False
        self._has_told = False
        # Batches that Zerobus may have, or for which there was no time left.
        self._for_workspace: weakref.WeakSet[SpanBatch] = weakref.WeakSet()

    async def aclose(self) -> None:
        """Close the clients and their connections, unless the client was given; see `OTLPExporter`."""
        try:
            await self._zerobus.aclose()
        finally:
            # It closes its own also when it is cancelled, within a second.
            await super().aclose()  # noqa: ASYNC102

    async def _send(self, batch: SpanBatch, sent: SpanBatch, seconds: float) -> ExportResult:
        if not self._is_for_zerobus(batch):
            return await super()._send(batch, sent, seconds)
        began = trio.current_time()
        self._trying = is_trial = self._back_at is not None
        try:
            result, goes = await self._send_to_zerobus(sent, seconds)
        finally:
            if is_trial:
                self._trying = False
        self._note(result, goes, is_trial)
        if goes is _Goes.NOTHING:
            if isinstance(result, TryLater) and result.ambiguous and not _is_ill(result):
                self._for_workspace.add(batch)
            return result
        left = seconds - (trio.current_time() - began)
        if left < seconds * _FOR_ANOTHER:
            self._for_workspace.add(batch)
            return TryLater(_reason(result), status_code=None if isinstance(result, Delivered) else result.status_code)
        return await super()._send(batch, sent, left)

    def _is_for_zerobus(self, batch: SpanBatch) -> bool:
        if batch in self._for_workspace:
            return False
        # Once the hour is over, one batch at a time finds out.
        return self._back_at is None or (self._back_at <= trio.current_time() and not self._trying)

    async def _send_to_zerobus(self, sent: SpanBatch, seconds: float) -> tuple[ExportResult, _Goes]:
        began = trio.current_time()
        exporter, has_token = None, False
        reason = "no token for Zerobus in time"
        with trio.move_on_after(seconds * _FOR_TOKENS):
            try:
                exporter = await self._zerobus.ready()
                await self._zerobus.tokens.headers(sent.location)
                has_token = True
            except AuthError as error:
                reason = error.reason
                if exporter is None and not error.retry:
                    # There is none for any table.
                    return TryLater(reason), _Goes.EVERYTHING
        if exporter is None or not has_token:
            return TryLater(reason), _Goes.THIS_BATCH
        result = await exporter._send(sent, sent, max(seconds - (trio.current_time() - began), 0.0))
        return self._judged(result, sent)

    def _judged(self, result: ExportResult, sent: SpanBatch) -> tuple[ExportResult, _Goes]:
        status = result.status_code
        if isinstance(result, Delivered):
            if result.rejected > len(sent.spans):
                reason = f"Zerobus says that it rejected {result.rejected} of {len(sent.spans)} spans"
                return TryLater(reason, ambiguous=True, status_code=status), _Goes.NOTHING
            return result, _Goes.EVERYTHING if result.rejected == len(sent.spans) else _Goes.NOTHING
        if status in _ABOUT_A_BATCH:
            return result, _Goes.THIS_BATCH
        if isinstance(result, Refused):
            if status is None:
                # It was not sent.
                return result, _Goes.THIS_BATCH
            if 300 <= status < 500:
                return result, _Goes.EVERYTHING
            # A 2xx that is no answer of Zerobus, or too long to be read.
            return TryLater(result.reason, ambiguous=True, status_code=status), _Goes.NOTHING
        if status is not None or result.ambiguous:
            return result, _Goes.NOTHING
        # Nothing was sent. Without a token, there was a 401 before and then no other token.
        has_token = self._zerobus.tokens.has_token(sent.location)
        return result, _Goes.EVERYTHING if has_token else _Goes.THIS_BATCH

    def _note(self, result: ExportResult, goes: _Goes, is_trial: bool) -> None:
        if goes is _Goes.EVERYTHING:
            if self._back_at is None:
                logger.warning(
                    "Zerobus does not take spans (%s): they go to %s instead, and Zerobus is tried again in an hour",
                    _reason(result),
                    self.endpoint,
                )
            self._back_at = trio.current_time() + _AWAY
        elif is_trial and (isinstance(result, Delivered) or result.status_code in _ABOUT_A_BATCH):
            self._back_at = None
            logger.info("Zerobus takes spans again")
        elif goes is _Goes.THIS_BATCH:
            level = logging.DEBUG if self._has_told else logging.WARNING
            self._has_told = True
            logger.log(level, "Zerobus did not take a batch (%s): it goes to %s", _reason(result), self.endpoint)


def _is_ill(result: TryLater) -> bool:
    """Whether Zerobus itself says that it cannot take anything now."""
    return result.status_code is not None and result.status_code >= 500


def _reason(result: ExportResult) -> str:
    if isinstance(result, Delivered):
        return f"all spans of a batch were rejected: {result.message or 'it does not say why'}"
    return result.reason
