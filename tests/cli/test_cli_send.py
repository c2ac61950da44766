from __future__ import annotations

import gzip
import io
import json
import re
import signal
import socket
import subprocess
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio
import trio.testing
from click.testing import CliRunner
from rich.console import Console

from tests.cli.support import (
    Lines,
    clean_environment,
    command,
    request_document,
    request_line,
    run_command,
    run_in_process,
    span_document,
    start_command,
)
from tests.support.paths import DATA_FOLDER
from trio_spanbatch import (
    BatchPolicy,
    Delivered,
    ExportResult,
    Limits,
    Refused,
    RetryPolicy,
    Span,
    SpanBatch,
    SpanContext,
    TryLater,
)
from trio_spanbatch._http.exporter import OTLPExporter
from trio_spanbatch.cli import commands
from trio_spanbatch.cli.circuit_breaker import CircuitBreaker
from trio_spanbatch.cli.destinations import in_words_of_options
from trio_spanbatch.cli.input import InputFile
from trio_spanbatch.cli.screen import Screen
from trio_spanbatch.cli.send import MAX_ELAPSED, NO_ANSWER, LocationOf, SendResult, SendSettings, send
from trio_spanbatch.testing import Answer, Hang, InMemoryExporter, OTLPReceiver

DATA = DATA_FOLDER
COUNTS = ["read", "accepted", "delivered", "rejected", "undelivered", "ambiguous", "invalid", "requests", "retries"]


def screen_of_text(*, terminal: bool = False) -> tuple[Screen, io.StringIO, io.StringIO]:
    out, err = io.StringIO(), io.StringIO()
    consoles = [Console(file=file, force_terminal=terminal, width=200, highlight=False) for file in (out, err)]
    return Screen(*consoles), out, err


def settings_for(files: Sequence[Path | str], **options: Any) -> SendSettings:
    defaults: dict[str, Any] = {
        "location_of": LocationOf(),
        "batch": BatchPolicy(),
        "limits": Limits(),
        "retry": RetryPolicy(max_elapsed=MAX_ELAPSED),
    }
    return SendSettings(files=[str(file) for file in files], **{**defaults, **options})


async def send_files(exporter: Any, *files: Path | str, **options: Any) -> tuple[SendResult, str]:
    """Send files in this process. Return the result and the text that was printed to stderr."""
    screen, out, err = screen_of_text()
    result = await send(settings_for(files, **options), exporter, screen)
    assert out.getvalue() == ""
    return result, err.getvalue()


def counts_of(result: SendResult) -> dict[str, Any]:
    return result.tally.document(result.statistics)


@pytest.fixture
def lines(tmp_path: Path) -> Path:
    """A file of three requests with two spans each."""
    path = tmp_path / "spans.jsonl"
    requests = [request_line(span_document(2 * n + 1), span_document(2 * n + 2), tenant=f"t{n}") for n in range(3)]
    path.write_bytes(b"".join(requests))
    return path


async def test_spans_arrive_with_their_resources_and_scopes_in_their_locations() -> None:
    async with OTLPReceiver(location_header="X-Scope-OrgID") as receiver:
        ended = await run_command(
            "send",
            DATA / "agent-traces.jsonl",
            "--endpoint",
            receiver.url,
            "--location-attribute",
            "tenant",
            "--location-header",
            "X-Scope-OrgID",
            "--json",
        )
    assert ended.exit_code == 0
    assert ended.err == ""
    expected = [
        span["spanId"]
        for line in (DATA / "agent-traces.jsonl").read_text().splitlines()
        for resource_spans in json.loads(line)["resourceSpans"]
        for scope_spans in resource_spans["scopeSpans"]
        for span in scope_spans["spans"]
    ]
    assert sorted(span.span_id.hex() for spans in receiver.stored.values() for span in spans) == sorted(expected)
    document = ended.document
    assert document["read"] == document["accepted"] == document["delivered"] == len(expected)
    assert document["locations"].keys() == receiver.stored.keys()
    for request in receiver.requests:
        assert request.message is not None
        for resource_spans in request.message.resource_spans:
            tenants = [pair.value.string_value for pair in resource_spans.resource.attributes if pair.key == "tenant"]
            assert tenants == [request.location]
            assert all(scope_spans.scope.name for scope_spans in resource_spans.scope_spans)


