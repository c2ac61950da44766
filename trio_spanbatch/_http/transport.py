"""A transport for httpx that says truthfully how far a request got: connections, TLS and proxies over trio's streams.

httpx's own transport cannot do what an exporter needs: read a response while the request is still being written, say
whether anything was sent, end connections by age and after a 503, look names up without the program's threads, and
read renewed certificates. It also looks at all its connections whenever a request begins or ends. Here each server has
a stack of idle connections: the one that was used last is used next, and the oldest are closed.

There is no limit on connections: the batcher limits its exports.
"""

from __future__ import annotations

import math
import ssl
from base64 import b64encode
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any, TypeAlias

import attrs
import h11
import httpx
import trio

from .._exceptions import forget_traceback
from .body import BoundedBody
from .connecting import Network, TCPNetwork
from .connection import WRITE_AT_ONCE, Answer, Connection
from .proxies import DEFAULT_PORTS
from .socks import connect_by_socks
from .wire import Wire

# Scheme, host and port of a server.
_Origin: TypeAlias = tuple[str, str, int]

# With either scheme of SOCKS5, the proxy looks names up.
_PROXY_PORTS = {**DEFAULT_PORTS, "socks5": 1080, "socks5h": 1080}


@attrs.define
class Progress:
    """How far a request got. The transport fills it in if it is the request's extension ``"progress"``."""

    # The headers for a proxy, whose credentials must not be shown.
    proxy_headers: list[tuple[bytes, bytes]] = attrs.field(factory=list, repr=False)
    peer: str = ""  # host and port that the request is sent to: the server's, or a proxy's
    connected: bool = False  # whether a connection was made for this request
    begun: Connection | None = None  # the connection, if `HTTPTransport.begin` has sent the request
    _connection: Connection | None = None
    _sent_before: int = 0

    @property
    def sent(self) -> bool:
        return self._connection is not None and self._connection.wire.sent > self._sent_before

    @property
    def write_error(self) -> OSError | None:
        return None if self._connection is None else self._connection.wire.write_error

    @property
    def answer(self) -> Answer | None:
        """The whole response, if `HTTPTransport.begin` can recognize it; asked for as soon as it was read."""
        return None if self._connection is None else self._connection.answer

    def uses(self, connection: Connection) -> None:
        self._connection = connection
        self._sent_before = connection.wire.sent


