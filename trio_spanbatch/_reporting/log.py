"""The door through which messages leave: a program's log handlers must not reach into the accounting of spans."""

from __future__ import annotations

import logging
import sys
import traceback
from collections.abc import MutableMapping
from contextlib import suppress
from typing import Any, TypeAlias

from trio.lowlevel import currently_ki_protected

from .._exceptions import fatal_part, forget_traceback

__all__ = ["AnyLogger", "Log"]

AnyLogger: TypeAlias = "logging.Logger | logging.LoggerAdapter[logging.Logger]"


class Log(logging.LoggerAdapter[logging.Logger]):
    """Logs through a logger, and raises nothing in the middle of the batcher's work.

    `logging.Handler.handle` catches nothing by itself: what a filter raises, or a handler whose ``emit`` does not call
    `logging.Handler.handleError`, comes out of the call that logs. Here that would be in the middle of settling a
    batch, or in the drain. So it is shown on stderr instead, as `logging` shows what its own handlers fail with, unless
    `logging.raiseExceptions` is off. A handler that exits the program does so when the batcher is left.

    Attributes:
        is_running: Whether the batcher runs, so that what has to end the program can be raised later.
        fatal: The first exception that has to end the program; raised when the batcher is left.
    """

    is_running: bool = False
    fatal: BaseException | None = None

    def log(self, level: int, msg: object, *args: object, **kwargs: Any) -> None:
        """Log a message. All other methods go through this one."""
        # The caller's place, not this one, is that of the message.
        kwargs["stacklevel"] = kwargs.get("stacklevel", 1) + 1
        try:
            super().log(level, msg, *args, **kwargs)
        except BaseException as exc:  # noqa: ASYNC103  # logging is synchronous: no Cancelled of ours comes out of it
            # In code that is not protected, the caller is the program: it has been interrupted, or exits by itself.
            if fatal_part(exc) is not None and not (self.is_running and currently_ki_protected()):
                raise
            self.keep_if_fatal(exc)
            if logging.raiseExceptions:
                with suppress(Exception):
                    sys.stderr.write(f"--- Logging error in trio_spanbatch ---\n{traceback.format_exc()}")

    def caught(self, exc: BaseException, msg: str, *args: object) -> None:
        """Log what code of the program raised in the middle of the batcher's work. If fatal, it is raised later."""
        self.error(msg, *args, exc_info=exc, stacklevel=2)
        if not self.keep_if_fatal(exc):
            forget_traceback(exc)

    def keep_if_fatal(self, exc: BaseException) -> bool:
        """Return whether ``exc`` has to end the program. The first one that has to is kept."""
        fatal = fatal_part(exc)
        self.fatal = self.fatal or fatal
        return fatal is not None

    def process(self, msg: Any, kwargs: MutableMapping[str, Any]) -> tuple[Any, MutableMapping[str, Any]]:
        """Leave the message as it is, ``extra`` included."""
        return msg, kwargs