async def test_the_json_document_has_the_same_counts_for_all_and_for_each_location(lines: Path) -> None:
    exporter = InMemoryExporter()
    result, _ = await send_files(exporter, lines, location_of=LocationOf(attribute="tenant"))
    document = counts_of(result)
    locations = document.pop("locations")
    assert list(document) == COUNTS
    assert sorted(locations) == ["t0", "t1", "t2"]
    for counts in locations.values():
        assert list(counts) == COUNTS
        assert counts["read"] == counts["accepted"] == counts["delivered"] == 2
    for name in COUNTS:
        assert document[name] == sum(counts[name] for counts in locations.values())


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gzip"])
async def test_one_document_over_several_lines_is_sent(tmp_path: Path, packed: bool) -> None:
    data = json.dumps(request_document(span_document(1), span_document(2)), indent=2).encode()
    path = tmp_path / "trace.json"
    path.write_bytes(gzip.compress(data) if packed else data)
    exporter = InMemoryExporter()
    result, err = await send_files(exporter, path, DATA / "otlp-example-trace.json")
    assert (result.exit_code, err) == (0, "")
    assert len(exporter.delivered["default"]) == 3


async def test_standard_input_may_be_gzip(lines: Path) -> None:
    async with OTLPReceiver() as receiver:
        ended = await run_command("send", "-", "--endpoint", receiver.url, stdin=gzip.compress(lines.read_bytes()))
    assert (ended.exit_code, ended.err) == (0, "")
    assert len(receiver.stored["default"]) == 6


async def test_spans_from_a_pipe_are_sent_while_it_is_open_and_a_signal_ends_it(lines: Path) -> None:
    async with OTLPReceiver() as receiver, trio.open_nursery() as nursery:
        process = await start_command(nursery, "send", "-", "--endpoint", receiver.url, "--max-delay", "0.01", "--json")
        assert process.stdin is not None
        await process.stdin.send_all(lines.read_bytes())
        await receiver.wait_for_requests(1)
        process.send_signal(signal.SIGTERM)
        document = json.loads(await Lines(process.stdout).rest())
        assert await Lines(process.stderr).rest() == "interrupted: the rest of the input was not read\n"
        assert await process.wait() == 128 + signal.SIGTERM
    assert document["read"] == document["delivered"] == 6


async def test_ctrl_c_drains_and_prints_the_summary(lines: Path) -> None:
    async with OTLPReceiver() as receiver, trio.open_nursery() as nursery:
        process = await start_command(nursery, "send", lines, "-", "--endpoint", receiver.url, "--max-spans", "4")
        # A full batch was sent, and two spans wait for more.
        await receiver.wait_for_requests(1)
        process.send_signal(signal.SIGINT)
        out = await Lines(process.stdout).rest()
        assert await process.wait() == 128 + signal.SIGINT
    assert out.splitlines()[1].split() == ["default", "6", "6", "6", "0", "0", "0", "0", "2", "0"]
    assert len(receiver.stored["default"]) == 6


async def test_a_second_ctrl_c_ends_the_drain_at_once_and_all_spans_are_accounted_for(lines: Path) -> None:
    async with OTLPReceiver(answers=[Answer(200), Hang()]) as receiver, trio.open_nursery() as nursery:
        arguments = ("--endpoint", receiver.url, "--max-spans", "4", "--max-delay", "3600", "--json")
        process = await start_command(nursery, "send", lines, "-", *arguments)
        # A full batch was sent, and two spans wait for more. They are sent, and hang, when the drain has begun.
        await receiver.wait_for_requests(1)
        process.send_signal(signal.SIGINT)
        await receiver.wait_for_requests(2)
        process.send_signal(signal.SIGINT)
        document = json.loads(await Lines(process.stdout).rest())
        assert await process.wait() == 128 + signal.SIGINT
    assert document["read"] == document["accepted"] == 6
    assert (document["delivered"], document["undelivered"], document["ambiguous"]) == (4, 2, 2)


async def test_errors_are_reported_with_file_and_line_and_the_rest_is_sent(tmp_path: Path) -> None:
    path = tmp_path / "spans.jsonl"
    path.write_bytes(
        request_line(span_document(1), span_document(2, traceId="5B8E"), span_document(3))
        + b"nonsense\n\n"
        + b"[1, 2]\n"
        + request_line(span_document(4, endTimeUnixNano=-1), span_document(5))
        + request_line(span_document(6), 7)
        + b"\xff\n"
        + request_line(span_document(8))
    )
    exporter = InMemoryExporter()
    result, err = await send_files(exporter, path)
    assert [line.split(": ")[0] for line in err.splitlines()] == [f"{path}:{line}" for line in (1, 2, 4, 5, 6, 7)]
    assert "traceId is '5B8E'" in err.splitlines()[0]
    document = counts_of(result)
    assert (document["read"], document["accepted"], document["invalid"]) == (11, 5, 6)
    assert document["locations"]["default"]["invalid"] == 6
    assert result.exit_code == 1


