"""If standard output cannot be written to, one line on standard error says so."""

from __future__ import annotations

import errno
import json
import os
import sys
import tempfile
from pathlib import Path

import pytest
import trio
from click.testing import CliRunner

from tests.cli.support import clean_environment, command, request_line, run_command, run_in_process, span_document
from trio_spanbatch.cli import commands
from trio_spanbatch.cli.screen import OutputError, check_output, output_errors

NO_SPACE = "trio-spanbatch: cannot write the result: No space left on device\n"
BROKEN_PIPE = "trio-spanbatch: cannot write the result: Broken pipe\n"


@pytest.fixture
def lines(tmp_path: Path) -> Path:
    path = tmp_path / "spans.jsonl"
    path.write_bytes(request_line(span_document(1, tenant="Grüße")))
    return path


async def stderr_of(stdout: int, *arguments: object) -> str:
    """Run a command with ``stdout``, and return its stderr."""
    process = await trio.run_process(
        command(*arguments),
        stdout=stdout,
        capture_stderr=True,
        check=False,
        env=clean_environment({"OTEL_SDK_DISABLED": "true"}),
    )
    assert process.returncode == 1
    err: bytes = process.stderr
    return err.decode()


@pytest.mark.parametrize("arguments", [["--help"], ["send", "-", "--json"], ["receive", "--port", "0"]])
async def test_a_full_disk_is_reported_in_one_line(arguments: list[str]) -> None:
    full = os.open("/dev/full", os.O_WRONLY)
    err = await stderr_of(full, *arguments)
    os.close(full)
    assert err.splitlines(keepends=True)[-1] == NO_SPACE
    assert err.count("\n") == 1 + ("contains no spans" in err)


@pytest.mark.parametrize("arguments", [["--help"], ["send", "/dev/null"]])
async def test_a_closed_pipe_is_reported_in_one_line(arguments: list[str]) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    err = await stderr_of(writing, *arguments)
    os.close(writing)
    assert err.splitlines(keepends=True)[-1] == BROKEN_PIPE


async def test_a_stdout_that_is_closed_is_reported_in_one_line() -> None:
    code = "import sys; sys.stdout = None; from trio_spanbatch.cli import main; main()"
    ended = await run_command("--help", program=[sys.executable, "-c", code])
    assert (ended.exit_code, ended.err) == (
        1,
        "trio-spanbatch: cannot write the result: standard output is closed\n",
    )


async def test_characters_that_stdout_cannot_encode_are_escaped(lines: Path) -> None:
    environ = {"OTEL_SDK_DISABLED": "true", "PYTHONIOENCODING": "ascii"}
    arguments = ["send", lines, "--location-attribute", "tenant", "--location-header", "X-T"]
    as_json = await run_command(*arguments, "--json", environ=environ)
    table = await run_command(*arguments, environ=environ)
    assert list(json.loads(as_json.out)["locations"]) == ["Grüße"]
    assert "Gr\\xfc\\xdfe" in table.out
    assert "Traceback" not in as_json.err + table.err


async def test_characters_that_stdout_can_encode_are_not_escaped(lines: Path) -> None:
    ended = await run_in_process(
        *("send", lines, "--location", "Grüße", "--json"), environ={"OTEL_SDK_DISABLED": "true"}
    )
    assert '"Grüße"' in ended.out


def test_output_errors_in_groups_are_found_and_others_are_unchanged(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(OutputError, match=r"^cannot write the result: No space left on device$"), output_errors():
        raise ExceptionGroup("x", [ValueError(), ExceptionGroup("y", [OSError(errno.ENOSPC, "?")])])
    with pytest.raises(OutputError, match="once"), output_errors(), output_errors():
        raise OutputError("once")
    for error in (OSError(errno.ENOENT, "?"), ValueError("x"), KeyboardInterrupt()):
        with pytest.raises(type(error)), output_errors():
            raise error


def test_replaced_streams_are_not_reconfigured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", object())
    check_output()


def test_a_temporary_directory_that_cannot_be_created_is_a_one_line_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(**_options: object) -> str:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(tempfile, "mkdtemp", full)
    ended = CliRunner().invoke(commands.cli, ["demo"])
    assert ended.exit_code == 1
    assert ended.stderr == (
        "trio-spanbatch: cannot create a temporary directory: No space left on device; name a file with --store\n"
    )
