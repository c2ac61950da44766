"""Send through Zerobus, and fall back to the workspace.

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

_logger = logging.getLogger(__name__)

# Seconds for which everything goes to the workspace.
_FALLBACK_PERIOD = 3600.0

# Fractions of an attempt's time: the most for the endpoint and a token, and the least for a second exchange.
_FOR_TOKENS = 1 / 2
_FOR_ANOTHER = 1 / 4

# Status codes that concern only the batch.
_ABOUT_A_BATCH = (408, 413, 429)


class _Fallback(enum.Enum):
    """What is sent to the workspace after an attempt at Zerobus."""

    NOTHING = enum.auto()
    THIS_BATCH = enum.auto()
    EVERYTHING = enum.auto()


class ZerobusFirst(UnityCatalogExporter):
    """Sends to tables of Unity Catalog through Zerobus, and falls back to the workspace."""

    _zerobus: Zerobus

    def __init__(self, workspace: str, auth: DatabricksAuth, decodes: bool, options: Options) -> None:
        super().__init__(workspace, auth, decodes, options)
        self._zerobus = Zerobus(workspace, self, auth, None, options)
        # When Zerobus is tried again; None while it is used.
        self._retry_at: float | None = None
        self._is_retrying = False
        self._has_warned = False
        # Batches that Zerobus may have stored, or for which no time was left. Their next attempt goes to the workspace.
        self._for_workspace: weakref.WeakSet[SpanBatch] = weakref.WeakSet()

    async def _send(self, batch: SpanBatch, sent: SpanBatch, seconds: float) -> ExportResult:
        if not self._is_for_zerobus(batch):
            # For this attempt only: if the workspace fails too, the batch must not depend on it.
            self._for_workspace.discard(batch)
            return await super()._send(batch, sent, seconds)
        began = trio.current_time()
        self._is_retrying = is_probe = self._retry_at is not None
        try:
            result, fallback = await self._send_to_zerobus(sent, seconds)
        except BaseException:
            # Cancelled, for instance because the batcher's attempt_timeout is shorter: the outcome is unknown.
            self._for_workspace.add(batch)
            raise
        finally:
            if is_probe:
                self._is_retrying = False
        self._note(result, fallback, is_probe)
        if fallback is _Fallback.NOTHING:
            # Not if Zerobus answered with a 5xx: it is unavailable.
            if isinstance(result, TryLater) and result.ambiguous and (result.status_code or 0) < 500:
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
        # After the hour, one batch at a time probes Zerobus.
        return self._retry_at is None or (self._retry_at <= trio.current_time() and not self._is_retrying)

    async def _send_to_zerobus(self, sent: SpanBatch, seconds: float) -> tuple[ExportResult, _Fallback]:
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
                    # There is no token for any table.
                    return TryLater(reason), _Fallback.EVERYTHING
        if exporter is None or not has_token:
            return TryLater(reason), _Fallback.THIS_BATCH
        result = await exporter._send(sent, sent, max(seconds - (trio.current_time() - began), 0.0))
        return self._fallback_after(result, sent)

    def _fallback_after(self, result: ExportResult, sent: SpanBatch) -> tuple[ExportResult, _Fallback]:
        status = result.status_code
        if isinstance(result, Delivered):
            if result.rejected > len(sent.spans):
                reason = f"Zerobus reported {result.rejected} of {len(sent.spans)} spans as rejected"
                return TryLater(reason, ambiguous=True, status_code=status), _Fallback.NOTHING
            return result, _Fallback.EVERYTHING if result.rejected == len(sent.spans) else _Fallback.NOTHING
        if status in _ABOUT_A_BATCH:
            return result, _Fallback.THIS_BATCH
        if isinstance(result, Refused):
            if status is None:
                # The batch was not sent.
                return result, _Fallback.THIS_BATCH
            if 300 <= status < 500:
                return result, _Fallback.EVERYTHING
            # A 2xx with a body that is not Zerobus' or is too large.
            return TryLater(result.reason, ambiguous=True, status_code=status), _Fallback.NOTHING
        if status is not None or result.ambiguous:
            return result, _Fallback.NOTHING
        # Nothing was sent. If there is no token now, it was refused with a 401 and could not be replaced.
        has_token = self._zerobus.tokens.has_token(sent.location)
        return result, _Fallback.EVERYTHING if has_token else _Fallback.THIS_BATCH

    def _note(self, result: ExportResult, fallback: _Fallback, is_probe: bool) -> None:
        if fallback is _Fallback.EVERYTHING:
            if self._retry_at is None:
                _logger.warning(
                    "Zerobus does not accept spans (%s): they go to %s instead, and Zerobus is tried again in an hour",
                    _reason(result),
                    self.endpoint,
                )
            self._retry_at = trio.current_time() + _FALLBACK_PERIOD
        elif is_probe and (isinstance(result, Delivered) or result.status_code in _ABOUT_A_BATCH):
            self._retry_at = None
            _logger.info("Zerobus accepts spans again")
        elif fallback is _Fallback.THIS_BATCH:
            level = logging.DEBUG if self._has_warned else logging.WARNING
            self._has_warned = True
            _logger.log(level, "Zerobus did not accept a batch (%s): it goes to %s", _reason(result), self.endpoint)


def _reason(result: ExportResult) -> str:
    if isinstance(result, Delivered):
        return f"all spans of a batch were rejected: {result.message or 'no reason was given'}"
    return result.reason
