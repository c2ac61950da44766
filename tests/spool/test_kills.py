"""Real processes that share a spool and are killed: see `tests.spool.lives`."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.support.long_tests import SAID, run_long


@pytest.mark.parametrize("at_once", [1, 2, 8])
def test_what_was_committed_survives_the_death_of_processes_that_share_a_spool(at_once: int) -> None:
    run_long("-m", "tests.spool.lives", "--lives", 40, "--at-once", at_once, "--seed", at_once)


@pytest.mark.long
@pytest.mark.parametrize("at_once", [2, 8])
def test_a_thousand_processes_that_share_a_spool_lose_nothing(
    at_once: int, record_property: Callable[[str, object], None]
) -> None:
    record_property(SAID, run_long("-m", "tests.spool.lives", "--lives", 1000, "--at-once", at_once))
