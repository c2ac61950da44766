"""The door through which messages leave: a program's log handlers must not reach into the accounting of spans."""

from __future__ import annotations

import logging
import sys
import traceback
from collections.abc import MutableMapping
from contextlib import suppress
from typing import Any, TypeAlias

__all__ = ["AnyLogger", "Log"]

AnyLogger: TypeAlias = "logging.Logger | logging.LoggerAdapter[logging.Logger]"


class Log(logging.LoggerAdapter[logging.Logger]):
    """Logs through a logger, and raises no `Exception`.

    `logging.Handler.handle` catches nothing by itself: what a filter raises, or a handler whose ``emit`` does not call
    `logging.Handler.handleError`, comes out of the call that logs. Here that would be in the middle of settling a
    batch, or in the drain. So it is shown on stderr instead, as `logging` shows what its own handlers fail with, unless
    `logging.raiseExceptions` is off.
    """

    def log(self, level: int, msg: object, *args: object, **kwargs: Any) -> None:
        """Log a message. All other methods go through this one."""
        # The caller's place, not this one, is that of the message.
        kwargs["stacklevel"] = kwargs.get("stacklevel", 1) + 1
        try:
            super().log(level, msg, *args, **kwargs)
        except Exception:
            if logging.raiseExceptions:
                with suppress(Exception):
                    sys.stderr.write(f"--- Logging error in trio_spanbatch ---\n{traceback.format_exc()}")

    def process(self, msg: Any, kwargs: MutableMapping[str, Any]) -> tuple[Any, MutableMapping[str, Any]]:
        """Leave the message as it is, ``extra`` included."""
        return msg, kwargs
