"""The TLS files of an exporter, which are read again when they were renewed, and advice on failures of TLS."""

from __future__ import annotations

import os
import ssl
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import attrs
import certifi

from .._settings.environment import warn_once

File = str | os.PathLike[str]

# How many characters of a file's name are shown.
_LONGEST_SHOWN = 300


@attrs.frozen
class TLSSettings:
    """The settings of a kind of exporter that name its TLS files, for messages."""

    ca: Sequence[str]  # the settings that name the file with the CAs
    client_certificate: str  # how to set a client certificate


@attrs.frozen
class TLSAdvice:
    """Remedies for failures of TLS."""

    untrusted: str  # the remedy if the server's certificate is not trusted
    client_certificate: str  # the remedy if the server does not accept the client's


def tls_advice(settings: TLSSettings, *, own_tls: bool, own_ca: bool) -> TLSAdvice:
    """Return the remedies that have an effect, given whether the exporter has its own transport and its own CAs."""
    if not own_tls:
        given = "the client or transport that the exporter was given"
        return TLSAdvice(f"{given} says whom to trust", f"{given} has one or none")
    if own_ca:
        return TLSAdvice(f"the file that {_any(settings.ca)} names does not have its CA", settings.client_certificate)
    return TLSAdvice(f"{_any(('SSL_CERT_FILE', *settings.ca))} names the file with its CA", settings.client_certificate)


def _any(names: Sequence[str]) -> str:
    return " or ".join(filter(None, (", ".join(names[:-1]), names[-1])))


class RenewedContext:
    """The TLS context of an exporter, made again when a file has changed: certificates are renewed while programs run.

    A new file that cannot be used (it may be half written) leaves the context as it was, and is looked at again with
    the next connection. The arguments are those of `client_context`.
    """

    def __init__(self, *files: File | None, verify: bool) -> None:
        self._files = files or (None, None, None)
        self._verify = verify
        self._versions: list[tuple[int, ...]] = []
        self._context = self._renew(must_trust=False)

    def __call__(self) -> ssl.SSLContext:
        if self._versions != self._current_versions():
            # If it fails, the new version is not noted, and the file is read again for the next connection.
            with suppress(OSError, ValueError):
                self._context = self._renew(must_trust=True)
        return self._context

    def _renew(self, *, must_trust: bool) -> ssl.SSLContext:
        # Looked at before the files are read, so that a change in between is not missed.
        versions = self._current_versions()
        context = client_context(*self._files, verify=self._verify, must_trust=must_trust)
        self._versions = versions
        return context

    def _current_versions(self) -> list[tuple[int, ...]]:
        files = *self._files, os.environ.get("SSL_CERT_FILE")
        return [_version_of(file) for file in files if file]


def _version_of(file: File) -> tuple[int, ...]:
    """Return what changes when a file is replaced or written: also through a symbolic link, as Kubernetes does it."""
    try:
        found = os.stat(file)  # noqa: PTH116  # a Path cannot be made of every name
    except (OSError, ValueError):
        return ()
    return found.st_mtime_ns, found.st_size, found.st_ino, found.st_dev


def client_context(
    certificate: File | None,
    client_certificate: File | None,
    client_key: File | None,
    *,
    verify: bool = True,
    must_trust: bool = False,
) -> ssl.SSLContext:
    """Return the context for these files: the CAs to trust instead of the default ones, and the client's certificate.

    The key is by default in the same file. ``must_trust`` is as for `default_context`. A file that cannot be read or
    has the wrong content, and a key without a certificate, raise `ValueError`.
    """
    if client_key is not None and client_certificate is None:
        raise ValueError("client_key is given without client_certificate")
    if verify:
        context = _trusting(certificate, must_trust=must_trust)
    else:
        context = _new_context()
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
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


def default_context(*, must_trust: bool = False) -> ssl.SSLContext:
    """Return a context that trusts what httpx trusts: ``SSL_CERT_FILE``, else ``SSL_CERT_DIR``, else certifi's list.

    A file that cannot be read is warned about and no server is trusted. It does not stop the program: other programs
    read these variables too, and conda leaves them set to files that no longer exist. With ``must_trust`` it raises
    `ValueError` instead: a file that is being replaced must not end all trust.
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
        warning = f"{variable} is {_shown(path)}, which cannot be used ({problem}): no https server is trusted"
        if must_trust:
            raise ValueError(warning)
        warn_once(warning)
    return context


def _trusting(certificate: File | None, *, must_trust: bool) -> ssl.SSLContext:
    if certificate is None:
        return default_context(must_trust=must_trust)
    context = _new_context()
    # Path.is_dir raises on a name that is too long, as a PEM is.
    if os.path.isdir(certificate):  # noqa: PTH112  # see above
        context.load_verify_locations(capath=certificate)
        return context
    _check_readable("certificate", certificate)
    if _load(context, cafile=certificate) is not None:
        raise ValueError(f"certificate {_shown(certificate)} holds no certificates (PEM)")
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


def _load(context: ssl.SSLContext, *, cafile: File | None = None, capath: File | None = None) -> str | None:
    try:
        context.load_verify_locations(cafile, capath)
    except (OSError, ValueError):
        # `ssl.SSLError` is an OSError.
        return "it has no certificates (PEM)"
    return None


def _check_readable(what: str, path: File) -> None:
    if "-----BEGIN " in str(path):
        raise ValueError(f"{what} (not shown) is a PEM; it must be the name of a file")
    # Raised within ``except``, an exception would have the file's name in its context.
    problem = _problem_with(path)
    if problem is not None:
        raise ValueError(f"{what} {_shown(path)} cannot be read: {problem}")


def _problem_with(path: File) -> str | None:
    try:
        with Path(path).open("rb"):
            return None
    except OSError as error:
        return error.strerror or type(error).__name__
    except ValueError:
        return "a file's name has no such characters"


def _shown(path: File) -> str:
    """Return a file's name, unless it may be a key instead: without its first and last line, that is one long text."""
    name = os.fspath(path)
    return repr(name) if len(name) <= _LONGEST_SHOWN and name.isprintable() else "(not shown)"


def _no_password() -> str:
    # Without this, OpenSSL asks for an encrypted key's password on the terminal, and waits.
    return ""
