from __future__ import annotations

import io
import random
import re
import signal
import sqlite3
import tempfile
from pathlib import Path
from typing import Any

import pytest
import trio
from click.testing import CliRunner
from rich.console import Console

from tests.cli.support import Lines, run_command, run_in_process, start_command
from trio_spanbatch import (
    Limits,
    LocationStatistics,
    Loss,
    OTLPExporter,
    Span,
    SpanBatch,
    SpanBatcher,
    SpanBatcherStatistics,
    SpanContext,
)
from trio_spanbatch._spans.encoder import SpanEncoder
from trio_spanbatch.cli import commands, kill
from trio_spanbatch.cli import demo as demo_module
from trio_spanbatch.cli.agent import PLANNED_WITH_SPOOL, SPANS_OF_THREE_ANSWERS, Agent, RecordingTracer
from trio_spanbatch.cli.demo import DemoResult, MeasuringExporter, handed_back, show
from trio_spanbatch.cli.kill import KillResult, kill_and_restart
from trio_spanbatch.cli.progress import DemoProgress
from trio_spanbatch.cli.screen import Screen
from trio_spanbatch.testing import Hang, InMemoryExporter

pytestmark = pytest.mark.long

YELLOW = "\x1b[33m"
ONE, TWO = ("a", "01", "02"), ("a", "01", "03")


async def test_the_demo_loses_nothing_and_shows_it_without_a_terminal(tmp_path: Path) -> None:
    store = tmp_path / "demo.db"
    ended = await run_command("demo", "--store", store)
    assert (ended.exit_code, ended.err) == (0, "")
    lines = ended.out.splitlines()
    assert lines[0] == "act 1: a program is cancelled half-way"
    assert lines[1].startswith("receiver on http://127.0.0.1:")
    second_act = lines.index("act 2: a program with a spool is killed half-way, and started again")
    _check_second_act(lines[second_act + 1 :])
    lines = lines[: second_act - 1]
    assert "the server answers 503 for main.finance.agent_spans from now on" in lines
    assert any(re.fullmatch(r"  [\d,]+ of [\d,]+ delivered", line) for line in lines)
    assert any(line.startswith("cancelling the whole program: ") for line in lines)
    assert any(re.fullmatch(r"[\d,]+ spans were accepted after the cancel: .*", line) for line in lines)
    assert "\x1b" not in ended.out
    assert f"spans are stored in {store}" in lines
    table = [line.split() for line in lines if line.startswith("main.")]
    assert len(table) == 4
    for _, accepted, delivered, rejected, undelivered, requests, spans, p50, _, p99, _ in table:
        assert (accepted, rejected, undelivered) == (delivered, "0", "0")
        assert int(requests) > 0
        assert float(spans) > 1
        assert 0 < float(p50) <= float(p99)
    connection = sqlite3.connect(store)
    ((rows, locations),) = connection.execute("SELECT count(*), count(DISTINCT location) FROM spans")
    connection.close()
    spans_of_first_act = sum(int(row[1]) for row in table)
    assert spans_of_first_act >= 2000
    assert rows >= spans_of_first_act + PLANNED_WITH_SPOOL + PLANNED_WITH_SPOOL // 2
    assert locations == 4
    assert lines[-1] == f"nothing was lost: all {spans_of_first_act:,} accepted spans are in the store, one row each"


def _check_second_act(lines: list[str]) -> None:
    assert lines[0] == "the server answers 503 for main.finance.agent_spans"
    assert re.fullmatch(r"killed with SIGKILL: [\d,]+ spans are committed, [\d,]+ of them are in the store", lines[1])
    cells = [line.split() for line in lines if line.startswith("main.")]
    rows = {name: [int(number.replace(",", "")) for number in numbers] for name, *numbers in cells}
    assert len(rows) == 4
    killed, stored_when_killed, committed, stored = map(sum, zip(*rows.values(), strict=True))
    assert PLANNED_WITH_SPOOL // 2 <= killed < PLANNED_WITH_SPOOL
    assert stored_when_killed < killed
    # These were on the disk of the killed program only.
    assert rows["main.finance.agent_spans"][0] > rows["main.finance.agent_spans"][1] == 0
    assert committed == stored
    # It is started until nothing is left on disk, which once is enough for.
    assert (committed - killed) % PLANNED_WITH_SPOOL == 0 < committed - killed
    assert lines[-1] == f"nothing was lost: all {committed:,} committed spans are in the store, one row each"


