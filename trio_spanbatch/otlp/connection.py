"""Two things about a connection that httpcore leaves open: how much it reads at once, and when it may be used again.

httpcore reads 64 KiB at a time, and what stands in them reaches us without a checkpoint in between. A server can put
ten thousand chunks of one byte into that, or thousands of interim responses: a second of work in one go, in which no
other task runs and no deadline is noticed. So less is read at once.

A connection is used again once its response is complete. What a server has sent beyond it (the same response twice, a
body longer than it said, a body where there is none, a 408 because nothing came) would then be taken for the answer
to the *next* request, which belongs to another batch and perhaps to another location. Such bytes can be in three
places. In the socket: httpcore looks there before it uses a connection again. In the buffer of h11, and between the
socket and TLS: it does not look there, so that is done here, when a response has been read and its connection is not
in the pool yet.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import httpx
import trio

from .packages import classes

__all__ = ["READ_AT_ONCE", "read_in_small_pieces", "retire_if_more_was_sent"]

# Bytes. A response is usually smaller than this, head and all; 4 MiB of one take 0.2 s longer than in large pieces.
READ_AT_ONCE = 1024

# Where httpx and httpcore keep the h11 connection of a response. There is no public way to it.
_WAY_TO_H11 = ("_stream", "_httpcore_stream", "_stream", "_connection", "_h11_state")


def read_in_small_pieces(stream: Any) -> None:
    """Let no ``read`` of ``stream``, an `httpcore.AsyncNetworkStream`, return more than `READ_AT_ONCE` bytes.

    An attribute of the object hides its method: httpx has no public way to hand httpcore a network of one's own, and
    to a client that the user made it would come too late.
    """
    read: Callable[[int, float | None], Awaitable[bytes]] = stream.read

    async def read_a_piece(max_bytes: int, timeout: float | None = None) -> bytes:  # noqa: ASYNC109 - httpcore's
        return await read(min(max_bytes, READ_AT_ONCE), timeout)

    stream.read = read_a_piece


async def retire_if_more_was_sent(response: httpx.Response) -> None:
    """See to it that the connection of ``response`` is not used again if there is more on it than the response.

    It is closed with the response. Only for a response that was read to its end and is not closed yet. A response
    without a connection, or over HTTP/2, where every frame says what it belongs to, is left alone.

    This never waits for the server, and cannot be cancelled: the answer is here and is to be told.
    """
    stream = response.extensions.get("network_stream")
    if stream is None or not response.http_version.startswith("HTTP/1"):
        return
    # If a later version keeps it elsewhere, connections are not used again: slower, but never wrong.
    left_in_h11 = _left_in_h11(response)
    if left_in_h11 != b"" or (stream.get_extra_info("ssl_object") is not None and await _has_more(stream)):
        _retire(stream)


def _left_in_h11(response: httpx.Response) -> bytes | None:
    """Return what h11 has received beyond the response; ``None`` if that is not known."""
    found: Any = response.stream
    for name in _WAY_TO_H11:
        found = getattr(found, name, None)
    trailing: tuple[bytes, bool] | None = getattr(found, "trailing_data", None)
    return None if trailing is None else trailing[0]


async def _has_more(stream: Any) -> bool:
    """Return whether there is anything to read, the end of the stream included, without waiting for it.

    Whether TLS has records that it has not decrypted yet, only reading tells. A shield without a deadline: it is
    cancelled in the scheduler's next step.
    """
    with trio.CancelScope(shield=True) as scope:
        trio.lowlevel.current_trio_token().run_sync_soon(scope.cancel)
        with suppress(*classes("NetworkError", package="httpcore")):
            await stream.read(1, None)
        return True
    return False


def _retire(stream: Any) -> None:
    """Let httpcore take the connection for one that the server has closed, so that its pool closes it too.

    Closing ``stream`` from here would do harm: httpcore asks trio whether the socket is readable, and for one that is
    closed trio raises.
    """
    extra_info: Callable[[str], Any] = stream.get_extra_info

    def get_extra_info(info: str) -> Any:
        return True if info == "is_readable" else extra_info(info)

    stream.get_extra_info = get_extra_info
