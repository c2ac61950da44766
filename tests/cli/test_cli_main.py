from __future__ import annotations

import io
import logging
import subprocess
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner
from rich.console import Console

import trio_spanbatch
from tests.cli.support import run_command
from tests.support.paths import PROJECT
from trio_spanbatch import Loss, SpanBatch, SpanBatcherStatistics, cli
from trio_spanbatch.cli import commands
from trio_spanbatch.cli.screen import LogLines, Screen
from trio_spanbatch.cli.tally import Tally

PROJECT = PROJECT


def python(*lines: str) -> list[str]:
    return [sys.executable, "-c", "\n".join(lines)]


@pytest.mark.parametrize("missing", ["click", "rich"])
async def test_without_the_extra_a_one_line_error_says_how_to_install_it(missing: str) -> None:
    program = python("import sys", f"sys.modules[{missing!r}] = None", "from trio_spanbatch.cli import main", "main()")
    ended = await run_command(program=program)
    assert ended.exit_code == 1
    assert ended.err == f'trio-spanbatch: {missing} is not installed; get it with: pip install "trio-spanbatch[cli]"\n'


async def test_the_library_needs_none_of_the_extras() -> None:
    modules = "click", "rich", "opentelemetry.sdk", "databricks"
    hidden = [f"sys.modules[{module!r}] = None" for module in modules]
    ended = await run_command(program=python("import sys", *hidden, "import trio_spanbatch, trio_spanbatch.testing"))
    assert (ended.exit_code, ended.err) == (0, "")


async def test_another_missing_module_is_not_blamed_on_the_extra() -> None:
    program = python("import sys", "sys.modules['sqlite3'] = None", "from trio_spanbatch.cli import main", "main()")
    ended = await run_command(program=program)
    assert ended.exit_code == 1
    assert "pip install" not in ended.err


