"""From a broken exchange to a result: what happened, whether the server may have the batch, what a user can do."""

from __future__ import annotations

import os
import ssl
from collections.abc import Collection, Iterator, Sequence

from .._exceptions import cause_of
from .._exporter import ExportResult, Refused, TryLater
from .client import TLSAdvice
from .messages import short_text
from .packages import classes

__all__ = ["cause_of", "failure_result"]

# Nothing was sent with these. A request that was written may have arrived with any other.
_BEFORE_THE_REQUEST = ("ConnectError", "ConnectTimeout", "PoolTimeout", "ProxyError")

# What OpenSSL calls an answer that is no TLS: bytes of another protocol where a record was expected.
_NO_TLS = ("WRONG_VERSION_NUMBER", "HTTP_REQUEST", "PACKET_LENGTH_TOO_LONG", "UNKNOWN_PROTOCOL", "RECORD_LAYER_FAILURE")

# What a server that speaks TLS makes of plain HTTP: h11 shows the first bytes of its alert where it expected a status
# line (or only says that the line is illegal, if they came alone), or it closes or resets the connection.
_SIGNS_OF_TLS = (
    "\\x15\\x03",
    "illegal request line",
    "Server disconnected without sending a response",
    "Connection reset by peer",
    "Broken pipe",
)


def failure_result(
    error: Exception,
    *,
    peer: str,
    connected: bool,
    https: bool,
    advice: TLSAdvice,
    write_error: BaseException | None = None,
    secrets: Collection[str] = (),
) -> ExportResult:
    """Return what an exception of httpx or httpx2 means for the batch.

    Args:
        error: The exception.
        peer: Host and port that were connected to: the server's, or a proxy's.
        connected: Whether a TCP connection to it was made for this attempt.
        https: Whether the endpoint is https.
        advice: What to do about a failure of TLS.
        write_error: What went wrong before, while the request was written.
        secrets: What must not be shown.
    """
    if isinstance(error, classes("LocalProtocolError", "UnsupportedProtocol", "InvalidURL")):
        # Its text may show a header's value.
        return Refused(f"the request cannot be sent: {type(error).__name__}", cause=cause_of(error))
    causes = [*_causes(error), *_causes(write_error)]
    tls = next((cause for cause in causes if isinstance(cause, ssl.SSLError)), None)
    words = _words(causes)
    may_have_arrived, remedy = not isinstance(error, classes(*_BEFORE_THE_REQUEST)), ""
    if isinstance(error, classes("ProxyError")):
        reason = f"the proxy {peer} does not connect: {words}"
    elif isinstance(tls, ssl.SSLCertVerificationError):
        reason = f"the certificate of {peer} is not trusted: certificate verify failed: {tls.verify_message}"
        remedy = advice.untrusted
    elif tls is not None and tls.reason in _NO_TLS:
        reason = f"{peer} does not speak TLS ({tls.reason}): does the endpoint need http:// instead of https://?"
    elif tls is not None and _is_about_client_certificate(tls.reason or ""):
        # With TLS 1.3 the alert arrives after the handshake, but before anything of the request was looked at.
        reason, may_have_arrived = f"{peer} does not accept the client certificate ({tls.reason})", False
        remedy = advice.client_certificate
    elif https and connected and not may_have_arrived:
        reason = f"the TLS handshake with {peer} failed: {words}"
    elif not may_have_arrived:
        reason = f"cannot connect to {peer}: {words}"
    else:
        reason = f"the exchange with {peer} broke: {words}"
        if connected and not https and _looks_like_tls(causes):
            remedy = "if it speaks TLS, the endpoint begins with https://"
    # The remedy stays whole, however long the words are.
    reason = "; ".join(filter(None, (short_text(reason, secrets), remedy)))
    return TryLater(reason, ambiguous=may_have_arrived, cause=cause_of(error))


def _is_about_client_certificate(code: str) -> bool:
    words = code.split("_")
    return "ALERT" in words and any(word in words for word in ("CERTIFICATE", "CA", "HANDSHAKE"))


def _looks_like_tls(causes: Sequence[BaseException]) -> bool:
    # All of them: whether writing or reading broke first depends on when the server closed.
    texts = [text for cause in causes for text in (str(cause), getattr(cause, "strerror", None) or "")]
    return any(sign in text for sign in _SIGNS_OF_TLS for text in texts)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield ``error`` and what led to it. httpx keeps the exceptions of httpcore, trio and ssl as causes."""
    while error is not None:
        yield error
        error = error.exceptions[0] if isinstance(error, BaseExceptionGroup) else error.__cause__ or error.__context__


def _words(causes: Sequence[BaseException]) -> str:
    """Return the words of the operating system or of OpenSSL where there are any, else the first that there are."""
    for cause in causes:
        if isinstance(cause, ssl.SSLError) and cause.reason:
            return cause.reason
        if isinstance(cause, OSError) and cause.strerror:
            # Trio puts the address in front, which stands in our message already.
            plain = os.strerror(cause.errno) if cause.errno else ""
            return plain if cause.strerror.endswith(plain) and plain else cause.strerror
    return next((text for text in map(str, causes) if text), type(causes[0]).__name__)
