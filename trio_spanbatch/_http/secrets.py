"""A request's credentials, in each form in which a server may repeat them, and removing them from texts.

A server that refuses a token often repeats it: in the reason phrase, a header or the body, as it was sent, decoded from
Basic, or encoded for a URL, JSON or HTML; h11 shows bytes as Python literals. All these forms are made
from the request's headers and searched for literally. So a credential is not found if it is too short to be
distinguished from other words, or if it was changed in another way: other letter case, a hash, a part.
"""

from __future__ import annotations

import base64
import functools
import html
import json
import re
from collections.abc import Collection, Iterable, Iterator
from urllib.parse import quote, quote_plus, unquote

from .._settings.header_checks import OWN_HEADERS

_PUBLIC = frozenset({name.encode("ascii") for name in OWN_HEADERS} | {b"accept", b"user-agent"})

# Shorter values are not treated as secrets: they would be found in any text.
_SHORTEST = 8
# The same for headers whose name says that the value is a credential.
_SHORTEST_CREDENTIAL = 6
_CREDENTIAL = re.compile(rb"auth|token|key|secret|passw|cookie|credential|session|signature")

# How many parts of a value are treated as secrets.
_MOST_PARTS = 64

# A longer secret is searched for only as it is: no server repeats so much in another form.
_LONGEST_ENCODED = 4096

# No encoding changes these.
_PLAIN = re.compile(r"[-.0-9A-Z_a-z]*")

# Further characters that are not encoded in a URL: by Python, in a path, by JavaScript in a part and in a whole URL.
_SAFE_IN_URLS = ("", "/", "!'()*", ";,/?:@&=+$!'()*#")

# How many characters of a text are searched: many times what is shown of it.
_LONGEST_TEXT = 64 * 1024


def secrets_of(headers: Iterable[tuple[bytes, bytes]], public: Collection[bytes] = ()) -> tuple[str, ...]:
    """Return the secrets in headers other than ``public`` ones, longest first, as one may be a part of another."""
    secrets: set[str] = set()
    for name, value in headers:
        lower = name.lower()
        if lower not in _PUBLIC and lower not in public:
            secrets |= _secrets_of_header(lower, value)
    return tuple(sorted(secrets, key=lambda secret: (-len(secret), secret)))


def redacted(text: str, secrets: Collection[str]) -> str:
    """Return ``text`` without ``secrets``; only the beginning of a very long text."""
    if not secrets:
        return text
    longest = max(map(len, secrets))
    cut = len(text) > _LONGEST_TEXT + longest
    if cut:
        text = text[: _LONGEST_TEXT + longest]
    for secret in secrets:
        text = text.replace(secret, "***")
    # A text that was cut off may end with the beginning of a secret.
    return text[:-longest] if cut else text


# Most headers are the same in each request.
@functools.lru_cache(maxsize=256)
def _secrets_of_header(name: bytes, value: bytes) -> frozenset[str]:
    shortest = _SHORTEST_CREDENTIAL if _CREDENTIAL.search(name) else _SHORTEST
    secrets: set[str] = set()
    for text in _readings(value):
        secrets.update(_long_forms(_wholes(text), shortest))
        secrets.update(_long_forms(_parts(text), _SHORTEST))
    return frozenset(secrets)


def _readings(value: bytes) -> set[str]:
    """Return the texts as which a server may read ``value``."""
    readings = {value.decode("latin-1"), value.decode("utf-8", "replace")}
    return readings | {unquote(text) for text in readings}


def _wholes(text: str) -> Iterator[str]:
    """Yield a value and the credentials in it: those after a scheme such as ``Bearer``, and those in Basic."""
    scheme, _, credentials = text.partition(" ")
    credentials = credentials.strip()
    # Also without base64's padding.
    yield from (text, text.rstrip("="), credentials, credentials.rstrip("="))
    if scheme.lower() == "basic":
        for decoded in _decoded(credentials):
            yield decoded
            yield decoded.partition(":")[2]


def _decoded(credentials: str) -> set[str]:
    try:
        decoded = base64.b64decode(credentials + "==")
    except ValueError:
        return set()
    return {decoded.decode("latin-1"), decoded.decode("utf-8", "replace")}


def _parts(text: str) -> Iterator[str]:
    """Yield the parts of a value such as ``a=1; session=s``, ``Token token="s"`` or ``ApiKey id:s``."""
    for part in re.split(r"[;,]", text, maxsplit=_MOST_PARTS):
        yield part.strip()
        for separator in " =:":
            yield part.strip().partition(separator)[2].strip(" \"'")


def _long_forms(words: Iterable[str], shortest: int) -> Iterator[str]:
    for word in set(words):
        if len(word) >= shortest:
            yield from (form for form in _forms(word) if len(form) >= shortest)


def _forms(word: str) -> Iterator[str]:
    yield word
    if _PLAIN.fullmatch(word) or len(word) > _LONGEST_ENCODED:
        return
    for raw in {word.encode("utf-8", "replace"), word.encode("latin-1", "replace")}:
        # Read as Latin-1, and as a literal of bytes, which may or may not escape quotes.
        yield from (raw.decode("latin-1"), repr(raw)[2:-1], repr(b'"' + raw)[3:-1])
        for safe in _SAFE_IN_URLS:
            yield from _both_cases(quote(raw, safe=safe))
        yield from _both_cases(quote_plus(raw))
    # As httpx shows a reason phrase, and as a literal of a string.
    yield from (word.encode("ascii", "ignore").decode("ascii"), repr(word)[1:-1], repr('"' + word)[2:-1])
    for ensure_ascii in (False, True):
        in_json = json.dumps(word, ensure_ascii=ensure_ascii)[1:-1]
        yield from (in_json, in_json.replace("/", "\\/"))
    yield from (html.escape(word), html.escape(word, quote=False))


def _both_cases(quoted: str) -> Iterator[str]:
    yield quoted
    yield re.sub("%[0-9A-F]{2}", lambda escape: escape[0].lower(), quoted)
