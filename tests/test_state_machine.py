"""Lanes, budgets and the ledger, driven by a state machine against an independent model."""

from __future__ import annotations

import pytest
from background import Command

EXAMPLES = 200


@pytest.mark.background("-c", f"from state_machine import run_state_machine; run_state_machine(examples={EXAMPLES})")
def test_whatever_programs_servers_and_the_clock_do_the_batcher_does_what_the_model_says(background: Command) -> None:
    exit_code, said = background.wait()
    assert exit_code == 0, said
