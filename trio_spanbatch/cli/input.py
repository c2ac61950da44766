"""Read files and standard input in chunks, and decompress gzip."""

from __future__ import annotations

import gzip
import io
import os
import select
import stat
import sys
import zlib
from typing import TYPE_CHECKING

import trio

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

_CHUNK = 64 * 1024
_GZIP_MAGIC = b"\x1f"  # JSON never begins with it; one byte, as a pipe may return no more at first
_STDIN = 0


class InputFileError(Exception):
    """A file cannot be opened or read. The message says why."""


class _Waiting(io.FileIO):
    """Waits for data even if another process has made the shared file description non-blocking.

    Otherwise the absence of data would look like the end of the file. The flag is shared, so it is left alone.
    """

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        while True:
            # None means that there is no data yet; its annotation leaves that out.
            count: int | None = super().readinto(buffer)
            if count is not None:
                return count
            select.select([self], [], [])


class _AsItComes(io.BufferedReader):
    """Returns data from a pipe as soon as there is any. ``GzipFile`` calls ``read``, which would wait for more."""

    def read(self, size: int | None = -1, /) -> bytes:
        return self.read1(-1 if size is None else size)


class InputFile:
    """A file, or standard input for ``-``. It is read in a thread, as a pipe may block. Gzip is decompressed."""

    def __init__(self, name: str) -> None:
        self.name: str = "<stdin>" if name == "-" else name
        self._path = _STDIN if name == "-" else name
        self._buffered: io.BufferedReader | None = None
        self._unpacked: io.BufferedReader | gzip.GzipFile | None = None
        self._in_thread = False

    async def read(self) -> bytes:
        """Return the next bytes, at most 64 KiB, or ``b""`` at the end of the file."""
        self._in_thread = True
        return await trio.to_thread.run_sync(self._read, abandon_on_cancel=True)

    def _read(self) -> bytes:
        try:
            if self._unpacked is None:
                self._unpacked = self._open()
            return self._unpacked.read1(_CHUNK)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise InputFileError(f"the gzip data is damaged: {error}") from error
        except OSError as error:
            raise InputFileError(f"cannot be read: {error.strerror or error}") from error
        finally:
            self._in_thread = False

    def _open(self) -> io.BufferedReader | gzip.GzipFile:
        if self._is_closed_stdin:
            raise InputFileError("standard input is closed")
        self._buffered = _AsItComes(_Waiting(self._path, closefd=self._path != _STDIN), _CHUNK)
        packed = self._buffered.peek(1)[:1] == _GZIP_MAGIC
        return gzip.GzipFile(fileobj=self._buffered) if packed else self._buffered

    @property
    def _is_closed_stdin(self) -> bool:
        # Checked by Python at startup. By now another file may have the descriptor 0.
        return self._path == _STDIN and getattr(sys, "stdin", None) is None

    @property
    def position(self) -> int:
        """How many bytes of the file, before decompression, have been read; 0 if it has no position (a pipe)."""
        try:
            return 0 if self._buffered is None else self._buffered.raw.tell()
        except OSError:
            return 0

    def size(self) -> int | None:
        """Return the size of the file in bytes, or None if it is not a regular file."""
        if self._is_closed_stdin:
            return None
        try:
            status = os.stat(self._path)  # noqa: PTH116  # the path may be a file descriptor
        except OSError:
            return None
        return status.st_size if stat.S_ISREG(status.st_mode) else None

    def close(self) -> None:
        """Close the file, unless an abandoned thread is still reading it."""
        if self._buffered is not None and not self._in_thread:
            self._buffered.close()
