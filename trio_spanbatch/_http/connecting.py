"""Connections over TCP: look names up under a separate limiter, then connect by address.

Looking a name up blocks a thread. trio's default limiter has 40 for the whole program, and a name server that hangs
would soon occupy all of them. So lookups have a separate limiter.

Of several addresses the next one is tried while the one before has not answered: "happy eyeballs" (RFC 8305), with
the families in turns (section 4) and a quarter of a second between two attempts (section 5).
"""

from __future__ import annotations

import itertools
import socket
from collections.abc import Sequence
from typing import Any, Protocol, TypeAlias

import attrs
import trio

from .._exceptions import fatal_part, leaves
from .wire import Link, SocketLink

# Threads that look up names, for each transport. Lookups of one name mostly wait for the same server.
_LOOKUPS = 4

# Seconds until the next address is tried too. (RFC 8305, section 5)
_STAGGER = 0.25


class Network(Protocol):
    """How connections are made."""

    async def connect_tcp(self, host: str, port: int) -> Link:
        """Return a connection to ``host``; `OSError` if there is none."""


# Family, kind, protocol, canonical name and name, as `socket.getaddrinfo` returns them.
_Address: TypeAlias = tuple[int, int, int, str, Any]


@attrs.define
class TCPNetwork:
    """The network of the operating system."""

    # The path of a Unix domain socket. All hosts and ports then lead there, and no name is looked up.
    uds: str | None = None
    _limiter: trio.CapacityLimiter = attrs.field(init=False, factory=lambda: trio.CapacityLimiter(_LOOKUPS))

    async def connect_tcp(self, host: str, port: int) -> Link:
        """Return a connection to ``host``, or to the Unix domain socket; `RuntimeError` if no thread can be started."""
        if self.uds is not None:
            return SocketLink(await _connected((socket.AF_UNIX, socket.SOCK_STREAM, 0, "", self.uds)))
        return SocketLink(await _first_connected(_in_turns(await self._addresses(host, port))))

    async def _addresses(self, host: str, port: int) -> list[_Address]:
        try:
            # An address needs no lookup. Positional, as trio's own calls are, for programs that replace the function.
            found = socket.getaddrinfo(host, port, 0, socket.SOCK_STREAM, 0, socket.AI_NUMERICHOST)
        except socket.gaierror:
            # An abandoned thread keeps its place in the limiter until its lookup ends.
            found = await trio.to_thread.run_sync(
                socket.getaddrinfo, host, port, 0, socket.SOCK_STREAM, abandon_on_cancel=True, limiter=self._limiter
            )
        if not found:
            raise socket.gaierror(socket.EAI_NONAME, "the name has no address")
        return list(found)


def _in_turns(addresses: Sequence[_Address]) -> list[_Address]:
    """Return the addresses with the families in turns, that of the first one first."""
    first = [address for address in addresses if address[0] == addresses[0][0]]
    others = [address for address in addresses if address[0] != addresses[0][0]]
    pairs = itertools.zip_longest(first, others)
    return [address for pair in pairs for address in pair if address is not None]


async def _connected(address: _Address) -> trio.socket.SocketType:
    family, kind, protocol, _, name = address
    sock = trio.socket.socket(family, kind, protocol)
    try:
        if family != getattr(socket, "AF_UNIX", None):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        await sock.connect(name)
    except BaseException:
        sock.close()
        raise
    return sock


async def _first_connected(addresses: Sequence[_Address]) -> trio.socket.SocketType:
    """Return a socket that is connected to the first of ``addresses`` that answers, or raise the first error."""
    if len(addresses) == 1:
        return await _connected(addresses[0])
    race = _Race()
    interruption: BaseException | None = None
    try:
        async with trio.open_nursery() as nursery:
            for number, address in enumerate(addresses):
                failed = trio.Event()
                nursery.start_soon(race.run, number, address, failed, nursery.cancel_scope)
                with trio.move_on_after(_STAGGER):
                    await failed.wait()
    except BaseException as error:  # noqa: ASYNC103  # raised below, without the nursery's group
        if race.winner is not None:
            race.winner.close()
        interruption = fatal_part(error) or leaves(error)[0]
    try:
        if interruption is not None:
            raise interruption
        if race.winner is None:
            raise race.errors[min(race.errors)]
        return race.winner
    finally:
        # The tracebacks of exceptions lead back here.
        race.errors.clear()
        del interruption


@attrs.define
class _Race:
    winner: trio.socket.SocketType | None = None
    errors: dict[int, Exception] = attrs.field(factory=dict)

    async def run(self, number: int, address: _Address, failed: trio.Event, others: trio.CancelScope) -> None:
        try:
            sock = await _connected(address)
        except Exception as error:  # also a TypeError for an address that a replaced `getaddrinfo` makes up
            self.errors[number] = error
            failed.set()
            return
        if self.winner is None:
            self.winner = sock
            others.cancel()
        else:
            sock.close()
