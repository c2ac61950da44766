"""docs/spool.md and the recipe "Keep what was not delivered": the code and the commands run as they are written."""

from __future__ import annotations

import importlib.util
import re
import shlex
import sys
from pathlib import Path

import attrs

from tests.cli.spool_support import leave, record, span
from tests.cli.support import run_command, run_in_process
from tests.support.exporters import batch_of
from tests.support.paths import PROJECT
from trio_spanbatch import Loss, SpanBatcher, Spool
from trio_spanbatch.testing import InMemoryExporter, OTLPReceiver

PAGE = (PROJECT / "docs" / "spool.md").read_text()
COMMANDS = re.findall(r"^\$ trio-spanbatch (.*)$", PAGE, re.MULTILINE)
EXAMPLE = PROJECT / "docs" / "examples" / "keep_undelivered.py"


async def test_the_example_runs() -> None:
    (example,) = re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    ended = await run_command(program=[sys.executable, "-W", "error", "-c", example])
    assert (ended.exit_code, ended.out, ended.err) == (0, "1 delivered\n", "")


async def test_the_commands_run(tmp_path: Path) -> None:
    directory, exported = tmp_path / "spool", tmp_path / "acme.jsonl"
    assert len(COMMANDS) == 6
    async with OTLPReceiver(location_header="X-Scope-OrgID") as receiver:
        for command in COMMANDS:
            if not directory.exists():
                await leave(directory, receiver.url, [record("acme", span(1)), record("other", span(2))])
            command = command.replace("/var/lib/agents/spool", str(directory))
            command = command.replace("http://localhost:4318/v1/traces", receiver.url)
            arguments, _, to = command.partition(" > ")
            ended = await run_in_process(*shlex.split(arguments.replace("acme.jsonl", str(exported))))
            assert (ended.exit_code, ended.err) == (0, ""), command
            if to:
                exported.write_text(ended.out)
            if arguments.startswith("spool send"):
                await leave(directory, receiver.url, [record("acme", span(3))])
    assert {location: len(spans) for location, spans in receiver.stored.items()} == {
        "acme": 1,
        "other": 1,
        "default": 1,
    }
    assert [stored.span_id for stored in receiver.stored["default"]] == [(3).to_bytes(8, "big")]


def test_the_documented_defaults_are_those_of_the_code() -> None:
    section = PAGE.partition("\n## Size\n")[2].partition("\n## ")[0]
    documented = {name: default.strip("`") for name, default in re.findall(r"^\| `(\w+)` \| (.*?) \|", section, re.M)}
    defaults = {field.name: field.default for field in attrs.fields(Spool) if field.name != "directory"}
    assert documented.keys() == defaults.keys()
    assert defaults.pop("max_bytes") == 1024**3
    assert documented.pop("max_bytes") == "1 GiB"
    assert {name: str(default).strip('"') for name, default in documented.items()} == {
        name: str(default) for name, default in defaults.items()
    }


async def test_the_files_of_the_recipe_can_be_sent(tmp_path: Path) -> None:
    spec = importlib.util.spec_from_file_location("keep_undelivered", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    location = "eu/orders"
    example.keep(tmp_path, Loss(location, batch_of(3, location), "undelivered", "down"))
    example.keep(tmp_path, Loss(location, batch_of(2, location), "undelivered", "down"))
    example.keep(tmp_path, Loss(location, batch_of(1, location), "rejected", "bad"))
    (arguments,) = re.findall(
        r"^\$ trio-spanbatch (send eu.*)$", (PROJECT / "docs" / "recipes.md").read_text(), re.MULTILINE
    )
    name, file, *options = shlex.split(arguments)
    async with OTLPReceiver() as receiver:
        ended = await run_in_process(name, tmp_path / file, *options, "--endpoint", receiver.url)
        assert (ended.exit_code, ended.err) == (0, "")
        assert len(receiver.stored["default"]) == 5
    exporter = InMemoryExporter()
    async with SpanBatcher(exporter) as batcher:
        await example.send_again(tmp_path, batcher)
    assert {batch.location for batch in exporter.batches} == {location}
    assert batcher.statistics().delivered == 5
    assert list(tmp_path.iterdir()) == []
