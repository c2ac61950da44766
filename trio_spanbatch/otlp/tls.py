"""TLS from files: whom to trust, and what to show."""

from __future__ import annotations

import os
import ssl
from pathlib import Path

import httpx

__all__ = ["client_context"]

_File = str | os.PathLike[str]


def client_context(
    certificate: _File | None, client_certificate: _File | None, client_key: _File | None
) -> ssl.SSLContext | None:
    """Return the context for these files, or ``None`` if none is given.

    Args:
        certificate: CAs to trust, instead of the usual ones.
        client_certificate: The certificate to show.
        client_key: Its key; by default it is in the same file.

    Raises:
        ValueError: A file cannot be read or has the wrong content, or there is a key without a certificate.
    """
    if client_key is not None and client_certificate is None:
        raise ValueError("client_key is given without client_certificate")
    if certificate is None and client_certificate is None:
        return None
    context = _trusting(certificate)
    if client_certificate is not None:
        _check_readable("client_certificate", client_certificate)
        if client_key is not None:
            _check_readable("client_key", client_key)
        try:
            context.load_cert_chain(client_certificate, client_key, password=_no_password)
        except (ssl.SSLError, ValueError):
            raise ValueError(
                f"client_certificate {os.fspath(client_certificate)!r} and client_key "
                f"{os.fspath(client_key or client_certificate)!r} are no certificate and its unencrypted key (PEM)"
            ) from None
    return context


def _trusting(certificate: _File | None) -> ssl.SSLContext:
    if certificate is None:
        # What httpx trusts: SSL_CERT_FILE, SSL_CERT_DIR or certifi's list.
        return httpx.create_ssl_context()
    _check_readable("certificate", certificate)
    try:
        return ssl.create_default_context(cafile=certificate)
    except ssl.SSLError:
        raise ValueError(f"certificate {os.fspath(certificate)!r} holds no certificates (PEM)") from None


def _check_readable(what: str, path: _File) -> None:
    try:
        with Path(path).open("rb"):
            pass
    except OSError as error:
        raise ValueError(f"{what} {os.fspath(path)!r} cannot be read: {error.strerror}") from None


def _no_password() -> str:
    # Without this, OpenSSL asks for the password of an encrypted key on the terminal, and waits.
    return ""
