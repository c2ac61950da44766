"""The default exporter: OTLP over HTTP, with httpx; and the exporter that sends nothing.

This module makes the exchange; ``responses`` maps responses to results, and ``failures`` maps broken exchanges. Its
time is bounded by one cancel scope around the whole attempt (httpx's own timeouts are for single steps, and a server
that sends one byte a second never reaches them), its space by limits on request and response; h11 limits the head of a
response to 100 KiB.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from http import HTTPStatus
from typing import ClassVar, Self

import attrs
import trio

from .._exceptions import forget_traceback, is_cancelled_here, split_cancelled
from .._exporter import Delivered, ExportResult, Refused, TryLater
from .._settings.environment import TLS_FILES, exporter_options, sdk_disabled, variable_of
from .._settings.header_checks import (
    check_endpoint,
    check_header_location,
    check_header_name,
    checked_environ,
    checked_headers,
    checked_path,
    checked_str,
    encoded_headers,
)
from .._settings.policies import MIB
from .._spans.batch import SpanBatch
from .._spans.checks import shown
from .attempt import Attempt
from .auth import Auth, AuthError, AuthFunction, as_auth, name_of
from .body import CLOSE_TIMEOUT, gzip_compress
from .connection import Answer
from .failures import cause_of
from .messages import short_text
from .packages import classes
from .proxies import DEFAULT_PORTS
from .sender import USER_AGENT, AsyncClient, AsyncTransport, Sender, check_client, check_transport, own_transport
from .tls import RenewedContext, TLSSettings, tls_advice
from .transport import HTTPTransport

__all__ = ["USER_AGENT", "DisabledExporter", "OTLPExporter"]


@attrs.frozen
class DisabledExporter:
    """Refuses every batch, as ``OTEL_SDK_DISABLED=true`` asks for."""

    reason: str = "OTEL_SDK_DISABLED is true: nothing is sent"

    async def export(self, batch: SpanBatch) -> ExportResult:
        await trio.lowlevel.checkpoint()
        return Refused(self.reason)

    async def aclose(self) -> None:
        """Do nothing: there is nothing to close."""
        await trio.lowlevel.checkpoint()


@attrs.frozen(repr=False)
class _CommonHead:
    """The credentials of the latest request, and its head without what changes from one to the next; never shown."""

    credentials: Mapping[bytes, bytes] | None = None
    lines: bytes = b""


class OTLPExporter:
    """Sends batches to an OTLP/HTTP server, as protobuf. A `SpanExporter`.

    It can be created outside of trio. Several exports may run at once, each on its own connection; connections are
    kept alive. Redirects are not followed and cookies are not kept. The proxy is set by ``HTTP_PROXY``,
    ``HTTPS_PROXY``, ``ALL_PROXY`` and ``NO_PROXY``.

    Args:
        endpoint: The URL to send to. No path is added. It has no user name, password or query.
        location_header: The header that carries a batch's location. By default the location is not sent.
        headers: Headers for every request, for instance ``{"Authorization": "Bearer ..."}``. A ``User-Agent`` is put
            in front of the exporter's own.
        auth: Makes headers for each attempt: an `Auth`, or a function of the location, sync or async. After a 401 it
            is called again, and the request is repeated once if it returns other headers.
        timeout: Seconds for a whole attempt, from the first byte of the request (compression and ``auth`` included)
            to the last of the response; `math.inf` for no timeout.
        compression: ``"gzip"``, or ``None`` for no compression.
        client: The client to use instead of the exporter's own transport: an ``httpx.AsyncClient`` or an
            ``httpx2.AsyncClient``. It is not closed, and keeps its settings (TLS, proxies, cookies, limits). It has no
            ``params``, which logs show.
        transport: The transport to use instead of the exporter's own, of httpx or httpx2, for instance
            `OTLPReceiver.memory_transport`. It is closed with the exporter.
        certificate: The file with the CAs for checking the server's certificate (PEM), instead of those of
            ``SSL_CERT_FILE`` or certifi. This file and the next two are read again when they have changed.
        client_certificate: The file with the client's certificate (PEM).
        client_key: The file with its key; by default in the same file.
        uds: The path of a Unix domain socket to connect to, instead of the endpoint's host and port. No proxy is used.
        max_request_bytes: A request that is larger before compression is refused without sending it.
        max_response_bytes: A response that is larger after decompression is not read to its end, and counts as refused.

    Raises:
        ValueError: An argument or a proxy variable cannot be used. Credentials are never in the message.
        TypeError: An argument is of the wrong type.
    """

    # The settings that messages about failures of TLS name.
    _tls_settings: ClassVar = TLSSettings(
        ("OTEL_EXPORTER_OTLP_CERTIFICATE", "certificate="),
        "OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE and _CLIENT_KEY or client_certificate= and client_key= name its files",
    )

    # Whether the server's certificate is checked.
    _verify = True

    def __init__(
        self,
        endpoint: str,
        *,
        location_header: str | None = None,
        headers: Mapping[str, str] | None = None,
        auth: Auth | AuthFunction | None = None,
        timeout: float = 10.0,
        compression: str | None = None,
        client: AsyncClient | None = None,
        transport: AsyncTransport | None = None,
        certificate: str | os.PathLike[str] | None = None,
        client_certificate: str | os.PathLike[str] | None = None,
        client_key: str | os.PathLike[str] | None = None,
        uds: str | os.PathLike[str] | None = None,
        max_request_bytes: int = 64 * MIB,
        max_response_bytes: int = 4 * MIB,
    ) -> None:
        self._closed = False
        self._url = check_endpoint(endpoint)
        self._headers = encoded_headers(checked_headers(headers))
        self._location_header = _checked_location_header(location_header, self._headers)
        self._auth = as_auth(auth)
        self._timeout = _checked_timeout(timeout)
        if compression not in (None, "gzip"):
            raise ValueError(f"compression is {compression!r}; it must be 'gzip' or None")
        self._gzip = compression == "gzip"
        self._max_request_bytes = _checked_size("max_request_bytes", max_request_bytes)
        self._max_response_bytes = _checked_size("max_response_bytes", max_response_bytes)
        files = certificate, client_certificate, client_key
        for name, path in zip((*TLS_FILES, "uds"), (*files, uds), strict=True):
            checked_path(path, name)
        own_tls = client is None and transport is None
        has_files = files != (None, None, None) or not self._verify
        if [client is not None, transport is not None, has_files].count(True) > 1:
            raise ValueError(
                "client, transport and certificates are mutually exclusive: a client or transport has its own TLS "
                "settings"
            )
        if uds is not None and not own_tls:
            raise ValueError("uds is given with a client or transport, which makes its own connections; give one only")
        self._owns_sender = not isinstance(client, Sender)
        self._sender: Sender
        if isinstance(client, Sender):
            # Shared by exporters of one destination.
            self._sender = client
        elif client is not None:
            check_client(client)
            self._sender = Sender(client)
        elif transport is not None:
            check_transport(transport)
            self._sender = Sender(transport)
        else:
            self._sender = Sender(own_transport(self._url, RenewedContext(*files, verify=self._verify), uds))
        self._tls_advice = tls_advice(self._tls_settings, own_tls=own_tls, own_ca=certificate is not None)
        agent = self._headers.pop(b"user-agent", b"")
        self._headers_always = {
            **self._headers,
            b"user-agent": b" ".join(filter(None, (agent, USER_AGENT.encode("ascii")))),
            b"content-type": b"application/x-protobuf",
            b"accept-encoding": b"gzip, deflate",
            **({b"content-encoding": b"gzip"} if self._gzip else {}),
        }
        self._common_head = _CommonHead()
        # The latest response that said nothing but that all spans were delivered. Servers repeat it word by word.
        self._usual: tuple[Answer, ExportResult] | None = None

    @classmethod
    def from_env(
        cls,
        environ: Mapping[str, str] | None = None,
        *,
        endpoint: str | None = None,
        location_header: str | None = None,
        headers: Mapping[str, str] | None = None,
        auth: Auth | AuthFunction | None = None,
        timeout: float | None = None,
        compression: str | None = None,
        client: AsyncClient | None = None,
        transport: AsyncTransport | None = None,
    ) -> Self | DisabledExporter:
        """Return an exporter that is configured as ``OTEL_EXPORTER_OTLP_*`` says.

        With ``OTEL_SDK_DISABLED=true`` it is one that refuses every batch and sends nothing. A user name and password
        in the endpoint's URL are sent as Basic authentication, unless the headers have an ``Authorization``. Files for
        TLS are looked at only if the endpoint is https.

        Args:
            environ: The variables; by default those of the process.
            endpoint: The URL to send to, instead of the environment's.
            location_header: As for the class.
            headers: Headers besides those of the environment, which they replace where both have one.
            auth: As for the class.
            timeout: As for the class, instead of the environment's.
            compression: ``"gzip"`` or ``"none"``, instead of the environment's.
            client: As for the class. The certificates of the environment are then not looked at.
            transport: As for the class; the same holds.

        Raises:
            ValueError: A variable has a value that cannot be used: a URL with an ``@`` that may end a password, a
                header with a line break, a file that cannot be read.
        """
        environ = checked_environ(environ)
        if sdk_disabled(environ):
            return DisabledExporter()
        headers = checked_headers(headers)
        endpoint = None if endpoint is None else checked_str(endpoint, "endpoint")
        options = exporter_options(environ, endpoint=endpoint)
        files = options if client is None and transport is None else {}
        own_headers = {name.lower() for name in headers}
        inherited = {
            name: value for name, value in options.get("headers", {}).items() if name.lower() not in own_headers
        }
        if compression is None:
            compression = options.get("compression")
        try:
            return cls(
                options["endpoint"],
                location_header=location_header,
                headers={**inherited, **headers},
                auth=auth,
                timeout=options.get("timeout", 10.0) if timeout is None else timeout,
                compression=None if compression == "none" else compression,
                client=client,
                transport=transport,
                certificate=files.get("certificate"),
                client_certificate=files.get("client_certificate"),
                client_key=files.get("client_key") if "client_certificate" in files else None,
            )
        except ValueError as error:
            # Messages about files begin with the argument's name.
            argument = str(error).partition(" ")[0]
            if argument not in TLS_FILES or argument not in files:
                raise
            raise ValueError(f"{variable_of(environ, argument.upper())}: {error}") from None

    @property
    def timeout(self) -> float:
        """Seconds that one attempt may take. The batcher's default ``attempt_timeout`` leaves at least as much."""
        return self._timeout

    @property
    def endpoint(self) -> str:
        """The URL that requests are sent to."""
        return str(self._url)

    @property
    def closed(self) -> bool:
        """Whether the exporter, or the client given to it, is closed."""
        return self._closed or self._sender.is_closed

    def check_location(self, location: str) -> None:
        """Raise `InvalidLocationError` if ``location`` cannot be sent.

        Without a ``location_header``, every location can. With one, a location must be printable ASCII, not empty and
        without leading or trailing spaces.
        """
        if self._location_header is not None:
            check_header_location(location)

    async def export(self, batch: SpanBatch) -> ExportResult:
        """Make one attempt at sending ``batch``.

        If it is cancelled, its connection is closed, and the server may or may not have the batch.

        Raises:
            trio.ClosedResourceError: The exporter, or the client given to it, is closed.
            InvalidLocationError: See `check_location`.
        """
        return await self._export_within(batch, self._timeout)

    async def _export_within(self, batch: SpanBatch, seconds: float) -> ExportResult:
        self._check_open()
        self.check_location(batch.location)
        if not batch.size:
            # The specification says that empty envelopes SHOULD NOT be sent; some servers answer 400 to one.
            await trio.lowlevel.checkpoint()
            return Delivered()
        if batch.size > self._max_request_bytes:
            await trio.lowlevel.checkpoint()
            return Refused(
                f"the request has {batch.size} bytes; more than {self._max_request_bytes} (max_request_bytes) are not "
                "sent",
                # The status that a server would return: the halves are sent and later batches are no larger.
                status_code=HTTPStatus.REQUEST_ENTITY_TOO_LARGE.value,
                isolate=True,
            )
        location_header = () if self._location_header is None else (self._location_header,)
        port = self._url.port or DEFAULT_PORTS[self._url.scheme]
        attempt = Attempt(f"{self._url.host}:{port}", public=location_header)
        with trio.move_on_after(seconds):
            return await self._attempt(batch, attempt)
        return self._timed_out(attempt, seconds)

    async def aclose(self) -> None:
        """Close the client and its connections, unless the client was given. No export may be running.

        They are closed even if this is cancelled. A given transport has one second to close, and none once this is
        cancelled.
        """
        was_closed, self._closed = self._closed, True
        if self._owns_sender and not was_closed:
            with trio.move_on_after(CLOSE_TIMEOUT):
                await self._sender.aclose()
        await trio.lowlevel.checkpoint()

    def __repr__(self) -> str:
        return f"<OTLPExporter for {self._url}>"

    async def _attempt(self, batch: SpanBatch, attempt: Attempt) -> ExportResult:
        body = batch.to_request()
        if self._gzip:
            body = await gzip_compress(body)
        elif self._sender.own is None:
            # A given transport may have no checkpoint.
            await trio.lowlevel.checkpoint()
        if self._auth is None:
            return await self._exchange(batch.location, body, {}, attempt)
        return await self._exchange_with_auth(self._auth, batch.location, body, attempt)

    async def _exchange_with_auth(self, auth: Auth, location: str, body: bytes, attempt: Attempt) -> ExportResult:
        credentials = await _credentials(auth, location, attempt)
        if isinstance(credentials, TryLater | Refused):
            return credentials
        result = await self._exchange(location, body, credentials, attempt)
        if not isinstance(result, Refused) or result.status_code != HTTPStatus.UNAUTHORIZED:
            return result
        auth.invalidate(location, credentials)
        fresh = await _credentials(auth, location, attempt)
        if isinstance(fresh, TryLater | Refused):
            return fresh
        if fresh == credentials:
            return result
        attempt.restart()
        return await self._exchange(location, body, fresh, attempt)

    async def _exchange(
        self, location: str, body: bytes, credentials: Mapping[str, str], attempt: Attempt
    ) -> ExportResult:
        try:
            credential_headers = encoded_headers(credentials)
        except (TypeError, ValueError) as error:
            return Refused(f"auth: {error}", cause=cause_of(error))
        self._check_open()
        headers = {**self._headers_always, **credential_headers}
        if self._location_header is not None:
            check_header_location(location)  # h11 does not always see it
            headers[self._location_header] = location.encode("ascii")
        try:
            if (usual := self._usual) is not None and (own := self._sender.own) is not None:
                head = self._head(own, headers, credential_headers, len(body))
                attempt.handed_over = True
                if await own.begin(self._url, head, body, usual[0], attempt.progress):
                    return usual[1]
            await attempt.send(
                self._sender, self._sender.build_post(self._url, headers, body), self._max_response_bytes
            )
        except classes("RequestError", "InvalidURL") as error:
            return attempt.known_failure() or attempt.failure(error, self._url, self._tls_advice)
        result = self._advised(attempt.result())
        if result == Delivered() and (answer := attempt.progress.answer) is not None:
            self._usual = answer, result
        return result

    def _advised(self, result: ExportResult) -> ExportResult:
        """Name the usual mistake if the server does not know the endpoint's path."""
        if not isinstance(result, Refused) or result.status_code != HTTPStatus.NOT_FOUND:
            return result
        if self._url.path.rstrip("/").endswith("/v1/traces"):
            return result
        # The path is not shown: it may contain a token.
        advice = "the endpoint's path does not end with /v1/traces, as that of most servers does"
        return attrs.evolve(result, reason=f"{result.reason}; {advice}")

    def _head(
        self, own: HTTPTransport, headers: Mapping[bytes, bytes], credential_headers: Mapping[bytes, bytes], size: int
    ) -> bytes:
        """Return the head of a request. What is the same as in the one before is not made, and checked, again."""
        last = () if self._location_header is None else (self._location_header,)
        if self._common_head.credentials != credential_headers:
            common = {name: value for name, value in headers.items() if name not in last}
            request = self._sender.build_post(self._url, common, b"")
            del request.headers["content-length"]
            self._common_head = _CommonHead(credential_headers, own.head_of(request))
        lines = [b"%s: %s\r\n" % (name, headers[name]) for name in last]
        return b"".join((self._common_head.lines, *lines, b"content-length: %d\r\n\r\n" % size))

    def _timed_out(self, attempt: Attempt, seconds: float) -> ExportResult:
        # Checked first, as there may have been a 401 to the previous credentials.
        if attempt.waits_for:
            reason = f"no credentials within {seconds:g} s: {attempt.waits_for} did not return"
            return TryLater(reason, cause="timeout")
        known = attempt.known_failure()
        if known is not None:
            return known
        if attempt.may_have_arrived:
            reason = f"no complete answer from {attempt.peer} within {seconds:g} s"
            return TryLater(reason, ambiguous=True, cause="timeout")
        if attempt.handed_over:
            return TryLater(f"no connection to {attempt.peer} within {seconds:g} s", endpoint=True, cause="timeout")
        return TryLater(f"no time to compress within {seconds:g} s", cause="timeout")

    def _check_open(self) -> None:
        if self._closed:
            raise trio.ClosedResourceError("the exporter is closed")
        if self._sender.is_closed:
            raise trio.ClosedResourceError("the client that the exporter was given is closed")


