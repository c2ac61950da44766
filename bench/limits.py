"""Limits for cases: in which adding must never wait for room, or with many connections."""

from __future__ import annotations

import resource

from trio_spanbatch import Limits

__all__ = ["ROOM_FOR_ALL", "allow_many_files"]

ROOM_FOR_ALL = Limits(max_queued_spans=1_000_000, max_pending_bytes=1 << 30, max_pending_bytes_per_location=1 << 30)


def allow_many_files() -> None:
    """Let this process open as many files and sockets as it may: by default it may open 1,024 on many systems."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
