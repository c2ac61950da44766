"""Which part of the package may import which, and what importing the batcher loads."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from importlib import import_module
from pathlib import Path

import pytest

import trio_spanbatch
from tests.support.processes import untraced_environment

PACKAGE = Path(trio_spanbatch.__file__).parent

# Each part of the package, with the parts that it may import, for type checkers included. A part is a folder, or a
# module next to the folders.
MAY_IMPORT: dict[str, set[str]] = {
    "_version": set(),
    "_errors": set(),
    "_exceptions": set(),
    "_values": {"_errors"},
    "_spans": {"_errors", "_values"},
    "_exporter": {"_spans", "_values"},
    "_settings": {"_errors", "_reporting", "_spans", "_values"},
    "_reporting": {"_errors", "_exceptions", "_spans", "_values"},
    "_spool": {"_settings", "_spans"},
    "_scheduler": {"_errors", "_exporter", "_reporting", "_settings", "_spans", "_values"},
    "_runtime": {"_errors", "_exceptions", "_exporter", "_reporting", "_scheduler", "_spans", "_spool", "_values"},
    "_http": {"_exceptions", "_exporter", "_settings", "_spans", "_version"},
    "_arguments": {"_exporter", "_http", "_reporting", "_settings", "_spans", "_values"},
    "_batcher": {
        "_arguments",
        "_errors",
        "_exporter",
        "_reporting",
        "_runtime",
        "_scheduler",
        "_settings",
        "_spans",
        "_spool",
    },
    "_intake": {"_batcher", "_spans"},
    "_local": {"_errors", "_exporter", "_spans"},
    "_signals": set(),
    "destinations": {"_arguments", "_errors", "_exporter", "_http", "_settings", "_spans"},
    "testing": {"_arguments", "_batcher", "_exporter", "_http", "_spans", "_values"},
    "opentelemetry": {
        "_arguments",
        "_batcher",
        "_errors",
        "_exceptions",
        "_exporter",
        "_http",
        "_intake",
        "_reporting",
        "_runtime",
        "_spans",
        "_values",
        "_version",
        "tracing",
    },
    "tracing": {"_batcher", "_exceptions", "_intake", "_reporting", "_spans", "_values"},
    "cli": {
        "__init__",
        "_batcher",
        "_errors",
        "_exceptions",
        "_exporter",
        "_http",
        "_reporting",
        "_settings",
        "_spans",
        "_spool",
        "_values",
        "_version",
        "destinations",
        "testing",
        "tracing",
    },
    "pytest_plugin": {"_batcher", "testing"},
    "__main__": {"cli"},
    "__init__": {
        "_batcher",
        "_errors",
        "_exporter",
        "_http",
        "_local",
        "_reporting",
        "_settings",
        "_signals",
        "_spans",
        "_spool",
        "opentelemetry",
    },
}


def modules() -> dict[str, Path]:
    """Return the modules of the package by name, without the package's own; a folder's is ``folder.__init__``."""
    return {".".join(path.relative_to(PACKAGE).with_suffix("").parts): path for path in PACKAGE.rglob("*.py")}


def imports(name: str, path: Path, known: Mapping[str, Path]) -> Iterator[str]:
    """Yield the modules of the package that a module imports, wherever in it the import stands."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.ImportFrom) or not node.level:
            assert not isinstance(node, ast.Import) or not any(
                alias.name.partition(".")[0] == PACKAGE.name for alias in node.names
            ), f"{name} imports the package by its absolute name"
            continue
        base = [*name.split(".")[: -node.level], *(node.module or "").split(".")]
        source = ".".join(filter(None, base))
        for alias in node.names:
            candidates = (f"{source}.{alias.name}".strip("."), source, f"{source}.__init__".strip("."))
            yield next(candidate for candidate in candidates if candidate in known)


