"""`scrub`: which credentials it finds, where, and in what time."""

from __future__ import annotations

import json
import re
import time
from typing import Any

import pytest

from trio_spanbatch import Span, SpanBatcher, SpanContext, scrub
from trio_spanbatch.testing import InMemoryExporter

SECRET = "hunter2hunter2"
HEX = "0123456789abcdef0123456789abcdef"
WORD = "Ab1Cd2Ef3Gh4Ij5Kl6Mn7Op8Qr9St0Uv1Wx2Yz"

TOKENS = [
    f"sk-{WORD}",
    "sk-proj-abc_def-123456",
    f"sk-ant-api03-{WORD}",
    f"sk-or-v1-{HEX}",
    f"gsk_{WORD}",
    f"xai-{WORD}",
    f"pplx-{WORD}",
    f"hf_{WORD}",
    f"r8_{WORD}",
    f"nvapi-{WORD}",
    f"tvly-dev-{WORD}",
    f"lsv2_pt_{HEX}_0123456789",
    f"pylf_v1_us_{WORD}",
    f"pcsk_{WORD}",
    "AKIAIOSFODNN7EXAMPLE",
    "ASIAIOSFODNN7EXAMPLE",
    f"AIza{WORD[:35]}",
    f"ya29.{WORD}",
    f"GOCSPX-{WORD[:28]}",
    f"dapi{HEX}",
    f"dapi{HEX}-3",
    f"dop_v1_{HEX}{HEX}",
    f"hvs.{WORD}",
    f"glsa_{WORD}_0123abcd",
    f"ghp_{WORD[:36]}",
    f"gho_{WORD[:36]}",
    f"ghs_{WORD[:36]}",
    f"github_pat_{WORD}",
    f"glpat-{WORD[:20]}",
    f"npm_{WORD[:36]}",
    f"pypi-{WORD}",
    "xoxb-123456789012-abcdefABCDEF",
    "xoxp-123456789012-abcdefABCDEF",
    "xapp-1-A0123456-123456",
    f"sk_live_{WORD}",
    f"rk_test_{WORD}",
    f"whsec_{WORD}",
    f"SG.{WORD[:22]}.{WORD}",
    f"shpat_{HEX}",
    f"sntrys_{WORD}",
    "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmNHl0w5N_XgL0n3I9PlFUP0THsR8U",
    "eyJhbGciOiJub25lIn0.eyJzdWIiOiIxIn0.",
]


@pytest.mark.parametrize("token", TOKENS)
def test_a_token_of_a_known_vendor_is_replaced_in_the_middle_of_a_text(token: str) -> None:
    assert scrub()("question", f"my key {token}, please") == "my key [redacted], please"
    assert scrub()("question", f"'{token}'") == "'[redacted]'"
    assert scrub()("question", token) == "[redacted]"


