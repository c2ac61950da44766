"""The client that sends requests: the exporter's own, or a given one; its TLS files, and advice on failures of TLS."""

from __future__ import annotations

import http.cookiejar
import os
import ssl
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import attrs
import certifi
import httpx
import trio

from .._settings.environment import warn_once
from .packages import classes, package_of
from .proxies import MissingProxySupport, proxy_for

__all__ = [
    "KEEPALIVE_EXPIRY",
    "AsyncClient",
    "AsyncTransport",
    "TLSAdvice",
    "TLSSettings",
    "check_client",
    "check_transport",
    "client_context",
    "default_context",
    "make_client",
    "tls_advice",
]

# Seconds for which an idle connection is kept: longer than the delay between two batches. Servers close idle
# connections after 5 (uvicorn) to 75 (nginx) seconds; httpcore notices that before it reuses one.
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
    """Neither stores nor sends cookies, so that no state of a server is kept between requests."""

    def extract_cookies(self, response: Any, request: Any) -> None:
        """Ignore the cookies of ``response``."""

    def add_cookie_header(self, request: Any) -> None:
        """Leave ``request`` as it is."""


class _Unconnected(httpx.AsyncBaseTransport):
    """Fails every request, in place of an unusable proxy, which must not be bypassed."""

    def __init__(self, problem: str) -> None:
        self._problem = problem

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Fail, after a checkpoint as with any other transport."""
        await trio.lowlevel.checkpoint()
        raise httpx.ConnectError(self._problem, request=request)


def make_client(url: httpx.URL, transport: AsyncTransport | None, context: ssl.SSLContext | None) -> httpx.AsyncClient:
    """Return a client for ``url``, of the same package as ``transport``, that keeps no state but connections.

    Raises:
        ValueError: A proxy variable cannot be used. Its value is not shown.
    """
    package = httpx if transport is None else package_of(transport, "AsyncBaseTransport")
    proxy = proxy_for(url) if transport is None else None
    if isinstance(proxy, MissingProxySupport):
        transport, proxy = _Unconnected(proxy.problem), None
    elif proxy is not None and proxy.url.scheme == "https":
        proxy.ssl_context = default_context()
    client: httpx.AsyncClient = package.AsyncClient(
        # A transport has its own TLS settings.
        verify=context or (transport is not None) or default_context(),
        proxy=proxy,
        transport=transport,
        # The proxy variables, which httpx would read, were read above.
        trust_env=False,
        cookies=_NoCookies(),
        timeout=None,
        # The batcher bounds concurrent exports; a smaller bound here would make them wait for a connection within
        # their timeout.
        limits=package.Limits(max_connections=None, max_keepalive_connections=None, keepalive_expiry=KEEPALIVE_EXPIRY),
    )
    return client


def check_client(client: object) -> httpx.AsyncClient:
    """Return ``client``; raise if it cannot send requests or has parameters, which logs show."""
    package = package_of(client, "AsyncClient")
    if package is None:
        raise TypeError(
            f"client is of type {_name_of_type(client)}; it must be an httpx.AsyncClient or an httpx2.AsyncClient"
        )
    own: httpx.AsyncClient = client  # type: ignore[assignment]  # httpx2's has the same interface
    # Private: there is no public way. If a later version keeps them elsewhere, the first request fails in the client.
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
    """Raise `TypeError` unless ``transport`` is an async transport."""
    if not isinstance(transport, classes("AsyncBaseTransport")):
        raise TypeError(
            f"transport is of type {_name_of_type(transport)}; it must be an httpx.AsyncBaseTransport, such as "
            "httpx.AsyncHTTPTransport(), or an httpx2.AsyncBaseTransport"
        )


def _name_of_type(thing: object) -> str:
    kind = type(thing)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


_File = str | os.PathLike[str]

# How many characters of a file's name are shown.
_LONGEST_SHOWN = 300


@attrs.frozen
class TLSSettings:
    """The settings of a kind of exporter that name its TLS files, for messages.

    Attributes:
        ca: The settings that name the file with the CAs.
        client_certificate: How to set a client certificate.
    """

    ca: Sequence[str]
    client_certificate: str


@attrs.frozen
class TLSAdvice:
    """Remedies for failures of TLS.

    Attributes:
        untrusted: The remedy if the server's certificate is not trusted.
        client_certificate: The remedy if the server does not accept the client's.
    """

    untrusted: str
    client_certificate: str


def tls_advice(settings: TLSSettings, *, own_tls: bool, own_ca: bool) -> TLSAdvice:
    """Return the remedies that have an effect with these arguments of the exporter.

    Args:
        settings: The settings that the exporter has.
        own_tls: Whether the exporter made its own client and transport.
        own_ca: Whether it was given a file with CAs, in place of those that httpx trusts.
    """
    if not own_tls:
        given = "the client or transport that the exporter was given"
        return TLSAdvice(f"{given} says whom to trust", f"{given} has one or none")
    if own_ca:
        return TLSAdvice(f"the file that {_any(settings.ca)} names does not have its CA", settings.client_certificate)
    return TLSAdvice(f"{_any(('SSL_CERT_FILE', *settings.ca))} names the file with its CA", settings.client_certificate)


def _any(names: Sequence[str]) -> str:
    return " or ".join(filter(None, (", ".join(names[:-1]), names[-1])))


def client_context(
    certificate: _File | None,
    client_certificate: _File | None,
    client_key: _File | None,
    *,
    verify: bool = True,
) -> ssl.SSLContext | None:
    """Return the context for these files, or ``None`` if none is given.

    Args:
        certificate: The CAs to trust, instead of the default ones.
        client_certificate: The client's certificate.
        client_key: Its key; by default in the same file.
        verify: Whether the server's certificate is checked.

    Raises:
        ValueError: A file cannot be read or has the wrong content, or a key is given without a certificate.
    """
    if client_key is not None and client_certificate is None:
        raise ValueError("client_key is given without client_certificate")
    if certificate is None and client_certificate is None and verify:
        return None
    context = _trusting(certificate) if verify else _trusting_everybody()
    if client_certificate is not None:
        _check_readable("client_certificate", client_certificate)
        if client_key is not None:
            _check_readable("client_key", client_key)
        try:
            context.load_cert_chain(client_certificate, client_key, password=_no_password)
        except (ssl.SSLError, ValueError):
            raise ValueError(
                f"client_certificate {_shown(client_certificate)} and client_key "
                f"{_shown(client_key or client_certificate)} are no certificate and its unencrypted key (PEM)"
            ) from None
    return context


def default_context() -> ssl.SSLContext:
    """Return a context that trusts what httpx trusts: ``SSL_CERT_FILE``, else ``SSL_CERT_DIR``, else certifi's list.

    A file that cannot be read is warned about and no server is trusted. It does not stop the program: other programs
    read these variables too, and conda leaves them set to files that no longer exist.
    """
    file, directory = (os.environ.get(variable, "") for variable in ("SSL_CERT_FILE", "SSL_CERT_DIR"))
    context = _new_context()
    problem = None
    if file:
        problem = _problem_with(file) or _load(context, cafile=file)
    elif directory:
        found = any(map(os.path.isdir, directory.split(os.pathsep)))
        problem = _load(context, capath=directory) if found else "no such directory"
    else:
        context.load_verify_locations(certifi.where())
    if problem is not None:
        variable, path = ("SSL_CERT_FILE", file) if file else ("SSL_CERT_DIR", directory)
        warn_once(f"{variable} is {_shown(path)}, which cannot be used ({problem}): no https server is trusted")
    return context


def _trusting(certificate: _File | None) -> ssl.SSLContext:
    if certificate is None:
        return default_context()
    context = _new_context()
    # Path.is_dir raises on a name that is too long, as a PEM is.
    if os.path.isdir(certificate):  # noqa: PTH112
        context.load_verify_locations(capath=certificate)
        return context
    _check_readable("certificate", certificate)
    if _load(context, cafile=certificate) is not None:
        raise ValueError(f"certificate {_shown(certificate)} holds no certificates (PEM)")
    return context


def _trusting_everybody() -> ssl.SSLContext:
    context = _new_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def _new_context() -> ssl.SSLContext:
    """Do as `ssl.create_default_context`, but without CAs, and also if ``SSLKEYLOGFILE`` cannot be written."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if sys.version_info >= (3, 13):
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN | ssl.VERIFY_X509_STRICT
    key_log = os.environ.get("SSLKEYLOGFILE")
    if key_log and not sys.flags.ignore_environment:
        try:
            context.keylog_filename = key_log
        except (OSError, ValueError) as error:
            problem = getattr(error, "strerror", None) or type(error).__name__
            warn_once(f"SSLKEYLOGFILE is {_shown(key_log)}, which cannot be written ({problem}): it is ignored")
    return context


