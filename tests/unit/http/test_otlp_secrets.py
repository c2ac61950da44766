"""Credentials that a server repeats, in any form, appear in no result and no log."""

from __future__ import annotations

import base64
import html
import json
import logging
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import quote, quote_plus

import httpx
import pytest

from tests.support.exporters import SECRET, batch_of
from trio_spanbatch import OTLPExporter, Refused
from trio_spanbatch._http.attempt import Attempt
from trio_spanbatch._http.secrets import redacted, secrets_of
from trio_spanbatch.destinations import mlflow
from trio_spanbatch.testing import Answer, Drip, OTLPReceiver, ReceivedRequest

# With all characters that encodings change. "&#39;" and the like would also be found in a part of it.
ODD = "s3/cret+T'OK\"EN=v&al\\ue"


def basic(user: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


def shown(text: str, header: str, name: str = "authorization") -> str:
    return redacted(f"bad <{text}>!", secrets_of([(name.encode(), header.encode("latin-1"))]))


@pytest.mark.parametrize(
    ("header", "echo"),
    [
        (f"Bearer {SECRET}", f"Bearer {SECRET}"),
        (f"Bearer {SECRET}", SECRET),
        (f"Bearer {SECRET}==", SECRET),
        (basic("user", SECRET), basic("user", SECRET)),
        (basic("user", SECRET), basic("user", SECRET).removeprefix("Basic ")),
        (basic("user", SECRET), f"user:{SECRET}"),
        (basic("user", "p:" + SECRET), "p:" + SECRET),
        (basic("user", "hunter"), "hunter"),
        (basic("user", "pässwört"), "pässwört"),
        (f"Token token={SECRET}", SECRET),
        (f'Token token="{SECRET}", x=1', SECRET),
        (f"ApiKey id:{SECRET}", SECRET),
        (f"a=1; session={SECRET}; b=2", SECRET),
        (f"a,{SECRET}", SECRET),
        (quote(f"{SECRET}/{SECRET}", safe=""), f"{SECRET}/{SECRET}"),
        ("hunter", "hunter"),
    ],
)
def test_the_parts_of_a_value_are_not_shown(header: str, echo: str) -> None:
    assert shown(echo, header) == "bad <***>!"


FORMS: dict[str, Callable[[str], str]] = {
    "percent-encoded": lambda text: quote(text, safe=""),
    "percent-encoded in lower case": lambda text: "".join(
        c if c.isalnum() or c in "-._~" else f"%{ord(c):02x}" for c in text
    ),
    "percent-encoded in a path": quote,
    "encodeURI": lambda text: quote(text, safe=";,/?:@&=+$!'()*#"),
    "in a form": quote_plus,
    "JSON": lambda text: json.dumps(text)[1:-1],
    "JSON of PHP": lambda text: json.dumps(text)[1:-1].replace("/", "\\/"),
    "HTML": html.escape,
    "a repr": lambda text: repr(text)[1:-1],
    "a repr of bytes": lambda text: repr(text.encode("latin-1"))[2:-1],
    "within a repr of bytes": lambda text: repr(b"\"'" + text.encode("latin-1"))[5:-1],
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize("token", [ODD, "s3'cret'TOKEN", 's3"cret\\TOKEN', "s3crétTÖKEN", "s3/cret+TOKEN="])
def test_other_forms_of_a_token_are_not_shown(token: str, form: Callable[[str], str]) -> None:
    assert shown(form(token), f"Bearer {token}") == "bad <***>!"


def test_a_token_beyond_ascii_is_not_shown_in_any_encoding() -> None:
    token = "s3crétTÖKEN"
    for echo in (token.encode().decode("latin-1"), token.encode("ascii", "ignore").decode(), quote(token),
                 quote(token.encode("latin-1")), token.encode("latin-1").decode("utf-8", "replace")):  # fmt: skip
        assert shown(echo, f"Bearer {token}") == "bad <***>!", echo


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("x-tenant", "staging"),
        ("authorization", "short"),
        ("authorization", basic("administrator", "test")),
        ("content-type", "application/x-protobuf"),
        ("User-Agent", "agent/1.0 (administrator)"),
        ("x-location", "administrator"),
    ],
)
def test_short_words_and_public_values_are_shown(name: str, value: str) -> None:
    text = "the administrator of staging tests application/x-protobuf in short"
    assert redacted(text, secrets_of([(name.encode(), value.encode())], public=[b"x-location"])) == text


