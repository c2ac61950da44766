"""The blocks of docs/exporters.md run and print what the page shows, and `send` reads the file."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from tests.cli.support import command, run_command
from tests.support.paths import PROJECT
from tests.support.processes import run_to_end
from trio_spanbatch.testing import OTLPReceiver

PAGE = (PROJECT / "docs" / "exporters.md").read_text()


def block(name: str) -> tuple[str, str]:
    """Return a program of the page, and its output as the page shows it."""
    (found,) = re.findall(
        rf"^<!-- {name}: .*\n```python\n((?s:.*?))^```\n\n```text\n((?s:.*?))^```", PAGE, re.MULTILINE
    )
    program, output = found
    return program, output


@pytest.mark.parametrize("name", ["console", "file"])
def test_a_program_prints_what_the_page_shows(tmp_path: Path, name: str) -> None:
    program, output = block(name)
    ended = run_to_end([sys.executable, "-W", "error", "-c", program], folder=tmp_path)
    assert (ended.stdout, ended.stderr, ended.returncode) == (output, "", 0)


async def test_the_pages_send_command_reads_the_pages_file(tmp_path: Path) -> None:
    run_to_end([sys.executable, "-c", block("file")[0]], folder=tmp_path)
    (line,) = re.findall(r"^\$ trio-spanbatch (.*)$", PAGE, re.MULTILINE)
    arguments = line.replace("spans.jsonl", str(tmp_path / "spans.jsonl")).split()
    async with OTLPReceiver(location_header="X-Scope-OrgID") as receiver:
        ended = await run_command(program=command(*arguments, "--endpoint", receiver.url))
    assert (ended.exit_code, ended.err) == (0, "")
    assert {location: len(spans) for location, spans in receiver.stored.items()} == {"acme": 2, "globex": 1}