@pytest.mark.parametrize(
    ("text", "scrubbed"),
    [
        (f"Authorization: Bearer {SECRET}", "Authorization: [redacted]"),
        ("{'authorization': ['abc']}", "{'authorization': [redacted]}"),
        ("'secret': ['abc']", "'secret': [redacted]"),
        ("authorization: Token abc", "authorization: [redacted]"),
        ("-H 'Proxy-Authorization: Basic dXNlcjpwYXNz' https://x", "-H 'Proxy-Authorization: [redacted]' https://x"),
        (f"use bearer {SECRET} here", "use bearer [redacted] here"),
        ("Basic dXNlcjpwYXNz", "Basic [redacted]"),
        ("Cookie: session=1; b=2\nHost: x", "Cookie: [redacted]\nHost: x"),
        ("Set-Cookie: session=1; HttpOnly", "Set-Cookie: [redacted]"),
        (f"X-API-Key: {SECRET}\r\nHost: x", "X-API-Key: [redacted]\r\nHost: x"),
        ("postgres://user:p@ss:word@db/name", "postgres://user:[redacted]@db/name"),
        ("redis://:secret@host, amqp://a:b@c", "redis://:[redacted]@host, amqp://a:[redacted]@c"),
        (f"password={SECRET} next", "password=[redacted] next"),
        (f"DB_PASSWORD='{SECRET} two words'", "DB_PASSWORD='[redacted]'"),
        (f"password: {SECRET}", "password: [redacted]"),
        (f"passwd := {SECRET}", "passwd := [redacted]"),
        (f"'secret' => '{SECRET}'", "'secret' => '[redacted]'"),
        (f"client_secret={SECRET}&grant_type=x", "client_secret=[redacted]&grant_type=x"),
        (f"https://x/?api_key={SECRET}&a=1", "https://x/?api_key=[redacted]&a=1"),
        (f"https://x/?key={SECRET}#part", "https://x/?key=[redacted]#part"),
        (f"https://x/?a=1&X-Amz-Signature={HEX}&b=2", "https://x/?a=1&X-Amz-Signature=[redacted]&b=2"),
        (f"https://x.blob/?sv=1&sig={SECRET}%3D", "https://x.blob/?sv=1&sig=[redacted]"),
        ("AccountName=x;AccountKey=abc+/==;EndpointSuffix=y", "AccountName=x;AccountKey=[redacted];EndpointSuffix=y"),
        ("Endpoint=sb://x/;SharedAccessKey=abc=", "Endpoint=sb://x/;SharedAccessKey=[redacted]"),
        ("aws_secret_access_key = wJalr/K7MDENG+bPx", "aws_secret_access_key = [redacted]"),
        (f"access_token: {SECRET}", "access_token: [redacted]"),
        ("{'password': 'it is', 'user': 'x'}", "{'password': '[redacted]', 'user': 'x'}"),
        (r"say {\"password\": \"a b\", \"user\": \"x\"}", r"say {\"password\": \"[redacted]\", \"user\": \"x\"}"),
        (r'log {"password": "a\"b", "user": "x"}', r'log {"password": "[redacted]", "user": "x"}'),
        ('cut off {"password": "a b', 'cut off {"password": "[redacted]'),
        ("İ password=secret", "İ password=[redacted]"),
        # As Python shows bytes, and objects.
        ("{'password': b'hunter2', 'a': 1}", "{'password': b'[redacted]', 'a': 1}"),
        ("{b'authorization': b'Token hunter2'}", "{b'authorization': b'[redacted]'}"),
        ("password=SecretStr('hunter2')", "password=SecretStr('[redacted]')"),
        ("password = '''hunter2'''", "password = '''[redacted]'''"),
        ("{'passwords': ['a', 'hunter2'], 'b': 1}", "{'passwords': [redacted], 'b': 1}"),
        ("secrets=('a', b'it)', [{'hunter2'}]) next", "secrets=[redacted] next"),
        ("{'credentials': {'user': 'u', 'pw': 'hunter2'}, 'a': {}}", "{'credentials': [redacted], 'a': {}}"),
        ('data: {"credentials": {"a": "hunter2"', 'data: {"credentials": [redacted]'),
        ("password='[' and more", "password='[redacted]' and more"),
        # Headers have quoted parameters.
        ('Authorization: Digest username="u", response="hunter2"', "Authorization: [redacted]"),
        ('Cookie: a="b"; s=hunter2\nHost: x', "Cookie: [redacted]\nHost: x"),
        ("{'authorization': 'Digest a=\"u\", r=\"hunter2\"', 'x': 1}", "{'authorization': '[redacted]', 'x': 1}"),
        ("{'cookie': ['a=1', 'b=hunter2']}", "{'cookie': [redacted]}"),
        # After an escape.
        (r"'key:\nsk-abcdefgh12345678'", r"'key:\n[redacted]'"),
        (r"'\tghp_0123456789abcdef0123' \u0022AKIAIOSFODNN7EXAMPLE", r"'\t[redacted]' \u0022[redacted]"),
        ("key%3Dsk-abcdefgh12345678%20", "key%3D[redacted]%20"),
        ("\x1b[32msk-abcdefgh12345678\x1b[0m", "\x1b[32m[redacted]\x1b[0m"),
        (r"'\nBearer abc123def456'", r"'\nBearer [redacted]'"),
        ("Bearer%20abc123def456", "Bearer%20[redacted]"),
        (r"https:\/\/u:hunter2@h", r"https:\/\/u:[redacted]@h"),
        ("DB_PASS=hunter2 {'pass': 'hunter2'}", "DB_PASS=[redacted] {'pass': '[redacted]'}"),
        ("-eyJa -eyJaaaaa-eyJbbbbb.cccccc", "-eyJa -[redacted]"),
        # In source code and in Markdown.
        ("password: str = 'hunter2'", "password: str = '[redacted]'"),
        ("token: Optional[str] = 'hunter2'", "token: Optional[str] = '[redacted]'"),
        ('os.environ["API_KEY"] = "hunter2"', 'os.environ["API_KEY"] = "[redacted]"'),
        ("headers['Authorization'] = 'hunter2'", "headers['Authorization'] = '[redacted]'"),
        ("'Authorization' => 'hunter2',", "'Authorization' => '[redacted]',"),
        ("**Password**: hunter2", "**Password**: [redacted]"),
        ("**API key:** hunter2", "**API key:** [redacted]"),
        ("https://x/?a=1&amp;sig=hunter2&amp;b=1", "https://x/?a=1&amp;sig=[redacted]&amp;b=1"),
        ("Bearer auth_7f8e7f8e", "Bearer [redacted]"),
        ('pw = input("Password: ")\nconnect(pw)', 'pw = input("Password: "[redacted]\nconnect(pw)'),
    ],
)
def test_a_credential_in_a_text_is_replaced_and_the_rest_is_kept(text: str, scrubbed: str) -> None:
    assert scrub()("question", text) == scrubbed
    assert scrub()("question", scrubbed) == scrubbed


