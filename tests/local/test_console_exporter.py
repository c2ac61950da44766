"""`ConsoleExporter`: one line for each span, a tree for each trace."""

from __future__ import annotations

import io
import os
import sys
from pathlib import Path
from typing import IO, Any

import pytest
import trio
import trio.testing

from tests.support.processes import run_to_end
from trio_spanbatch import (
    ConsoleExporter,
    Delivered,
    Refused,
    Span,
    SpanBatch,
    SpanBatcher,
    SpanContext,
    SpanEvent,
    Status,
    StatusCode,
)
from trio_spanbatch._spans.encoder import SpanEncoder

TRACE = f"trace={1:032x}"


def span(number: int, parent: int = 0, *, name: str | None = None, trace: int = 1, **fields: Any) -> Span:
    """Return a span that starts at ``number`` ms and takes 1.5 ms."""
    fields = {"start_time": number * 1_000_000, "end_time": number * 1_000_000 + 1_500_000, **fields}
    above = SpanContext(trace, parent) if parent else None
    return Span(f"span {number}" if name is None else name, SpanContext(trace, number), parent=above, **fields)


def batch_of(*spans: Span, location: str = "acme") -> SpanBatch:
    return SpanBatch(location, map(SpanEncoder().encode, spans))


async def printed(*spans: Span, location: str = "acme", **options: Any) -> list[str]:
    """Return the lines that are printed for a batch."""
    file = io.StringIO()
    assert await ConsoleExporter(file, **options).export(batch_of(*spans, location=location)) == Delivered()
    text = file.getvalue()
    assert text.endswith("\n")
    return text.split("\n")[:-1]


async def test_the_spans_of_a_trace_are_a_tree_in_the_order_of_their_start() -> None:
    # They arrive in the order in which they end.
    assert await printed(span(4, 2), span(3, 2), span(2, 1), span(6, 5), span(5, 1), span(1)) == [
        f"acme  span 1  1.500 ms  {TRACE}",
        "├─ span 2  1.500 ms",
        "│  ├─ span 3  1.500 ms",
        "│  └─ span 4  1.500 ms",
        "└─ span 5  1.500 ms",
        "   └─ span 6  1.500 ms",
    ]


async def test_each_trace_has_its_own_tree_even_if_its_ids_are_those_of_another_one() -> None:
    assert await printed(span(2, 1), span(2, 1, trace=2), span(1), span(1, trace=2)) == [
        f"acme  span 1  1.500 ms  {TRACE}",
        "└─ span 2  1.500 ms",
        f"acme  span 1  1.500 ms  trace={2:032x}",
        "└─ span 2  1.500 ms",
    ]


async def test_the_trees_of_one_trace_follow_each_other() -> None:
    lines = await printed(span(1), span(2, trace=2), span(3, 99), span(4, trace=3))
    assert [line.split("  ")[1] for line in lines] == ["span 1", "span 3", "span 2", "span 4"]


async def test_a_span_whose_parent_is_elsewhere_begins_a_tree_and_names_it() -> None:
    assert await printed(span(2, 99), span(3, 2)) == [
        f"acme  span 2  1.500 ms  {TRACE} parent={99:016x}",
        "└─ span 3  1.500 ms",
    ]


async def test_each_span_is_printed_once_even_if_parents_form_a_circle_or_ids_are_repeated() -> None:
    names = [f"span {number}" for number in (1, 2, 3, 3, 5)]
    lines = await printed(span(1, 2), span(2, 1), span(3, 3), span(3, 1), span(5, 1))
    assert sorted(line.strip("├└─│ ").removeprefix("acme  ").split("  ")[0] for line in lines) == names


async def test_a_deep_tree_takes_no_recursion_and_no_endless_lines() -> None:
    lines = await printed(*(span(number, number - 1) for number in range(1, 5001)))
    assert len(lines) == 5000
    assert max(map(len, lines)) < 150


@pytest.mark.parametrize(
    ("nanoseconds", "text"),
    [
        (0, "0.000 ms"),
        (1_000, "0.001 ms"),
        (12_345_678, "12.346 ms"),
        (999_000_000, "999.000 ms"),
        (75 * 10**9, "75.00 s"),
    ],
)
async def test_a_line_has_the_duration(nanoseconds: int, text: str) -> None:
    assert await printed(span(1, start_time=5, end_time=5 + nanoseconds)) == [f"acme  span 1  {text}  {TRACE}"]


async def test_a_line_has_the_error_and_the_attributes() -> None:
    attributes = {"a": 1, "b": 0.5, "c": True, "d": [1, "x"], "e": {"k": None}, "f": b"123", "g": ""}
    failed = span(1, attributes=attributes, status=Status(StatusCode.ERROR, "cannot\nconnect"))
    assert await printed(failed) == [
        "acme  span 1  1.500 ms  ERROR cannot connect  a=1  b=0.5  c=true  d=[1, x]  e={k=}  f=<3 bytes>  g=  " + TRACE
    ]
    assert (await printed(span(1, status=Status(StatusCode.ERROR))))[0].startswith(
        "acme  span 1  1.500 ms  ERROR  trace"
    )


