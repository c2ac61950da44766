"""Find credentials in values, for ``SpanBatcher(redact=scrub())``.

Every expression takes time in proportion to the text, however it was made: what repeats is either bounded, or ends at a
character that cannot be part of it, and a part that is not closed extends to the end of the text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Any, Final, TypeAlias

_WORD: Final = r"[\w-]{8,}"
_LONG_WORD: Final = r"\w{16,}"

# Tokens with a known beginning, and what follows it.
_TOKENS: Final = (
    # Language models: OpenAI, Anthropic, OpenRouter, DeepSeek and Langfuse; Groq, xAI, Perplexity, Hugging Face,
    # Replicate, NVIDIA, Tavily, LangSmith, Logfire, Pinecone.
    *((head, _WORD) for head in ("sk-", "nvapi-", "tvly-")),
    *((head, _LONG_WORD) for head in ("gsk_", "xai-", "pplx-", "hf_", "r8_", "lsv2_", "pylf_", "pcsk_")),
    # Clouds: AWS, Google, Databricks, DigitalOcean, Vault, Grafana.
    *((head, r"[A-Z0-9]{12,}") for head in ("AKIA", "ASIA")),
    *((head, r"[\w.-]{16,}") for head in ("AIza", r"ya29\.", "GOCSPX-", r"hvs\.")),
    *((head, r"[0-9a-f]{32}(?:-\d+)?") for head in ("dapi", "dose")),
    *((head, r"[\w=+/-]{16,}") for head in ("dop_v1_", "glsa_", "glc_", "sntrys_")),
    # Code and services: GitHub, GitLab, npm, PyPI, Slack, Stripe, SendGrid, Shopify.
    *((head, _LONG_WORD) for head in ("gh[pousr]_", "github_pat_", "npm_", "shpat_")),
    *((head, r"[\w.-]{16,}") for head in ("glpat-", "gldt-", "glrt-", "glptt-", "glft-", "glcbt-", "pypi-")),
    *((head, _WORD) for head in ("xox[a-z]-", "xapp-", "sk_(?:live|test)_", "rk_(?:live|test)_", "whsec_")),
    (r"SG\.", r"[\w-]{12,}\.[\w-]{12,}"),
)
# What may be before a word, besides all but letters and digits: an escape, of a quoted text, a URL, or a color.
_ESCAPES: Final = (r"\\[nrtbf]", r"\\u[0-9A-Fa-f]{4}", r"\\x[0-9A-Fa-f]{2}", "%[0-9A-Fa-f]{2}", r"[0-9;\[]m")


def _begins(head: str) -> str:
    """Return an expression for ``head``, which must not be the rest of a longer word."""
    return rf"{head}(?:(?<![0-9A-Za-z]{head})|{'|'.join(f'(?<={escape}{head})' for escape in _ESCAPES)})"


_BEFORE_KEY: Final = "api access private secret signing encryption account subscription master auth"
# The endings of secret names: the part that has to be in the text, and an expression that begins with it.
_NAMES: Final = {
    "pass": r"pass(?:(?:word|wd|phrase)s?|(?<=[\"'_-]pass))",
    "pwd": r"pwd",
    "secret": r"secrets?(?:[_-]?(?:access[_-]?)?key)?",
    "credential": r"credentials?",
    "key": rf"key(?:{'|'.join(f'(?<={word}key)|(?<={word}[_ -]key)' for word in _BEFORE_KEY.split())})s?(?:[_-]?id)?",
    "token": r"token",
}
# After a name: marks of a quotation, of Markdown or of a subscript.
_MARKS: Final = r"[\"'\\*`]{0,4}\]?\s{0,8}"
# Where a list, mapping or tuple of data begins; all up to its end is replaced.
_BRACKET: Final = r"(?P<bracket>[\[({])(?=\s{0,8}[rbuf]{0,2}\\{0,4}[\"'\d\[({])"
# The type of a variable in Python.
_TYPE: Final = r":\s{0,8}(?:optional\[)?(?:str|bytes|secretstr|secretbytes)\]?(?:\s?\|\s?none)?\s{0,8}=(?!=)"
_VALUE: Final = (
    rf"{_MARKS}(?:{_TYPE}|:=?|=>?)[*`]{{0,3}}+\s{{0,8}}+(?:{_BRACKET}|"
    # A text of Python may be bytes, or the argument of a class.
    r"(?:[a-z_.]{1,32}\()?[rbuf]{0,2}(?:"
    # Between escaped quotation marks, between others, or up to the end of the word. A quotation mark may also be the
    # one that ends a text with the name, so what follows it ends with the line.
    r"\\{1,4}([\"'])((?:(?!\\{1,4}\2).)*)|(\"{3}|'{3})((?:\\.|(?!\4)[^\\])*)|"
    r"([\"'])((?:\\.|(?!\6)[^\\\r\n])*))|(?!=)([^\s\"'\\,;&<>()\[\]{}]+))"
)
# Up to the end of the line or of the quoted text, but not that of a parameter: ``Digest username="u", response="r"``.
_LINE: Final = (
    rf"{_MARKS}[:=]>?+[*`]{{0,3}}+\s{{0,8}}+(?:{_BRACKET}|(?:[rbuf]{{0,2}}(?=[\"']))?+[\"'\\]{{0,4}}+(?![\[({{])"
    r"((?:=\\{0,4}[\"'][^\"'\r\n]*[\"']?|[^\r\n\"'\\])+))"
)

# What has to be in the text, and the expression; its last group is the secret, if it takes part. Expressions that begin
# with a literal are found fast; what may not stand before that is checked after it.
_Expression: TypeAlias = tuple[str, re.Pattern[str]]
_EXACT: Final[tuple[_Expression, ...]] = (
    # A private key, to the end of the text if it was cut.
    ("PRIVATE KEY", re.compile(r"(-----BEGIN [A-Z0-9 ]{0,40}PRIVATE KEY(?s:.*?)(?:-----END [A-Z0-9 ]{0,40}-----|\Z))")),
    # The password in a URL.
    *((mark, re.compile(re.escape(mark) + r"[^\s/?#:@\"'<>]*:([^\s/?#\"'<>]+)@")) for mark in ("://", r":\/\/")),
    ("Basic ", re.compile(r"Basic {1,8}(?=[\w+/]{0,512}?(?:[0-9=]|[a-z][A-Z]))([A-Za-z0-9+/_-]{4,}={0,2})")),
    *((re.split(r"[^\w-]", head)[0], re.compile(f"({_begins(head)}{rest})")) for head, rest in _TOKENS),
    # JSON Web Tokens. A word that is none is passed over as a whole, as others may seem to begin in it.
    ("eyJ", re.compile(rf"({_begins('eyJ')}[\w-]{{5,}}+\.[\w-]{{5,}}(?:\.[\w.-]*)?)|{_begins('eyJ')}[\w-]*+")),
)
_IN_LOWER_CASE: Final[tuple[_Expression, ...]] = (
    ("authorization", re.compile(f"authorization{_LINE}")),
    ("cookie", re.compile(f"cookie{_LINE}")),
    (
        "bearer",
        re.compile(
            rf"{_begins('bearer')}(?:%20|(?=[\s\"']){_MARKS})(?!tokens\b|auth(?:entication|orization)?\b)([\w.~+/=-]{{6,}})"
        ),
    ),
    *((stem, re.compile(name + _VALUE, re.DOTALL)) for stem, name in _NAMES.items()),
    # A part of a query.
    (
        "=",
        re.compile(
            r"(?:[?&]|&amp;|\\u0026)(?:key|sig|signature|x-(?:amz|goog)-(?:signature|credential))=([^&\s\"'<>#]+)"
        ),
    ),
)

_SECRET_KEY: Final = re.compile(rf"(?:{'|'.join(_NAMES.values())}|(?:^|_)(?:pass|authorization|cookies?|signature))$")
_QUOTED_OR_BRACKET: Final = re.compile(r"\\.|\"(?:\\.|[^\"\\])*+\"|'(?:\\.|[^'\\])*+'|([\[({])|([\])}])", re.DOTALL)
# Where a key has a word boundary that is not a punctuation mark: ``apiKey``, ``APIKey``.
_WORD_BOUNDARY: Final = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")
_PUNCTUATION: Final = re.compile(r"[^0-9a-z]+")
# A key that is longer is not a name.
_LONGEST_KEY: Final = 256
# A key with more is a sentence.
_MOST_SPACES: Final = 2


def scrub(
    *, keys: Iterable[str] = (), patterns: Iterable[str | re.Pattern[str]] = (), replacement: str = "[redacted]"
) -> Callable[[str, Any], Any]:
    r"""Return a function for ``SpanBatcher(redact=...)`` that replaces common credentials.

    It finds API keys of the common vendors, tokens of the schemes Bearer and Basic, JSON Web Tokens, private keys, keys
    of AWS, Google and Azure, passwords in URLs, cookies, and values with a name such as ``password`` or ``api_key``, in
    all texts: also in lists, in mappings, and in texts that are JSON. In JSON text that has changed, the white space is
    normalized. It takes time in proportion to the size of the value.

    It cannot find a secret that looks like any other word. Personal data is for ``keys`` and ``patterns``.

    ::

        SpanBatcher(redact=scrub(keys=["email"], patterns=[r"\b\d{3}-\d{2}-\d{4}\b"]))

    Args:
        keys: Keys of attributes and items whose value is replaced completely, besides those that are always secret. A
            name also applies at the end of a longer key: ``"email"`` to ``user.email``, ``user_email`` and
            ``userEmail``. Upper and lower case are the same.
        patterns: Regular expressions; each match is replaced. They should take time in proportion to the text.
        replacement: The text to put in place of what is replaced.

    Raises:
        TypeError: An argument is of the wrong type.
        ValueError: A pattern is not a regular expression or matches an empty text, or a key has no letter or digit.
    """
    if not isinstance(replacement, str):
        raise TypeError(f"replacement is {replacement!r}; it must be a str")
    names = tuple(_normalized(name) for name in _texts("keys", keys, str))
    if "" in names:
        raise ValueError(f"keys is {keys!r}; each must contain a letter or digit")
    compiled = [_compiled(pattern) for pattern in _texts("patterns", patterns, str, re.Pattern)]
    return _Scrubber(names, compiled, replacement).redact


def _texts(name: str, values: Iterable[Any], *kinds: type) -> list[Any]:
    if isinstance(values, str | bytes | re.Pattern) or not isinstance(values, Iterable):
        raise TypeError(f"{name} is {values!r}; it must be a list of strings")
    values = list(values)
    for value in values:
        if not isinstance(value, kinds) or isinstance(getattr(value, "pattern", ""), bytes):
            raise TypeError(f"{name} contains {value!r}; it must contain only strings")
    return values


def _compiled(pattern: str | re.Pattern[str]) -> re.Pattern[str]:
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise ValueError(f"patterns contains {pattern!r}, which is not a regular expression: {error}") from error
    if compiled.match("") is not None:
        raise ValueError(f"patterns contains {pattern!r}, which matches an empty text; it must match a character")
    return compiled


def _normalized(key: str) -> str:
    return _PUNCTUATION.sub("_", _WORD_BOUNDARY.sub("_", key[-_LONGEST_KEY:]).lower()).strip("_")


class _Scrubber:
    def __init__(self, names: tuple[str, ...], patterns: list[re.Pattern[str]], replacement: str) -> None:
        self._names = frozenset(names)
        self._endings = tuple(f"_{name}" for name in names)
        self._patterns = patterns
        self._replacement = replacement
        self._is_secret = lru_cache(4096)(self._is_secret_key)

    def redact(self, key: str, value: Any) -> Any:
        # The names of spans and events, and the status message, are no secrets because of their key.
        if key in ("span.name", "event.name", "status.message"):
            return self._replacement if _normalized(key) in self._names else self._value(value)
        return self._item(key, value)

    def _item(self, key: str, value: Any) -> Any:
        # True, False and None tell nothing.
        if value is None or isinstance(value, bool) or not self._is_secret(key[-_LONGEST_KEY:]):
            return self._value(value)
        return self._replacement

    def _is_secret_key(self, key: str) -> bool:
        name = _normalized(key)
        if key.count(" ") > _MOST_SPACES:
            return False
        return _SECRET_KEY.search(name) is not None or name in self._names or name.endswith(self._endings)

    def _value(self, value: Any) -> Any:
        if isinstance(value, str):
            return self._text(value)
        if isinstance(value, bytes):
            text = self._text(value.decode(errors="surrogateescape"))
            try:
                return text.encode(errors="surrogateescape")
            except UnicodeEncodeError:
                # A lone surrogate was an escape of JSON.
                return text.encode(errors="backslashreplace")
        if isinstance(value, list):
            if all(isinstance(item, list) and len(item) == 2 and isinstance(item[0], str | bytes) for item in value):
                # Pairs of a name and a value, as headers often are.
                return [[self._value(name), self._item(repr(name), item)] for name, item in value]
            return [self._value(item) for item in value]
        if isinstance(value, dict):
            return {self._plain_text(key): self._item(key, item) for key, item in value.items()}
        return value

    def _text(self, text: str) -> str:
        if text.lstrip()[:1] in ("{", "["):
            try:
                value, has_repeated_keys = _parsed(text)
                scrubbed = self._value(value)
                # All but the last item of a key are not looked at, so they must not stay in the text.
                is_unchanged = scrubbed == value and not has_repeated_keys
                return text if is_unchanged else json.dumps(scrubbed, ensure_ascii=False)
            except (ValueError, RecursionError):
                pass  # it is not JSON, or nested too deep
        return self._plain_text(text)

    def _plain_text(self, text: str) -> str:
        for part, expression in _EXACT:
            if part in text:
                text = self._spliced(text, text, expression)
        lower = _lower(text)
        for part, expression in _IN_LOWER_CASE:
            if part in lower:
                text = self._spliced(text, lower, expression)
                lower = _lower(text)
        for pattern in self._patterns:
            text = pattern.sub(lambda _: self._replacement, text)
        return text

    def _spliced(self, text: str, source: str, expression: re.Pattern[str]) -> str:
        """Return ``text`` without the secrets that ``expression`` finds in ``source``, a form of it of equal length."""
        parts: list[str] = []
        at = searched = 0
        while (match := expression.search(source, searched)) is not None:
            searched = match.end()
            if match.lastindex is None:
                continue
            start, end = match.span(match.lastindex)
            if match.lastgroup == "bracket":
                end = searched = _end_of_brackets(source, start)
            parts += (text[at:start], self._replacement)
            at = end
        return "".join((*parts, text[at:])) if parts else text


def _end_of_brackets(text: str, start: int) -> int:
    """Return where the bracket at ``start`` is closed; the end of the text if it is not."""
    depth = 0
    for match in _QUOTED_OR_BRACKET.finditer(text, start):
        depth += (match[1] is not None) - (match[2] is not None)
        if match[2] and not depth:
            return match.end()
    return len(text)


def _lower(text: str) -> str:
    # The only character whose lower case is longer.
    return text.replace("\u0130", "i").lower()


def _parsed(text: str) -> tuple[Any, bool]:
    """Return the value of a JSON text, and whether a key is repeated in an object of it."""
    repeated = False

    def made(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        nonlocal repeated
        value = dict(pairs)
        repeated |= len(value) < len(pairs)
        return value

    return json.loads(text, object_pairs_hook=made), repeated
