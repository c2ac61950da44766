"""Locations, budgets and the ledger, driven by a state machine against an independent model."""

from __future__ import annotations

import pytest

from tests.support.long_tests import run_long


# The same sequences in each run: a fresh one may find a place where the model is inexact, and fail for another reason.
@pytest.mark.long
def test_the_batcher_behaves_like_the_model_for_any_program_server_and_clock() -> None:
    run_long("-m", "tests.state_machine", "--sequences", 200, "--seed", 0)