class HTTPTransport(httpx.AsyncBaseTransport):
    """Sends requests by HTTP/1.1 over TCP, TLS, Unix domain sockets and proxies.

    Of httpx's timeouts, those for connecting and for reading apply. The contexts are asked for with each new connection
    to a server, or to an https proxy. An HTTP proxy forwards requests to http servers; all others go through a tunnel.
    """

    def __init__(
        self,
        context: Callable[[], ssl.SSLContext] = ssl.create_default_context,
        *,
        proxy: httpx.Proxy | None = None,
        proxy_context: Callable[[], ssl.SSLContext] = ssl.create_default_context,
        network: Network | None = None,
    ) -> None:
        self._context = context
        self._proxy = proxy
        self._proxy_origin = None if proxy is None else _origin(proxy.url, _PROXY_PORTS)
        self._proxy_headers = [] if proxy is None else _proxy_headers(proxy)
        self._is_socks = proxy is not None and proxy.url.scheme.startswith("socks")
        self._proxy_context = proxy_context
        self._network = TCPNetwork() if network is None else network
        self._idle: dict[_Origin, deque[Connection]] = {}
        self._closed = False

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request and return its response, whose body is read from its stream.

        If it is cancelled, the connection is closed. It raises `httpx.TransportError` if there is no response, or if
        that is a success and the request could not be written; and whatever the iterator of the request's body raises.
        """
        progress = request.extensions.get("progress") or Progress()
        origin = self._begin(request.url, progress)
        head, body = self._head(request), _body(request)
        while True:
            connection, progress.begun = progress.begun, None
            if connection is None:
                connection = self._take_idle(origin, progress)
            reused = connection is not None
            if connection is None:
                connection = await self._connect(origin, request, progress)
                progress.uses(connection)
            try:
                connection.read_timeout = _timeout(request, "read")
                response = await connection.request(head, body)
                break
            except Exception as error:
                connection.close()
                kind = _kind_of(error, connection)
                if kind is None:
                    raise
                # If nothing was sent, the server ended the connection just now: it has seen nothing of the request,
                # whose body has not been asked for anything.
                if not reused or progress.sent:
                    raise kind(_text(error), request=request) from error
            except BaseException:
                connection.close()
                raise
        return httpx.Response(
            response.status_code,
            headers=response.headers.raw_items(),
            stream=ResponseBody(self, origin, connection, request),
            extensions={"http_version": b"HTTP/" + response.http_version, "reason_phrase": response.reason},
        )

    async def begin(self, url: httpx.URL, head: bytes, body: bytes, usual: Answer, progress: Progress) -> bool:
        """Send a small request if there is an idle connection. Return whether the response is the ``usual`` one.

        That is an earlier one: the same bytes need not be read by h11 again. The ``head`` is as h11 writes it. If the
        response is another one, `handle_async_request` goes on with the same request, which has the same ``progress``.
        """
        origin = self._begin(url, progress)
        if len(head) + len(body) > WRITE_AT_ONCE or (connection := self._take_idle(origin, progress)) is None:
            return False
        try:
            if await connection.begin(head + body) != usual:
                progress.begun = connection
                return False
        except BaseException:
            connection.close()
            raise
        await self.end(origin, connection)
        return True

    def head_of(self, request: httpx.Request) -> bytes:
        """Return the head of a request as h11 writes it, without the line at its end: more headers may follow."""
        return (h11.Connection(h11.CLIENT).send(self._head(request)) or b"")[:-2]

    async def aclose(self) -> None:
        """Close the idle connections, and each other one as soon as its response is closed."""
        self._closed = True
        for connections in self._idle.values():
            for connection in connections:
                connection.close()
        self._idle.clear()
        await trio.lowlevel.checkpoint()

    async def end(self, origin: _Origin, connection: Connection) -> None:
        """Keep a connection for the next request after the end of a response, if it can be used again."""
        if await connection.finish(trio.current_time()) and not self._closed:
            self._idle.setdefault(origin, deque()).append(connection)
        else:
            connection.close()

    def _begin(self, url: httpx.URL, progress: Progress) -> _Origin:
        origin = _origin(url)
        progress.peer = "{1}:{2}".format(*(self._proxy_origin or origin))
        progress.proxy_headers = self._proxy_headers
        return origin

    def _take_idle(self, origin: _Origin, progress: Progress) -> Connection | None:
        """Return the connection that was used last and can be used again. Those that cannot are closed."""
        progress.connected = False
        now = trio.current_time()
        connections = self._idle.get(origin)
        if connections is None:
            return None
        while connections and connections[0].expired(now):
            connections.popleft().close()
        while connections:
            connection = connections.pop()
            if connection.usable(now):
                progress.uses(connection)
                return connection
            connection.close()
        return None

    async def _connect(self, origin: _Origin, request: httpx.Request, progress: Progress) -> Connection:
        timeout = _timeout(request, "connect")
        try:
            with trio.fail_after(math.inf if timeout is None else timeout):
                return await self._connected(origin, progress)
        except trio.TooSlowError as error:
            raise httpx.ConnectTimeout("no connection", request=request) from error
        except httpx.ProxyError as error:
            error.request = request
            raise
        except (OSError, RuntimeError, trio.BrokenResourceError, h11.ProtocolError, UnicodeError) as error:
            raise httpx.ConnectError(_text(error), request=request) from error

    async def _connected(self, origin: _Origin, progress: Progress) -> Connection:
        scheme, host, port = origin
        first_scheme, first_host, first_port = self._proxy_origin or origin
        wire = Wire(await self._network.connect_tcp(first_host, first_port))
        progress.connected = True
        try:
            stream: trio.abc.Stream = wire
            if self._is_socks and self._proxy is not None:
                await connect_by_socks(stream, host, port, self._proxy.auth)
            elif self._proxy is not None:
                if first_scheme == "https":
                    stream = await _secured(stream, self._proxy_context(), first_host)
                if scheme == "https":
                    await self._tunnel(wire, stream, host, port)
            if scheme == "https":
                stream = await _secured(stream, self._context(), host)
        except BaseException:
            wire.close()
            raise
        return Connection(wire, stream, now=trio.current_time())

    async def _tunnel(self, wire: Wire, stream: trio.abc.Stream, host: str, port: int) -> None:
        target = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        headers = [(b"host", target.encode("ascii")), *self._proxy_headers]
        request = _checked_head(b"CONNECT", target.encode("ascii"), headers)
        response = await Connection(wire, stream, now=0.0).request(request, b"")
        if not 200 <= response.status_code < 300:
            reason = bytes(response.reason).decode("ascii", "ignore")
            raise httpx.ProxyError(f"{response.status_code} {reason}")

    def _head(self, request: httpx.Request) -> h11.Request:
        target, headers = request.url.raw_path, request.headers.raw
        if self._proxy is not None and request.url.scheme == "http" and not self._is_socks:
            target = b"http://" + request.url.netloc + target
            headers = [*headers, *self._proxy_headers]
        return _checked_head(request.method.encode("ascii"), target, headers)


def _proxy_headers(proxy: httpx.Proxy) -> list[tuple[bytes, bytes]]:
    headers = list(proxy.headers.raw)
    if proxy.auth is not None:
        headers.append((b"Proxy-Authorization", b"Basic " + b64encode(":".join(proxy.auth).encode("utf-8"))))
    return headers


def _checked_head(method: bytes, target: bytes, headers: list[tuple[bytes, bytes]]) -> h11.Request:
    try:
        return h11.Request(method=method, target=target, headers=headers)
    except h11.LocalProtocolError:
        pass  # It shows the value of a header, which may be a credential, so nothing is raised from it.
    raise httpx.LocalProtocolError("the method, the URL or a header of the request is not valid in HTTP/1.1")


class ResponseBody(httpx.AsyncByteStream):
    """The body of a response. At its end the connection is given back; if it is closed before, so is the connection."""

    def __init__(
        self, transport: HTTPTransport, origin: _Origin, connection: Connection, request: httpx.Request
    ) -> None:
        self._transport = transport
        self._origin = origin
        self._connection: Connection | None = connection
        self._request = request

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        data = await self._read()
        if data is None:
            await trio.lowlevel.cancel_shielded_checkpoint()
            raise StopAsyncIteration
        return data

    async def _read(self) -> bytes | None:
        if self._connection is None:
            return None
        try:
            data = await self._connection.read()
        except Exception as error:
            self._connection.close()
            kind = _kind_of(error, self._connection)
            if kind is None:
                raise
            raise kind(_text(error), request=self._request) from error
        except BaseException:
            self._connection.close()
            raise
        if data is None:
            connection, self._connection = self._connection, None
            await self._transport.end(self._origin, connection)
        return data

    async def read_into(self, body: BoundedBody) -> None:
        """Read until the end, or until ``body`` has more than its limit. Then, or if this fails, it is closed."""
        try:
            # Sending the request was a checkpoint.
            while not body.exceeded and (data := await self._read()) is not None:
                body.feed(data)
        finally:
            self.close()

    def close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    async def aclose(self) -> None:
        self.close()
        await trio.lowlevel.checkpoint()


async def _secured(stream: trio.abc.Stream, context: ssl.SSLContext, host: str) -> trio.SSLStream[trio.abc.Stream]:
    # Servers end connections without the end of TLS; HTTP tells where a response ends.
    secured = trio.SSLStream(
        # As bytes: as a str, trio would refuse an IPv6 address, and a name with an underscore. Certificates have no dot
        # at the end of a name (RFC 6066, section 3).
        stream,
        context,
        # And addresses have no zone there.
        server_hostname=host.partition("%")[0].removesuffix(".").encode("ascii"),
        https_compatible=True,
    )
    await secured.do_handshake()
    return secured


def _origin(url: httpx.URL, default_ports: Mapping[str, int] = DEFAULT_PORTS) -> _Origin:
    if url.scheme not in default_ports:
        raise httpx.UnsupportedProtocol("the URL of a request begins with http:// or https://")
    host = url.raw_host.decode("ascii")
    # The zone of an IPv6 address (RFC 6874). No other host has a per cent sign.
    return url.scheme, host.replace("%25", "%"), url.port or default_ports[url.scheme]


def _body(request: httpx.Request) -> bytes | AsyncIterator[bytes]:
    if isinstance(request.stream, httpx.ByteStream):
        return request.read()
    assert isinstance(request.stream, httpx.AsyncByteStream)
    return aiter(request.stream)


def _timeout(request: httpx.Request, step: str) -> float | None:
    timeouts: dict[str, Any] = request.extensions.get("timeout") or {}
    return timeouts.get(step)


def _kind_of(error: Exception, connection: Connection) -> type[httpx.TransportError] | None:
    """Return the class of httpx's exception for an error of an exchange; None if the error is raised unchanged."""
    if error is connection.body_error:
        return None
    if error is connection.wire.write_error:
        return httpx.WriteError
    if isinstance(error, h11.RemoteProtocolError):
        forget_traceback(error)  # a frame of h11 in it refers to the error
    return next((kind for errors, kind in _KINDS if isinstance(error, errors)), None)


_KINDS: tuple[tuple[type[Exception] | tuple[type[Exception], ...], type[httpx.TransportError]], ...] = (
    (trio.TooSlowError, httpx.ReadTimeout),
    (h11.LocalProtocolError, httpx.LocalProtocolError),
    (h11.RemoteProtocolError, httpx.RemoteProtocolError),
    ((OSError, trio.BrokenResourceError), httpx.ReadError),
)


def _text(error: Exception) -> str:
    if isinstance(error, trio.TooSlowError):
        return "no response"
    # Where TLS fails, trio's exception is empty and that of OpenSSL is its cause.
    return str(error) or str(error.__cause__ or "") or type(error).__name__
