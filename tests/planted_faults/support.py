"""Plant a fault in a temporary copy of the package, to check that the machines find it."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import trio_spanbatch
from tests.support.processes import untraced_environment

PACKAGE = Path(trio_spanbatch.__file__).parent


def copy_of_package(folder: Path) -> dict[str, str]:
    """Copy the package into ``folder``, an empty directory.

    Returns:
        The environment for a child process that imports the copy.
    """
    shutil.copytree(PACKAGE, folder / PACKAGE.name)
    environ = untraced_environment()
    return {**environ, "PYTHONPATH": os.pathsep.join([str(folder), environ["PYTHONPATH"]])}


def plant(folder: Path, module: str, right: str, wrong: str) -> dict[str, str]:
    """Copy the package into ``folder`` and replace ``right``, which occurs once, with ``wrong``.

    Args:
        folder: An empty directory.
        module: The file, relative to the package.
        right: The correct code.
        wrong: The code with the fault.

    Returns:
        The environment for a child process that imports the copy.
    """
    environ = copy_of_package(folder)
    copy = folder / PACKAGE.name / module
    source = copy.read_text()
    assert source.count(right) == 1, f"{module} has this {source.count(right)} times, not once: {right!r}"
    copy.write_text(source.replace(right, wrong))
    return environ