@pytest.mark.parametrize("kind", ["", "RSA ", "EC ", "OPENSSH ", "ENCRYPTED "])
def test_a_private_key_is_replaced_up_to_its_end_or_that_of_the_text(kind: str) -> None:
    key = f"-----BEGIN {kind}PRIVATE KEY-----\nMIIabc\n-----END {kind}PRIVATE KEY-----"
    assert scrub()("file", f"before {key} after") == "before [redacted] after"
    assert scrub()("file", f"before {key[:50]}") == "before [redacted]"


@pytest.mark.parametrize(
    "text",
    [
        "The capital of France is Paris.",
        "max_tokens=100, input_tokens: 7, 5 tokens",
        "task-force-of-very-many-words and risk-assessment-of-the-year",
        "The Basic understanding of passwords and keys",
        "use Bearer tokens and bearer authentication",
        "https://user@host/path?page=2",
        "keyboard: qwerty; monkey: no; key: C major",
        "-----BEGIN CERTIFICATE-----\nMIIabc\n-----END CERTIFICATE-----",
        "12:30:45 a.b@c.de http://host:8080/a@b",
        "the author: me, authors = you",
        "xs.filter(token => {\n return 1;\n})",
        "My password: (I forgot it. Please write a poem",
        '{"model": "gpt", "usage": {"input_tokens": 5}, "stop": null, "ok": true}',
        "[1,2,   3]",
        "",
    ],
)
def test_a_text_without_a_credential_is_kept_to_the_letter(text: str) -> None:
    assert scrub()("question", text) == text


@pytest.mark.parametrize(
    ("key", "is_secret"),
    [
        ("password", True),
        ("db.password", True),
        ("userPassword", True),
        ("DB_PASSWORD", True),
        ("api_key", True),
        ("apiKey", True),
        ("APIKey", True),
        ("x-api-key", True),
        ("openai.api.key", True),
        ("client_secret", True),
        ("aws.secret_access_key", True),
        ("token", True),
        ("access_token", True),
        ("http.request.header.authorization", True),
        ("http.request.header.cookie", True),
        ("http.response.header.set-cookie", True),
        ("credentials", True),
        ("gen_ai.usage.input_tokens", False),
        ("gen_ai.token.type", False),
        ("session.id", False),
        ("key", False),
        ("http.request.method", False),
        ("author", False),
        ("apikey", True),
        ("PGPASSWORD", True),
        ("OPENAI_APIKEY", True),
        ("accesstoken", True),
        ("privatekey", True),
        ("db.pass", True),
        ("bypass", False),
        ("monkey", False),
    ],
)
def test_a_value_with_a_secret_key_is_replaced_completely(key: str, is_secret: bool) -> None:
    expected = "[redacted]" if is_secret else "a value"
    assert scrub()(key, "a value") == expected
    assert scrub()("nested", [{key: "a value"}]) == [{key: expected}]
    assert scrub()(key, 1234) == ("[redacted]" if is_secret else 1234)
    # These tell nothing.
    assert [scrub()(key, value) for value in (None, True, False)] == [None, True, False]


