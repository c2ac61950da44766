"""Standard output that cannot be written to: a full disk, a closed pipe."""

from __future__ import annotations

import errno
import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from .._exceptions import leaves

__all__ = ["OutputError", "check_output", "output_errors"]

_ERRNOS = frozenset({errno.EPIPE, errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EBADF})


class OutputError(Exception):
    """Standard output cannot be written to. The message says so, and why."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"cannot write the result: {reason}")


def check_output() -> None:
    """Have both streams show whatever comes: what they have no characters for, as escapes.

    Raises:
        OutputError: Standard output is closed.
    """
    # A closed one is None, which its type does not say.
    if getattr(sys, "stdout", None) is None:
        raise OutputError("standard output is closed")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


@contextmanager
def output_errors() -> Iterator[None]:
    """Make one `OutputError` of whatever says that standard output cannot be written to.

    From then on it leads nowhere: Python would try to write what is left of it once more at its end.
    """
    try:
        yield
    except (OSError, OutputError, BaseExceptionGroup) as error:
        failure = next(filter(None, map(_output_error, leaves(error))), None)
        if failure is None:
            raise
        _close_stdout()
        raise failure from error


def _output_error(error: BaseException) -> OutputError | None:
    if isinstance(error, OSError) and error.errno in _ERRNOS:
        return OutputError(os.strerror(error.errno))
    return error if isinstance(error, OutputError) else None


def _close_stdout() -> None:
    # What is no file has no such number.
    with suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
