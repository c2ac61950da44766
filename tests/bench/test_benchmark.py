"""The benchmark's machinery: whether it notices a lost span, and how it runs its sides. Nothing is measured here.

Processes of the benchmark start in the repository's root, or in a folder with a copy of the benchmark whose only case
is `tests.bench.bench_case`.
"""

from __future__ import annotations

import gzip
import os
import re
import runpy
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from itertools import count
from pathlib import Path

import attrs
import pytest
import trio

from bench.cases import CASES, load_case
from bench.harness import Case, Setup, in_turns
from bench.ids import SpansLost, check_ids, ids_of_batch, ids_of_request
from bench.receiver import Receiver, running_receiver
from bench.spans import SPANS, agent_spans
from tests.bench.bench_case import CASE, CRASHED, ROUNDS
from tests.support.paths import PROJECT, TESTS
from tests.support.processes import DEADLINE, run_to_end, untraced_environment
from trio_spanbatch import (
    ExportResult,
    InstrumentationScope,
    OTLPExporter,
    Refused,
    Resource,
    Span,
    SpanBatch,
    SpanContext,
    SpanLike,
    TryLater,
)
from trio_spanbatch._spans.encoder import SpanEncoder

pytestmark = pytest.mark.long

ROOT = PROJECT
GZIP = "content-encoding: gzip"
HANGING = "x-location: hanging"
ALL_CASES = "the page shows all cases, measured in full"

kinds = pytest.mark.parametrize("kind", SPANS)


@pytest.fixture(scope="module")
def running() -> Iterator[Receiver]:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        with running_receiver() as receiver:
            yield receiver


@pytest.fixture
def receiver(running: Receiver) -> Receiver:
    """A receiver that has received nothing."""
    running.forget()
    return running


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with a copy of the benchmark; the processes of sides find the tests' case in it."""
    shutil.copytree(ROOT / "bench", tmp_path / "bench", ignore=shutil.ignore_patterns("__pycache__", "data"))
    shutil.copy(TESTS / "bench" / "bench_case.py", tmp_path / "bench" / "cases")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def batch_of(spans: Sequence[SpanLike]) -> SpanBatch:
    encoder = SpanEncoder()
    return SpanBatch("default", [encoder.encode(span) for span in spans], size=0)


def request_of(spans: Sequence[SpanLike]) -> bytes:
    return batch_of(spans).to_request()


def post(body: bytes, *headers: str) -> bytes:
    lines = ["POST /v1/traces HTTP/1.1", "Host: receiver", f"Content-Length: {len(body)}", *headers, "", ""]
    return "\r\n".join(lines).encode() + body


def answers_to(receiver: Receiver, *requests: bytes) -> bytes:
    """Send requests on one connection, end it, and return all that comes back."""
    with socket.create_connection(("127.0.0.1", receiver.port), timeout=DEADLINE) as connection:
        connection.sendall(b"".join(requests))
        connection.shutdown(socket.SHUT_WR)
        with connection.makefile("rb") as stream:
            return stream.read()


# Ids


@pytest.mark.parametrize("received", [[1, 2, 3, 4, 5], [4, 1, 5, 3, 2], (5, 4, 3, 2, 1)])
def test_exactly_the_ids_from_1_pass_in_any_order(received: Sequence[int]) -> None:
    check_ids(received, 5)
    check_ids(iter(received), 5)


@pytest.mark.parametrize(
    ("received", "lost", "repeated", "invented"),
    [
        pytest.param([1, 2, 3, 5], 1, 0, 0, id="one is missing"),
        pytest.param([1, 2, 3, 4], 1, 0, 0, id="the last is missing"),
        pytest.param([], 5, 0, 0, id="all are missing"),
        pytest.param([1, 2, 3, 4, 4, 5], 0, 1, 0, id="one came twice"),
        pytest.param([1, 1, 1, 2, 3, 4, 5, 5], 0, 2, 0, id="two were repeated"),
        pytest.param([1, 2, 3, 4, 5, 6], 0, 0, 1, id="one is too high"),
        pytest.param([0, 1, 2, 3, 4, 5], 0, 0, 1, id="one is 0"),
        pytest.param([1, 2, 2, 9, 4], 2, 1, 1, id="the right number, but other ids"),
    ],
)
def test_ids_that_are_missing_repeated_or_never_sent_are_counted(
    received: list[int], lost: int, repeated: int, invented: int
) -> None:
    said = f"of 5 spans, {lost} did not arrive; {repeated} arrived more than once, and {invented} were never sent"
    with pytest.raises(SpansLost, match=f"^{re.escape(said)}$"):
        check_ids(received, 5)


