from __future__ import annotations

import json
import os
import re
import signal
import stat
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import attrs
import pytest
import trio

from tests.cli.spool_support import leave, record, span, tenants
from tests.cli.support import Ended, command, give_up_after_the_first_failure, run_in_process, start_command
from tests.cli.test_cli_send import screen_of_text
from tests.spool.support import DiskPlace, contents
from tests.support.processes import reserved_port, run_to_end, wait_until
from trio_spanbatch import OTLPExporter, SpanBatcher, Spool
from trio_spanbatch._spool import disk
from trio_spanbatch._spool.disk import DiskStore
from trio_spanbatch._spool.files import Directory, File
from trio_spanbatch._spool.log import RECORDS_AT, VERSION, Head
from trio_spanbatch._spool.store import NewRecord
from trio_spanbatch.cli import spool as commands
from trio_spanbatch.testing import Answer, OTLPReceiver, ReceivedRequest, partial_success

ENDPOINT = "http://collector.test/v1/traces"
HEADER = "X-Scope-OrgID"
NOBODY = 65534


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "spool"


async def spool(*arguments: object) -> Ended:
    ended = await run_in_process("spool", *arguments)
    assert "Traceback" not in ended.err
    return ended


async def listed(directory: Path) -> dict[str, Any]:
    ended = await spool("list", directory, "--json")
    assert ended.exit_code == 0
    return ended.document


async def send(directory: Path, receiver: OTLPReceiver, *more: object) -> Ended:
    return await spool("send", directory, "--endpoint", receiver.url, "--location-header", HEADER, "--json", *more)


def ids(receiver: OTLPReceiver) -> dict[str, list[int]]:
    return {
        location: [int.from_bytes(stored.span_id, "big") for stored in spans]
        for location, spans in receiver.stored.items()
    }


def ids_of(records: Sequence[NewRecord]) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for new in records:
        numbers = [int.from_bytes(each.to_message().span_id, "big") for each in new.spans]
        found.setdefault(new.location, []).extend(numbers)
    return found


def content_of_files(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (directory / "trio-spanbatch").iterdir()}


# -- list ------------------------------------------------------------------------------------------------------


async def test_list_shows_spans_bytes_age_and_dead_letters_by_location(directory: Path) -> None:
    records = [record("a", span(1), span(2), age=7300), record("b", span(3), age=100), record("a", span(4), age=50)]
    dead = [(record("c", span(5)), "400 Bad Request: no")]
    await leave(directory, ENDPOINT, records, dead)
    ended = await spool("list", directory)
    assert (ended.exit_code, ended.err) == (0, "")
    heading, *lines = [line.split() for line in ended.out.splitlines()]
    assert heading == ["location", "spans", "bytes", "oldest", "dead"]
    rows = {line[0]: [line[1], *line[3:]] for line in lines[:4]}
    assert rows["a"] == ["3", "2", "h", "0"]
    assert rows["b"][0] == "1"
    assert rows["c"] == ["0", "-", "1"]
    assert rows["total"] == ["4", "2", "h", "1"]
    assert ended.out.endswith(f"for {ENDPOINT}\nc: 1 dead: 400 Bad Request: no\n")


async def test_list_as_json_has_every_location_and_the_sums(directory: Path) -> None:
    records = tenants(7)
    await leave(directory, ENDPOINT, records, [(record("tenant-1", span(99)), "why")])
    document = await listed(directory)
    assert (document["spans"], document["dead"], document["batchers_open"]) == (21, 1, 0)
    assert document["endpoints"] == [ENDPOINT]
    assert {name: counts["spans"] for name, counts in document["locations"].items()} == {
        "tenant-0": 9,
        "tenant-1": 6,
        "tenant-2": 6,
    }
    assert document["bytes"] == sum(counts["bytes"] for counts in document["locations"].values())
    assert 0 <= document["oldest_seconds"] < 3600


