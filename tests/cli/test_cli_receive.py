from __future__ import annotations

import errno
import json
import re
import signal
import socket
import sqlite3
import sys
from collections import Counter
from pathlib import Path

import httpx
import pytest
import trio

from tests.cli.support import Lines, request_line, run_command, run_in_process, span_document, start_command
from tests.support.paths import DATA_FOLDER, PROJECT
from trio_spanbatch import Delivered, SpanBatch, TryLater
from trio_spanbatch._http.exporter import OTLPExporter
from trio_spanbatch._spans.encoder import SpanEncoder
from trio_spanbatch.cli.otlp_json import read_request
from trio_spanbatch.cli.receive import Collector, CollectorCounts
from trio_spanbatch.cli.store import SpanStore
from trio_spanbatch.testing import OTLPReceiver

DATA = DATA_FOLDER / "agent-traces.jsonl"


def rows_of(path: Path, columns: str = "location, trace_id, span_id") -> list[tuple[object, ...]]:
    connection = sqlite3.connect(path)
    try:
        return list(connection.execute(f"SELECT {columns} FROM spans"))
    finally:
        connection.close()


def batch_of(*numbers: int, location: str = "a") -> SpanBatch:
    document = json.loads(request_line(*[span_document(number) for number in numbers]))
    encoder = SpanEncoder()
    return SpanBatch(
        location, [encoder.encode(span) for span in read_request(document) if not isinstance(span, Exception)]
    )


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_spans_from_send_are_stored_and_a_signal_ends_receive_cleanly(
    tmp_path: Path, number: signal.Signals
) -> None:
    store = tmp_path / "spans.db"
    async with trio.open_nursery() as nursery:
        process = await start_command(nursery, "receive", "--port", 0, "--store", store, "--location-header", "X-T")
        lines = Lines(process.stdout)
        listening = await lines.next()
        assert listening.startswith("listening on http://127.0.0.1:")
        assert await lines.next() == f"storing in {store}"
        url = listening.removeprefix("listening on ")
        arguments = ["send", DATA, "--location-attribute", "tenant", "--location-header", "X-T", "--endpoint", url]
        first = await run_command(*arguments, "--json")
        again = await run_in_process(*arguments)
        assert (first.exit_code, again.exit_code) == (0, 0)
        delivered = first.document["delivered"]
        while not (await lines.next()).startswith(f"{delivered:,} spans, "):
            pass  # the first line may come before the last request
        process.send_signal(number)
        rest = await lines.rest()
        assert await process.wait() == 0
        assert await Lines(process.stderr).rest() == ""
    assert rest.splitlines()[-1].startswith(f"ended: {delivered:,} spans, ")
    assert f"{delivered:,} repeated" in rest
    rows = rows_of(store)
    assert len(rows) == len(set(rows)) == delivered
    expected = {name: counts["delivered"] for name, counts in first.document["locations"].items()}
    assert Counter(row[0] for row in rows) == expected


async def test_the_readmes_receive_command_keeps_the_location_that_its_exporter_sends() -> None:
    readme = (PROJECT / "README.md").read_text()
    (header,) = re.findall(r"^\$ \.venv/bin/trio-spanbatch receive --location-header (.*)$", readme, re.MULTILINE)
    (exporter,) = re.findall(r"`SpanBatcher\((OTLPExporter\.from_env\(.*\))\)`", readme)
    (example, *_) = re.findall(r"^```python\n(.*?)^```", readme, re.MULTILINE | re.DOTALL)
    example = example.replace("ConsoleExporter()", exporter).replace("ConsoleExporter", "OTLPExporter")
    async with OTLPReceiver(location_header=header) as receiver:
        base = receiver.url.removesuffix("/v1/traces")
        ended = await run_command(
            program=[sys.executable, "-c", example], environ={"OTEL_EXPORTER_OTLP_ENDPOINT": base}
        )
    assert (ended.exit_code, ended.err) == (0, "")
    assert list(receiver.stored) == ["acme"]


async def test_without_a_store_spans_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "spans.jsonl"
    path.write_bytes(request_line(span_document(1)))
    async with trio.open_nursery() as nursery:
        process = await start_command(nursery, "receive", "--port", 0)
        lines = Lines(process.stdout)
        url = (await lines.next()).removeprefix("listening on ")
        assert (await run_in_process("send", path, "--endpoint", url)).exit_code == 0
        assert await lines.next() == "1 span, 1 location, 1 request"
        process.send_signal(signal.SIGINT)
        assert await process.wait() == 0
        assert await lines.rest() == "ended: 1 span, 1 location, 1 request\n"


