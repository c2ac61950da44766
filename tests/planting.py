"""Planting a fault into a temporary copy of the package, to see whether the tests' machinery finds it."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from process_support import untraced_environment

import trio_spanbatch

PACKAGE = Path(trio_spanbatch.__file__).parent


def plant(folder: Path, module: str, right: str, wrong: str) -> dict[str, str]:
    """Copy the package into ``folder`` and replace ``right``, which is there once, by ``wrong``.

    Args:
        folder: An empty directory.
        module: The file, relative to the package.
        right: The code as it is.
        wrong: The code with the fault.

    Returns:
        The environment for a child process that shall import the copy.
    """
    copy = folder / PACKAGE.name
    shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    source = (copy / module).read_text()
    assert source.count(right) == 1, f"{module} has this {source.count(right)} times, not once: {right!r}"
    (copy / module).write_text(source.replace(right, wrong))
    return {**untraced_environment(), "PYTHONPATH": os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])}