def test_a_long_text_is_cut_off_before_the_beginning_of_a_secret() -> None:
    secrets = secrets_of([(b"authorization", f"Bearer {SECRET}".encode())])
    for shift in range(40):
        text = redacted("x" * (64 * 1024 - shift) + SECRET * 10_000, secrets)
        assert SECRET[:4] not in text
        assert len(text) < 70_000


def test_a_value_of_many_parts_has_a_bounded_number_of_secrets() -> None:
    cookie = ";".join(f"name{number}=abc/def'gh{number}" for number in range(10_000))
    assert len(secrets_of([(b"cookie", cookie.encode())])) < 2_000


# Over HTTP.


def echoing(text: str | bytes, status: int = 401) -> Callable[[ReceivedRequest], Drip]:
    """A server that repeats ``text`` everywhere."""
    echo = text if isinstance(text, bytes) else text.encode()
    head = b"HTTP/1.1 %d " % status
    head += b"%s\r\nLocation: http://else/%s\r\nSet-Cookie: a=%s\r\nx-error: 'bad \"%s\r\n" % (echo, echo, echo, echo)
    body = b"bad token %s !" % echo
    return lambda _: Drip([b"%scontent-length: %d\r\n\r\n%s" % (head, len(body), body)])


@pytest.fixture
def at_debug(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.DEBUG)
    return caplog


async def words_after(server: Callable[[ReceivedRequest], Any], make: Callable[[OTLPReceiver], OTLPExporter]) -> str:
    """Return the reason of a refusal by ``server``."""
    async with OTLPReceiver(listen=False, path=None, answers=server) as receiver:
        exporter = make(receiver)
        result = await exporter.export(batch_of(1, "3"))
        await exporter.aclose()
    assert "***" in getattr(result, "reason", "***")
    return str(result)


@pytest.mark.parametrize("status", [200, 302, 400, 401, 407, 503])
@pytest.mark.parametrize(
    ("header", "echo"),
    [
        (basic("user", SECRET), f"user:{SECRET}"),
        (f"a=1; session={SECRET}", SECRET),
        (f"Bearer {SECRET}/+=", quote(f"{SECRET}/+=", safe="")),
        ("Bearer s3'cret'TOKEN", "s3'cret'TOKEN"),
        (b"Bearer s3cr\xe9tT\xd6KEN", b"s3cr\xe9tT\xd6KEN"),
        (b"Bearer s3cr\xe9tT\xd6KEN", "s3crétTÖKEN"),
    ],
)
async def test_no_form_that_a_server_repeats_is_in_a_result_or_log(
    header: str | bytes, echo: str | bytes, status: int, at_debug: pytest.LogCaptureFixture
) -> None:
    value = header if isinstance(header, str) else header.decode("latin-1")
    words = await words_after(
        echoing(echo, status),
        lambda receiver: OTLPExporter(
            receiver.url, transport=receiver.memory_transport(), headers={"Authorization": value}
        ),
    )
    telling = [SECRET, "TOKEN", "KEN"]
    assert not [part for part in telling for text in (words, at_debug.text) if part in text]


@pytest.mark.parametrize("status", [200, 307, 401, 404, 503])
@pytest.mark.parametrize(
    ("options", "echo"),
    [({"token": SECRET}, SECRET), ({"username": "user", "password": SECRET}, f"user:{SECRET}")],
)
async def test_a_secret_repeated_in_the_lookup_of_an_experiment_is_in_no_log(
    options: Mapping[str, str], echo: str, status: int, at_debug: pytest.LogCaptureFixture
) -> None:
    def exporter(receiver: OTLPReceiver) -> OTLPExporter:
        transport = receiver.memory_transport()
        return mlflow("http://mlflow.test", experiments="name", environ={}, transport=transport, **options)  # type: ignore[arg-type]  # the options of one case

    async with OTLPReceiver(listen=False, path=None, answers=echoing(echo, status)) as receiver:
        made = exporter(receiver)
        result = await made.export(batch_of(1, "support"))
        await made.aclose()
    assert "looking up the experiment" in str(result)
    assert SECRET not in str(result) + at_debug.text


