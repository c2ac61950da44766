"""Limits for cases in which adding must never wait for room."""

from __future__ import annotations

from trio_spanbatch import Limits

__all__ = ["ROOM_FOR_ALL"]

ROOM_FOR_ALL = Limits(max_queued_spans=1_000_000, max_pending_bytes=1 << 30, max_pending_bytes_per_location=1 << 30)
