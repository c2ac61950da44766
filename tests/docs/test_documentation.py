"""The README and the pages are true: their code runs, and the options, targets, files and versions they name exist."""

from __future__ import annotations

import ast
import json
import re
import sys
import tomllib
from importlib.util import find_spec
from pathlib import Path

import click
import pytest

from tests.cli.support import run_command
from tests.support.paths import PROJECT
from trio_spanbatch.cli.commands import cli, spool_group
from trio_spanbatch.testing import OTLPReceiver

CONTRIBUTING = PROJECT / "CONTRIBUTING.md"
PAGES = [PROJECT / "README.md", CONTRIBUTING, PROJECT / "SECURITY.md", *sorted((PROJECT / "docs").glob("*.md"))]
PYPROJECT = tomllib.loads((PROJECT / "pyproject.toml").read_text())
EXAMPLES = sorted((PROJECT / "docs" / "examples").glob("*.py"))


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)


def python_blocks() -> list[tuple[str, str]]:
    return [(f"{page.name}-{number}", code) for page in PAGES for number, code in enumerate(blocks(page, "python"))]


async def test_the_readmes_first_example_runs_as_it_stands_and_has_ten_lines() -> None:
    example = blocks(PROJECT / "README.md", "python")[0]
    assert len([line for line in example.splitlines() if line]) <= 10
    ended = await run_command(program=[sys.executable, "-W", "error", "-c", example])
    assert (ended.exit_code, ended.out) == (0, "")
    (shown,) = blocks(PROJECT / "README.md", "text")
    assert without_what_varies(ended.err) == without_what_varies(shown)


def without_what_varies(tree: str) -> str:
    return re.sub(r"[0-9.]+ ms|trace=[0-9a-f]{32}", "...", tree)


def test_the_readme_fits_on_a_page() -> None:
    page = (PROJECT / "README.md").read_text().partition("## More")[0]
    assert len(page.split()) < 520
    # This part is included in the documentation, in which relative links would have other targets.
    assert not re.search(r"\]\((?!https?:)", page)
    before_the_first_section = page.partition("\n## ")[0]
    assert "$ make demo\n$ make test\n" in before_the_first_section


async def test_the_readmes_other_examples_run() -> None:
    async with OTLPReceiver(location_header="X-Scope-OrgID") as receiver:
        base = receiver.url.removesuffix("/v1/traces")
        for example in blocks(PROJECT / "README.md", "python")[1:]:
            ended = await run_command(
                program=[sys.executable, "-c", example], environ={"OTEL_EXPORTER_OTLP_ENDPOINT": base}
            )
            assert (ended.exit_code, ended.err) == (0, "")
            assert re.search(r"^acme +1 +1 +0 +0 +1$", ended.out, re.MULTILINE), ended.out
    # The example with OpenTelemetry: the location of the task takes precedence over that of the processor.
    names = {location: sorted(span.name for span in spans) for location, spans in receiver.stored.items()}
    assert names == {"acme": ["chat"]}


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
async def test_examples_run(example: Path) -> None:
    ended = await run_command(program=[sys.executable, "-W", "error", str(example)])
    assert ended.exit_code == 0, ended.err


@pytest.mark.parametrize(("name", "code"), python_blocks())
def test_python_blocks_compile_and_import_existing_names(name: str, code: str) -> None:
    tree = compile(code, name, "exec", ast.PyCF_ONLY_AST | ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("trio_spanbatch"):
            module = __import__(node.module or "", fromlist=["*"])
            assert all(hasattr(module, alias.name) for alias in node.names)


def test_the_documented_counts_add_up() -> None:
    (block,) = blocks(PROJECT / "docs" / "command-line.md", "json")
    document = json.loads(block)
    for counts in (document, *document["locations"].values()):
        assert counts["read"] == counts["accepted"] + counts["invalid"]
        assert counts["accepted"] == counts["delivered"] + counts["rejected"] + counts["undelivered"]


def test_exactly_the_existing_commands_and_options_are_documented() -> None:
    page = (PROJECT / "docs" / "command-line.md").read_text()
    commands = [*cli.commands.values(), *spool_group.commands.values()]
    options = {
        option
        for command in commands
        for parameter in command.params
        if isinstance(parameter, click.Option)
        for option in parameter.opts
    }
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", page)) == options
    assert {heading.strip() for heading in re.findall(r"^## (.*)$", page, re.MULTILINE)} == cli.commands.keys()
    assert set(re.findall(r"^\$ trio-spanbatch spool (\w+) DIR", page, re.MULTILINE)) == spool_group.commands.keys()


def test_every_make_target_that_is_named_exists() -> None:
    makefile = (PROJECT / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
    named = {target for page in PAGES for target in re.findall(r"(?:`|\$ )make ([a-z-]+)", page.read_text())}
    assert {"demo", "test", "check", "docs"} <= targets
    assert named <= targets


def test_links_lead_to_existing_files() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_the_changelog_has_a_section_for_unreleased_changes() -> None:
    assert "## [Unreleased]" in (PROJECT / "CHANGELOG.md").read_text()


def test_every_module_option_and_folder_that_contributing_names_exists() -> None:
    commands = re.findall(r"python -m (tests\.\w+)([^`#\n]*)", CONTRIBUTING.read_text())
    assert {module for module, _ in commands} >= {"tests.cancellation", "tests.simulation", "tests.soak"}
    for module, arguments in commands:
        assert find_spec(f"{module}.__main__") is not None, module
        sources = [path.read_text() for path in (PROJECT / module.replace(".", "/")).glob("*.py")]
        for option in re.findall(r"--[a-z-]+", arguments):
            assert any(f'"{option}"' in source for source in sources), f"{module} {option}"
    for path in re.findall(r"\btests/[\w/.]+", CONTRIBUTING.read_text()):
        assert (PROJECT / path).exists(), path


def test_the_supported_versions_are_those_that_the_package_requires() -> None:
    page = (PROJECT / "docs" / "support.md").read_text()
    documented = dict(re.findall(r"^\| ([\w-]+) \| `([^`]+)` \|", page, re.MULTILINE))
    project = PYPROJECT["project"]
    requirements = [
        *project["dependencies"],
        *(each for extra in project["optional-dependencies"].values() for each in extra),
    ]
    required = dict(re.findall(r"^([\w-]+)(.*)$", "\n".join(requirements), re.MULTILINE))
    assert documented == {"CPython": project["requires-python"], **required}
