"""Lines of Python by part of the package, and whether each part keeps its budget.

    python -m tests.support.size

A part that needs more says in its commit what went instead.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import trio_spanbatch

__all__ = ["BUDGETS", "lines_by_part", "lines_loaded"]

PACKAGE = Path(trio_spanbatch.__file__).parent

# The modules next to the folders count as one part.
BUDGETS = {
    "modules": 1_639,
    "_scheduler": 3_712,
    "_runtime": 1_538,
    "_reporting": 678,
    "_spans": 2_742,
    "_settings": 633,
    "_http": 3_599,
    "_local": 384,
    "destinations": 1_979,
    "opentelemetry": 1_492,
    "tracing": 555,
    "testing": 1_692,
    "cli": 3_792,
    "_spool": 1_417,
}
# The whole package, and what importing `SpanBatcher` loads of it.
LIMIT = 25_850
LIMIT_LOADED = 9_000

_LOADED = """
import sys
from trio_spanbatch import SpanBatcher
own = [module for name, module in sys.modules.items() if name.partition(".")[0] == "trio_spanbatch"]
print(*(module.__file__ for module in own), sep="\\n")
"""


def lines(path: Path) -> int:
    """Return how many lines a file has."""
    return len(path.read_text(encoding="utf-8").splitlines())


def lines_by_part() -> dict[str, int]:
    """Return the lines of each part of the package."""
    found: dict[str, int] = {}
    for path in PACKAGE.rglob("*.py"):
        inside = path.relative_to(PACKAGE).parts
        part = inside[0] if len(inside) > 1 else "modules"
        found[part] = found.get(part, 0) + lines(path)
    return found


def lines_loaded() -> int:
    """Return the lines of the modules that importing `SpanBatcher` loads."""
    done = subprocess.run([sys.executable, "-c", _LOADED], capture_output=True, text=True, check=True)
    return sum(lines(Path(name)) for name in done.stdout.split())


def main() -> int:
    """Print the table. Return 1 if a budget is exceeded."""
    found = lines_by_part()
    rows = [(part, found.get(part, 0), budget) for part, budget in BUDGETS.items()]
    rows += [(part, count, 0) for part, count in found.items() if part not in BUDGETS]
    rows += [("all", sum(found.values()), LIMIT), ("loaded by import", lines_loaded(), LIMIT_LOADED)]
    for part, count, budget in rows:
        print(f"{part:18}{count:8,} of {budget:6,}{'' if count <= budget else '   over its budget'}")
    return int(any(count > budget for _, count, budget in rows))


if __name__ == "__main__":
    sys.exit(main())