async def test_a_truncated_gzip_file_is_sent_up_to_its_end(tmp_path: Path, lines: Path) -> None:
    path = tmp_path / "spans.gz"
    path.write_bytes(gzip.compress(lines.read_bytes() * 100)[:-10])
    exporter = InMemoryExporter()
    result, err = await send_files(exporter, path, lines)
    assert err.startswith(f"{path}:")
    assert "the gzip data is damaged" in err
    assert len(err.splitlines()) == 1
    document = counts_of(result)
    assert document["invalid"] == 1
    # All of the damaged file, except the end that its missing bytes encode, and the six spans of the other file.
    assert 500 < document["delivered"] - 6 < 600
    assert result.exit_code == 1


PRETTY = json.dumps(request_document(span_document(1), span_document(2)), indent=2).encode()


def with_a_wrong_checksum(packed: bytes) -> bytes:
    return packed[:-8] + bytes([packed[-8] ^ 1]) + packed[-7:]


@pytest.mark.parametrize(
    "stored",
    [
        gzip.compress(PRETTY) + b"junk",
        gzip.compress(request_line(span_document(1), span_document(2)).strip()) + b"junk",
        with_a_wrong_checksum(gzip.compress(PRETTY)),
    ],
    ids=["after a document", "after a line without an end", "checksum"],
)
async def test_damage_at_the_end_of_a_gzip_file_loses_no_complete_request(tmp_path: Path, stored: bytes) -> None:
    path = tmp_path / "spans.gz"
    path.write_bytes(stored)
    result, err = await send_files(InMemoryExporter(), path)
    (line,) = err.splitlines()
    assert "the gzip data is damaged" in line
    document = counts_of(result)
    assert (document["delivered"], document["invalid"], result.exit_code) == (2, 1, 1)


async def test_a_request_cut_off_by_damage_is_reported_once_and_no_part_of_it_is_read_as_a_document(
    tmp_path: Path,
) -> None:
    path = tmp_path / "spans.gz"
    path.write_bytes(gzip.compress(PRETTY[:-2])[:-4])
    number = tmp_path / "number.gz"
    number.write_bytes(gzip.compress(b"12345")[:-4])
    result, err = await send_files(InMemoryExporter(), path, number)
    assert [line.partition(": ")[2][:24] for line in err.splitlines()] == ["the gzip data is damaged"] * 2
    assert counts_of(result)["read"] == 2


async def test_a_closed_standard_input_is_a_one_line_error(lines: Path) -> None:
    program = ["sh", "-c", 'exec "$@" <&-', "sh", *command("send", "-")]
    ended = await run_command(program=program, environ={"OTEL_SDK_DISABLED": "true"})
    assert ended.exit_code == 1
    assert ended.err == "<stdin>:1: standard input is closed\n"


async def test_the_rest_of_a_non_blocking_standard_input_is_waited_for(lines: Path) -> None:
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    first, *rest = lines.read_bytes().splitlines(keepends=True)
    async with OTLPReceiver() as receiver, trio.open_nursery() as nursery:
        arguments = command("send", "-", "--endpoint", receiver.url, "--max-delay", "0.01")
        run = partial(trio.run_process, arguments, stdin=theirs, env=clean_environment(), stdout=subprocess.DEVNULL)
        nursery.start_soon(run)
        with ours:
            ours.sendall(first)
            # The first part was sent, so all data so far has been read.
            await receiver.wait_for_requests(1)
            ours.sendall(b"".join(rest))
    theirs.close()
    assert len(receiver.stored["default"]) == 6


async def test_a_file_without_spans_is_reported(tmp_path: Path) -> None:
    path = tmp_path / "empty.jsonl"
    path.write_bytes(b'{"resourceSpans": []}\n\n{}\n')
    result, err = await send_files(InMemoryExporter(), path)
    assert err == f"{path}: contains no spans\n"
    assert counts_of(result) == {**dict.fromkeys(COUNTS, 0), "locations": {}}
    assert result.exit_code == 0


def span_with(attributes: dict[str, Any]) -> Span:
    return Span("x", SpanContext(1, 1), start_time=1, end_time=2, attributes=attributes)


