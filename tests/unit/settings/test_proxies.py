"""Proxies, CAs and a key log from the environment: they are used, and a mistake does not stop the program."""

from __future__ import annotations

import hashlib
import logging
import ssl
from pathlib import Path
from typing import Any

import httpx
import pytest
import trustme
from cryptography import x509

from tests.support.batchers import make_spans
from tests.support.deliveries import clear_environment
from tests.support.exporters import batch_of
from tests.support.proxy import running_proxy
from trio_spanbatch import Delivered, OTLPExporter, SpanBatcher, TryLater
from trio_spanbatch._http.proxies import MissingProxySupport, proxy_for
from trio_spanbatch._http.tls import default_context
from trio_spanbatch.testing import OTLPReceiver

SECRET = "dapi-0123456789abcdef"
PROXY = "http://proxy.test:3128"


@pytest.fixture(autouse=True)
def nothing_is_set(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    clear_environment(monkeypatch)
    for variable in ("SSL_CERT_FILE", "SSL_CERT_DIR", "SSLKEYLOGFILE"):
        monkeypatch.delenv(variable, raising=False)
    caplog.set_level(logging.WARNING, "trio_spanbatch")


def is_direct(no_proxy: str, url: str, monkeypatch: pytest.MonkeyPatch) -> bool:
    monkeypatch.setenv("ALL_PROXY", PROXY)
    monkeypatch.setenv("NO_PROXY", no_proxy)
    return proxy_for(httpx.URL(url)) is None


@pytest.mark.parametrize(
    ("no_proxy", "direct", "through_the_proxy"),
    [
        ("10.0.0.0/8", ["http://10.1.2.3:4318", "http://[::ffff:10.1.2.3]"], ["http://11.0.0.1", "http://[::a00:1]"]),
        ("127.0.0.0/8", ["http://127.0.0.1", "http://127.255.0.1:4318"], ["http://localhost", "http://127.0.0.1.test"]),
        ("10.1.2.3/8", ["http://10.9.9.9"], ["http://11.1.2.3"]),
        ("10.0.0.0/255.0.0.0", ["http://10.9.9.9"], ["http://11.1.2.3"]),
        ("0.0.0.0/0", ["http://8.8.8.8"], ["http://[::1]", "http://eight.test"]),
        ("10.0.0.0/8:4318", ["http://10.1.1.1:4318"], ["http://10.1.1.1:4317", "http://10.1.1.1"]),
        ("::1/128", ["http://[::1]:4318"], ["http://[::2]", "http://127.0.0.1", "http://localhost"]),
        ("fd00::/8", ["https://[fd12::1]", "https://[FD12:0:0::1]"], ["https://[fe80::1]"]),
        ("[fd00::]/8", ["https://[fd12::1]"], ["https://[fe80::1]"]),
        ("[fd00::/8]:4318", ["http://[fd12::1]:4318"], ["http://[fd12::1]"]),
        ("::/0", ["http://[::1]"], ["http://127.0.0.1"]),
        ("::ffff:10.0.0.0/104", ["http://10.1.1.1", "http://[::ffff:10.1.1.1]"], ["http://11.0.0.1", "http://[::1]"]),
        ("[::ffff:10.1.1.1]", ["http://10.1.1.1", "http://[::ffff:a01:101]"], ["http://10.1.1.2"]),
        ("192.0.2.1", ["http://192.0.2.1", "http://192.0.2.1:80"], ["http://192.0.2.11", "http://x.192.0.2.1.test"]),
        ("::1", ["http://[::1]", "http://[0:0::0:1]:1"], ["http://[::11]"]),
        ("[::1]", ["http://[::1]"], ["http://[::2]"]),
        ("[::1]:4318", ["http://[::1]:4318"], ["http://[::1]"]),
        ("192.0.2.1:80", ["http://192.0.2.1"], ["https://192.0.2.1", "http://192.0.2.1:4318"]),
        ("0.2.1", [], ["http://192.0.2.1"]),
        ("*", ["http://a.test", "http://10.0.0.1", "https://[::1]"], []),
        ("other.test, *", ["http://a.test"], []),
        ("a.test", ["http://a.test", "http://b.a.test:1", "https://A.Test."], ["http://ba.test", "http://a.test.b"]),
        (".a.test", ["http://a.test", "http://b.a.test"], ["http://ba.test"]),
        ("*.a.test", ["http://a.test", "http://b.a.test"], ["http://ba.test"]),
        ("A.Test.", ["http://a.test"], ["http://b.test"]),
        ("a.test:4318", ["http://a.test:4318", "http://b.a.test:4318"], ["http://a.test", "https://a.test"]),
        ("a.test:443", ["https://a.test"], ["http://a.test"]),
        ("https://a.test", ["https://a.test"], ["http://a.test"]),
        ("all://a.test:80", ["http://a.test"], ["https://a.test"]),
        ("bücher.test", ["http://bücher.test", "http://xn--bcher-kva.test"], ["http://bucher.test"]),
        ("my_host", ["http://my_host"], ["http://host"]),
        ("localhost", ["http://localhost:4318", "http://LOCALHOST"], ["http://127.0.0.1", "http://localhost.test"]),
        (" \ta.test ,, 10.0.0.0/8\n::1/128 ", ["http://a.test", "http://10.0.0.1", "http://[::1]"], ["http://b.test"]),
        ("", [], ["http://localhost", "http://127.0.0.1"]),
        (",, ", [], ["http://localhost"]),
    ],
)
def test_entries_of_no_proxy_match_hosts_addresses_and_ranges(
    no_proxy: str,
    direct: list[str],
    through_the_proxy: list[str],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    for url in direct:
        assert is_direct(no_proxy, url, monkeypatch), url
    for url in through_the_proxy:
        assert not is_direct(no_proxy, url, monkeypatch), url
    assert caplog.records == []


@pytest.mark.parametrize(
    "entry",
    [
        "a|b", "10.0.0.0/33", "::1/129", "[::1", "::1]", "[a.test]", "a.test:port", "a.test:0", "a.test:65536",
        "a.test:99999999999999999999", "ftp://a.test", "a*.test", "*a.test", "a.test/path", "a?b", "a#b", "<local>",
        "[::1]:x", "\udcff", "a" * 5000 + "!", ":", ".", "://", "10.0.0.0/", "[10.0.0.0]/x", f"http://u:{SECRET}@a.test",
    ],
)  # fmt: skip
def test_an_unusable_entry_of_no_proxy_is_warned_about_once_and_ignored(
    entry: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(2):
        assert not is_direct(f"127.0.0.1,{entry}", "http://a.test", monkeypatch)
        assert is_direct(f"{entry},127.0.0.1", "http://127.0.0.1", monkeypatch)
    (record,) = caplog.records
    assert record.getMessage().startswith("NO_PROXY has an entry that is neither a host, an address nor a range")
    assert len(record.getMessage()) < 200
    assert SECRET not in caplog.text


def test_unusable_entries_are_reported_together(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("no_proxy", "a|b,c|d,e|f,g|h,10.0.0.0/8")
    assert proxy_for(httpx.URL("http://a.test")) is None
    (record,) = caplog.records
    assert record.getMessage() == (
        "no_proxy has 4 entries that are neither a host, an address nor a range of addresses such as 10.0.0.0/8 "
        "('a|b', 'c|d', 'e|f'): they are ignored"
    )


def test_the_lower_case_variable_takes_precedence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "a.test")
    assert is_direct("b.test", "http://a.test", monkeypatch)
    assert not is_direct("b.test", "http://b.test", monkeypatch)


@pytest.mark.parametrize("no_proxy", ["localhost,127.0.0.0/8,::1/128", "127.0.0.1/32", "*", "127.0.0.1:*,127.0.0.1"])
async def test_a_host_in_no_proxy_is_reached_directly(no_proxy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async with OTLPReceiver() as receiver, running_proxy() as proxy:
        monkeypatch.setenv("HTTP_PROXY", proxy.url)
        monkeypatch.setenv("NO_PROXY", no_proxy)
        async with SpanBatcher(OTLPExporter(receiver.url)) as batcher:
            batcher.add_spans_nowait("a", make_spans(3))
        assert (batcher.statistics().delivered, proxy.asked) == (3, [])


async def test_a_host_that_is_not_in_no_proxy_is_reached_through_the_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    async with OTLPReceiver() as receiver, running_proxy() as proxy:
        # Without a scheme, as curl accepts it.
        monkeypatch.setenv("HTTP_PROXY", proxy.url.removeprefix("http://"))
        monkeypatch.setenv("NO_PROXY", "localhost,10.0.0.0/8,::1/128,nonsense|")
        async with SpanBatcher(OTLPExporter(receiver.url)) as batcher:
            batcher.add_spans_nowait("a", make_spans(3))
        assert (batcher.statistics().delivered, len(proxy.asked)) == (3, 1)


@pytest.mark.parametrize("scheme", ["socks4", "socks4a", "SOCKS4", "socks"])
async def test_a_socks_proxy_that_cannot_be_used_is_warned_about_and_never_bypassed(
    scheme: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("ALL_PROXY", f"{scheme}://user:{SECRET}@proxy.test:1080")
    async with OTLPReceiver() as receiver:
        exporter = OTLPExporter(receiver.url)
        OTLPExporter(receiver.url)
        result = await exporter.export(batch_of())
        await exporter.aclose()
        assert receiver.requests == []
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        exporter = OTLPExporter(receiver.url)
        assert await exporter.export(batch_of()) == Delivered()
        await exporter.aclose()
    assert isinstance(result, TryLater)
    assert not result.ambiguous
    assert "ALL_PROXY has a SOCKS proxy" in result.reason
    assert "other than socks5://" in result.reason
    (record,) = caplog.records
    assert record.getMessage().startswith("no span can be sent to 127.0.0.1: ALL_PROXY has a SOCKS proxy")
    assert SECRET not in result.reason + caplog.text


@pytest.mark.parametrize("scheme", ["socks5", "socks5h", "SOCKS5"])
def test_a_socks_5_proxy_can_be_used(scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALL_PROXY", f"{scheme}://proxy.test")
    proxy = proxy_for(httpx.URL("http://a.test"))
    assert isinstance(proxy, httpx.Proxy)
    monkeypatch.setenv("ALL_PROXY", "socks4://proxy.test")
    assert isinstance(proxy_for(httpx.URL("http://a.test")), MissingProxySupport)


@pytest.mark.parametrize("no_proxy", ["*", "a.test"])
def test_an_invalid_proxy_is_ignored_for_an_excluded_endpoint(no_proxy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://[")
    monkeypatch.setenv("NO_PROXY", no_proxy)
    assert proxy_for(httpx.URL("http://a.test")) is None


@pytest.mark.parametrize("value", [" ", "\t"])
def test_a_blank_proxy_variable_counts_as_unset(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", value)
    assert proxy_for(httpx.URL("http://a.test")) is None


# CAs.


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


def tls_of(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    return context


def hashed_directory(authority: trustme.CA, directory: Path) -> Path:
    """Return a directory with the CA's certificate under the name that OpenSSL expects: a hash of its subject."""
    certificate = x509.load_pem_x509_certificate(authority.cert_pem.bytes())
    canonical = b"".join(
        tagged(0x31, tagged(0x30, tagged(0x06, OIDS[name.oid.dotted_string]) + tagged(0x0C, text_of(name))))
        for name in certificate.subject
    )
    number = int.from_bytes(hashlib.sha1(canonical).digest()[:4], "little")
    authority.cert_pem.write_to_path(directory / f"{number:08x}.0")
    return directory


OIDS = {"2.5.4.10": b"\x55\x04\x0a", "2.5.4.11": b"\x55\x04\x0b"}


def tagged(tag: int, content: bytes) -> bytes:
    return bytes([tag, len(content)]) + content


def text_of(name: x509.NameAttribute[Any]) -> bytes:
    return str(name.value).lower().encode()


@pytest.mark.parametrize("variable", ["SSL_CERT_FILE", "SSL_CERT_DIR"])
@pytest.mark.parametrize("kind", ["missing", "other"])
async def test_an_unusable_file_of_cas_raises_nothing_and_trusts_no_server(
    variable: str,
    kind: str,
    authority: trustme.CA,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    path = tmp_path / "cas"
    if kind == "other":
        path.write_text("nothing\n")
    monkeypatch.setenv(variable, str(path))
    for _ in range(2):
        SpanBatcher()
    (record,) = caplog.records
    assert record.getMessage().startswith(f"{variable} is '{path}', which cannot be used (")
    assert record.getMessage().endswith("): no https server is trusted")
    assert default_context().get_ca_certs() == []
    async with OTLPReceiver() as plain, OTLPReceiver(ssl_context=tls_of(authority)) as encrypted:
        exporter = OTLPExporter(plain.url)
        assert await exporter.export(batch_of()) == Delivered()
        await exporter.aclose()
        exporter = OTLPExporter(encrypted.url)
        result = await exporter.export(batch_of())
        await exporter.aclose()
        assert isinstance(result, TryLater)
        assert "is not trusted" in result.reason
        assert "SSL_CERT_FILE" in result.reason
        assert encrypted.requests == []


async def test_a_directory_of_cas_is_used(
    authority: trustme.CA, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    directory = hashed_directory(authority, tmp_path)
    async with OTLPReceiver(ssl_context=tls_of(authority)) as receiver:
        given = OTLPExporter(receiver.url, certificate=directory)
        assert await given.export(batch_of()) == Delivered()
        await given.aclose()
        monkeypatch.setenv("SSL_CERT_DIR", f"/nonexistent:{directory}")
        exporter = OTLPExporter(receiver.url)
        assert await exporter.export(batch_of()) == Delivered()
        await exporter.aclose()
    assert caplog.records == []


@pytest.mark.parametrize("with_certificate", [False, True])
async def test_a_key_log_that_cannot_be_written_is_warned_about_once_and_ignored(
    with_certificate: bool,
    authority: trustme.CA,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    authority.cert_pem.write_to_path(ca := tmp_path / "ca.pem")
    monkeypatch.setenv("SSLKEYLOGFILE", str(tmp_path / "missing" / "keys.log"))
    if not with_certificate:
        monkeypatch.setenv("SSL_CERT_FILE", str(ca))
    context = tls_of(authority)
    async with OTLPReceiver(ssl_context=context) as receiver:
        for _ in range(2):
            exporter = OTLPExporter(receiver.url, certificate=ca if with_certificate else None)
            assert await exporter.export(batch_of()) == Delivered()
            await exporter.aclose()
    (record,) = caplog.records
    assert record.getMessage().endswith("which cannot be written (No such file or directory): it is ignored")


async def test_the_environment_sets_the_key_log(
    authority: trustme.CA, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority.cert_pem.write_to_path(ca := tmp_path / "ca.pem")
    context = tls_of(authority)
    monkeypatch.setenv("SSLKEYLOGFILE", str(log := tmp_path / "keys.log"))
    async with OTLPReceiver(ssl_context=context) as receiver:
        exporter = OTLPExporter(receiver.url, certificate=ca)
        assert await exporter.export(batch_of()) == Delivered()
        await exporter.aclose()
    assert "CLIENT_" in log.read_text()


@pytest.mark.parametrize("trusted", [False, True])
async def test_a_proxy_that_speaks_tls_is_trusted_as_servers_are(
    trusted: bool, authority: trustme.CA, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority.cert_pem.write_to_path(ca := tmp_path / "ca.pem")
    if trusted:
        monkeypatch.setenv("SSL_CERT_FILE", str(ca))
    monkeypatch.setenv("SSLKEYLOGFILE", str(tmp_path / "missing" / "keys.log"))
    async with OTLPReceiver(ssl_context=tls_of(authority), path=None) as proxy:
        monkeypatch.setenv("HTTP_PROXY", f"https://127.0.0.1:{proxy.port}")
        exporter = OTLPExporter("http://collector.test/v1/traces")
        result = await exporter.export(batch_of())
        await exporter.aclose()
        assert [request.target for request in proxy.requests] == ["http://collector.test/v1/traces"] * trusted
    assert isinstance(result, Delivered if trusted else TryLater)
