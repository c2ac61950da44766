"""The receiver: a minimal OTLP/HTTP server in a separate process.

It keeps the bodies of requests and answers 200 without a body. The bodies are decoded only when the ids are requested,
after the clocks were stopped. It has one thread per connection, as blocking calls take the least time.

`POST` any path: a request, kept. Requests with the header ``x-location: hanging`` are never answered. Requests
with ``x-location: together-64`` are answered once 64 of them wait, each on a separate connection.
`GET /ids`: the ids of all spans kept, 8 bytes each.
`GET /requests`: how many requests were kept, as decimal text.
`GET /connections`: how many connections are open, without the one of this request.
`DELETE`: forget everything.
"""

from __future__ import annotations

import gzip
import http.client
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import attrs

from bench.ids import ids_of_request
from bench.limits import allow_many_files

__all__ = ["TOGETHER", "Receiver", "running_receiver"]

# The location whose requests wait for each other, followed by their number.
TOGETHER = "together-"

# Seconds to wait for an answer at most; only a slow machine needs more than a few.
_TIMEOUT = 120.0
_ANSWER = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n"


class _Server:
    """Keeps bodies, and whether each is compressed."""

    def __init__(self) -> None:
        self._kept: list[tuple[bytes, bool]] = []
        self._connections = 0
        self._barriers: dict[int, threading.Barrier] = {}
        self._lock = threading.Lock()

    def serve(self, listener: socket.socket) -> None:
        while True:
            connection, _ = listener.accept()
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            threading.Thread(target=self._serve_connection, args=(connection,), daemon=True).start()

    def _serve_connection(self, connection: socket.socket) -> None:
        with self._lock:
            self._connections += 1
        try:
            self._serve_requests(connection)
        finally:
            with self._lock:
                self._connections -= 1

    def _serve_requests(self, connection: socket.socket) -> None:
        with connection, connection.makefile("rb", buffering=256 * 1024) as stream:
            while request_line := stream.readline():
                headers = dict(_headers(stream))
                body = stream.read(int(headers.get(b"content-length", 0)))
                location = headers.get(b"x-location", b"")
                if location == b"hanging":
                    continue
                if location.startswith(TOGETHER.encode()):
                    self._wait_together(int(location.removeprefix(TOGETHER.encode())))
                answer = self._answer(request_line.split()[0], request_line.split()[1], headers, body)
                connection.sendall(_ANSWER % len(answer) + answer)

    def _wait_together(self, count: int) -> None:
        with self._lock:
            barrier = self._barriers.setdefault(count, threading.Barrier(count))
        barrier.wait(_TIMEOUT)

    def _answer(self, method: bytes, path: bytes, headers: dict[bytes, bytes], body: bytes) -> bytes:
        if method == b"POST":
            self._kept.append((body, headers.get(b"content-encoding") == b"gzip"))
        elif method == b"DELETE":
            self._kept.clear()
        elif path == b"/requests":
            return b"%d" % len(self._kept)
        elif path == b"/connections":
            return b"%d" % (self._connections - 1)
        else:
            ids = [span_id for kept in self._kept for span_id in ids_of_request(_uncompressed(*kept))]
            return struct.pack(f">{len(ids)}Q", *ids)
        return b""


def _headers(stream: Iterator[bytes]) -> Iterator[tuple[bytes, bytes]]:
    for line in stream:
        name, _, value = line.partition(b":")
        if not value:
            return
        yield name.lower(), value.strip()


def _uncompressed(body: bytes, is_gzip: bool) -> bytes:
    return gzip.decompress(body) if is_gzip else body


@attrs.frozen
class Receiver:
    """The receiver's process, seen from outside.

    Attributes:
        port: Where it listens, on 127.0.0.1.
    """

    port: int

    @property
    def url(self) -> str:
        """The URL for spans."""
        return f"http://127.0.0.1:{self.port}/v1/traces"

    def forget(self) -> None:
        """Forget what was received so far."""
        self._ask("DELETE", "/")

    def ids(self) -> tuple[int, ...]:
        """Return the ids of the spans received since."""
        answer = self._ask("GET", "/ids")
        return struct.unpack(f">{len(answer) // 8}Q", answer)

    def requests(self) -> int:
        """Return the number of requests received since."""
        return int(self._ask("GET", "/requests"))

    def connections(self) -> int:
        """Return the number of open connections, without the one of this request."""
        return int(self._ask("GET", "/connections"))

    def _ask(self, method: str, path: str) -> bytes:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=_TIMEOUT)
        try:
            connection.request(method, path)
            return connection.getresponse().read()
        finally:
            connection.close()


@contextmanager
def running_receiver() -> Iterator[Receiver]:
    """Run a receiver in a child process, on a free port."""
    with subprocess.Popen([sys.executable, "-m", "bench.receiver"], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield Receiver(int(process.stdout.readline()))
        finally:
            process.kill()


def _main() -> None:
    allow_many_files()
    # The backlog fits 1,000 connections begun at once: a connection that does not fit would wait for a second.
    with socket.create_server(("127.0.0.1", 0), backlog=1_024) as listener:
        print(listener.getsockname()[1], flush=True)
        _Server().serve(listener)


if __name__ == "__main__":
    _main()
