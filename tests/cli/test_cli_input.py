from __future__ import annotations

import gzip
import os
import select
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import trio

from trio_spanbatch.cli import input as cli_input
from trio_spanbatch.cli.input import InputFile, InputFileError

LINE = b'{"resourceSpans": []}'


async def read_all(file: InputFile) -> bytes:
    content = b""
    while data := await file.read():
        assert len(data) <= 64 * 1024
        content += data
    file.close()
    return content


CONTENT = LINE * 20_000


@pytest.mark.parametrize(
    "stored",
    [CONTENT, gzip.compress(CONTENT), gzip.compress(CONTENT[:1000]) + gzip.compress(CONTENT[1000:])],
    ids=["plain", "gzip", "gzip of several members"],
)
async def test_a_file_is_read_in_chunks_and_decompressed_if_its_content_is_gzip(tmp_path: Path, stored: bytes) -> None:
    path = tmp_path / "spans"
    path.write_bytes(stored)
    file = InputFile(str(path))
    assert file.size() == len(stored)
    assert file.position == 0
    first = await file.read()
    assert 0 < file.position <= len(stored)
    assert first + await read_all(file) == CONTENT


async def test_an_empty_file_returns_no_bytes(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    assert await read_all(InputFile(str(tmp_path / "empty"))) == b""


async def test_truncated_gzip_data_is_an_error_after_the_readable_part(tmp_path: Path) -> None:
    path = tmp_path / "spans.gz"
    path.write_bytes(gzip.compress(CONTENT)[:-10])
    file = InputFile(str(path))
    assert await file.read()
    with pytest.raises(InputFileError, match="the gzip data is damaged"):
        await read_all(file)
    file.close()


@pytest.mark.parametrize(
    "data",
    [b"\x1f", b"\x1f\x8bxx", gzip.compress(CONTENT, mtime=0)[:20] + b"\xff" * 20],
    ids=["too short", "no header", "garbage after the header"],
)
async def test_damaged_gzip_data_is_an_error(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "spans.gz"
    path.write_bytes(data)
    file = InputFile(str(path))
    with pytest.raises(InputFileError, match="the gzip data is damaged"):
        await read_all(file)
    file.close()


async def test_a_file_that_cannot_be_opened_is_an_error_with_the_reason(tmp_path: Path) -> None:
    file = InputFile(str(tmp_path / "missing"))
    assert file.size() is None
    assert file.position == 0
    with pytest.raises(InputFileError, match="cannot be read: No such file or directory"):
        await file.read()
    file.close()


def test_a_file_that_is_not_regular_has_no_size() -> None:
    assert InputFile("/dev/null").size() is None
    assert InputFile("-").name == "<stdin>"


async def test_a_non_blocking_pipe_is_waited_for_and_stays_non_blocking(monkeypatch: pytest.MonkeyPatch) -> None:
    reading, writing = os.pipe()
    os.set_blocking(reading, False)
    waits = threading.Semaphore(0)
    wait = select.select

    def recorded(*arguments: Any) -> object:
        waits.release()
        return wait(*arguments)

    monkeypatch.setattr(select, "select", recorded)
    monkeypatch.setattr(cli_input, "_STDIN", reading)
    file = InputFile("-")
    pieces: list[bytes] = []

    async def read() -> None:
        while data := await file.read():
            pieces.append(data)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(read)
        for piece in (b"one", b"two"):
            await trio.to_thread.run_sync(waits.acquire)
            os.write(writing, piece)
        await trio.to_thread.run_sync(waits.acquire)
        os.close(writing)
    assert b"".join(pieces) == b"onetwo"
    assert not os.get_blocking(reading)
    file.close()
    os.close(reading)


async def test_a_closed_standard_input_is_reported_even_if_its_descriptor_is_reused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    file = InputFile("-")
    assert file.size() is None
    with pytest.raises(InputFileError, match=r"^standard input is closed$"):
        await file.read()
    file.close()
