"""Child processes on the real clock, with real signals, against a real server.

A program (`tests.processes.agent`) traces its work at four locations and gets a signal, or its server is killed or
stopped. Afterwards three independent sources must agree: the server's records from before it answered, the program's
knowledge of its spans, and the batcher's statistics. The oracle compares them span by span.

No test waits for time to pass: it continues when a program reports its progress, when the server has recorded a number
of spans, or when a process has ended. Time limits of programs are explained where they matter.
"""

from __future__ import annotations

import math
import signal
import sys
from collections import Counter
from collections.abc import AsyncIterator, Iterable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio

from tests.processes.agent import AgentSettings
from tests.processes.collector import LOCATION_HEADER, Collector, Record, read_records
from tests.processes.ended import end_of
from tests.support.paths import PROJECT
from tests.support.processes import Child, child, reserved_port, wait_until
from trio_spanbatch.testing import OTLPReceiver

pytestmark = pytest.mark.long

# The exit code of a process that SIGTERM has ended, as a shell reports it.
TERMINATED = 128 + signal.SIGTERM


# -- the program ---------------------------------------------------------------------------------------------------


@asynccontextmanager
async def agent(url: str, **settings: Any) -> AsyncIterator[Child]:
    """Run an agent until it is ready."""
    arguments = AgentSettings(url=url, **settings).to_json()
    async with child("-m", "tests.processes.agent", arguments) as started:
        await started.says("ready")
        yield started


# -- the server ----------------------------------------------------------------------------------------------------


@attrs.frozen
class Server:
    """A server in the test's process, with its collector's answers."""

    url: str
    collector: Collector
    records: list[Record]

    async def wait_for(self, stored: int) -> None:
        """Wait until that many more spans have been stored."""
        before = stored_in(self.records).total()
        await wait_until(lambda: stored_in(self.records).total() >= before + stored)


@asynccontextmanager
async def server(hanging: Iterable[str] = (), delay: float = 0.0) -> AsyncIterator[Server]:
    records: list[Record] = []
    collector = Collector(records.append)
    collector.hanging = frozenset(hanging)
    collector.delay = delay
    async with OTLPReceiver(location_header=LOCATION_HEADER, answers=collector.answer, keep=False) as receiver:
        yield Server(receiver.url, collector, records)


def server_process(port: int, file: Path, answers: int = sys.maxsize) -> AbstractAsyncContextManager[Child]:
    """Run a server in a child process, which can be killed and stopped and records accepted spans in ``file``.

    After this many ``answers`` it accepts and reports requests, but does not answer.
    """
    return child("-m", "tests.processes.server", port, file, answers)


def url_of(port: int) -> str:
    return f"http://127.0.0.1:{port}/v1/traces"


def stored_in(records: Iterable[Record]) -> Counter[int]:
    """Return how many times each span was stored."""
    return Counter(span_id for record in records for span_id in record.stored)


async def wait_for_stored(file: Path, count: int) -> None:
    """Wait until the server that writes ``file`` has stored ``count`` spans."""
    await wait_until(lambda: stored_in(read_records(file)).total() >= count)


# -- SIGINT --------------------------------------------------------------------------------------------------------


async def test_ctrl_c_in_a_busy_body_loses_nothing() -> None:
    async with server() as target, agent(target.url, left_out=11, poison=61) as program:
        await program.tell("keep adding")
        await target.wait_for(stored=500)
        program.send_signal(signal.SIGINT)
        ended = await end_of(program)
    facts = ended.check(target.records)
    assert (ended.exit_code, ended.error) == (-signal.SIGINT, "KeyboardInterrupt")
    assert not facts.undelivered
    assert not facts.doubtful
    assert facts.left_out
    assert facts.rejected


@pytest.mark.parametrize(
    "signals",
    [["in the drain"], ["in the drain", "again"], ["in the body", "in the drain"]],
    ids=["once", "twice", "in the body before"],
)
async def test_ctrl_c_in_the_drain_hands_back_the_spans_of_a_hanging_export(signals: list[str]) -> None:
    async with server(hanging=["c", "d"]) as target, agent(target.url, max_delay=math.inf) as program:
        await program.does("add 40")
        if "in the body" in signals:
            program.send_signal(signal.SIGINT)
        else:
            await program.tell("end")
        # Two locations are answered, the other two have an attempt that hangs.
        await program.has_said("sending", 4)
        await program.has_said("answered", 2)
        program.send_signal(signal.SIGINT)
        if "again" in signals:
            await program.says("undelivered")
            program.send_signal(signal.SIGINT)
        ended = await end_of(program)
    facts = ended.check(target.records)
    assert (ended.exit_code, ended.error) == (-signal.SIGINT, "KeyboardInterrupt")
    assert ended.reasons == {"Ctrl-C during the drain"}
    assert {facts.accepted[span_id] for span_id in facts.undelivered} == {"c", "d"}
    assert len(facts.undelivered) == len(facts.doubtful) == 20
    # The traceback that the user sees shows the loss.
    assert any("20 of 40 spans were handed back undelivered" in note for note in ended.report["notes"])


