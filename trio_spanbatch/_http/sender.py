"""Sending requests by the exporter's own transport, a given transport or a given client."""

from __future__ import annotations

import os
import platform
import re
from typing import Any, Protocol

import httpx
import trio

from .._version import __version__
from .body import piecewise_stream
from .connecting import TCPNetwork
from .packages import classes, package_of
from .proxies import MissingProxySupport, proxy_for
from .tls import File, RenewedContext
from .transport import HTTPTransport

# With the exporter, its language and version: https://opentelemetry.io/docs/specs/otel/protocol/exporter/#user-agent
USER_AGENT = f"trio-spanbatch/{__version__} (OTLP exporter; Python {platform.python_version()})"


_ZONE = re.compile(rb"%.*(?=\])")


class AsyncClient(Protocol):
    """An ``httpx.AsyncClient`` or an ``httpx2.AsyncClient``, for type checkers."""

    @property
    def is_closed(self) -> bool:
        """Whether it was closed."""

    async def send(self, request: Any, *, stream: bool = ..., follow_redirects: Any = ...) -> Any:
        """Send a request."""

    async def aclose(self) -> None:
        """Close it."""


class AsyncTransport(Protocol):
    """An ``httpx.AsyncBaseTransport`` or an ``httpx2.AsyncBaseTransport``, for type checkers."""

    async def handle_async_request(self, request: Any) -> Any:
        """Send a request."""

    async def aclose(self) -> None:
        """Close it."""


class Sender:
    """Sends requests by a transport, or by a client that was given.

    A transport is called directly: an ``httpx.AsyncClient`` around it would cost more than the transport, and would
    keep cookies, follow redirects and log URLs.
    """

    def __init__(self, way: AsyncClient | AsyncTransport) -> None:
        package = package_of(way, "AsyncClient")
        self._client: Any = None if package is None else way
        self._transport: Any = way if package is None else None
        self._package: Any = package_of(way, "AsyncBaseTransport") if package is None else package
        # The transport, if it is the exporter's own.
        self.own: HTTPTransport | None = way if isinstance(way, HTTPTransport) else None

    @property
    def is_closed(self) -> bool:
        return self._client is not None and bool(self._client.is_closed)

    def build_request(self, method: str, url: httpx.URL | str, **parts: Any) -> httpx.Request:
        """Return a request with these ``parts``, as for ``httpx.Request``. A client adds its headers and cookies."""
        if self._client is None:
            # httpx2 does not take a URL of httpx.
            request: httpx.Request = self._package.Request(method, url if self._package is httpx else str(url), **parts)
        else:
            request = self._client.build_request(method, str(url), timeout=None, **parts)
        return request

    def build_post(self, url: httpx.URL, headers: dict[bytes, bytes], body: bytes) -> httpx.Request:
        """Return a POST request whose body is written in pieces."""
        if self.own is None:
            request = self.build_request("POST", url, headers=list(headers.items()), content=body)
            request.stream = piecewise_stream(body, request.stream)
            return request
        # httpx takes as long to add these two headers as for the rest. The zone of an IPv6 address is of use only here.
        host = _ZONE.sub(b"", url.netloc)
        headers = {b"host": host, **headers, b"content-length": b"%d" % len(body)}
        return httpx.Request("POST", url, headers=list(headers.items()), stream=httpx.ByteStream(body))

    async def send(self, request: httpx.Request, **options: Any) -> httpx.Response:
        """Send ``request`` and return the response, its body unread. The ``options`` are of a client's ``send``."""
        if self._client is None:
            response: httpx.Response = await self._transport.handle_async_request(request)
            response.request = request
        else:
            response = await self._client.send(request, stream=True, follow_redirects=False, **options)
        return response

    async def aclose(self) -> None:
        """Close the transport. A client is left open."""
        if self._transport is not None:
            await self._transport.aclose()


class _Unconnected(httpx.AsyncBaseTransport):
    """Fails every request, in place of an unusable proxy, which must not be bypassed."""

    def __init__(self, problem: str) -> None:
        self._problem = problem

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        await trio.lowlevel.checkpoint()
        raise httpx.ConnectError(self._problem, request=request)


def own_transport(url: httpx.URL, context: RenewedContext, uds: File | None = None) -> httpx.AsyncBaseTransport:
    """Return the transport for ``url``: with the proxy that the environment names, or over the socket ``uds``."""
    proxy = None if uds is not None else proxy_for(url)
    if isinstance(proxy, MissingProxySupport):
        return _Unconnected(proxy.problem)
    network = TCPNetwork(None if uds is None else os.fspath(uds))
    if proxy is None or proxy.url.scheme != "https":
        return HTTPTransport(context, proxy=proxy, network=network)
    return HTTPTransport(context, proxy=proxy, proxy_context=RenewedContext(verify=True), network=network)


def check_client(client: Any) -> None:
    """Raise if ``client`` cannot send requests or has parameters, which logs show."""
    if package_of(client, "AsyncClient") is None:
        raise TypeError(
            f"client is of type {_name_of_type(client)}; it must be an httpx.AsyncClient or an httpx2.AsyncClient"
        )
    if client.params:
        raise ValueError(
            "client has params= (not shown), which httpx's log shows; give credentials as headers= or auth="
        )


def check_transport(transport: object) -> None:
    if not isinstance(transport, classes("AsyncBaseTransport")):
        raise TypeError(
            f"transport is of type {_name_of_type(transport)}; it must be an httpx.AsyncBaseTransport, such as "
            "httpx.AsyncHTTPTransport(), or an httpx2.AsyncBaseTransport"
        )


def _name_of_type(thing: object) -> str:
    kind = type(thing)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