async def test_list_shows_25_locations_and_counts_the_others(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    await leave(directory, ENDPOINT, [record(f"tenant-{number:02}", span(number)) for number in range(1, 31)])
    ended = await spool("list", directory)
    assert "tenant-25" in ended.out
    assert "tenant-26" not in ended.out
    assert "and 5 more locations; --json shows them all" in ended.out
    monkeypatch.setattr(commands, "_MAX_LOCATIONS", 10)
    document = await listed(directory)
    assert len(document["locations"]) == 11
    assert document["locations"]["other locations"]["spans"] == 20


async def test_records_that_are_settled_are_not_listed(directory: Path) -> None:
    place = DiskPlace(directory)
    store = await place.opened(ENDPOINT)
    first, _ = await store.commit([record("a", span(1)), record("a", span(2))])
    await store.settle([first.token])
    place.end(store)
    assert (await listed(directory))["spans"] == 1


# -- every command ---------------------------------------------------------------------------------------------

ALL = [["list"], ["list", "--json"], ["check"], ["export"], ["delete", "--location", "a"], ["send"]]


@pytest.mark.parametrize("arguments", ALL, ids=" ".join)
async def test_an_empty_directory_is_no_error_and_stays_empty(arguments: list[str], tmp_path: Path) -> None:
    name, *options = arguments
    ended = await spool(name, tmp_path, *options)
    assert ended.exit_code == 0
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("arguments", ALL, ids=" ".join)
@pytest.mark.parametrize("kind", ["missing", "a file"])
async def test_a_missing_directory_is_an_error_of_one_line(kind: str, arguments: list[str], tmp_path: Path) -> None:
    directory = tmp_path / "given"
    if kind == "a file":
        directory.write_text("text")
    name, *options = arguments
    ended = await spool(name, directory, *options)
    assert (ended.exit_code, ended.out) == (1, "")
    words = "does not exist; name the one that" if kind == "missing" else "Not a directory; neither it nor"
    assert re.fullmatch(rf"trio-spanbatch.*{directory}:? {words}.*\n", ended.err)


@pytest.mark.parametrize("arguments", ALL, ids=" ".join)
async def test_an_empty_name_is_not_the_current_directory(arguments: list[str]) -> None:
    name, *options = arguments
    ended = await spool(name, "", *options)
    assert (ended.exit_code, ended.out) == (2, "")
    assert re.fullmatch(r"trio-spanbatch spool .*'DIR': it is empty; give the directory that .*\n", ended.err)


@pytest.mark.parametrize("arguments", ALL, ids=" ".join)
async def test_files_of_an_open_batcher_are_left_alone_and_one_line_says_so(
    arguments: list[str], directory: Path
) -> None:
    place = DiskPlace(directory)
    store = await place.opened(ENDPOINT)
    await store.commit([record("a", span(1))])
    before = content_of_files(directory)
    name, *options = arguments
    ended = await spool(name, directory, *options)
    assert f"{directory}: a batcher has it open; the files that are in use were left alone\n" in ended.err
    assert ended.exit_code == (1 if name == "delete" else 0)
    assert "intact: 0 spans" in ended.out or name != "check"
    assert content_of_files(directory) == before
    await store.close()


@pytest.mark.parametrize("arguments", ALL, ids=" ".join)
async def test_every_command_has_a_help_text(arguments: list[str]) -> None:
    ended = await spool(arguments[0], "-h")
    assert ended.exit_code == 0
    assert ended.out.startswith(f"Usage: trio-spanbatch spool {arguments[0]} [OPTIONS] DIR\n")


# -- refusals --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arguments", ALL, ids=" ".join)
async def test_a_directory_that_others_can_write_is_refused(arguments: list[str], directory: Path) -> None:
    await leave(directory, ENDPOINT, tenants(1))
    name, *options = arguments
    for open_to_all in (directory / "trio-spanbatch", directory):
        before = stat.S_IMODE(open_to_all.stat().st_mode)
        open_to_all.chmod(0o777)
        ended = await spool(name, directory, *options)
        open_to_all.chmod(before)
        assert (ended.exit_code, ended.out) == (1, "")
        assert ended.err == (
            f"trio-spanbatch: the spool cannot use {open_to_all}: other users may write to it (mode 0777), and could "
            f"add or replace spans; run chmod go-w {open_to_all}, or give a new directory inside it\n"
        )


@pytest.mark.parametrize("arguments", ALL, ids=" ".join)
async def test_a_directory_that_others_can_write_is_refused_before_a_batcher_has_used_it(
    arguments: list[str], directory: Path
) -> None:
    directory.mkdir()
    directory.chmod(0o777)
    name, *options = arguments
    ended = await spool(name, directory, *options)
    assert (ended.exit_code, ended.out, list(directory.iterdir())) == (1, "", [])
    assert ended.err.startswith(f"trio-spanbatch: the spool cannot use {directory}: other users may write to it ")


@pytest.mark.parametrize("name", ["list", "send"])
async def test_the_spool_of_another_user_is_refused(
    name: str, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await leave(directory, ENDPOINT, tenants(1))
    owner = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: NOBODY)
    ended = await spool(name, directory)
    assert ended.exit_code == 1
    assert re.fullmatch(
        rf"trio-spanbatch: the spool cannot use \S+: it belongs to user {owner}, and this process runs as user "
        rf"{NOBODY}; run as user {owner}, or give a directory that belongs to user {NOBODY}\n",
        ended.err,
    )


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
@pytest.mark.parametrize("arguments", [["list"], ["send"], ["delete", "--location", "a"]], ids=" ".join)
async def test_a_directory_that_this_user_cannot_write_is_refused(arguments: list[str], directory: Path) -> None:
    await leave(directory, ENDPOINT, tenants(1))
    for path in (directory / "trio-spanbatch", directory, *(directory / "trio-spanbatch").iterdir()):
        os.chown(path, NOBODY, NOBODY)
    (directory / "trio-spanbatch").chmod(0o500)
    directory.parent.chmod(0o755)
    program = f"""
import os
import trio_spanbatch.cli.commands, trio_spanbatch.cli.spool
os.chdir({str(directory.parent)!r})
os.setuid({NOBODY})
trio_spanbatch.cli.main()
"""
    name, *options = arguments
    done = run_to_end([sys.executable, "-c", program, "spool", name, "spool", *options], together=True)
    assert done.stdout == (
        "trio-spanbatch: the spool cannot use spool: Permission denied; give a directory in which this user may make "
        "files\n"
    )
    assert done.returncode == 1


async def test_a_read_only_file_system_is_refused(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    await leave(directory, ENDPOINT, tenants(1))
    real = os.open

    def read_only(path: Any, flags: int, *arguments: Any, **options: Any) -> int:
        if flags & (os.O_RDWR | os.O_CREAT) and "dir_fd" in options:
            raise OSError(30, os.strerror(30))
        return real(path, flags, *arguments, **options)

    monkeypatch.setattr(os, "open", read_only)
    for name in ("list", "send", "check"):
        ended = await spool(name, directory)
        assert (ended.exit_code, ended.out) == (1, "")
        assert ended.err == (
            f"trio-spanbatch: the spool cannot use {directory}: Read-only file system; mount it writable, or give "
            "another one\n"
        )


async def test_spans_for_another_server_are_not_sent_and_stay(directory: Path) -> None:
    await leave(directory, ENDPOINT, tenants(3))
    async with OTLPReceiver() as receiver:
        ended = await send(directory, receiver)
        assert receiver.stored == {}
    assert (ended.exit_code, ended.out) == (1, "")
    assert ended.err == (
        f"trio-spanbatch: {directory} holds spans for {ENDPOINT}, and these options send to {receiver.url}; name the "
        "same server with --to and --endpoint, or export the spans with trio-spanbatch spool export and send that "
        "file\n"
    )
    assert (await listed(directory))["spans"] == 9


@pytest.mark.parametrize("arguments", [["list"], ["check"], ["export"], ["delete", "--location", "tenant-0"]])
async def test_a_file_of_a_newer_version_is_named_and_left_alone(arguments: list[str], directory: Path) -> None:
    place = await leave(directory, ENDPOINT, tenants(3))
    (segment,) = place.files("spans")
    data = bytearray(segment.read_bytes())
    for at in (8, RECORDS_AT - 1024 + 8):
        data[at : at + 2] = (VERSION + 1).to_bytes(2, "little")
    segment.write_bytes(data)
    name, *options = arguments
    ended = await spool(name, directory, *options)
    assert ended.exit_code == 1
    assert ended.err == (
        f"{segment}: it has format {VERSION + 1}, and this version of trio-spanbatch reads formats up to {VERSION}; it "
        "was left alone\n"
    )
    assert segment.read_bytes() == data


@pytest.mark.parametrize("name", ["list", "check", "export", "delete", "send"])
async def test_a_disk_that_cannot_be_read_is_an_error_of_one_line(
    name: str, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await leave(directory, ENDPOINT, tenants(3))
    real = File.read

    def read(file: File, at: int, size: int) -> bytes:
        if at >= RECORDS_AT:
            raise OSError(5, os.strerror(5))
        return real(file, at, size)

    monkeypatch.setattr(File, "read", read)
    ended = await spool(name, directory, *(["--location", "tenant-0"] if name == "delete" else []))
    assert (ended.exit_code, ended.out) == (1, "")
    assert ended.err == f"trio-spanbatch: the spool cannot use {directory}: Input/output error\n"


# -- send ------------------------------------------------------------------------------------------------------


async def test_send_delivers_each_span_once_to_its_location_in_order_and_leaves_nothing(directory: Path) -> None:
    records = tenants(20)
    async with OTLPReceiver(location_header=HEADER) as receiver:
        await leave(directory, receiver.url, records[:10])
        await leave(directory, receiver.url, records[10:])
        ended = await send(directory, receiver)
        assert ids(receiver) == ids_of(records)
    assert (ended.exit_code, ended.err) == (0, "")
    assert ended.document["delivered"] == 60
    assert (await listed(directory))["spans"] == 0
    assert list((directory / "trio-spanbatch").iterdir()) == []


async def test_what_a_batcher_could_not_deliver_is_sent_to_its_server(directory: Path) -> None:
    answers = [Answer(503, headers=[("Retry-After", "1000")])]
    async with OTLPReceiver(answers=answers, location_header=HEADER) as receiver:
        exporter = OTLPExporter(receiver.url, location_header=HEADER)
        async with SpanBatcher(exporter, spool=Spool(directory)) as batcher:
            await batcher.add_spans("a", [span(1), span(2)])
        assert batcher.statistics().spooled == 2
        assert (await send(directory, receiver)).exit_code == 0
        assert ids(receiver) == {"a": [1, 2]}


async def test_send_in_small_rounds_delivers_everything(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commands, "_ROUND_RECORDS", 3)
    records = tenants(20)
    async with OTLPReceiver(location_header=HEADER) as receiver:
        await leave(directory, receiver.url, records)
        ended = await send(directory, receiver)
        assert ids(receiver) == ids_of(records)
    assert ended.exit_code == 0
    assert (await listed(directory))["spans"] == 0


def unsettled(directory: Path) -> int:
    """Return the records that are not settled, whoever has the lock."""
    count = 0
    for path in (directory / "trio-spanbatch").glob("*.spans"):
        opened = Directory(directory).open(path.name)
        head = Head.unpack(opened.read(0, RECORDS_AT))
        count += len(list(commands.Segment(path.name, opened, head).records()))
        opened.close()
    return count


async def test_send_settles_a_record_only_after_the_server_has_accepted_it(directory: Path) -> None:
    left: list[int] = []

    def answer(_request: ReceivedRequest) -> None:
        left.append(unsettled(directory))

    async with OTLPReceiver(answers=answer, location_header=HEADER) as receiver:
        await leave(directory, receiver.url, tenants(6))
        assert (await send(directory, receiver)).exit_code == 0
    assert left == [6, 6, 6]
    assert unsettled(directory) == 0


async def test_spans_that_the_server_rejects_become_dead_letters(directory: Path) -> None:
    def answer(request: ReceivedRequest) -> Answer | None:
        return Answer(401, body=b"no") if request.header(HEADER) == "tenant-1" else None

    async with OTLPReceiver(answers=answer, location_header=HEADER) as receiver:
        await leave(directory, receiver.url, tenants(6))
        ended = await send(directory, receiver)
    assert ended.exit_code == 1
    assert (ended.document["delivered"], ended.document["rejected"]) == (12, 6)
    assert f"rejected spans are dead letters now: trio-spanbatch spool export {directory} --dead\n" in ended.err
    document = await listed(directory)
    assert (document["spans"], document["dead"]) == (0, 6)
    assert document["locations"]["tenant-1"]["dead"] == 6
    exported = await spool("export", directory, "--dead")
    assert exported.out.count("spanId") == 6


async def test_spans_that_a_partial_success_rejects_are_among_the_dead_letters(directory: Path) -> None:
    async with OTLPReceiver(answers=[partial_success(rejected=1, message="one")]) as receiver:
        await leave(directory, receiver.url, [record("a", span(1), span(2))])
        ended = await send(directory, receiver)
    assert ended.document["rejected"] == 1
    assert "a: 2 dead: 1 of 2 spans: " in (await spool("list", directory)).out


async def test_rejected_spans_stay_if_dead_letters_cannot_be_kept(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def bury(*_arguments: object) -> None:
        await trio.lowlevel.checkpoint()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(DiskStore, "bury", bury)
    async with OTLPReceiver(answers=lambda request: Answer(401)) as receiver:
        await leave(directory, receiver.url, tenants(3))
        ended = await send(directory, receiver)
    assert ended.exit_code == 1
    assert "rejected spans stay in the spool, as dead letters cannot be kept: [Errno 28]" in ended.err
    document = await listed(directory)
    assert (document["spans"], document["dead"]) == (9, 0)


async def test_what_cannot_be_settled_is_said_to_be_sent_again(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def settle(*_arguments: object) -> None:
        await trio.lowlevel.checkpoint()
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(DiskStore, "settle", settle)
    async with OTLPReceiver() as receiver:
        await leave(directory, receiver.url, tenants(3))
        ended = await send(directory, receiver)
    assert "3 delivered records stay in the spool, and will be sent again: [Errno 5]" in ended.err
    assert (ended.exit_code, ended.document["delivered"]) == (1, 9)


async def test_without_a_server_everything_stays_and_the_command_says_so(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    give_up_after_the_first_failure(monkeypatch)
    with reserved_port() as port:
        endpoint = f"http://127.0.0.1:{port}/v1/traces"
        await leave(directory, endpoint, tenants(3))
        ended = await spool("send", directory, "--endpoint", endpoint, "--location-header", HEADER)
    assert ended.exit_code == 1
    assert "no request was ever answered: cannot connect to" in ended.err
    assert ended.err.endswith(f"what was not delivered stays in {directory}\n")
    assert (await listed(directory))["spans"] == 9


async def test_spans_of_several_locations_are_not_sent_where_the_server_cannot_tell_them_apart(directory: Path) -> None:
    async with OTLPReceiver() as receiver:
        await leave(directory, receiver.url, tenants(3))
        ended = await spool("send", directory, "--endpoint", receiver.url)
        assert not receiver.requests
    assert ended.exit_code == 2
    assert f"{directory} has spans of 3 locations, which the server could not tell apart" in " ".join(ended.err.split())
    assert "--location-header" in ended.err
    assert (await listed(directory))["spans"] == 9


async def test_spans_of_one_location_are_sent_without_it(directory: Path) -> None:
    async with OTLPReceiver() as receiver:
        await leave(directory, receiver.url, [record("acme", *map(span, range(1, 4)))])
        ended = await spool("send", directory, "--endpoint", receiver.url)
    assert (ended.exit_code, ended.err) == (0, "")
    assert sum(map(len, receiver.stored.values())) == 3


async def test_zeros_after_a_power_failure_are_no_damage(directory: Path) -> None:
    await leave(directory, ENDPOINT, tenants(3))
    (segment,) = (directory / "trio-spanbatch").glob("*.spans")
    with segment.open("ab") as opened:
        opened.write(bytes(5000))
    for name in ("check", "list", "export"):
        ended = await spool(name, directory)
        assert (ended.exit_code, "damaged" in ended.err) == (0, False)


@pytest.mark.parametrize("arguments", ALL, ids=" ".join)
async def test_a_spools_own_directory_is_not_taken_for_a_spool(arguments: list[str], directory: Path) -> None:
    await leave(directory, ENDPOINT, tenants(1))
    name, *options = arguments
    ended = await spool(name, directory / "trio-spanbatch", *options)
    assert (ended.exit_code, ended.out) == (1, "")
    assert ended.err == (
        f"trio-spanbatch: {directory / 'trio-spanbatch'} is a spool's own directory; name the one that it is in, "
        f"{directory}\n"
    )


async def test_a_location_that_cannot_be_sent_stays(directory: Path) -> None:
    async with OTLPReceiver(location_header=HEADER) as receiver:
        await leave(directory, receiver.url, [record("a", span(1)), record("ü", span(2), span(3))])
        ended = await send(directory, receiver)
        assert ids(receiver) == {"a": [1]}
    assert ended.exit_code == 1
    assert "ü: 2 spans were not sent: " in ended.err
    assert list((await listed(directory))["locations"]) == ["ü"]


async def test_send_keeps_the_dead_letters_that_a_batcher_with_more_space_has_kept(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # With the space of `Spool`'s default, nothing would be left for dead letters.
    monkeypatch.setattr(disk, "_DEAD_PART", 2**40)
    async with OTLPReceiver(location_header=HEADER) as receiver:
        await leave(directory, receiver.url, [record("a", span(1))], [(record("a", span(2)), "why")])
        assert (await send(directory, receiver)).exit_code == 0
    assert (await listed(directory))["dead"] == 1


async def test_a_damaged_record_is_said_and_costs_no_other(directory: Path) -> None:
    async with OTLPReceiver(location_header=HEADER) as receiver:
        place = await leave(directory, receiver.url, [record("a", span(1)), record("b", span(2)), record("c", span(3))])
        flip(place, span(2).payload)
        ended = await send(directory, receiver)
        assert ids(receiver) == {"a": [1], "c": [3]}
    assert ended.exit_code == 1
    assert "b: 1 spans were not sent: a record of " in ended.err


async def test_ctrl_c_settles_what_was_delivered_and_keeps_the_rest(directory: Path) -> None:
    asked = trio.Event()

    def answer(request: ReceivedRequest) -> Answer | None:
        if request.header(HEADER) != "tenant-1":
            return None
        asked.set()
        return Answer(429, headers=[("Retry-After", "100")])

    receiver = OTLPReceiver(answers=answer, location_header=HEADER)
    async with receiver, trio.open_nursery() as nursery:
        await leave(directory, receiver.url, tenants(3))
        process = await start_command(
            nursery, "spool", "send", directory, "--endpoint", receiver.url, "--location-header", HEADER
        )
        await asked.wait()
        await wait_until(lambda: len(receiver.stored) == 2)
        process.send_signal(signal.SIGINT)
        assert await process.wait() == 130
    assert [[name, counts["spans"]] for name, counts in (await listed(directory))["locations"].items()] == [
        ["tenant-1", 3]
    ]


def ended_or_has_sent(process: trio.Process, receiver: OTLPReceiver, enough: int | None) -> bool:
    return process.poll() is not None or (enough is not None and len(receiver.requests) >= enough)


@pytest.mark.long
async def test_a_kill_at_any_moment_of_send_repeats_spans_and_loses_none(directory: Path) -> None:
    chance = Random(1)
    records = tenants(600)
    kills = 0
    receiver = OTLPReceiver(answers=lambda request: Answer(delay=0.01), location_header=HEADER)
    async with receiver:
        await leave(directory, receiver.url, records)
        sends = command("spool", "send", directory, "--endpoint", receiver.url, "--location-header", HEADER)
        while (await listed(directory))["spans"]:
            process = await trio.lowlevel.open_process([*sends, "--max-spans", "3"])
            enough = len(receiver.requests) + chance.randrange(1, 60)
            await wait_until(partial(ended_or_has_sent, process, receiver, enough if kills < 15 else None))
            if process.poll() is None:
                process.kill()
                kills += 1
            await process.wait()
    assert kills == 15
    stored = ids(receiver)
    assert {location: sorted(set(numbers)) for location, numbers in stored.items()} == ids_of(records)
    assert sum(map(len, stored.values())) > 1800, "no kill came before a settlement"


# -- export ----------------------------------------------------------------------------------------------------


async def test_what_is_exported_can_be_sent_and_is_the_same(directory: Path) -> None:
    records = tenants(6)
    await leave(directory, ENDPOINT, records)
    ended = await spool("export", directory, "--location", "tenant-2")
    assert (ended.exit_code, ended.err) == (0, "")
    assert len(ended.out.splitlines()) == 2
    exported = directory.parent / "spans.jsonl"
    exported.write_text(ended.out)
    async with OTLPReceiver() as receiver:
        sent = await run_in_process("send", exported, "--endpoint", receiver.url)
    assert sent.exit_code == 0
    expected = [each.to_message() for new in records if new.location == "tenant-2" for each in new.spans]
    found = receiver.stored["default"]
    assert [each.span_id for each in found] == [each.span_id for each in expected]
    assert {each.name for each in found} == {"step"}
    assert '"the agents"' in ended.out
    assert (await listed(directory))["spans"] == 18


async def test_dead_letters_are_exported_apart(directory: Path) -> None:
    await leave(
        directory, ENDPOINT, [record("a", span(1))], [(record("a", span(2)), "why"), (record("b", span(3)), "")]
    )
    for options, expected in (([], [1]), (["--dead"], [2, 3]), (["--dead", "--location", "b"], [3])):
        lines = (await spool("export", directory, *options)).out.splitlines()
        spans = [json.loads(line)["resourceSpans"][0]["scopeSpans"][0]["spans"][0] for line in lines]
        assert [int(each["spanId"], 16) for each in spans] == expected


async def test_a_span_that_cannot_be_read_is_reported_and_the_rest_exported(directory: Path) -> None:
    broken = attrs.evolve(span(2), payload=b"\xff\xff")
    place = await leave(directory, ENDPOINT, [record("a", span(1)), record("a", broken), record("a", span(3))])
    flip(place, span(3).payload)
    ended = await spool("export", directory)
    assert ended.exit_code == 1
    assert len(ended.out.splitlines()) == 1
    first, second = ended.err.splitlines()
    assert "with 1 spans, cannot be read: " in first
    assert second.endswith("with 1 spans, is damaged")


async def test_export_to_a_full_disk_is_an_error_of_one_line(directory: Path) -> None:
    await leave(directory, ENDPOINT, tenants(3))
    exports = command("spool", "export", directory)
    with Path("/dev/full").open("wb") as full:  # noqa: ASYNC230  # a device
        done = await trio.run_process(exports, stdout=full, capture_stderr=True, check=False)
    assert done.returncode == 1
    assert done.stderr == b"trio-spanbatch: cannot write the result: No space left on device\n"


# -- check -----------------------------------------------------------------------------------------------------


def flip(place: DiskPlace, content: bytes) -> None:
    """Flip a bit of some content."""
    for path in place.files():
        data = bytearray(path.read_bytes())
        if (at := data.find(content)) >= 0:
            data[at + 5] ^= 1
            path.write_bytes(data)


async def test_check_of_an_intact_spool_says_what_is_there(directory: Path) -> None:
    await leave(directory, ENDPOINT, tenants(4), [(record("a", span(99)), "why")])
    before = content_of_files(directory)
    ended = await spool("check", directory)
    assert (ended.exit_code, ended.err) == (0, "")
    assert ended.out == "intact: 12 spans in 4 records, and 1 dead letters\n"
    assert {name: data for name, data in content_of_files(directory).items() if data} == {
        name: data for name, data in before.items() if data
    }


async def test_check_names_a_damaged_record(directory: Path) -> None:
    place = await leave(directory, ENDPOINT, [record("a", span(1)), record("a", span(2))])
    flip(place, span(2).payload)
    ended = await spool("check", directory)
    assert ended.exit_code == 1
    assert ended.out == "intact: 1 spans in 1 records, and 0 dead letters\n"
    assert re.fullmatch(r"\S+\.spans: the record at byte \d+, with 1 spans, is damaged\n", ended.err)


async def test_check_names_damaged_bytes_and_files(directory: Path) -> None:
    records = [record("first location", span(1)), record("second", span(2)), record("third", span(3))]
    place = await leave(directory, ENDPOINT, records)
    (segment,) = place.files("spans")
    data = bytearray(segment.read_bytes())
    data[data.index(b"second") - 40] ^= 1
    segment.write_bytes(data)
    (place.own / "0123.0.spans").write_bytes(b"no segment" * 5000)
    (place.own / "0123.damaged").write_bytes(b"moved aside")
    ended = await spool("check", directory)
    assert ended.exit_code == 1
    assert "intact: 2 spans in 2 records" in ended.out
    assert re.search(r"\.spans: \d+ bytes from byte \d+ on are damaged\n", ended.err)
    assert "0123.0.spans: it does not begin like a file of a spool; it was left alone\n" in ended.err
    assert "0123.damaged: a batcher has moved this aside" in ended.err


# -- delete ----------------------------------------------------------------------------------------------------


async def test_delete_removes_all_bytes_of_a_location_and_nothing_else(directory: Path) -> None:
    secret = "a prompt of tenant-1"
    records = [
        record(f"tenant-{number % 3}", span(number + 1, f"a prompt of tenant-{number % 3}")) for number in range(9)
    ]
    place = DiskPlace(directory)
    store = await place.opened(ENDPOINT)
    # One that was delivered, and is in the file for as long as others are.
    (delivered,) = await store.commit([record("tenant-1", span(99, secret))])
    for new in records:
        await store.commit([new])
    await store.settle([delivered.token])
    await store.bury("tenant-1", [span(100, secret)], "why")
    place.end(store)
    assert any(secret.encode() in data for data in content_of_files(directory).values())
    ended = await spool("delete", directory, "--location", "tenant-1")
    assert (ended.exit_code, ended.err) == (0, "")
    assert ended.out == "tenant-1: 3 spans and 1 dead letters deleted\n"
    assert not any(b"tenant-1" in data for data in content_of_files(directory).values())
    store = await place.opened(ENDPOINT)
    expected = [(new.location, list(new.spans)) for new in records if new.location != "tenant-1"]
    assert await contents(store) == expected
    assert store.statistics().damaged == 0
    await store.close()


async def test_delete_removes_the_bytes_of_a_location_that_has_nothing_left_to_send(directory: Path) -> None:
    place = DiskPlace(directory)
    store = await place.opened(ENDPOINT)
    delivered, _ = await store.commit([record("gone", span(1)), record("here", span(2))])
    await store.settle([delivered.token])
    place.end(store)
    ended = await spool("delete", directory, "--location", "gone")
    assert (ended.exit_code, ended.out) == (0, "gone: 0 spans and 0 dead letters deleted\n")
    assert not any(b"gone" in data for data in content_of_files(directory).values())
    assert list((await listed(directory))["locations"]) == ["here"]


async def test_delete_of_the_only_location_removes_its_files(directory: Path) -> None:
    await leave(directory, ENDPOINT, [record("a", span(1))], [(record("a", span(2)), "why")])
    assert (await spool("delete", directory, "--location", "a")).exit_code == 0
    assert list((directory / "trio-spanbatch").iterdir()) == []


async def test_delete_of_an_unknown_location_changes_nothing(directory: Path) -> None:
    await leave(directory, ENDPOINT, tenants(3))
    before = {name: data for name, data in content_of_files(directory).items() if data}
    ended = await spool("delete", directory, "--location", "tenant")
    assert (ended.exit_code, ended.out) == (0, "tenant: 0 spans and 0 dead letters deleted\n")
    assert {name: data for name, data in content_of_files(directory).items() if data} == before


async def test_delete_says_which_files_may_contain_more(directory: Path) -> None:
    place = await leave(directory, ENDPOINT, tenants(3))
    (place.own / "0123.damaged").write_bytes(b"moved aside")
    ended = await spool("delete", directory, "--location", "tenant-0")
    assert ended.exit_code == 1
    assert ended.err.endswith(
        "0123.damaged: it is damaged, and may contain spans of any location; remove it if it must not be kept\n"
    )


async def test_a_disk_that_fails_while_deleting_loses_nothing(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    records = tenants(3)
    place = await leave(directory, ENDPOINT, records)

    def sync(_file: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(File, "sync", sync)
    ended = await spool("delete", directory, "--location", "tenant-0")
    assert (ended.exit_code, ended.out) == (1, "")
    assert ended.err == (
        f"trio-spanbatch: the spool cannot use {directory}: No space left on device; make space on that disk\n"
    )
    store = await place.opened(ENDPOINT)
    assert await contents(store) == [(new.location, list(new.spans)) for new in records]
    await store.close()


# -- progress --------------------------------------------------------------------------------------------------


async def test_long_work_shows_its_progress_on_a_terminal_only(directory: Path) -> None:
    await leave(directory, ENDPOINT, tenants(3))
    for is_terminal in (True, False):
        screen, _, err = screen_of_text(terminal=is_terminal)
        commands.check(commands.SpoolFiles(directory, screen), screen)
        assert ("reading" in err.getvalue()) == is_terminal
