from __future__ import annotations

import fcntl
import io
import logging
import os
import pty
import re
import struct
import termios
from contextlib import suppress

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console

from tests.cli.support import clean_environment, command
from tests.support.paths import DATA_FOLDER
from trio_spanbatch import LocationStatistics, SpanBatcherStatistics
from trio_spanbatch.cli.screen import LogLines, Screen, table_lines
from trio_spanbatch.cli.tally import Tally

DEMO = ["location", "accepted", "delivered", "rejected", "undelivered", "requests", "spans a request", "p50", "p99"]


def terminal(width: int) -> tuple[Screen, io.StringIO]:
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, color_system=None, width=width, highlight=False, markup=False)
    return Screen(console, Console(file=io.StringIO())), out


def numbers_in(text: str) -> list[str]:
    return re.findall(r"(?<![\w.,])\d[\d,]*(?:\.\d+)?(?![\w.])", re.sub(r",(?=\s)", "", text))


@pytest.mark.parametrize("width", [30, 40, 60, 80, 100, 120, 200])
def test_locations_and_numbers_are_complete_on_terminals_of_any_width(width: int) -> None:
    names = [f"main.tenant_{number}.agent_spans" for number in range(3)]
    counts = [LocationStatistics(accepted=1587 + n, delivered=1_234_567 + n, requests=40 + n) for n in range(3)]
    statistics = SpanBatcherStatistics(accepted=4764, locations=dict(zip(names, counts, strict=True)))
    screen, out = terminal(width)
    Tally().show(screen, statistics)
    text = out.getvalue()
    assert all(cell_len(line) <= width for line in text.splitlines())
    for name in [*names, "total"]:
        assert text.count(name) == 1
    for number in range(3):
        assert {f"1,{587 + number}", f"1,234,{567 + number}", str(40 + number)} <= set(numbers_in(text))
    for label in ("read", "accepted", "delivered", "rejected", "undelivered", "ambiguous", "invalid"):
        assert label in text


def test_a_wide_table_has_a_line_for_each_location() -> None:
    lines = table_lines(["location", "n", "spans a request"], [["a", "1,000", "2"], ["bb", "3", "4"]], 40)
    assert [line.text for line in lines] == [
        "                 spans a",
        "location      n  request",
        "a         1,000        2",
        "bb            3        4",
    ]
    assert [line.heading for line in lines] == [True, True, False, False]


def test_if_a_table_does_not_fit_columns_of_zeros_are_named_below_it() -> None:
    row = ["main.finance.agent_spans", "1,234", "1,234", "0", "0", "12", "102.8", "0.31 s", "2.30 s"]
    optional = {"rejected", "undelivered"}
    assert [line.text for line in table_lines(DEMO, [row], 80, optional)] == [
        "                                                         spans a",
        "location                  accepted  delivered  requests  request     p50     p99",
        "main.finance.agent_spans     1,234      1,234        12    102.8  0.31 s  2.30 s",
        "all zero: rejected, undelivered",
    ]
    # They stay if the table fits, or if they are not all zero.
    assert "rejected" in table_lines(DEMO, [row], 120, optional)[-2].text
    assert "rejected 7" in "".join(line.text for line in table_lines(DEMO, [[*row[:3], "7", *row[4:]]], 80, optional))


def test_lines_are_wrapped_between_words_on_a_terminal_and_not_at_all_in_a_pipe() -> None:
    line = "cancelling the whole program: 1,234 of 3,000 planned spans accepted"
    for is_terminal, expected in ((True, [line[:44], line[45:]]), (False, [line])):
        out, err = io.StringIO(), io.StringIO()
        screen = Screen(*(Console(file=file, force_terminal=is_terminal, width=45) for file in (out, err)))
        screen.say(line)
        screen.warn(line)
        assert [text.rstrip() for text in re.sub(r"\x1b\[[0-9;]*m", "", out.getvalue()).splitlines()] == expected
        assert len(err.getvalue().splitlines()) == len(expected)


def test_if_columns_do_not_fit_each_number_follows_its_label() -> None:
    lines = [line.text for line in table_lines(DEMO, [["main.finance.agent_spans", *["1,234"] * 8]], 40)]
    assert lines == [
        "main.finance.agent_spans",
        "  accepted 1,234, delivered 1,234,",
        "  rejected 1,234, undelivered 1,234,",
        "  requests 1,234, spans a request 1,234,",
        "  p50 1,234, p99 1,234",
    ]


@given(
    width=st.integers(20, 150),
    names=st.lists(st.text("ab注", min_size=1, max_size=40), min_size=1, max_size=3, unique=True),
    numbers=st.lists(st.integers(0, 10**9), min_size=8, max_size=8),
)
def test_all_numbers_are_printed_in_order_at_any_width(width: int, names: list[str], numbers: list[int]) -> None:
    cells = [f"{number:,}" for number in numbers]
    lines = [line.text for line in table_lines(DEMO, [[name, *cells] for name in names], width)]
    found = numbers_in("\n".join(line for line in lines if line not in names).replace("p50", "").replace("p99", ""))
    assert found == cells * len(names)
    assert all(cell_len(line) <= max(width, 31) for line in lines if line not in names)
    assert all(any(line.startswith(name) for line in lines) for name in names)


def test_the_batchers_summary_is_not_shown_twice_and_a_servers_words_are_never_filtered() -> None:
    err = io.StringIO()
    handler = LogLines(Screen(Console(file=io.StringIO()), Console(file=err, width=500)))
    logger = logging.getLogger("test_cli_screen")
    logger.addHandler(handler)
    logger.error("SpanBatcher: 1 of 1 span was rejected", extra={"summary": True})
    logger.warning("a: 500: all spans were rejected and spans were handed back undelivered")
    logger.removeHandler(handler)
    assert err.getvalue() == "a: 500: all spans were rejected and spans were handed back undelivered\n"


@pytest.mark.parametrize("width", [60, 80, 100])
async def test_the_command_fits_the_terminal_that_it_runs_on(width: int) -> None:
    data = DATA_FOLDER / "agent-traces.jsonl"
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, width, 0, 0))
    environ = clean_environment({"TERM": "xterm", "OTEL_SDK_DISABLED": "true"})
    environ = {name: value for name, value in environ.items() if name not in ("COLUMNS", "LINES", "NO_COLOR")}
    arguments = command("send", data, "--location-attribute", "tenant", "--location-header", "X-T")
    ended = await trio.run_process(arguments, stdout=theirs, capture_stderr=True, check=False, env=environ)
    os.close(theirs)
    text = ""
    # The terminal keeps the text until it is read; on Linux, an error marks its end.
    with suppress(OSError):
        while data_read := os.read(ours, 65536):
            text += data_read.decode()
    os.close(ours)
    lines = [re.sub(r"\x1b\[[0-9;]*m", "", line) for line in text.splitlines()]
    assert all(cell_len(line) <= width for line in lines)
    rejected = re.findall(r"^(.+): ([\d,]+) rejected", ended.stderr.decode(), re.MULTILINE)
    assert len(rejected) == 3
    for location, count in rejected:
        start = next(number for number, line in enumerate(lines) if line.startswith(location))
        assert numbers_in("\n".join(lines[start : start + 4]).removeprefix(location)).count(count) >= 3
