"""Checks of the parts of a request: the endpoint, header names and values, the location.

They are stricter than HTTP, to prevent request smuggling. Their messages never show a value, which may be a credential.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping

import httpx

from .._errors import InvalidLocationError

# Headers that the exporter, httpx or the connection sets.
OWN_HEADERS = frozenset(
    {
        "accept-encoding",
        "connection",
        "content-encoding",
        "content-length",
        "content-type",
        "expect",
        "host",
        "keep-alive",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)

_TOKEN = re.compile(r"[-!#$%&'*+.^_`|~0-9a-zA-Z]+")
_VALUE = re.compile(r"[\x21-\x7e\x80-\xff]+(?:[ \t]+[\x21-\x7e\x80-\xff]+)*")
_LOCATION = re.compile(r"[\x21-\x7e]+(?: +[\x21-\x7e]+)*")

# An ``@``, or a character that browsers and IDNA treat as one. Credentials may precede it.
_AT = re.compile("[@\uff20\ufe6b]")
_ENCODED_AT = re.compile("%40", re.IGNORECASE)

# The part of a URL that can be shown: scheme, host and port, if unambiguous.
_SHOWN = re.compile(
    r"((?:[A-Za-z][A-Za-z0-9+.-]*://)(?:[A-Za-z0-9._-]*|\[[0-9A-Fa-f:.]*\])(?::[0-9]{1,5})?|[A-Za-z0-9._-]+:[0-9]{1,5})"
    r"(?=[/?#]|\Z)"
)

# The characters of a host name, encoded as ASCII.
_HOST = re.compile(rb"[0-9A-Za-z._-]+")

# The longest label of a host name, https://www.rfc-editor.org/rfc/rfc1035#section-2.3.4.
_LONGEST_LABEL = 63


def check_endpoint(endpoint: object, name: str = "endpoint") -> httpx.URL:
    """Return ``endpoint`` as an http or https URL. Messages call it ``name`` and show at most scheme, host and port."""
    endpoint = checked_str(endpoint, name)
    if has_userinfo(endpoint):
        raise ValueError(
            f"{name} (not shown) contains a user name or password; give them with headers=, where no log "
            "shows them (an @ in a path is written %40)"
        )
    shown = _without_secrets(endpoint)
    if "?" in endpoint or "#" in endpoint:
        raise ValueError(f"{name} {shown} has a query or fragment, which logs show; give credentials with headers=")
    url = _parsed(endpoint)
    if url is None:
        raise ValueError(f"{name} {shown} is not a URL such as http://localhost:4318/v1/traces")
    if url.scheme not in ("http", "https") or not url.host:
        raise ValueError(
            f"{name} {shown} must begin with http:// or https:// and a host, as in http://localhost:4318/v1/traces"
        )
    if url.userinfo or not 0 < (80 if url.port is None else url.port) < 2**16 or not _is_host(url):
        raise ValueError(f"{name} {shown} has an invalid host or port")
    return url


def checked_str(value: object, name: str) -> str:
    """Return ``value`` if it is a str. The error message refers to it as ``name``."""
    if not isinstance(value, str):
        raise TypeError(f"{name} is of type {type(value).__name__}; it must be a str")
    return value


def checked_path(value: object, name: str) -> None:
    """Raise `TypeError` unless ``value`` is None, a str or a path of str. The value is not shown: it may be a key."""
    if value is None or isinstance(os.fspath(value) if isinstance(value, os.PathLike) else value, str):
        return
    raise TypeError(f"{name} is of type {type(value).__name__}; it must be a str or a pathlib.Path")


def checked_environ(environ: Mapping[str, str] | None) -> Mapping[str, str]:
    """Return ``environ``, or that of the process."""
    if environ is None:
        return os.environ
    if not isinstance(environ, Mapping):
        raise TypeError(f"environ is of type {type(environ).__name__}; it must be a mapping, such as os.environ")
    return environ


def has_userinfo(url: str) -> bool:
    """Return whether ``url`` may contain a user name or password.

    A ``/``, ``?`` or ``#`` in a password ends the host of a URL, and there are several ways to write ``@``. So all of
    them are searched for everywhere, except ``%40`` in the path, where it is the normal form of ``@``.
    """
    # What is between scheme and path, also of an invalid URL.
    authority = re.match(r"(?:[A-Za-z][A-Za-z0-9+.-]*:)?[/\\]*([^/?#]*)", url)
    return _AT.search(url) is not None or (authority is not None and _ENCODED_AT.search(authority[1]) is not None)


def _parsed(endpoint: str) -> httpx.URL | None:
    # Raised within ``except``, an exception would have httpx's as its context, which shows a part of the URL.
    try:
        return httpx.URL(endpoint)
    except (httpx.InvalidURL, UnicodeError):
        return None


def _is_host(url: httpx.URL) -> bool:
    # httpx has parsed a host in brackets as an IPv6 address. In a name, it percent-encodes invalid characters.
    name = b":" in url.raw_host or _HOST.fullmatch(url.raw_host) is not None
    return name and all(len(label) <= _LONGEST_LABEL for label in url.raw_host.split(b"."))


def _without_secrets(endpoint: str) -> str:
    if not endpoint:
        return repr(endpoint)
    shown = None if has_userinfo(endpoint) else _SHOWN.match(endpoint)
    return "(not shown)" if shown is None else repr(shown[1])


def check_header_name(name: str, what: str = "header") -> None:
    """Raise `ValueError` if ``name`` is not a valid header name, or a header that the exporter sets itself."""
    if not _TOKEN.fullmatch(name):
        raise ValueError(f"{what} {name!r} is not a valid header name; use letters, digits and -")
    if name.lower() in OWN_HEADERS:
        raise ValueError(f"{what} {name!r} is set by the exporter itself and cannot be given")


def _check_given_name(name: str) -> None:
    """Check a name that may be a whole header by mistake, with ``:`` instead of ``=``; its value is not shown."""
    if _TOKEN.fullmatch(name):
        check_header_name(name)
        return
    before_colon = name.partition(":")[0]
    if before_colon != name and _TOKEN.fullmatch(before_colon):
        raise ValueError(
            f"header {before_colon!r} has a colon after its name (the rest is not shown): put = between name and value "
            "in a variable or option; in a mapping they are separate"
        )
    raise ValueError("a header's name (not shown) is not valid; use letters, digits and -")


def checked_headers(headers: object) -> Mapping[str, str]:
    """Return ``headers``, or an empty mapping for ``None``. The message of a `TypeError` does not show them."""
    if headers is None:
        return {}
    if not isinstance(headers, Mapping):
        raise TypeError(
            f"headers is of type {type(headers).__name__}; it must be a mapping of names to values, such as "
            "{'X-Api-Key': '...'}"
        )
    return headers


def has_header(headers: object, *names: str) -> bool:
    """Return whether ``headers`` have one of ``names``, in lower case. Names and values may be of wrong types yet."""
    return any(str(given).lower() in names for given in checked_headers(headers))


def encoded_headers(headers: Mapping[str, str]) -> dict[bytes, bytes]:
    """Return headers encoded for sending, their names in lower case. Messages name a header, never its value."""
    encoded: dict[bytes, bytes] = {}
    items: Iterable[tuple[object, object]] = checked_headers(headers).items()
    for key, given in items:
        name = checked_str(key, "a header's name")
        _check_given_name(name)
        value = checked_str(given, f"the value of header {name!r}")
        if value and not _VALUE.fullmatch(value):
            raise ValueError(
                f"the value of header {name!r} (not shown) has leading or trailing spaces, a line break, another "
                "control character or a character beyond Latin-1"
            )
        encoded[name.lower().encode("ascii")] = value.encode("latin-1")
    return encoded


def check_header_location(location: str) -> None:
    """Raise `InvalidLocationError` if ``location`` cannot be the value of a header unchanged."""
    if not _LOCATION.fullmatch(location):
        shown = repr(location if len(location) <= 100 else location[:100] + "…")
        raise InvalidLocationError(
            f"location {shown} cannot be sent in a header: it must be printable ASCII, not empty, without leading or "
            "trailing spaces"
        )
