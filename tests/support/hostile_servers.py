"""Servers that try to make the exporter hang or use much memory; each runs in a separate process.

    python -m tests.support.hostile_servers NAME [tcp|memory]

prints one JSON document: what the exports ended with, how long the longest took on a mock clock if it ends with the
timeout, how much work it was for the processor, and by how many bytes the process has grown at its peak.
"""

from __future__ import annotations

import functools
import gc
import gzip
import itertools
import json
import math
import os
import sys
import time
import warnings
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import attrs
import trio
import trio.lowlevel
from trio.testing import MockClock

from tests.support.exporters import batch_of, no_connections_left
from tests.support.processes import DEADLINE
from trio_spanbatch import ExportResult, OTLPExporter
from trio_spanbatch.testing import Answer, Drip, Hang, OTLPReceiver, Outcome, Reset, partial_success

__all__ = ["FAST", "RESTLESS", "SLOW", "TIMEOUT"]

PIECE = 64 * 1024

# Seconds on a mock clock: the exporter's own default.
TIMEOUT = 10.0
# Real seconds without any event, until the mock clock jumps to the next deadline. The kernel is not a task of trio,
# but data that one socket of this process sends reaches the other long before that.
IDLE = 0.05

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: application/x-protobuf\r\n"
CHUNKED = HEAD + b"transfer-encoding: chunked\r\n\r\n"
NOT_ASKED_FOR = b"HTTP/1.1 401 Unauthorized\r\ncontent-length: 0\r\n\r\n"
SWITCHING = b"HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: upgrade\r\n\r\n"


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


def gzip_bomb(status: int) -> Answer:
    """Return 256 MiB of zeros as gzip, which makes them a thousand times smaller."""
    compressor = zlib.compressobj(9, zlib.DEFLATED, 31)
    pieces = [compressor.compress(bytes(PIECE)) for _ in range(256 * 16)]
    return Answer(status, headers=[("content-encoding", "gzip")], body=b"".join([*pieces, compressor.flush()]))


def endless(head: bytes, piece: bytes) -> Iterator[bytes]:
    yield head
    yield from itertools.repeat(piece)


def ticking(head: bytes, piece: bytes) -> Iterator[bytes]:
    """Yield ``piece`` forever, and let a second of the mock clock pass with each, until the timeout.

    How many more pieces are sent while the exporter ends the exchange depends on the machine, so the clock then stops.
    """
    yield head
    clock = trio.lowlevel.current_clock()
    assert isinstance(clock, MockClock)
    for _ in range(int(TIMEOUT)):
        clock.jump(1)
        yield piece
    yield from itertools.repeat(piece)


def endless_gzip() -> Iterator[bytes]:
    """Yield an endless gzip stream without any content: empty blocks."""
    compressor = zlib.compressobj(9, zlib.DEFLATED, 31)
    yield HEAD + b"content-encoding: gzip\r\ntransfer-encoding: chunked\r\n\r\n"
    yield chunk(compressor.compress(b"") + compressor.flush(zlib.Z_SYNC_FLUSH))
    yield from itertools.repeat(chunk(b"\x00\x00\x00\xff\xff" * 10_000))


def answer_in_members() -> Answer:
    """Return an answer as gzip, in a hundred thousand members that hold nothing and some that hold it."""
    answer = partial_success(0, "in pieces")
    members = [gzip.compress(answer.body[at : at + 1]) for at in range(len(answer.body))]
    body = gzip.compress(b"") * 100_000 + b"".join(members)
    return attrs.evolve(answer, headers=[*answer.headers, ("content-encoding", "gzip")], body=body)


def many_cookies() -> Answer:
    # As many as fit into the 100 KiB that h11 allows for a head.
    return Answer(headers=[("Set-Cookie", f"cookie{n}=value") for n in range(3000)])


def slowly(head: bytes, byte: bytes) -> Drip:
    return Drip(itertools.chain([head], itertools.repeat(byte)), 1.0)


def message_of_four_megabytes(status: int) -> Answer:
    # With one character from beyond the basic plane, Python needs four bytes for each of the others too.
    answer = partial_success(1, "\U0001f480" + "x" * (4 * 1024 * 1024 - 100))
    assert len(answer.body) <= 4 * 1024 * 1024
    return attrs.evolve(answer, status=status)


def million_lists() -> Answer:
    body = b'{"partialSuccess":[' + b"[],{}," * 500_000 + b"[]]}"
    return Answer(headers=[("content-type", "application/json")], body=body)


# Servers that end by themselves, on TCP and a real clock, with any timeout.
FAST: dict[str, Callable[[], Outcome]] = {
    "a gzip bomb": lambda: gzip_bomb(200),
    "a gzip bomb in an error": lambda: gzip_bomb(400),
    "an endless body": lambda: Drip(endless(HEAD + b"\r\n", bytes(PIECE))),
    "an endless chunked body": lambda: Drip(endless(CHUNKED, chunk(bytes(PIECE)))),
    "an endless body in tiny chunks": lambda: Drip(endless(CHUNKED, chunk(bytes(64)) * 500)),
    "an endless gzip stream of nothing": lambda: Drip(endless_gzip()),
    "an endless body in an error": lambda: Drip(endless(b"HTTP/1.1 500 No\r\n\r\n", bytes(PIECE))),
    "a body that claims a petabyte": lambda: Drip([HEAD + b"content-length: %d\r\n\r\n" % 10**15, bytes(PIECE)]),
    "endless headers": lambda: Drip(endless(b"HTTP/1.1 200 OK\r\n", b"x-more: and more\r\n" * 1000)),
    "one endless header": lambda: Drip(endless(b"HTTP/1.1 200 OK\r\nx-more: ", b"x" * PIECE)),
    "an endless chunk extension": lambda: Drip(endless(CHUNKED + b"5;", b"x" * PIECE)),
    "endless trailers": lambda: Drip(endless(CHUNKED + b"0\r\n", b"x-more: and more\r\n" * 1000)),
    "a status line of a megabyte": lambda: Drip([b"HTTP/1.1 200 " + b"O" * 1024 * 1024 + b"\r\n\r\n"]),
    "thousands of Set-Cookie": many_cookies,
    "a message of four megabytes": lambda: message_of_four_megabytes(200),
    "an error message of four megabytes": lambda: message_of_four_megabytes(500),
    "a million lists in JSON": million_lists,
    "a hundred thousand gzip members": answer_in_members,
    "a response and another": lambda: Drip([HEAD + b"content-length: 0\r\n\r\n" + NOT_ASKED_FOR]),
    "a switch to another protocol": lambda: Drip([SWITCHING, bytes(PIECE)]),
    "HTTP/1.0": lambda: Drip([b"HTTP/1.0 200 OK\r\n\r\nOK"]),
    "a response that breaks": lambda: Reset("mid_response"),
}