async def test_a_ctrl_c_in_the_second_act_ends_the_demo_and_its_program(tmp_path: Path) -> None:
    screen = Screen(Console(file=io.StringIO()), Console(file=io.StringIO()))
    programs: list[trio.Process] = []
    real = trio.lowlevel.open_process

    async def open_process(*arguments: Any, **options: Any) -> trio.Process:
        programs.append(await real(*arguments, **options))
        signal.raise_signal(signal.SIGINT)
        return programs[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trio.lowlevel, "open_process", open_process)
        result = await kill_and_restart(tmp_path / "demo.db", screen)
    assert (result.verdict, result.exit_code) == ("interrupted", 128 + signal.SIGINT)
    assert [program.returncode for program in programs] == [-signal.SIGKILL]


@pytest.mark.parametrize(("kills", "words"), [(0, "before it was killed"), (1, "when it was started again")])
async def test_a_program_of_the_second_act_that_fails_is_no_success(
    kills: int, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lives = 0

    async def run(_url: str, spool: str, _committed: list[Any], *, enough: float) -> int:
        nonlocal lives
        await trio.lowlevel.checkpoint()
        (Path(spool) / "a.0.spans").touch()
        lives += 1
        return -signal.SIGKILL if lives <= kills else 7

    monkeypatch.setattr(kill, "_run", run)
    screen = Screen(Console(file=io.StringIO()), Console(file=io.StringIO()))
    result = await kill_and_restart(tmp_path / "demo.db", screen)
    assert (result.verdict, result.exit_code) == (f"the agent program ended with 7 {words}", 1)


@pytest.mark.parametrize(
    ("stored", "verdict"),
    [
        ([ONE, TWO, ("a", "01", "04")], "nothing was lost: all 2 committed spans are in the store, one row each"),
        ([ONE], "committed spans were LOST or duplicated: 1 of 2 are not in the store"),
        ([ONE, TWO, TWO], "committed spans were LOST or duplicated: 0 of 2 are not in the store"),
    ],
    ids=["all and one more", "a span is missing", "a row twice"],
)
def test_the_verdict_of_the_second_act_is_good_only_if_all_committed_ids_are_stored_once(
    stored: list[tuple[str, str, str]], verdict: str
) -> None:
    result = KillResult(committed=[ONE, TWO], stored=stored)
    assert (result.verdict, result.exit_code) == (verdict, int("LOST" in verdict))


async def test_a_second_ctrl_c_ends_the_demo_with_its_table_and_what_was_handed_back(tmp_path: Path) -> None:
    async with trio.open_nursery() as nursery:
        process = await start_command(nursery, "demo", "--store", tmp_path / "demo.db")
        lines = Lines(process.stdout)
        while not (await lines.next()).startswith("the server answers 503"):
            pass
        process.send_signal(signal.SIGINT)
        # This line follows the cancellation, and so does the drain, which the next Ctrl-C ends.
        while not (await lines.next()).startswith("cancelling the whole program"):
            pass
        process.send_signal(signal.SIGINT)
        rest = (await lines.rest()).splitlines()
        assert await process.wait() == 128 + signal.SIGINT
        assert await Lines(process.stderr).rest() == ""
    table = [line.split() for line in rest if line.startswith("main.")]
    undelivered = sum(int(row[4]) for row in table)
    assert rest[-1].startswith(
        f"interrupted: {undelivered} spans were handed back undelivered (Ctrl-C during the drain); all others are in"
        if undelivered
        # The drain had not begun yet, or the machine was so slow that the server had recovered.
        else "nothing was lost: "
    )


async def test_the_demo_does_not_write_to_an_existing_file(tmp_path: Path) -> None:
    (tmp_path / "mine.db").touch()
    ended = await run_in_process("demo", "--store", tmp_path / "mine.db")
    assert ended.exit_code == 1
    assert ended.err == f"trio-spanbatch: {tmp_path / 'mine.db'} already exists; name a new file with --store\n"


async def test_a_store_that_cannot_be_created_is_a_one_line_error(tmp_path: Path) -> None:
    ended = await run_in_process("demo", "--store", tmp_path / "missing" / "demo.db")
    assert ended.exit_code == 1
    assert ended.err.endswith("unable to open database file; name another file with --store\n")


def test_without_a_file_the_store_is_a_new_temporary_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    stores: list[Path] = []

    async def stub(path: Path, _screen: Screen) -> DemoResult:
        await trio.lowlevel.checkpoint()
        stores.append(path)
        return DemoResult(accepted=[ONE], stored=[ONE], interrupted=0)

    async def second(_path: Path, _screen: Screen) -> KillResult:
        await trio.lowlevel.checkpoint()
        return KillResult(committed=[ONE], stored=[ONE])

    monkeypatch.setattr(demo_module, "demo", stub)
    monkeypatch.setattr(kill, "kill_and_restart", second)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    for _ in range(2):
        assert CliRunner().invoke(commands.cli, ["demo"]).exit_code == 0
    assert len(set(stores)) == 2
    assert all(path.parent.exists() and not path.exists() for path in stores)


async def test_spans_that_were_not_accepted_and_locations_without_spans_are_shown() -> None:
    out = io.StringIO()
    batcher = SpanBatcher(InMemoryExporter())
    tracer = RecordingTracer(batcher, "a")
    for _ in range(3):
        with tracer.span("too early"):
            pass
    exporter = MeasuringExporter(OTLPExporter("http://localhost:4318/v1/traces"))
    show(batcher, exporter, [tracer], Screen(Console(file=out, width=200), Console(file=io.StringIO())))
    await exporter.aclose()
    assert "3 more spans were not accepted because a queue was full" in out.getvalue()
    assert [line.split()[-3:] for line in out.getvalue().splitlines() if line.startswith("main.")] == [["-"] * 3] * 4


@pytest.mark.parametrize(
    ("accepted", "stored", "exit_code", "verdict"),
    [
        ([ONE, TWO], [TWO, ONE], 0, "nothing was lost: all 2 accepted spans are in the store, one row each"),
        ([ONE, TWO], [ONE], 1, "2 spans accepted, 1 rows, 1 spans missing, 0 unexpected rows"),
        ([ONE], [ONE, TWO], 1, "1 spans accepted, 2 rows, 0 spans missing, 1 unexpected rows"),
        ([ONE], [ONE, ONE], 1, "1 spans accepted, 2 rows, 0 spans missing, 0 unexpected rows"),
    ],
    ids=["equal", "a span is missing", "a row too many", "a row twice"],
)
def test_the_verdict_is_good_only_if_ids_and_rows_match(
    accepted: list[tuple[str, str, str]], stored: list[tuple[str, str, str]], exit_code: int, verdict: str
) -> None:
    result = DemoResult(accepted=accepted, stored=stored, interrupted=0)
    assert result.exit_code == exit_code
    assert result.verdict.endswith(verdict)
    assert DemoResult(accepted=accepted, stored=stored, interrupted=130).exit_code == 130


@pytest.mark.parametrize(
    ("stored", "verdict"),
    [
        ([ONE], "1 spans were handed back undelivered (no time); all others are in the store"),
        ([], "spans were LOST or duplicated: 2 spans accepted, 0 rows, 1 spans missing, 0 unexpected rows"),
        ([ONE, ONE], "spans were LOST or duplicated: 2 spans accepted, 2 rows, 0 spans missing, 0 unexpected rows"),
    ],
    ids=["handed back", "another one is missing", "a row twice"],
)
def test_spans_that_were_handed_back_are_not_missing(stored: list[tuple[str, str, str]], verdict: str) -> None:
    result = DemoResult(accepted=[ONE, TWO], stored=stored, handed_back=[TWO], reason="no time", interrupted=0)
    assert (result.verdict, result.exit_code) == (verdict, 1)


async def test_an_agent_records_as_many_spans_as_planned(autojump_clock: trio.testing.MockClock) -> None:
    exporter = InMemoryExporter()
    async with SpanBatcher(exporter) as batcher:
        tracer = RecordingTracer(batcher, "a")
        await Agent(tracer, random.Random(1)).run(6)
    assert len(tracer.accepted) == len(set(tracer.accepted)) == 2 * SPANS_OF_THREE_ANSWERS
    assert len(exporter.delivered["a"]) == 2 * SPANS_OF_THREE_ANSWERS


async def test_spans_ended_by_a_cancellation_are_accepted_and_record_it(autojump_clock: trio.testing.MockClock) -> None:
    exporter = InMemoryExporter()
    async with SpanBatcher(exporter) as batcher:
        tracer = RecordingTracer(batcher, "a")
        with trio.move_on_after(1):
            with tracer.span("outer"), tracer.span("inner"):
                await trio.sleep_forever()
    inner, outer_span = [span.to_message() for span in exporter.delivered["a"]]
    assert (inner.name, outer_span.name) == ("inner", "outer")
    assert inner.parent_span_id == outer_span.span_id
    assert [(each.key, each.value.bool_value) for each in inner.attributes] == [("trio.cancelled", True)]
    assert not inner.status.code


async def test_a_span_that_is_added_to_a_full_queue_is_counted_as_not_accepted(
    autojump_clock: trio.testing.MockClock,
) -> None:
    limits = Limits(max_queued_spans=1)
    async with SpanBatcher(InMemoryExporter([Hang()]), limits=limits, shutdown_timeout=1) as batcher:
        tracer = RecordingTracer(batcher, "a")
        for _ in range(5):
            with tracer.span("step"):
                pass
    assert len(tracer.accepted) + tracer.dropped == 5
    assert tracer.dropped > 0
    assert batcher.statistics().accepted == len(tracer.accepted)


async def test_bars_move_on_a_terminal(autojump_clock: trio.testing.MockClock) -> None:
    out = io.StringIO()
    screen = Screen(Console(file=out, force_terminal=True, width=100), Console(file=io.StringIO()))
    async with SpanBatcher(InMemoryExporter()) as batcher:
        tracer = RecordingTracer(batcher, "main.a.spans")
        with DemoProgress(batcher, 100, screen).shown() as progress:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(progress.run)
                with tracer.span("step"):
                    await trio.sleep(1)
                await batcher.flush()
                progress.say("a line above")
                await trio.sleep(1)
                nursery.cancel_scope.cancel()
    text = out.getvalue()
    assert "main.a.spans" in text
    assert "1 of     1 delivered" in text
    assert "a line above" in text


@pytest.mark.parametrize(("width", "has_bars"), [(60, False), (100, True)])
def test_progress_goes_forward_and_fits_its_terminal(width: int, has_bars: bool) -> None:
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, color_system=None, width=width)
    progress = DemoProgress(SpanBatcher(InMemoryExporter()), 4000, Screen(console, Console(file=io.StringIO())))
    shares = []
    for accepted, delivered in ((1000, 600), (2000, 1500), (2000, 1500), (2000, 2000)):
        counts = LocationStatistics(accepted=accepted, delivered=delivered)
        name = "main.finance.agent_spans"
        progress._draw(SpanBatcherStatistics(accepted=accepted, delivered=delivered, locations={name: counts}))
        shares.append(progress._progress.tasks[0].percentage)
        if len(shares) == 2:
            progress.end_plan()
    assert shares == [15, 37.5, 75, 100]
    console.print(progress._progress)
    last = out.getvalue().splitlines()[-1]
    assert ("━" in last) == has_bars
    assert re.search(r"2,000 of 2,000 delivered +\d:\d\d:\d\d", last)


