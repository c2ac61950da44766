from __future__ import annotations

from pathlib import Path

import pytest

from tests.spool.support import DiskPlace, MemoryPlace, Place


@pytest.fixture
def disk(tmp_path: Path) -> DiskPlace:
    return DiskPlace(tmp_path / "spool")


@pytest.fixture(params=["memory", "disk"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    return MemoryPlace() if request.param == "memory" else DiskPlace(tmp_path / "spool")
