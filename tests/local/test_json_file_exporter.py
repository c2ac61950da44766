"""`JSONFileExporter`: lines of OTLP JSON, of which none is lost or torn."""

from __future__ import annotations

import json
import math
import os
import resource
import signal
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from tests.cli.support import run_in_process
from tests.support.batchers import make_span, make_spans
from trio_spanbatch import (
    BatchPolicy,
    Delivered,
    EntityRef,
    InstrumentationScope,
    JSONFileExporter,
    Resource,
    RetryPolicy,
    Span,
    SpanBatch,
    SpanBatcher,
    SpanContext,
    SpanEvent,
    SpanKind,
    SpanLink,
    Status,
    StatusCode,
    TryLater,
)
from trio_spanbatch._spans.encoder import SpanEncoder
from trio_spanbatch.cli.otlp_json import read_request
from trio_spanbatch.testing import OTLPReceiver

FULL = Span(
    "chat \u2028 \n \U0001f600",
    SpanContext(2**128 - 1, 2**64 - 1, trace_flags=1, trace_state="a=b"),
    start_time=2**63 + 1,
    end_time=2**64 - 1,
    kind=SpanKind.CLIENT,
    parent=SpanContext(2**128 - 1, 7, is_remote=True),
    attributes={
        "text": "x",
        "int": -(2**63),
        "float": 0.1,
        "nan": math.inf,
        "bool": False,
        "bytes": b"\x00\xff",
        "list": [1, "a", [True]],
        "map": {"a": {"b": None}},
    },
    events=[SpanEvent("exception", 5, {"a": 1}, 2)],
    links=[SpanLink(SpanContext(1, 2, trace_state="c=d"), {"b": 2}, 3)],
    status=Status(StatusCode.ERROR, "bad"),
    resource=Resource({"service.name": "agent"}, "https://schema", 4, [EntityRef("service", ["id"], ["name"], "url")]),
    instrumentation_scope=InstrumentationScope("scope", "1", "https://scope", {"c": 3}, 5),
    dropped_attributes=6,
    dropped_events=7,
    dropped_links=8,
)


def batch_of(*spans: Span, location: str = "acme") -> SpanBatch:
    return SpanBatch(location, map(SpanEncoder().encode, spans))


def lines_of(path: Path) -> list[Any]:
    """Return the documents of a file, each of which must be a complete line."""
    data = path.read_bytes()
    assert data.endswith(b"\n") or not data
    return [json.loads(line) for line in data.split(b"\n")[:-1]]


def names_in(path: Path) -> list[str]:
    return [
        span["name"]
        for line in lines_of(path)
        for resource_spans in line["resourceSpans"]
        for scope_spans in resource_spans["scopeSpans"]
        for span in scope_spans["spans"]
    ]


async def written(path: Path | str, *batches: SpanBatch, **options: Any) -> None:
    """Write a line for each of ``batches``."""
    exporter = JSONFileExporter(path, **options)
    for batch in batches:
        assert await exporter.export(batch) == Delivered()
    await exporter.aclose()


# -- the lines -----------------------------------------------------------------------------------------------------


async def test_a_batch_is_one_line_that_is_read_as_the_same_spans(tmp_path: Path) -> None:
    path = tmp_path / "spans.jsonl"
    plain = make_span("plain")
    batch = batch_of(FULL, plain, FULL)
    await written(path, batch)
    (document,) = lines_of(path)
    spans = [span for span in read_request(document) if isinstance(span, Span)]
    assert batch_of(*spans).to_message() == batch.to_message()
    assert len(path.read_text().splitlines()) > 1, "U+2028 is no end of a line of JSON"


async def test_a_line_names_the_location_of_its_batch(tmp_path: Path) -> None:
    path = tmp_path / "spans.jsonl"
    await written(path, batch_of(make_span(), location='"a"\n'), batch_of(make_span(), location="b"))
    assert [line["location"] for line in lines_of(path)] == ['"a"\n', "b"]


async def test_send_reads_the_file_and_sends_each_span_to_its_location(tmp_path: Path) -> None:
    path = tmp_path / "spans.jsonl"
    async with SpanBatcher(JSONFileExporter(path)) as batcher:
        for location in ("acme", "globex"):
            await batcher.add_spans(location, make_spans(100))
    async with OTLPReceiver(location_header="X-Scope-OrgID") as receiver:
        arguments = ["send", path, "--endpoint", receiver.url, "--location-header", "X-Scope-OrgID"]
        ended = await run_in_process(*arguments)
        assert (ended.exit_code, ended.err) == (0, "")
        assert {location: len(spans) for location, spans in receiver.stored.items()} == {"acme": 100, "globex": 100}
        ended = await run_in_process(*arguments, "--location", "other")
    assert (ended.exit_code, len(receiver.stored["other"])) == (0, 200)


