"""The client that requests are sent with: the exporter's own, or one that it was given."""

from __future__ import annotations

import http.cookiejar
import ssl
from typing import Any, Protocol

import httpx
import trio

from .packages import classes, package_of
from .proxies import MissingProxySupport, proxy_for
from .tls import default_context

__all__ = ["KEEPALIVE_EXPIRY", "AsyncClient", "AsyncTransport", "check_client", "check_transport", "make_client"]

# Seconds that an idle connection is kept, so that it outlives the delay between two batches. Servers close idle
# connections by themselves after 5 (uvicorn) to 75 (nginx) seconds; httpcore notices that before it uses one again.
KEEPALIVE_EXPIRY = 30.0


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


class _NoCookies(http.cookiejar.CookieJar):
    """Neither stores cookies nor sends any: nothing that a server says is kept from one request to the next."""

    def extract_cookies(self, response: Any, request: Any) -> None:
        """Ignore the cookies of ``response``."""

    def add_cookie_header(self, request: Any) -> None:
        """Leave ``request`` as it is."""


class _Unconnected(httpx.AsyncBaseTransport):
    """Connects to nothing, in the place of a proxy that must not be bypassed."""

    def __init__(self, problem: str) -> None:
        self._problem = problem

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Fail, after a checkpoint as with any other transport."""
        await trio.lowlevel.checkpoint()
        raise httpx.ConnectError(self._problem, request=request)


def make_client(url: httpx.URL, transport: AsyncTransport | None, context: ssl.SSLContext | None) -> httpx.AsyncClient:
    """Return a client for ``url`` that keeps nothing but connections. It is of the package that ``transport`` is of.

    Raises:
        ValueError: A variable for proxies cannot be used. Its value is not shown.
    """
    package = httpx if transport is None else package_of(transport, "AsyncBaseTransport")
    proxy = proxy_for(url) if transport is None else None
    if isinstance(proxy, MissingProxySupport):
        transport, proxy = _Unconnected(proxy.problem), None
    elif proxy is not None and proxy.url.scheme == "https":
        proxy.ssl_context = default_context()
    client: httpx.AsyncClient = package.AsyncClient(
        # A transport has its own TLS.
        verify=context or (transport is not None) or default_context(),
        proxy=proxy,
        transport=transport,
        # What httpx would read there was read above.
        trust_env=False,
        cookies=_NoCookies(),
        timeout=None,
        # The batcher bounds how many exports run at once; a second, smaller bound would make them wait for a
        # connection within their timeout.
        limits=package.Limits(max_connections=None, max_keepalive_connections=None, keepalive_expiry=KEEPALIVE_EXPIRY),
    )
    return client


def check_client(client: object) -> httpx.AsyncClient:
    """Return ``client``; raise if it is none that requests can be sent with, or has parameters, which logs show."""
    package = package_of(client, "AsyncClient")
    if package is None:
        raise TypeError(
            f"client is of type {_name_of_type(client)}; it must be an httpx.AsyncClient or an httpx2.AsyncClient"
        )
    own: httpx.AsyncClient = client  # type: ignore[assignment]  # httpx2's has the same interface
    # Private, as nobody else tells. Where a later version has them elsewhere, the first request fails in the client.
    transports = [getattr(own, "_transport", None), *getattr(own, "_mounts", {}).values()]
    for transport in transports:
        other = None if transport is None else package_of(transport, "AsyncBaseTransport")
        if other not in (None, package):
            raise TypeError(
                f"client is an {package.__name__}.AsyncClient with a transport of {other.__name__} "
                f"({type(transport).__name__}); httpx and httpx2 do not work together: take both from one package"
            )
    if own.params:
        raise ValueError(
            "client has params= (not shown), which httpx's log shows; give credentials as headers= or auth="
        )
    return own


def check_transport(transport: object) -> None:
    """Raise `TypeError` if ``transport`` is none that is async."""
    if not isinstance(transport, classes("AsyncBaseTransport")):
        raise TypeError(
            f"transport is of type {_name_of_type(transport)}; it must be an httpx.AsyncBaseTransport, such as "
            "httpx.AsyncHTTPTransport(), or an httpx2.AsyncBaseTransport"
        )


def _name_of_type(thing: object) -> str:
    kind = type(thing)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
