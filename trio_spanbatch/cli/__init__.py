"""The entry point of ``trio-spanbatch``. Without the extra ``cli``, it prints how to install it."""

from __future__ import annotations

import os
import sys

__all__ = ["main"]

_EXTRA = frozenset({"click", "rich"})
_DEBUG = "TRIO_SPANBATCH_DEBUG"


# What a shell reports for a program that SIGINT ended, without importing `signal`.
_CTRL_C = 128 + 2


def main() -> None:
    """Run the command line and exit."""
    try:
        _run()
    except KeyboardInterrupt:
        # Pressed before a command handles signals, most likely during its imports.
        sys.exit(_CTRL_C)


def _run() -> None:
    try:
        from .commands import cli
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing not in _EXTRA:
            raise
        _exit(f'{missing} is not installed; get it with: pip install "trio-spanbatch[cli]"')
    try:
        cli(prog_name="trio-spanbatch")
    except Exception as error:
        if os.environ.get(_DEBUG):
            raise
        _exit(f"unexpected error: {error!r}; set {_DEBUG}=1 for a traceback, and please report it")


def _exit(message: str) -> None:
    sys.stderr.write(f"trio-spanbatch: {message}\n")
    sys.exit(1)