def test_a_long_invalid_location_is_not_printed_in_full() -> None:
    with pytest.raises(ValueError, match=r"tenant. is b.xxx.*; it must be a string$") as caught:
        LocationOf(attribute="tenant")(span_with({"tenant": b"x" * 1_000_000}))
    assert len(str(caught.value)) < 300


async def test_the_location_is_the_spans_attribute_else_the_resources_else_the_span_is_invalid(tmp_path: Path) -> None:
    path = tmp_path / "spans.jsonl"
    path.write_bytes(
        request_line(span_document(1), span_document(2, tenant="of the span"), tenant="of the resource")
        + request_line(span_document(3), span_document(4, tenant=7), span_document(5, tenant=True))
    )
    exporter = InMemoryExporter()
    result, err = await send_files(exporter, path, location_of=LocationOf(attribute="tenant"))
    assert sorted(exporter.delivered) == ["7", "of the resource", "of the span"]
    assert err.splitlines() == [
        f"{path}:2: span 1: no location: neither the span nor its resource has an attribute 'tenant'",
        f"{path}:2: span 3: no location: the attribute 'tenant' is True; it must be a string",
    ]
    document = counts_of(result)
    assert (document["read"], document["accepted"], document["invalid"]) == (5, 3, 2)
    # The location of these two is unknown: they are counted in the totals and in no location.
    assert sum(counts["invalid"] for counts in document["locations"].values()) == 0


async def test_a_location_that_cannot_be_sent_makes_the_span_invalid(tmp_path: Path) -> None:
    path = tmp_path / "spans.jsonl"
    path.write_bytes(request_line(span_document(1, tenant="a\r\nb"), span_document(2, tenant="a")))
    async with OTLPReceiver(location_header="X-T") as receiver:
        exporter = OTLPExporter(receiver.url, location_header="X-T")
        result, err = await send_files(exporter, path, location_of=LocationOf(attribute="tenant"))
    assert err.startswith(f"{path}:1: span 1: location 'a\\r\\nb' cannot be sent in a header")
    assert counts_of(result)["locations"]["a\r\nb"]["invalid"] == 1
    assert list(receiver.stored) == ["a"]


async def test_a_span_whose_location_is_too_long_is_left_out_and_the_location_is_not_printed_in_full(
    tmp_path: Path,
) -> None:
    path = tmp_path / "spans.jsonl"
    path.write_bytes(request_line(span_document(1, tenant="x" * 1_000_000)))
    exporter = OTLPExporter("http://127.0.0.1:1/v1/traces")
    result, err = await send_files(exporter, path, location_of=LocationOf(attribute="tenant"))
    assert "has 1000000 characters; at most 1024 are allowed" in err
    assert "it is the value of the attribute 'tenant'" in err
    assert len(err) < 1000
    assert len(repr(counts_of(result))) < 1000


async def test_an_attribute_that_is_not_a_location_is_named_and_adds_no_row_without_a_name(
    tmp_path: Path,
) -> None:
    path = tmp_path / "spans.jsonl"
    path.write_bytes(request_line(span_document(1, tenant=""), span_document(2, tenant="a b "), span_document(3)))
    exporter = OTLPExporter("http://127.0.0.1:1/v1/traces", location_header="X-T")
    result, err = await send_files(exporter, path, location_of=LocationOf(attribute="tenant"))
    assert err.splitlines() == [
        f"{path}:1: span 1: no location: the attribute 'tenant' is ''; it must not be empty",
        (
            f"{path}:1: span 2: location 'a b ' cannot be sent in a header: it must be printable ASCII, not empty, "
            "without leading or trailing spaces; it is the value of the attribute 'tenant'"
        ),
        f"{path}:1: span 3: no location: neither the span nor its resource has an attribute 'tenant'",
    ]
    assert list(counts_of(result)["locations"]) == ["a b "]


async def test_spans_of_old_versions_of_otlp_are_reported_once_per_file(
    tmp_path: Path,
) -> None:
    old = {"resourceSpans": [{"instrumentationLibrarySpans": [{"spans": [span_document(1)]}]}]}
    path = tmp_path / "old.jsonl"
    path.write_bytes(3 * (json.dumps(old).encode() + b"\n") + request_line(span_document(2)))
    result, err = await send_files(InMemoryExporter(), path)
    (line,) = err.splitlines()
    assert line.startswith(f"{path}:1: has instrumentationLibrarySpans")
    assert (counts_of(result)["delivered"], counts_of(result)["invalid"], result.exit_code) == (1, 1, 1)