@pytest.mark.parametrize("text", ["two\nlines", "\x1b[31mred\x07", "\u2028\u202e\r", "x" * 100_000])
async def test_a_span_is_one_short_line_of_printable_characters_whatever_it_contains(text: str) -> None:
    hostile = span(
        1,
        name=text,
        attributes={text: text, "list": [text] * 10, "map": {f"{text}{n}": text for n in range(10)}},
        status=Status(StatusCode.ERROR, text),
        events=[SpanEvent(text, 1)],
    )
    (line,) = await printed(hostile, location=text[:1000])
    assert line.isprintable()
    assert len(line) < 1000


async def test_many_attributes_are_counted_and_not_shown() -> None:
    (line,) = await printed(span(1, attributes={f"key {number}": number for number in range(100)}))
    assert "key 9=9  and 90 more" in line


async def test_a_span_without_a_name_has_a_line_too() -> None:
    assert (await printed(span(1, name="")))[0].startswith("acme  (no name)  ")


async def test_colors_are_used_only_if_wanted() -> None:
    failed = span(1, attributes={"a": 1}, status=Status(StatusCode.ERROR, "bad"))
    assert "\x1b" not in (await printed(failed))[0]
    (line,) = await printed(failed, color=True)
    assert line.startswith("\x1b[36macme\x1b[0m  \x1b[1mspan 1\x1b[0m  1.500 ms  \x1b[31mERROR bad\x1b[0m  \x1b[2ma=1")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("environ", "color", "expected"),
    [
        ({"TERM": "xterm"}, None, True),
        ({"TERM": "xterm", "NO_COLOR": ""}, None, True),
        ({"TERM": "xterm", "NO_COLOR": "1"}, None, False),
        ({"TERM": "dumb"}, None, False),
        ({"TERM": "xterm"}, False, False),
        ({"NO_COLOR": "1"}, True, True),
    ],
)
async def test_a_terminal_gets_colors_unless_no_color_is_set(
    monkeypatch: pytest.MonkeyPatch, environ: dict[str, str], color: bool | None, expected: bool
) -> None:
    for name in ("TERM", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    file = Terminal()
    await ConsoleExporter(file, color=color).export(batch_of(span(1)))
    assert ("\x1b" in file.getvalue()) is expected


async def test_the_default_is_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    async with SpanBatcher(ConsoleExporter()) as batcher:
        await batcher.add_span("acme", span(1))
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", f"acme  span 1  1.500 ms  {TRACE}\n")
    assert batcher.statistics().delivered == 1


async def test_the_file_stays_open(tmp_path: Path) -> None:
    with (tmp_path / "out").open("w") as file:
        async with SpanBatcher(ConsoleExporter(file)) as batcher:
            await batcher.add_span("acme", span(1))
        assert not file.closed


async def test_a_cancelled_export_prints_nothing_and_a_long_one_lets_others_run() -> None:
    file = io.StringIO()
    exporter = ConsoleExporter(file)
    with trio.move_on_after(0) as scope:
        await exporter.export(batch_of(span(1)))
    assert scope.cancelled_caught
    assert file.getvalue() == ""
    for call in (lambda: exporter.export(batch_of(span(1))), exporter.aclose):
        with trio.testing.assert_checkpoints():
            await call()
    file.truncate(0)
    ran = 0

    async def other() -> None:
        nonlocal ran
        while file.getvalue() == "":
            ran += 1
            await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(other)
        await exporter.export(batch_of(*map(span, range(1, 1001))))
    assert ran >= 1000 // 64


async def test_characters_that_the_file_cannot_encode_are_escaped(tmp_path: Path) -> None:
    path = tmp_path / "out"
    with path.open("w", encoding="ascii") as file:
        await ConsoleExporter(file).export(batch_of(span(1, name="né"), span(2, 1)))
    assert path.read_text().splitlines()[0].startswith("acme  n\\xe9  ")


def pipe_without_reader() -> IO[str]:
    read_end, write_end = os.pipe()
    os.close(read_end)
    return os.fdopen(write_end, "w")


async def test_spans_that_cannot_be_printed_are_rejected_with_the_reason(tmp_path: Path) -> None:
    with (tmp_path / "out").open("w") as file:
        exporter = ConsoleExporter(file)
    assert await exporter.export(batch_of(span(1))) == Refused("cannot print: I/O operation on closed file.")
    pipe = pipe_without_reader()
    assert await ConsoleExporter(pipe).export(batch_of(span(1))) == Refused("cannot print: Broken pipe")
    with pytest.raises(BrokenPipeError):
        pipe.close()


def test_a_program_without_standard_error_is_told_so() -> None:
    program = (
        "import sys, trio_spanbatch\n"
        "sys.stderr = None\n"
        "try: trio_spanbatch.ConsoleExporter()\n"
        "except TypeError as error: print(error)"
    )
    ended = run_to_end([sys.executable, "-c", program])
    assert ended.stdout == "file is None; it must be an open text file, such as sys.stderr\n"


@pytest.mark.parametrize("file", ["out.txt", Path("out.txt"), 2, io.BytesIO()])
def test_a_file_that_is_not_an_open_text_file_is_an_error_at_once(file: Any) -> None:
    with pytest.raises(TypeError, match=r"file is .*; it must be an open text file, such as sys\.stderr"):
        ConsoleExporter(file)


def test_a_color_that_is_no_bool_is_an_error() -> None:
    color: Any = "red"
    with pytest.raises(TypeError, match="color is 'red'; it must be True, False or None"):
        ConsoleExporter(io.StringIO(), color=color)