def test_lists_mappings_bytes_and_json_texts_are_searched() -> None:
    function = scrub()
    value = {"messages": [{"content": f"password={SECRET}"}, [f"Bearer {SECRET}"], {"api_key": ["a", "b"]}]}
    scrubbed = {"messages": [{"content": "password=[redacted]"}, ["Bearer [redacted]"], {"api_key": "[redacted]"}]}
    assert function("a", value) == scrubbed
    assert json.loads(function("a", json.dumps(value))) == scrubbed
    # Also a text in a text in a text.
    assert json.loads(json.loads(function("a", json.dumps([json.dumps(value)])))[0]) == scrubbed
    assert function("a", b'{"a": "\\ud800", "pwd": "x"}') == b'{"a": "\\ud800", "pwd": "[redacted]"}'
    assert function("a", b"\xffpassword=secret") == b"\xffpassword=[redacted]"
    assert function("a", {f"sk-{WORD}": 1}) == {"[redacted]": 1}


@pytest.mark.parametrize("name", ["password", "PGPASSWORD", "apikey", "accesstoken", "db_pass", "client_secret"])
def test_a_secret_name_is_one_as_attribute_item_json_and_text(name: str) -> None:
    function = scrub()
    assert function(name, SECRET) == "[redacted]"
    assert function("a", {name: SECRET}) == {name: "[redacted]"}
    for text in (json.dumps({name: SECRET}), f"{name}={SECRET}", f"{name}: {SECRET}", f"x {{'{name}': '{SECRET}'"):
        assert SECRET not in function("a", text)


def test_headers_as_pairs_are_searched() -> None:
    headers = [["authorization", "Token hunter2"], [b"X-Api-Key", b"hunter2"], ["accept", "text/html"]]
    scrubbed = [["authorization", "[redacted]"], [b"X-Api-Key", "[redacted]"], ["accept", "text/html"]]
    assert scrub()("a", headers) == scrubbed
    assert scrub()("a", {"headers": headers}) == {"headers": scrubbed}
    assert json.loads(scrub()("a", '[["cookie", "hunter2"]]')) == [["cookie", "[redacted]"]]
    # Not pairs, but words; and sentences.
    for words in ([["What is an API key?", "A key"]], ["password", "user"], [["a", "b"], ["token", "word", "c"]], []):
        assert scrub()("a", words) == words


def test_json_stays_json_whatever_a_secret_value_is() -> None:
    text = '{"password": 5, "pwd": null, "secret": ["a"], "token": {"b": "c"}, "é": "ü"}'
    assert scrub()("a", text) == (
        '{"password": "[redacted]", "pwd": null, "secret": "[redacted]", "token": "[redacted]", "é": "ü"}'
    )


def test_a_repeated_key_in_json_hides_no_secret() -> None:
    assert SECRET not in scrub()("a", f'{{"password": "{SECRET}", "password": ""}}')
    assert scrub()("a", f'{{"a": "Bearer {SECRET}", "a": "x"}}') == '{"a": "x"}'


def test_names_and_messages_are_searched_and_not_taken_for_secret_values() -> None:
    for key in ("span.name", "event.name", "status.message"):
        assert scrub()(key, f"GET https://user:{SECRET}@host") == "GET https://user:[redacted]@host"
        assert scrub(keys=["name", "message"])(key, "chat") == "chat"
        assert scrub(keys=[key])(key, "chat") == "[redacted]"


def test_keys_of_the_program_are_replaced_whatever_their_case_and_place() -> None:
    function = scrub(keys=["email", "customer.name"])
    for key in ("email", "Email", "user.email", "user_email", "userEmail", "customer.name", "the-customer-name"):
        assert function(key, "a@b.c") == "[redacted]"
    for key in ("email_count", "name", "emails"):
        assert function(key, "a@b.c") == "a@b.c"
    assert function("users", [{"email": "a@b.c", "id": 1}]) == [{"email": "[redacted]", "id": 1}]