# -- SIGTERM, with exit_on_sigterm ----------------------------------------------------------------------------------


async def test_sigterm_in_a_busy_body_loses_nothing() -> None:
    async with server() as target, agent(target.url, left_out=11, poison=61) as program:
        await program.tell("keep adding")
        await target.wait_for(stored=500)
        program.send_signal(signal.SIGTERM)
        ended = await end_of(program)
    facts = ended.check(target.records)
    assert (ended.exit_code, ended.error) == (TERMINATED, "SystemExit")
    assert not facts.undelivered
    assert not facts.doubtful
    assert facts.left_out
    assert facts.rejected


async def test_sigterm_with_a_server_that_never_answers_ends_at_the_drains_deadline() -> None:
    async with server(hanging="abcd") as target, agent(target.url, shutdown_timeout=0.5) as program:
        await program.does("add 40")
        # Not says(): on a busy machine, exports begin before the program reports that it has added all spans.
        await program.has_said("sending", 1)
        program.send_signal(signal.SIGTERM)
        ended = await end_of(program)
    facts = ended.check(target.records)
    assert (ended.exit_code, ended.error) == (TERMINATED, "SystemExit")
    assert ended.reasons == {"the shutdown deadline passed"}
    assert facts.accepted.keys() == set(facts.undelivered)


async def test_sigterm_in_the_drain_lets_the_drain_go_on(tmp_path: Path) -> None:
    file = tmp_path / "stored"
    with reserved_port() as port:
        async with server_process(port, file) as target, agent(url_of(port), max_delay=math.inf) as program:
            await target.says("listening")
            await target.stop()
            await program.does("add 40")
            await program.tell("end")
            await program.says("sending")
            program.send_signal(signal.SIGTERM)
            target.go_on()
            ended = await end_of(program)
    facts = ended.check(read_records(file))
    assert (ended.exit_code, ended.error) == (TERMINATED, "SystemExit")
    assert not facts.undelivered
    assert not facts.doubtful


async def test_ctrl_c_after_a_sigterm_cuts_the_drain_short() -> None:
    async with server(hanging="abcd") as target, agent(target.url, max_delay=math.inf) as program:
        await program.does("add 40")
        program.send_signal(signal.SIGTERM)
        await program.says("sending")
        program.send_signal(signal.SIGINT)
        ended = await end_of(program)
    facts = ended.check(target.records)
    assert (ended.exit_code, ended.error) == (-signal.SIGINT, "KeyboardInterrupt")
    assert ended.reasons == {"Ctrl-C during the drain"}
    assert facts.accepted.keys() == set(facts.undelivered)


async def test_sigterm_during_a_call_in_a_thread_waits_for_it_and_accepts_the_spans_it_adds() -> None:
    async with server() as target, agent(target.url) as program:
        await program.does("add 40")
        await program.tell("work in a thread kept")
        await program.says("in the thread")
        program.send_signal(signal.SIGTERM)
        await program.says("cancelled")
        # The thread still works; its spans are added although the program is cancelled.
        await program.tell("go on")
        ended = await end_of(program)
    facts = ended.check(target.records)
    assert (ended.exit_code, ended.error) == (TERMINATED, "SystemExit")
    assert len(facts.accepted) == 44
    assert not facts.undelivered


async def test_sigterm_during_a_call_in_a_thread_that_may_be_abandoned_does_not_wait_for_it() -> None:
    async with server() as target, agent(target.url, max_delay=math.inf) as program:
        await program.does("add 40")
        await program.tell("work in a thread abandoned")
        await program.says("in the thread")
        program.send_signal(signal.SIGTERM)
        ended = await end_of(program)
    facts = ended.check(target.records)
    assert (ended.exit_code, ended.error) == (TERMINATED, "SystemExit")
    assert len(facts.accepted) == 40
    assert not facts.undelivered


def service(url: str) -> AbstractAsyncContextManager[Child]:
    """The documentation's example, unchanged."""
    environ = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": url.removesuffix("/v1/traces"),
        "OTEL_EXPORTER_OTLP_HEADERS": f"{LOCATION_HEADER}=orders",
        "OTEL_BSP_SCHEDULE_DELAY": "20",
    }
    return child(PROJECT / "docs" / "examples" / "signals" / "sigterm.py", environ=environ)


