"""Connecting: names, addresses, temporary failures, Unix domain sockets, and requests that are known to be unsent."""

from __future__ import annotations

import errno
import itertools
import os
import resource
import socket
import ssl
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio
import trio.testing
from trio.testing import MockClock

from tests.support.exporters import batch_of
from tests.support.processes import DEADLINE
from tests.support.scripted import (
    OK,
    Tls,
    answer,
    answers,
    listening,
    no_sockets_left,
    post,
    url_of,
)
from trio_spanbatch import Delivered, OTLPExporter
from trio_spanbatch._http.connecting import TCPNetwork
from trio_spanbatch._http.transport import HTTPTransport, Progress

real_getaddrinfo = socket.getaddrinfo

# Real seconds without any event, until the mock clock jumps: sockets of this process need no time.
IDLE = 0.05


def resolve_to(monkeypatch: pytest.MonkeyPatch, *addresses: tuple[str, int]) -> None:
    """Make ``server.test`` a name for these addresses."""

    def getaddrinfo(host: object, port: object, *args: Any, **options: Any) -> Any:
        if host not in ("server.test", b"server.test"):
            return real_getaddrinfo(host, port, *args, **options)  # type: ignore[arg-type]  # passed on as it came
        # As fast as for an address: a mock clock would not wait for a thread.
        found = []
        for ip, number in addresses:
            family = socket.AF_INET6 if ":" in ip else socket.AF_INET
            name = (ip, number, 0, 0) if ":" in ip else (ip, number)
            found.append((family, socket.SOCK_STREAM, 6, "", name))
        return found

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)