@pytest.mark.parametrize(
    ("options", "echo"),
    [
        ({"headers": {"Authorization": f"Bearer {SECRET}"}}, SECRET),
        ({"auth": ("user", SECRET)}, basic("user", SECRET).removeprefix("Basic ")),
        ({"auth": ("user", SECRET)}, SECRET),
        ({"cookies": {"session": SECRET}}, SECRET),
    ],
)
async def test_credentials_of_the_users_client_are_not_in_a_result(options: dict[str, Any], echo: str) -> None:
    words = await words_after(
        echoing(echo),
        lambda receiver: OTLPExporter(
            receiver.url, client=httpx.AsyncClient(transport=receiver.memory_transport(), **options)
        ),
    )
    assert echo not in words


async def test_credentials_of_a_client_without_httpcore_are_not_in_a_result() -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        return httpx.Response(401, stream=httpx.ByteStream(f"bad {request.headers['authorization']}".encode()))

    transport = httpx.MockTransport(answer)
    exporter = OTLPExporter(
        "http://collector.test", client=httpx.AsyncClient(transport=transport, auth=("user", SECRET))
    )
    assert await exporter.export(batch_of()) == Refused("401 Unauthorized: bad ***", 401)
    await exporter.aclose()


@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize("echo", [basic("user", SECRET), SECRET])
async def test_credentials_that_a_proxy_repeats_are_not_shown(
    scheme: str, echo: str, monkeypatch: pytest.MonkeyPatch, at_debug: pytest.LogCaptureFixture
) -> None:
    async with OTLPReceiver(answers=echoing(echo, 407), path=None) as proxy:
        monkeypatch.setenv(f"{scheme.upper()}_PROXY", f"http://user:{SECRET}@127.0.0.1:{proxy.port}")
        exporter = OTLPExporter(f"{scheme}://collector.test")
        result = await exporter.export(batch_of())
        await exporter.aclose()
    assert "407" in str(result)
    assert "***" in str(result)
    assert echo not in str(result) + at_debug.text
    assert SECRET not in str(result) + at_debug.text


async def test_credentials_for_the_proxy_of_the_users_client_are_not_in_a_result() -> None:
    async with (
        OTLPReceiver(answers=echoing(SECRET, 407), path=None) as proxy,
        httpx.AsyncClient(proxy=f"http://user:{SECRET}@127.0.0.1:{proxy.port}") as client,
    ):
        result = await OTLPExporter("https://collector.test", client=client).export(batch_of())
    assert "***" in str(result)
    assert SECRET not in str(result)


async def test_credentials_for_a_socks_proxy_are_known_once_they_are_used() -> None:
    attempt = Attempt("collector.test:443")
    # httpcore logs them right after this.
    await attempt.trace("socks.setup_socks5_connection.started", {"auth": (b"user", SECRET.encode())})
    assert redacted(f"auth=(b'user', b'{SECRET}')", attempt.secrets) == "auth=(b'user', b'***')"


async def test_a_redirect_with_a_percent_encoded_token_in_its_path_does_not_show_it() -> None:
    token = "s3/cret+TOKEN="
    answer = Answer(302, headers=[("location", f"http://else.test/login/{quote(token, safe='')}/next")])
    words = await words_after(
        lambda _: answer,
        lambda receiver: OTLPExporter(
            receiver.url, transport=receiver.memory_transport(), headers={"Authorization": f"Bearer {token}"}
        ),
    )
    assert "the redirect to http://else.test/login/***/next was not followed" in words


async def test_the_location_is_shown_even_if_it_is_sent_in_a_header() -> None:
    answer = Answer(404, body=b"no table main.agents.spans")
    async with OTLPReceiver(listen=False, answers=[answer]) as receiver:
        exporter = OTLPExporter(receiver.url, transport=receiver.memory_transport(), location_header="X-Table")
        result = await exporter.export(batch_of(1, "main.agents.spans"))
        await exporter.aclose()
    assert result == Refused("404 Not Found: no table main.agents.spans", 404)