def top_level_imports(path: Path) -> Iterator[str]:
    """Yield the top-level packages that a module imports, wherever in it the import stands."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield (node.module or "").partition(".")[0]


GRAPH = {name: set(imports(name, path, modules())) for name, path in modules().items()}


def part_of(module: str) -> str:
    return module.partition(".")[0]


@pytest.mark.parametrize("part", sorted({part_of(module) for module in GRAPH}))
def test_a_part_imports_only_the_parts_that_it_may_import(part: str) -> None:
    found = {part_of(target) for module, targets in GRAPH.items() if part_of(module) == part for target in targets}
    assert found - {part} <= MAY_IMPORT[part]


def test_every_permission_to_import_is_used() -> None:
    used = {(part_of(module), part_of(target)) for module, targets in GRAPH.items() for target in targets}
    assert {(part, other) for part, others in MAY_IMPORT.items() for other in others} <= used


def test_nothing_imports_in_a_circle() -> None:
    try:
        TopologicalSorter(GRAPH).prepare()
    except CycleError as error:
        pytest.fail(f"these modules import each other in a circle: {' -> '.join(error.args[1])}")


def test_the_scheduler_and_all_that_it_imports_know_neither_trio_nor_httpx() -> None:
    """Not even for types."""
    todo = [module for module in GRAPH if part_of(module) == "_scheduler"]
    seen = set(todo)
    while todo:
        module = todo.pop()
        imported = set(top_level_imports(modules()[module]))
        assert imported.isdisjoint({"trio", "httpx", "h11", "outcome", "socket", "ssl", "asyncio"}), module
        new = GRAPH[module] - seen
        seen |= new
        todo += new
    assert "_scheduler.scheduler" in seen


def test_importing_the_batcher_loads_nothing_that_only_some_users_need() -> None:
    program = "import json, sys; from trio_spanbatch import SpanBatcher; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, env=untraced_environment()
    )
    loaded = set(json.loads(done.stdout))
    parts = {name.split(".")[1] for name in loaded if name.startswith("trio_spanbatch.")}
    assert parts.isdisjoint(
        {"_local", "_signals", "_spool", "tracing", "testing", "destinations", "opentelemetry", "cli", "pytest_plugin"}
    )
    # A program with another exporter needs no HTTP client: `OTLPExporter` is imported when it is first used.
    assert loaded.isdisjoint({"trio_spanbatch._http.exporter", "trio_spanbatch._http.transport", "h11"})
    assert loaded.isdisjoint({"sqlite3", "databricks", "opentelemetry.sdk", "pytest", "httpx2"})


def test_importing_the_package_loads_nothing_else_of_it_as_pytest_does_it_in_every_run() -> None:
    program = "import sys; before = set(sys.modules); import trio_spanbatch; print(*sys.modules.keys() - before)"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, env=untraced_environment()
    )
    assert [name for name in done.stdout.split() if name.partition(".")[0] not in sys.stdlib_module_names] == [
        "trio_spanbatch"
    ]


def test_each_public_name_is_found_where_type_checkers_find_it() -> None:
    tree = ast.parse((PACKAGE / "__init__.py").read_text(encoding="utf-8"))
    imported = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.level]
    homes = {alias.name: node.module for node in imported for alias in node.names}
    # `from trio_spanbatch import *` needs no extra.
    assert homes.keys() - {"background_batcher"} == set(trio_spanbatch.__all__)
    for name, home in homes.items():
        assert getattr(trio_spanbatch, name) is getattr(import_module(f"trio_spanbatch.{home}"), name)
        assert trio_spanbatch._MODULE_OF[name] == home  # type: ignore[attr-defined]  # not for type checkers


def test_names_that_are_imported_when_they_are_used_are_listed_like_the_others() -> None:
    program = (
        "import sys, trio_spanbatch\n"
        "listed = set(trio_spanbatch.__all__) <= set(dir(trio_spanbatch))\n"
        "from trio_spanbatch import *\n"
        "print(listed, OTLPExporter is trio_spanbatch.OTLPExporter, hasattr(trio_spanbatch, 'OTLPExportr'))\n"
        "print(ConsoleExporter, JSONFileExporter, exit_on_sigterm, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "True", "False"]
