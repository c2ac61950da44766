"""No server can hang the exporter, exhaust its memory or leave anything behind: measured in separate processes."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support import hostile_servers
from tests.support.exporters import batch_of, no_connections_left
from tests.support.processes import run_to_end, untraced_environment
from trio_spanbatch import Delivered, OTLPExporter, Refused
from trio_spanbatch.testing import Answer, OTLPReceiver

MIB = 1024 * 1024


# In loops of a million steps: several times the time of the worst server, and far below that of a quadratic algorithm.
MOST_WORK = 300

# The result of each exchange, and a part of the reason.
EXPECTED = {
    "a gzip bomb": ("Refused", "200: the response is larger than 4194304 bytes"),
    "a gzip bomb in an error": ("Refused", "400: the response is larger"),
    "an endless body": ("Refused", "200: the response is larger"),
    "an endless chunked body": ("Refused", "200: the response is larger"),
    "an endless body in tiny chunks": ("Refused", "200: the response is larger"),
    "an endless gzip stream of nothing": ("Refused", "200: the response is larger"),
    "an endless body in an error": ("Refused", "500: the response is larger"),
    "a body that claims a petabyte": ("TryLater", "peer closed connection without sending complete message body"),
    "endless headers": ("TryLater", "Receive buffer too long"),
    "one endless header": ("TryLater", "Receive buffer too long"),
    "an endless chunk extension": ("TryLater", "Receive buffer too long"),
    "endless trailers": ("TryLater", "Receive buffer too long"),
    "a status line of a megabyte": ("TryLater", "Receive buffer too long"),
    "thousands of Set-Cookie": ("Delivered", ""),
    "a message of four megabytes": ("Delivered", "a message of 41942"),
    "an error message of four megabytes": ("Refused", "500 Internal Server Error"),
    "a million lists in JSON": ("Delivered", "it is too long"),
    "a body of one byte a second": ("TryLater", "no complete answer"),
    "an error of one byte a second": ("TryLater", "503 Service Unavailable"),
    "a head of one byte a second": ("TryLater", "no complete answer"),
    "interim responses forever": ("TryLater", "no complete answer"),
    "no answer at all": ("TryLater", "no complete answer"),
    "an endless body in chunks of one byte": ("TryLater", "no complete answer"),
    "a hundred thousand gzip members": ("Delivered", "in pieces"),
    "a response and another": ("Delivered", ""),
    "a switch to another protocol": ("TryLater", "the exchange with"),
    "HTTP/1.0": ("Delivered", ""),
    "a response that breaks": ("TryLater", "the exchange with"),
    "interim responses as fast as they can be sent": ("TryLater", "no complete answer"),
    "a head of interim responses with headers": ("TryLater", "no complete answer"),
}

# One of each kind: at a limit, with a broken exchange, and with the timeout.
SHORT = ["endless headers", "a response that breaks", "no answer at all"]

NETWORKS = [
    *(
        pytest.param(server, "tcp", marks=() if server in SHORT else pytest.mark.long)
        for server in hostile_servers.FAST | hostile_servers.SLOW | hostile_servers.RESTLESS
    ),
    *((server, "memory") for server in hostile_servers.SLOW),
]


def run_in_a_process_of_its_own(server: str, network: str) -> Any:
    # Without coverage, which takes a third of the time, and memory.
    environ = {name: value for name, value in untraced_environment().items() if not name.lower().endswith("_proxy")}
    command = [sys.executable, "-m", "tests.support.hostile_servers", server, network]
    done = run_to_end(command, environ=environ)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return json.loads(done.stdout)


@pytest.mark.skipif(
    not Path("/proc/self/statm").exists(), reason="memory is measured with Linux's /proc; nowhere else is it as exact"
)
@pytest.mark.parametrize(("server", "network"), NETWORKS)
def test_a_hostile_server_ends_with_a_reason_within_the_timeout_and_leaves_nothing_behind(
    server: str, network: str
) -> None:
    report = run_in_a_process_of_its_own(server, network)
    result, reason = EXPECTED[server]
    assert report["results"] == [result] * 3
    assert all(reason in said for said in report["reasons"])
    assert all(len(said) < 300 for said in report["reasons"])
    # On a mock clock, which servers advance by whole seconds.
    assert report["seconds"] <= hostile_servers.TIMEOUT + 1
    # No server causes more work than a few short loops.
    assert report["work"] <= MOST_WORK
    assert report["grown"] <= 32 * MIB
    assert report["open_connections"] == 0
    assert report["warnings"] == []


async def test_a_response_of_exactly_the_limit_is_read_and_one_more_byte_is_refused() -> None:
    answers = [Answer(body=bytes(4 * MIB)), Answer(body=bytes(4 * MIB + 1)), None]
    async with OTLPReceiver(answers=answers) as receiver:
        exporter = OTLPExporter(receiver.url)
        assert await exporter.export(batch_of()) == Delivered()
        result = await exporter.export(batch_of())
        assert isinstance(result, Refused)
        assert result.status_code == 200
        assert not result.isolate
        assert await exporter.export(batch_of()) == Delivered()
        await exporter.aclose()


async def test_the_limit_of_a_response_can_be_set() -> None:
    async with OTLPReceiver(answers=[Answer(body=bytes(101))]) as receiver:
        exporter = OTLPExporter(receiver.url, max_response_bytes=100)
        assert await exporter.export(batch_of()) == Refused("200: the response is larger than 100 bytes", 200)
        await exporter.aclose()
        await no_connections_left(receiver)