async def test_a_span_that_is_too_large_for_any_request_is_reported_without_the_names_of_arguments(lines: Path) -> None:
    limits = Limits(max_pending_bytes_per_location=10)
    _, err = await send_files(InMemoryExporter(), lines, limits=limits, words=in_words_of_options)
    assert re.search(
        r"span 1: the span has \d+ bytes with resource and scope, and can never fit: no request has more than 10$",
        err,
        re.MULTILINE,
    )
    assert "Limits" not in err


async def test_a_document_that_is_in_several_files_is_sent_each_time(lines: Path) -> None:
    exporter = InMemoryExporter()
    result, err = await send_files(exporter, lines, lines, lines)
    assert err == ""
    assert (counts_of(result)["read"], counts_of(result)["delivered"]) == (18, 18)
    assert len({span.to_message().span_id for span in exporter.delivered["default"]}) == 6


async def test_all_spans_have_the_location_of_the_option(lines: Path) -> None:
    exporter = InMemoryExporter()
    await send_files(exporter, lines, location_of=LocationOf("main.a.spans"))
    assert list(exporter.delivered) == ["main.a.spans"]


async def test_more_locations_than_may_live_at_once_are_all_sent_and_listed(tmp_path: Path) -> None:
    path = tmp_path / "spans.jsonl"
    tenants = [f"t{n}" for n in range(10)]
    spans = [request_line(span_document(n + 1, tenant=tenant)) for n, tenant in enumerate([*tenants, *tenants])]
    path.write_bytes(b"".join(spans))
    exporter = InMemoryExporter()
    result, err = await send_files(
        exporter, path, location_of=LocationOf(attribute="tenant"), limits=Limits(max_locations=3)
    )
    assert (result.exit_code, err) == (0, "")
    assert len(exporter.delivered) == 10
    locations = counts_of(result)["locations"]
    assert {tenant: counts["delivered"] for tenant, counts in locations.items()} == dict.fromkeys(tenants, 2)


async def test_a_full_queue_makes_the_reader_wait_and_memory_stays_flat(tmp_path: Path) -> None:
    path = tmp_path / "spans.jsonl"
    path.write_bytes(b"".join(request_line(*[span_document(10 * n + k + 1) for k in range(10)]) for n in range(20)))
    queued = []

    class Exporter(InMemoryExporter):
        async def export(self, batch: SpanBatch) -> ExportResult:
            queued.append(len(batch.spans))
            return await super().export(batch)

    result, _ = await send_files(Exporter(), path, limits=Limits(max_queued_spans=10), batch=BatchPolicy(max_spans=5))
    assert sum(queued) == counts_of(result)["delivered"] == 200
    assert max(queued) == 5


async def test_rejected_spans_are_counted_and_explained(lines: Path) -> None:
    result, err = await send_files(InMemoryExporter(lambda batch: Refused("404 Not Found", 404)), lines)
    assert err == ""
    assert list(result.explanations()) == ["default: 6 rejected: 404 Not Found"]
    assert counts_of(result)["rejected"] == 6
    assert result.exit_code == 1