# Servers that neither pause nor exceed a limit before the timeout, on TCP.
RESTLESS: dict[str, Callable[[], Outcome]] = {
    "an endless body in chunks of one byte": lambda: Drip(ticking(CHUNKED, chunk(b"x") * 10_000)),
    "interim responses as fast as they can be sent": lambda: Drip(
        ticking(b"", b"HTTP/1.1 102 Processing\r\n\r\n" * 2000)
    ),
    "a head of interim responses with headers": lambda: Drip(
        ticking(b"", (b"HTTP/1.1 103 Early Hints\r\n" + b"link: </x>\r\n" * 500 + b"\r\n") * 10)
    ),
}

# Servers that end with the timeout, over memory and on TCP.
SLOW: dict[str, Callable[[], Outcome]] = {
    "a body of one byte a second": lambda: slowly(HEAD + b"content-length: 1000000\r\n\r\n", b"x"),
    "an error of one byte a second": lambda: slowly(b"HTTP/1.1 503 No\r\ncontent-length: 1000000\r\n\r\n", b"x"),
    "a head of one byte a second": lambda: slowly(b"HTTP/1.1 200 ", b"x"),
    "interim responses forever": lambda: Drip(itertools.repeat(b"HTTP/1.1 102 Processing\r\n\r\n"), 1.0),
    "no answer at all": Hang,
}


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def peak_bytes() -> int:
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def work_done() -> float:
    """Return the processor's seconds of this process."""
    return time.process_time()


def measure_of_work() -> float:
    """Return the CPU seconds of a loop, as the unit for other measurements on any machine."""
    began = work_done()
    assert sum(number & 1 for number in range(1_000_000)) == 500_000
    return work_done() - began


async def export(exporter: OTLPExporter, receiver: OTLPReceiver, number: int, clock: MockClock | None) -> ExportResult:
    """Export to the receiver, as its request ``number``. A mock clock stands still until the request is there."""

    async def let_time_pass() -> None:
        await receiver.wait_for_requests(number)
        assert clock is not None
        clock.autojump_threshold = IDLE

    async with trio.open_nursery() as nursery:
        if clock is not None and clock.autojump_threshold > 0:
            clock.autojump_threshold = math.inf
            nursery.start_soon(let_time_pass)
        result = await exporter.export(batch_of())
        nursery.cancel_scope.cancel()
    return result


async def attack(outcomes: list[Outcome], *, tcp: bool, clock: MockClock | None) -> dict[str, object]:
    async with OTLPReceiver(answers=[None, *outcomes], listen=tcp, keep=False) as receiver:
        transport = None if tcp else receiver.memory_transport()
        exporter = OTLPExporter(receiver.url, transport=transport, timeout=DEADLINE if clock is None else TIMEOUT)
        await export(exporter, receiver, 1, clock)
        gc.collect()
        before = resident_bytes()
        results, seconds, work = [], [], []
        for number, _ in enumerate(outcomes, 2):
            began, worked = trio.current_time(), work_done()
            results.append(await export(exporter, receiver, number, clock))
            seconds.append(trio.current_time() - began)
            work.append(work_done() - worked)
        grown = peak_bytes() - before
        await exporter.aclose()
        del exporter
        gc.collect()
        if clock is None:
            await no_connections_left(receiver)
        else:
            # A server that drips notices with its next bytes that its client is gone.
            with trio.move_on_after(TIMEOUT):
                while receiver.open_connections:  # noqa: ASYNC110  # the receiver has no event for it
                    await trio.sleep(1)
        left = receiver.open_connections
    return {
        "results": [type(result).__name__ for result in results],
        "reasons": [getattr(result, "reason", "") or getattr(result, "message", "") for result in results],
        "seconds": 0.0 if clock is None else max(seconds),
        "work": max(work) / measure_of_work(),
        "grown": grown,
        "open_connections": left,
    }


def main(name: str, network: str) -> None:
    # Generators and sockets that are left open cause warnings in places where an error would only be printed.
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        tcp = network == "tcp"
        outcomes = [(FAST | SLOW | RESTLESS)[name]() for _ in range(3)]
        clock = None if name in FAST else MockClock(autojump_threshold=IDLE if tcp else 0)
        report = trio.run(functools.partial(attack, outcomes, tcp=tcp, clock=clock), clock=clock)
        gc.collect()
    json.dump({**report, "warnings": [str(warning.message) for warning in caught]}, sys.stdout)


if __name__ == "__main__":
    main(*sys.argv[1:])