def _load(context: ssl.SSLContext, *, cafile: _File | None = None, capath: _File | None = None) -> str | None:
    """Load CAs. Return the problem if that fails."""
    try:
        context.load_verify_locations(cafile, capath)
    except (OSError, ValueError):
        # `ssl.SSLError` is an OSError.
        return "it has no certificates (PEM)"
    return None


def _check_readable(what: str, path: _File) -> None:
    if "-----BEGIN " in str(path):
        raise ValueError(f"{what} (not shown) is a PEM; it must be the name of a file")
    # Raised within ``except``, an exception would have the file's name in its context.
    problem = _problem_with(path)
    if problem is not None:
        raise ValueError(f"{what} {_shown(path)} cannot be read: {problem}")


def _problem_with(path: _File) -> str | None:
    try:
        with Path(path).open("rb"):
            return None
    except OSError as error:
        return error.strerror or type(error).__name__
    except ValueError:
        return "a file's name has no such characters"


def _shown(path: _File) -> str:
    """Return a file's name, unless it may be a key instead: without its first and last line, that is one long text."""
    name = os.fspath(path)
    return repr(name) if len(name) <= _LONGEST_SHOWN and name.isprintable() else "(not shown)"


def _no_password() -> str:
    # Without this, OpenSSL asks for an encrypted key's password on the terminal, and waits.
    return ""
