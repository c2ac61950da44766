"""A logger whose handlers cannot disturb the accounting of spans."""

from __future__ import annotations

import logging
import sys
import traceback
from collections.abc import MutableMapping
from contextlib import suppress
from typing import Any, TypeAlias

from trio.lowlevel import currently_ki_protected

from .._exceptions import fatal_part, forget_traceback

AnyLogger: TypeAlias = "logging.Logger | logging.LoggerAdapter[logging.Logger]"


class Log(logging.LoggerAdapter[logging.Logger]):
    """Logs through a logger, and raises nothing while the batcher works.

    An exception from a filter, or from a handler whose ``emit`` does not call `logging.Handler.handleError`, leaves the
    logging call, which here may be in the middle of settling a batch or in the drain. So it is printed to stderr
    instead, as `logging` does for its handlers, unless `logging.raiseExceptions` is false. If a handler exits the
    program, that takes effect when the batcher is left.

    Attributes:
        is_running: Whether the batcher is entered, so that an exception that has to end the program can be raised when
            it is left.
        fatal: The first exception that has to end the program; raised when the batcher is left.
    """

    is_running: bool = False
    fatal: BaseException | None = None

    def log(self, level: int, msg: object, *args: object, **kwargs: Any) -> None:
        """Log a message. All other methods call this one."""
        # The record must have the caller's file and line, not this one.
        kwargs["stacklevel"] = kwargs.get("stacklevel", 1) + 1
        try:
            super().log(level, msg, *args, **kwargs)
        except BaseException as exc:  # noqa: ASYNC103  # a synchronous call raises no Cancelled of this task
            # Without KeyboardInterrupt protection the caller is the program itself, which may be interrupted or exit
            # here.
            if fatal_part(exc) is not None and not (self.is_running and currently_ki_protected()):
                raise
            self.keep_if_fatal(exc)
            if logging.raiseExceptions:
                with suppress(Exception):
                    sys.stderr.write(f"--- Logging error in trio_spanbatch ---\n{traceback.format_exc()}")

    def caught(self, exc: BaseException, msg: str, *args: object) -> None:
        """Log an exception from the program's code. If it has to end the program, keep it, to be raised later."""
        self.error(msg, *args, exc_info=exc, stacklevel=2)
        if not self.keep_if_fatal(exc):
            forget_traceback(exc)

    def keep_if_fatal(self, exc: BaseException) -> bool:
        """Return whether ``exc`` has to end the program. The first such exception is kept."""
        fatal = fatal_part(exc)
        self.fatal = self.fatal or fatal
        return fatal is not None

    def process(self, msg: Any, kwargs: MutableMapping[str, Any]) -> tuple[Any, MutableMapping[str, Any]]:
        """Say who speaks: a program's log may show no logger's name."""
        return f"SpanBatcher: {msg}", kwargs
