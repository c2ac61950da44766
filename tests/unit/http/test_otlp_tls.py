"""TLS with a real TLS receiver, and the messages when the two sides do not match."""

from __future__ import annotations

import contextlib
import functools
import math
import socket
import ssl
from collections.abc import Callable
from pathlib import Path

import attrs
import httpx
import pytest
import trio
import trio.testing
import trustme

from tests.support.exporters import batch_of
from trio_spanbatch import Delivered, OTLPExporter, TryLater
from trio_spanbatch._http.exporter import DisabledExporter
from trio_spanbatch._http.failures import failure_result
from trio_spanbatch._http.tls import TLSSettings, tls_advice
from trio_spanbatch.destinations import mlflow
from trio_spanbatch.testing import OTLPReceiver


@attrs.frozen
class Files:
    """A CA, the context of a server with a certificate of it, and a user's files."""

    authority: trustme.CA
    server: ssl.SSLContext
    ca: Path
    other_ca: Path
    client: Path
    client_certificate: Path
    client_key: Path
    other_client: Path


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    directory = tmp_path_factory.mktemp("tls")
    authority, other = trustme.CA(), trustme.CA()
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1", "receiver.test").configure_cert(server)
    names = ("ca.pem", "other.pem", "client.pem", "cert.pem", "key.pem", "other-client.pem")
    files = Files(authority, server, *(directory / name for name in names))
    authority.cert_pem.write_to_path(files.ca)
    other.cert_pem.write_to_path(files.other_ca)
    client = authority.issue_cert("agent@example.test")
    client.private_key_and_cert_chain_pem.write_to_path(files.client)
    client.cert_chain_pems[0].write_to_path(files.client_certificate)
    client.private_key_pem.write_to_path(files.client_key)
    other.issue_cert("agent@example.test").private_key_and_cert_chain_pem.write_to_path(files.other_client)
    return files


@pytest.fixture(params=[ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3], ids=["TLS 1.2", "TLS 1.3"])
def mutual(files: Files, request: pytest.FixtureRequest) -> ssl.SSLContext:
    """The context of a server that asks for a client certificate."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=files.ca)
    context.maximum_version = request.param
    context.verify_mode = ssl.CERT_REQUIRED
    files.authority.issue_cert("127.0.0.1").configure_cert(context)
    return context


async def export_to(url: str, **options: object) -> object:
    exporter = OTLPExporter(url, **options)  # type: ignore[arg-type]  # the options of one test
    try:
        return await exporter.export(batch_of(2, ""))
    finally:
        await exporter.aclose()


async def test_a_server_with_a_certificate_of_the_given_ca_is_trusted(files: Files) -> None:
    async with OTLPReceiver(ssl_context=files.server) as receiver:
        assert await export_to(receiver.url, certificate=files.ca) == Delivered()
        assert await export_to(receiver.url, certificate=str(files.ca), compression="gzip") == Delivered()


async def test_a_wrong_ca_is_a_clear_failure(files: Files) -> None:
    async with OTLPReceiver(ssl_context=files.server) as receiver:
        for options in ({"certificate": files.other_ca}, {}):
            result = await export_to(receiver.url, **options)
            assert isinstance(result, TryLater)
            assert not result.ambiguous
            assert f"the certificate of 127.0.0.1:{receiver.port} is not trusted" in result.reason
            assert "certificate verify failed" in result.reason
            assert "OTEL_EXPORTER_OTLP_CERTIFICATE" in result.reason
            # SSL_CERT_FILE has no effect if a file with CAs is given.
            assert ("SSL_CERT_FILE" in result.reason) == (not options)
        assert receiver.requests == []


def trusts_nobody(receiver: OTLPReceiver) -> httpx.AsyncBaseTransport:
    return receiver.memory_transport(ssl_context=ssl.create_default_context())


@pytest.mark.parametrize(
    ("make", "advice"),
    [
        (lambda r: OTLPExporter(r.url, transport=trusts_nobody(r)), "the client or transport that the exporter was"),
        (
            lambda r: mlflow(f"https://127.0.0.1:{r.port}", environ={}),
            "; SSL_CERT_FILE, MLFLOW_TRACKING_SERVER_CERT_PATH or certificate= names the file ",
        ),
        (
            lambda r: mlflow(f"https://127.0.0.1:{r.port}", environ={}, experiments="name"),
            "; SSL_CERT_FILE, MLFLOW_TRACKING_SERVER_CERT_PATH or certificate= names the file with its CA",
        ),
    ],
    ids=["transport", "mlflow", "mlflow, names"],
)
async def test_a_certificate_that_is_not_trusted_comes_with_advice_that_helps(
    make: Callable[[OTLPReceiver], OTLPExporter], advice: str, files: Files
) -> None:
    async with OTLPReceiver(ssl_context=files.server, path=None) as receiver:
        exporter = make(receiver)
        result = await exporter.export(batch_of(1, "3"))
        await exporter.aclose()
        assert isinstance(result, TryLater)
        assert "is not trusted" in result.reason
        assert advice in result.reason
        assert "OTEL_" not in result.reason
        assert receiver.requests == []


async def test_a_certificate_for_another_host_is_a_clear_failure(files: Files) -> None:
    async with OTLPReceiver(ssl_context=files.server) as receiver:
        result = await export_to(f"https://localhost:{receiver.port}", certificate=files.ca)
        assert isinstance(result, TryLater)
        assert "Hostname mismatch" in result.reason


async def test_a_client_certificate_and_its_key_are_used(files: Files, mutual: ssl.SSLContext) -> None:
    async with OTLPReceiver(ssl_context=mutual) as receiver:
        in_two_files = {"client_certificate": files.client_certificate, "client_key": files.client_key}
        assert await export_to(receiver.url, certificate=files.ca, **in_two_files) == Delivered()
        assert await export_to(receiver.url, certificate=files.ca, client_certificate=files.client) == Delivered()


def refuse_handshake(listener: socket.socket, context: ssl.SSLContext) -> None:
    """Serve one connection whose handshake fails. OpenSSL on a socket sends the alert, which trio's streams do not."""
    connection, _ = listener.accept()
    secured = context.wrap_socket(connection, server_side=True, do_handshake_on_connect=False)
    with contextlib.suppress(ssl.SSLError):
        secured.do_handshake()
    # Closing with unread data would reset the connection, and the alert might be lost.
    with socket.socket(fileno=secured.detach()) as plain:
        plain.shutdown(socket.SHUT_WR)
        while plain.recv(65536):
            pass