async def test_the_file_is_appended_to_and_other_users_cannot_read_it(tmp_path: Path) -> None:
    path = tmp_path / "spans.jsonl"
    await written(path, batch_of(make_span("first")))
    await written(str(path), batch_of(make_span("second")))
    assert names_in(path) == ["first", "second"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


async def test_the_file_stays_the_same_if_the_program_changes_its_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    exporter = JSONFileExporter("spans.jsonl", max_bytes=1)
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path / "other")
    for name in ("first", "second"):
        assert await exporter.export(batch_of(make_span(name))) == Delivered()
    await exporter.aclose()
    assert names_in(tmp_path / "spans.jsonl") == ["second"]


# -- cancellation, closing, the event loop -------------------------------------------------------------------------


async def test_a_cancelled_export_writes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "spans.jsonl"
    exporter = JSONFileExporter(path)
    with trio.CancelScope() as scope:
        scope.cancel()
        await exporter.export(batch_of(make_span()))
    assert scope.cancelled_caught
    assert lines_of(path) == []
    await exporter.aclose()


async def test_every_export_and_every_close_checkpoints_and_long_batches_do_repeatedly(tmp_path: Path) -> None:
    exporter = JSONFileExporter(tmp_path / "spans.jsonl")
    with trio.testing.assert_checkpoints():
        await exporter.export(batch_of(make_span()))

    class Counter(trio.abc.Instrument):
        steps = 0

        def before_task_step(self, task: trio.lowlevel.Task) -> None:
            self.steps += 1

    batch = batch_of(*make_spans(1000))
    trio.lowlevel.add_instrument(counter := Counter())
    await exporter.export(batch)
    trio.lowlevel.remove_instrument(counter)
    assert counter.steps > 1000 / 20
    for _ in range(2):
        with trio.testing.assert_checkpoints():
            await exporter.aclose()


async def test_a_closed_exporter_writes_nothing_and_cannot_be_used_by_another_batcher(tmp_path: Path) -> None:
    path = tmp_path / "spans.jsonl"
    exporter = JSONFileExporter(path)
    with trio.CancelScope() as scope:
        scope.cancel()
        await exporter.aclose()
    assert exporter.closed
    with pytest.raises(trio.ClosedResourceError):
        await exporter.export(batch_of(make_span()))
    with pytest.raises(trio.ClosedResourceError, match="JSONFileExporter is closed"):
        async with SpanBatcher(exporter):
            pass
    assert lines_of(path) == []


async def test_exports_of_several_locations_at_once_do_not_mix_their_lines(tmp_path: Path) -> None:
    path = tmp_path / "spans.jsonl"
    exporter = JSONFileExporter(path, max_bytes=100_000, keep=1000)
    async with trio.open_nursery() as nursery:
        for number in range(20):
            nursery.start_soon(exporter.export, batch_of(*make_spans(100), location=str(number)))
    await exporter.aclose()
    found = [line["location"] for file in tmp_path.iterdir() for line in lines_of(file)]
    assert sorted(found, key=int) == [str(number) for number in range(20)]


