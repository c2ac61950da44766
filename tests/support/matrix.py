"""Run ``make test`` on every CPython from 3.11 on that is installed, and print the results.

It looks on PATH for ``python3.11``, ``python3.12`` and so on, and among the versions that pyenv has installed: pyenv's
commands on PATH run only the selected versions. Each version gets its own environment, such as ``.venv-3.12``.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

from tests.support.paths import PROJECT

__all__ = ["find", "known"]

ROOT = PROJECT
OLDEST = 11

# Fails where environments cannot be created: some distributions have ensurepip in a separate package.
_PROBE = "import ensurepip, sys, venv; print(sys.implementation.name, '%d.%d' % sys.version_info[:2])"


def candidates(environ: Mapping[str, str]) -> dict[int, list[Path]]:
    """Return the commands named ``python3.x``, by x."""
    folders = [Path(folder) for folder in environ.get("PATH", "").split(os.pathsep) if folder]
    pyenv = Path(environ.get("PYENV_ROOT") or Path(environ.get("HOME", "/"), ".pyenv"))
    folders += sorted(pyenv.glob("versions/3.*/bin"))
    found = defaultdict[int, list[Path]](list)
    for path in (path for folder in folders for path in folder.glob("python3.*")):
        if (match := re.fullmatch(r"python3\.(\d+)", path.name)) and int(match[1]) >= OLDEST:
            found[int(match[1])].append(path)
    return dict(sorted(found.items()))


def objection(python: Path, minor: int) -> str | None:
    """Return the reason why the tests cannot run on ``python``, named for 3.``minor``; None if they can."""
    try:
        ended = subprocess.run([python, "-c", _PROBE], capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    if ended.returncode:
        lines = (ended.stderr.strip() or "it failed").splitlines()
        return lines[-1 if lines[0].startswith("Traceback") else 0]
    name, version = ended.stdout.split()
    return None if (name, version) == ("cpython", f"3.{minor}") else f"it is {name} {version}"


def find(environ: Mapping[str, str]) -> tuple[dict[int, Path], list[str]]:
    """Return one working interpreter for each 3.x, by x, and messages about those that do not work."""
    working: dict[int, Path] = {}
    skipped: list[str] = []
    for minor, paths in candidates(environ).items():
        for path in paths:
            why_not = objection(path, minor)
            if why_not is None:
                working[minor] = path
                break
            skipped.append(f"skipped {path}: {why_not}")
    return working, skipped


def known() -> list[int]:
    """Return the versions in the package's classifiers."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    matches = (re.fullmatch(r"Programming Language :: Python :: 3\.(\d+)", line) for line in project["classifiers"])
    return [int(match[1]) for match in matches if match]


def main(make: str, arguments: str) -> int:
    """Run the tests. Return the exit code: 1 if they failed on a version, or no version was found."""
    working, said = find(os.environ)
    said += [f"no working python3.{minor} was found" for minor in known() if minor not in working]
    print(*said, f"make test on {', '.join(f'Python 3.{minor}' for minor in working)}", sep="\n", flush=True)
    results: dict[str, bool] = {}
    for minor, path in working.items():
        print(f"\n== Python 3.{minor}: {path}", flush=True)
        command = [make, "test", f"PYTHON={path}", f"VENV=.venv-3.{minor}", f"ARGS={arguments}"]
        results[f"3.{minor}"] = subprocess.run(command, cwd=ROOT, check=False).returncode == 0
    print("\n== results", *said, sep="\n")
    print(*(f"Python {version}: {'passed' if passed else 'FAILED'}" for version, passed in results.items()), sep="\n")
    return 0 if results and all(results.values()) else 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
