"""Keeping credentials out of the logs of httpx and httpcore.

They do not log what we send. But at DEBUG httpcore logs the head of each response, and httpx logs its reason phrase at
INFO; a server that echoes a token there (in a ``Location``, a ``Set-Cookie``) would have it written to the program's
logs. So their loggers get a filter, which takes out the credentials of the exchange that runs in the current task. It
does nothing outside our exchanges.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

__all__ = ["hidden_in_logs", "install_log_filter"]

_LOGGERS = ("httpx", "httpcore.connection", "httpcore.http11", "httpcore.http2", "httpcore.proxy", "httpcore.socks")
_SECRETS: ContextVar[Collection[str]] = ContextVar("trio_spanbatch secrets", default=())


class _SecretFilter(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        """Take the secrets out of ``record``, and let it pass."""
        if secrets := _SECRETS.get():
            message = cleaned = record.getMessage()
            for secret in secrets:
                # As it is, and as it stands in the repr of a header.
                cleaned = cleaned.replace(secret, "***").replace(repr(secret)[1:-1], "***")
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
def hidden_in_logs(secrets: Collection[str]) -> Iterator[None]:
    """Keep ``secrets`` out of what the current task has httpx and httpcore log."""
    before = _SECRETS.set(secrets)
    try:
        yield
    finally:
        _SECRETS.reset(before)
