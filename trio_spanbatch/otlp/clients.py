"""The client that requests are sent with: the exporter's own, or one that it was given."""

from __future__ import annotations

import http.cookiejar
import ssl
from typing import Any

import httpx
import trio

from .proxies import MissingProxySupport, proxy_for
from .tls import default_context

__all__ = ["KEEPALIVE_EXPIRY", "check_client", "check_transport", "make_client"]

# Seconds that an idle connection is kept, so that it outlives the delay between two batches. Servers close idle
# connections by themselves after 5 (uvicorn) to 75 (nginx) seconds; httpcore notices that before it uses one again.
KEEPALIVE_EXPIRY = 30.0


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


def make_client(
    url: httpx.URL, transport: httpx.AsyncBaseTransport | None, context: ssl.SSLContext | None
) -> httpx.AsyncClient:
    """Return a client for ``url`` that keeps nothing but connections.

    Raises:
        ValueError: A variable for proxies cannot be used. Its value is not shown.
    """
    proxy = proxy_for(url) if transport is None else None
    if isinstance(proxy, MissingProxySupport):
        transport, proxy = _Unconnected(proxy.problem), None
    elif proxy is not None and proxy.url.scheme == "https":
        proxy.ssl_context = default_context()
    # A transport has its own TLS.
    return httpx.AsyncClient(
        verify=context or (transport is not None) or default_context(),
        proxy=proxy,
        transport=transport,
        # What httpx would read there was read above.
        trust_env=False,
        cookies=_NoCookies(),
        timeout=None,
        # The batcher bounds how many exports run at once; a second, smaller bound would make them wait for a
        # connection within their timeout.
        limits=httpx.Limits(max_connections=None, max_keepalive_connections=None, keepalive_expiry=KEEPALIVE_EXPIRY),
    )


def check_client(client: object) -> None:
    """Raise if ``client`` is no client that requests can be sent with, or has parameters, which logs show."""
    if not isinstance(client, httpx.AsyncClient):
        raise TypeError(f"client is of type {type(client).__name__}; it must be an httpx.AsyncClient")
    if client.params:
        raise ValueError(
            "client has params= (not shown), which httpx's log shows; give credentials as headers= or auth="
        )


def check_transport(transport: object) -> None:
    """Raise `TypeError` if ``transport`` is none that is async."""
    if not isinstance(transport, httpx.AsyncBaseTransport):
        raise TypeError(
            f"transport is of type {type(transport).__name__}; it must be an httpx.AsyncBaseTransport, such as "
            "httpx.AsyncHTTPTransport()"
        )