def free_port() -> int:
    """Return a port on which no server listens."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        number: int = sock.getsockname()[1]
        return number


async def fails(
    url: str,
    kind: type[httpx.TransportError] = httpx.ConnectError,
    *,
    transport: HTTPTransport | None = None,
    server: bool = False,
    connect: float | None = None,
) -> tuple[httpx.TransportError, Progress]:
    """Send a request that cannot be sent; return the error, and how far it got.

    Without a server, whose sockets would be counted too, no socket stays open.
    """
    with nullcontext() if server else no_sockets_left():
        request, progress = post(url, connect=connect)
        async with transport or HTTPTransport() as transport:
            with pytest.raises(kind) as caught:
                await answer(transport, request)
        assert type(caught.value) is kind
        assert caught.value.request is request
        assert str(caught.value)
        assert not progress.sent
        return caught.value, progress


async def test_nothing_is_sent_to_a_name_that_is_not_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def getaddrinfo(*args: object) -> object:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    error, progress = await fails("http://nobody.invalid/")
    assert "not known" in str(error)
    assert not progress.connected
    assert progress.peer == "nobody.invalid:80"


async def test_nothing_is_sent_to_a_port_that_refuses() -> None:
    port = free_port()
    error, progress = await fails(url_of(port))
    assert isinstance(error.__cause__, ConnectionRefusedError)
    assert not progress.connected
    assert progress.peer == f"127.0.0.1:{port}"


async def nothing(stream: trio.abc.Stream) -> None:
    """Close at once."""


async def plain(stream: trio.abc.Stream) -> None:
    await stream.send_all(b"HTTP/1.1 400 Bad Request\r\n\r\n")


@pytest.mark.parametrize("serve", [nothing, plain])
async def test_nothing_is_sent_to_a_server_without_tls(serve: Callable[..., Any]) -> None:
    async with listening(serve) as port:
        _, progress = await fails(f"https://127.0.0.1:{port}/", server=True)
        assert progress.connected


async def test_nothing_is_sent_to_a_server_whose_certificate_is_not_trusted() -> None:
    async with listening(answers(OK), Tls()) as port:
        error, progress = await fails(f"https://127.0.0.1:{port}/", server=True)
        assert "CERTIFICATE_VERIFY_FAILED" in str(error)
        assert error.__cause__ is not None
        assert isinstance(error.__cause__.__cause__, ssl.SSLCertVerificationError)
        assert progress.connected


async def test_certificates_are_read_again_for_each_connection() -> None:
    tls, calls = Tls(), 0

    def context() -> ssl.SSLContext:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise FileNotFoundError(errno.ENOENT, "No such file", "ca.pem")
        return ssl.create_default_context() if calls == 2 else tls.client()

    with no_sockets_left():
        async with listening(answers(OK), tls) as port, HTTPTransport(context) as transport:
            for _ in range(2):
                with pytest.raises(httpx.ConnectError):
                    await answer(transport, url_of(port, tls))
            for _ in range(2):
                assert await answer(transport, url_of(port, tls)) == (200, b"ok")
    assert calls == 3


@pytest.mark.parametrize(("host", "name"), [("::1", "[::1]"), ("127.0.0.1", "127.0.0.1"), ("127.0.0.1", "localhost")])
async def test_a_server_is_reached_by_address_and_by_name(host: str, name: str) -> None:
    for tls in (None, Tls()):
        heads: list[bytes] = []
        async with (
            listening(answers(OK, heads=heads), tls, host=host) as port,
            HTTPTransport(tls.client) if tls else HTTPTransport() as transport,
        ):
            assert await answer(transport, url_of(port, tls, name)) == (200, b"ok")
        assert f"host: {name}:{port}".encode() in heads[0].lower()


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere ::1 has no zone")
async def test_the_zone_of_an_ipv6_address_leads_to_the_server_but_is_not_shown_to_it() -> None:
    zone = socket.if_nametoindex("lo")
    for tls in (None, Tls()):
        heads: list[bytes] = []
        async with listening(answers(OK, heads=heads), tls, host="::1") as port:
            transport = HTTPTransport(tls.client) if tls else HTTPTransport()
            exporter = OTLPExporter(url_of(port, tls, f"[::1%25{zone}]"), transport=transport)
            assert await exporter.export(batch_of()) == Delivered()
            await exporter.aclose()
        assert f"host: [::1]:{port}\r\n".encode() in heads[0].lower()


async def test_a_host_name_with_an_underscore_is_verified_by_tls(monkeypatch: pytest.MonkeyPatch) -> None:
    names: list[str] = []
    tls = Tls()
    tls.server.sni_callback = lambda _sock, name, _context: names.append(name)

    def getaddrinfo(host: object, port: int, *args: Any) -> Any:
        return real_getaddrinfo("127.0.0.1", port, *args)

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    async with listening(answers(OK), tls) as port:
        # The certificate has no such name.
        error, _ = await fails(f"https://otel_collector:{port}/", transport=HTTPTransport(tls.client), server=True)
        assert "otel_collector" in str(error)
    assert names == ["otel_collector"]


async def test_a_name_that_ends_with_a_dot_is_that_of_the_certificate(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []

    def getaddrinfo(host: object, port: int, *args: Any) -> Any:
        asked.append(host)
        return real_getaddrinfo("127.0.0.1", port, *args)

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    tls = Tls()
    async with listening(answers(OK), tls) as port, HTTPTransport(tls.client) as transport:
        assert await answer(transport, f"https://server.test.:{port}/") == (200, b"ok")
    assert "server.test." in asked


async def test_an_address_needs_no_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    def run_sync(*args: object, **options: object) -> object:
        raise AssertionError("a thread was used")

    monkeypatch.setattr(trio.to_thread, "run_sync", run_sync)
    for host, name in (("127.0.0.1", "127.0.0.1"), ("::1", "[::1]")):
        async with listening(answers(OK), host=host) as port, HTTPTransport() as transport:
            assert await answer(transport, url_of(port, host=name)) == (200, b"ok")


@pytest.fixture
def hanging_names(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[object]]:
    """Let lookups of names hang until the end of the test; yields the names that were asked for."""
    asked: list[object] = []
    end = threading.Event()

    def getaddrinfo(host: object, port: object, *args: Any) -> Any:
        if "test" in str(host) and args[-1:] != (socket.AI_NUMERICHOST,):
            asked.append(host)
            end.wait(DEADLINE)
        return real_getaddrinfo(host, port, *args)  # type: ignore[arg-type]  # passed on as it came

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    yield asked
    end.set()


async def test_a_name_server_that_hangs_takes_none_of_the_programs_threads(hanging_names: list[object]) -> None:
    limiter = trio.to_thread.current_default_thread_limiter()
    async with HTTPTransport() as transport, trio.open_nursery() as nursery:
        for number in range(64):
            nursery.start_soon(answer, transport, f"http://server{number}.test/")
        with trio.fail_after(DEADLINE):
            for _ in itertools.count():  # there is no event for their end
                await trio.lowlevel.checkpoint()
                if len(hanging_names) == 4:
                    break
        assert limiter.borrowed_tokens == 0
        assert await trio.to_thread.run_sync(lambda: "at once") == "at once"
        # Lookups that are no longer waited for end by themselves.
        nursery.cancel_scope.cancel()
    assert len(hanging_names) == 4


async def test_while_a_name_server_hangs_addresses_are_connected_to(hanging_names: list[object]) -> None:
    async with listening(answers(OK)) as port, HTTPTransport() as transport, trio.open_nursery() as nursery:
        for _ in range(10):
            nursery.start_soon(answer, transport, "http://server.test/")
        await trio.testing.wait_all_tasks_blocked()
        assert await answer(transport, url_of(port)) == (200, b"ok")
        nursery.cancel_scope.cancel()


async def test_connecting_ends_with_its_timeout(hanging_names: list[object], autojump_clock: MockClock) -> None:
    error, _ = await fails("http://server.test/", httpx.ConnectTimeout, connect=3.0)
    assert error.__cause__ is not None
    assert trio.current_time() == 3.0


# Happy eyeballs.


class Network:
    """Decides the outcome of connecting to each address, instead of the operating system."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, outcomes: dict[str, object]) -> None:
        self.tried: list[tuple[str, float]] = []
        self._outcomes = outcomes
        make = trio.socket.socket

        def patched(*args: Any) -> Any:
            sock = make(*args)
            connect = sock.connect

            async def decided(name: Any) -> None:
                self.tried.append((name[0], trio.current_time()))
                outcome = self._outcomes.get(name[0])
                if isinstance(outcome, float):
                    await trio.sleep(outcome)
                elif isinstance(outcome, tuple):
                    delay, error = outcome
                    await trio.sleep(delay)
                    raise error
                if isinstance(outcome, BaseException):
                    raise outcome
                await connect(name)

            sock.connect = decided  # type: ignore[method-assign, assignment]  # on this one socket
            return sock

        monkeypatch.setattr(trio.socket, "socket", patched)