async def test_a_port_in_use_is_a_one_line_error_with_advice_and_leaves_no_file(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        ended = await run_in_process("receive", "--port", port, "--store", tmp_path / "spans.db")
    assert ended.exit_code == 1
    assert list(tmp_path.iterdir()) == []
    assert ended.err == (
        f"trio-spanbatch: cannot listen on 127.0.0.1:{port}: Address already in use; "
        "name another port with --port; 0 selects a free one\n"
    )


@pytest.mark.parametrize(
    "error",
    [
        socket.gaierror(socket.EAI_NONAME, "Name or service not known"),
        OSError(errno.EADDRNOTAVAIL, "Cannot assign requested address"),
    ],
)
async def test_a_host_that_is_not_this_machines_is_a_one_line_error_without_advice_about_ports(
    error: OSError, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refuse(*_arguments: object, **_options: object) -> None:
        await trio.lowlevel.checkpoint()
        raise error

    monkeypatch.setattr(trio, "open_tcp_listeners", refuse)
    ended = await run_in_process("receive", "--host", "collector.invalid", "--port", 1)
    assert ended.exit_code == 1
    assert ended.err == (
        f"trio-spanbatch: cannot listen on collector.invalid:1: {error.strerror}; name an address of this machine with "
        "--host: 127.0.0.1, or 0.0.0.0 for all\n"
    )


@pytest.mark.parametrize("command", ["receive", "demo"])
@pytest.mark.parametrize(("store", "words"), [("", "it is empty"), (":memory:", ":memory: is not a file")])
async def test_a_store_that_is_not_a_file_is_a_usage_error(command: str, store: str, words: str) -> None:
    ended = await run_in_process(command, "--store", store)
    assert ended.exit_code == 2
    assert ended.err.startswith(f"trio-spanbatch {command}: Invalid value for '--store': {words}")


async def test_a_store_that_cannot_be_opened_is_a_one_line_error_with_advice(tmp_path: Path) -> None:
    ended = await run_in_process("receive", "--port", 0, "--store", tmp_path / "missing" / "spans.db")
    assert ended.exit_code == 1
    assert ended.err == (
        f"trio-spanbatch: cannot store in {tmp_path / 'missing' / 'spans.db'}: unable to open database file; "
        "name another file with --store\n"
    )


async def test_a_file_that_is_not_a_store_is_a_one_line_error_with_advice(tmp_path: Path) -> None:
    other, text = tmp_path / "other.db", tmp_path / "notes.txt"
    connection = sqlite3.connect(other)
    connection.execute("CREATE TABLE spans (a, b)")
    connection.close()
    text.write_text("no database\n" * 100)
    for path, reason in (
        (other, "its table spans has different columns than trio-spanbatch's"),
        (text, "file is not a database"),
    ):
        ended = await run_in_process("receive", "--port", 0, "--store", path)
        assert (ended.exit_code, ended.out) == (1, "")
        assert ended.err == f"trio-spanbatch: cannot store in {path}: {reason}; name another file with --store\n"


async def test_an_invalid_header_name_is_a_usage_error() -> None:
    ended = await run_in_process("receive", "--port", 0, "--location-header", "a b")
    assert ended.exit_code == 2
    assert ended.err.startswith("trio-spanbatch receive: --location-header 'a b' is not a valid header name")


async def test_a_request_is_acknowledged_only_after_its_spans_are_committed(tmp_path: Path) -> None:
    path = tmp_path / "spans.db"
    store = SpanStore(path)
    warnings: list[str] = []
    collector = Collector(store, warnings.append)
    async with OTLPReceiver(listen=False, answers=collector.answer, on_request=collector.count) as receiver:
        exporter = OTLPExporter(receiver.url, transport=receiver.memory_transport())
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        refused = await exporter.export(batch_of(1, 2))
        other.execute("ROLLBACK")
        other.close()
        assert rows_of(path) == []
        accepted = await exporter.export(batch_of(1, 2))
        assert len(rows_of(path)) == 2
        await exporter.aclose()
    store.close()
    assert isinstance(refused, TryLater)
    assert (refused.after, refused.ambiguous) == (1.0, False)
    assert accepted == Delivered()
    assert warnings == ["cannot store spans: database is locked; answered 503, so that clients retry"]
    assert collector.counts == CollectorCounts(requests=2, refused=1, spans=2, locations=Counter(default=2))
    assert str(collector.counts) == "2 spans, 1 location, 2 requests, 1 refused"


async def test_spans_with_invalid_ids_are_rejected_and_the_others_are_stored() -> None:
    collector = Collector(None, lambda line: None)
    batch = batch_of(1, 2)
    message = batch.to_message()
    message.resource_spans[0].scope_spans[0].spans[0].span_id = b"short"
    async with OTLPReceiver(listen=False, answers=collector.answer, on_request=collector.count) as receiver:
        async with httpx.AsyncClient(transport=receiver.memory_transport()) as client:
            headers = {"content-type": "application/x-protobuf"}
            response = await client.post(receiver.url, content=message.SerializeToString(), headers=headers)
            nonsense = await client.post(receiver.url, content=b"nonsense", headers=headers)
        assert response.status_code == 200
        assert b"a trace id must have 16 bytes" in response.content
        assert nonsense.status_code == 400
        assert len(receiver.stored["default"]) == 1
    assert str(collector.counts) == "1 span, 1 location, 2 requests, 1 rejected, 1 refused"