def test_rejected_spans_were_not_handed_back() -> None:
    span = SpanEncoder().encode(Span("x", SpanContext(1, 2), start_time=1, end_time=2))
    losses = [
        Loss("a", SpanBatch("a", [span]), "rejected", "no"),
        Loss("b", SpanBatch("b", [span]), "undelivered", "no time"),
    ]
    assert list(handed_back(losses)) == [("b", f"{1:032x}", f"{2:016x}")]


@pytest.mark.parametrize("colours", [True, False])
def test_a_failing_location_looks_different_and_its_mark_does_without_colours(
    colours: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    if not colours:
        monkeypatch.setenv("NO_COLOR", "1")
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=80, highlight=False, markup=False)
    screen = Screen(console, Console(file=io.StringIO()))
    progress = DemoProgress(SpanBatcher(InMemoryExporter()), 4000, screen)
    progress.failing = demo_module.FAILING
    locations = {name: LocationStatistics() for name in ("main.sales.agent_spans", demo_module.FAILING)}
    progress._draw(SpanBatcherStatistics(locations=locations))
    console.print(progress._progress)
    healthy, failing = (next(line for line in out.getvalue().splitlines() if name in line) for name in locations)
    assert ("! main.finance" in failing, "! main.sales" in healthy) == (True, False)
    assert (f"{YELLOW}! main.finance" in failing, f"{YELLOW}  main.sales" in healthy) == (colours, False)
    out.seek(0)
    out.truncate()
    screen.table(["location", "accepted"], [[name, "1"] for name in locations], failing=demo_module.FAILING)
    assert [YELLOW in line for line in out.getvalue().splitlines()] == [False, False, colours]
    assert max(map(len, re.sub(r"\x1b\[[\d;]*m", "", out.getvalue()).splitlines())) <= 80


