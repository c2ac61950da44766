"""Keeping credentials out of the logs of httpx and httpcore, and of httpx2 and httpcore2.

They do not log what we send. But at DEBUG httpcore logs the head of each response, and httpx logs its reason phrase at
INFO; a server that echoes a token there (in a ``Location``, a ``Set-Cookie``) would have it written to the program's
logs. So their loggers get a filter, which takes out the credentials of the exchange that runs in the current task. It
does nothing outside our exchanges.

With HTTP/2, which a client of the user's own may speak, hpack logs each header at DEBUG, also of requests.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from .secrets import redacted

__all__ = ["hidden_in_logs", "install_log_filter"]

_LOGGERS = (
    *("httpx", "httpx2"),
    *(
        f"{package}.{part}"
        for package in ("httpcore", "httpcore2")
        for part in ("connection", "http11", "http2", "proxy", "socks")
    ),
    "hpack.hpack",
    "hpack.table",
)
_secrets: ContextVar[Callable[[], Collection[str]] | None] = ContextVar("trio_spanbatch secrets", default=None)


class _SecretFilter(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        """Take the secrets out of ``record``, and let it pass."""
        if (secrets := _secrets.get()) is not None:
            message = record.getMessage()
            cleaned = redacted(message, secrets())
            if cleaned != message:
                record.msg, record.args = cleaned, ()
        return True


def install_log_filter() -> None:
    """Put the filter on the loggers of httpx and httpcore, once."""
    for name in _LOGGERS:
        logger = logging.getLogger(name)
        if not any(isinstance(present, _SecretFilter) for present in logger.filters):
            logger.addFilter(_SecretFilter())


@contextmanager
def hidden_in_logs(secrets: Callable[[], Collection[str]]) -> Iterator[None]:
    """Keep secrets out of what the current task has httpx and httpcore log.

    Args:
        secrets: Returns them. More of them may be known as the exchange goes on.
    """
    before = _secrets.set(secrets)
    try:
        yield
    finally:
        _secrets.reset(before)
