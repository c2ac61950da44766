"""The response that h11 has read before and that comes again: what it means, and what is not taken for it."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress

import h11
import pytest
import trio
import trio.testing
from trio.testing import MockClock

from tests.support.processes import DEADLINE
from tests.support.scripted import Serve, Tls, answers, listening, no_sockets_left, read_request, url_of
from trio_spanbatch import Delivered, EncodedSpan, ExportResult, OTLPExporter, Refused, SpanBatch, TryLater
from trio_spanbatch._http.transport import HTTPTransport

USUAL = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
SLOW_DOWN = b"HTTP/1.1 429 Too Many Requests\r\nRetry-After: 7\r\nContent-Length: 0\r\n\r\n"
SPAN = EncodedSpan(b"\x0a\x04span")


@pytest.fixture
def read_by_h11(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """What h11 is given to read."""
    read: list[bytes] = []
    original = h11.Connection.receive_data

    def receive_data(self: h11.Connection, data: bytes) -> None:
        read.append(bytes(data))
        original(self, data)

    monkeypatch.setattr(h11.Connection, "receive_data", receive_data)
    return read


def exporter_for(port: int, tls: Tls | None = None, **options: object) -> OTLPExporter:
    transport = HTTPTransport(tls.client) if tls else HTTPTransport()
    return OTLPExporter(url_of(port, tls), transport=transport, location_header="x-location", **options)  # type: ignore[arg-type]  # of any option


async def export(exporter: OTLPExporter, location: str = "a") -> ExportResult:
    with trio.fail_after(DEADLINE):
        return await exporter.export(SpanBatch(location, [SPAN]))


async def results(serve: Serve, count: int, tls: Tls | None = None, **options: object) -> list[ExportResult]:
    with no_sockets_left():
        async with listening(serve, tls) as port:
            exporter = exporter_for(port, tls, **options)
            found = [await export(exporter) for _ in range(count)]
            await exporter.aclose()
    return found


async def test_h11_reads_the_usual_response_once(tls: Tls | None, read_by_h11: list[bytes]) -> None:
    assert await results(answers(USUAL), 5, tls) == [Delivered()] * 5
    assert read_by_h11 == [USUAL]


async def test_a_response_with_a_body_may_be_the_usual_one(read_by_h11: list[bytes]) -> None:
    usual = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"
    assert await results(answers(usual), 3) == [Delivered()] * 3
    assert read_by_h11 == [usual]


@pytest.mark.parametrize(
    ("response", "result"),
    [
        (SLOW_DOWN, TryLater("429 Too Many Requests", after=7.0, status_code=429)),
        (b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n", Refused("404 Not Found", 404)),
        (USUAL.replace(b"200", b"202"), Delivered()),
        (USUAL.replace(b": 0\r\n\r\n", b": 4\r\n\r\n\x0a\x02\x08\x03"), Delivered(3)),
        (b"HTTP/1.1 103 Early Hints\r\n\r\n" + USUAL, Delivered()),
        (USUAL.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"), Delivered()),
    ],
)
async def test_another_response_after_the_usual_one_means_what_it_always_means(
    response: bytes, result: ExportResult, tls: Tls | None
) -> None:
    found = await results(answers(USUAL, USUAL, response, response, USUAL), 5, tls)
    assert found == [Delivered(), Delivered(), result, result, Delivered()]


@pytest.mark.parametrize("cut", [1, 10, len(USUAL) - 1])
async def test_the_usual_response_may_come_in_pieces(cut: int, tls: Tls | None) -> None:
    async def serve(stream: trio.abc.Stream) -> None:
        await read_request(stream)
        await stream.send_all(USUAL)
        while (await read_request(stream))[0]:
            await stream.send_all(USUAL[:cut])
            await trio.testing.wait_all_tasks_blocked(0.01)
            await stream.send_all(USUAL[cut:])

    assert await results(serve, 3, tls) == [Delivered()] * 3


async def test_the_last_piece_of_a_response_is_not_a_usual_response(tls: Tls | None) -> None:
    async def serve(stream: trio.abc.Stream) -> None:
        await read_request(stream)
        await stream.send_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        await trio.testing.wait_all_tasks_blocked(0.01)
        await stream.send_all(b"0\r\n\r\n")
        await read_request(stream)
        await stream.send_all(b"0\r\n\r\n")

    first, second = await results(serve, 2, tls)
    assert first == Delivered()
    assert isinstance(second, TryLater)


async def test_a_response_that_is_only_the_beginning_of_the_usual_one_delivers_nothing(tls: Tls | None) -> None:
    async def serve(stream: trio.abc.Stream) -> None:
        await read_request(stream)
        await stream.send_all(USUAL)
        await read_request(stream)
        await stream.send_all(USUAL[:-2])

    first, second = await results(serve, 2, tls)
    assert first == Delivered()
    assert isinstance(second, TryLater)
    assert second.ambiguous


async def test_a_connection_that_ends_instead_of_the_usual_response_leaves_it_open_what_arrived(
    tls: Tls | None,
) -> None:
    first, second = await results(answers(USUAL, b""), 2, tls)
    assert first == Delivered()
    assert isinstance(second, TryLater)
    assert second.ambiguous
    assert "broke" in second.reason


async def test_more_than_the_usual_response_ends_the_connection(tls: Tls | None) -> None:
    connections: list[int] = []

    async def serve(stream: trio.abc.Stream) -> None:
        connections.append(1)
        await answers(USUAL, USUAL + SLOW_DOWN)(stream)

    assert await results(serve, 4, tls) == [Delivered()] * 4
    assert len(connections) == 2


async def test_each_request_has_its_own_location_and_credentials() -> None:
    heads: list[bytes] = []

    def auth(location: str) -> Mapping[str, str]:
        return {"authorization": f"Bearer for-{location}", "X-Location": "never sent"}

    async with listening(answers(USUAL, heads=heads)) as port:
        exporter = exporter_for(port, auth=auth)
        for location in "aabbca":
            assert await export(exporter, location) == Delivered()
        await exporter.aclose()
    lines = [sorted(line for line in head.split(b"\r\n") if b"for-" in line or b"location" in line) for head in heads]
    assert lines == [
        [b"authorization: Bearer for-" + a, b"x-location: " + a] for a in (b"a", b"a", b"b", b"b", b"c", b"a")
    ]


async def test_all_requests_to_a_location_are_the_same() -> None:
    heads: list[bytes] = []
    async with listening(answers(USUAL, heads=heads)) as port:
        exporter = exporter_for(port, headers={"x-key": "k"}, compression="gzip")
        for _ in range(3):
            assert await export(exporter) == Delivered()
        await exporter.aclose()
    assert len(heads) == 3
    assert {*map(frozenset, (head.split(b"\r\n") for head in heads))} == {frozenset(heads[0].split(b"\r\n"))}


class _Injecting(OTLPExporter):
    def check_location(self, location: str) -> None:
        """Accept everything."""


async def test_a_location_with_a_line_break_is_never_sent() -> None:
    heads: list[bytes] = []
    async with listening(answers(USUAL, heads=heads)) as port:
        exporter = _Injecting(url_of(port), location_header="x-location")
        assert await export(exporter) == Delivered()
        with pytest.raises(ValueError, match="cannot be sent in a header"):
            await export(exporter, "b\r\nx-location: a")
        await exporter.aclose()
    assert len(heads) == 1


async def test_a_cancel_while_waiting_for_the_usual_response_closes_the_connection(tls: Tls | None) -> None:
    came, ended = trio.Event(), trio.Event()

    async def serve(stream: trio.abc.Stream) -> None:
        await read_request(stream)
        await stream.send_all(USUAL)
        await read_request(stream)
        came.set()
        with suppress(trio.BrokenResourceError):
            await stream.receive_some()
        ended.set()

    with no_sockets_left(), trio.fail_after(DEADLINE):
        async with listening(serve, tls) as port, trio.open_nursery() as nursery:
            exporter = exporter_for(port, tls)
            assert await export(exporter) == Delivered()
            nursery.start_soon(export, exporter)
            await came.wait()
            nursery.cancel_scope.cancel()
            with trio.CancelScope(shield=True):
                await ended.wait()
                await exporter.aclose()


async def test_a_request_whose_usual_response_does_not_come_in_time_may_have_arrived() -> None:
    async def serve(stream: trio.abc.Stream) -> None:
        await read_request(stream)
        await stream.send_all(USUAL)
        await trio.sleep_forever()

    first, second = await results(serve, 2, timeout=0.2)
    assert first == Delivered()
    assert second == TryLater(second.reason, ambiguous=True)  # type: ignore[union-attr]  # no Delivered


@pytest.fixture
def clock() -> MockClock:
    """Let time pass only when a test says so; sockets work in real time."""
    return MockClock()


async def test_how_long_a_connection_may_be_idle_is_what_its_server_said_on_it(clock: MockClock) -> None:
    long = USUAL.replace(b"\r\n\r\n", b"\r\nKeep-Alive: timeout=50\r\n\r\n")
    scripts = [[USUAL, USUAL, long, long, USUAL, USUAL], [USUAL], [USUAL]]
    connections: list[trio.abc.Stream] = []

    async def serve(stream: trio.abc.Stream) -> None:
        connections.append(stream)
        await answers(*scripts[len(connections) - 1])(stream)

    made = []
    async with listening(serve) as port:
        exporter = exporter_for(port)
        for pause in (3.0, 3.0, 48.0, 48.0, 48.0, 49.0, 3.0, 5.0, 0.0):
            assert await exporter.export(SpanBatch("a", [SPAN])) == Delivered()
            made.append(len(connections))
            clock.jump(pause)
        await exporter.aclose()
    assert made == [1, 1, 1, 1, 1, 1, 2, 2, 3]