async def test_the_documented_service_ends_with_143_and_everything_delivered() -> None:
    async with server() as target, service(target.url) as program:
        await target.wait_for(stored=5)
        program.send_signal(signal.SIGTERM)
        assert await program.wait() == TERMINATED
        assert program.errors == ""
    assert stored_in(target.records) == Counter(range(1, stored_in(target.records).total() + 1))


# -- servers that are killed and stopped ---------------------------------------------------------------------------


async def test_everything_is_delivered_although_servers_are_killed(tmp_path: Path) -> None:
    file = tmp_path / "stored"
    with reserved_port() as port:
        async with agent(url_of(port), left_out=11, poison=61) as program:
            await program.tell("keep adding")
            for _ in range(3):
                async with server_process(port, file, answers=10) as target:
                    # It is killed between accepting a request and answering it.
                    await target.says("accepted without an answer")
                    await target.kill()
                await program.does("mark")
                await program.says("failed")
            async with server_process(port, file):
                await program.does("flush")
                await program.tell("end")
                ended = await end_of(program)
    facts = ended.check(read_records(file))
    assert (ended.exit_code, ended.error) == (0, None)
    assert not facts.undelivered
    assert facts.left_out
    assert facts.rejected
    assert facts.doubtful
    assert max(stored_in(read_records(file)).values()) > 1


async def test_a_server_that_is_killed_in_the_drain_and_comes_back_gets_everything(tmp_path: Path) -> None:
    file = tmp_path / "stored"
    with reserved_port() as port:
        async with agent(url_of(port), max_delay=math.inf) as program:
            async with server_process(port, file) as target:
                await target.says("listening")
                await target.stop()
                await program.does("add 40")
                await program.tell("end")
                await program.says("sending")
                await target.kill()
            await program.says("failed")
            async with server_process(port, file):
                ended = await end_of(program)
    facts = ended.check(read_records(file))
    assert (ended.exit_code, ended.error) == (0, None)
    assert not facts.undelivered


async def test_spans_that_a_stopped_server_accepts_later_are_stored_twice_and_counted_as_ambiguous(
    tmp_path: Path,
) -> None:
    file = tmp_path / "stored"
    with reserved_port() as port:
        # An attempt may take two seconds, and does so while the server is stopped.
        async with server_process(port, file) as target, agent(url_of(port), timeout=2.0, left_out=11) as program:
            await program.tell("keep adding")
            await wait_for_stored(file, 200)
            await target.stop()
            await program.does("mark")
            for _ in range(4):
                await program.says("doubtful")
            target.go_on()
            # Its sockets contain requests that their sender has given up.
            await wait_until(lambda: max(stored_in(read_records(file)).values()) > 1)
            await program.does("flush")
            await program.tell("end")
            ended = await end_of(program)
    facts = ended.check(read_records(file))
    assert (ended.exit_code, ended.error) == (0, None)
    assert not facts.undelivered
    assert facts.doubtful
    assert facts.left_out


async def test_a_server_that_stays_stopped_does_not_delay_the_end_beyond_the_drains_deadline(tmp_path: Path) -> None:
    file = tmp_path / "stored"
    with reserved_port() as port:
        async with server_process(port, file) as target, agent(url_of(port), shutdown_timeout=1.0) as program:
            await target.says("listening")
            await program.does("add 40")
            await program.does("flush")
            await target.stop()
            sent = program.said.count("sending")
            await program.does("add 40")
            await program.has_said("sending", sent + 4)
            await program.tell("end")
            ended = await end_of(program)
            facts = ended.check(read_records(file))
            # Long after the program has ended, the server reads the requests in its sockets.
            target.go_on()
            await wait_for_stored(file, 41)
    late = ended.check(read_records(file))
    assert (ended.exit_code, ended.error) == (0, None)
    assert ended.reasons == {"the shutdown deadline passed"}
    assert len(facts.undelivered) == len(facts.stored) == 40
    assert len(late.stored) > 40


# -- a program that is stopped -------------------------------------------------------------------------------------


async def test_a_program_that_is_stopped_for_longer_than_an_attempt_may_take_loses_nothing() -> None:
    attempt = 1.0
    async with server(delay=0.02) as target, agent(target.url, timeout=attempt, left_out=11, poison=61) as program:
        await program.tell("keep adding")
        for _ in range(3):
            await target.wait_for(stored=100)
            await program.stop()
            # This tests time itself: the running attempts must exceed their limit.
            await trio.sleep(attempt + 0.1)
            program.go_on()
        await program.does("flush")
        await program.tell("end")
        ended = await end_of(program)
    facts = ended.check(target.records)
    assert (ended.exit_code, ended.error) == (0, None)
    assert not facts.undelivered
    assert facts.left_out
    assert facts.rejected
