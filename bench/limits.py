"""Limits for cases in which adding must never wait, or with many connections."""

from __future__ import annotations

import resource

from trio_spanbatch import Limits

__all__ = ["LARGE_LIMITS", "allow_many_files"]

LARGE_LIMITS = Limits(max_queued_spans=1_000_000, max_pending_bytes=1 << 30, max_pending_bytes_per_location=1 << 30)


def allow_many_files() -> None:
    """Raise this process's limit of open files and sockets to the maximum: on many systems the default is 1,024."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
