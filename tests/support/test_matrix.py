"""The interpreters on which ``make test-matrix`` runs the tests."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.support import matrix

HERE = sys.version_info.minor
NEXT = HERE + 1

# The interpreter that runs the tests, in an environment or not, can create environments.
WORKS = f'exec "{sys.executable}" "$@"'


def command(folder: Path, name: str, script: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


@pytest.fixture
def environ(tmp_path: Path) -> Mapping[str, str]:
    return {
        "PATH": f"{tmp_path / 'shims'}:{tmp_path / 'bin'}:{tmp_path / 'gone'}",
        "PYENV_ROOT": str(tmp_path / "pyenv"),
    }


def test_a_command_that_does_not_work_is_skipped_with_its_reason_and_the_next_is_tried(
    tmp_path: Path, environ: Mapping[str, str]
) -> None:
    shim = command(tmp_path / "shims", f"python3.{HERE}", "echo 'command not found' >&2; exit 127")
    other = command(tmp_path / "bin", f"python3.{NEXT}", WORKS)
    works = command(tmp_path / "pyenv" / "versions" / f"3.{HERE}.1" / "bin", f"python3.{HERE}", WORKS)
    assert matrix.find(environ) == (
        {HERE: works},
        [f"skipped {shim}: command not found", f"skipped {other}: it is cpython 3.{HERE}"],
    )


def test_files_that_are_not_supported_interpreters_are_not_tried(tmp_path: Path, environ: Mapping[str, str]) -> None:
    for name in ("python", "python3", "python3.10", f"python3.{HERE}-config", f"python3.{HERE}t"):
        command(tmp_path / "bin", name, WORKS)
    assert matrix.find(environ) == ({}, [])
    works = command(tmp_path / "bin", f"python3.{HERE}", WORKS)
    assert matrix.find(environ) == ({HERE: works}, [])


def test_all_versions_are_run_one_failure_fails_and_missing_ones_are_reported(
    tmp_path: Path, environ: Mapping[str, str], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    versions = (HERE, NEXT)
    monkeypatch.setattr(matrix, "objection", lambda path, minor: None)
    monkeypatch.setattr(matrix, "known", lambda: [HERE, NEXT, NEXT + 1])
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    paths = [command(tmp_path / "bin", f"python3.{minor}", WORKS) for minor in versions]
    make = command(tmp_path / "make", "make", f'echo "made: $*"; [ "$3" = VENV=.venv-3.{HERE} ]')
    assert matrix.main(str(make), "-k one") == 1
    out = capfd.readouterr().out
    for minor, path in zip(versions, paths, strict=True):
        assert f"made: test PYTHON={path} VENV=.venv-3.{minor} ARGS=-k one\n" in out
    summary = out.partition("== results\n")[2].splitlines()
    assert summary == [
        f"no working python3.{NEXT + 1} was found",
        f"Python 3.{HERE}: passed",
        f"Python 3.{NEXT}: FAILED",
    ]
    passes = command(tmp_path / "make", "passes", "")
    assert matrix.main(str(passes), "") == 0


def test_the_oldest_known_version_is_the_one_that_is_required() -> None:
    assert min(matrix.known()) == matrix.OLDEST
    assert f'requires-python = ">=3.{matrix.OLDEST}"' in (matrix.ROOT / "pyproject.toml").read_text()
