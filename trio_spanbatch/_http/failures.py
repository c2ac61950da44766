"""Map a broken exchange to a result: what happened, whether the server may have the batch, and the remedy."""

from __future__ import annotations

import os
import ssl
from collections.abc import Collection, Iterator, Mapping, Sequence

import attrs

from .._exceptions import cause_of
from .._exporter import Refused, TryLater
from .messages import short_text
from .packages import classes
from .tls import TLSAdvice

__all__ = ["FAILURES", "Kind", "cause_of", "causes_of", "failure_result"]


@attrs.frozen
class Kind:
    """What a kind of failure says."""

    # Whether the same request may succeed later. It may where the machine lacks a thread or a file descriptor for a
    # moment, where a name cannot be looked up, and where the network changes.
    later: bool
    left: bool  # whether something of the request may have reached the server
    # Whether it says something about the server if nothing has left. A client may lack connections only.
    endpoint: bool = True


# The exceptions of httpx by their names, which httpx2 has too. The first row that has one decides; the last is for all
# others. The exporter's own transport knows whether something was sent, and then that counts.
FAILURES: Mapping[tuple[str, ...], Kind] = {
    ("LocalProtocolError", "UnsupportedProtocol", "InvalidURL"): Kind(later=False, left=False),
    ("PoolTimeout",): Kind(later=True, left=False, endpoint=False),
    ("ConnectError", "ConnectTimeout", "ProxyError"): Kind(later=True, left=False),
    ("RequestError",): Kind(later=True, left=True),
}

# OpenSSL's reasons for a peer that does not speak TLS: bytes of another protocol where a record was expected.
_NO_TLS = ("WRONG_VERSION_NUMBER", "HTTP_REQUEST", "PACKET_LENGTH_TOO_LONG", "UNKNOWN_PROTOCOL", "RECORD_LAYER_FAILURE")

# Errors when a server that speaks TLS gets plain HTTP: h11 shows the first bytes of the TLS alert instead of a status
# line (or only that the line is illegal, if they came alone), or the server closes or resets the connection.
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
    peer: str,  # host and port of the connection: the server's, or a proxy's
    connected: bool,  # whether a TCP connection was made for this attempt
    https: bool,
    advice: TLSAdvice,
    nothing_left: bool = False,  # whether it is known that no byte of the request was sent
    write_error: BaseException | None = None,  # an earlier error of writing the request
    secrets: Collection[str] = (),  # credentials that must not be shown
) -> Refused | TryLater:
    kind = next(kind for names, kind in FAILURES.items() if isinstance(error, classes(*names)))
    if not kind.later:
        # The exception's text may show a header's value.
        return Refused(f"the request cannot be sent: {type(error).__name__}", cause=cause_of(error))
    causes = [*causes_of(error), *causes_of(write_error)]
    tls = next((cause for cause in causes if isinstance(cause, ssl.SSLError)), None)
    words = _words(causes)
    may_have_arrived, remedy = kind.left and not nothing_left, ""
    if isinstance(error, classes("ProxyError")):
        reason = f"the proxy {peer} does not connect: {words}"
    elif isinstance(tls, ssl.SSLCertVerificationError):
        reason = f"the certificate of {peer} is not trusted: certificate verify failed: {tls.verify_message}"
        remedy = advice.untrusted
    elif tls is not None and tls.reason in _NO_TLS:
        reason = f"{peer} does not speak TLS ({tls.reason}): does the endpoint need http:// instead of https://?"
    elif tls is not None and _is_about_client_certificate(tls.reason or ""):
        # With TLS 1.3 the alert arrives after the handshake, but before the server read any of the request.
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
    # The remedy is not cut off, however long the reason is.
    reason = "; ".join(filter(None, (short_text(reason, secrets), remedy)))
    is_endpoint = kind.endpoint and not may_have_arrived
    return TryLater(reason, ambiguous=may_have_arrived, endpoint=is_endpoint, cause=cause_of(error))


def _is_about_client_certificate(code: str) -> bool:
    words = code.split("_")
    return "ALERT" in words and any(word in words for word in ("CERTIFICATE", "CA", "HANDSHAKE"))


def _looks_like_tls(causes: Sequence[BaseException]) -> bool:
    # All causes: whether writing or reading failed first depends on when the server closed.
    texts = [text for cause in causes for text in (str(cause), getattr(cause, "strerror", None) or "")]
    return any(sign in text for sign in _SIGNS_OF_TLS for text in texts)


def causes_of(error: BaseException | None) -> Iterator[BaseException]:
    """Yield ``error`` and its causes, among which httpx keeps the exceptions of httpcore, trio and ssl."""
    while error is not None:
        yield error
        error = error.exceptions[0] if isinstance(error, BaseExceptionGroup) else error.__cause__ or error.__context__


def _words(causes: Sequence[BaseException]) -> str:
    """Return the message of the operating system or of OpenSSL if there is one, else the first message."""
    for cause in causes:
        if isinstance(cause, ssl.SSLError) and cause.reason:
            return cause.reason
        if isinstance(cause, OSError) and cause.strerror:
            # Trio puts the address in front, which the reason has already.
            plain = os.strerror(cause.errno) if cause.errno else ""
            return plain if cause.strerror.endswith(plain) and plain else cause.strerror
    return next((text for text in map(str, causes) if text), type(causes[0]).__name__)