REFUSED = ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused")
UNREACHABLE = OSError(errno.ENETUNREACH, "Network is unreachable")
FOR_EVER = 1e9


@pytest.mark.parametrize(
    ("first", "began"),
    [
        (FOR_EVER, 0.25),
        (REFUSED, 0.0),
        (UNREACHABLE, 0.0),
        ((0.125, REFUSED), 0.125),
        (OSError(errno.EADDRNOTAVAIL, "Cannot assign requested address"), 0.0),
        (OSError(errno.EINVAL, "Invalid argument"), 0.0),
        (TypeError("an address that a program made up"), 0.0),
    ],
)
async def test_the_second_address_is_tried_if_the_first_one_hangs_or_fails(
    first: object, began: float, monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    autojump_clock.autojump_threshold = IDLE
    with no_sockets_left():
        async with listening(answers(OK), host="127.0.0.2") as port, HTTPTransport() as transport:
            resolve_to(monkeypatch, ("127.0.0.1", port), ("127.0.0.2", port))
            network = Network(monkeypatch, {"127.0.0.1": first})
            assert await answer(transport, url_of(port, host="server.test")) == (200, b"ok")
            assert network.tried == [("127.0.0.1", 0.0), ("127.0.0.2", began)]


async def test_a_second_connection_that_comes_too_late_is_closed(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    autojump_clock.autojump_threshold = IDLE
    accepted: list[str] = []

    async def serve(stream: trio.abc.Stream) -> None:
        assert isinstance(stream, trio.SocketStream)
        accepted.append(stream.socket.getsockname()[0])
        await answers(OK)(stream)

    with no_sockets_left():
        async with listening(serve, host="0.0.0.0") as port, HTTPTransport() as transport:
            resolve_to(monkeypatch, ("127.0.0.1", port), ("127.0.0.2", port), ("127.0.0.3", port))
            # The first two are connected at the same time.
            Network(monkeypatch, {"127.0.0.1": 0.375, "127.0.0.2": 0.125, "127.0.0.3": FOR_EVER})
            assert await answer(transport, url_of(port, host="server.test")) == (200, b"ok")
            (idle,) = transport._idle.values()
            assert len(idle) == 1
            await trio.testing.wait_all_tasks_blocked()
            assert set(accepted) <= {"127.0.0.1", "127.0.0.2"}


async def test_address_families_are_tried_in_turn(monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock) -> None:
    names = ["::1", "::2", "::3", "127.0.0.1", "127.0.0.2"]
    resolve_to(monkeypatch, *((name, 80) for name in names))
    network = Network(monkeypatch, dict.fromkeys(names, REFUSED))
    await fails("http://server.test/")
    assert [name for name, _ in network.tried] == ["::1", "127.0.0.1", "::2", "127.0.0.2", "::3"]


@pytest.mark.parametrize("delay", [0.0, 0.1, 1.0, 10.0])
async def test_if_all_addresses_fail_the_error_is_that_of_the_first_one(
    delay: float, monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    names = ["127.0.0.1", "127.0.0.2", "::1"]
    resolve_to(monkeypatch, *((name, 80) for name in names))
    Network(monkeypatch, {"127.0.0.1": (delay, UNREACHABLE), "127.0.0.2": REFUSED, "::1": REFUSED})
    error, _ = await fails("http://server.test/")
    assert error.__cause__ is UNREACHABLE


async def test_an_ipv6_only_network_works(monkeypatch: pytest.MonkeyPatch) -> None:
    async with listening(answers(OK), host="::1") as port, HTTPTransport() as transport:
        resolve_to(monkeypatch, ("127.0.0.1", port), ("::1", port))
        Network(monkeypatch, {"127.0.0.1": UNREACHABLE})
        assert await answer(transport, url_of(port, host="server.test")) == (200, b"ok")


async def test_a_name_without_an_address_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    resolve_to(monkeypatch)
    error, _ = await fails("http://server.test/")
    assert isinstance(error.__cause__, socket.gaierror)


async def test_a_race_that_is_cancelled_leaves_nothing_and_raises_no_group(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    resolve_to(monkeypatch, ("127.0.0.1", 9), ("127.0.0.2", 9), ("::1", 9))
    Network(monkeypatch, dict.fromkeys(("127.0.0.1", "127.0.0.2", "::1"), FOR_EVER))
    for after in (0.0, 0.1, 0.3, 1.0):
        with no_sockets_left(), trio.move_on_after(after) as scope:
            try:
                await TCPNetwork().connect_tcp("server.test", 9)
            except trio.Cancelled:
                raise
            except BaseException as error:
                raise AssertionError("something else than Cancelled") from error
        assert scope.cancelled_caught


# Temporary failures.


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.EMFILE, os.strerror(errno.EMFILE)),
        OSError(errno.ENFILE, os.strerror(errno.ENFILE)),
        OSError(errno.ENOBUFS, os.strerror(errno.ENOBUFS)),
        OSError(errno.EAFNOSUPPORT, os.strerror(errno.EAFNOSUPPORT)),
    ],
)
@pytest.mark.parametrize("addresses", [1, 2])
async def test_a_failure_to_create_a_socket_is_a_connect_error(
    error: OSError, addresses: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_socket(*args: object) -> object:
        raise error

    resolve_to(monkeypatch, *[("127.0.0.1", 9)] * addresses)
    monkeypatch.setattr(trio.socket, "socket", no_socket)
    caught, _ = await fails("http://server.test/")
    assert caught.__cause__ is error


@pytest.mark.parametrize("code", [errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EADDRNOTAVAIL, errno.ETIMEDOUT])
async def test_a_network_that_changes_is_a_connect_error(code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    error = OSError(code, os.strerror(code))
    Network(monkeypatch, {"127.0.0.1": error})
    caught, _ = await fails("http://127.0.0.1:9/")
    assert caught.__cause__ is error


async def test_a_lack_of_file_descriptors_is_a_connect_error() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(int(path.name) for path in Path("/proc/self/fd").iterdir())
    filler = [os.dup(0) for _ in range(highest)]
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (len(filler), hard))
        request, progress = post("http://127.0.0.1:9/")
        async with HTTPTransport() as transport:
            with pytest.raises(httpx.ConnectError) as caught:
                await answer(transport, request)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for number in filler:
            os.close(number)
    assert isinstance(caught.value.__cause__, OSError)
    assert caught.value.__cause__.errno == errno.EMFILE
    assert not progress.sent


async def test_a_lack_of_threads_is_a_connect_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def getaddrinfo(host: object, port: object, *args: Any) -> Any:
        raise socket.gaierror(socket.EAI_NONAME, "not an address")

    # Trio keeps threads for a while and would use one of those.
    async def no_thread(*args: object, **options: object) -> object:
        await trio.lowlevel.checkpoint()
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    monkeypatch.setattr(trio.to_thread, "run_sync", no_thread)
    error, _ = await fails("http://server.test/")
    assert "can't start new thread" in str(error)


@pytest.mark.parametrize("code", [socket.EAI_AGAIN, socket.EAI_FAIL, socket.EAI_NONAME, socket.EAI_MEMORY])
async def test_a_name_server_that_fails_is_a_connect_error(code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def getaddrinfo(host: object, port: object, *args: Any) -> Any:
        raise socket.gaierror(code, "failure in name resolution")

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    error, _ = await fails("http://server.test/")
    assert isinstance(error.__cause__, socket.gaierror)
    assert error.__cause__.errno == code


async def test_an_invalid_host_name_is_a_connect_error() -> None:
    await fails(f"http://{'a' * 64}.test/")


@pytest.mark.parametrize("url", ["ftp://server.test/", "ws://server.test/"])
async def test_another_scheme_is_refused(url: str) -> None:
    async with HTTPTransport() as transport:
        with pytest.raises(httpx.UnsupportedProtocol):
            await answer(transport, url)


# Unix domain sockets.


async def test_every_host_is_reached_through_the_unix_domain_socket(tmp_path: Path) -> None:
    path = str(tmp_path / "socket")
    heads: list[bytes] = []
    with no_sockets_left():
        async with trio.open_nursery() as nursery:
            listener = trio.socket.socket(socket.AF_UNIX)
            await listener.bind(path)
            listener.listen()
            await nursery.start(trio.serve_listeners, answers(OK, heads=heads), [trio.SocketListener(listener)])
            async with HTTPTransport(network=TCPNetwork(uds=path)) as transport:
                for host in ("server.test", "server.test", "other.test:4318"):
                    assert await answer(transport, f"http://{host}/") == (200, b"ok")
            nursery.cancel_scope.cancel()
    assert b"other.test:4318" in heads[2]


@pytest.mark.parametrize("name", ["nothing there", "x" * 200])
async def test_a_unix_domain_socket_that_is_not_there_is_a_connect_error(name: str, tmp_path: Path) -> None:
    _, progress = await fails(
        "http://server.test/", transport=HTTPTransport(network=TCPNetwork(uds=str(tmp_path / name)))
    )
    assert not progress.connected