async def test_it_uses_no_thread_so_that_a_run_on_the_mock_clock_repeats(
    tmp_path: Path, autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forbidden(*_: object, **__: object) -> None:
        raise AssertionError("a thread was used")

    monkeypatch.setattr(trio.to_thread, "run_sync", forbidden)
    monkeypatch.setattr(trio.lowlevel, "start_thread_soon", forbidden)
    path = tmp_path / "spans.jsonl"
    async with SpanBatcher(JSONFileExporter(path), batch=BatchPolicy(max_delay=5)) as batcher:
        for _ in range(10):
            await batcher.add_spans("acme", make_spans(10))
            await trio.sleep(3)
    assert batcher.statistics().delivered == 100
    assert trio.current_time() == autojump_clock.current_time()
    assert [len(list(read_request(line))) for line in lines_of(path)] == [20] * 5


# -- torn lines, full disks ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("torn", [b"{", b'{"resourceSpans":[{"res', b"x" * 200_000, b"\x00" * 70_000])
async def test_an_incomplete_last_line_is_cut_off_at_the_next_start(tmp_path: Path, torn: bytes) -> None:
    path = tmp_path / "spans.jsonl"
    await written(path, batch_of(make_span("first")))
    with path.open("ab") as file:
        file.write(torn)
    await written(path, batch_of(make_span("second")))
    assert names_in(path) == ["first", "second"]


async def test_a_file_with_nothing_but_an_incomplete_line_becomes_empty(tmp_path: Path) -> None:
    path = tmp_path / "spans.jsonl"
    path.write_bytes(b'{"resourceSpans":' + b"[" * 100_000)
    await written(path)
    assert path.read_bytes() == b""


def test_a_file_of_another_kind_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("my notes")
    with pytest.raises(
        ValueError, match=r"notes\.txt exists and does not contain JSON lines; give the path of another"
    ):
        JSONFileExporter(path)
    assert path.read_text() == "my notes"


@contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    """Let this process write files of at most ``size`` bytes, as on a full disk: writes are cut short, then fail."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)


async def test_if_the_disk_is_full_nothing_of_the_line_remains_and_it_is_written_later(tmp_path: Path) -> None:
    path = tmp_path / "spans.jsonl"
    exporter = JSONFileExporter(path)
    assert await exporter.export(batch_of(make_span("first"))) == Delivered()
    size = path.stat().st_size
    batch = batch_of(make_span("second"))
    with file_size_limit(size + 10):
        result = await exporter.export(batch)
    assert result == TryLater(f"cannot write to {path}: File too large", endpoint=True)
    assert path.stat().st_size == size
    assert await exporter.export(batch) == Delivered()
    await exporter.aclose()
    assert names_in(path) == ["first", "second"]


async def test_a_batcher_repeats_what_a_full_disk_did_not_take(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    path = tmp_path / "spans.jsonl"
    async with SpanBatcher(JSONFileExporter(path), retry=RetryPolicy(initial=1)) as batcher:
        await batcher.add_spans("acme", make_spans(10))
        with file_size_limit(100):
            with trio.move_on_after(10):
                await batcher.flush()
            assert path.read_bytes() == b""
        report = await batcher.flush()
    assert report.delivered == 10
    assert batcher.statistics().ambiguous == 0
    assert len(names_in(path)) == 10


async def test_a_file_that_another_program_renamed_or_deleted_is_made_again(tmp_path: Path) -> None:
    path = tmp_path / "spans.jsonl"
    exporter = JSONFileExporter(path)
    await exporter.export(batch_of(make_span("first")))
    path.rename(tmp_path / "moved")
    assert await exporter.export(batch_of(make_span("second"))) == Delivered()
    path.unlink()
    assert await exporter.export(batch_of(make_span("third"))) == Delivered()
    await exporter.aclose()
    assert names_in(tmp_path / "moved") == ["first"]
    assert names_in(path) == ["third"]


async def test_a_directory_that_has_gone_is_a_failure_that_is_repeated(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    exporter = JSONFileExporter(folder / "spans.jsonl")
    (folder / "spans.jsonl").unlink()
    folder.rmdir()
    result = await exporter.export(batch_of(make_span()))
    assert isinstance(result, TryLater)
    assert result.reason.endswith("No such file or directory")
    folder.mkdir()
    assert await exporter.export(batch_of(make_span())) == Delivered()
    await exporter.aclose()


async def test_only_one_exporter_can_write_to_a_file_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "spans.jsonl"
    exporter = JSONFileExporter(path)
    with pytest.raises(BlockingIOError, match="another exporter or process is writing to this file"):
        JSONFileExporter(path)
    # The copy of the file in a forked child does not keep the lock.
    read_end, write_end = os.pipe()
    child = os.fork()
    if not child:
        os.close(write_end)
        os.read(read_end, 1)
        os._exit(0)
    await exporter.aclose()
    await JSONFileExporter(path).aclose()
    os.close(write_end)
    os.waitpid(child, 0)  # noqa: ASYNC222  # it ends at once
    os.close(read_end)


# -- rotation ------------------------------------------------------------------------------------------------------


def numbered(path: Path) -> dict[str, list[str]]:
    """Return the names of the spans in each file, by what is appended to the name of ``path``."""
    return {file.name.removeprefix(path.name): names_in(file) for file in sorted(path.parent.iterdir())}


async def test_a_file_is_never_larger_than_max_bytes_and_keep_files_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "spans.jsonl"
    exporter = JSONFileExporter(path, max_bytes=1000, keep=3)
    for number in range(20):
        assert await exporter.export(batch_of(make_span(f"{number:02}"))) == Delivered()
        assert path.stat().st_size <= 1000
    await exporter.aclose()
    files = numbered(path)
    assert list(files) == ["", ".1", ".2"]
    newest_last = files[".2"] + files[".1"] + files[""]
    assert newest_last == [f"{number:02}" for number in range(20 - len(newest_last), 20)]
    assert all(len(names) > 1 for names in (files[".1"], files[".2"]))


@pytest.mark.parametrize("keep", [1, 2, 5])
async def test_a_line_larger_than_max_bytes_gets_a_file_of_its_own(tmp_path: Path, keep: int) -> None:
    path = tmp_path / "spans.jsonl"
    await written(path, *(batch_of(make_span(str(number))) for number in range(10)), max_bytes=1, keep=keep)
    assert [*numbered(path).values()] == [[str(9 - place)] for place in range(keep)]


async def test_the_size_of_a_file_from_an_earlier_run_counts(tmp_path: Path) -> None:
    path = tmp_path / "spans.jsonl"
    await written(path, batch_of(make_span("first")))
    await written(path, batch_of(make_span("second")), max_bytes=path.stat().st_size + 1)
    assert numbered(path) == {"": ["second"], ".1": ["first"]}


@pytest.mark.parametrize(
    ("files", "moves"),
    [
        (1, [("", ".1")]),
        (2, [(".1", ".2")]),
        (2, [(".1", ".2"), ("", ".1")]),
    ],
)
async def test_a_kill_between_the_steps_of_a_rotation_loses_no_line(
    tmp_path: Path, files: int, moves: list[tuple[str, str]]
) -> None:
    path = tmp_path / "spans.jsonl"
    await written(path, *(batch_of(make_span(f"before {number}")) for number in range(files)), max_bytes=1)
    for old, new in moves:
        Path(f"{path}{old}").rename(f"{path}{new}")
    await written(path, batch_of(make_span("after 0")), batch_of(make_span("after 1")), max_bytes=1)
    found = sorted(name for names in numbered(path).values() for name in names)
    assert found == ["after 0", "after 1", *(f"before {number}" for number in range(files))]


async def test_if_the_new_file_cannot_be_made_no_old_file_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "spans.jsonl"
    exporter = JSONFileExporter(path, max_bytes=1, keep=3)
    for name in ("first", "second"):
        await exporter.export(batch_of(make_span(name)))
    open_file = os.open

    def fail(*_: object) -> int:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(os, "open", fail)
    for _ in range(10):
        assert isinstance(await exporter.export(batch_of(make_span("third"))), TryLater)
    monkeypatch.setattr(os, "open", open_file)
    assert await exporter.export(batch_of(make_span("third"))) == Delivered()
    await exporter.aclose()
    assert numbered(path) == {"": ["third"], ".1": ["second"], ".2": ["first"]}


# -- arguments -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"path": 5}, TypeError, "path is 5; it must be a str or a Path"),
        ({"path": b"x"}, TypeError, "path is b'x'; it must be a str or a Path"),
        ({"max_bytes": "1"}, TypeError, "max_bytes is '1'; it must be an int of at least 1"),
        ({"max_bytes": True}, TypeError, "max_bytes is True; it must be an int of at least 1"),
        ({"max_bytes": 0}, ValueError, "max_bytes is 0; it must be at least 1"),
        ({"keep": 0}, ValueError, "keep is 0; it must be at least 1"),
        ({"keep": 2.0}, TypeError, "keep is 2.0; it must be an int of at least 1"),
        ({"keep": None}, TypeError, "keep is None; it must be an int of at least 1"),
    ],
)
def test_a_wrong_argument_is_an_error_that_names_it(
    tmp_path: Path, arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error) as caught:
        JSONFileExporter(**{"path": tmp_path / "spans.jsonl", **arguments})
    assert str(caught.value) == message
    assert list(tmp_path.iterdir()) == []


def test_a_path_that_cannot_be_opened_is_an_error_at_once(tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError):
        JSONFileExporter(tmp_path)
    with pytest.raises(FileNotFoundError):
        JSONFileExporter(tmp_path / "missing" / "spans.jsonl")
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(ValueError, match="fifo is not a regular file; give the path of a file"):
        JSONFileExporter(tmp_path / "fifo")


async def test_a_location_with_a_lone_surrogate_is_written_as_an_escape(tmp_path: Path) -> None:
    async with SpanBatcher(JSONFileExporter(tmp_path / "spans.jsonl")) as batcher:
        batcher.add_span_nowait("\ud800", make_span())
    assert batcher.statistics().delivered == 1
    assert json.loads((tmp_path / "spans.jsonl").read_text())["location"] == "\ud800"
