"""SOCKS5: asking a proxy to connect to a server (RFC 1928), with a user name and a password (RFC 1929).

Each reply is read to its last byte and no further, however it is cut into pieces: what follows belongs to the server.
"""

from __future__ import annotations

import ipaddress

import httpx
import trio

_NO_AUTHENTICATION, _USER_AND_PASSWORD = 0, 2
_IPV4, _NAME, _IPV6 = 1, 3, 4

# RFC 1928, section 6.
_REFUSALS = {
    1: "general failure",
    2: "not allowed by its rules",
    3: "network unreachable",
    4: "host unreachable",
    5: "connection refused",
    6: "TTL expired",
    7: "command not supported",
    8: "address type not supported",
}


async def connect_by_socks(stream: trio.abc.Stream, host: str, port: int, auth: tuple[str, str] | None) -> None:
    """Make a proxy connect ``stream`` to a server, whose name it looks up, or raise `httpx.ProxyError` or `OSError`."""
    method = _NO_AUTHENTICATION if auth is None else _USER_AND_PASSWORD
    await stream.send_all(bytes((5, 1, method)))
    version, chosen = await _read(stream, 2)
    if version != 5:
        raise httpx.ProxyError("it does not speak SOCKS5")
    if chosen != method:
        raise httpx.ProxyError(f"it {'wants a' if auth is None else 'does not take the'} user name and password")
    if auth is not None:
        await stream.send_all(b"\x01" + _counted(auth[0].encode()) + _counted(auth[1].encode()))
        _, status = await _read(stream, 2)
        if status != 0:
            raise httpx.ProxyError("it does not accept the user name and password")
    await stream.send_all(b"\x05\x01\x00" + _address(host) + port.to_bytes(2, "big"))
    _, code, _, kind = await _read(stream, 4)
    if code != 0:
        raise httpx.ProxyError(_REFUSALS.get(code, f"error {code}"))
    size = (await _read(stream, 1))[0] if kind == _NAME else {_IPV4: 4, _IPV6: 16}.get(kind, 0)
    # The address and port from which it connects.
    await _read(stream, size + 2)


def _address(host: str) -> bytes:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return bytes((_NAME,)) + _counted(host.encode("ascii"))
    return bytes((_IPV4 if address.version == 4 else _IPV6,)) + address.packed


def _counted(text: bytes) -> bytes:
    if len(text) > 255:
        raise httpx.ProxyError("SOCKS5 has no names and passwords of more than 255 bytes")
    return bytes((len(text),)) + text


async def _read(stream: trio.abc.Stream, count: int) -> bytes:
    data = b""
    while len(data) < count:
        piece = await stream.receive_some(count - len(data))
        if not piece:
            raise httpx.ProxyError("it ended the connection")
        data += piece
    return data