@pytest.mark.parametrize("certificate", [None, "other_client"])
async def test_a_missing_or_wrong_client_certificate_is_a_clear_failure(
    certificate: str | None, files: Files, mutual: ssl.SSLContext
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.to_thread.run_sync, refuse_handshake, listener, mutual)
            result = await export_to(
                f"https://127.0.0.1:{listener.getsockname()[1]}",
                certificate=files.ca,
                client_certificate=None if certificate is None else getattr(files, certificate),
            )
    assert isinstance(result, TryLater)
    assert not result.ambiguous
    assert "does not accept the client certificate" in result.reason
    assert "OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE" in result.reason


async def test_a_server_that_breaks_the_connection_after_the_handshake_is_tried_later(
    files: Files, mutual: ssl.SSLContext
) -> None:
    async with OTLPReceiver(ssl_context=mutual) as receiver:
        result = await export_to(receiver.url, certificate=files.ca)
        assert isinstance(result, TryLater)
        assert f"127.0.0.1:{receiver.port}" in result.reason
        assert receiver.requests == []


async def test_a_client_certificate_alone_leaves_the_default_cas(files: Files) -> None:
    async with OTLPReceiver(ssl_context=files.server) as receiver:
        result = await export_to(receiver.url, client_certificate=files.client)
        assert isinstance(result, TryLater)
        assert "is not trusted" in result.reason


async def test_the_environment_names_the_files(files: Files, mutual: ssl.SSLContext) -> None:
    async with OTLPReceiver(ssl_context=mutual) as receiver:
        environ = {
            "OTEL_EXPORTER_OTLP_ENDPOINT": f"https://127.0.0.1:{receiver.port}",
            "OTEL_EXPORTER_OTLP_CERTIFICATE": str(files.other_ca),
            "OTEL_EXPORTER_OTLP_TRACES_CERTIFICATE": str(files.ca),
            "OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE": str(files.client_certificate),
            "OTEL_EXPORTER_OTLP_CLIENT_KEY": str(files.client_key),
        }
        exporter = OTLPExporter.from_env(environ)
        assert await exporter.export(batch_of()) == Delivered()
        await exporter.aclose()
        # A given transport has its own TLS: the files are not read.
        mine = OTLPExporter.from_env(
            {**environ, "OTEL_EXPORTER_OTLP_TRACES_CERTIFICATE": "/nowhere"}, transport=receiver.memory_transport()
        )
        assert not isinstance(mine, DisabledExporter)
        await mine.aclose()


