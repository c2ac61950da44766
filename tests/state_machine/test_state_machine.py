"""Lanes, budgets and the ledger, driven by a state machine against an independent model."""

from __future__ import annotations

import pytest

from tests.support.long_tests import run_long

EXAMPLES = 200


# The same sequences in each run: fresh ones may find where the model is not exact, which is for a quiet hour.
RUN = f"from state_machine import run_state_machine; run_state_machine(examples={EXAMPLES}, fresh=False)"


@pytest.mark.long
def test_whatever_programs_servers_and_the_clock_do_the_batcher_does_what_the_model_says() -> None:
    run_long("-c", RUN)