@pytest.mark.parametrize("debug", ["", "1"])
def test_a_bug_is_reported_in_one_line_or_a_traceback_on_request(
    debug: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(**_options: Any) -> None:
        raise ZeroDivisionError("oh")

    monkeypatch.setattr(commands, "cli", broken)
    monkeypatch.setenv("TRIO_SPANBATCH_DEBUG", debug)
    with pytest.raises(ZeroDivisionError if debug else SystemExit):
        cli.main()
    err = capsys.readouterr().err
    assert ("unexpected error: ZeroDivisionError('oh'); set TRIO_SPANBATCH_DEBUG=1" in err) is not bool(debug)


def test_without_a_command_it_prints_the_help() -> None:
    result = CliRunner().invoke(commands.cli, [])
    assert result.exit_code == 2
    assert "send" in result.output
    assert "Traceback" not in result.output


def test_an_unknown_command_is_reported_in_one_line() -> None:
    result = CliRunner().invoke(commands.cli, ["sned"])
    assert result.exit_code == 2
    assert result.stderr.startswith("trio-spanbatch: No such command 'sned'")
    assert len(result.stderr.splitlines()) == 1


def test_an_abort_exits_like_a_ctrl_c() -> None:
    @commands.cli.command("abort")
    def abort() -> None:
        raise click.Abort

    try:
        assert CliRunner().invoke(commands.cli, ["abort"]).exit_code == 130
    finally:
        del commands.cli.commands["abort"]


async def test_ctrl_c_during_the_imports_ends_the_command_silently() -> None:
    program = python(
        "import sys",
        "class Interrupt:",
        "    def find_spec(self, name, path, target=None):",
        "        if name == 'trio_spanbatch.cli.commands':",
        "            raise KeyboardInterrupt",
        "sys.meta_path.insert(0, Interrupt())",
        "from trio_spanbatch.cli import main",
        "main()",
    )
    ended = await run_command(program=program)
    assert (ended.exit_code, ended.out, ended.err) == (130, "", "")


@pytest.mark.parametrize(("group", "count"), [([], 4), (["spool"], 5)])
def test_the_list_of_commands_contains_complete_sentences(group: list[str], count: int) -> None:
    lines = CliRunner().invoke(commands.cli, [*group, "--help"]).output.partition("Commands:\n")[2].splitlines()
    assert len(lines) == count
    assert all(line.endswith(".") and not line.endswith("...") for line in lines)


def test_help_and_version_exit_with_0() -> None:
    for arguments in (["--help"], ["--version"], ["send", "-h"]):
        assert CliRunner().invoke(commands.cli, arguments).exit_code == 0


def test_the_version_is_that_of_the_package() -> None:
    result = CliRunner().invoke(commands.cli, ["--version"])
    assert result.output == f"trio-spanbatch {version('trio-spanbatch')}\n"


def test_control_characters_are_escaped() -> None:
    out = io.StringIO()
    screen = Screen(Console(file=out, width=200, markup=False), Console(file=io.StringIO()))
    screen.say("a\x1b[31m\nb\ud800 [bold]ü 注文")
    assert out.getvalue() == "a\\x1b[31m\\nb\\ud800 [bold]ü 注文\n"
    screen.table(["name", "n"], [["a\nb", "1"]])
    assert "a\\nb" in out.getvalue()


def test_log_messages_are_lines_without_tracebacks() -> None:
    err = io.StringIO()
    screen = Screen(Console(file=io.StringIO()), Console(file=err, width=500))
    logger = logging.getLogger("test_cli_main")
    handler = LogLines(screen)
    logger.addHandler(handler)
    logger.info("not shown")
    logger.warning("shown: %d", 1)
    try:
        raise ValueError("oh")
    except ValueError:
        logger.exception("the exporter raised")
    logger.removeHandler(handler)
    assert err.getvalue() == "shown: 1\nthe exporter raised\n"


def test_the_constraints_pin_every_dependency_and_hold_no_address() -> None:
    lines = (PROJECT / "constraints.txt").read_text().splitlines()
    assert all(line.count("==") == 1 and "/" not in line and "@" not in line for line in lines)
    pinned = {line.partition("==")[0].lower().replace("_", "-") for line in lines}
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text())
    groups = [*project["project"]["optional-dependencies"].values(), *project["dependency-groups"].values()]
    expected = [*project["project"]["dependencies"], *(item for group in groups for item in group)]
    names = {_name_of(item) for item in expected if isinstance(item, str)}
    assert names <= pinned


def _name_of(requirement: str) -> str:
    for stop in "[<>=~ ":
        requirement = requirement.partition(stop)[0]
    return requirement.lower()


def test_the_package_says_that_it_is_typed() -> None:
    assert (Path(trio_spanbatch.__file__).parent / "py.typed").exists()


def test_the_module_can_be_run() -> None:
    run = subprocess.run(
        [sys.executable, "-m", "trio_spanbatch", "--version"], capture_output=True, text=True, check=True
    )
    assert run.stdout.startswith("trio-spanbatch ")


def test_many_locations_and_reasons_are_shortened_in_the_table_only() -> None:
    out = io.StringIO()
    screen = Screen(Console(file=out, width=200), Console(file=io.StringIO()))
    tally = Tally()
    for number in range(30):
        tally.add_invalid(f"location {number:02}")
        tally.add_loss(Loss(f"location {number:02}", SpanBatch("a", ()), "rejected", "no", count=1))
    tally.show(screen, SpanBatcherStatistics())
    lines = out.getvalue().splitlines()
    assert "location 24" in lines[25]
    assert lines[-2].split()[:2] == ["total", "30"]
    assert lines[-1] == "and 5 more locations; --json shows them all"
    assert len(tally.document(SpanBatcherStatistics())["locations"]) == 30
    losses = list(tally.losses())
    assert losses[0] == "other locations: 5 rejected: for other reasons"
    assert len(losses) == 26