@kinds
def test_the_ids_read_from_a_batch_are_those_of_its_request(kind: str) -> None:
    batch = batch_of(SPANS[kind](30))
    assert ids_of_batch(batch) == ids_of_request(batch.to_request()) == list(range(1, 31))


def test_the_ids_read_from_a_batch_equal_those_of_its_request_for_any_spans() -> None:
    ids = [1, 2**64 - 1, 0x0102030405060708]
    spans = [
        Span(
            "x" * span_id.bit_count() * 100,
            SpanContext(2**128 - 1, span_id, trace_flags=1, trace_state="vendor=1"),
            parent=SpanContext(2**128 - 1, 77),
            resource=Resource({"service.name": "a"}),
            instrumentation_scope=InstrumentationScope("b"),
            start_time=1,
            end_time=2,
        )
        for span_id in ids
    ]
    batch = batch_of(spans)
    assert ids_of_batch(batch) == ids_of_request(batch.to_request()) == ids


# Spans


@kinds
def test_the_ids_of_spans_count_from_1(kind: str) -> None:
    assert [span.context.span_id for span in SPANS[kind](25)] == list(range(1, 26))
    assert [span.context.span_id for span in SPANS[kind](2)] == [1, 2], "in each call anew"


@pytest.mark.parametrize(
    ("kind", "attributes", "events"),
    [("11 attributes and an event", 11, 1), ("3 attributes", 3, 0), ("a 10 KB prompt", 12, 1)],
)
def test_spans_have_the_attributes_and_events_that_they_are_named_after(
    kind: str, attributes: int, events: int
) -> None:
    for span in SPANS[kind](5):
        assert span.attributes is not None
        assert (len(span.attributes), len(span.events)) == (attributes, events)


def test_prompts_differ_and_have_10_000_characters_and_more_bytes() -> None:
    prompts = [str((span.attributes or {})["gen_ai.input.messages"]) for span in SPANS["a 10 KB prompt"](5)]
    assert len(set(prompts)) == 5
    # A number of eight digits follows.
    assert {len(prompt) for prompt in prompts} == {10_008}
    assert len({prompt[:10_000] for prompt in prompts}) == 1
    assert all(len(prompt.encode()) > len(prompt) for prompt in prompts)


# The receiver


def test_the_receiver_gives_back_the_ids_of_plain_and_compressed_requests(receiver: Receiver) -> None:
    spans = agent_spans(7)
    answers = answers_to(receiver, post(request_of(spans[:3])), post(gzip.compress(request_of(spans[3:])), GZIP))
    assert answers == b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n" * 2
    assert receiver.ids() == (1, 2, 3, 4, 5, 6, 7)
    check_ids(receiver.ids(), 7)


def test_the_receiver_counts_requests_not_spans_or_queries(receiver: Receiver) -> None:
    assert receiver.requests() == 0
    body = request_of(agent_spans(4))
    answers_to(receiver, post(body), post(body))
    answers_to(receiver, post(body))
    assert receiver.requests() == 3
    assert receiver.requests() == 3
    assert receiver.ids() == (1, 2, 3, 4) * 3, "what came again is seen again"


def test_the_receiver_forgets_everything_on_request(receiver: Receiver) -> None:
    spans = agent_spans(4)
    answers_to(receiver, post(request_of(spans[:3])))
    receiver.forget()
    assert (receiver.ids(), receiver.requests()) == ((), 0)
    answers_to(receiver, post(request_of(spans[3:])))
    assert (receiver.ids(), receiver.requests()) == ((4,), 1)


def test_a_request_for_the_location_that_hangs_gets_no_answer_and_is_not_kept(receiver: Receiver) -> None:
    spans = agent_spans(2)
    # Both use one connection: once the second request is answered, the first has been read and is never answered.
    answers = answers_to(receiver, post(request_of(spans[:1]), HANGING), post(request_of(spans[1:])))
    assert answers.count(b"HTTP/1.1") == 1
    assert (receiver.ids(), receiver.requests()) == ((2,), 1)


def test_other_locations_do_not_hang(receiver: Receiver) -> None:
    spans = agent_spans(2)
    with socket.create_connection(("127.0.0.1", receiver.port)) as connection:
        connection.sendall(post(request_of(spans[:1]), HANGING))
        assert answers_to(receiver, post(request_of(spans[1:]), "x-location: main.agents.healthy"))
        assert receiver.ids() == (2,)


