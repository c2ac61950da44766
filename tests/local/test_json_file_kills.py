"""Processes that write with `JSONFileExporter` and are killed. `python -m tests.local --kills 100` kills more."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.support.long_tests import SAID, run_long

pytestmark = pytest.mark.long


def test_no_delivered_line_is_lost_or_torn_when_writers_are_killed(
    record_property: Callable[[str, object], None],
) -> None:
    said = run_long("-m", "tests.local", "--kills", 8)
    record_property(SAID, said)
    assert said.startswith("8 kills: ")
