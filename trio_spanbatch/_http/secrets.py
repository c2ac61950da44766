"""What must not be shown of a request: its credentials, in each form in which a server may repeat them.

A server that does not like a token often says which one: in the reason phrase, a header or the body, as it came, or
decoded from Basic, or encoded for a URL, for JSON or for HTML; and h11 and httpcore show bytes as Python writes them.
All these forms are made from the headers of a request and looked for as they are. So what cannot be found is what is
too short to be told from other words, and what was changed in another way: other letter case, a hash, a part.
"""

from __future__ import annotations

import base64
import functools
import html
import json
import logging
import re
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from urllib.parse import quote, quote_plus, unquote

from .._settings.header_checks import OWN_HEADERS

__all__ = [
    "hidden_in_logs",
    "install_log_filter",
    "redacted",
    "secrets_of",
]

# Keeping credentials out of the logs of httpx and httpcore, and of httpx2 and httpcore2.
#
# They do not log what we send. But at DEBUG httpcore logs the head of each response, and httpx logs its reason phrase
# at
# INFO; a server that echoes a token there (in a ``Location``, a ``Set-Cookie``) would have it written to the program's
# logs. So their loggers get a filter, which takes out the credentials of the exchange that runs in the current task. It
# does nothing outside our exchanges.
#
# With HTTP/2, which a client of the user's own may speak, hpack logs each header at DEBUG, also of requests.

_LOGGERS = (
    *("httpx", "httpx2"),
    *(
        f"{package}.{part}"
        for package in ("httpcore", "httpcore2")
        for part in ("connection", "http11", "http2", "proxy", "socks")
    ),
    "hpack.hpack",
    "hpack.table",
)
_secrets: ContextVar[Callable[[], Collection[str]] | None] = ContextVar("trio_spanbatch secrets", default=None)


class _SecretFilter(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        """Take the secrets out of ``record``, and let it pass."""
        if (secrets := _secrets.get()) is not None:
            message = record.getMessage()
            cleaned = redacted(message, secrets())
            if cleaned != message:
                record.msg, record.args = cleaned, ()
        return True


def install_log_filter() -> None:
    """Put the filter on the loggers of httpx and httpcore, once."""
    for name in _LOGGERS:
        logger = logging.getLogger(name)
        if not any(isinstance(present, _SecretFilter) for present in logger.filters):
            logger.addFilter(_SecretFilter())


@contextmanager
def hidden_in_logs(secrets: Callable[[], Collection[str]]) -> Iterator[None]:
    """Keep secrets out of what the current task has httpx and httpcore log.

    Args:
        secrets: Returns them. More of them may be known as the exchange goes on.
    """
    before = _secrets.set(secrets)
    try:
        yield
    finally:
        _secrets.reset(before)


_PUBLIC = frozenset({name.encode("ascii") for name in OWN_HEADERS} | {b"accept", b"user-agent"})

# What is shorter is no secret, and would be found in any text.
_SHORTEST = 8
# The same where a header's name says that its value is a secret.
_SHORTEST_CREDENTIAL = 6
_CREDENTIAL = re.compile(rb"auth|token|key|secret|passw|cookie|credential|session|signature")

# A value with more parts than this has none of its further ones known by itself.
_MOST_PARTS = 64

# A longer one is looked for as it is only: no server repeats so much in another form.
_LONGEST_ENCODED = 4096

# No encoding changes these.
_PLAIN = re.compile(r"[-.0-9A-Z_a-z]*")

# What is left as it is in a URL, besides those: by Python, in a path, by JavaScript in a part of a URL and in a whole.
_SAFE_IN_URLS = ("", "/", "!'()*", ";,/?:@&=+$!'()*#")

# So much of a text is looked through, in characters: many times what is shown of one.
_LONGEST_TEXT = 64 * 1024


def secrets_of(headers: Iterable[tuple[bytes, bytes]], public: Collection[bytes] = ()) -> tuple[str, ...]:
    """Return what must not be repeated of a request's headers, longest first: what is part of another goes with it.

    Args:
        headers: Names and values.
        public: Names in lower case of headers that may be shown, besides those that never hold credentials.
    """
    secrets: set[str] = set()
    for name, value in headers:
        lower = name.lower()
        if lower not in _PUBLIC and lower not in public:
            secrets |= _secrets_of_header(lower, value)
    return tuple(sorted(secrets, key=lambda secret: (-len(secret), secret)))


def redacted(text: str, secrets: Collection[str]) -> str:
    """Return ``text`` without ``secrets``. Of one that is very long, it is the beginning."""
    if not secrets:
        return text
    longest = max(map(len, secrets))
    cut = len(text) > _LONGEST_TEXT + longest
    if cut:
        text = text[: _LONGEST_TEXT + longest]
    for secret in secrets:
        text = text.replace(secret, "***")
    # Where it was cut, there may be the beginning of a secret.
    return text[:-longest] if cut else text


# A request's headers are the same each time, or nearly so.
@functools.lru_cache(maxsize=256)
def _secrets_of_header(name: bytes, value: bytes) -> frozenset[str]:
    shortest = _SHORTEST_CREDENTIAL if _CREDENTIAL.search(name) else _SHORTEST
    secrets: set[str] = set()
    for text in _readings(value):
        secrets.update(_long_forms(_wholes(text), shortest))
        secrets.update(_long_forms(_parts(text), _SHORTEST))
    return frozenset(secrets)


def _readings(value: bytes) -> set[str]:
    """Return the texts that a server may take ``value`` for."""
    readings = {value.decode("latin-1"), value.decode("utf-8", "replace")}
    return readings | {unquote(text) for text in readings}


def _wholes(text: str) -> Iterator[str]:
    """Yield a value, and the credentials in it: those after ``Bearer`` or the like, and what Basic encodes."""
    scheme, _, credentials = text.partition(" ")
    credentials = credentials.strip()
    # Without base64's padding as well.
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
    for raw in _encodings(word):
        # Taken for Latin-1, and as Python shows bytes: among others with a quote, quotes are escaped.
        yield from (raw.decode("latin-1"), repr(raw)[2:-1], repr(b'"' + raw)[3:-1])
        for safe in _SAFE_IN_URLS:
            yield from _both_cases(quote(raw, safe=safe))
        yield from _both_cases(quote_plus(raw))
    # As httpx shows a reason phrase, and as Python shows a string.
    yield from (word.encode("ascii", "ignore").decode("ascii"), repr(word)[1:-1], repr('"' + word)[2:-1])
    for ensure_ascii in (False, True):
        in_json = json.dumps(word, ensure_ascii=ensure_ascii)[1:-1]
        yield from (in_json, in_json.replace("/", "\\/"))
    yield from (html.escape(word), html.escape(word, quote=False))


def _encodings(word: str) -> Iterator[bytes]:
    yield word.encode("utf-8", "replace")
    if not word.isascii():
        yield word.encode("latin-1", "replace")


def _both_cases(quoted: str) -> Iterator[str]:
    yield quoted
    yield re.sub("%[0-9A-F]{2}", lambda escape: escape[0].lower(), quoted)