def test_requests_that_wait_together_are_answered_once_all_have_arrived(
    receiver: Receiver,
) -> None:
    request = post(request_of(agent_spans(1)), "x-location: together-2")
    address = ("127.0.0.1", receiver.port)
    open_before = receiver.connections()
    with socket.create_connection(address) as first, socket.create_connection(address) as second:
        first.sendall(request)
        # The receiver answers a later request on another connection, but still not this request.
        assert receiver.requests() == 0
        first.setblocking(False)
        with pytest.raises(BlockingIOError):
            first.recv(1)
        first.settimeout(DEADLINE)
        second.settimeout(DEADLINE)
        second.sendall(request)
        assert first.recv(100).startswith(b"HTTP/1.1 200 ")
        assert second.recv(100).startswith(b"HTTP/1.1 200 ")
        assert (receiver.connections(), receiver.requests()) >= (open_before + 2, 2)
    assert receiver.ids() == (1, 1)


def test_the_receivers_process_ends_with_the_block(running: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    with running_receiver() as receiver:
        assert receiver.port != running.port
        assert receiver.url == f"http://127.0.0.1:{receiver.port}/v1/traces"
        assert receiver.requests() == 0
    with pytest.raises(ConnectionRefusedError):
        receiver.requests()


# Rounds in turn


def case_of(*sides: str, rounds: int = 2, fresh: bool = False) -> Case:
    return attrs.evolve(CASE, sides={side: CASE.sides[side] for side in sides}, rounds=rounds, fresh=fresh)


def rounds_run() -> list[tuple[str, int]]:
    """Return the side and the process of each round that was run in the working directory."""
    lines = [line.split() for line in ROUNDS.read_text().splitlines()]
    return [(side, int(process)) for side, process in lines]


def is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.usefixtures("folder")
def test_sides_run_in_turns_each_in_its_process_and_the_first_round_does_not_count(receiver: Receiver) -> None:
    figures = in_turns(case_of("A", "B", rounds=2), receiver, quick=False)
    assert [side for side, _ in rounds_run()] == ["A", "B"] * 3
    assert len(set(rounds_run())) == 2, "a process for all rounds of a side"
    assert len({os.getpid(), *(process for _, process in rounds_run())}) == 3, "and for nothing else"
    expected = [{"number": number, "port": receiver.port, "quick": False} for number in (2, 3)]
    assert figures == {"A": expected, "B": expected}
    assert not any(is_running(process) for _, process in rounds_run())


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize("fresh", [False, True])
def test_a_quick_run_is_one_round_without_a_warm_up(receiver: Receiver, fresh: bool) -> None:
    figures = in_turns(case_of("A", rounds=7, fresh=fresh), receiver, quick=True)
    assert len(rounds_run()) == 1
    assert figures == {"A": [{"number": 1, "port": receiver.port, "quick": True}]}


@pytest.mark.usefixtures("folder")
def test_a_fresh_case_has_a_new_process_for_each_round_and_no_warm_up(receiver: Receiver) -> None:
    figures = in_turns(case_of("A", "B", rounds=2, fresh=True), receiver, quick=False)
    assert [side for side, _ in rounds_run()] == ["A", "B"] * 2
    assert len(set(rounds_run())) == 4
    assert [figure["number"] for side in ("A", "B") for figure in figures[side]] == [1, 1, 1, 1]
    assert not any(is_running(process) for _, process in rounds_run())


@pytest.mark.usefixtures("folder")
def test_output_printed_by_a_library_is_not_mistaken_for_figures(
    receiver: Receiver, capfd: pytest.CaptureFixture[str]
) -> None:
    assert in_turns(case_of("prints"), receiver, quick=True) == {"prints": [{"number": 1}]}
    assert capfd.readouterr().err == "a library says hello\n" * 2


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    ("side", "exit_code", "reason"),
    [
        ("loses spans", 1, "SpansLost: of 3 spans, 3 did not arrive"),
        ("loses spans before it is ready", 1, "SpansLost: of 3 spans, 3 did not arrive"),
        ("crashes", CRASHED, ""),
        ("crashes before it is ready", CRASHED, ""),
    ],
)
def test_a_side_that_loses_spans_or_crashes_ends_the_run(
    receiver: Receiver, side: str, exit_code: int, reason: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(RuntimeError, match=f"^bench_case: {side} failed with exit code {exit_code}$"):
        in_turns(case_of("A", side), receiver, quick=True)
    assert reason in capfd.readouterr().err
    assert [side for side, _ in rounds_run()] == ["A"]
    assert not any(is_running(process) for _, process in rounds_run())


@pytest.mark.usefixtures("folder")
def test_a_side_that_is_killed_between_rounds_ends_the_run(receiver: Receiver) -> None:
    side = "is killed between rounds"
    with pytest.raises(RuntimeError, match=f"^bench_case: {side} failed with exit code -9$"):
        in_turns(case_of(side, "kills"), receiver, quick=False)


# The command


def bench(*arguments: str, folder: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """Run the command of the benchmark in ``folder``."""
    environ = untraced_environment()
    path = os.pathsep.join([str(folder), environ["PYTHONPATH"]])
    return run_to_end(
        [sys.executable, "-m", "bench", *arguments], folder=folder, environ={**environ, "PYTHONPATH": path}
    )


def test_the_command_says_that_every_span_arrived_and_shows_no_goals_for_a_quick_run() -> None:
    ended = bench("--quick", "encoding")
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout.splitlines()[0] == "encoding ... every span arrived"
    for kind in SPANS:
        assert f"Encoding, {kind}: CPU per span" in ended.stdout
    assert "goal" not in ended.stdout
    assert ended.stdout.endswith("it only shows that none is lost.\n")


@pytest.mark.parametrize(
    ("case", "rows"),
    [
        (
            "requests",
            [
                "A request of 5 spans, 1,000 connections",
                "A request of 5 spans, 64 at once",
                "Span to wire, batches of 5",
            ],
        ),
        ("locations-http", ["1 location over HTTP", "1,000 locations over HTTP", "10,000 locations over HTTP"]),
    ],
)
def test_quick_runs_of_cases_over_http_lose_no_span_and_names_may_have_hyphens(case: str, rows: list[str]) -> None:
    ended = bench("--quick", case)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout.splitlines()[0] == f"{case.replace('-', '_')} ... every span arrived"
    for row in rows:
        assert row in ended.stdout


def test_locations_over_http_fail_if_a_request_was_repeated(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempts = count(1)
    export = OTLPExporter.export

    async def fail_once(exporter: OTLPExporter, batch: SpanBatch) -> ExportResult:
        return TryLater("once", after=0.0) if next(attempts) == 1 else await export(exporter, batch)

    monkeypatch.setattr(OTLPExporter, "export", fail_once)
    run_round = load_case("locations_http").sides["trio-spanbatch"](Setup(receiver, quick=True))
    with pytest.raises(SpansLost, match=r"^1 requests were repeated, 0 spans may have come twice$"):
        run_round()


def test_requests_fail_if_one_is_not_delivered(receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    async def refuse(exporter: OTLPExporter, batch: SpanBatch) -> ExportResult:
        await trio.lowlevel.checkpoint()
        return Refused("none of it")

    monkeypatch.setattr(OTLPExporter, "export", refuse)
    run_round = load_case("requests").sides["trio-spanbatch"](Setup(receiver, quick=True))
    with pytest.RaisesGroup(SpansLost):
        run_round()


def test_the_command_fails_if_a_span_is_lost(folder: Path) -> None:
    lines = [
        "import attrs",
        "from bench.cases.bench_case import CASE",
        "CASE = attrs.evolve(CASE, name='encoding', sides={'loses spans': CASE.sides['loses spans']})",
    ]
    (folder / "bench" / "cases" / "encoding.py").write_text("\n".join(lines))
    ended = bench("--quick", "encoding", folder=folder)
    assert ended.returncode == 1
    assert "every span arrived" not in ended.stdout
    assert "SpansLost: of 3 spans, 3 did not arrive" in ended.stderr
    assert ended.stderr.endswith("RuntimeError: encoding: loses spans failed with exit code 1\n")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--quick", "encoding", "decoding"], f"there is no case decoding; there are {', '.join(CASES)}"),
        (["--docs", "docs", "encoding"], f"{ALL_CASES}: --docs goes with neither CASE nor --quick"),
        (["--docs", "docs", "--quick"], f"{ALL_CASES}: --docs goes with neither CASE nor --quick"),
    ],
)
def test_invalid_arguments_are_refused_with_one_line(
    arguments: list[str],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["bench", *arguments])
    # Before anything is measured.
    monkeypatch.setattr("bench.receiver.running_receiver", lambda: pytest.fail("the arguments were not refused"))
    with pytest.raises(SystemExit) as ended:
        runpy.run_module("bench", run_name="__main__")
    assert ended.value.code == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines()[-1] == f"python -m bench: error: {said}"
    assert list(tmp_path.iterdir()) == [], "nothing was written"


def test_the_list_of_cases_contains_each_file() -> None:
    files = {file.stem for file in (ROOT / "bench" / "cases").glob("[!_]*.py")}
    assert sorted(CASES) == sorted(files)