async def _credentials(auth: Auth, location: str, attempt: Attempt) -> Mapping[str, str] | TryLater | Refused:
    attempt.waits_for = name_of(auth)
    try:
        credentials = await auth.headers(location)
        attempt.waits_for = ""
        return credentials
    except AuthError as error:
        reason = short_text(f"no credentials: {error.reason}")
        return TryLater(reason, cause=cause_of(error)) if error.retry else Refused(reason, cause=cause_of(error))
    except (*classes("HTTPError"), OSError, trio.TooSlowError) as error:
        # The exception's text is not shown: it may have a URL with a secret.
        return TryLater(f"no credentials: {type(error).__name__} while they were fetched", cause=cause_of(error))
    except (trio.Cancelled, BaseExceptionGroup) as error:  # noqa: ASYNC103  # what cancels this attempt is raised again
        _, failure = split_cancelled(error)
        if failure is not None or is_cancelled_here():
            raise
        # A fetch that several attempts share was cancelled with another attempt.
        forget_traceback(error)
        reason = "no credentials: auth raised Cancelled, though this attempt was not cancelled"
        return TryLater(reason, cause="Cancelled")  # noqa: ASYNC104  # it is not a cancel of this task


def _checked_location_header(name: str | None, headers: Mapping[bytes, bytes]) -> bytes | None:
    if name is None:
        return None
    check_header_name(checked_str(name, "location_header"), "location_header")
    encoded = name.lower().encode("ascii")
    if encoded in headers or encoded == b"user-agent":
        raise ValueError(f"location_header {name!r} is also among headers")
    return encoded


def _checked_timeout(timeout: float) -> float:
    if isinstance(timeout, bool) or not isinstance(timeout, int | float):
        raise TypeError(f"timeout is {timeout!r}; it must be a number of seconds")
    too_much = isinstance(timeout, int) and timeout > sys.float_info.max
    if too_much or not timeout > 0:
        raise ValueError(
            f"timeout is {shown(timeout)}; it must be above 0 and at most {sys.float_info.max:.1g} seconds "
            "(math.inf means none)"
        )
    return float(timeout)


def _checked_size(name: str, size: int) -> int:
    if isinstance(size, bool) or not isinstance(size, int):
        raise TypeError(f"{name} is {size!r}; it must be an int")
    if size < 1:
        raise ValueError(f"{name} is {size!r}; it must be at least 1")
    return size