async def test_send_gives_up_with_advice_if_no_request_is_ever_answered(
    lines: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def give_up_after_a_failure(self: CircuitBreaker) -> None:
        while not self.failure:  # noqa: ASYNC110  # there is no event for it
            await trio.sleep(1e-6)
        self.give_up()

    monkeypatch.setattr(CircuitBreaker, "wait_to_give_up", give_up_after_a_failure)
    ended = await run_with_patience(20.0, "http://127.0.0.1:1/v1/traces", lines)
    document = counts_of(ended)
    assert document["read"] == document["undelivered"] == 6
    # In the drain, the batch was handed back without another request.
    assert document["requests"] == document["locations"]["default"]["requests"] == 1
    assert document["retries"] == 0
    assert ended.exit_code == 1
    (line,) = ended.explanations()
    assert line.startswith("no request was ever answered: cannot connect to 127.0.0.1:1: ")
    assert "--endpoint" in line


async def run_with_patience(patience: float, url: str, *files: Path) -> SendResult:
    result, err = await send_files(OTLPExporter(url), *files, patience=patience)
    assert err == ""
    return result


async def test_send_gives_up_on_a_server_that_accepts_and_never_answers(lines: Path) -> None:
    async with OTLPReceiver(answers=lambda request: Hang()) as receiver:
        result = await run_with_patience(0.01, receiver.url, lines)
    assert counts_of(result)["undelivered"] == 6
    assert result.failure == "no answer from the server within 0.01 s"
    assert result.exit_code == 1


async def test_if_send_gives_up_it_reports_that_the_rest_was_not_read(lines: Path) -> None:
    limits = Limits(max_queued_spans=1)
    result, _ = await send_files(
        InMemoryExporter([Hang()]), lines, patience=0.01, server="localhost:4318", limits=limits
    )
    assert counts_of(result)["read"] < 6
    assert list(result.explanations()) == [
        f"no request was ever answered: no answer from localhost:4318 within 0.01 s; {NO_ANSWER}",
        "gave up: the rest of the input was not read",
    ]


async def test_a_server_that_answers_503_for_a_while_gets_everything(lines: Path) -> None:
    async with OTLPReceiver(answers=[Answer(503), Answer(503)]) as receiver:
        result, _ = await send_files(OTLPExporter(receiver.url), lines, retry=RetryPolicy(initial=0.001))
    document = counts_of(result)
    assert (document["delivered"], document["requests"], document["retries"]) == (6, 3, 2)
    assert result.exit_code == 0


# With the mock clock.


@pytest.fixture
def no_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock does not wait for threads, so files are read without one."""

    async def read(self: InputFile) -> bytes:
        await trio.lowlevel.checkpoint()
        return self._read()

    monkeypatch.setattr(InputFile, "read", read)


BUSY = TryLater("503 Service Unavailable", status_code=503)
BUSY_FOR_5_S = "default: requests have failed for 5 s, and are retried: 503 Service Unavailable\n"


@pytest.mark.usefixtures("no_threads")
async def test_a_location_that_keeps_failing_takes_five_minutes_and_not_five_for_each_batch(
    lines: Path, autojump_clock: trio.testing.MockClock
) -> None:
    exporter, began = InMemoryExporter(lambda batch: BUSY), trio.current_time()
    result, err = await send_files(exporter, lines, batch=BatchPolicy(max_spans=1))
    assert 250 < trio.current_time() - began < 340
    document = counts_of(result)
    assert document["undelivered"] == document["locations"]["default"]["undelivered"] == 6
    assert document["rejected"] == document["locations"]["default"]["rejected"] == 0
    assert document["requests"] == len(exporter.batches)
    assert document["retries"] == len(exporter.batches) - len({batch.spans[0] for batch in exporter.batches})
    assert list(result.explanations()) == ["default: 6 undelivered: retries exhausted: 503 Service Unavailable"]
    assert result.exit_code == 1
    # Reported early, and once.
    assert err == BUSY_FOR_5_S


@pytest.mark.usefixtures("no_threads")
async def test_a_retry_after_that_is_too_long_hands_back_all_spans_of_its_location_at_once_and_others_are_sent(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    path = tmp_path / "spans.jsonl"
    spans = [span_document(n, tenant="away" if n % 2 else "here") for n in range(1, 21)]
    path.write_bytes(b"".join(map(request_line, spans)))
    away, began = attrs.evolve(BUSY, after=3600.0), trio.current_time()
    exporter = InMemoryExporter(lambda batch: away if batch.location == "away" else Delivered())
    result, err = await send_files(
        exporter, path, location_of=LocationOf(attribute="tenant"), batch=BatchPolicy(max_spans=2)
    )
    assert trio.current_time() - began < 10
    assert err == ""
    locations = counts_of(result)["locations"]
    assert (locations["here"]["delivered"], locations["away"]["undelivered"]) == (10, 10)
    assert locations["away"]["requests"] == 1
    assert list(result.explanations()) == ["away: 10 undelivered: retries exhausted: 503 Service Unavailable"]


@pytest.mark.usefixtures("no_threads")
async def test_a_short_failure_is_not_reported(lines: Path, autojump_clock: trio.testing.MockClock) -> None:
    result, err = await send_files(InMemoryExporter([attrs.evolve(BUSY, after=4.0)]), lines)
    assert (result.exit_code, err) == (0, "")


@pytest.mark.usefixtures("no_threads")
async def test_a_long_failure_is_reported_once_in_a_line_that_counts_locations(
    lines: Path, autojump_clock: trio.testing.MockClock
) -> None:
    fails = attrs.evolve(BUSY, after=100.0)
    failed: set[str] = set()

    def once(batch: SpanBatch) -> ExportResult:
        is_first = batch.location not in failed
        failed.add(batch.location)
        return fails if is_first else Delivered()

    result, err = await send_files(InMemoryExporter(once), lines, location_of=LocationOf(attribute="tenant"))
    assert result.exit_code == 0
    (line,) = err.splitlines()
    assert re.fullmatch(
        r"t\d and 2 more locations: requests have failed for 5 s, and are retried: 503 Service Unavailable", line
    )


@pytest.mark.usefixtures("no_threads")
async def test_if_no_request_is_ever_answered_only_the_summary_reports_it(
    lines: Path, autojump_clock: trio.testing.MockClock
) -> None:
    exporter = InMemoryExporter(lambda batch: TryLater("cannot connect to localhost:4318: Connection refused"))
    began = trio.current_time()
    result, err = await send_files(exporter, lines)
    assert trio.current_time() - began == pytest.approx(20, abs=1)
    assert err == ""
    assert len(list(result.explanations())) == 1


@pytest.mark.usefixtures("no_threads")
async def test_the_last_failure_is_shown_below_the_progress_bar_and_cut_at_the_terminals_width(
    lines: Path, autojump_clock: trio.testing.MockClock
) -> None:
    screen, _, err = screen_of_text(terminal=True)
    exporter = InMemoryExporter([attrs.evolve(BUSY, reason="out for\nlunch " * 30, after=10.0)])
    result = await send(settings_for([lines]), exporter, screen)
    assert result.exit_code == 0
    assert "default: failing: out for\\nlunch out for" in err.getvalue()
    assert "requests fail" not in err.getvalue()
    assert "…" in err.getvalue()


async def test_options_reach_the_requests(lines: Path) -> None:
    async with OTLPReceiver(location_header="X-T", path="/custom") as receiver:
        ended = await run_in_process(
            *("send", lines, "--endpoint", receiver.url, "--location", "here", "--location-header", "X-T"),
            *("--header", "X-Key=a=b", "--header", "Authorization=Bearer s3cr3t-token", "--compression", "gzip"),
            *("--max-spans", 2, "--max-bytes", 100_000, "--max-delay", 1, "--timeout", 5),
        )
    assert ended.exit_code == 0
    assert [len(request.spans) for request in receiver.requests] == [2, 2, 2]
    for request in receiver.requests:
        assert request.location == "here"
        assert request.header("x-key") == "a=b"
        assert request.header("authorization") == "Bearer s3cr3t-token"
        assert request.header("content-encoding") == "gzip"
    assert "s3cr3t" not in ended.out + ended.err


async def test_the_environment_sets_the_endpoint_and_options_win(lines: Path) -> None:
    async with OTLPReceiver() as receiver:
        environ = {
            "OTEL_EXPORTER_OTLP_ENDPOINT": receiver.url.removesuffix("/v1/traces"),
            "OTEL_EXPORTER_OTLP_HEADERS": "x-key=env,x-other=env",
            "OTEL_EXPORTER_OTLP_COMPRESSION": "gzip",
            "OTEL_BSP_MAX_EXPORT_BATCH_SIZE": "3",
        }
        ended = await run_in_process("send", lines, "--header", "X-Key=mine", "--compression", "none", environ=environ)
    assert ended.exit_code == 0
    assert [len(request.spans) for request in receiver.requests] == [3, 3]
    for request in receiver.requests:
        assert (request.header("x-key"), request.header("x-other")) == ("mine", "env")
        assert request.header("content-encoding") is None


async def test_nothing_is_sent_if_the_sdk_is_disabled(lines: Path) -> None:
    ended = await run_in_process("send", lines, environ={"OTEL_SDK_DISABLED": "true"})
    assert ended.exit_code == 1
    assert ended.err == "default: 6 rejected: OTEL_SDK_DISABLED is true: nothing is sent\n"


async def test_the_summary_is_a_table_with_a_line_of_totals(lines: Path) -> None:
    async with OTLPReceiver() as receiver:
        ended = await run_in_process("send", lines, "--endpoint", receiver.url, "--location-attribute", "tenant")
    rows = [line.split() for line in ended.out.splitlines()]
    assert rows[0] == ["location", *COUNTS]
    assert [row[0] for row in rows[1:]] == ["t0", "t1", "t2", "total"]
    assert rows[-1] == ["total", "6", "6", "6", "0", "0", "0", "0", "3", "0"]
    # Without the header, the server gets all spans in one location.
    assert ended.err == "locations are not sent to the server; name a header for them with --location-header\n"


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ([], "Missing argument 'FILE...'"),
        (["missing.jsonl"], "File 'missing.jsonl' does not exist"),
        (["{here}"], "is a directory"),
        (["-", "--location", "a", "--location-attribute", "b"], "are mutually exclusive"),
        (["-", "--header", "s3cr3t"], "--header number 1 is not of the form NAME=VALUE"),
        (["-", "--header", "Authorization: Basic s3cr3t=="], "header 'Authorization' has a colon after its name"),
        (["-", "--endpoint", "http://me:s3cr3t?x@h/"], "--endpoint (not shown) contains a user name or password"),
        (["-", "--endpoint", "http://me:s3cr3t"], "--endpoint (not shown) is not a URL"),
        (["-", "--header", "A=s3cr3t\nx"], "the value of header 'A' (not shown)"),
        (["-", "--endpoint", "ftp://x"], "must begin with http:// or https://"),
        (["-", "--endpoint", "http://me:s3cr3t@x/"], "give them with --header"),
        (["-", "--max-spans", "0"], "0 is not in the range"),
        (["-", "--max-delay", "nan"], "'--max-delay': 'nan' is not a valid number of seconds"),
        (["-", "--timeout", "10s"], "'--timeout': '10s' is not a valid number of seconds"),
        (["-", "--timeout", "nan"], "'--timeout': 'nan' is not a valid number of seconds"),
        (["-", "--location", ""], "'--location': it is empty"),
        (["-", "--location-attribute", ""], "'--location-attribute': it is empty"),
        (["-", "--endpoint", ""], "'--endpoint': it is empty"),
        (["-", "--location-header", "a b"], "send: --location-header 'a b' is not a valid header name"),
        (
            ["-", "--location-header", "X-T", "--header", "x-t=1"],
            "--location-header 'X-T' is also given with --header or OTEL_EXPORTER_OTLP_HEADERS",
        ),
        (["-", "--timeout", "-1"], "-1.0 is not in the range"),
        (["-", "--compression", "br"], "'br' is not one of"),
    ],
)
def test_a_usage_error_is_reported_in_one_line_with_advice(arguments: list[str], error: str, tmp_path: Path) -> None:
    arguments = [argument.format(here=tmp_path) for argument in arguments]
    result = CliRunner().invoke(commands.cli, ["send", *arguments], prog_name="trio-spanbatch")
    assert result.exit_code == 2
    assert result.stdout == ""
    assert error in result.stderr
    assert result.stderr.endswith("; see trio-spanbatch send --help\n")
    assert len(result.stderr.splitlines()) == 1
    assert "s3cr3t" not in result.stderr


class UntilShown(InMemoryExporter):
    """Delivers nothing before a text is on the screen."""

    def __init__(self, screen: io.StringIO, text: str) -> None:
        super().__init__(lambda batch: Refused("no"))
        self._screen = screen
        self._text = text

    async def export(self, batch: SpanBatch) -> ExportResult:
        while self._text not in self._screen.getvalue():  # noqa: ASYNC110  # a screen has no event for output
            await trio.sleep(0.01)
        return await super().export(batch)


async def test_progress_moves_on_a_terminal(lines: Path) -> None:
    screen, _, err = screen_of_text(terminal=True)
    result = await send(settings_for([lines, lines]), UntilShown(err, "0 of 12 delivered"), screen)
    assert "reading" in err.getvalue()
    assert "delivering" in err.getvalue()
    assert counts_of(result)["rejected"] == 12


async def test_progress_shows_rejected_spans(lines: Path) -> None:
    screen, _, err = screen_of_text(terminal=True)

    class Exporter(UntilShown):
        async def export(self, batch: SpanBatch) -> ExportResult:
            if not self.batches:
                return await InMemoryExporter.export(self, batch)
            return await super().export(batch)

    await send(settings_for([lines], batch=BatchPolicy(max_spans=3)), Exporter(err, "3 rejected"), screen)
    assert "0 of 6 delivered, 3 rejected" in err.getvalue()


async def test_send_keeps_the_entity_refs_of_a_resource(tmp_path: Path) -> None:
    document = request_document(span_document(1))
    refs = [{"type": "service", "idKeys": ["service.name"], "descriptionKeys": [], "schemaUrl": ""}]
    document["resourceSpans"][0].setdefault("resource", {})["entityRefs"] = refs
    path = tmp_path / "spans.json"
    path.write_text(json.dumps(document))
    exporter = InMemoryExporter()
    await send_files(exporter, path)
    (batch,) = exporter.batches
    assert b"\x1a\x17\x12\x07service\x1a\x0cservice.name" in batch.to_request()