@pytest.mark.parametrize(("lost", "colour"), [(False, "\x1b[32m"), (True, "\x1b[1;31m")])
def test_the_verdict_is_green_or_red(lost: bool, colour: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    stored = [] if lost else [ONE]

    async def first(_path: Path, _screen: Screen) -> DemoResult:
        await trio.lowlevel.checkpoint()
        return DemoResult(accepted=[ONE], stored=[ONE], interrupted=0)

    async def second(_path: Path, _screen: Screen) -> KillResult:
        await trio.lowlevel.checkpoint()
        return KillResult(committed=[ONE], stored=stored)

    monkeypatch.setattr(demo_module, "demo", first)
    monkeypatch.setattr(kill, "kill_and_restart", second)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, color_system="standard", width=100, no_color=False)
    monkeypatch.setattr(commands, "Screen", lambda: Screen(console, Console(file=io.StringIO())))
    CliRunner().invoke(commands.cli, ["demo"])
    verdicts = [line for line in out.getvalue().splitlines() if "LOST" in line or "nothing was lost" in line]
    assert [line.startswith(each) for line, each in zip(verdicts, ["\x1b[32m", colour], strict=True)] == [True, True]


def test_the_numbers_say_which_requests_are_repetitions() -> None:
    out = io.StringIO()
    batcher = SpanBatcher(InMemoryExporter())
    exporter = MeasuringExporter(OTLPExporter("http://localhost:4318/v1/traces"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batcher, "statistics", lambda: SpanBatcherStatistics(requests=17, retries=9))
        show(batcher, exporter, [], Screen(Console(file=out, width=200), Console(file=io.StringIO())))
    assert "9 of the 17 requests are repetitions: the server had not accepted their spans" in out.getvalue()
