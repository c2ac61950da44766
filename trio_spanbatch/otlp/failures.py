"""From a broken exchange to a result: what happened, whether the server may have the batch, what a user can do."""

from __future__ import annotations

import ssl
from collections.abc import Collection, Iterator

import httpx

from .._results import ExportResult, Refused, TryLater
from .messages import short_text

__all__ = ["failure_result"]

# Nothing was sent with these. A request that was written may have arrived with any other.
_BEFORE_THE_REQUEST = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout, httpx.ProxyError)

# What OpenSSL calls an answer that is no TLS: bytes of another protocol where a record was expected.
_NO_TLS = ("WRONG_VERSION_NUMBER", "HTTP_REQUEST", "PACKET_LENGTH_TOO_LONG", "UNKNOWN_PROTOCOL", "RECORD_LAYER_FAILURE")

# How h11 shows the first bytes of a TLS alert where it expected a status line.
_TLS_ALERT = "\\x15\\x03"


def failure_result(
    error: Exception, *, peer: str, connected: bool, https: bool, secrets: Collection[str] = ()
) -> ExportResult:
    """Return what an exception of httpx means for the batch.

    Args:
        error: The exception.
        peer: Host and port that were connected to: the server's, or a proxy's.
        connected: Whether there was a TCP connection to it.
        https: Whether the endpoint is https.
        secrets: What must not be shown.
    """
    if isinstance(error, httpx.LocalProtocolError | httpx.UnsupportedProtocol | httpx.InvalidURL):
        # Its text may show a header's value.
        return Refused(f"the request cannot be sent: {type(error).__name__}")
    tls = next((cause for cause in _causes(error) if isinstance(cause, ssl.SSLError)), None)
    if tls is not None:
        reason, sent = _tls_failure(tls, error, peer)
    else:
        reason, sent = _failure(error, peer, connected, https), not isinstance(error, _BEFORE_THE_REQUEST)
    return TryLater(short_text(reason, secrets), ambiguous=sent)


def _failure(error: Exception, peer: str, connected: bool, https: bool) -> str:
    words = _words(error)
    if isinstance(error, httpx.ProxyError):
        return f"the proxy {peer} does not connect: {words}"
    if isinstance(error, httpx.ConnectError) and connected and https:
        return f"{peer} ended the TLS handshake: {words}; if it does not speak TLS, the endpoint begins with http://"
    if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout | httpx.PoolTimeout):
        return f"cannot connect to {peer}: {words}"
    if _TLS_ALERT in words and not https:
        return f"{peer} speaks TLS, but the endpoint begins with http://: does it need https://?"
    return f"the exchange with {peer} broke: {words}"


def _tls_failure(tls: ssl.SSLError, error: Exception, peer: str) -> tuple[str, bool]:
    """Return the reason, and whether the request may have arrived."""
    if isinstance(tls, ssl.SSLCertVerificationError):
        return (
            f"the certificate of {peer} is not trusted: certificate verify failed: {tls.verify_message}; "
            "OTEL_EXPORTER_OTLP_CERTIFICATE or certificate= names the file with its CA"
        ), False
    code = tls.reason or ""
    if code in _NO_TLS:
        return f"{peer} does not speak TLS ({code}): does the endpoint need http:// instead of https://?", False
    if "ALERT" in code and ("CERT" in code or "CA" in code.split("_")):
        # With TLS 1.3 the alert arrives after the handshake, but before anything of the request was looked at.
        return (
            f"{peer} does not accept the client certificate ({code}); OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE and "
            "OTEL_EXPORTER_OTLP_CLIENT_KEY or client_certificate= and client_key= name its files"
        ), False
    return f"TLS with {peer} failed: {code or type(tls).__name__}", not isinstance(error, _BEFORE_THE_REQUEST)


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yield ``error`` and what led to it. httpx keeps the exceptions of httpcore, trio and ssl as causes."""
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        yield current
        if isinstance(current, BaseExceptionGroup):
            current = current.exceptions[0]
        else:
            current = current.__cause__ or current.__context__


def _words(error: BaseException) -> str:
    """Return the words of the innermost cause that has an error number, else of the outermost that has any."""
    texts = [str(cause) for cause in _causes(error)]
    numbered = [cause.strerror for cause in _causes(error) if isinstance(cause, OSError) and cause.strerror]
    return (numbered[-1:] or [text for text in texts if text] or [type(error).__name__])[0]