async def test_tls_against_plain_http_is_a_clear_failure() -> None:
    async with OTLPReceiver() as receiver:
        result = await export_to(f"https://127.0.0.1:{receiver.port}")
        assert isinstance(result, TryLater)
        assert not result.ambiguous
        assert f"127.0.0.1:{receiver.port} does not speak TLS" in result.reason
        assert "http://" in result.reason


async def test_plain_http_against_tls_is_a_clear_failure(files: Files) -> None:
    async with OTLPReceiver(ssl_context=files.server) as receiver:
        result = await export_to(f"http://127.0.0.1:{receiver.port}")
        assert isinstance(result, TryLater)
        assert "https://" in result.reason


@pytest.mark.parametrize("sign", ["Broken pipe", "Connection reset by peer", "illegal request line"])
def test_plain_http_on_a_new_connection_gets_the_hint_for_any_failure(sign: str) -> None:
    advice = tls_advice(TLSSettings((), ""), own_tls=True, own_ca=False)
    # The error of writing is known in addition to that of reading, and may be the only sign.
    result = failure_result(
        httpx.ReadError("something else"),
        peer="collector.test:4318",
        connected=True,
        https=False,
        advice=advice,
        write_error=httpx.WriteError(sign),
    )
    assert isinstance(result, TryLater)
    assert result.reason.endswith("; if it speaks TLS, the endpoint begins with https://")
    assert result.ambiguous


async def answer_with(data: bytes, stream: trio.abc.Stream) -> None:
    async with stream:
        await stream.receive_some()
        await stream.send_all(data)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "the TLS handshake with 127.0.0.1:"),
        (b"\x15\x03\x03\x00\x02\x02\x46", "the TLS handshake with 127.0.0.1:"),
        (b"SSH-2.0-OpenSSH_9.6\r\n", "does not speak TLS"),
    ],
    ids=["closes", "alert", "another protocol"],
)
async def test_a_handshake_that_fails_says_where(data: bytes, words: str) -> None:
    async with trio.open_nursery() as nursery:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(trio.serve_listeners, functools.partial(answer_with, data), listeners)
        port = listeners[0].socket.getsockname()[1]
        result = await export_to(f"https://127.0.0.1:{port}")
        nursery.cancel_scope.cancel()
    assert isinstance(result, TryLater)
    assert not result.ambiguous
    assert words in result.reason
    assert f"127.0.0.1:{port}" in result.reason


async def test_a_tls_server_that_accepts_and_says_nothing_ends_with_the_timeout_and_leaves_no_socket(
    files: Files, autojump_clock: trio.testing.MockClock
) -> None:
    closed = trio.Event()

    async def say_nothing(stream: trio.abc.Stream) -> None:
        while await stream.receive_some():
            pass
        closed.set()

    def serve_silently(stream: trio.abc.Stream) -> bool:
        nursery.start_soon(say_nothing, stream)
        return True

    async with trio.open_nursery() as nursery:
        receiver = OTLPReceiver(ssl_context=files.server, listen=False)
        async with receiver:
            receiver.network._serve = serve_silently
            exporter = OTLPExporter(receiver.url, transport=receiver.memory_transport(), timeout=5)
            result = await exporter.export(batch_of())
            assert result == TryLater("no connection to receiver.test:443 within 5 s", endpoint=True)
            with trio.fail_after(1):
                await closed.wait()
            await exporter.aclose()


async def test_tls_over_memory_takes_no_time(files: Files, autojump_clock: trio.testing.MockClock) -> None:
    client = ssl.create_default_context(cafile=files.ca)
    async with OTLPReceiver(ssl_context=files.server, listen=False) as receiver:
        transport = receiver.memory_transport(ssl_context=client)
        assert await export_to(receiver.url, transport=transport, timeout=math.inf) == Delivered()


