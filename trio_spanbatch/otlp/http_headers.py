"""Checks of what goes into a request: the endpoint, header names and values, the location.

They are stricter than HTTP so that nothing can be smuggled into a request, and their messages never show a value:
it may be a credential.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

import httpx

from .._errors import InvalidLocationError

__all__ = [
    "OWN_HEADERS",
    "check_endpoint",
    "check_header_location",
    "check_header_name",
    "encoded_headers",
    "secrets_of",
]

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

# What is shorter is no secret, and would be found in any text.
_SHORTEST_SECRET = 8

# The longest label of a host name, https://www.rfc-editor.org/rfc/rfc1035#section-2.3.4.
_LONGEST_LABEL = 63


def check_endpoint(endpoint: object) -> httpx.URL:
    """Return ``endpoint`` as a URL.

    Raises:
        ValueError: It is no http or https URL, or has userinfo, a query or a fragment. The message shows none of
            them: credentials belong into ``headers`` or ``auth``.
    """
    if not isinstance(endpoint, str):
        raise TypeError(f"endpoint is of type {type(endpoint).__name__}; it must be a str")
    if "@" in _authority(endpoint):
        raise ValueError(
            f"endpoint {_without_secrets(endpoint)!r} has a user name or password in it; "
            "give them as headers= or auth=, where no log shows them"
        )
    if "?" in endpoint or "#" in endpoint:
        raise ValueError(
            f"endpoint {_without_secrets(endpoint)!r} has a query or fragment, which logs show; "
            "give credentials as headers= or auth="
        )
    try:
        url = httpx.URL(endpoint)
    except (httpx.InvalidURL, UnicodeError):
        raise ValueError(f"endpoint {_without_secrets(endpoint)!r} is no URL") from None
    if url.scheme not in ("http", "https") or not url.host:
        raise ValueError(
            f"endpoint {_without_secrets(endpoint)!r} must begin with http:// or https:// and a host, "
            "as in http://localhost:4318/v1/traces"
        )
    if (
        url.userinfo
        or not 0 < (80 if url.port is None else url.port) < 2**16
        or any(len(label) > _LONGEST_LABEL for label in url.raw_host.split(b"."))
    ):
        raise ValueError(f"endpoint {_without_secrets(endpoint)!r} has no host and port to connect to")
    return url


def _authority(endpoint: str) -> str:
    """Return what stands between the scheme and the path, also in what is no proper URL."""
    before_path = re.match(r"(?:[A-Za-z][A-Za-z0-9+.-]*:)?[/\\]*([^/?#]*)", endpoint)
    return before_path[1] if before_path is not None else ""


def _without_secrets(endpoint: str) -> str:
    scheme, separator, rest = re.split(r"[?#]", endpoint, maxsplit=1)[0].rpartition("://")
    return f"{scheme}{separator}***@{rest.rpartition('@')[2]}" if "@" in rest else f"{scheme}{separator}{rest}"


def check_header_name(name: str, what: str = "header") -> None:
    """Raise `ValueError` if ``name`` is no header's name, or one that the exporter sets itself."""
    if not _TOKEN.fullmatch(name):
        raise ValueError(f"{what} {name!r} is no header name; it takes letters, digits and -")
    if name.lower() in OWN_HEADERS:
        raise ValueError(f"{what} {name!r} is set by the exporter itself and cannot be given")


def encoded_headers(headers: Mapping[str, str]) -> dict[bytes, bytes]:
    """Return headers as they are sent, their names in lower case.

    Raises:
        ValueError: A name or a value cannot be sent as it is. The message names the header, never its value.
    """
    encoded: dict[bytes, bytes] = {}
    items: Iterable[tuple[object, object]] = headers.items()
    for name, value in items:
        if not isinstance(name, str):
            raise TypeError(f"a header's name is of type {type(name).__name__}; it must be a str")
        check_header_name(name)
        if not isinstance(value, str):
            raise TypeError(f"the value of header {name!r} is of type {type(value).__name__}; it must be a str")
        if value and not _VALUE.fullmatch(value):
            raise ValueError(
                f"the value of header {name!r} (not shown) has spaces around it, a line break, another control "
                "character or one beyond Latin-1"
            )
        encoded[name.lower().encode("ascii")] = value.encode("latin-1")
    return encoded


def secrets_of(values: Iterable[bytes]) -> tuple[str, ...]:
    """Return what must not be repeated of header values: each, and the credentials after ``Bearer`` or ``Basic``."""
    secrets: set[str] = set()
    for value in values:
        text = value.decode("latin-1")
        secrets.update((text, text.partition(" ")[2].strip()))
    # Longest first: what is part of another is then gone with it.
    return tuple(sorted((secret for secret in secrets if len(secret) >= _SHORTEST_SECRET), key=len, reverse=True))


def check_header_location(location: str) -> None:
    """Raise `InvalidLocationError` if ``location`` cannot be the value of a header as it is."""
    if not _LOCATION.fullmatch(location):
        shown = repr(location if len(location) <= 100 else location[:100] + "…")
        raise InvalidLocationError(
            f"location {shown} cannot be sent in a header: it must be printable ASCII, not empty, without outer spaces"
        )