def test_patterns_of_the_program_are_replaced_and_the_replacement_is_taken_literally() -> None:
    function = scrub(patterns=[r"\b\d{3}-\d{2}-\d{4}\b", re.compile("PARIS", re.IGNORECASE)], replacement=r"<\1\g<0>>")
    assert function("a", ["123-45-6789 in Paris", {"b": f"Bearer {SECRET}"}]) == [
        r"<\1\g<0>> in <\1\g<0>>",
        {"b": r"Bearer <\1\g<0>>"},
    ]


async def test_scrub_is_a_function_for_redact() -> None:
    exporter = InMemoryExporter()
    async with SpanBatcher(exporter, redact=scrub()) as batcher:
        span = Span("chat", SpanContext(1, 2), start_time=1, end_time=2, attributes={"prompt": [f"pwd={SECRET}"]})
        batcher.add_span_nowait("a", span)
    assert SECRET.encode() not in exporter.batches[0].to_request()
    assert b"pwd=[redacted]" in exporter.batches[0].to_request()


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"keys": "email"}, TypeError, "keys is 'email'; it must be a list of strings"),
        ({"keys": [5]}, TypeError, "keys contains 5; it must contain only strings"),
        ({"patterns": "a"}, TypeError, "patterns is 'a'; it must be a list of strings"),
        ({"patterns": [re.compile(b"a")]}, TypeError, "it must contain only strings"),
        ({"patterns": ["("]}, ValueError, "patterns contains '(', which is not a regular expression"),
        ({"patterns": ["a*"]}, ValueError, "patterns contains 'a*', which matches an empty text; it must match a char"),
        ({"keys": ["email", "."]}, ValueError, "keys is ['email', '.']; each must contain a letter or digit"),
        ({"replacement": None}, TypeError, "replacement is None; it must be a str"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_mistake_is_named_with_its_value_and_its_remedy(
    options: dict[str, Any], kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind, match=re.escape(message)):
        scrub(**options)


# -- time ----------------------------------------------------------------------------------------------------------

# Texts that take an expression which searches again and again a time that grows with the square of their length.
HOSTILE = [
    *("a", "A", " ", "{", "[", "\\", "\"'", "0123456789abcdef", "a.b-c_", "://", "://a:", "://:", ":@", "&key=", "="),
    *("sk-", "SG.", "SG.aaaaaaaaaaaa.", "eyJ", "eyJaaaaa.", "dapi", "-----BEGIN ", "-----BEGIN PRIVATE KEY-----"),
    *("password", "password ", "password=", 'password="', "password='", 'password=\\"', "password:\\\\", "secret_"),
    *(
        "cookie",
        "cookie:",
        "authorization",
        "authorization:",
        "Bearer ",
        "bearer",
        "Basic ",
        "Basic aaaa",
        "access_key",
    ),
    *("key_id=", "x-amz-credential=", "İ", "\ud800", "aB", "_a", '{"a":', "[[1],"),
    *("-eyJ", "_eyJ", "éeyJ", "-eyJaaaaa", "password=[", "password=({", "password=[']", "password=b'", "password='''"),
    *('password=[\\"', "password: (a\n", "password: str", "**password**", "password=[[1", "token: '\n"),
    *('authorization: ="', "cookie=='", 'a="', "bearer%20", "\\nsk-", "%20eyJ", "secret=a(", "passpass", r":\/\/a:"),
]


@pytest.mark.parametrize("part", HOSTILE)
def test_the_time_is_in_proportion_to_the_text(part: str) -> None:
    function = scrub()

    def seconds(size: int) -> float:
        texts = [part * (size // len(part)) + ending for ending in ("", '"', "'}]", "@", " ")]
        began = time.process_time()
        for text in texts:
            function("a", text)
            function(text, text)
        return time.process_time() - began

    # Thirty-two times the text takes 32 times the time, or 1,024 times if it grows with the square. The clock of a busy
    # machine is not that wrong.
    small = min(seconds(1024) for _ in range(3))
    assert min(seconds(32 * 1024) for _ in range(2)) < 256 * max(small, 1e-4)