def test_a_file_that_cannot_be_used_is_named(files: Files, tmp_path: Path) -> None:
    empty = tmp_path / "empty.pem"
    empty.touch()
    missing = tmp_path / "missing.pem"
    for options, words in (
        ({"certificate": missing}, "certificate '.*missing.pem' cannot be read: No such file"),
        ({"certificate": empty}, "certificate '.*empty.pem' holds no certificates"),
        ({"client_certificate": missing}, "client_certificate '.*missing.pem' cannot be read"),
        ({"client_certificate": files.client, "client_key": missing}, "client_key '.*missing.pem' cannot be read"),
        ({"client_certificate": empty}, "are no certificate and its unencrypted key"),
        ({"client_certificate": files.client_certificate, "client_key": files.other_client}, "are no certificate"),
        ({"client_key": files.client_key}, "client_key is given without client_certificate"),
    ):
        with pytest.raises(ValueError, match=words):
            OTLPExporter("https://localhost", **options)  # type: ignore[arg-type]  # the options of one case


@pytest.mark.parametrize("name", ["certificate", "client_certificate", "client_key"])
def test_a_pem_instead_of_a_file_name_is_reported_and_not_shown(name: str, files: Files) -> None:
    key = files.client_key.read_text()
    other = {"client_certificate": files.client_certificate} if name == "client_key" else {}
    for pem in (key, key.replace("\n", " ")):
        with pytest.raises(ValueError, match=rf"^{name} .not shown. is a PEM; it must be the name of a file") as caught:
            OTLPExporter("https://localhost", **{**other, name: pem})  # type: ignore[arg-type]  # one case's
        assert caught.value.__cause__ is None
        assert caught.value.__context__ is None


def test_a_key_without_its_first_and_last_line_is_not_shown_either(files: Files) -> None:
    key = "".join(files.client_key.read_text().splitlines()[1:-1])
    for name in (key, key * 20, f"a\0{key}"):
        with pytest.raises(ValueError, match=r"^certificate \(not shown\) cannot be read: |^certificate ") as caught:
            OTLPExporter("https://localhost", certificate=name)
        assert (key in str(caught.value)) == (len(name) <= 300 and "\0" not in name)
        assert caught.value.__context__ is None


def test_an_encrypted_key_is_refused_without_asking_for_its_password(files: Files, tmp_path: Path) -> None:
    from cryptography.hazmat.primitives import serialization

    key = serialization.load_pem_private_key(files.client_key.read_bytes(), None)
    encrypted = tmp_path / "encrypted.pem"
    encrypted.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"password"),
        )
    )
    with pytest.raises(ValueError, match="unencrypted key"):
        OTLPExporter("https://localhost", client_certificate=files.client_certificate, client_key=encrypted)


def test_files_and_a_transport_are_mutually_exclusive(files: Files) -> None:
    with pytest.raises(ValueError, match="mutually exclusive"):
        OTLPExporter("https://localhost", certificate=files.ca, transport=httpx.AsyncHTTPTransport())


@pytest.mark.parametrize("named_by", ["certificate", "SSL_CERT_FILE"])
async def test_a_ca_that_was_renewed_is_trusted_from_the_next_connection_on_and_a_broken_file_changes_nothing(
    named_by: str, files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ca = tmp_path / "ca.pem"
    ca.write_bytes(files.other_ca.read_bytes())
    if named_by == "SSL_CERT_FILE":
        monkeypatch.setenv("SSL_CERT_FILE", str(ca))
    async with OTLPReceiver(ssl_context=files.server) as receiver:
        exporter = OTLPExporter(receiver.url, certificate=ca if named_by == "certificate" else None)
        assert isinstance(await exporter.export(batch_of()), TryLater)
        ca.write_bytes(files.ca.read_bytes())
        assert await exporter.export(batch_of()) == Delivered()
        for broken in (b"", b"-----BEGIN CERTIFICATE-----\n", None):
            if broken is None:
                ca.unlink()
            else:
                ca.write_bytes(broken)
            receiver.drop_connections()
            await trio.testing.wait_all_tasks_blocked()
            assert await exporter.export(batch_of()) == Delivered()
        ca.write_bytes(files.other_ca.read_bytes())
        receiver.drop_connections()
        await trio.testing.wait_all_tasks_blocked()
        assert isinstance(await exporter.export(batch_of()), TryLater)
        await exporter.aclose()


async def test_a_proxys_cas_are_not_read_for_each_connection(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(files.ca))
    async with OTLPReceiver(ssl_context=files.server, path=None) as proxy:
        monkeypatch.setenv("HTTP_PROXY", f"https://127.0.0.1:{proxy.port}")
        exporter = OTLPExporter("http://collector.test/v1/traces")
        with monkeypatch.context() as patch:
            patch.setattr(ssl.SSLContext, "load_verify_locations", None)
            assert await exporter.export(batch_of()) == Delivered()
        await exporter.aclose()
