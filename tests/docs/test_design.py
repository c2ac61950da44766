"""The table of parts in docs/design.md: it names every part of the package, and imports follow its order."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import trio_spanbatch
from tests.support.paths import PROJECT

PACKAGE = Path(trio_spanbatch.__file__).parent
PAGE = (PROJECT / "docs" / "design.md").read_text()


def part_of(path: Path) -> str:
    """Return the row of a file or folder, which is given relative to the package."""
    name = path.parts[0] if path.parts else "__init__.py"
    return f"{name}/" if (PACKAGE / name).is_dir() else f"{name.removesuffix('.py')}.py"


def parts_of_the_page() -> list[str]:
    section = PAGE.partition("\n## Parts\n")[2].partition("\n### ")[0]
    return re.findall(r"^\| `([\w/.]+)` \|", section, re.MULTILINE)


def imports(file: Path) -> Iterator[str]:
    """Yield the parts that a file imports, those under ``TYPE_CHECKING`` included."""
    folder = file.relative_to(PACKAGE).parent.parts
    for node in ast.walk(ast.parse(file.read_text())):
        if not isinstance(node, ast.ImportFrom):
            continue
        module = tuple(node.module.split(".")) if node.module else ()
        if node.level:
            module = folder[: len(folder) - node.level + 1] + module
        elif module[:1] == (PACKAGE.name,):
            module = module[1:]
        else:
            continue
        # Without a module, as in `from .. import Span, destinations`, the names are public names or modules.
        for name in [module[0]] if module else [alias.name for alias in node.names]:
            is_module = (PACKAGE / name).is_dir() or (PACKAGE / f"{name}.py").is_file()
            yield part_of(Path(name)) if is_module else "__init__.py"


def test_every_part_of_the_package_has_a_row() -> None:
    there = {part_of(path.relative_to(PACKAGE)) for path in PACKAGE.iterdir() if path.suffix == ".py" or path.is_dir()}
    assert sorted(parts_of_the_page()) == sorted(there - {"__pycache__/"})


def test_a_part_imports_only_parts_above_its_own_row() -> None:
    rows = parts_of_the_page()
    wrong = {
        (file.relative_to(PACKAGE).as_posix(), imported)
        for file in PACKAGE.rglob("*.py")
        for imported in imports(file)
        if imported != (part := part_of(file.relative_to(PACKAGE))) and rows.index(imported) > rows.index(part)
    }
    assert not wrong


def test_every_module_of_the_scheduler_and_the_runtime_has_a_row() -> None:
    rows = re.findall(r"^\| `(_(?:scheduler|runtime)/\w+\.py)` \|", PAGE, re.MULTILINE)
    there = [
        path.relative_to(PACKAGE).as_posix()
        for folder in ("_scheduler", "_runtime")
        for path in (PACKAGE / folder).glob("*.py")
        if path.stem != "__init__"
    ]
    assert sorted(rows) == sorted(there)
