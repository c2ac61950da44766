"""The soak's server process: a real TCP receiver with random faults of all kinds.

Its answers are true: spans of a request answered with 2xx are stored, except those that it reports as left out, and
spans that it refuses are not. If it breaks an exchange or never ends it, it may have stored the spans or not. Now and
then its listener is closed for a while, with or without its connections, and connections are refused.

The server ends when its standard input does, that is, when the soak ends in any way.
"""

from __future__ import annotations

import itertools
import os
import random
import socket
import sys
from collections.abc import Callable, Iterator

import attrs
import trio
from opentelemetry.proto.trace.v1.trace_pb2 import Span as SpanMessage

from tests.soak.support import (
    DROP,
    LOCATION_HEADER,
    MAX_REQUEST_BYTES,
    POISON,
    UNWANTED,
    fault_line,
    port_line,
    stored_line,
)
from trio_spanbatch.testing import Answer, Drip, Hang, OTLPReceiver, Outcome, ReceivedRequest, Reset, partial_success

# The probability of a fault that does not depend on the content of a request; `Faults.kinds` has the kinds.
FAULTY = 0.15
RESETS_BEFORE_BODY = 0.05  # of connections

# Seconds.
UP = (8.0, 30.0)
DOWN = (0.2, 3.0)
USUAL_DELAY = 0.02


def say(line: str) -> None:
    # Unbuffered and by one system call, so that the report precedes the answer to the request.
    os.write(sys.stdout.fileno(), line.encode())


@attrs.frozen
class Faults:
    """Decides the outcome of requests."""

    rng: random.Random

    def outcome(self, request: ReceivedRequest) -> Outcome | None:
        """Return the outcome of ``request``, and report spans that are stored without a regular answer."""
        if request.message is None:
            return None
        if self.rng.random() < FAULTY:
            kind, make = self.rng.choice(self.kinds())
            say(fault_line(kind))
            return make(request)
        return self._honest(request)

    def kinds(self) -> list[tuple[str, Callable[[ReceivedRequest], Outcome]]]:
        rng = self.rng
        later = [("Retry-After", str(rng.choice([0, 1, 1, 2])))]
        return [
            ("429", lambda _: Answer(429, headers=later)),
            ("503", lambda _: Answer(503, headers=later if rng.random() < 0.5 else ())),
            ("502", lambda _: Answer(502)),
            ("500", lambda _: Answer(500)),
            ("reset-after-body", lambda request: Reset(store=self._may_store(request))),
            ("reset-mid-response", lambda request: Reset("mid_response", store=self._may_store(request))),
            ("hang", lambda request: Hang(store=self._may_store(request))),
            ("drip-for-ever", lambda request: Drip(_endless_head(), 0.1, store=self._may_store(request))),
            ("drip-slow-answer", self._slow_answer),
            ("no-http", lambda request: Drip([b"220 mail.example\r\n"], store=self._may_store(request))),
            ("slow", lambda request: attrs.evolve(self._honest(request), delay=rng.uniform(0.5, 1.5))),
        ]

    def stored(self, request: ReceivedRequest, status: int | None) -> None:
        """Report the stored spans of a request that is answered with ``status``."""
        if status is not None and 200 <= status < 300:
            say(stored_line(request.location, _ids(_wanted(request))))

    def _honest(self, request: ReceivedRequest) -> Answer:
        spans = request.spans
        if len(request.content) > MAX_REQUEST_BYTES:
            say(fault_line("413"))
            return Answer(413)
        if any(span.name == POISON for span in spans):
            status = self.rng.choice([400, 422])
            say(fault_line(f"{status}-poison"))
            return Answer(status)
        left_out = len(spans) - len(_wanted(request))
        answer = Answer()
        if left_out:
            say(fault_line("partial-success"))
            answer = partial_success(left_out, "unwanted")
        elif self.rng.random() < 0.02:
            say(fault_line("warning"))
            answer = partial_success(0, "you should know")
        return attrs.evolve(answer, delay=self.rng.expovariate(1 / USUAL_DELAY))

    def _may_store(self, request: ReceivedRequest) -> bool:
        stores = self._is_fine(request) and self.rng.random() < 0.5
        if stores:
            say(stored_line(request.location, _ids(_wanted(request))))
        return stores

    def _slow_answer(self, request: ReceivedRequest) -> Outcome:
        if not self._is_fine(request) or len(_wanted(request)) < len(request.spans):
            return self._honest(request)
        say(stored_line(request.location, _ids(request.spans)))
        head = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
        return Drip([head[i : i + 8] for i in range(0, len(head), 8)], 0.05, store=True)

    def _is_fine(self, request: ReceivedRequest) -> bool:
        return len(request.content) <= MAX_REQUEST_BYTES and all(span.name != POISON for span in request.spans)


def _wanted(request: ReceivedRequest) -> list[SpanMessage]:
    return [span for span in request.spans if span.name != UNWANTED]


def _ids(spans: list[SpanMessage]) -> list[int]:
    return [int.from_bytes(span.span_id, "big") for span in spans]


def _endless_head() -> Iterator[bytes]:
    return itertools.chain([b"HTTP/1.1 200 OK\r\n"], (b"X-%d: x\r\n" % number for number in itertools.count()))


async def serve(seed: int) -> None:
    """Serve until the standard input ends."""
    rng = random.Random(seed)
    faults = Faults(rng)
    # Two receivers: one that reads the request's content, and one that must not.
    honest = OTLPReceiver(
        location_header=LOCATION_HEADER, answers=faults.outcome, on_request=faults.stored, keep=False, listen=False
    )
    rude = OTLPReceiver(
        answers=itertools.repeat(Reset("before_body")),
        on_request=lambda _request, _status: say(fault_line("reset-before-body")),
        keep=False,
        listen=False,
    )

    async def handle(stream: trio.SocketStream) -> None:
        await (rude if rng.random() < RESETS_BEFORE_BODY else honest).serve_stream(stream)

    async with honest, rude, trio.open_nursery() as nursery:
        nursery.start_soon(_obey, honest, nursery.cancel_scope)
        # Bound but never listening: it keeps the port from other programs while the listener is closed.
        with socket.socket() as port_holder:
            port_holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            port_holder.bind(("127.0.0.1", 0))
            port = port_holder.getsockname()[1]
            for number in itertools.count():
                listeners = await trio.open_tcp_listeners(port, host="127.0.0.1")
                if not number:
                    say(port_line(port))
                with trio.move_on_after(rng.uniform(*UP)):
                    await trio.serve_listeners(handle, listeners, handler_nursery=nursery)
                say(fault_line("listener-away"))
                if rng.random() < 0.7:
                    say(fault_line("connections-dropped"))
                    honest.drop_connections()
                await trio.sleep(rng.uniform(*DOWN))


async def _obey(receiver: OTLPReceiver, scope: trio.CancelScope) -> None:
    """Break all connections for each line on the standard input, and end the server with it."""
    async with trio.lowlevel.FdStream(os.dup(sys.stdin.fileno())) as stdin:
        while await stdin.receive_some(len(DROP)):
            receiver.drop_connections()
    scope.cancel()


if __name__ == "__main__":
    trio.run(serve, int(sys.argv[1]))
